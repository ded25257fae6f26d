//! Which drivers there are, and how one is opened. Drivers come in as values; this crate knows none.

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Driver;
use crate::error::Result;

/// Everything a driver is told when it is opened. Drivers read no environment and no configuration file.
#[derive(Clone, Debug, Default)]
pub struct DriverSetup {
    /// The graph root; the driver's home is `<root>/<driver name>`.
    pub root: PathBuf,
    /// The run root, on a tmpfs as a rule; the driver's run home is `<run_root>/<driver name>`.
    pub run_root: PathBuf,
    /// A separate read-write store for read-only layers.
    pub image_store: Option<PathBuf>,
    /// Options in `key=value` form with the driver's prefix already taken off, in the order given; a later one wins.
    /// Options meant for other drivers have been left out.
    pub options: Vec<(String, String)>,
    /// Whether the process is without the initial user namespace's privileges (containers/storage's sense of rootless).
    pub rootless: bool,
    /// Never shift ids at mount time (`_CONTAINERS_OVERLAY_DISABLE_IDMAP=yes`).
    pub disable_id_mapped_mounts: bool,
}

/// A driver that can be opened: one entry of a [`Registry`].
pub trait DriverFactory: Send + Sync + std::fmt::Debug {
    /// The driver's name, as configuration and the home directory name it.
    fn name(&self) -> &str;

    /// Opens the driver, making its home directory when there is none.
    ///
    /// # Errors
    /// [`crate::Error::NotSupported`], [`crate::Error::Prerequisites`] and [`crate::Error::IncompatibleFs`] let selection
    /// go on to the next driver; all others end it.
    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>>;
}

/// The drivers that selection can choose from, in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    factories: Vec<Arc<dyn DriverFactory>>,
}

impl Registry {
    /// No drivers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The drivers, in order.
    #[must_use]
    pub fn factories(&self) -> &[Arc<dyn DriverFactory>] {
        &self.factories
    }
}
