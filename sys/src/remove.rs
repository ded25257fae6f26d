//! Removing a directory tree by descriptors: nothing is followed, no mount is entered, no depth is too deep.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories held open at once. Deeper ones are first moved up to the top of the tree, so that a hostile layer of
/// 100,000 nested directories costs neither descriptors nor stack.
const OPEN_LEVELS: usize = 64;

/// What could not be removed, and why. Everything else of the tree is gone.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}{}", path.display(), more(*failures))]
pub struct RemoveError {
    /// The call that failed first.
    pub operation: &'static str,
    /// On what, below the directory that was passed; an entry that was moved up has its place at the top.
    pub path: PathBuf,
    /// How many entries could not be removed, the first included.
    pub failures: u64,
    /// The system's answer to the first.
    #[source]
    pub source: std::io::Error,
}

fn more(failures: u64) -> String {
    match failures.saturating_sub(1) {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    }
}

/// Removes `name` in `parent`, whatever it is, with everything in it. Missing is no error.
///
/// - Symbolic links are removed, never followed. Nothing below a mount point is touched: the mount point is reported
///   as `EBUSY`, since a leaked mount's files belong to somebody else.
/// - Directories that refuse access get mode 0700 first (a rootless store holds directories of mode 0), and immutable
///   and append-only flags are taken off where the caller may do that.
/// - `parent` itself is never changed: no permission is given to it, no flag taken off.
/// - Removal goes on after an error; the first one is returned. It may be repeated, and may run at the same time as
///   another removal of the same tree.
/// - `name` is one path component.
///
/// # Errors
/// [`RemoveError`]; `EBUSY` for a mount point, `EACCES` or `EPERM` where the caller may not remove an entry.
pub fn remove_tree(parent: impl AsFd, name: impl AsRef<OsStr>) -> Result<(), RemoveError> {
    let name = name.as_ref();
    let parent = parent.as_fd();
    let fail = |operation, source: Errno| RemoveError {
        operation,
        path: PathBuf::from(name),
        failures: 1,
        source: source.into(),
    };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(fail("remove", Errno::INVAL));
    }
    let c_name = CString::new(bytes).map_err(|_| fail("remove", Errno::INVAL))?;

    match unlink(Place::Callers(parent), &c_name) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(fail("unlink", error)),
    }
    let mut removal = Removal { levels: Vec::new(), failures: 0, first: None, moved: 0 };
    match open_directory(Place::Callers(parent), &c_name) {
        Ok(Some(dir)) => removal.levels.push(Level::new(dir, c_name.clone()).map_err(|e| fail("read directory", e))?),
        Ok(None) => return Ok(()),
        Err(error) => return Err(fail("open directory", error)),
    }
    removal.empty();
    let result = remove_directory(Place::Callers(parent), &c_name);
    match (removal.first, result) {
        (Some(first), _) => Err(RemoveError { failures: removal.failures, ..first }),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(fail("remove directory", error)),
    }
}

/// One directory being emptied.
struct Level {
    entries: Dir,
    name: CString,
    /// Entries removed or moved away since the last rewind.
    progress: bool,
    /// Entries below that could not be removed since the last rewind: the directory cannot be either then, and that is no
    /// failure of its own.
    stuck: u64,
}

impl Level {
    fn new(dir: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { entries: Dir::new(dir)?, name, progress: false, stuck: 0 })
    }

    fn dir(&self) -> Result<Place<'_>, Errno> {
        self.entries.fd().map(Place::Tree)
    }
}

struct Removal {
    /// The path from the top of the tree to the directory being emptied.
    levels: Vec<Level>,
    failures: u64,
    first: Option<RemoveError>,
    /// Directories moved to the top so far; numbers their new names.
    moved: u64,
}

