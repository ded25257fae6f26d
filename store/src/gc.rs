//! Garbage: what lies in the store's directories and belongs to nothing that a record knows.
//!
//! What a killed process leaves is removed by the next open already ([`crate::StoreOptions::leave_left_overs`] leaves it). What
//! is found here beyond that comes from elsewhere: records that were edited or lost, engines that clean up less.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use graph_archive::walk::Descent;
use graph_core::{ErrorKind as DriverErrorKind, LayerId, fsutil};
use graph_sys::fs::{self, AtFlags, FileType};
use graph_sys::getdents::DirBuffer;

use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::records::Layer;
use crate::store::{Part, Store};
use crate::table::{Record, Table};

const VOLATILE_LAYERS: &str = "volatile-layers.json";

/// What kind of garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum GarbageKind {
    /// A layer whose making or deleting was interrupted.
    IncompleteLayer,
    /// A layer that a killed load made, with nothing on it.
    KilledLoad,
    /// A layer of the driver that no record knows.
    UnknownLayer,
    /// Files beside the records of a layer that no record knows.
    LayerData,
    /// Data of an image that no record knows.
    ImageData,
    /// Data of a container that no record knows.
    ContainerData,
    /// Something in the driver's home that belongs to no layer.
    DriverLeftover,
}

impl GarbageKind {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::IncompleteLayer => "incomplete layer",
            Self::KilledLoad => "layer of a load that was killed",
            Self::UnknownLayer => "layer that no record knows",
            Self::LayerData => "data of a layer that no record knows",
            Self::ImageData => "data of an image that no record knows",
            Self::ContainerData => "data of a container that no record knows",
            Self::DriverLeftover => "left-over of the driver",
        }
    }
}

/// A piece of garbage.
#[derive(Debug)]
pub struct Garbage {
    /// What kind.
    pub kind: GarbageKind,
    /// Where it is, or was; for a layer its id.
    pub place: PathBuf,
    /// Apparent bytes of it and all below it.
    pub bytes: u64,
    /// Why it could not be removed.
    pub error: Option<Error>,
}

impl Store {
    /// Removes what belongs to nothing; or lists it only. Sorted by kind and place.
    ///
    /// Each kind is looked for and removed under the lock that its makers hold, so nothing is taken for garbage that is just being
    /// made; what a living process holds in a temporary directory of its own is not touched. Data directories
    /// are only those with names of the usual kind (64 hex digits); others may be anybody's. Of layers' data only those go whose
    /// layer the driver has: data of layers in a separate image store lie here as well, and that need not be open.
    /// Layers of transient containers are spared by whoever has the store open otherwise, and the other way around.
    ///
    /// # Errors
    /// Damaged records, I/O on the directories. What could not be removed is in the list with its error.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<Vec<Garbage>> {
        let mut found = Vec::new();
        let transient_elsewhere = !self.options.transient && self.has_transient_containers()?;
        if !transient_elsewhere {
            let containers = self.containers.records.write()?;
            data(&self.containers, containers.table(), GarbageKind::ContainerData, |_| false, dry_run, &mut found)?;
        }
        fault("gc.containers")?;
        for (_, part) in self.own_images() {
            let images = part.records.write()?;
            let elsewhere = |id: &str| self.find_read_only(id).is_ok_and(|image| image.is_some());
            data(part, images.table(), GarbageKind::ImageData, elsewhere, dry_run, &mut found)?;
        }
        fault("gc.images")?;
        self.load_garbage(dry_run, &mut found)?;
        self.layer_garbage(dry_run, &mut found)?;
        found.sort_by(|a, b| (a.kind, &a.place).cmp(&(b.kind, &b.place)));
        Ok(found)
    }

    fn layer_garbage(&self, dry_run: bool, found: &mut Vec<Garbage>) -> Result<()> {
        let layers = self.layers.records.write()?;
        let table = layers.table();
        for layer in table.iter().filter(|layer| layer.is_incomplete()) {
            let bytes = self.layer_bytes(&layer.id);
            found.push(Garbage {
                kind: GarbageKind::IncompleteLayer,
                place: layer.id.clone().into(),
                bytes,
                error: None,
            });
        }
        let known = match self.driver.list_layers() {
            Err(error) if error.kind() == DriverErrorKind::Unsupported => Vec::new(),
            known => known?,
        };
        let elsewhere = self.layers_recorded_elsewhere()?;
        let unknown: Vec<LayerId> = known
            .into_iter()
            .filter(|id| table.by_id(id.as_str()).is_none() && !elsewhere.contains_key(id.as_str()))
            .collect();
        // Data go before their layer: as long as the driver has it, they are known for left-overs.
        let dir = &*self.layers.dir;
        let mut keep = HashSet::new();
        for name in self.data_of_unknown_layers(table)? {
            let owner = owner_of(&name);
            if elsewhere.contains_key(owner) {
                continue;
            }
            if !unknown.iter().any(|id| id.as_str() == owner) {
                tracing::info!(
                    path = %dir.path().join(&name).display(),
                    "kept: no record knows the layer, but it may lie in an image store that is not open"
                );
                continue;
            }
            if !remove(dir, &name, GarbageKind::LayerData, dry_run, found) {
                keep.insert(owner.to_owned());
            }
            fault("gc.data")?;
        }
        let mut removals = Vec::new();
        for id in unknown.into_iter().filter(|id| !keep.contains(id.as_str())) {
            let bytes = self.layer_bytes(id.as_str());
            let mut error = None;
            if !dry_run {
                match self.driver.deferred_remove(&id) {
                    Ok(removal) => removals.push(removal),
                    Err(failed) => error = Some(failed.into()),
                }
                fault("gc.layer")?;
            }
            found.push(Garbage { kind: GarbageKind::UnknownLayer, place: id.as_str().into(), bytes, error });
        }
        for leftover in self.driver.leftovers(!dry_run)? {
            found.push(Garbage {
                kind: GarbageKind::DriverLeftover,
                place: leftover.path,
                bytes: leftover.bytes,
                error: leftover.error.map(Error::from),
            });
        }
        if !dry_run && table.iter().any(|layer| layer.is_incomplete()) {
            drop(layers);
            let mut warnings = Vec::new();
            self.remove_incomplete_layers(&mut warnings)?;
            let left: HashSet<String> = {
                let now = self.layers.records.read()?;
                now.iter().filter(|layer| layer.is_incomplete()).map(|layer| layer.id.clone()).collect()
            };
            let mut warnings = warnings.into_iter();
            for garbage in found.iter_mut().filter(|garbage| garbage.kind == GarbageKind::IncompleteLayer) {
                if garbage.place.to_str().is_some_and(|id| left.contains(id)) {
                    let problem = warnings.next().unwrap_or_else(|| "it could not be removed".to_owned());
                    garbage.error = Some(Error::InvalidArgument { problem });
                }
            }
        } else {
            drop(layers);
        }
        // The files go without the lock.
        for removal in removals {
            removal.finish()?;
        }
        Ok(())
    }

    /// Names of the tar-split files and directories of big data of layers that are not in the table.
    pub(crate) fn data_of_unknown_layers(&self, table: &Table<Layer>) -> Result<Vec<String>> {
        let mut names = names(&self.layers.dir)?;
        names.retain(|name| is_usual(owner_of(name)) && table.by_id(owner_of(name)).is_none());
        names.sort();
        Ok(names)
    }

    /// The volatile layers, and the parent of each, that are recorded in the other of the two places for that: the run root's where the store is
    /// not open as a transient one, else the graph root's.
    pub(crate) fn layers_recorded_elsewhere(&self) -> Result<HashMap<String, String>> {
        #[derive(serde::Deserialize)]
        struct Row {
            id: String,
            #[serde(default)]
            parent: String,
        }
        let run_layers;
        let dir = if self.options.transient {
            &*self.layers.dir
        } else {
            let path = self.options.run_root.join(format!("{}-layers", self.driver.name()));
            run_layers = match Dir::open(&path)? {
                Some(dir) => dir,
                None => return Ok(HashMap::new()),
            };
            &run_layers
        };
        let text = match dir.read(VOLATILE_LAYERS)? {
            Some(text) if !text.is_empty() => text,
            _ => return Ok(HashMap::new()),
        };
        let path = dir.path().join(VOLATILE_LAYERS);
        let rows: Vec<Row> =
            serde_json::from_slice(&text).map_err(|e| Error::io("read records", path, std::io::Error::other(e)))?;
        Ok(rows.into_iter().map(|row| (row.id, row.parent)).collect())
    }

    pub(crate) fn layer_bytes(&self, id: &str) -> u64 {
        LayerId::new(id).map_or(0, |id| self.driver.read_write_disk_usage(&id).map_or(0, |usage| usage.size))
    }
}

