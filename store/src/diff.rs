//! Differences of layers: the exact bytes they were filled from where those are known, otherwise what the driver finds.
//!
//! No lock is held while a diff is written. A layer that is deleted meanwhile gives an error, not a short archive.

use std::io::{self, Write};

use graph_archive::changes::Change;
use graph_archive::compress::{Compression, Compressor, Decompressor};
use graph_archive::idmap::IdMappings;
use graph_archive::limits::Limits;
use graph_archive::split::assemble;
use graph_core::LayerId;
use graph_core::driver::{DiffReport, DiffRequest};

use crate::error::{Error, Result};
use crate::layers::{LayerTables, tar_split_name};
use crate::options::{DiffCompression, DiffOptions};
use crate::records::Layer;
use crate::store::{Home, Part, Store, Stored};

/// Two layers to be compared, with what the driver wants to know of them.
struct Pair {
    layer: Stored<Layer>,
    id: LayerId,
    mappings: IdMappings,
    from: Option<LayerId>,
    from_mappings: IdMappings,
}

impl Pair {
    fn request(&self) -> DiffRequest<'_> {
        DiffRequest {
            id: &self.id,
            mappings: &self.mappings,
            parent: self.from.as_ref(),
            parent_mappings: &self.from_mappings,
            mount_label: &self.layer.mount_label,
        }
    }

    /// Whether the comparison is with the layer's own parent.
    fn is_own_diff(&self) -> bool {
        self.from.as_ref().map_or("", LayerId::as_str) == self.layer.parent
    }
}

/// Differences.
impl Store {
    /// Writes what `to` adds to `from` (`None`: its parent) as a tar; the very bytes it was filled from where they are
    /// known.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], [`Error::Archive`] when the files are not what was put in, I/O.
    pub fn diff(
        &self,
        from: Option<&str>,
        to: &str,
        out: &mut (dyn Write + Send),
        options: &DiffOptions,
    ) -> Result<DiffReport> {
        let pair = self.pair(from, to)?;
        let compression = match options.compression {
            Some(DiffCompression::None) => Compression::None,
            Some(DiffCompression::Gzip) => Compression::Gzip,
            Some(DiffCompression::Zstd) => Compression::Zstd,
            None => match u8::try_from(pair.layer.compression).ok().and_then(Compression::from_number) {
                Some(Compression::Bzip2 | Compression::Xz) => Compression::Gzip,
                recorded => recorded.unwrap_or_default(),
            },
        };
        let archive = |source| Error::Archive { id: pair.layer.id.clone(), source };
        let mut counted = Counting { out, bytes: 0 };
        let mut compressor = Compressor::new(&mut counted, compression, None).map_err(archive)?;
        let result = self.write_diff(&pair, &mut compressor);
        let result = result.and_then(|report| {
            compressor.finish().map_err(|e| Error::io("write the diff of layer", pair.layer.id.as_str(), e))?;
            Ok(report)
        });
        match result {
            Ok(report) => Ok(DiffReport { bytes: counted.bytes, ..report }),
            Err(error) => Err(self.explain(&pair, error)),
        }
    }

    fn write_diff(&self, pair: &Pair, out: &mut dyn Write) -> Result<DiffReport> {
        let archive = |source| Error::Archive { id: pair.layer.id.clone(), source };
        if pair.is_own_diff()
            && let Some(file) = self.layer_part(&pair.layer)?.dir.open_file(&tar_split_name(&pair.layer.id))?
        {
            let records = Decompressor::new(file, &Limits::NONE).map_err(archive)?;
            let getter = self.driver.diff_getter(&pair.id)?;
            let bytes = assemble(records, &*getter, out).map_err(archive)?;
            return Ok(DiffReport { bytes, ..DiffReport::default() });
        }
        Ok(self.driver.diff(&pair.request(), out)?)
    }

    /// A failure whose cause is that the layer was deleted meanwhile says so.
    fn explain(&self, pair: &Pair, error: Error) -> Error {
        let gone = self.layer_tables().is_ok_and(|tables| tables.by_id(&pair.layer.id).is_none());
        if gone { Error::LayerNotKnown { reference: pair.layer.id.clone() } } else { error }
    }

    /// Lists what is different between `from` (`None`: its parent) and `to`, sorted by path.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], the driver's.
    pub fn changes(&self, from: Option<&str>, to: &str) -> Result<Vec<Change>> {
        let pair = self.pair(from, to)?;
        self.driver.changes(&pair.request()).map_err(|error| self.explain(&pair, error.into()))
    }

    /// Apparent bytes of the files that are added or modified between `from` (`None`: its parent) and `to`: what
    /// [`graph_core::Driver::diff_size`] counts, as containers/storage's `DiffSize`. The size of the layer's archive is
    /// [`Layer::diff_size`](crate::Layer).
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`], the driver's.
    pub fn diff_size(&self, from: Option<&str>, to: &str) -> Result<u64> {
        let pair = self.pair(from, to)?;
        self.driver.diff_size(&pair.request()).map_err(|error| self.explain(&pair, error.into()))
    }

    /// The part of the store that a layer lies in.
    pub(crate) fn layer_part(&self, layer: &Stored<Layer>) -> Result<&Part<Layer>> {
        let part = match layer.home() {
            Home::Own | Home::GraphRoot => Some(&self.layers),
            Home::Additional(n) => self.additional.get(n).and_then(|store| store.layers.as_ref()),
        };
        part.ok_or_else(|| Error::LayerNotKnown { reference: layer.id.clone() })
    }

    fn pair(&self, from: Option<&str>, to: &str) -> Result<Pair> {
        let tables = self.layer_tables()?;
        let layer = self.layer_or_container(&tables, to)?;
        let from = match from.filter(|from| !from.is_empty()) {
            Some(from) => Some(self.layer_or_container(&tables, from)?),
            None if layer.parent.is_empty() => None,
            None => {
                let unknown = || Error::LayerNotKnown { reference: layer.parent.clone() };
                Some(tables.by_id(&layer.parent).ok_or_else(unknown)?)
            }
        };
        Ok(Pair {
            id: LayerId::new(layer.id.clone())?,
            mappings: layer.mappings(),
            from: from.as_ref().map(|from| LayerId::new(from.id.clone())).transpose()?,
            from_mappings: from.map(|from| from.mappings()).unwrap_or_default(),
            layer,
        })
    }

    fn layer_or_container(&self, tables: &LayerTables, reference: &str) -> Result<Stored<Layer>> {
        if let Some(layer) = tables.find(reference) {
            return Ok(layer);
        }
        let unknown = || Error::LayerNotKnown { reference: reference.to_owned() };
        let containers = self.containers.records.read()?;
        let container = containers.find(reference).ok_or_else(unknown)?;
        tables.by_id(&container.layer).ok_or_else(unknown)
    }
}

struct Counting<'w> {
    out: &'w mut (dyn Write + Send),
    bytes: u64,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
