//! Open directories of the tree being made, so that each is opened once and gets its attributes once.
//!
//! A directory's modification time changes whenever something is made in it, so it is set when the directory is closed:
//! the time that the layer states or, when the layer does not state the directory, the one found on disk before the
//! first change. Since every directory knows its final time while it is open, any of them may be closed and opened again
//! at any moment, and nothing has to be remembered of those that are closed.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use graph_sys::fs::{self, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use graph_sys::io::Errno;

use super::names::{is_within, join, split};
use crate::error::{Error, Result};

/// Directories kept open. Layers are walked in order nearly always, so that more would hardly be used, and many layers
/// may be applied at the same time under the usual limit of 1,024 descriptors.
const OPEN_DIRECTORIES: usize = 256;

/// Bytes that their paths may have together. Ordinary layers have some thousands; this is for those whose names are as long
/// as names can be, of which 256 would fill more memory than an import may take.
const PATH_BYTES: usize = 1 << 20;

/// How many parts of a path are looked up before all open directories are gone through instead.
const LOOK_UPS: usize = 8;

/// How many are closed at once when there are too many: finding the ones to close costs as much as a system call.
const CLOSED_AT_ONCE: usize = 16;

/// Access and modification time of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) access: Timespec,
    pub(super) modification: Timespec,
}

impl Times {
    pub(super) fn of(stat: &fs::Stat) -> Self {
        // A nanosecond field holds 0 to 999,999,999 whatever its type is.
        Self {
            access: Timespec { tv_sec: stat.st_atime, tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or(0) },
            modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        }
    }

    /// As the system calls take them.
    pub(super) fn stamps(self) -> Timestamps {
        Timestamps { last_access: self.access, last_modification: self.modification }
    }
}

/// A directory of the tree, open.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) path: Box<[u8]>,
    fd: OwnedFd,
    /// All that is in it was made by this layer, the paths set aside as foreign excepted.
    pub(super) fresh: Cell<bool>,
    /// Nothing of lower layers shows in it (overlay only).
    pub(super) hidden: Cell<bool>,
    /// Marked as a directory that holds whiteouts stored as attributes.
    pub(super) holds_xattr_whiteouts: Cell<bool>,
    /// Files made in it may get another group than this process's.
    pub(super) gives_group: Cell<bool>,
    /// Files made in it may get other modes and access lists than asked for (setgid bit or default ACL).
    pub(super) gives_mode: Cell<bool>,
    /// What to set when it is closed. Known as soon as something is about to change in it.
    times: Cell<Option<Times>>,
    mode: Cell<Option<Mode>>,
    used: Cell<u64>,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// `fresh` and `hidden` as in the fields.
    pub(super) fn new(path: Vec<u8>, fd: OwnedFd, fresh: bool, hidden: bool) -> Self {
        Self {
            path: path.into_boxed_slice(),
            fd,
            fresh: Cell::new(fresh),
            hidden: Cell::new(hidden),
            holds_xattr_whiteouts: Cell::new(false),
            gives_group: Cell::new(false),
            gives_mode: Cell::new(false),
            times: Cell::new(None),
            mode: Cell::new(None),
            used: Cell::new(0),
        }
    }

    /// Path of an entry of this directory.
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }

    /// What the directory is to be like once it is closed.
    pub(super) fn set_final(&self, times: Times, mode: Option<Mode>) {
        self.times.set(Some(times));
        if mode.is_some() {
            self.mode.set(mode);
        }
    }

    /// To be called before anything in the directory changes.
    pub(super) fn prepare(&self, group: u32) -> Result<()> {
        if self.times.get().is_some() {
            return Ok(());
        }
        let stat = fs::fstat(&self.fd).map_err(|error| Error::io("stat directory", &*self.path, error))?;
        self.times.set(Some(Times::of(&stat)));
        self.gives_group.set(stat.st_gid != group);
        let inherits = fs::fgetxattr_query(&self.fd, c"system.posix_acl_default").is_ok_and(|size| size > 0);
        self.gives_mode.set(inherits || Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID));
        Ok(())
    }

    /// Sets what was put off. The directory stays usable, and may be sealed again.
    pub(super) fn seal(&self) -> Result<()> {
        if let Some(mode) = self.mode.take() {
            fs::fchmod(&self.fd, mode).map_err(|error| Error::io("change mode of", &*self.path, error))?;
        }
        if let Some(times) = self.times.take() {
            fs::futimens(&self.fd, &times.stamps()).map_err(|error| Error::io("set times of", &*self.path, error))?;
        }
        Ok(())
    }
}

