//! Paths from outside, resolved below a directory without ever leaving it.
//!
//! [`RootDir`] has two ways to resolve, for two purposes:
//!
//! | | [`RootDir::open_in_root`] | [`RootDir::open_beneath`] |
//! |---|---|---|
//! | for | looking something up in a container's tree | creating and replacing files of a layer |
//! | symbolic links | followed, as if the directory were `/` | `ELOOP` |
//! | absolute paths, `..` at the top | mean the directory itself | `EXDEV` |
//! | other mounts below it | entered | `EXDEV` |
//! | `/proc/PID/fd/N` and its like | `ELOOP` | `ELOOP` |
//!
//! `int openat2(int dirfd, const char *path, struct open_how *how, size_t size)`, Linux 5.6, does both. Where it is
//! missing, and for paths that are longer than the kernel takes at once (`PATH_MAX`, 4096 bytes), [`Strategy::Walk`] goes
//! component by component with the same results. Both are safe against another process that swaps directories for
//! symbolic links meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

mod walk;

/// The longest path in bytes, without its NUL, that the kernel takes in one call.
pub const PATH_MAX: usize = 4095;

/// How often a resolution is repeated that met a concurrent rename (`EAGAIN`) before the component walk takes over,
/// which renames elsewhere do not disturb.
const ATTEMPTS: usize = 64;

/// The flags that make new files. (`O_TMPFILE` holds the bit of `O_DIRECTORY` too.)
const CREATING: OFlags = OFlags::CREATE.union(OFlags::TMPFILE.difference(OFlags::DIRECTORY));

/// How a [`RootDir`] resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// By `openat2` where the kernel has it.
    Kernel,
    /// Component by component, by this crate.
    Walk,
}

impl Strategy {
    /// The best that works here; found out once per process.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Strategy> = OnceLock::new();
        *BEST.get_or_init(|| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            match rustix::fs::openat2(CWD, c"/", flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                // Sandboxes of containers answer EPERM to calls that they do not know.
                Err(Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::TOOBIG) => Self::Walk,
                _ => Self::Kernel,
            }
        })
    }
}

/// What may happen on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    InRoot,
    Beneath,
}

/// A directory that paths from outside are resolved below.
#[derive(Debug)]
pub struct RootDir {
    directory: OwnedFd,
    strategy: Strategy,
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl From<RootDir> for OwnedFd {
    fn from(root: RootDir) -> Self {
        root.directory
    }
}

impl RootDir {
    /// Opens a directory that this process's configuration names; `path` itself is trusted and may hold links.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`, `ELOOP`, `ENAMETOOLONG`, `EMFILE`.
    pub fn open(path: impl Arg) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(Self::from_fd)
    }

    /// Takes an open directory, by any kind of descriptor.
    #[must_use]
    pub fn from_fd(directory: OwnedFd) -> Self {
        Self { directory, strategy: Strategy::best() }
    }

    /// Resolves in the given way from now on.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Opens `path` for a look-up, as a process would that has this directory for its root.
    ///
    /// The empty path means the directory itself. `O_CLOEXEC` is added. With `O_NOFOLLOW` a symbolic link at the end
    /// gives `ELOOP`, or the link itself together with `O_PATH`.
    ///
    /// # Errors
    /// `EINVAL` for flags that create (use [`Self::open_beneath`]) and NUL in the path; `ELOOP` for more than 40 links
    /// or a link of procfs that jumps; `ENOENT`, `ENOTDIR`, `EACCES`, `ENAMETOOLONG` (a component over 255 bytes),
    /// `EMFILE`; `EAGAIN` when other processes keep renaming under the path.
    pub fn open_in_root(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        if flags.intersects(CREATING) {
            return Err(Errno::INVAL);
        }
        self.resolve(Rule::InRoot, path, flags, Mode::empty())
    }

    /// Opens or creates `path` with no symbolic link and no other mount on the way.
    ///
    /// The empty path means the directory itself. `O_CLOEXEC` is added. `mode` (octal 07777, less the umask) is for
    /// `O_CREAT` and `O_TMPFILE` alone. A symbolic link at the end gives `ELOOP` (the link itself with
    /// `O_PATH | O_NOFOLLOW`, `EEXIST` with `O_CREAT | O_EXCL`).
    ///
    /// # Errors
    /// `ELOOP` for any symbolic link; `EXDEV` for an absolute path, for `..` that would leave the directory and for a
    /// mount point; else as for [`Self::open_in_root`] and creating: `EEXIST`, `ENOSPC`, `EDQUOT`, `EROFS`.
    pub fn open_beneath(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        self.resolve(Rule::Beneath, path, flags, mode)
    }

    /// Opens the directory that holds `path`'s last component, by [`Self::open_beneath`], and gives that component,
    /// to create, rename, link or remove it by `*at` calls.
    ///
    /// The directory comes as an `O_PATH` descriptor. Slashes at the end of `path` do not count.
    ///
    /// # Errors
    /// `EINVAL` when there is no last component to work on (empty path, `/`, `.`, `..`), else as for
    /// [`Self::open_beneath`].
    pub fn open_parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8])> {
        let (parent, name) = split_last(path).ok_or(Errno::INVAL)?;
        Ok((self.open_beneath(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    /// As [`Self::open_parent`], but links in the directories' part are followed within this directory, as a process
    /// would that has it for its root: for looking at the last component without following it.
    ///
    /// # Errors
    /// `EINVAL` as for [`Self::open_parent`], else as for [`Self::open_in_root`].
    pub fn open_parent_in_root<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8])> {
        let (parent, name) = split_last(path).ok_or(Errno::INVAL)?;
        Ok((self.open_in_root(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    fn resolve(&self, rule: Rule, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        // The kernel refuses a mode that is not for anything.
        let mode = if flags.intersects(CREATING) { mode } else { Mode::empty() };
        let path = if path.is_empty() { b"." } else { path };
        if path.contains(&0) {
            return Err(Errno::INVAL);
        }
        if self.strategy == Strategy::Kernel && path.len() <= PATH_MAX {
            let resolve = match rule {
                Rule::InRoot => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
                Rule::Beneath => {
                    ResolveFlags::BENEATH
                        | ResolveFlags::NO_SYMLINKS
                        | ResolveFlags::NO_XDEV
                        | ResolveFlags::NO_MAGICLINKS
                }
            };
            for _ in 0..ATTEMPTS {
                match rustix::fs::openat2(&self.directory, path, flags, mode, resolve) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    // A sandbox that this process has entered since it was found out.
                    Err(Errno::NOSYS) => break,
                    answer => return answer,
                }
            }
        }
        walk::open(self.directory.as_fd(), rule, path, flags, mode)
    }
}

/// The path without its last component, and that component.
fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    let path = path.get(..end)?;
    let start = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at_checked(start)?;
    (!matches!(name, b"." | b"..")).then_some((parent, name))
}

#[cfg(test)]
mod tests;
