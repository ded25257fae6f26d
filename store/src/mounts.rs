//! Mounting layers and containers, and counting the mounts of all processes in `mountpoints.json`.
//!
//! Lock order: the layers' lock (shared: the layer must not be deleted meanwhile), then mountpoints.lock.

use std::path::{Path, PathBuf};

use graph_core::LayerId;
use graph_core::driver::GetOptions;
use graph_core::refcount::{AnyMount, MountCheck};

use crate::error::{Error, Result};
use crate::options::MountOptions;
use crate::records::{Layer, MountPoint};
use crate::store::{STABLE, Store, Stored};

/// Mounts.
impl Store {
    /// Mounts a layer or a container and counts that; the mount outlives the process. Returns where it is.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; [`Error::ReadOnlyStore`] for a read-write mount of an additional store's layer;
    /// [`Error::ShiftingNotEnabled`].
    pub fn mount(&self, layer_or_container: &str, options: &MountOptions) -> Result<PathBuf> {
        let (_guard, own) = self.layers.records.read_locked()?;
        let tables = self.layer_tables_with(own)?;
        let container = self.containers.records.read()?.find(layer_or_container).cloned();
        let reference = container.as_ref().map_or(layer_or_container, |container| container.layer.as_str());
        let layer =
            tables.find(reference).ok_or_else(|| Error::LayerNotKnown { reference: layer_or_container.to_owned() })?;
        let mut get = GetOptions {
            mount_label: options.mount_label.clone().unwrap_or_else(|| layer.mount_label.clone()),
            mappings: options.mappings.clone().unwrap_or_else(|| layer.mappings()),
            options: options.options.clone(),
            ..GetOptions::default()
        };
        if let Some(container) = &container {
            if options.mount_label.is_none() {
                get.mount_label = container.mount_label();
            }
            if options.mappings.is_none() {
                get.mappings = container.mappings();
            }
            if options.options.is_empty() {
                get.options = container.mount_options();
            }
            get.volatile = container.is_volatile() && !self.options.disable_volatile;
        }
        if options.read_only && !get.options.iter().any(|option| option == "ro") {
            get.options.push("ro".to_owned());
        }
        if !get.options.iter().any(|option| option == "ro") {
            self.writable(&layer, || "mounting read/only store images is not allowed: the layer".to_owned())?;
        }
        if get.mappings == layer.mappings() {
            // The files on disk are owned so already.
            get.disable_shifting = true;
        } else if !(layer.mappings().is_identity() && self.driver.supports_shifting(&get.mappings)) {
            return Err(Error::ShiftingNotEnabled { id: layer.id.clone() });
        }
        self.mount_layer(&layer, &get)
    }

    fn mount_layer(&self, layer: &Stored<Layer>, options: &GetOptions) -> Result<PathBuf> {
        let id = LayerId::new(layer.id.clone())?;
        let mut mounts = self.mounts.write()?;
        if let Some(now) = mounts.table().by_id(id.as_str())
            && now.count > 0
            && is_mounted(Path::new(&now.path))?
        {
            let path = PathBuf::from(&now.path);
            if let Some((row, _)) = mounts.change().change(id.as_str()) {
                row.count = row.count.saturating_add(1);
            }
            mounts.save(&[STABLE])?;
            return Ok(path);
        }
        let mounted = self.driver.get(&id, options)?;
        let path = mounted.path().to_owned();
        let text = path.to_str().ok_or_else(|| Error::InvalidArgument {
            problem: format!("layer {id} is mounted at {path:?}, which is no text: choose other roots"),
        })?;
        let table = mounts.change();
        match table.change(id.as_str()) {
            Some((row, _)) => {
                // Not mounted here, yet counted: a driver whose layers are plain directories, or a mount in another mount
                // namespace. Both go on counting.
                row.count = row.count.max(0).saturating_add(1);
                text.clone_into(&mut row.path);
            }
            None => {
                let row = MountPoint { id: id.to_string(), path: text.to_owned(), count: 1, ..MountPoint::default() };
                table.insert(row, STABLE);
            }
        }
        mounts.save(&[STABLE])?;
        // Had the record not been written, dropping the guard would have unmounted.
        Ok(mounted.persist())
    }

