//! The configuration, and commands in a user namespace.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use graph_core::config::{LoadOptions, Resolved};
use serde::Serialize;

use super::Outcome;
use crate::{output, settings};

/// The peers' words, in their order.
#[derive(Serialize)]
struct Configuration<'c> {
    runroot: &'c Path,
    root: &'c Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    imagestore: Option<&'c Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'c str>,
    #[serde(rename = "driver-priority", skip_serializing_if = "<[String]>::is_empty")]
    driver_priority: &'c [String],
    #[serde(rename = "driver-options", skip_serializing_if = "Vec::is_empty")]
    driver_options: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    root_auto_ns_user: &'c str,
    auto_userns_min_size: u32,
    auto_userns_max_size: u32,
    #[serde(rename = "disable-volatile", skip_serializing_if = "std::ops::Not::not")]
    disable_volatile: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    transient_store: bool,
    #[serde(rename = "PullOptions")]
    pull_options: Option<&'c BTreeMap<String, String>>,
}

/// Prints what the files and the environment say.
pub(crate) fn config(file: Option<&Path>) -> Result<Outcome> {
    let environment = settings::environment();
    let options = LoadOptions { on_top: file.map(Path::to_owned), ..LoadOptions::default() };
    let config = Resolved::load(&environment, &options)?;
    output::json(&Configuration {
        runroot: &config.run_root,
        root: &config.graph_root,
        imagestore: config.image_store.as_deref(),
        driver: config.driver.as_deref(),
        driver_priority: &config.driver_priority,
        driver_options: config.all_driver_options(),
        root_auto_ns_user: &config.root_auto_userns_user,
        auto_userns_min_size: config.auto_userns_min_size,
        auto_userns_max_size: config.auto_userns_max_size,
        disable_volatile: config.disable_volatile,
        transient_store: config.transient_store,
        pull_options: (!config.pull_options.is_empty()).then_some(&config.pull_options),
    })?;
    Ok(Outcome::Done)
}

/// Runs a command where we are: an ordinary user has been made root before.
pub(crate) fn unshare(words: &[OsString]) -> Result<Outcome> {
    let shell = || std::env::vars_os().find(|(name, _)| name == "SHELL").map(|(_, shell)| shell);
    let words = match words {
        [] => vec![shell().filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into())],
        words => words.to_vec(),
    };
    let Some((program, arguments)) = words.split_first() else { return Ok(Outcome::Failed) };
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("exec: {}", output::safe(&program.to_string_lossy())))?;
    if status.success() {
        return Ok(Outcome::Done);
    }
    // "exit status: 1" with us, "exit status 1" with the peers.
    output::complain(&status.to_string().replace("exit status: ", "exit status "));
    Ok(Outcome::Failed)
}
