//! Images between files and the store.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Result, bail};
use graph_oci::{Loaded, Platform, Reference, SaveCompression, Saved, SourceImage, Transport};
use graph_store::Store;
use serde_json::{Value, json};

use super::skopeo::{self, Foreign};
use super::{Outcome, id_and_names};
use crate::cli::transfer::{Load, Save};
use crate::{output, progress};

const STDOUT: &str = "/dev/stdout";

pub(crate) fn load(store: &Store, words: &Load) -> Result<Outcome> {
    if !words.name.is_empty() && (words.source.len() > 1 || words.all) {
        bail!("--name is for one image: load the others by themselves, or without it");
    }
    let platform = words.platform.as_deref().map(Platform::parse).transpose()?.unwrap_or_else(Platform::here);
    let mut loaded = Vec::new();
    for source in &words.source {
        match Foreign::parse(source) {
            Some(foreign) => {
                let fetched = skopeo::fetch(&foreign, words.platform.is_some().then_some(&platform))?;
                let reference = Reference::parse(&format!("oci:{}", fetched.path().display()))?;
                let image = SourceImage::open_for(&reference, &platform)?;
                let names = if words.name.is_empty() { foreign.names() } else { words.name.clone() };
                loaded.push(load_one(store, &image, &names)?);
            }
            None => {
                let reference = Reference::parse(source)?;
                let images = if words.all {
                    if reference.name.is_some() {
                        bail!("{}: a name, and --all", output::safe(source));
                    }
                    SourceImage::open_all(&reference, &platform)?
                } else {
                    vec![SourceImage::open_for(&reference, &platform)?]
                };
                for image in &images {
                    let own = |name: &String| graph_oci::normalized_name(name, image.is_docker());
                    let names: Vec<String> =
                        if words.name.is_empty() { image.names.iter().map(own).collect() } else { words.name.clone() };
                    loaded.push(load_one(store, image, &names)?);
                }
            }
        }
    }
    if words.json.json {
        let mut all: Vec<Value> = loaded.iter().map(as_json).collect();
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => output::json(&only)?,
            (last, _) => output::json(&all.into_iter().chain(last).collect::<Vec<_>>())?,
        }
    } else {
        for one in &loaded {
            id_and_names(&one.image.id, &one.image.names)?;
        }
    }
    Ok(Outcome::Done)
}

fn load_one(store: &Store, image: &SourceImage, names: &[String]) -> Result<Loaded> {
    let show = progress::Layers::new("loading");
    let loaded = graph_oci::load(store, image, names, &|event| show.event(event));
    show.finish();
    Ok(loaded?)
}

fn as_json(loaded: &Loaded) -> Value {
    json!({"id": loaded.image.id, "names": loaded.image.names,
        "digest": loaded.image.digest, "layer": loaded.image.layer,
        "imported-layers": loaded.imported, "reused-layers": loaded.reused, "notices": loaded.notices})
}

pub(crate) fn save(store: &Store, words: &Save) -> Result<Outcome> {
    let compression = match words.compression.as_str() {
        "as-loaded" => SaveCompression::AsLoaded,
        "none" => SaveCompression::None,
        "gzip" => SaveCompression::Gzip,
        "zstd" => SaveCompression::Zstd,
        other => bail!("unsupported compression format {}: as-loaded, none, gzip or zstd", output::safe(other)),
    };
    let Some((target, images)) = words.words.split_last() else { bail!("more arguments required") };
    let images = images.iter().map(|image| store.image(image)).collect::<graph_store::Result<Vec<_>>>()?;
    let images: Vec<_> = images.iter().collect();
    let show = progress::Layers::new("saving");
    let mut to_stdout = false;
    let saved = match Foreign::parse(target) {
        Some(foreign) => {
            if images.len() > 1 {
                bail!("{}: one image at a time", output::safe(target));
            }
            let directory = skopeo::Scratch::new()?;
            let reference =
                Reference { transport: Some(Transport::Oci), path: directory.path().to_path_buf(), name: None };
            let saved = graph_oci::save_to(store, &images, &reference, compression, &|event| show.event(event));
            show.finish();
            let saved = saved?;
            skopeo::send(&directory, &foreign)?;
            saved
        }
        None => {
            let mut reference = Reference::parse(target)?;
            if reference.path == Path::new("-") && reference.transport.is_some_and(|t| t != Transport::Oci) {
                reference.path = STDOUT.into();
            }
            to_stdout = reference.path == Path::new(STDOUT);
            if to_stdout && std::io::stdout().is_terminal() {
                bail!("an archive is nothing for a terminal: redirect standard output");
            }
            if reference.transport.is_none() && reference.path.is_file() {
                bail!(
                    "{} is a file: say oci-archive: or docker-archive: before it",
                    output::safe(&reference.path.display().to_string())
                );
            }
            let saved = graph_oci::save_to(store, &images, &reference, compression, &|event| show.event(event));
            show.finish();
            saved?
        }
    };
    if to_stdout {
        return Ok(Outcome::Done);
    }
    let as_json =
        |saved: &Saved| json!({"digest": saved.manifest.to_string(), "layers": saved.layers, "bytes": saved.bytes});
    match (saved.as_slice(), words.json.json) {
        ([only], true) => output::json(&as_json(only))?,
        (all, true) => output::json(&all.iter().map(as_json).collect::<Vec<_>>())?,
        (all, false) => {
            for one in all {
                output::line(&one.manifest.to_string())?;
            }
        }
    }
    Ok(Outcome::Done)
}
