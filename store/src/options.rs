//! What callers ask for: opening, making, filling, mounting. Everything from outside comes in through these values.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use graph_archive::idmap::IdMappings;
use graph_archive::limits::Limits;
use graph_core::lockfile::Busy;

use crate::pending::PendingLoad;
use crate::records::{Flags, Time};
use crate::userns::{AutoUserNs, AutoUserNsConfig};

/// Called once when the store has waited a second for a lock: the lock file, and who holds it as far as that can be told.
pub type OnLockWait = Arc<dyn Fn(&Busy) + Send + Sync>;

/// How hard layers are pushed to disk before they are marked complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// One syncfs of a layer's data, fsync of what makes it mountable. A complete layer survives a power cut.
    #[default]
    Full,
    /// Only the records are synced, as containers/storage does. The driver option `sync=none` sets this, too.
    RecordsOnly,
}

/// How a store is opened.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Graph root: layers, images, containers. Absolute. Made (0700) when missing.
    pub root: PathBuf,
    /// Run root: mount counts, run-time state; on a tmpfs as a rule. Absolute. Made (0700) when missing.
    pub run_root: PathBuf,
    /// The driver's name; `None` lets selection choose (prior state first, never vfs).
    pub driver: Option<String>,
    /// Drivers for selection to try, in this order; empty for the built-in order.
    pub driver_priority: Vec<String>,
    /// Driver options as in `--storage-opt`: `overlay.mountopt=nodev`, `.mountopt=nodev`, `mountopt=nodev`.
    pub driver_options: Vec<String>,
    /// A separate read-write store for images and read-only layers.
    pub image_store: Option<PathBuf>,
    /// Containers and their layers are volatile and live in the run root.
    pub transient: bool,
    /// Ignore containers' wish to be volatile.
    pub disable_volatile: bool,
    /// The process lacks the privileges of the initial user namespace.
    pub rootless: bool,
    /// Never shift ids at mount time (`_CONTAINERS_OVERLAY_DISABLE_IDMAP=yes`).
    pub disable_id_mapped_mounts: bool,
    /// Where automatic user namespaces come from.
    pub auto_userns: AutoUserNsConfig,
    /// How hard layers are pushed to disk.
    pub durability: Durability,
    /// What an imported archive may ask for.
    pub limits: Limits,
    /// Leave incomplete layers and data that no record has where they are when the store is opened: for looking at them.
    pub leave_left_overs: bool,
    /// Told when the store has to wait for a lock.
    pub on_lock_wait: Option<OnLockWait>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("root", &self.root)
            .field("run_root", &self.run_root)
            .field("driver", &self.driver)
            .field("driver_options", &self.driver_options)
            .field("image_store", &self.image_store)
            .field("transient", &self.transient)
            .finish_non_exhaustive()
    }
}

/// How a layer is made. [`Default`] makes a read-only base layer of a random id.
#[derive(Clone, Debug, Default)]
pub struct CreateLayer {
    /// Its id; `None` for 64 random hex digits.
    pub id: Option<String>,
    /// The layer below: id, name or id prefix. `None` for a base layer.
    pub parent: Option<String>,
    /// Names; a name that another layer has is an error.
    pub names: Vec<String>,
    /// Free text.
    pub metadata: String,
    /// Whether containers write to it.
    pub read_write: bool,
    /// Its record and data may be lost in a crash (`volatile-layers.json`).
    pub volatile: bool,
    /// Mappings of the ids on disk. `None` takes the parent's, or none where there is no parent. Where the driver shows
    /// layers through these mappings at mount time, the layer is stored without any, as in containers/storage.
    pub mappings: Option<IdMappings>,
    /// SELinux label; empty for none.
    pub mount_label: String,
    /// `size`, `inodes` of a read-write layer.
    pub storage_opt: BTreeMap<String, String>,
    /// Further flags of the record.
    pub flags: Flags,
    /// Big data to begin with.
    pub big_data: Vec<(String, Vec<u8>)>,
    /// The load that it is made for.
    pub load: Option<Arc<PendingLoad>>,
}

/// What is known beforehand about a blob that a layer is filled from. All optional; whatever is given is checked.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// `sha256:…` of the blob as it comes in.
    pub compressed_digest: Option<String>,
    /// Bytes of the blob as it comes in; no more are read.
    pub compressed_size: Option<u64>,
    /// `sha256:…` of the uncompressed tar (the diff ID).
    pub diff_digest: Option<String>,
    /// Bytes of the uncompressed tar.
    pub diff_size: Option<u64>,
}

/// How a diff is written.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// How to compress; `None` as the layer was when it was filled (gzip where we cannot write that format).
    pub compression: Option<DiffCompression>,
}

/// Compression of a diff that the store writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffCompression {
    /// None: the exact bytes of the layer's tar where it was imported.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// How a layer or a container is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// SELinux label; `None` for the layer's own.
    pub mount_label: Option<String>,
    /// Mount options that replace the configured ones.
    pub options: Vec<String>,
    /// Mount read-only.
    pub read_only: bool,
    /// Mappings to show the files through; `None` for the container's, or the layer's.
    pub mappings: Option<IdMappings>,
}

/// How an image is made.
#[derive(Clone, Debug, Default)]
pub struct CreateImage {
    /// Its id; `None` for 64 random hex digits.
    pub id: Option<String>,
    /// Names; a name that another image has is an error, unless `take_names` is set.
    pub names: Vec<String>,
    /// Names that other images have move to this one, in the same step in which it appears.
    pub take_names: bool,
    /// Names to begin the history with.
    pub names_history: Vec<String>,
    /// The top layer: id, name or id prefix. `None` for an image without layers.
    pub layer: Option<String>,
    /// Digest of the manifest.
    pub digest: Option<String>,
    /// Free text.
    pub metadata: String,
    /// Big data: `manifest`, the config under its digest, signatures.
    pub big_data: Vec<(String, Vec<u8>)>,
    /// When it was made; `None` for now.
    pub created: Option<Time>,
    /// Flags of the record.
    pub flags: Flags,
}

/// How a container is made.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    /// Its id; `None` for 64 random hex digits.
    pub id: Option<String>,
    /// Names; a name that another container has is an error.
    pub names: Vec<String>,
    /// The image: id, name or id prefix. `None` for an empty root.
    pub image: Option<String>,
    /// Id of its read-write layer; `None` for 64 random hex digits.
    pub layer: Option<String>,
    /// Free text.
    pub metadata: String,
    /// A crash may lose what the container writes.
    pub volatile: bool,
    /// Mappings of the ids inside. `None` for the host's ids, as empty ones.
    pub mappings: Option<IdMappings>,
    /// Mappings that no other container has, instead of `mappings`.
    pub auto_userns: Option<AutoUserNs>,
    /// SELinux labels of process and mount: both or none.
    pub process_label: String,
    /// See `process_label`.
    pub mount_label: String,
    /// Mount options to keep with the container.
    pub mount_options: Vec<String>,
    /// `size`, `inodes` of its layer.
    pub storage_opt: BTreeMap<String, String>,
    /// Big data to begin with.
    pub big_data: Vec<(String, Vec<u8>)>,
    /// Further flags of the record.
    pub flags: Flags,
}
