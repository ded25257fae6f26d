//! Putting blobs into layers that are there already.
//!
//! A copy of the layer is filled aside, without a lock, and takes the layer's place in one step:
//!
//! ```text
//! no lock      copy the layer's content (sharing its data where the file system can), blob -> into the copy; syncfs
//! layers.lock  note -> exchange the contents -> record -> tar-split -> remove the note
//! no lock      remove the old content
//! ```
//!
//! The note (`<driver>-layers/.refill.json`, the new tar-split beside it) holds what the record is going to have. Whoever
//! finds it, the process that wrote it being dead, sees by the content's inode number whether the exchange has been made:
//! then record and tar-split follow, else both files go. So a layer has its old content with its old record, or its new
//! content with its new one. (A peer that comes before us sees the new content with the old record.)
//!
//! Layers that are mounted, or are below mounted ones, are changed in place, as mounts would not see anything else. So are
//! those of drivers that cannot copy.

use std::fs::File;
use std::os::fd::AsFd;

use graph_archive::pipeline;
use graph_core::LayerId;
use graph_core::driver::StagedUpdate;
use graph_core::fsutil::Durability;
use graph_sys::fs::{self, AtFlags};
use graph_sys::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::import::{Facts, Filled, Imported, TarSplit, about, parse_expected, sync};
use crate::layers::tar_split_name;
use crate::options::Expected;
use crate::records::Layer;
use crate::store::{Home, STABLE, Store, Stored, VOLATILE};
use crate::table::{FileIndex, Table};

/// Files beside the layers' records. No layer's own begin with a dot.
const NOTE: &str = ".refill.json";
const NOTED_TAR_SPLIT: &str = ".refill.tar-split.gz";

/// A layer whose content is being exchanged.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Note {
    layer: String,
    /// Inode number of the new content's directory.
    content: u64,
    /// Inode number of the new tar-split.
    tar_split: u64,
    filled: Filled,
}

