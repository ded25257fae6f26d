//! The driver itself: what the trait's methods do, in terms of the other modules.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;
use graph_archive::owners::OwnerShift;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{
    ApplyDiffOptions, Capabilities, CreateOptions, DeferredRemoval, DiffReport, DiffRequest, DiskUsage, FileGetter,
    GetOptions, Leftover, Mounted, ReownRequest, StagedLayer,
};
use graph_core::refcount::RefCounter;
use graph_core::registry::DriverSetup;
use graph_core::{Driver, Error, LayerId, Result, tempdir};

use super::layout::{Home, check_id};
use super::mounter::{Kernel, Mounter, Mounts};
use super::options::Options;
use super::staged::NewLayer;
use super::unmount::take_down;
use super::{DRIVER, MAX_LOWERS, get, options, probe, status};
use crate::support::context::{ArchiveContext, Context};
use crate::support::usage::disk_usage;

/// The aufs driver.
#[derive(Debug)]
pub struct Aufs {
    pub(super) home: Home,
    pub(super) options: Options,
    pub(super) mounter: Arc<dyn Mounter>,
    /// References to mounts, by mount point.
    pub(super) mounts: RefCounter<Mounts>,
    /// Whether layers can be mounted; the reason why not.
    pub(super) kernel: Result<(), String>,
    pub(super) dirperm1: bool,
    pub(super) run_path: PathBuf,
    /// Whether AUFS can keep its table of inode numbers in the run root.
    pub(super) run_holds_xino: bool,
    pub(super) rootless: bool,
    capabilities: Capabilities,
}

impl Aufs {
    /// Opens the driver with its home `<root>/aufs`. Without AUFS in the kernel, only a home that is there already: for all
    /// that needs no mount.
    ///
    /// # Errors
    /// [`Error::NotSupported`] and [`Error::IncompatibleFs`] for a new home where no layer could be mounted;
    /// [`Error::Config`] for options; I/O errors with the path.
    pub fn open(setup: &DriverSetup) -> Result<Self> {
        Self::open_with(setup, Arc::new(Kernel), probe::usable(setup.rootless))
    }

    /// The same with another way to mount, and its own word on whether the kernel can.
    pub(super) fn open_with(
        setup: &DriverSetup,
        mounter: Arc<dyn Mounter>,
        kernel: Result<(), &'static str>,
    ) -> Result<Self> {
        let options = Options::parse(&setup.options)?;
        let is_there = Home::is_there(&setup.root)?;
        if let (Err(reason), false) = (kernel, is_there) {
            return Err(Error::NotSupported { context: reason.to_owned() });
        }
        let home = Home::create(&setup.root)?;
        let mut kernel = kernel.map_err(str::to_owned);
        if kernel.is_ok() {
            match probe::check_backing(&home) {
                Err(error @ Error::IncompatibleFs { .. }) if is_there => kernel = Err(error.to_string()),
                checked => checked?,
            }
        }
        let recovered = tempdir::recover_stale(&[home.temp_dir_root()]);
        if !recovered.removed.is_empty() {
            tracing::info!(directories = recovered.removed.len(), "removed what killed processes left");
        }
        home.remove_leftovers();
        let run_path = setup.run_root.join(DRIVER);
        let mut capabilities = Capabilities::default();
        capabilities.native_diff = true;
        capabilities.staging = true;
        capabilities.max_depth = Some(MAX_LOWERS);
        let mut aufs = Self {
            home,
            options,
            mounts: RefCounter::new(Mounts(Arc::clone(&mounter))),
            mounter,
            run_holds_xino: kernel.is_ok() && get::can_hold_xino(&run_path)?,
            run_path,
            kernel,
            dirperm1: false,
            rootless: setup.rootless,
            capabilities,
        };
        if aufs.kernel.is_ok() {
            aufs.dirperm1 = get::has_dirperm1(&aufs)?;
        }
        Ok(aufs)
    }

    /// The error for what this driver does not have.
    pub(super) fn unsupported(&self, operation: &str) -> Error {
        Error::Unsupported { driver: DRIVER.to_owned(), operation: operation.to_owned() }
    }

    fn make(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        check_id(id)?;
        if self.home.has(id)? {
            return Err(Error::LayerExists { id: id.clone() });
        }
        NewLayer::begin(self, parent, options)?.publish_as(id, options::SyncMode::None)
    }

    fn apply_layer(
        &self,
        id: &LayerId,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport> {
        let directory = self.home.open_diff(id)?;
        let lowers = self.home.open_chain(id, &self.home.parents(id)?)?;
        self.apply_to(&directory, lowers, diff, options).of_layer(id)
    }
}

impl Driver for Aufs {
    fn name(&self) -> &str {
        DRIVER
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.make(id, parent, options)
    }

    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.make(id, parent, options)
    }

