//! Images from files into a store.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use graph_archive::digest::Digest;
use graph_store::{CreateImage, CreateLayer, Expected, Image, PendingLoad, Store, Stored};

use crate::error::{Error, Result};
use crate::image::{SourceImage, SourceLayer};

/// How often a load begins anew because a layer that it took over has gone.
const RETRIES: usize = 3;

/// What is going on, for whoever shows progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'e> {
    /// A layer is begun; `bytes` is the size of its blob (load) or of its tar (save), 0 when unknown.
    Layer {
        /// Its diff ID.
        diff_id: &'e Digest,
        /// Which one, from 0.
        index: usize,
        /// How many there are.
        count: usize,
        /// Bytes to come.
        bytes: u64,
    },
    /// Bytes done of the layer begun last.
    Bytes(u64),
    /// The layer begun last was there already, and was taken as it is.
    Reused,
    /// The layer begun last is done.
    LayerDone,
}

/// Called from whatever thread reads.
pub type OnEvent<'p> = dyn Fn(Event<'_>) + Sync + 'p;

/// What loading an image made of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The image's record.
    pub image: Stored<Image>,
    /// Layers that were imported.
    pub imported: usize,
    /// Layers that the store had already.
    pub reused: usize,
    /// Things that could not be kept, one sentence each.
    pub notices: Vec<String>,
}

/// The ids that podman, buildah and skopeo give an image's layers, from the base up: the base layer has its diff ID's hex
/// digits, every other the sha256 of `<id of the layer below>+<hex digits of its diff ID>`. Same ids, shared layers.
pub fn layer_ids<'d>(diff_ids: impl IntoIterator<Item = &'d Digest>) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let id = match ids.last() {
            None => diff_id.hex(),
            Some(below) => Digest::of(format!("{below}+{}", diff_id.hex()).as_bytes()).hex(),
        };
        ids.push(id);
    }
    ids
}

/// Puts an image into `store`: its layers, its config and manifest as big data, and `names` (a name that another image has
/// moves here). Layers and an image record that the store has already are taken as they are.
///
/// # Errors
/// Those of reading the source; those of the store, digest mismatches among them. Layers imported by the failed call are
/// deleted again, unless somebody else builds on them by then.
///
/// A killed process leaves the layers that were complete; loading the image again takes them as they are, and
/// [`Store::collect_garbage`] removes them. There is no image until all of it is there. What else it left, the next
/// [`Store::open`] removes.
pub fn load(store: &Store, source: &SourceImage, names: &[String], on_event: &OnEvent<'_>) -> Result<Loaded> {
    let pending = Arc::new(store.begin_load()?);
    let mut made: Vec<String> = Vec::new();
    let mut layers = load_layers(store, source, &pending, &mut made, on_event);
    for _ in 0..RETRIES {
        match &layers {
            // Somebody else made it and failed later, and took it away before anything was on it.
            Err(Error::Store(error)) if error.kind() == graph_store::ErrorKind::LayerNotKnown => {
                layers = load_layers(store, source, &pending, &mut made, on_event);
            }
            _ => break,
        }
    }
    let result = layers.and_then(|(top, reused, notices)| {
        let image = record(store, source, top, names)?;
        Ok(Loaded { image, imported: made.len(), reused, notices })
    });
    if result.is_err() {
        for id in made.iter().rev() {
            // Another process may have built on it meanwhile; then it is that one's now.
            if store.delete_layer(id).is_err() {
                break;
            }
        }
    }
    drop(pending);
    if result.is_ok() {
        store.forget_completed_loads();
    }
    result
}

fn load_layers(
    store: &Store,
    source: &SourceImage,
    pending: &Arc<PendingLoad>,
    made: &mut Vec<String>,
    on_event: &OnEvent<'_>,
) -> Result<(Option<String>, usize, Vec<String>)> {
    let ids = layer_ids(source.layers.iter().map(|layer| &layer.diff_id));
    let mut parent: Option<String> = None;
    let mut reused = 0;
    let mut notices = Vec::new();
    let count = source.layers.len();
    for (index, (layer, id)) in source.layers.iter().zip(ids).enumerate() {
        let diff_id = &layer.diff_id;
        pending.uses(&id)?;
        if has(store, &id)? {
            on_event(Event::Layer { diff_id, index, count, bytes: 0 });
            on_event(Event::Reused);
            reused += 1;
        } else {
            let (reader, bytes) = source.open_layer(layer)?;
            on_event(Event::Layer { diff_id, index, count, bytes });
            let options = CreateLayer {
                id: Some(id.clone()),
                parent: parent.clone(),
                load: Some(Arc::clone(pending)),
                ..CreateLayer::default()
            };
            match import(store, layer, &options, reader, on_event) {
                Ok(found) => {
                    made.push(id.clone());
                    notices.extend(found);
                }
                // Somebody else was quicker with the same layer.
                Err(_) if has(store, &id)? => reused += 1,
                Err(error) => return Err(error),
            }
            on_event(Event::LayerDone);
        }
        parent = Some(id);
    }
    notices.dedup();
    Ok((parent, reused, notices))
}

