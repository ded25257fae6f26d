//! Copying a file's content in the cheapest way that works: shared extents, a copy inside the kernel, or by hand; holes
//! stay holes.
//!
//! | way | call | works |
//! |---|---|---|
//! | [`CopyMethod::Reflink`] | `int ioctl(int dest, FICLONE, int src)`, Linux 4.5 | btrfs, XFS, bcachefs, some overlays |
//! | [`CopyMethod::InKernel`] | `ssize_t copy_file_range(int, off_t *, int, off_t *, size_t, unsigned)`, Linux 4.5 | within one file system; since 5.3 or 5.19 between some |
//! | [`CopyMethod::ByHand`] | `pread`, `pwrite` | always |

use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};

/// How the content got across.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyMethod {
    /// Both files share their extents; nothing was copied.
    Reflink,
    /// The kernel copied.
    InKernel,
    /// This process read and wrote.
    ByHand,
}

/// What [`copy_content`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The least cheap way that was needed.
    pub method: CopyMethod,
    /// Bytes of data (not holes) copied or shared.
    pub data: u64,
    /// Size of the file.
    pub size: u64,
}

/// Makes `destination` share all extents of `source`; `false` when these files cannot share.
///
/// `int ioctl(int dest_fd, FICLONE, int src_fd)`, Linux 4.5. `destination` must be open for writing; its old content is
/// replaced, and nothing but size and content changes. Atomic for readers of the destination.
///
/// # Errors
/// `EACCES`, `EBADF`, `EISDIR`, `EPERM` (immutable), `ETXTBSY`, `ENOSPC`, `EDQUOT`, `EIO`. The errnos that mean "not
/// here" (`EOPNOTSUPP`, `ENOTTY`, `EXDEV`, `EINVAL`, `ENOSYS`) give `false`.
pub fn clone_file(destination: impl AsFd, source: impl AsFd) -> Result<bool> {
    match rustix::fs::ioctl_ficlone(destination, source) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies all content of `source` into the empty file `destination`, holes kept, in the cheapest way that works.
///
/// Both descriptors' positions move. Owner, mode, times and xattrs are not copied. Nothing is synced: after a crash the
/// destination may hold any part. A source that shrinks meanwhile gives a shorter copy with a hole at its end.
///
/// # Errors
/// `EIO`, `ENOSPC`, `EDQUOT`, `EFBIG`, `EBADF` for descriptors with the wrong access.
pub fn copy_content(destination: impl AsFd, source: impl AsFd) -> Result<Copied> {
    let (destination, source) = (destination.as_fd(), source.as_fd());
    let size = u64::try_from(rustix::fs::fstat(source)?.st_size).unwrap_or(0);
    if size == 0 {
        // Files of procfs and the like claim to be empty and are not.
        let data = copy_to_end_by_hand(destination, source)?;
        return Ok(Copied { method: CopyMethod::ByHand, data, size: data });
    }
    if clone_file(destination, source)? {
        return Ok(Copied { method: CopyMethod::Reflink, data: size, size });
    }
    let mut method = CopyMethod::InKernel;
    let mut copied = 0;
    let mut position = 0;
    while position < size {
        let Some((start, end)) = next_data(source, position, size)? else { break };
        copied += copy_range(destination, source, start, end - start, &mut method)?;
        position = end;
    }
    // A hole at the end, or a last block that was never written.
    rustix::fs::ftruncate(destination, size)?;
    Ok(Copied { method, data: copied, size })
}

/// The next stretch of data at or after `position` and below `size`, or `None` when only a hole is left.
///
/// `off_t lseek(int fd, off_t offset, SEEK_DATA | SEEK_HOLE)`, Linux 3.1. Where the file system cannot tell, all is
/// data. The descriptor's position moves.
///
/// # Errors
/// `EBADF`, `EIO`, `ESPIPE` for what has no positions.
pub fn next_data(file: impl AsFd, position: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let file = file.as_fd();
    if position >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((position, size))),
        Err(error) => return Err(error),
    };
    if start >= size {
        return Ok(None);
    }
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    // A file system that answers nonsense must not hold us in a loop.
    Ok(Some((start, if end > start { end } else { size })))
}

/// One call's worth: big enough for long extents, small enough to be interrupted.
const STEP: u64 = 1 << 30;

