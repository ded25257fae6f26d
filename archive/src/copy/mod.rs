//! Copying a tree with everything that a layer can hold, sharing extents where the file system can.
//!
//! | kept | how |
//! |---|---|
//! | content | FICLONE, else `copy_file_range`, else read and write; holes stay holes |
//! | hard links | names of one inode in the source are names of one inode in the copy |
//! | symbolic links, fifos, sockets, devices | made anew |
//! | owner, mode, times to the nanosecond | set after content and attributes; a directory's when it is full |
//! | extended attributes | `user.*`, `trusted.*`, `security.*` but SELinux labels, POSIX access lists |
//!
//! On the way every id may be taken to another mapping ([`CopyOptions::owners`], [`CopyOptions::reown`]), which costs nothing beyond the copy.
//! Large trees are copied by several threads.
//!
//! Nothing is flushed to disk; a crash leaves any part of the copy.

mod pool;
mod tree;

use std::os::fd::{AsFd, BorrowedFd};

use graph_sys::fs;
use graph_sys::reflink::CopyMethod;

use crate::error::{Error, Result};
use crate::idmap::{IdMappings, IdPair};
use crate::owners::OwnerShift;
use pool::{Job, Pool};

/// Who owns the copies.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Whose ids the source's files have: from container ids to those on its disk.
    pub source: IdMappings,
    /// Whose ids the copies get: from container ids to those on their disk.
    pub destination: IdMappings,
    /// All copies belong to this one, by container ids.
    pub all: Option<IdPair>,
}

impl Owners {
    pub(in crate::copy) fn is_kept(&self) -> bool {
        self.source.is_identity() && self.destination.is_identity() && self.all.is_none()
    }

    /// The owner on disk of a copy of a file that belongs to `pair`.
    pub(in crate::copy) fn shift(&self, pair: IdPair, path: &[u8]) -> Result<IdPair> {
        let inside = match self.all {
            Some(all) => all,
            None => self.source.to_container(pair, path)?,
        };
        self.destination.to_host(inside, path)
    }

    /// The same for an id in an access list or a capability: those are of others than the owner.
    pub(in crate::copy) fn shift_other(&self, pair: IdPair, path: &[u8]) -> Result<IdPair> {
        self.destination.to_host(self.source.to_container(pair, path)?, path)
    }
}

/// How a tree is copied.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// A refused change of owner is a notice, not an error.
    pub ignore_chown_errors: bool,
    /// This process runs in a user namespace: devices that cannot be made, and attributes that may not be set, are
    /// notices.
    pub in_user_namespace: bool,
    /// Who owns the copies; by default, who owns the source.
    pub owners: Owners,
    /// For whole layers that change hands, instead of `owners`: what becomes of owners and of ids in attributes. The owner
    /// of an overlay's whiteout is never an error.
    pub reown: Option<OwnerShift>,
    /// The destination may hold something already, and keeps its own owner, mode and times: directories of the same name
    /// are merged, other things of the same name are replaced, but never a directory by something else.
    pub merge: bool,
    /// SELinux labels come along, too. They belong to where a tree is: for copies that take their original's place.
    pub labels: bool,
    /// The most threads to use; 0 for as many as there are processors. Small trees are copied by one.
    pub threads: usize,
}

/// What a copy found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Things copied, directories included, the root and further names of an inode not.
    pub inodes: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// The dearest way that a file with content needed; `None` without such files.
    pub method: Option<CopyMethod>,
    /// Things that could not be kept and why, one sentence each, each kind once.
    pub notices: Vec<String>,
}

/// Copies what is in the directory `source` into `destination`, an empty directory that then gets the source's owner,
/// mode, times and attributes too.
///
/// Symbolic links are never followed, and nothing but regular files and directories is ever opened. The copy is of one
/// moment only if both trees are left alone meanwhile; what vanishes from the source before it is looked at is left out.
///
/// # Errors
/// I/O errors with the path below the root; [`Error::Unmapped`] for an owner that the mappings do not cover. What has been
/// copied by then stays.
pub fn copy_tree(source: BorrowedFd<'_>, destination: BorrowedFd<'_>, options: &CopyOptions) -> Result<CopyReport> {
    let failed = |operation| move |error| Error::io(operation, b".".as_slice(), error);
    let stat = fs::fstat(source).map_err(failed("stat"))?;
    let duplicate = |fd: BorrowedFd<'_>| graph_sys::io::fcntl_dupfd_cloexec(fd, 0).map_err(failed("open"));
    let job = Job { from: duplicate(source)?, to: duplicate(destination)?, path: Vec::new(), stat };
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let pool = Pool::new(options, destination.as_fd())?;
    std::thread::scope(|scope| {
        let help = || {
            for _ in 1..threads {
                scope.spawn(|| pool.work(None));
            }
        };
        pool.add(job);
        pool.work(Some(&help));
    });
    pool.finish()
}

/// Copies one thing that is no directory, `name` in the directory `source`, to `new_name` in `destination`. Symbolic links are copied,
/// not followed. With [`CopyOptions::merge`] something of that name is replaced.
///
/// # Errors
/// As [`copy_tree`]; `EISDIR` for a directory, on either side.
pub fn copy_file(
    source: BorrowedFd<'_>,
    name: &[u8],
    destination: BorrowedFd<'_>,
    new_name: &[u8],
    options: &CopyOptions,
) -> Result<CopyReport> {
    Pool::new(options, destination)?.copy_one(source, name, new_name)
}

#[cfg(test)]
mod tests;
