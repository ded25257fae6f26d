//! Configuring a new mount option by option.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};

use super::DetachedMount;
use crate::error::{Error, Result, show};

/// The longest value in bytes that `FSCONFIG_SET_STRING` takes.
pub const VALUE_MAX: usize = 255;

/// A file system being configured, before it is a mount.
///
/// `int fsopen(const char *fs_name, unsigned flags)`, `int fsconfig(int fs_fd, unsigned cmd, const char *key, const
/// void *value, int aux)`, `int fsmount(int fs_fd, unsigned flags, unsigned attr_flags)`; Linux 5.2. Needs
/// `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace.
///
/// Errors of all methods carry what the kernel logged on this context. Dropping it before [`Self::create`] leaves
/// nothing behind.
#[derive(Debug)]
pub struct FsContext {
    context: OwnedFd,
    file_system: String,
}

impl AsFd for FsContext {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.context.as_fd()
    }
}

impl FsContext {
    /// Starts a new mount of the file system type `file_system` (`overlay`, `tmpfs`, `erofs`…).
    ///
    /// # Errors
    /// `ENODEV` for a type that the kernel does not have, `EPERM`, `ENOSYS` before Linux 5.2.
    pub fn open(file_system: &str) -> Result<Self> {
        let context = rustix::mount::fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| Error::new("open file system type", file_system, errno))?;
        Ok(Self { context, file_system: file_system.to_owned() })
    }

    /// Starts changing the options of the file system that `mount` is the root of; ends with [`Self::reconfigure`].
    ///
    /// `int fspick(int dirfd, const char *path, unsigned flags)`, Linux 5.2.
    ///
    /// # Errors
    /// `EINVAL` when it is not the root of a mount, `EPERM`.
    pub fn pick(mount: impl AsFd) -> Result<Self> {
        let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
        let context = rustix::mount::fspick(mount, c"", flags)
            .map_err(|errno| Error::new("open mount for reconfiguration", "", errno))?;
        Ok(Self { context, file_system: String::from("mount") })
    }

    /// Sets `key` to a string; with keys that collect, like overlay's `lowerdir+`, adds one.
    ///
    /// Nothing in the value is special: no comma, colon or backslash needs an escape.
    ///
    /// # Errors
    /// `EINVAL` for an option that the file system does not know, a value it refuses, and any value over
    /// [`VALUE_MAX`] bytes (see [`Self::set_path`]); `ENOENT` and the like for paths that are looked up at once.
    pub fn set_string(&self, key: &str, value: &[u8]) -> Result<()> {
        rustix::mount::fsconfig_set_string(&self.context, key, value).map_err(|errno| {
            let error = self.error("set mount option", format!("{key}={}", show(value)), errno);
            if value.len() > VALUE_MAX {
                error.with_hint("a value over 255 bytes must go by descriptor")
            } else {
                error
            }
        })
    }

    /// Sets an option that has no value, like `ro` or `userxattr`.
    ///
    /// # Errors
    /// `EINVAL` for an option that the file system does not know.
    pub fn set_flag(&self, key: &str) -> Result<()> {
        rustix::mount::fsconfig_set_flag(&self.context, key)
            .map_err(|errno| self.error("set mount option", key.to_owned(), errno))
    }

    /// Sets a directory option of overlay (`lowerdir+`, `datadir+`, `upperdir`, `workdir`) to an open directory, which
    /// may be an `O_PATH` descriptor and may lie on a [`DetachedMount`]. Such a mount must be kept until
    /// [`Self::create`] has returned, else that fails with `EINVAL`; the overlay holds it from there on. Other
    /// descriptors may be closed at once.
    ///
    /// Overlay takes descriptors since Linux 6.13. Before, the directory goes by its path below `/proc/self/fd`, which
    /// shows in mountinfo as such. Layers on detached mounts are for recent kernels (6.15; this is tested on 6.18):
    /// others give `EINVAL`, and want the mount attached somewhere until the overlay is made.
    ///
    /// # Errors
    /// `EINVAL` for the wrong kind of option or directory, or the 501st lower layer; `ENOTDIR`; `ELOOP` when overlays are
    /// stacked too deep; `EREMOTE` for file systems that cannot be a layer.
    pub fn set_directory(&self, key: &str, directory: impl AsFd) -> Result<()> {
        let directory = directory.as_fd();
        match rustix::mount::fsconfig_set_fd(&self.context, key, directory) {
            Ok(()) => return Ok(()),
            Err(Errno::INVAL | Errno::BADF) => {}
            Err(errno) => return Err(self.error("set mount option", format!("{key} by descriptor"), errno)),
        }
        let refusal = self.messages();
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        rustix::mount::fsconfig_set_string(&self.context, key, &*path).map_err(|errno| {
            let log = [refusal, self.messages()].concat();
            Error::new("set mount option", format!("{}: {key} by descriptor", self.file_system), errno).with_log(log)
        })
    }

    /// Sets a directory option of overlay to the directory at `path`, of any length: a path that is too long for a
    /// string is opened and passed as a descriptor.
    ///
    /// # Errors
    /// As for [`Self::set_string`], [`Self::set_directory`] and opening `path`.
    pub fn set_path(&self, key: &str, path: &[u8]) -> Result<()> {
        if path.len() <= VALUE_MAX {
            return self.set_string(key, path);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| self.error("open directory for mount option", format!("{key}={}", show(path)), errno))?;
        self.set_directory(key, directory)
    }

    /// Makes the mount. It is not attached anywhere yet.
    ///
    /// # Errors
    /// Whatever the file system finds wrong with the options taken together, mostly `EINVAL`; `EPERM`, `EBUSY` (overlay:
    /// upper or work directory in use by another mount), `ENOMEM`, `ELOOP`.
    pub fn create(self, attributes: MountAttrFlags) -> Result<DetachedMount> {
        rustix::mount::fsconfig_create(&self.context)
            .map_err(|errno| self.error("create mount", String::new(), errno))?;
        let mount = rustix::mount::fsmount(&self.context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| self.error("create mount", String::new(), errno))?;
        Ok(DetachedMount::from_fd(mount))
    }

    /// Applies the options to the mount that was [picked](Self::pick).
    ///
    /// # Errors
    /// As for [`Self::create`]; `EBUSY` for files open for writing when it becomes read-only.
    pub fn reconfigure(self) -> Result<()> {
        rustix::mount::fsconfig_reconfigure(&self.context)
            .map_err(|errno| self.error("reconfigure mount", String::new(), errno))
    }

    /// The messages that the kernel has logged on this context since they were last read, oldest first.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = [0; 1024];
        // One message per read; ENODATA at the end. The kernel keeps eight: the bound is against a kernel gone wrong.
        while messages.len() < 64 {
            let Ok(length) = rustix::io::read(&self.context, &mut buffer) else { break };
            let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            messages.push(message.trim_end().to_owned());
        }
        messages
    }

    fn error(&self, operation: &'static str, subject: String, errno: Errno) -> Error {
        let subject =
            if subject.is_empty() { self.file_system.clone() } else { format!("{}: {subject}", self.file_system) };
        Error::new(operation, subject, errno).with_log(self.messages())
    }
}
