//! Restoring files of a layer whose content is damaged, from the archive that the layer was filled with.
//!
//! [`stage`] reads the archive once and makes the wanted files aside, whole, with everything that the archive states of
//! them. [`Staged::commit`] puts one into its place by a rename, so that at every moment the old file is there or the new
//! one.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use graph_sys::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;

use crate::entry::{Entry, EntryKind, Metadata};
use crate::error::{Error, Result};
use crate::idmap::{IdMappings, IdPair};
use crate::limits::Limits;
use crate::split::Damaged;
use crate::split::crc64::Crc64;
use crate::tar::Decoder;

/// A file made aside.
#[derive(Debug)]
pub struct Staged {
    /// The member's name, cleaned.
    pub path: Vec<u8>,
    /// Its name in the staging directory.
    file: String,
    /// Further names of the same inode, cleaned.
    links: Vec<Vec<u8>>,
    metadata: Metadata,
    /// What the archive states of the directories above, outermost first.
    parents: Vec<(Vec<u8>, Option<Metadata>)>,
}

/// The name without `.`, `..` and doubled slashes; `..` never leads above the root.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut path: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            _ => path.push(component),
        }
    }
    path.join(&b'/')
}

/// Makes the wanted files in `staging` from the archive that `reader` gives, uncompressed; it is read to its end. Those that
/// the archive does not have with that size and checksum are left out. Owners are mapped from the archive's ids to those on disk.
///
/// Contents and attributes are flushed to disk. After an error files may be left in `staging`.
///
/// # Errors
/// Bad input, ids that are not mapped, I/O.
pub fn stage(reader: impl Read, wanted: &[Damaged], staging: impl AsFd, mappings: &IdMappings) -> Result<Vec<Staged>> {
    let staging = staging.as_fd();
    let mut by_name: HashMap<Vec<u8>, HashSet<(u64, u64)>> = HashMap::new();
    for file in wanted {
        by_name.entry(clean(&file.name)).or_default().insert((file.size, file.crc));
    }
    let mut directories: HashMap<Vec<u8>, Metadata> = HashMap::new();
    let mut found: HashMap<Vec<u8>, Staged> = HashMap::new();
    let mut decoder = Decoder::new(reader, Limits::NONE);
    let mut ignore = |_: &[u8]| -> io::Result<()> { Ok(()) };
    let mut number = 0_u32;
    while let Some(entry) = decoder.next_entry(&mut ignore)? {
        match entry.kind {
            EntryKind::Directory => drop(directories.insert(clean(&entry.path), entry.metadata)),
            EntryKind::HardLink => {
                if let Some(staged) = found.get_mut(&clean(&entry.link_target)) {
                    staged.links.push(clean(&entry.path));
                    restate(&mut staged.metadata, entry);
                }
            }
            EntryKind::File if entry.sparse.is_none() => {
                let path = clean(&entry.path);
                let Some(sums) = by_name.get(&path) else { continue };
                if !sums.iter().any(|(size, _)| *size == entry.size) {
                    continue;
                }
                number = number.saturating_add(1);
                let name = format!("{number}-restored");
                let failed = |error: io::Error| Error::io("write restored", path.as_slice(), error);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = fs::openat(staging, name.as_str(), flags, Mode::RUSR | Mode::WUSR);
                let mut file = File::from(opened.map_err(|error| failed(error.into()))?);
                let mut sum = Crc64::default();
                while let Some(data) = decoder.next_data(&mut ignore)? {
                    sum.update(data.bytes);
                    file.write_all(data.bytes).map_err(failed)?;
                }
                if sums.contains(&(entry.size, sum.value())) {
                    let staged = Staged {
                        path: path.clone(),
                        file: name,
                        links: Vec::new(),
                        metadata: entry.metadata,
                        parents: Vec::new(),
                    };
                    // The last of several members of one name is what the layer has.
                    found.insert(path, staged);
                } else {
                    fs::unlinkat(staging, name.as_str(), AtFlags::empty()).map_err(|error| failed(error.into()))?;
                }
            }
            _ => {}
        }
    }
    decoder.finish(&mut ignore)?;
    let mut all: Vec<Staged> = found.into_values().collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    for staged in &mut all {
        let file =
            fs::openat(staging, staged.file.as_str(), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Error::io("open restored", staged.path.as_slice(), error))?;
        set_attributes(&file, &staged.metadata, mappings, &staged.path)?;
        fs::fsync(&file).map_err(|error| Error::io("flush restored", staged.path.as_slice(), error))?;
        for (at, _) in staged.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = staged.path.get(..at).unwrap_or_default().to_vec();
            let stated = directories.get(&parent).cloned();
            staged.parents.push((parent, stated));
        }
    }
    Ok(all)
}

/// A link states owner, mode and times of its target anew.
fn restate(metadata: &mut Metadata, link: Entry) {
    let new = link.metadata;
    (metadata.mode, metadata.uid, metadata.gid) = (new.mode, new.uid, new.gid);
    (metadata.mtime, metadata.atime) = (new.mtime, new.atime);
}

