//! Layers: finding and making them.

use std::sync::Arc;

use graph_archive::idmap::IdMappings;
use graph_core::driver::{CreateOptions, ReownRequest, StagedLayer};
use graph_core::{ErrorKind as DriverErrorKind, LayerId};

use crate::bigdata::{self, Owner};
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::index::Key;
use crate::names::check_names;
use crate::options::CreateLayer;
use crate::records::{Layer, Time};
use crate::store::{Home, IMAGE_STORE, STABLE, Store, Stored, VOLATILE, find_in, new_id};
use crate::table::{FileIndex, Table, unique};

/// The tables of all stores, own first.
pub(crate) struct LayerTables {
    pub(crate) tables: Vec<(Home, Arc<Table<Layer>>)>,
}

impl LayerTables {
    pub(crate) fn find(&self, reference: &str) -> Option<Stored<Layer>> {
        find_in(&self.tables, reference).filter(|layer| !layer.is_incomplete())
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<Stored<Layer>> {
        self.tables.iter().find_map(|(home, table)| table.by_id(id).map(|layer| Stored::new(layer, *home)))
    }

    /// A layer and all below it, top first. What is missing ends the chain; so does a chain that bites its tail.
    pub(crate) fn chain(&self, top: &str) -> Vec<Stored<Layer>> {
        let mut chain: Vec<Stored<Layer>> = Vec::new();
        let mut next = self.by_id(top);
        while let Some(layer) = next {
            if chain.len() > self.tables.iter().map(|(_, table)| table.len()).sum() {
                break;
            }
            next = self.by_id(&layer.parent);
            chain.push(layer);
        }
        chain
    }
}

/// Layers.
impl Store {
    /// All layers, in the order of the file (parents first as a rule), additional stores last.
    ///
    /// Layers that a killed process left incomplete are not among them.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers(&self) -> Result<Vec<Stored<Layer>>> {
        self.select_layers(|table| table.iter().collect())
    }

