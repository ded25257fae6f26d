//! The [`Driver`] trait. Its documentation is the contract; [`crate::conformance`] is its test.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use graph_archive::apply::{ApplyObserver, ApplyReport};
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;
use graph_archive::limits::Limits;

use crate::error::Result;
use crate::id::LayerId;

/// How a layer is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// SELinux label for the layer's files; empty for none.
    pub mount_label: String,
    /// Limits of a read-write layer: `size` (bytes, with units) and `inodes`. Drivers without quotas refuse any.
    pub storage_opt: BTreeMap<String, String>,
    /// The layer's own id mappings: its files are stored with host ids. Empty where ids are shifted at mount time.
    pub mappings: IdMappings,
}

/// How a layer is mounted.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// SELinux label of the mount; empty for none.
    pub mount_label: String,
    /// Mappings to show the layer through, where the driver can shift ids at mount time.
    pub mappings: IdMappings,
    /// Mount options: `ro` makes the mount read-only; the others replace the configured `mountopt`.
    pub options: Vec<String>,
    /// The container's changes may be lost in a crash: no syncing at unmount.
    pub volatile: bool,
    /// Show ids as they are on disk even if the driver could shift them.
    pub disable_shifting: bool,
}

/// How a diff is put into a layer.
#[derive(Default)]
pub struct ApplyDiffOptions<'o> {
    /// Mappings from the archive's (container) ids to those on disk.
    pub mappings: IdMappings,
    /// SELinux label for new files; empty for none.
    pub mount_label: String,
    /// A refused chown is no error.
    pub ignore_chown_errors: bool,
    /// Give every file this mode (octal) and keep the real one in `user.containers.override_stat`.
    pub force_mask: Option<u32>,
    /// What the archive may ask for.
    pub limits: Limits,
    /// Sees every raw byte and every file's content once, in stream order; a driver must pass it on to the code that
    /// applies, because tar-split is made from it.
    pub observer: Option<&'o mut dyn ApplyObserver>,
}

impl fmt::Debug for ApplyDiffOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyDiffOptions")
            .field("mappings", &self.mappings)
            .field("ignore_chown_errors", &self.ignore_chown_errors)
            .field("force_mask", &self.force_mask)
            .finish_non_exhaustive()
    }
}

/// Which two states a diff, a change list or a diff size compares.
#[derive(Clone, Debug)]
pub struct DiffRequest<'r> {
    /// The layer asked about.
    pub id: &'r LayerId,
    /// Mappings of its ids on disk.
    pub mappings: &'r IdMappings,
    /// The state to compare with; `None` compares with nothing (everything is an addition).
    pub parent: Option<&'r LayerId>,
    /// Mappings of the parent's ids on disk.
    pub parent_mappings: &'r IdMappings,
    /// SELinux label for a mount that the comparison may need; empty for none.
    pub mount_label: &'r str,
}

/// What writing a diff found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffReport {
    /// Bytes written.
    pub bytes: u64,
    /// Things left out and why, one sentence each (sockets, for example).
    pub notices: Vec<String>,
}

/// Space and inodes that a layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a driver can do on its home directory, found by probing, not by kernel version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `get` shows a layer through mappings without touching its files.
    pub shifts_ids: bool,
    /// Changes are read from the layer's own directory, without comparing trees.
    pub native_diff: bool,
    /// `storage_opt` `size` and `inodes` work.
    pub quotas: bool,
    /// `get` with `volatile` skips syncing.
    pub volatile: bool,
    /// `begin_staged` works: extraction needs no lock.
    pub staging: bool,
    /// Copies within the home share extents.
    pub reflink: bool,
    /// The most layers that can be below one layer; `None` for no limit.
    pub max_depth: Option<usize>,
    /// Additional, read-only stores can be used (option `imagestore`).
    pub additional_stores: bool,
    /// `get` with `ro` gives a tree that refuses writes.
    pub read_only_mounts: bool,
}

/// A deletion that has begun: the layer is gone from the driver, its files are not yet removed.
///
/// Dropping it removes them too, ignoring errors; a left-over is removed by the next open.
#[must_use = "the files are removed by finish()"]
pub struct DeferredRemoval {
    finish: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl DeferredRemoval {
    /// A removal whose physical part is `finish`.
    pub fn new(finish: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { finish: Some(Box::new(finish)) }
    }

    /// A removal with nothing left to do.
    pub fn done() -> Self {
        Self { finish: None }
    }

    /// Removes the files. To be called outside locks; may take long.
    ///
    /// # Errors
    /// The first file that could not be removed; the rest is tried all the same.
    pub fn finish(mut self) -> Result<()> {
        self.finish.take().map_or(Ok(()), |finish| finish())
    }
}

impl Drop for DeferredRemoval {
    fn drop(&mut self) {
        if let Some(finish) = self.finish.take()
            && let Err(error) = finish()
        {
            tracing::warn!(%error, "removing a deleted layer's files");
        }
    }
}

impl fmt::Debug for DeferredRemoval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredRemoval").field("pending", &self.finish.is_some()).finish()
    }
}

/// A mounted layer. Dropping it gives up the reference, and unmounts with the last one.
#[must_use = "dropping it unmounts the layer"]
pub struct Mounted<'d> {
    path: PathBuf,
    release: Option<Box<dyn FnOnce() -> Result<()> + Send + 'd>>,
}

impl<'d> Mounted<'d> {
    /// A mount at `path` whose reference `release` gives up.
    pub fn new(path: PathBuf, release: impl FnOnce() -> Result<()> + Send + 'd) -> Self {
        Self { path, release: Some(Box::new(release)) }
    }

