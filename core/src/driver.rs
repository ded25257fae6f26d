//! The [`Driver`] trait. Its documentation is the contract; `conformance` is its test.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;

use crate::error::{Error, Result};
use crate::id::LayerId;

mod ext;
mod facts;
mod guards;
mod options;

pub use ext::DriverExt;
pub use facts::{Capabilities, DiffReport, DiskUsage, Leftover};
pub use guards::{DeferredRemoval, Mounted, StagedLayer, StagedUpdate};
pub use options::{ApplyDiffOptions, CreateOptions, DiffRequest, GetOptions, ReownRequest};

/// Opens files of a layer's diff by name, for putting its archive together again.
pub use graph_archive::split::FileGetter;

/// One backend of copy-on-write layers.
///
/// A **layer** is a directory tree, told as its difference to a parent layer, or to nothing (a base layer). A driver
/// stores layers below its home `<graph root>/<name>`, shows their trees at a path, and reads and writes the
/// differences as archives. It knows neither images nor containers, keeps no records beyond what it needs to mount, and
/// does not mind what a layer is for.
///
/// What the method names mean comes from containers/storage's `drivers.Driver` (their Go names are doc aliases); where
/// its drivers disagree among each other, one behaviour was chosen and is stated here. Whoever writes a driver proves it
/// with the suite `conformance`. Whoever writes a decorator puts
/// `#[deny(clippy::missing_trait_methods)]` on its impl, so that no method is passed over.
///
/// # Locks
/// A driver may be called by several threads at once. It keeps its own memory consistent (the reference counts of `get`
/// and `put` above all), but it does not arbitrate between calls about the **same layer**, nor between processes: the
/// caller does, with the store's lock (`layers.lock`):
///
/// | calls | lock of the caller |
/// |---|---|
/// | `create`, `create_read_write`, `create_from_template`, `remove`, `deferred_remove`, `apply_diff`, `update_layer_id_map`, `leftovers`, [`StagedLayer::publish`], [`StagedUpdate::is_current`], [`StagedUpdate::exchange`] | exclusive |
/// | `get`, `put` | exclusive on the store's mount points (`mountpoints.lock`) |
/// | `diff`, `changes`, `diff_size` | at least shared, if the driver reads differences without mounting ([`Capabilities::native_diff`]); else as for `get`, because they mount |
/// | `exists`, `list_layers`, `metadata`, `read_write_disk_usage`, `diff_getter`, `peek` | at least shared, for an answer that stays true |
/// | `begin_staged`, `begin_reowned`, `begin_update` and all of [`StagedLayer`] but `publish`; `apply`, `diff_getter`, `flush`, `inode` and `finish` of [`StagedUpdate`]; [`DeferredRemoval::finish`]; `cleanup` | none |
/// | `name`, `capabilities`, `status`, `additional_image_stores`, `temp_dir_roots`, `supports_shifting` | none |
///
/// No call takes a lock of the store itself. None but `put` and the dropping of guards may be made while the same
/// thread is inside another call.
///
/// # Crashes
/// A process may be killed, or the machine stopped, within any call. What a call says under *on a crash* holds for the
/// next process that opens the driver. In general: a layer being made is either whole, or is found by `list_layers` and
/// can be removed (the store marks it incomplete before it calls, and removes it), or is a left-over in
/// [`Driver::temp_dir_roots`], which the next open removes. Layers that no call was about are untouched. A kill loses no
/// data that a returned call has written; a power failure may lose what was not flushed, as each call says.
///
/// # Errors
/// Every error names its layer and, if a system call failed, operation and path. Kinds that several calls share:
/// [`NotFound`](crate::ErrorKind::NotFound) for a layer or parent that the driver does not have,
/// [`Unsupported`](crate::ErrorKind::Unsupported) for an operation or option that it does not have at all,
/// [`Config`](crate::ErrorKind::Config) for an option's value, [`Archive`](crate::ErrorKind::Archive) for bad input and
/// for trees that cannot be read or written, [`Io`](crate::ErrorKind::Io) for the rest of what a system refuses. A call
/// that fails has changed nothing, unless it says otherwise.
pub trait Driver: Send + Sync + fmt::Debug {
    /// The driver's name: what configuration calls it, and its home directory's name. Never changes.
    ///
    /// A decorator gives the name of what it wraps.
    #[doc(alias = "String")]
    fn name(&self) -> &str;

