//! Moving a store to another driver.
//!
//! The new store is built aside, below the same graph root, while the old one stays as it is:
//!
//! ```text
//! <root>/<from>…                        the old store, until the end
//! <root>/converting-to-<to>/root/<to>…  the new one, in the making: a graph root of its own
//! <root>/converting-to-<to>/done/<id>   a mark for every layer that was made and compared
//! <root>/converting-to-<to>.json        there while the two change places
//! <root>/converted-from-<from>/<from>…  the old store, afterwards: a graph root of its own
//! ```
//!
//! 1. Layers, parents first. One that came from an archive is put together from its tar-split and imported; all others (a
//!    container's own) go over as the difference between the mounted trees. Each is compared with the old one: the archive
//!    that its files make must have the recorded diff ID, and the trees must be the same.
//! 2. Records, big data, tar-split files and containers' directories are copied as they are: ids, names, digests, flags,
//!    unknown fields, order.
//! 3. Flushed to disk; then the directories change places, one rename each.
//!
//! A process that dies on the way leaves the old store whole, up to the change of places; [`Store::convert`] called again
//! goes on where it was. From then on whoever opens the store completes the change first (or undoes it, should somebody
//! have written to the old store meanwhile).
//!
//! All locks of the store are held throughout: other engines wait. Nothing here knows a driver: what is read and written
//! is what [`Driver`](graph_core::Driver) offers, so that any registered driver can be moved from.

mod adopt;
mod layers;
mod switch;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_archive::copy::{CopyOptions, copy_tree};
use graph_archive::idmap::IdMappings;
use graph_core::driver::Driver;
use graph_core::fsutil;
use graph_core::options::{DriverOption, canonical};
use graph_core::registry::{DriverSetup, Registry};
use graph_core::select::SelectRequest;

use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::json;
use crate::records::{Container, Image, Layer, MountPoint};
use crate::store::{STABLE, Store, VOLATILE, select_request, wait_for};
use crate::table::{FileIndex, Table};

pub(crate) use switch::{finish_interrupted, was_converted};

/// The directories that a store has in its graph root, beside the driver's home.
const RECORDS: [&str; 3] = ["layers", "images", "containers"];

/// How a conversion goes, for whoever shows progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConvertEvent<'e> {
    /// A layer is begun.
    Layer {
        /// Its id.
        id: &'e str,
        /// Which one, from 0.
        index: usize,
        /// How many there are.
        count: usize,
        /// Bytes to come, about; 0 when unknown.
        bytes: u64,
    },
    /// Bytes done of it.
    Bytes(u64),
    /// An earlier, interrupted conversion made it already.
    Kept,
    /// All layers are there; records follow.
    Records,
}

/// How [`Store::convert`] goes about it.
#[derive(Clone, Copy, Default)]
pub struct ConvertOptions<'o> {
    /// Remove the old store when the new one is in its place.
    pub remove_old: bool,
    /// In a store without a record of any layer, give the driver's layers records first: those of the graph directory of an old
    /// Docker. They get no names; their diff IDs come from Docker's records, where those are. The records stay, whatever becomes of
    /// the conversion.
    pub adopt: bool,
    /// Told what is being done, from whatever thread.
    pub on_event: Option<&'o (dyn Fn(ConvertEvent<'_>) + Sync)>,
}

impl std::fmt::Debug for ConvertOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConvertOptions")
            .field("remove_old", &self.remove_old)
            .field("adopt", &self.adopt)
            .finish_non_exhaustive()
    }
}

/// A store that was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The driver it had.
    pub from: String,
    /// The driver it has.
    pub to: String,
    /// Layers, those of containers too.
    pub layers: usize,
    /// How many of them an earlier, interrupted conversion had made.
    pub kept: usize,
    /// Images.
    pub images: usize,
    /// Containers.
    pub containers: usize,
    /// Where the old store is: a graph root that can be opened with its driver. `None` when it was removed.
    pub old: Option<PathBuf>,
    /// Things that could not be kept, one sentence each.
    pub notices: Vec<String>,
}

fn refused(problem: String) -> Error {
    Error::InvalidArgument { problem }
}

