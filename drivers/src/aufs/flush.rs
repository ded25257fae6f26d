//! Making hard links whole before a mount goes.
//!
//! When one of several names of a lower file is written to, AUFS copies the file up under that name and remembers in
//! `.wh..wh.plnk` of the branch, by inode number, that the others show the same. With the mount that memory is gone: the
//! other names show the old content again. Touching each of them on the mount makes AUFS give it to the branch. Setting its
//! own times again is a touch that changes nothing else (a change of owner to nobody would take setuid bits away).

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use graph_archive::walk::{Descent, is_gone};
use graph_core::fsutil;
use graph_sys::fs::{self, AtFlags, FileType, Timespec, Timestamps};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;

/// Where AUFS remembers, in the root of the branch: files `<inode on the mount>.<inode in the branch>`.
const LINKS: &str = ".wh..wh.plnk";

/// Makes whole the links of the AUFS at `target`, whose uppermost branch is `upper`. How many names were touched.
pub(super) fn flush(target: &Path, upper: &impl AsFd) -> io::Result<usize> {
    let waiting = waiting(upper)?;
    if waiting.is_empty() {
        return Ok(0);
    }
    let root = fsutil::open_directory(target).map_err(io::Error::other)?;
    touch_all(&root, &waiting)
}

/// The inode numbers that AUFS remembers.
pub(super) fn waiting(upper: &impl AsFd) -> io::Result<HashSet<u64>> {
    let directory = match super::layout::open_directory(upper, LINKS) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(HashSet::new()),
        Err(error) => return Err(error.into()),
    };
    let names = fsutil::list(&directory)?;
    let number = |name: &std::ffi::OsString| name.to_str()?.split('.').next()?.parse().ok();
    Ok(names.iter().filter_map(number).collect())
}

/// Touches every name below `root` whose inode is one of those.
pub(super) fn touch_all(root: &impl AsFd, wanted: &HashSet<u64>) -> io::Result<usize> {
    let mut touched = 0_usize;
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(root.as_fd()).map_err(io::Error::other)?;
    let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> =
        vec![descent.list(&mut buffer).map_err(io::Error::other)?.into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            descent.leave().map_err(io::Error::other)?;
            continue;
        };
        let is_directory = match entry.file_type {
            FileType::Directory => true,
            // Only files are linked; a list tells inode numbers too, but on AUFS only stat's are sure.
            _ => touch(&descent, &entry.name, wanted, &mut touched)?,
        };
        if is_directory {
            match descent.enter(&entry.name) {
                Ok(()) => waiting.push(descent.list(&mut buffer).map_err(io::Error::other)?.into_iter()),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
    Ok(touched)
}

/// Whether it is a directory after all.
fn touch(descent: &Descent, name: &[u8], wanted: &HashSet<u64>, touched: &mut usize) -> io::Result<bool> {
    let directory = descent.directory().map_err(io::Error::other)?;
    let stat = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Of names that are too long for AUFS there is nothing to see, and so nothing that was written to.
        Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Ok(true);
    }
    if !wanted.contains(&stat.st_ino) {
        return Ok(false);
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or(0) },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) },
    };
    match fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => {
            *touched = touched.saturating_add(1);
            Ok(false)
        }
        // A mount for reading only has nothing new.
        Err(Errno::NOENT | Errno::ROFS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
