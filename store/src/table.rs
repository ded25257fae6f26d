//! The records of one kind in memory, as one or several files said them, with what is needed to find them.
//!
//! Of a large file only those that are asked for are in memory, as long as there is an index of it ([`crate::index`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::index::{Base, Key, PREFIX};
use crate::json::Slot;
use crate::parts::STABLE;
use crate::records::{Container, Image, Layer, MountPoint};

/// What the tables need to know of a record.
pub(crate) trait Record: Clone + Serialize + DeserializeOwned {
    fn id(&self) -> &str;
    fn names(&self) -> &[String];
    fn names_mut(&mut self) -> Option<&mut Vec<String>>;
    /// What it is looked up by, besides id and names.
    fn more_keys(&self) -> Vec<(Key, &str)> {
        Vec::new()
    }
    /// Whether it is marked as one that a killed process left unfinished.
    fn is_unfinished(&self) -> bool {
        false
    }
    /// All that it is looked up by.
    fn keys(&self) -> Vec<(Key, &str)> {
        let mut keys = vec![(Key::Id, self.id())];
        keys.extend(self.id().get(..PREFIX).map(|prefix| (Key::Prefix, prefix)));
        keys.extend(self.names().iter().map(|name| (Key::Name, name.as_str())));
        keys.extend(self.more_keys().into_iter().filter(|(_, value)| !value.is_empty()));
        keys
    }
}

impl Record for Layer {
    fn id(&self) -> &str {
        &self.id
    }
    fn names(&self) -> &[String] {
        &self.names
    }
    fn names_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.names)
    }
    fn more_keys(&self) -> Vec<(Key, &str)> {
        vec![
            (Key::Uses, &self.parent),
            (Key::Digest, &self.diff_digest),
            (Key::CompressedDigest, &self.compressed_digest),
            (Key::TocDigest, &self.toc_digest),
        ]
    }
    fn is_unfinished(&self) -> bool {
        self.is_incomplete()
    }
}

impl Record for Image {
    fn id(&self) -> &str {
        &self.id
    }
    fn names(&self) -> &[String] {
        &self.names
    }
    fn names_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.names)
    }
    fn more_keys(&self) -> Vec<(Key, &str)> {
        let mut tops: Vec<&str> = self.top_layers().collect();
        tops.sort_unstable();
        tops.dedup();
        let digests = self.digests().into_iter().map(|digest| (Key::Digest, digest));
        tops.into_iter().map(|top| (Key::Uses, top)).chain(digests).collect()
    }
}

impl Record for Container {
    fn id(&self) -> &str {
        &self.id
    }
    fn names(&self) -> &[String] {
        &self.names
    }
    fn names_mut(&mut self) -> Option<&mut Vec<String>> {
        Some(&mut self.names)
    }
    fn more_keys(&self) -> Vec<(Key, &str)> {
        vec![(Key::Alias, &self.layer), (Key::Uses, &self.image)]
    }
}

impl Record for MountPoint {
    fn id(&self) -> &str {
        &self.id
    }
    fn names(&self) -> &[String] {
        &[]
    }
    fn names_mut(&mut self) -> Option<&mut Vec<String>> {
        None
    }
}

/// Which of a group's files a record is in.
pub(crate) type FileIndex = usize;

#[derive(Clone, Debug)]
struct Row<T> {
    slot: Slot<T>,
    file: FileIndex,
    /// Without an id, or with that of an earlier record: nobody sees it, and it is written again as it was.
    hidden: bool,
}

/// Records in the order of their files.
#[derive(Clone, Debug)]
pub(crate) struct Table<T> {
    /// Those that are in memory whole: all, or with an index those of the other files and those just made.
    rows: Vec<Row<T>>,
    by_id: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
    /// Files in which a name that two records had was taken from one of them, still to be written.
    pub(crate) repaired: Vec<FileIndex>,
    /// The names that two records had when they were read, with the ids of the earlier and the later.
    doubled_names: Vec<(String, String, String)>,
    /// The records of a large file.
    pub(crate) lazy: Option<Lazy<T>>,
}

