//! What the running kernel can do, found out by asking it, never by its version: distributions carry features back, and
//! sandboxes take them away.
//!
//! | feature | since | without it |
//! |---|---|---|
//! | openat2 | 5.6 | component walk, see [`resolve`](crate::resolve) |
//! | mount API | 5.2 | [`mount(2)`](crate::mount::classic), with 4095 bytes of options |
//! | mount_setattr | 5.12 | no id-mapped mounts: trees are copied or chowned |
//! | open_tree_attr | 6.15 | open_tree, then mount_setattr |
//! | statmount | 6.8 | the table of mounts is read |
//! | setxattrat | 6.13 | an `O_PATH` descriptor and `/proc/self/fd` |
//! | unique mount ids | 6.8 | mount numbers that are used again |
//! | statx mount root | 5.8 | the table of mounts is read |
//! | record locks of descriptions | 3.15 | none: the store cannot be shared safely |
//! | overlay | 3.18 | the vfs driver |
//!
//! [`KernelFeatures::probe`] asks for all of these; functions of this module ask what depends on a directory's file
//! system. Nothing here changes anything that outlives the call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::FsOpenFlags;

use crate::idmap::{IdRange, UserNamespace};
use crate::mount::DetachedMount;
use crate::resolve::Strategy;
use crate::statx::MountId;
use crate::syscall::{self, MountAttr};
use crate::xattr::SetMode;

/// Whether something can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Support {
    /// It can.
    Works,
    /// The kernel may have it, but this process may not use it (or a sandbox hides it).
    NotPermitted,
    /// It is not there.
    Missing,
}

impl Support {
    /// Whether it can be used.
    #[must_use]
    pub fn works(self) -> bool {
        self == Self::Works
    }

    /// The meaning of an answer to a call with nonsense in it: nonsense understood is a feature that is there.
    fn of<T>(answer: Result<T>) -> Self {
        match answer {
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => Self::Missing,
            Err(Errno::PERM | Errno::ACCESS) => Self::NotPermitted,
            _ => Self::Works,
        }
    }

    fn of_bool(works: bool) -> Self {
        if works { Self::Works } else { Self::Missing }
    }
}

/// One row of the table: for `status` and for bug reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// The Linux version that brought it. For people; nothing is decided by it.
    pub since: &'static str,
    /// What happens without it.
    pub fallback: &'static str,
    /// Whether it can be used here.
    pub support: Support,
}

/// What this kernel lets this process do. Fields are named as the table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelFeatures {
    /// `openat2`.
    pub openat2: Support,
    /// `fsopen`, `fsconfig`, `fsmount`, `open_tree`, `move_mount`.
    pub mount_api: Support,
    /// `mount_setattr`.
    pub mount_setattr: Support,
    /// `open_tree_attr`.
    pub open_tree_attr: Support,
    /// `statmount`, `listmount`.
    pub statmount: Support,
    /// `getxattrat` and its family.
    pub setxattrat: Support,
    /// `STATX_MNT_ID_UNIQUE`.
    pub unique_mount_ids: Support,
    /// `STATX_ATTR_MOUNT_ROOT`.
    pub mount_root_attribute: Support,
    /// `F_OFD_SETLK`.
    pub record_locks: Support,
    /// The file system type overlay, built in or loaded.
    pub overlay: Support,
}

