//! A mount without a place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::AttachedMount;
use crate::error::{Error, Result, show};
use crate::idmap::UserNamespace;
use crate::mount_attr::{self, MountAttributes};

/// A mount that is attached nowhere: files below it are reached by `openat` and its family from its descriptor.
///
/// Dropping it takes the mount away, as does the end of the process, however it ends. Files opened below keep the file
/// system busy until they are closed.
#[derive(Debug)]
pub struct DetachedMount {
    mount: OwnedFd,
}

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl From<DetachedMount> for OwnedFd {
    fn from(mount: DetachedMount) -> Self {
        mount.mount
    }
}

impl DetachedMount {
    pub(crate) fn from_fd(mount: OwnedFd) -> Self {
        Self { mount }
    }

    /// A second mount of the directory `path` below `dir`, as a bind mount makes it; of `dir` itself for an empty path.
    /// A symbolic link at the end is not followed. With `recursive`, mounts below come along.
    ///
    /// `int open_tree(int dirfd, const char *path, OPEN_TREE_CLONE | ...)`, Linux 5.2. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// `EPERM`, `ENOENT`, `ENOTDIR`; `EINVAL` where the directory lies in another mount namespace, or on a detached
    /// mount before Linux 6.15; `ENOSYS` before 5.2.
    pub fn copy_of(dir: impl AsFd, path: &[u8], recursive: bool) -> Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
            | OpenTreeFlags::AT_NO_AUTOMOUNT;
        if path.is_empty() {
            flags |= OpenTreeFlags::AT_EMPTY_PATH;
        }
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        rustix::mount::open_tree(dir, path, flags)
            .map(Self::from_fd)
            .map_err(|errno| Error::new("copy mount of", show(path), errno))
    }

    /// Shows the files' owners through the mapping of `namespace`: what is stored as an id inside it appears as the id
    /// outside. With `recursive`, on mounts below too; either all of them change or none.
    ///
    /// Only a mount that is attached nowhere can be mapped, and only once. Linux 5.12.
    ///
    /// # Errors
    /// `EINVAL` where the file system cannot (overlay itself, among others), `EPERM` when it is mapped already, when the
    /// namespace is the first one, or without `CAP_SYS_ADMIN` over the file system.
    pub fn map_ids(&self, namespace: &UserNamespace, recursive: bool) -> Result<()> {
        mount_attr::set(self, &MountAttributes::new().map_ids(namespace), recursive)
    }

    /// Attaches the mount on the directory or file that `target` is open on (an `O_PATH` descriptor will do).
    ///
    /// `int move_mount(int from, "", int to, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)`, Linux 5.2. On an
    /// error the mount is gone.
    ///
    /// # Errors
    /// `EINVAL` for a directory on a file or the reverse, and when the target is not in this mount namespace; `EPERM`,
    /// `ELOOP`, `ENOSPC` (too many mounts).
    pub fn attach(self, target: impl AsFd) -> Result<AttachedMount> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&self.mount, c"", target, c"", flags)
            .map_err(|errno| Error::new("attach mount", "", errno))?;
        Ok(AttachedMount::from_fd(self.mount))
    }

    /// As [`Self::attach`], on `path` below `dir`; a symbolic link at its end is not followed.
    ///
    /// # Errors
    /// As for [`Self::attach`], and `ENOENT`.
    pub fn attach_at(self, dir: impl AsFd, path: &[u8]) -> Result<AttachedMount> {
        rustix::mount::move_mount(&self.mount, c"", dir, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| Error::new("attach mount on", show(path), errno))?;
        Ok(AttachedMount::from_fd(self.mount))
    }

    /// As [`Self::attach_at`], on a path of this process's own, absolute or below its working directory.
    ///
    /// # Errors
    /// As for [`Self::attach_at`].
    pub fn attach_path(self, path: &[u8]) -> Result<AttachedMount> {
        self.attach_at(CWD, path)
    }
}
