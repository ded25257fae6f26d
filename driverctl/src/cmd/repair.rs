//! Restoring damaged files of layers from images in files, or from blobs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use graph_oci::{Reference, SourceImage, Transport};
use graph_store::{Layer, Restored, Store, Stored};

use super::{Outcome, chain};
use crate::{output, progress};

/// Where blobs of layers can be had.
enum Source {
    /// A directory of blobs by digest (an OCI layout), and the image in it, if it is clear which.
    Layout(PathBuf, Option<Box<SourceImage>>),
    /// An archive of an image.
    Archive(Box<SourceImage>),
    /// The blob of one layer.
    Blob(PathBuf),
}

impl Source {
    fn open(text: &str) -> Result<Self> {
        let reference = Reference::parse(text)?;
        if reference.path.is_dir() {
            // With several images and no name all blobs are there just the same.
            let image = SourceImage::open(&reference);
            let image = if reference.name.is_some() { Some(image?) } else { image.ok() };
            return Ok(Self::Layout(reference.path, image.map(Box::new)));
        }
        let archive = matches!(reference.transport, Some(Transport::OciArchive | Transport::DockerArchive));
        match SourceImage::open(&reference) {
            Ok(image) => Ok(Self::Archive(Box::new(image))),
            Err(error) if archive || reference.transport.is_some() => Err(error.into()),
            // A layer's tar is no image.
            Err(_) => Ok(Self::Blob(reference.path)),
        }
    }

    /// The blob of a layer; `None` when it is not here.
    fn blob(&self, layer: &Layer) -> Result<Option<Box<dyn Read + Send>>> {
        let from_image = |image: &SourceImage| -> Result<Option<Box<dyn Read + Send>>> {
            let found = image.layers.iter().find(|source| source.diff_id.to_string() == layer.diff_digest);
            found.map(|found| Ok(image.open_layer(found)?.0)).transpose()
        };
        match self {
            Self::Layout(dir, image) => {
                for digest in [&layer.compressed_digest, &layer.diff_digest] {
                    if let Some(path) = blob_path(dir, digest).filter(|path| path.is_file()) {
                        return Ok(Some(Box::new(open(&path)?)));
                    }
                }
                image.as_deref().map_or(Ok(None), from_image)
            }
            Self::Archive(image) => from_image(image),
            Self::Blob(path) => Ok(Some(Box::new(open(path)?))),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

/// Where a layout has a blob. Digests in records may be anything; only hexadecimal ones become names.
fn blob_path(dir: &Path, digest: &str) -> Option<PathBuf> {
    let (algorithm, hex) = digest.split_once(':')?;
    let good = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric());
    (good(algorithm) && good(hex)).then(|| dir.join("blobs").join(algorithm).join(hex))
}

/// Restores the damaged files of a layer, of an image's or a container's layers, or of all.
pub(crate) fn restore(store: &Store, only: Option<&str>, from: &str, json: bool) -> Result<Outcome> {
    let layers: Vec<Stored<Layer>> = match only {
        Some(only) => store.layers_of(only)?,
        None => store.layers()?,
    };
    let mut source: Option<Source> = None;
    let mut restored: BTreeMap<String, Restored> = BTreeMap::new();
    let mut outcome = Outcome::Done;
    for layer in layers.iter().filter(|layer| !layer.is_read_only() && !layer.diff_digest.is_empty()) {
        let files = match store.damaged_files(&layer.id) {
            Ok(files) => files,
            Err(error) => {
                output::complain(&chain(error));
                outcome = Outcome::Failed;
                continue;
            }
        };
        let mut result = Ok(Restored::default());
        if !files.is_empty() {
            let source = match &mut source {
                Some(source) => source,
                none => none.insert(Source::open(from)?),
            };
            let Some(blob) = source.blob(layer)? else {
                let count = files.len();
                output::complain(&format!("layer {}: {count} damaged files, and {from} has no blob of it", layer.id));
                outcome = Outcome::Failed;
                continue;
            };
            let bar = progress::bytes("restoring", u64::try_from(layer.compressed_size).ok());
            result = store.restore_layer(&layer.id, &mut bar.wrap_read(blob));
            bar.finish_and_clear();
        }
        // The rest when the contents are what they were.
        let result = result.and_then(|contents| {
            let mut done = store.restore_attributes(&layer.id)?;
            done.files.splice(0..0, contents.files);
            if done.mounted.is_empty() {
                done.mounted = contents.mounted;
            }
            Ok(done)
        });
        match result {
            Ok(done) if done.files.is_empty() && done.removed.is_empty() => {}
            Ok(done) => {
                for mounted in &done.mounted {
                    output::complain(&format!(
                        "layer {} was restored while layer {mounted} is mounted on it: unmount and mount that again, it may \
                         go on showing what was damaged",
                        layer.id
                    ));
                }
                restored.insert(layer.id.clone(), done);
            }
            Err(error) => {
                output::complain(&chain(error));
                outcome = Outcome::Failed;
            }
        }
    }
    if json {
        let paths = |done: &Restored| -> Vec<String> { done.files.iter().chain(&done.removed).cloned().collect() };
        output::json(&restored.iter().map(|(layer, done)| (layer, paths(done))).collect::<BTreeMap<_, _>>())?;
    } else {
        for (layer, done) in &restored {
            for (what, paths) in [("restored", &done.files), ("removed", &done.removed)] {
                for path in paths {
                    output::line(&format!("{layer}: {what} {}", output::quoted(path.as_bytes())))?;
                }
            }
        }
    }
    Ok(outcome)
}
