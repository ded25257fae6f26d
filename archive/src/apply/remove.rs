//! Taking things away: whole trees that are replaced, and the parts of trees that are not this layer's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use graph_sys::io::Errno;

use super::attributes::Handle;
use super::dirs::{Dir, Times};
use super::engine::Engine;
use super::names::{push, split};
use crate::error::{Error, Result};

/// What of a tree is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    Everything,
    /// What this layer did not make. A directory that is kept only for what is in it becomes one that nobody states.
    NotOurs,
}

/// Directories that a sweep holds open. A deeper one closes the outermost, and comes back to it through `..`.
const OPEN_LEVELS: usize = 24;

/// What is still to look at in a directory.
#[derive(Debug)]
enum Listing {
    Reading(fs::Dir),
    /// Read to its end, when the directory was closed.
    Read(std::vec::IntoIter<(Vec<u8>, FileType)>),
}

impl Listing {
    fn next(&mut self) -> Option<Result<(Vec<u8>, FileType), Errno>> {
        match self {
            Self::Reading(entries) => loop {
                let entry = match entries.next()? {
                    Ok(entry) => entry,
                    Err(error) => return Some(Err(error)),
                };
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    return Some(Ok((name.to_vec(), entry.file_type())));
                }
            },
            Self::Read(names) => names.next().map(Ok),
        }
    }
}

