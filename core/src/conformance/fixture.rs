//! A driver on an empty root, and what a place allows.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::{Change, ChangeKind};
use graph_archive::idmap::IdMappings;

use super::failure::ensure;
use super::{Checked, Failure, Member, NodeKind, Snapshot, Tree, tar};
use crate::driver::{ApplyDiffOptions, CreateOptions, DiffRequest, Driver, GetOptions, Mounted};
use crate::id::LayerId;
use crate::registry::{DriverFactory, DriverSetup};

/// What the process may do in the place of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Devices can be made (not in a user namespace).
    pub devices: bool,
    /// Files can be given to other users.
    pub owners: bool,
    /// Files can have `user.*` attributes.
    pub user_xattrs: bool,
    /// Files can have capabilities.
    pub file_capabilities: bool,
}

impl Environment {
    fn probe(directory: &Path) -> Self {
        let tree = Tree::new(directory);
        let file = tree.file("probe", b"").is_ok();
        let found = Self {
            devices: tree.device("null", NodeKind::CharDevice(1, 3)).is_ok(),
            owners: file && tree.owner("probe", 1, 2).is_ok(),
            user_xattrs: file && tree.xattr("probe", "user.probe", b"1").is_ok(),
            file_capabilities: file && tree.xattr("probe", "security.capability", &CAPABILITY).is_ok(),
        };
        for name in ["probe", "null"] {
            // Not there if it could not be made.
            drop(fs::remove_file(tree.at(name)));
        }
        found
    }
}

/// `cap_net_raw=ep` as the kernel stores it (version 2).
pub(super) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A driver opened on an empty root, with short ways to do what many cases do.
#[derive(Debug)]
pub struct Fixture {
    factory: Arc<dyn DriverFactory>,
    setup: DriverSetup,
    place: PathBuf,
    driver: Arc<dyn Driver>,
    environment: Environment,
    mounts_before_open: BTreeSet<String>,
    files_after_open: BTreeSet<PathBuf>,
}

impl Fixture {
    /// Makes `place` and opens the driver in it. The inner error is the driver's.
    pub(super) fn new(
        factory: Arc<dyn DriverFactory>,
        setup: &DriverSetup,
        place: &Path,
    ) -> io::Result<Result<Self, Failure>> {
        fs::create_dir(place)?;
        let setup = DriverSetup { root: place.join("root"), run_root: place.join("run"), ..setup.clone() };
        fs::create_dir(&setup.root)?;
        fs::create_dir(&setup.run_root)?;
        let environment = Environment::probe(&setup.root);
        let mounts_before_open = mounts_below(place)?;
        let driver = match factory.open(&setup) {
            Ok(driver) => driver,
            Err(error) => {
                fs::remove_dir_all(place)?;
                return Ok(Err(error.into()));
            }
        };
        let files_after_open = files_below(&setup.root)?;
        let place = place.to_path_buf();
        Ok(Ok(Self { factory, setup, place, driver, environment, mounts_before_open, files_after_open }))
    }

