//! Filling layers from blobs: one pass, and the store's lock only for the moment in which the layer appears.
//!
//! ```text
//! no lock      blob -> decompress, both digests -> driver's staging directory      (staged.apply)
//!                                   \-> tar-split in <driver>-layers/tmp/temp-dir-…
//!              check the digests; syncfs
//! layers.lock  record, marked incomplete -> rename the files in -> record, complete
//! ```

use std::fs::File;
use std::io::Read;

use graph_archive::apply::ApplyReport;
use graph_archive::digest::Digest;
use graph_archive::idmap::IdMappings;
use graph_archive::pipeline::{self, Summary};
use graph_archive::split::{FileGetter, GzipPacker};
use graph_core::LayerId;
use graph_core::driver::{ApplyDiffOptions, StagedLayer};
use graph_core::tempdir::{Addition, TempDir, TempDirRoot};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, fault};
use crate::layers::{LayerPlan, tar_split_name};
use crate::options::{CreateLayer, Durability, Expected};
use crate::records::Layer;
use crate::recovery::TEMPORARY;
use crate::store::{Store, Stored, VOLATILE};
use crate::table::FileIndex;

/// A layer that was filled, and what was found on the way.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The layer, complete.
    pub layer: Stored<Layer>,
    /// Members, bytes, owners, notices.
    pub report: ApplyReport,
}

/// What one pass over a blob found.
pub(crate) struct Facts {
    pub(crate) report: ApplyReport,
    summary: Summary,
}

/// What of it goes into the layer's record, under the same names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Filled {
    compressed_diff_digest: String,
    compressed_size: i64,
    diff_digest: String,
    diff_size: i64,
    compression: i64,
    uidset: Vec<u32>,
    gidset: Vec<u32>,
}

impl Facts {
    pub(crate) fn filled(&self) -> Filled {
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Filled {
            compressed_diff_digest: self.summary.blob_digest.to_string(),
            compressed_size: size(self.summary.blob_size),
            diff_digest: self.summary.diff_id.to_string(),
            diff_size: size(self.summary.diff_size),
            compression: i64::from(self.summary.compression.number()),
            uidset: self.report.uids.clone(),
            gidset: self.report.gids.clone(),
        }
    }

    pub(crate) fn fill(&self, layer: &mut Layer) {
        self.filled().fill(layer);
    }
}

impl Filled {
    pub(crate) fn fill(self, layer: &mut Layer) {
        layer.compressed_digest = self.compressed_diff_digest;
        layer.compressed_size = self.compressed_size;
        layer.diff_digest = self.diff_digest;
        layer.diff_size = self.diff_size;
        layer.compression = self.compression;
        layer.uids = self.uidset;
        layer.gids = self.gidset;
    }
}

/// A failure on the way from the blob into the layer.
enum Failure {
    Blob(graph_archive::Error),
    Layer(Error),
}

impl From<graph_archive::Error> for Failure {
    fn from(error: graph_archive::Error) -> Self {
        Self::Blob(error)
    }
}

impl Failure {
    fn of(self, id: &LayerId) -> Error {
        match self {
            // While it is staged, the driver knows the layer by the name of a temporary directory only.
            Self::Layer(Error::Driver(graph_core::Error::Archive { source, .. })) => {
                Error::Archive { id: id.to_string(), source }
            }
            Self::Layer(error) => error,
            Self::Blob(graph_archive::Error::DigestMismatch { what, expected, found }) => {
                Error::DigestMismatch { id: id.to_string(), which: what, found, expected }
            }
            Self::Blob(source) => Error::Archive { id: id.to_string(), source },
        }
    }
}

/// A tar-split file in the making, or made.
pub(crate) struct TarSplit {
    pub(crate) directory: TempDir,
    pub(crate) file: Addition,
}

