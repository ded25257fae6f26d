//! Which drivers there are, and how one is opened. Drivers come in as values; this crate knows none.
//!
//! An engine makes a [`Registry`], adds the drivers it wants (its own among them), and asks it to
//! [`select`](Registry::select) one for a graph root. See [`crate::select`] for the rules.

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Driver;
use crate::error::{Error, Result};

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
    /// Options meant for other drivers have been left out. Keys are lower case.
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

    /// Opens the driver, making its home directory when there is none. The graph root and the run root exist.
    ///
    /// A factory that refuses should leave no home directory behind that was not there before: the directory marks the
    /// driver that a store was made with. (Selection removes an empty one.)
    ///
    /// # Errors
    /// [`crate::Error::NotSupported`], [`crate::Error::Prerequisites`] and [`crate::Error::IncompatibleFs`] let selection
    /// go on to the next driver; all others end it. An option that the driver does not know is [`crate::Error::Config`].
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

    /// Adds a driver.
    ///
    /// # Errors
    /// [`Error::Config`] when there is one of that name already, or when the name cannot be that of a directory.
    pub fn add(&mut self, factory: Arc<dyn DriverFactory>) -> Result<()> {
        let name = factory.name();
        let refuse =
            |problem: &str| Err(Error::Config { place: format!("driver {name}"), problem: problem.to_owned() });
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0', '.', '=']) {
            return refuse("not a name that a driver can have");
        }
        if self.get(name).is_some() {
            return refuse("name already registered");
        }
        self.factories.push(factory);
        Ok(())
    }

    /// Adds a driver and returns the registry, for building one in one expression.
    ///
    /// # Errors
    /// Those of [`Registry::add`].
    pub fn with(mut self, factory: impl DriverFactory + 'static) -> Result<Self> {
        self.add(Arc::new(factory))?;
        Ok(self)
    }

    /// The driver of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn DriverFactory>> {
        self.factories.iter().find(|factory| factory.name() == name)
    }

    /// The drivers, in order.
    #[must_use]
    pub fn factories(&self) -> &[Arc<dyn DriverFactory>] {
        &self.factories
    }
}
