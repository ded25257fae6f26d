//! What is in a store and what it takes.

use anyhow::Result;
use clap::Subcommand;

use super::Json;
use crate::cmd::{Outcome, du, tree};
use crate::settings::Opened;

/// Verbs that show where the space goes. They are ours.
#[derive(Debug, Subcommand)]
pub(crate) enum SpaceVerb {
    /// Show layers, and the images and containers on them, as a tree with sizes
    Tree {
        #[command(flatten)]
        json: Json,
    },
    /// Measure what layers, images and containers take on disk
    Du {
        /// Exact numbers of bytes, also on a terminal
        #[arg(long, short = 'b')]
        bytes: bool,
        #[command(flatten)]
        json: Json,
    },
}

impl SpaceVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        match self {
            Self::Tree { json } => tree::tree(&opened.store, json.json),
            Self::Du { bytes, json } => du::du(&opened.store, *bytes, json.json),
        }
    }
}
