//! Changing a layer aside: its own `diff`, which is exchanged for the changed copy in one step.

use std::io::Read;
use std::os::fd::OwnedFd;

use graph_archive::apply::{ApplyReport, XattrNamespace};
use graph_archive::copy::CopyOptions;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{ApplyDiffOptions, FileGetter, StagedUpdate};
use graph_core::{LayerId, Result};

use super::DRIVER;
use super::driver::Overlay;
use super::layout::{Context, DIFF, Layer, MERGED};
use super::mount::not_mounted;
use super::options::SyncMode;
use crate::support::context::ArchiveContext;
use crate::support::update::{Copy, Place};

/// A layer being changed.
#[derive(Debug)]
pub(super) struct Update<'d> {
    driver: &'d Overlay,
    layer: Layer<'d>,
    copy: Copy,
    /// What is below the layer's own content.
    below: Vec<OwnedFd>,
}

impl<'d> Update<'d> {
    pub(super) fn begin(driver: &'d Overlay, id: &LayerId) -> Result<Self> {
        let layer = driver.require_writable(id)?;
        not_mounted(&layer, &layer.path().join(MERGED))?;
        let (old, below) = driver.open_stack(&layer)?;
        let path = layer.path().join(DIFF);
        let directory = layer.dir.try_clone().at("duplicate the descriptor of", layer.path(), Some(id))?;
        let place = Place { directory, name: DIFF.to_owned(), path };
        let in_user_namespace = driver.namespace == XattrNamespace::User;
        let options = CopyOptions { in_user_namespace, ..CopyOptions::default() };
        let copy = Copy::begin(DRIVER, id, place, old, layer.home.temp_dir()?, &options)?;
        Ok(Self { driver, layer, copy, below })
    }
}

impl StagedUpdate for Update<'_> {
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
        let below = std::mem::take(&mut self.below);
        self.driver.apply_to(&self.copy.new, below, diff, options).of_layer(&self.layer.id)
    }

    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>> {
        let new = self.copy.new.try_clone().at("duplicate a descriptor of", self.layer.path(), Some(&self.layer.id))?;
        let (_, below) = self.driver.open_stack(&self.layer)?;
        Ok(Box::new(DirectoryGetter::new(new, below)))
    }

    fn flush(&mut self) -> Result<()> {
        if self.driver.options.sync == SyncMode::None { Ok(()) } else { self.copy.flush() }
    }

    fn inode(&self) -> Result<u64> {
        self.copy.inode()
    }

    fn is_current(&self) -> Result<bool> {
        self.copy.is_current()
    }

    fn exchange(&mut self) -> Result<()> {
        not_mounted(&self.layer, &self.layer.path().join(MERGED))?;
        self.copy.exchange(self.driver.options.sync == SyncMode::Filesystem)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.copy.finish()
    }
}
