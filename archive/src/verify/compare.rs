//! Walking a tree on disk along with the expected one.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use graph_sys::fs::{self, FileType};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::statx::{self, Metadata};
use graph_sys::xattr;

use super::expected::{ExpectedTree, Node, What};
use crate::entry::{Entry, EntryKind};
use crate::error::{Error, Result};
use crate::idmap::{IdMappings, IdPair};
use crate::walk::{Descent, join};

/// How a tree is compared.
#[derive(Clone, Debug, Default)]
pub struct CompareOptions {
    /// Mappings of the ids on disk.
    pub mappings: IdMappings,
    /// Owners were not kept (option `ignore_chown_errors`).
    pub ignore_owners: bool,
    /// Neither owners nor modes nor types were kept (option `force_mask`).
    pub ignore_modes: bool,
    /// Devices were left out, and attributes that may not be set (in a user namespace).
    pub in_user_namespace: bool,
    /// Stop after so many differences; 0 for no limit.
    pub at_most: usize,
}

/// What is different.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DifferenceKind {
    /// On disk and not expected; of a directory only itself.
    Extra,
    /// Expected and not on disk; of a directory only itself.
    Missing,
    /// On disk, with something else than expected: `size:1￫2,mode:0644￫0600`.
    Modified(String),
}

/// One difference between an expected tree and a tree on disk. Displayed in containers/storage's form: `+/path`,
/// `-/path`, `/path(size:1￫2)`; a name is shown as it is, which a terminal should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Absolute path in the layer.
    pub path: Vec<u8>,
    /// What is different.
    pub kind: DifferenceKind,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = String::from_utf8_lossy(&self.path);
        match &self.kind {
            DifferenceKind::Extra => write!(f, "+{path}"),
            DifferenceKind::Missing => write!(f, "-{path}"),
            DifferenceKind::Modified(what) => write!(f, "{path}({what})"),
        }
    }
}

/// One directory being compared.
struct Frame {
    found: std::vec::IntoIter<OwnedEntry>,
    next: Option<OwnedEntry>,
    expected: Vec<(Box<[u8]>, Arc<Node>)>,
}

impl Frame {
    fn open(descent: &Descent, node: &Node, buffer: &mut DirBuffer) -> Result<Self> {
        let mut found = descent.list(buffer)?.into_iter();
        let next = found.next();
        // Last first, to be popped in order.
        let expected = node.children.iter().rev().map(|(name, node)| (name.clone(), Arc::clone(node))).collect();
        Ok(Self { found, next, expected })
    }
}

struct Comparison<'o> {
    options: &'o CompareOptions,
    found: Vec<Difference>,
}