    /// What this driver can do here, found out when it was opened. Never changes for this value; another process, or
    /// this one without its privileges, may find something else.
    fn capabilities(&self) -> &Capabilities;

    /// Makes a layer that is only filled once, by [`Driver::apply_diff`]: one of an image.
    ///
    /// *Requires*: no layer `id`, in its own or an additional store; the layer `parent`, if one is given, in either.
    ///
    /// *After*: the layer exists and shows its parent's tree. A base layer's tree is an empty directory of mode 0555,
    /// owned by the root of `options.mappings`; a child's root has its parent's mode and owner.
    ///
    /// *On a crash*: the layer may exist in part, then `list_layers` has it and `remove` removes it. Not flushed to disk.
    ///
    /// *Repeated*: an error. containers/storage's overlay removes an existing layer of that id and goes on; that hides
    /// the loss of a layer, so it is not done here.
    ///
    /// # Errors
    /// [`Exists`](crate::ErrorKind::Exists); [`NotFound`](crate::ErrorKind::NotFound) for the parent;
    /// [`TooDeep`](crate::ErrorKind::TooDeep) (a driver may leave that to `get`); [`Unsupported`](crate::ErrorKind::Unsupported) or
    /// [`Config`](crate::ErrorKind::Config) for any `storage_opt`: limits are for read-write layers;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for an id that collides with a name of the driver's own. No layer is left behind.
    #[doc(alias = "Create")]
    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()>;

    /// Makes a layer that is written to through its mount: a container's, or one of a build.
    ///
    /// As [`Driver::create`], and it takes `storage_opt` where there are quotas ([`Capabilities::quotas`]).
    ///
    /// # Errors
    /// Those of [`Driver::create`]; [`Unsupported`](crate::ErrorKind::Unsupported) for `storage_opt` without quotas, and
    /// [`Config`](crate::ErrorKind::Config) for an unknown key or a value that is no size. No layer is left behind.
    #[doc(alias = "CreateReadWrite")]
    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()>;

    /// Makes a layer with the same tree as `template`, for another parent's sake or other ids'.
    ///
    /// *Requires*: the layer `template`, whose parent is `parent`, its files owned as `template_mappings` say; no layer
    /// `id`. The template is not mounted for writing.
    ///
    /// *After*: `id` exists and shows the template's tree; compared with the template nothing has changed, compared with
    /// `parent` the same has changed as in the template. A driver may make it a child of the template, which then has to
    /// outlive it, or a copy. Owners on disk follow `options.mappings` only as far as the driver copies: the caller shifts what is
    /// left with [`Driver::update_layer_id_map`].
    ///
    /// *On a crash*, *repeated*: as [`Driver::create`].
    ///
    /// # Errors
    /// Those of [`Driver::create`]; [`NotFound`](crate::ErrorKind::NotFound) for the template.
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

    /// Begins a layer without a lock: it is filled aside ([`StagedLayer::apply`]), flushed, and then made the layer of an
    /// id by one short step under the lock ([`StagedLayer::publish`]).
    ///
    /// *Requires*: [`Capabilities::staging`]; the parent, if one is given.
    ///
    /// *After*: nothing that other calls see; dropping the value removes all of it.
    ///
    /// *On a crash*: a left-over below [`Driver::temp_dir_roots`] whose owner's lock has gone; the next open removes it.
    ///
    /// *Repeated*: gives another, independent one, also for the same parent and from several threads.
    ///
    /// Source: containers/storage 1.63, `ApplyDiffStaging`.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without staging; [`NotFound`](crate::ErrorKind::NotFound) for the
    /// parent; the errors of [`Driver::create`] for the options.
    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>>;

