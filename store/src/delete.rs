//! Deleting, with the rules that keep what is in use.
//!
//! A layer goes in these steps: under the lock its record is marked incomplete, its files are renamed into temporary
//! directories and its record is removed; the files themselves are removed after the lock is given back. A process killed
//! on the way leaves either a marked record or a temporary directory without an owner, and the next open finishes the job.
//!
//! An image or a container goes with its layers: their mark is what decides. Before it, everything is as it was; after it,
//! the next open finishes what a killed process, or one that met an error, has left.

use std::sync::Arc;

use graph_core::driver::DeferredRemoval;
use graph_core::tempdir::{TempDir, TempDirRoot};
use graph_core::{ErrorKind as DriverErrorKind, LayerId};

use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::index::Key;
use crate::layers::tar_split_name;
use crate::names::{Found, Kind};
use crate::records::{Image, Layer};
use crate::recovery::TEMPORARY;
use crate::store::{STABLE, Store};
use crate::table::{FileIndex, Table, unique};

/// Files to remove once no lock is held any more.
#[must_use = "the files are removed by finish()"]
#[derive(Debug, Default)]
struct Doomed {
    removals: Vec<DeferredRemoval>,
    files: Option<TempDir>,
}

impl Doomed {
    /// Removes them. What cannot be removed is logged: the objects are gone, and the next open tries again.
    fn finish(self) {
        let results = self.removals.into_iter().map(DeferredRemoval::finish);
        for error in results.chain(self.files.map(TempDir::finish)).filter_map(std::result::Result::err) {
            tracing::warn!(error = &error as &dyn std::error::Error, "removing the files of what was deleted");
        }
    }
}

/// Layers whose records are marked: they are as good as gone.
#[derive(Debug)]
struct Marked {
    ids: Vec<String>,
    /// The files that their records are in.
    files: Vec<FileIndex>,
}

/// Deleting.
impl Store {
    /// Deletes a layer that nothing uses; a mounted one is unmounted first. The files go outside the lock.
    ///
    /// A mapped copy of an image's top layer is taken off the image's list.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::LayerHasChildren`], [`Error::LayerUsedByImage`],
    /// [`Error::LayerUsedByContainer`], [`Error::ReadOnlyStore`].
    pub fn delete_layer(&self, layer: &str) -> Result<()> {
        let layers = self.layers.records.write()?;
        let id = self.own_layer(&layers, layer)?;
        self.delete_unused(layers, vec![id])
    }

    /// Deletes several layers that nothing but they themselves uses.
    pub(crate) fn delete_layers_together(&self, ids: &[String]) -> Result<()> {
        self.delete_unused(self.layers.records.write()?, ids.to_vec())
    }

    pub(crate) fn delete_unused(&self, mut layers: Writing<'_, Layer>, ids: Vec<String>) -> Result<()> {
        for id in &ids {
            let is_child = |other: &&Arc<Layer>| !ids.contains(&other.id);
            if let Some(child) = layers.table().with(Key::Uses, id).into_iter().find(is_child) {
                return Err(Error::LayerHasChildren { id: id.clone(), child: child.id.clone() });
            }
            for (_, images) in self.image_tables()? {
                if let Some(image) = images.with(Key::Uses, id).into_iter().find(|image| image.layer == *id) {
                    return Err(Error::LayerUsedByImage { id: id.clone(), image: image.id.clone() });
                }
            }
            if let Some(container) = self.containers.records.read()?.any_with(Key::Alias, id) {
                return Err(Error::LayerUsedByContainer { id: id.clone(), container: container.id.clone() });
            }
        }
        let marked = self.mark_layers(&mut layers, ids)?;
        self.forget_mapped(&marked.ids)?;
        let doomed = self.remove_marked(&mut layers, &marked)?;
        drop(layers);
        doomed.finish();
        Ok(())
    }

    pub(crate) fn own_layer(&self, layers: &Writing<'_, Layer>, reference: &str) -> Result<String> {
        if let Some(layer) = layers.table().find(reference) {
            return Ok(layer.id.clone());
        }
        for store in &self.additional {
            if let Some(part) = &store.layers
                && let Some(layer) = part.records.read()?.find(reference)
            {
                return Err(Error::ReadOnlyStore { what: format!("layer {}", layer.id), store: store.root.clone() });
            }
        }
        Err(Error::LayerNotKnown { reference: reference.to_owned() })
    }

    /// Takes layers off the lists of mapped copies.
    pub(crate) fn forget_mapped(&self, ids: &[String]) -> Result<()> {
        let using = |images: &Table<Image>| -> Vec<String> {
            let all = ids.iter().flat_map(|id| images.with(Key::Uses, id));
            let mapped = all.filter(|image| image.mapped_layers.iter().any(|mapped| ids.contains(mapped)));
            unique(&mapped.map(|image| image.id.clone()).collect::<Vec<_>>())
        };
        for (_, part) in self.own_images() {
            if using(&*part.records.read()?).is_empty() {
                continue;
            }
            let mut images = part.records.write()?;
            let using = using(images.table());
            for image in using {
                if let Some((record, _)) = images.change().change(&image) {
                    record.mapped_layers.retain(|mapped| !ids.contains(mapped));
                }
            }
            images.save(&[STABLE])?;
        }
        Ok(())
    }

