//! Taking things away: whole trees that are replaced, and the parts of trees that are not this layer's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use graph_sys::io::Errno;

use super::attributes::Handle;
use super::dirs::{Dir, Times};
use super::engine::Engine;
use super::names::join;
use crate::error::{Error, Result};

/// What of a tree is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    Everything,
    /// What this layer did not make. A directory that is kept only for what is in it becomes one that nobody states.
    NotOurs,
}

/// A directory being emptied.
#[derive(Debug)]
struct Level {
    entries: fs::Dir,
    fd: OwnedFd,
    name: Vec<u8>,
    path: Vec<u8>,
    before: Stat,
    fresh: bool,
    ours: bool,
    kept: bool,
    removed: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: &[u8], path: Vec<u8>, fresh: bool, ours: bool) -> Result<Self> {
        let read = |error| Error::io("read directory", path.as_slice(), error);
        let before = fs::fstat(&fd).map_err(read)?;
        let entries = fs::Dir::read_from(&fd).map_err(read)?;
        Ok(Self { entries, fd, name: name.to_vec(), path, before, fresh, ours, kept: false, removed: false })
    }
}

impl Engine<'_> {
    /// Makes room at `name` for something that is no directory, or for a directory where something else is.
    pub(super) fn vacate(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<()> {
        dir.prepare(self.gid)?;
        let Some(stat) = self.stat(dir, name)? else { return Ok(()) };
        self.forget_paths();
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            self.dirs.forget(path);
            let fd = open_beneath(dir.as_fd(), name, path)?;
            let fresh = self.is_fresh(dir.fresh.get(), path);
            self.sweep(fd, path, fresh, Sweep::Everything)?;
            return remove(dir, name, path, AtFlags::REMOVEDIR);
        }
        if file_type == FileType::RegularFile && self.is_ours(dir.fresh.get(), path) {
            self.lost(dir.as_fd(), name, path)?;
        }
        self.foreign.remove(path);
        remove(dir, name, path, AtFlags::empty())
    }

    /// Takes away what is at `name`, here and in lower layers, for a member that is not made (now).
    pub(super) fn leave_out(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<()> {
        self.vacate(dir, name, path)?;
        if self.below(dir, name)?.is_some() {
            self.write_whiteout(dir, name, path)?;
        }
        Ok(())
    }

    /// Removes what is in the directory `fd`, whose path is `path`. Whether something of it is kept.
    pub(super) fn sweep(&mut self, fd: OwnedFd, path: &[u8], fresh: bool, sweep: Sweep) -> Result<bool> {
        let mut levels = vec![Level::new(fd, b"", path.to_vec(), fresh, true)?];
        loop {
            let Some(level) = levels.last_mut() else { return Ok(false) };
            let Some(entry) = level.entries.next() else {
                let Some(done) = levels.pop() else { return Ok(false) };
                let Some(parent) = levels.last_mut() else { return Ok(done.kept) };
                if sweep == Sweep::Everything || !(done.ours || done.kept) {
                    parent.removed = true;
                    remove(&parent.fd, &done.name, &done.path, AtFlags::REMOVEDIR)?;
                } else {
                    parent.kept = true;
                    let parent_fresh = parent.fresh;
                    self.keep(&done, parent_fresh)?;
                }
                continue;
            };
            let entry = entry.map_err(|error| Error::io("read directory", level.path.as_slice(), error))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let path = join(&level.path, name);
            let ours = self.is_ours(level.fresh, &path);
            let file_type = match entry.file_type() {
                FileType::Unknown => match fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(Error::io("stat", path, error)),
                },
                known => known,
            };
            if file_type == FileType::Directory {
                let fresh = self.is_fresh(level.fresh, &path);
                if sweep == Sweep::NotOurs && ours && fresh && self.foreign.is_empty() {
                    level.kept = true;
                    continue;
                }
                let fd = open_beneath(level.fd.as_fd(), name, &path)?;
                let below = Level::new(fd, name, path, fresh, ours)?;
                levels.push(below);
            } else if sweep == Sweep::NotOurs && ours {
                level.kept = true;
            } else {
                level.removed = true;
                if ours && file_type == FileType::RegularFile {
                    self.lost(level.fd.as_fd(), name, &path)?;
                }
                self.foreign.remove(&path);
                remove(&level.fd, name, &path, AtFlags::empty())?;
            }
        }
    }

    /// Leaves a directory that was swept, but holds something still, or is stated.
    fn keep(&mut self, level: &Level, parent_fresh: bool) -> Result<()> {
        if !parent_fresh {
            self.touched.insert(&level.path);
        }
        if level.ours {
            if level.removed {
                fs::futimens(&level.fd, &Times::of(&level.before).stamps())
                    .map_err(|error| Error::io("set times of", level.path.as_slice(), error))?;
            }
            return Ok(());
        }
        self.foreign.remove(&level.path);
        self.reset(&level.fd, &level.path)
    }

    /// Makes a directory of a lower layer one that nobody states.
    pub(super) fn reset(&mut self, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        let attributes = self.implied()?;
        let file = Handle::Open(fd);
        self.clear_xattrs(&file, path)?;
        self.chown(&file, attributes.owner, path)?;
        file.chmod(attributes.mode).map_err(|error| Error::io("change mode of", path, error))?;
        self.set_xattrs(&file, &attributes.xattrs, path)?;
        fs::futimens(fd, &attributes.times.stamps()).map_err(|error| Error::io("set times of", path, error))
    }

    /// Hands the content of a file of this layer that is about to go to the observer.
    fn lost(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let Some(observer) = &mut self.options.observer else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |error| Error::io("open replaced file", path, error);
        let fd = fs::openat(dir, name, flags, Mode::empty()).map_err(open)?;
        let stat = fs::fstat(&fd).map_err(open)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            let mut file = std::fs::File::from(fd);
            observer.lost(&mut file, size).map_err(|error| Error::io("keep content of replaced file", path, error))?;
        }
        Ok(())
    }
}

/// Opens a directory that is about to be emptied: not through a symbolic link, not a mount.
pub(super) fn open_beneath(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match fs::openat2(dir, name, flags, Mode::empty(), beneath) {
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => fs::openat(dir, name, flags, Mode::empty()),
        opened => opened,
    }
    .map_err(|error| Error::io("open directory", path, error))
}

pub(super) fn remove(dir: impl AsFd, name: &[u8], path: &[u8], flags: AtFlags) -> Result<()> {
    match fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}
