//! Moves contents that are not on disk any more into the records.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

use super::FileGetter;
use super::crc64::Crc64;
use super::format::{Record, RecordReader, RecordWriter, SEGMENT_BYTES};
use super::kept::{ContentKey, Kept};
use super::names::{NameHash, NameHasher};
use crate::error::{Defect, Error, Result};

/// What [`super::Packer`] learned of an archive that replaces members of its own, and the contents it kept.
#[derive(Debug)]
pub struct Repair {
    kept: Kept,
    hasher: NameHasher,
    again: HashMap<NameHash, u64>,
}

impl Repair {
    pub(super) fn new(kept: Kept, hasher: NameHasher, again: HashMap<NameHash, u64>) -> Self {
        Self { kept, hasher, again }
    }

    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Copies the packer's records from `records` to `out` so that they hold with the files as they are on disk now.
    ///
    /// Of several file records of one (cleaned) name only the last stays one; a file record also ends when the file on
    /// disk is gone or differs. The bytes go into the records instead, so that the archive comes out the same.
    ///
    /// # Errors
    /// [`Defect::ChecksumMismatch`] when a content is neither on disk nor was kept; I/O errors. What was written to `out`
    /// is useless then.
    pub fn rewrite(&self, records: impl Read, getter: &dyn FileGetter, mut out: impl Write) -> Result<()> {
        let written = |source| Error::io("write", b"tar-split".as_slice(), source);
        let mut reader = RecordReader::new(records);
        let mut writer = RecordWriter::default();
        let mut offset = 0_u64;
        let mut number = 0_u64;
        while let Some(record) = reader.next(offset)? {
            match record {
                Record::Segment(bytes) => {
                    writer.segment(&mut out, bytes).map_err(written)?;
                    offset = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                }
                Record::File { name, size, crc } => {
                    let last = self.again.get(&self.hasher.hash(name));
                    let is_last = last.is_none_or(|last| *last == number);
                    number = number.saturating_add(1);
                    let key = (crc, size);
                    if size == 0 {
                        if is_last {
                            writer.file(&mut out, name, 0, 0).map_err(written)?;
                        }
                        continue;
                    }
                    let doubtful = last.is_some() || self.kept.contains(key);
                    if is_last && (!doubtful || on_disk(getter, name, key)?.is_some()) {
                        writer.file(&mut out, name, size, crc).map_err(written)?;
                    } else if let Some(mut content) = self.kept.open(key) {
                        segments(&mut writer, &mut content, size, &mut out).map_err(written)?;
                    } else if let Some(mut content) = on_disk(getter, name, key)? {
                        segments(&mut writer, &mut content, size, &mut out).map_err(written)?;
                    } else {
                        let defect = Defect::ChecksumMismatch { name: String::from_utf8_lossy(name).into_owned() };
                        return Err(Error::input(name, offset, defect));
                    }
                    offset = offset.saturating_add(size);
                }
            }
        }
        out.flush().map_err(written)
    }
}

fn segments(writer: &mut RecordWriter, content: &mut dyn Read, size: u64, out: &mut impl Write) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut left = size;
    while left > 0 {
        let part = left.min(u64::try_from(SEGMENT_BYTES).unwrap_or(u64::MAX));
        buffer.clear();
        if u64::try_from((&mut *content).take(part).read_to_end(&mut buffer)?).ok() != Some(part) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        writer.segment(out, &buffer)?;
        left = left.saturating_sub(part);
    }
    Ok(())
}

/// The file of that name, rewound, if it has the content that the record tells of.
fn on_disk(getter: &dyn FileGetter, name: &[u8], (crc, size): ContentKey) -> Result<Option<File>> {
    let mut file = match getter.get(name) {
        Ok(file) => file,
        Err(Error::Io { source, .. }) if is_absence(&source) => return Ok(None),
        Err(error) => return Err(error),
    };
    let failed = |source| Error::io("read", name, source);
    let mut sum = Crc64::default();
    let mut count = 0_u64;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                sum.update(buffer.get(..read).unwrap_or_default());
                count = count.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
                if count > size {
                    return Ok(None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if (sum.value(), count) != (crc, size) {
        return Ok(None);
    }
    file.rewind().map_err(failed)?;
    Ok(Some(file))
}

/// Whether the error says that no regular file is there.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory | InvalidInput | InvalidFilename)
        || error.raw_os_error() == Some(graph_sys::io::Errno::LOOP.raw_os_error())
}