/// Importing.
impl Store {
    /// Makes a layer from a blob: tar, plain or compressed (told by its first bytes), read once to its end.
    ///
    /// Extraction holds no lock where the driver can stage; the layer appears at once and complete, on disk with
    /// [`Durability::Full`]. Of several that import a layer of the same id at once, the first does; the others wait for it
    /// and then get [`Error::IdInUse`] without having read anything, or have their turn if it failed.
    ///
    /// # Errors
    /// As [`Store::create_layer`]; [`Error::DigestMismatch`]; [`Error::Archive`] and [`Error::Driver`] for bad input.
    /// Nothing is left behind.
    pub fn import_layer(
        &self,
        options: &CreateLayer,
        expected: &Expected,
        blob: &mut (dyn Read + Send),
    ) -> Result<Imported> {
        let expected = &parse_expected(expected)?;
        let mut plan = self.plan_layer(options)?;
        // Whoever makes the same layer already is waited for: then the id is found to be in use, with nothing read.
        let _claim = match options.id.as_deref() {
            None | Some("") => None,
            Some(_) => {
                let claim = self.temporary_root()?.claim(&format!("layer-{}", plan.id))?;
                plan = self.plan_layer(options)?;
                Some(claim)
            }
        };
        match self.begin_staged(&plan, options)? {
            Some(staged) => self.import_staged(options, expected, blob, &plan, staged),
            None => self.import_locked(options, expected, blob, &plan),
        }
    }

    fn import_staged(
        &self,
        options: &CreateLayer,
        expected: &pipeline::Expected,
        blob: &mut (dyn Read + Send),
        plan: &LayerPlan,
        mut staged: Box<dyn StagedLayer + '_>,
    ) -> Result<Imported> {
        let (split, mut packer) = self.begin_tar_split()?;
        let facts = self.read_blob(&plan.id, expected, blob, |diff| {
            let mut apply = self.apply_options(&plan.mappings, &options.mount_label, &mut packer);
            staged.apply(diff, &mut apply).map_err(|e| about(&plan.id, e))
        })?;
        fault("import.extracted")?;
        let file = self.end_tar_split(packer, &*staged.diff_getter()?, &plan.id)?;
        if self.is_durable(plan.file) {
            // One syncfs for all that the layer has; the tar-split as a rule lies on the same file system, and is then
            // already clean.
            staged.flush()?;
            sync(&file, &plan.id)?;
        }

        fault("import.flushed")?;
        let mut layers = self.layers.records.write()?;
        self.begin_layer(&mut layers, plan, options, |record| facts.fill(record))?;
        let publish = || {
            fault("import.begun")?;
            self.remove_orphan(&plan.id)?;
            self.publish_tar_split(split, &plan.id)?;
            fault("import.tar-split-published")?;
            staged.publish(&plan.id)?;
            fault("import.published")
        };
        let (layer, ()) = self.settle_layer(&mut layers, plan, publish, |_, ()| ())?;
        Ok(Imported { layer, report: facts.report })
    }

    /// For drivers that cannot stage, or not what is asked for.
    fn import_locked(
        &self,
        options: &CreateLayer,
        expected: &pipeline::Expected,
        blob: &mut (dyn Read + Send),
        plan: &LayerPlan,
    ) -> Result<Imported> {
        let mut layers = self.layers.records.write()?;
        self.begin_layer(&mut layers, plan, options, |_| ())?;
        let fill = || {
            self.create_in_driver(plan, options)?;
            let parent = plan.parent_id.as_ref();
            let (facts, split) =
                self.fill_layer(&plan.id, parent, &plan.mappings, &options.mount_label, expected, blob)?;
            self.publish_tar_split(split, &plan.id)?;
            Ok(facts)
        };
        let (layer, facts) = self.settle_layer(&mut layers, plan, fill, |record, facts| facts.fill(record))?;
        Ok(Imported { layer, report: facts.report })
    }

    /// Fills a layer that the driver has.
    pub(crate) fn fill_layer(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        mappings: &IdMappings,
        mount_label: &str,
        expected: &pipeline::Expected,
        blob: &mut (dyn Read + Send),
    ) -> Result<(Facts, TarSplit)> {
        let (split, mut packer) = self.begin_tar_split()?;
        let facts = self.read_blob(id, expected, blob, |diff| {
            let mut apply = self.apply_options(mappings, mount_label, &mut packer);
            self.driver.apply_diff(id, parent, diff, &mut apply).map_err(|e| about(id, e))
        })?;
        let file = self.end_tar_split(packer, &*self.driver.diff_getter(id)?, id)?;
        if self.options.durability == Durability::Full {
            drop(file);
            self.layers.records.flush_file_systems()?;
        }
        Ok((facts, split))
    }