impl KernelFeatures {
    /// Asks the kernel: a dozen calls, some microseconds.
    #[must_use]
    pub fn probe() -> Self {
        let nothing = MountAttr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 };
        let about_root = crate::statx::metadata(CWD, b"/");
        Self {
            openat2: Support::of_bool(Strategy::best() == Strategy::Kernel),
            mount_api: Support::of(rustix::mount::fsopen(c"", FsOpenFlags::from_bits_retain(1 << 31))),
            mount_setattr: Support::of(syscall::mount_setattr(CWD, c"/", 1 << 31, &nothing)),
            open_tree_attr: Support::of(syscall::open_tree_attr(CWD, c"/", 1 << 30, &nothing)),
            statmount: match crate::statmount::list(None) {
                Ok(_) => Support::Works,
                Err(error) => Support::of::<()>(Err(error)),
            },
            setxattrat: Support::of_bool(crate::xattr::has_xattrat()),
            unique_mount_ids: Support::of_bool(matches!(
                about_root,
                Ok(crate::statx::Metadata { mount: Some(MountId::Unique(_)), .. })
            )),
            mount_root_attribute: Support::of_bool(about_root.is_ok_and(|found| found.is_mount_root.is_some())),
            record_locks: record_locks(),
            overlay: overlay(),
        }
    }

    /// The table, with what was found.
    #[must_use]
    pub fn rows(&self) -> [Feature; 10] {
        let row = |name, since, fallback, support| Feature { name, since, fallback, support };
        [
            row("openat2", "5.6", "component walk", self.openat2),
            row("mount API", "5.2", "mount(2), with 4095 bytes of options", self.mount_api),
            row("mount_setattr", "5.12", "no id-mapped mounts: trees are copied or chowned", self.mount_setattr),
            row("open_tree_attr", "6.15", "open_tree, then mount_setattr", self.open_tree_attr),
            row("statmount", "6.8", "the table of mounts is read", self.statmount),
            row("setxattrat", "6.13", "an O_PATH descriptor and /proc/self/fd", self.setxattrat),
            row("unique mount ids", "6.8", "mount numbers that are used again", self.unique_mount_ids),
            row("statx mount root", "5.8", "the table of mounts is read", self.mount_root_attribute),
            row("record locks of descriptions", "3.15", "none: the store cannot be shared safely", self.record_locks),
            row("overlay", "3.18", "the vfs driver", self.overlay),
        ]
    }
}

fn record_locks() -> Support {
    let Ok(file) = rustix::fs::memfd_create(c"probe", MemfdFlags::CLOEXEC) else { return Support::Missing };
    match crate::lock::try_lock(&file, crate::lock::LockKind::Exclusive) {
        Ok(true) => Support::Works,
        _ => Support::Missing,
    }
}

/// Whether the kernel knows overlay now. A module that is not loaded yet is missing here, and loaded by the first mount.
fn overlay() -> Support {
    let known = crate::procfs::open("filesystems", OFlags::RDONLY)
        .and_then(|file| crate::procfs::read_all(&file))
        .is_ok_and(|list| list.split(|&byte| byte == b'\n').any(|line| line.ends_with(b"\toverlay")));
    Support::of_bool(known)
}

