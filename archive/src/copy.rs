//! Copying a tree with everything that a layer can hold, sharing extents where the file system can.
//!
//! | kept | how |
//! |---|---|
//! | content | FICLONE, else `copy_file_range`, else read and write; holes stay holes |
//! | hard links | names of one inode in the source are names of one inode in the copy |
//! | symbolic links, fifos, sockets, devices | made anew |
//! | owner, mode, times to the nanosecond | set after content and attributes; a directory's when it is full |
//! | extended attributes | `user.*`, `trusted.*`, `security.*` but SELinux labels, POSIX access lists |
//!
//! Nothing is flushed to disk; a crash leaves any part of the copy.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};

use graph_sys::found::Found;
use graph_sys::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, linkat, mknodat,
    openat, readlinkat, statat, symlinkat, utimensat,
};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::reflink::{CopyMethod, copy_content};
use graph_sys::xattr::{self, SetMode};

use crate::attribute_ids;
use crate::error::{Error, Result, show};
use crate::idmap::{IdMappings, IdPair};
use crate::walk::{Descent, is_gone};

/// Who owns the copies.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Whose ids the source's files have: from container ids to those on its disk.
    pub source: IdMappings,
    /// Whose ids the copies get: from container ids to those on their disk.
    pub destination: IdMappings,
    /// All copies belong to this one, by container ids.
    pub all: Option<IdPair>,
}

impl Owners {
    fn is_kept(&self) -> bool {
        self.source.is_identity() && self.destination.is_identity() && self.all.is_none()
    }

    /// The owner on disk of a copy of a file that belongs to `pair`.
    fn shift(&self, pair: IdPair, path: &[u8]) -> Result<IdPair> {
        let inside = match self.all {
            Some(all) => all,
            None => self.source.to_container(pair, path)?,
        };
        self.destination.to_host(inside, path)
    }

    /// The same for an id in an access list or a capability: those are of others than the owner.
    fn shift_other(&self, pair: IdPair, path: &[u8]) -> Result<IdPair> {
        self.destination.to_host(self.source.to_container(pair, path)?, path)
    }
}

/// How a tree is copied.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// A refused change of owner is a notice, not an error.
    pub ignore_chown_errors: bool,
    /// This process runs in a user namespace: devices that cannot be made, and attributes that may not be set, are
    /// notices.
    pub in_user_namespace: bool,
    /// Who owns the copies; by default, who owns the source.
    pub owners: Owners,
    /// The destination may hold something already, and keeps its own owner, mode and times: directories of the same name
    /// are merged, other things of the same name are replaced, but never a directory by something else.
    pub merge: bool,
}

/// What a copy found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Things copied, directories included, the root and further names of an inode not.
    pub inodes: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// The dearest way that a file with content needed; `None` without such files.
    pub method: Option<CopyMethod>,
    /// Things that could not be kept and why, one sentence each, each kind once.
    pub notices: Vec<String>,
}

/// Copies what is in the directory `source` into `destination`, an empty directory that then gets the source's owner,
/// mode, times and attributes too.
///
/// Symbolic links are never followed, and nothing but regular files and directories is ever opened. The copy is of one
/// moment only if both trees are left alone meanwhile; what vanishes from the source before it is looked at is left out.
///
/// # Errors
/// I/O errors with the path below the root; what has been copied by then stays.
pub fn copy_tree(source: BorrowedFd<'_>, destination: BorrowedFd<'_>, options: &CopyOptions) -> Result<CopyReport> {
    let root = fs::fstat(source).map_err(|error| Error::io("stat", b".".as_slice(), error))?;
    let mut copy = Copy::new(source, destination, options)?;
    copy.run(root)?;
    Ok(copy.report)
}

/// Copies one thing that is no directory, `name` in the directory `source`, to `new_name` in `destination`. Symbolic links are copied,
/// not followed. With [`CopyOptions::merge`] something of that name is replaced.
///
/// # Errors
/// As [`copy_tree`]; `EISDIR` for a directory, on either side.
pub fn copy_file(
    source: BorrowedFd<'_>,
    name: &[u8],
    destination: BorrowedFd<'_>,
    new_name: &[u8],
    options: &CopyOptions,
) -> Result<CopyReport> {
    let mut copy = Copy::new(source, destination, options)?;
    let (stat, found) = copy.look(name, true)?.ok_or_else(|| Error::io("find", name, Errno::NOENT))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Error::io("copy", name, Errno::ISDIR));
    }
    copy.other(name, new_name, &stat, found.as_ref())?;
    Ok(copy.report)
}

