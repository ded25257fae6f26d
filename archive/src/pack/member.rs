//! Members made of what is on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use graph_sys::found::Found;
use graph_sys::fs::{self, FileType};
use graph_sys::io::Errno;
use graph_sys::reflink::next_data;
use graph_sys::statx::{self, Metadata as Status};
use graph_sys::xattr;

use super::{Notices, PackOptions, PackReport, WhiteoutSource, lower};
use crate::apply::XattrNamespace;
use crate::entry::{Entry, EntryKind, Metadata, SparseRun, Timestamp};
use crate::error::{Error, Result};
use crate::idmap::IdPair;
use crate::overlay::{Marks, Opacity};
use crate::owners::{CAPABILITY, capability_root, set_capability_root};
use crate::tar::{Encoder, align_runs};
use crate::whiteout::{self, Whiteout};

/// Where an object is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    pub(super) directory: BorrowedFd<'p>,
    /// The last component of `path`.
    pub(super) name: &'p [u8],
    /// Below the root.
    pub(super) path: &'p [u8],
    /// Its directory may hold whiteouts in the form of files with an attribute.
    pub(super) xattr_whiteouts: bool,
    /// It is a regular file as far as is known. Those are held before they are looked at, so that what is opened is what was
    /// seen: a container that runs may put a device in its place.
    pub(super) maybe_file: bool,
}

/// What attributes are read of.
#[derive(Clone, Copy, Debug)]
enum Object<'o> {
    Open(BorrowedFd<'o>),
    Named(BorrowedFd<'o>, &'o [u8]),
}

impl Object<'_> {
    fn list(self) -> Result<xattr::Names, Errno> {
        match self {
            Self::Open(file) => xattr::list(file),
            Self::Named(directory, name) => xattr::list_at(directory, name),
        }
    }
    fn get(self, attribute: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        match self {
            Self::Open(file) => xattr::get(file, attribute),
            Self::Named(directory, name) => xattr::get_at(directory, name, attribute),
        }
    }
}

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why there is no member.
enum Gone {
    /// The object is not there any more.
    Vanished,
    Failed(Error),
}

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Writes members.
pub(super) struct Members<'a, W: Write> {
    encoder: Encoder<BufWriter<W>>,
    pub(super) options: &'a PackOptions<'a>,
    /// The member name of the first name of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    notices: Notices,
    report: PackReport,
}

impl<'a, W: Write> Members<'a, W> {
    pub(super) fn new(out: BufWriter<W>, options: &'a PackOptions<'a>) -> Self {
        Self {
            encoder: Encoder::with_options(out, options.encode),
            options,
            links: HashMap::new(),
            buffer: vec![0; 128 << 10],
            notices: Notices::new(),
            report: PackReport::default(),
        }
    }

    pub(super) fn finish(mut self) -> Result<PackReport> {
        self.encoder.finish()?;
        self.report.notices = self.notices.into_iter().collect();
        Ok(self.report)
    }

    /// How to read the overlay's own attributes, if the tree is an overlay's.
    pub(super) fn marks(&self) -> Option<Marks> {
        match self.options.whiteouts {
            WhiteoutSource::Overlay { namespace, .. } => Some(Marks::Overlay(namespace)),
            _ => None,
        }
    }

