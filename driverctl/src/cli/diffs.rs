//! What layers change, and putting changes into them.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Json;
use crate::cmd::{Outcome, copy, diffs};
use crate::settings::Opened;

/// A layer, and what to compare it with.
#[derive(Clone, Debug, Args)]
pub(crate) struct Compared {
    /// The layer
    pub(crate) layer: String,
    /// Compare with this layer instead of the parent
    pub(crate) reference: Option<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Verbs on differences.
#[derive(Debug, Subcommand)]
pub(crate) enum DiffVerb {
    /// Put a tar, compressed or not, into a layer
    #[command(name = "applydiff", alias = "apply-diff")]
    ApplyDiff {
        /// The layer
        layer: String,
        /// The tar; without it standard input
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        json: Json,
    },
    /// Put what is in a directory into a layer
    #[command(name = "applydiff-using-staging-dir", alias = "apply-diff-from-staging-directory")]
    ApplyDirectory {
        /// The layer
        layer: String,
        /// The directory
        directory: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Copy files and directories between layers, containers and the host
    Copy {
        /// Owner of everything that is copied, by container ids
        #[arg(long, short = 'o', value_name = "UID[:GID]")]
        chown: Option<String>,
        #[arg(required = true, num_args = 2.., value_name = "PLACE", help = "[LAYER:]/PATH; the last one is the target")]
        places: Vec<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Write a layer's changes as a tar
    Diff {
        #[command(flatten)]
        compared: Compared,
        /// Where to; without it standard output
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
        /// Don't compress
        #[arg(long, short = 'u')]
        uncompressed: bool,
        /// Compress with gzip
        #[arg(long, short = 'c')]
        gzip: bool,
        /// Compress with zstd
        #[arg(long)]
        zstd: bool,
        /// Not supported for writing
        #[arg(long, short = 'b', alias = "bz2", hide = true)]
        bzip2: bool,
        /// Not supported for writing
        #[arg(long, short = 'x', hide = true)]
        xz: bool,
    },
    /// List a layer's changes
    Changes(Compared),
    /// Bytes in a layer's added and modified files
    #[command(name = "diffsize", alias = "diff-size")]
    DiffSize(Compared),
}

impl DiffVerb {
    pub(crate) fn run(&self, opened: &Opened) -> Result<Outcome> {
        let store = &opened.store;
        match self {
            Self::ApplyDiff { layer, file, json } => diffs::apply(store, layer, file.as_deref(), json.json),
            Self::ApplyDirectory { layer, directory, json } => {
                diffs::apply_directory(store, layer, directory, json.json)
            }
            Self::Copy { chown, places, json } => copy::copy(store, places, chown.as_deref(), json.json),
            Self::Diff { compared, file, uncompressed, gzip, zstd, bzip2, xz } => {
                let options = diffs::compression(*uncompressed, *gzip, *zstd, *bzip2, *xz)?;
                diffs::diff(store, compared, file.as_deref(), &options)
            }
            Self::Changes(words) => diffs::changes(store, words),
            Self::DiffSize(words) => diffs::size(store, words),
        }
    }
}
