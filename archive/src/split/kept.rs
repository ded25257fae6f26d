//! Contents that an archive itself replaced, kept until the archive has ended.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use graph_sys::fs::{self, AtFlags, Mode, OFlags};
use graph_sys::io::Errno;

use super::crc64::Crc64;

/// Bytes of lost contents kept in memory; what is beyond goes to an unlinked file.
const MEMORY_BYTES: usize = 1 << 20;

/// Checksum and size: what a file record knows of a content.
pub(super) type ContentKey = (u64, u64);

/// Where one content lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Memory(u64),
    Scratch(u64),
}

/// The contents, each once.
#[derive(Debug)]
pub(super) struct Kept {
    scratch: OwnedFd,
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
    contents: HashMap<ContentKey, Place>,
}

/// Archives may replace a million files of one byte.
fn buffer_bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).clamp(512, 64 << 10)
}

impl Kept {
    /// `scratch` is the directory that the unlinked file is made in, if one is needed.
    pub(super) fn new(scratch: OwnedFd) -> Self {
        Self { scratch, memory: Vec::new(), file: None, file_bytes: 0, contents: HashMap::new() }
    }

    pub(super) fn scratch(&self) -> &OwnedFd {
        &self.scratch
    }

    pub(super) fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    pub(super) fn contains(&self, key: ContentKey) -> bool {
        self.contents.contains_key(&key)
    }

    /// Keeps a content of `size` bytes.
    pub(super) fn add(&mut self, content: &mut dyn Read, size: u64) -> io::Result<()> {
        let before = self.memory.len();
        let in_memory =
            usize::try_from(size).is_ok_and(|size| before.checked_add(size).is_some_and(|end| end <= MEMORY_BYTES));
        let mut crc = Crc64::default();
        let mut buffer = vec![0; buffer_bytes(size)];
        let mut count = 0_u64;
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            crc.update(bytes);
            let offset = self.file_bytes.saturating_add(count);
            count = count.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            if count > size {
                break;
            }
            if in_memory {
                self.memory.extend_from_slice(bytes);
            } else {
                let file = match &mut self.file {
                    Some(file) => file,
                    none => none.insert(scratch_file(&self.scratch)?),
                };
                file.write_all_at(bytes, offset)?;
            }
        }
        if count != size {
            self.memory.truncate(before);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a file of the layer changed its size from {size} while it was read"),
            ));
        }
        let place = if in_memory {
            Place::Memory(u64::try_from(before).unwrap_or(u64::MAX))
        } else {
            Place::Scratch(self.file_bytes)
        };
        let known = match self.contents.entry((crc.value(), size)) {
            Slot::Vacant(slot) => {
                slot.insert(place);
                if !in_memory {
                    self.file_bytes = self.file_bytes.saturating_add(size);
                }
                return Ok(());
            }
            Slot::Occupied(slot) => *slot.get(),
        };
        // Already kept, most likely. Two contents with one CRC-64 are easily made on purpose, and the records could not
        // tell them apart.
        let same = self.same(known, place, size);
        self.memory.truncate(before);
        if same? {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the archive replaces two files of {size} bytes that differ and have one checksum"),
            ))
        }
    }

    fn same(&self, a: Place, b: Place, size: u64) -> io::Result<bool> {
        let (mut left, mut right) = (vec![0; buffer_bytes(size)], vec![0; buffer_bytes(size)]);
        let mut offset = 0;
        while offset < size {
            let part = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(left.len());
            let (Some(left), Some(right)) = (left.get_mut(..part), right.get_mut(..part)) else { return Ok(false) };
            self.read_place(a, offset, left)?;
            self.read_place(b, offset, right)?;
            if left != right {
                return Ok(false);
            }
            offset = offset.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        }
        Ok(true)
    }

    fn read_place(&self, place: Place, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match place {
            Place::Memory(start) => {
                let start = usize::try_from(start.saturating_add(offset)).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let bytes = self.memory.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            Place::Scratch(start) => {
                let file = self.file.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
                file.read_exact_at(buffer, start.saturating_add(offset))
            }
        }
    }

    /// A reader of the content of that key, if it is kept.
    pub(super) fn open(&self, key: ContentKey) -> Option<KeptReader<'_>> {
        let place = *self.contents.get(&key)?;
        Some(KeptReader { kept: self, place, offset: 0, size: key.1 })
    }
}

/// Reads one kept content.
#[derive(Debug)]
pub(super) struct KeptReader<'a> {
    kept: &'a Kept,
    place: Place,
    offset: u64,
    size: u64,
}

impl Read for KeptReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let part = left.min(buffer.len());
        let Some(buffer) = buffer.get_mut(..part) else { return Ok(0) };
        self.kept.read_place(self.place, self.offset, buffer)?;
        self.offset = self.offset.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        Ok(part)
    }
}

/// A new file in `directory` that has no name and goes away when it is closed.
pub(super) fn scratch_file(directory: &impl AsFd) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match fs::openat(directory, c".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
        Ok(file) => return Ok(File::from(file)),
        // Not every file system has files without names.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        let name = format!(".tar-split-{:016x}", RandomState::new().build_hasher().finish());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match fs::openat(directory, name.as_str(), flags, mode) {
            Ok(file) => {
                fs::unlinkat(directory, name.as_str(), AtFlags::empty())?;
                return Ok(File::from(file));
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
