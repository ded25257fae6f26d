//! Making, listing and deleting layers.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Args, Subcommand};

use super::{IdMap, Json, Listing, Objects};
use crate::cmd::{Outcome, driver_layers, layers, parent_owners};
use crate::settings::Opened;

/// How a new layer is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewLayer {
    /// The layer below; none, or an empty word, makes a base layer
    pub(crate) parent: Option<String>,
    /// SELinux label
    #[arg(long, short = 'l', value_name = "LABEL")]
    pub(crate) label: Option<String>,
    /// A name for it; may be given several times
    #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
    pub(crate) name: Vec<String>,
    /// Its id
    #[arg(long, short = 'i', value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Containers don't write to it
    #[arg(long, short = 'r')]
    pub(crate) readonly: bool,
    #[command(flatten)]
    pub(crate) id_map: IdMap,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// How a layer is made that only the driver knows.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewStorageLayer {
    /// The layer below; none, or an empty word, makes a base layer
    pub(crate) parent: Option<String>,
    /// SELinux label
    #[arg(long, short = 'l', value_name = "LABEL")]
    pub(crate) label: Option<String>,
    /// Its id
    #[arg(long, short = 'i', value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Containers don't write to it
    #[arg(long, short = 'r')]
    pub(crate) readonly: bool,
    #[command(flatten)]
    pub(crate) id_map: IdMap,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Verbs on layers.
#[derive(Debug, Subcommand)]
pub(crate) enum LayerVerb {
    /// List layers
    Layers {
        /// As a tree
        #[arg(long, short = 't')]
        tree: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Make an empty layer
    #[command(alias = "createlayer")]
    CreateLayer(NewLayer),
    /// Make a layer from a tar, compressed or not
    #[command(alias = "importlayer")]
    ImportLayer {
        #[command(flatten)]
        layer: NewLayer,
        /// The tar; without it standard input
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List the layers that the driver has, known to the store or not
    StorageLayers {
        #[command(flatten)]
        json: Json,
    },
    /// Make a layer that only the driver knows, to test what finds such layers
    CreateStorageLayer(NewStorageLayer),
    /// Show layers
    Layer(Objects),
    /// Whom the directories above mounted layers belong to, as far as the layers' mappings leave them out
    LayerParentOwners(Objects),
    /// Delete layers that nothing uses
    #[command(alias = "deletelayer")]
    DeleteLayer(Objects),
}

impl LayerVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Layers { tree, listing } => layers::list(store, listing, *tree),
            Self::CreateLayer(words) => layers::create(store, words),
            Self::ImportLayer { layer, file } => layers::import(store, layer, file.as_deref()),
            Self::StorageLayers { json } => driver_layers::list(store, json.json),
            Self::CreateStorageLayer(words) => driver_layers::create(store, words),
            Self::Layer(words) => layers::show(store, words),
            Self::LayerParentOwners(words) => parent_owners::of_layers(store, words),
            Self::DeleteLayer(words) => layers::delete(store, words),
        }
    }
}
