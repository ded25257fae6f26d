//! Extended attributes of any file, by descriptor or by directory and name, never following a symbolic link.
//!
//! Attribute names are bytes with their namespace (`user.`, `trusted.`, `security.`, `system.`), values are bytes.
//!
//! | where | how |
//! |---|---|
//! | descriptor open for reading or writing | `fgetxattr` and its family, Linux 2.4 |
//! | `O_PATH` descriptor (which those refuse with `EBADF`) | the path `/proc/self/fd/N`, Linux 2.6.39; needs `/proc` |
//! | directory and name | `getxattrat` and its family, Linux 6.13; before: `O_PATH` open, then as above |
//!
//! The kernel allows no `user.` attributes on symbolic links, devices, fifos and sockets (`EPERM`), and hides
//! `trusted.` ones from processes without `CAP_SYS_ADMIN` in the first user namespace.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use crate::syscall;

/// Longest attribute name in bytes, namespace included (`XATTR_NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest attribute value in bytes (`XATTR_SIZE_MAX`).
pub const VALUE_MAX: usize = 65536;
/// Longest list of names in bytes that the kernel hands out (`XATTR_LIST_MAX`).
pub const LIST_MAX: usize = 65536;

/// What [`set`] does when the attribute is there already, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Set it in either case.
    CreateOrReplace,
    /// Fail with `EEXIST` when it is there.
    Create,
    /// Fail with `ENODATA` when it is not there.
    Replace,
}

impl SetMode {
    fn flags(self) -> XattrFlags {
        match self {
            Self::CreateOrReplace => XattrFlags::empty(),
            Self::Create => XattrFlags::CREATE,
            Self::Replace => XattrFlags::REPLACE,
        }
    }
}

/// Names of the attributes of one file, as the kernel gave them: unsorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Each name ends in NUL.
    bytes: Vec<u8>,
}

