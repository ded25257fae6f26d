//! Verbs that the peers have not.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Subcommand};
use clap_complete::Shell;

use crate::cmd::{Outcome, ours};
use crate::settings::Opened;

/// Verbs that are ours alone.
#[derive(Debug, Subcommand)]
pub(crate) enum OurVerb {
    /// Print what a shell needs to complete words of this command
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write manual pages, one for each verb
    ManPages {
        /// Where to; it is made if it is not there
        directory: PathBuf,
    },
    /// Mount an overlay by the kernel, called as engines call fuse-overlayfs: as their mount_program
    #[command(
        after_help = "Engines call a mount_program by its path alone. Called under the name driverctl-overlay-mount (a link will do), the command is this verb."
    )]
    OverlayMount {
        /// lowerdir=DIR[:DIR...],upperdir=DIR,workdir=DIR and other words; may be given several times
        #[arg(long = "opt", short = 'o', value_name = "OPTIONS", action = ArgAction::Append, required = true)]
        options: Vec<OsString>,
        /// Where to mount
        target: PathBuf,
    },
}

impl OurVerb {
    pub(crate) fn run_without_store(&self) -> Option<Result<Outcome>> {
        match self {
            Self::Completions { shell } => Some(ours::completions(*shell)),
            Self::ManPages { directory } => Some(ours::man_pages(directory)),
            Self::OverlayMount { options, target } => Some(ours::overlay_mount(options, target)),
        }
    }

    pub(crate) fn run(&self, _: &Opened) -> Result<Outcome> {
        self.run_without_store().unwrap_or(Ok(Outcome::Done))
    }
}
