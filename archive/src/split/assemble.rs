//! Puts an archive together from its records and the files on disk.

use std::io::{self, Read, Write};

use super::FileGetter;
use super::crc64::Crc64;
use super::format::{Record, RecordReader};
use crate::error::{Defect, Error, Result};

/// Writes the archive that the records in `tar_split` (uncompressed) tell of to `out`, with file contents from `getter`.
/// Gives the number of bytes written.
///
/// Names may come more than once. Every file's checksum and size is checked while it is written, so after an error `out`
/// holds the beginning of an archive. Memory is bounded whatever the records say.
///
/// # Errors
/// [`Defect::ChecksumMismatch`] naming the file whose content is not what it was, [`Defect::InvalidTarSplit`] for
/// records that do not parse, what `getter` says, and I/O errors.
pub fn assemble(tar_split: impl Read, getter: &dyn FileGetter, out: &mut dyn Write) -> Result<u64> {
    let mut reader = RecordReader::new(tar_split);
    let mut buffer = vec![0; 128 << 10];
    let mut offset = 0_u64;
    let failed = |source| Error::io("write", b"archive".as_slice(), source);
    while let Some(record) = reader.next(offset)? {
        match record {
            Record::Segment(bytes) => {
                out.write_all(bytes).map_err(failed)?;
                offset = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            }
            Record::File { size: 0, .. } => {}
            Record::File { name, size, crc } => {
                let mut file = getter.get(name)?;
                let mut sum = Crc64::default();
                let mut count = 0_u64;
                loop {
                    let read = match file.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(read) => read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(Error::io("read", name, error)),
                    };
                    count = count.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
                    if count > size {
                        break;
                    }
                    let bytes = buffer.get(..read).unwrap_or_default();
                    sum.update(bytes);
                    out.write_all(bytes).map_err(failed)?;
                }
                if count != size || sum.value() != crc {
                    let defect = Defect::ChecksumMismatch { name: String::from_utf8_lossy(name).into_owned() };
                    return Err(Error::input(name, offset, defect));
                }
                offset = offset.saturating_add(size);
            }
        }
    }
    out.flush().map_err(failed)?;
    Ok(offset)
}

/// Does everything that [`assemble`] does but write: whether the archive can be put together. Gives its size in bytes.
///
/// # Errors
/// As [`assemble`].
pub fn verify(tar_split: impl Read, getter: &dyn FileGetter) -> Result<u64> {
    assemble(tar_split, getter, &mut io::sink())
}
