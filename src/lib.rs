//! Copy-on-write layer storage for container engines, on containers/storage's on-disk format.
//!
//! This crate is what an engine links. It re-exports, from the bottom up:
//!
//! - [`archive`]: layers' archives - tar, tar-split, whiteouts, id mappings, changes,
//! - [`driver`]: the [`Driver`] trait and its values, [`registry`] and [`select`] to choose a driver, [`config`] to read
//!   storage.conf,
//! - [`drivers`]: the drivers of this project; an engine may add its own to a [`registry::Registry`],
//! - [`store`]: layers, images and containers with their records, shared live with podman, buildah, skopeo and CRI-O,
//! - [`oci`]: images in files, into a store and out of it.
//!
//! `examples/engine.rs` is an engine in under 250 lines, `examples/custom_driver.rs` a driver of somebody else's.

pub use graph_archive as archive;
pub use graph_core::{config, driver, error, id, naive, options, refcount, registry, select, subid, tempdir};
pub use graph_drivers as drivers;
pub use graph_oci as oci;
pub use graph_store as store;

pub use graph_core::{Driver, DriverExt, Error, Result};
pub use graph_store::{Store, StoreOptions};
