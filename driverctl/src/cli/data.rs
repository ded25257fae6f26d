//! What every kind of object has: existence, names, free text, data.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Objects;
use crate::cmd::{Outcome, objects};
use crate::settings::Opened;

/// Of which kind objects have to be.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Kinds {
    /// Only layers count
    #[arg(long, short = 'l')]
    pub(crate) layer: bool,
    /// Only images count
    #[arg(long, short = 'i')]
    pub(crate) image: bool,
    /// Only containers count
    #[arg(long, short = 'c')]
    pub(crate) container: bool,
}

/// Verbs on objects of any kind.
#[derive(Debug, Subcommand)]
pub(crate) enum DataVerb {
    /// Whether there are such layers, images or containers
    Exists {
        /// Say nothing
        #[arg(long, short = 'q')]
        quiet: bool,
        #[command(flatten)]
        kinds: Kinds,
        #[command(flatten)]
        objects: Objects,
    },
    /// Delete containers, images or layers, whatever uses them
    Delete(Objects),
}

impl DataVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Exists { quiet, kinds, objects } => objects::exists(store, objects, *kinds, *quiet),
            Self::Delete(words) => objects::delete(store, words),
        }
    }
}