fn set_attributes(file: impl AsFd, metadata: &Metadata, mappings: &IdMappings, path: &[u8]) -> Result<()> {
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let owner = mappings.to_host(IdPair { uid: metadata.uid, gid: metadata.gid }, path)?;
    fs::fchown(&file, Some(Uid::from_raw_unchecked(owner.uid)), Some(Gid::from_raw_unchecked(owner.gid)))
        .map_err(failed("change owner of"))?;
    for (name, value) in metadata.xattrs.iter().filter(|(name, _)| name != b"security.selinux") {
        match fs::fsetxattr(&file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(failed("set extended attribute of")(error)),
        }
    }
    fs::fchmod(&file, Mode::from_raw_mode(metadata.mode & 0o7777)).map_err(failed("change mode of"))?;
    fs::futimens(&file, &stated_times(metadata)).map_err(failed("set times of"))
}

pub(crate) fn stated_times(metadata: &Metadata) -> Timestamps {
    let time = |time: crate::entry::Timestamp| Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds.min(999_999_999)),
    };
    Timestamps { last_access: time(metadata.atime.unwrap_or(metadata.mtime)), last_modification: time(metadata.mtime) }
}

impl Staged {
    /// Puts the file in its place below `root`, the directory of the layer's own files, and all its names with it. Directories
    /// keep their times; those that are missing are made as the archive states them.
    ///
    /// A process that is killed in the middle leaves every name either as it was or restored.
    ///
    /// # Errors
    /// I/O errors with the path: no space, a read-only file system.
    pub fn commit(&self, root: &OwnedFd, staging: impl AsFd, mappings: &IdMappings) -> Result<()> {
        let staging = staging.as_fd();
        let failed = |operation: &'static str| move |error: Errno| Error::io(operation, self.path.as_slice(), error);
        let copy = graph_sys::io::fcntl_dupfd_cloexec(root, 0).map_err(failed("open the layer of"))?;
        let root = RootDir::from_fd(copy);
        // Whoever took something out of a directory has changed its time as well.
        let times = |path: &[u8]| {
            let parent = path.iter().rposition(|byte| *byte == b'/').and_then(|at| path.get(..at))?;
            let stated = self.parents.iter().find(|(path, _)| path == parent)?.1.as_ref()?;
            Some(stated_times(stated))
        };
        for (path, stated) in &self.parents {
            make_directory(&root, path, stated.as_ref(), times(path), mappings)?;
        }
        for (n, link) in self.links.iter().enumerate() {
            let name = format!("{}-{n}", self.file);
            fs::linkat(staging, self.file.as_str(), staging, name.as_str(), AtFlags::empty())
                .map_err(failed("link"))?;
            place(&root, staging, &name, link, times(link))?;
        }
        place(&root, staging, &self.file, &self.path, times(&self.path))
    }
}

fn make_directory(
    root: &RootDir,
    path: &[u8],
    stated: Option<&Metadata>,
    times: Option<Timestamps>,
    mappings: &IdMappings,
) -> Result<()> {
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let (parent, name) = root.open_parent_in_root(path).map_err(failed("open the directory of"))?;
    let parent = reopen(&parent).map_err(failed("open the directory of"))?;
    let times = times.map_or_else(|| times_of(&parent), Ok).map_err(failed("stat the directory of"))?;
    match fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(failed("make directory")(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = fs::openat(&parent, name, flags, Mode::empty()).map_err(failed("open"))?;
    let unstated = Metadata { mode: 0o755, ..Metadata::default() };
    set_attributes(&made, stated.unwrap_or(&unstated), mappings, path)?;
    fs::futimens(&parent, &times).map_err(failed("set times of the directory of"))
}

/// Renames a staged file into its place; the directory gets the times that the archive states, or keeps its own.
fn place(root: &RootDir, staging: impl AsFd, file: &str, path: &[u8], times: Option<Timestamps>) -> Result<()> {
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let (parent, name) = root.open_parent_in_root(path).map_err(failed("open the directory of"))?;
    let parent = reopen(&parent).map_err(failed("open the directory of"))?;
    let times = times.map_or_else(|| times_of(&parent), Ok).map_err(failed("stat the directory of"))?;
    if fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    {
        let name = std::str::from_utf8(name).map_err(|_| failed("replace directory")(Errno::ISDIR))?;
        graph_sys::remove::remove_tree(&parent, name)
            .map_err(|error| Error::io("remove", path, io::Error::other(error)))?;
    }
    fs::renameat(staging.as_fd(), file, &parent, name).map_err(failed("restore"))?;
    fs::futimens(&parent, &times).map_err(failed("set times of the directory of"))?;
    fs::fsync(&parent).map_err(failed("flush the directory of"))
}

/// By a descriptor that only stands for the directory times cannot be set.
pub(crate) fn reopen(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(directory, c".", flags, Mode::empty())
}

pub(crate) fn times_of(directory: &OwnedFd) -> Result<Timestamps, Errno> {
    let stat = fs::fstat(directory)?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    Ok(Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    })
}
