//! Making an index, and changing one in place.

use std::fs::File;

use graph_sys::io::Errno;

use super::Key;
use super::format::{Entry, Header, Index, bucket_bytes, hash, layout};

/// A row of a new index: bytes of its text, and its keys.
pub(crate) type NewRow = (u32, Vec<(Key, String)>);

/// The bytes of an index of these rows. `None` for more of them than it can hold.
pub(crate) fn build(
    nonce: u64,
    key: [u64; 2],
    size: u64,
    unfinished: u32,
    tidy: Option<(u64, i64, u32)>,
    rows: &[NewRow],
) -> Option<Vec<u8>> {
    let count = u32::try_from(rows.len()).ok()?;
    let keys = u32::try_from(rows.iter().map(|(_, keys)| keys.len()).sum::<usize>()).ok()?;
    // Room for as much again by a quarter, after which it is made anew: what it costs then is spread over all those.
    let header = Header {
        nonce,
        key,
        row_capacity: count.checked_add(count / 4)?.checked_add(256)?,
        rows: count,
        live: count,
        unfinished,
        buckets: keys.max(64).checked_next_power_of_two()?,
        entry_capacity: keys.checked_add(keys / 4)?.checked_add(1024)?,
        entries: keys,
        size,
        tidy,
    };
    let lengths: Vec<u32> = rows.iter().map(|(text, _)| text.checked_add(1)).collect::<Option<_>>()?;
    let mut heads = vec![0_u32; usize::try_from(header.buckets).ok()?.checked_mul(2)?];
    let mut entries = Vec::new();
    let mut at = 0;
    for (row, (_, keys)) in (0_u32..).zip(rows) {
        for (key, value) in keys {
            at += 1;
            let hash = hash(*key, value);
            let head = heads.get_mut(usize::try_from(header.bucket_of(key.is_shared(), hash)).ok()?)?;
            entries.extend(Entry { hash, row, next: *head }.to_bytes(nonce, at));
            *head = at;
        }
    }
    let mut bytes = layout(&header, &lengths);
    bytes.extend((0_u32..).zip(heads).flat_map(|(bucket, head)| bucket_bytes(nonce, bucket, head)));
    bytes.extend(entries);
    Some(bytes)
}

/// Changes, under the lock, before the header is written that makes the index valid for the new records.
impl Index {
    /// A row behind all others; its number.
    pub(crate) fn append(&mut self, text: u32, keys: &[(Key, &str)]) -> Option<u32> {
        let row = self.header.rows;
        if row >= self.header.row_capacity {
            return None;
        }
        self.header.rows = row.checked_add(1)?;
        self.header.live = self.header.live.checked_add(1)?;
        self.set_length(row, text.checked_add(1)?)?;
        keys.iter().try_for_each(|(key, value)| self.link(*key, value, row))?;
        Some(row)
    }

    /// Takes a row away.
    pub(crate) fn remove(&mut self, row: u32, keys: &[(Key, &str)]) -> Option<()> {
        self.set_length(row, 0)?;
        self.header.live = self.header.live.checked_sub(1)?;
        keys.iter().try_for_each(|(key, value)| self.unlink(*key, value, row))
    }

    /// Notes that a row's text has so many bytes now.
    pub(crate) fn resize(&mut self, row: u32, text: u32) -> Option<()> {
        self.set_length(row, text.checked_add(1)?)
    }

    fn set_length(&self, row: u32, length: u32) -> Option<()> {
        let mut bytes = [0; 4];
        super::format::read_at(&self.file, &mut bytes, self.length_at(row))?;
        let old = u64::from(u32::from_le_bytes(bytes));
        write_at(&self.file, &length.to_le_bytes(), self.length_at(row))?;
        for at in self.sums_at(row) {
            let mut bytes = [0; 8];
            super::format::read_at(&self.file, &mut bytes, at)?;
            let sum = u64::from_le_bytes(bytes).checked_sub(old)?.checked_add(u64::from(length))?;
            write_at(&self.file, &sum.to_le_bytes(), at)?;
        }
        Some(())
    }

    /// Gives a row a key.
    pub(crate) fn link(&mut self, key: Key, value: &str, row: u32) -> Option<()> {
        let hash = hash(key, value);
        let bucket = self.header.bucket_of(key.is_shared(), hash);
        let next = self.head(bucket)?;
        if self.header.entries >= self.header.entry_capacity {
            return None;
        }
        self.header.entries = self.header.entries.checked_add(1)?;
        let at = self.header.entries;
        write_at(&self.file, &Entry { hash, row, next }.to_bytes(self.header.nonce, at), self.entry_at(at))?;
        self.set_head(bucket, at)
    }

    /// Takes a key from a row.
    pub(crate) fn unlink(&mut self, key: Key, value: &str, row: u32) -> Option<()> {
        let hash = hash(key, value);
        let bucket = self.header.bucket_of(key.is_shared(), hash);
        let mut before: Option<(u32, Entry)> = None;
        let mut at = self.head(bucket)?;
        let mut steps = 0;
        while at != 0 {
            let entry = self.entry(at)?;
            if entry.hash == hash && entry.row == row {
                return match before {
                    None => self.set_head(bucket, entry.next),
                    Some((place, earlier)) => {
                        let entry = Entry { next: entry.next, ..earlier };
                        write_at(&self.file, &entry.to_bytes(self.header.nonce, place), self.entry_at(place))
                    }
                };
            }
            before = Some((at, entry));
            at = entry.next;
            steps += 1;
            if steps > self.header.entries {
                return None;
            }
        }
        // It was not there: something is amiss.
        None
    }

    fn set_head(&self, bucket: u32, head: u32) -> Option<()> {
        write_at(&self.file, &bucket_bytes(self.header.nonce, bucket, head), self.bucket_at(bucket))
    }

    /// Writes the header: from here on the index is of the records as they are now.
    pub(crate) fn commit(&self) -> Option<()> {
        write_at(&self.file, &self.header.to_bytes(), 0)
    }
}

fn write_at(file: &File, bytes: &[u8], offset: u64) -> Option<()> {
    let mut written: usize = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match graph_sys::io::pwrite(file, rest, offset.checked_add(u64::try_from(written).ok()?)?) {
            Ok(0) => return None,
            Ok(count) => written = written.checked_add(count)?,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