/// A conversion under all locks.
struct Work<'s> {
    store: &'s Store,
    from: &'s str,
    old: Arc<dyn Driver>,
    to: Arc<dyn Driver>,
    root: Dir,
    /// `converting-to-<to>`.
    staging: Dir,
    /// The new graph root in it.
    new_root: Dir,
    layers: &'s Table<Layer>,
    options: &'s ConvertOptions<'s>,
    notices: Vec<String>,
}

impl Store {
    /// Moves the store to the driver `to` (a name in `registry`), keeping ids, names, digests, big data, containers,
    /// metadata, flags and mappings. Afterwards this value is good for nothing, and the store is to be opened with the new driver;
    /// engines whose configuration names the old one have to be told.
    ///
    /// Only mappings that the new driver cannot apply at mount time change where they are kept: such a container's
    /// layer gets the owners that its files were shown with, and the mappings go into its record.
    ///
    /// *On a crash* see the module. After an error the old store is as it was, and a repeated call goes on with what is done.
    ///
    /// # Errors
    /// [`Error::LayerMounted`] and [`Error::ContainerRunning`]; [`Error::InvalidArgument`] for a driver that it has already, a
    /// store of the new driver that is in the graph root already, too little space, stores that are split, transient or
    /// lean on additional ones, and layers without files; the new driver's, when it does not work here; [`Error::Archive`] and
    /// [`Error::DigestMismatch`] for damaged layers.
    pub fn convert(&self, to: &str, registry: &Registry, options: &ConvertOptions<'_>) -> Result<Converted> {
        let to = canonical(to);
        let from = self.driver.name().to_owned();
        if to == from {
            return Err(refused(format!("the store has the driver {from} already")));
        }
        if self.options.transient || self.options.image_store.is_some() {
            return Err(refused("transient stores and split ones (imagestore) cannot be converted".to_owned()));
        }
        if self.has_transient_containers()? {
            return Err(refused(
                "the store has transient containers, which cannot be converted: delete them".to_owned(),
            ));
        }
        let root = Dir::make(&self.options.root)?;
        switch::check_free(&root, to)?;

        let _storage = wait_for(&self.graph_lock, &self.options)?;
        let mut layers = self.layers.records.write()?;
        if let Some(name) = self.data_of_unknown_layers(layers.table())?.first() {
            return Err(refused(format!(
                "{} belongs to a layer that no record here knows: stores with a separate image store cannot be converted; if \
                 there never was one, remove it",
                shown(self.layers.dir.path(), name)
            )));
        }
        let mounts = self.mounts.write()?;
        let images = self.images.records.write()?;
        let containers = self.containers.records.write()?;
        self.refuse_use(mounts.table(), containers.table())?;
        // Anew: what was opened below a mount of the home that is gone cannot be mounted.
        let old = registry.select(&select_request(&self.options))?.driver;
        if options.adopt {
            self.adopt(&*old, &mut layers, &root)?;
        }
        self.refuse_foreign_layers(&*old, layers.table(), images.table())?;

        let staging = root.make_dir(&switch::staging_name(to))?;
        let new_root = staging.make_dir("root")?;
        let driver = self.open_new(to, registry, &staging, &new_root)?;
        let mut work = Work {
            store: self,
            from: &from,
            old,
            to: driver,
            root,
            staging,
            new_root,
            layers: layers.table(),
            options,
            notices: Vec::new(),
        };
        let moves = work.plan(containers.table())?;
        work.check_space(&moves)?;
        let kept = work.move_layers(&moves)?;
        work.tell(ConvertEvent::Records);
        work.copy_records(&moves, &layers)?;
        fault("convert.records-copied")?;
        let notices = std::mem::take(&mut work.notices);
        let old = work.switch()?;
        Ok(Converted {
            to: to.to_owned(),
            layers: moves.len(),
            kept,
            images: images.table().len(),
            containers: containers.table().len(),
            old,
            notices,
            from: from.clone(),
        })
    }

    /// Refuses while something is mounted: its files may change under our eyes.
    fn refuse_use(&self, mounts: &Table<MountPoint>, containers: &Table<Container>) -> Result<()> {
        if let Some(row) = mounts.iter().find(|row| row.count > 0) {
            return Err(Error::LayerMounted { id: row.id.clone(), path: row.path.clone().into() });
        }
        for container in containers.iter() {
            self.refuse_running(&container.id)?;
        }
        // Engines bind the home on itself while layers are mounted, and some leave it so.
        self.driver.cleanup()?;
        let home = self.root().join(self.driver.name());
        let all = graph_sys::mountinfo::read().map_err(|e| Error::io("read", "/proc/self/mountinfo", e))?;
        let points = all.into_iter().map(|mount| PathBuf::from(OsString::from_vec(mount.mount_point)));
        match points.into_iter().find(|path| path.starts_with(&home)) {
            Some(path) => Err(refused(format!("{} is mounted: unmount it first", path.display()))),
            None => Ok(()),
        }
    }

