//! The driver's directories, reached by descriptors.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_core::fsutil::{self, Durability};
use graph_core::id::InvalidId;
use graph_core::tempdir::{TempDir, TempDirRoot};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::statx;

use super::{DRIVER, MAX_LOWERS};
use crate::support::context::Context;

/// Directory of the layers' contents.
const DIFF: &str = "diff";
/// Directory of the lists of layers below.
const LAYERS: &str = "layers";
/// Directory of mount points.
const MNT: &str = "mnt";
/// Directory of layers on their way in or out.
const TEMP_DIRS: &str = "tempdirs";
/// What containers/storage's driver puts behind the name of a directory that it is about to remove.
const REMOVING: &str = "-removing";
/// The most bytes of a list of layers: four times as many names as mount, of any length.
const LIST_MAX: u64 = 128 << 10;

/// `<root>/aufs`.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    diff: OwnedFd,
    layers: OwnedFd,
    mnt: OwnedFd,
}

impl Home {
    /// Whether there is a home with layers, or one that could have some.
    pub(super) fn is_there(root: &Path) -> Result<bool> {
        let path = root.join(DRIVER).join(DIFF);
        match fs::statat(fs::CWD, &path, AtFlags::empty()) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_dir()),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error).at("look for", path, None),
        }
    }

    /// Opens the home below a graph root, making what is missing (all 0700).
    pub(super) fn create(root: &Path) -> Result<Self> {
        let path = root.join(DRIVER);
        fsutil::create_directories(&path)?;
        let make = |name: &str| fsutil::create_directories(&path.join(name));
        Ok(Self { diff: make(DIFF)?, layers: make(LAYERS)?, mnt: make(MNT)?, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the layers' contents.
    pub(super) fn diff(&self) -> &OwnedFd {
        &self.diff
    }

    pub(super) fn diff_path(&self, id: &LayerId) -> PathBuf {
        self.path.join(DIFF).join(id.as_str())
    }

    pub(super) fn list_path(&self, id: &LayerId) -> PathBuf {
        self.path.join(LAYERS).join(id.as_str())
    }

    pub(super) fn mount_path(&self, id: &LayerId) -> PathBuf {
        self.path.join(MNT).join(id.as_str())
    }

    pub(super) fn temp_dir_root(&self) -> PathBuf {
        self.path.join(TEMP_DIRS)
    }

    /// A new temporary directory, on the same file system as the layers.
    pub(super) fn temp_dir(&self) -> Result<TempDir> {
        TempDirRoot::create(self.temp_dir_root())?.make()
    }

    /// Whether there is such a layer: whether it has a list of the layers below, as containers/storage asks.
    pub(super) fn has(&self, id: &LayerId) -> Result<bool> {
        match fs::statat(&self.layers, id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG | Errno::INVAL) => Ok(false),
            Err(error) => Err(error).at("look for", self.list_path(id), Some(id)),
        }
    }

    /// The layer's content; the layer must exist.
    pub(super) fn open_diff(&self, id: &LayerId) -> Result<OwnedFd> {
        if !self.has(id)? {
            return Err(Error::LayerUnknown { id: id.clone() });
        }
        open_directory(&self.diff, id.as_str()).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Error::Corrupt {
                id: id.clone(),
                defect: format!(
                    "its directory {} is missing; delete the layer and pull it again",
                    self.diff_path(id).display()
                ),
            },
            error => Error::io("open", self.diff_path(id), Some(id), error),
        })
    }

    /// The layers below, nearest first.
    pub(super) fn parents(&self, id: &LayerId) -> Result<Vec<LayerId>> {
        let path = self.list_path(id);
        let read = fsutil::read_small(&self.layers, id.as_str(), LIST_MAX).at("read", &path, Some(id))?;
        let bytes = read.ok_or_else(|| Error::LayerUnknown { id: id.clone() })?;
        let corrupt = |defect: String| Error::Corrupt {
            id: id.clone(),
            defect: format!("{}: {defect}; restore it from a child's list, or delete the layer", path.display()),
        };
        let mut parents = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = std::str::from_utf8(line).map_err(|_| corrupt("a line is no text".to_owned()))?;
            let parent = LayerId::new(line).map_err(|_| corrupt(format!("{line:?} cannot be a layer's id")))?;
            if parent == *id || parents.contains(&parent) {
                return Err(corrupt(format!("layer {parent} is below itself")));
            }
            parents.push(parent);
        }
        Ok(parents)
    }

    /// The contents of the layers below `of`, nearest first.
    pub(super) fn open_chain(&self, of: &LayerId, chain: &[LayerId]) -> Result<Vec<OwnedFd>> {
        let missing = |id: &LayerId| Error::Corrupt {
            id: of.clone(),
            defect: format!("layer {id} below it is missing; restore that layer, or delete this one"),
        };
        let open = |id: &LayerId| match open_directory(&self.diff, id.as_str()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(missing(id)),
            opened => opened.at("open", self.diff_path(id), Some(of)),
        };
        chain.iter().map(open).collect()
    }

    /// Writes the list that makes the layer be there. After a crash it is there whole or not at all.
    pub(super) fn write_parents(&self, id: &LayerId, parents: &[LayerId], durability: Durability) -> Result<()> {
        let text: String = parents.iter().flat_map(|parent| [parent.as_str(), "\n"]).collect();
        fsutil::atomic_write(&self.layers, id.as_str(), text.as_bytes(), 0o644, durability).map(drop)
    }

    pub(super) fn remove_parents(&self, id: &LayerId) -> Result<()> {
        match fs::unlinkat(&self.layers, id.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).at("remove", self.list_path(id), Some(id)),
        }
    }

    /// The layer's mount point, made where it is missing.
    pub(super) fn make_mount_point(&self, id: &LayerId, like: &OwnedFd) -> Result<()> {
        match fs::mkdirat(&self.mnt, id.as_str(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(()),
            Err(error) => return Err(error).at("make directory", self.mount_path(id), Some(id)),
        }
        let give = || -> Result<(), Errno> {
            let stat = fs::fstat(like)?;
            let (uid, gid) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
            fs::chownat(&self.mnt, id.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            fs::chmodat(&self.mnt, id.as_str(), Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
        };
        give().at("set owner and mode of", self.mount_path(id), Some(id))
    }

    /// Removes the layer's mount point, on which nothing may be mounted.
    pub(super) fn remove_mount_point(&self, id: &LayerId) -> Result<()> {
        match fs::unlinkat(&self.mnt, id.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Somebody wrote below the mount point.
            Err(Errno::NOTEMPTY | Errno::EXIST) => graph_sys::remove::remove_tree(&self.mnt, id.as_str())
                .map_err(|error| Error::io("remove", self.mount_path(id), Some(id), std::io::Error::other(error))),
            Err(error) => Err(error).at("remove mount point", self.mount_path(id), Some(id)),
        }
    }

    /// The layers, in no order: the directories of contents, as containers/storage lists them.
    pub(super) fn list(&self) -> Result<Vec<LayerId>> {
        let mut found = Vec::new();
        for name in fsutil::list(&self.diff).at("list", self.path.join(DIFF), None)? {
            let Some(name) = name.to_str() else { continue };
            let Ok(id) = LayerId::new(name) else { continue };
            let is_directory = fs::statat(&self.diff, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
            if is_directory && !name.ends_with(REMOVING) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// The layers that have a list.
    pub(super) fn lists(&self) -> Result<Vec<LayerId>> {
        let names = fsutil::list(&self.layers).at("list", self.path.join(LAYERS), None)?;
        let ids = names.into_iter().filter_map(|name| LayerId::new(name.into_string().ok()?).ok());
        // Of a write that was interrupted.
        Ok(ids.filter(|id| !id.as_str().starts_with(".tmp-")).collect())
    }

    /// Names in `mnt/`.
    pub(super) fn mount_points(&self) -> Result<Vec<LayerId>> {
        let names = fsutil::list(&self.mnt).at("list", self.path.join(MNT), None)?;
        Ok(names.into_iter().filter_map(|name| LayerId::new(name.into_string().ok()?).ok()).collect())
    }

    /// Removes what a driver of containers/storage was removing when it was killed. What is mounted stays.
    pub(super) fn remove_leftovers(&self) {
        for (directory, name) in [(&self.mnt, MNT), (&self.diff, DIFF)] {
            let Ok(names) = fsutil::list(directory) else { continue };
            for left in names.into_iter().filter_map(|name| name.into_string().ok()) {
                if !left.ends_with(REMOVING) || is_mounted(directory, &left) {
                    continue;
                }
                if let Err(error) = graph_sys::remove::remove_tree(directory, &left) {
                    tracing::warn!(%error, path = %self.path.join(name).join(&left).display(), "removing a left-over");
                }
            }
        }
    }
}

fn is_mounted(directory: &OwnedFd, name: &str) -> bool {
    statx::metadata(directory, name.as_bytes()).is_ok_and(|status| status.is_mount_root != Some(false))
}

pub(super) fn open_directory(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses ids whose directories could be no branch, and those that would not come back from disk as they are.
pub(super) fn check_id(id: &LayerId) -> Result<()> {
    if id.as_str().ends_with(REMOVING) || id.as_str().contains([':', ',', '=', '\\']) {
        return Err(Error::InvalidId(InvalidId(id.as_str().to_owned())));
    }
    Ok(())
}

/// Refuses a stack that no mount can have.
pub(super) fn check_depth(id: &LayerId, depth: usize) -> Result<()> {
    if depth > MAX_LOWERS {
        return Err(Error::TooDeep { id: id.clone(), depth, limit: MAX_LOWERS });
    }
    Ok(())
}
