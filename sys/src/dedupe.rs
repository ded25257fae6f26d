//! Making files that have the same content share their place on disk.
//!
//! `int ioctl(int src_fd, FIDEDUPERANGE, struct file_dedupe_range *arg)`, Linux 4.5 (as `BTRFS_IOC_FILE_EXTENT_SAME`
//! since 3.12): btrfs, XFS with reflinks, bcachefs. The kernel locks both files and compares the bytes before it shares
//! anything, so nobody ever sees other content than before; times and attributes stay. See ioctl_fideduperange(2).

#![allow(unsafe_code, reason = "no crate that we use wraps this ioctl")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

/// `_IOWR(0x94, 54, struct file_dedupe_range)`
const FIDEDUPERANGE: u32 = 0xC018_9436;
/// `FILE_DEDUPE_RANGE_DIFFERS`
const DIFFERS: i32 = 1;
/// Bytes of one call: file systems take no more than 16 MiB at a time, and some silently do less.
const STEP: u64 = 16 << 20;

/// `struct file_dedupe_range` of `<linux/fs.h>` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct Request {
    source_offset: u64,
    length: u64,
    count: u16,
    reserved1: u16,
    reserved2: u32,
    destination: i64,
    destination_offset: u64,
    bytes: u64,
    status: i32,
    reserved: u32,
}

const _: () = assert!(size_of::<Request>() == 24 + 32);

/// What became of two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deduped {
    /// They have the same content and share all of it now, or did before.
    Same,
    /// They differ; what was equal up to there may be shared now.
    Different,
    /// These files cannot share: the file system does not know how, or they are on two.
    Unsupported,
}

/// Makes the first `length` bytes of `destination` share the place of those of `source`, where the bytes are equal.
///
/// `destination` need not be open for writing where the process owns the file or has `CAP_SYS_ADMIN` (Linux 4.20).
///
/// # Errors
/// `EPERM` for a destination that is not ours, `EIO`, `ENOSPC`, `EDQUOT`, `EBADF`, `ETXTBSY`, `EISDIR`. The errnos that mean "not
/// here" (`EOPNOTSUPP`, `ENOTTY`, `EXDEV`, `EINVAL`, `ENOSYS`) give [`Deduped::Unsupported`].
pub fn dedupe(source: impl AsFd, destination: impl AsFd, length: u64) -> Result<Deduped> {
    let (source, destination) = (source.as_fd(), destination.as_fd());
    let mut done = 0;
    while done < length {
        let mut request = Request {
            source_offset: done,
            length: (length - done).min(STEP),
            count: 1,
            reserved1: 0,
            reserved2: 0,
            destination: destination.as_raw_fd().into(),
            destination_offset: done,
            bytes: 0,
            status: 0,
            reserved: 0,
        };
        // SAFETY: `request` is a `struct file_dedupe_range` followed by as many infos as it states, one; it lives,
        // writable, until the call returns. The descriptor in it is borrowed for as long.
        let returned = unsafe { libc::ioctl(source.as_raw_fd(), FIDEDUPERANGE.into(), &raw mut request) };
        let error = if returned < 0 {
            Some(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
        } else if request.status < 0 {
            Some(Errno::from_raw_os_error(request.status.saturating_neg()))
        } else {
            None
        };
        match error {
            Some(Errno::INTR | Errno::AGAIN) => continue,
            Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {
                return Ok(Deduped::Unsupported);
            }
            Some(error) => return Err(error),
            None => {}
        }
        // A file that was cut short meanwhile gives no bytes.
        if request.status == DIFFERS || request.bytes == 0 {
            return Ok(Deduped::Different);
        }
        done += request.bytes;
    }
    Ok(Deduped::Same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_system_without_sharing_says_so() {
        let mut files = [tempfile::tempfile_in("/dev/shm").unwrap(), tempfile::tempfile_in("/dev/shm").unwrap()];
        for file in &mut files {
            file.write_all(&[7; 8192]).unwrap();
        }
        assert_eq!(dedupe(&files[0], &files[1], 8192), Ok(Deduped::Unsupported));
        assert_eq!(dedupe(&files[0], &files[1], 0), Ok(Deduped::Same));
    }
}
