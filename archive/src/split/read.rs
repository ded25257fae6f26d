//! An archive put together again as a stream to be read, and the files that no longer have what it had.

use std::fs::File;
use std::io::{self, Read};

use super::FileGetter;
use super::crc64::Crc64;
use super::format::{Record, RecordReader};
use crate::error::{Defect, Error, Result};

/// The archive that records and files make, as [`assemble`](super::assemble) writes it, to be read piece by piece.
///
/// Every file's checksum and size is checked while it is read. The reader's errors hold an [`Error`] of this crate, which
/// the tar decoder gives on as it is.
pub struct Assembled<'g, R> {
    records: RecordReader<R>,
    /// `None`: contents are zeros.
    getter: Option<&'g dyn FileGetter>,
    /// Bytes of the archive so far.
    offset: u64,
    segment: Vec<u8>,
    /// How much of `segment` is read.
    done: usize,
    content: Option<Content>,
}

struct Content {
    name: Vec<u8>,
    file: Option<File>,
    left: u64,
    sum: Crc64,
    crc: u64,
}

impl<R> std::fmt::Debug for Assembled<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembled").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl<'g, R: Read> Assembled<'g, R> {
    /// Reads the records in `tar_split` (uncompressed) and the contents that `getter` has.
    pub fn new(tar_split: R, getter: &'g dyn FileGetter) -> Self {
        Self { getter: Some(getter), ..Self::headers(tar_split) }
    }

    /// The archive with all contents zeros: for its headers.
    pub fn headers(tar_split: R) -> Self {
        let records = RecordReader::new(tar_split);
        Self { records, getter: None, offset: 0, segment: Vec::new(), done: 0, content: None }
    }

    /// Takes the next record; false at the end.
    fn advance(&mut self) -> Result<bool> {
        match self.records.next(self.offset)? {
            None => return Ok(false),
            Some(Record::Segment(bytes)) => {
                self.segment.clear();
                self.segment.extend_from_slice(bytes);
                self.done = 0;
            }
            Some(Record::File { size: 0, .. }) => {}
            Some(Record::File { name, size, crc }) => {
                let file = self.getter.map(|getter| getter.get(name)).transpose()?;
                let name = name.to_vec();
                self.content = Some(Content { name, file, left: size, sum: Crc64::default(), crc });
            }
        }
        Ok(true)
    }

    fn mismatch(name: &[u8], offset: u64) -> Error {
        Error::input(name, offset, Defect::ChecksumMismatch { name: String::from_utf8_lossy(name).into_owned() })
    }

    fn read_content(&mut self, out: &mut [u8]) -> Result<usize> {
        let Some(content) = &mut self.content else { return Ok(0) };
        let room = usize::try_from(content.left).unwrap_or(usize::MAX).min(out.len());
        let room = out.get_mut(..room).unwrap_or_default();
        let Some(file) = &mut content.file else {
            room.fill(0);
            let count = room.len();
            let bytes = u64::try_from(count).unwrap_or(u64::MAX);
            content.left = content.left.saturating_sub(bytes);
            self.offset = self.offset.saturating_add(bytes);
            if content.left == 0 {
                self.content = None;
            }
            return Ok(count);
        };
        let count = loop {
            match file.read(room) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", content.name.as_slice(), error)),
            }
        };
        content.sum.update(room.get(..count).unwrap_or_default());
        let count_bytes = u64::try_from(count).unwrap_or(u64::MAX);
        content.left = content.left.saturating_sub(count_bytes);
        self.offset = self.offset.saturating_add(count_bytes);
        if count == 0 {
            return Err(Self::mismatch(&content.name, self.offset));
        }
        if content.left == 0 {
            let more = file.read(&mut [0]).unwrap_or(1);
            if more > 0 || content.sum.value() != content.crc {
                return Err(Self::mismatch(&content.name, self.offset));
            }
            self.content = None;
        }
        Ok(count)
    }
}

impl<R: Read> Read for Assembled<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if self.content.is_some() {
                return self.read_content(out).map_err(io::Error::other);
            }
            let rest = self.segment.get(self.done..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.len().min(out.len());
                if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                self.done = self.done.saturating_add(count);
                self.offset = self.offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                return Ok(count);
            }
            if !self.advance().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
    }
}

/// A file whose content is not what the archive had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The member's name, as in the archive.
    pub name: Vec<u8>,
    /// Bytes that it should have.
    pub size: u64,
    /// CRC-64 (ISO) of the content that it should have.
    pub crc: u64,
}

/// Every file whose content is missing or not what the records say. Reads all of them.
///
/// # Errors
/// [`Defect::InvalidTarSplit`] for records that do not parse. What is wrong with a file makes it a damaged one.
pub fn damaged(tar_split: impl Read, getter: &dyn FileGetter) -> Result<Vec<Damaged>> {
    let mut reader = RecordReader::new(tar_split);
    let mut buffer = vec![0; 128 << 10];
    let mut found = Vec::new();
    let mut offset = 0_u64;
    while let Some(record) = reader.next(offset)? {
        match record {
            Record::Segment(bytes) => offset = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Record::File { size: 0, .. } => {}
            Record::File { name, size, crc } => {
                offset = offset.saturating_add(size);
                let whole = getter.get(name).is_ok_and(|file| is_whole(file, size, crc, &mut buffer));
                if !whole {
                    found.push(Damaged { name: name.to_vec(), size, crc });
                }
            }
        }
    }
    Ok(found)
}

fn is_whole(mut file: File, size: u64, crc: u64, buffer: &mut [u8]) -> bool {
    let mut sum = Crc64::default();
    let mut count = 0_u64;
    loop {
        match file.read(buffer) {
            Ok(0) => return count == size && sum.value() == crc,
            Ok(read) => {
                count = count.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
                if count > size {
                    return false;
                }
                sum.update(buffer.get(..read).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
