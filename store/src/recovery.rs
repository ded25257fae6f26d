//! Cleaning up after killed processes, when the store is opened.
//!
//! What can be left: layers marked incomplete (their record was written, their files perhaps), with the container or image
//! that was being made or deleted with them; directories of data that no container or image has (made before the record
//! is, removed after it); and temporary directories whose owner is dead (layers that were being extracted, files of
//! what was being deleted). Whoever makes or deletes does that under the lock, so whatever is seen half done under it is
//! dead. A layer whose content was just being exchanged for a changed one has its old content, or gets the record that
//! belongs to the new one ([`crate::refill`]).
//!
//! Whatever cannot be cleaned is reported and stepped over: one bad record must not block the store.

use graph_core::{LayerId, fsutil, tempdir};

use crate::dirs::Dir;
use crate::error::{Error, Result};
use crate::gc::is_usual;
use crate::group::Group;
use crate::records::{Container, Image};
use crate::store::{Part, STABLE, Store, VOLATILE_CONTAINERS};
use crate::table::{Record, Table};

impl Store {
    /// Cleans up; what could not be cleaned, one sentence each.
    pub(crate) fn recover(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut roots = self.driver.temp_dir_roots();
        roots.push(self.layers.dir.path().join(TEMPORARY));
        for error in tempdir::recover_stale(&roots).failed {
            warnings.push(format!("removing what a killed process left behind: {}", chain(&error)));
        }
        if self.has_interrupted_refill()? {
            let finished = self.layers.records.write().and_then(|mut layers| self.finish_refill(&mut layers));
            step_over_read_only(finished, &mut warnings)?;
        }
        tidy("layer", &self.layers.records, &mut warnings)?;
        for (_, images) in self.own_images() {
            tidy("image", &images.records, &mut warnings)?;
        }
        tidy("container", &self.containers.records, &mut warnings)?;
        if self.layers.records.read()?.has_unfinished() {
            let removed = self.remove_incomplete_layers(&mut warnings);
            step_over_read_only(removed, &mut warnings)?;
        }
        for (_, images) in self.own_images() {
            // Engines keep data of their own about images of read-only stores here.
            let elsewhere = |id: &str| self.find_read_only(id).is_ok_and(|image| image.is_some());
            let removed = remove_orphans(images, elsewhere, &mut warnings);
            step_over_read_only(removed, &mut warnings)?;
        }
        // Those of transient containers have their records below the run root. Seen from outside they look like orphans.
        if self.options.transient || !self.has_transient_containers()? {
            let removed = remove_orphans(&self.containers, |_| false, &mut warnings);
            step_over_read_only(removed, &mut warnings)?;
        }
        Ok(warnings)
    }

    pub(crate) fn has_transient_containers(&self) -> Result<bool> {
        match Dir::open(&self.run_containers)? {
            Some(dir) => Ok(dir.open_file(VOLATILE_CONTAINERS)?.is_some()),
            None => Ok(false),
        }
    }

    pub(crate) fn remove_incomplete_layers(&self, warnings: &mut Vec<String>) -> Result<()> {
        let mut layers = self.layers.records.write()?;
        // Children before their parents.
        let incomplete: Vec<String> =
            layers.table().iter().rev().filter(|layer| layer.is_incomplete()).map(|layer| layer.id.clone()).collect();
        if incomplete.is_empty() {
            return Ok(());
        }
        // First what is on them: as long as a layer is marked, nothing of this is forgotten.
        let forgotten = self.forget_images_of(&incomplete).and_then(|()| self.forget_containers_of(&incomplete));
        if let Err(error) = forgotten {
            warnings.push(format!(
                "an image or container whose layer is incomplete could not be removed; it will be tried again: {}",
                chain(&error)
            ));
            return Ok(());
        }
        for id in incomplete {
            let removed = LayerId::new(id.clone()).map_err(Into::into).and_then(|id| {
                self.forget_mounts(id.as_str())?;
                self.remove_incomplete(&mut layers, &id)
            });
            if let Err(error) = removed {
                warnings.push(format!(
                    "incomplete layer {id} could not be removed and is ignored; it will be tried again, and `check --repair` \
                     removes a record that cannot be right: {}",
                    chain(&error)
                ));
            } else {
                tracing::info!(layer = %id, "removed a layer that a killed process had left incomplete");
            }
        }
        Ok(())
    }

