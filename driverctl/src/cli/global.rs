//! Flags that every verb takes.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// Flags that every verb takes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Global {
    /// Graph root: where layers, images and containers are
    #[arg(long, short = 'g', global = true, value_name = "DIR")]
    pub(crate) graph: Option<PathBuf>,
    /// Run root: what a reboot may lose
    #[arg(long, short = 'R', global = true, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Separate store for images and read-only layers
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) image_store: Option<PathBuf>,
    /// Keep the records of containers in the run root
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) transient_store: Option<bool>,
    /// Driver; without it the store's own, else the first that works
    #[arg(long, short = 's', global = true, value_name = "DRIVER")]
    pub(crate) storage_driver: Option<String>,
    /// Driver option, for example overlay.mountopt=nodev; may be given several times
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub(crate) storage_opt: Vec<String>,
    /// First become root of a user namespace; the default for ordinary users, who can mostly do nothing without
    #[arg(long, short = 'U', global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) unshare: Option<bool>,
    /// Log what is done, on standard error
    #[arg(long, short = 'D', global = true)]
    pub(crate) debug: bool,
}
