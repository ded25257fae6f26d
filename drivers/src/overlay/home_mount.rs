//! The home's mount on itself.
//!
//! Peers bind-mount their home on itself, private, when they open it and find no mount there: so layers' mounts do not
//! spread to other mount namespaces. Such a bind covers all that was mounted below the bare directory before: those mounts go
//! on, and no path leads to them any more. So mounts of ours need the bind to be there first, made under the lock under which
//! peers look for it (`storage.lock`).

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use graph_core::Result;
use graph_sys::fs::{self, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::mount::{MountPropagationFlags, UnmountFlags, classic};
use graph_sys::mountinfo::{self, MountInfo};

use super::layout::Context;

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(fs::CWD, path, flags, Mode::empty()).at("open the driver's home", path, None)
}

/// Whether something is mounted on the home, be it that bind.
pub(super) fn is_there(path: &Path) -> Result<bool> {
    mountinfo::is_mount_point(open(path)?).at("look for a mount on", path, None)
}

/// Binds the home on itself, unless something is mounted there.
pub(super) fn make(path: &Path) -> Result<()> {
    if is_there(path)? {
        return Ok(());
    }
    let target = path.as_os_str().as_bytes();
    match classic::bind(target, target, false) {
        Ok(()) => {}
        // Then layers cannot be mounted either, and that says why.
        Err(error) if error.errno() == Errno::PERM => return Ok(()),
        Err(error) => return Err(graph_core::Error::io("bind-mount on itself", path, None, error)),
    }
    classic::change_propagation(target, MountPropagationFlags::PRIVATE).at("make private", path, None)
}

/// Takes the bind away if it is one, and nothing is mounted below it.
pub(super) fn unmake(path: &Path) -> Result<()> {
    let home = open(path)?;
    if !mountinfo::is_mount_point(&home).at("look for a mount on", path, None)? {
        return Ok(());
    }
    let Some(own) = mountinfo::of(&home).at("look for a mount on", path, None)? else { return Ok(()) };
    let all = mountinfo::read().at("read the mounts of", path, None)?;
    let parent = all.iter().find(|mount| mount.id == own.parent_id && mount.id != own.id);
    let in_use = all.iter().any(|mount| mount.parent_id == own.id && mount.id != own.id);
    if in_use || !parent.is_some_and(|parent| is_bind_of_itself(&own, parent)) {
        return Ok(());
    }
    let target = format!("/proc/self/fd/{}", home.as_raw_fd());
    match classic::unmount(target.as_bytes(), UnmountFlags::DETACH) {
        Err(error) if !matches!(error.errno(), Errno::INVAL | Errno::PERM) => {
            Err(graph_core::Error::io("unmount", path, None, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a mount shows just the directory that it is mounted on.
fn is_bind_of_itself(own: &MountInfo, parent: &MountInfo) -> bool {
    let below = own.mount_point.strip_prefix(trimmed(&parent.mount_point));
    let Some(below) = below else { return false };
    own.device == parent.device && own.root == [trimmed(&parent.root), below].concat()
}

/// `/` alone is no prefix of its own.
fn trimmed(path: &[u8]) -> &[u8] {
    if path == b"/" { b"" } else { path }
}