/// A directory that stands for its path.
#[derive(Debug)]
struct ByPath(Rc<Dir>);

impl Borrow<[u8]> for ByPath {
    fn borrow(&self) -> &[u8] {
        &self.0.path
    }
}

impl Hash for ByPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.path.hash(state);
    }
}

impl PartialEq for ByPath {
    fn eq(&self, other: &Self) -> bool {
        self.0.path == other.0.path
    }
}

impl Eq for ByPath {}

/// Hashes length and ends: paths may have 64 KiB, and each of their thousands of directories is looked up. What an archive
/// can make of it is bounded, for the paths of all open directories together have [`PATH_BYTES`].
#[derive(Debug, Default)]
struct Ends(RandomState);

#[derive(Debug)]
struct EndsHasher(DefaultHasher);

impl BuildHasher for Ends {
    type Hasher = EndsHasher;
    fn build_hasher(&self) -> EndsHasher {
        EndsHasher(self.0.build_hasher())
    }
}

impl Hasher for EndsHasher {
    fn finish(&self) -> u64 {
        self.0.finish()
    }
    fn write(&mut self, bytes: &[u8]) {
        match (bytes.first_chunk::<32>(), bytes.last_chunk::<96>()) {
            (Some(first), Some(last)) if bytes.len() > 128 => {
                self.0.write(first);
                self.0.write(last);
            }
            _ => self.0.write(bytes),
        }
    }
    fn write_usize(&mut self, length: usize) {
        self.0.write_usize(length);
    }
}

/// The open directories, by path.
#[derive(Debug)]
pub(super) struct Dirs {
    open: HashSet<ByPath, Ends>,
    /// Bytes of all their paths, or more when some have been closed since they were counted.
    path_bytes: usize,
    clock: u64,
    openat2_missing: bool,
}

/// What is at a name that should be a directory.
#[derive(Debug)]
pub(super) enum Opened {
    Directory(OwnedFd),
    Missing,
    /// A symbolic link or any other non-directory.
    NotDirectory,
}

impl Dirs {
    pub(super) fn new() -> Self {
        Self { open: HashSet::default(), path_bytes: 0, clock: 0, openat2_missing: false }
    }

    pub(super) fn get(&mut self, path: &[u8]) -> Option<Rc<Dir>> {
        self.clock = self.clock.saturating_add(1);
        let ByPath(dir) = self.open.get(path)?;
        dir.used.set(self.clock);
        Some(Rc::clone(dir))
    }

    /// The open directory that is nearest on the way to `path` (clean), or `path` itself.
    pub(super) fn nearest(&mut self, path: &[u8]) -> Option<Rc<Dir>> {
        let mut at = path;
        for _ in 0..LOOK_UPS {
            if at.is_empty() {
                return None;
            }
            if let Some(dir) = self.get(at) {
                return Some(dir);
            }
            at = split(at).0;
        }
        // Looking up every part of a long path takes time that grows with the square of its length.
        let within = self.all().filter(|dir| is_within(at, &dir.path));
        let nearest = Rc::clone(within.max_by_key(|dir| dir.path.len())?);
        nearest.used.set(self.clock);
        Some(nearest)
    }

