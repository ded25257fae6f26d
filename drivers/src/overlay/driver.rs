//! The driver itself: what the trait's methods do, in terms of the other modules.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use graph_archive::apply::{ApplyReport, XattrNamespace};
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;
use graph_archive::split::DirectoryGetter;
use graph_core::driver::{
    ApplyDiffOptions, Capabilities, CreateOptions, DeferredRemoval, DiffReport, DiffRequest, DiskUsage, FileGetter,
    GetOptions, Leftover, Mounted, ReownRequest, StagedLayer, StagedUpdate,
};
use graph_core::refcount::RefCounter;
use graph_core::registry::DriverSetup;
use graph_core::tempdir::{self, TempDir};
use graph_core::{Driver, Error, LayerId, Result};

use super::create::check_id;
use super::layout::{Context, DIFF, LINK, LINKS, Layer, LinkId, MERGED, Small, TEMP_DIRS, open_dir};
use super::mount::{self, Method, OverlayMount, not_mounted};
use super::options::Options;
use super::parents::{MAX_LOWERS, parents};
use super::probe::{self, Features, Prober};
use super::staged::{NewLayer, Staged};
use super::update::Update;
use super::{DRIVER, Homes, home_mount, leftovers, status, through, volatile};
use crate::support::context::ArchiveContext;
use crate::support::usage::disk_usage;

/// So many lower directories are opened one by one; more are mounted.
const MANY: usize = 64;

/// The overlay driver.
#[derive(Debug)]
pub struct Overlay {
    pub(super) homes: Homes,
    pub(super) options: Options,
    /// Whose extended attributes the kernel's overlay uses for us.
    pub(super) namespace: XattrNamespace,
    pub(super) features: Features,
    /// References to mounts, by mount point.
    pub(super) mounts: RefCounter<OverlayMount>,
    /// How mounts are made; tests try the way of older kernels too.
    pub(super) method: Method,
    /// What mounts instead of the kernel's overlay.
    pub(super) program: Option<PathBuf>,
    pub(super) run_path: PathBuf,
    run_home: OwnedFd,
    capabilities: Capabilities,
    /// The graph roots of additional stores, as configured.
    additional: Vec<PathBuf>,
}

impl Overlay {
    /// Opens the driver with its home `<root>/<name>`.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Unsupported`] for options; [`Error::NotSupported`], [`Error::Prerequisites`] and
    /// [`Error::IncompatibleFs`] when the kernel or the file system cannot do it; I/O errors.
    pub fn open(setup: &DriverSetup, name: &str) -> Result<Self> {
        let options = Options::parse(&setup.options)?;
        options.refuse_unsupported()?;
        let homes = Homes::open(setup, name, &options.additional_image_stores)?;
        let opened = Self::open_homes(setup, name, options, &homes);
        match opened {
            Ok(parts) => Ok(parts.with(homes)),
            Err(error) => {
                // The directory would tell the next selection that a store was made with this driver.
                homes.own.remove_unused();
                Err(error)
            }
        }
    }

    fn open_homes(setup: &DriverSetup, name: &str, mut options: Options, homes: &Homes) -> Result<Parts> {
        // Before anything else: what a killed process left is removed by whoever comes next.
        let roots: Vec<PathBuf> = homes.writable().map(|home| home.path.join(TEMP_DIRS)).collect();
        drop(tempdir::recover_stale(&roots));
        let program = through::choose(options.mount_program.as_ref(), homes)?;
        if program.is_none() {
            probe::check_backing(&homes.own, setup.rootless)?;
        } else if setup.rootless && options.force_mask.is_none() && probe::is_on_network(&homes.own)? {
            // A server does not let users give files away; the real owners are kept beside them then, as peers do it.
            options.force_mask = Some(0o700);
        }
        let (run_path, run_home) = probe::open_run_home(setup.run_root.join(name))?;
        let namespace = probe::xattr_namespace(&homes.own, &run_home)?;
        let method = mount::best_method(&homes.own.dir);
        let prober = Prober {
            method,
            home: &homes.own,
            run_home: &run_home,
            run_path: &run_path,
            namespace,
            options: &options,
            id_maps_disabled: setup.disable_id_mapped_mounts,
        };
        let features = if program.is_some() { prober.features_of_program()? } else { prober.features()? };
        if !features.overlay.works {
            let kept = format!("tried before; see {}", run_path.join("overlay-false").display());
            let reason = features.overlay.reason_or(&kept);
            return Err(Error::NotSupported { context: format!("overlay at {}: {reason}", homes.own.path.display()) });
        }
        for home in homes.writable() {
            through::record(home, program.is_some())?;
        }
        let mut capabilities = Capabilities::default();
        capabilities.shifts_ids = features.id_mapped_lower.works;
        capabilities.native_diff = features.native_diff.works;
        capabilities.volatile = features.volatile.works;
        capabilities.staging = true;
        capabilities.reflink = features.reflink.works;
        capabilities.max_depth = Some(MAX_LOWERS);
        capabilities.additional_stores = true;
        capabilities.read_only_mounts = true;
        Ok(Parts { method, program, options, namespace, features, run_path, run_home, capabilities })
    }

