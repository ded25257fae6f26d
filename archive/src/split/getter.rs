//! Finds files by member name in a layer's directories.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use graph_sys::fs::{self, FileType, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;

use super::FileGetter;
use crate::error::{Error, Result};

/// A [`FileGetter`] over a directory and, below it, others; the first that has a name wins.
///
/// Names are resolved inside each directory as if it were the root; a symbolic link as the last component is not
/// followed. Only regular files are opened: never a device, and never a pipe, which would wait for a writer.
#[derive(Debug)]
pub struct DirectoryGetter {
    directories: Vec<RootDir>,
}

impl DirectoryGetter {
    /// Looks in `root` first, then in `lowers`, nearest first.
    #[must_use]
    pub fn new(root: OwnedFd, lowers: Vec<OwnedFd>) -> Self {
        Self { directories: [root].into_iter().chain(lowers).map(RootDir::from_fd).collect() }
    }
}

impl FileGetter for DirectoryGetter {
    fn get(&self, name: &[u8]) -> Result<File> {
        let failed = |error: io::Error| Error::io("open", name, error);
        for directory in &self.directories {
            match directory.open_in_root(name, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(found) => {
                    let status = fs::fstat(&found).map_err(|error| failed(error.into()))?;
                    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
                    }
                    return reopen(&found).map_err(failed);
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }
}

fn reopen(found: &impl AsFd) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    Ok(File::from(fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?))
}
