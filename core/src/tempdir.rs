//! Deletions that are seen at once and done later, and additions that are made aside and then moved into place.
//!
//! ```text
//! overlay/tempdirs/            0700, the root; overlay-layers/tmp for the store's own files
//!   lock-4073166912            locked by the process that owns the directory below, for as long as it lives
//!   temp-dir-4073166912/       0700
//!     0-TNQ3…                  the first thing staged for deletion, under its own name
//!     1-8f3c…                  the second
//!     2-addition               something being made
//!   lock-layer-8f3c…           locked by the process that makes that layer; see [`TempDirRoot::claim`]
//! ```
//!
//! - A deletion is one rename, short enough for the store's lock; the files are removed after the lock is given back.
//! - An addition is made without any lock and committed by one rename.
//! - What a killed process left has no lock; [`TempDirRoot::recover_stale`] removes it. Whatever lies in a `temp-dir-…` is
//!   rubbish once its owner is dead.
//!
//! The same names and locks as containers/storage's (`internal/tempdir`), so each cleans up after the other.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use graph_sys::fs::{self, Mode, OFlags, RenameFlags};
use graph_sys::io::Errno;
use graph_sys::remove::{RemoveError, remove_tree};

use crate::error::{Error, Result};
use crate::fsutil;
use crate::lockfile::OwnerLock;

mod claim;
mod note;
#[cfg(test)]
mod tests;

pub use claim::Claim;
pub use note::{FoundNote, Note};

const LOCK_PREFIX: &str = "lock-";
const DIRECTORY_PREFIX: &str = "temp-dir-";
/// Longest file name of Linux file systems, in bytes.
const NAME_MAX: usize = 255;

/// A directory of temporary directories and their locks.
#[derive(Debug)]
pub struct TempDirRoot {
    dir: OwnedFd,
    path: PathBuf,
}

/// What looking for left-overs found.
#[derive(Debug, Default)]
#[must_use]
pub struct Recovery {
    /// Ids whose left-overs are gone now.
    pub removed: Vec<OsString>,
    /// Ids whose owner lives.
    pub in_use: Vec<OsString>,
    /// What could not be removed and why. It stays for the next time and is no reason not to use the store.
    pub failed: Vec<Error>,
}

impl TempDirRoot {
    /// Opens the root at `path`, making it (mode 0700) where it is missing; its parent must exist.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        match fs::mkdirat(fs::CWD, &path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make directory", path, None, error)),
        }
        Ok(Self { dir: fsutil::open_directory(&path)?, path })
    }

    /// As [`TempDirRoot::create`], for `name` in an open directory; `path` is what messages call it.
    ///
    /// What is staged can only be renamed within one mount. Somebody may mount a store's directory upon itself while
    /// it is open (containers/storage does); by its descriptor everything stays on the mount it was opened on.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn create_in(dir: impl AsFd, name: &str, path: impl Into<PathBuf>) -> Result<Self> {
        let (dir, path) = (dir.as_fd(), path.into());
        match fs::mkdirat(dir, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make directory", path, None, error)),
        }
        match open_nofollow(dir, OsStr::new(name)) {
            Ok(dir) => Ok(Self { dir, path }),
            Err(error) => Err(Error::io("open directory", path, None, error)),
        }
    }

    /// Opens the root at `path`; `None` where there is none.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn open(path: impl Into<PathBuf>) -> Result<Option<Self>> {
        let path = path.into();
        match fsutil::open_directory(&path) {
            Ok(dir) => Ok(Some(Self { dir, path })),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the root is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new temporary directory, owned and locked by the returned value.
    ///
    /// # Errors
    /// I/O errors with the path. Nothing is left behind then.
    pub fn make(&self) -> Result<TempDir> {
        let error = |operation, name: &OsStr, source| Error::io(operation, self.path.join(name), None, source);
        // As long as other processes' clean-up takes each new lock file for a left-over; once is already rare.
        for _ in 0..1000 {
            let id = fsutil::random_name().map_err(|e| error("make a name in", OsStr::new(""), e))?;
            let lock_name = OsString::from(format!("{LOCK_PREFIX}{id}"));
            let Some(lock) =
                OwnerLock::create(self.dir.as_fd(), &lock_name).map_err(|e| error("make lock file", &lock_name, e))?
            else {
                continue;
            };
            let name = OsString::from(format!("{DIRECTORY_PREFIX}{id}"));
            let opened = fs::mkdirat(&self.dir, &*name, Mode::RWXU)
                .and_then(|()| open_nofollow(self.dir.as_fd(), &name))
                .and_then(|dir| Ok((dir, graph_sys::io::fcntl_dupfd_cloexec(&self.dir, 0)?)));
            let (dir, root) = match opened {
                Ok(pair) => pair,
                Err(source) => {
                    // The error to report is the first one; whatever of the pair stays is a left-over without an owner.
                    fs::unlinkat(&self.dir, &*name, fs::AtFlags::REMOVEDIR).ok();
                    lock.remove(self.dir.as_fd(), &lock_name).ok();
                    if source == Errno::EXIST {
                        continue;
                    }
                    return Err(error("make directory", &name, source.into()));
                }
            };
            let path = self.path.join(&name);
            return Ok(TempDir { root, dir, name, path, lock_name, lock: Some(lock), next: 0 });
        }
        Err(error("make lock file", OsStr::new(LOCK_PREFIX), io::ErrorKind::AlreadyExists.into()))
    }

    /// Removes the temporary directories whose owners are dead. May run in several processes at once, and beside others
    /// that make new ones; never touches one that is owned.
    ///
    /// # Errors
    /// Only when the root cannot be read; all else is in [`Recovery::failed`].
    pub fn recover_stale(&self) -> Result<Recovery> {
        let names = fsutil::list(&self.dir).map_err(|e| Error::io("read directory", &self.path, None, e))?;
        let id = |name: &OsStr| {
            let bytes = name.as_bytes();
            let rest = [LOCK_PREFIX, DIRECTORY_PREFIX].iter().find_map(|p| bytes.strip_prefix(p.as_bytes()));
            rest.map(|rest| OsString::from_vec(rest.to_vec()))
        };
        let mut ids: Vec<OsString> = names.iter().filter_map(|name| id(name)).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut recovery = Recovery::default();
        for id in ids {
            match self.recover(&id) {
                Ok(true) => recovery.removed.push(id),
                Ok(false) => recovery.in_use.push(id),
                Err(error) => recovery.failed.push(error),
            }
        }
        Ok(recovery)
    }

    fn recover(&self, id: &OsStr) -> Result<bool> {
        let with_prefix = |prefix: &str| {
            let mut name = OsString::from(prefix);
            name.push(id);
            name
        };
        let (lock_name, name) = (with_prefix(LOCK_PREFIX), with_prefix(DIRECTORY_PREFIX));
        let error = |operation, name: &OsStr, source| Error::io(operation, self.path.join(name), None, source);
        let taken =
            OwnerLock::take_over(self.dir.as_fd(), &lock_name).map_err(|e| error("lock left-over", &lock_name, e))?;
        let Some(lock) = taken else { return Ok(false) };
        remove(self.dir.as_fd(), &name, &self.path)?;
        lock.remove(self.dir.as_fd(), &lock_name).map_err(|e| error("remove lock file", &lock_name, e))?;
        Ok(true)
    }
}