/// Whether files on the file system of `directory` can share extents ([`crate::reflink::clone_file`]).
///
/// # Errors
/// `EROFS`, `EACCES`, `ENOSPC` and the like, when a file cannot be made in `directory` to find out.
pub fn reflinks(directory: impl AsFd) -> Result<Support> {
    let directory = directory.as_fd();
    let (source, destination) = match (unnamed_file(directory), unnamed_file(directory)) {
        (Ok(source), Ok(destination)) => (source, destination),
        (Err(Errno::OPNOTSUPP | Errno::ISDIR), _) => return Ok(Support::Missing),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    // A block's worth, since some file systems keep less inside the inode and cannot share that.
    rustix::io::write(&source, &[1; 4096])?;
    Ok(Support::of_bool(crate::reflink::clone_file(&destination, &source)?))
}

/// Whether files on the file system of `directory` can have attributes whose names start with `namespace` (`user.`,
/// `trusted.`, `security.`…) that this process may set.
///
/// # Errors
/// As for [`reflinks`].
pub fn xattrs(directory: impl AsFd, namespace: &[u8]) -> Result<Support> {
    let file = unnamed_file(directory.as_fd())?;
    let name = [namespace, b"graphdriver.probe"].concat();
    match crate::xattr::set(&file, &name, b"1", SetMode::CreateOrReplace) {
        Ok(()) => Ok(Support::Works),
        Err(Errno::OPNOTSUPP) => Ok(Support::Missing),
        Err(Errno::PERM | Errno::ACCESS) => Ok(Support::NotPermitted),
        Err(error) => Err(error),
    }
}

/// Whether mounts of the file system of `directory` can show mapped ids ([`DetachedMount::map_ids`]).
///
/// # Errors
/// Those of starting a process, when the user namespace to try it with cannot be made.
pub fn mapped_mounts(directory: impl AsFd) -> crate::Result<Support> {
    let meaning = |error: &crate::Error| match error.errno() {
        Errno::PERM | Errno::ACCESS => Some(Support::NotPermitted),
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => Some(Support::Missing),
        _ => None,
    };
    let copy = match DetachedMount::copy_of(directory, b"", false) {
        Ok(copy) => copy,
        Err(error) => return meaning(&error).ok_or(error),
    };
    let range = [IdRange { inside: 0, outside: rustix::process::geteuid().as_raw(), count: 1 }];
    let groups = [IdRange { inside: 0, outside: rustix::process::getegid().as_raw(), count: 1 }];
    let namespace = UserNamespace::with_ranges(&range, &groups)?;
    match copy.map_ids(&namespace, false) {
        Ok(()) => Ok(Support::Works),
        Err(error) => meaning(&error).ok_or(error),
    }
}

/// Whether the file system of `directory` can make files without a name (`O_TMPFILE`).
///
/// # Errors
/// As for [`reflinks`].
pub fn unnamed_files(directory: impl AsFd) -> Result<Support> {
    match unnamed_file(directory.as_fd()) {
        Ok(_) => Ok(Support::Works),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(Support::Missing),
        Err(error) => Err(error),
    }
}

fn unnamed_file(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(directory, c".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{FsContext, MountAttrFlags};

    #[test]
    fn probes_change_nothing_and_agree_with_use() {
        let features = KernelFeatures::probe();
        assert_eq!(features, KernelFeatures::probe());
        assert!(features.record_locks.works());
        if rustix::process::geteuid().is_root() {
            let opened = FsContext::open("tmpfs").map(drop);
            assert_eq!(features.mount_api.works(), opened.is_ok());
            let copied = crate::mount_attr::copy_with(CWD, b"/", &crate::mount_attr::MountAttributes::new(), false);
            assert_eq!(features.mount_setattr.works(), copied.is_ok());
        } else {
            eprintln!("skipped: mounts need root");
        }
        let openat2 = rustix::fs::openat2(CWD, "/", OFlags::PATH, Mode::empty(), rustix::fs::ResolveFlags::empty());
        assert_eq!(features.openat2.works(), openat2.is_ok());
    }

    #[test]
    fn the_table_in_the_documentation_is_the_table() {
        let documented = include_str!("probe.rs");
        for row in KernelFeatures::probe().rows() {
            let line = format!("//! | {} | {} |", row.name, row.since);
            assert!(documented.contains(&line), "no line {line:?}");
        }
    }

    #[test]
    fn root_file_systems_are_told_apart() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let tmpfs = FsContext::open("tmpfs").unwrap().create(MountAttrFlags::empty()).unwrap();
        assert_eq!(unnamed_files(&tmpfs), Ok(Support::Works));
        assert_eq!(reflinks(&tmpfs), Ok(Support::Missing));
        assert_eq!(xattrs(&tmpfs, b"trusted."), Ok(Support::Works));
        assert_eq!(xattrs(&tmpfs, b"nonsense."), Ok(Support::Missing));
        let proc = rustix::fs::openat(CWD, "/proc", OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(mapped_mounts(&proc).unwrap(), Support::Missing);
        assert!(unnamed_files(&proc).is_ok_and(|support| !support.works()));
        let here = rustix::fs::openat(CWD, env!("CARGO_MANIFEST_DIR"), OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(mapped_mounts(&here).unwrap(), Support::Works);
    }
}