    /// Marks the records of layers (children before parents) that are going to be removed. From here on they go, if not
    /// now, then at the next open.
    fn mark_layers(&self, layers: &mut Writing<'_, Layer>, ids: Vec<String>) -> Result<Marked> {
        for id in &ids {
            self.forget_mounts(id)?;
        }
        let mut files: Vec<FileIndex> = Vec::new();
        for id in &ids {
            if let Some((record, file)) = layers.change().change(id) {
                record.flags.set(Layer::INCOMPLETE, &true);
                files.push(file);
            }
        }
        if !ids.is_empty() {
            layers.save_begun(&files)?;
        }
        fault("delete.marked")?;
        Ok(Marked { ids, files })
    }

    /// Removes layers that were marked, with one write of the records however many there are.
    fn remove_marked(&self, layers: &mut Writing<'_, Layer>, marked: &Marked) -> Result<Doomed> {
        let mut doomed = Doomed::default();
        let Marked { ids, files } = marked;
        if ids.is_empty() {
            return Ok(doomed);
        }
        let mut temporary = TempDirRoot::create(self.layers.dir.path().join(TEMPORARY))?.make()?;
        let mut gone: Vec<&str> = Vec::new();
        let mut failure = None;
        for id in ids {
            match self.remove_layer_files(id, &mut doomed.removals, &mut temporary) {
                Ok(()) => gone.push(id),
                Err(error) => {
                    // The rest stays marked: the next open goes on with it.
                    failure = Some(error);
                    break;
                }
            }
        }
        doomed.files = Some(temporary);
        fault("delete.renamed")?;
        layers.change().remove(&gone);
        layers.save(files)?;
        fault("delete.forgotten")?;
        failure.map_or(Ok(doomed), Err)
    }

