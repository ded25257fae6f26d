//! Writing an archive.

use std::fmt;
use std::io::{self, Write};

use super::BLOCK_SIZE;
use super::block::HeaderWriter;
use super::pax::Body;
use crate::clean::clean;
use crate::entry::{Entry, EntryKind, SparseRun, Timestamp};
use crate::error::{Defect, Error, Result};

/// The most that the name field holds.
const NAME_SIZE: usize = 100;
/// The most that the prefix field holds.
const PREFIX_SIZE: usize = 155;
/// The most that the owner name fields hold.
const OWNER_SIZE: usize = 32;
/// Go refuses to read longer extended headers.
const MAX_RECORDS: u64 = 1 << 20;

/// What an [`Encoder`] writes of what entries say. The default is what containers/storage writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EncodeOptions {
    /// Write the nanoseconds of modification times (in PAX records, where there are any). Otherwise times are whole
    /// seconds, rounded down.
    pub nanoseconds: bool,
    /// Write access times where entries have them (in PAX records).
    pub access_times: bool,
    /// Write files that have [`Entry::sparse`] without their holes, in GNU's PAX format 1.0. Otherwise holes are written
    /// out as zeros.
    pub sparse: bool,
}

/// Writes a tar stream: the same entries and contents always give the same bytes, and those that Go's `archive/tar` gives.
///
/// A member is written as ustar where that can hold it, and otherwise with a PAX extended header before it, records
/// sorted by key. Names are written as they are: a directory's should end in a slash.
///
/// Call [`write_entry`](Self::write_entry), then [`append`](Self::append) or [`append_at`](Self::append_at) for the
/// content of a file, and so on; at last [`finish`](Self::finish). Writes are small: give it a buffered writer.
pub struct Encoder<W> {
    writer: W,
    options: EncodeOptions,
    /// Name of the member being written.
    name: Vec<u8>,
    /// Where in the file the next byte belongs.
    position: u64,
    /// Bytes of content to come.
    remaining: u64,
    /// Padding that is due after the content.
    padding: usize,
    /// For a file written as sparse: runs to come, the next one last; the first of them from `position` on.
    runs: Option<Vec<SparseRun>>,
    /// What goes to the writer at once.
    buffer: Vec<u8>,
}

impl<W> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("options", &self.options)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl<W: Write> Encoder<W> {
    /// Writes to `writer` what containers/storage would write.
    pub fn new(writer: W) -> Self {
        Self::with_options(writer, EncodeOptions::default())
    }

    /// Writes to `writer` as told.
    pub fn with_options(writer: W, options: EncodeOptions) -> Self {
        Self {
            writer,
            options,
            name: Vec::new(),
            position: 0,
            remaining: 0,
            padding: 0,
            runs: None,
            buffer: Vec::new(),
        }
    }

    /// Begins a member. [`Entry::size`] bytes of content are to follow for a file, or those of [`Entry::sparse`] where it
    /// is written as sparse. [`Entry::offset`] means nothing here.
    ///
    /// # Errors
    /// The content of the member before is incomplete; the entry cannot be archived (a name with NUL, a name of a file
    /// that ends in a slash, a wrong sparse map, more than 1 MiB of records); the writer's. After an error of the writer
    /// the archive is broken; after others it goes on as if the call had not been.
    pub fn write_entry(&mut self, entry: &Entry) -> Result<()> {
        self.check_complete()?;
        let plan = Plan::new(entry, self.options)?;
        self.name.clone_from(&entry.path);
        self.buffer.clear();
        self.buffer.resize(self.padding, 0);
        plan.write(entry, &mut self.buffer)?;
        self.padding = padding(plan.stored);
        self.remaining = plan.stored;
        self.position = 0;
        self.runs = None;
        if plan.sparse {
            self.buffer.extend_from_slice(&plan.map);
            self.remaining = plan.stored.saturating_sub(plan.map.len() as u64);
            let mut runs: Vec<_> = entry.sparse.iter().flatten().copied().filter(|run| run.length > 0).collect();
            runs.reverse();
            self.position = runs.last().map_or(entry.size, |run| run.offset);
            self.runs = Some(runs);
        }
        self.writer.write_all(&self.buffer).map_err(|error| self.failed(error))
    }

