//! Makes the records of an archive while it is applied.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use super::crc64::Crc64;
use super::format::{RecordWriter, SEGMENT_BYTES};
use super::kept::Kept;
use super::names::Names;
use super::repair::Repair;
use crate::apply::{ApplyObserver, ContentPlace};
use crate::entry::{Entry, EntryKind};

const BLOCK: u64 = 512;
/// The two blocks of zeros that end an archive.
const END_BYTES: usize = 1024;

/// Writes the tar-split records of an archive to `W`, seeing the archive as an [`ApplyObserver`].
///
/// Memory: up to 1 MiB of raw bytes, 16 bytes for each member's name, and up to 1 MiB of lost contents.
#[derive(Debug)]
pub struct Packer<W: Write> {
    out: W,
    writer: RecordWriter,
    raw: Vec<u8>,
    /// Bytes of padding that `raw` begins with, while it begins with the first byte after a member.
    padding: Option<usize>,
    pending: Option<Pending>,
    file_records: u64,
    names: Names,
    came_again: bool,
    kept: Kept,
}

/// A file whose content is on its way.
#[derive(Debug)]
struct Pending {
    name: Vec<u8>,
    size: u64,
    crc: Crc64,
}

/// What [`Packer::finish`] gives back.
#[derive(Debug)]
pub struct Packed<W> {
    /// The output, everything written to it (but not flushed if it buffers).
    pub out: W,
    /// Where the archive replaced members of its own, the written records are not yet right: they must go through this
    /// before anybody reads them.
    pub repair: Option<Repair>,
}

impl<W: Write> Packer<W> {
    /// Records go to `out`. `scratch` is a directory, on a disk with room, where an unlinked file is made if the archive
    /// replaces members of its own that are too big to be kept in memory.
    pub fn new(out: W, scratch: OwnedFd) -> Self {
        Self {
            out,
            writer: RecordWriter::default(),
            raw: Vec::new(),
            padding: Some(0),
            pending: None,
            file_records: 0,
            names: Names::default(),
            came_again: false,
            kept: Kept::new(scratch),
        }
    }

    /// Writes what is left after the last byte of the archive has been seen.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<Packed<W>> {
        self.end_file()?;
        self.cut_end_blocks()?;
        self.flush_raw()?;
        let needed = self.came_again || !self.kept.is_empty();
        let repair = needed.then(|| {
            let (hasher, again) = self.names.into_again();
            Repair::new(self.kept, hasher, again)
        });
        Ok(Packed { out: self.out, repair })
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        self.writer.segment(&mut self.out, &self.raw)?;
        self.raw.clear();
        self.padding = None;
        Ok(())
    }

    /// The Go implementation ends a record after the end blocks, whatever follows them. So that equal archives give
    /// equal records, so do we.
    fn cut_end_blocks(&mut self) -> io::Result<()> {
        let Some(padding) = self.padding.take() else { return Ok(()) };
        let end = padding.saturating_add(END_BYTES);
        let Some(zeros) = self.raw.get(padding..end) else { return Ok(()) };
        if self.raw.len() == end || zeros.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        let rest = self.raw.split_off(end);
        self.flush_raw()?;
        self.raw = rest;
        Ok(())
    }

    /// Writes the record of the file whose content has come to its end.
    fn end_file(&mut self) -> io::Result<()> {
        if let Some(Pending { name, size, crc }) = self.pending.take() {
            self.file_record(&name, size, crc.value())?;
            let over = size % BLOCK;
            self.padding = usize::try_from(if over == 0 { 0 } else { BLOCK.saturating_sub(over) }).ok();
        }
        Ok(())
    }

    fn file_record(&mut self, name: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.file_records = self.file_records.saturating_add(1);
        self.writer.file(&mut self.out, name, size, crc)
    }

    fn push_raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = SEGMENT_BYTES.saturating_sub(self.raw.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.raw.extend_from_slice(now);
            bytes = later;
            if self.raw.len() >= SEGMENT_BYTES {
                self.cut_end_blocks()?;
                if self.raw.len() >= SEGMENT_BYTES {
                    self.flush_raw()?;
                }
            }
        }
        Ok(())
    }
}

impl<W: Write> ApplyObserver for Packer<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.end_file()?;
        self.push_raw(bytes)
    }

    fn begin(&mut self, entry: &Entry, place: ContentPlace) -> io::Result<()> {
        self.end_file()?;
        self.flush_raw()?;
        let (hash, new) = self.names.add(&entry.path, entry.kind == EntryKind::Symlink);
        let on_disk = place == ContentPlace::OnDisk
            && entry.kind == EntryKind::File
            && entry.sparse.is_none()
            && entry.size > 0
            && !self.names.is_below_symlink(&entry.path);
        if on_disk {
            if !new {
                self.came_again = true;
                self.names.came_again(hash, self.file_records);
            }
            self.pending = Some(Pending { name: entry.path.clone(), size: 0, crc: Crc64::default() });
        } else if new {
            // Nothing is fetched through this record; a second one of the name would only be refused by old readers.
            self.file_record(&entry.path, 0, 0)?;
        }
        self.padding = Some(0);
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.pending {
            Some(pending) => {
                pending.crc.update(bytes);
                pending.size = pending.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            None => {
                self.padding = None;
                self.push_raw(bytes)
            }
        }
    }

    fn lost(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.kept.add(content, size)
    }
}