/// The records of the file [`STABLE`], read as they are asked for, and what was changed in them since.
#[derive(Clone, Debug)]
pub(crate) struct Lazy<T> {
    pub(crate) base: Arc<Base<T>>,
    pub(crate) changed: BTreeMap<String, Changed<T>>,
    pub(crate) gone: BTreeMap<String, Gone<T>>,
}

/// A record that is not what the file says any more.
#[derive(Clone, Debug)]
pub(crate) struct Changed<T> {
    pub(crate) was: Gone<T>,
    pub(crate) slot: Slot<T>,
}

/// A record as the file has it, and its row.
#[derive(Clone, Debug)]
pub(crate) struct Gone<T> {
    pub(crate) row: Option<u32>,
    pub(crate) old: Arc<T>,
}

impl<T: Record> Lazy<T> {
    fn slot(&self, id: &str) -> Option<&Slot<T>> {
        if self.gone.contains_key(id) {
            return None;
        }
        self.changed.get(id).map_or_else(|| self.base.by_id(id), |changed| Some(&changed.slot))
    }

    fn old(&self, id: &str) -> Option<Gone<T>> {
        if self.gone.contains_key(id) {
            return None;
        }
        if let Some(changed) = self.changed.get(id) {
            return Some(changed.was.clone());
        }
        let old = Arc::clone(self.base.by_id(id)?.get());
        Some(Gone { row: self.base.row_of(id), old })
    }

    fn change(&mut self, id: &str) -> Option<&mut T> {
        let was = self.old(id)?;
        let slot = Slot::of(&was.old);
        Some(self.changed.entry(id.to_owned()).or_insert(Changed { was, slot }).slot.change())
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(old) = self.old(id) else { return false };
        self.changed.remove(id);
        self.gone.insert(id.to_owned(), old);
        true
    }

    /// All of them as they are now.
    fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        let current = |slot: &'_ Slot<T>| !self.gone.contains_key(slot.get().id());
        let now = |slot| self.changed.get(slot_id(slot)).map_or(slot, |changed| &changed.slot);
        self.base.all().slots.iter().filter(move |slot| current(slot)).map(now)
    }

    fn with(&self, key: Key, value: &str) -> Vec<&Arc<T>> {
        let untouched = |slot: &&Slot<T>| {
            let id = slot.get().id();
            !self.gone.contains_key(id) && !self.changed.contains_key(id)
        };
        let mut found: Vec<&Arc<T>> = match self.base.with(key, value, usize::MAX) {
            Some(rows) => rows.into_iter().rev().map(|(_, slot)| slot).filter(untouched).map(Slot::get).collect(),
            None => {
                let has = |slot: &&Slot<T>| has(&**slot.get(), key, value);
                self.base.all().slots.iter().filter(has).filter(untouched).map(Slot::get).collect()
            }
        };
        found.extend(self.changed.values().map(|changed| changed.slot.get()).filter(|now| has(&***now, key, value)));
        found
    }

    fn len(&self) -> usize {
        let all = if self.base.is_wrong() {
            self.base.all().slots.len()
        } else {
            usize::try_from(self.base.index.header.live).unwrap_or(0)
        };
        all.saturating_sub(self.gone.len())
    }
}

fn slot_id<T: Record>(slot: &Slot<T>) -> &str {
    slot.get().id()
}

/// Whether a record has that value for that key.
pub(crate) fn has<T: Record>(record: &T, key: Key, value: &str) -> bool {
    match key {
        Key::Id => record.id() == value,
        Key::Name => record.names().iter().any(|name| name == value),
        Key::Prefix => record.id().starts_with(value),
        _ => record.more_keys().iter().any(|(own, text)| *own == key && *text == value),
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_id: HashMap::new(),
            by_name: HashMap::new(),
            repaired: Vec::new(),
            doubled_names: Vec::new(),
            lazy: None,
        }
    }
}

