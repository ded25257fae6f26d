//! The store: opening it, and what its parts share.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_core::driver::Driver;
use graph_core::fsutil::{self, Durability};
use graph_core::lockfile::{Busy, LockFile, LockGuard, Wait};
use graph_core::options::{DriverOption, canonical};
use graph_core::registry::{DriverSetup, Registry};
use graph_core::select::{SelectRequest, Selection};
use graph_core::{ErrorKind as DriverErrorKind, LayerId, driver};
use graph_sys::lock::LockKind;

use crate::convert;
use crate::dirs::Dir;
use crate::error::{Error, Result};
use crate::group::Group;
use crate::options::StoreOptions;
use crate::parts::Opener;
pub(crate) use crate::parts::{Additional, IMAGE_STORE, Part, STABLE, VOLATILE, VOLATILE_CONTAINERS};
use crate::records::{Container, Image, Layer, MountPoint};
use crate::table::{FileIndex, Record, Table};

/// Which store a record lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    Own,
    /// The graph root's images, where there is a separate image store.
    GraphRoot,
    /// An additional one, by its number.
    Additional(usize),
}

/// A record as it was when it was looked up, and where it lies.
#[derive(Clone, Debug)]
pub struct Stored<T> {
    record: Arc<T>,
    home: Home,
}

impl<T> Stored<T> {
    pub(crate) fn new(record: &Arc<T>, home: Home) -> Self {
        Self { record: Arc::clone(record), home }
    }

    pub(crate) fn home(&self) -> Home {
        self.home
    }

    /// Whether it lies in an additional, read-only store.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.home, Home::Additional(_))
    }

    /// The record itself; it serialises to the peers' JSON.
    #[must_use]
    pub fn record(&self) -> &Arc<T> {
        &self.record
    }
}

impl<T> Deref for Stored<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.record
    }
}

/// An open store. Usable from several threads at once; several processes may have it open.
///
/// Wherever a layer, image or container is asked for by `&str`, that is its id, else one of its names, else a prefix of
/// exactly one id.
#[derive(Debug)]
pub struct Store {
    pub(crate) options: StoreOptions,
    selection: Selection,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) layers: Part<Layer>,
    pub(crate) mounts: Group<MountPoint>,
    /// storage.lock: what the driver's home has mounted on it changes under it.
    pub(crate) graph_lock: LockFile,
    /// New images go here.
    pub(crate) images: Part<Image>,
    /// The graph root's images, where new ones go to a separate image store.
    pub(crate) root_images: Option<Part<Image>>,
    pub(crate) containers: Part<Container>,
    /// `<run root>/<driver>-containers`, made when it is first needed.
    pub(crate) run_containers: PathBuf,
    /// `<run root>/<driver>-images`, likewise.
    pub(crate) run_images: PathBuf,
    pub(crate) additional: Vec<Additional>,
    pub(crate) warnings: Vec<String>,
}

impl Store {
    /// Opens the store, making what is missing, and cleans up what killed processes left behind.
    ///
    /// A clean-up that fails does not make the store unusable; see [`Store::warnings`].
    ///
    /// # Errors
    /// Driver selection's and configuration's; I/O; damaged records.
    pub fn open(options: StoreOptions, registry: &Registry) -> Result<Self> {
        for (what, path) in [
            ("graph root", Some(&options.root)),
            ("run root", Some(&options.run_root)),
            ("image store", options.image_store.as_ref()),
        ] {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(Error::InvalidArgument {
                    problem: format!("the {what} must be an absolute path, and is {path:?}"),
                });
            }
        }
        if options.image_store.as_ref() == Some(&options.root) {
            return Err(Error::InvalidArgument {
                problem: format!("imagestore {:?} must be another directory than the graph root", options.root),
            });
        }
        let root = Dir::make(&options.root)?;
        let run_root = Dir::make(&options.run_root)?;
        let graph_lock = LockFile::new(options.root.join("storage.lock"));
        let mut is_new = false;
        refuse_converted(&root, &options)?;
        let selection = {
            let guard = lock_for_opening(&graph_lock, &root, &options)?;
            let selection = registry.select(&select_request(&options))?;
            if let Some(guard) = guard
                && guard.token()?.as_bytes().is_empty()
            {
                guard.record_write()?;
                is_new = true;
            }
            selection
        };
        let driver = Arc::clone(&selection.driver);
        let mut options = options;
        if asks_for_no_sync(&options.driver_options, driver.name()) {
            options.durability = crate::options::Durability::RecordsOnly;
        }
        if root.open_file("userns.lock")?.is_none() {
            drop(LockFile::new(options.root.join("userns.lock")).lock(LockKind::Shared, Wait::Block)?);
        }