impl Names {
    /// The names, without their terminating NUL.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|&byte| byte == 0).filter(|name| !name.is_empty())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The value of one attribute, or `None` when the file has no such attribute, or the file system none of this namespace.
///
/// `ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)`; takes `O_PATH` descriptors too.
///
/// # Errors
/// `EACCES` and `EPERM` without the right to read it, `ERANGE` for a name over [`NAME_MAX`], `EIO`, `ENOENT` for an
/// `O_PATH` descriptor where `/proc` is not mounted.
pub fn get(file: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let file = file.as_fd();
    name.into_with_c_str(|name| {
        absent_is_none(read_growing(VALUE_MAX, |buffer| match rustix::fs::fgetxattr(file, name, &mut *buffer) {
            Err(Errno::BADF) => through_proc(file, |path| rustix::fs::getxattr(path, name, buffer)),
            other => other,
        }))
    })
}

/// Sets one attribute.
///
/// `int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)`; takes `O_PATH` descriptors
/// too. Atomic: after a crash the file has the old value or the new one.
///
/// # Errors
/// `EEXIST`, `ENODATA` by [`SetMode`]; `EOPNOTSUPP` where the file system has no such namespace; `EPERM` (see the
/// module); `ENOSPC`, `EDQUOT`, `E2BIG` (value over [`VALUE_MAX`]), `ERANGE` (name over [`NAME_MAX`]), `EROFS`.
pub fn set(file: impl AsFd, name: &[u8], value: &[u8], mode: SetMode) -> Result<()> {
    let file = file.as_fd();
    name.into_with_c_str(|name| match rustix::fs::fsetxattr(file, name, value, mode.flags()) {
        Err(Errno::BADF) => through_proc(file, |path| rustix::fs::setxattr(path, name, value, mode.flags())),
        other => other,
    })
}

/// Names of all attributes that this process may see; empty where the file system knows no attributes.
///
/// `ssize_t flistxattr(int fd, char *list, size_t size)`; takes `O_PATH` descriptors too.
///
/// # Errors
/// `E2BIG` when the names together pass [`LIST_MAX`] (the kernel cannot list them), `EIO`, `EACCES`.
pub fn list(file: impl AsFd) -> Result<Names> {
    let file = file.as_fd();
    let bytes = read_growing(LIST_MAX, |buffer| match rustix::fs::flistxattr(file, &mut *buffer) {
        Err(Errno::BADF) => through_proc(file, |path| rustix::fs::listxattr(path, buffer)),
        other => other,
    });
    unsupported_is_empty(bytes)
}

/// Removes one attribute; `false` when it was not there.
///
/// `int fremovexattr(int fd, const char *name)`; takes `O_PATH` descriptors too.
///
/// # Errors
/// As for [`set`].
pub fn remove(file: impl AsFd, name: &[u8]) -> Result<bool> {
    let file = file.as_fd();
    name.into_with_c_str(|name| {
        let removed = match rustix::fs::fremovexattr(file, name) {
            Err(Errno::BADF) => through_proc(file, |path| rustix::fs::removexattr(path, name)),
            other => other,
        };
        absent_is_none(removed).map(|done| done.is_some())
    })
}

/// As [`get`], of the file `path` below `dir`; a symbolic link's own attribute, not its target's.
///
/// `ssize_t getxattrat(int dfd, const char *path, unsigned at_flags, const char *name, struct xattr_args *, size_t)`,
/// Linux 6.13. Only the last component of `path` is not followed: pass a single component for names from outside.
///
/// # Errors
/// As for [`get`] and for opening `path`.
pub fn get_at(dir: impl AsFd, path: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>> {
    let dir = dir.as_fd();
    if !has_xattrat() {
        return get(open_path(dir, path)?, name);
    }
    path.into_with_c_str(|path| {
        name.into_with_c_str(|name| {
            absent_is_none(read_growing(VALUE_MAX, |buffer| syscall::getxattrat(dir, path, NOFOLLOW, name, buffer)))
        })
    })
}

/// As [`set`], of the file `path` below `dir`; a symbolic link's own attribute, not its target's.
///
/// `int setxattrat(int dfd, const char *path, unsigned at_flags, const char *name, const struct xattr_args *, size_t)`,
/// Linux 6.13. Only the last component of `path` is not followed: pass a single component for names from outside.
///
/// # Errors
/// As for [`set`] and for opening `path`.
pub fn set_at(dir: impl AsFd, path: &[u8], name: &[u8], value: &[u8], mode: SetMode) -> Result<()> {
    let dir = dir.as_fd();
    if !has_xattrat() {
        return set(open_path(dir, path)?, name, value, mode);
    }
    path.into_with_c_str(|path| {
        name.into_with_c_str(|name| syscall::setxattrat(dir, path, NOFOLLOW, name, value, mode.flags().bits()))
    })
}

/// As [`list`], of the file `path` below `dir`; a symbolic link's own attributes, not its target's.
///
/// `ssize_t listxattrat(int dfd, const char *path, unsigned at_flags, char *list, size_t size)`, Linux 6.13. Only the
/// last component of `path` is not followed: pass a single component for names from outside.
///
/// # Errors
/// As for [`list`] and for opening `path`.
pub fn list_at(dir: impl AsFd, path: &[u8]) -> Result<Names> {
    let dir = dir.as_fd();
    if !has_xattrat() {
        return list(open_path(dir, path)?);
    }
    path.into_with_c_str(|path| {
        unsupported_is_empty(read_growing(LIST_MAX, |buffer| syscall::listxattrat(dir, path, NOFOLLOW, buffer)))
    })
}

/// As [`remove`], of the file `path` below `dir`; a symbolic link's own attribute, not its target's.
///
/// `int removexattrat(int dfd, const char *path, unsigned at_flags, const char *name)`, Linux 6.13. Only the last
/// component of `path` is not followed: pass a single component for names from outside.
///
/// # Errors
/// As for [`remove`] and for opening `path`.
pub fn remove_at(dir: impl AsFd, path: &[u8], name: &[u8]) -> Result<bool> {
    let dir = dir.as_fd();
    if !has_xattrat() {
        return remove(open_path(dir, path)?, name);
    }
    path.into_with_c_str(|path| {
        name.into_with_c_str(|name| {
            absent_is_none(syscall::removexattrat(dir, path, NOFOLLOW, name)).map(|done| done.is_some())
        })
    })
}

const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW.cast_unsigned();

/// Whether the kernel has `getxattrat` and its family; asked once per process.
pub(crate) fn has_xattrat() -> bool {
    const UNKNOWN: u8 = 0;
    const MISSING: u8 = 1;
    const THERE: u8 = 2;
    static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
    match STATE.load(Ordering::Relaxed) {
        UNKNOWN => {
            // Any answer but "no such call" and a sandbox's refusal proves that it is there.
            let answer = syscall::listxattrat(rustix::fs::CWD, c"/", NOFOLLOW, &mut []);
            let there = !matches!(answer, Err(Errno::NOSYS | Errno::PERM));
            STATE.store(if there { THERE } else { MISSING }, Ordering::Relaxed);
            there
        }
        state => state == THERE,
    }
}

fn open_path(dir: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    rustix::fs::openat(dir, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Runs a path-taking call on what an `O_PATH` descriptor refers to, be it a symbolic link.
fn through_proc<T>(file: BorrowedFd<'_>, call: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    call(CStr::from_bytes_with_nul(path.as_bytes()).map_err(|_| Errno::INVAL)?)
}

/// Most files have no attribute, or few and short ones: this much needs one call and no query of the size.
const FIRST_GUESS: usize = 512;

/// Reads with a buffer that grows until the answer fits; other processes may change the size at any time.
fn read_growing(limit: usize, mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut first = [0; FIRST_GUESS];
    match read(&mut first) {
        Ok(length) => return Ok(first.get(..length).unwrap_or(&first).to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut size = FIRST_GUESS;
    loop {
        size = size.saturating_mul(8).min(limit);
        let mut buffer = vec![0; size];
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // At the limit, too small a buffer cannot be the reason: then it is the name that is out of range.
            Err(Errno::RANGE) if size < limit => {}
            Err(error) => return Err(error),
        }
    }
}

fn absent_is_none<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unsupported_is_empty(answer: Result<Vec<u8>>) -> Result<Names> {
    match answer {
        Ok(bytes) => Ok(Names { bytes }),
        Err(Errno::OPNOTSUPP) => Ok(Names::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