impl<T: Record> Table<T> {
    /// The files' records together. Of several with one id the first counts; a name that several have belongs to the
    /// last of them, as containers/storage has it. The others are kept for the file, and seen by nobody.
    pub(crate) fn from_files(files: impl IntoIterator<Item = (FileIndex, Vec<Slot<T>>)>) -> Self {
        let mut table = Self::default();
        for (file, slots) in files {
            table.rows.reserve(slots.len());
            for slot in slots {
                let id = slot.get().id();
                let hidden = id.is_empty() || table.by_id.contains_key(id);
                if !hidden {
                    table.by_id.insert(id.to_owned(), table.rows.len());
                }
                table.rows.push(Row { slot, file, hidden });
            }
        }
        for at in 0..table.rows.len() {
            table.index_names(at);
        }
        table
    }

    /// The records of a large file, read as they are asked for, and those of the others. `None` when an id or a name is in
    /// both: what belongs to which is seen when all is read.
    pub(crate) fn with_base(base: Base<T>, others: Vec<(FileIndex, Vec<Slot<T>>)>) -> Option<Self> {
        let mut table = Self::from_files(others);
        let base = Arc::new(base);
        for row in &table.rows {
            let record = row.slot.get();
            let taken = |key, value: &str| base.with(key, value, 1).is_none_or(|found| !found.is_empty());
            if taken(Key::Id, record.id()) || record.names().iter().any(|name| taken(Key::Name, name)) {
                return None;
            }
        }
        if !table.repaired.is_empty() || table.hidden().next().is_some() {
            return None;
        }
        table.lazy = Some(Lazy { base, changed: BTreeMap::new(), gone: BTreeMap::new() });
        Some(table)
    }

    fn index_names(&mut self, at: usize) {
        let Some(row) = self.rows.get(at).filter(|row| !row.hidden) else { return };
        let id = row.slot.get().id().to_owned();
        for name in row.slot.get().names().to_vec() {
            if let Some(earlier) = self.by_name.insert(name.clone(), at)
                && earlier != at
                && let Some(row) = self.rows.get_mut(earlier)
            {
                if let Some(names) = row.slot.change().names_mut() {
                    names.retain(|other| *other != name);
                }
                if !self.repaired.contains(&row.file) {
                    self.repaired.push(row.file);
                }
                self.doubled_names.push((name, row.slot.get().id().to_owned(), id.clone()));
            }
        }
    }

