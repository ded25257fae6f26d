//! Looking at one layer: its data items, its archive put together again, its tree.

use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use graph_archive::compress::Decompressor;
use graph_archive::digest::{Algorithm, Digest, Hashing};
use graph_archive::limits::Limits;
use graph_archive::split::{Assembled, FileGetter, damaged};
use graph_archive::verify::{CompareOptions, ExpectedTree, members};
use graph_archive::{Entry, ErrorKind as ArchiveErrorKind};
use graph_core::driver::DiffRequest;
use graph_core::{ErrorKind as DriverErrorKind, LayerId};

use super::report::{Defect, ObjectKind, Problem};
use super::{text, text_of};
use crate::bigdata;
use crate::error::{Error, Result};
use crate::layers::tar_split_name;
use crate::records::Layer;
use crate::store::{Store, Stored};

/// Differences that are told of one layer; more tell nobody more.
const TOLD: usize = 100;

/// A layer, looked at alone.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) problems: Vec<Problem>,
    /// What its archive states; `None` where that is not known.
    pub(super) members: Option<Vec<Entry>>,
}

/// Counts the bytes that were read, for a progress bar.
pub(super) struct Counted<'c, R> {
    pub(super) inner: R,
    pub(super) count: &'c (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        (self.count)(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

pub(super) fn problem(layer: &Stored<Layer>, defect: Defect) -> Problem {
    Problem { object: ObjectKind::Layer, id: layer.id.clone(), read_only: layer.is_read_only(), defect }
}

impl Store {
    /// The layer's data items and archive.
    pub(super) fn look_at_layer(
        &self,
        layer: &Stored<Layer>,
        digests: bool,
        data: bool,
        count: &(dyn Fn(u64) + Sync),
    ) -> Looked {
        let mut looked = Looked::default();
        if data {
            for key in &layer.big_data_names {
                if let Some(defect) = self.layer_item(layer, key) {
                    looked.problems.push(problem(layer, defect));
                }
            }
        }
        if digests && !layer.diff_digest.is_empty() {
            match self.regenerate(layer, count) {
                Ok((defects, members)) => {
                    looked.problems.extend(defects.into_iter().map(|defect| problem(layer, defect)));
                    looked.members = members;
                }
                Err(error) => {
                    looked.problems.push(problem(layer, Defect::Unusable { reason: text_of(&layer.id, &error) }));
                }
            }
        }
        looked
    }

    fn layer_item(&self, layer: &Stored<Layer>, key: &str) -> Option<Defect> {
        let read = || -> Result<bool> {
            let name = bigdata::file_name(key)?;
            let Some(dir) = self.layer_part(layer)?.dir.open_dir(&layer.id)? else { return Ok(false) };
            let Some(mut file) = dir.open_file(&name)? else { return Ok(false) };
            io::copy(&mut file, &mut io::sink()).map_err(|e| Error::io("read", dir.path().join(&name), e))?;
            Ok(true)
        };
        match read() {
            Ok(true) => None,
            Ok(false) => Some(Defect::DataMissing { key: key.to_owned() }),
            Err(error) => Some(Defect::Unusable { reason: format!("data item {key:?}: {}", text(&error)) }),
        }
    }

