//! Names and free text of layers, images and containers alike.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::group::{Group, Writing};
use crate::records::Image;
use crate::store::{Home, Store, Stored, find_in, find_in_by};
use crate::table::{Record, Table, unique};

/// What kind of object a reference is to, and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A layer's id.
    Layer(String),
    /// An image's id.
    Image(String),
    /// A container's id.
    Container(String),
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Layer,
    Image,
    Container,
}

fn look<T: Record>(tables: &[(Home, Arc<Table<T>>)], object: &str, exact: bool) -> Option<Stored<T>> {
    if exact { find_in_by(tables, |table| table.find_exact(object)) } else { find_in(tables, object) }
}

/// Layers, images and containers alike.
impl Store {
    /// What a reference is to: a layer, else an image, else a container. Ids and names come before the beginnings of ids,
    /// whatever they are of.
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn find(&self, object: &str) -> Result<Found> {
        self.find_first(object, [Kind::Layer, Kind::Image, Kind::Container])
    }

    /// The same in another order.
    pub(crate) fn find_first(&self, object: &str, order: [Kind; 3]) -> Result<Found> {
        let layers = self.layer_tables()?.tables;
        let images = self.image_tables()?;
        let containers = [(Home::Own, self.containers.records.read()?)];
        for exact in [true, false] {
            for kind in order {
                let found = match kind {
                    Kind::Layer => look(&layers, object, exact)
                        .filter(|layer| !layer.is_incomplete())
                        .map(|layer| Found::Layer(layer.id.clone())),
                    Kind::Image => look(&images, object, exact).map(|image| Found::Image(image.id.clone())),
                    Kind::Container => {
                        look(&containers, object, exact).map(|container| Found::Container(container.id.clone()))
                    }
                };
                if let Some(found) = found {
                    return Ok(found);
                }
            }
        }
        Err(Error::NotKnown { reference: object.to_owned() })
    }

    /// The names of a layer, image or container (looked for in that order).
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn names(&self, object: &str) -> Result<Vec<String>> {
        Ok(match self.find(object)? {
            Found::Layer(id) => self.layer(&id)?.names.clone(),
            Found::Image(id) => self.image(&id)?.names.clone(),
            Found::Container(id) => self.container(&id)?.names.clone(),
        })
    }

    /// Gives it exactly these names; names that others of its kind have are moved. Returns the names it has now.
    ///
    /// An image of an additional store is copied first (its record and data, not its layers): the copy has the names.
    ///
    /// # Errors
    /// [`Error::NotKnown`]; [`Error::ReadOnlyStore`] for a layer of an additional store; [`Error::InvalidName`].
    pub fn set_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        self.change_names(object, |_| unique(names))
    }

    /// Puts these names in front of those it has; names that others of its kind have are moved. Returns all.
    ///
    /// # Errors
    /// As [`Store::set_names`].
    pub fn add_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        self.change_names(object, |old| {
            let mut all = names.to_vec();
            all.extend_from_slice(old);
            unique(&all)
        })
    }

    /// Takes names away. Returns those left.
    ///
    /// # Errors
    /// As [`Store::set_names`].
    pub fn remove_names(&self, object: &str, names: &[String]) -> Result<Vec<String>> {
        self.change_names(object, |old| old.iter().filter(|name| !names.contains(name)).cloned().collect())
    }

    fn change_names(&self, object: &str, names: impl FnOnce(&[String]) -> Vec<String>) -> Result<Vec<String>> {
        match self.find(object)? {
            Found::Layer(id) => {
                let layer = self.layer(&id)?;
                self.writable(&layer, || format!("layer {id}"))?;
                rename(&mut self.layers.records.write()?, &id, names, |_, _| ())
            }
            Found::Image(id) => {
                let image = self.image(&id)?;
                let home = if image.is_read_only() { Home::Own } else { image.home() };
                let part = if image.is_read_only() { &self.images } else { self.image_part(&image)? };
                let mut writing = part.records.write()?;
                if image.is_read_only() && writing.table().by_id(&id).is_none() {
                    self.pull_up(&mut writing, &image)?;
                }
                let names = rename(&mut writing, &id, names, remember_names)?;
                drop(writing);
                self.take_image_names(home, &id, &names)?;
                Ok(names)
            }
            Found::Container(id) => rename(&mut self.containers.records.write()?, &id, names, |_, _| ()),
        }
    }

    /// The free text of a layer, image or container.
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn metadata(&self, object: &str) -> Result<String> {
        Ok(match self.find(object)? {
            Found::Layer(id) => self.layer(&id)?.metadata.clone(),
            Found::Image(id) => self.image(&id)?.metadata.clone(),
            Found::Container(id) => self.container(&id)?.metadata.clone(),
        })
    }

    /// Replaces the free text.
    ///
    /// # Errors
    /// [`Error::NotKnown`], [`Error::ReadOnlyStore`].
    pub fn set_metadata(&self, object: &str, metadata: &str) -> Result<()> {
        match self.find(object)? {
            Found::Layer(id) => {
                self.writable(&self.layer(&id)?, || format!("layer {id}"))?;
                change(&self.layers.records, &id, |layer| metadata.clone_into(&mut layer.metadata))
            }
            Found::Image(id) => {
                let image = self.image(&id)?;
                self.writable(&image, || format!("image {id}"))?;
                change(&self.image_part(&image)?.records, &id, |image| metadata.clone_into(&mut image.metadata))
            }
            Found::Container(id) => {
                change(&self.containers.records, &id, |container| metadata.clone_into(&mut container.metadata))
            }
        }
    }
}

/// Refuses new names with control characters. Empty ones are left out wherever names are set.
pub(crate) fn check_names(names: &[String]) -> Result<()> {
    match names.iter().find(|name| name.chars().any(char::is_control)) {
        Some(name) => Err(Error::InvalidName { name: name.clone() }),
        None => Ok(()),
    }
}

fn rename<T: Record>(
    writing: &mut Writing<'_, T>,
    id: &str,
    names: impl FnOnce(&[String]) -> Vec<String>,
    note: impl FnOnce(&mut T, &[String]),
) -> Result<Vec<String>> {
    let unknown = || Error::NotKnown { reference: id.to_owned() };
    let old = writing.table().by_id(id).ok_or_else(unknown)?.names();
    let names = names(old);
    let new: Vec<String> = names.iter().filter(|name| !old.contains(name)).cloned().collect();
    check_names(&new)?;
    let table = writing.change();
    let mut files = table.set_names(id, &names);
    if let Some((record, file)) = table.change(id) {
        note(record, &names);
        files.push(file);
    }
    writing.save(&files)?;
    Ok(names)
}

fn change<T: Record>(records: &Group<T>, id: &str, change: impl FnOnce(&mut T)) -> Result<()> {
    let mut writing = records.write()?;
    let (record, file) = writing.change().change(id).ok_or_else(|| Error::NotKnown { reference: id.to_owned() })?;
    change(record);
    writing.save(&[file])
}

/// Puts names that an image gets in front of its history.
fn remember_names(image: &mut Image, names: &[String]) {
    for name in names {
        image.names_history.retain(|old| old != name);
        image.names_history.insert(0, name.clone());
    }
}