    fn reindex(&mut self) {
        self.by_id.clear();
        self.by_name.clear();
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| !row.hidden) {
            self.by_id.insert(row.slot.get().id().to_owned(), at);
            for name in row.slot.get().names() {
                self.by_name.insert(name.clone(), at);
            }
        }
    }

    /// The names that two records had when they were read, with the ids of the earlier and the later.
    pub(crate) fn doubled_names(&self) -> &[(String, String, String)] {
        &self.doubled_names
    }

    /// The ids of the records that nobody sees: empty, or those of an earlier record.
    pub(crate) fn hidden(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().filter(|row| row.hidden).map(|row| row.slot.get().id())
    }

    /// Why the records cannot be relied on, if that is so: their file could not be read any more.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.lazy.as_ref().and_then(|lazy| lazy.base.failure())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len().saturating_add(self.lazy.as_ref().map_or(0, Lazy::len))
    }

    /// All records, in order. Reads all of them.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> {
        let mut all: Vec<&Arc<T>> = Vec::with_capacity(self.len());
        all.extend(self.lazy.iter().flat_map(Lazy::slots).map(Slot::get));
        all.extend(self.shown());
        all.into_iter()
    }

    /// Those that are in memory whole and not hidden.
    fn shown(&self) -> impl Iterator<Item = &Arc<T>> {
        self.rows.iter().filter(|row| !row.hidden).map(|row| row.slot.get())
    }

    /// Those of one file, as they are to be written: hidden ones, too.
    pub(crate) fn slots(&self, file: FileIndex) -> impl Iterator<Item = &Slot<T>> {
        let lazy = self.lazy.iter().filter(move |_| file == STABLE).flat_map(Lazy::slots);
        lazy.chain(self.loaded(file))
    }

    /// Those of one file that are in memory whole.
    pub(crate) fn loaded(&self, file: FileIndex) -> impl Iterator<Item = &Slot<T>> {
        self.rows.iter().filter(move |row| row.file == file).map(|row| &row.slot)
    }

    /// Whether any is marked as one that a killed process left unfinished.
    pub(crate) fn has_unfinished(&self) -> bool {
        match &self.lazy {
            Some(lazy) if !lazy.base.is_wrong() && lazy.changed.is_empty() && lazy.gone.is_empty() => {
                lazy.base.index.header.unfinished > 0 || self.shown().any(|record| record.is_unfinished())
            }
            _ => self.iter().any(|record| record.is_unfinished()),
        }
    }

    /// By id alone.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Arc<T>> {
        let loaded = self.by_id.get(id).and_then(|at| self.rows.get(*at)).map(|row| &row.slot);
        loaded.or_else(|| self.lazy.as_ref()?.slot(id)).map(Slot::get)
    }

    /// By name alone.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<T>> {
        let loaded = self.by_name.get(name).and_then(|at| self.rows.get(*at)).map(|row| row.slot.get());
        loaded.or_else(|| self.lazy.as_ref()?.with(Key::Name, name).pop())
    }

    /// All with that value for that key, in the order of their files (those changed since they were read last).
    pub(crate) fn with(&self, key: Key, value: &str) -> Vec<&Arc<T>> {
        let mut found = self.lazy.as_ref().map(|lazy| lazy.with(key, value)).unwrap_or_default();
        found.extend(self.shown().filter(|record| has(&***record, key, value)));
        found
    }

    /// One with that value for that key.
    pub(crate) fn any_with(&self, key: Key, value: &str) -> Option<&Arc<T>> {
        if let Some(found) = self.shown().find(|record| has(&***record, key, value)) {
            return Some(found);
        }
        let lazy = self.lazy.as_ref()?;
        // One is enough, unless it is one that has changed.
        match lazy.base.with(key, value, 1) {
            Some(found) if lazy.gone.is_empty() && lazy.changed.is_empty() => found.first().map(|(_, slot)| slot.get()),
            _ => lazy.with(key, value).pop(),
        }
    }

    /// The file that a record is in.
    pub(crate) fn file_of(&self, id: &str) -> Option<FileIndex> {
        let loaded = self.by_id.get(id).and_then(|at| self.rows.get(*at)).map(|row| row.file);
        loaded.or_else(|| self.lazy.as_ref()?.slot(id).map(|_| STABLE))
    }

    /// By id, else by name, else by a container's layer.
    pub(crate) fn find_exact(&self, reference: &str) -> Option<&Arc<T>> {
        if reference.is_empty() {
            return None;
        }
        let exact = self.by_id(reference).or_else(|| self.by_name(reference));
        exact.or_else(|| self.any_with(Key::Alias, reference))
    }

    /// By id, else by name, else by a container's layer, else by a prefix of exactly one id.
    pub(crate) fn find(&self, reference: &str) -> Option<&Arc<T>> {
        if let Some(found) = self.find_exact(reference) {
            return Some(found);
        }
        if reference.is_empty() {
            return None;
        }
        let matching: Vec<&Arc<T>> = match reference.get(..PREFIX) {
            Some(prefix) => self.with(Key::Prefix, prefix),
            None => self.iter().collect(),
        };
        let mut matching = matching.into_iter().filter(|record| record.id().starts_with(reference));
        matching.next().filter(|_| matching.next().is_none())
    }

    /// Adds a record at the end. Its id and names must be free.
    pub(crate) fn insert(&mut self, record: T, file: FileIndex) {
        let at = self.rows.len();
        self.by_id.insert(record.id().to_owned(), at);
        for name in record.names() {
            self.by_name.insert(name.clone(), at);
        }
        self.rows.push(Row { slot: Slot::new(record), file, hidden: false });
    }

    /// The record, to be changed (not its id or names); and its file.
    pub(crate) fn change(&mut self, id: &str) -> Option<(&mut T, FileIndex)> {
        if let Some(at) = self.by_id.get(id) {
            let row = self.rows.get_mut(*at)?;
            return Some((row.slot.change(), row.file));
        }
        self.lazy.as_mut()?.change(id).map(|record| (record, STABLE))
    }

    /// Removes records, and those that they hid; which files they were in.
    pub(crate) fn remove<S: AsRef<str>>(&mut self, ids: &[S]) -> Vec<FileIndex> {
        let mut files = Vec::new();
        self.rows.retain(|row| {
            let goes = ids.iter().any(|id| id.as_ref() == row.slot.get().id());
            if goes && !files.contains(&row.file) {
                files.push(row.file);
            }
            !goes
        });
        if let Some(lazy) = &mut self.lazy {
            let removed = ids.iter().filter(|id| lazy.remove(id.as_ref())).count();
            if removed > 0 && !files.contains(&STABLE) {
                files.push(STABLE);
            }
        }
        self.reindex();
        files
    }

    /// Gives a record exactly these names (duplicates dropped), taking them from their owners. Which files changed.
    pub(crate) fn set_names(&mut self, id: &str, names: &[String]) -> Vec<FileIndex> {
        let names = unique(names);
        let mut files = Vec::new();
        for name in &names {
            let owners: Vec<String> =
                self.with(Key::Name, name).into_iter().map(|owner| owner.id().to_owned()).collect();
            for owner in owners.iter().filter(|owner| *owner != id) {
                if let Some((record, file)) = self.change(owner) {
                    if let Some(theirs) = record.names_mut() {
                        theirs.retain(|other| other != name);
                    }
                    files.push(file);
                }
            }
        }
        if let Some((record, file)) = self.change(id) {
            if let Some(own) = record.names_mut() {
                *own = names;
            }
            files.push(file);
        }
        files.sort_unstable();
        files.dedup();
        self.reindex();
        files
    }
}

