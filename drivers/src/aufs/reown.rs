//! Giving a layer, and all that it inherits, to other owners.
//!
//! AUFS shows owners as they are in the branches, whatever ID mapping a branch is mounted with. Files of the layers below
//! belong to those layers and cannot change. So the layer's own directory gets a copy of all that the layer shows, with the
//! new owners, and the layer's marks, which go on hiding what lower layers have. A mark on its root says that what is in it is
//! not all changed; differences are found by comparing then.
//!
//! The copy is made in `tempdirs/` without any lock, and appears by one rename: of a new layer, or in exchange for the
//! directory as it was.

use std::os::fd::{AsFd, OwnedFd};

use graph_archive::copy::{CopyOptions, copy_file, copy_tree};
use graph_archive::owners::OwnerShift;
use graph_archive::walk::{Descent, is_gone};
use graph_archive::whiteout::{PREFIX, Whiteout};
use graph_core::driver::{CreateOptions, ReownRequest};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, FileType, Mode, OFlags, Timespec, Timestamps};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;
use graph_sys::xattr::{self, SetMode};

use super::driver::Aufs;
use super::options::SyncMode;
use super::staged::NewLayer;
use crate::support::context::{ArchiveContext, Context};
use crate::support::exchange::{exchange, fault};

/// Says of a layer's directory that it also holds what the layer inherits. Attributes of that kind are not seen without
/// privileges, and in no archive.
pub(super) const REOWNED: &[u8] = b"trusted.graphdriver.reowned";

/// Whether the directory also holds what the layer inherits.
pub(super) fn is_reowned(directory: &OwnedFd) -> Result<bool, Errno> {
    match xattr::get(directory, REOWNED) {
        Ok(value) => Ok(value.is_some()),
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Aufs {
    /// A layer in the making with the files of `request` in their new owners' hands.
    pub(super) fn begin_reowned_layer(
        &self,
        request: &ReownRequest<'_>,
        options: &CreateOptions,
    ) -> Result<NewLayer<'_>> {
        let new = NewLayer::begin(self, request.parent, options)?;
        let owners = OwnerShift::new(request.mappings.clone(), options.mappings.clone());
        if let Some(source) = request.template.or(request.parent) {
            self.fill(source, request.template, &new.directory, &owners, !new.chain.is_empty())?;
        }
        fault("reown.copied")?;
        Ok(new)
    }

    /// Exchanges a layer's directory for one with other owners.
    pub(super) fn reown(&self, id: &LayerId, owners: &OwnerShift) -> Result<()> {
        let chain = self.home.parents(id)?;
        let target = self.home.mount_path(id);
        if self.mounter.is_mounted(&target).at("look at the mount point", &target, Some(id))? {
            return Err(Error::InUse { id: id.clone(), by: format!("a mount on {}", target.display()) });
        }
        if owners.is_identity() {
            return Ok(());
        }
        let mut temporary = self.home.temp_dir()?;
        let (addition, directory) = temporary.add_directory(0o700)?;
        self.fill(id, Some(id), &directory, owners, !chain.is_empty())?;
        if self.options.sync == SyncMode::Filesystem {
            fs::syncfs(&directory).at("flush the file system of", temporary.path(), Some(id))?;
        }
        exchange(temporary, addition, self.home.diff(), id)
    }

    /// Copies all that `source` shows, and the marks of `own`.
    fn fill(
        &self,
        source: &LayerId,
        own: Option<&LayerId>,
        to: &OwnedFd,
        owners: &OwnerShift,
        has_lowers: bool,
    ) -> Result<()> {
        let tree = self.look_into(source)?;
        let options = CopyOptions { reown: Some(owners.clone()), ..CopyOptions::default() };
        let report = copy_tree(tree.as_fd(), to.as_fd(), &options).of_layer(source)?;
        for notice in report.notices {
            tracing::warn!(layer = %source, notice, "changing the owners of a layer");
        }
        if report.bytes > 0 {
            tracing::warn!(
                layer = %source,
                bytes = report.bytes,
                "copied the files of a layer to change their owners: AUFS shows no files through ID mappings"
            );
        }
        if !has_lowers {
            return Ok(());
        }
        if let Some(own) = own {
            copy_marks(&self.home.open_diff(own)?, to).of_layer(own)?;
        }
        xattr::set(to, REOWNED, b"y", SetMode::CreateOrReplace).at(
            "mark as re-owned",
            self.home.diff_path(source),
            Some(source),
        )
    }
}

/// Copies whiteouts and opaque marks from one directory to another that has the same directories.
fn copy_marks(from: &OwnedFd, to: &OwnedFd) -> graph_archive::Result<()> {
    let io = |operation| move |error: Errno| graph_archive::Error::io(operation, b".".as_slice(), error);
    let target =
        RootDir::from_fd(to.try_clone().map_err(|error| graph_archive::Error::io("open", b".".as_slice(), error))?);
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(from.as_fd())?;
    let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> = vec![descent.list(&mut buffer)?.into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            descent.leave()?;
            continue;
        };
        if entry.name.starts_with(PREFIX) {
            if matches!(Whiteout::parse(&entry.name), Ok(Some(Whiteout::Remove(_) | Whiteout::Opaque))) {
                let path: &[u8] = if descent.path().is_empty() { b"." } else { descent.path() };
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let directory = match target.open_beneath(path, flags, Mode::empty()) {
                    Ok(directory) => directory,
                    // Hidden by a whiteout beside it.
                    Err(Errno::NOENT | Errno::NOTDIR) => continue,
                    Err(error) => return Err(io("open")(error)),
                };
                let stat = fs::fstat(&directory).map_err(io("stat"))?;
                copy_file(
                    descent.directory()?,
                    &entry.name,
                    directory.as_fd(),
                    &entry.name,
                    &CopyOptions { merge: true, ..CopyOptions::default() },
                )?;
                let nanoseconds = |value| i64::try_from(value).unwrap_or(0);
                let times = Timestamps {
                    last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanoseconds(stat.st_atime_nsec) },
                    last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds(stat.st_mtime_nsec) },
                };
                fs::futimens(&directory, &times).map_err(io("set times of"))?;
            }
            continue;
        }
        if matches!(entry.file_type, FileType::Directory | FileType::Unknown) {
            match descent.enter(&entry.name) {
                Ok(()) => waiting.push(descent.list(&mut buffer)?.into_iter()),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