/// A directory being emptied.
#[derive(Debug)]
struct Level {
    entries: Listing,
    /// `None` while it is closed.
    fd: Option<OwnedFd>,
    name: Vec<u8>,
    before: Stat,
    fresh: bool,
    ours: bool,
    kept: bool,
    removed: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: &[u8], fresh: bool, ours: bool) -> Result<Self, Errno> {
        let before = fs::fstat(&fd)?;
        let entries = Listing::Reading(fs::Dir::read_from(&fd)?);
        Ok(Self { entries, fd: Some(fd), name: name.to_vec(), before, fresh, ours, kept: false, removed: false })
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    fn close(&mut self) -> Result<(), Errno> {
        let mut rest = Vec::new();
        while let Some(entry) = self.entries.next() {
            rest.push(entry?);
        }
        self.entries = Listing::Read(rest.into_iter());
        self.fd = None;
        Ok(())
    }

    /// Opens it again, if it is closed, from a directory in it.
    fn reopen(&mut self, below: &Self) -> Result<(), Errno> {
        if self.fd.is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = fs::openat(below.fd()?, "..", flags, Mode::empty())?;
            let found = fs::fstat(&fd)?;
            if (found.st_dev, found.st_ino) != (self.before.st_dev, self.before.st_ino) {
                // Somebody else moved it away.
                return Err(Errno::STALE);
            }
            self.fd = Some(fd);
        }
        Ok(())
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
            let fd = self.open_beneath(dir.as_fd(), name, path)?;
            let fresh = self.is_fresh(dir.fresh.get(), path);
            self.sweep(fd.as_fd(), path, fresh, Sweep::Everything)?;
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
        if self.below(dir, name)?.is_some() || (self.lowers_unknown() && !dir.hidden.get()) {
            self.write_whiteout(dir, name, path)?;
        }
        Ok(())
    }

    /// Opens a directory that is about to be emptied: not through a symbolic link, not a mount.
    pub(super) fn open_beneath(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
        loop {
            match open_beneath(dir, name) {
                Err(Errno::MFILE | Errno::NFILE) if self.dirs.close_some()? => {}
                opened => return opened.map_err(|error| Error::io("open directory", path, error)),
            }
        }
    }

    /// Begins with the directory `name`, whose path is `path`.
    fn level(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], fresh: bool, ours: bool) -> Result<Level> {
        loop {
            match open_beneath(dir, name).and_then(|fd| Level::new(fd, name, fresh, ours)) {
                Err(Errno::MFILE | Errno::NFILE) if self.dirs.close_some()? => {}
                level => return level.map_err(|error| Error::io("open directory", path, error)),
            }
        }
    }

    /// Removes what is in the directory `fd`, whose path is `path`. Whether something of it is kept.
    pub(super) fn sweep(&mut self, fd: BorrowedFd<'_>, path: &[u8], fresh: bool, sweep: Sweep) -> Result<bool> {
        let mut at = path.to_vec();
        let mut levels = vec![self.level(fd, b".", path, fresh, true)?];
        // Levels below this index are closed.
        let mut first_open = 0_usize;
        loop {
            let Some(level) = levels.last_mut() else { return Ok(false) };
            let Some(entry) = level.entries.next() else {
                let Some(done) = levels.pop() else { return Ok(false) };
                first_open = first_open.min(levels.len().saturating_sub(1));
                let Some(parent) = levels.last_mut() else { return Ok(done.kept) };
                parent.reopen(&done).map_err(|error| Error::io("open directory above", at.as_slice(), error))?;
                if sweep == Sweep::Everything || !(done.ours || done.kept) {
                    parent.removed = true;
                    let parent = parent.fd().map_err(|error| Error::io("remove", at.as_slice(), error))?;
                    remove(parent, &done.name, &at, AtFlags::REMOVEDIR)?;
                } else {
                    parent.kept = true;
                    let parent_fresh = parent.fresh;
                    self.keep(&done, &at, parent_fresh)?;
                }
                at.truncate(split(&at).0.len());
                continue;
            };
            let read = |error| Error::io("read directory", at.as_slice(), error);
            let (name, file_type) = entry.map_err(read)?;
            let fd = level.fd().map_err(read)?;
            push(&mut at, &name);
            let ours = self.is_ours(level.fresh, &at);
            let file_type = match file_type {
                FileType::Unknown => match fs::statat(fd, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => FileType::Unknown,
                    Err(error) => return Err(Error::io("stat", at, error)),
                },
                known => known,
            };
            if file_type == FileType::Directory {
                let fresh = self.is_fresh(level.fresh, &at);
                if !(sweep == Sweep::NotOurs && ours && fresh && self.foreign.is_empty()) {
                    let below = self.level(fd, &name, &at, fresh, ours)?;
                    if levels.len().saturating_sub(first_open) >= OPEN_LEVELS
                        && let Some(outermost) = levels.get_mut(first_open)
                    {
                        outermost.close().map_err(|error| Error::io("read directory above", at.as_slice(), error))?;
                        first_open = first_open.saturating_add(1);
                    }
                    levels.push(below);
                    continue;
                }
                level.kept = true;
            } else if sweep == Sweep::NotOurs && ours {
                level.kept = true;
            } else {
                if ours && file_type == FileType::RegularFile {
                    self.lost(fd, &name, &at)?;
                }
                self.foreign.remove(&at);
                remove(fd, &name, &at, AtFlags::empty())?;
                level.removed = true;
            }
            at.truncate(split(&at).0.len());
        }
    }

    /// Leaves a directory that was swept, but holds something still, or is stated.
    fn keep(&mut self, level: &Level, path: &[u8], parent_fresh: bool) -> Result<()> {
        let failed = |error| Error::io("set times of", path, error);
        let fd = level.fd().map_err(failed)?;
        if !parent_fresh {
            self.touched.insert(path);
        }
        if level.ours {
            if level.removed {
                fs::futimens(fd, &Times::of(&level.before).stamps()).map_err(failed)?;
            }
            return Ok(());
        }
        self.foreign.remove(path);
        self.reset(fd, path)
    }

    /// Makes a directory of a lower layer one that nobody states.
    pub(super) fn reset(&mut self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
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
        if self.unwanted.contains(path) {
            self.unwanted.remove(path);
            return Ok(());
        }
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

fn open_beneath(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match fs::openat2(dir, name, flags, Mode::empty(), beneath) {
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => fs::openat(dir, name, flags, Mode::empty()),
        opened => opened,
    }
}

pub(super) fn remove(dir: impl AsFd, name: &[u8], path: &[u8], flags: AtFlags) -> Result<()> {
    match fs::unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}
