//! The one place where system calls are made by number: those that neither `rustix` nor `libc` wraps.

#![allow(unsafe_code, reason = "these calls have no safe wrapper anywhere")]

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

// Numbers since 5.1 are the same on every architecture except Alpha, which Rust's Linux targets do not include.
const SYS_STATMOUNT: c_long = 457;
const SYS_LISTMOUNT: c_long = 458;
const SYS_OPEN_TREE_ATTR: c_long = 467;
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

/// `struct mount_attr` of `<linux/mount.h>`, as Linux 5.12 has it.
#[repr(C)]
pub(crate) struct MountAttr {
    pub(crate) attr_set: u64,
    pub(crate) attr_clr: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

// `MOUNT_ATTR_SIZE_VER0`
const _: () = assert!(size_of::<MountAttr>() == 32);

/// `int mount_setattr(int dirfd, const char *path, unsigned flags, struct mount_attr *attr, size_t size)`
pub(crate) fn mount_setattr(dir: BorrowedFd<'_>, path: &CStr, flags: c_uint, attr: &MountAttr) -> Result<()> {
    // SAFETY: `path` ends in NUL, and `attr` is a structure of the size that is told; the kernel only reads it.
    count(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// `int open_tree_attr(int dirfd, const char *path, unsigned flags, struct mount_attr *attr, size_t size)`
pub(crate) fn open_tree_attr(dir: BorrowedFd<'_>, path: &CStr, flags: c_uint, attr: &MountAttr) -> Result<OwnedFd> {
    // SAFETY: `path` ends in NUL, and `attr` is a structure of the size that is told; the kernel only reads it.
    let fd = count(unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    })?;
    let fd = c_int::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct mnt_id_req` of `<linux/mount.h>`, as Linux 6.8 has it.
#[repr(C)]
pub(crate) struct MountIdRequest {
    size: u32,
    spare: u32,
    mount_id: u64,
    param: u64,
}

// `MNT_ID_REQ_SIZE_VER0`
const _: () = assert!(size_of::<MountIdRequest>() == 24);

impl MountIdRequest {
    pub(crate) fn new(mount_id: u64, param: u64) -> Self {
        Self { size: 24, spare: 0, mount_id, param }
    }
}

/// `int statmount(struct mnt_id_req *req, struct statmount *buf, size_t size, unsigned flags)`
pub(crate) fn statmount(request: &MountIdRequest, buffer: &mut [u64]) -> Result<()> {
    // SAFETY: the request tells its own size; the buffer is writable for the length that is told and aligned for the
    // structure, whose strictest members are 64 bits wide.
    count(unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const *request,
            buffer.as_mut_ptr(),
            size_of_val::<[u64]>(buffer),
            0 as c_uint,
        )
    })
    .map(drop)
}

/// `ssize_t listmount(struct mnt_id_req *req, u64 *mnt_ids, size_t nr_mnt_ids, unsigned flags)`
pub(crate) fn listmount(request: &MountIdRequest, ids: &mut [u64]) -> Result<usize> {
    // SAFETY: the request tells its own size; `ids` is writable for as many numbers as are told.
    count(unsafe { libc::syscall(SYS_LISTMOUNT, &raw const *request, ids.as_mut_ptr(), ids.len(), 0 as c_uint) })
}
