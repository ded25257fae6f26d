//! Reading an archive, member by member.

use std::io::{self, Read};
use std::ops::Range;

use super::BLOCK_SIZE;
use super::block::{self, Block, Header, Numbers, ZERO_BLOCK};
use super::number::decimal;
use super::pax::{Records, SparseRecords};
use super::sparse::{Map, MapReader, Refusal, number};
use super::window::{ReadError, Window};
use crate::entry::{Entry, EntryKind, Metadata, SparseRun, Timestamp};
use crate::error::{Defect, Error, Result};
use crate::limits::Limits;

/// Content is handed out in pieces of at least this many bytes, as far as the file has them.
const PIECE: u64 = 64 * 1024;

/// Where bytes go that are not the content of a regular, non-sparse file.
pub type RawSink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// A piece of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// Where it belongs in the file, in bytes.
    pub offset: u64,
    /// The bytes; never empty.
    pub bytes: &'a [u8],
}

/// Reads a tar stream.
///
/// Call [`next_entry`](Self::next_entry), then [`next_data`](Self::next_data) until it gives `None` (or not at all), and
/// so on until `next_entry` gives `None`; then [`finish`](Self::finish). Every byte of the stream comes out exactly once
/// and in order, either as raw bytes or as data of a regular file; a sparse file's bytes come out raw, and its data
/// beside that.
///
/// What is accepted, and what it means, is as in Go's `archive/tar`:
/// * The size that counts is the one of the PAX record where there is one, for the framing of the stream too; links,
///   directories, devices and pipes have no content whatever their size field says.
/// * Two zero blocks end the archive, and so does the end of the stream between members, within the padding or after one
///   zero block. One zero block with something else after it is an error. What follows the end is not looked at.
/// * A second `x` member before the same member replaces the first one's records. A GNU long name goes before `path`.
/// * A global header (`g`) is checked and otherwise ignored; records that came before it are forgotten.
///
/// Stricter than Go: a stream that ends between an extension member and its member is cut short; names are never empty;
/// numbers must fit the file system's types; sparse maps must add up; member types that no layer can hold are refused.
/// More lenient: extended attributes with an empty value are kept, and those that only libarchive's records state are read.
///
/// After an error every further call is an error.
pub struct Decoder<R> {
    window: Window<R>,
    limits: Limits,
    entries: u64,
    /// Bytes and blocks of extension members since the last member.
    extension_bytes: u64,
    /// Name of the member being read, for messages.
    name: Vec<u8>,
    content: Content,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Members,
    /// The end has been seen.
    End,
    Failed,
}

/// The content of the current member.
#[derive(Debug, Default)]
struct Content {
    /// Stored bytes to come.
    remaining: u64,
    /// Bytes of padding after them.
    padding: u64,
    /// Offset in the file of the next byte.
    position: u64,
    sparse: Option<SparseContent>,
}

#[derive(Debug)]
struct SparseContent {
    /// Runs to come, the next one last.
    runs: Vec<SparseRun>,
    /// Bytes to come of the run that is being read.
    run: u64,
}

/// What extension members said about the member to come.
#[derive(Debug, Default)]
struct Extensions {
    seen: bool,
    records: Option<Records>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl<R> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("entries", &self.entries).field("state", &self.state).finish_non_exhaustive()
    }
}

impl<R: Read> Decoder<R> {
    /// Reads the uncompressed stream `reader` within `limits`. Reads ahead, so what follows an archive in the stream is
    /// consumed too.
    pub fn new(reader: R, limits: Limits) -> Self {
        Self {
            window: Window::new(reader, limits.total_bytes),
            limits,
            entries: 0,
            extension_bytes: 0,
            name: Vec::new(),
            content: Content::default(),
            state: State::Members,
        }
    }

    /// The next member, or `None` at the end of the archive. Content of the current member that has not been asked for,
    /// padding, extension members and the header go to `raw`; at the end, the end blocks.
    ///
    /// # Errors
    /// Bad input, a passed limit, the reader's errors and `raw`'s. An [`Error`] inside of the reader's error (as a
    /// decompressor gives it) comes out as it is.
    pub fn next_entry(&mut self, raw: &mut RawSink<'_>) -> Result<Option<Entry>> {
        match self.state {
            State::End => return Ok(None),
            State::Failed => return Err(self.failed_before()),
            State::Members => {}
        }
        self.state = State::Failed;
        let entry = self.advance(raw)?;
        self.state = if entry.is_some() { State::Members } else { State::End };
        Ok(entry)
    }

