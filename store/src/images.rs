//! Images: finding and making them, their big data and size.

use std::path::PathBuf;
use std::sync::Arc;

use graph_core::LayerId;

use crate::bigdata::{self, Owner};
use crate::dirs::{Dir, USER_DATA};
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::index::Key;
use crate::names::check_names;
use crate::options::CreateImage;
use crate::records::{Flags, Image, Time};
use crate::store::{Home, Part, STABLE, Store, Stored, find_in, new_id};
use crate::table::{Table, unique};

/// Images.
impl Store {
    /// All images, additional stores last.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn images(&self) -> Result<Vec<Stored<Image>>> {
        self.select_images(|table| table.iter().collect())
    }

    /// One image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`].
    pub fn image(&self, image: &str) -> Result<Stored<Image>> {
        find_in(&self.image_tables()?, image).ok_or_else(|| Error::ImageNotKnown { reference: image.to_owned() })
    }

    /// The images found by a digest (see [`Image::digests`]); none is an empty list.
    ///
    /// # Errors
    /// [`Error::InvalidDigest`].
    pub fn images_by_digest(&self, digest: &str) -> Result<Vec<Stored<Image>>> {
        bigdata::check_digest(digest)?;
        self.select_images(|table| table.with(Key::Digest, digest))
    }

    /// The images with this (mapped) top layer; none is an empty list.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn images_by_top_layer(&self, layer: &str) -> Result<Vec<Stored<Image>>> {
        let layer = self.layer(layer)?;
        self.select_images(|table| table.with(Key::Uses, &layer.id))
    }

    fn select_images(
        &self,
        wanted: impl for<'t> Fn(&'t Table<Image>) -> Vec<&'t Arc<Image>>,
    ) -> Result<Vec<Stored<Image>>> {
        let tables = self.image_tables()?;
        let mut found: Vec<Stored<Image>> = Vec::new();
        for (n, (home, table)) in tables.iter().enumerate() {
            for image in wanted(table) {
                if !tables.iter().take(n).any(|(_, earlier)| earlier.by_id(&image.id).is_some()) {
                    found.push(Stored::new(image, *home));
                }
            }
        }
        Ok(found)
    }

    /// The tables of all stores, own first.
    pub(crate) fn image_tables(&self) -> Result<Vec<(Home, Arc<Table<Image>>)>> {
        let mut tables = Vec::new();
        for (home, part) in self.own_images() {
            tables.push((home, part.records.read()?));
        }
        for (n, additional) in self.additional.iter().enumerate() {
            if let Some(images) = &additional.images {
                tables.push((Home::Additional(n), images.records.read()?));
            }
        }
        Ok(tables)
    }

    /// The images that can be changed, in the order in which they are looked up and locked.
    pub(crate) fn own_images(&self) -> impl Iterator<Item = (Home, &Part<Image>)> {
        let root = self.root_images.as_ref().map(|part| (Home::GraphRoot, part));
        std::iter::once((Home::Own, &self.images)).chain(root)
    }

    /// Makes an image.
    ///
    /// One with the id of an image in an additional store is a copy of that, with what is asked for on top: names are
    /// added, data is added or replaced, digest and metadata are replaced where they are given.
    ///
    /// Its big data is on disk before its record is, so there is no image without its manifest. What a process killed in
    /// the middle leaves is a directory that no image has; the next open removes it if its name is of the usual kind (64
    /// hex digits), and whoever makes an image of that id replaces it.
    ///
    /// # Errors
    /// [`Error::IdInUse`], [`Error::ImageNameInUse`], [`Error::LayerNotKnown`], [`Error::InvalidDigest`],
    /// [`Error::InvalidBigDataName`].
    pub fn create_image(&self, options: &CreateImage) -> Result<Stored<Image>> {
        let id = new_id(options.id.as_deref())?;
        check_names(&options.names)?;
        if let Some(digest) = options.digest.as_deref().filter(|digest| !digest.is_empty()) {
            bigdata::check_digest(digest)?;
        }
        for (key, _) in &options.big_data {
            bigdata::check_key(key)?;
        }
        // The layer must not go before the record that uses it is there.
        let (_guard, own) = self.layers.records.read_locked()?;
        let layer = match options.layer.as_deref() {
            None | Some("") => String::new(),
            Some(reference) => {
                let unknown = || Error::LayerNotKnown { reference: reference.to_owned() };
                self.layer_tables_with(own)?.find(reference).ok_or_else(unknown)?.id.clone()
            }
        };
        let mut images = self.images.records.write()?;
        let below = match &self.root_images {
            Some(part) => Some(part.records.read()?),
            None => None,
        };
        let mut own = std::iter::once(images.table()).chain(below.as_deref());
        if own.clone().any(|table| table.by_id(id.as_str()).is_some()) {
            return Err(Error::IdInUse { kind: "image", id: id.to_string() });
        }
        for name in options.names.iter().filter(|_| !options.take_names) {
            if let Some(owner) = own.find_map(|table| table.by_name(name)) {
                return Err(Error::ImageNameInUse { name: name.clone(), owner: owner.id.clone() });
            }
        }
        let copied = self.find_read_only(id.as_str())?;
        let (mut image, mut items) = match &copied {
            Some(found) => (Image::clone(found.record()), self.image_items(found)?),
            None => (Image { created: Time::now(), ..Image::default() }, Vec::new()),
        };
        id.as_str().clone_into(&mut image.id);
        image.layer = layer;
        // Names that own images have stay theirs.
        image.names.retain(|name| images.table().by_name(name).is_none());
        image.names = unique(&[&*image.names, &*options.names].concat());
        image.names_history = unique(&[&*options.names_history, &*image.names_history].concat());
        if let Some(digest) = options.digest.as_ref().filter(|digest| !digest.is_empty()) {
            image.digest.clone_from(digest);
        }
        if !options.metadata.is_empty() {
            image.metadata.clone_from(&options.metadata);
        }
        if let Some(created) = &options.created {
            image.created.clone_from(created);
        }
        if options.flags != Flags::default() {
            image.flags.clone_from(&options.flags);
        }
        items.retain(|(key, _)| !options.big_data.iter().any(|(asked, _)| asked == key));
        items.extend(options.big_data.iter().cloned());
        let write = || -> Result<()> {
            if copied.is_none() {
                self.images.dir.remove(id.as_str())?; // of a dead image of that id
            }
            for (key, data) in &items {
                bigdata::write(&self.images.dir, owner(id.as_str()), key, data, self.durability(STABLE))?;
                note_big_data(&mut image, key, data);
                fault("image.data-written")?;
            }
            let names = std::mem::take(&mut image.names);
            images.change().insert(image, STABLE);
            images.change().set_names(id.as_str(), &names);
            images.save(&[STABLE])?;
            self.take_image_names(Home::Own, id.as_str(), &options.names)
        };
        if let Err(error) = write() {
            if let Err(error) = self.abandon_image(&mut images, id.as_str()) {
                tracing::warn!(error = &error as &dyn std::error::Error, image = %id, "removing an image that could not be made");
            }
            return Err(error);
        }
        let unknown = || Error::ImageNotKnown { reference: id.to_string() };
        images.table().by_id(id.as_str()).map(|image| Stored::new(image, Home::Own)).ok_or_else(unknown)
    }

    /// The image of that id in an additional store.
    pub(crate) fn find_read_only(&self, id: &str) -> Result<Option<Stored<Image>>> {
        for (n, store) in self.additional.iter().enumerate() {
            if let Some(part) = &store.images
                && let Some(image) = part.records.read()?.by_id(id)
            {
                return Ok(Some(Stored::new(image, Home::Additional(n))));
            }
        }
        Ok(None)
    }

    /// All big data of an image.
    fn image_items(&self, image: &Stored<Image>) -> Result<Vec<(String, Vec<u8>)>> {
        let dir = &self.image_part(image)?.dir;
        let item = |key: &String| Ok((key.clone(), bigdata::read(dir, owner(&image.id), key, true)?));
        image.big_data_names.iter().map(item).collect()
    }

    /// Copies an image's record and data out of an additional store, to be changed. Its layers stay there. It must be
    /// saved with what is changed.
    pub(crate) fn pull_up(&self, images: &mut Writing<'_, Image>, image: &Stored<Image>) -> Result<()> {
        LayerId::new(image.id.clone())?;
        for (key, data) in self.image_items(image)? {
            bigdata::write(&self.images.dir, owner(&image.id), &key, &data, self.durability(STABLE))?;
        }
        let mut record = Image::clone(image.record());
        // Names that own images have stay theirs.
        record.names.retain(|name| images.table().by_name(name).is_none());
        images.change().insert(record, STABLE);
        Ok(())
    }

    /// Takes names that an image got from the images of the other directory, where the store has two.
    pub(crate) fn take_image_names(&self, home: Home, id: &str, names: &[String]) -> Result<()> {
        for (other, part) in self.own_images().filter(|(other, _)| *other != home) {
            let has = |image: &Image| image.id != id && image.names.iter().any(|name| names.contains(name));
            if part.records.read()?.iter().any(|image| has(image)) {
                tracing::debug!(?other, id, "moving names between the image store and the graph root");
                let mut images = part.records.write()?;
                let ids: Vec<String> =
                    images.table().iter().filter(|image| has(image)).map(|image| image.id.clone()).collect();
                for id in ids {
                    let left = images.table().by_id(&id).map(|image| image.names.clone()).unwrap_or_default();
                    let left: Vec<String> = left.into_iter().filter(|name| !names.contains(name)).collect();
                    images.change().set_names(&id, &left);
                }
                images.save(&[STABLE])?;
            }
        }
        Ok(())
    }

    /// Removes an image that could not be made. Its data first: where the disk is full, the records can be written after
    /// that.
    fn abandon_image(&self, images: &mut Writing<'_, Image>, id: &str) -> Result<()> {
        self.images.dir.remove(id)?;
        if images.table().by_id(id).is_some() {
            images.change().remove(&[id]);
            images.save(&[STABLE])?;
        }
        Ok(())
    }

    /// A big data item of an image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::BigDataNotFound`].
    pub fn image_big_data(&self, image: &str, key: &str) -> Result<Vec<u8>> {
        let image = self.image(image)?;
        let known = image.big_data_names.iter().any(|name| name == key);
        let part = self.image_part(&image)?;
        bigdata::read(&part.dir, owner(&image.id), key, known)
    }

    /// Bytes of a big data item of an image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::SizeUnknown`].
    pub fn image_big_data_size(&self, image: &str, key: &str) -> Result<u64> {
        let image = self.image(image)?;
        let known = image.big_data_names.iter().any(|name| name == key);
        bigdata::size(image.big_data_sizes.get(key), &self.image_part(&image)?.dir, owner(&image.id), key, known)
    }

    /// Digest of a big data item of an image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::DigestUnknown`].
    pub fn image_big_data_digest(&self, image: &str, key: &str) -> Result<String> {
        let image = self.image(image)?;
        let known = image.big_data_names.iter().any(|name| name == key);
        bigdata::recorded_digest(
            image.big_data_digests.get(key),
            &self.image_part(&image)?.dir,
            owner(&image.id),
            key,
            known,
        )
    }

    /// Sets a big data item of an image, its size and digest.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::InvalidBigDataName`], [`Error::ReadOnlyStore`].
    pub fn set_image_big_data(&self, image: &str, key: &str, data: &[u8]) -> Result<()> {
        bigdata::check_key(key)?;
        let image = self.image(image)?;
        self.writable(&image, || format!("image {}", image.id))?;
        let part = self.image_part(&image)?;
        let mut images = part.records.write()?;
        if images.table().by_id(&image.id).is_none() {
            return Err(Error::ImageNotKnown { reference: image.id.clone() });
        }
        bigdata::write(&part.dir, owner(&image.id), key, data, self.durability(STABLE))?;
        if let Some((record, _)) = images.change().change(&image.id) {
            note_big_data(record, key, data);
        }
        images.save(&[STABLE])
    }

    /// A directory for an engine's own data about the image, where the image's big data is; made (0700) when missing.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`].
    pub fn image_directory(&self, image: &str) -> Result<PathBuf> {
        let image = self.image(image)?;
        // Nothing is made in a read-only store.
        let part = if image.is_read_only() { &self.images } else { self.image_part(&image)? };
        Ok(part.dir.make_dir(&image.id)?.make_dir(USER_DATA)?.path().to_owned())
    }

    /// The same below the run root.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`].
    pub fn image_run_directory(&self, image: &str) -> Result<PathBuf> {
        let image = self.image(image)?;
        let run = Dir::make(&self.run_images)?;
        Ok(run.make_dir(&image.id)?.make_dir(USER_DATA)?.path().to_owned())
    }

    /// Removes the image's directory below the run root.
    pub(crate) fn remove_image_run_data(&self, id: &str) -> Result<()> {
        match Dir::open(&self.run_images)? {
            Some(run) if LayerId::new(id).is_ok() => run.remove(id),
            _ => Ok(()),
        }
    }

    /// Uncompressed bytes of all its layers, each once, and of its big data.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`]; the driver's, where a layer's size has to be measured.
    pub fn image_size(&self, image: &str) -> Result<u64> {
        let image = self.image(image)?;
        let tables = self.layer_tables()?;
        let mut counted: Vec<String> = Vec::new();
        let mut size: u64 = image.big_data_sizes.values().filter_map(|size| u64::try_from(*size).ok()).sum();
        for top in image.top_layers() {
            for layer in tables.chain(top) {
                if counted.contains(&layer.id) {
                    break;
                }
                let recorded = u64::try_from(layer.diff_size).ok().filter(|_| !layer.diff_digest.is_empty());
                let bytes = recorded.map_or_else(|| self.diff_size(None, &layer.id), Ok)?;
                size = size.saturating_add(bytes);
                counted.push(layer.id.clone());
            }
        }
        Ok(size)
    }

    pub(crate) fn image_part(&self, image: &Stored<Image>) -> Result<&Part<Image>> {
        let part = match image.home() {
            Home::Own => Some(&self.images),
            Home::GraphRoot => self.root_images.as_ref(),
            Home::Additional(n) => self.additional.get(n).and_then(|store| store.images.as_ref()),
        };
        part.ok_or_else(|| Error::ImageNotKnown { reference: image.id.clone() })
    }
}

fn owner(id: &str) -> Owner<'_> {
    Owner { kind: "image", id }
}

/// Puts an item's name, size and digest into the record. An image without a digest gets that of its first manifest.
fn note_big_data(image: &mut Image, key: &str, data: &[u8]) {
    if !image.big_data_names.iter().any(|name| name == key) {
        image.big_data_names.push(key.to_owned());
    }
    image.big_data_sizes.insert(key.to_owned(), i64::try_from(data.len()).unwrap_or(i64::MAX));
    let digest = bigdata::digest(data);
    if image.digest.is_empty() && key.starts_with("manifest") {
        image.digest.clone_from(&digest);
    }
    image.big_data_digests.insert(key.to_owned(), digest);
}