    fn make(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions, read_write: bool) -> Result<()> {
        check_id(id)?;
        self.check_create_options(options)?;
        if read_write && self.options.force_mask.is_some() && self.program.is_none() {
            return Err(Error::Unsupported {
                driver: DRIVER.into(),
                operation: "a read-write layer with option force_mask (the kernel does not undo the mask; a mount_program does)"
                    .into(),
            });
        }
        // Before anything is made, so that the common mistake costs nothing; publishing looks again.
        if self.homes.find(id)?.is_some() {
            return Err(Error::LayerExists { id: id.clone() });
        }
        NewLayer::begin(self, parent, &options.mappings, read_write, true)?.publish(id)
    }

    fn check_create_options(&self, options: &CreateOptions) -> Result<()> {
        match options.storage_opt.keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::Unsupported {
                driver: DRIVER.into(),
                operation: format!("storage option {key} (it needs project quotas, which this driver does not set)"),
            }),
        }
    }

    /// The content directories of a chain, nearest first, as a mount would stack them; of a long one, the mount itself, so
    /// that it does not take as many descriptors; and what a program shows, as it shows it.
    pub(super) fn open_chain(&self, of: &LayerId, chain: &[LayerId]) -> Result<Vec<OwnedFd>> {
        if (chain.len() > MANY || self.program.is_some())
            && let Some(first) = chain.first()
        {
            return Ok(vec![self.look_into(&self.homes.require(first)?)?]);
        }
        let mut lowers = Vec::with_capacity(chain.len());
        for id in chain {
            let missing = || Error::Corrupt {
                id: of.clone(),
                defect: format!("layer {id} below it is missing; restore that layer, or delete this one"),
            };
            let lower = self.homes.find(id)?.ok_or_else(missing)?;
            lowers.push(lower.open(DIFF)?);
            lowers.extend(lower.inherited()?.into_iter().map(|(_, dir)| dir));
        }
        Ok(lowers)
    }

    /// The layer's own content directory, and all below it, nearest first.
    pub(super) fn open_stack(&self, layer: &Layer<'_>) -> Result<(OwnedFd, Vec<OwnedFd>)> {
        let mut below: Vec<OwnedFd> = layer.inherited()?.into_iter().map(|(_, dir)| dir).collect();
        below.extend(self.open_chain(&layer.id, &parents(&self.homes, layer)?)?);
        Ok((layer.open(DIFF)?, below))
    }

    /// The layer, where the driver may write to it.
    pub(super) fn require_writable(&self, id: &LayerId) -> Result<Layer<'_>> {
        let layer = self.homes.require(id)?;
        if layer.home.writable() {
            return Ok(layer);
        }
        Err(Error::Unsupported {
            driver: DRIVER.into(),
            operation: format!("changing layer {id} in the additional image store {}", layer.home.path.display()),
        })
    }
}

/// All of a driver but its homes, which have to be cleaned up if this cannot be had.
struct Parts {
    method: Method,
    program: Option<PathBuf>,
    options: Options,
    namespace: XattrNamespace,
    pub(super) features: Features,
    run_path: PathBuf,
    run_home: OwnedFd,
    capabilities: Capabilities,
}

impl Parts {
    fn with(self, homes: Homes) -> Overlay {
        let Self { method, program, options, namespace, features, run_path, run_home, capabilities } = self;
        let additional = options.additional_image_stores.clone();
        Overlay {
            homes,
            options,
            namespace,
            features,
            mounts: RefCounter::new(OverlayMount),
            method,
            program,
            run_path,
            run_home,
            capabilities,
            additional,
        }
    }
}

impl Driver for Overlay {
    fn name(&self) -> &str {
        DRIVER
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn create(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.make(id, parent, options, false)
    }

    fn create_read_write(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        self.make(id, parent, options, true)
    }

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
        // As peers do: a child of the template has its contents. The template has to outlive it.
        self.make(id, Some(template), options, read_write)
    }

    fn begin_staged(&self, parent: Option<&LayerId>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        self.check_create_options(options)?;
        Ok(Box::new(Staged::begin(self, parent, options)?))
    }