impl Removal {
    /// Empties the directory in `levels`, but does not remove it.
    fn empty(&mut self) {
        while let Some(level) = self.levels.last_mut() {
            match level.entries.read() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if name != c"." && name != c".." {
                        let (name, kind) = (name.to_owned(), entry.file_type());
                        self.remove_entry(&name, kind);
                    }
                }
                Some(Err(error)) => {
                    self.note("read directory", None, error);
                    self.leave();
                }
                None => self.end_of_directory(),
            }
        }
    }

    fn remove_entry(&mut self, name: &CStr, kind: FileType) {
        let at_depth = self.levels.len() >= OPEN_LEVELS;
        let Some(level) = self.levels.last_mut() else { return };
        if kind != FileType::Directory {
            match level.dir().and_then(|dir| unlink(dir, name)) {
                Ok(()) => {
                    level.progress = true;
                    return;
                }
                Err(Errno::ISDIR) => {}
                Err(error) => return self.note("unlink", Some(name), error),
            }
        }
        if at_depth && self.move_up(name) {
            return;
        }
        let Some(level) = self.levels.last_mut() else { return };
        let opened = level
            .dir()
            .and_then(|dir| open_directory(dir, name))
            .and_then(|dir| dir.map(|dir| Level::new(dir, name.to_owned())).transpose());
        match opened {
            Ok(Some(level)) => self.levels.push(level),
            Ok(None) => {}
            // Read as a directory, but replaced by something else meanwhile.
            Err(Errno::NOTDIR) => match level.dir().and_then(|dir| unlink(dir, name)) {
                Ok(()) => level.progress = true,
                Err(error) => self.note("unlink", Some(name), error),
            },
            Err(error) => self.note("open directory", Some(name), error),
        }
    }

    /// Moves a deep directory to the top of the tree, where it is met again. False where that is refused.
    fn move_up(&mut self, name: &CStr) -> bool {
        let (Some(top), Some(level)) = (self.levels.first(), self.levels.last()) else { return false };
        let (Ok(top), Ok(dir)) = (top.dir(), level.dir()) else { return false };
        loop {
            let new_name = format!(".removed-{}", self.moved);
            self.moved = self.moved.wrapping_add(1);
            let rename =
                || rustix::fs::renameat_with(dir.fd(), name, top.fd(), new_name.as_str(), RenameFlags::NOREPLACE);
            let result = match rename() {
                // Moving a directory changes its "..", for which it must be writable.
                Err(Errno::ACCESS) => make_accessible(dir, name).and_then(|()| rename()),
                other => other,
            };
            match result {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(_) => return false,
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.progress = true;
        }
        if let Some(top) = self.levels.first_mut() {
            top.progress = true;
        }
        true
    }

    /// All entries have been read once. Some file systems skip entries while others are being removed, and what was
    /// moved up may lie behind the reading position; so a directory with progress is read until it is really empty.
    fn end_of_directory(&mut self) {
        let depth = self.levels.len();
        let parent = depth.checked_sub(2).and_then(|index| self.levels.get(index));
        let Some(level) = self.levels.last() else { return };
        let result = match parent {
            Some(parent) => parent.dir().and_then(|dir| remove_directory(dir, &level.name)),
            // The top is removed by the caller; here only its emptiness counts.
            None => level
                .dir()
                .and_then(|dir| is_empty(dir.fd()))
                .and_then(|empty| if empty { Ok(()) } else { Err(Errno::NOTEMPTY) }),
        };
        let Some(level) = self.levels.last_mut() else { return };
        match result {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.progress => {
                (level.progress, level.stuck) = (false, 0);
                level.entries.rewind();
                return;
            }
            Err(_) if level.stuck > 0 => {}
            Err(error) => self.note("remove directory", None, error),
        }
        self.leave();
    }

    fn leave(&mut self) {
        let Some(done) = self.levels.pop() else { return };
        match self.levels.last_mut() {
            Some(parent) => {
                parent.progress = parent.progress || done.stuck == 0;
                parent.stuck = parent.stuck.saturating_add(done.stuck);
            }
            None => self.failures = done.stuck,
        }
    }

    fn note(&mut self, operation: &'static str, name: Option<&CStr>, error: Errno) {
        if let Some(level) = self.levels.last_mut() {
            level.stuck = level.stuck.saturating_add(1);
        }
        if self.first.is_none() {
            let names = self.levels.iter().map(|level| level.name.as_c_str()).chain(name);
            let path = names.map(|name| OsStr::from_bytes(name.to_bytes())).collect();
            self.first = Some(RemoveError { operation, path, failures: 1, source: error.into() });
        }
    }
}

