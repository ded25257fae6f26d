//! The bytes of an index.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};

use graph_core::fsutil::FileStamp;
use graph_sys::io::Errno;

use super::Key;

const MAGIC: u64 = u64::from_le_bytes(*b"GDINDEX1");
/// Bytes before the tables.
const HEADER: u64 = 128;
/// Bytes of the header that are in use.
const HEADER_USED: usize = 104;
/// Rows of a group, and groups of a group.
const FAN: u32 = 64;
const ENTRY: usize = 24;
const BUCKET: usize = 8;

/// What the header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// Drawn at random.
    pub(crate) nonce: u64,
    /// What the records were read under, see [`super`].
    pub(crate) key: [u64; 2],
    pub(crate) row_capacity: u32,
    pub(crate) rows: u32,
    pub(crate) live: u32,
    /// Records that a killed process left unfinished.
    pub(crate) unfinished: u32,
    pub(crate) buckets: u32,
    pub(crate) entry_capacity: u32,
    pub(crate) entries: u32,
    /// Bytes of the file of records.
    pub(crate) size: u64,
    /// The directory of data as it was when everything in it belonged to a record: inode, seconds, nanoseconds.
    pub(crate) tidy: Option<(u64, i64, u32)>,
}

/// The stamp of a directory, as the header keeps it.
pub(crate) fn tidy_stamp(stamp: &FileStamp) -> (u64, i64, u32) {
    (stamp.inode, stamp.seconds, stamp.nanoseconds)
}

/// Mixes values into 64 bits. Not the same in every version of the program: an index of another version does not check.
pub(crate) fn mix(values: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    values.iter().for_each(|value| hasher.write_u64(*value));
    hasher.finish()
}

fn mix32(values: &[u64]) -> u32 {
    u32::try_from(mix(values) >> 32).unwrap_or(0)
}

/// The number that a key's value has in the index.
pub(crate) fn hash(key: Key, value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u8(key as u8);
    hasher.write(value.as_bytes());
    hasher.finish()
}

impl Header {
    fn words(&self) -> [u64; 12] {
        let two = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
        let (inode, seconds, nanoseconds) = self.tidy.unwrap_or_default();
        [
            MAGIC,
            self.nonce,
            self.key[0],
            self.key[1],
            two(self.row_capacity, self.rows),
            two(self.live, self.unfinished),
            two(self.buckets, self.entry_capacity),
            two(self.entries, u32::from(self.tidy.is_some())),
            self.size,
            inode,
            seconds.cast_unsigned(),
            u64::from(nanoseconds),
        ]
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let words = self.words();
        words.into_iter().chain([mix(&words)]).flat_map(u64::to_le_bytes).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| word.try_into().map(u64::from_le_bytes)).collect::<Result<_, _>>().ok()?;
        let (check, words) = words.split_last()?;
        if mix(words) != *check || words.first() != Some(&MAGIC) {
            return None;
        }
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        let high = |word: u64| u32::try_from(word >> 32).unwrap_or(0);
        let [_, nonce, key0, key1, rows, live, buckets, entries, size, inode, seconds, nanoseconds] = *words else {
            return None;
        };
        let tidy = (inode, seconds.cast_signed(), low(nanoseconds));
        Some(Self {
            nonce,
            key: [key0, key1],
            row_capacity: low(rows),
            rows: high(rows),
            live: low(live),
            unfinished: high(live),
            buckets: low(buckets),
            entry_capacity: high(buckets),
            entries: low(entries),
            size,
            tidy: (high(entries) == 1).then_some(tidy),
        })
    }

    fn groups(&self) -> u32 {
        self.row_capacity.div_ceil(FAN)
    }

    fn large_groups(&self) -> u32 {
        self.groups().div_ceil(FAN)
    }

    fn groups_at(&self) -> u64 {
        HEADER.saturating_add(u64::from(self.large_groups()).saturating_mul(8))
    }

    fn lengths_at(&self) -> u64 {
        self.groups_at().saturating_add(u64::from(self.groups()).saturating_mul(8))
    }

    fn buckets_at(&self) -> u64 {
        self.lengths_at().saturating_add(u64::from(self.row_capacity).saturating_mul(4)).next_multiple_of(8)
    }

    fn entries_at(&self) -> u64 {
        // One table for keys of one record, one for shared ones.
        self.buckets_at().saturating_add(u64::from(self.buckets).saturating_mul(2 * BUCKET as u64))
    }

    pub(crate) fn bucket_of(&self, shared: bool, hash: u64) -> u32 {
        let own = u32::try_from(hash % u64::from(self.buckets.max(1))).unwrap_or(0);
        if shared { own.saturating_add(self.buckets) } else { own }
    }
}

