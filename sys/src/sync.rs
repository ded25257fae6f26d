//! Getting data to the disk.

use std::os::fd::AsFd;

use rustix::io::Result;

pub use rustix::fs::{fdatasync, fsync, syncfs};

use crate::syscall;

/// Starts writing a file's dirty pages to the disk, and does not wait for it.
///
/// `int sync_file_range(int fd, off_t offset, off_t nbytes, SYNC_FILE_RANGE_WRITE)`, Linux 2.6.17.
///
/// This only spreads the work of a later [`syncfs`] over time: it writes no metadata and no disk cache, so it makes
/// nothing durable. `offset` and `length` are in bytes; length 0 means to the end of the file.
///
/// # Errors
/// `EBADF` for a descriptor that is not open, `EIO`, `ENOSPC` for late errors of the disk, `ESPIPE` for what is
/// neither a file, a directory nor a block device, `EINVAL` for values beyond the signed range.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| rustix::io::Errno::INVAL);
    syscall::sync_file_range(file.as_fd(), signed(offset)?, signed(length)?, libc::SYNC_FILE_RANGE_WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn writeback_starts_on_files_and_is_refused_on_pipes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 65536]).unwrap();
        start_writeback(&file, 0, 0).unwrap();
        assert_eq!(start_writeback(&file, u64::MAX, 0), Err(rustix::io::Errno::INVAL));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(start_writeback(&reader, 0, 0), Err(rustix::io::Errno::SPIPE));
    }
}
