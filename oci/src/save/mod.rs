//! Images out of a store into OCI layouts, oci-archives and docker-archives.

mod output;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use graph_archive::compress::{Compression, Compressor};
use graph_archive::digest::{Algorithm, Digest, Hashing};
use graph_store::{DiffCompression, DiffOptions, Image, Layer, Store, Stored};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::image::REF_NAME;
use crate::load::{Event, OnEvent};
use crate::reference::{Reference, Transport};
use output::{Archive, Directory, Output};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How layers are compressed on their way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveCompression {
    /// As they came in; gzip for formats that are only read (xz, bzip2).
    #[default]
    AsLoaded,
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Digest of the manifest in the layout. It differs from the store's where a compressed layer came out of the
    /// compressor with other bytes than it came in; diff IDs and config never differ.
    pub manifest: Digest,
    /// Layers written.
    pub layers: usize,
    /// Bytes of all layer blobs.
    pub bytes: u64,
}

/// Writes an image into the OCI layout at `dir`; [`save_to`] says how.
///
/// # Errors
/// Those of [`save_to`].
pub fn save(
    store: &Store,
    image: &Stored<Image>,
    dir: &Path,
    name: Option<&str>,
    compression: SaveCompression,
    on_event: &OnEvent<'_>,
) -> Result<Saved> {
    let target = Reference { transport: Some(Transport::Oci), path: dir.to_path_buf(), name: name.map(str::to_owned) };
    let saved = save_to(store, &[image], &target, compression, on_event)?;
    saved.into_iter().next().ok_or_else(|| Error::invalid(dir, "nothing was saved"))
}

/// Writes images where `target` says: into an OCI layout directory (also where no transport is stated), an oci-archive or a
/// docker-archive. One image gets the target's name, if there is one. Several, and one for a docker-archive without a name,
/// keep the names they have in the store.
///
/// Each layer's tar is put together from the store and has its recorded diff ID. The manifest is the loaded one to the byte
/// where its layers come out as they went in, as they always do when they are stored uncompressed. A docker-archive has
/// uncompressed layers and no such manifest.
///
/// A layout directory is made when it is not there; other images in it stay, one of the same name is replaced in its
/// index, which is written last. An archive that is there is replaced by one that is whole. *On a crash*, and after an
/// error: a layout's index and an archive are as before; a crash may leave blobs in the layout, under their right digests, that no index
/// names.
///
/// # Errors
/// Those of the store; [`Error::Invalid`] for a layer whose tar has another digest than its record, and for a layout that is
/// none; [`Error::Reference`] for a name with several images, and for compression in a docker-archive; I/O errors.
pub fn save_to(
    store: &Store,
    images: &[&Stored<Image>],
    target: &Reference,
    compression: SaveCompression,
    on_event: &OnEvent<'_>,
) -> Result<Vec<Saved>> {
    let refuse =
        |problem: &str| Error::Reference { reference: target.path.display().to_string(), problem: problem.to_owned() };
    if target.name.is_some() && images.len() > 1 {
        return Err(refuse("several images cannot have one name: leave it out, and they keep theirs"));
    }
    let docker = target.transport == Some(Transport::DockerArchive);
    let compression = match (docker, compression) {
        (true, SaveCompression::Gzip | SaveCompression::Zstd) => {
            return Err(refuse("layers in a docker-archive are not compressed"));
        }
        (true, _) => SaveCompression::None,
        (false, compression) => compression,
    };
    let output = match target.transport {
        None | Some(Transport::Oci) => Output::Dir(Directory::open(&target.path)?),
        Some(Transport::OciArchive | Transport::DockerArchive) => Output::Tar(Archive::create(&target.path)?),
    };
    let mut saving = Saving { store, output, docker, compression, on_event, written: HashMap::new() };
    let mut saved = Vec::new();
    let mut entries = Vec::new();
    for image in images {
        let names = match &target.name {
            Some(name) => vec![name.clone()],
            None if docker || images.len() > 1 => image.names.clone(),
            None => Vec::new(),
        };
        let (one, entry) = saving.image(image, names)?;
        saved.push(one);
        entries.push(entry);
    }
    saving.list(entries)?;
    saving.output.finish()?;
    Ok(saved)
}

/// What the list of images will say of one.
struct Listed {
    names: Vec<String>,
    manifest: Digest,
    manifest_size: usize,
    /// For a docker-archive: the files.
    config: String,
    layers: Vec<String>,
}

/// Images on their way into one output.
struct Saving<'s> {
    store: &'s Store,
    output: Output,
    docker: bool,
    compression: SaveCompression,
    on_event: &'s OnEvent<'s>,
    /// Layers that are there already, by id.
    written: HashMap<String, LayerBlob>,
}

