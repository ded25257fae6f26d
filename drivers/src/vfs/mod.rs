//! The vfs driver: every layer is a whole tree, a copy of its parent's with its own changes in it. No mounts, no
//! privileges, any file system.
//!
//! Its home is containers/storage's, so it may be shared with podman, buildah and skopeo:
//!
//! ```text
//! <root>/vfs/            0700
//!   dir/                 0700
//!     <id>/              a layer: the whole tree
//!   tempdirs/            layers on their way in or out, see graph_core::tempdir
//! ```
//!
//! Differences from their driver, none of them on disk:
//!
//! - Layers are made in `tempdirs/` and renamed into place whole; a killed process leaves no half copy under a layer's id.
//! - Files share their extents with the parent's where the file system can (btrfs, XFS): a layer then costs its metadata.
//! - Everything that a layer can hold is copied, sockets and attributes included.
//! - The option `sync` works (theirs is refused as unknown in 1.63 and 1.64).
//! - Creating over an existing layer is an error; theirs merges into it.

mod driver;
mod layout;
mod options;
mod staged;
mod status;
#[cfg(test)]
mod tests;
mod update;

use std::sync::Arc;

use graph_core::registry::{DriverFactory, DriverSetup};
use graph_core::{Driver, Result};

pub use driver::Vfs;
pub use options::{Options, SyncMode};

/// The driver's name and that of its home.
pub(crate) const DRIVER: &str = "vfs";

/// Opens the vfs driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Factory;

impl DriverFactory for Factory {
    fn name(&self) -> &str {
        DRIVER
    }

    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Vfs::open(setup)?))
    }
}
