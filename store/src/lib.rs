//! Layers, images and containers on disk, in containers/storage's own format: podman, buildah, skopeo and CRI-O open a
//! store written here, and theirs opens here, at the same time, under their locks.
//!
//! ```no_run
//! use std::io::Write;
//! use graph_store::{CreateContainer, CreateImage, CreateLayer, DiffOptions, Expected, MountOptions, Store, StoreOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let registry = graph_core::registry::Registry::new();
//! # let blobs: Vec<std::fs::File> = Vec::new();
//! let store = Store::open(
//!     StoreOptions {
//!         root: "/var/lib/containers/storage".into(),
//!         run_root: "/run/containers/storage".into(),
//!         driver: Some("overlay".to_owned()),
//!         ..StoreOptions::default()
//!     },
//!     &registry,
//! )?;
//! for warning in store.warnings() {
//!     eprintln!("{warning}"); // left-overs of killed processes that could not be cleaned up
//! }
//!
//! // Layers, from the bottom up; each blob (tar, gzip, zstd, xz, bzip2) is read once.
//! let mut parent = None;
//! for mut blob in blobs {
//!     let imported = store.import_layer(&CreateLayer { parent, ..CreateLayer::default() }, &Expected::default(), &mut blob)?;
//!     parent = Some(imported.layer.id.clone());
//! }
//! let image = store.create_image(&CreateImage {
//!     names: vec!["localhost/app:1".to_owned()],
//!     layer: parent,
//!     big_data: vec![("manifest".to_owned(), b"{}".to_vec())],
//!     ..CreateImage::default()
//! })?;
//!
//! // A container, its changes, its diff.
//! let container = store.create_container(&CreateContainer { image: Some(image.id.clone()), ..CreateContainer::default() })?;
//! let merged = store.mount(&container.id, &MountOptions::default())?;
//! std::fs::File::create(merged.join("new"))?.write_all(b"hello")?;
//! for change in store.changes(None, &container.layer)? {
//!     println!("{:?} {}", change.kind, String::from_utf8_lossy(&change.path));
//! }
//! store.unmount(&container.id, false)?;
//! store.diff(None, &container.layer, &mut std::io::sink(), &DiffOptions::default())?;
//!
//! store.delete_container(&container.id)?;
//! store.delete_image(&image.id, true)?;
//! # Ok(())
//! # }
//! ```
//!
//! On disk (`D` is the driver's name; directories 0700, records and big data 0600, lock files 0644):
//!
//! ```text
//! <root>/storage.lock userns.lock
//! <root>/D/                       the driver's home
//! <root>/D-layers/                layers.json volatile-layers.json layers.lock <id>.tar-split.gz <id>/<big data> tmp/
//! <root>/D-images/                images.json images.lock <id>/<big data>          in the image store, where there is one
//! <root>/D-containers/            containers.json volatile-containers.json containers.lock <id>/<big data> <id>/userdata/
//! <run root>/D-layers/            mountpoints.json mountpoints.lock
//! <run root>/D-containers/<id>/userdata/
//! ```
//!
//! Lock order: storage.lock, layers.lock, mountpoints.lock, images.lock, containers.lock. Records are read when the
//! last-writer token of their lock file has changed, and only then.

mod bigdata;
mod check;
mod containers;
mod convert;
mod dedup;
mod delete;
mod diff;
mod dirs;
mod driver_layers;
mod error;
mod from_config;
mod gc;
mod group;
mod images;
mod import;
mod index;
pub mod json;
mod layers;
mod mapped;
mod mounts;
mod names;
mod options;
mod parent_owners;
mod parts;
mod pending;
pub mod records;
mod recovery;
mod refill;
mod restore;
mod store;
mod table;
mod usage;
mod userns;
mod wipe;

pub use check::{
    CheckOptions, CheckReport, Defect, ObjectKind, OnCheckProgress, Problem, Problems, RepairOptions, Unrepaired,
};
pub use convert::{ConvertEvent, ConvertOptions, Converted};
pub use dedup::{DedupHash, DedupReport};
pub use error::{Error, ErrorKind, Result};
pub use gc::{Garbage, GarbageKind};
pub use import::Imported;
pub use names::Found;
pub use options::{
    CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, Durability, Expected, MountOptions,
    OnLockWait, StoreOptions,
};
pub use parent_owners::ParentOwners;
pub use pending::PendingLoad;
pub use records::{Container, Image, Layer};
pub use restore::Restored;
pub use store::{Store, Stored};
pub use usage::{ContainerUsage, ImageUsage, LayerUsage, Space, StoreUsage, UsageOptions};
pub use userns::{AUTO_USER, AutoUserNs, AutoUserNsConfig};