impl Saving<'_> {
    fn image(&mut self, image: &Stored<Image>, names: Vec<String>) -> Result<(Saved, Listed)> {
        let chain = chain(self.store, image.layer.as_str())?;
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        let mut bytes = 0_u64;
        for (index, layer) in chain.iter().enumerate() {
            let blob = match self.written.get(&layer.id) {
                Some(blob) => blob.clone(),
                None => self.layer(layer, index, chain.len())?,
            };
            self.written.insert(layer.id.clone(), blob.clone());
            bytes = bytes.saturating_add(blob.size);
            let suffix = match blob.compression {
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
                _ => "",
            };
            descriptors.push((format!("{LAYER}{suffix}"), blob.digest.to_string(), blob.size));
            diff_ids.push(blob.diff_id.to_string());
            layers.push(format!("{}.tar", blob.diff_id.hex()));
        }
        let config = config(self.store, image, &diff_ids)?;
        let config_digest = Digest::of(&config);
        let config_name = format!("{}.json", config_digest.hex());
        let manifest = manifest(self.store, image, &config, &config_digest, &descriptors)?;
        if self.docker {
            self.output.put(&config_name, &config)?;
        } else {
            self.output.document(&config)?;
            self.output.document(&manifest)?;
        }
        let digest = Digest::of(&manifest);
        let saved = Saved { manifest: digest, layers: chain.len(), bytes };
        Ok((saved, Listed { names, manifest: digest, manifest_size: manifest.len(), config: config_name, layers }))
    }

    fn layer(&mut self, layer: &Stored<Layer>, index: usize, count: usize) -> Result<LayerBlob> {
        let compression = match self.compression {
            SaveCompression::None => Compression::None,
            SaveCompression::Gzip => Compression::Gzip,
            SaveCompression::Zstd => Compression::Zstd,
            SaveCompression::AsLoaded => match layer.compression {
                0 => Compression::None,
                4 => Compression::Zstd,
                _ => Compression::Gzip,
            },
        };
        let recorded: Option<Digest> = layer.diff_digest.parse().ok();
        let nothing = Digest::of(b"");
        let bytes = u64::try_from(layer.diff_size).unwrap_or_default();
        (self.on_event)(Event::Layer { diff_id: recorded.as_ref().unwrap_or(&nothing), index, count, bytes });
        let (store, docker, on_event) = (self.store, self.docker, self.on_event);
        let blob = self.output.add(|out| {
            let (diff_id, digest, size) = write_tar(store, layer, compression, out, on_event)?;
            if let Some(recorded) = recorded.filter(|recorded| *recorded != diff_id) {
                let problem = format!("its tar has digest {diff_id}, its record says {recorded}: run check --repair");
                return Err(Error::invalid(store.root(), format!("layer {}: {problem}", layer.id)));
            }
            let name = if docker {
                format!("{}.tar", diff_id.hex())
            } else {
                format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
            };
            Ok((name, LayerBlob { digest, diff_id, size, compression }))
        })?;
        (self.on_event)(Event::LayerDone);
        Ok(blob)
    }

    /// Writes the list of images: from here on they are there.
    fn list(&mut self, entries: Vec<Listed>) -> Result<()> {
        if self.docker {
            let images: Vec<Value> = entries
                .iter()
                .map(|image| json!({"Config": image.config, "RepoTags": image.names, "Layers": image.layers}))
                .collect();
            let bytes = encode(self.store.root(), &Value::from(images))?;
            return self.output.put("manifest.json", &bytes);
        }
        let (path, old) = match &self.output {
            Output::Dir(dir) => {
                let path = dir.path.join("index.json");
                match fs::read(&path) {
                    Ok(bytes) => (path, Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => (path, None),
                    Err(error) => return Err(Error::io("read", path)(error)),
                }
            }
            Output::Tar(_) => {
                self.output.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
                (PathBuf::from("index.json"), None)
            }
        };
        let mut index: Value = match old {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::invalid(&path, error.to_string()))?,
            None => json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}),
        };
        for image in &entries {
            if image.names.is_empty() {
                enter(&path, &mut index, image, None)?;
            }
            for name in &image.names {
                enter(&path, &mut index, image, Some(name))?;
            }
        }
        let bytes = encode(&path, &index)?;
        self.output.put("index.json", &bytes)
    }
}

/// Puts a manifest into the index, in the place of whatever had the name.
fn enter(path: &Path, index: &mut Value, image: &Listed, name: Option<&str>) -> Result<()> {
    let mut entry = json!({"mediaType": MANIFEST, "digest": image.manifest.to_string(), "size": image.manifest_size});
    if let (Some(name), Some(entry)) = (name, entry.as_object_mut()) {
        entry.insert("annotations".to_owned(), json!({REF_NAME: name}));
    }
    let Some(object) = index.as_object_mut() else {
        return Err(Error::invalid(path, "not an object"));
    };
    let manifests = object.entry("manifests").or_insert_with(|| json!([]));
    if manifests.is_null() {
        *manifests = json!([]);
    }
    let Some(manifests) = manifests.as_array_mut() else {
        return Err(Error::invalid(path, "its manifests are no array"));
    };
    let pointer = format!("/annotations/{REF_NAME}");
    let named = |entry: &Value| entry.pointer(&pointer).and_then(Value::as_str).map(str::to_owned);
    manifests.retain(|old| {
        let unnamed_twin = name.is_none() && named(old).is_none() && old.get("digest") == entry.get("digest");
        (name.is_none() || named(old).as_deref() != name) && !unnamed_twin
    });
    manifests.push(entry);
    Ok(())
}

