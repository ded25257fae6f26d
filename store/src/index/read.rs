//! Records read one by one, as the index leads to them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Key;
use super::format::{Index, read_at};
use crate::json::{self, Slot};
use crate::table::{Record, has};

/// Rows that share an allocation.
const CHUNK: usize = 64;

type Chunk<T> = Box<[OnceLock<Option<Slot<T>>>]>;

/// A file of records, as it was at one moment, of which only some are in memory.
#[derive(Debug)]
pub(crate) struct Base<T> {
    /// Held open: writers put a new file in its place, so what it says does not change.
    pub(crate) file: File,
    pub(crate) index: Index,
    rows: Vec<OnceLock<Chunk<T>>>,
    /// All records, once somebody wanted them, or the index was found to be wrong.
    all: OnceLock<All<T>>,
    /// The rows of ids that were looked up.
    known: Mutex<HashMap<String, u32>>,
    wrong: AtomicBool,
}

/// All records of the file in its order, and where each id is.
#[derive(Debug)]
pub(crate) struct All<T> {
    pub(crate) slots: Vec<Slot<T>>,
    pub(crate) by_id: HashMap<String, usize>,
    /// The file could not be read after all.
    pub(crate) failed: Option<String>,
}

impl<T: Record> Base<T> {
    pub(crate) fn new(file: File, index: Index) -> Self {
        let chunks = usize::try_from(index.header.rows).unwrap_or(0).div_ceil(CHUNK);
        let rows = (0..chunks).map(|_| OnceLock::new()).collect();
        let known = Mutex::new(HashMap::new());
        Self { file, index, rows, all: OnceLock::new(), known, wrong: AtomicBool::new(false) }
    }

    /// Whether the index was found to be wrong: then only [`Base::all`] counts.
    pub(crate) fn is_wrong(&self) -> bool {
        self.wrong.load(Ordering::Relaxed)
    }

    fn amiss(&self) {
        if !self.wrong.swap(true, Ordering::Relaxed) {
            tracing::debug!("the index of records is wrong; reading all of them");
        }
    }

    /// All records.
    pub(crate) fn all(&self) -> &All<T> {
        self.all.get_or_init(|| {
            let read = || -> std::result::Result<Vec<Slot<T>>, String> {
                let size = usize::try_from(self.index.header.size).map_err(|e| e.to_string())?;
                let mut bytes = vec![0; size];
                read_at(&self.file, &mut bytes, 0).ok_or_else(|| "it cannot be read any more".to_owned())?;
                json::parse_array(bytes).map_err(|e| e.to_string())
            };
            let (slots, failed) = match read() {
                Ok(slots) => (slots, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let by_id = slots.iter().enumerate().map(|(at, slot)| (slot.get().id().to_owned(), at)).collect();
            All { slots, by_id, failed }
        })
    }

    /// Why nothing of it can be relied on, if that is so.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.all.get().and_then(|all| all.failed.as_deref())
    }

    /// The record of a row; `None` when there is something amiss.
    pub(crate) fn row(&self, row: u32) -> Option<&Slot<T>> {
        let at = usize::try_from(row).ok()?;
        let chunk = self.rows.get(at / CHUNK)?;
        let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        chunk.get(at % CHUNK)?.get_or_init(|| self.read(row)).as_ref()
    }

    fn read(&self, row: u32) -> Option<Slot<T>> {
        let (offset, length) = self.index.place(row)?;
        // With the separators on both sides.
        let mut bytes = vec![0; usize::try_from(length).ok()?.checked_add(1)?];
        read_at(&self.file, &mut bytes, offset.checked_sub(1)?)?;
        let (first, rest) = bytes.split_first()?;
        let (last, text) = rest.split_last()?;
        let ends = offset.checked_add(u64::from(length))? == self.index.header.size;
        let framed = *first == if offset == 1 { b'[' } else { b',' } && *last == if ends { b']' } else { b',' };
        if framed { json::parse_one(text) } else { None }
    }

    /// The rows with that key, each looked at: the newest first. `None` when the index is wrong.
    pub(crate) fn with(&self, key: Key, value: &str, most: usize) -> Option<Vec<(u32, &Slot<T>)>> {
        if self.is_wrong() {
            return None;
        }
        let find = || {
            let mut found = Vec::new();
            for row in self.index.rows(key, value)? {
                let slot = self.row(row)?;
                if has(&**slot.get(), key, value) {
                    found.push((row, slot));
                    if found.len() >= most {
                        break;
                    }
                }
            }
            Some(found)
        };
        let found = find();
        if found.is_none() {
            self.amiss();
        }
        found
    }

    /// The row of an id. `None`: there is none, unless the index is wrong.
    pub(crate) fn row_of(&self, id: &str) -> Option<u32> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = known().get(id) {
            return Some(*row);
        }
        let row = self.with(Key::Id, id, 1)?.first().map(|(row, _)| *row)?;
        known().insert(id.to_owned(), row);
        Some(row)
    }

    /// By id.
    pub(crate) fn by_id(&self, id: &str) -> Option<&Slot<T>> {
        match self.row_of(id) {
            Some(row) if !self.is_wrong() => self.row(row),
            _ if self.is_wrong() => self.all().by_id.get(id).and_then(|at| self.all().slots.get(*at)),
            _ => None,
        }
    }
}
