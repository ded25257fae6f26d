//! A mount with a place.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::UnmountFlags;

use crate::error::{Error, Result};

/// A mount in this mount namespace's table. Dropping it unmounts it; [`Self::keep`] leaves it.
///
/// It stays when the process is killed. Whoever attaches a mount needs a way to find it again after a crash.
#[derive(Debug)]
pub struct AttachedMount {
    mount: OwnedFd,
    /// Whether it is still ours to unmount.
    armed: bool,
}

impl AsFd for AttachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}

impl AttachedMount {
    pub(super) fn from_fd(mount: OwnedFd) -> Self {
        Self { mount, armed: true }
    }

    /// Leaves the mount where it is, beyond the end of this process.
    pub fn keep(mut self) {
        self.armed = false;
    }

    /// Takes the mount out of the table at once, and the file system down when its last user is gone
    /// (`umount2(…, MNT_DETACH)`).
    ///
    /// # Errors
    /// `EPERM`; `ENOENT` where `/proc` is not mounted. Unmounted already is no error.
    pub fn unmount(mut self) -> Result<()> {
        self.detach()
    }

    fn detach(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        // The descriptor's own use would make any but a lazy unmount fail. It is closed right after.
        let path = format!("/proc/self/fd/{}", self.mount.as_raw_fd());
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            // EINVAL: somebody else has unmounted it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(errno) => Err(Error::new("unmount", "by descriptor", errno)),
        }
    }
}

impl Drop for AttachedMount {
    fn drop(&mut self) {
        // There is nobody to tell; `unmount` is for those who want to know.
        self.detach().ok();
    }
}
