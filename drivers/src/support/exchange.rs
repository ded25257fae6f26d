//! Putting a new version of a layer into the place of the old one, in one step.

use std::os::fd::OwnedFd;

use graph_core::tempdir::{Addition, TempDir};
use graph_core::{Error, LayerId, Result};

/// A point where tests stop the process.
pub(crate) fn fault(point: &'static str) -> Result<()> {
    graph_sys::fault::point(point).map_err(|error| Error::io("reach", point, None, error))
}

/// Exchanges the layer's directory in `home` for the addition of `temp`, and removes the old one.
///
/// A killed process leaves the old layer or the new one, and a temporary directory for the next open to remove.
pub(crate) fn exchange(mut temp: TempDir, addition: Addition, home: &OwnedFd, id: &LayerId) -> Result<()> {
    fault("reown.copied")?;
    temp.exchange(addition, home, id.as_str())?;
    fault("reown.exchanged")?;
    // The layer is as it shall be. What stays of the old one is removed by the next open.
    if let Err(error) = temp.finish() {
        tracing::warn!(%error, layer = %id, "removing a layer with its former owners");
    }
    Ok(())
}
