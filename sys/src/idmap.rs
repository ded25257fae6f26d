//! User namespaces that stand for an id mapping.
//!
//! The kernel takes the mapping of a mount from a user namespace, and a user namespace is born with a process. So a
//! child is started, its mapping written, its namespace opened, and the child ended and reaped before anything is
//! returned. It runs no program, shares the descriptor table (so that it holds no file open any longer than we do) and
//! dies with the thread that started it, however that ends.
//!
//! ```text
//!   this process                                    child
//!   clone(CLONE_NEWUSER | CLONE_FILES) ───────────> prctl(PR_SET_PDEATHSIG, SIGKILL); pause()
//!   write /proc/CHILD/uid_map, gid_map
//!   open  /proc/CHILD/ns/user
//!   kill(CHILD, SIGKILL), waitpid(CHILD) ─────────> gone
//! ```

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

mod child;

/// The most ranges that the kernel takes for either kind of id since Linux 4.15; 5 before.
pub const RANGES_MAX: usize = 340;

/// A number of consecutive ids inside a namespace and what they are outside.
///
/// For a mount: `inside` is what the disk has, `outside` what everybody sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside, in this process's user namespace.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// An open user namespace.
#[derive(Debug)]
pub struct UserNamespace {
    namespace: OwnedFd,
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl From<UserNamespace> for OwnedFd {
    fn from(namespace: UserNamespace) -> Self {
        namespace.namespace
    }
}

impl UserNamespace {
    /// Makes a user namespace with the given mapping. No process stays in it.
    ///
    /// `CLONE_NEWUSER`, Linux 3.8. Without `CAP_SETUID` and `CAP_SETGID` the kernel takes only one range of one id per
    /// kind, this process's own ids outside, and supplementary groups are frozen (`setgroups` is set to `deny`).
    ///
    /// # Errors
    /// `EINVAL` for no ranges, empty, overlapping or too many ranges, and ids that are not mapped here; `EPERM` for ids
    /// that are not this process's to give; `ENOSPC` and `EUSERS` when the machine allows no more user namespaces;
    /// `EAGAIN` and `ENOMEM` when it allows no more processes; `ENOENT` where `/proc` is not mounted.
    pub fn with_ranges(uids: &[IdRange], gids: &[IdRange]) -> Result<Self> {
        let describe = |errno| Error::new("make user namespace", format!("uids {uids:?} gids {gids:?}"), errno);
        let uid_map = map_lines(uids).map_err(describe)?;
        let gid_map = map_lines(gids).map_err(describe)?;
        let child = child::Paused::start().map_err(|errno| Error::new("make user namespace", "", errno))?;
        let write = |file: &'static str, content: &str| child.write(file, content);
        let namespace = write("uid_map", &uid_map)
            .and_then(|()| match write("gid_map", &gid_map) {
                // Without CAP_SETGID the kernel wants this first.
                Err(Errno::PERM) => write("setgroups", "deny").and_then(|()| write("gid_map", &gid_map)),
                other => other,
            })
            .and_then(|()| child.open_namespace("user"))
            .map_err(describe);
        child.end().map_err(|errno| Error::new("end the process of a user namespace", "", errno))?;
        Ok(Self { namespace: namespace? })
    }

    /// This process's own user namespace.
    ///
    /// # Errors
    /// `ENOENT` where `/proc` is not mounted, or the kernel has no user namespaces.
    pub fn current() -> Result<Self> {
        rustix::fs::openat(CWD, "/proc/thread-self/ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(|namespace| Self { namespace })
            .map_err(|errno| Error::new("open user namespace of", "this process", errno))
    }
}

/// The lines of a `uid_map` or `gid_map`.
fn map_lines(ranges: &[IdRange]) -> Result<String, Errno> {
    if ranges.is_empty() || ranges.len() > RANGES_MAX {
        return Err(Errno::INVAL);
    }
    let mut lines = String::new();
    for range in ranges {
        // Writing to a string cannot fail.
        writeln!(lines, "{} {} {}", range.inside, range.outside, range.count).ok();
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
