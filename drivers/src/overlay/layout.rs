//! The driver's home on disk, as containers/storage lays it out.
//!
//! ```text
//! <root>/overlay/              0700
//!   .has-mount-program         "false": layers were written for the kernel's overlay
//!   l/<26 chars A-Z2-7>        -> ../<id>/diff
//!   tempdirs/                  layers on their way in or out, see graph_core::tempdir
//!   <id>/                      0700, owned by the mapped root
//!     link                     name in l/, no newline, 0644
//!     lower                    "l/AAA:l/BBB", nearest parent first; absent for a layer without parent
//!     lower-layers             "<id1>:<id2>", same order
//!     diff/                    the layer's own content
//!     diff1/ diff2/ …          what it inherits, re-owned (below diff, diff1 nearest)
//!     work/ merged/            0700
//!     empty/                   0700, only without parent: the lower directory of a mount needs to be something
//! ```
//!
//! Everything is reached by directory descriptors; no component is followed if it is a symbolic link.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_archive::idmap::IdPair;
use graph_core::tempdir::{TempDir, TempDirRoot};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use graph_sys::io::Errno;
use graph_sys::xattr;

/// Directory of the short links.
pub(super) const LINKS: &str = "l";
/// Directory of layers on their way in or out.
pub(super) const TEMP_DIRS: &str = "tempdirs";
/// Directory where peers extract partial pulls.
pub(super) const STAGING: &str = "staging";
/// Tells whether a FUSE program wrote the layers.
pub(super) const HAS_MOUNT_PROGRAM: &str = ".has-mount-program";
/// Block device node of peers' project quotas.
pub(super) const BACKING_DEVICE: &str = "backingFsBlockDev";
/// Name of a layer's own link.
pub(super) const LINK: &str = "link";
/// Parents by links.
pub(super) const LOWER: &str = "lower";
/// Parents by ids.
pub(super) const LOWER_LAYERS: &str = "lower-layers";
/// A layer's content.
pub(super) const DIFF: &str = "diff";
/// The kernel's scratch directory.
pub(super) const WORK: &str = "work";
/// Mount point.
pub(super) const MERGED: &str = "merged";
/// Lower directory of a layer without parent.
pub(super) const EMPTY: &str = "empty";

pub(super) use crate::support::context::Context;

/// Mark on the root of `diff1`, see [`Layer::covers_all`]. Peers leave parts of what is below uncovered, and no mark.
pub(super) const COVERS_ALL: &[u8] = b"user.graphdriver.covers_all";

/// The most bytes that a small file of a layer may have: 500 parents of 255 bytes each fit well.
const SMALL_FILE_LIMIT: u64 = 1 << 20;

/// Turns "there is none" into `None`.
pub(super) fn optional<T>(result: std::result::Result<T, Errno>) -> std::result::Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name of a layer's short link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(String);

impl LinkId {
    /// 26 characters, as peers make them: base32 of random bytes, cut.
    pub(super) fn random() -> Result<Self> {
        let mut bytes = [0_u8; 26];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match graph_sys::rand::getrandom(rest, graph_sys::rand::GetRandomFlags::empty()) {
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("get random bytes", "", None, error)),
            }
        }
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        Ok(Self(bytes.iter().map(|b| char::from(ALPHABET[usize::from(b & 31)])).collect()))
    }

    /// Accepts any short alphanumeric name: peers' links are used as they are.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let good = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        good.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a home is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The driver's own.
    Own,
    /// The separate store of read-only layers, which the driver writes to as well.
    Images,
    /// A store that is only read.
    Additional,
}

/// An open home directory.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    pub(super) dir: OwnedFd,
    pub(super) role: Role,
}

impl Home {
    /// Opens a home for writing, making what is missing.
    pub(super) fn create(path: &Path, role: Role) -> Result<Self> {
        make_dirs(path, Mode::from_raw_mode(0o700))?;
        let dir = open_dir(fs::CWD, path).at("open the driver's home", path, None)?;
        match fs::mkdirat(&dir, LINKS, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make directory", path.join(LINKS), None, error)),
        }
        Ok(Self { path: path.to_owned(), dir, role })
    }

    /// Opens a read-only store's home; `None` when there is none.
    pub(super) fn open_additional(path: &Path) -> Result<Option<Self>> {
        let dir = optional(open_dir(fs::CWD, path)).at("open the additional image store", path, None)?;
        Ok(dir.map(|dir| Self { path: path.to_owned(), dir, role: Role::Additional }))
    }

