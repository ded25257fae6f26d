//! Layers on their way in: made in `tempdirs/`, laid out as they will be, and published by one rename.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use graph_archive::apply::{ApplyReport, OverlayOptions, Style, XattrNamespace};
use graph_archive::idmap::IdMappings;
use graph_archive::split::{DirectoryGetter, FileGetter};
use graph_core::driver::{ApplyDiffOptions, CreateOptions, StagedLayer};
use graph_core::tempdir::{Addition, TempDir};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs;

use super::create::{Plan, check_id};
use super::driver::Overlay;
use super::layout::{Context, DIFF, Home, inherited, open_dir};
use super::options::SyncMode;

/// A layer that has no id yet. Dropping it removes it.
pub(super) struct NewLayer<'d> {
    driver: &'d Overlay,
    home: &'d Home,
    temp: TempDir,
    addition: Addition,
    pub(super) plan: Plan,
    pub(super) dir: OwnedFd,
    pub(super) diff: OwnedFd,
    pub(super) path: PathBuf,
    /// What messages call a layer without an id: its temporary directory.
    pub(super) working_name: LayerId,
}

impl<'d> NewLayer<'d> {
    /// Lays out an empty layer. `durable`: its small files are flushed one by one, because no [`StagedLayer::flush`] follows.
    pub(super) fn begin(
        driver: &'d Overlay,
        parent: Option<&LayerId>,
        mappings: &IdMappings,
        read_write: bool,
        durable: bool,
    ) -> Result<Self> {
        let durable = durable && driver.options.sync == SyncMode::Filesystem;
        let plan = Plan::new(&driver.homes, parent, mappings, driver.options.force_mask, durable)?;
        let home = driver.homes.home_for(read_write);
        let mut temp = home.temp_dir()?;
        let working_name = LayerId::new(temp.path().file_name().unwrap_or_default().to_string_lossy())?;
        let (addition, dir) = temp.add_directory(0o700)?;
        let path = temp.addition_path(&addition);
        let diff = plan.build(&dir, &path)?;
        Ok(Self { driver, home, temp, addition, plan, dir, diff, path, working_name })
    }

    /// What is below its own content, nearest first: what it inherits re-owned, then the layers below.
    fn lowers(&self) -> Result<Vec<OwnedFd>> {
        let mut lowers = inherited(&self.dir).at("open the re-owned content of", &self.path, None)?;
        lowers.extend(self.driver.open_chain(&self.working_name, &self.plan.chain)?);
        Ok(lowers)
    }

    /// Makes it the layer `id`. After a crash the layer is there whole or not at all.
    pub(super) fn publish(self, id: &LayerId) -> Result<()> {
        check_id(id)?;
        let Self { driver, home, temp, addition, plan, .. } = self;
        let exists = || Error::LayerExists { id: id.clone() };
        if driver.homes.find(id)?.is_some() {
            return Err(exists());
        }
        if let Some(parent) = plan.chain.first() {
            driver.homes.require(parent)?;
        }
        // The link first: a layer without one would trouble older peers, a link without a layer troubles nobody.
        home.write_link(&plan.link, id)?;
        if let Err(error) = temp.commit(addition, &home.dir, id.as_str()) {
            if let Err(left) = home.remove_link(&plan.link, id) {
                tracing::warn!(error = %left, layer = %id, "removing the link of a layer that was not made");
            }
            return Err(match error {
                Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => exists(),
                error => error,
            });
        }
        if driver.options.sync == SyncMode::Filesystem {
            home.flush_names(id)?;
        }
        // The layer is there. What stays of its temporary directory is removed by the next open.
        if let Err(error) = temp.finish() {
            tracing::warn!(error = %error, layer = %id, "removing an empty temporary directory");
        }
        Ok(())
    }
}

/// A layer being filled outside every lock.
pub(super) struct Staged<'d> {
    new: NewLayer<'d>,
    parent: Option<LayerId>,
}

impl std::fmt::Debug for Staged<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("path", &self.new.path).field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl<'d> Staged<'d> {
    pub(super) fn of(new: NewLayer<'d>, parent: Option<LayerId>) -> Self {
        Self { new, parent }
    }

    pub(super) fn begin(driver: &'d Overlay, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Self> {
        Ok(Self {
            new: NewLayer::begin(driver, parent, &options.mappings, options.read_write, false)?,
            parent: parent.cloned(),
        })
    }
}

impl StagedLayer for Staged<'_> {
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
        let lowers = self.new.lowers()?;
        self.new
            .driver
            .apply_to(&self.new.diff, lowers, diff, options)
            .map_err(|source| Error::Archive { id: self.new.working_name.clone(), source })
    }

    fn flush(&mut self) -> Result<()> {
        if self.new.driver.options.sync == SyncMode::None {
            return Ok(());
        }
        fs::syncfs(&self.new.dir).at("flush the file system of", &self.new.path, None)
    }

    fn publish(self: Box<Self>, id: &LayerId) -> Result<()> {
        self.new.publish(id)
    }

    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>> {
        let diff = open_dir(&self.new.dir, DIFF).at("open", self.new.path.join(DIFF), None)?;
        Ok(Box::new(DirectoryGetter::new(diff, Vec::new())))
    }
}

impl Overlay {
    /// Applies an archive to a `diff` directory that has these directories below it.
    pub(super) fn apply_to(
        &self,
        diff: &OwnedFd,
        lowers: Vec<OwnedFd>,
        reader: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> graph_archive::Result<ApplyReport> {
        let observer = options.observer.take();
        graph_archive::apply::apply(
            diff.as_fd(),
            reader,
            graph_archive::apply::ApplyOptions {
                style: Style::Overlay(OverlayOptions {
                    namespace: self.namespace,
                    lowers,
                    ..OverlayOptions::default()
                }),
                mappings: options.mappings.clone(),
                ignore_chown_errors: options.ignore_chown_errors || self.options.ignore_chown_errors,
                force_mask: options.force_mask.or(self.options.force_mask),
                in_user_namespace: self.namespace == XattrNamespace::User,
                limits: options.limits.clone(),
                mount_label: options.mount_label.clone(),
                observer,
            },
        )
    }
}
