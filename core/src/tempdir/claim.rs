//! Work that one process does and others wait for.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::digest::Digest;

use super::{LOCK_PREFIX, NAME_MAX, TempDirRoot};
use crate::error::{Error, Result};
use crate::lockfile::OwnerLock;

/// What nobody else does as long as this is held; see [`TempDirRoot::claim`].
#[must_use = "dropping it lets others go on"]
pub struct Claim {
    root: OwnedFd,
    path: PathBuf,
    name: OsString,
    lock: Option<OwnerLock>,
}

impl TempDirRoot {
    /// Claims `what`, waiting without limit for whoever has it, in this process or another one: to make the same thing twice
    /// would be a waste. Afterwards look whether it is made by now.
    ///
    /// It is a locked file `lock-<what>` (the digest of `what` where the name would be too long), which goes with the
    /// claim. A killed process gives its claims back; their files are removed by [`TempDirRoot::recover_stale`], also the
    /// peers'.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn claim(&self, what: &str) -> Result<Claim> {
        let mut name = OsString::from(format!("{LOCK_PREFIX}{what}"));
        if name.len() > NAME_MAX || what.contains('/') {
            name = OsString::from(format!("{LOCK_PREFIX}{}", Digest::of(what.as_bytes()).hex()));
        }
        let error = |operation, source: io::Error| Error::io(operation, self.path.join(&name), None, source);
        let taken = OwnerLock::take_over(self.dir.as_fd(), &name).map_err(|e| error("lock", e))?;
        let lock = match taken {
            Some(lock) => lock,
            None => {
                tracing::info!(what, "waiting for another process or thread that does the same");
                OwnerLock::wait_for(self.dir.as_fd(), &name).map_err(|e| error("wait for lock", e))?
            }
        };
        let root = graph_sys::io::fcntl_dupfd_cloexec(&self.dir, 0).map_err(|e| error("lock", e.into()))?;
        Ok(Claim { root, path: self.path.clone(), name, lock: Some(lock) })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if let Err(error) = lock.remove(self.root.as_fd(), &self.name) {
            tracing::warn!(%error, path = %self.path.join(&self.name).display(), "removing a lock file");
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("path", &self.path.join(&self.name)).finish_non_exhaustive()
    }
}
