//! Small steps on files that every store needs: whole-file writes that are either done or not, and names for error messages.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use graph_sys::fs::{self, AtFlags, CWD, Dir, Mode, OFlags};
use graph_sys::io::Errno;

use crate::error::{Error, Result};

/// How long [`random_name`]s are. As many as Go's `os.CreateTemp` digits at most, so that names look alike.
const RANDOM_DIGITS: usize = 10;

/// What has to be on disk before a write counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: for what a reboot makes meaningless anyway (containers/storage's volatile files).
    None,
    /// The file's bytes, before the rename (fdatasync). After a crash there is the old file or the new one, whole.
    /// This is what containers/storage does.
    #[default]
    Data,
    /// The bytes and the rename (fsync of the directory too). After a crash there is the new file.
    Full,
}

/// Modification time of a file that was just written, to recognise one's own write by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanoseconds: u32,
    /// Inode number, which tells apart two writes within one tick of the clock.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
}

impl FileStamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from_stat(&fs::fstat(file)?))
    }

    /// The stamp of `name` in `dir`, not following a link; `None` when it does not exist.
    ///
    /// # Errors
    /// The system's.
    pub fn at(dir: impl AsFd, name: &str) -> io::Result<Option<Self>> {
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Self::from_stat(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn from_stat(stat: &fs::Stat) -> Self {
        Self {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        }
    }
}

/// Replaces the file `name` in `dir` by `bytes`, whole or not at all: written as `.tmp-<name><digits>` beside it, then
/// renamed over it. Readers see the old file or the new one.
///
/// The file gets exactly `mode` (octal permission bits), whatever the umask. When this fails the old file is as it was
/// and the temporary one is gone; a process killed meanwhile leaves the temporary file, for [`sweep_temporaries`].
///
/// # Errors
/// I/O errors with the path. After [`Durability::Full`] failed on the directory the new file is in place all the same.
pub fn atomic_write(dir: impl AsFd, name: &str, bytes: &[u8], mode: u32, durability: Durability) -> Result<FileStamp> {
    atomic_write_with(dir, name, mode, durability, |file| file.write_all(bytes))
}

/// As [`atomic_write`]; `fill` writes the contents into the temporary file.
///
/// # Errors
/// As [`atomic_write`]; those of `fill`.
pub fn atomic_write_with(
    dir: impl AsFd,
    name: &str,
    mode: u32,
    durability: Durability,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<FileStamp> {
    let dir = dir.as_fd();
    let io = |operation, source: io::Error| Error::io(operation, path_of(dir, name), None, source);
    let (mut file, temporary) = create_temporary(dir, name).map_err(|e| io("create a temporary file for", e))?;
    let write = || -> Result<FileStamp> {
        fill(&mut file).map_err(|e| io("write", e))?;
        fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).map_err(|e| io("set the mode of", e.into()))?;
        if durability != Durability::None {
            fs::fdatasync(&file).map_err(|e| io("flush", e.into()))?;
        }
        let stamp = FileStamp::of(&file).map_err(|e| io("read the status of", e))?;
        fs::renameat(dir, temporary.as_str(), dir, name).map_err(|e| io("rename into place", e.into()))?;
        Ok(stamp)
    };
    let result = write();
    if result.is_err() {
        // The error to report is the first one; a temporary file that stays is found by the sweep.
        let _ = fs::unlinkat(dir, temporary.as_str(), AtFlags::empty());
    }
    let stamp = result?;
    if durability == Durability::Full {
        fs::fsync(dir).map_err(|e| Error::io("flush directory", path_of(dir, "."), None, e))?;
    }
    Ok(stamp)
}

fn create_temporary(dir: BorrowedFd<'_>, name: &str) -> io::Result<(File, String)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let temporary = format!(".tmp-{name}{}", random_name()?);
        match fs::openat(dir, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => return Ok((File::from(fd), temporary)),
            Err(Errno::EXIST | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes what killed writers of `name` left in `dir` (`.tmp-<name><digits>`). To be called under the lock that all
/// writers of that file hold. Returns how many there were.
///
/// # Errors
/// I/O errors of reading the directory or removing a file, with the path.
pub fn sweep_temporaries(dir: impl AsFd, name: &str) -> Result<usize> {
    let dir = dir.as_fd();
    let mut removed = 0;
    for found in list(dir).map_err(|e| Error::io("read directory", path_of(dir, "."), None, e))? {
        let rest = found.as_bytes().strip_prefix(b".tmp-").and_then(|rest| rest.strip_prefix(name.as_bytes()));
        if rest.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)) {
            match fs::unlinkat(dir, &*found, AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io("remove", path_of(dir, &found), None, error)),
            }
        }
    }
    Ok(removed)
}

/// The names in a directory, sorted, without `.` and `..`.
///
/// # Errors
/// The system's.
pub fn list(dir: impl AsFd) -> io::Result<Vec<std::ffi::OsString>> {
    // A descriptor of its own: another one's reading position must not move.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut entries = Dir::new(fs::openat(dir, c".", flags, Mode::empty())?)?;
    let mut names = Vec::new();
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(std::ffi::OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a directory by an operator's path: links in it are followed.
///
/// # Errors
/// I/O errors with the path.
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open directory", path, None, e))
}

/// Makes the directory `path` with mode 0700, and its missing parents with 0700 too. One that exists is left as it is.
///
/// # Errors
/// I/O errors with the path; `ENOTDIR` when something else is there.
pub fn create_directories(path: &Path) -> Result<OwnedFd> {
    let mut missing: Vec<&Path> = Vec::new();
    for ancestor in path.ancestors() {
        match fs::mkdirat(CWD, ancestor, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => break,
            Err(Errno::NOENT) if ancestor.parent().is_some_and(|parent| parent != Path::new("")) => {
                missing.push(ancestor);
            }
            Err(error) => return Err(Error::io("make directory", ancestor, None, error)),
        }
    }
    for directory in missing.into_iter().rev() {
        match fs::mkdirat(CWD, directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make directory", directory, None, error)),
        }
    }
    open_directory(path)
}

/// Reads a small file whole, at most `limit` bytes; `None` when there is none. The last component is not followed.
///
/// # Errors
/// The system's; [`io::ErrorKind::FileTooLarge`] beyond the limit.
pub fn read_small(dir: impl AsFd, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match fs::openat(dir, name.as_ref(), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    read_limited(file, limit).map(Some)
}

/// Reads a small file by an operator's path, at most `limit` bytes; links are followed.
///
/// # Errors
/// The system's; [`io::ErrorKind::FileTooLarge`] beyond the limit.
pub fn read_small_path(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    read_limited(File::from(fs::openat(CWD, path, flags, Mode::empty())?), limit)
}

fn read_limited(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

/// Random decimal digits, as Go's `os.CreateTemp` appends them.
///
/// # Errors
/// The system's, when it has no random bytes.
pub fn random_name() -> io::Result<String> {
    let mut bytes = [0_u8; RANDOM_DIGITS];
    random(&mut bytes)?;
    // 250 is the greatest multiple of ten in a byte; the slight preference of 0 to 5 above it does no harm in a name.
    Ok(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}

/// Fills `bytes` with random bytes.
///
/// # Errors
/// The system's, when it has no random bytes.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match graph_sys::rand::getrandom(rest, graph_sys::rand::GetRandomFlags::empty()) {
            Ok(count) => filled = filled.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The path of `name` in `dir`, for error messages only: what /proc says of the descriptor.
#[must_use]
pub fn path_of(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> PathBuf {
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let directory = fs::readlinkat(CWD, link.as_str(), Vec::new())
        .map_or_else(|_| PathBuf::from("?"), |path| PathBuf::from(OsStr::from_bytes(path.as_bytes())));
    if name.as_ref() == "." { directory } else { directory.join(name.as_ref()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn atomic_write_replaces_the_file_with_exactly_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let path = dir.path().join("layers.json");
        for (durability, mode) in [(Durability::None, 0o600), (Durability::Data, 0o644), (Durability::Full, 0o666)] {
            let bytes = format!("[{mode}]");
            let stamp = atomic_write(&fd, "layers.json", bytes.as_bytes(), mode, durability).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bytes);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, mode);
            assert_eq!(FileStamp::at(&fd, "layers.json").unwrap(), Some(stamp));
        }
        assert_eq!(list(&fd).unwrap(), ["layers.json"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("busy")).unwrap();
        std::fs::write(dir.path().join("busy/file"), "").unwrap();
        let error = atomic_write(&fd, "busy", b"x", 0o600, Durability::Data).unwrap_err();
        assert!(error.to_string().contains(&format!("{}/busy", dir.path().display())), "{error}");
        assert_eq!(list(&fd).unwrap(), ["busy"]);
    }

    #[test]
    fn sweep_takes_only_the_temporaries_of_that_file() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            [".tmp-layers.json123", ".tmp-layers.json", ".tmp-layers.jsonx1", ".tmp-images.json5", "layers.json"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let fd = File::open(dir.path()).unwrap();
        assert_eq!(sweep_temporaries(&fd, "layers.json").unwrap(), 1);
        let left = list(&fd).unwrap();
        assert_eq!(left, [".tmp-images.json5", ".tmp-layers.json", ".tmp-layers.jsonx1", "layers.json"]);
    }

    #[test]
    fn small_files_have_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "12345").unwrap();
        let fd = File::open(dir.path()).unwrap();
        assert_eq!(read_small(&fd, "f", 5).unwrap().as_deref(), Some(&b"12345"[..]));
        assert_eq!(read_small(&fd, "f", 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_small(&fd, "none", 4).unwrap(), None);
    }
}
