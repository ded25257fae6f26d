//! Making what members state: files, directories, links, devices and pipes.
//!
//! System calls for a file in a directory that this layer made: `openat`, `write`, `futimens`, `close`, and `fchown` when
//! the owner is not this process's. Nothing is looked at before: that a name is taken already is the rare case.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags};
use graph_sys::io::Errno;

use super::attributes::{Attributes, Handle, open_path};
use super::dirs::{Dir, Opened};
use super::engine::Engine;
use crate::entry::{Entry, EntryKind};
use crate::error::{Defect, Error, Result};
use crate::whiteout::Whiteout;

/// How often a name is cleared before somebody else is taken to be filling it again and again.
const ATTEMPTS: usize = 16;

/// The biggest numbers that Linux has for devices (12 and 20 bits); it cuts off what is above.
const MAJORS: u32 = 0xfff;
const MINORS: u32 = 0xf_ffff;

/// A file that has been made and gets its content.
#[derive(Debug)]
pub(super) struct Writing {
    file: Handle<OwnedFd>,
    path: Vec<u8>,
    attributes: Attributes,
    /// Bytes that the file has so far, holes included.
    written: u64,
    size: u64,
    chown: bool,
    chmod: bool,
    inherits: bool,
}

impl Writing {
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        let (Handle::Open(fd) | Handle::Path(fd)) = &self.file;
        graph_sys::fault::point("apply.write").map_err(|error| Error::io("write", self.path.as_slice(), error))?;
        while !bytes.is_empty() {
            match graph_sys::io::pwrite(fd, bytes, offset) {
                Ok(0) => return Err(Error::io("write", self.path.as_slice(), std::io::ErrorKind::WriteZero)),
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    offset = offset.saturating_add(count as u64);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("write", self.path.as_slice(), error)),
            }
        }
        self.written = self.written.max(offset);
        Ok(())
    }
}

