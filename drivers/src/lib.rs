//! The graph drivers.
//!
//! Each is a folder with the same small set of files: `driver` (the [`Driver`](graph_core::Driver) itself), `options`,
//! `layout` (its home on disk), and, where the driver has such a thing, `mount`, `diff`, `probe` and `status`.

use std::sync::Arc;

use graph_core::registry::{DriverFactory, Registry};

#[cfg(feature = "aufs")]
pub mod aufs;
#[cfg(feature = "overlay")]
pub mod overlay;
#[cfg(any(feature = "overlay", feature = "vfs", feature = "aufs"))]
mod support;
#[cfg(feature = "vfs")]
pub mod vfs;

/// The drivers of this build, the preferred one first. Selection never takes `vfs` unless it is asked for.
#[must_use]
pub fn all() -> Vec<Arc<dyn DriverFactory>> {
    vec![
        #[cfg(feature = "overlay")]
        Arc::new(overlay::OverlayFactory::OVERLAY),
        #[cfg(feature = "aufs")]
        Arc::new(aufs::Factory),
        #[cfg(feature = "vfs")]
        Arc::new(vfs::Factory),
    ]
}

/// A registry of [`all`] drivers; others may be added to it.
///
/// # Errors
/// None: the names are different. The type is that of [`Registry::add`].
pub fn registry() -> graph_core::Result<Registry> {
    let mut registry = Registry::new();
    for factory in all() {
        registry.add(factory)?;
    }
    Ok(registry)
}
