//! Making trees and comparing them, by path and with plain system calls, so that nothing under test is used to test it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use graph_sys::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use graph_sys::io::Errno;

use super::Failure;

/// Makes things below a root. Every call sets the mode it is given, whatever the umask.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

type Done = Result<(), Failure>;

impl Tree {
    /// A tree at `root`, a directory.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path on disk of a name below the root; `""` is the root.
    #[must_use]
    pub fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.root.join(Path::new(name.as_ref()))
    }

    /// Makes or overwrites a file, 0644.
    #[track_caller]
    pub fn file(&self, name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) -> Done {
        fs::write(self.at(&name), content)?;
        self.mode(name, 0o644)
    }

    /// Makes a directory, 0755.
    #[track_caller]
    pub fn dir(&self, name: impl AsRef<OsStr>) -> Done {
        fs::create_dir(self.at(&name))?;
        self.mode(name, 0o755)
    }

    /// Makes a symbolic link.
    #[track_caller]
    pub fn symlink(&self, name: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Done {
        Ok(symlink(target.as_ref(), self.at(name))?)
    }

    /// Makes a hard link to something below the root.
    #[track_caller]
    pub fn link(&self, name: impl AsRef<OsStr>, existing: impl AsRef<OsStr>) -> Done {
        Ok(graph_sys::fs::linkat(CWD, self.at(existing), CWD, self.at(name), AtFlags::empty())?)
    }

    /// Makes a named pipe, 0600.
    #[track_caller]
    pub fn fifo(&self, name: impl AsRef<OsStr>) -> Done {
        graph_sys::fs::mknodat(CWD, self.at(&name), FileType::Fifo, Mode::empty(), 0)?;
        self.mode(name, 0o600)
    }

    /// Makes a device, 0600.
    #[track_caller]
    pub fn device(&self, name: impl AsRef<OsStr>, kind: NodeKind) -> Done {
        let (file_type, major, minor) = match kind {
            NodeKind::CharDevice(major, minor) => (FileType::CharacterDevice, major, minor),
            NodeKind::BlockDevice(major, minor) => (FileType::BlockDevice, major, minor),
            other => return Err(Failure::new(format!("{other:?} is not a device"))),
        };
        graph_sys::fs::mknodat(CWD, self.at(&name), file_type, Mode::empty(), graph_sys::fs::makedev(major, minor))?;
        self.mode(name, 0o600)
    }

    /// Sets permission bits, with setuid, setgid and sticky.
    #[track_caller]
    pub fn mode(&self, name: impl AsRef<OsStr>, mode: u32) -> Done {
        Ok(fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode))?)
    }

    /// Sets owner and group of the thing itself. The mode is kept: setuid and setgid survive.
    #[track_caller]
    pub fn owner(&self, name: impl AsRef<OsStr>, uid: u32, gid: u32) -> Done {
        let path = self.at(&name);
        let before = fs::symlink_metadata(&path)?;
        lchown(&path, Some(uid), Some(gid))?;
        if before.is_symlink() { Ok(()) } else { self.mode(name, before.mode() & 0o7777) }
    }

    /// Sets an extended attribute.
    #[track_caller]
    pub fn xattr(&self, name: impl AsRef<OsStr>, key: &str, value: &[u8]) -> Done {
        Ok(graph_sys::fs::lsetxattr(self.at(name), key, value, XattrFlags::empty())?)
    }

    /// Sets the time of last modification, in seconds, of the thing itself.
    #[track_caller]
    pub fn time(&self, name: impl AsRef<OsStr>, seconds: i64) -> Done {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(graph_sys::fs::utimensat(CWD, self.at(name), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Removes a file, or a directory with all that is in it.
    #[track_caller]
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Done {
        let path = self.at(name);
        let directory = fs::symlink_metadata(&path)?.is_dir();
        let removed = if directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        Ok(removed?)
    }

    /// A file's content.
    #[track_caller]
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<Vec<u8>, Failure> {
        let path = self.at(name);
        fs::read(&path).map_err(|error| Failure::new(format!("reading {}: {error}", path.display())))
    }

    /// Whether something is there; links are not followed.
    #[must_use]
    pub fn has(&self, name: impl AsRef<OsStr>) -> bool {
        fs::symlink_metadata(self.at(name)).is_ok()
    }

    /// Everything below the root, the root included under the empty name.
    #[track_caller]
    pub fn snapshot(&self) -> Result<Snapshot, Failure> {
        Snapshot::of(&self.root)
    }
}

/// What something in a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

/// All that a layer holds about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and content.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification, in whole seconds (rounded down): archives need not state more.
    pub mtime: i64,
    /// Extended attributes that a layer must keep: `user.*` and `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name, in bytewise order, of the same inode.
    pub first_name: Vec<u8>,
}

/// A whole tree by name, relative to its root, whose name is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The names and what they are.
    pub nodes: BTreeMap<Vec<u8>, Node>,
}