    /// Begins a layer without a lock, as [`Driver::begin_staged`], whose inherited files get other owners: an owner on disk
    /// is taken to the container's by `request.mappings`, and from there to the new host's by `options.mappings`. That may
    /// take as long as copying all of it. With a template the new layer has its differences too; it does not need the template
    /// any more when it is published.
    ///
    /// *After*, published: as after [`Driver::create`] and [`Driver::update_layer_id_map`], or with a template, as after
    /// [`Driver::create_from_template`] and that.
    ///
    /// *On a crash*: as [`Driver::begin_staged`].
    ///
    /// # Errors
    /// Those of [`Driver::begin_staged`] and [`Driver::update_layer_id_map`];
    /// [`Unsupported`](crate::ErrorKind::Unsupported) also from drivers that change owners in place only, which is what this default
    /// does. Callers fall back to the two calls under the lock.
    fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        let (_request, _options) = (request, options);
        Err(crate::Error::Unsupported {
            driver: self.name().to_owned(),
            operation: "changing the owners of a layer that is not published yet".to_owned(),
        })
    }

    /// Begins to change a layer's content without a lock: a copy of it is changed aside ([`StagedUpdate::apply`]), flushed, and
    /// exchanged for it by one short step under the lock ([`StagedUpdate::exchange`]).
    ///
    /// *Requires*: the layer, in the driver's own store, not mounted. Layers on it may be mounted; whether they see the old
    /// content, the new, or neither is then not known where drivers do not copy.
    ///
    /// *After*: nothing that other calls see; dropping the value removes all of it.
    ///
    /// *On a crash*: as [`Driver::begin_staged`].
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) from drivers that change layers in place only, which is what this
    /// default does, and where not everything that the layer has can be copied;
    /// [`InUse`](crate::ErrorKind::InUse) for a mounted layer, where that can be seen. Callers fall back to
    /// [`Driver::apply_diff`]. [`NotFound`](crate::ErrorKind::NotFound);
    /// [`Archive`](crate::ErrorKind::Archive) for what cannot be copied.
    fn begin_update(&self, id: &LayerId) -> Result<Box<dyn StagedUpdate + '_>> {
        let _: &LayerId = id;
        Err(Error::Unsupported {
            driver: self.name().to_owned(),
            operation: "changing a copy of a layer instead of the layer".to_owned(),
        })
    }

    /// Removes a layer and its files. The same as [`Driver::deferred_remove`] and finishing it at once.
    ///
    /// # Errors
    /// Those of [`Driver::deferred_remove`] and [`DeferredRemoval::finish`]; after an error of the latter the layer is gone all the same.
    #[doc(alias = "Remove")]
    fn remove(&self, id: &LayerId) -> Result<()>;

    /// Removes a layer now, and its files when the returned value is finished or dropped, outside the lock.
    ///
    /// *Requires*: the layer is not mounted. No layer has it as parent; the driver does not check that, since the store
    /// knows it.
    ///
    /// *After*: the layer does not exist, its id is free at once, whatever becomes of the files. A layer of an additional
    /// store is never touched.
    ///
    /// *On a crash*: the layer is there whole, or gone; its files may be a left-over in [`Driver::temp_dir_roots`].
    ///
    /// *Repeated*, or for a layer that never was: nothing happens, no error, so that an interrupted deletion can be repeated.
    ///
    /// Drivers without deferral do all of it here and return [`DeferredRemoval::done`].
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) for a mounted layer, where that can be seen; [`Io`](crate::ErrorKind::Io). The
    /// layer then still exists.
    #[doc(alias = "DeferredRemove")]
    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval>;

    /// Mounts a layer, or takes one more reference to its mount, and says where.
    ///
    /// *After*: the whole tree of the layer is at the returned, absolute path: always the same path for the same layer of
    /// this driver, whatever the process. What is written there is in the layer at once. The root's mode and owner are the
    /// layer's. With `ro` among the options nothing can be written, where [`Capabilities::read_only_mounts`].
    ///
    /// *Repeated*: takes another reference. The mount stays as the first call made it: options of later calls have no
    /// effect until the last reference is gone. Several threads that ask at once get the same mount.
    ///
    /// A mount that another process made is used and counts as one reference that is not ours (see
    /// [`crate::refcount`]); so `driverctl mount` and a later `driverctl unmount` work together.
    ///
    /// *On a crash*: the mount stays (as after [`Mounted::persist`]), and the next process sees it as above. After a
    /// reboot there is none. With `volatile` the layer's changes may be lost in a power failure, and the driver refuses or
    /// repairs it afterwards.
    ///
    /// A driver whose layers are plain directories returns that directory and does nothing else.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`TooDeep`](crate::ErrorKind::TooDeep);
    /// [`Config`](crate::ErrorKind::Config) or [`Io`](crate::ErrorKind::Io) for a mount option that does not exist;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for mappings, where the driver cannot show the layer through them
    /// ([`Driver::supports_shifting`]); [`Corrupt`](crate::ErrorKind::Corrupt) for a layer whose files contradict each
    /// other. No reference is taken then.
    #[doc(alias = "Get")]
    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>>;

    /// Gives up a reference taken by `get` whose guard was [persisted](Mounted::persist), or a foreign one; the last one
    /// unmounts.
    ///
    /// *Repeated*: a layer that is not mounted is no error, so that an interrupted unmount can be repeated.
    ///
    /// *On a crash*: mounted or not.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) or [`Io`](crate::ErrorKind::Io) (`EBUSY`) while a process uses the mount. It may be repeated.
    #[doc(alias = "Put")]
    fn put(&self, id: &LayerId) -> Result<()>;

    /// Whether there is such a layer, in the driver's own or an additional store. Says nothing about its being whole.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) other than that it is not there.
    #[doc(alias = "Exists")]
    fn exists(&self, id: &LayerId) -> Result<bool>;

    /// The layers of the driver's own store, sorted by bytes; those of additional stores are left out, and so are
    /// directories whose names no layer can have.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "ListLayers")]
    fn list_layers(&self) -> Result<Vec<LayerId>>;

    /// What an operator wants to know of the driver here, as keys and values in the order to show them; each key once, each on one
    /// line. overlay's first six are those of containers/storage, in its words.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io). Probes have been made before; this reads what they found.
    #[doc(alias = "Status")]
    fn status(&self) -> Result<Vec<(String, String)>>;

    /// Facts about one layer, for example its directories. May be empty.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Corrupt`](crate::ErrorKind::Corrupt).
    #[doc(alias = "Metadata")]
    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>>;

    /// Apparent bytes and inodes of the layer's own files: what differs from the parent where the driver stores
    /// differences, the whole tree where it stores copies. An inode with several names counts once.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "ReadWriteDiskUsage")]
    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage>;

    /// Releases what the driver holds of the system, apart from mounted layers: its own bind mount of the home, say. Never
    /// touches a mount that it did not make. The driver can go on being used.
    ///
    /// *Repeated*: does nothing.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "Cleanup")]
    fn cleanup(&self) -> Result<()>;

    /// Whether what [`Driver::prepare_to_mount`] makes is there. Cheap: asked before every mount.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    fn is_ready_to_mount(&self) -> Result<bool> {
        Ok(true)
    }

    /// Makes what all mounts of layers need: the mount of the home on itself, say, that other engines on this store would
    /// else put over the mounts there are. [`Driver::cleanup`] takes it away.
    ///
    /// *Requires*: in a store that others share, the lock under which they do the same (`storage.lock`).
    ///
    /// *Repeated*: does nothing.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    fn prepare_to_mount(&self) -> Result<()> {
        Ok(())
    }

    /// The roots of the additional, read-only stores in use, as configured, nearest first.
    #[doc(alias = "AdditionalImageStores")]
    fn additional_image_stores(&self) -> Vec<PathBuf>;

    /// The directories in which a killed process may have left [`temp-dir-…`](crate::tempdir) things. They need not
    /// exist. Whoever opens the store calls [`crate::tempdir::recover_stale`] with them.
    #[doc(alias = "GetTempDirRootDirs")]
    fn temp_dir_roots(&self) -> Vec<PathBuf>;

    /// Writes the difference between two states as an uncompressed tar: additions and modifications in full, deletions
    /// as whiteouts (`.wh.<name>`), never an opaque mark where one is not needed. Ids are container ids, by the request's
    /// mappings. The same state gives the same bytes every time.
    ///
    /// *Requires*: a [`DiffRequest`]. `parent` may be any layer of the driver, not only the layer's own parent; `None` gives everything.
    ///
    /// *After*: the driver is as before. The layer may be mounted, and may be written to meanwhile; then the diff is of
    /// some state in between.
    ///
    /// Of what containers/storage does it leaves out two things: the stream is not made in another process, and does not
    /// end with a sleep to the next full second.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`Archive`](crate::ErrorKind::Archive) for a file that cannot be read,
    /// an id that cannot be mapped, and a failing `out`. `out` then holds the beginning of an archive without its end.
    #[doc(alias = "Diff")]
    fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport>;

    /// Lists the same differences as [`Driver::diff`] writes, sorted by path (by bytes): every addition below a new
    /// directory, of a deleted directory only itself, and every directory above a change but the root. See
    /// [`graph_archive::changes`] for what counts as one.
    ///
    /// # Errors
    /// Those of [`Driver::diff`].
    #[doc(alias = "Changes")]
    fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>>;

    /// Puts an uncompressed tar, as [`Driver::diff`] writes it, into an existing layer. One pass over the stream, which
    /// is read to its end, including whatever follows the end blocks.
    ///
    /// *Requires*: the layer, made with this `parent`; not mounted.
    ///
    /// *After*: the layer shows its former tree with the archive's additions, modifications and deletions in it. Whiteouts hit what is
    /// in lower layers, wherever they stand in the archive. Nothing outside the layer has been touched, whatever the archive
    /// says. The observer, if there is one, has seen every byte once, in order.
    ///
    /// *On a crash*, and after an error: the layer holds part of the archive. It is for the caller to remove it; that is why it is
    /// marked incomplete meanwhile. Data is not flushed to disk.
    ///
    /// *Repeated*: the same archive again gives the same tree.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`Archive`](crate::ErrorKind::Archive) for bad input, naming member,
    /// offset and limit, for a failing stream or observer, and for what the file system refuses (no space, say).
    #[doc(alias = "ApplyDiff")]
    fn apply_diff(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport>;

    /// Apparent bytes of everything but directories that [`Driver::changes`] lists as added or modified; an inode with
    /// several names counts once, a symbolic link with the length of its target. As containers/storage counts
    /// (`ChangesSize`).
    ///
    /// # Errors
    /// Those of [`Driver::changes`].
    #[doc(alias = "DiffSize")]
    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64>;

    /// Gives access to the regular files of the layer's diff by member name, for putting its archive together again. A
    /// driver that stores copies gives those of the whole tree. Names are resolved within the layer: no link and no `..`
    /// leads out of it. What the getter needs (a mount, say) it holds until it is dropped.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "DiffGetter")]
    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>>;

    /// Opens the root of the layer's whole tree for reading, as `get` with `ro` shows it with ids as they are on disk, but
    /// without a mount point, a reference, or anything that other processes see. What it needs is gone when the descriptor is
    /// closed.
    ///
    /// *Requires*: the layer.
    ///
    /// *After*: the driver is as before. Writes through the descriptor are the caller's mistake where they are possible at
    /// all. The layer may be mounted meanwhile; what is then written to it may be seen or not.
    ///
    /// Without it layers can still be used; they are only checked less thoroughly.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for drivers that cannot; otherwise those of [`Driver::get`].
    fn peek(&self, id: &LayerId) -> Result<OwnedFd> {
        let _: &LayerId = id;
        Err(Error::Unsupported {
            driver: self.name().to_owned(),
            operation: "looking into a layer without mounting it".to_owned(),
        })
    }

    /// Opens the directory that the layer's own members lie in, for replacing single damaged files in it by rename.
    ///
    /// *Requires*: a layer of the driver's own store; to change anything in it, the exclusive lock.
    ///
    /// *After*: the driver is as before.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for drivers that cannot, and for additional stores;
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Io`](crate::ErrorKind::Io).
    fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> {
        let _: &LayerId = id;
        Err(Error::Unsupported {
            driver: self.name().to_owned(),
            operation: "replacing single files of a layer".to_owned(),
        })
    }

    /// What lies in the driver's own home and belongs to no layer, apart from what is in [`Driver::temp_dir_roots`]: names of
    /// layers that are gone, left-overs of dead processes. With `remove` it is removed; what cannot be removed has its error.
    ///
    /// *Requires*: the exclusive lock of the layers. Never touches what a living process holds, nor a layer.
    ///
    /// *Repeated*: finds nothing more.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when the home cannot be read.
    fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>> {
        let _: bool = remove;
        Ok(Vec::new())
    }

    /// Re-owns the layer's files: an owner on disk is taken to the container's by `to_container`, and from there to the new host's by
    /// `to_host`; ids in file capabilities and access lists follow. Modes, setuid bits and times stay. With the new mappings in
    /// its request, [`Driver::changes`] tells the same as before. Container ids that `to_host` does not cover become the
    /// overflow id ([`graph_archive::owners::OVERFLOW`]), as in containers/storage; whiteouts are kept whoever owns them.
    ///
    /// *Requires*: a layer that was just made or filled and has never been mounted for writing, without children.
    ///
    /// *On a crash*, and after an error: in drivers that change owners in place some files have new owners and some have
    /// not, and it is for the caller to remove the layer. overlay and vfs exchange the layer for a re-owned copy in one step.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported); [`NotFound`](crate::ErrorKind::NotFound);
    /// [`Archive`](crate::ErrorKind::Archive) for an owner that the mappings do not cover; [`Io`](crate::ErrorKind::Io).
    #[doc(alias = "UpdateLayerIDMap")]
    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        mount_label: &str,
    ) -> Result<()>;

    /// Whether [`Driver::get`] can show layers through these mappings at mount time, so that files keep their owners on
    /// disk. Always true for empty mappings where [`Capabilities::shifts_ids`] is; false everywhere else.
    #[doc(alias = "SupportsShifting")]
    fn supports_shifting(&self, mappings: &IdMappings) -> bool;
}

/// Every driver in an `Arc`, a `Box` or behind a reference is one itself, so that decorators can wrap any of them.
macro_rules! forward {
    ($($pointer:ty),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        #[rustfmt::skip]
        impl<D: Driver + ?Sized> Driver for $pointer {
            fn name(&self) -> &str { (**self).name() }
            fn capabilities(&self) -> &Capabilities { (**self).capabilities() }
            fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> { (**self).create(id, parent, options) }
            fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> { (**self).create_read_write(id, parent, options) }
            fn create_from_template(&self, id: &LayerId, template: &LayerId, template_mappings: &IdMappings, parent: Option<&LayerId>, parent_mappings: &IdMappings, options: &CreateOptions, read_write: bool) -> Result<()> {
                (**self).create_from_template(id, template, template_mappings, parent, parent_mappings, options, read_write)
            }
            fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> { (**self).begin_staged(parent, options) }
            fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> { (**self).begin_reowned(request, options) }
            fn begin_update(&self, id: &LayerId) -> Result<Box<dyn StagedUpdate + '_>> { (**self).begin_update(id) }
            fn remove(&self, id: &LayerId) -> Result<()> { (**self).remove(id) }
            fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> { (**self).deferred_remove(id) }
            fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> { (**self).get(id, options) }
            fn put(&self, id: &LayerId) -> Result<()> { (**self).put(id) }
            fn exists(&self, id: &LayerId) -> Result<bool> { (**self).exists(id) }
            fn list_layers(&self) -> Result<Vec<LayerId>> { (**self).list_layers() }
            fn status(&self) -> Result<Vec<(String, String)>> { (**self).status() }
            fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> { (**self).metadata(id) }
            fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> { (**self).read_write_disk_usage(id) }
            fn cleanup(&self) -> Result<()> { (**self).cleanup() }
            fn is_ready_to_mount(&self) -> Result<bool> { (**self).is_ready_to_mount() }
            fn prepare_to_mount(&self) -> Result<()> { (**self).prepare_to_mount() }
            fn additional_image_stores(&self) -> Vec<PathBuf> { (**self).additional_image_stores() }
            fn temp_dir_roots(&self) -> Vec<PathBuf> { (**self).temp_dir_roots() }
            fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> { (**self).diff(request, out) }
            fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>> { (**self).changes(request) }
            fn apply_diff(&self, id: &LayerId, parent: Option<&LayerId>, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
                (**self).apply_diff(id, parent, diff, options)
            }
            fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64> { (**self).diff_size(request) }
            fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> { (**self).diff_getter(id) }
            fn peek(&self, id: &LayerId) -> Result<OwnedFd> { (**self).peek(id) }
            fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> { (**self).content_directory(id) }
            fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>> { (**self).leftovers(remove) }
            fn update_layer_id_map(&self, id: &LayerId, to_container: &IdMappings, to_host: &IdMappings, mount_label: &str) -> Result<()> {
                (**self).update_layer_id_map(id, to_container, to_host, mount_label)
            }
            fn supports_shifting(&self, mappings: &IdMappings) -> bool { (**self).supports_shifting(mappings) }
        }
    )*};
}

forward!(std::sync::Arc<D>, Box<D>, &D);
