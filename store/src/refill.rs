//! Putting blobs into layers that are there already.
//!
//! The common case is a layer that was just made and is empty. Where the driver can stage, the blob then becomes a layer
//! beside it, without a lock, and takes its place in one step: bad input leaves the layer as it was. All other layers
//! (filled before, mounted, with layers on them) are changed in place, under the lock.

use std::sync::Arc;

use graph_archive::pipeline;
use graph_core::LayerId;
use graph_core::driver::{CreateOptions, DeferredRemoval, DiffRequest};

use crate::error::{Error, Result, fault};
use crate::import::{Imported, about, parse_expected, sync};
use crate::index::Key;
use crate::layers::{LayerTables, tar_split_name};
use crate::options::Expected;
use crate::records::Layer;
use crate::store::{Home, IMAGE_STORE, STABLE, Store, Stored};
use crate::table::Table;

/// A layer to be filled, as it was when that began.
struct Empty {
    id: LayerId,
    record: Arc<Layer>,
    parent: Option<LayerId>,
}

/// Filling existing layers.
impl Store {
    /// Puts a blob into an existing layer; its digests, sizes and owners replace those recorded before.
    ///
    /// A layer that is empty (and not mounted, with nothing on it) is filled in one step where the driver can stage,
    /// and is as before after an error. A process killed just in that step takes the layer with it.
    ///
    /// Any other layer, a mounted one too, is changed in place, under the layers' lock, since the layer must not go and
    /// nobody else may fill it.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::ReadOnlyStore`]; [`Error::LayerChanged`] when somebody else used the empty layer
    /// meanwhile; [`Error::DigestMismatch`], [`Error::Archive`]. [`Error::PartlyApplied`] says that what was extracted
    /// before the error inside it has stayed in the layer; the record is as before in every case.
    pub fn apply_diff(
        &self,
        layer: &str,
        expected: &Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let expected = &parse_expected(expected)?;
        if let Some(empty) = self.empty_layer(layer)? {
            self.fill_staged(&empty, expected, blob)
        } else {
            self.fill_in_place(layer, expected, blob)
        }
    }

    /// The layer, if it can be filled in one step.
    fn empty_layer(&self, layer: &str) -> Result<Option<Empty>> {
        if !self.driver.capabilities().staging {
            return Ok(None);
        }
        let (_guard, own) = self.layers.records.read_locked()?;
        let Some(record) = own.find(layer).filter(|layer| !layer.is_incomplete()).cloned() else { return Ok(None) };
        let tables = self.layer_tables_with(Arc::clone(&own))?;
        self.as_empty(&record, &own, &tables)
    }