        let name = driver.name().to_owned();
        let opener = Opener::new(&options, &name, &root, &run_root)?;
        let layers = opener.layers()?;
        let mounts = opener.mounts()?;
        let images = opener.images()?;
        let root_images = opener.root_images()?;
        let containers = opener.containers()?;
        let additional = opener.additional(driver.additional_image_stores())?;
        let run_containers = options.run_root.join(format!("{name}-containers"));
        if is_new && options.durability == crate::options::Durability::Full {
            opener.flush()?;
        }
        let run_images = options.run_root.join(format!("{name}-images"));
        let mut store = Self {
            options,
            selection,
            driver,
            layers,
            mounts,
            graph_lock,
            images,
            root_images,
            containers,
            run_containers,
            run_images,
            additional,
            warnings: Vec::new(),
        };
        if !store.options.leave_left_overs {
            store.warnings = store.recover()?;
        }
        Ok(store)
    }

    /// The graph root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.options.root
    }

    /// The run root.
    #[must_use]
    pub fn run_root(&self) -> &Path {
        &self.options.run_root
    }

    /// The options it was opened with.
    #[must_use]
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// The driver in use.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn driver::Driver> {
        &self.driver
    }

    /// Why this driver was chosen, what became of the others, and what file system is below.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What could not be cleaned up at opening, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// `Root`, `Run Root`, `Driver Name`, `Driver Options`, then the driver's own pairs.
    ///
    /// # Errors
    /// The driver's.
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        let pair = |key: &str, value: String| (key.to_owned(), value);
        let mut status = vec![
            pair("Root", self.root().display().to_string()),
            pair("Run Root", self.run_root().display().to_string()),
            pair("Driver Name", self.driver.name().to_owned()),
            pair("Driver Options", format!("[{}]", self.own_driver_options().join(" "))),
        ];
        status.extend(self.driver.status()?);
        Ok(status)
    }

    /// Takes storage.lock, waiting for as long as it takes.
    pub(crate) fn lock_graph(&self) -> Result<LockGuard> {
        wait_for(&self.graph_lock, &self.options)
    }

    /// The driver options that are for the driver in use. A configuration may have some for others.
    fn own_driver_options(&self) -> Vec<&str> {
        let name = self.driver.name();
        let is_own = |option: &&String| {
            let parsed = DriverOption::parse(option).ok().and_then(|parsed| parsed.driver);
            parsed.is_none_or(|driver| canonical(&driver.to_ascii_lowercase()) == canonical(name))
        };
        self.options.driver_options.iter().filter(is_own).map(String::as_str).collect()
    }

    /// How hard records of a file are pushed to disk.
    pub(crate) fn durability(&self, file: FileIndex) -> Durability {
        crate::parts::durability(file, self.options.durability)
    }

    /// Refuses to change what lies in an additional store.
    pub(crate) fn writable<T>(&self, object: &Stored<T>, what: impl FnOnce() -> String) -> Result<()> {
        match object.home() {
            Home::Own | Home::GraphRoot => Ok(()),
            Home::Additional(n) => {
                let store = self.additional.get(n).map(|store| store.root.clone()).unwrap_or_default();
                Err(Error::ReadOnlyStore { what: what(), store })
            }
        }
    }
}

/// Takes storage.lock, so that two processes that open a new store at the same time do not make the driver's home at the
/// same time. A store that is made already is opened without: peers hold this lock for as long as they write a diff.
fn lock_for_opening(lock: &LockFile, root: &Dir, options: &StoreOptions) -> Result<Option<LockGuard>> {
    match lock.lock(LockKind::Exclusive, Wait::Fail) {
        Err(error) if error.kind() == DriverErrorKind::Locked => {}
        // Nobody makes anything on a read-only file system.
        Err(graph_core::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            return Ok(None);
        }
        other => return Ok(Some(other?)),
    }
    if root.read("storage.lock")?.is_some_and(|token| !token.is_empty()) {
        return Ok(None);
    }
    wait_for(lock, options).map(Some)
}

pub(crate) fn wait_for(lock: &LockFile, options: &StoreOptions) -> Result<LockGuard> {
    let tell;
    let wait = match &options.on_lock_wait {
        Some(on_wait) => {
            tell = |busy: &Busy| on_wait(busy);
            Wait::Tell(&tell)
        }
        None => Wait::Block,
    };
    Ok(lock.lock(LockKind::Exclusive, wait)?)
}

