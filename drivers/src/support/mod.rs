//! What more than one driver needs.

pub(crate) mod context;
#[cfg(any(feature = "overlay", feature = "aufs"))]
pub(crate) mod counted;
pub(crate) mod exchange;
pub(crate) mod options;
#[cfg(any(feature = "overlay", feature = "vfs"))]
pub(crate) mod reowned;
#[cfg(any(feature = "overlay", feature = "vfs"))]
pub(crate) mod update;
pub(crate) mod usage;
