//! Containers: finding and making them, their big data, directories and size.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use graph_core::subid::check_overlaps;
use graph_core::{LayerId, fsutil};
use graph_sys::fs::{AtFlags, FileType};

use crate::bigdata::{self, Owner};
use crate::dirs::{Dir, USER_DATA};
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::names::check_names;
use crate::options::{CreateContainer, CreateLayer};
use crate::records::{Container, Image, Layer, Time};
use crate::store::{Home, STABLE, Store, Stored, VOLATILE, new_id};
use crate::table::{Table, unique};

/// Containers.
impl Store {
    /// All containers.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn containers(&self) -> Result<Vec<Stored<Container>>> {
        Ok(self.containers.records.read()?.iter().map(|container| Stored::new(container, Home::Own)).collect())
    }

    /// One container; found by its layer's id, too.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container(&self, container: &str) -> Result<Stored<Container>> {
        let table = self.containers.records.read()?;
        let found = table.find(container).map(|container| Stored::new(container, Home::Own));
        found.ok_or_else(|| Error::ContainerNotKnown { reference: container.to_owned() })
    }

    /// Makes a container with its own read-write layer.
    ///
    /// Its layer is marked incomplete until the container's record is written. What a process killed in the middle
    /// leaves, the next open removes: the layer, and the container with it.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::ContainerNameInUse`], [`Error::ImageNotKnown`], [`Error::InvalidBigDataName`], the
    /// driver's; nothing is left behind.
    pub fn create_container(&self, options: &CreateContainer) -> Result<Stored<Container>> {
        let id = new_id(options.id.as_deref())?;
        check_names(&options.names)?;
        if options.process_label.is_empty() != options.mount_label.is_empty() {
            return Err(Error::InvalidArgument {
                problem: "ProcessLabel and Mountlabel must either not be specified or both specified".to_owned(),
            });
        }
        for (key, _) in &options.big_data {
            bigdata::check_key(key)?;
        }
        if let Some(mappings) = &options.mappings {
            for ranges in [&mappings.uids, &mappings.gids] {
                check_overlaps(ranges).map_err(graph_core::Error::from)?;
            }
        }
        let image = match options.image.as_deref() {
            None | Some("") => None,
            Some(reference) => Some(self.image(reference)?),
        };
        // Held until the record says whose the ids are.
        let mut _given_away = None;
        let mapped;
        let options = match &options.auto_userns {
            None => options,
            Some(_) if options.mappings.is_some() => {
                return Err(Error::InvalidArgument {
                    problem: "ID mappings and an automatic user namespace exclude each other".to_owned(),
                });
            }
            Some(wish) => {
                _given_away = Some(self.lock_user_namespaces()?);
                let mappings = Some(self.automatic_mappings(wish, image.as_ref())?);
                mapped = CreateContainer { mappings, ..options.clone() };
                &mapped
            }
        };
        // Before the image's layers are copied for nothing; looked at again below.
        check_free(&*self.containers.records.read()?, id.as_str(), &options.names)?;
        let volatile = options.volatile || self.options.transient;
        let file = if volatile { VOLATILE } else { STABLE };
        let layer_options = self.container_layer(options, image.as_ref(), volatile)?;
        let plan = self.plan_layer(&layer_options)?;
        let copy = self.stage_copy(&plan, &layer_options)?;

        let mut layers = self.layers.records.write()?;
        let mut containers = self.containers.records.write()?;
        check_free(containers.table(), id.as_str(), &options.names)?;
        let mappings = options.mappings.clone().unwrap_or_default();
        let mut container = Container {
            id: id.to_string(),
            names: unique(&options.names),
            image: image.map(|image| image.id.clone()).unwrap_or_default(),
            layer: plan.id.to_string(),
            metadata: options.metadata.clone(),
            created: Time::now(),
            uid_map: mappings.uids,
            gid_map: mappings.gids,
            flags: options.flags.clone(),
            ..Container::default()
        };
        container.flags.set("MountLabel", &options.mount_label);
        container.flags.set("ProcessLabel", &options.process_label);
        if !options.mount_options.is_empty() {
            container.flags.set("MountOpts", &options.mount_options);
        }
        if volatile {
            container.flags.set("Volatile", &true);
        }
        self.begin_layer(&mut layers, &plan, &layer_options, |_| ())?;
        let write = || -> Result<()> {
            self.place_layer(&plan, &layer_options, copy)?;
            self.containers.dir.remove(id.as_str())?; // of a dead container of that id
            for (key, data) in &options.big_data {
                bigdata::write(&self.containers.dir, owner(id.as_str()), key, data, self.durability(file))?;
                note_big_data(&mut container, key, data);
            }
            fault("container.data-written")?;
            containers.change().insert(container.clone(), file);
            containers.save(&[file])?;
            fault("container.record-written")?;
            self.complete_layer(&mut layers, &plan, |_| ())?;
            Ok(())
        };
        if let Err(error) = write() {
            if let Err(error) = self.abandon_container(&mut layers, &mut containers, id.as_str(), &plan.id) {
                tracing::warn!(error = &error as &dyn std::error::Error, container = %id, "removing a container that could not be made");
            }
            return Err(error);
        }
        let unknown = || Error::ContainerNotKnown { reference: id.to_string() };
        containers.table().by_id(id.as_str()).map(|container| Stored::new(container, Home::Own)).ok_or_else(unknown)
    }

    /// Removes a container that could not be made. Where that fails, too, its layer stays marked incomplete for as long
    /// as the container is there, and the next open goes on.
    fn abandon_container(
        &self,
        layers: &mut Writing<'_, Layer>,
        containers: &mut Writing<'_, Container>,
        id: &str,
        layer: &LayerId,
    ) -> Result<()> {
        // The files first: where the disk is full, the records can be written after that.
        self.remove_container_data(id)?;
        self.remove_layer_at_once(layer)?;
        let files = containers.change().remove(&[id]);
        containers.save(&files)?;
        let files = layers.change().remove(&[layer.as_str()]);
        layers.save(&files)
    }

    /// Removes a container's big data and both its directories.
    pub(crate) fn remove_container_data(&self, id: &str) -> Result<()> {
        if LayerId::new(id).is_err() {
            // A record that somebody has tampered with: what is no file name has no directories, and none is touched.
            return Ok(());
        }
        self.containers.dir.remove(id)?;
        match Dir::open(&self.run_containers)? {
            Some(run) => run.remove(id),
            None => Ok(()),
        }
    }

    /// A runtime mounts things among a running container's files, which then cannot be removed; better before the first
    /// of them is gone than after.
    pub(crate) fn refuse_running(&self, id: &str) -> Result<()> {
        let mounts = graph_sys::mountinfo::read().map_err(|e| Error::io("read", "/proc/self/mountinfo", e))?;
        for dir in [self.containers.dir.path(), self.run_containers.as_path()] {
            let own = dir.join(id);
            let inside = |path: &Path| path != own && path.starts_with(&own);
            let mut points = mounts.iter().map(|mount| Path::new(OsStr::from_bytes(&mount.mount_point)));
            if let Some(path) = points.find(|path| inside(path)) {
                return Err(Error::ContainerRunning { id: id.to_owned(), path: path.to_owned() });
            }
        }
        Ok(())
    }

    /// What the container's own layer is to be.
    fn container_layer(
        &self,
        options: &CreateContainer,
        image: Option<&Stored<Image>>,
        volatile: bool,
    ) -> Result<CreateLayer> {
        let mappings = options.mappings.clone().unwrap_or_default();
        let top = image.map(|image| self.image_top_layer(&image.id, &mappings)).transpose()?.flatten();
        Ok(CreateLayer {
            id: options.layer.clone(),
            read_write: true,
            volatile,
            mount_label: options.mount_label.clone(),
            storage_opt: options.storage_opt.clone(),
            mappings: Some(mappings),
            parent: top.map(|top| top.id.clone()),
            ..CreateLayer::default()
        })
    }

    /// A big data item of a container.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::BigDataNotFound`].
    pub fn container_big_data(&self, container: &str, key: &str) -> Result<Vec<u8>> {
        let container = self.container(container)?;
        let known = container.big_data_names.iter().any(|name| name == key);
        bigdata::read(&self.containers.dir, owner(&container.id), key, known)
    }

    /// Bytes of a big data item of a container.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::SizeUnknown`].
    pub fn container_big_data_size(&self, container: &str, key: &str) -> Result<u64> {
        let container = self.container(container)?;
        let known = container.big_data_names.iter().any(|name| name == key);
        bigdata::size(container.big_data_sizes.get(key), &self.containers.dir, owner(&container.id), key, known)
    }

    /// Digest of a big data item of a container.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::DigestUnknown`].
    pub fn container_big_data_digest(&self, container: &str, key: &str) -> Result<String> {
        let container = self.container(container)?;
        let known = container.big_data_names.iter().any(|name| name == key);
        bigdata::recorded_digest(
            container.big_data_digests.get(key),
            &self.containers.dir,
            owner(&container.id),
            key,
            known,
        )
    }

    /// Sets a big data item of a container, its size and digest.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], [`Error::InvalidBigDataName`].
    pub fn set_container_big_data(&self, container: &str, key: &str, data: &[u8]) -> Result<()> {
        bigdata::check_key(key)?;
        let mut containers = self.containers.records.write()?;
        let unknown = || Error::ContainerNotKnown { reference: container.to_owned() };
        let id = containers.table().find(container).ok_or_else(unknown)?.id.clone();
        let file = containers.table().file_of(&id).unwrap_or(STABLE);
        bigdata::write(&self.containers.dir, owner(&id), key, data, self.durability(file))?;
        if let Some((record, _)) = containers.change().change(&id) {
            note_big_data(record, key, data);
        }
        containers.save(&[file])
    }

    /// The container's directory for its engine's data, below the graph root; made (0700) when missing.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container_directory(&self, container: &str) -> Result<PathBuf> {
        let container = self.container(container)?;
        Ok(self.containers.dir.make_dir(&container.id)?.make_dir(USER_DATA)?.path().to_owned())
    }

    /// The same below the run root.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn container_run_directory(&self, container: &str) -> Result<PathBuf> {
        let container = self.container(container)?;
        let run = Dir::make(&self.run_containers)?;
        Ok(run.make_dir(&container.id)?.make_dir(USER_DATA)?.path().to_owned())
    }

    /// Bytes of its layer's changes, its big data, and its two directories.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`], the driver's.
    pub fn container_size(&self, container: &str) -> Result<u64> {
        let container = self.container(container)?;
        let mut size = self.diff_size(None, &container.layer)?;
        for bytes in container.big_data_sizes.values() {
            size = size.saturating_add(u64::try_from(*bytes).unwrap_or(0));
        }
        let graph = self.containers.dir.open_dir(&container.id)?;
        let run = Dir::open(&self.run_containers)?.map(|run| run.open_dir(&container.id)).transpose()?.flatten();
        for dir in [graph, run].into_iter().flatten() {
            if let Some(data) = dir.open_dir(USER_DATA)? {
                size = size.saturating_add(tree_size(&data)?);
            }
        }
        Ok(size)
    }
}