    /// The next piece of the current member's data, `None` at its end; at once for all but files. The bytes of a sparse
    /// file go to `raw` as well, and the offsets pass over its holes.
    ///
    /// # Errors
    /// As [`next_entry`](Self::next_entry).
    pub fn next_data(&mut self, raw: &mut RawSink<'_>) -> Result<Option<Data<'_>>> {
        match self.state {
            State::End => return Ok(None),
            State::Failed => return Err(self.failed_before()),
            State::Members => {}
        }
        self.state = State::Failed;
        let Some((offset, range)) = self.piece(raw)? else {
            self.state = State::Members;
            return Ok(None);
        };
        self.state = State::Members;
        Ok(Some(Data { offset, bytes: self.window.bytes(range) }))
    }

    /// Hands the rest of the stream to `raw`, and gives the number of bytes of the whole stream. Meant for after
    /// [`next_entry`](Self::next_entry) has given `None`; earlier, the rest of the archive is not looked at.
    ///
    /// # Errors
    /// A passed limit, the reader's errors and `raw`'s.
    pub fn finish(&mut self, raw: &mut RawSink<'_>) -> Result<u64> {
        if self.state == State::Failed {
            return Err(self.failed_before());
        }
        self.state = State::Failed;
        self.name.clear();
        while self.fill(1)? > 0 {
            self.hand_over(usize::MAX, raw)?;
        }
        self.state = State::End;
        Ok(self.window.offset())
    }

    /// Offset in the stream of the next byte to be handed out.
    pub fn offset(&self) -> u64 {
        self.window.offset()
    }

    /// The reader. Reading from it would lose bytes.
    pub fn get_ref(&self) -> &R {
        self.window.get_ref()
    }

    /// Gives the reader back. Bytes that had been read ahead are lost unless [`finish`](Self::finish) was called.
    pub fn into_inner(self) -> R {
        self.window.into_inner()
    }

    // ---- errors ----

    fn failed_before(&self) -> Error {
        Error::io("read layer", self.name.as_slice(), io::Error::other("reading on after an error"))
    }

    fn input(&self, defect: Defect) -> Error {
        Error::input(self.name.as_slice(), self.window.offset(), defect)
    }

    fn limit(&self, limit: &'static str, maximum: u64, found: u64) -> Error {
        Error::Limit { limit, maximum, found, entry: self.name.clone(), offset: self.window.offset() }
    }

    fn within(&self, limit: &'static str, maximum: u64, found: u64) -> Result<()> {
        if found > maximum { Err(self.limit(limit, maximum, found)) } else { Ok(()) }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Defect(defect) => self.input(defect),
            Refusal::TooMany(found) => self.limit("sparse_runs", self.limits.sparse_runs, found),
        }
    }

    // ---- bytes ----

    fn fill(&mut self, wanted: usize) -> Result<usize> {
        self.window.fill(wanted).map_err(|error| match error {
            ReadError::TooLong(found) => self.limit("total_bytes", self.limits.total_bytes, found),
            ReadError::Io(error) => match error.downcast::<Error>() {
                Ok(error) => error.about(&self.name),
                Err(error) => Error::io("read layer", self.name.as_slice(), error),
            },
        })
    }

    /// Hands up to `count` bytes of those at hand to `raw`; how many.
    fn hand_over(&mut self, count: usize, raw: &mut RawSink<'_>) -> Result<u64> {
        let range = self.window.take(count);
        let count = range.len() as u64;
        raw(self.window.bytes(range))
            .map_err(|error| Error::io("keep raw bytes of layer", self.name.as_slice(), error))?;
        Ok(count)
    }

    /// Hands `count` bytes to `raw`; how many the stream did not have.
    fn skip(&mut self, mut count: u64, raw: &mut RawSink<'_>) -> Result<u64> {
        while count > 0 && self.fill(1)? > 0 {
            let handed = self.hand_over(usize::try_from(count).unwrap_or(usize::MAX), raw)?;
            count = count.saturating_sub(handed);
        }
        Ok(count)
    }

    /// Reads a block and hands it to `raw`. `None` if the stream ends before it.
    fn block(&mut self, raw: &mut RawSink<'_>) -> Result<Option<Block>> {
        if self.fill(BLOCK_SIZE)? == 0 {
            return Ok(None);
        }
        let Some(block) = self.window.block() else {
            return Err(self.input(Defect::UnexpectedEof));
        };
        self.hand_over(BLOCK_SIZE, raw)?;
        Ok(Some(block))
    }