/// A key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) hash: u64,
    pub(crate) row: u32,
    /// The next of the bucket's chain, from 1; 0 for none.
    pub(crate) next: u32,
}

impl Entry {
    pub(crate) fn to_bytes(self, nonce: u64, at: u32) -> [u8; ENTRY] {
        let link = u64::from(self.row) | (u64::from(self.next) << 32);
        let mut bytes = [0; ENTRY];
        let words = [self.hash, link, mix(&[nonce, u64::from(at), self.hash, link])];
        bytes.iter_mut().zip(words.into_iter().flat_map(u64::to_le_bytes)).for_each(|(byte, value)| *byte = value);
        bytes
    }

    fn from_bytes(bytes: [u8; ENTRY], nonce: u64, at: u32) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).filter_map(|word| word.try_into().map(u64::from_le_bytes).ok());
        let (hash, link, check) = (words.next()?, words.next()?, words.next()?);
        if check != mix(&[nonce, u64::from(at), hash, link]) {
            return None;
        }
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).ok();
        Some(Self { hash, row: low(link)?, next: low(link >> 32)? })
    }
}

pub(crate) fn bucket_bytes(nonce: u64, bucket: u32, head: u32) -> [u8; BUCKET] {
    let check = mix32(&[nonce, u64::from(bucket), u64::from(head), 1]);
    (u64::from(head) | (u64::from(check) << 32)).to_le_bytes()
}

/// An open index. Whatever it cannot answer, because something is amiss, is `None`.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) file: File,
    pub(crate) header: Header,
}

impl Index {
    pub(crate) fn open(file: File, key: [u64; 2]) -> Option<Self> {
        let mut bytes = [0; HEADER_USED];
        read_at(&file, &mut bytes, 0)?;
        let header = Header::from_bytes(&bytes)?;
        (header.key == key).then_some(Self { file, header })
    }

    /// Where a row's text is: offset, and bytes with the separator behind it. `None` for a row that is gone.
    pub(crate) fn place(&self, row: u32) -> Option<(u64, u32)> {
        if row >= self.header.rows {
            return None;
        }
        let group = row / FAN;
        let large = group / FAN;
        let mut offset: u64 = 1;
        for sum in self.words(HEADER, 0, large)? {
            offset = offset.checked_add(sum)?;
        }
        for sum in self.words(self.header.groups_at(), large.saturating_mul(FAN), group)? {
            offset = offset.checked_add(sum)?;
        }
        let first = group.saturating_mul(FAN);
        let count = usize::try_from(row.saturating_sub(first)).ok()?.checked_add(1)?;
        let mut bytes = vec![0; count.checked_mul(4)?];
        read_at(&self.file, &mut bytes, self.length_at(first))?;
        let mut lengths = bytes.chunks_exact(4).filter_map(|word| word.try_into().map(u32::from_le_bytes).ok());
        for length in lengths.by_ref().take(count.saturating_sub(1)) {
            offset = offset.checked_add(u64::from(length))?;
        }
        lengths.next().filter(|length| *length > 0).map(|length| (offset, length))
    }