impl ExpectedTree {
    /// Where the tree at `root` is not the expected one, in the order of the walk. The root's own attributes are not
    /// compared: no two engines agree on them.
    ///
    /// # Errors
    /// I/O errors with the path concerned. Files that vanish meanwhile are missing.
    pub fn compare(&self, root: BorrowedFd<'_>, options: &CompareOptions) -> Result<Vec<Difference>> {
        let mut comparison = Comparison { options, found: Vec::new() };
        if matches!(self.root.what, What::Unknown) {
            return Ok(comparison.found);
        }
        let mut descent = Descent::new(root)?;
        let mut buffer = DirBuffer::new();
        let mut frames = vec![Frame::open(&descent, &self.root, &mut buffer)?];
        while let Some(frame) = frames.last_mut() {
            if options.at_most > 0 && comparison.found.len() >= options.at_most {
                break;
            }
            let order = match (&frame.next, frame.expected.last()) {
                (None, None) => {
                    frames.pop();
                    if !frames.is_empty() {
                        descent.leave()?;
                    }
                    continue;
                }
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(found), Some((name, _))) => found.name.as_slice().cmp(name),
            };
            let found = if order.is_le() { std::mem::replace(&mut frame.next, frame.found.next()) } else { None };
            let expected = if order.is_ge() { frame.expected.pop() } else { None };
            match (found, expected) {
                (Some(found), None) => comparison.push(&descent, &found.name, DifferenceKind::Extra),
                (None, Some((name, node))) => comparison.missing(&descent, &name, &node),
                (Some(found), Some((_, node))) => {
                    if comparison.both(&descent, &found, &node)? {
                        match descent.enter(&found.name) {
                            Ok(()) => frames.push(Frame::open(&descent, &node, &mut buffer)?),
                            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                                comparison.missing(&descent, &found.name, &node);
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                (None, None) => {}
            }
        }
        Ok(comparison.found)
    }
}

impl Comparison<'_> {
    fn push(&mut self, descent: &Descent, name: &[u8], kind: DifferenceKind) {
        let path = [b"/", descent.join(name).as_slice()].concat();
        self.found.push(Difference { path, kind });
    }

    fn missing(&mut self, descent: &Descent, name: &[u8], node: &Node) {
        let left_out = match &node.what {
            What::Unknown => true,
            What::Stated(entry) => self.options.in_user_namespace && is_device(entry.kind),
            What::Implied => false,
        };
        if !left_out {
            self.push(descent, name, DifferenceKind::Missing);
        }
    }

    /// Compares what is there with what should be; whether it is a directory to go into.
    fn both(&mut self, descent: &Descent, found: &OwnedEntry, node: &Node) -> Result<bool> {
        let name = found.name.as_slice();
        let entry = match &node.what {
            What::Unknown => return Ok(false),
            What::Implied if found.file_type == FileType::Directory => return Ok(true),
            What::Implied => None,
            What::Stated(entry) => Some(entry),
        };
        let directory = descent.directory()?;
        let status = match statx::metadata(directory, name) {
            Ok(status) => status,
            Err(Errno::NOENT) => {
                self.missing(descent, name, node);
                return Ok(false);
            }
            Err(error) => return Err(Error::io("stat", descent.join(name), error)),
        };
        let Some(entry) = entry else {
            if status.file_type != FileType::Directory {
                let what = format!("filetype:directory￫{}", type_word(status.file_type));
                self.push(descent, name, DifferenceKind::Modified(what));
            }
            return Ok(status.file_type == FileType::Directory);
        };
        let differences = self.differences(descent, name, entry, &status)?;
        if !differences.is_empty() {
            self.push(descent, name, DifferenceKind::Modified(differences.join(",")));
        }
        Ok(status.file_type == FileType::Directory && entry.kind == EntryKind::Directory)
    }

    fn differences(&self, descent: &Descent, name: &[u8], entry: &Entry, status: &Metadata) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        let metadata = &entry.metadata;
        let (kind, found_kind) = (file_type(entry.kind), status.file_type);
        // With a mask all but directories and links are regular files.
        let masked =
            |kind| if matches!(kind, FileType::Directory | FileType::Symlink) { kind } else { FileType::RegularFile };
        let kind = if self.options.ignore_modes { masked(kind) } else { kind };
        if kind != found_kind {
            differences.push(format!("filetype:{}￫{}", type_word(kind), type_word(found_kind)));
        }
        if !self.options.ignore_modes {
            let (mode, found_mode) = (metadata.mode & 0o7777, status.mode & 0o7777);
            if mode != found_mode && found_kind != FileType::Symlink {
                differences.push(format!("mode:{mode:04o}￫{found_mode:04o}"));
            }
            let owner = IdPair { uid: status.uid, gid: status.gid };
            let owner = self.options.mappings.to_container(owner, name).unwrap_or(owner);
            if !self.options.ignore_owners && metadata.uid != owner.uid {
                differences.push(format!("uid:{}￫{}", metadata.uid, owner.uid));
            }
            if !self.options.ignore_owners && metadata.gid != owner.gid {
                differences.push(format!("gid:{}￫{}", metadata.gid, owner.gid));
            }
            if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } = entry.kind {
                let (found_major, found_minor) = (fs::major(status.node_device), fs::minor(status.node_device));
                if kind == found_kind && (major, minor) != (found_major, found_minor) {
                    differences.push(format!("device:{major}:{minor}￫{found_major}:{found_minor}"));
                }
            }
        }
        if found_kind == FileType::RegularFile && entry.kind == EntryKind::File && entry.size != status.size {
            differences.push(format!("size:{}￫{}", entry.size, status.size));
        }
        // Engines put times before the epoch at the epoch, and leave a link's alone then.
        let (time, found_time) = (metadata.mtime.seconds, status.mtime.seconds);
        if time != found_time && (time > 0 || (time == 0 && found_kind != FileType::Symlink)) {
            differences.push(format!("mtime:{time}￫{found_time}"));
        }
        if entry.kind == EntryKind::Symlink && status.file_type == FileType::Symlink {
            let target = fs::readlinkat(descent.directory()?, name, Vec::new())
                .map_err(|error| Error::io("read link", descent.join(name), error))?;
            if target.as_bytes() != entry.link_target {
                differences.push(format!(
                    "target:{}￫{}",
                    String::from_utf8_lossy(&entry.link_target),
                    String::from_utf8_lossy(target.as_bytes())
                ));
            }
        }
        if matches!(status.file_type, FileType::RegularFile | FileType::Directory) {
            self.attributes(descent, name, entry, &mut differences)?;
        }
        Ok(differences)
    }

    /// Compares the attributes that layers carry: those stated, and `user.` and capabilities that are not.
    fn attributes(&self, descent: &Descent, name: &[u8], entry: &Entry, differences: &mut Vec<String>) -> Result<()> {
        let failed = |error| Error::io("read attributes of", join(descent.path(), name), error);
        let directory = descent.directory()?;
        for (attribute, value) in entry.metadata.xattrs.iter().filter(|(attribute, _)| carried(attribute)) {
            let found = match xattr::get_at(directory, name, attribute) {
                // The file system has none; they were left out with a notice.
                Err(Errno::OPNOTSUPP) => continue,
                other => other.map_err(failed)?,
            };
            // The kernel writes capabilities down in another form for a user namespace.
            let loosely = self.options.in_user_namespace || !self.options.mappings.is_identity();
            match found {
                Some(_) if attribute == b"security.capability" && loosely => {}
                Some(found) if found == *value => {}
                None if self.options.in_user_namespace => {}
                Some(_) => differences.push(format!("xattr {}:changed", String::from_utf8_lossy(attribute))),
                None => differences.push(format!("xattr {}:missing", String::from_utf8_lossy(attribute))),
            }
        }
        let names = match xattr::list_at(directory, name) {
            Ok(names) => names,
            Err(Errno::TOOBIG | Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for attribute in names.iter().filter(|attribute| carried(attribute)) {
            if entry.metadata.xattrs.iter().all(|(stated, _)| stated != attribute) {
                differences.push(format!("xattr {}:extra", String::from_utf8_lossy(attribute)));
            }
        }
        Ok(())
    }
}

fn is_device(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
}

/// Whether layers carry the attribute; the drivers' own they do not.
pub(super) fn carried(attribute: &[u8]) -> bool {
    let private = attribute.starts_with(b"user.overlay.") || attribute.starts_with(b"user.containers.override_stat");
    attribute == b"security.capability" || attribute.starts_with(b"user.") && !private
}

pub(super) fn file_type(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::File | EntryKind::HardLink => FileType::RegularFile,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::CharDevice { .. } => FileType::CharacterDevice,
        EntryKind::BlockDevice { .. } => FileType::BlockDevice,
    }
}

fn type_word(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "char",
        FileType::BlockDevice => "block",
        FileType::Unknown => "unknown",
    }
}
