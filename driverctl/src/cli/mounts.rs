//! Mounting and unmounting.

use anyhow::Result;
use clap::{ArgAction, Subcommand};

use super::Objects;
use crate::cmd::{Outcome, mounts};
use crate::settings::Opened;

/// Verbs on mounts.
#[derive(Debug, Subcommand)]
pub(crate) enum MountVerb {
    /// Mount layers or containers, and print where
    Mount {
        /// Mount option; replaces the configured ones
        #[arg(long, short = 'o', value_name = "OPTION", action = ArgAction::Append)]
        opt: Vec<String>,
        /// SELinux label
        #[arg(long, short = 'l', value_name = "LABEL")]
        label: Option<String>,
        /// Mount an image, read-only
        #[arg(long, short = 'r', alias = "ro")]
        read_only: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// Give up mounts of layers, containers or images
    #[command(alias = "umount")]
    Unmount {
        /// However often it is mounted
        #[arg(long, short = 'f')]
        force: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// Which of these layers are mounted
    Mounted(Objects),
}

impl MountVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Mount { opt, label, read_only, objects } => {
                mounts::mount(store, objects, opt, label.as_deref(), *read_only)
            }
            Self::Unmount { force, objects } => mounts::unmount(store, objects, *force),
            Self::Mounted(words) => mounts::mounted(store, words),
        }
    }
}