    fn begin_reowned(&self, request: &ReownRequest<'_>, options: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        self.check_create_options(options)?;
        if self.options.force_mask.is_some() {
            return Err(Error::Unsupported {
                driver: DRIVER.into(),
                operation: "changing the owners of files whose owners force_mask hides".into(),
            });
        }
        Ok(Box::new(self.begin_reowned_layer(request, options)?))
    }

    fn begin_update(&self, id: &LayerId) -> Result<Box<dyn StagedUpdate + '_>> {
        Ok(Box::new(Update::begin(self, id)?))
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.deferred_remove(id)?.finish()
    }

    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> {
        let mut staged = Vec::new();
        for home in self.homes.writable() {
            let Some(layer) = home.layer(id)? else { continue };
            // Files below a mount cannot be removed, and those in it must not be.
            not_mounted(&layer, &layer.path().join(MERGED))?;
            let mut temp = home.temp_dir()?;
            if let Small::Text(text) = layer.read_small(LINK)?
                && let Some(link) = LinkId::parse(&text)
                && home.read_link(&link)?.as_ref() == Some(id)
            {
                let links = open_dir(&home.dir, LINKS).at("open", home.path.join(LINKS), Some(id))?;
                temp.stage_deletion(&links, link.as_str())?;
            }
            temp.stage_deletion(&home.dir, id.as_str())?;
            volatile::forget(&self.run_home, id);
            staged.push(temp);
        }
        if staged.is_empty() {
            return Ok(DeferredRemoval::done());
        }
        Ok(DeferredRemoval::new(move || staged.into_iter().map(TempDir::finish).fold(Ok(()), Result::and)))
    }

    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        self.get_layer(id, options)
    }

    fn put(&self, id: &LayerId) -> Result<()> {
        self.put_layer(id)
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        Ok(self.homes.find(id)?.is_some())
    }

    fn list_layers(&self) -> Result<Vec<LayerId>> {
        let mut ids = Vec::new();
        for home in self.homes.writable() {
            ids.extend(home.list()?);
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        let file_system = status::file_system(&self.homes.own.dir).at("statfs", &self.homes.own.path, None)?;
        Ok(status::pairs(file_system, &self.features, self.supports_shifting(&IdMappings::default())))
    }

    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> {
        status::metadata(&self.homes, &self.homes.require(id)?)
    }

    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> {
        let layer = self.homes.require(id)?;
        disk_usage(layer.open(DIFF)?.as_fd()).of_layer(id)
    }

    fn cleanup(&self) -> Result<()> {
        if self.options.skip_mount_home { Ok(()) } else { home_mount::unmake(&self.homes.own.path) }
    }

    fn is_ready_to_mount(&self) -> Result<bool> {
        if self.options.skip_mount_home { Ok(true) } else { home_mount::is_there(&self.homes.own.path) }
    }

    fn prepare_to_mount(&self) -> Result<()> {
        if self.options.skip_mount_home { Ok(()) } else { home_mount::make(&self.homes.own.path) }
    }

    fn additional_image_stores(&self) -> Vec<PathBuf> {
        self.additional.clone()
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        self.homes.writable().map(|home| home.path.join(Path::new(TEMP_DIRS))).collect()
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
        let layer = self.require_writable(id)?;
        let (content, below) = self.open_stack(&layer)?;
        let report = self.apply_to(&content, below, diff, options).of_layer(id)?;
        Ok(report)
    }

    fn diff_size(&self, request: &DiffRequest<'_>) -> Result<u64> {
        Ok(self.change_set(request)?.size)
    }

    fn diff_getter(&self, id: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> {
        let layer = self.homes.require(id)?;
        let (own, below) = self.open_stack(&layer)?;
        Ok(Box::new(DirectoryGetter::new(own, below)))
    }

    fn peek(&self, id: &LayerId) -> Result<OwnedFd> {
        self.look_into(&self.homes.require(id)?)
    }

    fn content_directory(&self, id: &LayerId) -> Result<OwnedFd> {
        self.require_writable(id)?.open(DIFF)
    }

    fn leftovers(&self, remove: bool) -> Result<Vec<Leftover>> {
        leftovers::of(&self.homes, remove)
    }

    fn update_layer_id_map(
        &self,
        id: &LayerId,
        to_container: &IdMappings,
        to_host: &IdMappings,
        _mount_label: &str,
    ) -> Result<()> {
        self.reown(id, to_container, to_host)
    }

    fn supports_shifting(&self, mappings: &IdMappings) -> bool {
        if self.program.is_some() && !through::maps(mappings) {
            return false;
        }
        // Mapped mounts take any mapping that a user namespace can have, contiguous or not.
        self.features.id_mapped_lower.works
    }
}
