//! Images: listing, making, showing, deleting.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use graph_store::{CreateImage, ErrorKind, Image, Store, Stored};
use serde::Serialize;

use super::{Outcome, chain, id_and_names, optional};
use crate::cli::{Listing, Metadata, Objects};
use crate::output::{self, complain, safe};
use crate::table::{self, Column, Table};

pub(crate) fn list(store: &Store, listing: &Listing) -> Result<Outcome> {
    let images = store.images()?;
    if listing.json.json {
        let records: Vec<&Image> = images.iter().map(|image| &**image.record()).collect();
        output::json(&(!records.is_empty()).then_some(records))?;
        return Ok(Outcome::Done);
    }
    print(&images, listing.quiet)
}

/// The images that a digest belongs to.
pub(crate) fn by_digest(store: &Store, digest: &str, listing: &Listing) -> Result<Outcome> {
    let images = store.images_by_digest(digest)?;
    if listing.json.json {
        output::json(&images.iter().map(|image| &**image.record()).collect::<Vec<&Image>>())?;
        return Ok(Outcome::Done);
    }
    print(&images, listing.quiet)
}

fn print(images: &[Stored<Image>], quiet: bool) -> Result<Outcome> {
    if table::wanted() && !quiet {
        let mut table = Table::new(&[
            Column::Id("ID"),
            Column::Text("NAMES"),
            Column::Text("CREATED"),
            Column::Text("TOP LAYER"),
            Column::Text("DIGEST"),
        ]);
        for image in images {
            let mut names = image.names.clone();
            names.extend(image.is_read_only().then(|| "read-only".to_owned()));
            let digest = image.digests().first().map(|digest| digest.chars().take(19).collect());
            table.row([
                table::short(&image.id),
                names.join(", "),
                table::minute(image.created.as_str()),
                table::short(&image.layer),
                digest.unwrap_or_default(),
            ]);
        }
        table.print()?;
        return Ok(Outcome::Done);
    }
    let mut lines = Vec::new();
    for image in images {
        lines.push(safe(&image.id));
        if quiet {
            continue;
        }
        lines.extend(image.names.iter().map(|name| format!("\tname: {}", safe(name))));
        lines.extend(image.digests().iter().map(|digest| format!("\tdigest: {}", safe(digest))));
        lines.extend(image.big_data_names.iter().map(|name| format!("\tdata: {}", safe(name))));
    }
    output::lines(lines)?;
    Ok(Outcome::Done)
}

pub(crate) fn create(
    store: &Store,
    layer: Option<&str>,
    names: &[String],
    id: Option<&str>,
    digest: Option<&str>,
    words: &Metadata,
    json: bool,
) -> Result<Outcome> {
    let image = store.create_image(&CreateImage {
        id: optional(id),
        names: names.to_vec(),
        layer: optional(layer),
        digest: optional(digest),
        metadata: super::metadata(words)?,
        ..CreateImage::default()
    })?;
    if json {
        output::json(&**image.record())?;
    } else {
        id_and_names(&image.id, &image.names)?;
    }
    Ok(Outcome::Done)
}

pub(crate) fn show(store: &Store, words: &Objects) -> Result<Outcome> {
    let found: Vec<Stored<Image>> = words.objects.iter().filter_map(|object| store.image(object).ok()).collect();
    if words.json.json {
        output::json(&found.iter().map(|image| &**image.record()).collect::<Vec<_>>())?;
    } else {
        for image in &found {
            output::line(&format!("ID: {}", safe(&image.id)))?;
            for name in &image.names {
                output::line(&format!("Name: {}", safe(name)))?;
            }
            let tops: Vec<&str> = image.top_layers().collect();
            for top in if tops.is_empty() { vec![""] } else { tops } {
                output::line(&format!("Top Layer: {}", safe(top)))?;
            }
            for digest in image.digests() {
                output::line(&format!("Digest: {}", safe(digest)))?;
            }
            for name in &image.big_data_names {
                output::line(&format!("Data: {}", safe(name)))?;
            }
            match store.image_size(&image.id) {
                Ok(size) => output::line(&format!("Size: {size}"))?,
                Err(error) => output::line(&format!("Size unknown: {}", chain(error)))?,
            }
            if image.is_read_only() {
                output::line("Read Only: true")?;
            }
        }
    }
    Ok(if found.len() == words.objects.len() { Outcome::Done } else { Outcome::Failed })
}

#[derive(Serialize)]
struct Deleted {
    #[serde(rename = "deleted-layers", skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn delete(store: &Store, words: &Objects, test: bool) -> Result<Outcome> {
    let mut answers: BTreeMap<&str, Deleted> = BTreeMap::new();
    for object in &words.objects {
        let deleted = match store.delete_image(object, !test) {
            Err(error) if error.kind() == ErrorKind::ImageNotKnown => Err(anyhow!("identifier is not an image")),
            other => other.map_err(anyhow::Error::from),
        };
        let answer = match deleted {
            Ok(layers) => Deleted { layers, error: None },
            Err(error) => Deleted { layers: Vec::new(), error: Some(chain(error)) },
        };
        if !words.json.json {
            for layer in &answer.layers {
                complain(&format!("{}: {}", safe(object), safe(layer)));
            }
            if let Some(error) = &answer.error {
                complain(&format!("{}: {error}", safe(object)));
            }
        }
        answers.insert(object, answer);
    }
    if words.json.json {
        output::json(&answers)?;
    }
    Ok(if answers.values().all(|answer| answer.error.is_none()) { Outcome::Done } else { Outcome::Failed })
}
