//! The driver itself. Differences are found by comparing trees, see [`graph_core::naive`].

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;
use graph_archive::owners::OwnerShift;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{
    ApplyDiffOptions, Capabilities, CreateOptions, DeferredRemoval, DiffReport, DiffRequest, DiskUsage, FileGetter,
    GetOptions, Mounted, ReownRequest, StagedLayer, StagedUpdate,
};
use graph_core::registry::DriverSetup;
use graph_core::{Driver, Error, LayerId, Result, naive, tempdir};

use super::DRIVER;
use super::layout::{Home, Homes};
use super::options::{Options, SyncMode};
use super::staged::Staged;
use super::update::Update;
use crate::support::context::ArchiveContext;
use crate::support::exchange::fault;
use crate::support::usage::disk_usage;

/// Layers as whole trees.
#[derive(Debug)]
pub struct Vfs {
    pub(super) homes: Homes,
    pub(super) options: Options,
    pub(super) rootless: bool,
    capabilities: OnceLock<Capabilities>,
    additional: Vec<PathBuf>,
}

impl Vfs {
    /// Opens the driver below `setup.root`, making its home when there is none, and removes what killed processes left.
    ///
    /// # Errors
    /// [`Error::Config`] for options; I/O errors with the path. A left-over that cannot be removed is only logged.
    pub fn open(setup: &DriverSetup) -> Result<Self> {
        let options = Options::parse(&setup.options)?;
        let own = Home::create(&setup.root)?;
        let image_store = setup.image_store.as_deref().map(Home::create).transpose()?;
        let mut additional = Vec::new();
        for store in &options.additional_image_stores {
            // A store of another driver has no home for this one.
            additional.extend(Home::open(store)?);
        }
        let homes = Homes { own, image_store, additional };
        let roots: Vec<_> = homes.writable().map(Home::temp_dir_root).collect();
        let recovered = tempdir::recover_stale(&roots);
        if !recovered.removed.is_empty() {
            tracing::info!(directories = recovered.removed.len(), "removed what killed processes left");
        }
        let additional = options.additional_image_stores.clone();
        Ok(Self { homes, options, rootless: setup.rootless, capabilities: OnceLock::new(), additional })
    }

    /// The error for what this driver does not have.
    pub(super) fn unsupported(&self, operation: &str) -> Error {
        Error::Unsupported { driver: DRIVER.to_owned(), operation: operation.to_owned() }
    }

    fn new_layer(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<()> {
        // Before a parent is copied in vain.
        if self.homes.writable_home_of(id)?.is_some() {
            return Err(Error::LayerExists { id: id.clone() });
        }
        Staged::begin(self, parent, options, read_write)?.publish_as(id, SyncMode::None)
    }
}

impl Driver for Vfs {
    fn name(&self) -> &str {
        DRIVER
    }

    fn capabilities(&self) -> &Capabilities {
        self.capabilities.get_or_init(|| super::status::probe(&self.homes))
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.new_layer(id, parent, options, false)
    }

    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.new_layer(id, parent, options, true)
    }

    /// A copy of the template; whose parent the template had makes no difference to whole trees.
    fn create_from_template(
        &self,
        id: &LayerId,
        template: &LayerId,
        _template_mappings: &IdMappings,
        _parent: Option<&LayerId>,
        _parent_mappings: &IdMappings,
        options: &CreateOptions,
        read_write: bool,
    ) -> Result<()> {
        self.new_layer(id, Some(template), options, read_write)
    }

    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        Ok(Box::new(Staged::begin(self, parent, options, options.read_write)?))
    }

    /// A copy in which every file has its new owner from the start.
    fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        let owners = OwnerShift::new(request.mappings.clone(), options.mappings.clone());
        let whole = request.template.or(request.parent);
        let staged = Staged::begin_with(self, whole, Some(owners), options, options.read_write)?;
        fault("reown.copied")?;
        Ok(Box::new(staged))
    }

    fn begin_update(&self, id: &LayerId) -> Result<Box<dyn StagedUpdate + '_>> {
        Ok(Box::new(Update::begin(self, id)?))
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.deferred_remove(id)?.finish()
    }

    /// Layers of additional stores are not this driver's to remove: nothing happens to them.
    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> {
        let Some(home) = self.homes.writable_home_of(id)? else { return Ok(DeferredRemoval::done()) };
        let mut temporary = home.temp_dir()?;
        temporary.stage_deletion(home.layers(), id.as_str())?;
        Ok(DeferredRemoval::new(move || temporary.finish()))
    }

    /// The layer's own directory: nothing is mounted, so `ro` is taken but binds nobody, and there is nothing to count.
    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        if let Some(option) = options.options.iter().find(|option| *option != "ro") {
            return Err(Error::Config {
                place: format!("mount option {option:?} for layer {id}"),
                problem: "the vfs driver mounts nothing and takes no option but \"ro\"".to_owned(),
            });
        }
        let path = self.homes.layer(id)?.path;
        if !options.disable_shifting && !options.mappings.is_identity() {
            return Err(self.unsupported("showing a layer through ID mappings (its files have to be re-owned)"));
        }
        Ok(Mounted::new(path, || Ok(())))
    }

    fn put(&self, _id: &LayerId) -> Result<()> {
        Ok(())
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        self.homes.have(id)
    }

    fn list_layers(&self) -> Result<Vec<LayerId>> {
        let mut found = Vec::new();
        for home in self.homes.writable() {
            found.extend(home.list()?);
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        super::status::lines(&self.homes, &self.options, self.capabilities())
    }

    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> {
        let path = self.homes.layer(id)?.path;
        Ok([("Dir".to_owned(), path.display().to_string())].into())
    }

    /// The whole tree, inherited files included: they are the layer's own here. Shared extents are counted in full.
    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> {
        disk_usage(self.homes.layer(id)?.directory.as_fd()).of_layer(id)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    fn additional_image_stores(&self) -> Vec<PathBuf> {
        self.additional.clone()
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        self.homes.writable().map(Home::temp_dir_root).collect()
    }

    fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
        naive::diff(self, request, out)
    }

    fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>> {
        Ok(naive::changes(self, request)?.changes)
    }

    /// In place, nothing flushed: a process that is killed meanwhile, or an archive that turns out to be bad, leaves the layer with a part
    /// of the archive in it. Who must not see that fills a layer with [`Driver::begin_staged`] or [`Driver::begin_update`].
    fn apply_diff(
        &self,
        id: &LayerId,
        _parent: Option<&LayerId>,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport> {
        let home = self.homes.writable_home_of(id)?;
        let found = home.map(|home| home.find(id)).transpose()?.flatten();
        let layer = found.ok_or_else(|| Error::LayerUnknown { id: id.clone() })?;
        self.apply_to(&layer.directory, diff, options).of_layer(id)
    }

    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64> {
        Ok(naive::changes(self, request)?.size)
    }

    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> {
        Ok(Box::new(DirectoryGetter::new(self.homes.layer(id)?.directory, Vec::new())))
    }

    fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> {
        let home = self.homes.writable_home_of(id)?;
        let found = home.map(|home| home.find(id)).transpose()?.flatten();
        Ok(found.ok_or_else(|| Error::LayerUnknown { id: id.clone() })?.directory)
    }

    fn peek(&self, id: &LayerId) -> Result<OwnedFd> {
        Ok(self.homes.layer(id)?.directory)
    }

    /// By a copy, which takes the layer's place in one step.
    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        _mount_label: &str,
    ) -> Result<()> {
        self.reown(id, OwnerShift::new(to_container.clone(), to_host.clone()))
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }
}
