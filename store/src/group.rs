//! Files of records under one lock file: read when its token says that somebody wrote, written whole.
//!
//! Readers get the table as it was at one moment and hold no lock while they look at it. A writer holds the lock, has the
//! table to itself, and what it did becomes visible to others with [`Writing::save`] alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph_core::fsutil::{self, Durability, FileStamp};
use graph_core::lockfile::{LockFile, LockGuard, Token, Wait};
use graph_sys::lock::LockKind;

use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::json;
use crate::options::OnLockWait;
use crate::table::{FileIndex, Record, Table};

/// One file of a group.
#[derive(Debug)]
pub(crate) struct RecordFile {
    /// What the table calls it.
    pub(crate) index: FileIndex,
    pub(crate) dir: Arc<Dir>,
    pub(crate) name: &'static str,
    pub(crate) durability: Durability,
}

/// A group: the records of one kind in one store.
pub(crate) struct Group<T> {
    /// Taken in this order. A store that is split over two directories has one in each, so that whoever opens one of them
    /// as a store of its own waits for us, and sees what we wrote.
    locks: Vec<LockFile>,
    files: Vec<RecordFile>,
    on_wait: Option<OnLockWait>,
    cache: Mutex<Cache<T>>,
    swept: AtomicBool,
}

struct Cache<T> {
    /// What the table was read under; `None` when there is no table.
    seen: Option<Seen>,
    table: Arc<Table<T>>,
}

/// The held locks of a group.
#[derive(Debug)]
pub(crate) struct Guards(Vec<LockGuard>);

impl Guards {
    fn tokens(&self) -> Result<Vec<Token>> {
        Ok(self.0.iter().map(LockGuard::token).collect::<graph_core::Result<_>>()?)
    }

    fn record_write(&self) -> Result<Vec<Token>> {
        Ok(self.0.iter().map(LockGuard::record_write).collect::<graph_core::Result<_>>()?)
    }
}

#[derive(PartialEq, Eq)]
struct Seen {
    tokens: Vec<Token>,
    /// Editors and scripts change files without a token.
    stamps: Vec<Option<FileStamp>>,
}

impl<T: Record> Group<T> {
    pub(crate) fn new(locks: Vec<LockFile>, files: Vec<RecordFile>, on_wait: Option<OnLockWait>) -> Self {
        Self {
            locks,
            files,
            on_wait,
            cache: Mutex::new(Cache { seen: None, table: Arc::default() }),
            swept: AtomicBool::new(false),
        }
    }

    /// Whether it belongs to an additional store.
    pub(crate) fn is_read_only(&self) -> bool {
        self.locks.iter().any(LockFile::is_read_only)
    }

    /// Flushes the file systems of the files that outlive a crash: all that a layer has, beside its record and in the driver.
    pub(crate) fn flush_file_systems(&self) -> Result<()> {
        self.files
            .iter()
            .filter(|file| file.durability == Durability::Full)
            .try_for_each(|file| file.dir.flush_file_system())
    }

    /// The records as they are now.
    pub(crate) fn read(&self) -> Result<Arc<Table<T>>> {
        let guard = self.lock(LockKind::Shared)?;
        self.current(&guard)
    }

    /// The records as they are now, together with the lock that keeps them so.
    pub(crate) fn read_locked(&self) -> Result<(Guards, Arc<Table<T>>)> {
        let guard = self.lock(LockKind::Shared)?;
        let table = self.current(&guard)?;
        Ok((guard, table))
    }