    pub(crate) fn apply_options<'o>(
        &self,
        mappings: &IdMappings,
        mount_label: &str,
        packer: &'o mut GzipPacker,
    ) -> ApplyDiffOptions<'o> {
        ApplyDiffOptions {
            mappings: mappings.clone(),
            mount_label: mount_label.to_owned(),
            limits: self.options.limits.clone(),
            observer: Some(packer),
            ..ApplyDiffOptions::default()
        }
    }

    /// Whether records of that file, and what they are about, must survive a power cut.
    pub(crate) fn is_durable(&self, file: FileIndex) -> bool {
        file != VOLATILE && self.options.durability == Durability::Full
    }

    /// Reads a blob to its end, decompressing it and checking both digests; `apply` gets the archive.
    pub(crate) fn read_blob(
        &self,
        id: &LayerId,
        expected: &pipeline::Expected,
        blob: &mut (dyn Read + Send),
        apply: impl FnOnce(&mut dyn Read) -> Result<ApplyReport>,
    ) -> Result<Facts> {
        let consume = |archive: &mut dyn Read| apply(archive).map_err(Failure::Layer);
        let (report, summary) =
            pipeline::import(blob, expected, &self.options.limits, consume).map_err(|f| f.of(id))?;
        Ok(Facts { report, summary })
    }

    pub(crate) fn begin_tar_split(&self) -> Result<(TarSplit, GzipPacker)> {
        let (split, file) = self.new_tar_split()?;
        let scratch = graph_sys::io::fcntl_dupfd_cloexec(&*self.layers.dir, 0)
            .map_err(|e| Error::io("open once more", self.layers.dir.path(), e))?;
        Ok((split, GzipPacker::new(file, scratch)))
    }

    pub(crate) fn temporary_root(&self) -> Result<TempDirRoot> {
        Ok(TempDirRoot::create(self.layers.dir.path().join(TEMPORARY))?)
    }

    /// An empty file, to become a layer's.
    pub(crate) fn new_tar_split(&self) -> Result<(TarSplit, File)> {
        let mut directory = self.temporary_root()?.make()?;
        let (addition, file) = directory.add_file(0o600)?;
        Ok((TarSplit { directory, file: addition }, file))
    }

    pub(crate) fn end_tar_split(&self, packer: GzipPacker, getter: &dyn FileGetter, id: &LayerId) -> Result<File> {
        fault("import.tar-split")?;
        packer.finish(getter).map_err(|source| Error::Archive { id: id.to_string(), source })
    }

    pub(crate) fn publish_tar_split(&self, split: TarSplit, id: &LayerId) -> Result<()> {
        split.directory.commit(split.file, &*self.layers.dir, tar_split_name(id.as_str()))?;
        Ok(())
    }

    /// Removes what lies in the way of a new layer though no record knows it: left by a killed process.
    pub(crate) fn remove_orphan(&self, id: &LayerId) -> Result<()> {
        self.layers.dir.remove(&tar_split_name(id.as_str()))?;
        let elsewhere = self.additional.iter().any(|store| {
            store
                .layers
                .as_ref()
                .is_some_and(|part| part.records.read().is_ok_and(|layers| layers.by_id(id.as_str()).is_some()))
        });
        if !elsewhere && self.driver.exists(id)? {
            tracing::warn!(layer = %id, "removing files that no record knows, to make room for a layer of this ID");
            self.driver.remove(id)?;
        }
        Ok(())
    }
}

/// A driver's error about a layer's archive, with the layer's own id: a staged one goes by another.
pub(crate) fn about(id: &LayerId, error: graph_core::Error) -> Error {
    match error {
        graph_core::Error::Archive { source, .. } => Error::Archive { id: id.to_string(), source },
        other => other.into(),
    }
}

pub(crate) fn sync(file: &File, id: &LayerId) -> Result<()> {
    graph_sys::fs::fdatasync(file).map_err(|e| Error::io("flush the tar-split of layer", id.as_str(), e))
}

/// The digests asked for, as such.
pub(crate) fn parse_expected(expected: &Expected) -> Result<pipeline::Expected> {
    let parse = |digest: &Option<String>| {
        let invalid = |digest: &str| Error::InvalidDigest { digest: digest.to_owned() };
        digest.as_deref().map(|digest| digest.parse::<Digest>().map_err(|_| invalid(digest))).transpose()
    };
    Ok(pipeline::Expected {
        blob_digest: parse(&expected.compressed_digest)?,
        blob_size: expected.compressed_size,
        diff_id: parse(&expected.diff_digest)?,
        diff_size: expected.diff_size,
    })
}
