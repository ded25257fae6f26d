//! The one place where system calls are made by number: those that neither `rustix` nor `libc` wraps.

#![allow(unsafe_code, reason = "these calls have no safe wrapper anywhere")]

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

// Numbers since 5.1 are the same on every architecture except Alpha, which Rust's Linux targets do not include.
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

/// The answer of a call that gives a count, or its errno.
fn count(returned: c_long) -> Result<usize> {
    usize::try_from(returned).map_err(|_| last_errno())
}

/// The errno of the call that has just failed on this thread.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `struct xattr_args` of `<linux/xattr.h>`.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

const _: () = assert!(size_of::<XattrArgs>() == 16);

/// `ssize_t getxattrat(int dfd, const char *path, unsigned at_flags, const char *name, struct xattr_args *, size_t)`
pub(crate) fn getxattrat(
    dir: BorrowedFd<'_>,
    path: &CStr,
    at_flags: c_uint,
    name: &CStr,
    value: &mut [u8],
) -> Result<usize> {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    let mut args = XattrArgs { value: value.as_mut_ptr() as u64, size, flags: 0 };
    // SAFETY: both strings end in NUL, `args` has the size that is told, and it points to `size` writable bytes that
    // live until the call returns.
    count(unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            at_flags,
            name.as_ptr(),
            &raw mut args,
            size_of::<XattrArgs>(),
        )
    })
}

/// `int setxattrat(int dfd, const char *path, unsigned at_flags, const char *name, const struct xattr_args *, size_t)`
pub(crate) fn setxattrat(
    dir: BorrowedFd<'_>,
    path: &CStr,
    at_flags: c_uint,
    name: &CStr,
    value: &[u8],
    flags: u32,
) -> Result<()> {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    let args = XattrArgs { value: value.as_ptr() as u64, size, flags };
    // SAFETY: both strings end in NUL, `args` has the size that is told, and it points to `size` readable bytes; the
    // kernel only reads them.
    count(unsafe {
        libc::syscall(
            SYS_SETXATTRAT,
            dir.as_raw_fd(),
            path.as_ptr(),
            at_flags,
            name.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    })
    .map(drop)
}

/// `ssize_t listxattrat(int dfd, const char *path, unsigned at_flags, char *list, size_t size)`
pub(crate) fn listxattrat(dir: BorrowedFd<'_>, path: &CStr, at_flags: c_uint, list: &mut [u8]) -> Result<usize> {
    // SAFETY: `path` ends in NUL, and `list` is writable for the length that is told.
    count(unsafe {
        libc::syscall(SYS_LISTXATTRAT, dir.as_raw_fd(), path.as_ptr(), at_flags, list.as_mut_ptr(), list.len())
    })
}

/// `int removexattrat(int dfd, const char *path, unsigned at_flags, const char *name)`
pub(crate) fn removexattrat(dir: BorrowedFd<'_>, path: &CStr, at_flags: c_uint, name: &CStr) -> Result<()> {
    // SAFETY: both strings end in NUL.
    count(unsafe { libc::syscall(SYS_REMOVEXATTRAT, dir.as_raw_fd(), path.as_ptr(), at_flags, name.as_ptr()) })
        .map(drop)
}

/// `int sync_file_range(int fd, off_t offset, off_t nbytes, unsigned int flags)`
pub(crate) fn sync_file_range(fd: BorrowedFd<'_>, offset: i64, length: i64, flags: c_uint) -> Result<()> {
    // SAFETY: no memory is passed.
    let returned: c_int = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, length, flags) };
    count(c_long::from(returned)).map(drop)
}
