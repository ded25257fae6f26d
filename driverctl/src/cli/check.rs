//! Finding and mending damage, and making room.

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Json;
use crate::cmd::{Outcome, check, repair};
use crate::settings::Opened;

/// What `check` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckWords {
    /// Only this layer, image or container, with what it is made of
    #[arg(value_name = "ID")]
    pub(crate) only: Option<String>,
    /// Report layers that nothing uses when they are older than this: 90s, 1h30m, 0 for all
    #[arg(long, short = 'm', value_name = "DURATION", default_value = "24h")]
    pub(crate) max: String,
    /// Remove what is damaged: images with their layers, layers
    #[arg(long, short = 'r')]
    pub(crate) repair: bool,
    /// Remove damaged containers as well; implies --repair
    #[arg(long, short = 'f')]
    pub(crate) force: bool,
    /// Don't compare the trees of layers with their archives
    #[arg(long, short = 'q')]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Verbs that look for damage.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckVerb {
    /// Look for damage in layers, images and containers
    Check(CheckWords),
    /// Restore damaged files of layers from where they came from, or remove what is damaged
    Repair {
        /// Only this layer, image or container, with what it is made of
        #[arg(value_name = "ID")]
        only: Option<String>,
        // No comment for documentation: it would take the brackets for links.
        #[arg(
            long,
            value_name = "SOURCE",
            help = "Restore from here: oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], or a layer's blob"
        )]
        from: Option<String>,
        /// Without --from: remove damaged containers as well
        #[arg(long, short = 'f')]
        force: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Let equal files of layers share their place on disk, where the file system can
    Dedup {
        /// By what files are taken for equal before the kernel compares them: crc, size or sha256
        #[arg(long, value_name = "METHOD", default_value = "crc")]
        hash_method: String,
        #[command(flatten)]
        json: Json,
    },
    /// Remove what belongs to no layer, image or container
    Gc {
        /// List what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        json: Json,
    },
}

impl CheckVerb {
    /// Whether opening the store must not clean it up, because that is what is asked about.
    pub(crate) fn only_looks(&self) -> bool {
        matches!(self, Self::Gc { dry_run: true, .. })
    }

    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        match self {
            Self::Check(words) => check::check(&opened.store, words),
            Self::Repair { only, from: None, force, json } => {
                let words = CheckWords {
                    only: only.clone(),
                    max: "24h".to_owned(),
                    repair: true,
                    force: *force,
                    quick: false,
                    json: *json,
                };
                check::check(&opened.store, &words)
            }
            Self::Repair { only, from: Some(from), json, .. } => {
                repair::restore(&opened.store, only.as_deref(), from, json.json)
            }
            Self::Dedup { hash_method, json } => check::dedup(&opened.store, hash_method, json.json),
            Self::Gc { dry_run, json } => check::gc(&opened.store, *dry_run, json.json),
        }
    }
}
