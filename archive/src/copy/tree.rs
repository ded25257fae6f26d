//! Walking one part of a tree and copying what is there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_sys::found::Found;
use graph_sys::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat, linkat, mknodat,
    openat, readlinkat, statat, symlinkat, utimensat,
};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::reflink::copy_content;
use graph_sys::xattr::{self, SetMode};

use super::CopyReport;
use super::pool::{Job, Linked, Pool};
use crate::attribute_ids;
use crate::error::{Error, Result, show};
use crate::idmap::IdPair;
use crate::walk::{Descent, is_gone};

/// So many things are copied before other threads are called for help: starting them costs as much as copying a few files.
const WORTH_HELP: u64 = 256;

/// Starts further threads.
pub(super) type Help<'p> = &'p (dyn Fn() + 'p);

/// Kinds of notices, each once, and what they say.
pub(super) type Notices = Vec<(&'static str, String)>;

/// A walk of one thread.
pub(super) struct Walk<'p, 'c> {
    pool: &'p Pool<'c>,
    help: Option<Help<'p>>,
    report: CopyReport,
    notices: Notices,
}

/// Where a walk is, in the source and in the copy.
struct Place {
    from: Descent,
    to: Descent,
}

impl<'p, 'c> Walk<'p, 'c> {
    pub(super) fn new(pool: &'p Pool<'c>, help: Option<Help<'p>>) -> Self {
        Self { pool, help, report: CopyReport::default(), notices: Vec::new() }
    }

    /// What it found, its notices with their kinds, and the way to call for help if it was not taken.
    pub(super) fn into_parts(self) -> (CopyReport, Notices, Option<Help<'p>>) {
        (self.report, self.notices, self.help)
    }

    /// Copies one thing that is no directory into the root of the copy.
    pub(super) fn one(&mut self, source: BorrowedFd<'_>, name: &[u8], new: &[u8]) -> Result<()> {
        let place = Place { from: Descent::new(source)?, to: Descent::new(self.pool.root)? };
        let (stat, found) = place.look(name, true)?.ok_or_else(|| Error::io("find", name, Errno::NOENT))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(Error::io("copy", name, Errno::ISDIR));
        }
        self.other(&place, name, new, &stat, found.as_ref())
    }

    pub(super) fn run(&mut self, job: Job) -> Result<()> {
        // What things are merged into keeps its own attributes.
        let keeps_own = self.pool.options.merge && job.path.is_empty();
        let mut place = Place {
            from: Descent::below(job.from.as_fd(), job.path.clone())?,
            to: Descent::below(job.to.as_fd(), job.path)?,
        };
        // Not held open twice.
        drop((job.from, job.to));
        let mut buffer = DirBuffer::new();
        let first = place.from.list(&mut buffer)?.into_iter();
        // What is still to copy, and the directory itself, level by level.
        let mut levels: Vec<(std::vec::IntoIter<OwnedEntry>, Stat)> = vec![(first, job.stat)];
        while let Some((waiting, directory)) = levels.last_mut() {
            if self.pool.has_failed() {
                return Ok(());
            }
            let Some(entry) = waiting.next() else {
                let directory = *directory;
                if levels.len() > 1 || !keeps_own {
                    self.finish_directory(&place, &directory)?;
                }
                levels.pop();
                place.from.leave()?;
                place.to.leave()?;
                continue;
            };
            let Some(stat) = self.entry(&place, &entry)? else { continue };
            if self.report.inodes >= WORTH_HELP
                && let Some(help) = self.help.take()
            {
                help();
            }
            let gone = if self.pool.is_hungry() {
                match place.job(&entry.name, stat) {
                    Ok(job) => {
                        self.pool.add(job);
                        continue;
                    }
                    Err(error) => error,
                }
            } else {
                match place.from.enter(&entry.name) {
                    Ok(()) => {
                        place.to.enter(&entry.name)?;
                        levels.push((place.from.list(&mut buffer)?.into_iter(), stat));
                        continue;
                    }
                    Err(error) => error,
                }
            };
            if !is_gone(&gone) {
                return Err(gone);
            }
            // What is merged into may have been there before.
            if !self.pool.options.merge {
                fs::unlinkat(place.to.directory()?, entry.name.as_slice(), AtFlags::REMOVEDIR)
                    .map_err(|error| place.failed("remove", &entry.name, error))?;
            }
        }
        Ok(())
    }

    /// Copies one thing; gives a directory's status, for its content is still to come.
    fn entry(&mut self, place: &Place, entry: &OwnedEntry) -> Result<Option<Stat>> {
        let name = entry.name.as_slice();
        let maybe_file = matches!(entry.file_type, FileType::RegularFile | FileType::Unknown);
        let Some((stat, found)) = place.look(name, maybe_file)? else { return Ok(None) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            self.other(place, name, name, &stat, found.as_ref())?;
            return Ok(None);
        }
        if (stat.st_dev, stat.st_ino) == self.pool.itself {
            // It would never come to an end.
            return Err(place.failed("copy into itself", name, Errno::INVAL));
        }
        match fs::mkdirat(place.to.directory()?, name, Mode::RWXU) {
            Ok(()) => self.report.inodes = self.report.inodes.saturating_add(1),
            Err(Errno::EXIST) if self.pool.options.merge => place.make_way_for_directory(name)?,
            Err(error) => return Err(place.failed("make directory", name, error)),
        }
        Ok(Some(stat))
    }

    /// Takes away what has the name, if that is allowed and it is no directory.
    fn make_way(&self, place: &Place, name: &[u8]) -> Result<()> {
        if !self.pool.options.merge {
            return Ok(());
        }
        match fs::unlinkat(place.to.directory()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::io("replace", place.to.join(name), error)),
        }
    }

    /// Copies something that is no directory; `found` if it is a regular file.
    fn other(&mut self, place: &Place, name: &[u8], new: &[u8], stat: &Stat, found: Option<&Found>) -> Result<()> {
        if let Some(found) = found {
            return self.file(place, name, new, found);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.make_way(place, new)?;
        // Held until the thing is whole.
        let mut linked = (stat.st_nlink > 1).then(|| self.pool.linked());
        if let Some(linked) = &mut linked
            && self.link(place, linked, new, stat)?
        {
            return Ok(());
        }
        let to = place.to.directory()?;
        match kind {
            FileType::Symlink => {
                let target = match readlinkat(place.from.directory()?, name, Vec::new()) {
                    // Gone, or no link any more.
                    Err(Errno::NOENT | Errno::INVAL) => {
                        if let Some(linked) = &mut linked {
                            linked.remove(&(stat.st_dev, stat.st_ino));
                        }
                        return Ok(());
                    }
                    target => target.map_err(|error| place.failed("read link", name, error))?,
                };
                symlinkat(target.as_c_str(), to, new).map_err(|error| place.failed("make link", name, error))?;
            }
            _ => match mknodat(to, new, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev) {
                Ok(()) => {}
                // Not so a whiteout, without which deleted files would come back.
                Err(Errno::PERM)
                    if self.pool.options.in_user_namespace && kind != FileType::Fifo && stat.st_rdev != 0 =>
                {
                    self.notice("devices", format!("{} was left out: no devices in a user namespace", show(name)));
                    return Ok(());
                }
                Err(error) => return Err(place.failed("make node", name, error)),
            },
        }
        self.report.inodes = self.report.inodes.saturating_add(1);
        self.attributes_at(place, name, new, stat)
    }

    /// Makes a further name of an inode that has been copied. False for one that has not; it is going to be.
    fn link(&self, place: &Place, linked: &mut Linked, name: &[u8], stat: &Stat) -> Result<bool> {
        let path = place.to.join(name);
        if let Some(first) = linked.get(&(stat.st_dev, stat.st_ino)) {
            let to = place.to.directory()?;
            let made = match linkat(self.pool.root, first.as_slice(), to, name, AtFlags::empty()) {
                Err(Errno::NAMETOOLONG) => open_parent(self.pool.root, first)
                    .and_then(|(directory, last)| linkat(&directory, last, to, name, AtFlags::empty())),
                other => other,
            };
            match made {
                Ok(()) => return Ok(true),
                // As many names as the file system allows: from here on it is another inode, to which further names go.
                Err(Errno::MLINK) => {}
                Err(error) => return Err(place.failed("link", name, error)),
            }
        }
        linked.insert((stat.st_dev, stat.st_ino), path);
        Ok(false)
    }

    fn file(&mut self, place: &Place, name: &[u8], new: &[u8], found: &Found) -> Result<()> {
        let stat = *found.status();
        self.make_way(place, new)?;
        let mut linked = (stat.st_nlink > 1).then(|| self.pool.linked());
        if let Some(linked) = &mut linked
            && self.link(place, linked, new, &stat)?
        {
            return Ok(());
        }
        let source = found.open_to_read().map_err(|error| place.failed("open", name, error))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let destination = openat(place.to.directory()?, new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| place.failed("make file", name, error))?;
        if stat.st_size > 0 {
            let copied = copy_content(&destination, &source).map_err(|error| place.failed("copy", name, error))?;
            self.report.bytes = self.report.bytes.saturating_add(copied.size);
            self.report.method = self.report.method.max(Some(copied.method));
        }
        self.report.inodes = self.report.inodes.saturating_add(1);
        self.attributes(place, &source, &destination, &stat, name)
    }

    fn finish_directory(&mut self, place: &Place, stat: &Stat) -> Result<()> {
        let (source, destination) = (duplicate(place.from.directory()?), duplicate(place.to.directory()?));
        let source = source.map_err(|error| place.from.error("open", error))?;
        let destination = destination.map_err(|error| place.to.error("open", error))?;
        self.attributes(place, &source, &destination, stat, b"")
    }

    /// Owner, attributes, mode and times of an open file or directory.
    fn attributes(
        &mut self,
        place: &Place,
        source: &OwnedFd,
        destination: &OwnedFd,
        stat: &Stat,
        name: &[u8],
    ) -> Result<()> {
        let (uid, gid) = self.owner(place, stat, name)?;
        let owned = fs::fchown(destination, uid, gid);
        self.owned(place, owned, name)?;
        // After the owner, whose change takes capabilities away.
        for key in xattr::list(source).map_err(|error| place.failed("list the attributes of", name, error))?.iter() {
            if !self.is_kept(key) {
                continue;
            }
            let value = xattr::get(source, key).map_err(|error| place.failed("read an attribute of", name, error))?;
            if let Some(value) = value {
                let value = self.attribute(place, key, value, name)?;
                let set = xattr::set(destination, key, &value, SetMode::CreateOrReplace);
                self.attribute_set(place, set, key, name)?;
            }
        }
        // Not before, or attributes of files that refuse writing could not be set without privileges.
        fs::fchmod(destination, Mode::from_raw_mode(stat.st_mode & 0o7777))
            .map_err(|error| place.failed("set the mode of", name, error))?;
        fs::futimens(destination, &times(stat)).map_err(|error| place.failed("set the times of", name, error))
    }

    /// The same of something that cannot be opened.
    fn attributes_at(&mut self, place: &Place, name: &[u8], new: &[u8], stat: &Stat) -> Result<()> {
        let (uid, gid) = self.owner(place, stat, name)?;
        let owned = chownat(place.to.directory()?, new, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.owned(place, owned, name)?;
        let names = match xattr::list_at(place.from.directory()?, name) {
            // Gone meanwhile.
            Err(Errno::NOENT) => xattr::Names::default(),
            names => names.map_err(|error| place.failed("list the attributes of", name, error))?,
        };
        for key in names.iter() {
            if !self.is_kept(key) {
                continue;
            }
            let value = xattr::get_at(place.from.directory()?, name, key)
                .map_err(|error| place.failed("read an attribute of", name, error))?;
            if let Some(value) = value {
                let value = self.attribute(place, key, value, name)?;
                let set = xattr::set_at(place.to.directory()?, new, key, &value, SetMode::CreateOrReplace);
                self.attribute_set(place, set, key, name)?;
            }
        }
        let to = place.to.directory()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            chmodat(to, new, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
                .map_err(|error| place.failed("set the mode of", name, error))?;
        }
        utimensat(to, new, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| place.failed("set the times of", name, error))
    }

    fn is_kept(&self, key: &[u8]) -> bool {
        is_kept(key) || self.pool.options.labels && key == SELINUX
    }

    fn owned(&mut self, place: &Place, result: Result<(), Errno>, name: &[u8]) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) if self.pool.options.ignore_chown_errors => {
                self.notice("owners", format!("owners could not be kept: {error}"));
                Ok(())
            }
            Err(error) => Err(place.failed("change the owner of", name, error)),
        }
    }

    fn attribute_set(&mut self, place: &Place, result: Result<(), Errno>, key: &[u8], name: &[u8]) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(error, Errno::OPNOTSUPP)
                    || matches!(error, Errno::PERM | Errno::ACCESS) && self.pool.options.in_user_namespace =>
            {
                self.notice("attributes", format!("attribute {} could not be kept: {error}", show(key)));
                Ok(())
            }
            Err(error) => Err(place.failed("set an attribute of", name, error)),
        }
    }

    /// The owner that something gets.
    fn owner(&mut self, place: &Place, stat: &Stat, name: &[u8]) -> Result<(Option<Uid>, Option<Gid>)> {
        let mut owner = IdPair { uid: stat.st_uid, gid: stat.st_gid };
        let options = self.pool.options;
        if !options.owners.is_kept() {
            owner = options.owners.shift(owner, &place.from.join(name))?;
        }
        if let Some(shift) = &options.reown {
            let whiteout = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
            let path = if name.is_empty() { place.from.path().to_vec() } else { place.from.join(name) };
            // The owner of a whiteout means nothing, and the tree's root belongs to root where nobody can be told.
            owner = if whiteout || path.is_empty() { shift.owner_or_root(owner) } else { shift.owner(owner, &path)? };
            if shift.is_left_out(owner) {
                let text = "some files have owners that the new ID mappings leave out; these became 65534";
                self.notice("left out", text.to_owned());
            }
        }
        Ok((Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))))
    }

    /// An attribute's value with the ids in it shifted.
    fn attribute(&self, place: &Place, key: &[u8], value: Vec<u8>, name: &[u8]) -> Result<Vec<u8>> {
        let options = self.pool.options;
        match &options.reown {
            Some(shift) => shift.attribute(key, value, &place.from.join(name)),
            None if options.owners.is_kept() => Ok(value),
            None => attribute_ids::shift(key, &value, &|pair| options.owners.shift_other(pair, &place.from.join(name))),
        }
    }

    fn notice(&mut self, kind: &'static str, text: String) {
        if self.notices.iter().all(|(given, _)| *given != kind) {
            self.notices.push((kind, text));
        }
    }
}

impl Place {
    /// Where something other than a directory has the name of one that is to be merged, replaces it.
    fn make_way_for_directory(&self, name: &[u8]) -> Result<()> {
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

    /// A directory of the current one, as a job of its own.
    fn job(&self, name: &[u8], stat: Stat) -> Result<Job> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |descent: &Descent| {
            openat(descent.directory()?, name, flags, Mode::empty()).map_err(|error| self.failed("open", name, error))
        };
        Ok(Job { from: open(&self.from)?, to: open(&self.to)?, path: self.from.join(name), stat })
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

const SELINUX: &[u8] = b"security.selinux";

/// Whether an attribute belongs to the layer. SELinux labels belong to where a tree is.
fn is_kept(key: &[u8]) -> bool {
    match key {
        SELINUX => false,
        // How XFS shows access lists a second time, raw: the ids in them would be those of before.
        b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT" => false,
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
