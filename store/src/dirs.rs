//! Directories held open, with the path that error messages name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_core::fsutil::{self, Durability};
use graph_sys::fs::{self, Mode, OFlags};
use graph_sys::io::Errno;

use crate::error::{Error, Result};

/// The directory in an image's or a container's own that belongs to its engine.
pub(crate) const USER_DATA: &str = "userdata";
/// More than any file of records or big data item can sensibly have.
const LARGEST_FILE: u64 = 1 << 32;
/// Mode of files of records and of big data.
const FILE_MODE: u32 = 0o600;

/// A directory of the store. Names given to its methods are single components of the store's own making, or checked ids.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens an operator's directory, making it and its parents (0700) when missing.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        Ok(Self { fd: fsutil::create_directories(path)?, path: path.to_owned() })
    }

    /// Opens an operator's directory; `None` when there is none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        match fs::openat(fs::CWD, path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: path.to_owned() })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("open directory", path, error)),
        }
    }

    /// Refuses what is not one path component: ids come from files that anybody may have written.
    fn check(&self, name: &str) -> Result<()> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(self.error("use as a file name", &format!("{name:?}"), Errno::INVAL));
        }
        Ok(())
    }

    /// Opens a directory in this one, making it (0700) when missing. A link is not followed.
    pub(crate) fn make_dir(&self, name: &str) -> Result<Self> {
        self.check(name)?;
        match fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.error("make directory", name, error)),
        }
        self.open_dir(name)?.ok_or_else(|| self.error("open directory", name, Errno::NOENT))
    }

    /// Opens a directory in this one; `None` when there is none. A link is not followed.
    pub(crate) fn open_dir(&self, name: &str) -> Result<Option<Self>> {
        self.check(name)?;
        match fs::openat(&self.fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.path.join(name) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error("open directory", name, error)),
        }
    }

    /// Where it is, for messages and for those who need a path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file whole; `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.check(name)?;
        fsutil::read_small(&self.fd, name, LARGEST_FILE).map_err(|e| Error::io("read", self.path.join(name), e))
    }

    /// Opens a file for reading; `None` when there is none. A link is not followed.
    pub(crate) fn open_file(&self, name: &str) -> Result<Option<File>> {
        self.check(name)?;
        match fs::openat(&self.fd, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error("open", name, error)),
        }
    }

    /// Opens a file for reading and writing; `None` when there is none. A link is not followed.
    pub(crate) fn open_to_change(&self, name: &str) -> Result<Option<File>> {
        self.check(name)?;
        match fs::openat(&self.fd, name, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error("open", name, error)),
        }
    }

    /// As [`Dir::write`]; `fill` writes the contents.
    pub(crate) fn write_with<R>(
        &self,
        name: &str,
        durability: Durability,
        fill: impl FnOnce(&mut File) -> io::Result<R>,
    ) -> Result<()> {
        self.check(name)?;
        fsutil::atomic_write_with(&self.fd, name, FILE_MODE, durability, |file| fill(file).map(drop))?;
        Ok(())
    }

    /// Replaces a file (0600) whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8], durability: Durability) -> Result<()> {
        self.check(name)?;
        fsutil::atomic_write(&self.fd, name, bytes, FILE_MODE, durability)?;
        Ok(())
    }

    /// Removes a file, or a directory with everything in it. Missing is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.check(name)?;
        graph_sys::remove::remove_tree(&self.fd, name)
            .map_err(|e| Error::io("remove", self.path.join(&e.path), io::Error::other(e)))
    }

    /// Flushes the directory itself: names made and removed so far.
    pub(crate) fn flush(&self) -> Result<()> {
        fs::fsync(&self.fd).map_err(|e| Error::io("flush directory", &self.path, e))
    }

    /// Flushes all of the file system that it is on.
    pub(crate) fn flush_file_system(&self) -> Result<()> {
        fs::syncfs(&self.fd).map_err(|e| Error::io("flush the file system of", &self.path, e))
    }

    fn error(&self, operation: &'static str, name: &str, source: Errno) -> Error {
        Error::io(operation, self.path.join(name), source)
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
