//! Giving files of a layer back what its archive states of them, and taking away what no archive states.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use graph_sys::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timestamps, Uid};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;
use graph_sys::{statx, xattr};

use super::compare::{CompareOptions, Difference, DifferenceKind, carried, file_type};
use super::expected::{ExpectedTree, What};
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::idmap::IdPair;
use crate::restore::{reopen, stated_times, times_of};

/// What was put right; paths without a leading slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amended {
    /// What got back its owner, mode, time or attributes.
    pub restored: Vec<Vec<u8>>,
    /// What was taken away, directories with all that was in them.
    pub removed: Vec<Vec<u8>>,
}

impl ExpectedTree {
    /// Puts right those of the differences that lie in `content`, the directory of the layer's own files: what is extra goes, and
    /// what is there gets the owner, mode, time and attributes that are stated. Contents, types, link targets and what is
    /// missing stay as they are.
    ///
    /// It may be repeated: a process that is killed in the middle leaves less to do.
    ///
    /// # Errors
    /// I/O errors with the path, ids that are not mapped. What was put right before stays so.
    pub fn amend(&self, content: &OwnedFd, differences: &[Difference], options: &CompareOptions) -> Result<Amended> {
        let copy = graph_sys::io::fcntl_dupfd_cloexec(content, 0)
            .map_err(|error| Error::io("open the directory of", b"/".as_slice(), error))?;
        let root = RootDir::from_fd(copy);
        let mut amended = Amended::default();
        // What is extra first: taking it away changes the time of its directory.
        let (extra, modified): (Vec<_>, Vec<_>) =
            differences.iter().partition(|difference| difference.kind == DifferenceKind::Extra);
        for difference in extra {
            let path = relative(&difference.path);
            if remove(&root, path)? {
                amended.removed.push(path.to_vec());
            }
        }
        for difference in modified.into_iter().filter(|difference| difference.kind != DifferenceKind::Missing) {
            let path = relative(&difference.path);
            if let Some(entry) = self.stated(path)
                && give_back(&root, path, entry, options)?
            {
                amended.restored.push(path.to_vec());
            }
        }
        Ok(amended)
    }

    fn stated(&self, path: &[u8]) -> Option<&Entry> {
        let mut node = &self.root;
        for name in path.split(|byte| *byte == b'/') {
            node = node.children.get(name)?;
        }
        match &node.what {
            What::Stated(entry) => Some(entry),
            What::Implied | What::Unknown => None,
        }
    }
}

fn relative(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}

/// The directory that has the path's last component in the layer's own files; `None` where it is another layer's.
fn own<'p>(root: &RootDir, path: &'p [u8]) -> Result<Option<(OwnedFd, &'p [u8])>> {
    let failed = |error: Errno| Error::io("open the directory of", path, error);
    let opened = root.open_parent(path).and_then(|(parent, name)| Ok((reopen(&parent)?, name)));
    match opened {
        Ok((parent, name)) => match statx::metadata(&parent, name) {
            Ok(_) => Ok(Some((parent, name))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(error)),
        },
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn remove(root: &RootDir, path: &[u8]) -> Result<bool> {
    let Some((parent, name)) = own(root, path)? else { return Ok(false) };
    let failed = |error: Errno| Error::io("set times of the directory of", path, error);
    let times = times_of(&parent).map_err(failed)?;
    graph_sys::remove::remove_tree(&parent, OsStr::from_bytes(name))
        .map_err(|error| Error::io("remove", path, std::io::Error::other(error)))?;
    fs::futimens(&parent, &times).map_err(failed)?;
    Ok(true)
}

fn give_back(root: &RootDir, path: &[u8], entry: &Entry, options: &CompareOptions) -> Result<bool> {
    let Some((parent, name)) = own(root, path)? else { return Ok(false) };
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let status = statx::metadata(&parent, name).map_err(failed("stat"))?;
    if status.file_type != file_type(entry.kind) {
        return Ok(false);
    }
    let metadata = &entry.metadata;
    if !options.ignore_owners {
        let owner = options.mappings.to_host(IdPair { uid: metadata.uid, gid: metadata.gid }, path)?;
        let (uid, gid) = (Uid::from_raw_unchecked(owner.uid), Gid::from_raw_unchecked(owner.gid));
        fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("change owner of"))?;
    }
    // Engines put times before the epoch at the epoch, and leave a link's alone then.
    let mut times = stated_times(metadata);
    times.last_modification.tv_sec = times.last_modification.tv_sec.max(0);
    times.last_access.tv_sec = times.last_access.tv_sec.max(0);
    match status.file_type {
        FileType::RegularFile | FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = fs::openat(&parent, name, flags, Mode::empty()).map_err(failed("open"))?;
            attributes(&file, entry).map_err(failed("set attributes of"))?;
            fs::fchmod(&file, Mode::from_raw_mode(metadata.mode & 0o7777)).map_err(failed("change mode of"))?;
            fs::futimens(&file, &times).map_err(failed("set times of"))?;
        }
        FileType::Symlink if metadata.mtime.seconds <= 0 => {}
        FileType::Symlink => set_times(&parent, name, &times).map_err(failed("set times of"))?,
        _ => {
            // Neither a link nor anything that opening would do nothing to.
            fs::chmodat(&parent, name, Mode::from_raw_mode(metadata.mode & 0o7777), AtFlags::empty())
                .map_err(failed("change mode of"))?;
            set_times(&parent, name, &times).map_err(failed("set times of"))?;
        }
    }
    Ok(true)
}

fn set_times(parent: &OwnedFd, name: &[u8], times: &Timestamps) -> Result<(), Errno> {
    fs::utimensat(parent, name, times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the attributes that layers carry, and takes off those that are not stated.
fn attributes(file: impl AsFd, entry: &Entry) -> Result<(), Errno> {
    let stated = &entry.metadata.xattrs;
    let names = match xattr::list(&file) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names.iter().filter(|name| carried(name)) {
        if stated.iter().all(|(known, _)| known != name) {
            xattr::remove(&file, name)?;
        }
    }
    for (name, value) in stated.iter().filter(|(name, _)| carried(name)) {
        match fs::fsetxattr(&file, name.as_slice(), value, fs::XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
