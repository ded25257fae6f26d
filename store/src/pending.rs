//! Loads that are under way, and what killed ones left: complete layers that nobody wants yet.
//!
//! ```text
//! D-layers/tmp/pending-load-<random>     locked by its process as long as the load lasts
//!     made <layer> <created>             written before the layer's record is, under the layers' lock
//!     uses <layer>                       written before the layer is looked for
//! ```
//!
//! A file without an owner says which layers its load made. They are left-overs if nothing is on them, and as long as no
//! living load uses them. The time of creation tells them from layers of the same id that somebody made later.

use std::collections::HashSet;
use std::sync::Arc;

use graph_core::tempdir::{FoundNote, Note};

use crate::error::{Error, Result, fault};
use crate::gc::{Garbage, GarbageKind};
use crate::index::Key;
use crate::records::{Layer, Time};
use crate::store::Store;
use crate::table::{Record, Table};

const PREFIX: &str = "pending-load";

/// A load that is under way: layers made with it ([`crate::CreateLayer::load`]) are left-overs if the process is killed before this
/// is dropped.
#[derive(Debug)]
pub struct PendingLoad {
    note: Note,
}

impl PendingLoad {
    /// Says that the load builds on a layer if it is there; to be called before looking whether it is. Nobody takes it for a left-over
    /// then.
    ///
    /// # Errors
    /// I/O.
    pub fn uses(&self, layer: &str) -> Result<()> {
        Ok(self.note.add(&format!("uses {layer}"))?)
    }

    pub(crate) fn makes(&self, layer: &str, created: &Time) -> Result<()> {
        self.note.add(&format!("made {layer} {}", created.as_str()))?;
        fault("load.noted")
    }
}

impl Store {
    /// Begins a load. Dropping the value ends it: whatever it made is wanted then, or deleted again.
    ///
    /// # Errors
    /// I/O.
    pub fn begin_load(&self) -> Result<PendingLoad> {
        Ok(PendingLoad { note: self.temporary_root()?.note(PREFIX)? })
    }

    /// Forgets killed loads of which nothing is left over: a later load has completed them, or it was removed. What fails is
    /// logged and tried again after the next load.
    pub fn forget_completed_loads(&self) {
        if let Err(error) = self.forget_loads() {
            tracing::warn!(error = &error as &dyn std::error::Error, "forgetting killed loads");
        }
    }

    fn forget_loads(&self) -> Result<()> {
        let root = self.temporary_root()?;
        let notes = root.notes(PREFIX)?;
        if !notes.iter().any(FoundNote::is_dead) {
            return Ok(());
        }
        let (_guard, layers) = self.layers.records.read_locked()?;
        for note in notes {
            if self.left_over(std::slice::from_ref(&note), &layers)?.is_empty() {
                root.remove_note(note)?;
            }
        }
        Ok(())
    }

    /// Removes what killed loads left, or lists it.
    pub(crate) fn load_garbage(&self, dry_run: bool, found: &mut Vec<Garbage>) -> Result<()> {
        let layers = self.layers.records.write()?;
        let root = self.temporary_root()?;
        let notes = root.notes(PREFIX)?;
        let ids = self.left_over(&notes, layers.table())?;
        let first = found.len();
        for id in &ids {
            let bytes = self.layer_bytes(id);
            found.push(Garbage { kind: GarbageKind::KilledLoad, place: id.into(), bytes, error: None });
        }
        if dry_run {
            return Ok(());
        }
        if !ids.is_empty()
            && let Err(error) = self.delete_unused(layers, ids)
        {
            let mut error = Some(error);
            let again = || Error::InvalidArgument { problem: "it could not be removed".to_owned() };
            for garbage in found.iter_mut().skip(first) {
                garbage.error = Some(error.take().unwrap_or_else(again));
            }
            return Ok(());
        }
        fault("gc.loads")?;
        for note in notes {
            root.remove_note(note)?;
        }
        Ok(())
    }

    /// Layers made by loads that were killed and used by nothing since; children before their parents.
    fn left_over(&self, notes: &[FoundNote], layers: &Table<Layer>) -> Result<Vec<String>> {
        let mut made: HashSet<(&str, &str)> = HashSet::new();
        let mut used: HashSet<&str> = HashSet::new();
        for note in notes {
            for line in note.lines() {
                let mut words = line.split(' ');
                match (words.next(), words.next(), words.next(), note.is_dead()) {
                    (Some("made"), Some(id), Some(created), true) => {
                        made.insert((id, created));
                    }
                    (Some(_), Some(id), _, false) => {
                        used.insert(id);
                    }
                    _ => {}
                }
            }
        }
        if made.is_empty() {
            return Ok(Vec::new());
        }
        let images = self.image_tables()?;
        let containers = self.containers.records.read()?;
        let mounts = self.mounts.read()?;
        let elsewhere = self.layers_recorded_elsewhere()?;
        let is_free = |layer: &Arc<Layer>| {
            let id = layer.id.as_str();
            made.contains(&(id, layer.created.as_str()))
                && !used.contains(id)
                && !layer.is_incomplete()
                && layer.names().is_empty()
                && !images.iter().any(|(_, images)| !images.with(Key::Uses, id).is_empty())
                && containers.any_with(Key::Alias, id).is_none()
                && mounts.by_id(id).is_none_or(|row| row.count <= 0)
                && !elsewhere.values().any(|parent| parent == id)
        };
        let mut left: Vec<String> =
            layers.iter().rev().filter(|layer| is_free(layer)).map(|layer| layer.id.clone()).collect();
        loop {
            let keep = |id: &String| layers.with(Key::Uses, id).iter().all(|child| left.contains(&child.id));
            let smaller: Vec<String> = left.iter().filter(|id| keep(id)).cloned().collect();
            if smaller.len() == left.len() {
                return Ok(left);
            }
            left = smaller;
        }
    }
}