    /// The same home, opened anew by its path.
    pub(super) fn reopened(&self) -> Result<Self> {
        let dir = open_dir(fs::CWD, &self.path).at("open the driver's home", &self.path, None)?;
        Ok(Self { path: self.path.clone(), dir, role: self.role })
    }

    /// Removes a home that nothing was put into. Anything in it, and it stays.
    pub(super) fn remove_unused(&self) {
        for name in [LINKS, TEMP_DIRS] {
            fs::unlinkat(&self.dir, name, AtFlags::REMOVEDIR).ok();
        }
        fs::unlinkat(fs::CWD, &self.path, AtFlags::REMOVEDIR).ok();
    }

    /// A new temporary directory, on the same mount as everything that is reached from [`Home::dir`].
    pub(super) fn temp_dir(&self) -> Result<TempDir> {
        TempDirRoot::create_in(&self.dir, TEMP_DIRS, self.path.join(TEMP_DIRS))?.make()
    }

    /// Whether layers here may be written.
    pub(super) fn writable(&self) -> bool {
        self.role != Role::Additional
    }

    /// The layer of that id, if it is here.
    pub(super) fn layer(&self, id: &LayerId) -> Result<Option<Layer<'_>>> {
        if reserved(id) {
            return Ok(None);
        }
        match open_dir(&self.dir, id.as_str()) {
            Ok(dir) => Ok(Some(Layer { id: id.clone(), home: self, dir })),
            // A file or a symbolic link of that name is no layer.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(Error::io("open layer directory", self.path.join(id.as_str()), Some(id), error)),
        }
    }

    /// The ids of all layers here, sorted.
    pub(super) fn list(&self) -> Result<Vec<LayerId>> {
        let mut ids = Vec::new();
        each_entry(&self.dir, |name, kind| {
            let Some(id) = std::str::from_utf8(name).ok().and_then(|name| LayerId::new(name).ok()) else {
                return Ok(());
            };
            let directory = match kind {
                FileType::Directory => true,
                FileType::Unknown => fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                _ => false,
            };
            if directory && !reserved(&id) {
                ids.push(id);
            }
            Ok(())
        })
        .at("list layers in", &self.path, None)?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Where `l/<link>` points: the layer's id, or `None` when it is missing or points anywhere else.
    pub(super) fn read_link(&self, link: &LinkId) -> Result<Option<LayerId>> {
        let name = format!("{LINKS}/{link}");
        match fs::readlinkat(&self.dir, &name, Vec::new()) {
            Ok(target) => Ok(link_target(target.to_bytes())),
            Err(Errno::NOENT | Errno::INVAL | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("read link", self.path.join(name), None, error)),
        }
    }

    /// Makes `l/<link>` point to the layer, replacing whatever is there.
    pub(super) fn write_link(&self, link: &LinkId, id: &LayerId) -> Result<()> {
        let target = format!("../{id}/{DIFF}");
        let name = format!("{LINKS}/{link}");
        let path = || self.path.join(&name);
        match fs::symlinkat(&target, &self.dir, &name) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => {
                // Somebody removed l itself.
                fs::mkdirat(&self.dir, LINKS, Mode::from_raw_mode(0o755)).at("make directory", path(), Some(id))?;
            }
            Err(error) => return Err(Error::io("make link", path(), Some(id), error)),
        }
        let fresh = format!("{LINKS}/{}", LinkId::random()?);
        fs::symlinkat(&target, &self.dir, &fresh).at("make link", self.path.join(&fresh), Some(id))?;
        fs::renameat(&self.dir, &fresh, &self.dir, &name).at("replace link", path(), Some(id))
    }

    /// Flushes the names of layers and of links.
    pub(super) fn flush_names(&self, id: &LayerId) -> Result<()> {
        let links = open_dir(&self.dir, LINKS).at("open", self.path.join(LINKS), Some(id))?;
        fs::fsync(&links).at("flush", self.path.join(LINKS), Some(id))?;
        fs::fsync(&self.dir).at("flush", &self.path, Some(id))
    }

    /// Removes `l/<link>` if it is the layer's. Missing is no error.
    pub(super) fn remove_link(&self, link: &LinkId, id: &LayerId) -> Result<()> {
        if self.read_link(link)?.as_ref() == Some(id) {
            let name = format!("{LINKS}/{link}");
            optional(fs::unlinkat(&self.dir, &name, AtFlags::empty())).at(
                "remove link",
                self.path.join(name),
                Some(id),
            )?;
        }
        Ok(())
    }

    /// All links that point to the layer. Reads the whole directory: for repair only.
    pub(super) fn links_to(&self, id: &LayerId) -> Result<Vec<LinkId>> {
        let path = self.path.join(LINKS);
        let Some(dir) = optional(open_dir(&self.dir, LINKS)).at("open", &path, None)? else { return Ok(Vec::new()) };
        let mut links = Vec::new();
        each_entry(&dir, |name, _| {
            if let Some(link) = std::str::from_utf8(name).ok().and_then(LinkId::parse) {
                match fs::readlinkat(&dir, name, Vec::new()) {
                    Ok(target) if link_target(target.to_bytes()).as_ref() == Some(id) => links.push(link),
                    Ok(_) | Err(Errno::NOENT | Errno::INVAL) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .at("read", path, Some(id))?;
        links.sort_unstable();
        Ok(links)
    }
}

/// `../<id>/diff`, and nothing else.
fn link_target(target: &[u8]) -> Option<LayerId> {
    let text = std::str::from_utf8(target).ok()?;
    let id = text.strip_prefix("../")?.strip_suffix("/diff")?;
    LayerId::new(id).ok()
}

/// Whether a name in the home is the driver's, so that no layer can have it.
pub(super) fn reserved(id: &LayerId) -> bool {
    matches!(id.as_str(), LINKS | TEMP_DIRS | STAGING | HAS_MOUNT_PROGRAM | BACKING_DEVICE)
}

/// A layer's open directory.
#[derive(Debug)]
pub(super) struct Layer<'h> {
    pub(super) id: LayerId,
    pub(super) home: &'h Home,
    pub(super) dir: OwnedFd,
}

impl Layer<'_> {
    /// The layer's directory, for messages and records.
    pub(super) fn path(&self) -> PathBuf {
        self.home.path.join(self.id.as_str())
    }

    /// Opens a directory of the layer; `None` when there is none.
    pub(super) fn open_optional(&self, name: &str) -> Result<Option<OwnedFd>> {
        optional(open_dir(&self.dir, name)).at("open", self.path().join(name), Some(&self.id))
    }

    /// Opens a directory of the layer.
    pub(super) fn open(&self, name: &str) -> Result<OwnedFd> {
        open_dir(&self.dir, name).at("open", self.path().join(name), Some(&self.id))
    }

    /// What the layer inherits re-owned, nearest first: `diff1`, `diff2`, …; mostly nothing.
    pub(super) fn inherited(&self) -> Result<Vec<(String, OwnedFd)>> {
        let all = inherited(&self.dir).at("open the re-owned content of", self.path(), Some(&self.id))?;
        Ok((1_u32..).map(|n| format!("{DIFF}{n}")).zip(all).collect())
    }

    /// Whether what the layer inherits re-owned is all there is below it, so that nothing of the layers below shows.
    pub(super) fn covers_all(&self) -> Result<bool> {
        let Some(first) = self.open_optional(&format!("{DIFF}1"))? else { return Ok(false) };
        match xattr::get(&first, COVERS_ALL) {
            Ok(mark) => Ok(mark.is_some()),
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(Error::io("read attributes of", self.path().join("diff1"), Some(&self.id), error)),
        }
    }

    /// A small file's text; `None` when there is none, or what is wrong with it.
    pub(super) fn read_small(&self, name: &str) -> Result<Small> {
        read_small(&self.dir, name).at("read", self.path().join(name), Some(&self.id))
    }

    /// Replaces a small file in one step, and makes it durable: it is written when it has been lost before.
    pub(super) fn replace_small(&self, name: &str, text: &str) -> Result<()> {
        let fresh = format!(".{name}-{}", LinkId::random()?);
        let path = self.path().join(name);
        write_small(&self.dir, &fresh, text, None, Flush::Wait).at("write", &path, Some(&self.id))?;
        fs::renameat(&self.dir, &fresh, &self.dir, name).at("replace", &path, Some(&self.id))?;
        fs::fsync(&self.dir).at("fsync", path, Some(&self.id))
    }
}

/// What a small file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Small {
    /// There is no such file.
    Absent,
    /// It cannot be right: empty (as a power loss leaves it), too long, or not text.
    Damaged(&'static str),
    /// Its text.
    Text(String),
}

pub(super) fn read_small(dir: impl AsFd, name: &str) -> std::io::Result<Small> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Some(fd) = optional(fs::openat(dir, name, flags, Mode::empty()))? else { return Ok(Small::Absent) };
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(SMALL_FILE_LIMIT).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == SMALL_FILE_LIMIT {
        return Ok(Small::Damaged("too long"));
    }
    Ok(match String::from_utf8(bytes) {
        Err(_) => Small::Damaged("not text"),
        Ok(text) => match text.trim() {
            "" => Small::Damaged("empty"),
            text if text.contains('\0') => Small::Damaged("full of zeros"),
            text => Small::Text(text.to_owned()),
        },
    })
}

