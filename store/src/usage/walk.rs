//! Looking at files: which directories belong to whom, and the threads that go through them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use graph_archive::walk::Descent;
use graph_core::fsutil;
use graph_sys::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::statfs::{self, Magic};

use super::{Owner, Space, UsageOptions};
use crate::error::{Error, Result};

/// More threads than this gain nothing on one disk.
const MOST_THREADS: usize = 8;

/// What was found of one owner.
#[derive(Debug)]
pub(super) struct Found {
    /// Inodes with one name.
    pub(super) alone: Space,
    /// Inodes with several names, which others may have, too.
    pub(super) linked: HashMap<(u64, u64), Space>,
}

impl Default for Found {
    fn default() -> Self {
        Self { alone: Space::NONE, linked: HashMap::new() }
    }
}

impl Found {
    pub(super) fn merge(&mut self, other: Self) {
        self.alone.add(&other.alone);
        self.linked.extend(other.linked);
    }

    pub(super) fn space(&self) -> Space {
        let mut all = self.alone;
        self.linked.values().for_each(|space| all.add(space));
        all
    }
}

/// The numbers of what lies in one root, by id.
pub(super) struct Owners {
    pub(super) layers: HashMap<String, usize>,
    pub(super) images: HashMap<String, usize>,
    pub(super) containers: HashMap<String, usize>,
    pub(super) root: usize,
}

/// A directory that belongs to one owner with all that is in it.
#[derive(Debug)]
pub(super) struct Job {
    directory: PathBuf,
    owner: Owner,
    root: usize,
}

/// The graph root of a store.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    device: u64,
    driver: String,
    /// Whether files have to be asked what they share.
    ask: bool,
    /// Whether the file system has said that it does not know.
    unknown: AtomicBool,
}

impl Root {
    pub(super) fn open(path: &Path, driver: &str) -> Result<Self> {
        let fd = fsutil::open_directory(path)?;
        let failed = |e| Error::io("look up", path, e);
        let device = fstat(&fd).map_err(failed)?.st_dev;
        // These never share; all others are asked, and say so if they don't know.
        let ask = !matches!(statfs::magic(&fd).map_err(failed)?, Magic::EXT | Magic::TMPFS | Magic::RAMFS);
        let driver = driver.to_owned();
        Ok(Self { fd, path: path.to_owned(), device, driver, ask, unknown: AtomicBool::new(false) })
    }