/// Removes the left-overs below several roots; roots that are missing are passed over. What fails is logged and left
/// for the next time, because a clean-up that fails must not make a store unusable.
pub fn recover_stale(roots: &[PathBuf]) -> Recovery {
    let mut all = Recovery::default();
    for root in roots {
        let found = TempDirRoot::open(root).and_then(|root| root.map(|root| root.recover_stale()).transpose());
        match found {
            Ok(None) => {}
            Ok(Some(recovery)) => {
                all.removed.extend(recovery.removed);
                all.in_use.extend(recovery.in_use);
                all.failed.extend(recovery.failed);
            }
            Err(error) => all.failed.push(error),
        }
    }
    for error in &all.failed {
        tracing::warn!(error = error as &dyn std::error::Error, "removing what a killed process left");
    }
    all
}

/// A temporary directory that this process owns.
///
/// [`TempDir::finish`] removes it with all that was staged for deletion or not committed. Dropping it does the same and
/// only logs what fails. If the process dies, the next [`TempDirRoot::recover_stale`] of anybody does it.
#[must_use = "what was staged is removed by finish()"]
pub struct TempDir {
    root: OwnedFd,
    dir: OwnedFd,
    name: OsString,
    path: PathBuf,
    lock_name: OsString,
    lock: Option<OwnerLock>,
    /// Number of the next thing staged.
    next: u64,
}

/// Something being made in a temporary directory; see [`TempDir::commit`].
#[derive(Debug)]
#[must_use = "it is thrown away unless committed"]
pub struct Addition {
    name: String,
}

