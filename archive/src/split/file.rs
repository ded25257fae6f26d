//! tar-split in a gzip file, as stores keep it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::OwnedFd;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::FileGetter;
use super::kept::scratch_file;
use super::packer::{Packed, Packer};
use crate::apply::{ApplyObserver, ContentPlace};
use crate::entry::Entry;
use crate::error::{Error, Result};

/// A gzip encoder with the framing of containers/storage 1.64: level 1, no name, the low 32 bits of Go's zero time as
/// modification time, so that the ten bytes of the header are `1f 8b 08 00 00 09 6e 88 04 ff`.
pub fn gzip_writer<W: Write>(out: W) -> GzEncoder<W> {
    GzBuilder::new().mtime(0x886E_0900).operating_system(255).write(out, Compression::fast())
}

/// Makes a `tar-split.gz` file while an archive is applied.
#[derive(Debug)]
pub struct GzipPacker {
    packer: Packer<BufWriter<GzEncoder<File>>>,
}

impl GzipPacker {
    /// Records go to `file`, which is empty and open for reading and writing. `scratch` is as for [`Packer::new`].
    #[must_use]
    pub fn new(file: File, scratch: OwnedFd) -> Self {
        Self { packer: Packer::new(BufWriter::with_capacity(64 << 10, gzip_writer(file)), scratch) }
    }

    /// Ends the file after the archive has been applied; `getter` finds the files that were made of it. Nothing is
    /// synced: after a crash the file may hold anything, so it is to be published only when it and the layer are safe.
    ///
    /// # Errors
    /// I/O errors, and as [`super::Repair::rewrite`] where the archive replaced members of its own.
    pub fn finish(self, getter: &dyn FileGetter) -> Result<File> {
        let failed = |source| Error::io("write", b"tar-split".as_slice(), source);
        let Packed { out, repair } = self.packer.finish().map_err(failed)?;
        let encoder = out.into_inner().map_err(|error| failed(error.into_error()))?;
        let mut file = encoder.finish().map_err(failed)?;
        if let Some(repair) = repair {
            file.rewind().map_err(failed)?;
            let mut corrected = scratch_file(repair.kept().scratch()).map_err(failed)?;
            let mut encoder = gzip_writer(BufWriter::new(&corrected));
            let records = MultiGzDecoder::new(BufReader::with_capacity(64 << 10, &file));
            repair.rewrite(records, getter, &mut encoder)?;
            encoder.finish().and_then(|mut buffer| buffer.flush()).map_err(failed)?;
            file.set_len(0).map_err(failed)?;
            file.rewind().map_err(failed)?;
            corrected.rewind().map_err(failed)?;
            io::copy(&mut corrected, &mut file).map_err(failed)?;
        }
        Ok(file)
    }
}

impl ApplyObserver for GzipPacker {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.packer.raw(bytes)
    }

    fn begin(&mut self, entry: &Entry, place: ContentPlace) -> io::Result<()> {
        self.packer.begin(entry, place)
    }

    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.packer.content(bytes)
    }

    fn lost(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        self.packer.lost(content, size)
    }
}