    /// Reads `size` bytes that are not content into memory and hands them, and their padding, to `raw`.
    fn body(&mut self, size: u64, raw: &mut RawSink<'_>) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let mut keep = |bytes: &[u8]| {
            body.extend_from_slice(bytes);
            raw(bytes)
        };
        if self.skip(size, &mut keep)? > 0 {
            return Err(self.input(Defect::UnexpectedEof));
        }
        // Padding that is cut off is for the next block to notice.
        self.skip(padding(size), raw)?;
        Ok(body)
    }

    // ---- members ----

    fn advance(&mut self, raw: &mut RawSink<'_>) -> Result<Option<Entry>> {
        let content = std::mem::take(&mut self.content);
        if self.skip(content.remaining, raw)? > 0 {
            return Err(self.input(Defect::UnexpectedEof));
        }
        self.skip(content.padding, raw)?;
        self.name.clear();
        self.extension_bytes = 0;

        let mut extensions = Extensions::default();
        let mut member_offset = self.window.offset();
        loop {
            let Some(block) = self.block(raw)? else {
                return if extensions.seen { Err(self.input(Defect::UnexpectedEof)) } else { Ok(None) };
            };
            if block == ZERO_BLOCK {
                return match self.block(raw)? {
                    None | Some(ZERO_BLOCK) => Ok(None),
                    Some(_) => Err(self.input(Defect::InvalidHeader)),
                };
            }
            let Some(header) = Header::new(&block) else { return Err(self.input(Defect::InvalidHeader)) };
            let size = header.size().map_err(|defect| self.input(defect))?;
            let numbers = header.numbers().map_err(|defect| self.input(defect))?;
            match header.type_flag() {
                b'x' => {
                    let body = self.extension(size, self.limits.pax_bytes, "pax_bytes", raw)?;
                    extensions.records = Some(Records::parse(&body).map_err(|defect| self.input(defect))?);
                }
                b'L' | b'K' => {
                    // The body ends in a NUL, which is not part of the name.
                    let maximum = self.limits.name_bytes.saturating_add(1);
                    let body = self.extension(size, maximum, "name_bytes", raw)?;
                    let name = block::text(&body).to_vec();
                    let is_name = header.type_flag() == b'L';
                    *(if is_name { &mut extensions.long_name } else { &mut extensions.long_link }) = name;
                }
                b'g' => {
                    let body = self.extension(size, self.limits.pax_bytes, "pax_bytes", raw)?;
                    Records::parse(&body).map_err(|defect| self.input(defect))?;
                    extensions = Extensions::default();
                    member_offset = self.window.offset();
                    continue;
                }
                _ => return self.member(&header, size, &numbers, extensions, member_offset, raw).map(Some),
            }
            extensions.seen = true;
        }
    }

    /// The body of an extension member.
    fn extension(&mut self, size: i64, maximum: u64, limit: &'static str, raw: &mut RawSink<'_>) -> Result<Vec<u8>> {
        let size = self.unsigned(size, "size")?;
        self.within(limit, maximum, size)?;
        // Extension members follow each other without end in a hostile archive, empty ones too: all those before one
        // member share what one of each kind may take, headers included.
        let header = BLOCK_SIZE as u64;
        self.extension_bytes = self.extension_bytes.saturating_add(size).saturating_add(header);
        let names = self.limits.name_bytes.saturating_add(1).saturating_mul(2);
        let shared = self.limits.pax_bytes.saturating_add(names).saturating_add(header.saturating_mul(4));
        if self.extension_bytes > shared {
            return Err(self.limit("pax_bytes", self.limits.pax_bytes, self.extension_bytes));
        }
        self.body(size, raw)
    }

    fn unsigned(&self, value: i64, field: &'static str) -> Result<u64> {
        u64::try_from(value).map_err(|_| self.input(Defect::InvalidNumber { field }))
    }

    fn member(
        &mut self,
        header: &Header<'_>,
        size: i64,
        numbers: &Numbers,
        extensions: Extensions,
        offset: u64,
        raw: &mut RawSink<'_>,
    ) -> Result<Entry> {
        let records = extensions.records.unwrap_or_default();
        let path = first_stated([extensions.long_name, records.path.unwrap_or_default()], || {
            let (prefix, name) = (header.prefix(), header.name());
            if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
        });
        self.name.extend_from_slice(&path);

        let flag = header.type_flag();
        let kind = self.kind(flag, &path, numbers)?;
        let is_file = kind == EntryKind::File;
        // The header's own size must make sense even where a record replaces it.
        if is_file && size < 0 {
            return Err(self.input(Defect::InvalidNumber { field: "size" }));
        }
        let stored = if is_file { self.unsigned(records.size.unwrap_or(size), "size")? } else { 0 };
        self.within("total_bytes", self.limits.total_bytes.saturating_sub(self.window.offset()), stored)?;
        self.content = Content { remaining: stored, padding: padding(stored), position: 0, sparse: None };

        let id = |value: i64, field| {
            // The last value means "no id" to every system call that takes one.
            let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| self.input(Defect::InvalidNumber { field }))
        };
        let metadata = Metadata {
            mode: u32::try_from(numbers.mode & 0o7777).unwrap_or_default(),
            uid: id(records.uid.unwrap_or(numbers.uid), "uid")?,
            gid: id(records.gid.unwrap_or(numbers.gid), "gid")?,
            user_name: records.user_name.unwrap_or_else(|| header.user_name().to_vec()),
            group_name: records.group_name.unwrap_or_else(|| header.group_name().to_vec()),
            mtime: records.mtime.unwrap_or(Timestamp { seconds: numbers.mtime, nanoseconds: 0 }),
            atime: records.atime.or(numbers.atime.map(|seconds| Timestamp { seconds, nanoseconds: 0 })),
            xattrs: records.xattrs,
        };
        let xattr_bytes = metadata
            .xattrs
            .iter()
            .fold(0_usize, |sum, (name, value)| sum.saturating_add(name.len()).saturating_add(value.len()));
        self.within("xattr_bytes", self.limits.xattr_bytes, xattr_bytes as u64)?;
        let link_target = match kind {
            EntryKind::HardLink | EntryKind::Symlink => {
                first_stated([extensions.long_link, records.link_path.unwrap_or_default()], || {
                    header.link_name().to_vec()
                })
            }
            _ => Vec::new(),
        };
        self.entries = self.entries.saturating_add(1);
        self.within("entries", self.limits.entries, self.entries)?;

        let mut entry = Entry { path, kind, link_target, size: stored, sparse: None, metadata, offset };
        if flag == b'S' {
            self.old_gnu_sparse(header, &mut entry, raw)?;
        } else {
            self.pax_sparse(&records.sparse, &mut entry, raw)?;
        }
        if let Some(runs) = &entry.sparse {
            self.within("total_bytes", self.limits.total_bytes, entry.size)?;
            let runs = runs.iter().rev().copied().collect();
            self.content.sparse = Some(SparseContent { runs, run: 0 });
        }
        if entry.path.is_empty() {
            return Err(self.input(Defect::InvalidName));
        }
        self.within("name_bytes", self.limits.name_bytes, entry.path.len() as u64)?;
        self.within("name_bytes", self.limits.name_bytes, entry.link_target.len() as u64)?;
        Ok(entry)
    }

    fn kind(&self, flag: u8, path: &[u8], numbers: &Numbers) -> Result<EntryKind> {
        let device = |value, field| u32::try_from(value).map_err(|_| self.input(Defect::InvalidNumber { field }));
        Ok(match flag {
            // v7 knows no directories but by their name.
            0 if path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice {
                major: device(numbers.major, "devmajor")?,
                minor: device(numbers.minor, "devminor")?,
            },
            b'4' => EntryKind::BlockDevice {
                major: device(numbers.major, "devmajor")?,
                minor: device(numbers.minor, "devminor")?,
            },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            type_flag => return Err(self.input(Defect::UnknownType { type_flag })),
        })
    }

    // ---- sparse files ----

    fn old_gnu_sparse(&mut self, header: &Header<'_>, entry: &mut Entry, raw: &mut RawSink<'_>) -> Result<()> {
        // star uses the same type flag for another layout.
        if header.format != block::Format::Gnu {
            return Err(self.input(Defect::InvalidHeader));
        }
        let real_size = header.real_size().map_err(|defect| self.input(defect))?;
        entry.size = self.unsigned(real_size, "realsize")?;
        let mut map = Map::new(entry.size, self.limits.sparse_runs);
        let (fields, mut more) = header.sparse();
        map.push_gnu(fields).map_err(|refusal| self.refused(refusal))?;
        while more {
            let Some(block) = self.block(raw)? else { return Err(self.input(Defect::UnexpectedEof)) };
            let (fields, another) = block::sparse_extension(&block);
            map.push_gnu(fields).map_err(|refusal| self.refused(refusal))?;
            more = another;
        }
        entry.sparse = Some(map.finish(self.content.remaining).map_err(|defect| self.input(defect))?);
        Ok(())
    }

    fn pax_sparse(&mut self, records: &SparseRecords, entry: &mut Entry, raw: &mut RawSink<'_>) -> Result<()> {
        let map_before_data = match (records.major.as_slice(), records.minor.as_slice()) {
            (b"0", b"0" | b"1") => false,
            (b"1", b"0") => true,
            // The first versions had no version.
            (b"", b"") if !records.map.is_empty() || !records.pairs.is_empty() => false,
            _ => return Ok(()),
        };
        if entry.kind != EntryKind::File {
            return Err(self.input(Defect::InvalidSparseMap));
        }
        if !records.name.is_empty() {
            entry.path.clone_from(&records.name);
            self.name.clone_from(&records.name);
        }
        let defective = |defect| self.input(defect);
        let real_size = if records.size.is_empty() { &records.real_size } else { &records.size };
        if !real_size.is_empty() {
            let size = number(real_size, "GNU.sparse.size").map_err(defective)?;
            entry.size = self.unsigned(size, "GNU.sparse.size")?;
        }
        let mut map = Map::new(entry.size, self.limits.sparse_runs);
        if map_before_data {
            self.read_map(&mut map, raw)?;
        } else {
            let pushed =
                if records.pairs.is_empty() { map.push_list(&records.map) } else { map.push_pairs(&records.pairs) };
            pushed.map_err(|refusal| self.refused(refusal))?;
            if decimal(&records.block_count).and_then(|count| u64::try_from(count).ok()) != Some(map.count()) {
                return Err(self.input(Defect::InvalidNumber { field: "GNU.sparse.numblocks" }));
            }
        }
        entry.sparse = Some(map.finish(self.content.remaining).map_err(|defect| self.input(defect))?);
        Ok(())
    }

    /// Reads the map of version 1.0, which is part of the stored content.
    fn read_map(&mut self, map: &mut Map, raw: &mut RawSink<'_>) -> Result<()> {
        let mut reader = MapReader::default();
        loop {
            let Some(remaining) = self.content.remaining.checked_sub(BLOCK_SIZE as u64) else {
                return Err(self.input(Defect::InvalidSparseMap));
            };
            let Some(block) = self.block(raw)? else { return Err(self.input(Defect::UnexpectedEof)) };
            self.content.remaining = remaining;
            if reader.feed(&block, map).map_err(|refusal| self.refused(refusal))? {
                return Ok(());
            }
        }
    }

    /// Takes the next piece of content out of the window: where it belongs in the file, and where it lies.
    fn piece(&mut self, raw: &mut RawSink<'_>) -> Result<Option<(u64, Range<usize>)>> {
        let mut wanted = self.content.remaining;
        if let Some(sparse) = &mut self.content.sparse {
            if sparse.run == 0 {
                let Some(run) = sparse.runs.pop() else { return Ok(None) };
                sparse.run = run.length;
                self.content.position = run.offset;
            }
            wanted = wanted.min(sparse.run);
        }
        if wanted == 0 {
            return Ok(None);
        }
        if self.fill(usize::try_from(wanted.min(PIECE)).unwrap_or(usize::MAX))? == 0 {
            return Err(self.input(Defect::UnexpectedEof));
        }
        let range = self.window.take(usize::try_from(wanted).unwrap_or(usize::MAX));
        let taken = range.len() as u64;
        if let Some(sparse) = &mut self.content.sparse {
            sparse.run = sparse.run.saturating_sub(taken);
            raw(self.window.bytes(range.clone()))
                .map_err(|error| Error::io("keep raw bytes of layer", self.name.as_slice(), error))?;
        }
        self.content.remaining = self.content.remaining.saturating_sub(taken);
        let offset = self.content.position;
        self.content.position = offset.saturating_add(taken);
        Ok(Some((offset, range)))
    }
}

/// Bytes from `size` up to the next block.
fn padding(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK_SIZE as u64).map_or(0, |end| end.saturating_sub(size))
}

fn first_stated<const N: usize>(candidates: [Vec<u8>; N], otherwise: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    candidates.into_iter().find(|name| !name.is_empty()).unwrap_or_else(otherwise)
}