/// When a small file is to be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// Whenever the system likes; somebody flushes the file system later, or it need not survive a crash.
    No,
    /// Soon: writing begins, nothing waits for its end.
    Begin,
    /// Before the call returns.
    Wait,
}

/// Writes a new small file, mode 0644 whatever the umask.
pub(super) fn write_small(
    dir: impl AsFd,
    name: &str,
    text: &str,
    owner: Option<IdPair>,
    flush: Flush,
) -> std::io::Result<()> {
    create_small(dir, name, text, owner, flush).map(drop)
}

/// As [`write_small`]; the file stays open, to be flushed later.
pub(super) fn create_small(
    dir: impl AsFd,
    name: &str,
    text: &str,
    owner: Option<IdPair>,
    flush: Flush,
) -> std::io::Result<std::fs::File> {
    use std::io::Write;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(text.as_bytes())?;
    fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
    if let Some(owner) = owner {
        own(&file, owner)?;
    }
    match flush {
        Flush::No => {}
        // Only a hint: where it is refused, the file is written later.
        Flush::Begin => drop(graph_sys::sync::start_writeback(&file, 0, 0)),
        Flush::Wait => fs::fsync(&file)?,
    }
    Ok(file)
}

/// Opens a directory without following a link in its place.
pub(super) fn open_dir(dir: impl AsFd, name: impl AsRef<Path>) -> std::result::Result<OwnedFd, Errno> {
    fs::openat(
        dir,
        name.as_ref(),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Makes one directory with exactly this mode and owner, and opens it.
pub(super) fn make_dir(dir: impl AsFd, name: &str, mode: u32, owner: IdPair) -> std::result::Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))?;
    let made = open_dir(dir, name)?;
    own(&made, owner)?;
    // After the owner: changing that takes set-id bits away. And whatever the umask.
    fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))?;
    Ok(made)
}

