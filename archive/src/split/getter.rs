//! Finds files by member name in a layer's directories.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use graph_sys::found::Found;
use graph_sys::fs::{FileType, OFlags};
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
                    let found = Found::of(found).map_err(|error| failed(error.into()))?;
                    if found.file_type() != FileType::RegularFile {
                        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
                    }
                    return found.open_to_read().map(File::from).map_err(|error| failed(error.into()));
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }
}