    /// Bytes of content that are still to come for the current member.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Appends content of the current member: of a file written as sparse, the data of its runs one after the other.
    ///
    /// # Errors
    /// More bytes than the entry said (none of them is written); the writer's.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() as u64;
        let Some(remaining) = self.remaining.checked_sub(count) else {
            return Err(self.misuse(format!("{count} bytes of content where {} are to come", self.remaining)));
        };
        self.writer.write_all(bytes).map_err(|error| self.failed(error))?;
        self.remaining = remaining;
        self.advance(count);
        Ok(())
    }

    /// Appends content that belongs at `offset` of the file, after a hole: zeros are written for it, unless the file is
    /// written as sparse, where `offset` must be where the data goes on. `append_at(entry.size, b"")` ends any file.
    ///
    /// # Errors
    /// As [`append`](Self::append); `offset` is not where content can go on.
    pub fn append_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.runs.is_some() {
            if offset != self.position && !bytes.is_empty() {
                return Err(self.misuse(format!("data for offset {offset} where the map goes on at {}", self.position)));
            }
            return self.append(bytes);
        }
        let gap = offset.checked_sub(self.position).filter(|gap| *gap <= self.remaining);
        let Some(mut gap) = gap else {
            return Err(self.misuse(format!("data for offset {offset} of a file written to {}", self.position)));
        };
        while gap > 0 {
            let zeros = [0; 16 * 1024];
            let piece = zeros.get(..usize::try_from(gap).unwrap_or(usize::MAX)).unwrap_or(&zeros);
            self.append(piece)?;
            gap = gap.saturating_sub(piece.len() as u64);
        }
        self.append(bytes)
    }

    /// Writes the two zero blocks that end an archive and gives the writer back, flushed.
    ///
    /// # Errors
    /// The content of the last member is incomplete; the writer's.
    pub fn finish(mut self) -> Result<W> {
        self.check_complete()?;
        let end = vec![0; self.padding.saturating_add(2 * BLOCK_SIZE)];
        let written = self.writer.write_all(&end).and_then(|()| self.writer.flush());
        written.map_err(|error| self.failed(error))?;
        Ok(self.writer)
    }

    fn advance(&mut self, mut count: u64) {
        let Some(runs) = &mut self.runs else {
            self.position = self.position.saturating_add(count);
            return;
        };
        while let Some(run) = runs.last_mut() {
            if count < run.length {
                run.offset = run.offset.saturating_add(count);
                run.length = run.length.saturating_sub(count);
                self.position = run.offset;
                return;
            }
            count = count.saturating_sub(run.length);
            self.position = run.offset.saturating_add(run.length);
            runs.pop();
        }
    }

    fn check_complete(&self) -> Result<()> {
        if self.remaining > 0 {
            return Err(self.misuse(format!("{} bytes of content are missing", self.remaining)));
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("write layer", self.name.as_slice(), error)
    }

    fn misuse(&self, what: String) -> Error {
        self.failed(io::Error::new(io::ErrorKind::InvalidInput, what))
    }
}

/// How an entry is to be written.
struct Plan {
    type_flag: u8,
    /// Bytes of content in the archive, the sparse map among them.
    stored: u64,
    records: Body,
    sparse: bool,
    /// The sparse map in whole blocks.
    map: Vec<u8>,
    mtime: Timestamp,
    device: (u32, u32),
}

