//! The parts of a store: the records of each kind with their lock files, and the directories of their data.
//!
//! ```text
//! graph root            D-layers/     layers.json, volatile-layers.json; big data and tar-split of all layers
//!                       D-images/     images.json        (read and written beside the image store's, where there is one)
//!                       D-containers/ containers.json, volatile-containers.json
//! image store           D-layers/     layers.json of the layers that are not written to
//!                       D-images/     images.json
//! run root              D-layers/     mountpoints.json;  transient: volatile-layers.json
//!                       D-containers/                    transient: volatile-containers.json, containers.lock
//! additional stores     D-layers/, D-images/             only read, never locked for writing, nothing is made in them
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_core::fsutil::Durability;
use graph_core::lockfile::LockFile;

use crate::dirs::Dir;
use crate::error::Result;
use crate::group::{Group, RecordFile};
use crate::options::{self, StoreOptions};
use crate::records::{Container, Image, Layer, MountPoint};
use crate::table::{FileIndex, Record};

/// The file of records that outlive a crash.
pub(crate) const STABLE: FileIndex = 0;
/// The file of layers that nobody writes to, in a separate image store.
pub(crate) const IMAGE_STORE: FileIndex = 1;
/// The file of records that a crash may lose.
pub(crate) const VOLATILE: FileIndex = 2;

/// The file of containers that a crash may lose.
pub(crate) const VOLATILE_CONTAINERS: &str = "volatile-containers.json";

/// Records of one kind, and the directory of their data.
#[derive(Debug)]
pub(crate) struct Part<T> {
    pub(crate) dir: Arc<Dir>,
    pub(crate) records: Group<T>,
}

/// An additional, read-only store.
#[derive(Debug)]
pub(crate) struct Additional {
    pub(crate) root: PathBuf,
    pub(crate) layers: Option<Part<Layer>>,
    pub(crate) images: Option<Part<Image>>,
}

/// Makes and opens the parts of a store.
#[derive(Debug)]
pub(crate) struct Opener<'o> {
    options: &'o StoreOptions,
    driver: &'o str,
    root: &'o Dir,
    run_root: &'o Dir,
    image_store: Option<Dir>,
}

impl<'o> Opener<'o> {
    pub(crate) fn new(options: &'o StoreOptions, driver: &'o str, root: &'o Dir, run_root: &'o Dir) -> Result<Self> {
        let image_store = options.image_store.as_deref().map(Dir::make).transpose()?;
        Ok(Self { options, driver, root, run_root, image_store })
    }

    fn file(&self, index: FileIndex, dir: &Arc<Dir>, name: &'static str) -> RecordFile {
        RecordFile { index, dir: Arc::clone(dir), name, durability: durability(index, self.options.durability) }
    }

    /// Flushes the directories just made, the driver's too.
    pub(crate) fn flush(&self) -> Result<()> {
        self.root.flush_file_system()?;
        self.image_store.as_ref().map_or(Ok(()), Dir::flush_file_system)
    }

    fn name(&self, kind: &str) -> String {
        format!("{}-{kind}", self.driver)
    }

    fn group<T: Record>(&self, locks: Vec<PathBuf>, files: Vec<RecordFile>) -> Group<T> {
        Group::new(locks.into_iter().map(LockFile::new).collect(), files, self.options.on_lock_wait.clone())
    }

    /// As [`Opener::group`], with an index in the run root.
    fn indexed<T: Record>(&self, kind: &str, locks: Vec<PathBuf>, files: Vec<RecordFile>) -> Result<Group<T>> {
        let dir = Arc::new(self.run_root.make_dir(&self.name("layers"))?);
        Ok(self.group(locks, files).with_index(dir, format!("{kind}.index")))
    }

    /// Where the volatile records of a kind are.
    fn volatile_dir(&self, kind: &str, stable: &Arc<Dir>) -> Result<Arc<Dir>> {
        if self.options.transient {
            Ok(Arc::new(self.run_root.make_dir(&self.name(kind))?))
        } else {
            Ok(Arc::clone(stable))
        }
    }

