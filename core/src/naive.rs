//! Differences for drivers that only have trees: both are mounted, and compared entry by entry.
//!
//! [`NaiveDiff`] gives a driver the calls `diff`, `changes`, `diff_size`, `apply_diff` and `diff_getter` on top of its `get`.
//! The functions of this module do the same for one call, for drivers that fall back to it.
//!
//! It costs a walk over both trees, whatever has changed. Two files count as equal when type, mode, owner, device number, size,
//! time of modification, link target, capabilities and `user.` attributes are (see [`graph_archive::changes`]); a file
//! that was written with its size and its time of modification kept is taken for unchanged. Nothing is told of how a
//! change came about: a file that was moved is a removal and an addition.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::apply::{ApplyOptions, ApplyReport, Style};
use graph_archive::changes::{Change, ChangeSet, Tree, compare};
use graph_archive::idmap::IdMappings;
use graph_archive::pack::{PackOptions, pack_changes, pack_tree};
use graph_archive::split::{DirectoryGetter, FileGetter};

use crate::driver::{
    ApplyDiffOptions, Capabilities, CreateOptions, DeferredRemoval, DiffReport, DiffRequest, DiskUsage, Driver,
    GetOptions, Leftover, Mounted, ReownRequest, StagedLayer, StagedUpdate,
};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::id::LayerId;

/// A mounted layer and its root.
struct MountedTree<'d> {
    mounted: Mounted<'d>,
    root: OwnedFd,
}

impl<'d> MountedTree<'d> {
    fn read_only(driver: &'d dyn Driver, id: &LayerId, mount_label: &str) -> Result<Self> {
        Self::mount(driver, id, mount_label, &["ro"])
    }

    fn mount(driver: &'d dyn Driver, id: &LayerId, mount_label: &str, options: &[&str]) -> Result<Self> {
        let options = GetOptions {
            mount_label: mount_label.to_owned(),
            options: options.iter().copied().map(str::to_owned).collect(),
            ..GetOptions::default()
        };
        let mounted = driver.get(id, &options)?;
        let root = fsutil::open_directory(mounted.path())?;
        Ok(Self { mounted, root })
    }

    fn put(self) -> Result<()> {
        // An open directory would keep the mount busy.
        drop(self.root);
        self.mounted.put()
    }
}

/// Both sides of a request, mounted for reading.
struct Sides<'d> {
    new: MountedTree<'d>,
    old: Option<MountedTree<'d>>,
}

impl<'d> Sides<'d> {
    fn mount(driver: &'d dyn Driver, request: &DiffRequest<'_>) -> Result<Self> {
        let new = MountedTree::read_only(driver, request.id, request.mount_label)?;
        let old = request.parent.map(|id| MountedTree::read_only(driver, id, request.mount_label)).transpose()?;
        Ok(Self { new, old })
    }

    fn compare(&self, request: &DiffRequest<'_>) -> Result<ChangeSet> {
        let old = self.old.as_ref().map(|old| Tree { root: old.root.as_fd(), mappings: request.parent_mappings });
        let new = Tree { root: self.new.root.as_fd(), mappings: request.mappings };
        compare(old, new).map_err(|source| Error::Archive { id: request.id.clone(), source })
    }

    fn put(self) -> Result<()> {
        let old = self.old.map_or(Ok(()), MountedTree::put);
        self.new.put().and(old)
    }
}

/// What [`Driver::changes`] and [`Driver::diff_size`] ask for, from the mounted trees.
///
/// # Errors
/// Those of [`Driver::get`] and [`Driver::changes`].
pub fn changes(driver: &dyn Driver, request: &DiffRequest<'_>) -> Result<ChangeSet> {
    let sides = Sides::mount(driver, request)?;
    let found = sides.compare(request)?;
    sides.put()?;
    Ok(found)
}

/// What [`Driver::diff`] does, from the mounted trees.
///
/// # Errors
/// Those of [`Driver::get`] and [`Driver::diff`].
pub fn diff(driver: &dyn Driver, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
    let sides = Sides::mount(driver, request)?;
    let options = PackOptions { mappings: request.mappings.clone(), ..PackOptions::default() };
    let root = sides.new.root.as_fd();
    let mut out = Counting { out, bytes: 0 };
    let packed = if sides.old.is_some() {
        pack_changes(root, &sides.compare(request)?.changes, &mut out, &options)
    } else {
        pack_tree(root, &mut out, &options)
    };
    let report = packed.map_err(|source| Error::Archive { id: request.id.clone(), source })?;
    sides.put()?;
    Ok(DiffReport { bytes: out.bytes, notices: report.notices })
}

/// Counts the bytes on their way.
struct Counting<'w> {
    out: &'w mut dyn Write,
    bytes: u64,
}

impl Write for Counting<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.out.write(buffer)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What [`Driver::apply_diff`] does, through the layer's mount. `in_user_namespace` as in
/// [`graph_archive::apply::ApplyOptions`].
///
/// # Errors
/// Those of [`Driver::get`] and [`Driver::apply_diff`].
pub fn apply_diff(
    driver: &dyn Driver,
    id: &LayerId,
    diff: &mut dyn Read,
    options: &mut ApplyDiffOptions<'_>,
    in_user_namespace: bool,
) -> Result<ApplyReport> {
    let tree = MountedTree::mount(driver, id, &options.mount_label, &[])?;
    let apply = ApplyOptions {
        style: Style::Plain,
        mappings: options.mappings.clone(),
        ignore_chown_errors: options.ignore_chown_errors,
        force_mask: options.force_mask,
        in_user_namespace,
        limits: options.limits.clone(),
        mount_label: options.mount_label.clone(),
        observer: options.observer.as_deref_mut().map(|observer| observer as _),
    };
    let report = graph_archive::apply::apply(tree.root.as_fd(), diff, apply)
        .map_err(|source| Error::Archive { id: id.clone(), source })?;
    tree.put()?;
    Ok(report)
}

