//! Going down and up a directory tree by descriptors, however deep it is, with few of them open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_sys::fs::{self, Mode, OFlags};
use graph_sys::getdents::{DirBuffer, OwnedEntry, read_sorted};
use graph_sys::io::Errno;

use crate::error::{Error, Result};

/// Directories that one descent holds open. A deeper one closes the outermost and comes back to it through `..`.
const OPEN_LEVELS: usize = 24;

/// A place in a tree: the directories from the root to it.
#[derive(Debug)]
pub struct Descent {
    levels: Vec<Level>,
    /// Levels below this index, but the root, are closed.
    first_open: usize,
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level {
    /// `None` while it is closed.
    directory: Option<OwnedFd>,
    /// Device and inode, known once it has been closed.
    identity: (u64, u64),
    /// Length of the path of the level above.
    parent_path: usize,
}

fn open_directory(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    fs::openat(at, name, flags, Mode::empty())
}

fn identity(directory: impl AsFd) -> Result<(u64, u64), Errno> {
    let status = fs::fstat(directory)?;
    Ok((status.st_dev, status.st_ino))
}

impl Descent {
    /// Begins at `root`, which may be any kind of descriptor of a directory.
    pub fn new(root: BorrowedFd<'_>) -> Result<Self> {
        Self::below(root, Vec::new())
    }

    /// The same for a directory within a larger tree, whose root it does not leave; all paths have `path` before them.
    pub fn below(root: BorrowedFd<'_>, path: Vec<u8>) -> Result<Self> {
        let shown: &[u8] = if path.is_empty() { b"." } else { &path };
        let directory = open_directory(root, b".").map_err(|error| Error::io("open", shown, error))?;
        let level = Level { directory: Some(directory), identity: (0, 0), parent_path: 0 };
        Ok(Self { levels: vec![level], first_open: 1, path })
    }

    /// The current directory, open for reading.
    pub fn directory(&self) -> Result<BorrowedFd<'_>> {
        let level = self.levels.last().and_then(|level| level.directory.as_ref());
        level.map(AsFd::as_fd).ok_or_else(|| self.error("open", Errno::BADF))
    }

    /// Its path below the root, without a slash at either end; empty for the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path below the root of a name in the current directory.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }

    /// The names in the current directory, sorted by bytes; none when it has been removed meanwhile.
    pub fn list(&self, buffer: &mut DirBuffer) -> Result<Vec<OwnedEntry>> {
        match read_sorted(self.directory()?, buffer) {
            Err(Errno::NOENT) => Ok(Vec::new()),
            listed => listed.map_err(|error| self.error("list", error)),
        }
    }

    /// Goes into a directory of the current one; never through a symbolic link.
    pub fn enter(&mut self, name: &[u8]) -> Result<()> {
        let failed = |error: Errno| Error::io("open", self.join(name), error);
        let directory = open_directory(self.directory()?, name).map_err(failed)?;
        if self.levels.len().saturating_sub(self.first_open) >= OPEN_LEVELS {
            if let Some(level) = self.levels.get_mut(self.first_open)
                && let Some(directory) = level.directory.take()
            {
                level.identity =
                    identity(&directory).map_err(|error| Error::io("stat", self.path.as_slice(), error))?;
            }
            self.first_open = self.first_open.saturating_add(1);
        }
        let parent_path = self.path.len();
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.levels.push(Level { directory: Some(directory), identity: (0, 0), parent_path });
        Ok(())
    }

    /// Goes back up. Nothing happens at the root.
    pub fn leave(&mut self) -> Result<()> {
        if self.levels.len() < 2 {
            return Ok(());
        }
        let Some(left) = self.levels.pop() else { return Ok(()) };
        self.path.truncate(left.parent_path);
        self.first_open = self.first_open.min(self.levels.len()).max(1);
        let (Some(level), Some(from)) = (self.levels.last_mut(), left.directory) else { return Ok(()) };
        if level.directory.is_some() {
            return Ok(());
        }
        let expected = level.identity;
        let reopened = open_directory(&from, b"..").and_then(|directory| Ok((identity(&directory)?, directory)));
        let (found, directory) = reopened.map_err(|error| Error::io("open", self.path.as_slice(), error))?;
        if found != expected {
            let moved = io::Error::other("a directory was moved while the tree was read");
            return Err(Error::io("open", self.path.as_slice(), moved));
        }
        level.directory = Some(directory);
        self.first_open = self.levels.len().saturating_sub(1).max(1);
        Ok(())
    }

    /// An I/O error about the current directory.
    pub fn error(&self, operation: &'static str, error: Errno) -> Error {
        let path: &[u8] = if self.path.is_empty() { b"." } else { &self.path };
        Error::io(operation, path, error)
    }
}

/// Whether a directory or file was there no more, or something else in its place, when its name was used.
pub fn is_gone(error: &Error) -> bool {
    let gone = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP];
    match error {
        Error::Io { source, .. } => gone.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error())),
        _ => false,
    }
}

/// `directory/name`, or `name` in the root.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len().saturating_add(name.len()).saturating_add(1));
    if !directory.is_empty() {
        path.extend_from_slice(directory);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_is_walked_with_few_descriptors_and_in_order() {
        let temp = tempfile::tempdir().unwrap();
        let root: OwnedFd = std::fs::File::open(temp.path()).unwrap().into();
        let mut at = root.try_clone().unwrap();
        for _ in 0..600 {
            for name in ["b", "a.x", "a"] {
                fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            at = open_directory(&at, b"a").unwrap();
        }
        let mut descent = Descent::new(root.as_fd()).unwrap();
        let mut buffer = DirBuffer::new();
        for depth in 0..600 {
            let names: Vec<_> = descent.list(&mut buffer).unwrap().into_iter().map(|e| e.name).collect();
            assert_eq!(names, [&b"a"[..], b"a.x", b"b"], "{depth}");
            descent.enter(b"a").unwrap();
            let open = descent.levels.iter().filter(|level| level.directory.is_some()).count();
            assert!(open <= OPEN_LEVELS + 1, "{open} open at {depth}");
        }
        for depth in (0..600).rev() {
            descent.leave().unwrap();
            assert_eq!(descent.path().len(), if depth == 0 { 0 } else { depth * 2 - 1 });
            // Going into a side directory from a level that had been closed.
            descent.enter(b"b").unwrap();
            assert_eq!(descent.list(&mut buffer).unwrap(), []);
            descent.leave().unwrap();
            assert_eq!(descent.list(&mut buffer).unwrap().len(), 3, "{depth}");
        }
        descent.leave().unwrap();
        assert_eq!(descent.list(&mut buffer).unwrap().len(), 3);
    }

    #[test]
    fn links_are_not_entered_and_moves_are_noticed() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", temp.path().join("link")).unwrap();
        std::fs::create_dir(temp.path().join("elsewhere")).unwrap();
        let mut deep = temp.path().to_owned();
        for _ in 0..40 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        let root: OwnedFd = std::fs::File::open(temp.path()).unwrap().into();
        let mut descent = Descent::new(root.as_fd()).unwrap();
        assert!(descent.enter(b"link").is_err());
        for _ in 0..40 {
            descent.enter(b"d").unwrap();
        }
        std::fs::rename(temp.path().join("d/d/d/d"), temp.path().join("elsewhere/d")).unwrap();
        let mut failed = 0;
        for _ in 0..40 {
            failed += usize::from(descent.leave().is_err());
        }
        assert_eq!(failed, 1);
    }
}
