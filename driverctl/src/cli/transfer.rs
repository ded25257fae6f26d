//! Images between the store and files.

use anyhow::Result;
use clap::{ArgAction, Args, Subcommand};

use super::Json;
use crate::cmd::{Outcome, transfer};
use crate::settings::Opened;

/// Verbs that move images. They are ours; the peers have other programs for it.
#[derive(Debug, Subcommand)]
pub(crate) enum TransferVerb {
    /// Put images from files into the store
    Load(Load),
    /// Write images into files
    Save(Save),
}

/// What is loaded.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// A name for it, instead of those in the files; may be given several times
    #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
    pub(crate) name: Vec<String>,
    /// Of an image for several platforms the one for OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// All images of a layout or archive
    #[arg(long, short = 'a')]
    pub(crate) all: bool,
    // No comment for documentation: it would take the brackets for links.
    #[arg(
        required = true,
        help = "oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], a directory or file of one of these; docker://NAME and others through skopeo. NAME may be a digest"
    )]
    pub(crate) source: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// What is saved.
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// How to compress layers: as-loaded, none, gzip or zstd
    #[arg(long, value_name = "HOW", default_value = "as-loaded")]
    pub(crate) compression: String,
    #[arg(
        required = true,
        num_args = 2..,
        value_names = ["IMAGE", "TARGET"],
        help = "Images, then where they go: oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], or a directory; docker://NAME and others through skopeo"
    )]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

impl TransferVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        match self {
            Self::Load(words) => transfer::load(&opened.store, words),
            Self::Save(words) => transfer::save(&opened.store, words),
        }
    }
}