    /// Opens the real directory `name` in `parent`. A symbolic link is not followed, a mount point not entered.
    pub(super) fn open(&mut self, parent: &Dir, name: &[u8]) -> Result<Opened> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            let opened = if self.openat2_missing {
                fs::openat(parent, name, flags, Mode::empty())
            } else {
                fs::openat2(parent, name, flags, Mode::empty(), beneath)
            };
            return match opened {
                Ok(fd) => Ok(Opened::Directory(fd)),
                Err(Errno::NOENT) => Ok(Opened::Missing),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(Opened::NotDirectory),
                // EPERM is what system-call filters older than the call answer.
                Err(Errno::NOSYS | Errno::PERM) if !self.openat2_missing => {
                    self.openat2_missing = true;
                    continue;
                }
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::MFILE | Errno::NFILE) if self.close_some()? => continue,
                Err(error) => Err(Error::io("open directory", parent.child(name), error)),
            };
        }
    }

    /// Opens the directory at the path `part` below `from` in one call, if all on the way are real directories, and the
    /// kernel can make sure of it.
    pub(super) fn open_far(&self, from: &Dir, part: &[u8]) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        if part.is_empty() || self.openat2_missing {
            return None;
        }
        // Whatever the reason, going step by step meets it again.
        fs::openat2(from, part, flags, Mode::empty(), beneath).ok()
    }

    /// Keeps `dir` open, and closes the one that was not used for longest when there are too many.
    pub(super) fn insert(&mut self, dir: Dir) -> Result<Rc<Dir>> {
        if self.open.len() >= OPEN_DIRECTORIES {
            self.close_oldest(CLOSED_AT_ONCE)?;
        }
        self.path_bytes = self.path_bytes.saturating_add(dir.path.len());
        if self.path_bytes > PATH_BYTES {
            self.path_bytes = self.count_path_bytes().saturating_add(dir.path.len());
            if self.path_bytes > PATH_BYTES {
                self.close_oldest(self.open.len().div_ceil(2))?;
                self.path_bytes = self.count_path_bytes().saturating_add(dir.path.len());
            }
        }
        self.clock = self.clock.saturating_add(1);
        dir.used.set(self.clock);
        let dir = Rc::new(dir);
        // One that was removed and made anew takes the place of the old one.
        self.open.remove(&*dir.path);
        self.open.insert(ByPath(Rc::clone(&dir)));
        Ok(dir)
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Dir>> {
        self.open.iter().map(|ByPath(dir)| dir)
    }

    fn count_path_bytes(&self) -> usize {
        self.all().map(|dir| dir.path.len()).sum()
    }

    /// Makes room when the process is out of descriptors. Whether it did.
    pub(super) fn close_some(&mut self) -> Result<bool> {
        self.close_oldest(OPEN_DIRECTORIES / 4)
    }

    fn close_oldest(&mut self, count: usize) -> Result<bool> {
        // Directories that somebody holds are in use.
        let mut idle: Vec<_> = self.all().filter(|dir| Rc::strong_count(dir) == 1).map(|dir| dir.used.get()).collect();
        idle.sort_unstable();
        let Some(newest) = idle.get(count.saturating_sub(1)).or(idle.last()).copied() else { return Ok(false) };
        for dir in self.all().filter(|dir| Rc::strong_count(dir) == 1 && dir.used.get() <= newest) {
            dir.seal()?;
        }
        self.open.retain(|ByPath(dir)| Rc::strong_count(dir) > 1 || dir.used.get() > newest);
        Ok(true)
    }

    /// Closes all at or below `path`, finished.
    pub(super) fn retire(&mut self, path: &[u8]) -> Result<()> {
        for dir in self.all().filter(|dir| is_within(&dir.path, path)) {
            dir.seal()?;
        }
        self.forget(path);
        Ok(())
    }

    /// Closes all at or below `path`, which are about to be removed.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.open.retain(|ByPath(dir)| !is_within(&dir.path, path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_do_not_pile_up() {
        let mut dirs = Dirs::new();
        for number in 0..300_u32 {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = fs::openat(fs::CWD, ".", flags, Mode::empty()).unwrap();
            let path = [format!("{number:08}").into_bytes(), vec![b'x'; 60_000]].concat();
            drop(dirs.insert(Dir::new(path, fd, false, false)).unwrap());
            let kept = dirs.count_path_bytes();
            assert!(kept <= PATH_BYTES + 61_000, "{kept} bytes of paths after {number}");
        }
        assert!(dirs.open.len() >= 8);
    }
}
