//! Making, listing and deleting containers.

use anyhow::Result;
use clap::{ArgAction, Subcommand};
use graph_store::AutoUserNs;

use super::{IdMap, Json, Listing, Metadata, Objects};
use crate::cmd::{Outcome, containers, parent_owners};
use crate::id_map;
use crate::settings::Opened;

/// Verbs on containers.
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerVerb {
    /// List containers
    Containers(Listing),
    /// Show containers
    Container(Objects),
    /// Make a container of an image
    #[command(alias = "createcontainer")]
    CreateContainer {
        /// The image; an empty word makes a container of nothing
        image: String,
        /// A name for it; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        /// Its id
        #[arg(long, short = 'i', value_name = "ID")]
        id: Option<String>,
        /// A crash may lose what it writes
        #[arg(long)]
        volatile: bool,
        #[command(flatten)]
        metadata: Metadata,
        #[command(flatten)]
        id_map: IdMap,
        /// `auto`: ids that no other container has; `auto:size=N` for so many
        #[arg(long, value_name = "auto", value_parser = id_map::automatic)]
        userns: Option<AutoUserNs>,
        #[command(flatten)]
        json: Json,
    },
    /// Whom the directories above mounted containers belong to, as far as their mappings leave them out
    ContainerParentOwners(Objects),
    /// Delete containers
    #[command(alias = "deletecontainer")]
    DeleteContainer(Objects),
}

impl ContainerVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::Containers(listing) => containers::list(store, listing),
            Self::Container(words) => containers::show(store, words),
            Self::CreateContainer { image, name, id, volatile, metadata, id_map, userns, json } => {
                let ids = (id_map, userns.as_ref());
                containers::create(store, image, name, id.as_deref(), *volatile, metadata, ids, json.json)
            }
            Self::ContainerParentOwners(words) => parent_owners::of_containers(store, words),
            Self::DeleteContainer(words) => containers::delete(store, words),
        }
    }
}