struct Copy<'c> {
    options: &'c CopyOptions,
    root: BorrowedFd<'c>,
    /// Device and inode of the destination.
    itself: (u64, u64),
    from: Descent,
    to: Descent,
    /// Where the first name of an inode with several is, by device and inode of the source.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Kinds of notices given already.
    kinds: BTreeSet<&'static str>,
    report: CopyReport,
}

impl<'c> Copy<'c> {
    fn new(source: BorrowedFd<'_>, destination: BorrowedFd<'c>, options: &'c CopyOptions) -> Result<Self> {
        let own = fs::fstat(destination).map_err(|error| Error::io("stat", b".".as_slice(), error))?;
        Ok(Self {
            options,
            root: destination,
            itself: (own.st_dev, own.st_ino),
            from: Descent::new(source)?,
            to: Descent::new(destination)?,
            linked: HashMap::new(),
            kinds: BTreeSet::new(),
            report: CopyReport::default(),
        })
    }

    fn run(&mut self, root: Stat) -> Result<()> {
        let mut buffer = DirBuffer::new();
        let first = self.from.list(&mut buffer)?.into_iter();
        // What is still to copy, and the directory itself, level by level.
        let mut levels: Vec<(std::vec::IntoIter<OwnedEntry>, Stat)> = vec![(first, root)];
        while let Some((waiting, directory)) = levels.last_mut() {
            let Some(entry) = waiting.next() else {
                let directory = *directory;
                if levels.len() > 1 || !self.options.merge {
                    self.finish_directory(&directory)?;
                }
                levels.pop();
                self.from.leave()?;
                self.to.leave()?;
                continue;
            };
            if let Some(stat) = self.entry(&entry)? {
                match self.from.enter(&entry.name) {
                    Err(error) if is_gone(&error) => {
                        // What is merged into may have been there before.
                        if !self.options.merge {
                            fs::unlinkat(self.to.directory()?, entry.name.as_slice(), AtFlags::REMOVEDIR)
                                .map_err(|error| self.failed("remove", &entry.name, error))?;
                        }
                        continue;
                    }
                    entered => entered?,
                }
                self.to.enter(&entry.name)?;
                levels.push((self.from.list(&mut buffer)?.into_iter(), stat));
            }
        }
        Ok(())
    }

    /// Copies one thing; gives a directory's status, for its content is still to come.
    fn entry(&mut self, entry: &OwnedEntry) -> Result<Option<Stat>> {
        let name = entry.name.as_slice();
        let maybe_file = matches!(entry.file_type, FileType::RegularFile | FileType::Unknown);
        let Some((stat, found)) = self.look(name, maybe_file)? else { return Ok(None) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            self.other(name, name, &stat, found.as_ref())?;
            return Ok(None);
        }
        if (stat.st_dev, stat.st_ino) == self.itself {
            // It would never come to an end.
            return Err(self.failed("copy into itself", name, Errno::INVAL));
        }
        match fs::mkdirat(self.to.directory()?, name, Mode::RWXU) {
            Ok(()) => self.report.inodes = self.report.inodes.saturating_add(1),
            Err(Errno::EXIST) if self.options.merge => self.make_way_for_directory(name)?,
            Err(error) => return Err(self.failed("make directory", name, error)),
        }
        Ok(Some(stat))
    }