    pub(crate) fn layers(&self) -> Result<Part<Layer>> {
        let dir = Arc::new(self.root.make_dir(&self.name("layers"))?);
        let mut locks = vec![dir.path().join("layers.lock")];
        let mut files = vec![self.file(STABLE, &dir, "layers.json")];
        if let Some(store) = &self.image_store {
            let dir = Arc::new(store.make_dir(&self.name("layers"))?);
            locks.push(dir.path().join("layers.lock"));
            files.push(self.file(IMAGE_STORE, &dir, "layers.json"));
        }
        files.push(self.file(VOLATILE, &self.volatile_dir("layers", &dir)?, "volatile-layers.json"));
        Ok(Part { dir, records: self.indexed("layers", locks, files)? })
    }

    pub(crate) fn mounts(&self) -> Result<Group<MountPoint>> {
        let dir = Arc::new(self.run_root.make_dir(&self.name("layers"))?);
        let file = RecordFile { durability: Durability::None, ..self.file(STABLE, &dir, "mountpoints.json") };
        Ok(self.group(vec![dir.path().join("mountpoints.lock")], vec![file]))
    }

    /// The images that new ones are put beside.
    pub(crate) fn images(&self) -> Result<Part<Image>> {
        self.images_in(self.image_store.as_ref().unwrap_or(self.root))
    }

    /// The graph root's own images, where new ones go to a separate store.
    pub(crate) fn root_images(&self) -> Result<Option<Part<Image>>> {
        self.image_store.is_some().then(|| self.images_in(self.root)).transpose()
    }

    fn images_in(&self, root: &Dir) -> Result<Part<Image>> {
        let dir = Arc::new(root.make_dir(&self.name("images"))?);
        let (locks, files) = (vec![dir.path().join("images.lock")], vec![self.file(STABLE, &dir, "images.json")]);
        // A store that is split has two of them.
        let kind = if std::ptr::eq(root, self.root) { "images" } else { "image-store" };
        Ok(Part { dir, records: self.indexed(kind, locks, files)? })
    }

    pub(crate) fn containers(&self) -> Result<Part<Container>> {
        let dir = Arc::new(self.root.make_dir(&self.name("containers"))?);
        let volatile = self.volatile_dir("containers", &dir)?;
        let lock = volatile.path().join("containers.lock");
        let files =
            vec![self.file(STABLE, &dir, "containers.json"), self.file(VOLATILE, &volatile, VOLATILE_CONTAINERS)];
        Ok(Part { dir, records: self.indexed("containers", vec![lock], files)? })
    }

    /// Additional stores. The store's own directories are none, whoever names them so.
    pub(crate) fn additional(&self, roots: Vec<PathBuf>) -> Result<Vec<Additional>> {
        let own = |root: &PathBuf| *root == self.options.root || Some(root) == self.options.image_store.as_ref();
        roots.into_iter().filter(|root| !own(root)).map(|root| open_additional(root, self.driver)).collect()
    }
}

/// How hard the records of a file are pushed to disk.
pub(crate) fn durability(file: FileIndex, wanted: options::Durability) -> Durability {
    match (file, wanted) {
        (VOLATILE, _) => Durability::None,
        (_, options::Durability::Full) => Durability::Full,
        (_, options::Durability::RecordsOnly) => Durability::Data,
    }
}

fn open_additional(root: PathBuf, driver: &str) -> Result<Additional> {
    let layers = open_read_only_part(&root, driver, "layers", "layers.lock", "layers.json")?;
    let images = open_read_only_part(&root, driver, "images", "images.lock", "images.json")?;
    Ok(Additional { root, layers, images })
}

fn open_read_only_part<T: Record>(
    root: &Path,
    driver: &str,
    kind: &str,
    lock: &str,
    name: &'static str,
) -> Result<Option<Part<T>>> {
    let Some(dir) = Dir::open(&root.join(format!("{driver}-{kind}")))? else { return Ok(None) };
    let dir = Arc::new(dir);
    let file = RecordFile { index: STABLE, dir: Arc::clone(&dir), name, durability: Durability::None };
    let records = Group::new(vec![LockFile::read_only(dir.path().join(lock))], vec![file], None);
    Ok(Some(Part { dir, records }))
}
