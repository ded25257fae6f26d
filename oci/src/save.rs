//! Images out of a store into an OCI layout.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use graph_archive::compress::{Compression, Compressor};
use graph_archive::digest::{Algorithm, Digest, Hashing};
use graph_store::{DiffCompression, DiffOptions, Image, Layer, Store, Stored};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::image::REF_NAME;
use crate::load::{Event, OnEvent};

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

/// Writes an image into the OCI layout at `dir`, which is made when it is not there; other images in it stay, one of the
/// same `name` is replaced in its index. Each layer's tar is put together from the store and has its recorded diff ID, or
/// nothing is added to the index.
///
/// # Errors
/// Those of the store, [`graph_store::Error::DigestMismatch`]-like ones as [`Error::Invalid`]; I/O errors. Blobs of the failed
/// call that no index names may stay in the layout, under their right digests.
pub fn save(
    store: &Store,
    image: &Stored<Image>,
    dir: &Path,
    name: Option<&str>,
    compression: SaveCompression,
    on_event: &OnEvent<'_>,
) -> Result<Saved> {
    let layout = Layout::open(dir)?;
    let chain = chain(store, image.layer.as_str())?;
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    let mut bytes = 0_u64;
    for (index, layer) in chain.iter().enumerate() {
        let blob = layout.layer(store, layer, index, chain.len(), compression, on_event)?;
        bytes = bytes.saturating_add(blob.size);
        let suffix = match blob.compression {
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
            _ => "",
        };
        descriptors.push((format!("{LAYER}{suffix}"), blob.digest.to_string(), blob.size));
        diff_ids.push(blob.diff_id.to_string());
    }
    let config = config(store, image, &diff_ids)?;
    let config_digest = layout.document(&config)?;
    let manifest = manifest(store, image, &config, &config_digest, &descriptors)?;
    let manifest_digest = layout.document(&manifest)?;
    layout.name(&manifest_digest, manifest.len(), name)?;
    Ok(Saved { manifest: manifest_digest, layers: chain.len(), bytes })
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
    temporary: &Temporary,
    on_event: &OnEvent<'_>,
) -> Result<(Digest, Digest, u64)> {
    let archive = |source| Error::Archive { path: temporary.path.clone(), source };
    let blob = Hashing::new(&temporary.file, Algorithm::Sha256);
    let compressor = Compressor::new(blob, compression, None).map_err(archive)?;
    let mut tar = Reported { inner: Hashing::new(compressor, Algorithm::Sha256), on_event };
    store.diff(None, &layer.id, &mut tar, &DiffOptions { compression: Some(DiffCompression::None) })?;
    let (compressor, diff_id, _) = tar.inner.finish();
    let blob = compressor.finish().map_err(Error::io("write", &temporary.path))?;
    let (_, digest, size) = blob.finish();
    Ok((diff_id, digest, size))
}

/// An OCI layout being written.
struct Layout {
    dir: PathBuf,
}

impl Layout {
    fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256")).map_err(Error::io("create", dir.join("blobs/sha256")))?;
        let layout = Self { dir: dir.to_path_buf() };
        if !dir.join("oci-layout").exists() {
            layout.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(layout)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Writes beside, then renames: a reader sees the old file or the new one.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let temporary = Temporary::create(&self.dir)?;
        (&temporary.file).write_all(bytes).map_err(Error::io("write", &temporary.path))?;
        temporary.keep(&path)
    }

    fn document(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.replace(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(digest)
    }

    fn layer(
        &self,
        store: &Store,
        layer: &Stored<Layer>,
        index: usize,
        count: usize,
        compression: SaveCompression,
        on_event: &OnEvent<'_>,
    ) -> Result<LayerBlob> {
        let compression = match compression {
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
        on_event(Event::Layer { diff_id: recorded.as_ref().unwrap_or(&nothing), index, count, bytes });

        let temporary = Temporary::create(&self.dir)?;
        let (diff_id, digest, size) = write_tar(store, layer, compression, &temporary, on_event)?;
        if let Some(recorded) = recorded.filter(|recorded| *recorded != diff_id) {
            let problem = format!("its tar has digest {diff_id}, its record says {recorded}: run check --repair");
            return Err(Error::invalid(store.root(), format!("layer {}: {problem}", layer.id)));
        }
        temporary.keep(&self.blob(&digest))?;
        on_event(Event::LayerDone);
        Ok(LayerBlob { digest, diff_id, size, compression })
    }

    /// Puts the manifest into the index, in the place of whatever had the name.
    fn name(&self, manifest: &Digest, size: usize, name: Option<&str>) -> Result<()> {
        let path = self.dir.join("index.json");
        let mut index: Value = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::invalid(&path, error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let mut entry = json!({"mediaType": MANIFEST, "digest": manifest.to_string(), "size": size});
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
        let bytes = encode(&path, &index)?;
        self.replace("index.json", &bytes)
    }
}

/// A file that goes away unless it is kept.
struct Temporary {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Temporary {
    fn create(dir: &Path) -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!(".graphdriver-{}-{number}.tmp", std::process::id()));
            match File::create_new(&path) {
                Ok(file) => return Ok(Self { path, file, kept: false }),
                // A killed process once had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", path)(error)),
            }
        }
    }

    /// On disk first, then under its name.
    fn keep(mut self, path: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        fs::rename(&self.path, path).map_err(Error::io("rename to", path))?;
        self.kept = true;
        let parent = path.parent().unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", parent))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // The error that brought us here is the one to report.
            drop(fs::remove_file(&self.path));
        }
    }
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