    /// Where the layer's tree is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives up the reference and reports a failing unmount.
    ///
    /// # Errors
    /// Those of [`Driver::put`].
    pub fn put(mut self) -> Result<()> {
        self.release.take().map_or(Ok(()), |release| release())
    }

    /// Leaves the layer mounted, also beyond the end of the process; [`Driver::put`] undoes it.
    #[must_use]
    pub fn persist(mut self) -> PathBuf {
        self.release = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Some(release) = self.release.take()
            && let Err(error) = release()
        {
            tracing::warn!(%error, path = %self.path.display(), "unmounting a layer that went out of scope");
        }
    }
}

impl fmt::Debug for Mounted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A layer being filled outside every lock. Dropping it removes all of it.
pub trait StagedLayer: Send + fmt::Debug {
    /// Applies an uncompressed tar. At most once.
    ///
    /// # Errors
    /// As [`Driver::apply_diff`]; the staged layer can then only be dropped.
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport>;

    /// Gives access to the files of the staged layer's own diff, as [`Driver::diff_getter`] does for a published one.
    /// tar-split needs it when an archive replaces members of its own.
    ///
    /// # Errors
    /// The system's.
    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>>;

    /// Flushes the data to disk (one syncfs), so that publishing cannot outrun it. Without a lock.
    ///
    /// # Errors
    /// The system's.
    fn flush(&mut self) -> Result<()>;

    /// Makes it the layer `id` by a rename. To be called under the store's lock; short.
    ///
    /// # Errors
    /// [`crate::Error::LayerExists`]; [`crate::Error::LayerUnknown`] when the parent has gone meanwhile.
    fn publish(self: Box<Self>, id: &LayerId) -> Result<()>;
}

/// Opens files of a layer's diff by name, for putting its archive together again.
pub use graph_archive::split::FileGetter;

/// One backend of copy-on-write layers.
///
/// (To be documented method by method: what holds before, after, on a crash, and on repetition.)
pub trait Driver: Send + Sync + fmt::Debug {
    /// The driver's name, as it names its home directory.
    #[doc(alias = "String")]
    fn name(&self) -> &str;

    /// What this driver can do here.
    fn capabilities(&self) -> &Capabilities;

    /// Makes a read-only layer, to be filled by `apply_diff`.
    #[doc(alias = "Create")]
    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()>;

    /// Makes a layer that containers write to.
    #[doc(alias = "CreateReadWrite")]
    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()>;

    /// Makes a layer with the contents of `template`, whose parent is `parent`.
    #[doc(alias = "CreateFromTemplate")]
    #[expect(clippy::too_many_arguments, reason = "the well-known call of the Go drivers, argument by argument")]
    fn create_from_template(
        &self,
        id: &LayerId,
        template: &LayerId,
        template_mappings: &IdMappings,
        parent: Option<&LayerId>,
        parent_mappings: &IdMappings,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<()>;

    /// Begins a layer outside the store's lock.
    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>>;

    /// Removes a layer and its files.
    #[doc(alias = "Remove")]
    fn remove(&self, id: &LayerId) -> Result<()>;

    /// Removes a layer now and its files later.
    #[doc(alias = "DeferredRemove")]
    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval>;

    /// Mounts a layer, or takes one more reference to its mount.
    #[doc(alias = "Get")]
    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>>;

    /// Gives up a reference taken by `get`; the last one unmounts.
    #[doc(alias = "Put")]
    fn put(&self, id: &LayerId) -> Result<()>;

    /// Whether the driver has the layer, in its own or an additional store.
    #[doc(alias = "Exists")]
    fn exists(&self, id: &LayerId) -> Result<bool>;

    /// The layers of the driver's own store, sorted.
    #[doc(alias = "ListLayers")]
    fn list_layers(&self) -> Result<Vec<LayerId>>;

    /// What an operator wants to know, in order.
    #[doc(alias = "Status")]
    fn status(&self) -> Result<Vec<(String, String)>>;

    /// Facts about one layer, for example its directories.
    #[doc(alias = "Metadata")]
    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>>;

    /// Space and inodes that the layer's own files take.
    #[doc(alias = "ReadWriteDiskUsage")]
    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage>;

    /// Releases what the driver holds of the system, layers aside.
    #[doc(alias = "Cleanup")]
    fn cleanup(&self) -> Result<()>;

    /// The additional, read-only stores in use.
    #[doc(alias = "AdditionalImageStores")]
    fn additional_image_stores(&self) -> Vec<PathBuf>;

    /// Where left-overs of killed processes may lie (directories of `temp-dir-*` and `lock-*`).
    #[doc(alias = "GetTempDirRootDirs")]
    fn temp_dir_roots(&self) -> Vec<PathBuf>;

    /// Writes the differences as an uncompressed tar.
    #[doc(alias = "Diff")]
    fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport>;

    /// Lists the differences, sorted by path.
    #[doc(alias = "Changes")]
    fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>>;

    /// Puts an uncompressed tar into an existing layer.
    #[doc(alias = "ApplyDiff")]
    fn apply_diff(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport>;

    /// Bytes that the layer's additions and modifications hold.
    #[doc(alias = "DiffSize")]
    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64>;

    /// Gives access to the files of the layer's diff.
    #[doc(alias = "DiffGetter")]
    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>>;

    /// Re-owns a layer's files from one mapping to another, without that being a change.
    #[doc(alias = "UpdateLayerIDMap")]
    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        mount_label: &str,
    ) -> Result<()>;

    /// Whether `get` can show a layer through these mappings without touching its files.
    #[doc(alias = "SupportsShifting")]
    fn supports_shifting(&self, mappings: &IdMappings) -> bool;
}
