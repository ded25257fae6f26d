//! The aufs driver: each layer is a directory of differences, stacked by AUFS where the kernel has it.
//!
//! Mainline kernels have no AUFS. On those without it a store that has an aufs home can be opened all the same: layers are
//! listed, read, compared, applied, checked and moved to another driver; only mounting is refused. That is what is needed
//! of the disks of old Docker installations, whose layout this is.
//!
//! ```text
//! <root>/aufs/
//!    diff/<id>/      contents: ordinary files; `.wh.<name>` for what is gone; `.wh..wh..opq` in directories made anew
//!    layers/<id>     the ids of the layers below, one a line, nearest first; empty for a base layer
//!    mnt/<id>/       mount point
//!    tempdirs/       layers on their way in or out
//! ```
//!
//! Differences from the driver that containers/storage had until 1.60, none of them in what is on disk:
//!
//! - A mount of up to 127 branches is put together in calls of at most 60 options, because more hang or crash kernels.
//! - Files with several names of which only one was written to are made whole before the unmount; the other driver leaves
//!   that to a program that distributions do not have, and loses the links (see `flush`).
//! - Layers are made in `tempdirs/` and renamed into place; a failed mount takes no reference.
//! - Owners can be changed, by a re-owned copy.

mod diff;
mod driver;
mod flush;
mod get;
mod layout;
mod mount;
mod mounter;
mod options;
mod probe;
mod reown;
mod staged;
mod status;
#[cfg(test)]
mod tests;
mod unmount;
mod view;

use std::sync::Arc;

use graph_core::registry::{DriverFactory, DriverSetup};
use graph_core::{Driver, Result};

pub use driver::Aufs;
pub use options::{Options, SyncMode};
pub use unmount::unmount;

/// The driver's name, and its home's.
pub(crate) const DRIVER: &str = "aufs";

/// The most branches of one mount: what AUFS is built with by every distribution that had it.
pub(crate) const MAX_BRANCHES: usize = 127;

/// The most layers below one layer: one branch is the layer's own.
pub(crate) const MAX_LOWERS: usize = MAX_BRANCHES - 1;

/// Opens the aufs driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Factory;

impl DriverFactory for Factory {
    fn name(&self) -> &str {
        DRIVER
    }

    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(Aufs::open(setup)?))
    }
}
