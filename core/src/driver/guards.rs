//! Values that stand for something a driver holds: a mount, a removal that is not done, a layer in the making.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use graph_archive::apply::ApplyReport;
use graph_archive::split::FileGetter;

use super::ApplyDiffOptions;
use crate::error::Result;
use crate::id::LayerId;

/// A deletion that has begun: the layer is gone from the driver, its files are not yet removed.
///
/// Dropping it removes them too, and only logs what fails. What is left, also by a process that dies before, is removed
/// by the next open ([`Driver::temp_dir_roots`](super::Driver::temp_dir_roots)).
#[must_use = "the files are removed by finish()"]
pub struct DeferredRemoval {
    finish: Option<Box<dyn FnOnce() -> Result<()> + Send>>,
}

impl DeferredRemoval {
    /// A removal whose physical part is `finish`.
    pub fn new(finish: impl FnOnce() -> Result<()> + Send + 'static) -> Self {
        Self { finish: Some(Box::new(finish)) }
    }

    /// A removal with nothing left to do.
    pub fn done() -> Self {
        Self { finish: None }
    }

    /// Removes the files. To be called outside locks; may take long.
    ///
    /// # Errors
    /// The first file that could not be removed; the rest is tried all the same.
    pub fn finish(mut self) -> Result<()> {
        self.finish.take().map_or(Ok(()), |finish| finish())
    }
}

impl Drop for DeferredRemoval {
    fn drop(&mut self) {
        if let Some(finish) = self.finish.take()
            && let Err(error) = finish()
        {
            tracing::warn!(%error, "removing a deleted layer's files");
        }
    }
}

impl fmt::Debug for DeferredRemoval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredRemoval").field("pending", &self.finish.is_some()).finish()
    }
}

/// A mounted layer. Dropping it gives up the reference, and unmounts with the last one.
#[must_use = "dropping it unmounts the layer"]
pub struct Mounted<'d> {
    path: PathBuf,
    release: Option<Box<dyn FnOnce() -> Result<()> + Send + 'd>>,
}

impl<'d> Mounted<'d> {
    /// A mount at `path` whose reference `release` gives up.
    pub fn new(path: PathBuf, release: impl FnOnce() -> Result<()> + Send + 'd) -> Self {
        Self { path, release: Some(Box::new(release)) }
    }

    /// Where the layer's tree is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives up the reference and reports a failing unmount.
    ///
    /// # Errors
    /// Those of [`Driver::put`](super::Driver::put).
    pub fn put(mut self) -> Result<()> {
        self.release.take().map_or(Ok(()), |release| release())
    }

    /// Leaves the layer mounted, also beyond the end of the process; [`Driver::put`](super::Driver::put) undoes it.
    #[must_use]
    pub fn persist(mut self) -> PathBuf {
        self.release = None;
        std::mem::take(&mut self.path)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Some(release) = self.release.take()
            && let Err(error) = release()
        {
            tracing::warn!(%error, path = %self.path.display(), "unmounting a layer that went out of scope");
        }
    }
}

impl fmt::Debug for Mounted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A layer being filled outside every lock. Dropping it removes all of it.
pub trait StagedLayer: Send + fmt::Debug {
    /// Applies an uncompressed tar. At most once.
    ///
    /// # Errors
    /// As [`Driver::apply_diff`](super::Driver::apply_diff); the staged layer can then only be dropped.
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport>;

    /// Gives access to the files of the staged layer's own diff, as [`Driver::diff_getter`](super::Driver::diff_getter) does for a published one.
    /// tar-split needs it when an archive replaces members of its own.
    ///
    /// # Errors
    /// The system's.
    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>>;

    /// Flushes the data to disk (one syncfs), so that publishing cannot outrun it. Without a lock.
    ///
    /// # Errors
    /// The system's.
    fn flush(&mut self) -> Result<()>;

    /// Makes it the layer `id` by a rename. To be called under the store's lock; short.
    ///
    /// # Errors
    /// [`crate::Error::LayerExists`]; [`crate::Error::LayerUnknown`] when the parent has gone meanwhile.
    fn publish(self: Box<Self>, id: &LayerId) -> Result<()>;
}

/// New content for a layer that is there, made outside every lock from a copy of what it has. Dropping it removes it, or
/// what it replaced.
pub trait StagedUpdate: Send + fmt::Debug {
    /// Applies an uncompressed tar to the copy. At most once.
    ///
    /// # Errors
    /// As [`Driver::apply_diff`](super::Driver::apply_diff); the update can then only be dropped.
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport>;

    /// Gives access to the files of the new content, as [`Driver::diff_getter`](super::Driver::diff_getter) does for the old.
    ///
    /// # Errors
    /// The system's.
    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>>;

    /// Flushes the data to disk (one syncfs), so that the exchange cannot outrun it. Without a lock.
    ///
    /// # Errors
    /// The system's.
    fn flush(&mut self) -> Result<()>;

    /// The inode number of the new content's directory: what
    /// [`Driver::content_directory`](super::Driver::content_directory) opens after the exchange, and never before.
    ///
    /// # Errors
    /// The system's.
    fn inode(&self) -> Result<u64>;

    /// Whether the layer still is what was copied: nothing in it was made, changed or removed since. Under the store's lock.
    ///
    /// # Errors
    /// The system's.
    fn is_current(&self) -> Result<bool>;

    /// Exchanges the layer's content for the new one, by one rename; once more undoes it. Under the store's lock; short.
    ///
    /// *On a crash*: the one or the other, whole.
    ///
    /// # Errors
    /// [`InUse`](crate::ErrorKind::InUse) for a mounted layer, where that can be seen; [`Io`](crate::ErrorKind::Io). After
    /// an error [`StagedUpdate::inode`] tells which one is there.
    fn exchange(&mut self) -> Result<()>;

    /// Removes what is not the layer's. To be called outside locks; may take long.
    ///
    /// # Errors
    /// The first file that could not be removed; the next open removes the rest.
    fn finish(self: Box<Self>) -> Result<()>;
}