    /// Takes the lock for writing.
    pub(crate) fn write(&self) -> Result<Writing<'_, T>> {
        let guards = self.lock(LockKind::Exclusive)?;
        let table = self.current(&guards)?;
        // The cache gives its share up, so that changing the table does not copy it.
        let mut cache = self.cache();
        let seen = cache.seen.take();
        cache.table = Arc::default();
        drop(cache);
        let table = Arc::try_unwrap(table).unwrap_or_else(|shared| (*shared).clone());
        Ok(Writing { group: self, guards, seen, table })
    }

    fn cache(&self) -> MutexGuard<'_, Cache<T>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self, kind: LockKind) -> Result<Guards> {
        let tell;
        let wait = match &self.on_wait {
            Some(on_wait) => {
                tell = |busy: &graph_core::lockfile::Busy| on_wait(busy);
                Wait::Tell(&tell)
            }
            None => Wait::Block,
        };
        Ok(Guards(self.locks.iter().map(|lock| lock.lock(kind, wait)).collect::<graph_core::Result<_>>()?))
    }

    fn current(&self, guards: &Guards) -> Result<Arc<Table<T>>> {
        let now = Seen { tokens: guards.tokens()?, stamps: self.stamps()? };
        let mut cache = self.cache();
        if cache.seen.as_ref() != Some(&now) {
            cache.seen = None;
            cache.table = Arc::new(self.parse()?);
            cache.seen = Some(now);
        }
        Ok(Arc::clone(&cache.table))
    }

    fn stamps(&self) -> Result<Vec<Option<FileStamp>>> {
        let stamp = |file: &RecordFile| {
            FileStamp::at(&*file.dir, file.name).map_err(|e| Error::io("look up", file.dir.path().join(file.name), e))
        };
        self.files.iter().map(stamp).collect()
    }

    fn parse(&self) -> Result<Table<T>> {
        let mut files = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let bytes = file.dir.read(file.name)?.unwrap_or_default();
            let slots = json::parse_array(bytes)
                .map_err(|source| Error::Corrupt { path: file.dir.path().join(file.name), source })?;
            files.push((file.index, slots));
        }
        let table = Table::from_files(files);
        if self.is_read_only()
            && let (Some((name, ..)), Some(file)) = (table.doubled_names().first(), self.files.first())
        {
            return Err(Error::DuplicateName { path: file.dir.path().join(file.name), name: name.clone() });
        }
        Ok(table)
    }

    /// Removes what killed writers left beside the files: once, by the first writer, since it reads a whole directory.
    fn sweep(&self) {
        if !self.swept.swap(true, Ordering::Relaxed) {
            for file in &self.files {
                if let Err(error) = fsutil::sweep_temporaries(&*file.dir, file.name) {
                    tracing::warn!(%error, "removing temporary files of killed writers");
                }
            }
        }
    }
}

impl<T> std::fmt::Debug for Group<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("locks", &self.locks).field("files", &self.files).finish_non_exhaustive()
    }
}

/// A group that this thread alone may change. Dropping it gives the lock back; changes that were not saved are gone.
pub(crate) struct Writing<'g, T: Record> {
    group: &'g Group<T>,
    guards: Guards,
    /// `None` once the table differs from the files.
    seen: Option<Seen>,
    table: Table<T>,
}

impl<T: Record> Writing<'_, T> {
    pub(crate) fn table(&self) -> &Table<T> {
        &self.table
    }

    /// The table, to be changed and saved.
    pub(crate) fn change(&mut self) -> &mut Table<T> {
        self.seen = None;
        &mut self.table
    }

    /// Writes these files. The token goes first: a crash in between makes others reload what has not changed.
    ///
    /// Should it fail between two files, the first is written and the second is not; memory is read anew.
    pub(crate) fn save(&mut self, files: &[FileIndex]) -> Result<()> {
        self.save_as(files, |durability| durability)
    }

    /// As [`Writing::save`], when a second save under the same lock follows: only that one has to outlive a power cut.
    /// The two are on the disk in this order.
    pub(crate) fn save_begun(&mut self, files: &[FileIndex]) -> Result<()> {
        self.save_as(files, |durability| match durability {
            Durability::Full => Durability::Data,
            less => less,
        })
    }

    fn save_as(&mut self, files: &[FileIndex], durability: impl Fn(Durability) -> Durability) -> Result<()> {
        self.seen = None;
        self.group.sweep();
        let tokens = self.guards.record_write()?;
        fault("records.token-written")?;
        let mut files = files.to_vec();
        files.append(&mut self.table.repaired);
        files.sort_unstable();
        files.dedup();
        for file in &self.group.files {
            if files.contains(&file.index) {
                let path = || file.dir.path().join(file.name);
                let bytes = json::write_array(self.table.slots(file.index))
                    .map_err(|source| Error::Encode { path: path(), source })?;
                file.dir.write(file.name, &bytes, durability(file.durability))?;
                fault("records.written")?;
            }
        }
        self.seen = Some(Seen { tokens, stamps: self.group.stamps()? });
        Ok(())
    }
}