    /// One layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn layer(&self, layer: &str) -> Result<Stored<Layer>> {
        self.layer_tables()?.find(layer).ok_or_else(|| Error::LayerNotKnown { reference: layer.to_owned() })
    }

    /// The layers whose uncompressed tar has this digest (diff ID); none is an empty list.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers_by_uncompressed_digest(&self, digest: &str) -> Result<Vec<Stored<Layer>>> {
        self.select_layers(|table| keyed(table, Key::Digest, digest))
    }

    /// The layers that were filled from a blob of this digest; none is an empty list.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers_by_compressed_digest(&self, digest: &str) -> Result<Vec<Stored<Layer>>> {
        self.select_layers(|table| keyed(table, Key::CompressedDigest, digest))
    }

    /// The layers that were fetched in parts by a table of contents of this digest; none is an empty list.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn layers_by_toc_digest(&self, digest: &str) -> Result<Vec<Stored<Layer>>> {
        self.select_layers(|table| keyed(table, Key::TocDigest, digest))
    }

    fn select_layers(
        &self,
        wanted: impl for<'t> Fn(&'t Table<Layer>) -> Vec<&'t Arc<Layer>>,
    ) -> Result<Vec<Stored<Layer>>> {
        let tables = self.layer_tables()?;
        let mut found: Vec<Stored<Layer>> = Vec::new();
        for (n, (home, table)) in tables.tables.iter().enumerate() {
            for layer in wanted(table).into_iter().filter(|layer| !layer.is_incomplete()) {
                let shown = tables.tables.iter().take(n).any(|(_, earlier)| earlier.by_id(&layer.id).is_some());
                if !shown {
                    found.push(Stored::new(layer, *home));
                }
            }
        }
        Ok(found)
    }

    /// Makes an empty layer.
    ///
    /// A process killed in the middle leaves a record marked incomplete, which the next open removes with its files.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::LayerNameInUse`], [`Error::LayerNotKnown`] and [`Error::ParentIsContainer`] for the
    /// parent, the driver's; nothing is left behind.
    pub fn create_layer(&self, options: &CreateLayer) -> Result<Stored<Layer>> {
        let plan = self.plan_layer(options)?;
        let copy = self.stage_copy(&plan, options)?;
        let mut layers = self.layers.records.write()?;
        self.make_layer(&mut layers, &plan, options, copy)
    }

    /// A big data item of a layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::BigDataNotFound`].
    pub fn layer_big_data(&self, layer: &str, key: &str) -> Result<Vec<u8>> {
        let layer = self.layer(layer)?;
        let known = layer.big_data_names.iter().any(|name| name == key);
        bigdata::read(&self.layer_part(&layer)?.dir, Owner { kind: "layer", id: &layer.id }, key, known)
    }

    /// Sets a big data item of a layer.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::InvalidBigDataName`], [`Error::ReadOnlyStore`].
    pub fn set_layer_big_data(&self, layer: &str, key: &str, data: &[u8]) -> Result<()> {
        bigdata::check_key(key)?;
        let mut layers = self.layers.records.write()?;
        let id = self.own_layer(&layers, layer)?;
        let file = layers.table().file_of(&id).unwrap_or(STABLE);
        bigdata::write(&self.layers.dir, Owner { kind: "layer", id: &id }, key, data, self.durability(file))?;
        let Some((record, _)) = layers.change().change(&id) else { return Ok(()) };
        if record.big_data_names.iter().any(|name| name == key) {
            return Ok(());
        }
        record.big_data_names.push(key.to_owned());
        layers.save(&[file])
    }

    /// The tables of all stores as they are now.
    pub(crate) fn layer_tables(&self) -> Result<LayerTables> {
        self.layer_tables_with(self.layers.records.read()?)
    }

    /// The tables of all stores, the own one as given.
    pub(crate) fn layer_tables_with(&self, own: Arc<Table<Layer>>) -> Result<LayerTables> {
        let mut tables = vec![(Home::Own, own)];
        for (n, additional) in self.additional.iter().enumerate() {
            if let Some(layers) = &additional.layers {
                tables.push((Home::Additional(n), layers.records.read()?));
            }
        }
        Ok(LayerTables { tables })
    }

    /// Looks at what is asked for, without a lock: what is wrong now need not be tried under one.
    pub(crate) fn plan_layer(&self, options: &CreateLayer) -> Result<LayerPlan> {
        let id = new_id(options.id.as_deref())?;
        check_names(&options.names)?;
        let own = self.layers.records.read()?;
        check_free(&own, id.as_str(), &options.names)?;
        for (key, _) in &options.big_data {
            bigdata::check_key(key)?;
        }
        let parent = match options.parent.as_deref() {
            None | Some("") => None,
            Some(reference) => {
                let parent = self
                    .layer_tables_with(own)?
                    .find(reference)
                    .ok_or_else(|| Error::LayerNotKnown { reference: reference.to_owned() })?;
                if self.containers.records.read()?.any_with(Key::Alias, &parent.id).is_some() {
                    return Err(Error::ParentIsContainer { id: parent.id.clone() });
                }
                Some(parent)
            }
        };
        let parent_mappings = parent.as_ref().map(|parent| parent.mappings()).unwrap_or_default();
        let mappings = options.mappings.clone().unwrap_or_else(|| parent_mappings.clone());
        // What is mapped at mount time is stored as if there were no mappings, so that it can be shown through any.
        let mappings = if self.driver.supports_shifting(&mappings) { IdMappings::default() } else { mappings };
        let parent_id = parent.as_ref().map(|parent| LayerId::new(parent.id.clone())).transpose()?;
        let file = match options {
            _ if options.volatile => VOLATILE,
            _ if !options.read_write && self.options.image_store.is_some() => IMAGE_STORE,
            _ => STABLE,
        };
        Ok(LayerPlan { id, parent, parent_id, parent_mappings, mappings, file })
    }

    /// Where a new layer begins as a copy of its parent, or with other owners than that has, makes it without a lock: it
    /// can take long.
    pub(crate) fn stage_copy(
        &self,
        plan: &LayerPlan,
        options: &CreateLayer,
    ) -> Result<Option<Box<dyn StagedLayer + '_>>> {
        let only_differences = self.driver.capabilities().native_diff && plan.mappings == plan.parent_mappings;
        if plan.parent.is_none() || only_differences {
            return Ok(None);
        }
        let mut staged = self.begin_staged(plan, options)?;
        if let Some(staged) = &mut staged
            && self.is_durable(plan.file)
        {
            staged.flush()?;
        }
        Ok(staged)
    }

    /// Begins a layer without a lock, where the driver can: as a copy of its parent with other owners, if it has others.
    pub(crate) fn begin_staged(
        &self,
        plan: &LayerPlan,
        options: &CreateLayer,
    ) -> Result<Option<Box<dyn StagedLayer + '_>>> {
        if !self.driver.capabilities().staging || !options.storage_opt.is_empty() {
            return Ok(None);
        }
        let create = CreateOptions {
            mount_label: options.mount_label.clone(),
            mappings: plan.mappings.clone(),
            read_write: options.read_write,
            ..CreateOptions::default()
        };
        let parent = plan.parent_id.as_ref();
        if parent.is_some() && plan.mappings != plan.parent_mappings {
            return self
                .begin_reowned(&ReownRequest { parent, template: None, mappings: &plan.parent_mappings }, &create);
        }
        Ok(Some(self.driver.begin_staged(parent, &create)?))
    }

    /// `None` for a driver that changes owners in place only.
    pub(crate) fn begin_reowned(
        &self,
        request: &ReownRequest<'_>,
        create: &CreateOptions,
    ) -> Result<Option<Box<dyn StagedLayer + '_>>> {
        match self.driver.begin_reowned(request, create) {
            Err(error) if error.kind() == DriverErrorKind::Unsupported => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Makes a layer under the lock, of a copy that was made before or all at once.
    pub(crate) fn make_layer(
        &self,
        layers: &mut Writing<'_, Layer>,
        plan: &LayerPlan,
        options: &CreateLayer,
        copy: Option<Box<dyn StagedLayer + '_>>,
    ) -> Result<Stored<Layer>> {
        self.begin_layer(layers, plan, options, |_| ())?;
        let make = || self.place_layer(plan, options, copy);
        let (layer, ()) = self.settle_layer(layers, plan, make, |_, ()| ())?;
        Ok(layer)
    }

    /// The driver's part of a layer that was begun: a copy that was made before, or all at once.
    pub(crate) fn place_layer(
        &self,
        plan: &LayerPlan,
        options: &CreateLayer,
        copy: Option<Box<dyn StagedLayer + '_>>,
    ) -> Result<()> {
        match copy {
            Some(copy) => {
                self.remove_orphan(&plan.id)?;
                copy.publish(&plan.id)?;
            }
            None => {
                self.create_in_driver(plan, options)?;
                // A driver that keeps only differences has flushed the little that a new layer is.
                let little = self.driver.capabilities().native_diff && plan.mappings == plan.parent_mappings;
                if self.is_durable(plan.file) && !little {
                    self.layers.records.flush_file_systems()?;
                }
            }
        }
        fault("layer.placed")
    }

    /// Makes the layer in the driver, with the owners that it is to have.
    pub(crate) fn create_in_driver(&self, plan: &LayerPlan, options: &CreateLayer) -> Result<()> {
        let create = CreateOptions {
            mount_label: options.mount_label.clone(),
            storage_opt: options.storage_opt.clone(),
            mappings: plan.mappings.clone(),
            read_write: options.read_write,
        };
        let parent = plan.parent_id.as_ref();
        let make = || {
            if options.read_write {
                self.driver.create_read_write(&plan.id, parent, &create)
            } else {
                self.driver.create(&plan.id, parent, &create)
            }
        };
        match make() {
            // No record knew it: what a killed process left.
            Err(error) if error.kind() == DriverErrorKind::Exists => {
                self.driver.remove(&plan.id)?;
                make()?;
            }
            other => other?,
        }
        if parent.is_some() && plan.mappings != plan.parent_mappings {
            self.driver.update_layer_id_map(&plan.id, &plan.parent_mappings, &plan.mappings, &options.mount_label)?;
        }
        Ok(())
    }

    /// Writes the record of a new layer, marked incomplete, and its big data. Checks once more what the plan was made on.
    pub(crate) fn begin_layer(
        &self,
        layers: &mut Writing<'_, Layer>,
        plan: &LayerPlan,
        options: &CreateLayer,
        fill: impl FnOnce(&mut Layer),
    ) -> Result<()> {
        check_free(layers.table(), plan.id.as_str(), &options.names)?;
        if let Some(parent) = &plan.parent
            && parent.home() == Home::Own
        {
            match layers.table().by_id(&parent.id) {
                Some(now) if now.mappings() == plan.parent_mappings && !now.is_incomplete() => {}
                _ => return Err(Error::ParentGone { id: plan.id.to_string(), parent: parent.id.clone() }),
            }
        }
        let mut record = Layer {
            id: plan.id.to_string(),
            names: unique(&options.names),
            parent: plan.parent_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            metadata: options.metadata.clone(),
            mount_label: options.mount_label.clone(),
            created: Time::now(),
            flags: options.flags.clone(),
            uid_map: plan.mappings.uids.clone(),
            gid_map: plan.mappings.gids.clone(),
            ..Layer::default()
        };
        record.flags.set(Layer::INCOMPLETE, &true);
        for (key, _) in &options.big_data {
            if !record.big_data_names.contains(key) {
                record.big_data_names.push(key.clone());
            }
        }
        fill(&mut record);
        if let Some(load) = &options.load {
            load.makes(&record.id, &record.created)?;
        }
        layers.change().insert(record, plan.file);
        let durability = self.durability(plan.file);
        let owner = Owner { kind: "layer", id: plan.id.as_str() };
        let written = layers.save_begun(&[plan.file]).and_then(|()| {
            (options.big_data.iter())
                .try_for_each(|(key, data)| bigdata::write(&self.layers.dir, owner, key, data, durability))
        });
        written.inspect_err(|_| self.abandon_layer(layers, &plan.id))
    }

    /// Does the driver's part of a layer that was begun and marks it complete, or removes all of it. `fill` puts what
    /// was found on the way into the record.
    pub(crate) fn settle_layer<F>(
        &self,
        layers: &mut Writing<'_, Layer>,
        plan: &LayerPlan,
        work: impl FnOnce() -> Result<F>,
        fill: impl FnOnce(&mut Layer, &F),
    ) -> Result<(Stored<Layer>, F)> {
        let finish = |layers: &mut Writing<'_, Layer>| {
            let found = work()?;
            let layer = self.complete_layer(layers, plan, |record| fill(record, &found))?;
            Ok((layer, found))
        };
        finish(layers).inspect_err(|_| self.abandon_layer(layers, &plan.id))
    }

    /// Takes the mark off a layer that is all there.
    pub(crate) fn complete_layer(
        &self,
        layers: &mut Writing<'_, Layer>,
        plan: &LayerPlan,
        fill: impl FnOnce(&mut Layer),
    ) -> Result<Stored<Layer>> {
        if let Some((record, _)) = layers.change().change(plan.id.as_str()) {
            fill(record);
            record.flags.remove(Layer::INCOMPLETE);
        }
        layers.save(&[plan.file])?;
        let unknown = || Error::LayerNotKnown { reference: plan.id.to_string() };
        layers.table().by_id(plan.id.as_str()).map(|layer| Stored::new(layer, Home::Own)).ok_or_else(unknown)
    }

    /// Removes a layer that could not be made. What stays is marked incomplete, for the next open.
    pub(crate) fn abandon_layer(&self, layers: &mut Writing<'_, Layer>, id: &LayerId) {
        if let Err(error) = self.remove_incomplete(layers, id) {
            tracing::warn!(error = &error as &dyn std::error::Error, layer = %id, "removing a layer that could not be made");
        }
    }

    /// Removes the files of an incomplete layer, then its record.
    pub(crate) fn remove_incomplete(&self, layers: &mut Writing<'_, Layer>, id: &LayerId) -> Result<()> {
        self.remove_layer_at_once(id)?;
        let files: Vec<FileIndex> = layers.change().remove(&[id.as_str()]);
        layers.save(&files)
    }

    /// Removes the files of a layer whose record is marked incomplete.
    pub(crate) fn remove_layer_at_once(&self, id: &LayerId) -> Result<()> {
        match self.driver.remove(id) {
            Err(error) if error.kind() != DriverErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.layers.dir.remove(&tar_split_name(id.as_str()))?;
        self.layers.dir.remove(id.as_str())
    }
}

/// What a new layer will be.
#[derive(Debug)]
pub(crate) struct LayerPlan {
    pub(crate) id: LayerId,
    pub(crate) parent: Option<Stored<Layer>>,
    pub(crate) parent_id: Option<LayerId>,
    pub(crate) parent_mappings: IdMappings,
    pub(crate) mappings: IdMappings,
    pub(crate) file: FileIndex,
}

/// The file beside the records that the layer's archive is put together from.
pub(crate) fn tar_split_name(id: &str) -> String {
    format!("{id}.tar-split.gz")
}

fn keyed<'t>(table: &'t Table<Layer>, key: Key, value: &str) -> Vec<&'t Arc<Layer>> {
    if value.is_empty() { Vec::new() } else { table.with(key, value) }
}

fn check_free(layers: &Table<Layer>, id: &str, names: &[String]) -> Result<()> {
    if layers.by_id(id).is_some() {
        return Err(Error::IdInUse { kind: "layer", id: id.to_owned() });
    }
    for name in names {
        if let Some(owner) = layers.by_name(name) {
            return Err(Error::LayerNameInUse { name: name.clone(), owner: owner.id.clone() });
        }
    }
    Ok(())
}
