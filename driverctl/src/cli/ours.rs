//! Verbs that the peers have not.

use anyhow::Result;
use clap::Subcommand;
use clap_complete::Shell;

use crate::cmd::{Outcome, ours};
use crate::settings::Opened;

/// Verbs that are ours alone.
#[derive(Debug, Subcommand)]
pub(crate) enum OurVerb {
    /// Print what a shell needs to complete words of this command
    Completions {
        /// For which shell
        shell: Shell,
    },
}

impl OurVerb {
    pub(crate) fn run_without_store(&self) -> Option<Result<Outcome>> {
        match self {
            Self::Completions { shell } => Some(ours::completions(*shell)),
        }
    }

    pub(crate) fn run(&self, _: &Opened) -> Result<Outcome> {
        match self {
            Self::Completions { shell } => ours::completions(*shell),
        }
    }
}