/// The directory that an entry is in.
#[derive(Clone, Copy)]
enum Place<'d> {
    /// The caller's, not to be changed.
    Callers(BorrowedFd<'d>),
    /// One of the tree, about to go itself.
    Tree(BorrowedFd<'d>),
}

impl<'d> Place<'d> {
    fn fd(self) -> BorrowedFd<'d> {
        match self {
            Self::Callers(fd) | Self::Tree(fd) => fd,
        }
    }

    /// Makes a directory of the tree writable and searchable.
    fn open_up(self) -> Result<(), Errno> {
        match self {
            Self::Callers(_) => Err(Errno::ACCESS),
            Self::Tree(fd) => rustix::fs::fchmod(fd, Mode::RWXU).map_err(|_| Errno::ACCESS),
        }
    }
}

/// Removes a name that is not a directory; `EISDIR` for one that is. Missing is no error.
fn unlink(dir: Place<'_>, name: &CStr) -> Result<(), Errno> {
    let call = || rustix::fs::unlinkat(dir.fd(), name, AtFlags::empty());
    match retry_access(dir, name, call) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes an empty directory. Missing is no error.
fn remove_directory(dir: Place<'_>, name: &CStr) -> Result<(), Errno> {
    let call = || rustix::fs::unlinkat(dir.fd(), name, AtFlags::REMOVEDIR);
    match retry_access(dir, name, call) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Calls; where that is refused, makes `dir` writable or takes immutable flags off, and calls again.
fn retry_access(dir: Place<'_>, name: &CStr, call: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match call() {
        Err(Errno::ACCESS) => {
            dir.open_up()?;
            call()
        }
        Err(Errno::PERM) => {
            let cleared_dir = matches!(dir, Place::Tree(fd) if clear_flags(fd));
            let cleared_entry = open_for_flags(dir.fd(), name).is_some_and(|fd| clear_flags(fd.as_fd()));
            if cleared_dir || cleared_entry { call() } else { Err(Errno::PERM) }
        }
        other => other,
    }
}

/// Opens a directory for reading its entries; `None` when it is gone. Never crosses into a mount (`EBUSY`).
fn open_directory(dir: Place<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let mut made_accessible = false;
    loop {
        match open_beneath(dir.fd(), name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => return Err(Errno::BUSY),
            Err(Errno::ACCESS) if !made_accessible => {
                made_accessible = true;
                make_accessible(dir, name)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Opens one component without following it and without entering a mount.
fn open_beneath(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => break,
            other => return other,
        }
    }
    // Linux before 5.6. Mounts are told apart by their numbers, as a bind mount has its parent's device.
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let same = crate::statx::reusable_mount_id(dir)? == crate::statx::reusable_mount_id(fd.as_fd())?;
    if same { Ok(fd) } else { Err(Errno::XDEV) }
}

/// Gives the directory `name` mode 0700; what it is called may have changed meanwhile, but never through a link.
fn make_accessible(dir: Place<'_>, name: &CStr) -> Result<(), Errno> {
    let fd = match open_beneath(dir.fd(), name, OFlags::PATH | OFlags::DIRECTORY) {
        // The parent itself has no search permission.
        Err(Errno::ACCESS) => {
            dir.open_up()?;
            open_beneath(dir.fd(), name, OFlags::PATH | OFlags::DIRECTORY)?
        }
        other => other?,
    };
    // fchmod(2) refuses O_PATH descriptors; their magic link in /proc is the way that all kernels have.
    let path = proc_path(fd.as_fd());
    rustix::fs::chmod(path.as_str(), Mode::RWXU).map_err(|_| Errno::ACCESS)
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens what can carry immutable and append-only flags: regular files and directories, nothing else.
fn open_for_flags(dir: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    matches!(kind, FileType::RegularFile | FileType::Directory).then(|| open_beneath(dir, name, flags).ok())?
}

/// Whether there were immutable or append-only flags and they are off now.
fn clear_flags(fd: BorrowedFd<'_>) -> bool {
    let Ok(flags) = rustix::fs::ioctl_getflags(fd) else { return false };
    let protecting = IFlags::IMMUTABLE | IFlags::APPEND;
    flags.intersects(protecting) && rustix::fs::ioctl_setflags(fd, flags - protecting).is_ok()
}

fn is_empty(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    // A descriptor of its own: a duplicate would share the reading position.
    let fresh = rustix::fs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut entries = Dir::new(fresh)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn missing_is_no_error_and_bad_names_are() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path());
        remove_tree(&fd, "nothing").unwrap();
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert_eq!(remove_tree(&fd, bad).unwrap_err().source.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        }
    }

    #[test]
    fn links_are_removed_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("victim/deep")).unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        std::os::unix::fs::symlink("../victim", dir.path().join("tree/link")).unwrap();
        std::os::unix::fs::symlink("victim", dir.path().join("top")).unwrap();
        let fd = open(dir.path());
        remove_tree(&fd, "tree").unwrap();
        remove_tree(&fd, "top").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(dir.path().join("top").symlink_metadata().is_err());
        assert!(dir.path().join("victim/deep").exists());
    }

    #[test]
    fn directories_without_permissions_go_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        fs::write(dir.path().join("tree/a/b/file"), "x").unwrap();
        fs::set_permissions(dir.path().join("tree/a/b"), PermissionsExt::from_mode(0o000)).unwrap();
        fs::set_permissions(dir.path().join("tree/a"), PermissionsExt::from_mode(0o400)).unwrap();
        remove_tree(open(dir.path()), "tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn depth_beyond_any_path_length_and_a_wide_directory() {
        let dir = tempfile::tempdir().unwrap();
        let top = open(dir.path());
        rustix::fs::mkdirat(&top, "tree", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut fd = rustix::fs::openat(&top, "tree", flags, Mode::empty()).unwrap();
        for _ in 0..1_000 {
            rustix::fs::mkdirat(&fd, "d", Mode::RWXU).unwrap();
            fd = rustix::fs::openat(&fd, "d", flags, Mode::empty()).unwrap();
        }
        for n in 0..300 {
            let file = rustix::fs::openat(&fd, format!("f{n}"), OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            drop(file);
        }
        remove_tree(&top, "tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    /// As a user without the privilege to pass over permissions would see it: in a thread, whose capabilities are its own.
    #[test]
    fn without_privileges_closed_directories_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/a/b/c")).unwrap();
        fs::write(dir.path().join("tree/a/b/file"), "x").unwrap();
        for (path, mode) in [("tree/a/b/c", 0o000), ("tree/a/b", 0o500), ("tree/a", 0o000), ("tree", 0o400)] {
            fs::set_permissions(dir.path().join(path), PermissionsExt::from_mode(mode)).unwrap();
        }
        let path = dir.path().to_path_buf();
        let removed = std::thread::spawn(move || {
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
            assert!(fs::read_dir(path.join("tree/a")).is_err(), "the permissions mean nothing here");
            remove_tree(open(&path), "tree")
        });
        removed.join().unwrap().unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn a_mount_in_the_tree_is_not_entered() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        fs::create_dir_all(path.join("tree/merged")).unwrap();
        fs::create_dir_all(path.join("victim/deep")).unwrap();
        fs::write(path.join("tree/other"), "x").unwrap();
        let outcome = std::thread::spawn(move || {
            crate::namespace::private_mounts().unwrap();
            // The same file system, so that only the mount tells it apart.
            rustix::mount::mount_bind(path.join("victim"), path.join("tree/merged")).unwrap();
            let result = remove_tree(open(&path), "tree");
            rustix::mount::unmount(path.join("tree/merged"), rustix::mount::UnmountFlags::empty()).unwrap();
            (result, path)
        });
        let (result, path) = outcome.join().unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(Errno::BUSY.raw_os_error()), "{error}");
        assert_eq!((error.path.as_path(), error.failures), (Path::new("tree/merged"), 1));
        assert!(path.join("victim/deep").exists() && !path.join("tree/other").exists());
        remove_tree(open(&path), "tree").unwrap();
    }

    #[test]
    fn immutable_files_go_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        let file = File::create(dir.path().join("tree/file")).unwrap();
        let immutable = |file: &File| {
            rustix::fs::ioctl_getflags(file)
                .and_then(|flags| rustix::fs::ioctl_setflags(file, flags | IFlags::IMMUTABLE))
        };
        if let Err(error) = immutable(&file).and_then(|()| immutable(&open(&dir.path().join("tree")))) {
            eprintln!("skipped: immutable files: {error}");
            return;
        }
        remove_tree(open(dir.path()), "tree").unwrap();
        assert!(!dir.path().join("tree").exists());
    }
}