    /// Takes one off the mount count (all, when forced) and unmounts at 0. Whether it is unmounted now.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; the driver's, when something in the mount is still in use: the count is then as before.
    /// Not mounted is no error.
    pub fn unmount(&self, layer_or_container: &str, force: bool) -> Result<bool> {
        let (_guard, own) = self.layers.records.read_locked()?;
        let tables = self.layer_tables_with(own)?;
        let id = self.mountable(&tables, layer_or_container)?;
        self.unmount_id(&id, force)
    }

    /// As [`Store::unmount`]; a lock on the layers must be held.
    pub(crate) fn unmount_id(&self, id: &str, force: bool) -> Result<bool> {
        // Most layers are not mounted: only a look, then.
        if self.mounts.read()?.by_id(id).is_none() {
            return Ok(true);
        }
        let mut mounts = self.mounts.write()?;
        let Some(now) = mounts.table().by_id(id).cloned() else { return Ok(true) };
        if !force && now.count > 1 {
            if let Some((row, _)) = mounts.change().change(id) {
                row.count = row.count.saturating_sub(1);
            }
            mounts.save(&[STABLE])?;
            return Ok(false);
        }
        self.driver.put(&LayerId::new(id)?)?;
        mounts.change().remove(&[id]);
        mounts.save(&[STABLE])?;
        Ok(true)
    }

    /// Drops the record of a layer's mounts and unmounts it.
    pub(crate) fn forget_mounts(&self, id: &str) -> Result<()> {
        self.unmount_id(id, true).map(drop)
    }

    /// The mount count of a layer or container; 0 for one that is not mounted.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn mounted(&self, layer_or_container: &str) -> Result<u64> {
        let id = self.mountable(&self.layer_tables()?, layer_or_container)?;
        Ok(self.mounts.read()?.by_id(&id).map_or(0, |row| u64::try_from(row.count).unwrap_or(0)))
    }

    /// Where a layer or container is mounted; `None` for one that is not.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn mount_point(&self, layer_or_container: &str) -> Result<Option<PathBuf>> {
        let id = self.mountable(&self.layer_tables()?, layer_or_container)?;
        Ok(self.mounts.read()?.by_id(&id).filter(|row| row.count > 0).map(|row| PathBuf::from(&row.path)))
    }

    fn mountable(&self, tables: &crate::layers::LayerTables, reference: &str) -> Result<String> {
        if let Some(container) = self.containers.records.read()?.find(reference) {
            return Ok(container.layer.clone());
        }
        let unknown = || Error::LayerNotKnown { reference: reference.to_owned() };
        tables.find(reference).map(|layer| layer.id.clone()).ok_or_else(unknown)
    }

    /// Unmounts what is mounted (only when forced) and releases what the driver holds of the system.
    ///
    /// # Errors
    /// [`Error::LayerMounted`] when a layer is mounted and `force` is not set; the driver's.
    pub fn shutdown(&self, force: bool) -> Result<()> {
        let (_guard, _) = self.layers.records.read_locked()?;
        let mounted: Vec<(String, String)> = {
            let rows = self.mounts.read()?;
            rows.iter().filter(|row| row.count > 0).map(|row| (row.id.clone(), row.path.clone())).collect()
        };
        for (id, path) in mounted {
            if !force {
                return Err(Error::LayerMounted { id, path: path.into() });
            }
            self.unmount_id(&id, true)?;
        }
        Ok(self.driver.cleanup()?)
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    AnyMount.is_mounted(path).map_err(|e| Error::io("look for a mount at", path, e))
}