    pub(super) fn is_directory(&self, directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<bool> {
        Ok(status(directory, name, path)?.is_some_and(|status| status.file_type == FileType::Directory))
    }

    /// A member for the root.
    pub(super) fn root(&mut self, root: BorrowedFd<'_>) -> Result<()> {
        let Some(status) = status(root, b"", b".")? else { return Ok(()) };
        let metadata = match self.metadata(Object::Named(root, b"."), b".", &status) {
            Ok(metadata) => metadata,
            Err(Gone::Vanished) => return Ok(()),
            Err(Gone::Failed(error)) => return Err(error),
        };
        self.write(b"./".to_vec(), EntryKind::Directory, Vec::new(), metadata)
    }

    /// A member that says that `path`, whose last component is `name`, is gone from the lower layers.
    pub(super) fn whiteout(&mut self, path: &[u8], name: &[u8]) -> Result<()> {
        let metadata = Metadata { mtime: self.options.deletion_time, ..Metadata::default() };
        self.write(self.whiteout_name(path, name), EntryKind::File, Vec::new(), metadata)
    }

    fn whiteout_name(&self, path: &[u8], name: &[u8]) -> Vec<u8> {
        let parent = path.get(..path.len().saturating_sub(name.len())).unwrap_or_default();
        self.member_name(&[parent, whiteout::PREFIX, name].concat())
    }

    fn member_name(&self, path: &[u8]) -> Vec<u8> {
        if self.options.root { [b"./", path].concat() } else { path.to_vec() }
    }

    /// The member or members of one object; whether it is a directory. None when the object is gone.
    pub(super) fn object(&mut self, place: Place<'_>) -> Result<bool> {
        match self.members(place) {
            Err(Gone::Vanished) => Ok(false),
            Err(Gone::Failed(error)) => Err(error),
            Ok(is_directory) => Ok(is_directory),
        }
    }

    fn members(&mut self, place: Place<'_>) -> Result<bool, Gone> {
        let Place { directory, name, path, xattr_whiteouts, maybe_file } = place;
        let mut found = if maybe_file { Some(find(directory, name, path)?) } else { None };
        let mut status = match &found {
            Some(found) => Status::from(found.status()),
            None => status(directory, name, path)?.ok_or(Gone::Vanished)?,
        };
        if found.is_none() && status.file_type == FileType::RegularFile {
            let again = find(directory, name, path)?;
            status = Status::from(again.status());
            found = Some(again);
        }
        // Before anything is asked of its owner, which means nothing.
        if let Some(marks) = self.marks()
            && marks.is_whiteout(directory, name, path, &status, xattr_whiteouts)?
        {
            let owner = IdPair { uid: status.uid, gid: status.gid };
            let owner = self.options.mappings.to_container(owner, path).unwrap_or(IdPair { uid: 0, gid: 0 });
            let mtime = self.time(&status);
            let metadata = Metadata { uid: owner.uid, gid: owner.gid, mtime, ..Metadata::default() };
            self.write(self.whiteout_name(path, name), EntryKind::File, Vec::new(), metadata)?;
            return Ok(false);
        }
        if matches!(self.options.whiteouts, WhiteoutSource::Aufs) {
            match Whiteout::parse(name) {
                Ok(None) => {}
                Ok(Some(Whiteout::AufsMetadata)) => return Ok(false),
                Ok(Some(Whiteout::Remove(_) | Whiteout::Opaque)) => {
                    let metadata = Metadata { mtime: self.time(&status), ..Metadata::default() };
                    self.write(self.member_name(path), EntryKind::File, Vec::new(), metadata)?;
                    return Ok(false);
                }
                Err(defect) => return Err(Error::input(path, 0, defect).into()),
            }
        }
        let kind = match status.file_type {
            FileType::Directory => EntryKind::Directory,
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => {
                let (major, minor) = (fs::major(status.node_device), fs::minor(status.node_device));
                if status.file_type == FileType::CharacterDevice {
                    EntryKind::CharDevice { major, minor }
                } else {
                    EntryKind::BlockDevice { major, minor }
                }
            }
            _ => {
                self.notices.insert("sockets were left out, since archives cannot hold them".to_owned());
                return Ok(false);
            }
        };
        let mut member = self.member_name(path);
        let key = (status.device, status.inode);
        let first = if kind != EntryKind::Directory && status.links > 1 { self.links.get(&key).cloned() } else { None };
        if let (EntryKind::File, None, Some(found)) = (kind, &first, &found)
            && status.size > 0
        {
            let file = found.open_to_read().map_err(|error| Error::io("open", path, error))?;
            let metadata = self.metadata(Object::Open(file.as_fd()), path, &status)?;
            let member = self.first_name(key, &status, member);
            self.file(file, path, status.size, member, metadata)?;
            return Ok(false);
        }
        let metadata = self.metadata(Object::Named(directory, name), path, &status)?;
        if kind == EntryKind::Directory {
            member.push(b'/');
            let opaque = self.opaque_member(directory, path, name, &metadata)?;
            self.write(member, kind, Vec::new(), metadata)?;
            if let Some((member, metadata)) = opaque {
                self.write(member, EntryKind::File, Vec::new(), metadata)?;
            }
            return Ok(true);
        }
        if let Some(first) = first {
            self.write(member, EntryKind::HardLink, first, metadata)?;
            return Ok(false);
        }
        let target = match kind {
            EntryKind::Symlink => match fs::readlinkat(directory, name, Vec::new()) {
                // Gone, or no link any more.
                Err(Errno::NOENT | Errno::INVAL) => return Err(Gone::Vanished),
                target => target.map_err(|error| Error::io("read link", path, error))?.into_bytes(),
            },
            _ => Vec::new(),
        };
        let member = self.first_name(key, &status, member);
        self.write(member, kind, target, metadata)?;
        Ok(false)
    }

    /// Keeps the name of an object that has others, for these.
    fn first_name(&mut self, key: (u64, u64), status: &Status, member: Vec<u8>) -> Vec<u8> {
        if status.links > 1 {
            self.links.insert(key, member.clone());
        }
        member
    }

    /// The member that makes a directory opaque, if it is and hides something.
    fn opaque_member(
        &self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<Option<(Vec<u8>, Metadata)>> {
        let (Some(marks), WhiteoutSource::Overlay { lowers, .. }) = (self.marks(), &self.options.whiteouts) else {
            return Ok(None);
        };
        if lowers.is_empty()
            || marks.opacity(directory, name, path)? != Opacity::Opaque
            || !lower::has(lowers, marks, path)?
        {
            return Ok(None);
        }
        let member = self.member_name(&[path, b"/", whiteout::OPAQUE].concat());
        let metadata =
            Metadata { mode: metadata.mode & 0o777, uid: metadata.uid, gid: metadata.gid, ..Metadata::default() };
        Ok(Some((member, metadata)))
    }

    fn time(&self, status: &Status) -> Timestamp {
        let time = Timestamp { seconds: status.mtime.seconds, nanoseconds: status.mtime.nanoseconds };
        self.options.latest.map_or(time, |latest| time.min(latest))
    }

    fn metadata(&self, object: Object<'_>, path: &[u8], status: &Status) -> Result<Metadata, Gone> {
        let owner = self.options.mappings.to_container(IdPair { uid: status.uid, gid: status.gid }, path)?;
        Ok(Metadata {
            mode: status.mode,
            uid: owner.uid,
            gid: owner.gid,
            mtime: self.time(status),
            xattrs: self.xattrs(object, path)?,
            ..Metadata::default()
        })
    }

    /// The attributes that layers hold, sorted, under the names that users see.
    fn xattrs(&self, object: Object<'_>, path: &[u8]) -> Result<Xattrs, Gone> {
        let failed = |error| match error {
            Errno::NOENT => Gone::Vanished,
            error => Error::io("read attributes of", path, error).into(),
        };
        let user_overlay =
            matches!(self.options.whiteouts, WhiteoutSource::Overlay { namespace: XattrNamespace::User, .. });
        let mut all = Vec::new();
        for stored in object.list().map_err(failed)?.iter() {
            let seen = match stored.strip_prefix(b"user.overlay.") {
                Some(own) => match own.strip_prefix(b"overlay.") {
                    // Escaped by the overlay: a user's attribute.
                    Some(rest) if user_overlay => [b"user.overlay.", rest].concat(),
                    _ => continue,
                },
                None if stored.starts_with(b"user.") || matches!(stored, CAPABILITY | b"security.ima") => {
                    stored.to_vec()
                }
                None => continue,
            };
            let Some(value) = object.get(stored).map_err(failed)? else { continue };
            let value = if seen == CAPABILITY { self.capability(value, path)? } else { value };
            all.push((seen, value));
        }
        all.sort_unstable();
        Ok(all)
    }

    /// The id of the root that a capability is valid for is an owner like others.
    fn capability(&self, mut value: Vec<u8>, path: &[u8]) -> Result<Vec<u8>> {
        if let Some(root) = capability_root(&value) {
            set_capability_root(&mut value, self.options.mappings.user_to_container(root, path)?);
        }
        Ok(value)
    }

    fn write(&mut self, path: Vec<u8>, kind: EntryKind, link_target: Vec<u8>, metadata: Metadata) -> Result<()> {
        let entry = Entry { path, kind, link_target, size: 0, sparse: None, metadata, offset: 0 };
        self.report.entries = self.report.entries.saturating_add(1);
        self.encoder.write_entry(&entry)
    }

    /// A file with content.
    fn file(&mut self, file: OwnedFd, path: &[u8], size: u64, member: Vec<u8>, metadata: Metadata) -> Result<()> {
        let mut sparse = None;
        if self.options.encode.sparse {
            let runs = data_runs(&file, size).map_err(|error| Error::io("read", path, error))?;
            let runs = align_runs(&runs, size);
            let whole = [SparseRun { offset: 0, length: size }];
            sparse = (runs != whole).then_some(runs);
        }
        let entry =
            Entry { path: member, kind: EntryKind::File, link_target: Vec::new(), size, sparse, metadata, offset: 0 };
        self.encoder.write_entry(&entry)?;
        self.report.entries = self.report.entries.saturating_add(1);
        self.report.content_bytes = self.report.content_bytes.saturating_add(size);
        let whole = [SparseRun { offset: 0, length: size }];
        let file = File::from(file);
        for run in entry.sparse.as_deref().unwrap_or(&whole) {
            let (mut offset, end) = (run.offset, run.offset.saturating_add(run.length));
            while offset < end {
                let length = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(self.buffer.len());
                let Some(buffer) = self.buffer.get_mut(..length) else { break };
                file.read_exact_at(buffer, offset).map_err(|error| Error::io("read", path, error))?;
                self.encoder.append_at(offset, buffer)?;
                offset = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            }
        }
        self.encoder.append_at(size, b"")
    }
}

fn find(directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Found, Gone> {
    Found::at(directory, name).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => Gone::Vanished,
        error => Error::io("find", path, error).into(),
    })
}

fn status(directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Status>> {
    match statx::metadata(directory, name) {
        Ok(status) => Ok(Some(status)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(Error::io("stat", path, error)),
    }
}

fn data_runs(file: &impl AsFd, size: u64) -> Result<Vec<SparseRun>, Errno> {
    let mut runs = Vec::new();
    let mut position = 0;
    while let Some((start, end)) = next_data(file, position, size)? {
        runs.push(SparseRun { offset: start, length: end.saturating_sub(start) });
        position = end;
    }
    Ok(runs)
}
