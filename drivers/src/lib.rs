//! The graph drivers.

#[cfg(feature = "overlay")]
pub mod overlay;