    /// The rows of a key, the newest first; other keys' rows may be among them.
    pub(crate) fn rows(&self, key: Key, value: &str) -> Option<Vec<u32>> {
        let hash = hash(key, value);
        let mut rows = Vec::new();
        let mut next = self.head(self.header.bucket_of(key.is_shared(), hash))?;
        let mut steps = 0;
        while next != 0 {
            let entry = self.entry(next)?;
            if entry.hash == hash {
                rows.push(entry.row);
            }
            next = entry.next;
            steps += 1;
            if steps > self.header.entries {
                return None;
            }
        }
        Some(rows)
    }

    /// The first entry of a bucket, from 1; 0 for none.
    pub(crate) fn head(&self, bucket: u32) -> Option<u32> {
        let mut bytes = [0; BUCKET];
        read_at(&self.file, &mut bytes, self.bucket_at(bucket))?;
        let head = u32::try_from(u64::from_le_bytes(bytes) & u64::from(u32::MAX)).ok()?;
        (bytes == bucket_bytes(self.header.nonce, bucket, head)).then_some(head)
    }

    pub(crate) fn entry(&self, at: u32) -> Option<Entry> {
        if at == 0 || at > self.header.entries {
            return None;
        }
        let mut bytes = [0; ENTRY];
        read_at(&self.file, &mut bytes, self.entry_at(at))?;
        Entry::from_bytes(bytes, self.header.nonce, at)
    }

    pub(crate) fn bucket_at(&self, bucket: u32) -> u64 {
        self.header.buckets_at().saturating_add(u64::from(bucket).saturating_mul(BUCKET as u64))
    }

    pub(crate) fn entry_at(&self, at: u32) -> u64 {
        self.header.entries_at().saturating_add(u64::from(at.saturating_sub(1)).saturating_mul(ENTRY as u64))
    }

    pub(crate) fn length_at(&self, row: u32) -> u64 {
        self.header.lengths_at().saturating_add(u64::from(row).saturating_mul(4))
    }

    /// Where the sums are that a row counts in.
    pub(crate) fn sums_at(&self, row: u32) -> [u64; 2] {
        let group = row / FAN;
        [
            HEADER.saturating_add(u64::from(group / FAN).saturating_mul(8)),
            self.header.groups_at().saturating_add(u64::from(group).saturating_mul(8)),
        ]
    }

    fn words(&self, table: u64, from: u32, to: u32) -> Option<Vec<u64>> {
        let count = usize::try_from(to.saturating_sub(from)).ok()?;
        let mut bytes = vec![0; count.checked_mul(8)?];
        if count > 0 {
            read_at(&self.file, &mut bytes, table.saturating_add(u64::from(from).saturating_mul(8)))?;
        }
        bytes.chunks_exact(8).map(|word| word.try_into().map(u64::from_le_bytes).ok()).collect()
    }
}

/// The sums of the rows' bytes, as they are laid out in the file, and the rows' own.
pub(crate) fn layout(header: &Header, lengths: &[u32]) -> Vec<u8> {
    let sums = |lengths: &[u64]| -> Vec<u64> { lengths.chunks(FAN as usize).map(|group| group.iter().sum()).collect() };
    let mut own: Vec<u64> = lengths.iter().map(|length| u64::from(*length)).collect();
    own.resize(header.row_capacity as usize, 0);
    let groups = sums(&own);
    let large = sums(&groups);
    let mut bytes = header.to_bytes();
    bytes.resize(HEADER as usize, 0);
    bytes.extend(large.into_iter().chain(groups).flat_map(u64::to_le_bytes));
    bytes.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    bytes.resize(usize::try_from(header.buckets_at()).unwrap_or(0), 0);
    bytes
}

/// Fills the buffer, or there is something amiss.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> Option<()> {
    let mut filled: usize = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match graph_sys::io::pread(file, rest, offset.checked_add(u64::try_from(filled).ok()?)?) {
            Ok(0) => return None,
            Ok(count) => filled = filled.checked_add(count)?,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
