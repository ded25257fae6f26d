//! Layers made by hand, and trees taken down to compare them.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // trees are looked at by path, as their users do
#![allow(clippy::print_stderr)] // skipped tests say why
#![allow(dead_code, unreachable_pub)] // every test file takes a part of it in

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use graph_archive::apply::{ApplyOptions, ApplyReport, OverlayOptions, Style, WhiteoutForm, XattrNamespace, apply};
use graph_archive::tar::{EncodeOptions, Encoder};
use graph_archive::{Entry, EntryKind, Error, Metadata, Timestamp};
use graph_sys::mount::FsContext;

/// A member with its content.
#[derive(Clone, Debug)]
pub struct Member {
    pub entry: Entry,
    pub content: Vec<u8>,
}

/// A member of `kind`, mode 0644 or 0755, owned by this process, of 1000000000.5.
pub fn member(path: impl AsRef<[u8]>, kind: EntryKind) -> Member {
    let metadata = Metadata {
        mode: if kind == EntryKind::Directory { 0o755 } else { 0o644 },
        mtime: Timestamp { seconds: 1_000_000_000, nanoseconds: 500_000_000 },
        ..Metadata::default()
    };
    let entry = Entry {
        path: path.as_ref().to_vec(),
        kind,
        link_target: Vec::new(),
        size: 0,
        sparse: None,
        metadata,
        offset: 0,
    };
    Member { entry, content: Vec::new() }
}

pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    let mut member = member(path, EntryKind::File);
    member.content = content.as_ref().to_vec();
    member.entry.size = member.content.len() as u64;
    member
}

pub fn dir(path: impl AsRef<[u8]>) -> Member {
    member(path, EntryKind::Directory)
}

pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let mut member = member(path, EntryKind::Symlink);
    member.entry.link_target = target.as_ref().to_vec();
    member
}

pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    let mut member = member(path, EntryKind::HardLink);
    member.entry.link_target = target.as_ref().to_vec();
    member
}

impl Member {
    pub fn mode(mut self, mode: u32) -> Self {
        self.entry.metadata.mode = mode;
        self
    }
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.entry.metadata.uid, self.entry.metadata.gid) = (uid, gid);
        self
    }
    pub fn time(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.entry.metadata.mtime = Timestamp { seconds, nanoseconds };
        self
    }
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.entry.metadata.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self.entry.metadata.xattrs.sort();
        self
    }
}

/// The archive of `members`.
pub fn tar(members: &[Member]) -> Vec<u8> {
    let all = EncodeOptions { nanoseconds: true, access_times: true, sparse: true };
    let mut encoder = Encoder::with_options(Vec::new(), all);
    for member in members {
        encoder.write_entry(&member.entry).unwrap();
        if let Some(runs) = &member.entry.sparse {
            for run in runs {
                let (start, end) = (run.offset as usize, (run.offset + run.length) as usize);
                encoder.append_at(run.offset, &member.content[start..end]).unwrap();
            }
            encoder.append_at(member.entry.size, b"").unwrap();
        } else {
            encoder.append(&member.content).unwrap();
        }
    }
    encoder.finish().unwrap()
}

/// Applies with `options` to `root`, which is made if it is missing.
pub fn apply_with(root: &Path, members: &[Member], options: ApplyOptions<'_>) -> Result<ApplyReport, Error> {
    std::fs::create_dir_all(root).unwrap();
    let root = File::open(root).unwrap();
    apply(root.as_fd(), tar(members).as_slice(), options)
}

pub fn apply_plain(root: &Path, members: &[Member]) -> Result<ApplyReport, Error> {
    apply_with(root, members, ApplyOptions::default())
}

/// Options for the overlay form over `lowers`, nearest first.
pub fn overlay(namespace: XattrNamespace, whiteout: WhiteoutForm, lowers: &[PathBuf]) -> ApplyOptions<'static> {
    let lowers = lowers.iter().map(|lower| OwnedFd::from(File::open(lower).unwrap())).collect();
    ApplyOptions {
        style: Style::Overlay(OverlayOptions { namespace, whiteout, lowers, lowers_unknown: false }),
        ..ApplyOptions::default()
    }
}

