//! The files of an image: a directory, or the members of a tar.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph_archive::limits::Limits;
use graph_archive::{EntryKind, compress, tar};
use graph_sys::resolve::RootDir;

use crate::error::{Error, Result};

/// Documents (indexes, manifests, configs) longer than this are refused: real ones have some kilobytes, and registries
/// take four megabytes at most (distribution-spec).
pub(crate) const DOCUMENT_BYTES: u64 = 8 << 20;

/// Where an image's files are.
#[derive(Debug)]
pub(crate) enum Files {
    /// In a directory. Names, and symbolic links on their way, are resolved as if it were the root directory: what is
    /// outside is none of the image's business.
    Dir { path: PathBuf, root: RootDir },
    /// In an uncompressed tar, by member name.
    Tar { path: PathBuf, file: Arc<File>, members: BTreeMap<String, Member> },
}

/// Where a member of a tar is.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// Its content.
    Content { offset: u64, size: u64 },
    /// It is another name of that member (a symbolic or hard link, as `docker save` once wrote them).
    Link(String),
}

impl Files {
    /// Opens a directory, or an archive of whatever compression.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if metadata.is_dir() {
            let root = RootDir::open(path).map_err(|e| Error::io("open", path)(e.into()))?;
            return Ok(Self::Dir { path: path.to_path_buf(), root });
        }
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut magic = [0_u8; 8];
        let mut filled = 0;
        while let Some(rest) = magic.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(Error::io("read", path))? {
                0 => break,
                count => filled += count,
            }
        }
        let rewind = |file: &mut File| file.seek(SeekFrom::Start(0)).map(drop).map_err(Error::io("seek", path));
        rewind(&mut file)?;
        if compress::Compression::detect(magic.get(..filled).unwrap_or_default()) != compress::Compression::None {
            // Members are read in any order, so a compressed archive is unpacked once, into a file without a name.
            let mut plain = tempfile(path)?;
            let mut reader = compress::Decompressor::new(file, &Limits::default()).map_err(|e| archive(path, e))?;
            io::copy(&mut reader, &mut plain).map_err(Error::io("decompress", path))?;
            file = plain;
            rewind(&mut file)?;
        }
        let members = members(path, &mut file)?;
        Ok(Self::Tar { path: path.to_path_buf(), file: Arc::new(file), members })
    }

    /// The same once more.
    pub(crate) fn again(&self) -> Result<Self> {
        Ok(match self {
            Self::Dir { path, .. } => {
                let root = RootDir::open(path).map_err(|e| Error::io("open", path)(e.into()))?;
                Self::Dir { path: path.clone(), root }
            }
            Self::Tar { path, file, members } => {
                Self::Tar { path: path.clone(), file: Arc::clone(file), members: members.clone() }
            }
        })
    }

    /// The directory or archive.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Dir { path, .. } | Self::Tar { path, .. } => path,
        }
    }

    /// Whether there is a file of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Dir { root, .. } => open_below(root, name).is_ok(),
            Self::Tar { .. } => self.member(name).is_some(),
        }
    }

    fn member(&self, name: &str) -> Option<(u64, u64)> {
        let Self::Tar { members, .. } = self else { return None };
        let mut name = clean(name)?;
        // Links to links exist; more than a few in a row are a loop.
        for _ in 0..8 {
            match members.get(&name)? {
                Member::Content { offset, size } => return Some((*offset, *size)),
                Member::Link(target) => name = target.clone(),
            }
        }
        None
    }

    /// Opens a file for streaming; its size in bytes.
    pub(crate) fn stream(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Self::Dir { path: dir, root } => {
                let path = dir.join(name);
                let file = open_below(root, name).map_err(Error::io("open", &path))?;
                let metadata = file.metadata().map_err(Error::io("stat", &path))?;
                if !metadata.is_file() {
                    return Err(Error::invalid(path, "not a regular file"));
                }
                Ok((Box::new(file), metadata.len()))
            }
            Self::Tar { path, file, .. } => {
                let (offset, size) =
                    self.member(name).ok_or_else(|| Error::invalid(path, format!("has no member {name:?}")))?;
                Ok((Box::new(Section { file: Arc::clone(file), offset, left: size }), size))
            }
        }
    }

    /// Reads a whole document.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.stream(name)?;
        if size > DOCUMENT_BYTES {
            let problem = format!("{name} has {size} bytes; documents are limited to {DOCUMENT_BYTES}");
            return Err(Error::invalid(self.path(), problem));
        }
        let mut bytes = Vec::new();
        reader.take(DOCUMENT_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", self.path().join(name)))?;
        Ok(bytes)
    }
}

fn archive(path: &Path, source: graph_archive::Error) -> Error {
    Error::Archive { path: path.to_path_buf(), source }
}

/// Opens a file of a directory for reading. A fifo does not keep us waiting.
fn open_below(root: &RootDir, name: &str) -> io::Result<File> {
    use graph_sys::fs::OFlags;
    Ok(File::from(root.open_in_root(name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?))
}

/// A file without a name beside the archive, or where temporary files go.
fn tempfile(archive: &Path) -> Result<File> {
    use graph_sys::fs::{CWD, Mode, OFlags};
    let beside = archive.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut error = None;
    for dir in [beside, Path::new("/var/tmp"), Path::new("/tmp")] {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match graph_sys::fs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => return Ok(File::from(fd)),
            Err(errno) => error = Some((dir, errno)),
        }
    }
    let (dir, errno) = error.unwrap_or((beside, graph_sys::io::Errno::NOENT));
    Err(Error::io("make a temporary file in", dir)(errno.into()))
}

/// A member's name without `./` and slashes at its ends; `None` when it leads out of the archive.
fn clean(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn members(path: &Path, file: &mut File) -> Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let mut decoder = tar::Decoder::new(&mut *file, Limits::default());
    let mut ignore = |_: &[u8]| Ok(());
    while let Some(entry) = decoder.next_entry(&mut ignore).map_err(|e| archive(path, e))? {
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(clean) else { continue };
        let target = std::str::from_utf8(&entry.link_target).ok();
        let member = match entry.kind {
            EntryKind::File if entry.sparse.is_none() => {
                Some(Member::Content { offset: decoder.offset(), size: entry.size })
            }
            EntryKind::HardLink => target.and_then(clean).map(Member::Link),
            EntryKind::Symlink => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                target.and_then(|target| clean(&format!("{dir}/{target}"))).map(Member::Link)
            }
            _ => None,
        };
        if let Some(member) = member {
            members.insert(name, member);
        }
    }
    Ok(members)
}

/// A member's bytes, read by position, so that several can be read at once.
struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..most) else { return Ok(0) };
        if buf.is_empty() {
            return Ok(0);
        }
        let count = self.file.read_at(buf, self.offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset = self.offset.saturating_add(count as u64);
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}