impl Plan {
    fn new(entry: &Entry, options: EncodeOptions) -> Result<Self> {
        let refuse = |defect| Error::input(entry.path.as_slice(), 0, defect);
        let metadata = &entry.metadata;
        let (type_flag, device) = match entry.kind {
            EntryKind::File => (b'0', (0, 0)),
            EntryKind::HardLink => (b'1', (0, 0)),
            EntryKind::Symlink => (b'2', (0, 0)),
            EntryKind::CharDevice { major, minor } => (b'3', (major, minor)),
            EntryKind::BlockDevice { major, minor } => (b'4', (major, minor)),
            EntryKind::Directory => (b'5', (0, 0)),
            EntryKind::Fifo => (b'6', (0, 0)),
        };
        let names_directory = matches!(entry.kind, EntryKind::Directory | EntryKind::HardLink | EntryKind::Symlink);
        if entry.path.is_empty()
            || entry.path.contains(&0)
            || link_target(entry).contains(&0)
            || (entry.path.ends_with(b"/") && !names_directory)
        {
            return Err(refuse(Defect::InvalidName));
        }
        if u64::from(device.0.max(device.1)) > HeaderWriter::MAX_SHORT {
            let what = format!("device number {}:{} in an archive", device.0, device.1);
            return Err(Error::Unsupported { what, path: entry.path.clone() });
        }
        let mut plan = Self {
            type_flag,
            stored: if entry.kind == EntryKind::File { entry.size } else { 0 },
            records: Body::default(),
            sparse: false,
            map: Vec::new(),
            mtime: metadata.mtime,
            device,
        };
        if !options.nanoseconds {
            plan.mtime.nanoseconds = 0;
        }

        if let (EntryKind::File, true, Some(runs)) = (entry.kind, options.sparse, &entry.sparse) {
            plan.add_map(runs, entry).ok_or_else(|| refuse(Defect::InvalidSparseMap))?;
        } else if !is_ascii(&entry.path) || (entry.path.len() > NAME_SIZE) {
            plan.records.push("path", entry.path.as_slice());
        }
        let mut text = |key: &str, value: &[u8], size| {
            if value.contains(&0) {
                return Err(refuse(Defect::InvalidPax));
            }
            if !is_ascii(value) || value.len() > size {
                plan.records.push(key, value);
            }
            Ok(())
        };
        text("linkpath", link_target(entry), NAME_SIZE)?;
        text("uname", &metadata.user_name, OWNER_SIZE)?;
        text("gname", &metadata.group_name, OWNER_SIZE)?;
        let mut number = |key: &str, value: u64, maximum| {
            if value > maximum {
                plan.records.push(key, value.to_string());
            }
        };
        number("uid", u64::from(metadata.uid), HeaderWriter::MAX_SHORT);
        number("gid", u64::from(metadata.gid), HeaderWriter::MAX_SHORT);
        number("size", plan.stored, HeaderWriter::MAX_LONG);
        if plan.mtime.nanoseconds != 0
            || u64::try_from(plan.mtime.seconds).map_or(true, |seconds| seconds > HeaderWriter::MAX_LONG)
        {
            plan.records.push("mtime", time_text(plan.mtime));
        }
        if let Some(atime) = metadata.atime.filter(|_| options.access_times) {
            plan.records.push("atime", time_text(atime));
        }
        for (name, value) in &metadata.xattrs {
            plan.records.push_xattr(name, value).map_err(refuse)?;
        }
        // ustar can hold a long name in two parts, if there is no other reason for an extended header.
        if plan.only_long_name(entry) {
            plan.records = Body::default();
        }
        Ok(plan)
    }

    fn only_long_name(&self, entry: &Entry) -> bool {
        self.records.keys().eq([b"path"]) && split_path(&entry.path).is_some()
    }

    fn add_map(&mut self, runs: &[SparseRun], entry: &Entry) -> Option<()> {
        let mut runs = runs.to_vec();
        runs.retain(|run| run.length > 0);
        let (mut data, mut end) = (0_u64, 0_u64);
        for run in &runs {
            if run.offset < end {
                return None;
            }
            end = run.offset.checked_add(run.length)?;
            data = data.checked_add(run.length)?;
        }
        if end > entry.size {
            return None;
        }
        if end < entry.size {
            // GNU tar's maps state the end of the file where that is in a hole.
            runs.push(SparseRun { offset: entry.size, length: 0 });
        }
        let mut map = format!("{}\n", runs.len()).into_bytes();
        for run in &runs {
            map.extend_from_slice(format!("{}\n{}\n", run.offset, run.length).as_bytes());
        }
        map.resize(map.len().checked_next_multiple_of(BLOCK_SIZE)?, 0);
        self.stored = data.checked_add(map.len() as u64)?;
        self.map = map;
        self.sparse = true;
        self.records.push("GNU.sparse.major", "1");
        self.records.push("GNU.sparse.minor", "0");
        self.records.push("GNU.sparse.name", entry.path.as_slice());
        self.records.push("GNU.sparse.realsize", entry.size.to_string());
        Some(())
    }

