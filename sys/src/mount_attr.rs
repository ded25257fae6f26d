//! Changing attributes of mounts, id mapping among them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::error::{Error, Result, show};
use crate::idmap::UserNamespace;
use crate::mount::DetachedMount;
use crate::syscall::{self, MountAttr};

/// How mounts made below a mount show in its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// Both ways.
    Shared,
    /// From the original to this copy only.
    Downstream,
    /// Not at all, and no copies can be made.
    Unbindable,
}

/// What to change. What is not named stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes<'a> {
    set: u32,
    clear: u32,
    propagation: Option<Propagation>,
    namespace: Option<BorrowedFd<'a>>,
}

impl<'a> MountAttributes<'a> {
    /// No change at all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Turns attributes on (read-only, nosuid, nodev, noexec…).
    ///
    /// The access-time attributes are one choice of several: name the new one here, the old one goes by itself.
    #[must_use]
    pub fn set(mut self, flags: MountAttrFlags) -> Self {
        self.set |= flags.bits();
        let atime = MountAttrFlags::MOUNT_ATTR__ATIME.bits();
        if flags.bits() & atime != 0 {
            self.clear |= atime;
        }
        self
    }

    /// Turns attributes off.
    #[must_use]
    pub fn clear(mut self, flags: MountAttrFlags) -> Self {
        self.clear |= flags.bits();
        self
    }

    /// Sets the propagation.
    #[must_use]
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    /// Maps ids through a user namespace, see [`DetachedMount::map_ids`].
    #[must_use]
    pub fn map_ids(mut self, namespace: &'a UserNamespace) -> Self {
        self.namespace = Some(namespace.as_fd());
        self
    }

    fn raw(&self) -> MountAttr {
        let idmap = MountAttrFlags::MOUNT_ATTR_IDMAP.bits();
        MountAttr {
            attr_set: u64::from(self.set | if self.namespace.is_some() { idmap } else { 0 }),
            attr_clr: u64::from(self.clear),
            propagation: match self.propagation {
                None => 0,
                Some(Propagation::Private) => libc::MS_PRIVATE,
                Some(Propagation::Shared) => libc::MS_SHARED,
                Some(Propagation::Downstream) => libc::MS_SLAVE,
                Some(Propagation::Unbindable) => libc::MS_UNBINDABLE,
            },
            userns_fd: self.namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned())),
        }
    }
}

/// Changes attributes of the mount whose root `mount` is open on; with `recursive`, of all mounts below it, all or none.
///
/// `int mount_setattr(int dirfd, "", AT_EMPTY_PATH | AT_RECURSIVE, struct mount_attr *, size_t)`, Linux 5.12.
///
/// # Errors
/// `EINVAL` when it is not the root of a mount, or the file system cannot be mapped; `EPERM` for attributes that a more
/// privileged user namespace has set; `EBUSY` for read-only with files open for writing; `ENOSYS` before Linux 5.12.
pub fn set(mount: impl AsFd, attributes: &MountAttributes<'_>, recursive: bool) -> Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    syscall::mount_setattr(mount.as_fd(), c"", flags.cast_unsigned(), &attributes.raw())
        .map_err(|errno| Error::new("set mount attributes", attributes.describe(), errno))
}

/// A copy of a mount that has `attributes` from the start, see [`DetachedMount::copy_of`].
///
/// `int open_tree_attr(int dirfd, const char *path, unsigned flags, struct mount_attr *, size_t)`, Linux 6.15; it alone
/// can copy a mapped mount and map the copy differently. Before: `open_tree`, then `mount_setattr`.
///
/// # Errors
/// As for [`DetachedMount::copy_of`] and [`set`].
pub fn copy_with(
    dir: impl AsFd,
    path: &[u8],
    attributes: &MountAttributes<'_>,
    recursive: bool,
) -> Result<DetachedMount> {
    let dir = dir.as_fd();
    let mut flags = (libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT).cast_unsigned()
        | libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH.cast_unsigned();
    }
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    let copied: rustix::io::Result<OwnedFd> =
        rustix::path::Arg::into_with_c_str(path, |path| syscall::open_tree_attr(dir, path, flags, &attributes.raw()));
    match copied {
        Ok(mount) => Ok(DetachedMount::from_fd(mount)),
        Err(Errno::NOSYS | Errno::PERM) => {
            let mount = DetachedMount::copy_of(dir, path, recursive)?;
            set(&mount, attributes, recursive)?;
            Ok(mount)
        }
        Err(errno) => Err(Error::new("copy mount of", format!("{} {}", show(path), attributes.describe()), errno)),
    }
}

impl MountAttributes<'_> {
    fn describe(&self) -> String {
        let mut parts = Vec::new();
        if self.namespace.is_some() {
            parts.push(String::from("id mapping"));
        }
        if self.set != 0 {
            parts.push(format!("set {:?}", MountAttrFlags::from_bits_retain(self.set)));
        }
        if self.clear != 0 {
            parts.push(format!("clear {:?}", MountAttrFlags::from_bits_retain(self.clear)));
        }
        if let Some(propagation) = self.propagation {
            parts.push(format!("{propagation:?}").to_lowercase());
        }
        parts.join(", ")
    }
}
