//! Reading directories in big steps, with each name's inode number and type, without a `stat` per name.
//!
//! `ssize_t getdents64(int fd, void *dirp, size_t count)`, Linux 2.4.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, RawDir, SeekFrom};
use rustix::io::Result;

/// A buffer of this many bytes reads some 1,000 names per call; the kernel gains little from bigger ones.
pub const DEFAULT_BUFFER: usize = 32 * 1024;

/// A reusable buffer for reading directories.
pub struct DirBuffer {
    bytes: Vec<MaybeUninit<u8>>,
}

impl fmt::Debug for DirBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirBuffer").field("bytes", &self.bytes.len()).finish()
    }
}

impl Default for DirBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl DirBuffer {
    /// A buffer of [`DEFAULT_BUFFER`] bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_BUFFER)
    }

    /// A buffer of `bytes` bytes, at least 1 KiB, so that the longest name fits.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: vec![MaybeUninit::uninit(); bytes.max(1024)] }
    }

    /// The entries of `dir` from its start, `.` and `..` left out, in the file system's order.
    ///
    /// `dir` must be open for reading (`O_PATH` gives `EBADF` on the first entry). The descriptor's position moves, so
    /// two readers must not share one open directory.
    ///
    /// # Errors
    /// `EBADF`, `ENOTDIR` or `ESPIPE` when `dir` is no directory open for reading.
    pub fn entries<'a>(&'a mut self, dir: &'a impl AsFd) -> Result<Entries<'a>> {
        let dir = dir.as_fd();
        rustix::fs::seek(dir, SeekFrom::Start(0))?;
        Ok(Entries { raw: RawDir::new(dir, &mut self.bytes), name: Vec::with_capacity(256) })
    }
}

/// What [`DirBuffer::entries`] gives.
pub struct Entries<'a> {
    raw: RawDir<'a, BorrowedFd<'a>>,
    name: Vec<u8>,
}

impl fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries").finish_non_exhaustive()
    }
}

impl Entries<'_> {
    /// The next entry, valid until the one after it is asked for. Not an `Iterator`, since the entry borrows the buffer.
    ///
    /// # Errors
    /// `EBADF` for an `O_PATH` descriptor, `ENOENT` when the directory was removed, `ENOTDIR`, `EIO`.
    #[allow(clippy::should_implement_trait, reason = "a lending iterator")]
    pub fn next(&mut self) -> Option<Result<Entry<'_>>> {
        let (inode, file_type) = loop {
            let entry = match self.raw.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                // Copied, because the borrow checker lets no borrow out of a loop that may go on.
                self.name.clear();
                self.name.extend_from_slice(name);
                break (entry.ino(), entry.file_type());
            }
        };
        Some(Ok(Entry { name: &self.name, inode, file_type }))
    }
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name: neither empty, `.` nor `..`, without `/` and NUL.
    pub name: &'a [u8],
    /// Inode number, as the directory tells it: on a mount point it is the covered directory's.
    pub inode: u64,
    /// The file's type, [`FileType::Unknown`] on file systems that do not store it in directories.
    pub file_type: FileType,
}

/// One name in a directory, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedEntry {
    /// As in [`Entry::name`].
    pub name: Vec<u8>,
    /// As in [`Entry::inode`].
    pub inode: u64,
    /// As in [`Entry::file_type`], but never unknown.
    pub file_type: FileType,
}

/// All entries of a directory, sorted by name (by bytes). Unknown types are looked up.
///
/// # Errors
/// As for [`DirBuffer::entries`] and [`Entries::next`]; an entry that vanishes meanwhile is left out.
pub fn read_sorted(dir: impl AsFd, buffer: &mut DirBuffer) -> Result<Vec<OwnedEntry>> {
    let dir = dir.as_fd();
    let mut all = Vec::new();
    let mut entries = buffer.entries(&dir)?;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let mut file_type = entry.file_type;
        if file_type == FileType::Unknown {
            file_type = match rustix::fs::statat(dir, entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
        }
        all.push(OwnedEntry { name: entry.name.to_vec(), inode: entry.inode, file_type });
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};
    use std::collections::BTreeSet;

    #[test]
    fn reads_every_name_again_and_again_with_a_small_buffer() {
        let temp = tempfile::tempdir().unwrap();
        let dir = rustix::fs::openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut expected = BTreeSet::new();
        for n in 0..300 {
            let name = format!("{n:0200}");
            rustix::fs::mknodat(&dir, &name, FileType::RegularFile, Mode::from(0o600), 0).unwrap();
            expected.insert(name.into_bytes());
        }
        rustix::fs::mkdirat(&dir, "\u{ff}dir", Mode::from(0o700)).unwrap();
        rustix::fs::symlinkat("x", &dir, "link").unwrap();
        expected.insert("\u{ff}dir".as_bytes().to_vec());
        expected.insert(b"link".to_vec());
        let mut buffer = DirBuffer::with_capacity(0);
        for _ in 0..2 {
            let all = read_sorted(&dir, &mut buffer).unwrap();
            assert_eq!(all.len(), expected.len());
            assert!(all.iter().map(|e| &e.name).eq(expected.iter()));
            for entry in &all {
                let stat = rustix::fs::statat(&dir, &*entry.name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                assert_eq!((entry.inode, entry.file_type), (stat.st_ino, FileType::from_raw_mode(stat.st_mode)));
            }
        }
    }

    #[test]
    fn a_file_or_a_path_descriptor_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let path = rustix::fs::openat(CWD, temp.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mut buffer = DirBuffer::new();
        assert_eq!(read_sorted(&path, &mut buffer), Err(rustix::io::Errno::BADF));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read_sorted(&file, &mut buffer), Err(rustix::io::Errno::NOTDIR));
    }
}
