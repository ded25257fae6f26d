//! Sparse maps: where the data of a file with holes lies.

use super::number::{decimal, numeric};
use crate::entry::SparseRun;
use crate::error::Defect;

/// A map being read, checked as it grows: runs ascend, do not overlap and end inside the file.
#[derive(Debug)]
pub(super) struct Map {
    size: u64,
    end: u64,
    stored: u64,
    count: u64,
    maximum: u64,
    runs: Vec<SparseRun>,
}

/// Why a run is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    Defect(Defect),
    /// More runs than allowed; how many so far.
    TooMany(u64),
}

impl From<Defect> for Refusal {
    fn from(defect: Defect) -> Self {
        Self::Defect(defect)
    }
}

impl Map {
    /// An empty map of a file of `size` bytes that may have up to `maximum` runs.
    pub(super) fn new(size: u64, maximum: u64) -> Self {
        Self { size, end: 0, stored: 0, count: 0, maximum, runs: Vec::new() }
    }

    /// Adds a run. Empty ones (GNU tar ends its maps with one) are checked and left out; adjoining ones become one.
    pub(super) fn push(&mut self, offset: i64, length: i64) -> Result<(), Refusal> {
        let invalid = || Refusal::Defect(Defect::InvalidSparseMap);
        let offset = u64::try_from(offset).map_err(|_| invalid())?;
        let length = u64::try_from(length).map_err(|_| invalid())?;
        let end = offset.checked_add(length).ok_or_else(invalid)?;
        if offset < self.end || end > self.size {
            return Err(invalid());
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.maximum {
            return Err(Refusal::TooMany(self.count));
        }
        if length > 0 {
            match self.runs.last_mut() {
                Some(last) if self.end == offset => last.length = last.length.saturating_add(length),
                _ => self.runs.push(SparseRun { offset, length }),
            }
            self.stored = self.stored.saturating_add(length);
        }
        self.end = end;
        Ok(())
    }

    /// The runs, if their lengths add up to the bytes that the archive has for them.
    pub(super) fn finish(self, stored: u64) -> Result<Vec<SparseRun>, Defect> {
        if self.stored != stored {
            return Err(Defect::InvalidSparseMap);
        }
        Ok(self.runs)
    }

    /// Adds the runs of an old GNU header or extension block: offset and length, 12 bytes each, until one is unused.
    pub(super) fn push_gnu(&mut self, fields: &[u8]) -> Result<(), Refusal> {
        for run in fields.chunks_exact(24) {
            let Some((offset, length)) = run.split_at_checked(12) else { break };
            if offset.first() == Some(&0) {
                break;
            }
            let parse = |field| numeric(field).ok_or(Defect::InvalidNumber { field: "sparse" });
            self.push(parse(offset)?, parse(length)?)?;
        }
        Ok(())
    }

    /// Adds the runs of version 0.0: `offset`, `numbytes`, `offset`, ...
    pub(super) fn push_pairs(&mut self, numbers: &[Vec<u8>]) -> Result<(), Refusal> {
        for pair in numbers.chunks_exact(2) {
            if let [offset, length] = pair {
                self.push(number(offset, "GNU.sparse.offset")?, number(length, "GNU.sparse.numbytes")?)?;
            }
        }
        Ok(())
    }

    /// Adds the runs of version 0.1: `offset,length,offset,length`.
    pub(super) fn push_list(&mut self, list: &[u8]) -> Result<(), Refusal> {
        if list.is_empty() {
            return Ok(());
        }
        let mut numbers = list.split(|b| *b == b',');
        while let Some(offset) = numbers.next() {
            let length = numbers.next().ok_or(Defect::InvalidSparseMap)?;
            self.push(number(offset, "GNU.sparse.map")?, number(length, "GNU.sparse.map")?)?;
        }
        Ok(())
    }

    /// How many runs have been stated so far, empty ones included.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many runs there may be.
    pub(super) fn maximum(&self) -> u64 {
        self.maximum
    }
}

/// A number of a `GNU.sparse` record.
pub(super) fn number(text: &[u8], field: &'static str) -> Result<i64, Defect> {
    decimal(text).ok_or(Defect::InvalidNumber { field })
}

/// Reads the map of version 1.0, which stands before the data in blocks of its own: a count, then offsets and lengths,
/// one decimal number a line.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    /// The number being read, `None` before its first digit.
    value: Option<i64>,
    count: Option<u64>,
    offset: Option<i64>,
}

impl MapReader {
    /// Takes a block; true when the map is complete (the rest of the block means nothing).
    pub(super) fn feed(&mut self, block: &[u8], map: &mut Map) -> Result<bool, Refusal> {
        let invalid = Defect::InvalidNumber { field: "sparse map" };
        for byte in block {
            if *byte != b'\n' {
                let digit = byte.checked_sub(b'0').filter(|d| *d < 10).ok_or(invalid.clone())?;
                let value = self.value.unwrap_or(0).checked_mul(10).and_then(|v| v.checked_add(i64::from(digit)));
                self.value = Some(value.ok_or(invalid.clone())?);
                continue;
            }
            let value = self.value.take().ok_or(invalid.clone())?;
            match (self.count, self.offset.take()) {
                (None, _) => {
                    let count = u64::try_from(value).unwrap_or(u64::MAX);
                    if count > map.maximum() {
                        return Err(Refusal::TooMany(count));
                    }
                    self.count = Some(count);
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => map.push(offset, value)?,
            }
            if self.count == Some(map.count()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