    fn as_empty(&self, record: &Arc<Layer>, own: &Table<Layer>, tables: &LayerTables) -> Result<Option<Empty>> {
        let id = LayerId::new(record.id.clone())?;
        let parent = if record.parent.is_empty() { None } else { tables.by_id(&record.parent) };
        let same_owners =
            parent.as_ref().map_or(record.parent.is_empty(), |parent| parent.mappings() == record.mappings());
        let filled =
            !record.diff_digest.is_empty() || self.layers.dir.open_file(&tar_split_name(&record.id))?.is_some();
        let used = filled
            || !same_owners
            || own.any_with(Key::Uses, &record.id).is_some()
            || self.mounts.read()?.by_id(&record.id).is_some()
            || self.containers.records.read()?.any_with(Key::Alias, &record.id).is_some();
        if used {
            return Ok(None);
        }
        let parent_id = parent.as_ref().map(|parent| LayerId::new(parent.id.clone())).transpose()?;
        let request = DiffRequest {
            id: &id,
            mappings: &record.mappings(),
            parent: parent_id.as_ref(),
            parent_mappings: &record.mappings(),
            mount_label: &record.mount_label,
        };
        if !self.driver.changes(&request)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(Empty { id, record: Arc::clone(record), parent: parent_id }))
    }

    fn fill_staged(
        &self,
        empty: &Empty,
        expected: &pipeline::Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let Empty { id, record, parent } = empty;
        let mappings = record.mappings();
        let file = self.layers.records.read()?.file_of(id.as_str()).unwrap_or(STABLE);
        let create = CreateOptions {
            mount_label: record.mount_label.clone(),
            mappings: mappings.clone(),
            read_write: file != IMAGE_STORE,
            ..CreateOptions::default()
        };
        let mut staged = self.driver.begin_staged(parent.as_ref(), &create)?;
        let (split, mut packer) = self.begin_tar_split()?;
        let facts = self.read_blob(id, expected, blob, |diff| {
            let mut apply = self.apply_options(&mappings, &record.mount_label, &mut packer);
            staged.apply(diff, &mut apply).map_err(|e| about(id, e))
        })?;
        let split_file = self.end_tar_split(packer, &*staged.diff_getter()?, id)?;
        if self.is_durable(file) {
            staged.flush()?;
            sync(&split_file, id)?;
        }

        let mut layers = self.layers.records.write()?;
        let changed = || Error::LayerChanged { id: id.to_string() };
        let now = layers.table().by_id(id.as_str()).cloned().ok_or_else(changed)?;
        let own = Arc::new(layers.table().clone());
        if now != *record || self.as_empty(&now, &own, &self.layer_tables_with(Arc::clone(&own))?)?.is_none() {
            return Err(changed());
        }
        // Until the end the layer is neither the old one nor the new one, and marked.
        let mut touched = false;
        let finish = || -> Result<DeferredRemoval> {
            if let Some((record, _)) = layers.change().change(id.as_str()) {
                record.flags.set(Layer::INCOMPLETE, &true);
            }
            layers.save_begun(&[file])?;
            fault("refill.marked")?;
            touched = true;
            let old = self.driver.deferred_remove(id)?;
            fault("refill.old-removed")?;
            self.publish_tar_split(split, id)?;
            staged.publish(id)?;
            fault("refill.published")?;
            if let Some((record, _)) = layers.change().change(id.as_str()) {
                facts.fill(record);
                record.flags.remove(Layer::INCOMPLETE);
            }
            layers.save(&[file])?;
            Ok(old)
        };
        match finish() {
            Ok(old) => {
                let unknown = || Error::LayerNotKnown { reference: id.to_string() };
                let layer = layers.table().by_id(id.as_str()).ok_or_else(unknown)?;
                let layer = Stored::new(layer, Home::Own);
                drop(layers);
                if let Err(error) = old.finish() {
                    tracing::warn!(error = &error as &dyn std::error::Error, layer = %id, "removing the empty layer that was replaced");
                }
                Ok(Imported { layer, report: facts.report })
            }
            Err(error) => {
                // An empty layer is made again; where that fails, too, its mark lets the next open remove it.
                let mut restore = || -> Result<()> {
                    if touched {
                        self.remove_layer_at_once(id)?;
                        match file {
                            IMAGE_STORE => self.driver.create(id, parent.as_ref(), &create)?,
                            _ => self.driver.create_read_write(id, parent.as_ref(), &create)?,
                        }
                    }
                    if let Some((now, _)) = layers.change().change(id.as_str()) {
                        now.clone_from(record);
                    }
                    layers.save(&[file])
                };
                if let Err(error) = restore() {
                    tracing::warn!(error = &error as &dyn std::error::Error, layer = %id, "making a layer anew that could not be filled");
                }
                Err(error)
            }
        }
    }

    fn fill_in_place(
        &self,
        layer: &str,
        expected: &pipeline::Expected,
        blob: &mut (dyn std::io::Read + Send),
    ) -> Result<Imported> {
        let mut layers = self.layers.records.write()?;
        let id = LayerId::new(self.own_layer(&layers, layer)?)?;
        let unknown = || Error::LayerNotKnown { reference: layer.to_owned() };
        let record = Arc::clone(layers.table().by_id(id.as_str()).ok_or_else(unknown)?);
        let file = layers.table().file_of(id.as_str()).unwrap_or_default();
        let parent = if record.parent.is_empty() { None } else { Some(LayerId::new(record.parent.clone())?) };
        let partly = |source: Error| Error::PartlyApplied { id: id.to_string(), source: Box::new(source) };
        let (facts, split) = self
            .fill_layer(&id, parent.as_ref(), &record.mappings(), &record.mount_label, expected, blob)
            .map_err(partly)?;
        // A layer that was filled before has one already: replaced in one step.
        let name = tar_split_name(id.as_str());
        let made = split.directory.addition_path(&split.file);
        graph_sys::fs::renameat(graph_sys::fs::CWD, &made, &*self.layers.dir, name.as_str())
            .map_err(|e| partly(Error::io("move into place", self.layers.dir.path().join(&name), e)))?;
        if let Some((record, _)) = layers.change().change(id.as_str()) {
            facts.fill(record);
        }
        layers.save(&[file]).map_err(partly)?;
        let layer = layers.table().by_id(id.as_str()).map(|layer| Stored::new(layer, Home::Own)).ok_or_else(unknown)?;
        Ok(Imported { layer, report: facts.report })
    }
}