    fn remove_layer_files(&self, id: &str, removals: &mut Vec<DeferredRemoval>, temporary: &mut TempDir) -> Result<()> {
        let layer = LayerId::new(id)?;
        match self.driver.deferred_remove(&layer) {
            Ok(removal) => removals.push(removal),
            Err(error) if error.kind() == DriverErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        temporary.stage_deletion(&*self.layers.dir, tar_split_name(id))?;
        temporary.stage_deletion(&*self.layers.dir, id)?;
        Ok(())
    }

    /// Deletes an image's record and the layers that nothing else uses; returns those, top first. With `commit` not
    /// set nothing is deleted.
    ///
    /// A process killed on the way leaves the image whole, or what the next open removes.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::ImageUsedByContainer`], [`Error::ReadOnlyStore`].
    pub fn delete_image(&self, image: &str, commit: bool) -> Result<Vec<String>> {
        let mut layers = self.layers.records.write()?;
        let mut parts: Vec<(&Dir, Writing<'_, Image>)> = Vec::new();
        for (_, part) in self.own_images() {
            parts.push((&*part.dir, part.records.write()?));
        }
        let Some(found) = parts.iter().find_map(|(_, images)| images.table().find(image).cloned()) else {
            for store in &self.additional {
                if let Some(part) = &store.images
                    && let Some(image) = part.records.read()?.find(image)
                {
                    return Err(Error::ReadOnlyStore {
                        what: format!("image {}", image.id),
                        store: store.root.clone(),
                    });
                }
            }
            return Err(Error::ImageNotKnown { reference: image.to_owned() });
        };
        let containers = self.containers.records.read()?;
        if let Some(container) = containers.any_with(Key::Uses, &found.id) {
            return Err(Error::ImageUsedByContainer { id: found.id.clone(), container: container.id.clone() });
        }
        let in_use = |layer: &str| {
            containers.any_with(Key::Alias, layer).is_some()
                || parts
                    .iter()
                    .flat_map(|(_, images)| images.table().with(Key::Uses, layer))
                    .any(|other| other.id != found.id)
        };
        let doomed_layers = removable(layers.table(), &found, in_use);
        if !commit {
            return Ok(doomed_layers);
        }
        let mut temporary = TempDirRoot::create(self.layers.dir.path().join(TEMPORARY))?.make()?;
        let marked = self.mark_layers(&mut layers, doomed_layers)?;
        // A copy in the image store hides the one in the graph root: both go, or that would show again.
        for (dir, images) in &mut parts {
            if images.table().by_id(&found.id).is_none() {
                continue;
            }
            images.change().remove(&[&found.id]);
            images.save(&[STABLE])?;
            fault("delete.image-forgotten")?;
            if LayerId::new(found.id.clone()).is_err() {
                continue;
            }
            if self.options.image_store.is_none() {
                temporary.stage_deletion(*dir, &found.id)?;
            } else {
                // Perhaps on another file system than the temporary directory.
                dir.remove(&found.id)?;
            }
            images.settled()?;
        }
        self.remove_image_run_data(&found.id)?;
        fault("delete.image-renamed")?;
        drop(parts);
        let doomed = self.remove_marked(&mut layers, &marked)?;
        drop(layers);
        doomed.finish();
        Doomed { removals: Vec::new(), files: Some(temporary) }.finish();
        Ok(marked.ids)
    }

    /// Deletes a container, its layer, big data and directories; a mounted one is unmounted first.
    ///
    /// A process killed on the way leaves the container whole, or what the next open removes.
    ///
    /// # Errors
    /// [`Error::ContainerNotKnown`].
    pub fn delete_container(&self, container: &str) -> Result<()> {
        let mut layers = self.layers.records.write()?;
        let mut containers = self.containers.records.write()?;
        let unknown = || Error::ContainerNotKnown { reference: container.to_owned() };
        let found = containers.table().find(container).cloned().ok_or_else(unknown)?;
        self.refuse_running(&found.id)?;
        let own: Vec<String> = layers.table().by_id(&found.layer).map(|layer| layer.id.clone()).into_iter().collect();
        let marked = self.mark_layers(&mut layers, own)?;
        self.remove_container_data(&found.id)?;
        fault("delete.container-data-removed")?;
        let files = containers.change().remove(&[&found.id]);
        containers.save(&files)?;
        fault("delete.container-forgotten")?;
        drop(containers);
        let doomed = self.remove_marked(&mut layers, &marked)?;
        drop(layers);
        doomed.finish();
        Ok(())
    }

    /// Deletes a container (with its layer), else an image (its record only), else a layer, without asking whether
    /// anything uses it.
    ///
    /// # Errors
    /// [`Error::NotKnown`], [`Error::ReadOnlyStore`].
    pub fn delete(&self, object: &str) -> Result<()> {
        match self.find_first(object, [Kind::Container, Kind::Image, Kind::Layer])? {
            Found::Layer(id) => {
                let mut layers = self.layers.records.write()?;
                let id = self.own_layer(&layers, &id)?;
                let marked = self.mark_layers(&mut layers, vec![id])?;
                let doomed = self.remove_marked(&mut layers, &marked)?;
                drop(layers);
                doomed.finish();
                Ok(())
            }
            Found::Image(id) => {
                let image = self.image(&id)?;
                self.writable(&image, || format!("image {id}"))?;
                let part = self.image_part(&image)?;
                let mut images = part.records.write()?;
                images.change().remove(&[&id]);
                images.save(&[STABLE])?;
                part.dir.remove(&id)?;
                self.remove_image_run_data(&id)
            }
            Found::Container(id) => self.delete_container(&id),
        }
    }
}

/// The layers that go with an image: its mapped tops, then from the top layer down, as far as nothing else is on them.
fn removable(layers: &Table<Layer>, image: &Image, in_use: impl Fn(&str) -> bool) -> Vec<String> {
    let mut going: Vec<String> = Vec::new();
    let free = |going: &[String], id: &str| {
        !in_use(id) && layers.with(Key::Uses, id).into_iter().all(|child| going.contains(&child.id))
    };
    for mapped in &image.mapped_layers {
        if layers.by_id(mapped).is_some() && free(&going, mapped) && !going.contains(mapped) {
            going.push(mapped.clone());
        }
    }
    let mut next = image.layer.clone();
    while let Some(layer) = layers.by_id(&next) {
        if going.contains(&layer.id) || !free(&going, &layer.id) {
            break;
        }
        going.push(layer.id.clone());
        next.clone_from(&layer.parent);
    }
    going
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Slot;

    fn layer(id: &str, parent: &str) -> Slot<Layer> {
        Slot::new(Layer { id: id.to_owned(), parent: parent.to_owned(), ..Layer::default() })
    }

    #[test]
    fn layers_go_with_their_image_as_far_as_nothing_else_uses_them() {
        let layers = vec![
            layer("base", ""),
            layer("mid", "base"),
            layer("top", "mid"),
            layer("mapped", "mid"),
            layer("other", "base"),
        ];
        let table = Table::from_files([(STABLE, layers)]);
        let image = Image {
            id: "i".to_owned(),
            layer: "top".to_owned(),
            mapped_layers: vec!["mapped".to_owned()],
            ..Image::default()
        };
        assert_eq!(removable(&table, &image, |_| false), ["mapped", "top", "mid"]);
        assert_eq!(removable(&table, &image, |id| id == "mapped"), ["top"]);
        assert_eq!(removable(&table, &image, |id| id == "top"), ["mapped"]);
        let tangled = Table::from_files([(STABLE, vec![layer("a", "b"), layer("b", "a")])]);
        let image = Image { layer: "a".to_owned(), ..Image::default() };
        assert!(removable(&tangled, &image, |_| false).is_empty());
    }
}
