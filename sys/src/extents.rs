//! Which of a file's bytes share their place on disk with another file.
//!
//! `int ioctl(int fd, FS_IOC_FIEMAP, struct fiemap *map)`, Linux 2.6.28; `FIEMAP_EXTENT_SHARED` since 2.6.33. See the
//! kernel's `Documentation/filesystems/fiemap.rst`.

#![allow(unsafe_code, reason = "no crate that we use wraps this ioctl")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: u32 = 0xC020_660B;
/// The last extent of the file.
const LAST: u32 = 0x1;
/// Other files have it too.
const SHARED: u32 = 0x2000;
/// Extents asked for in one call: 4 KiB of answer.
const BATCH: usize = 73;

/// `struct fiemap_extent` of `<linux/fiemap.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for its answer.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

const _: () = assert!(size_of::<Extent>() == 56 && size_of::<Map>() == 32 + 56 * BATCH);

/// Bytes of the file that share their place on disk with another file (or with another part of this one); `None` where
/// the file system cannot tell.
///
/// Data that is still on its way to the disk counts as not shared, which is what it is as a rule. Compressed extents
/// count with their uncompressed length.
///
/// # Errors
/// `EIO`, `EBADF`. The errnos by which a file system without this call answers (`EOPNOTSUPP`, `ENOTTY`, `EINVAL`,
/// `ENOSYS`) give `None`.
pub fn shared_bytes(file: impl AsFd) -> Result<Option<u64>> {
    let file = file.as_fd();
    let mut shared: u64 = 0;
    let mut start = 0;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: u32::try_from(BATCH).unwrap_or(1),
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: `map` is a `struct fiemap` followed by room for as many extents as it states; it lives, writable,
        // until the call returns.
        let returned = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP.into(), &raw mut map) };
        if returned < 0 {
            return match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) {
                Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS => Ok(None),
                Errno::INTR => continue,
                error => Err(error),
            };
        }
        let found = map.extents.get(..usize::try_from(map.mapped).unwrap_or(0)).unwrap_or(&map.extents);
        let Some(last) = found.last() else { return Ok(Some(shared)) };
        for extent in found.iter().filter(|extent| extent.flags & SHARED != 0) {
            shared = shared.saturating_add(extent.length);
        }
        let end = last.logical.saturating_add(last.length);
        // A file system that answers nonsense must not hold us in a loop.
        if last.flags & LAST != 0 || end <= start {
            return Ok(Some(shared));
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_cannot_be_asked_is_told_apart_from_nothing_shared() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 10_000], 0).unwrap();
        file.sync_all().unwrap();
        assert!(matches!(shared_bytes(&file).unwrap(), None | Some(0)));
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(shared_bytes(pipe).unwrap(), None);
    }
}