    /// A child of `parent` with the template's differences, so that the template is not needed any more.
    fn create_from_template(
        &self,
        id: &LayerId,
        template: &LayerId,
        template_mappings: &IdMappings,
        parent: Option<&LayerId>,
        parent_mappings: &IdMappings,
        options: &CreateOptions,
        _read_write: bool,
    ) -> Result<()> {
        check_id(id)?;
        if self.home.has(id)? {
            return Err(Error::LayerExists { id: id.clone() });
        }
        if !self.home.has(template)? {
            return Err(Error::LayerUnknown { id: template.clone() });
        }
        let mut new = NewLayer::begin(self, parent, options)?;
        let (reader, mut writer) = std::io::pipe().at("make a pipe for", self.home.path(), Some(id))?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let request = DiffRequest {
                    id: template,
                    mappings: template_mappings,
                    parent,
                    parent_mappings,
                    mount_label: &options.mount_label,
                };
                self.write_diff(&request, &mut writer)
            });
            let mut apply = ApplyDiffOptions {
                mappings: options.mappings.clone(),
                mount_label: options.mount_label.clone(),
                limits: graph_archive::limits::Limits::NONE,
                ..ApplyDiffOptions::default()
            };
            let applied = new.apply(&mut std::io::BufReader::new(reader), &mut apply);
            let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (packed, applied) {
                (Ok(_), applied) => applied.map(drop),
                (Err(error), _) => Err(error),
            }
        })?;
        new.publish_as(id, options::SyncMode::None)
    }

    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        Ok(Box::new(NewLayer::begin(self, parent, options)?))
    }

    fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        Ok(Box::new(self.begin_reowned_layer(request, options)?))
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.deferred_remove(id)?.finish()
    }

    /// A mounted layer is unmounted first.
    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> {
        let target = self.home.mount_path(id);
        if self.mounter.is_mounted(&target).at("look at the mount point", &target, Some(id))? {
            take_down(&*self.mounter, &target, Some(id), std::time::Duration::from_millis(100))?;
        }
        self.home.remove_parents(id)?;
        let mut temporary = self.home.temp_dir()?;
        temporary.stage_deletion(self.home.diff(), id.as_str())?;
        self.home.remove_mount_point(id)?;
        Ok(DeferredRemoval::new(move || temporary.finish()))
    }

    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        self.get_layer(id, options)
    }

    fn put(&self, id: &LayerId) -> Result<()> {
        self.put_layer(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        self.home.has(id)
    }

    fn list_layers(&self) -> Result<Vec<LayerId>> {
        let mut found = self.home.list()?;
        found.sort_unstable();
        Ok(found)
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        status::pairs(self)
    }

    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> {
        status::metadata(self, id)
    }

    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> {
        disk_usage(self.home.open_diff(id)?.as_fd()).of_layer(id)
    }

    /// Nothing but layers is ever mounted.
    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    fn additional_image_stores(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        vec![self.home.temp_dir_root()]
    }

    fn diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
        self.write_diff(request, out)
    }

    fn changes(&self, request: &DiffRequest<'_>) -> Result<Vec<Change>> {
        Ok(self.change_set(request)?.changes)
    }

    fn apply_diff(
        &self,
        id: &LayerId,
        _parent: Option<&LayerId>,
        diff: &mut dyn Read,
        options: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport> {
        self.apply_layer(id, diff, options)
    }

    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64> {
        Ok(self.change_set(request)?.size)
    }

    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> {
        let own = self.home.open_diff(id)?;
        let below = self.home.open_chain(id, &self.home.parents(id)?)?;
        Ok(Box::new(DirectoryGetter::new(own, below)))
    }

    fn peek(&self, id: &LayerId) -> Result<OwnedFd> {
        self.look_into(id)
    }

    fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> {
        self.home.open_diff(id)
    }

    /// Lists and mount points of layers that are gone.
    fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>> {
        let layers: BTreeSet<LayerId> = self.home.list()?.into_iter().collect();
        let mut found = Vec::new();
        for id in self.home.lists()? {
            if !layers.contains(&id) {
                let error = if remove { self.home.remove_parents(&id).err() } else { None };
                found.push(Leftover { path: self.home.list_path(&id), bytes: 0, error });
            }
        }
        for id in self.home.mount_points()? {
            let target = self.home.mount_path(&id);
            if layers.contains(&id) || self.mounter.is_mounted(&target).at("look at", &target, Some(&id))? {
                continue;
            }
            let error = if remove { self.home.remove_mount_point(&id).err() } else { None };
            found.push(Leftover { path: target, bytes: 0, error });
        }
        Ok(found)
    }

    /// By a copy, which takes the place of the layer's directory in one step.
    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        _mount_label: &str,
    ) -> Result<()> {
        self.reown(id, &OwnerShift::new(to_container.clone(), to_host.clone()))
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }
}
