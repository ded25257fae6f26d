//! The records of one kind in memory, as one or several files said them, with what is needed to find them.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::json::Slot;
use crate::records::{Container, Image, Layer, MountPoint};

/// What the tables need to know of a record.
pub(crate) trait Record: Clone + Serialize + DeserializeOwned {
    fn id(&self) -> &str;
    fn names(&self) -> &[String];
    fn names_mut(&mut self) -> Option<&mut Vec<String>>;
    /// A further id that it is found by.
    fn alias(&self) -> Option<&str> {
        None
    }
}

macro_rules! impl_record {
    ($type:ty) => {
        impl Record for $type {
            fn id(&self) -> &str {
                &self.id
            }
            fn names(&self) -> &[String] {
                &self.names
            }
            fn names_mut(&mut self) -> Option<&mut Vec<String>> {
                Some(&mut self.names)
            }
        }
    };
}

impl_record!(Layer);
impl_record!(Image);

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
    fn alias(&self) -> Option<&str> {
        Some(&self.layer)
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
    rows: Vec<Row<T>>,
    by_id: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
    /// Files in which a name that two records had was taken from one of them, still to be written.
    pub(crate) repaired: Vec<FileIndex>,
    /// The names that two records had when they were read, with the ids of the earlier and the later.
    doubled_names: Vec<(String, String, String)>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            by_id: HashMap::new(),
            by_name: HashMap::new(),
            repaired: Vec::new(),
            doubled_names: Vec::new(),
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

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All records, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> {
        self.rows.iter().filter(|row| !row.hidden).map(|row| row.slot.get())
    }

    /// Those of one file, as they are to be written: hidden ones, too.
    pub(crate) fn slots(&self, file: FileIndex) -> impl Iterator<Item = &Slot<T>> {
        self.rows.iter().filter(move |row| row.file == file).map(|row| &row.slot)
    }

    /// By id alone.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Arc<T>> {
        self.by_id.get(id).and_then(|at| self.rows.get(*at)).map(|row| row.slot.get())
    }

    /// By name alone.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<T>> {
        self.by_name.get(name).and_then(|at| self.rows.get(*at)).map(|row| row.slot.get())
    }

    /// The file that a record is in.
    pub(crate) fn file_of(&self, id: &str) -> Option<FileIndex> {
        self.by_id.get(id).and_then(|at| self.rows.get(*at)).map(|row| row.file)
    }

    /// By id, else by name, else by the alias, else by a prefix of exactly one id.
    pub(crate) fn find(&self, reference: &str) -> Option<&Arc<T>> {
        if reference.is_empty() {
            return None;
        }
        self.by_id(reference).or_else(|| self.by_name(reference)).or_else(|| {
            if let Some(found) = self.iter().find(|record| record.alias() == Some(reference)) {
                return Some(found);
            }
            let mut matching = self.iter().filter(|record| record.id().starts_with(reference));
            matching.next().filter(|_| matching.next().is_none())
        })
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
        let at = *self.by_id.get(id)?;
        let row = self.rows.get_mut(at)?;
        Some((row.slot.change(), row.file))
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
        self.reindex();
        files
    }

    /// Gives a record exactly these names (duplicates dropped), taking them from their owners. Which files changed.
    pub(crate) fn set_names(&mut self, id: &str, names: &[String]) -> Vec<FileIndex> {
        let names = unique(names);
        let mut files = Vec::new();
        for row in self.rows.iter_mut().filter(|row| !row.hidden) {
            let record = row.slot.get();
            if record.id() != id && record.names().iter().any(|name| names.contains(name)) {
                if let Some(theirs) = row.slot.change().names_mut() {
                    theirs.retain(|name| !names.contains(name));
                }
                files.push(row.file);
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