    /// Appends the extended header, if there is one, and the header.
    fn write(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<()> {
        let mut header = HeaderWriter::new(self.type_flag);
        if self.records.is_empty() {
            let (prefix, name) = split_path(&entry.path).unwrap_or((b"", &entry.path));
            header.prefix(prefix);
            header.name(name);
            header.link_name(link_target(entry));
            header.owner_names(&entry.metadata.user_name, &entry.metadata.group_name);
        } else {
            let body = self.records.encode();
            let found = body.len() as u64;
            if found > MAX_RECORDS {
                let entry = entry.path.clone();
                return Err(Error::Limit { limit: "pax_bytes", maximum: MAX_RECORDS, found, entry, offset: 0 });
            }
            let name = beside(&entry.path, b"PaxHeaders.0");
            let name = ascii(&name);
            let name = name.get(..NAME_SIZE).unwrap_or(&name);
            let mut extension = HeaderWriter::new(b'x');
            extension.name(trim_slashes(name));
            extension.owner(0, 0, 0);
            extension.size(found);
            extension.mtime(0);
            out.extend_from_slice(&extension.finish());
            out.extend_from_slice(&body);
            out.resize(out.len().saturating_add(padding(found)), 0);

            let name = if self.sparse { beside(&entry.path, b"GNUSparseFile.0") } else { entry.path.clone() };
            header.name(&ascii(&name));
            header.link_name(&ascii(link_target(entry)));
            header.owner_names(&ascii(&entry.metadata.user_name), &ascii(&entry.metadata.group_name));
        }
        let metadata = &entry.metadata;
        header.owner(u64::from(metadata.mode & 0o7777), u64::from(metadata.uid), u64::from(metadata.gid));
        header.size(self.stored);
        header.mtime(u64::try_from(self.mtime.seconds).unwrap_or(0));
        header.device(u64::from(self.device.0), u64::from(self.device.1));
        out.extend_from_slice(&header.finish());
        Ok(())
    }
}

/// The runs made to begin and end at block boundaries (or at the file's end), as GNU tar wants them: each grows outwards
/// and those that meet become one. The data in between is whatever the file reads there, zeros.
#[must_use]
pub fn align_runs(runs: &[SparseRun], size: u64) -> Vec<SparseRun> {
    let block = BLOCK_SIZE as u64;
    let mut aligned: Vec<SparseRun> = Vec::with_capacity(runs.len());
    for run in runs.iter().filter(|run| run.length > 0) {
        let offset = run.offset.saturating_sub(run.offset.checked_rem(block).unwrap_or(0));
        let end = run.offset.saturating_add(run.length);
        let end = end.checked_next_multiple_of(block).map_or(size, |end| end.min(size));
        match aligned.last_mut() {
            Some(last) if last.offset.saturating_add(last.length) >= offset => {
                last.length = end.saturating_sub(last.offset).max(last.length);
            }
            _ => aligned.push(SparseRun { offset, length: end.saturating_sub(offset) }),
        }
    }
    aligned
}

/// Bytes from `size` up to the next block.
fn padding(size: u64) -> usize {
    let end = size.checked_next_multiple_of(BLOCK_SIZE as u64).unwrap_or(size);
    usize::try_from(end.saturating_sub(size)).unwrap_or(0)
}

fn link_target(entry: &Entry) -> &[u8] {
    match entry.kind {
        EntryKind::HardLink | EntryKind::Symlink => &entry.link_target,
        _ => b"",
    }
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|byte| (1..0x80).contains(byte))
}

/// What is left of a text in a field that holds ASCII only.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| (1..0x80).contains(byte)).collect()
}

fn trim_slashes(mut text: &[u8]) -> &[u8] {
    while let [head @ .., b'/'] = text {
        text = head;
    }
    text
}

/// Splits a path that is too long for the name field into prefix and name, at the last slash that makes it fit.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME_SIZE || !is_ascii(path) {
        return None;
    }
    let mut searched = path.get(..PREFIX_SIZE.saturating_add(1)).unwrap_or(path);
    if searched.len() == path.len() {
        searched = searched.strip_suffix(b"/").unwrap_or(searched);
    }
    let slash = searched.iter().rposition(|byte| *byte == b'/').filter(|slash| *slash > 0)?;
    let prefix = path.get(..slash)?;
    let name = path.get(slash.checked_add(1)?..)?;
    if name.is_empty() || name.len() > NAME_SIZE || prefix.len() > PREFIX_SIZE {
        return None;
    }
    Some((prefix, name))
}

/// `<dir>/<name>/<base>` of a path `<dir>/<base>`, cleaned as Go's `path.Join` does: the name of an extended header.
fn beside(path: &[u8], name: &[u8]) -> Vec<u8> {
    let base = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (directory, base) = path.split_at_checked(base).unwrap_or((b"", path));
    clean(directory.starts_with(b"/"), directory.split(|byte| *byte == b'/').chain([name, base]))
}

/// A time as PAX has it: the sign holds for the fraction too, which ends in no zero.
fn time_text(time: Timestamp) -> String {
    if time.nanoseconds == 0 {
        return time.seconds.to_string();
    }
    let (sign, seconds, nanoseconds) = if time.seconds < 0 {
        let seconds = time.seconds.saturating_add(1).unsigned_abs();
        ("-", seconds, 1_000_000_000_u32.saturating_sub(time.nanoseconds))
    } else {
        ("", time.seconds.unsigned_abs(), time.nanoseconds)
    };
    format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').to_owned()
}