/// Copies `length` bytes at `offset`, and gives how many there were before the source ended.
fn copy_range(
    destination: impl AsFd,
    source: impl AsFd,
    offset: u64,
    length: u64,
    method: &mut CopyMethod,
) -> Result<u64> {
    let (destination, source) = (destination.as_fd(), source.as_fd());
    let mut done = 0;
    while done < length && *method == CopyMethod::InKernel {
        let (mut from, mut to) = (offset + done, offset + done);
        let step = usize::try_from((length - done).min(STEP)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), destination, Some(&mut to), step) {
            // Kernels 5.3 to 5.18 copy nothing from some file systems and call that success.
            Ok(0) => break,
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::TXTBSY) => {
                *method = CopyMethod::ByHand;
            }
            Err(error) => return Err(error),
        }
    }
    if done < length {
        let by_hand = copy_range_by_hand(destination, source, offset + done, length - done)?;
        if by_hand > 0 {
            *method = CopyMethod::ByHand;
        }
        done += by_hand;
    }
    Ok(done)
}

const BUFFER: usize = 128 * 1024;

fn copy_range_by_hand(destination: impl AsFd, source: impl AsFd, offset: u64, length: u64) -> Result<u64> {
    let (destination, source) = (destination.as_fd(), source.as_fd());
    let mut buffer = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER))];
    let mut done = 0;
    while done < length {
        let want = buffer.len().min(usize::try_from(length - done).unwrap_or(BUFFER));
        let Some(room) = buffer.get_mut(..want) else { break };
        let got = match rustix::io::pread(source, &mut *room, offset + done) {
            Ok(0) => break,
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let mut rest = room.get(..got).unwrap_or_default();
        while !rest.is_empty() {
            match rustix::io::pwrite(destination, rest, offset + done) {
                Ok(0) => return Err(Errno::IO),
                Ok(put) => {
                    done += put as u64;
                    rest = rest.get(put..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(done)
}

fn copy_to_end_by_hand(destination: impl AsFd, source: impl AsFd) -> Result<u64> {
    copy_range_by_hand(destination, source, 0, i64::MAX.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn content(mut file: &File) -> Vec<u8> {
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn holes_stay_holes() {
        let (source, destination) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.write_all_at(b"start", 0).unwrap();
        source.write_all_at(&[7; 10_000], 8 << 20).unwrap();
        source.set_len(64 << 20).unwrap();
        let copied = copy_content(&destination, &source).unwrap();
        assert_eq!(copied.size, 64 << 20);
        assert!(copied.method == CopyMethod::Reflink || copied.data < 1 << 20, "{copied:?}");
        assert!(content(&source) == content(&destination));
        assert!(destination.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn by_hand_gives_the_same_bytes() {
        let (source, destination) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..BUFFER * 3 + 17).map(|n| (n * 31 / 8 % 251) as u8).collect();
        (&source).write_all(&bytes).unwrap();
        let mut method = CopyMethod::ByHand;
        let length = bytes.len() as u64;
        assert_eq!(copy_range(&destination, &source, 0, length + 99, &mut method).unwrap(), length);
        assert!(content(&destination) == bytes);
    }

    #[test]
    fn a_file_of_procfs_is_copied_though_it_claims_no_size() {
        let destination = tempfile::tempfile().unwrap();
        let copied = copy_content(&destination, File::open("/proc/self/cmdline").unwrap()).unwrap();
        assert!(copied.data > 0 && copied.method == CopyMethod::ByHand);
        assert_eq!(content(&destination), content(&File::open("/proc/self/cmdline").unwrap()));
    }

    #[test]
    fn a_hole_alone_has_no_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(next_data(&file, 0, 1 << 20).unwrap(), None);
        let destination = tempfile::tempfile().unwrap();
        let copied = copy_content(&destination, &file).unwrap();
        assert_eq!((copied.size, destination.metadata().unwrap().len()), (1 << 20, 1 << 20));
    }

    #[test]
    fn a_destination_open_for_reading_only_is_an_error() {
        let source = tempfile::NamedTempFile::new().unwrap();
        source.as_file().write_all_at(b"x", 0).unwrap();
        let destination = tempfile::NamedTempFile::new().unwrap();
        let destination = File::open(destination.path()).unwrap();
        assert_eq!(copy_content(&destination, source.as_file()), Err(Errno::BADF));
    }
}
