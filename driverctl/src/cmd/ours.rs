//! What the peers have not.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use graph_drivers::overlay::ProgramMount;

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

/// Writes `driverctl.1` and a page for each verb.
pub(crate) fn man_pages(directory: &Path) -> Result<Outcome> {
    std::fs::create_dir_all(directory).with_context(|| format!("make directory {}", directory.display()))?;
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("write manual pages into {}", directory.display()))?;
    Ok(Outcome::Done)
}

/// Mounts what an engine asks of its mount program.
pub(crate) fn overlay_mount(options: &[OsString], target: &Path) -> Result<Outcome> {
    ProgramMount::parse(options.iter().map(OsString::as_os_str))?.mount(target)?;
    Ok(Outcome::Done)
}