/// The layer that a name beside the layers' records is for.
fn owner_of(name: &str) -> &str {
    name.strip_suffix(".tar-split.gz").unwrap_or(name)
}

/// Directories of data that no record has.
fn data<T: Record>(
    part: &Part<T>,
    table: &Table<T>,
    kind: GarbageKind,
    elsewhere: impl Fn(&str) -> bool,
    dry_run: bool,
    found: &mut Vec<Garbage>,
) -> Result<()> {
    for name in names(&part.dir)? {
        if is_usual(&name) && table.by_id(&name).is_none() && !elsewhere(&name) {
            remove(&part.dir, &name, kind, dry_run, found);
        }
    }
    Ok(())
}

/// Whether it is gone, or would be.
fn remove(dir: &Dir, name: &str, kind: GarbageKind, dry_run: bool, found: &mut Vec<Garbage>) -> bool {
    let bytes = bytes_of(dir, name);
    let error = if dry_run { None } else { dir.remove(name).err() };
    let gone = error.is_none();
    found.push(Garbage { kind, place: dir.path().join(name), bytes, error });
    gone
}

fn names(dir: &Dir) -> Result<Vec<String>> {
    let names = fsutil::list(dir).map_err(|e| Error::io("read directory", dir.path(), e))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// The names that the store gives.
pub(crate) fn is_usual(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Apparent bytes of a file, or of all files in a directory; what cannot be read counts nothing.
fn bytes_of(dir: &Dir, name: &str) -> u64 {
    let size = |stat: &fs::Stat| u64::try_from(stat.st_size).unwrap_or(0);
    let Ok(stat) = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return 0 };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return size(&stat);
    }
    let mut bytes = 0_u64;
    let Ok(Some(root)) = dir.open_dir(name) else { return 0 };
    let Ok(mut descent) = Descent::new(std::os::fd::AsFd::as_fd(&root)) else { return 0 };
    let mut buffer = DirBuffer::new();
    let mut waiting = vec![descent.list(&mut buffer).unwrap_or_default().into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            if descent.leave().is_err() {
                break;
            }
            continue;
        };
        let Ok(directory) = descent.directory() else { break };
        let Ok(stat) = fs::statat(directory, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            bytes = bytes.saturating_add(size(&stat));
        } else if descent.enter(&entry.name).is_ok() {
            waiting.push(descent.list(&mut buffer).unwrap_or_default().into_iter());
        }
    }
    bytes
}