/// Whether the driver's option `sync=none` is set: then the store does no more than its peers, either.
fn asks_for_no_sync(options: &[String], driver: &str) -> bool {
    let own = |option: &DriverOption<'_>| {
        option.key.eq_ignore_ascii_case("sync")
            && option.driver.is_none_or(|prefix| canonical(&prefix.to_ascii_lowercase()) == canonical(driver))
    };
    let last = options.iter().filter_map(|option| DriverOption::parse(option).ok()).rfind(own);
    last.is_some_and(|option| option.value == "none")
}

/// Completes a conversion that was interrupted at its very end, and refuses to begin an empty store of the driver that the
/// store was converted from.
fn refuse_converted(root: &Dir, options: &StoreOptions) -> Result<()> {
    let finished = convert::finish_interrupted(root, options)?;
    let Some(driver) = options.driver.as_deref().map(canonical) else { return Ok(()) };
    match finished {
        Some(finished) if finished.from == driver => {
            Err(Error::WasConverted { from: finished.from, to: Some(finished.to), old: finished.old })
        }
        _ => match convert::was_converted(root, driver)? {
            Some(old) => Err(Error::WasConverted { from: driver.to_owned(), to: None, old: Some(old) }),
            None => Ok(()),
        },
    }
}

pub(crate) fn select_request(options: &StoreOptions) -> SelectRequest {
    SelectRequest {
        name: options.driver.clone(),
        priority: options.driver_priority.clone(),
        options: options.driver_options.clone(),
        setup: DriverSetup {
            root: options.root.clone(),
            run_root: options.run_root.clone(),
            image_store: options.image_store.clone(),
            options: Vec::new(),
            rootless: options.rootless,
            disable_id_mapped_mounts: options.disable_id_mapped_mounts,
        },
    }
}

/// Looks a record up in several stores, the first that has it. A record whose id an earlier store has, too, is hidden by
/// that one: names that were taken from the copy are gone.
pub(crate) fn find_in<T: Record>(tables: &[(Home, Arc<Table<T>>)], reference: &str) -> Option<Stored<T>> {
    find_in_by(tables, |table| table.find(reference))
}

/// The same with another way to look it up.
pub(crate) fn find_in_by<T: Record>(
    tables: &[(Home, Arc<Table<T>>)],
    find: impl Fn(&Table<T>) -> Option<&Arc<T>>,
) -> Option<Stored<T>> {
    tables.iter().enumerate().find_map(|(n, (home, table))| {
        let found = find(table)?;
        let hidden = tables.iter().take(n).any(|(_, earlier)| earlier.by_id(found.id()).is_some());
        (!hidden).then(|| Stored::new(found, *home))
    })
}

/// 64 random hex digits of which the first twelve are not all decimal: a short form must not look like a number.
pub(crate) fn random_id() -> Result<LayerId> {
    loop {
        let mut bytes = [0_u8; 32];
        fsutil::random(&mut bytes).map_err(|e| Error::io("get random bytes for an ID", "", e))?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if !id.bytes().take(12).all(|digit| digit.is_ascii_digit()) {
            return Ok(LayerId::new(id)?);
        }
    }
}

/// The id asked for, checked, or a random one.
///
/// Besides what no path component may be, names that the store itself uses beside its layers' directories are refused.
pub(crate) fn new_id(asked: Option<&str>) -> Result<LayerId> {
    let Some(asked) = asked.filter(|id| !id.is_empty()) else { return random_id() };
    let id = LayerId::new(asked)?;
    let reserved = ["tmp", "l", "staging", "tempdirs", "dir", "backingFsBlockDev"];
    let endings = [".json", ".lock", ".tar-split.gz"];
    if asked.starts_with('.') || reserved.contains(&asked) || endings.iter().any(|ending| asked.ends_with(ending)) {
        return Err(graph_core::id::InvalidId(asked.to_owned()).into());
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_64_hex_digits() {
        let (a, b) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 64);
        assert!(a.as_str().bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
    }

    #[test]
    fn ids_that_would_hit_the_stores_own_files_are_refused() {
        for bad in
            ["../x", "a/b", ".", "..", "layers.json", "layers.lock", "x.tar-split.gz", "tmp", "l", ".tmp-1", "a\nb"]
        {
            assert!(new_id(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(new_id(Some("layer-gzip")).unwrap().as_str(), "layer-gzip");
        assert_eq!(new_id(Some("")).unwrap().as_str().len(), 64);
    }
}
