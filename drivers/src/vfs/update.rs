//! Changing a layer aside: all of it, since all of it is the layer's own.

use std::io::Read;

use graph_archive::apply::ApplyReport;
use graph_archive::copy::CopyOptions;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{ApplyDiffOptions, FileGetter, StagedUpdate};
use graph_core::{Error, LayerId, Result};

use super::DRIVER;
use super::driver::Vfs;
use super::options::SyncMode;
use crate::support::context::{ArchiveContext, Context};
use crate::support::update::{Copy, Place};

/// A layer being changed.
#[derive(Debug)]
pub(super) struct Update<'v> {
    vfs: &'v Vfs,
    id: LayerId,
    copy: Copy,
}

impl<'v> Update<'v> {
    pub(super) fn begin(vfs: &'v Vfs, id: &LayerId) -> Result<Self> {
        let unknown = || Error::LayerUnknown { id: id.clone() };
        let home = vfs.homes.writable_home_of(id)?.ok_or_else(unknown)?;
        let layer = home.find(id)?.ok_or_else(unknown)?;
        let directory = home.layers().try_clone().at("duplicate the descriptor of", home.path(), Some(id))?;
        let place = Place { directory, name: id.to_string(), path: layer.path };
        let options = CopyOptions { in_user_namespace: vfs.rootless, ..CopyOptions::default() };
        let copy = Copy::begin(DRIVER, id, place, layer.directory, home.temp_dir()?, &options)?;
        Ok(Self { vfs, id: id.clone(), copy })
    }
}

impl StagedUpdate for Update<'_> {
    fn apply(&mut self, diff: &mut dyn Read, options: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> {
        self.vfs.apply_to(&self.copy.new, diff, options).of_layer(&self.id)
    }

    fn diff_getter(&self) -> Result<Box<dyn FileGetter + Send + '_>> {
        let new = self.copy.new.try_clone().at("duplicate a descriptor of", "", Some(&self.id))?;
        Ok(Box::new(DirectoryGetter::new(new, Vec::new())))
    }

    fn flush(&mut self) -> Result<()> {
        if self.vfs.options.sync == SyncMode::None { Ok(()) } else { self.copy.flush() }
    }

    fn inode(&self) -> Result<u64> {
        self.copy.inode()
    }

    fn is_current(&self) -> Result<bool> {
        self.copy.is_current()
    }

    fn exchange(&mut self) -> Result<()> {
        self.copy.exchange(self.vfs.options.sync == SyncMode::Filesystem)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.copy.finish()
    }
}
