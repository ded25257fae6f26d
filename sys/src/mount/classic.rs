//! Mounting by path: for kernels before 5.2, and for what the newer calls do not do.
//!
//! `int mount(const char *source, const char *target, const char *fstype, unsigned long flags, const void *data)`,
//! `int umount2(const char *target, int flags)`.

use std::ffi::CString;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::error::{Error, Result, show};

/// The longest string of options in bytes: the kernel copies one page, and its last byte is a NUL.
pub const OPTIONS_MAX: usize = 4095;

/// Mounts a file system. `options` is what the file system's own documentation says, with commas between; overlay wants
/// `\` before commas, colons and backslashes in paths (see [`escape_overlay_path`]).
///
/// # Errors
/// `E2BIG` for options over [`OPTIONS_MAX`] bytes (the kernel would cut them off), `EINVAL` for options that it refuses,
/// `ENODEV` for an unknown type, `EPERM`, `ENOENT`, `ENOTDIR`, `EBUSY`, `ELOOP`.
pub fn mount(source: &[u8], target: &[u8], file_system: &str, flags: MountFlags, options: &[u8]) -> Result<()> {
    let fail = |errno| Error::new("mount", format!("{file_system} on {}", show(target)), errno);
    if options.len() > OPTIONS_MAX {
        return Err(fail(Errno::TOOBIG).with_hint("the kernel takes 4095 bytes of options; use FsContext"));
    }
    let options = CString::new(options).map_err(|_| fail(Errno::INVAL))?;
    rustix::mount::mount(source, target, file_system, flags, &*options).map_err(fail)
}

/// Makes the directory or file `source` appear at `target` too. With `recursive`, mounts below come along.
///
/// Flags other than the mount's own (read-only among them) need a [`remount_bind`] afterwards, or
/// [`mount_attr`](crate::mount_attr).
///
/// # Errors
/// `ENOENT`, `ENOTDIR`, `EPERM`, `EINVAL`, `ELOOP`.
pub fn bind(source: &[u8], target: &[u8], recursive: bool) -> Result<()> {
    let done = if recursive {
        rustix::mount::mount_bind_recursive(source, target)
    } else {
        rustix::mount::mount_bind(source, target)
    };
    done.map_err(|errno| Error::new("bind mount", format!("{} on {}", show(source), show(target)), errno))
}

/// Changes the flags of the one mount at `target`, and of no other mount of the same file system.
///
/// # Errors
/// `EINVAL` when there is no mount at `target`; `EPERM` when it would take off a flag that a more privileged user
/// namespace has set; `EBUSY` for read-only with files open for writing.
pub fn remount_bind(target: &[u8], flags: MountFlags) -> Result<()> {
    rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"")
        .map_err(|errno| Error::new("remount", show(target), errno))
}

/// Changes flags and options of the file system at `target`, for all its mounts.
///
/// # Errors
/// As for [`mount`] and [`remount_bind`].
pub fn remount(target: &[u8], flags: MountFlags, options: &[u8]) -> Result<()> {
    let fail = |errno| Error::new("remount", show(target), errno);
    let options = CString::new(options).map_err(|_| fail(Errno::INVAL))?;
    rustix::mount::mount_remount(target, flags, &options).map_err(fail)
}

/// Sets whether mounts made below `target` show in copies of it: private, shared, downstream or unbindable; with
/// [`MountPropagationFlags::REC`] for all mounts below too.
///
/// # Errors
/// `EINVAL` when there is no mount at `target`, `EPERM`.
pub fn change_propagation(target: &[u8], flags: MountPropagationFlags) -> Result<()> {
    rustix::mount::mount_change(target, flags)
        .map_err(|errno| Error::new("change mount propagation", show(target), errno))
}

/// Moves the mount at `source` to `target`.
///
/// # Errors
/// `EINVAL` when there is no mount at `source` or its parent is shared, `ELOOP`, `EPERM`.
pub fn move_mount(source: &[u8], target: &[u8]) -> Result<()> {
    rustix::mount::mount_move(source, target)
        .map_err(|errno| Error::new("move mount", format!("{} to {}", show(source), show(target)), errno))
}

/// Unmounts what is mounted at `target`, the topmost of several. Symbolic links are followed unless `flags` has
/// `NOFOLLOW`.
///
/// # Errors
/// `EBUSY` while it is in use (not with `DETACH`), `EINVAL` when nothing is mounted there, `ENOENT`, `EPERM`; `EAGAIN` on
/// the first call with `EXPIRE`.
pub fn unmount(target: &[u8], flags: UnmountFlags) -> Result<()> {
    rustix::mount::unmount(target, flags).map_err(|errno| Error::new("unmount", show(target), errno))
}

/// A path as overlay's `lowerdir=`, `upperdir=` and `workdir=` take it: `\` before `\`, `,` and `:`.
#[must_use]
pub fn escape_overlay_path(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for &byte in path {
        if matches!(byte, b'\\' | b',' | b':') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}
