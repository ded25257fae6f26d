//! Copying from lower layers what this layer changes without stating it: the directories on the way to a member, and the
//! targets of hard links. Everything is kept: owner, mode, times, attributes, holes. What is copied up stays foreign.
//!
//! A file of lower layers may have several names, of which only those that this layer links to take part in what it
//! states: an overlay copies up a name, and the others keep the lower inode. In a plain tree such a target is parted from
//! its other names in the same way.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use graph_sys::io::Errno;

use super::attributes::{Attributes, Handle, open_path};
use super::create::first_mode;
use super::dirs::{Dir, Times};
use super::engine::Engine;
use super::lower::Found;
use super::remove::remove;
use crate::error::{Error, Result};
use crate::idmap::IdPair;

/// Bytes copied at once where the file system does not copy itself.
const COPY_BUFFER: usize = 128 * 1024;

impl Engine<'_> {
    /// Gives the root what the nearest lower layer's root has, until a member states the root.
    pub(super) fn copy_up_root(&mut self) -> Result<()> {
        let Some(nearest) = self.overlay.as_ref().and_then(|overlay| overlay.lowers.nearest()) else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(nearest, ".", flags, Mode::empty()).map_err(|error| Error::io("open", b"/", error))?;
        let stat = fs::fstat(&fd).map_err(|error| Error::io("stat", b"/", error))?;
        let attributes = self.attributes_of(&Handle::Open(fd), &stat, b"/")?;
        let root = Rc::clone(&self.root);
        self.restate(&root, &attributes, b"/")
    }

    /// Makes the directory `found` in this layer too.
    pub(super) fn copy_up_directory(&mut self, parent: &Rc<Dir>, name: &[u8], found: &Found) -> Result<Rc<Dir>> {
        let path = parent.child(name);
        let failed = |error| Error::io("copy up directory", path.as_slice(), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lower = fs::openat(found.directory()?, name, flags, Mode::empty()).map_err(failed)?;
        let attributes = self.attributes_of(&Handle::Open(lower), &found.stat, &path)?;
        parent.prepare(self.gid)?;
        fs::mkdirat(&**parent, name, first_mode(attributes.mode)).map_err(failed)?;
        self.make_fresh(parent, &path)?;
        self.foreign.insert(&path);
        self.open_new(parent, name, &path, &attributes)
    }

    /// Makes the file, link, device or pipe `found` in this layer too.
    pub(super) fn copy_up_file(&mut self, parent: &Rc<Dir>, name: &[u8], found: &Found) -> Result<()> {
        self.copy(parent, name, found.directory()?, name, &found.stat)?;
        self.foreign.insert(&parent.child(name));
        Ok(())
    }

    /// Parts `name`, which a hard link is about to share, from the other names that it has in what lower layers left in
    /// this tree: they keep what they have, as in an overlay. Nothing happens to what this layer made, to what was copied
    /// up or parted before, and to directories.
    pub(super) fn part(&mut self, parent: &Rc<Dir>, name: &[u8]) -> Result<()> {
        let path = parent.child(name);
        if self.foreign.contains(&path) || self.is_ours(parent.fresh.get(), &path) {
            return Ok(());
        }
        let Some(stat) = self.stat(parent, name)? else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let mut temporary = self.temporary_name();
            while self.stat(parent, &temporary)?.is_some() {
                temporary = self.temporary_name();
            }
            let copied = self.copy(parent, &temporary, &**parent, name, &stat).and_then(|()| {
                fs::renameat(&**parent, &temporary, &**parent, name)
                    .map_err(|error| Error::io("copy up", path.as_slice(), error))
            });
            if let Err(error) = copied {
                remove(&**parent, &temporary, &path, AtFlags::empty())?;
                return Err(error);
            }
        }
        self.foreign.insert(&path);
        Ok(())
    }

    /// Copies the file, link, device or pipe `from` of the directory `from_dir`, which `stat` describes.
    fn copy(&mut self, parent: &Rc<Dir>, name: &[u8], from_dir: impl AsFd, from: &[u8], stat: &Stat) -> Result<()> {
        let path = parent.child(name);
        let failed = |error| Error::io("copy up", path.as_slice(), error);
        parent.prepare(self.gid)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let lower = Handle::Path(open_path(&from_dir, from)?);
        let attributes = self.attributes_of(&lower, stat, &path)?;
        match file_type {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.count_copied(size, &path)?;
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let content = fs::openat(&from_dir, from, read, Mode::empty()).map_err(failed)?;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let to = fs::openat(&**parent, name, write, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                copy_content(&content, &to, size).map_err(failed)?;
                let to = Handle::Open(to);
                self.chown(&to, attributes.owner, &path)?;
                to.chmod(attributes.mode).map_err(failed)?;
                self.set_xattrs(&to, &attributes.xattrs, &path)?;
                let Handle::Open(to) = to else { return Ok(()) };
                fs::futimens(&to, &attributes.times.stamps()).map_err(failed)?;
            }
            FileType::Symlink => {
                let target = fs::readlinkat(&from_dir, from, Vec::new()).map_err(failed)?;
                fs::symlinkat(target, &**parent, name).map_err(failed)?;
                self.finish_node(parent, name, &attributes, true)?;
            }
            _ => {
                let mode = attributes.mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
                fs::mknodat(&**parent, name, file_type, mode, stat.st_rdev).map_err(failed)?;
                self.finish_node(parent, name, &attributes, false)?;
            }
        }
        Ok(())
    }

    /// Bounds what is copied: one short member copies a file of any size.
    fn count_copied(&mut self, size: u64, path: &[u8]) -> Result<()> {
        self.copied = self.copied.saturating_add(size);
        let maximum = self.options.limits.total_bytes;
        if self.copied > maximum {
            return Err(Error::Limit {
                limit: "total_bytes",
                maximum,
                found: self.copied,
                entry: path.to_vec(),
                offset: self.offset,
            });
        }
        Ok(())
    }

    /// What a lower layer's file has, in the form it has on disk.
    fn attributes_of<F: AsFd>(&mut self, file: &Handle<F>, stat: &Stat, path: &[u8]) -> Result<Attributes> {
        let mut xattrs = Vec::new();
        for name in self.layer_xattr_names(file, path)? {
            match file.get(&name) {
                Ok(value) => xattrs.push((name, value)),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(Error::io("read extended attribute of", path, error)),
            }
        }
        Ok(Attributes {
            owner: IdPair { uid: stat.st_uid, gid: stat.st_gid },
            mode: Mode::from_raw_mode(stat.st_mode),
            times: Times::of(stat),
            xattrs,
        })
    }
}

/// Copies `size` bytes: shared where the file system can, otherwise piece by piece, without the holes.
fn copy_content(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    if fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        at = copy_run(from, to, start, end.max(start.saturating_add(1)), &mut buffer)?;
    }
    fs::ftruncate(to, size)
}

/// Copies what lies between two offsets; where it stopped, which is before the end when the file has become shorter.
fn copy_run(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64, buffer: &mut Vec<u8>) -> Result<u64, Errno> {
    let mut at = start;
    while at < end {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let (mut read_at, mut write_at) = (at, at);
        if buffer.is_empty() {
            match fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
                Ok(0) => return Ok(u64::MAX),
                Ok(copied) => {
                    at = at.saturating_add(copied as u64);
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    buffer.resize(COPY_BUFFER, 0);
                }
                Err(error) => return Err(error),
            }
        }
        let wanted = buffer.get_mut(..left.min(COPY_BUFFER)).unwrap_or_default();
        let count = match graph_sys::io::pread(from, &mut *wanted, at) {
            Ok(0) => return Ok(u64::MAX),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        let mut rest = wanted.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            match graph_sys::io::pwrite(to, rest, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    at = at.saturating_add(written as u64);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(at)
}
