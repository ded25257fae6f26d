//! Layers on their way in: made in `tempdirs/`, and published by a rename and a list.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::apply::{ApplyOptions, ApplyReport, AufsOptions, Style};
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{ApplyDiffOptions, CreateOptions, FileGetter, StagedLayer};
use graph_core::fsutil::Durability;
use graph_core::tempdir::{Addition, TempDir};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, Gid, Mode, Timespec, Timestamps, Uid};
use graph_sys::io::Errno;
use graph_sys::xattr::{self, SetMode};

use super::driver::Aufs;
use super::layout::{check_depth, check_id};
use super::options::SyncMode;
use super::reown::REOWNED;
use crate::support::context::{ArchiveContext, Context};

/// Mode of the root of a layer without parent, as containers/storage has it.
const BASE_ROOT_MODE: u32 = 0o555;

/// A layer that has no id yet. Dropping it removes it.
pub(super) struct NewLayer<'d> {
    pub(super) driver: &'d Aufs,
    /// The layers below, nearest first.
    pub(super) chain: Vec<LayerId>,
    pub(super) directory: OwnedFd,
    pub(super) path: PathBuf,
    addition: Addition,
    temporary: TempDir,
    /// What messages call a layer without an id: its temporary directory.
    pub(super) working_name: LayerId,
}

impl fmt::Debug for NewLayer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewLayer").field("path", &self.path).field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl<'d> NewLayer<'d> {
    /// An empty layer on `parent`, with a root like the parent's.
    pub(super) fn begin(driver: &'d Aufs, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Self> {
        if !options.storage_opt.is_empty() {
            return Err(driver.unsupported("--storage-opt (aufs has no quotas)"));
        }
        let mut chain = Vec::new();
        if let Some(parent) = parent {
            chain.push(parent.clone());
            chain.extend(driver.home.parents(parent)?);
            check_depth(parent, chain.len())?;
        }
        let below = parent.map(|parent| driver.home.open_diff(parent)).transpose()?;
        let mut temporary = driver.home.temp_dir()?;
        let working_name = LayerId::new(temporary.path().file_name().unwrap_or_default().to_string_lossy())?;
        let (addition, directory) = temporary.add_directory(BASE_ROOT_MODE)?;
        let path = temporary.addition_path(&addition);
        match &below {
            Some(below) => {
                take_root(below, &directory).at("copy the attributes of the layer below to", &path, parent)?;
            }
            None => {
                let root = options.mappings.root().of_layer(&working_name)?;
                fs::fchown(&directory, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))
                    .and_then(|()| fs::fchmod(&directory, Mode::from_raw_mode(BASE_ROOT_MODE)))
                    .at("give to the layer's root user", &path, None)?;
            }
        }
        Ok(Self { driver, chain, directory, path, addition, temporary, working_name })
    }

    /// Makes it the layer `id`: its directory goes into place by a rename, and its list is what makes it be there.
    pub(super) fn publish_as(self, id: &LayerId, sync: SyncMode) -> Result<()> {
        check_id(id)?;
        let Self { driver, chain, directory, addition, temporary, .. } = self;
        let home = &driver.home;
        let exists = || Error::LayerExists { id: id.clone() };
        if home.has(id)? {
            return Err(exists());
        }
        if let Some(parent) = chain.first()
            && !home.has(parent)?
        {
            return Err(Error::LayerUnknown { id: parent.clone() });
        }
        home.make_mount_point(id, &directory)?;
        temporary.commit(addition, home.diff(), id.as_str()).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => exists(),
            error => error,
        })?;
        let durability = match sync {
            SyncMode::None => Durability::None,
            SyncMode::Filesystem => {
                fs::fsync(home.diff()).at("flush", home.path(), Some(id))?;
                Durability::Full
            }
        };
        if let Err(error) = home.write_parents(id, &chain, durability) {
            // Without a list it is no layer.
            if let Err(left) = driver.discard(id) {
                tracing::warn!(error = %left, layer = %id, "removing a layer that could not be made");
            }
            return Err(error);
        }
        if let Err(error) = temporary.finish() {
            tracing::warn!(%error, layer = %id, "removing an empty temporary directory");
        }
        Ok(())
    }
}

impl StagedLayer for NewLayer<'_> {
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
        let lowers = self.driver.home.open_chain(&self.working_name, &self.chain)?;
        self.driver.apply_to(&self.directory, lowers, diff, options).of_layer(&self.working_name)
    }

    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>> {
        let own = self.directory.try_clone().at("duplicate the descriptor of", &self.path, None)?;
        let lowers = self.driver.home.open_chain(&self.working_name, &self.chain)?;
        Ok(Box::new(DirectoryGetter::new(own, lowers)))
    }

    fn flush(&mut self) -> Result<()> {
        if self.driver.options.sync == SyncMode::None {
            return Ok(());
        }
        fs::syncfs(&self.directory).at("flush the file system of", &self.path, None)
    }

    fn publish(self: Box<Self>, id: &LayerId) -> Result<()> {
        let sync = self.driver.options.sync;
        self.publish_as(id, sync)
    }
}

impl Aufs {
    /// Applies an archive to a layer's directory.
    pub(super) fn apply_to(
        &self,
        directory: &OwnedFd,
        lowers: Vec<OwnedFd>,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> graph_archive::Result<ApplyReport> {
        let aufs = ApplyOptions {
            style: Style::Aufs(AufsOptions { lowers }),
            mappings: options.mappings.clone(),
            ignore_chown_errors: options.ignore_chown_errors,
            force_mask: options.force_mask,
            in_user_namespace: self.rootless,
            limits: options.limits.clone(),
            mount_label: options.mount_label.clone(),
            observer: options.observer.take(),
        };
        graph_archive::apply::apply(directory.as_fd(), diff, aufs)
    }

    /// Takes away what there is of a layer without a list.
    pub(super) fn discard(&self, id: &LayerId) -> Result<()> {
        self.home.remove_mount_point(id)?;
        let mut temporary = self.home.temp_dir()?;
        temporary.stage_deletion(self.home.diff(), id.as_str())?;
        temporary.finish()
    }
}

/// Gives a new root what the root of the layer below has: the uppermost branch's is what is seen.
fn take_root(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = fs::fstat(from)?;
    fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for name in xattr::list(from)?.iter() {
        if name == b"security.selinux" || name == REOWNED || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        if let Some(value) = xattr::get(from, name)? {
            match xattr::set(to, name, &value, SetMode::CreateOrReplace) {
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let nanoseconds = |value| i64::try_from(value).unwrap_or(0);
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanoseconds(stat.st_atime_nsec) },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds(stat.st_mtime_nsec) },
    };
    fs::futimens(to, &times)
}
