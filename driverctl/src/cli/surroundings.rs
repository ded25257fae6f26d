//! What the store's surroundings are: the configuration, the namespace.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use crate::cmd::{Outcome, surroundings};
use crate::settings::Opened;

/// Verbs on the surroundings.
#[derive(Debug, Subcommand)]
pub(crate) enum SurroundingsVerb {
    /// Print the configuration in effect, as JSON; flags do not count
    Config {
        /// A file to read on top of the others
        file: Option<PathBuf>,
    },
    /// Run a command where an ordinary user is root: in a user namespace with the ids of /etc/subuid, with mounts of its own
    Unshare {
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "COMMAND",
            help = "The command; without it a shell"
        )]
        command: Vec<OsString>,
    },
}

impl SurroundingsVerb {
    pub(crate) fn run_without_store(&self) -> Option<Result<Outcome>> {
        Some(match self {
            Self::Config { file } => surroundings::config(file.as_deref()),
            Self::Unshare { command } => surroundings::unshare(command),
        })
    }

    pub(crate) fn run(&self, _: &Opened) -> Result<Outcome> {
        self.run_without_store().unwrap_or(Ok(Outcome::Done))
    }
}
