//! A layer's content changed aside, in a copy, and exchanged for the old in one step.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::copy::{CopyOptions, copy_tree};
use graph_archive::walk::Descent;
use graph_core::tempdir::{Addition, TempDir};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, AtFlags, FileType, Stat};
use graph_sys::getdents::DirBuffer;
use graph_sys::io::Errno;

use super::context::{ArchiveContext, Context};
use super::exchange::fault;

/// Where a layer's content is: a name in an open directory.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: OwnedFd,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// The copy.
#[derive(Debug)]
pub(crate) struct Copy {
    id: LayerId,
    place: Place,
    temporary: TempDir,
    addition: Addition,
    /// The content that was copied.
    old: OwnedFd,
    /// The new content.
    pub(crate) new: OwnedFd,
    /// When copying began, by the file system's clock: seconds and nanoseconds.
    begun: (i64, u64),
}

fn changed_at(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

impl Copy {
    /// Copies a layer's content with all that it has; `driver` is for messages.
    pub(crate) fn begin(
        driver: &str,
        id: &LayerId,
        place: Place,
        old: OwnedFd,
        mut temporary: TempDir,
        options: &CopyOptions,
    ) -> Result<Self> {
        let (addition, new) = temporary.add_directory(0o700)?;
        let stat = fs::fstat(&new).at("read the status of", temporary.addition_path(&addition), Some(id))?;
        let begun = changed_at(&stat);
        let options = CopyOptions { labels: true, ..options.clone() };
        let report = copy_tree(old.as_fd(), new.as_fd(), &options).of_layer(id)?;
        if let Some(notice) = report.notices.first() {
            // What a copy cannot have, the layer would lose.
            tracing::debug!(layer = %id, notice, "copying a layer to change it");
            return Err(Error::Unsupported {
                driver: driver.to_owned(),
                operation: format!("changing a copy of layer {id} ({notice})"),
            });
        }
        fault("update.copied")?;
        Ok(Self { id: id.clone(), place, temporary, addition, old, new, begun })
    }

    pub(crate) fn flush(&self) -> Result<()> {
        fs::syncfs(&self.new).at("flush the file system of", self.temporary.path(), Some(&self.id))
    }

    pub(crate) fn inode(&self) -> Result<u64> {
        Ok(fs::fstat(&self.new).at("read the status of", self.temporary.path(), Some(&self.id))?.st_ino)
    }

    /// Whether nothing in the original has changed since it was copied.
    pub(crate) fn is_current(&self) -> Result<bool> {
        let at = |result: Result<Stat, Errno>| result.at("read the status of", &self.place.path, Some(&self.id));
        let now = match fs::statat(&self.place.directory, self.place.name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            now => at(now)?,
        };
        let old = at(fs::fstat(&self.old))?;
        if (now.st_dev, now.st_ino) != (old.st_dev, old.st_ino) {
            return Ok(false);
        }
        unchanged_since(&self.old, self.begun).of_layer(&self.id)
    }

    /// The one for the other, and back.
    pub(crate) fn exchange(&self, durable: bool) -> Result<()> {
        self.temporary.swap(&self.addition, &self.place.directory, self.place.name.as_str())?;
        fault("update.exchanged")?;
        if durable {
            fs::fsync(&self.place.directory).at("flush directory", &self.place.path, Some(&self.id))?;
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.temporary.finish()
    }
}

/// Whether nothing in a tree has a later change time. Whatever is made, changed, renamed or removed changes that of
/// something that stays.
fn unchanged_since(root: &OwnedFd, begun: (i64, u64)) -> graph_archive::Result<bool> {
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(root.as_fd())?;
    let stat = fs::fstat(root).map_err(|error| descent.error("stat", error))?;
    if changed_at(&stat) > begun {
        return Ok(false);
    }
    let mut waiting = vec![descent.list(&mut buffer)?.into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            descent.leave()?;
            continue;
        };
        let stat = match fs::statat(descent.directory()?, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(graph_archive::Error::io("stat", descent.join(&entry.name), error)),
        };
        if changed_at(&stat) > begun {
            return Ok(false);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            descent.enter(&entry.name)?;
            waiting.push(descent.list(&mut buffer)?.into_iter());
        }
    }
    Ok(true)
}
