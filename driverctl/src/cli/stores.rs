//! The store as a whole.

use anyhow::Result;
use clap::Subcommand;

use super::Json;
use crate::cmd::{Outcome, stores};
use crate::settings::Opened;

/// Verbs on the store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Which driver was chosen, and why; what it can do here
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// Unmount everything and let go of the driver
    Shutdown {
        /// Also what is mounted
        #[arg(long, short = 'f')]
        force: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Delete all containers, images and layers
    Wipe {
        #[command(flatten)]
        json: Json,
    },
    /// Print the version
    Version {
        #[command(flatten)]
        json: Json,
    },
}

impl StoreVerb {
    pub(crate) fn run_without_store(&self) -> Option<Result<Outcome>> {
        match self {
            Self::Version { json } => Some(stores::version(json.json)),
            _ => None,
        }
    }

    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Status { json } => stores::status(opened, json.json),
            Self::Shutdown { force, json } => stores::shutdown(store, *force, json.json),
            Self::Wipe { json } => stores::wipe(store, json.json),
            Self::Version { json } => stores::version(json.json),
        }
    }
}
