//! What the peers have not.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Outcome;
use crate::cli::Cli;

/// Writes completions of our words for a shell.
pub(crate) fn completions(shell: Shell) -> Result<Outcome> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    crate::output::bytes(&script)?;
    Ok(Outcome::Done)
}