/// The names, each once, in order, without empty ones.
pub(crate) fn unique(names: &[String]) -> Vec<String> {
    let mut result: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        if !name.is_empty() && !result.contains(name) {
            result.push(name.clone());
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: &str, names: &[&str]) -> Slot<Layer> {
        let mut layer = Layer { id: id.to_owned(), ..Layer::default() };
        layer.names = names.iter().map(|name| (*name).to_owned()).collect();
        Slot::new(layer)
    }

    #[test]
    fn ids_names_and_prefixes_find_in_this_order() {
        let table =
            Table::from_files([(0, vec![layer("abc", &["n"]), layer("abd", &["abc", "xyz"]), layer("n", &[])])]);
        let find = |reference| table.find(reference).map(|found| found.id.as_str());
        assert_eq!(find("abc"), Some("abc"));
        assert_eq!(find("n"), Some("n"));
        assert_eq!(find("xyz"), Some("abd"));
        assert_eq!(find("ab"), None);
        assert_eq!(find("abd"), Some("abd"));
        assert_eq!(find(""), None);
    }

    #[test]
    fn a_name_of_two_records_belongs_to_the_later_and_an_id_to_the_first() {
        let table =
            Table::from_files([(0, vec![layer("a", &["n", "m"])]), (2, vec![layer("b", &["n"]), layer("a", &["z"])])]);
        assert_eq!(table.len(), 2);
        assert_eq!(table.by_name("n").unwrap().id, "b");
        assert_eq!(table.by_id("a").unwrap().names, ["m"]);
        assert_eq!(table.repaired, [0]);
        assert_eq!(table.hidden().collect::<Vec<_>>(), ["a"]);
        assert_eq!(table.slots(2).count(), 2, "what is hidden is written again");
    }

    #[test]
    fn names_move_to_their_new_owner() {
        let mut table = Table::from_files([(0, vec![layer("a", &["n", "m"])]), (1, vec![layer("b", &[])])]);
        let names = ["n", "k", "n", ""].map(str::to_owned);
        assert_eq!(table.set_names("b", &names), [0, 1]);
        assert_eq!(table.by_id("a").unwrap().names, ["m"]);
        assert_eq!(table.by_id("b").unwrap().names, ["n", "k"]);
        assert_eq!(table.remove(&["a"]), [0]);
        assert!(table.by_name("m").is_none());
        assert_eq!(table.by_name("k").unwrap().id, "b");
    }
}
