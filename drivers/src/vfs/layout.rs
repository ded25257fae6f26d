//! The driver's directories, reached by descriptors.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_core::tempdir::{TempDir, TempDirRoot};
use graph_core::{Error, LayerId, Result, fsutil};
use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags};
use graph_sys::io::Errno;

use super::DRIVER;
use crate::support::context::Context;

/// Directory of the layers.
const LAYERS: &str = "dir";
/// Directory of layers on their way in or out.
const TEMP_DIRS: &str = "tempdirs";

/// One `<root>/vfs`.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    layers: OwnedFd,
}

/// A layer that was found.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its directory.
    pub(super) directory: OwnedFd,
    /// Where that is.
    pub(super) path: PathBuf,
}

impl Home {
    /// Opens the driver's home below a graph root, making what is missing (all 0700).
    pub(super) fn create(root: &Path) -> Result<Self> {
        let path = root.join(DRIVER);
        for directory in [path.clone(), path.join(LAYERS)] {
            fsutil::create_directories(&directory)?;
        }
        Self::open_at(path)
    }

    /// Opens the home of somebody else's store, to be read only. `None` when there is none of this driver.
    pub(super) fn open(root: &Path) -> Result<Option<Self>> {
        match Self::open_at(root.join(DRIVER)) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn open_at(path: PathBuf) -> Result<Self> {
        let layers = fsutil::open_directory(&path.join(LAYERS))?;
        Ok(Self { path, layers })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds the layers.
    pub(super) fn layers(&self) -> &OwnedFd {
        &self.layers
    }

    /// Where a layer is or would be.
    pub(super) fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.path.join(LAYERS).join(id.as_str())
    }

    /// Where layers on their way in or out lie.
    pub(super) fn temp_dir_root(&self) -> PathBuf {
        self.path.join(TEMP_DIRS)
    }

    /// A new temporary directory, on the same file system as the layers.
    pub(super) fn temp_dir(&self) -> Result<TempDir> {
        TempDirRoot::create(self.temp_dir_root())?.make()
    }

    /// Whether the layer is here. Only a directory counts.
    pub(super) fn has(&self, id: &LayerId) -> Result<bool> {
        match fs::statat(&self.layers, id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            // A file system that takes fewer than 255 bytes, or no such bytes, has no such layer.
            Err(Errno::NOENT | Errno::NAMETOOLONG | Errno::INVAL) => Ok(false),
            Err(error) => Err(error).at("look for", self.layer_path(id), Some(id)),
        }
    }

    /// The layer, if it is here.
    pub(super) fn find(&self, id: &LayerId) -> Result<Option<Layer>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.layer_path(id);
        match fs::openat(&self.layers, id.as_str(), flags, Mode::empty()) {
            Ok(directory) => Ok(Some(Layer { directory, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => Ok(None),
            Err(error) => Err(error).at("open", path, Some(id)),
        }
    }

    /// The layers here, in no order. What cannot be a layer is passed over.
    pub(super) fn list(&self) -> Result<Vec<LayerId>> {
        let mut found = Vec::new();
        for name in fsutil::list(&self.layers).at("list", self.path.join(LAYERS), None)? {
            let Some(id) = name.to_str().and_then(|name| LayerId::new(name).ok()) else { continue };
            if self.has(&id)? {
                found.push(id);
            }
        }
        Ok(found)
    }
}

/// All homes that layers are looked up in: the own one, the image store's, then the additional ones in order.
#[derive(Debug)]
pub(super) struct Homes {
    /// `<root>/vfs`: read-write layers, and read-only ones without a separate image store.
    pub(super) own: Home,
    /// Where read-only layers go when it is set.
    pub(super) image_store: Option<Home>,
    /// Other people's, read only.
    pub(super) additional: Vec<Home>,
}

impl Homes {
    /// Those that this driver writes to.
    pub(super) fn writable(&self) -> impl Iterator<Item = &Home> {
        std::iter::once(&self.own).chain(&self.image_store)
    }

    /// Where a new layer goes.
    pub(super) fn for_new(&self, read_write: bool) -> &Home {
        match &self.image_store {
            Some(store) if !read_write => store,
            _ => &self.own,
        }
    }

    /// Whether any of them has the layer.
    pub(super) fn have(&self, id: &LayerId) -> Result<bool> {
        for home in self.writable().chain(&self.additional) {
            if home.has(id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The layer.
    pub(super) fn layer(&self, id: &LayerId) -> Result<Layer> {
        for home in self.writable().chain(&self.additional) {
            if let Some(layer) = home.find(id)? {
                return Ok(layer);
            }
        }
        Err(Error::LayerUnknown { id: id.clone() })
    }

    /// The home among the writable ones that has the layer.
    pub(super) fn writable_home_of(&self, id: &LayerId) -> Result<Option<&Home>> {
        for home in self.writable() {
            if home.has(id)? {
                return Ok(Some(home));
            }
        }
        Ok(None)
    }

    /// The file descriptor of the own layers' directory, for calls on the file system as a whole.
    pub(super) fn file_system(&self) -> impl AsFd {
        self.own.layers.as_fd()
    }
}