    /// Refuses layers and images that lean on what is not in this store.
    fn refuse_foreign_layers(&self, driver: &dyn Driver, layers: &Table<Layer>, images: &Table<Image>) -> Result<()> {
        let missing = |id: &str| !id.is_empty() && layers.by_id(id).is_none();
        if let Some(layer) = layers.iter().find(|layer| missing(&layer.parent)) {
            let problem = format!(
                "layer {} is on layer {}, which is not in this store: only whole stores can be converted",
                layer.id, layer.parent
            );
            return Err(refused(problem));
        }
        if let Some(image) = images.iter().find(|image| missing(&image.layer)) {
            let problem = format!(
                "image {} has layer {}, which is not in this store: only whole stores can be converted",
                image.id, image.layer
            );
            return Err(refused(problem));
        }
        for layer in layers.iter().filter(|layer| !layer.is_incomplete()) {
            if !driver.exists(&graph_core::LayerId::new(layer.id.clone())?)? {
                let problem = format!(
                    "layer {} has a record and no files: delete it, or let check --repair do that, then convert",
                    layer.id
                );
                return Err(refused(problem));
            }
        }
        Ok(())
    }

    /// Opens the new driver on the new graph root, with the options that are meant for it by name.
    fn open_new(&self, to: &str, registry: &Registry, staging: &Dir, new_root: &Dir) -> Result<Arc<dyn Driver>> {
        let meant = |option: &&String| {
            let prefix = DriverOption::parse(option).ok().and_then(|option| option.driver);
            prefix.is_some_and(|prefix| canonical(&prefix.to_ascii_lowercase()) == to)
        };
        let run = staging.make_dir("run")?;
        let selection = registry.select(&SelectRequest {
            name: Some(to.to_owned()),
            options: self.options.driver_options.iter().filter(meant).cloned().collect(),
            setup: DriverSetup {
                root: new_root.path().to_owned(),
                run_root: run.path().to_owned(),
                rootless: self.options.rootless,
                disable_id_mapped_mounts: self.options.disable_id_mapped_mounts,
                ..DriverSetup::default()
            },
            ..SelectRequest::default()
        })?;
        Ok(selection.driver)
    }
}

/// A layer to be moved, with the mappings that it and its parent will have.
struct Move {
    layer: Arc<Layer>,
    /// What the ids in the old tree mean: the layer's own mappings, or those through which a container's layer was shown.
    shown: IdMappings,
    mappings: IdMappings,
    parent_mappings: IdMappings,
    /// About the bytes that have to be written.
    bytes: u64,
}

