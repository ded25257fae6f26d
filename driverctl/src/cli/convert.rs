//! Another driver for a store.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Json;
use crate::cmd::{Outcome, convert};
use crate::settings::Opened;

/// The verb that moves a store to another driver. It is ours.
#[derive(Debug, Subcommand)]
pub(crate) enum ConvertVerb {
    /// Move the store to another driver, with all images, layers and containers; nothing may be mounted
    Convert(Convert),
}

/// What is to be converted to what.
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// The driver that it has, as with --storage-driver; the graph directory of an old Docker (aufs, without records of ours) is
    /// taken as it is then
    #[arg(long, value_name = "DRIVER")]
    pub(crate) from: Option<String>,
    /// The driver that it is to have: overlay, aufs or vfs
    #[arg(long, value_name = "DRIVER", required = true)]
    pub(crate) to: String,
    /// Remove the old store when the new one is in its place
    #[arg(long)]
    pub(crate) remove_old: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

impl ConvertVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let Self::Convert(words) = self;
        convert::convert(&opened.store, words)
    }

    /// Whether opening the store has completed what this verb had begun: then there is nothing left to do.
    pub(crate) fn run_converted(&self, error: &anyhow::Error) -> Option<Result<Outcome>> {
        let Self::Convert(words) = self;
        convert::completed(words, error)
    }
}