    /// Removes the images whose top layer is one of these, which were being deleted. Their data follows as orphans'.
    fn forget_images_of(&self, incomplete: &[String]) -> Result<()> {
        let on_it = |image: &Image| incomplete.contains(&image.layer);
        for (_, part) in self.own_images() {
            if !part.records.read()?.iter().any(|image| on_it(image)) {
                continue;
            }
            let mut images = part.records.write()?;
            let gone: Vec<String> =
                images.table().iter().filter(|image| on_it(image)).map(|image| image.id.clone()).collect();
            images.change().remove(&gone);
            images.save(&[STABLE])?;
            for id in gone {
                tracing::info!(image = %id, "removed an image that a killed process had begun to delete");
                part.dir.remove(&id)?;
            }
        }
        self.forget_mapped(incomplete)
    }

    /// Removes the containers on these layers, which were being made or deleted.
    fn forget_containers_of(&self, incomplete: &[String]) -> Result<()> {
        let on_it = |container: &Container| incomplete.contains(&container.layer);
        if !self.containers.records.read()?.iter().any(|container| on_it(container)) {
            return Ok(());
        }
        let mut containers = self.containers.records.write()?;
        let gone: Vec<String> =
            containers.table().iter().filter(|container| on_it(container)).map(|c| c.id.clone()).collect();
        for id in &gone {
            tracing::info!(container = %id, "removing a container that a killed process had begun to make or delete");
            self.remove_container_data(id)?;
        }
        let files = containers.change().remove(&gone);
        containers.save(&files)
    }
}

/// On a read-only file system nothing is cleaned up, and everything can be read.
fn step_over_read_only(result: Result<()>, warnings: &mut Vec<String>) -> Result<()> {
    if result.as_ref().is_err_and(Error::is_read_only_file_system) {
        warnings.push(
            "killed processes left something behind that cannot be removed from a read-only file system".to_owned(),
        );
        return Ok(());
    }
    result
}

/// Writes down whose a name is that two records have, as somebody who edits them by hand can make it, and tells what else
/// is stepped over.
fn tidy<T: Record>(kind: &str, records: &Group<T>, warnings: &mut Vec<String>) -> Result<()> {
    let table = records.read()?;
    for id in table.hidden() {
        warnings.push(if id.is_empty() {
            format!("a {kind} without an ID is ignored; its record stays as it is")
        } else {
            format!("a second {kind} of the ID {id:?} is ignored; its record stays as it is until the first is deleted")
        });
    }
    if table.doubled_names().is_empty() {
        return Ok(());
    }
    let mut writing = match records.write() {
        Ok(writing) => writing,
        Err(error) => {
            warnings.push(format!("{kind}s share names, which cannot be written down: {}", chain(&error)));
            return Ok(());
        }
    };
    for (name, earlier, later) in writing.table().doubled_names() {
        warnings.push(format!(
            "the {kind}s {earlier} and {later} both had the name {name:?}; it belongs to the latter now"
        ));
    }
    writing.save(&[])
}

/// Removes directories of data that no record has, where their names are of the usual kind; others may be anybody's.
fn remove_orphans<T: Record>(
    part: &Part<T>,
    elsewhere: impl Fn(&str) -> bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let orphans = |table: &Table<T>| -> Result<Vec<String>> {
        let names = fsutil::list(&*part.dir).map_err(|e| Error::io("read directory", part.dir.path(), e))?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| is_usual(name) && table.by_id(name).is_none() && !elsewhere(name)).collect())
    };
    // Read-only first: as a rule there are none, and whoever makes one at this moment is not to be waited for twice.
    {
        let (guards, table) = part.records.read_locked()?;
        if part.records.is_tidy(&table) {
            return Ok(());
        }
        if orphans(&table)?.is_empty() {
            return part.records.note_tidy(&guards);
        }
    }
    let writing = part.records.write()?;
    for name in orphans(writing.table())? {
        match part.dir.remove(&name) {
            Ok(()) => {
                tracing::info!(directory = %part.dir.path().join(&name).display(), "removed data that no record has");
            }
            Err(error) => warnings.push(format!("removing data that no record has: {}", chain(&error))),
        }
    }
    Ok(())
}

/// The directory beside the layers' records for what is being made and deleted.
pub(crate) const TEMPORARY: &str = "tmp";

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