/// Whether the store has a layer of exactly this id.
fn has(store: &Store, id: &str) -> Result<bool> {
    match store.layer(id) {
        Ok(layer) => Ok(layer.id == id),
        Err(error) if error.kind() == graph_store::ErrorKind::LayerNotKnown => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn import(
    store: &Store,
    layer: &SourceLayer,
    options: &CreateLayer,
    reader: Box<dyn Read + Send>,
    on_event: &OnEvent<'_>,
) -> Result<Vec<String>> {
    let expected = Expected {
        compressed_digest: layer.blob.as_ref().map(ToString::to_string),
        diff_digest: Some(layer.diff_id.to_string()),
        ..Expected::default()
    };
    let mut counted = Counted { inner: reader, done: AtomicU64::new(0), on_event };
    Ok(store.import_layer(options, &expected, &mut counted)?.report.notices)
}

struct Counted<'p> {
    inner: Box<dyn Read + Send>,
    done: AtomicU64,
    on_event: &'p OnEvent<'p>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        graph_sys::fault::point("load.read")?;
        let count = self.inner.read(buf)?;
        let before = self.done.fetch_add(count as u64, Ordering::Relaxed);
        (self.on_event)(Event::Bytes(before.saturating_add(count as u64)));
        Ok(count)
    }
}

fn record(store: &Store, source: &SourceImage, layer: Option<String>, names: &[String]) -> Result<Stored<Image>> {
    let hex = source.config_digest.hex();
    let id = hex.as_str();
    let is_known = || match store.image(id) {
        Ok(image) => Ok(image.id == id),
        Err(error) if error.kind() == graph_store::ErrorKind::ImageNotKnown => Ok(false),
        Err(error) => Err(error),
    };
    if !is_known()? {
        match new_record(store, source, id, layer, names) {
            // Somebody else was quicker with the same image.
            Err(error) if error.kind() == graph_store::ErrorKind::IdInUse && is_known()? => {}
            made => return Ok(made?),
        }
    }
    if !names.is_empty() {
        store.add_names(id, names)?;
    }
    Ok(store.image(id)?)
}

fn new_record(
    store: &Store,
    source: &SourceImage,
    id: &str,
    layer: Option<String>,
    names: &[String],
) -> graph_store::Result<Stored<Image>> {
    let manifest = source.manifest_digest.to_string();
    store.create_image(&CreateImage {
        id: Some(id.to_owned()),
        names: names.to_vec(),
        take_names: true,
        names_history: names.to_vec(),
        layer,
        digest: Some(manifest.clone()),
        metadata: "{}".to_owned(),
        big_data: vec![
            (source.config_digest.to_string(), source.config.clone()),
            (format!("manifest-{manifest}"), source.manifest.clone()),
            ("manifest".to_owned(), source.manifest.clone()),
        ],
        ..CreateImage::default()
    })
}

/// A name as podman gives it to images: with a registry and a tag. `app` becomes `localhost/app:latest`; names from a
/// docker-archive come from Docker Hub when they state no registry.
#[must_use]
pub fn normalized_name(name: &str, from_docker: bool) -> String {
    let (path, digest) = name.split_once('@').map_or((name, None), |(path, digest)| (path, Some(digest)));
    let domain = path.split_once('/').map(|(domain, _)| domain);
    let has_domain = domain.is_some_and(|d| d.contains(['.', ':']) || d == "localhost");
    let mut full = match (has_domain, from_docker) {
        (true, _) => path.to_owned(),
        (false, true) if path.contains('/') => format!("docker.io/{path}"),
        (false, true) => format!("docker.io/library/{path}"),
        (false, false) => format!("localhost/{path}"),
    };
    let tagged = full.rsplit_once('/').map_or(full.as_str(), |(_, last)| last).contains(':');
    match digest {
        Some(digest) => {
            full.push('@');
            full.push_str(digest);
        }
        None if !tagged => full.push_str(":latest"),
        None => {}
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_podman_gives_them() {
        for (name, docker, full) in [
            ("app", false, "localhost/app:latest"),
            ("app:1", false, "localhost/app:1"),
            ("busybox:1", true, "docker.io/library/busybox:1"),
            ("me/app", true, "docker.io/me/app:latest"),
            ("quay.io/me/app:2", true, "quay.io/me/app:2"),
            ("localhost:5000/app", false, "localhost:5000/app:latest"),
            ("localhost/app@sha256:00", false, "localhost/app@sha256:00"),
        ] {
            assert_eq!(normalized_name(name, docker), full, "{name}");
        }
    }
}
