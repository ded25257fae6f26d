//! Images between the store and files.

use anyhow::Result;
use clap::{ArgAction, Subcommand};

use super::Json;
use crate::cmd::{Outcome, transfer};
use crate::settings::Opened;

/// Verbs that move images. They are ours; the peers have other programs for it.
#[derive(Debug, Subcommand)]
pub(crate) enum TransferVerb {
    /// Put an image from files into the store
    Load {
        /// A name for it, instead of those in the files; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        // No comment for documentation: it would take the brackets for links.
        #[arg(
            help = "oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], or a directory or file of one of these"
        )]
        source: String,
        #[command(flatten)]
        json: Json,
    },
    /// Write an image into an OCI layout
    Save {
        /// How to compress layers: as-loaded, none, gzip or zstd
        #[arg(long, value_name = "HOW", default_value = "as-loaded")]
        compression: String,
        /// The image
        image: String,
        #[arg(help = "oci:DIR[:NAME], or a directory")]
        target: String,
        #[command(flatten)]
        json: Json,
    },
}

impl TransferVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Load { name, source, json } => transfer::load(store, source, name, json.json),
            Self::Save { compression, image, target, json } => {
                transfer::save(store, image, target, compression, json.json)
            }
        }
    }
}