impl<T: Record> Drop for Writing<'_, T> {
    fn drop(&mut self) {
        if let Some(seen) = self.seen.take() {
            let mut cache = self.group.cache();
            cache.table = Arc::new(std::mem::take(&mut self.table));
            cache.seen = Some(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Image;

    fn group(dir: &std::path::Path) -> Group<Image> {
        let dir = Arc::new(Dir::make(dir).unwrap());
        let locks = vec![LockFile::new(dir.path().join("a.lock")), LockFile::new(dir.path().join("b.lock"))];
        let file = |index, name| RecordFile { index, dir: Arc::clone(&dir), name, durability: Durability::None };
        Group::new(locks, vec![file(0, "a.json"), file(1, "b.json")], None)
    }

    fn image(id: &str) -> Image {
        Image { id: id.to_owned(), ..Image::default() }
    }

    #[test]
    fn records_are_read_when_somebody_wrote_and_only_then() {
        let temporary = tempfile::tempdir().unwrap();
        let (ours, theirs) = (group(temporary.path()), group(temporary.path()));
        let nothing = ours.read().unwrap();
        assert!(Arc::ptr_eq(&nothing, &ours.read().unwrap()));
        let mut writing = theirs.write().unwrap();
        writing.change().insert(image("a"), 0);
        writing.save(&[0]).unwrap();
        drop(writing);
        let seen = ours.read().unwrap();
        assert!(seen.by_id("a").is_some() && Arc::ptr_eq(&seen, &ours.read().unwrap()));
        // The writer itself has no need to read.
        let own = theirs.read().unwrap();
        assert!(Arc::ptr_eq(&own, &theirs.read().unwrap()));
        // A token alone is enough, in whichever of the lock files; so is a file alone.
        let second = LockFile::new(temporary.path().join("b.lock"));
        second.lock(LockKind::Exclusive, Wait::Block).unwrap().record_write().unwrap();
        let again = ours.read().unwrap();
        assert!(!Arc::ptr_eq(&seen, &again));
        ours.files[1].dir.write("b.json", br#"[{"id":"b"}]"#, Durability::None).unwrap();
        assert!(ours.read().unwrap().by_id("b").is_some());
        // What was changed and not saved is nobody's.
        let mut writing = ours.write().unwrap();
        writing.change().insert(image("c"), 0);
        drop(writing);
        assert!(ours.read().unwrap().by_id("c").is_none());
    }

    #[test]
    fn each_record_goes_back_to_its_file() {
        let temporary = tempfile::tempdir().unwrap();
        let group = group(temporary.path());
        let mut writing = group.write().unwrap();
        writing.change().insert(image("a"), 0);
        writing.change().insert(image("b"), 1);
        writing.save(&[0, 1]).unwrap();
        drop(writing);
        let read = |name: &str| String::from_utf8(group.files[0].dir.read(name).unwrap().unwrap()).unwrap();
        assert!(read("a.json").contains("\"a\"") && !read("a.json").contains("\"b\""));
        assert!(read("b.json").contains("\"b\"") && !read("b.json").contains("\"a\""));
    }
}