/// Gives a file to its owner, without a call where that is so already.
pub(super) fn own(file: impl AsFd, owner: IdPair) -> std::result::Result<(), Errno> {
    let stat = fs::fstat(&file)?;
    if (stat.st_uid, stat.st_gid) == (owner.uid, owner.gid) {
        return Ok(());
    }
    fs::fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
}

/// The directories `diff1`, `diff2`, … of a layer.
pub(super) fn inherited(layer: impl AsFd) -> std::result::Result<Vec<OwnedFd>, Errno> {
    let mut all = Vec::new();
    for n in 1_u32.. {
        match optional(open_dir(&layer, format!("{DIFF}{n}")))? {
            Some(dir) => all.push(dir),
            None => break,
        }
    }
    Ok(all)
}

/// Makes a directory and its missing parents.
pub(super) fn make_dirs(path: &Path, mode: Mode) -> Result<()> {
    match fs::mkdirat(fs::CWD, path, mode) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            match parent {
                Some(parent) => make_dirs(parent, mode)?,
                None => return Err(Error::io("make directory", path, None, Errno::NOENT)),
            }
            match fs::mkdirat(fs::CWD, path, mode) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(Error::io("make directory", path, None, error)),
            }
        }
        Err(error) => Err(Error::io("make directory", path, None, error)),
    }
}

/// Calls `visit` for every entry but `.` and `..`.
pub(super) fn each_entry(
    dir: impl AsFd,
    mut visit: impl FnMut(&[u8], FileType) -> std::result::Result<(), Errno>,
) -> std::result::Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            visit(name, entry.file_type())?;
        }
    }
    Ok(())
}