    /// The driver under test.
    #[must_use]
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// What the process may do here.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.environment
    }

    /// The case's own directory, for whatever it needs beside the driver's root.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Opens the driver once more on the same root, as another process would.
    #[track_caller]
    pub fn open_again(&self) -> Result<Arc<dyn Driver>, Failure> {
        Ok(self.factory.open(&self.setup)?)
    }

    /// Opens the driver on another root in this place, with these options beside the usual ones.
    #[track_caller]
    pub fn open_elsewhere(&self, name: &str, options: &[(&str, &str)]) -> Result<(Arc<dyn Driver>, PathBuf), Failure> {
        let mut setup = self.setup.clone();
        setup.root = self.place.join(name);
        setup.run_root = self.place.join(format!("{name}-run"));
        fs::create_dir_all(&setup.root)?;
        fs::create_dir_all(&setup.run_root)?;
        setup.options.extend(options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Ok((self.factory.open(&setup)?, setup.root))
    }

    /// The root that the driver was opened on.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.setup.root
    }

    /// Makes a read-write layer and fills it through its mount.
    #[track_caller]
    pub fn layer(
        &self,
        name: &str,
        parent: Option<&LayerId>,
        fill: impl FnOnce(&Tree) -> Checked,
    ) -> Result<LayerId, Failure> {
        let id = LayerId::new(name)?;
        self.driver.create_read_write(&id, parent, &CreateOptions::default())?;
        self.change(&id, fill)?;
        Ok(id)
    }

    /// Makes a read-only layer out of an archive.
    #[track_caller]
    pub fn layer_from(&self, name: &str, parent: Option<&LayerId>, archive: &[u8]) -> Result<LayerId, Failure> {
        let id = LayerId::new(name)?;
        self.driver.create(&id, parent, &CreateOptions::default())?;
        self.apply(&id, parent, archive)?;
        Ok(id)
    }

    /// Mounts a layer.
    #[track_caller]
    pub fn mount(&self, id: &LayerId) -> Result<(Mounted<'_>, Tree), Failure> {
        let mounted = self.driver.get(id, &GetOptions::default())?;
        let tree = Tree::new(mounted.path());
        Ok((mounted, tree))
    }

    /// Changes a layer through its mount.
    #[track_caller]
    pub fn change(&self, id: &LayerId, change: impl FnOnce(&Tree) -> Checked) -> Checked {
        let (mounted, tree) = self.mount(id)?;
        change(&tree)?;
        Ok(mounted.put()?)
    }

    /// The layer's tree.
    #[track_caller]
    pub fn snapshot(&self, id: &LayerId) -> Result<Snapshot, Failure> {
        let (mounted, tree) = self.mount(id)?;
        let found = tree.snapshot()?;
        mounted.put()?;
        Ok(found)
    }

    /// Applies an archive.
    #[track_caller]
    pub fn apply(&self, id: &LayerId, parent: Option<&LayerId>, archive: &[u8]) -> Result<ApplyReport, Failure> {
        Ok(self.driver.apply_diff(id, parent, &mut &archive[..], &mut ApplyDiffOptions::default())?)
    }

    /// The differences as an archive.
    #[track_caller]
    pub fn diff(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        let report = self.driver.diff(&request(id, parent), &mut out)?;
        ensure!(report.bytes == out.len() as u64, "diff reports {} bytes and wrote {}", report.bytes, out.len());
        Ok(out)
    }

    /// The members of the differences' archive.
    #[track_caller]
    pub fn diff_members(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<Member>, Failure> {
        tar::members(&self.diff(id, parent)?)
    }

    /// The changes, one string each: `A /path`, `C /path`, `D /path`. Fails if they are not sorted by path.
    #[track_caller]
    pub fn changes(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<String>, Failure> {
        let found = self.driver.changes(&request(id, parent))?;
        ensure!(found.is_sorted_by(|a, b| a.path < b.path), "changes are not sorted by path, or twice: {found:?}");
        Ok(found.iter().map(show).collect())
    }

    /// The size of the differences.
    #[track_caller]
    pub fn diff_size(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<u64, Failure> {
        Ok(self.driver.diff_size(&request(id, parent))?)
    }

    /// Removes all layers and checks that nothing stays behind.
    pub(super) fn finish(self) -> Checked {
        let result = self.check_end();
        drop(self.driver);
        // The place goes in any case; a failing case has said more than a failing removal could.
        let removed = fs::remove_dir_all(&self.place);
        result?;
        Ok(removed?)
    }

    fn check_end(&self) -> Checked {
        for id in self.driver.list_layers()? {
            self.driver.remove(&id)?;
        }
        let left = self.driver.list_layers()?;
        ensure!(left.is_empty(), "layers stay after removing all: {left:?}");
        let temporary: BTreeSet<_> = self.driver.temp_dir_roots().into_iter().collect();
        let files: Vec<_> = files_below(&self.setup.root)?.difference(&self.files_after_open).cloned().collect();
        let left: Vec<_> = files.iter().filter(|path| !temporary.contains(*path)).collect();
        ensure!(left.is_empty(), "files stay after removing all layers: {left:?}");
        self.driver.cleanup()?;
        let mounts: Vec<_> = mounts_below(&self.place)?.difference(&self.mounts_before_open).cloned().collect();
        ensure!(mounts.is_empty(), "mounts stay after clean-up: {mounts:?}");
        Ok(())
    }
}

/// A request with identity mappings and no label.
pub(super) fn request<'r>(id: &'r LayerId, parent: Option<&'r LayerId>) -> DiffRequest<'r> {
    static IDENTITY: IdMappings = IdMappings { uids: Vec::new(), gids: Vec::new() };
    DiffRequest { id, mappings: &IDENTITY, parent, parent_mappings: &IDENTITY, mount_label: "" }
}

fn show(change: &Change) -> String {
    let letter = match change.kind {
        ChangeKind::Modify => 'C',
        ChangeKind::Add => 'A',
        ChangeKind::Delete => 'D',
    };
    format!("{letter} {}", String::from_utf8_lossy(&change.path))
}

fn files_below(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    Ok(found)
}

/// Mount points below `place`, as mountinfo writes them.
fn mounts_below(place: &Path) -> io::Result<BTreeSet<String>> {
    let prefix = place.to_string_lossy().into_owned();
    Ok(fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}
