//! Making a layer aside: a copy of its parent, then what goes on top, then one rename.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::apply::{ApplyOptions, ApplyReport};
use graph_archive::copy::{CopyOptions, copy_tree};
use graph_archive::owners::OwnerShift;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{ApplyDiffOptions, CreateOptions, FileGetter, StagedLayer};
use graph_core::tempdir::{Addition, TempDir};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, Gid, Mode, Uid};
use graph_sys::xattr::{self, SetMode};

use super::driver::Vfs;
use super::layout::Home;
use super::options::SyncMode;
use crate::support::context::{ArchiveContext, Context};
use crate::support::exchange::exchange;
use crate::support::reowned::warn_of_full_copy;

/// Mode of the root of a layer without parent, as containers/storage has it.
const BASE_ROOT_MODE: u32 = 0o555;

/// A layer that has no id yet. Dropping it removes it.
pub(super) struct Staged<'v> {
    vfs: &'v Vfs,
    home: &'v Home,
    parent: Option<LayerId>,
    directory: OwnedFd,
    path: PathBuf,
    addition: Addition,
    temporary: TempDir,
    /// What messages call a layer without an id: its temporary directory.
    working_name: LayerId,
}

impl fmt::Debug for Staged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("path", &self.path).field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl<'v> Staged<'v> {
    /// Copies the parent, or begins empty.
    pub(super) fn begin(
        vfs: &'v Vfs,
        parent: Option<&LayerId>,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<Self> {
        Self::begin_with(vfs, parent, None, options, read_write)
    }

    /// The same, with new owners if so asked.
    pub(super) fn begin_with(
        vfs: &'v Vfs,
        parent: Option<&LayerId>,
        owners: Option<OwnerShift>,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<Self> {
        if !options.storage_opt.is_empty() {
            return Err(vfs.unsupported("--storage-opt (vfs has no quotas)"));
        }
        let below = parent.map(|parent| vfs.homes.layer(parent)).transpose()?;
        let home = vfs.homes.for_new(read_write);
        let mut temporary = home.temp_dir()?;
        let working_name = LayerId::new(temporary.path().file_name().unwrap_or_default().to_string_lossy())?;
        let (addition, directory) = temporary.add_directory(BASE_ROOT_MODE)?;
        let path = temporary.addition_path(&addition);
        if let Some(below) = &below {
            // Takes over the root's mode, owner and attributes as well.
            let id = parent.unwrap_or(&working_name);
            vfs.copy(&below.directory, &directory, owners, id)?;
        } else {
            let root = options.mappings.root().of_layer(&working_name)?;
            fs::fchown(&directory, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))
                .or_else(|error| if vfs.options.ignore_chown_errors { Ok(()) } else { Err(error) })
                .and_then(|()| fs::fchmod(&directory, Mode::from_raw_mode(BASE_ROOT_MODE)))
                .at("give to the layer's root user", &path, None)?;
        }
        if !options.mount_label.is_empty() {
            // As containers/storage: a file system without labels is no reason to fail.
            let label = options.mount_label.as_bytes();
            if let Err(error) = xattr::set(&directory, b"security.selinux", label, SetMode::CreateOrReplace) {
                tracing::debug!(%error, path = %path.display(), "labelling a new layer");
            }
        }
        Ok(Self { vfs, home, parent: parent.cloned(), directory, path, addition, temporary, working_name })
    }

    /// Renames it into place, whole or not at all. With `sync` it stays there in a power failure.
    pub(super) fn publish_as(self, id: &LayerId, sync: SyncMode) -> Result<()> {
        let Self { vfs, home, parent, addition, temporary, .. } = self;
        let exists = || Error::LayerExists { id: id.clone() };
        if vfs.homes.writable_home_of(id)?.is_some() {
            return Err(exists());
        }
        if let Some(parent) = parent
            && !vfs.homes.have(&parent)?
        {
            return Err(Error::LayerUnknown { id: parent });
        }
        temporary.commit(addition, home.layers(), id.as_str()).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => exists(),
            error => error,
        })?;
        if sync == SyncMode::Filesystem {
            fs::fsync(home.layers()).at("flush", home.path(), Some(id))?;
        }
        // The layer is there. What stays of its temporary directory is removed by the next open.
        if let Err(error) = temporary.finish() {
            tracing::warn!(%error, layer = %id, "removing an empty temporary directory");
        }
        Ok(())
    }
}

impl StagedLayer for Staged<'_> {
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
        self.vfs.apply_to(&self.directory, diff, options).of_layer(&self.working_name)
    }

    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>> {
        let directory = self.directory.try_clone().at("duplicate the descriptor of", &self.path, None)?;
        Ok(Box::new(DirectoryGetter::new(directory, Vec::new())))
    }

    fn flush(&mut self) -> Result<()> {
        if self.vfs.options.sync == SyncMode::None {
            return Ok(());
        }
        fs::syncfs(&self.directory).at("flush the file system of", &self.path, None)
    }

    fn publish(self: Box<Self>, id: &LayerId) -> Result<()> {
        let sync = self.vfs.options.sync;
        self.publish_as(id, sync)
    }
}

impl Vfs {
    /// Copies a layer's tree.
    pub(super) fn copy(&self, from: &OwnedFd, to: &OwnedFd, owners: Option<OwnerShift>, id: &LayerId) -> Result<()> {
        let for_owners = owners.as_ref().is_some_and(|owners| !owners.is_identity());
        let options = CopyOptions {
            ignore_chown_errors: self.options.ignore_chown_errors,
            reown: owners,
            ..CopyOptions::default()
        };
        let report = copy_tree(from.as_fd(), to.as_fd(), &options).of_layer(id)?;
        if for_owners {
            warn_of_full_copy(&report, id);
        }
        for notice in report.notices {
            tracing::warn!(notice, layer = %id, "copying a layer");
        }
        Ok(())
    }

    /// Exchanges a layer for a copy with other owners.
    pub(super) fn reown(&self, id: &LayerId, owners: OwnerShift) -> Result<()> {
        let unknown = || Error::LayerUnknown { id: id.clone() };
        let home = self.homes.writable_home_of(id)?.ok_or_else(unknown)?;
        let layer = home.find(id)?.ok_or_else(unknown)?;
        if owners.is_identity() {
            return Ok(());
        }
        let mut temporary = home.temp_dir()?;
        let (addition, directory) = temporary.add_directory(BASE_ROOT_MODE)?;
        self.copy(&layer.directory, &directory, Some(owners), id)?;
        if self.options.sync == SyncMode::Filesystem {
            fs::syncfs(&directory).at("flush the file system of", temporary.path(), Some(id))?;
        }
        exchange(temporary, addition, home.layers(), id)
    }

    /// Applies an archive to a tree that holds the lower layers' files.
    pub(super) fn apply_to(
        &self,
        directory: &OwnedFd,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> graph_archive::Result<ApplyReport> {
        let plain = ApplyOptions {
            mappings: options.mappings.clone(),
            ignore_chown_errors: options.ignore_chown_errors || self.options.ignore_chown_errors,
            force_mask: options.force_mask,
            in_user_namespace: self.rootless,
            limits: options.limits.clone(),
            mount_label: options.mount_label.clone(),
            observer: options.observer.take(),
            ..ApplyOptions::default()
        };
        graph_archive::apply::apply(directory.as_fd(), diff, plain)
    }
}