/// An image's layers, the base first.
fn chain(store: &Store, top: &str) -> Result<Vec<Stored<Layer>>> {
    let mut chain: Vec<Stored<Layer>> = Vec::new();
    let mut next = top.to_owned();
    while !next.is_empty() {
        if chain.iter().any(|layer| layer.id == next) {
            return Err(Error::invalid(store.root(), format!("layer {next} is its own ancestor")));
        }
        let layer = store.layer(&next)?;
        next = layer.parent.clone();
        chain.push(layer);
    }
    chain.reverse();
    Ok(chain)
}

/// The image's config as it was loaded; for an image without one, the least that an image needs.
fn config(store: &Store, image: &Stored<Image>, diff_ids: &[String]) -> Result<Vec<u8>> {
    let key = format!("sha256:{}", image.id);
    if image.big_data_names.contains(&key) {
        return Ok(store.image_big_data(&image.id, &key)?);
    }
    let machine = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let config = json!({"architecture": machine, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    encode(store.root(), &config)
}

/// The loaded manifest to the byte where its layers came out as they went in, else one that states what came out.
fn manifest(
    store: &Store,
    image: &Stored<Image>,
    config: &[u8],
    config_digest: &Digest,
    layers: &[(String, String, u64)],
) -> Result<Vec<u8>> {
    let loaded = if image.big_data_names.iter().any(|name| name == "manifest") {
        Some(store.image_big_data(&image.id, "manifest")?)
    } else {
        None
    };
    let mut value: Value = match &loaded {
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|e| Error::invalid(store.root(), format!("manifest of image {}: {e}", image.id)))?,
        None => json!({"schemaVersion": 2}),
    };
    let stated = |value: &Value| {
        let layers = value.pointer("/layers").and_then(Value::as_array)?;
        let digests = layers.iter().map(|layer| layer.pointer("/digest").and_then(Value::as_str).map(str::to_owned));
        digests.collect::<Option<Vec<String>>>()
    };
    let same_layers =
        stated(&value).is_some_and(|digests| digests.iter().eq(layers.iter().map(|(_, digest, _)| digest)));
    let same_type = value.pointer("/mediaType").is_none_or(|media_type| media_type == MANIFEST);
    if let (Some(bytes), true, true) = (loaded, same_layers, same_type) {
        return Ok(bytes);
    }
    let Some(object) = value.as_object_mut() else {
        return Err(Error::invalid(store.root(), format!("manifest of image {} is no object", image.id)));
    };
    object.insert("schemaVersion".to_owned(), json!(2));
    object.insert("mediaType".to_owned(), json!(MANIFEST));
    let config = json!({"mediaType": CONFIG, "digest": config_digest.to_string(), "size": config.len()});
    object.insert("config".to_owned(), config);
    let describe = |(media_type, digest, size): &(String, String, u64)| json!({"mediaType": media_type, "digest": digest, "size": size});
    object.insert("layers".to_owned(), layers.iter().map(describe).collect());
    encode(store.root(), &value)
}

fn encode(path: &Path, value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::invalid(path, error.to_string()))
}

#[derive(Clone)]
struct LayerBlob {
    digest: Digest,
    diff_id: Digest,
    size: u64,
    compression: Compression,
}

/// Writes a layer's tar, compressed; its diff ID, the blob's digest and size in bytes.
fn write_tar(
    store: &Store,
    layer: &Stored<Layer>,
    compression: Compression,
    out: &mut (dyn Write + Send),
    on_event: &OnEvent<'_>,
) -> Result<(Digest, Digest, u64)> {
    let archive = |source| Error::Archive { path: store.root().to_path_buf(), source };
    let blob = Hashing::new(out, Algorithm::Sha256);
    let compressor = Compressor::new(blob, compression, None).map_err(archive)?;
    let mut tar = Reported { inner: Hashing::new(compressor, Algorithm::Sha256), on_event };
    store.diff(None, &layer.id, &mut tar, &DiffOptions { compression: Some(DiffCompression::None) })?;
    let (compressor, diff_id, _) = tar.inner.finish();
    let blob = compressor.finish().map_err(Error::io("write the blob of layer", layer.id.as_str()))?;
    let (_, digest, size) = blob.finish();
    Ok((diff_id, digest, size))
}

/// Says how much has been written.
struct Reported<'p, W> {
    inner: Hashing<W>,
    on_event: &'p OnEvent<'p>,
}

impl<W: Write> Write for Reported<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        (self.on_event)(Event::Bytes(self.inner.byte_count()));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
