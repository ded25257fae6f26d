//! What every kind of object has: existence, names, free text, data.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgAction, Args, Subcommand};

use super::{Json, Metadata, Objects};
use crate::cmd::{Outcome, data, objects};
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

/// An object whose data is listed.
#[derive(Clone, Debug, Args)]
pub(crate) struct Listed {
    /// Its id or name
    #[arg(value_name = "ID")]
    pub(crate) object: String,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// An item of data.
#[derive(Clone, Debug, Args)]
pub(crate) struct Item {
    /// Whose: an id or a name
    #[arg(value_name = "ID")]
    pub(crate) object: String,
    /// The item's key
    pub(crate) key: String,
}

/// An item of data and the file that it goes to or comes from.
#[derive(Clone, Debug, Args)]
pub(crate) struct ItemInFile {
    #[command(flatten)]
    pub(crate) item: Item,
    /// The file; without it standard input or output
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// An object and names for it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Names {
    /// Its id or name
    #[arg(value_name = "ID")]
    pub(crate) object: String,
    /// A name; may be given several times
    #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
    pub(crate) name: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
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
    /// List the names of a layer, image or container
    #[command(alias = "getnames")]
    GetNames(Listed),
    /// Give it these names, too; whoever has them loses them
    #[command(alias = "addnames")]
    AddNames(Names),
    /// Take names away from it
    #[command(alias = "removenames")]
    RemoveNames(Names),
    /// Give it these names and no others
    #[command(alias = "setnames")]
    SetNames(Names),
    /// Print the free text kept with layers, images or containers
    Metadata {
        /// Only the text
        #[arg(long, short = 'q')]
        quiet: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// Replace the free text kept with a layer, image or container
    #[command(alias = "setmetadata")]
    SetMetadata {
        /// Its id or name
        #[arg(value_name = "ID")]
        object: String,
        #[command(flatten)]
        metadata: Metadata,
    },
    /// List the data items of a layer
    #[command(alias = "listlayerdata")]
    ListLayerData(Listed),
    /// Print a data item of a layer
    #[command(alias = "getlayerdata")]
    GetLayerData(ItemInFile),
    /// Set a data item of a layer
    #[command(alias = "setlayerdata")]
    SetLayerData(ItemInFile),
    /// List the data items of an image
    #[command(alias = "listimagedata")]
    ListImageData(Listed),
    /// Print a data item of an image
    #[command(alias = "getimagedata")]
    GetImageData(ItemInFile),
    /// Print the size of a data item of an image
    #[command(alias = "getimagedatasize")]
    GetImageDataSize(Item),
    /// Print the digest of a data item of an image
    #[command(alias = "getimagedatadigest")]
    GetImageDataDigest(Item),
    /// Set a data item of an image
    #[command(alias = "setimagedata")]
    SetImageData(ItemInFile),
    /// Print the directory for an engine's data about an image
    #[command(alias = "getimagedir")]
    GetImageDir(Object),
    /// Print the directory for an engine's data about an image that a reboot may lose
    #[command(alias = "getimagerundir")]
    GetImageRunDir(Object),
    /// List the data items of a container
    #[command(alias = "listcontainerdata")]
    ListContainerData(Listed),
    /// Print a data item of a container
    #[command(alias = "getcontainerdata")]
    GetContainerData(ItemInFile),
    /// Print the size of a data item of a container
    #[command(alias = "getcontainerdatasize")]
    GetContainerDataSize(Item),
    /// Print the digest of a data item of a container
    #[command(alias = "getcontainerdatadigest")]
    GetContainerDataDigest(Item),
    /// Set a data item of a container
    #[command(alias = "setcontainerdata")]
    SetContainerData(ItemInFile),
    /// Print the directory for an engine's data about a container
    #[command(alias = "getcontainerdir")]
    GetContainerDir(Object),
    /// Print the directory for an engine's data about a container that a reboot may lose
    #[command(alias = "getcontainerrundir")]
    GetContainerRunDir(Object),
}

/// One object.
#[derive(Clone, Debug, Args)]
pub(crate) struct Object {
    /// Its id or name
    #[arg(value_name = "ID")]
    pub(crate) object: String,
}

impl DataVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Exists { quiet, kinds, objects } => objects::exists(store, objects, *kinds, *quiet),
            Self::Delete(words) => objects::delete(store, words),
            Self::GetNames(words) => objects::names(store, words),
            Self::AddNames(words) => objects::change_names(words, |object, names| store.add_names(object, names)),
            Self::RemoveNames(words) => objects::change_names(words, |object, names| store.remove_names(object, names)),
            Self::SetNames(words) => objects::change_names(words, |object, names| store.set_names(object, names)),
            Self::Metadata { quiet, objects } => objects::metadata(store, objects, *quiet),
            Self::SetMetadata { object, metadata } => objects::set_metadata(store, object, metadata),
            Self::ListLayerData(words) => data::list(words, |layer| Ok(store.layer(layer)?.big_data_names.clone())),
            Self::GetLayerData(words) => data::get(words, |layer, key| store.layer_big_data(layer, key)),
            Self::SetLayerData(words) => {
                data::set(words, |layer, key, data| store.set_layer_big_data(layer, key, data))
            }
            Self::ListImageData(words) => data::list(words, |image| Ok(store.image(image)?.big_data_names.clone())),
            Self::GetImageData(words) => data::get(words, |image, key| store.image_big_data(image, key)),
            Self::GetImageDataSize(words) => data::print(store.image_big_data_size(&words.object, &words.key)),
            Self::GetImageDataDigest(words) => data::print(store.image_big_data_digest(&words.object, &words.key)),
            Self::SetImageData(words) => {
                data::set(words, |image, key, data| store.set_image_big_data(image, key, data))
            }
            Self::GetImageDir(words) => data::directory(store.image_directory(&words.object)),
            Self::GetImageRunDir(words) => data::directory(store.image_run_directory(&words.object)),
            Self::ListContainerData(words) => data::list(words, |container| {
                let mut names = store.container(container)?.big_data_names.clone();
                names.sort_unstable();
                Ok(names)
            }),
            Self::GetContainerData(words) => {
                data::get(words, |container, key| store.container_big_data(container, key))
            }
            Self::GetContainerDataSize(words) => data::print(store.container_big_data_size(&words.object, &words.key)),
            Self::GetContainerDataDigest(words) => {
                data::print(store.container_big_data_digest(&words.object, &words.key))
            }
            Self::SetContainerData(words) => {
                data::set(words, |container, key, data| store.set_container_big_data(container, key, data))
            }
            Self::GetContainerDir(words) => data::directory(store.container_directory(&words.object)),
            Self::GetContainerRunDir(words) => data::directory(store.container_run_directory(&words.object)),
        }
    }
}