impl TempDir {
    /// Where the directory is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves `name`, in the directory `dir` of the same file system, out of the way, to be removed by
    /// [`TempDir::finish`]. False when there is nothing of that name.
    ///
    /// # Errors
    /// I/O errors with the path: `EBUSY` for a mount point, `EXDEV` for another file system. `name` is then still there.
    pub fn stage_deletion(&mut self, dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<bool> {
        let (dir, name) = (dir.as_fd(), name.as_ref());
        let mut staged = OsString::from(format!("{}-", self.number()));
        let room = NAME_MAX.saturating_sub(staged.len());
        staged.push(OsStr::from_bytes(name.as_bytes().get(..room).unwrap_or(name.as_bytes())));
        match fs::renameat(dir, name, &self.dir, &*staged) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("move out of the way", fsutil::path_of(dir, name), None, error)),
        }
    }

    /// A new, empty directory with exactly `mode` (octal), to be filled and then committed.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn add_directory(&mut self, mode: u32) -> Result<(Addition, OwnedFd)> {
        let name = self.addition_name();
        let opened = fs::mkdirat(&self.dir, name.as_str(), Mode::RWXU)
            .and_then(|()| open_nofollow(self.dir.as_fd(), OsStr::new(&name)))
            .and_then(|dir| fs::fchmod(&dir, Mode::from_raw_mode(mode & 0o7777)).map(|()| dir));
        let dir = opened.map_err(|e| Error::io("make directory", self.path.join(&name), None, e))?;
        Ok((Addition { name }, dir))
    }

    /// A new, empty file with exactly `mode` (octal), open for reading and writing, to be filled and then committed.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn add_file(&mut self, mode: u32) -> Result<(Addition, File)> {
        let name = self.addition_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let opened = fs::openat(&self.dir, name.as_str(), flags, Mode::RUSR | Mode::WUSR)
            .and_then(|file| fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).map(|()| file));
        let file = opened.map_err(|e| Error::io("make file", self.path.join(&name), None, e))?;
        Ok((Addition { name }, File::from(file)))
    }

    /// Where an addition is being made.
    #[must_use]
    pub fn addition_path(&self, addition: &Addition) -> PathBuf {
        self.path.join(&addition.name)
    }

    /// Moves an addition to `name` in the directory `dir` of the same file system, where nothing may be yet. One rename: after a crash it is
    /// there whole, or not at all. Its data is not flushed to disk by this.
    ///
    /// # Errors
    /// I/O errors with the path; [`io::ErrorKind::AlreadyExists`] when something is there. The addition is then thrown away
    /// with the temporary directory.
    pub fn commit(&self, addition: Addition, dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<()> {
        let (dir, name) = (dir.as_fd(), name.as_ref());
        let rename = |flags| fs::renameat_with(&self.dir, addition.name.as_str(), dir, name, flags);
        let result = match rename(RenameFlags::NOREPLACE) {
            // A file system without that flag (some network and FUSE ones): the look and the rename are two steps there.
            Err(Errno::INVAL) => match fs::statat(dir, name, fs::AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rename(RenameFlags::empty()),
                Ok(_) => Err(Errno::EXIST),
                Err(error) => Err(error),
            },
            other => other,
        };
        result.map_err(|e| Error::io("move into place", fsutil::path_of(dir, name), None, e))
    }

    /// Exchanges an addition for what is at `name` in the directory `dir` of the same file system. What was there is removed
    /// with the temporary directory. One rename: after a crash the one or the other is there. (On a file system without such
    /// renames there is a moment with neither, and both in the temporary directory.)
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn exchange(&mut self, addition: Addition, dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<()> {
        let (dir, name) = (dir.as_fd(), name.as_ref());
        match fs::renameat_with(&self.dir, addition.name.as_str(), dir, name, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            Err(Errno::INVAL) => {
                self.stage_deletion(dir, name)?;
                self.commit(addition, dir, name)
            }
            Err(error) => Err(Error::io("exchange", fsutil::path_of(dir, name), None, error)),
        }
    }

    /// As [`TempDir::exchange`], but once more with the same addition undoes it.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn swap(&self, addition: &Addition, dir: impl AsFd, name: impl AsRef<OsStr>) -> Result<()> {
        let (dir, name) = (dir.as_fd(), name.as_ref());
        let result = match fs::renameat_with(&self.dir, addition.name.as_str(), dir, name, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL) => {
                let aside = format!("{}-aside", addition.name);
                fs::renameat(dir, name, &self.dir, aside.as_str()).and_then(|()| {
                    fs::renameat(&self.dir, addition.name.as_str(), dir, name).inspect_err(|_| {
                        // The old thing back; should that fail, too, the first error tells more.
                        fs::renameat(&self.dir, aside.as_str(), dir, name).ok();
                    })?;
                    fs::renameat(&self.dir, aside.as_str(), &self.dir, addition.name.as_str())
                })
            }
            result => result,
        };
        result.map_err(|e| Error::io("exchange", fsutil::path_of(dir, name), None, e))
    }

    /// Removes the directory, all that was staged in it, and the lock. To be called outside the store's lock: it can
    /// take long.
    ///
    /// # Errors
    /// I/O errors with the path. What could not be removed stays, without an owner, for the next
    /// [`TempDirRoot::recover_stale`].
    pub fn finish(mut self) -> Result<()> {
        self.clean_up()
    }

    fn clean_up(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let root_path = self.path.parent().unwrap_or(Path::new(""));
        // When the tree cannot be removed the lock file stays too (without its lock), so that both are found together.
        remove(self.root.as_fd(), &self.name, root_path)?;
        lock.remove(self.root.as_fd(), &self.lock_name)
            .map_err(|e| Error::io("remove lock file", root_path.join(&self.lock_name), None, e))
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    fn addition_name(&mut self) -> String {
        format!("{}-addition", self.number())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            tracing::warn!(error = &error as &dyn std::error::Error, "removing a temporary directory");
        }
    }
}

impl std::fmt::Debug for TempDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TempDir").field("path", &self.path).field("staged", &self.next).finish_non_exhaustive()
    }
}

fn open_nofollow(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

fn remove(dir: BorrowedFd<'_>, name: &OsStr, root_path: &Path) -> Result<()> {
    remove_tree(dir, name)
        .map_err(|RemoveError { operation, path, source, .. }| Error::io(operation, root_path.join(path), None, source))
}
