//! Whether two files hold the same.
//!
//! A container may put something else under the name of what was a file a moment ago, so it is looked at again before it is
//! opened.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use graph_sys::found::Found;
use graph_sys::fs::FileType;

use crate::error::{Error, Result};
use crate::walk::join;

/// Whether the files `name` in two directories are regular and hold the same `size` bytes. `parent` is for errors.
pub(super) fn same(old: impl AsFd, new: impl AsFd, parent: &[u8], name: &[u8], size: u64) -> Result<bool> {
    let failed = |error: io::Error| Error::io("read", join(parent, name), error);
    let open = |directory| -> io::Result<Option<File>> {
        let found = Found::at(directory, name)?;
        if found.file_type() != FileType::RegularFile {
            return Ok(None);
        }
        Ok(Some(found.open_to_read()?.into()))
    };
    let (Some(old), Some(new)) = (open(old.as_fd()).map_err(failed)?, open(new.as_fd()).map_err(failed)?) else {
        return Ok(false);
    };
    let (mut a, mut b) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    let mut offset = 0_u64;
    while offset < size {
        let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(a.len());
        let (Some(a), Some(b)) = (a.get_mut(..length), b.get_mut(..length)) else { return Ok(false) };
        for (file, buffer) in [(&old, &mut *a), (&new, &mut *b)] {
            match file.read_exact_at(buffer, offset) {
                Ok(()) => {}
                // Shorter than it was a moment ago.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(failed(error)),
            }
        }
        if a != b {
            return Ok(false);
        }
        offset = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    }
    Ok(true)
}
