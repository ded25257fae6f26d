//! Containers: listing, making, showing, deleting.

use std::collections::HashMap;

use anyhow::{Result, anyhow};
use graph_store::{AutoUserNs, Container, CreateContainer, ErrorKind, Store, Stored};

use super::{Outcome, chain, each, id_and_names, optional};
use crate::cli::{IdMap, Listing, Metadata, Objects};
use crate::id_map;
use crate::output::{self, safe};
use crate::table::{self, Column, Table};

pub(crate) fn list(store: &Store, listing: &Listing) -> Result<Outcome> {
    let containers = store.containers()?;
    if listing.json.json {
        output::json(&containers.iter().map(|container| &**container.record()).collect::<Vec<&Container>>())?;
        return Ok(Outcome::Done);
    }
    if table::wanted() && !listing.quiet {
        let images: HashMap<String, String> =
            store.images()?.iter().filter_map(|image| Some((image.id.clone(), image.names.first()?.clone()))).collect();
        let mut table = Table::new(&[
            Column::Id("ID"),
            Column::Text("NAMES"),
            Column::Text("CREATED"),
            Column::Text("IMAGE"),
            Column::Text("LAYER"),
        ]);
        for container in &containers {
            let image = images.get(&container.image).cloned().unwrap_or_else(|| table::short(&container.image));
            table.row([
                table::short(&container.id),
                container.names.join(", "),
                table::minute(container.created.as_str()),
                image,
                table::short(&container.layer),
            ]);
        }
        table.print()?;
        return Ok(Outcome::Done);
    }
    let mut lines = Vec::new();
    for container in &containers {
        lines.push(safe(&container.id));
        if listing.quiet {
            continue;
        }
        lines.extend(container.names.iter().map(|name| format!("\tname: {}", safe(name))));
        lines.extend(container.big_data_names.iter().map(|name| format!("\tdata: {}", safe(name))));
    }
    output::lines(lines)?;
    Ok(Outcome::Done)
}

#[expect(clippy::too_many_arguments, reason = "one for each word of the command line")]
pub(crate) fn create(
    store: &Store,
    image: &str,
    names: &[String],
    id: Option<&str>,
    volatile: bool,
    words: &Metadata,
    (ids, userns): (&IdMap, Option<&AutoUserNs>),
    json: bool,
) -> Result<Outcome> {
    let container = store.create_container(&CreateContainer {
        id: optional(id),
        names: names.to_vec(),
        image: optional(Some(image)),
        metadata: super::metadata(words)?,
        volatile,
        mappings: id_map::parse(ids)?,
        auto_userns: userns.cloned(),
        ..CreateContainer::default()
    })?;
    if json {
        output::json(&**container.record())?;
    } else {
        id_and_names(&container.id, &container.names)?;
    }
    Ok(Outcome::Done)
}

pub(crate) fn show(store: &Store, words: &Objects) -> Result<Outcome> {
    let found: Vec<Stored<Container>> =
        words.objects.iter().filter_map(|object| store.container(object).ok()).collect();
    if words.json.json {
        output::json(&found.iter().map(|container| &**container.record()).collect::<Vec<_>>())?;
    } else {
        for container in &found {
            output::line(&format!("ID: {}", safe(&container.id)))?;
            for name in &container.names {
                output::line(&format!("Name: {}", safe(name)))?;
            }
            if !container.image.is_empty() {
                output::line(&format!("Image: {}", safe(&container.image)))?;
                let names = store.image(&container.image).map(|image| image.names.clone()).unwrap_or_default();
                for name in names {
                    output::line(&format!("Image name: {}", safe(&name)))?;
                }
            }
            match store.container_size(&container.id) {
                Ok(size) => output::line(&format!("Size: {size}"))?,
                Err(error) => output::line(&format!("Size unknown: {}", chain(error)))?,
            }
            output::line(&format!("Layer: {}", safe(&container.layer)))?;
            for name in &container.big_data_names {
                output::line(&format!("Data: {}", safe(name)))?;
            }
        }
    }
    Ok(if found.len() == words.objects.len() { Outcome::Done } else { Outcome::Failed })
}

pub(crate) fn delete(store: &Store, words: &Objects) -> Result<Outcome> {
    each(&words.objects, words.json.json, |container| match store.delete_container(container) {
        Err(error) if error.kind() == ErrorKind::ContainerNotKnown => Err(anyhow!("identifier is not a container")),
        other => other.map_err(anyhow::Error::from),
    })
}