impl Engine<'_> {
    /// Makes `name` in `dir` as `entry` states. A regular file is given back open, for its content.
    pub(super) fn create(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> Result<Option<Writing>> {
        let (file_type, major, minor) = match entry.kind {
            EntryKind::HardLink => {
                self.hard_link(dir, name, entry)?;
                return Ok(None);
            }
            EntryKind::CharDevice { major: 0, minor: 0 } => return Err(self.input(&entry.path, Defect::WhiteoutDevice)),
            EntryKind::CharDevice { major, minor } => (FileType::CharacterDevice, major, minor),
            EntryKind::BlockDevice { major, minor } => (FileType::BlockDevice, major, minor),
            EntryKind::File => (FileType::RegularFile, 0, 0),
            EntryKind::Directory => (FileType::Directory, 0, 0),
            EntryKind::Symlink => (FileType::Symlink, 0, 0),
            EntryKind::Fifo => (FileType::Fifo, 0, 0),
        };
        if major > MAJORS || minor > MINORS {
            return Err(self.input(&entry.path, Defect::InvalidNumber { field: "device number" }));
        }
        let attributes = self.translate(&entry.metadata, entry.kind, &entry.path)?;
        dir.prepare(self.gid)?;
        let path = dir.child(name);
        match file_type {
            FileType::Directory => {
                let directory = self.place_directory(dir, name, &path, &attributes, true)?;
                directory.set_final(attributes.times, None);
                Ok(None)
            }
            FileType::RegularFile => self.create_file(dir, name, path, attributes, entry.size).map(Some),
            FileType::Symlink => {
                if entry.link_target.is_empty() {
                    return Err(self.input(&entry.path, Defect::InvalidName));
                }
                self.exclusively("make symbolic link", dir, name, &path, |dir| {
                    fs::symlinkat(&*entry.link_target, dir, name)
                })?;
                self.make_ours(dir, &path)?;
                self.finish_node(dir, name, &attributes, true)?;
                Ok(None)
            }
            // Devices and pipes are among what a forced mask turns into regular files.
            _ if self.options.force_mask.is_some() => {
                let file = self.create_file(dir, name, path, attributes, 0)?;
                self.finish_file(file)?;
                Ok(None)
            }
            FileType::CharacterDevice | FileType::BlockDevice if self.options.in_user_namespace => {
                self.notice("devices", || "devices cannot be made in a user namespace and were left out".to_owned());
                self.leave_out(dir, name, &path)?;
                Ok(None)
            }
            _ => {
                let device = fs::makedev(major, minor);
                let mode = attributes.mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
                self.exclusively("make device or pipe", dir, name, &path, |dir| {
                    fs::mknodat(dir, name, file_type, mode, device)
                })?;
                self.make_ours(dir, &path)?;
                self.finish_node(dir, name, &attributes, false)?;
                Ok(None)
            }
        }
    }

    /// Calls `make` until the name is not taken any more, clearing it in between.
    fn exclusively<T>(
        &mut self,
        operation: &'static str,
        dir: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        mut make: impl FnMut(&Dir) -> Result<T, Errno>,
    ) -> Result<T> {
        for _ in 0..ATTEMPTS {
            match make(dir) {
                Ok(made) => return Ok(made),
                Err(Errno::EXIST) => self.vacate(dir, name, path)?,
                Err(Errno::INTR) => {}
                Err(Errno::MFILE | Errno::NFILE) if self.dirs.close_some()? => {}
                Err(error) => return Err(Error::io(operation, path, error)),
            }
        }
        Err(Error::io(operation, path, Errno::EXIST))
    }

    fn create_file(
        &mut self,
        dir: &Rc<Dir>,
        name: &[u8],
        path: Vec<u8>,
        attributes: Attributes,
        size: u64,
    ) -> Result<Writing> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let plain = Mode::RWXU | Mode::RWXG | Mode::RWXO;
        let fd = self.exclusively("create file", dir, name, &path, |dir| {
            fs::openat(dir, name, flags, attributes.mode & plain)
        })?;
        self.make_ours(dir, &path)?;
        let inherits = dir.gives_mode.get();
        Ok(Writing {
            file: Handle::Open(fd),
            written: 0,
            size,
            chown: self.is_foreign_owner(dir, &attributes),
            chmod: inherits || attributes.mode.intersects(self.umask | !plain),
            inherits,
            path,
            attributes,
        })
    }

    fn is_foreign_owner(&self, dir: &Dir, attributes: &Attributes) -> bool {
        attributes.owner.uid != self.uid || attributes.owner.gid != self.gid || dir.gives_group.get()
    }

    /// Ends a file: size, owner, mode, attributes, times, in the order in which they do not undo each other.
    pub(super) fn finish_file(&mut self, file: Writing) -> Result<()> {
        let Writing { file, path, attributes, written, size, chown, chmod, inherits } = file;
        let (Handle::Open(fd) | Handle::Path(fd)) = &file;
        if written < size {
            fs::ftruncate(fd, size).map_err(|error| Error::io("set size of", path.as_slice(), error))?;
        }
        if chown {
            self.chown(&file, attributes.owner, &path)?;
        }
        if inherits {
            drop_inherited(&file);
        }
        if chmod {
            file.chmod(attributes.mode).map_err(|error| Error::io("change mode of", path.as_slice(), error))?;
        }
        self.set_xattrs(&file, &attributes.xattrs, &path)?;
        fs::futimens(fd, &attributes.times.stamps()).map_err(|error| Error::io("set times of", path.as_slice(), error))
    }

    /// The same for what is not opened.
    pub(super) fn finish_node(&mut self, dir: &Dir, name: &[u8], attributes: &Attributes, symlink: bool) -> Result<()> {
        if self.is_foreign_owner(dir, attributes) {
            self.chown_at(dir, name, attributes.owner)?;
        }
        let plain = Mode::RWXU | Mode::RWXG | Mode::RWXO;
        let inherits = dir.gives_mode.get() && !symlink;
        let chmod = !symlink && (inherits || attributes.mode.intersects(self.umask | !plain));
        if chmod || !attributes.xattrs.is_empty() {
            let file = Handle::Path(open_path(dir, name)?);
            if inherits {
                drop_inherited(&file);
            }
            if chmod {
                file.chmod(attributes.mode).map_err(|error| Error::io("change mode of", dir.child(name), error))?;
            }
            self.set_xattrs(&file, &attributes.xattrs, name)?;
        }
        fs::utimensat(dir, name, &attributes.times.stamps(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("set times of", dir.child(name), error))
    }

    // ---- directories ----

    /// Makes the directory that nobody states.
    pub(super) fn make_implied(&mut self, parent: &Rc<Dir>, name: &[u8]) -> Result<Rc<Dir>> {
        let path = parent.child(name);
        // Members' own names were looked at; this one comes out of a symbolic link's target.
        if Whiteout::parse(name) != Ok(None) {
            return Err(self.input(&path, Defect::InvalidWhiteout));
        }
        self.implied_count = self.implied_count.saturating_add(1);
        if self.implied_count > self.options.limits.entries {
            return Err(Error::Limit {
                limit: "entries",
                maximum: self.options.limits.entries,
                found: self.implied_count,
                entry: path,
                offset: self.offset,
            });
        }
        let attributes = self.implied()?;
        parent.prepare(self.gid)?;
        self.place_directory(parent, name, &path, &attributes, false)
    }

    /// A directory at `name`, whatever is there now. One that exists already keeps its content, and gets the attributes
    /// when `stated`.
    fn place_directory(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
        stated: bool,
    ) -> Result<Rc<Dir>> {
        let mut replaced = false;
        for _ in 0..ATTEMPTS {
            match fs::mkdirat(parent, name, first_mode(attributes.mode)) {
                Ok(()) => return self.new_directory(parent, name, path, attributes, replaced),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Error::io("make directory", path, error)),
            }
            if let Some(directory) = self.existing_directory(parent, name, path)? {
                if stated {
                    self.restate(&directory, attributes, path)?;
                    self.make_ours(parent, path)?;
                }
                return Ok(directory);
            }
            self.vacate(parent, name, path)?;
            replaced = true;
        }
        Err(Error::io("make directory", path, Errno::EXIST))
    }

    fn existing_directory(&mut self, parent: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<Option<Rc<Dir>>> {
        if let Some(directory) = self.dirs.get(path) {
            return Ok(Some(directory));
        }
        match self.dirs.open(parent, name)? {
            Opened::Directory(fd) => self.adopt(parent, path.to_vec(), fd).map(Some),
            Opened::Missing | Opened::NotDirectory => Ok(None),
        }
    }

    /// Takes in a directory that has just been made. When it `replaced` something of this layer that hid a directory of a
    /// lower one, it has to go on hiding it.
    fn new_directory(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
        replaced: bool,
    ) -> Result<Rc<Dir>> {
        // A whiteout of AUFS was not in the way, but hid something.
        let replaced = self.make_fresh(parent, path)? || replaced;
        let directory = self.open_new(parent, name, path, attributes)?;
        if replaced
            && self.overlay.is_some()
            && !parent.hidden.get()
            && (self.lowers_unknown() || self.below(parent, name)?.is_some_and(|found| found.is_dir()))
        {
            self.set_opaque(&directory, path)?;
            directory.hidden.set(true);
        }
        Ok(directory)
    }

    /// Opens a directory that has just been made with [`first_mode`], and gives it its attributes.
    pub(super) fn open_new(
        &mut self,
        parent: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<Rc<Dir>> {
        let Opened::Directory(fd) = self.dirs.open(parent, name)? else {
            // Somebody else took it away again.
            return Err(Error::io("open new directory", path, Errno::NOTDIR));
        };
        let directory = self.dirs.insert(Dir::new(path.to_vec(), fd, true, parent.hidden.get()))?;
        let file = Handle::Open(&*directory);
        if self.is_foreign_owner(parent, attributes) {
            self.chown(&file, attributes.owner, path)?;
        }
        let inherits = parent.gives_mode.get();
        if inherits {
            drop_inherited(&file);
        }
        self.set_xattrs(&file, &attributes.xattrs, path)?;
        directory.gives_group.set(attributes.owner.gid != self.gid);
        directory.gives_mode.set(has_default_acl(attributes) || inherits);
        let made = first_mode(attributes.mode);
        let later = inherits || made != attributes.mode || made.intersects(self.umask);
        directory.set_final(attributes.times, later.then_some(attributes.mode));
        Ok(directory)
    }

    /// Gives a directory that was there before all its attributes anew.
    pub(super) fn restate(&mut self, directory: &Rc<Dir>, attributes: &Attributes, name: &[u8]) -> Result<()> {
        let file = Handle::Open(&**directory);
        self.clear_xattrs(&file, name)?;
        self.chown(&file, attributes.owner, name)?;
        // Without a setgid bit, so that what is made in it does not inherit it.
        file.chmod(first_mode(attributes.mode)).map_err(|error| Error::io("change mode of", name, error))?;
        self.set_xattrs(&file, &attributes.xattrs, name)?;
        directory.gives_group.set(attributes.owner.gid != self.gid);
        directory.gives_mode.set(has_default_acl(attributes));
        directory.set_final(attributes.times, Some(attributes.mode));
        Ok(())
    }
}

fn has_default_acl(attributes: &Attributes) -> bool {
    attributes.xattrs.iter().any(|(name, _)| name == b"system.posix_acl_default")
}

/// The mode that a directory has while things are made in it.
pub(super) fn first_mode(mode: Mode) -> Mode {
    (mode & (Mode::RWXU | Mode::RWXG | Mode::RWXO)) | Mode::RWXU
}

/// Takes off what a directory's default access list has given to a new file.
fn drop_inherited<F: std::os::fd::AsFd>(file: &Handle<F>) {
    // Missing, or not known to the file system: nothing was inherited.
    let _access = file.remove(b"system.posix_acl_access");
    let _default = file.remove(b"system.posix_acl_default");
}