impl Snapshot {
    /// Reads a tree.
    ///
    /// # Errors
    /// The first thing that cannot be read.
    #[track_caller]
    pub fn of(root: &Path) -> Result<Self, Failure> {
        let mut found = Self::default();
        let mut waiting = vec![PathBuf::new()];
        while let Some(name) = waiting.pop() {
            let path = if name.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&name) };
            let metadata = fs::symlink_metadata(&path)?;
            let kind = if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    waiting.push(name.join(entry?.file_name()));
                }
                NodeKind::Directory
            } else {
                special_or_file(&path, &metadata)?
            };
            let node = Node {
                kind,
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
                mtime: metadata.mtime(),
                xattrs: xattrs(&path)?,
                // For now its inode; names are known when all are read.
                first_name: format!("{}:{}", metadata.dev(), metadata.ino()).into_bytes(),
            };
            found.nodes.insert(name.into_os_string().into_vec(), node);
        }
        let mut first_names = BTreeMap::new();
        for (name, node) in &mut found.nodes {
            let first = first_names.entry(node.first_name.clone()).or_insert_with(|| name.clone());
            node.first_name = first.clone();
        }
        Ok(found)
    }

    /// The names without the root.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.nodes
            .keys()
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    /// What differs, one line each; empty when the trees are equal. The roots' times are left out: they are nobody's promise.
    #[must_use]
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, want) in &expected.nodes {
            let shown = String::from_utf8_lossy(name);
            match self.nodes.get(name) {
                None => lines.push(format!("/{shown} is missing")),
                Some(have) => {
                    let mut want = want.clone();
                    if name.is_empty() {
                        want.mtime = have.mtime;
                    }
                    if *have != want {
                        lines.push(format!("/{shown} is {}, expected {}", summary(have), summary(&want)));
                    }
                }
            }
        }
        for name in self.nodes.keys().filter(|name| !expected.nodes.contains_key(*name)) {
            lines.push(format!("/{} is there, but should not be", String::from_utf8_lossy(name)));
        }
        lines
    }

    /// Fails with all differences unless the trees are equal.
    #[track_caller]
    pub fn ensure_equals(&self, expected: &Self, what: &str) -> Result<(), Failure> {
        let lines = self.differences(expected);
        if lines.is_empty() { Ok(()) } else { Err(Failure::new(format!("{what}: {}", lines.join("; ")))) }
    }
}

fn summary(node: &Node) -> String {
    let kind = match &node.kind {
        NodeKind::File(content) if content.len() > 40 => format!("File({} bytes)", content.len()),
        NodeKind::File(content) => format!("File({:?})", String::from_utf8_lossy(content)),
        NodeKind::Symlink(target) => format!("Symlink({:?})", String::from_utf8_lossy(target)),
        other => format!("{other:?}"),
    };
    let xattrs: Vec<_> = node
        .xattrs
        .iter()
        .map(|(key, value)| format!("{}={:?}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)))
        .collect();
    format!(
        "{kind} {:04o} {}:{} at {} {xattrs:?} same as /{}",
        node.mode,
        node.uid,
        node.gid,
        node.mtime,
        String::from_utf8_lossy(&node.first_name)
    )
}

fn special_or_file(path: &Path, metadata: &fs::Metadata) -> Result<NodeKind, Failure> {
    let kind = metadata.file_type();
    let (major, minor) = (graph_sys::fs::major(metadata.rdev()), graph_sys::fs::minor(metadata.rdev()));
    Ok(if kind.is_symlink() {
        NodeKind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else if kind.is_fifo() {
        NodeKind::Fifo
    } else if kind.is_socket() {
        NodeKind::Socket
    } else if kind.is_char_device() {
        NodeKind::CharDevice(major, minor)
    } else if kind.is_block_device() {
        NodeKind::BlockDevice(major, minor)
    } else {
        let content = fs::read(path).map_err(|error| Failure::new(format!("reading {}: {error}", path.display())))?;
        NodeKind::File(content)
    })
}

/// `user.*` and `security.capability` of the thing itself. What overlay keeps for itself in `user.overlay.*` is not a layer's.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Failure> {
    let mut list = vec![0; 65_536];
    let length = match graph_sys::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(Failure::new(format!("listing xattrs of {}: {error}", path.display()))),
    };
    let mut found = BTreeMap::new();
    for key in list[..length].split(|byte| *byte == 0) {
        let kept = key.starts_with(b"user.") && !key.starts_with(b"user.overlay.");
        if !kept && key != b"security.capability" {
            continue;
        }
        let mut value = vec![0; 65_536];
        match graph_sys::fs::lgetxattr(path, OsStr::from_bytes(key), &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.insert(key.to_vec(), value);
            }
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::new(format!("reading an xattr of {}: {error}", path.display()))),
        }
    }
    Ok(found)
}