/// Filling existing layers.
impl Store {
    /// Puts a blob into an existing layer; its digests, sizes and owners replace those recorded before.
    ///
    /// The layer has its old content and record until, in one step, it has the new ones; after an error or a kill it has
    /// the one or the other, whole. What the copy takes on the disk until then is shared with the old content where the
    /// file system can do that.
    ///
    /// A mounted layer, and one below a mounted one, is changed in place, under the layers' lock, since the mount would not
    /// see anything else; so is any layer where the driver cannot copy it. After an error or a kill it may hold a part of
    /// the blob then.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::ReadOnlyStore`]; [`Error::LayerChanged`] when somebody else used the layer
    /// meanwhile; [`Error::DigestMismatch`], [`Error::Archive`]. [`Error::PartlyApplied`] says that what was extracted
    /// before the error inside it has stayed in the layer; the record is as before in every case.
    pub fn apply_diff(
        &self,
        layer: &str,
        expected: &Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let expected = &parse_expected(expected)?;
        let Some((id, record)) = self.unmounted_layer(layer)? else {
            return self.fill_in_place(layer, expected, blob);
        };
        match self.driver.begin_update(&id) {
            Ok(update) => self.fill_copy(&id, &record, update, expected, blob),
            Err(error) if matches!(error.kind(), graph_core::ErrorKind::Unsupported | graph_core::ErrorKind::InUse) => {
                tracing::debug!(error = &error as &dyn std::error::Error, layer = %id, "changing a layer in place");
                self.fill_in_place(layer, expected, blob)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The layer, unless it has to be changed in place, or cannot be.
    fn unmounted_layer(&self, layer: &str) -> Result<Option<(LayerId, Layer)>> {
        let (_guard, own) = self.layers.records.read_locked()?;
        let Some(record) = own.find(layer).filter(|layer| !layer.is_incomplete()) else { return Ok(None) };
        if self.is_below_a_mount(&own, &record.id)? {
            return Ok(None);
        }
        Ok(Some((LayerId::new(record.id.clone())?, Layer::clone(record))))
    }

    /// Whether the layer is mounted, or one that is on it. A lock on the layers must be held: nobody mounts meanwhile if it
    /// is exclusive.
    fn is_below_a_mount(&self, layers: &Table<Layer>, id: &str) -> Result<bool> {
        let mounts = self.mounts.read()?;
        let is_on_it = |mounted: &str| {
            let mut next = mounted.to_owned();
            // A chain that bites its tail ends, too.
            for _ in 0..=layers.len() {
                if next == id {
                    return true;
                }
                match layers.by_id(&next) {
                    Some(layer) => next.clone_from(&layer.parent),
                    None => return false,
                }
            }
            false
        };
        Ok(mounts.iter().any(|row| row.id == id || row.count > 0 && is_on_it(&row.id)))
    }

    fn fill_copy(
        &self,
        id: &LayerId,
        record: &Layer,
        mut update: Box<dyn StagedUpdate + '_>,
        expected: &pipeline::Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let (split, mut packer) = self.begin_tar_split()?;
        let facts = self.read_blob(id, expected, blob, |diff| {
            let mut apply = self.apply_options(&record.mappings(), &record.mount_label, &mut packer);
            update.apply(diff, &mut apply).map_err(|e| about(id, e))
        })?;
        let split_file = self.end_tar_split(packer, &*update.diff_getter()?, id)?;
        let file = self.layers.records.read()?.file_of(id.as_str()).unwrap_or(STABLE);
        if self.is_durable(file) {
            update.flush()?;
            sync(&split_file, id)?;
        }
        fault("refill.flushed")?;

        let mut layers = self.layers.records.write()?;
        self.finish_refill(&mut layers)?;
        let same = layers.table().by_id(id.as_str()).is_some_and(|now| **now == *record);
        if !same || self.is_below_a_mount(layers.table(), id.as_str())? || !update.is_current()? {
            return Err(Error::LayerChanged { id: id.to_string() });
        }
        self.exchange(&mut layers, record, file, &mut *update, &facts, (split, &split_file))?;
        let unknown = || Error::LayerNotKnown { reference: id.to_string() };
        let layer = Stored::new(layers.table().by_id(id.as_str()).ok_or_else(unknown)?, Home::Own);
        drop(layers);
        if let Err(error) = update.finish() {
            tracing::warn!(error = &error as &dyn std::error::Error, layer = %id, "removing the content that was replaced");
        }
        Ok(Imported { layer, report: facts.report })
    }

    /// Old to new, content, record and tar-split; or nothing.
    fn exchange(
        &self,
        layers: &mut Writing<'_, Layer>,
        record: &Layer,
        file: FileIndex,
        update: &mut dyn StagedUpdate,
        facts: &Facts,
        (split, split_file): (TarSplit, &File),
    ) -> Result<()> {
        let (mut exchanged, mut recorded) = (false, false);
        let mut steps = || -> Result<()> {
            self.write_note(record, file, update.inode()?, inode(split_file)?, facts)?;
            fault("refill.noted")?;
            let made = split.directory.addition_path(&split.file);
            self.rename_tar_split(|dir| fs::renameat(fs::CWD, &made, dir, NOTED_TAR_SPLIT))?;
            fault("refill.tar-split-noted")?;
            exchanged = true;
            update.exchange()?;
            fault("refill.exchanged")?;
            recorded = true;
            if let Some((record, _)) = layers.change().change(&record.id) {
                facts.fill(record);
            }
            layers.save(&[file])?;
            fault("refill.recorded")?;
            let name = tar_split_name(&record.id);
            self.rename_tar_split(|dir| fs::renameat(dir, NOTED_TAR_SPLIT, dir, name.as_str()))
        };
        let Err(error) = steps() else {
            // All is done: who finds the note does nothing but remove it.
            if let Err(error) = self.layers.dir.remove(NOTE) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "removing the note of an exchange that is made"
                );
            }
            return Ok(());
        };
        // In the other direction. Where that fails, the note lets the next open go on to the new content.
        let mut undo = || -> Result<()> {
            if recorded {
                if let Some((now, _)) = layers.change().change(&record.id) {
                    now.clone_from(record);
                }
                layers.save(&[file])?;
            }
            if exchanged && self.has_content(&record.id, update.inode()?)? {
                update.exchange()?;
            }
            self.forget_refill()
        };
        if let Err(error) = undo() {
            tracing::warn!(error = &error as &dyn std::error::Error, layer = %record.id, "giving a layer its old content back");
        }
        Err(error)
    }

    fn write_note(&self, record: &Layer, file: FileIndex, content: u64, tar_split: u64, facts: &Facts) -> Result<()> {
        let note = Note { layer: record.id.clone(), content, tar_split, filled: facts.filled() };
        let path = || self.layers.dir.path().join(NOTE);
        let bytes = serde_json::to_vec(&note).map_err(|source| Error::Encode { path: path(), source })?;
        let durability = if file == VOLATILE { Durability::None } else { self.durability(file) };
        self.layers.dir.write(NOTE, &bytes, durability)
    }

    fn rename_tar_split(&self, rename: impl FnOnce(&crate::dirs::Dir) -> Result<(), Errno>) -> Result<()> {
        let dir = &*self.layers.dir;
        rename(dir).map_err(|e| Error::io("move into place", dir.path().join(NOTED_TAR_SPLIT), e))
    }

    /// Whether the layer has the content whose directory has this inode number.
    fn has_content(&self, id: &str, content: u64) -> Result<bool> {
        match self.driver.content_directory(&LayerId::new(id)?) {
            Ok(directory) => Ok(inode(&directory)? == content),
            Err(error) if error.kind() == graph_core::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an exchange was interrupted, or is being made.
    pub(crate) fn has_interrupted_refill(&self) -> Result<bool> {
        Ok(self.layers.dir.open_file(NOTE)?.is_some())
    }

    /// Finishes an exchange that was interrupted, or forgets it, if it had not been made.
    pub(crate) fn finish_refill(&self, layers: &mut Writing<'_, Layer>) -> Result<()> {
        let Some(bytes) = self.layers.dir.read(NOTE)? else { return Ok(()) };
        let Ok(note) = serde_json::from_slice::<Note>(&bytes) else {
            // It is written whole or not at all, so this is somebody else's.
            tracing::warn!(path = %self.layers.dir.path().join(NOTE).display(), "removing a note that cannot be read");
            return self.forget_refill();
        };
        let id = note.layer.as_str();
        let file = layers.table().file_of(id);
        if let Some(file) = file
            && self.has_content(id, note.content)?
        {
            if let Some((record, _)) = layers.change().change(id) {
                note.filled.fill(record);
            }
            layers.save(&[file])?;
            fault("refill.recovered-record")?;
            let dir = &*self.layers.dir;
            match fs::statat(dir, NOTED_TAR_SPLIT, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_ino == note.tar_split => {
                    let name = tar_split_name(id);
                    self.rename_tar_split(|dir| fs::renameat(dir, NOTED_TAR_SPLIT, dir, name.as_str()))?;
                }
                // In its place already.
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io("look up", dir.path().join(NOTED_TAR_SPLIT), error)),
            }
            fault("refill.recovered-tar-split")?;
            tracing::info!(layer = %id, "finished what a killed process had begun: the layer has its new content");
        }
        self.forget_refill()
    }

    fn forget_refill(&self) -> Result<()> {
        self.layers.dir.remove(NOTED_TAR_SPLIT)?;
        self.layers.dir.remove(NOTE)
    }

    fn fill_in_place(
        &self,
        layer: &str,
        expected: &pipeline::Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let mut layers = self.layers.records.write()?;
        self.finish_refill(&mut layers)?;
        let id = LayerId::new(self.own_layer(&layers, layer)?)?;
        let unknown = || Error::LayerNotKnown { reference: layer.to_owned() };
        let record = layers.table().by_id(id.as_str()).cloned().ok_or_else(unknown)?;
        let file = layers.table().file_of(id.as_str()).unwrap_or_default();
        let parent = if record.parent.is_empty() { None } else { Some(LayerId::new(record.parent.clone())?) };
        let partly = |source: Error| Error::PartlyApplied { id: id.to_string(), source: Box::new(source) };
        let (facts, split) = self
            .fill_layer(&id, parent.as_ref(), &record.mappings(), &record.mount_label, expected, blob)
            .map_err(partly)?;
        // A layer that was filled before has one already: replaced in one step.
        let name = tar_split_name(id.as_str());
        let made = split.directory.addition_path(&split.file);
        self.rename_tar_split(|dir| fs::renameat(fs::CWD, &made, dir, name.as_str())).map_err(partly)?;
        if let Some((record, _)) = layers.change().change(id.as_str()) {
            facts.fill(record);
        }
        layers.save(&[file]).map_err(partly)?;
        let layer = layers.table().by_id(id.as_str()).map(|layer| Stored::new(layer, Home::Own)).ok_or_else(unknown)?;
        Ok(Imported { layer, report: facts.report })
    }
}

fn inode(file: impl AsFd) -> Result<u64> {
    Ok(fs::fstat(file).map_err(|e| Error::io("read the status of", "a layer's file", e))?.st_ino)
}
