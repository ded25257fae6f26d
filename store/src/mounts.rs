//! Mounting layers and containers, and counting the mounts of all processes in `mountpoints.json`.
//!
//! Lock order: the layers' lock (shared: the layer must not be deleted meanwhile), then mountpoints.lock. Where the driver's
//! home has to be prepared for mounts first, storage.lock comes before both, and is given back before them: peers hold it
//! for as long as they write a diff.

use std::path::{Path, PathBuf};

use graph_core::LayerId;
use graph_core::driver::GetOptions;
use graph_core::lockfile::Wait;
use graph_core::refcount::{AnyMount, MountCheck};

use graph_sys::lock::LockKind;

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
        // Where the home cannot be prepared, for want of privileges, the mount itself says so.
        let mut anyway = false;
        loop {
            if !anyway && !self.driver.is_ready_to_mount()? {
                match self.lock_graph() {
                    Ok(_guard) => {
                        self.driver.prepare_to_mount()?;
                        anyway = !self.driver.is_ready_to_mount()?;
                    }
                    // No peer can use a read-only file system as its home, so nobody binds it.
                    Err(error) if error.is_read_only_file_system() => anyway = true,
                    Err(error) => return Err(error),
                }
            }
            // Between the two somebody may have unmounted the last layer, and the home with it.
            if let Some(path) = self.try_mount(layer_or_container, options, anyway)? {
                return Ok(path);
            }
        }
    }

    /// Mounts, if the driver is ready for that or `anyway`.
    fn try_mount(&self, layer_or_container: &str, options: &MountOptions, anyway: bool) -> Result<Option<PathBuf>> {
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
            get.own_files_as_on_disk = true;
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
        self.mount_layer(&layer, &get, anyway)
    }

    fn mount_layer(&self, layer: &Stored<Layer>, options: &GetOptions, anyway: bool) -> Result<Option<PathBuf>> {
        let id = LayerId::new(layer.id.clone())?;
        let mut mounts = self.mounts.write()?;
        if !anyway && !self.driver.is_ready_to_mount()? {
            return Ok(None);
        }
        if let Some(now) = mounts.table().by_id(id.as_str())
            && now.count > 0
            && is_mounted(Path::new(&now.path))?
        {
            let path = PathBuf::from(&now.path);
            if let Some((row, _)) = mounts.change().change(id.as_str()) {
                row.count = row.count.saturating_add(1);
            }
            mounts.save(&[STABLE])?;
            return Ok(Some(path));
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
        Ok(Some(mounted.persist()))
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
        if mounts.table().iter().all(|row| row.count <= 0) {
            // Still under the lock on mounts, so that nobody of us mounts meanwhile; peers would need the layers' lock.
            self.release_home()?;
        }
        Ok(true)
    }

    /// Takes away what [`Driver::prepare_to_mount`](graph_core::Driver::prepare_to_mount) made, and tells others, who look for
    /// it only when storage.lock says that something is new. Somebody who holds that lock has use for it, so then it stays.
    fn release_home(&self) -> Result<()> {
        if !self.driver.is_ready_to_mount()? {
            return Ok(());
        }
        let guard = match self.graph_lock.lock(LockKind::Exclusive, Wait::Fail) {
            Ok(guard) => guard,
            Err(error) if error.kind() == graph_core::ErrorKind::Locked => return Ok(()),
            Err(error) => {
                let error = Error::from(error);
                return if error.is_read_only_file_system() { Ok(()) } else { Err(error) };
            }
        };
        self.driver.cleanup()?;
        if !self.driver.is_ready_to_mount()? {
            guard.record_write()?;
        }
        Ok(())
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
        // As peers: nobody mounts meanwhile.
        let _guard = self.layers.records.write()?;
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
        self.release_home()
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    AnyMount.is_mounted(path).map_err(|e| Error::io("look for a mount at", path, e))
}
