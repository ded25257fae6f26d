//! An image in files, opened for reading: its manifest, its config, its layers.

use std::io::Read;
use std::path::Path;

use graph_archive::digest::{Digest, Hasher};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files::Files;
use crate::reference::{Reference, Transport};

/// The annotation that names an image in an index (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Media type of the manifest that is made for images of a docker-archive, which has none of its own.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// One layer of an image in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob as it lies there, where a manifest states it.
    pub blob: Option<Digest>,
    /// The blob's size in bytes, where a manifest states it.
    pub size: Option<u64>,
    /// The blob's media type, where a manifest states it.
    pub media_type: Option<String>,
    file: String,
}

/// An image in files.
#[derive(Debug)]
pub struct SourceImage {
    files: Files,
    docker: bool,
    /// The manifest's bytes, as they are in the files; for a docker-archive, as made from it.
    pub manifest: Vec<u8>,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// The config's bytes, as they are in the files.
    pub config: Vec<u8>,
    /// The config's digest: the image's ID is its hex part.
    pub config_digest: Digest,
    /// The layers, the base first.
    pub layers: Vec<SourceLayer>,
    /// Names that the files give the image, as they state them.
    pub names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl SourceImage {
    /// Opens the image that `reference` names, checking the digests of its index, manifest and config. Layers are only
    /// looked up; whoever reads them checks them.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when the name fits none, or none was given and there are several; [`Error::Invalid`] for files
    /// that are no image, or where the layers and the diff IDs differ in number; I/O errors.
    pub fn open(reference: &Reference) -> Result<Self> {
        Self::open_for(reference, &Platform::here())
    }

    /// As [`SourceImage::open`], for another platform than the one we run on. An image that is there for one platform
    /// only is taken all the same when nothing says which.
    ///
    /// # Errors
    /// As [`SourceImage::open`].
    pub fn open_for(reference: &Reference, platform: &Platform) -> Result<Self> {
        let files = Files::open(&reference.path)?;
        if is_docker(&files, reference) {
            return Self::open_docker(files, reference);
        }
        let index = index(&files)?;
        let descriptor = choose(&files, &index, reference.name.as_deref(), platform)?;
        Self::open_layout(files, descriptor, platform)
    }

    /// Opens all images of a layout or archive, each once.
    ///
    /// # Errors
    /// As [`SourceImage::open`], of the first that fails; [`Error::Ambiguous`] when there is none.
    pub fn open_all(reference: &Reference, platform: &Platform) -> Result<Vec<Self>> {
        let files = Files::open(&reference.path)?;
        let path = reference.path.as_path();
        let mut all: Vec<Self> = Vec::new();
        if is_docker(&files, reference) {
            for image in docker_images(&files)? {
                all.push(Self::of_docker(files.again()?, image)?);
            }
        } else {
            for descriptor in index(&files)?.manifests() {
                let image = Self::open_layout(files.again()?, descriptor.clone(), platform)?;
                // One image by several names is still one.
                match all.iter_mut().find(|known| known.manifest_digest == image.manifest_digest) {
                    Some(known) => known.names.extend(image.names),
                    None => all.push(image),
                }
            }
        }
        if all.is_empty() {
            return Err(ambiguous(path, None, Vec::new()));
        }
        Ok(all)
    }

    fn open_layout(files: Files, descriptor: Descriptor, platform: &Platform) -> Result<Self> {
        let docker = false;
        let path = &files.path().to_path_buf();
        let mut names: Vec<String> = Vec::new();
        names.extend(descriptor.annotations().as_ref().and_then(|all| all.get(REF_NAME)).cloned());
        let mut manifest = verified(&files, &descriptor)?;
        let mut manifest_digest = digest_of(path, &descriptor)?;
        // An image for several platforms: one is wanted. An index inside an index inside an index is nobody's.
        for _ in 0..2 {
            let Some(inner) = nested(path, &manifest)? else { break };
            let chosen = platform.choose(path, &inner)?;
            manifest = verified(&files, &chosen)?;
            manifest_digest = digest_of(path, &chosen)?;
        }
        let parsed: ImageManifest = parse(path, "the manifest", &manifest)?;
        let config = verified(&files, parsed.config())?;
        let config_digest = digest_of(path, parsed.config())?;
        let diff_ids = diff_ids(path, &config)?;
        if parsed.layers().len() != diff_ids.len() {
            let problem = format!("{} layers, but {} diff IDs in the config", parsed.layers().len(), diff_ids.len());
            return Err(Error::invalid(path, problem));
        }
        let mut layers = Vec::new();
        for (descriptor, diff_id) in parsed.layers().iter().zip(diff_ids) {
            let blob = digest_of(path, descriptor)?;
            layers.push(SourceLayer {
                diff_id,
                file: blob_name(&blob),
                blob: Some(blob),
                size: Some(descriptor.size()),
                media_type: Some(descriptor.media_type().to_string()),
            });
        }
        Ok(Self { files, docker, manifest, manifest_digest, config, config_digest, layers, names })
    }

    fn open_docker(files: Files, reference: &Reference) -> Result<Self> {
        let path = reference.path.as_path();
        let images = docker_images(&files)?;
        let tags = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
        let all: Vec<String> = images.iter().flat_map(tags).collect();
        let mut fitting: Vec<DockerImage> = match &reference.name {
            None => images,
            Some(name) => images.into_iter().filter(|image| tags(image).iter().any(|tag| same(tag, name))).collect(),
        };
        let (Some(image), true) = (fitting.pop(), fitting.is_empty()) else {
            return Err(ambiguous(path, reference.name.as_deref(), all));
        };
        Self::of_docker(files, image)
    }

    fn of_docker(files: Files, image: DockerImage) -> Result<Self> {
        let docker = true;
        let path = &files.path().to_path_buf();
        let config = files.document(&image.config)?;
        let config_digest = Digest::of(&config);
        let diff_ids = diff_ids(path, &config)?;
        if image.layers.len() != diff_ids.len() {
            let problem = format!("{} layers, but {} diff IDs in the config", image.layers.len(), diff_ids.len());
            return Err(Error::invalid(path, problem));
        }
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        for (file, diff_id) in image.layers.iter().zip(diff_ids) {
            let size = files.stream(file)?.1;
            descriptors
                .push(serde_json::json!({"mediaType": DOCKER_LAYER, "size": size, "digest": diff_id.to_string()}));
            layers.push(SourceLayer { diff_id, blob: None, size: None, media_type: None, file: file.to_owned() });
        }
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": config.len(), "digest": config_digest.to_string()},
            "layers": descriptors});
        let manifest = serde_json::to_vec(&manifest).map_err(|e| Error::invalid(path, e.to_string()))?;
        let manifest_digest = Digest::of(&manifest);
        let names = image.repo_tags.unwrap_or_default();
        Ok(Self { files, docker, manifest, manifest_digest, config, config_digest, layers, names })
    }

    /// The layout directory or archive.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// Whether it comes from a docker-archive, whose names without a registry mean Docker Hub.
    #[must_use]
    pub fn is_docker(&self) -> bool {
        self.docker
    }

    /// Opens a layer's blob, as it lies there; its size in bytes.
    ///
    /// # Errors
    /// I/O errors; [`Error::Invalid`] when the blob is missing or has another size than the manifest states.
    pub fn open_layer(&self, layer: &SourceLayer) -> Result<(Box<dyn Read + Send>, u64)> {
        let (reader, size) = self.files.stream(&layer.file)?;
        match layer.size {
            Some(stated) if stated != size => {
                let problem = format!("blob {} has {size} bytes; the manifest says {stated}", layer.file);
                Err(Error::invalid(self.path(), problem))
            }
            _ => Ok((reader, size)),
        }
    }
}

