//! Files of records under one lock file: read when its token says that somebody wrote, written whole.
//!
//! Readers get the table as it was at one moment and hold no lock while they look at it. A writer holds the lock, has the
//! table to itself, and what it did becomes visible to others with [`Writing::save`] alone.
//!
//! Of a large file an index is kept ([`crate::index`]): then only the records that are asked for are read, and only those
//! that change are written, the rest is copied by the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph_core::fsutil::{self, Durability, FileStamp};
use graph_core::lockfile::{LockFile, LockGuard, Token, Wait};
use graph_sys::lock::LockKind;

use crate::dirs::Dir;
use crate::error::{Error, Result, fault};
use crate::index::{self, Base, Index, WORTH_IT};
use crate::json;
use crate::options::OnLockWait;
use crate::parts::STABLE;
use crate::table::{FileIndex, Lazy, Record, Table};

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
    /// Where the index is, and its name.
    index: Option<(Arc<Dir>, String)>,
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

#[derive(Clone, PartialEq, Eq)]
struct Seen {
    tokens: Vec<Token>,
    /// Editors and scripts change files without a token.
    stamps: Vec<Option<FileStamp>>,
}

impl Seen {
    /// What an index is valid for.
    fn key(&self) -> [u64; 2] {
        let mut words: Vec<u64> = index::boot().to_vec();
        for token in &self.tokens {
            words.push(u64::try_from(token.as_bytes().len()).unwrap_or(0));
            words.extend(token.as_bytes().iter().map(|byte| u64::from(*byte)));
        }
        for stamp in &self.stamps {
            words.extend(stamp.map_or([0; 4], |stamp| {
                [stamp.inode, stamp.size, stamp.seconds.cast_unsigned(), u64::from(stamp.nanoseconds)]
            }));
        }
        let first = index::mix(&words);
        words.push(1);
        [first, index::mix(&words)]
    }
}

impl<T: Record> Group<T> {
    pub(crate) fn new(locks: Vec<LockFile>, files: Vec<RecordFile>, on_wait: Option<OnLockWait>) -> Self {
        Self {
            locks,
            files,
            on_wait,
            index: None,
            cache: Mutex::new(Cache { seen: None, table: Arc::default() }),
            swept: AtomicBool::new(false),
        }
    }