impl Work<'_> {
    fn tell(&self, event: ConvertEvent<'_>) {
        if let Some(on_event) = self.options.on_event {
            on_event(event);
        }
    }

    /// The layers, parents before children, with what they will need.
    fn plan(&self, containers: &Table<Container>) -> Result<Vec<Move>> {
        let mut order: Vec<Arc<Layer>> = Vec::new();
        let mut placed: HashSet<String> = HashSet::new();
        for layer in self.layers.iter().filter(|layer| !layer.is_incomplete()) {
            let mut above: Vec<&Arc<Layer>> = Vec::new();
            let mut next = Some(layer);
            while let Some(layer) = next.filter(|layer| !placed.contains(&layer.id)) {
                if above.len() > self.layers.len() {
                    return Err(refused(format!("layer {} is its own ancestor", layer.id)));
                }
                above.push(layer);
                next = self.layers.by_id(&layer.parent);
            }
            for layer in above.into_iter().rev() {
                placed.insert(layer.id.clone());
                order.push(Arc::clone(layer));
            }
        }
        let mut moves: Vec<Move> = Vec::with_capacity(order.len());
        let mut mappings: HashMap<String, IdMappings> = HashMap::new();
        for layer in order {
            // Where mounts shift ids, what a container wrote has the host's ids, and its record no mappings. Elsewhere they
            // have to be in the record.
            let own = match containers.iter().find(|container| container.layer == layer.id) {
                Some(container) if self.old.supports_shifting(&container.mappings()) => container.mappings(),
                _ => layer.mappings(),
            };
            mappings.insert(layer.id.clone(), own.clone());
            let parent_mappings = mappings.get(&layer.parent).cloned().unwrap_or_default();
            let bytes = self.size_of(&layer, &own)?;
            moves.push(Move { layer, shown: own.clone(), mappings: own, parent_mappings, bytes });
        }
        Ok(moves)
    }

    /// About the bytes that a layer adds to its parent.
    fn size_of(&self, layer: &Layer, shown: &IdMappings) -> Result<u64> {
        if !layer.diff_digest.is_empty()
            && let Ok(bytes) = u64::try_from(layer.diff_size)
        {
            return Ok(bytes);
        }
        layers::with_request(layer, shown, self.layers, |request| Ok(self.old.diff_size(request)?))
    }

    /// Refuses what would fill the disk.
    fn check_space(&self, moves: &[Move]) -> Result<()> {
        let can = self.to.capabilities();
        let whole_copies = !can.native_diff && !can.reflink;
        let mut stacks: HashMap<&str, u64> = HashMap::new();
        let mut needed: u64 = 0;
        for of in moves {
            let below = stacks.get(of.layer.parent.as_str()).copied().unwrap_or(0);
            let stack = below.saturating_add(of.bytes);
            stacks.insert(&of.layer.id, stack);
            if !layers::is_done(self, of)? {
                needed = needed.saturating_add(if whole_copies { stack } else { of.bytes });
            }
        }
        let path = self.new_root.path();
        let space = graph_sys::fs::fstatvfs(&self.new_root).map_err(|e| Error::io("look up the space of", path, e))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if needed > free {
            return Err(refused(format!(
                "converting needs about {needed} bytes more on the file system of {}, where {free} are free",
                path.display()
            )));
        }
        Ok(())
    }

    /// Copies what lies beside the driver's home.
    fn copy_records(&self, moves: &[Move], layers: &Writing<'_, Layer>) -> Result<()> {
        for kind in RECORDS {
            let name = format!("{}-{kind}", self.to.name());
            self.new_root.remove(&name)?;
            let Some(old) = self.root.open_dir(&format!("{}-{kind}", self.from))? else { continue };
            let new = self.new_root.make_dir(&name)?;
            copy(&old, &new)?;
            // Of processes that are dead, since we hold the lock.
            new.remove(crate::recovery::TEMPORARY)?;
        }
        let changed: Vec<&Move> = moves.iter().filter(|of| of.mappings != of.layer.mappings()).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut table = layers.table().clone();
        let mut files: Vec<FileIndex> = Vec::new();
        for of in changed {
            if let Some((record, file)) = table.change(&of.layer.id) {
                record.uid_map.clone_from(&of.mappings.uids);
                record.gid_map.clone_from(&of.mappings.gids);
                files.push(file);
            }
        }
        let dir = self.new_root.make_dir(&format!("{}-layers", self.to.name()))?;
        for (file, name) in [(STABLE, "layers.json"), (VOLATILE, "volatile-layers.json")] {
            if files.contains(&file) {
                let path = || dir.path().join(name);
                let bytes =
                    json::write_array(table.slots(file)).map_err(|source| Error::Encode { path: path(), source })?;
                dir.write(name, &bytes, fsutil::Durability::Data)?;
            }
        }
        Ok(())
    }
}

/// Copies a directory's content, owners and all.
fn copy(from: &Dir, to: &Dir) -> Result<()> {
    let failed = |source| Error::Archive { id: from.path().display().to_string(), source };
    let report = copy_tree(from.as_fd(), to.as_fd(), &CopyOptions::default()).map_err(failed)?;
    for notice in report.notices {
        tracing::warn!(notice, from = %from.path().display(), "copying records");
    }
    Ok(())
}

/// Whether there is something of that name in a directory.
fn exists(dir: &Dir, name: &str) -> Result<bool> {
    match graph_sys::fs::statat(dir, name, graph_sys::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(graph_sys::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(Error::io("look up", dir.path().join(name), error)),
    }
}

/// Where something in a graph root is, for messages.
fn shown(root: &Path, name: &str) -> String {
    root.join(name).display().to_string()
}