/// `docker.io/library/x:latest` and `x` are one name.
fn same(a: &str, b: &str) -> bool {
    fn short(name: &str) -> &str {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        name.strip_suffix(":latest").unwrap_or(name)
    }
    short(a) == short(b)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn ambiguous(path: &Path, name: Option<&str>, names: Vec<String>) -> Error {
    let problem = name.map_or_else(
        || "name the image to take, as there is not exactly one".to_owned(),
        |name| format!("has no image named {name:?}"),
    );
    Error::Ambiguous { path: path.to_path_buf(), problem, names }
}

fn is_docker(files: &Files, reference: &Reference) -> bool {
    match reference.transport {
        Some(Transport::DockerArchive) => true,
        Some(_) => false,
        None => !files.has("index.json"),
    }
}

fn index(files: &Files) -> Result<ImageIndex> {
    if !files.has("index.json") {
        return Err(Error::invalid(files.path(), "has no index.json, so it is no OCI image layout"));
    }
    parse(files.path(), "index.json", &files.document("index.json")?)
}

fn docker_images(files: &Files) -> Result<Vec<DockerImage>> {
    if !files.has("manifest.json") {
        let problem = "has neither index.json nor manifest.json, so it is no OCI layout and no docker-archive";
        return Err(Error::invalid(files.path(), problem));
    }
    parse(files.path(), "manifest.json", &files.document("manifest.json")?)
}

/// The image of that name or digest. A digest may also be one of a manifest in an index within the index.
fn choose(files: &Files, index: &ImageIndex, name: Option<&str>, platform: &Platform) -> Result<Descriptor> {
    let path = files.path();
    let named = |d: &Descriptor| d.annotations().as_ref().and_then(|all| all.get(REF_NAME)).cloned();
    let wanted = name.map(|name| name.strip_prefix('@').unwrap_or(name));
    let fits = |d: &&Descriptor| {
        name.is_none_or(|name| named(d).is_some_and(|n| n == name)) || wanted == Some(d.digest().as_ref())
    };
    let fitting: Vec<&Descriptor> = index.manifests().iter().filter(fits).collect();
    match fitting.as_slice() {
        // One image by several names is still one.
        [first, rest @ ..] if rest.iter().all(|d| d.digest() == first.digest()) => return Ok((*first).clone()),
        // One name for several platforms, without an index of its own.
        [_, ..] => {
            let mut on: Vec<&Descriptor> = fitting.into_iter().filter(|d| platform.fits(d)).collect();
            on.dedup_by(|a, b| a.digest() == b.digest());
            if let [only] = on.as_slice() {
                return Ok((*only).clone());
            }
        }
        [] if wanted.is_some_and(|wanted| wanted.parse::<Digest>().is_ok()) => {
            for outer in index.manifests().iter().take(MOST_INDEXES) {
                let Some(inner) = verified(files, outer).ok().and_then(|bytes| nested(path, &bytes).ok().flatten())
                else {
                    continue;
                };
                if let Some(found) = inner.manifests().iter().find(|d| wanted == Some(d.digest().as_ref())) {
                    return Ok(found.clone());
                }
            }
        }
        [] => {}
    }
    Err(ambiguous(path, name, index.manifests().iter().filter_map(named).collect()))
}

/// How many indexes within an index are looked into for a digest.
const MOST_INDEXES: usize = 1000;

/// The index that `manifest` is, if it is one.
fn nested(path: &Path, manifest: &[u8]) -> Result<Option<ImageIndex>> {
    #[derive(Deserialize)]
    struct Either {
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let either: Either = parse(path, "the manifest", manifest)?;
    if either.manifests.is_none() {
        return Ok(None);
    }
    // A document that can be read both ways is read differently by different tools (CVE-2021-41190).
    if either.layers.is_some() || either.config.is_some() {
        return Err(Error::invalid(path, "a document that is both an index and a manifest"));
    }
    parse(path, "the image index", manifest).map(Some)
}

/// What an image is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux` as a rule.
    pub os: String,
    /// In Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// `v8`, say; `None` for whichever comes first.
    pub variant: Option<String>,
}

impl Platform {
    /// The one that this program runs on.
    #[must_use]
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Parses `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone.
    ///
    /// # Errors
    /// [`Error::Reference`] for an empty part or more of them.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [architecture] => ("linux", *architecture, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant.as_deref() == Some("") {
            let problem = "a platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT".to_owned();
            return Err(Error::Reference { reference: text.to_owned(), problem });
        }
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }

    fn fits(&self, descriptor: &Descriptor) -> bool {
        descriptor.platform().as_ref().is_some_and(|found| {
            found.os().to_string() == self.os
                && found.architecture().to_string() == self.architecture
                && self.variant.as_ref().is_none_or(|variant| found.variant().as_ref() == Some(variant))
        })
    }

    fn choose(&self, path: &Path, index: &ImageIndex) -> Result<Descriptor> {
        let only = index.manifests().first().filter(|_| index.manifests().len() == 1);
        // One that states nothing is for everybody; one that states another is not for us.
        let only = only.filter(|only| only.platform().is_none());
        let found = index.manifests().iter().find(|descriptor| self.fits(descriptor)).or(only);
        found.cloned().ok_or_else(|| Error::invalid(path, format!("has no image for {self}")))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

fn diff_ids(path: &Path, config: &[u8]) -> Result<Vec<Digest>> {
    let parsed: ImageConfiguration = parse(path, "the image's config", config)?;
    parsed.rootfs().diff_ids().iter().map(|text| digest(path, text)).collect()
}

fn digest(path: &Path, text: &str) -> Result<Digest> {
    text.parse().map_err(|_| Error::invalid(path, format!("{text:?} is no digest")))
}

fn digest_of(path: &Path, descriptor: &Descriptor) -> Result<Digest> {
    digest(path, descriptor.digest().as_ref())
}

/// A document by its descriptor, with its size and digest checked.
fn verified(files: &Files, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let wanted = digest_of(files.path(), descriptor)?;
    let bytes = files.document(&blob_name(&wanted))?;
    if bytes.len() as u64 != descriptor.size() {
        let problem = format!("blob {wanted} has {} bytes; its descriptor says {}", bytes.len(), descriptor.size());
        return Err(Error::invalid(files.path(), problem));
    }
    let mut hasher = Hasher::new(wanted.algorithm());
    hasher.update(&bytes);
    if hasher.finish() != wanted {
        return Err(Error::invalid(files.path(), format!("blob {wanted} has another digest")));
    }
    Ok(bytes)
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, what: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(path, format!("{what} does not parse: {error}")))
}