    /// Where something other than a directory has the name of one that is to be merged, replaces it.
    fn make_way_for_directory(&mut self, name: &[u8]) -> Result<()> {
        let to = self.to.directory()?;
        let failed = |error| Error::io("make directory", self.to.join(name), error);
        let there = statat(to, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
            fs::unlinkat(to, name, AtFlags::empty())
                .and_then(|()| fs::mkdirat(to, name, Mode::RWXU))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Takes away what has the name, if that is allowed and it is no directory.
    fn make_way(&self, name: &[u8]) -> Result<()> {
        if !self.options.merge {
            return Ok(());
        }
        match fs::unlinkat(self.to.directory()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("replace", self.to.join(name), error)),
        }
    }

    /// Copies something that is no directory; `found` if it is a regular file.
    fn other(&mut self, name: &[u8], new: &[u8], stat: &Stat, found: Option<&Found>) -> Result<()> {
        if let Some(found) = found {
            return self.file(name, new, found);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.make_way(new)?;
        if self.link(new, stat)? {
            return Ok(());
        }
        let to = self.to.directory()?;
        match kind {
            FileType::Symlink => {
                let target = match readlinkat(self.from.directory()?, name, Vec::new()) {
                    // Gone, or no link any more.
                    Err(Errno::NOENT | Errno::INVAL) => {
                        self.linked.remove(&(stat.st_dev, stat.st_ino));
                        return Ok(());
                    }
                    target => target.map_err(|error| self.failed("read link", name, error))?,
                };
                symlinkat(target.as_c_str(), to, new).map_err(|error| self.failed("make link", name, error))?;
            }
            _ => match mknodat(to, new, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev) {
                Ok(()) => {}
                Err(Errno::PERM) if self.options.in_user_namespace && kind != FileType::Fifo => {
                    self.notice("devices", format!("{} was left out: no devices in a user namespace", show(name)));
                    return Ok(());
                }
                Err(error) => return Err(self.failed("make node", name, error)),
            },
        }
        self.report.inodes = self.report.inodes.saturating_add(1);
        self.attributes_at(name, new, stat)
    }

    /// Looks at a name of the source, which a regular file is held by: nothing is opened before it is known to be one, for
    /// a device may have taken its name. `maybe_file` is what was heard of it.
    fn look(&self, name: &[u8], maybe_file: bool) -> Result<Option<(Stat, Option<Found>)>> {
        let directory = self.from.directory()?;
        let looked = || -> Result<(Stat, Option<Found>), Errno> {
            if !maybe_file {
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok((stat, None));
                }
            }
            let found = Found::at(directory, name)?;
            let is_file = found.file_type() == FileType::RegularFile;
            Ok((*found.status(), is_file.then_some(found)))
        };
        match looked() {
            Ok(looked) => Ok(Some(looked)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed("find", name, error)),
        }
    }

    /// Makes a further name of an inode that has been copied. False for one that has not.
    fn link(&mut self, name: &[u8], stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let path = self.to.join(name);
        if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
            let to = self.to.directory()?;
            let made = match linkat(self.root, first.as_slice(), to, name, AtFlags::empty()) {
                Err(Errno::NAMETOOLONG) => open_parent(self.root, first)
                    .and_then(|(directory, last)| linkat(&directory, last, to, name, AtFlags::empty())),
                other => other,
            };
            match made {
                Ok(()) => return Ok(true),
                // As many names as the file system allows: from here on it is another inode, to which further names go.
                Err(Errno::MLINK) => {}
                Err(error) => return Err(self.failed("link", name, error)),
            }
        }
        self.linked.insert((stat.st_dev, stat.st_ino), path);
        Ok(false)
    }

    fn file(&mut self, name: &[u8], new: &[u8], found: &Found) -> Result<()> {
        let stat = *found.status();
        self.make_way(new)?;
        if self.link(new, &stat)? {
            return Ok(());
        }
        let source = found.open_to_read().map_err(|error| self.failed("open", name, error))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let destination = openat(self.to.directory()?, new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.failed("make file", name, error))?;
        if stat.st_size > 0 {
            let copied = copy_content(&destination, &source).map_err(|error| self.failed("copy", name, error))?;
            self.report.bytes = self.report.bytes.saturating_add(copied.size);
            self.report.method = self.report.method.max(Some(copied.method));
        }
        self.report.inodes = self.report.inodes.saturating_add(1);
        self.attributes(&source, &destination, &stat, name)
    }

    fn finish_directory(&mut self, stat: &Stat) -> Result<()> {
        let (source, destination) = (duplicate(self.from.directory()?), duplicate(self.to.directory()?));
        let source = source.map_err(|error| self.from.error("open", error))?;
        let destination = destination.map_err(|error| self.to.error("open", error))?;
        self.attributes(&source, &destination, stat, b"")
    }

    /// Owner, attributes, mode and times of an open file or directory.
    fn attributes(&mut self, source: &OwnedFd, destination: &OwnedFd, stat: &Stat, name: &[u8]) -> Result<()> {
        let (uid, gid) = self.owner(stat, name)?;
        let owned = fs::fchown(destination, uid, gid);
        self.owned(owned, name)?;
        // After the owner, whose change takes capabilities away.
        for key in xattr::list(source).map_err(|error| self.failed("list the attributes of", name, error))?.iter() {
            if !is_kept(key) {
                continue;
            }
            let value = xattr::get(source, key).map_err(|error| self.failed("read an attribute of", name, error))?;
            if let Some(value) = value {
                let value = self.shifted(key, value, name)?;
                let set = xattr::set(destination, key, &value, SetMode::CreateOrReplace);
                self.attribute_set(set, key, name)?;
            }
        }
        // Not before, or attributes of files that refuse writing could not be set without privileges.
        fs::fchmod(destination, Mode::from_raw_mode(stat.st_mode & 0o7777))
            .map_err(|error| self.failed("set the mode of", name, error))?;
        fs::futimens(destination, &times(stat)).map_err(|error| self.failed("set the times of", name, error))
    }