    /// Finds out which directories belong to whom; what lies beside them is counted here and now.
    pub(super) fn split(
        &self,
        owners: &Owners,
        jobs: &mut Vec<Job>,
        sums: &mut std::collections::BTreeMap<Owner, Found>,
    ) -> Result<()> {
        // (directory below the root, what its entries are)
        let mut waiting = vec![(PathBuf::new(), Place::Top)];
        while let Some((directory, place)) = waiting.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let shown = || self.path.join(&directory);
            let below = if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
            let fd = match openat(&self.fd, below, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                other => other.map_err(|e| Error::io("open", shown(), e))?,
            };
            let stat = fstat(&fd).map_err(|e| Error::io("look up", shown(), e))?;
            self.count(sums.entry(Owner::Root(owners.root)).or_default(), fd.as_fd(), None, &stat);
            for name in fsutil::list(&fd).map_err(|e| Error::io("read directory", shown(), e))? {
                let stat = match statat(&fd, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    other => other.map_err(|e| Error::io("look up", shown().join(&name), e))?,
                };
                if stat.st_dev != self.device {
                    continue;
                }
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let path = directory.join(&name);
                match place.of(&name.to_string_lossy(), &self.driver, owners, is_directory) {
                    Entry::Go(place) if is_directory => waiting.push((path, place)),
                    Entry::Of(owner) if is_directory => {
                        jobs.push(Job { directory: path, owner, root: owners.root });
                    }
                    Entry::Go(_) => {
                        let own = sums.entry(Owner::Root(owners.root)).or_default();
                        self.count(own, fd.as_fd(), Some(name.as_encoded_bytes()), &stat);
                    }
                    Entry::Of(owner) => {
                        self.count(sums.entry(owner).or_default(), fd.as_fd(), Some(name.as_encoded_bytes()), &stat);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts one inode: `name` in `directory`, or the directory itself.
    fn count(&self, found: &mut Found, directory: BorrowedFd<'_>, name: Option<&[u8]>, stat: &Stat) {
        let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let apparent = if matches!(kind, FileType::RegularFile | FileType::Symlink) { bytes(stat.st_size) } else { 0 };
        let on_disk = bytes(stat.st_blocks).saturating_mul(512);
        let mut space = Space { apparent, on_disk, reflinked: Some(0), inodes: 1 };
        let several = kind != FileType::Directory && stat.st_nlink > 1;
        let inode = (stat.st_dev, stat.st_ino);
        if several && found.linked.contains_key(&inode) {
            return;
        }
        if self.ask && kind == FileType::RegularFile && on_disk > 0 {
            space.reflinked = name.and_then(|name| self.reflinked(directory, name)).map(|shared| shared.min(on_disk));
        }
        if several {
            found.linked.insert(inode, space);
        } else {
            found.alone.add(&space);
        }
    }

    fn reflinked(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Option<u64> {
        if self.unknown.load(Ordering::Relaxed) {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let opened = openat(directory, name, flags, Mode::empty())
            .or_else(|_| openat(directory, name, flags.difference(OFlags::NOATIME), Mode::empty()));
        // What vanishes meanwhile, or is not ours to read, is left out.
        let file = opened.ok()?;
        match graph_sys::extents::shared_bytes(file) {
            Ok(Some(shared)) => Some(shared),
            Ok(None) => {
                self.unknown.store(true, Ordering::Relaxed);
                None
            }
            Err(_) => None,
        }
    }

    /// Goes through a directory and all that is in it.
    fn measure(&self, job: &Job) -> Result<Found> {
        let mut found = Found::default();
        let shown = || self.path.join(&job.directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = match openat(&self.fd, &job.directory, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(found),
            other => other.map_err(|e| Error::io("open", shown(), e))?,
        };
        let failed = |source| Error::Archive { id: job.directory.display().to_string(), source };
        let stat = fstat(&top).map_err(|e| Error::io("look up", shown(), e))?;
        self.count(&mut found, top.as_fd(), None, &stat);
        let mut buffer = DirBuffer::new();
        let mut descent = Descent::new(top.as_fd()).map_err(failed)?;
        // The names still to look at, one list per level.
        let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> =
            vec![descent.list(&mut buffer).map_err(failed)?.into_iter()];
        while let Some(level) = waiting.last_mut() {
            let Some(entry) = level.next() else {
                waiting.pop();
                descent.leave().map_err(failed)?;
                continue;
            };
            let directory = descent.directory().map_err(failed)?;
            let stat = match statat(directory, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(descent.error("look up", error))),
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.count(&mut found, directory, Some(&entry.name), &stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                match descent.enter(&entry.name) {
                    Ok(()) => waiting.push(descent.list(&mut buffer).map_err(failed)?.into_iter()),
                    Err(graph_archive::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(found)
    }
}

/// What the entries of a directory are.
#[derive(Clone, Copy, Debug)]
enum Place {
    Top,
    /// The driver's home.
    Home,
    /// A directory in it that is no layer: `dir`, `l`, `tempdirs`.
    InHome,
    LayerRecords,
    ImageRecords,
    ContainerRecords,
    Elsewhere,
}

enum Entry {
    /// A directory of the store to be looked into; a file of the store itself.
    Go(Place),
    /// All of it belongs to that owner.
    Of(Owner),
}

impl Place {
    fn of(self, name: &str, driver: &str, owners: &Owners, is_directory: bool) -> Entry {
        let layer = |id: &str| owners.layers.get(id).map(|number| Entry::Of(Owner::Layer(*number)));
        let rest = Entry::Of(Owner::Root(owners.root));
        match self {
            Self::Top => Entry::Go(match name.strip_prefix(driver) {
                Some("") => Self::Home,
                Some("-layers") => Self::LayerRecords,
                Some("-images") => Self::ImageRecords,
                Some("-containers") => Self::ContainerRecords,
                _ => Self::Elsewhere,
            }),
            Self::Home if is_directory => layer(name).unwrap_or(Entry::Go(Self::InHome)),
            Self::InHome if is_directory => layer(name).unwrap_or(rest),
            Self::LayerRecords => layer(name.strip_suffix(".tar-split.gz").unwrap_or(name)).unwrap_or(rest),
            Self::ImageRecords => owners.images.get(name).map_or(rest, |number| Entry::Of(Owner::Image(*number))),
            Self::ContainerRecords => {
                owners.containers.get(name).map_or(rest, |number| Entry::Of(Owner::Container(*number)))
            }
            Self::Home | Self::InHome | Self::Elsewhere => rest,
        }
    }
}

/// Goes through the directories, several at once.
pub(super) fn run(roots: &[Root], jobs: &[Job], options: &UsageOptions<'_>) -> Result<Vec<(Owner, Found)>> {
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if options.threads == 0 { processors() } else { options.threads };
    let threads = threads.min(MOST_THREADS).min(jobs.len()).max(1);
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results: Mutex<Result<Vec<(Owner, Found)>>> = Mutex::new(Ok(Vec::with_capacity(jobs.len())));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(root) = roots.get(job.root) else { continue };
            let found = root.measure(job);
            let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *results, found) {
                (Ok(all), Ok(found)) => all.push((job.owner, found)),
                (Ok(_), Err(error)) => {
                    *results = Err(error);
                    return;
                }
                (Err(_), _) => return,
            }
            drop(results);
            let done = done.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            if let Some(tell) = options.on_progress {
                tell(done, jobs.len());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
