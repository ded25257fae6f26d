//! The calls of the kernel that mounting takes, behind a narrow trait, so that tests see exactly which are made.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use graph_core::fsutil;
use graph_core::refcount::MountCheck;
use graph_sys::fs::{self, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::mount::{AttachedMount, FsContext, MountAttrFlags, MountFlags, UnmountFlags, classic};
use graph_sys::{mountinfo, statfs, statx};

/// One option for fsconfig(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Flag(String),
    Text(&'static str, Vec<u8>),
}

/// The calls.
pub(super) trait Mounter: fmt::Debug + Send + Sync {
    /// fsopen(2), fsconfig(2) for each setting, fsmount(2), move_mount(2).
    fn mount_by_settings(&self, target: &Path, read_only: bool, settings: &[Setting]) -> graph_sys::Result<()>;
    /// mount(2).
    fn mount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()>;
    /// mount(2) with `MS_REMOUNT`.
    fn remount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()>;
    /// umount2(2).
    fn unmount(&self, target: &Path, flags: UnmountFlags) -> graph_sys::Result<()>;
    /// Whether the root of an AUFS is there.
    fn is_mounted(&self, target: &Path) -> io::Result<bool>;
    /// The branches of the mount as the kernel tells them, `path=permission`, the first one first. `None` where it does not.
    fn branches(&self, target: &Path) -> io::Result<Option<Vec<Vec<u8>>>>;
}

/// The kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kernel;

impl Mounter for Kernel {
    fn mount_by_settings(&self, target: &Path, read_only: bool, settings: &[Setting]) -> graph_sys::Result<()> {
        let context = FsContext::open("aufs")?;
        context.set_string("source", b"none")?;
        if read_only {
            context.set_flag("ro")?;
        }
        for setting in settings {
            match setting {
                Setting::Flag(key) => context.set_flag(key)?,
                Setting::Text(key, value) => context.set_string(key, value)?,
            }
        }
        let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        context.create(attributes)?.attach_path(target.as_os_str().as_bytes()).map(AttachedMount::keep)
    }

    fn mount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()> {
        classic::mount(b"none", target.as_os_str().as_bytes(), "aufs", flags, options)
    }

    fn remount(&self, target: &Path, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()> {
        classic::remount(target.as_os_str().as_bytes(), flags, options)
    }

    fn unmount(&self, target: &Path, flags: UnmountFlags) -> graph_sys::Result<()> {
        classic::unmount(target.as_os_str().as_bytes(), flags | UnmountFlags::NOFOLLOW)
    }

    fn is_mounted(&self, target: &Path) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match fs::openat(fs::CWD, target, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(statx::metadata(&directory, b"")?.is_mount_root != Some(false)
            && statfs::magic(&directory)? == statfs::Magic::AUFS)
    }

    fn branches(&self, target: &Path) -> io::Result<Option<Vec<Vec<u8>>>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = fs::openat(fs::CWD, target, flags, Mode::empty())?;
        let Some(mount) = mountinfo::of(&directory)? else { return Ok(None) };
        let Some(instance) = instance(&mount.super_options) else { return Ok(None) };
        let path = format!("/sys/fs/aufs/si_{instance}");
        let mut branches = Vec::new();
        for number in 0.. {
            match fsutil::read_small_path(Path::new(&format!("{path}/br{number}")), 8192) {
                Ok(line) => branches.push(line.trim_ascii_end().to_vec()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        tracing::trace!(descriptor = directory.as_raw_fd(), count = branches.len(), "read the branches of a mount");
        // Built without sysfs.
        Ok(Some(branches).filter(|branches| !branches.is_empty()))
    }
}

/// The number of an AUFS instance, out of the options that mountinfo shows: `si=<hex>`.
pub(super) fn instance(options: &[u8]) -> Option<&str> {
    let found = options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"si="))?;
    std::str::from_utf8(found).ok().filter(|found| !found.is_empty() && found.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Tells the counter of references which layers are mounted.
#[derive(Clone, Debug)]
pub(super) struct Mounts(pub(super) std::sync::Arc<dyn Mounter>);

impl MountCheck for Mounts {
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        self.0.is_mounted(path)
    }
}