    /// The same of something that cannot be opened.
    fn attributes_at(&mut self, name: &[u8], new: &[u8], stat: &Stat) -> Result<()> {
        let (uid, gid) = self.owner(stat, name)?;
        let owned = chownat(self.to.directory()?, new, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.owned(owned, name)?;
        let names = match xattr::list_at(self.from.directory()?, name) {
            // Gone meanwhile.
            Err(Errno::NOENT) => xattr::Names::default(),
            names => names.map_err(|error| self.failed("list the attributes of", name, error))?,
        };
        for key in names.iter() {
            if !is_kept(key) {
                continue;
            }
            let value = xattr::get_at(self.from.directory()?, name, key)
                .map_err(|error| self.failed("read an attribute of", name, error))?;
            if let Some(value) = value {
                let value = self.shifted(key, value, name)?;
                let set = xattr::set_at(self.to.directory()?, new, key, &value, SetMode::CreateOrReplace);
                self.attribute_set(set, key, name)?;
            }
        }
        let to = self.to.directory()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            chmodat(to, new, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
                .map_err(|error| self.failed("set the mode of", name, error))?;
        }
        utimensat(to, new, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed("set the times of", name, error))
    }

    /// The owner of the copy of something.
    fn owner(&self, stat: &Stat, name: &[u8]) -> Result<(Option<Uid>, Option<Gid>)> {
        let mut pair = IdPair { uid: stat.st_uid, gid: stat.st_gid };
        if !self.options.owners.is_kept() {
            pair = self.options.owners.shift(pair, &self.from.join(name))?;
        }
        Ok((Some(Uid::from_raw(pair.uid)), Some(Gid::from_raw(pair.gid))))
    }

    /// An attribute's value with the ids in it shifted.
    fn shifted(&self, key: &[u8], value: Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        if self.options.owners.is_kept() {
            return Ok(value);
        }
        attribute_ids::shift(key, &value, &|pair| self.options.owners.shift_other(pair, &self.from.join(name)))
    }

    fn owned(&mut self, result: Result<(), Errno>, name: &[u8]) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if self.options.ignore_chown_errors => {
                self.notice("owners", format!("owners could not be kept: {error}"));
                Ok(())
            }
            Err(error) => Err(self.failed("change the owner of", name, error)),
        }
    }

    fn attribute_set(&mut self, result: Result<(), Errno>, key: &[u8], name: &[u8]) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(error, Errno::OPNOTSUPP)
                    || matches!(error, Errno::PERM | Errno::ACCESS) && self.options.in_user_namespace =>
            {
                self.notice("attributes", format!("attribute {} could not be kept: {error}", show(key)));
                Ok(())
            }
            Err(error) => Err(self.failed("set an attribute of", name, error)),
        }
    }

    fn notice(&mut self, kind: &'static str, text: String) {
        if self.kinds.insert(kind) {
            self.report.notices.push(text);
        }
    }

    /// An error about a name in the current directory, or about that itself.
    fn failed(&self, operation: &'static str, name: &[u8], error: Errno) -> Error {
        if name.is_empty() {
            self.from.error(operation, error)
        } else {
            Error::io(operation, self.from.join(name), error)
        }
    }
}

/// Attributes by which an overlay knows its own files again: they hold for the files they were set on, not for copies.
const OVERLAY_IDENTITY: [&[u8]; 6] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
    b"trusted.overlay.protattr",
];

/// Whether an attribute belongs to the layer. SELinux labels belong to where a tree is.
fn is_kept(key: &[u8]) -> bool {
    match key {
        b"security.selinux" => false,
        key if OVERLAY_IDENTITY.contains(&key) => false,
        b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => [b"user.".as_slice(), b"trusted.", b"security."].iter().any(|prefix| key.starts_with(prefix)),
    }
}

fn times(stat: &Stat) -> Timestamps {
    // The kernel's nanoseconds are below 1,000,000,000, whatever type the C library gives them.
    let time =
        |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn duplicate(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    graph_sys::io::fcntl_dupfd_cloexec(directory, 0)
}

/// The directory of a path that is too long for one call, and the path's last component.
fn open_parent<'p>(root: BorrowedFd<'_>, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = root.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    while let Some(component) = components.next() {
        if components.peek().is_none() {
            return Ok((directory, component));
        }
        directory = openat(&directory, component, flags, Mode::empty())?;
    }
    Err(Errno::INVAL)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
