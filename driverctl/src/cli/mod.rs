//! The words of the command line.
//!
//! Verbs, flags and aliases are those of the `containers-storage` command, so that scripts work with either; `load`,
//! `save` and `--json` everywhere are ours. A file for each group of verbs: the words as a [`clap::Subcommand`], and `run`, which
//! hands them to the group's functions in `crate::cmd`. A flag that switches something on is a plain `bool`; [`syntax`] sees to
//! `--flag=false` and all that.

pub(crate) mod check;
pub(crate) mod containers;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod diffs;
pub(crate) mod global;
pub(crate) mod images;
pub(crate) mod layers;
pub(crate) mod mounts;
pub(crate) mod ours;
pub(crate) mod space;
pub(crate) mod stores;
pub(crate) mod surroundings;
pub(crate) mod syntax;
pub(crate) mod transfer;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

pub(crate) use global::Global;

use crate::cmd::Outcome;
use crate::settings::Opened;

/// Copy-on-write layer storage for container engines, in the store that podman, buildah and CRI-O use
#[derive(Debug, Parser)]
#[command(name = "driverctl", version, disable_help_subcommand = true, args_override_self = true)]
#[command(after_help = "Ids may be cut short as long as they are unique; names work wherever ids do.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The verbs, group by group.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    #[command(flatten)]
    Layers(layers::LayerVerb),
    #[command(flatten)]
    Diffs(diffs::DiffVerb),
    #[command(flatten)]
    Images(images::ImageVerb),
    #[command(flatten)]
    Containers(containers::ContainerVerb),
    #[command(flatten)]
    Data(data::DataVerb),
    #[command(flatten)]
    Mounts(mounts::MountVerb),
    #[command(flatten)]
    Transfer(transfer::TransferVerb),
    #[command(flatten)]
    Stores(stores::StoreVerb),
    #[command(flatten)]
    Convert(convert::ConvertVerb),
    #[command(flatten)]
    Space(space::SpaceVerb),
    #[command(flatten)]
    Check(check::CheckVerb),
    #[command(flatten)]
    Surroundings(surroundings::SurroundingsVerb),
    #[command(flatten)]
    Ours(ours::OurVerb),
}

impl Verb {
    /// Does it on an open store.
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        match self {
            Self::Layers(verb) => verb.run(opened),
            Self::Diffs(verb) => verb.run(opened),
            Self::Images(verb) => verb.run(opened),
            Self::Containers(verb) => verb.run(opened),
            Self::Data(verb) => verb.run(opened),
            Self::Mounts(verb) => verb.run(opened),
            Self::Transfer(verb) => verb.run(opened),
            Self::Stores(verb) => verb.run(opened),
            Self::Convert(verb) => verb.run(opened),
            Self::Space(verb) => verb.run(opened),
            Self::Check(verb) => verb.run(opened),
            Self::Surroundings(verb) => verb.run(opened),
            Self::Ours(verb) => verb.run(opened),
        }
    }

    /// Whether opening the store must not clean it up.
    pub(crate) fn only_looks(&self) -> bool {
        matches!(self, Self::Check(verb) if verb.only_looks())
    }

    /// What an ordinary user cannot do as such, and can as root of a user namespace. A mount would go with the namespace.
    pub(crate) fn wants_user_namespace(&self) -> bool {
        match self {
            Self::Mounts(_) => false,
            Self::Surroundings(_) => self.is_unshare(),
            Self::Stores(stores::StoreVerb::Version { .. }) | Self::Ours(_) => false,
            _ => true,
        }
    }

    /// Whether a user namespace is all that it is about.
    pub(crate) fn is_unshare(&self) -> bool {
        matches!(self, Self::Surroundings(surroundings::SurroundingsVerb::Unshare { .. }))
    }

    /// Does it, if it is one of those that need no store and work where there is none.
    pub(crate) fn run_without_store(&self) -> Option<Result<Outcome>> {
        match self {
            Self::Stores(verb) => verb.run_without_store(),
            Self::Surroundings(verb) => verb.run_without_store(),
            Self::Ours(verb) => verb.run_without_store(),
            _ => None,
        }
    }

    /// The driver that the verb itself names the store's.
    pub(crate) fn driver(&self) -> Option<&str> {
        match self {
            Self::Convert(convert::ConvertVerb::Convert(words)) => words.from.as_deref(),
            _ => None,
        }
    }

    /// Answers for a store that could not be opened, if that is all that the verb was to bring about.
    pub(crate) fn run_unopened(&self, error: &anyhow::Error) -> Option<Result<Outcome>> {
        match self {
            Self::Convert(verb) => verb.run_converted(error),
            _ => None,
        }
    }
}

/// JSON instead of text.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long, short = 'j')]
    pub(crate) json: bool,
}

/// Whose ids the files of a layer or container have.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct IdMap {
    /// User ids as CONTAINER:HOST:SIZE, further ones behind another colon
    #[arg(long, value_name = "MAP")]
    pub(crate) uidmap: Option<String>,
    /// Group ids as CONTAINER:HOST:SIZE, further ones behind another colon
    #[arg(long, value_name = "MAP")]
    pub(crate) gidmap: Option<String>,
    /// Take the user ids that /etc/subuid gives this user
    #[arg(long, value_name = "USER")]
    pub(crate) subuidmap: Option<String>,
    /// Take the group ids that /etc/subgid gives this group
    #[arg(long, value_name = "GROUP")]
    pub(crate) subgidmap: Option<String>,
    /// No mapping of user ids, even if the parent has one
    #[arg(long)]
    pub(crate) hostuidmap: bool,
    /// No mapping of group ids, even if the parent has one
    #[arg(long)]
    pub(crate) hostgidmap: bool,
}

/// Ids or names, and JSON.
#[derive(Clone, Debug, Args)]
pub(crate) struct Objects {
    /// Ids or names
    #[arg(required = true, value_name = "ID")]
    pub(crate) objects: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// A list.
#[derive(Clone, Debug, Args)]
pub(crate) struct Listing {
    /// Only ids
    #[arg(long, short = 'q', alias = "quick")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Free text kept with an image or a container.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Metadata {
    /// Free text to keep with it
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(crate) metadata: Option<String>,
    /// A file with the free text
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
}
