//! Images between files and the store.

use anyhow::{Result, bail};
use graph_oci::{Reference, SaveCompression, SourceImage, Transport};
use graph_store::Store;

use super::{Outcome, id_and_names};
use crate::{output, progress};

pub(crate) fn load(store: &Store, source: &str, names: &[String], json: bool) -> Result<Outcome> {
    let reference = Reference::parse(source)?;
    let source = SourceImage::open(&reference)?;
    let names: Vec<String> = if names.is_empty() {
        source.names.iter().map(|name| graph_oci::normalized_name(name, source.is_docker())).collect()
    } else {
        names.to_vec()
    };
    let show = progress::Layers::new("loading");
    let loaded = graph_oci::load(store, &source, &names, &|event| show.event(event));
    show.finish();
    let loaded = loaded?;
    if json {
        output::json(&serde_json::json!({"id": loaded.image.id, "names": loaded.image.names,
            "digest": loaded.image.digest, "layer": loaded.image.layer,
            "imported-layers": loaded.imported, "reused-layers": loaded.reused, "notices": loaded.notices}))?;
    } else {
        id_and_names(&loaded.image.id, &loaded.image.names)?;
    }
    Ok(Outcome::Done)
}

pub(crate) fn save(store: &Store, image: &str, target: &str, compression: &str, json: bool) -> Result<Outcome> {
    let compression = match compression {
        "as-loaded" => SaveCompression::AsLoaded,
        "none" => SaveCompression::None,
        "gzip" => SaveCompression::Gzip,
        "zstd" => SaveCompression::Zstd,
        other => bail!("unsupported compression format {}: as-loaded, none, gzip or zstd", output::safe(other)),
    };
    let reference = Reference::parse(target)?;
    if !matches!(reference.transport, None | Some(Transport::Oci)) || reference.path.is_file() {
        bail!("images are saved into OCI layout directories: oci:DIR[:NAME]");
    }
    let image = store.image(image)?;
    let show = progress::Layers::new("saving");
    let name = reference.name.as_deref();
    let saved = graph_oci::save(store, &image, &reference.path, name, compression, &|event| show.event(event));
    show.finish();
    let saved = saved?;
    if json {
        output::json(
            &serde_json::json!({"digest": saved.manifest.to_string(), "layers": saved.layers, "bytes": saved.bytes}),
        )?;
    } else {
        output::line(&saved.manifest.to_string())?;
    }
    Ok(Outcome::Done)
}