    /// Keeps an index of that name in that directory, which a reboot may empty.
    pub(crate) fn with_index(mut self, dir: Arc<Dir>, name: String) -> Self {
        self.index = Some((dir, name));
        self
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
        let tidy = self.is_tidy(&table);
        Ok(Writing { group: self, guards, seen, table, tidy })
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
            cache.table = Arc::new(self.load(&now)?);
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

    /// The records as the files have them: by their index, or all of them.
    fn load(&self, now: &Seen) -> Result<Table<T>> {
        if let Some(table) = self.indexed(now) {
            return Ok(table);
        }
        let table = self.parse()?;
        if self.make_index(now, &table).is_some() {
            // Whoever was killed while it wrote has left an index of the past, and so comes by here.
            self.sweep();
        }
        Ok(table)
    }

    /// The large file, if there is one, and when it was written last.
    fn large(&self, now: &Seen) -> Option<(&RecordFile, FileStamp)> {
        let at = self.files.iter().position(|file| file.index == STABLE)?;
        let stamp = now.stamps.get(at).copied().flatten()?;
        (stamp.size >= WORTH_IT).then(|| Some((self.files.get(at)?, stamp)))?
    }

    fn open_index(&self, now: &Seen) -> Option<Index> {
        let (dir, name) = self.index.as_ref()?;
        Index::open(dir.open_to_change(name).ok().flatten()?, now.key())
    }

    fn indexed(&self, now: &Seen) -> Option<Table<T>> {
        let (file, stamp) = self.large(now)?;
        let index = self.open_index(now)?;
        let records = file.dir.open_file(file.name).ok().flatten()?;
        if index.header.size != stamp.size || FileStamp::of(&records).ok()? != stamp {
            return None;
        }
        let mut others = Vec::new();
        for (file, stamp) in self.files.iter().zip(&now.stamps).filter(|(file, _)| file.index != STABLE) {
            // Two large files, and everything is read.
            if stamp.is_some_and(|stamp| stamp.size >= WORTH_IT) {
                return None;
            }
            let bytes = file.dir.read(file.name).ok()?.unwrap_or_default();
            others.push((file.index, json::parse_array(bytes).ok()?));
        }
        Table::with_base(Base::new(records, index), others)
    }

    /// Makes the index for others, and for our next time. Failing costs nothing but time.
    fn make_index(&self, now: &Seen, table: &Table<T>) -> Option<()> {
        let (dir, name) = self.index.as_ref()?;
        let (_, stamp) = self.large(now)?;
        if !table.repaired.is_empty() || table.hidden().next().is_some() {
            return None;
        }
        let mut rows = Vec::new();
        let mut at: usize = 1;
        let mut unfinished: u32 = 0;
        for slot in table.loaded(STABLE) {
            let place = slot.place()?;
            // Records behind each other, with nothing but commas in between.
            if place.start != at {
                return None;
            }
            at = place.end.checked_add(1)?;
            let record = slot.get();
            unfinished = unfinished.checked_add(u32::from(record.is_unfinished()))?;
            let keys = record.keys().into_iter().map(|(key, value)| (key, value.to_owned())).collect();
            rows.push((u32::try_from(place.len()).ok()?, keys));
        }
        if u64::try_from(at).ok()? != stamp.size {
            return None;
        }
        let mut nonce = [0; 8];
        fsutil::random(&mut nonce).ok()?;
        let bytes = index::build(u64::from_le_bytes(nonce), now.key(), stamp.size, unfinished, None, &rows)?;
        dir.write(name, &bytes, Durability::None).ok()
    }

    /// The directory of data beside the records, as far as its names go.
    fn data_stamp(&self) -> Option<(u64, i64, u32)> {
        let file = self.files.iter().find(|file| file.index == STABLE)?;
        FileStamp::of(&*file.dir).ok().map(|stamp| index::tidy_stamp(&stamp))
    }

    /// Whether nothing has been put into the directory of data or taken out since everything in it belonged to a record.
    pub(crate) fn is_tidy(&self, table: &Table<T>) -> bool {
        let tidy = table.lazy.as_ref().and_then(|lazy| lazy.base.index.header.tidy);
        tidy.is_some() && tidy == self.data_stamp()
    }

    /// Notes that everything in the directory of data belongs to a record, under the lock that this was seen under.
    pub(crate) fn note_tidy(&self, guards: &Guards) -> Result<()> {
        let now = Seen { tokens: guards.tokens()?, stamps: self.stamps()? };
        if let Some(mut index) = self.open_index(&now) {
            index.header.tidy = self.data_stamp();
            // An index that cannot be written is found out by its check sum.
            let _written: Option<()> = index.commit();
        }
        Ok(())
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
    /// Whether everything in the directory of data belonged to a record when the lock was taken.
    tidy: bool,
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
        if let Some(why) = self.table.failure() {
            let path = self.group.files.first().map(|file| file.dir.path().join(file.name)).unwrap_or_default();
            return Err(Error::io("read", path, std::io::Error::other(why.to_owned())));
        }
        if self.table.lazy.is_none() {
            self.group.sweep();
        }
        let tokens = self.guards.record_write()?;
        fault("records.token-written")?;
        let mut files = files.to_vec();
        files.append(&mut self.table.repaired);
        files.sort_unstable();
        files.dedup();
        for file in &self.group.files {
            if files.contains(&file.index) {
                self.write(file, durability(file.durability))?;
                fault("records.written")?;
            }
        }
        let now = Seen { tokens, stamps: self.group.stamps()? };
        self.follow(&now, files.contains(&STABLE))?;
        self.seen = Some(now);
        Ok(())
    }

    /// Notes that what was put into the directory of data, or taken out of it, after saving belongs to what was saved.
    pub(crate) fn settled(&self) -> Result<()> {
        if self.tidy { self.group.note_tidy(&self.guards) } else { Ok(()) }
    }

    fn write(&self, file: &RecordFile, durability: Durability) -> Result<()> {
        let encode = |source| Error::Encode { path: file.dir.path().join(file.name), source };
        if file.index == STABLE
            && let Some(lazy) = &self.table.lazy
            && let Some(changes) = changes(lazy).map_err(encode)?
        {
            let mut new = Vec::new();
            for slot in self.table.loaded(STABLE) {
                let mut text = Vec::new();
                json::append(&mut text, &**slot.get()).map_err(encode)?;
                new.push(text);
            }
            let (old, size) = (&lazy.base.file, lazy.base.index.header.size);
            return file.dir.write_with(file.name, durability, |out| index::splice(out, old, size, &changes, &new));
        }
        let bytes = json::write_array(self.table.slots(file.index)).map_err(encode)?;
        file.dir.write(file.name, &bytes, durability)
    }

    /// Brings the index up to what was written, and goes on with it.
    fn follow(&mut self, now: &Seen, stable: bool) -> Result<()> {
        let Some(lazy) = &self.table.lazy else { return Ok(()) };
        let tidy = if self.tidy { self.group.data_stamp() } else { None };
        let followed = follow(&self.table, lazy, now, stable, tidy, self.group.large(now).map(|(_, stamp)| stamp.size));
        if followed.is_none()
            && let Some((dir, name)) = &self.group.index
        {
            // It is made anew when it is next looked for, even if it stays: its header is not of these records.
            dir.remove(name).ok();
        }
        if stable {
            self.table = self.group.load(now)?;
        }
        Ok(())
    }
}

/// The changes to a file of records, in its order; `None` when its index is wrong.
fn changes<T: Record>(lazy: &Lazy<T>) -> serde_json::Result<Option<Vec<index::Change>>> {
    if lazy.base.is_wrong() {
        return Ok(None);
    }
    let mut changes = Vec::new();
    let gone = lazy.gone.values().map(|gone| (gone.row, None));
    let changed = lazy.changed.values().map(|changed| (changed.was.row, Some(changed.slot.get())));
    for (row, record) in gone.chain(changed) {
        let Some((offset, length)) = row.and_then(|row| lazy.base.index.place(row)) else { return Ok(None) };
        let text = record.map(|record| json::to_vec(&**record)).transpose()?;
        changes.push(index::Change { offset, length, text });
    }
    changes.sort_unstable_by_key(|change| change.offset);
    Ok(Some(changes))
}

/// Does in the index what was done in the records.
fn follow<T: Record>(
    table: &Table<T>,
    lazy: &Lazy<T>,
    now: &Seen,
    stable: bool,
    tidy: Option<(u64, i64, u32)>,
    size: Option<u64>,
) -> Option<()> {
    if lazy.base.is_wrong() {
        return None;
    }
    let mut index = Index { file: lazy.base.index.file.try_clone().ok()?, header: lazy.base.index.header.clone() };
    index.header.key = now.key();
    index.header.size = size?;
    index.header.tidy = tidy;
    if stable {
        let text = |record: &T| json::to_vec(record).ok().and_then(|text| u32::try_from(text.len()).ok());
        let mut unfinished = i64::from(index.header.unfinished);
        for gone in lazy.gone.values() {
            index.remove(gone.row?, &gone.old.keys())?;
            unfinished = unfinished.checked_sub(i64::from(gone.old.is_unfinished()))?;
        }
        for changed in lazy.changed.values() {
            let (row, record) = (changed.was.row?, changed.slot.get());
            index.resize(row, text(record)?)?;
            let (old, new) = (changed.was.old.keys(), record.keys());
            old.iter().filter(|key| !new.contains(key)).try_for_each(|(key, value)| index.unlink(*key, value, row))?;
            new.iter().filter(|key| !old.contains(key)).try_for_each(|(key, value)| index.link(*key, value, row))?;
            unfinished = unfinished
                .checked_sub(i64::from(changed.was.old.is_unfinished()))?
                .checked_add(i64::from(record.is_unfinished()))?;
        }
        for slot in table.loaded(STABLE) {
            index.append(text(slot.get())?, &slot.get().keys())?;
            unfinished = unfinished.checked_add(i64::from(slot.get().is_unfinished()))?;
        }
        index.header.unfinished = u32::try_from(unfinished).ok()?;
    }
    index.commit()
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
