//! Restoring damaged files of a layer from the blob that it was filled from, instead of deleting the layer.
//!
//! tar-split has the checksum of every file, so which ones are damaged is known. They are made anew aside, in a temporary
//! directory of the driver, without a lock; only when the whole blob has turned out to be the layer's are they renamed into
//! place, one by one, under the layers' lock. A process that is killed leaves each file old or new, and nothing else
//! that the next open does not remove.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use graph_archive::compress::Decompressor;
use graph_archive::digest::{Digest, Hashing};
use graph_archive::limits::Limits;
use graph_archive::restore;
use graph_archive::split::{Assembled, damaged};
use graph_archive::verify::{CompareOptions, Difference, ExpectedTree, members};
use graph_core::LayerId;
use graph_core::fsutil;
use graph_core::tempdir::{TempDir, TempDirRoot};
use graph_sys::fs;

use crate::error::{Error, Result, fault};
use crate::records::Layer;
use crate::store::{Store, Stored};

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The files' names in the archive (lossy).
    pub files: Vec<String>,
    /// Paths of what was taken away since no archive states it (lossy), directories with all that was in them.
    pub removed: Vec<String>,
    /// Layers that are mounted and have this one in their chain. Who has a damaged file open, or has looked at it in such a
    /// mount, may go on seeing the old content until that is unmounted.
    pub mounted: Vec<String>,
}

impl Store {
    /// The files of a layer whose contents are not what it was filled with (names as in its archive, lossy). None for a
    /// layer whose archive is not known.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; I/O; a damaged tar-split.
    pub fn damaged_files(&self, layer: &str) -> Result<Vec<String>> {
        let layer = self.layer(layer)?;
        let id = LayerId::new(layer.id.clone())?;
        if self.tar_split(&layer)?.is_none() {
            return Ok(Vec::new());
        }
        let getter = self.driver().diff_getter(&id)?;
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        let files = damaged(self.records_of(&layer)?, &*getter).map_err(archive)?;
        Ok(files.into_iter().map(|file| String::from_utf8_lossy(&file.name).into_owned()).collect())
    }

