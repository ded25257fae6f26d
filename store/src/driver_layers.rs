//! The driver's layers as such, whether a record knows them or not: for whoever tests or repairs a store.

use graph_core::LayerId;
use graph_core::driver::CreateOptions;

use crate::error::{Error, Result};
use crate::options::CreateLayer;
use crate::store::{Store, new_id};

/// Below the records.
impl Store {
    /// Ids of the layers that the driver has in the store's own graph root, sorted, whether a record knows them or not.
    ///
    /// # Errors
    /// The driver's.
    pub fn driver_layers(&self) -> Result<Vec<LayerId>> {
        let (_guard, _) = self.layers.records.read_locked()?;
        Ok(self.driver.list_layers()?)
    }

    /// Makes a layer in the driver that no record knows, as a killed process may leave one: for tests of
    /// what finds and removes such layers. Names, metadata, big data and flags of `options` mean nothing here; the parent is a layer of the driver.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`] for the parent, [`Error::IdInUse`], the driver's.
    pub fn create_driver_layer(&self, options: &CreateLayer) -> Result<LayerId> {
        let id = new_id(options.id.as_deref())?;
        let layers = self.layers.records.write()?;
        let tables = self.layer_tables_with(std::sync::Arc::new(layers.table().clone()))?;
        let (parent, parent_mappings) = match options.parent.as_deref().filter(|parent| !parent.is_empty()) {
            None => (None, graph_archive::IdMappings::default()),
            Some(reference) => match tables.find(reference) {
                Some(parent) => (Some(LayerId::new(parent.id.clone())?), parent.mappings()),
                None => {
                    let parent = LayerId::new(reference)?;
                    if !self.driver.exists(&parent)? {
                        return Err(Error::LayerNotKnown { reference: reference.to_owned() });
                    }
                    (Some(parent), graph_archive::IdMappings::default())
                }
            },
        };
        if layers.table().by_id(id.as_str()).is_some() || self.driver.exists(&id)? {
            return Err(Error::IdInUse { kind: "layer", id: id.to_string() });
        }
        let mappings = options.mappings.clone().unwrap_or_else(|| parent_mappings.clone());
        let create = CreateOptions {
            mount_label: options.mount_label.clone(),
            storage_opt: options.storage_opt.clone(),
            mappings: mappings.clone(),
            read_write: options.read_write,
        };
        if options.read_write {
            self.driver.create_read_write(&id, parent.as_ref(), &create)?;
        } else {
            self.driver.create(&id, parent.as_ref(), &create)?;
        }
        if parent.is_some() && mappings != parent_mappings {
            self.driver.update_layer_id_map(&id, &parent_mappings, &mappings, &options.mount_label)?;
        }
        Ok(id)
    }
}
