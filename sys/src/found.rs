//! Files found by name and looked at before they are opened.
//!
//! Opening has effects: a device may rewind its tape or arm its watchdog, a pipe waits for a writer. Who opens a name after
//! having looked at it may meet something else by then, where somebody else can write to the directory. What is found here
//! stays the same whatever becomes of its name.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, Result};

/// A file, directory, device or anything else that has a name, held but not opened.
#[derive(Debug)]
pub struct Found {
    file: OwnedFd,
    status: Stat,
}

impl AsFd for Found {
    /// An `O_PATH` descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Found {
    /// What `name` in the directory `dir` is, a symbolic link not followed. `name` is a single component.
    ///
    /// `openat` with `O_PATH | O_NOFOLLOW` (Linux 2.6.39), and `fstat`.
    ///
    /// # Errors
    /// `ENOENT`: there is none (any more). `ENOTDIR`, `EACCES`, `ENAMETOOLONG`, `EMFILE`, `ENFILE`, `EIO`.
    pub fn at(dir: impl AsFd, name: &[u8]) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::of(rustix::fs::openat(dir, name, flags, Mode::empty())?)
    }

    /// What the descriptor `file`, usually an `O_PATH` one, is open on.
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn of(file: OwnedFd) -> Result<Self> {
        let status = rustix::fs::fstat(&file)?;
        Ok(Self { file, status })
    }

    /// What it was like when it was found. The type never changes.
    #[must_use]
    pub fn status(&self) -> &Stat {
        &self.status
    }

    /// Its type.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.status.st_mode)
    }

    /// Opens a regular file to read it, also when it has lost its name meanwhile. Through `/proc/self/fd`, which is the only
    /// way from an `O_PATH` descriptor to one that can be read.
    ///
    /// # Errors
    /// `EINVAL`: it is no regular file. `EACCES`; `EMFILE`, `ENFILE`; `ENOSYS` where `/proc` is not mounted; `EIO`.
    pub fn open_to_read(&self) -> Result<OwnedFd> {
        if self.file_type() != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path.as_str(), flags, Mode::empty()).map_err(|error| match error {
            // Or it would be taken for a file that is gone.
            Errno::NOENT | Errno::NOTDIR => Errno::NOSYS,
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, CWD, mkdirat, mknodat, openat, renameat, symlinkat, unlinkat};

    #[test]
    fn what_was_found_stays_what_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let dir = openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let write = |name: &str, text: &[u8]| {
            let file = openat(&dir, name, OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
            rustix::io::write(&file, text).unwrap();
        };
        write("file", b"first");
        let found = Found::at(&dir, b"file").unwrap();
        write("other", b"second");
        renameat(&dir, "other", &dir, "file").unwrap();
        let read = |found: &Found| {
            let mut text = [0; 16];
            let length = rustix::io::read(found.open_to_read().unwrap(), &mut text).unwrap();
            text[..length].to_vec()
        };
        assert_eq!(read(&found), b"first");
        assert_eq!(found.status().st_size, 5);
        assert_eq!(read(&Found::at(&dir, b"file").unwrap()), b"second");
        unlinkat(&dir, "file", AtFlags::empty()).unwrap();
        assert_eq!(Found::at(&dir, b"file").err(), Some(Errno::NOENT));
    }

    #[test]
    fn nothing_but_regular_files_is_opened() {
        let temp = tempfile::tempdir().unwrap();
        let dir = openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        mkdirat(&dir, "dir", Mode::RWXU).unwrap();
        symlinkat("dir", &dir, "link").unwrap();
        mknodat(&dir, "pipe", FileType::Fifo, Mode::RUSR, 0).unwrap();
        let table = [(&b"dir"[..], FileType::Directory), (b"link", FileType::Symlink), (b"pipe", FileType::Fifo)];
        for (name, file_type) in table {
            let found = Found::at(&dir, name).unwrap();
            assert_eq!(found.file_type(), file_type);
            assert_eq!(found.open_to_read().err(), Some(Errno::INVAL));
        }
    }
}
