//! Images: finding and making them, their big data and size.

use std::sync::Arc;

use graph_core::fsutil::Durability;

use crate::bigdata::{self, Owner};
use crate::error::{Error, Result, fault};
use crate::group::Writing;
use crate::options::CreateImage;
use crate::records::{Image, Time};
use crate::store::{Home, Part, STABLE, Store, Stored, new_id};
use crate::table::{Table, unique};

/// Images.
impl Store {
    /// All images, additional stores last.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn images(&self) -> Result<Vec<Stored<Image>>> {
        self.select_images(|_| true)
    }

    /// One image.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`].
    pub fn image(&self, image: &str) -> Result<Stored<Image>> {
        let found =
            self.image_tables()?.iter().find_map(|(home, table)| table.find(image).map(|i| Stored::new(i, *home)));
        found.ok_or_else(|| Error::ImageNotKnown { reference: image.to_owned() })
    }

    /// The images found by a digest (see [`Image::digests`]); none is an empty list.
    ///
    /// # Errors
    /// [`Error::InvalidDigest`].
    pub fn images_by_digest(&self, digest: &str) -> Result<Vec<Stored<Image>>> {
        bigdata::check_digest(digest)?;
        self.select_images(|image| image.digests().contains(&digest))
    }

    /// The images with this (mapped) top layer; none is an empty list.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`].
    pub fn images_by_top_layer(&self, layer: &str) -> Result<Vec<Stored<Image>>> {
        let layer = self.layer(layer)?;
        self.select_images(|image| image.top_layers().any(|top| top == layer.id))
    }

    fn select_images(&self, wanted: impl Fn(&Image) -> bool) -> Result<Vec<Stored<Image>>> {
        let tables = self.image_tables()?;
        let mut found: Vec<Stored<Image>> = Vec::new();
        for (n, (home, table)) in tables.iter().enumerate() {
            for image in table.iter().filter(|image| wanted(image)) {
                if !tables.iter().take(n).any(|(_, earlier)| earlier.by_id(&image.id).is_some()) {
                    found.push(Stored::new(image, *home));
                }
            }
        }
        Ok(found)
    }

    /// The tables of all stores, own first.
    pub(crate) fn image_tables(&self) -> Result<Vec<(Home, Arc<Table<Image>>)>> {
        let mut tables = vec![(Home::Own, self.images.records.read()?)];
        for (n, additional) in self.additional.iter().enumerate() {
            if let Some(images) = &additional.images {
                tables.push((Home::Additional(n), images.records.read()?));
            }
        }
        Ok(tables)
    }

    /// Makes an image.
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
        if let Some(digest) = options.digest.as_deref().filter(|digest| !digest.is_empty()) {
            bigdata::check_digest(digest)?;
        }
        for (key, _) in &options.big_data {
            bigdata::file_name(key)?;
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
        if images.table().by_id(id.as_str()).is_some() {
            return Err(Error::IdInUse { kind: "image", id: id.to_string() });
        }
        for name in options.names.iter().filter(|_| !options.take_names) {
            if let Some(owner) = images.table().by_name(name) {
                return Err(Error::ImageNameInUse { name: name.clone(), owner: owner.id.clone() });
            }
        }
        let mut image = Image {
            id: id.to_string(),
            digest: options.digest.clone().unwrap_or_default(),
            names: unique(&options.names),
            names_history: unique(&options.names_history),
            layer,
            metadata: options.metadata.clone(),
            created: options.created.clone().unwrap_or_else(Time::now),
            flags: options.flags.clone(),
            ..Image::default()
        };
        let write = || -> Result<()> {
            self.images.dir.remove(id.as_str())?; // of a dead image of that id
            for (key, data) in &options.big_data {
                bigdata::write(&self.images.dir, owner(id.as_str()), key, data, Durability::Data)?;
                note_big_data(&mut image, key, data);
                fault("image.data-written")?;
            }
            let names = std::mem::take(&mut image.names);
            images.change().insert(image, STABLE);
            images.change().set_names(id.as_str(), &names);
            images.save(&[STABLE])
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

    /// Sets a big data item of an image, its size and digest.
    ///
    /// # Errors
    /// [`Error::ImageNotKnown`], [`Error::InvalidBigDataName`], [`Error::ReadOnlyStore`].
    pub fn set_image_big_data(&self, image: &str, key: &str, data: &[u8]) -> Result<()> {
        bigdata::file_name(key)?;
        let image = self.image(image)?;
        self.writable(&image, || format!("image {}", image.id))?;
        let mut images = self.images.records.write()?;
        if images.table().by_id(&image.id).is_none() {
            return Err(Error::ImageNotKnown { reference: image.id.clone() });
        }
        bigdata::write(&self.images.dir, owner(&image.id), key, data, Durability::Data)?;
        if let Some((record, _)) = images.change().change(&image.id) {
            note_big_data(record, key, data);
        }
        images.save(&[STABLE])
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

    fn image_part(&self, image: &Stored<Image>) -> Result<&Part<Image>> {
        let part = match image.home() {
            Home::Own => Some(&self.images),
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
