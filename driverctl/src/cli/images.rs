//! Making, listing and deleting images.

use anyhow::Result;
use clap::{ArgAction, Subcommand};

use super::{Json, Listing, Metadata, Objects};
use crate::cmd::{Outcome, images};
use crate::settings::Opened;

/// Verbs on images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// List images
    Images(Listing),
    /// List the images that a digest belongs to
    #[command(alias = "imagesbydigest")]
    ImagesByDigest {
        /// Digest of the image, or of its manifest, or of one of its manifests
        digest: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show images
    Image(Objects),
    /// Make an image of a layer
    #[command(alias = "createimage")]
    CreateImage {
        /// The top layer; none, or an empty word, makes an image without layers
        layer: Option<String>,
        /// A name for it; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        /// Its id
        #[arg(long, short = 'i', value_name = "ID")]
        id: Option<String>,
        /// Digest of its manifest
        #[arg(long, short = 'd', value_name = "DIGEST")]
        digest: Option<String>,
        #[command(flatten)]
        metadata: Metadata,
        #[command(flatten)]
        json: Json,
    },
    /// Delete images, and their layers that nothing else uses
    #[command(alias = "deleteimage")]
    DeleteImage {
        /// Only print which layers would go
        #[arg(long, short = 't')]
        test: bool,
        #[command(flatten)]
        objects: Objects,
    },
}

impl ImageVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Images(listing) => images::list(store, listing),
            Self::ImagesByDigest { digest, listing } => images::by_digest(store, digest, listing),
            Self::Image(words) => images::show(store, words),
            Self::CreateImage { layer, name, id, digest, metadata, json } => {
                images::create(store, layer.as_deref(), name, id.as_deref(), digest.as_deref(), metadata, json.json)
            }
            Self::DeleteImage { test, objects } => images::delete(store, objects, *test),
        }
    }
}