    /// Restores all damaged files of a layer from its blob, compressed or not, with what the blob states of them. Nothing else of
    /// the layer is touched; if no file is damaged the blob is not read.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::ReadOnlyStore`]; [`Error::DigestMismatch`] when the blob is not the layer's;
    /// nothing was changed then. [`Error::StillDamaged`] when the layer's archive is still not what it was afterwards. I/O, `ENOSPC`
    /// among them: some files may have been restored, the others are as before.
    pub fn restore_layer(&self, layer: &str, blob: &mut (dyn Read + Send)) -> Result<Restored> {
        let layer = self.layer(layer)?;
        self.writable(&layer, || format!("layer {}", layer.id))?;
        if self.compare_options().ignore_modes {
            return Err(Error::InvalidArgument {
                problem: format!(
                    "layer {} was made with force_mask: its files cannot be restored one by one",
                    layer.id
                ),
            });
        }
        let id = LayerId::new(layer.id.clone())?;
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        let expected: Digest =
            layer.diff_digest.parse().map_err(|_| Error::InvalidDigest { digest: layer.diff_digest.clone() })?;
        let wanted = {
            let getter = self.driver().diff_getter(&id)?;
            damaged(self.records_of(&layer)?, &*getter).map_err(archive)?
        };
        if wanted.is_empty() {
            return Ok(Restored::default());
        }
        let content = self.driver().content_directory(&id)?;
        let temporary = self.staging_for(&content, &id)?;
        let staging = fsutil::open_directory(temporary.path())?;

        let decompressed = Decompressor::new(blob, &Limits::NONE).map_err(archive)?;
        let mut hashing = Hashing::new(decompressed, expected.algorithm());
        let mappings = layer.mappings();
        let staged = restore::stage(&mut hashing, &wanted, &staging, &mappings).map_err(archive)?;
        let (_, found, _) = hashing.finish();
        if found != expected {
            return Err(Error::DigestMismatch {
                id: layer.id.clone(),
                which: "uncompressed blob",
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        fault("restore.staged")?;
        {
            let layers = self.layers.records.write()?;
            let now = layers.table().by_id(&layer.id);
            if now.is_none_or(|now| now.diff_digest != layer.diff_digest || now.is_incomplete()) {
                return Err(Error::LayerChanged { id: layer.id.clone() });
            }
            for file in &staged {
                file.commit(&content, &staging, &mappings).map_err(archive)?;
                fault("restore.placed")?;
            }
        }
        drop(staging);
        temporary.finish()?;
        self.verify_restored(&layer, expected)?;
        Ok(Restored {
            removed: Vec::new(),
            files: staged.iter().map(|file| String::from_utf8_lossy(&file.path).into_owned()).collect(),
            mounted: self.mounted_upon(&layer.id)?,
        })
    }

    /// Gives what lies in a layer's own files the owners, modes, times and attributes back that the layer's archive states, and
    /// takes away what no archive states. That needs no blob: tar-split has all of it. Nothing is done to a layer that has no tar-split,
    /// or is on one that has none.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::ReadOnlyStore`]. [`Error::StillDamaged`] when the archive of the layer or of one below it
    /// is not what it was: nothing was changed then. I/O: what was put right before stays so.
    pub fn restore_attributes(&self, layer: &str) -> Result<Restored> {
        let layer = self.layer(layer)?;
        self.writable(&layer, || format!("layer {}", layer.id))?;
        let options = CompareOptions { mappings: layer.mappings(), at_most: 0, ..self.compare_options() };
        let id = LayerId::new(layer.id.clone())?;
        let mut chain = self.layer_tables()?.chain(&layer.id);
        chain.reverse();
        if options.ignore_modes || chain.first().is_none_or(|base| !base.parent.is_empty()) {
            return Ok(Restored::default());
        }
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        let compare = |tree: &ExpectedTree| -> Result<Vec<Difference>> {
            tree.compare(self.driver().peek(&id)?.as_fd(), &options).map_err(archive)
        };
        let mut tree = ExpectedTree::default();
        for below in &chain {
            if self.tar_split(below)?.is_none() {
                return Ok(Restored::default());
            }
            tree.apply(&members(Assembled::headers(self.records_of(below)?), &Limits::NONE).map_err(archive)?);
        }
        if compare(&tree)?.is_empty() {
            return Ok(Restored::default());
        }
        // Before anything is believed, the digests tell whether the archives are what they were.
        for below in &chain {
            let invalid = |_| Error::InvalidDigest { digest: below.diff_digest.clone() };
            self.verify_restored(below, below.diff_digest.parse().map_err(invalid)?)?;
        }
        let content = self.driver().content_directory(&id)?;
        let amended = {
            let layers = self.layers.records.write()?;
            let now = layers.table().by_id(&layer.id);
            if now.is_none_or(|now| now.diff_digest != layer.diff_digest || now.is_incomplete()) {
                return Err(Error::LayerChanged { id: layer.id.clone() });
            }
            let amended = tree.amend(&content, &compare(&tree)?, &options).map_err(archive)?;
            graph_sys::sync::syncfs(&content).map_err(|error| Error::io("flush", layer.id.as_str(), error))?;
            amended
        };
        let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
        Ok(Restored {
            files: amended.restored.iter().map(text).collect(),
            removed: amended.removed.iter().map(text).collect(),
            mounted: self.mounted_upon(&layer.id)?,
        })
    }

    /// A temporary directory on the file system that the layer's files are on.
    fn staging_for(&self, content: &OwnedFd, id: &LayerId) -> Result<TempDir> {
        let device = |fd: &dyn AsFd| fs::fstat(fd.as_fd()).map(|stat| stat.st_dev).ok();
        let here = device(content);
        for root in self.driver().temp_dir_roots() {
            let root = TempDirRoot::create(root)?;
            let made = root.make()?;
            if device(&fsutil::open_directory(made.path())?) == here {
                return Ok(made);
            }
            made.finish()?;
        }
        Err(Error::InvalidArgument {
            problem: format!("layer {id}: the driver has no temporary directory on the file system of the layer"),
        })
    }

    fn verify_restored(&self, layer: &Stored<Layer>, expected: Digest) -> Result<()> {
        let id = LayerId::new(layer.id.clone())?;
        let getter = self.driver().diff_getter(&id)?;
        let still = |source| Error::StillDamaged { id: layer.id.clone(), source };
        match self.read_assembled(layer, expected.algorithm(), &*getter, &|_| ()) {
            Ok((found, _, _)) if found == expected => Ok(()),
            Ok(_) => Err(still(None)),
            Err(Error::Archive { source, .. }) => Err(still(Some(source))),
            Err(error) => Err(error),
        }
    }

    /// The mounted layers that are on this one, or it itself.
    fn mounted_upon(&self, id: &str) -> Result<Vec<String>> {
        let tables = self.layer_tables()?;
        let mounts = self.mounts.read()?;
        let on_it = |row: &str| tables.chain(row).iter().any(|layer| layer.id == id);
        Ok(mounts.iter().filter(|row| row.count > 0 && on_it(&row.id)).map(|row| row.id.clone()).collect())
    }
}