    /// Puts the layer's archive together again: what is wrong with it, and what it states.
    fn regenerate(
        &self,
        layer: &Stored<Layer>,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(Vec<Defect>, Option<Vec<Entry>>)> {
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        let invalid = || Error::InvalidDigest { digest: layer.diff_digest.clone() };
        let expected: Digest = layer.diff_digest.parse().map_err(|_| invalid())?;
        let id = LayerId::new(layer.id.clone())?;
        let (found, bytes, defects, members) = if self.tar_split(layer)?.is_some() {
            let getter = self.driver.diff_getter(&id)?;
            match self.read_assembled(layer, expected.algorithm(), &*getter, count) {
                Ok((found, bytes, members)) => (Some(found), bytes, Vec::new(), Some(members)),
                Err(Error::Archive { source, .. })
                    if matches!(source.kind(), ArchiveErrorKind::InvalidInput | ArchiveErrorKind::Io) =>
                {
                    // Which files: all of them, since each can be restored.
                    let files = damaged(self.records_of(layer)?, &*getter).map_err(archive)?;
                    let mut defects: Vec<Defect> = files
                        .into_iter()
                        .map(|file| Defect::Content { file: String::from_utf8_lossy(&file.name).into_owned() })
                        .collect();
                    if defects.is_empty() {
                        defects.push(Defect::Unusable { reason: text(&source) });
                    }
                    // What was stated is known all the same.
                    let members = members(Assembled::headers(self.records_of(layer)?), &Limits::NONE).ok();
                    (None, 0, defects, members)
                }
                Err(error) => return Err(error),
            }
        } else {
            let (found, bytes) = self.hash_diff(layer, &id, expected.algorithm(), count)?;
            (Some(found), bytes, Vec::new(), None)
        };
        let mut defects = defects;
        if let Some(found) = found {
            if found != expected {
                defects.push(Defect::IncorrectDigest);
                return Ok((defects, None));
            }
            if let Ok(expected) = u64::try_from(layer.diff_size)
                && expected != bytes
            {
                defects.push(Defect::IncorrectSize { found: bytes, expected });
            }
        }
        Ok((defects, members))
    }

    pub(crate) fn tar_split(&self, layer: &Stored<Layer>) -> Result<Option<std::fs::File>> {
        self.layer_part(layer)?.dir.open_file(&tar_split_name(&layer.id))
    }

    /// The layer's tar-split, uncompressed.
    pub(crate) fn records_of(&self, layer: &Stored<Layer>) -> Result<impl Read + use<>> {
        let name = tar_split_name(&layer.id);
        let path = || self.layer_part(layer).map(|part| part.dir.path().join(&name)).unwrap_or_default();
        let file = self.tar_split(layer)?;
        let file = file.ok_or_else(|| Error::io("open", path(), io::Error::from(io::ErrorKind::NotFound)))?;
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        Decompressor::new(BufReader::with_capacity(64 << 10, file), &Limits::NONE).map_err(archive)
    }

    pub(crate) fn read_assembled(
        &self,
        layer: &Stored<Layer>,
        algorithm: Algorithm,
        getter: &dyn FileGetter,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(Digest, u64, Vec<Entry>)> {
        let archive = |source| Error::Archive { id: layer.id.clone(), source };
        let assembled = Assembled::new(self.records_of(layer)?, getter);
        let mut hashing = Hashing::new(Counted { inner: assembled, count }, algorithm);
        let members = members(&mut hashing, &Limits::NONE).map_err(archive)?;
        let (_, digest, bytes) = hashing.finish();
        Ok((digest, bytes, members))
    }

    /// The digest of the diff that the driver finds, for layers whose own archive is not known.
    fn hash_diff(
        &self,
        layer: &Stored<Layer>,
        id: &LayerId,
        algorithm: Algorithm,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(Digest, u64)> {
        let tables = self.layer_tables()?;
        let parent = if layer.parent.is_empty() { None } else { tables.by_id(&layer.parent) };
        let parent_id = parent.as_ref().map(|parent| LayerId::new(parent.id.clone())).transpose()?;
        let request = DiffRequest {
            id,
            mappings: &layer.mappings(),
            parent: parent_id.as_ref(),
            parent_mappings: &parent.as_ref().map(|parent| parent.mappings()).unwrap_or_default(),
            mount_label: &layer.mount_label,
        };
        let mut hashing = Hashing::new(io::sink(), algorithm);
        self.driver.diff(&request, &mut hashing)?;
        let (_, digest, bytes) = hashing.finish();
        count(bytes);
        Ok((digest, bytes))
    }

    /// Whether the layer's tree can be looked into, and is the expected one where that is known.
    pub(super) fn look_at_tree(
        &self,
        layer: &Stored<Layer>,
        expected: Option<&Arc<ExpectedTree>>,
        options: &CompareOptions,
    ) -> Vec<Problem> {
        let unusable = |reason: String| vec![problem(layer, Defect::Unusable { reason })];
        let root = match LayerId::new(layer.id.clone()).map_err(Error::from).and_then(|id| Ok(self.driver.peek(&id)?)) {
            Ok(root) => root,
            Err(Error::Driver(error)) if error.kind() == DriverErrorKind::Unsupported => return Vec::new(),
            Err(error) => return unusable(text_of(&layer.id, &error)),
        };
        let Some(expected) = expected else { return Vec::new() };
        let options = CompareOptions { mappings: layer.mappings(), at_most: TOLD, ..options.clone() };
        match expected.compare(root.as_fd(), &options) {
            Ok(differences) => differences
                .iter()
                .map(|difference| problem(layer, Defect::Modified { difference: difference.to_string() }))
                .collect(),
            Err(error) => unusable(format!("reading its tree: {}", text(&error))),
        }
    }
}