fn check_free(containers: &Table<Container>, id: &str, names: &[String]) -> Result<()> {
    if containers.by_id(id).is_some() {
        return Err(Error::IdInUse { kind: "container", id: id.to_owned() });
    }
    for name in names {
        if let Some(owner) = containers.by_name(name) {
            return Err(Error::ContainerNameInUse { name: name.clone(), owner: owner.id.clone() });
        }
    }
    Ok(())
}

/// Bytes of the regular files below a directory.
fn tree_size(dir: &Dir) -> Result<u64> {
    let mut size: u64 = 0;
    for name in fsutil::list(dir).map_err(|e| Error::io("read directory", dir.path(), e))? {
        let error = |e| Error::io("look up", dir.path().join(&name), e);
        let stat = match graph_sys::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(graph_sys::io::Errno::NOENT) => continue,
            other => other.map_err(error)?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => size = size.saturating_add(u64::try_from(stat.st_size).unwrap_or(0)),
            FileType::Directory => {
                if let Some(text) = name.to_str()
                    && let Some(below) = dir.open_dir(text)?
                {
                    size = size.saturating_add(tree_size(&below)?);
                }
            }
            _ => {}
        }
    }
    Ok(size)
}

fn owner(id: &str) -> Owner<'_> {
    Owner { kind: "container", id }
}

fn note_big_data(container: &mut Container, key: &str, data: &[u8]) {
    if !container.big_data_names.iter().any(|name| name == key) {
        container.big_data_names.push(key.to_owned());
    }
    container.big_data_sizes.insert(key.to_owned(), i64::try_from(data.len()).unwrap_or(i64::MAX));
    container.big_data_digests.insert(key.to_owned(), bigdata::digest(data));
}