/// What [`Driver::diff_getter`] gives: the files of the mounted layer. It stays mounted as long as the value lives.
///
/// # Errors
/// Those of [`Driver::get`].
pub fn diff_getter<'d>(driver: &'d dyn Driver, id: &LayerId) -> Result<Box<dyn FileGetter + Send + 'd>> {
    let MountedTree { mounted, root } = MountedTree::read_only(driver, id, "")?;
    Ok(Box::new(MountedGetter { files: DirectoryGetter::new(root, Vec::new()), _mounted: mounted }))
}

/// Fields are dropped in this order: first the open directory, then the mount.
struct MountedGetter<'d> {
    files: DirectoryGetter,
    _mounted: Mounted<'d>,
}

impl FileGetter for MountedGetter<'_> {
    fn get(&self, name: &[u8]) -> graph_archive::Result<std::fs::File> {
        self.files.get(name)
    }
}

/// A driver with differences made by comparing trees, around a driver that has none.
///
/// The inner driver's `diff`, `changes` and `diff_size` are never called; its `apply_diff` and `diff_getter` are only with
/// [`NaiveDiff::reading`]. All else is passed on.
pub struct NaiveDiff<D> {
    inner: D,
    applies: bool,
    in_user_namespace: bool,
    capabilities: Capabilities,
}

impl<D: Driver> NaiveDiff<D> {
    /// Reads and applies differences for `inner`.
    #[must_use]
    pub fn new(inner: D) -> Self {
        Self::make(inner, true)
    }

    /// Reads differences for `inner`, which applies them itself and gives access to its files.
    #[must_use]
    pub fn reading(inner: D) -> Self {
        Self::make(inner, false)
    }

    fn make(inner: D, applies: bool) -> Self {
        let capabilities = Capabilities { native_diff: false, ..inner.capabilities().clone() };
        let in_user_namespace = graph_sys::userns::is_in_user_namespace().unwrap_or(false);
        Self { inner, applies, in_user_namespace, capabilities }
    }

    /// The driver inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: Driver> fmt::Debug for NaiveDiff<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NaiveDiff").field(&self.inner).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<D: Driver> Driver for NaiveDiff<D> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.inner.create(id, parent, options)
    }

    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.inner.create_read_write(id, parent, options)
    }

    fn create_from_template(
        &self,
        id: &LayerId,
        template: &LayerId,
        template_mappings: &IdMappings,
        parent: Option<&LayerId>,
        parent_mappings: &IdMappings,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<()> {
        self.inner.create_from_template(id, template, template_mappings, parent, parent_mappings, options, read_write)
    }

    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        self.inner.begin_staged(parent, options)
    }

    fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        self.inner.begin_reowned(request, options)
    }

    fn begin_update(&self, id: &LayerId) -> Result<Box<dyn StagedUpdate + '_>> {
        if self.applies {
            // What it applies, and how, is this decorator's.
            return Err(Error::Unsupported {
                driver: self.name().to_owned(),
                operation: "changing a copy of a layer instead of the layer".to_owned(),
            });
        }
        self.inner.begin_update(id)
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.inner.remove(id)
    }

    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> {
        self.inner.deferred_remove(id)
    }

    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        self.inner.get(id, options)
    }

    fn put(&self, id: &LayerId) -> Result<()> {
        self.inner.put(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        self.inner.exists(id)
    }

    fn peek(&self, id: &LayerId) -> Result<OwnedFd> {
        self.inner.peek(id)
    }

    fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> {
        self.inner.content_directory(id)
    }

    fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>> {
        self.inner.leftovers(remove)
    }

    fn list_layers(&self) -> Result<Vec<LayerId>> {
        self.inner.list_layers()
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        self.inner.status()
    }

    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> {
        self.inner.metadata(id)
    }

    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> {
        self.inner.read_write_disk_usage(id)
    }

    fn cleanup(&self) -> Result<()> {
        self.inner.cleanup()
    }

    fn is_ready_to_mount(&self) -> Result<bool> {
        self.inner.is_ready_to_mount()
    }

    fn prepare_to_mount(&self) -> Result<()> {
        self.inner.prepare_to_mount()
    }

    fn additional_image_stores(&self) -> Vec<PathBuf> {
        self.inner.additional_image_stores()
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        self.inner.temp_dir_roots()
    }

    fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
        diff(&self.inner, request, out)
    }

    fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>> {
        changes(&self.inner, request).map(|found| found.changes)
    }

    fn apply_diff(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        archive: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport> {
        if self.applies {
            apply_diff(&self.inner, id, archive, options, self.in_user_namespace)
        } else {
            self.inner.apply_diff(id, parent, archive, options)
        }
    }

    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64> {
        changes(&self.inner, request).map(|found| found.size)
    }

    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> {
        if self.applies { diff_getter(&self.inner, id) } else { self.inner.diff_getter(id) }
    }

    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        mount_label: &str,
    ) -> Result<()> {
        self.inner.update_layer_id_map(id, to_container, to_host, mount_label)
    }

    fn supports_shifting(&self, mappings: &IdMappings) -> bool {
        self.inner.supports_shifting(mappings)
    }
}