/// A mounted overlay, at a path of this process.
pub struct Mounted {
    _mount: OwnedFd,
    pub path: PathBuf,
}

/// Mounts `layers` (nearest first) read-only with the kernel's overlay. `None`, with the reason on stderr, where it cannot.
pub fn mount(layers: &[PathBuf], namespace: XattrNamespace, empty: &Path) -> Option<Mounted> {
    std::fs::create_dir_all(empty).unwrap();
    let mounted = (|| {
        let context = FsContext::open("overlay")?;
        for layer in layers {
            context.set_string("lowerdir+", layer.as_os_str().as_bytes())?;
        }
        // Without an upper directory the kernel wants two lower ones.
        context.set_string("lowerdir+", empty.as_os_str().as_bytes())?;
        if namespace == XattrNamespace::User {
            context.set_flag("userxattr")?;
        }
        context.create(graph_sys::mount::MountAttrFlags::MOUNT_ATTR_RDONLY)
    })();
    match mounted {
        Ok(mounted) => {
            let mount = OwnedFd::from(mounted);
            let path = PathBuf::from(format!("/proc/self/fd/{}/.", std::os::fd::AsRawFd::as_raw_fd(&mount)));
            Some(Mounted { _mount: mount, path })
        }
        Err(error) => {
            eprintln!("skipped: no overlay can be mounted here ({error:?})");
            None
        }
    }
}

/// What users see of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub rdev: u64,
    /// Of files and links.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// A tree, and which of its names are the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub nodes: BTreeMap<PathBuf, Node>,
    pub same: BTreeMap<PathBuf, (u64, u64)>,
}

pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    use graph_sys::fs;
    let mut names = vec![0u8; 4096];
    let Ok(size) = fs::llistxattr(path, names.as_mut_slice()) else { return BTreeMap::new() };
    names.truncate(size);
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && *name != b"security.selinux") {
        let mut value = vec![0u8; 4096];
        let size = fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value.truncate(size);
        found.insert(String::from_utf8(name.to_vec()).unwrap(), value);
    }
    found
}

pub fn node(path: &Path) -> Node {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let content = if metadata.is_symlink() {
        std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else if metadata.is_file() {
        std::fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let device = metadata.file_type().is_char_device() || metadata.file_type().is_block_device();
    Node {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        rdev: if device { metadata.rdev() } else { 0 },
        content,
        xattrs: xattrs(path),
    }
}

/// Takes down the tree at `root`, the root itself (as the empty path) included.
pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree { nodes: BTreeMap::new(), same: BTreeMap::new() };
    tree.nodes.insert(PathBuf::new(), node(root));
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(root.join(&at)).unwrap() {
            let path = at.join(entry.unwrap().file_name());
            let node = node(&root.join(&path));
            let metadata = std::fs::symlink_metadata(root.join(&path)).unwrap();
            if metadata.is_dir() {
                pending.push(path.clone());
            } else {
                tree.same.insert(path.clone(), (metadata.dev(), metadata.ino()));
            }
            tree.nodes.insert(path, node);
        }
    }
    tree
}

impl Tree {
    pub fn paths(&self) -> Vec<&str> {
        self.nodes.keys().filter_map(|path| path.to_str()).filter(|path| !path.is_empty()).collect()
    }
    /// Groups of names of one file, with more than one name.
    pub fn groups(&self) -> Vec<Vec<&Path>> {
        let mut groups: BTreeMap<_, Vec<&Path>> = BTreeMap::new();
        for (path, id) in &self.same {
            groups.entry(id).or_default().push(path);
        }
        let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
        groups.sort();
        groups
    }
}

/// The innermost cause of an error, with the error's own text before it.
pub fn messages(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

pub fn name(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}
