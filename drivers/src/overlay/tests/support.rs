//! A driver in a temporary directory.

use std::path::PathBuf;

use graph_core::driver::CreateOptions;
use graph_core::registry::DriverSetup;
use graph_core::{Driver, LayerId};

use super::super::Overlay;

/// A graph root and a run root that go away with it.
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
}

pub(super) fn id(text: &str) -> LayerId {
    LayerId::new(text).unwrap()
}

impl Place {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn setup(&self) -> DriverSetup {
        DriverSetup {
            root: self.dir.path().join("root"),
            run_root: self.dir.path().join("run"),
            ..DriverSetup::default()
        }
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("root/overlay")
    }

    pub(super) fn open(&self) -> Overlay {
        Overlay::open(&self.setup(), "overlay").unwrap()
    }

    /// A driver with the layers `base`, `middle`, `top`, each the child of the one before.
    pub(super) fn with_three_layers(&self) -> Overlay {
        let driver = self.open();
        self.fill(&driver);
        driver
    }

    /// The three layers.
    pub(super) fn fill(&self, driver: &Overlay) {
        driver.create(&id("base"), None, &CreateOptions::default()).unwrap();
        driver.create(&id("middle"), Some(&id("base")), &CreateOptions::default()).unwrap();
        driver.create_read_write(&id("top"), Some(&id("middle")), &CreateOptions::default()).unwrap();
    }

    pub(super) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.home().join(name)).unwrap()
    }
}

/// Whether the test may mount; then its thread has a mount namespace of its own.
pub(super) fn may_mount() -> bool {
    match graph_sys::namespace::private_mounts() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: no mount namespace of its own: {error}");
            false
        }
    }
}
