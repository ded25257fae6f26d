//! A graph driver of somebody else's: complete, small, and not known to this project.
//!
//! `hardcopy` keeps every layer as a plain directory, a full copy of its parent's. It only stores trees; differences come from
//! [`NaiveDiff`] around it. The program registers it beside the built-in drivers, lets a storage.conf choose, shows what was chosen and why,
//! and runs the conformance suite on it:
//!
//! ```text
//! $ cat storage.conf
//! [storage]
//! driver = "hardcopy"
//! graphroot = "/var/tmp/hc/graph"
//! runroot = "/var/tmp/hc/run"
//! [storage.options.hardcopy]
//! note = "on the big disk"
//! $ cargo run --example custom_driver -- storage.conf status
//! $ cargo run --example custom_driver -- storage.conf conformance /var/tmp/hc/test
//! ```

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a program; and this driver's paths are its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graphdriver::archive::IdMappings;
use graphdriver::archive::apply::ApplyReport;
use graphdriver::archive::changes::Change;
use graphdriver::archive::copy::{CopyOptions, copy_tree};
use graphdriver::archive::split::FileGetter;
use graphdriver::config::{Environment, LoadOptions, Resolved, variable};
use graphdriver::driver::{
    ApplyDiffOptions, Capabilities, CreateOptions, DeferredRemoval, DiffReport, DiffRequest, DiskUsage, GetOptions,
    Mounted, StagedLayer,
};
use graphdriver::id::LayerId;
use graphdriver::naive::NaiveDiff;
use graphdriver::registry::{DriverFactory, DriverSetup};
use graphdriver::tempdir::{self, TempDirRoot};
use graphdriver::{Driver, Error, Result};

/// Opens the driver. This is what a [`graphdriver::registry::Registry`] is given.
#[derive(Debug)]
struct HardcopyFactory;

impl DriverFactory for HardcopyFactory {
    fn name(&self) -> &str {
        "hardcopy"
    }

    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>> {
        let mut note = None;
        for (key, value) in &setup.options {
            match key.as_str() {
                "note" => note = Some(value.clone()),
                _ => return Err(Error::Config { place: format!("hardcopy.{key}"), problem: "unknown option".into() }),
            }
        }
        let home = setup.root.join(self.name());
        let driver = Hardcopy {
            layers: home.join("layers"),
            temporary: home.join("tempdirs"),
            note,
            capabilities: Capabilities::default(),
        };
        fs::create_dir_all(&driver.layers).map_err(|e| Error::io("make directory", &driver.layers, None, e))?;
        let recovery = tempdir::recover_stale(&driver.temp_dir_roots());
        drop(recovery);
        Ok(Arc::new(NaiveDiff::new(driver)))
    }
}

/// Layers as directories: `<home>/layers/<id>`.
#[derive(Debug)]
struct Hardcopy {
    layers: PathBuf,
    temporary: PathBuf,
    note: Option<String>,
    capabilities: Capabilities,
}

impl Hardcopy {
    fn layer(&self, id: &LayerId) -> PathBuf {
        self.layers.join(id.as_str())
    }

    fn existing(&self, id: &LayerId) -> Result<PathBuf> {
        if self.exists(id)? { Ok(self.layer(id)) } else { Err(Error::LayerUnknown { id: id.clone() }) }
    }

    fn unsupported<T>(&self, operation: &str) -> Result<T> {
        Err(Error::Unsupported { driver: self.name().to_owned(), operation: operation.to_owned() })
    }

    /// Makes the layer aside and moves it into place: it is never there in part.
    fn make(&self, id: &LayerId, parent: Option<&LayerId>, options: &CreateOptions) -> Result<()> {
        if !options.storage_opt.is_empty() {
            return self.unsupported("limiting a layer");
        }
        if self.exists(id)? {
            return Err(Error::LayerExists { id: id.clone() });
        }
        let io = |operation, path: &Path, e: std::io::Error| Error::io(operation, path, Some(id), e);
        let archive = |source| Error::Archive { id: id.clone(), source };
        let parent = parent.map(|parent| self.existing(parent)).transpose()?;
        let mut temporary = TempDirRoot::create(&self.temporary)?.make()?;
        let (addition, directory) = temporary.add_directory(0o555)?;
        let path = temporary.addition_path(&addition);
        if let Some(parent) = parent {
            let from = File::open(&parent).map_err(|e| io("open", &parent, e))?;
            copy_tree(from.as_fd(), directory.as_fd(), &CopyOptions::default()).map_err(archive)?;
        } else {
            let root = options.mappings.root().map_err(archive)?;
            chown(&path, Some(root.uid), Some(root.gid)).map_err(|e| io("change the owner of", &path, e))?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o555))
                .map_err(|e| io("set the mode of", &path, e))?;
        }
        let layers = File::open(&self.layers).map_err(|e| io("open", &self.layers, e))?;
        temporary.commit(addition, &layers, id.as_str())?;
        temporary.finish()
    }
}

impl Driver for Hardcopy {
    fn name(&self) -> &str {
        "hardcopy"
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

    fn create_from_template(
        &self,
        id: &LayerId,
        template: &LayerId,
        _template_mappings: &IdMappings,
        _parent: Option<&LayerId>,
        _parent_mappings: &IdMappings,
        options: &CreateOptions,
        _read_write: bool,
    ) -> Result<()> {
        self.make(id, Some(template), options)
    }

    fn begin_staged(&self, _: Option<&LayerId>, _: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> {
        self.unsupported("staging")
    }

    fn remove(&self, id: &LayerId) -> Result<()> {
        self.deferred_remove(id)?.finish()
    }

    fn deferred_remove(&self, id: &LayerId) -> Result<DeferredRemoval> {
        let mut temporary = TempDirRoot::create(&self.temporary)?.make()?;
        let layers = File::open(&self.layers).map_err(|e| Error::io("open", &self.layers, Some(id), e))?;
        temporary.stage_deletion(&layers, id.as_str())?;
        Ok(DeferredRemoval::new(move || temporary.finish()))
    }

    /// A layer is its directory: nothing is mounted, and nothing has to be counted.
    fn get(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        if let Some(option) = options.options.iter().find(|option| *option != "ro") {
            return Err(Error::Config { place: format!("mount option {option}"), problem: "hardcopy has none".into() });
        }
        if !options.disable_shifting && !options.mappings.is_identity() {
            return self.unsupported("mounting through id mappings");
        }
        Ok(Mounted::new(self.existing(id)?, || Ok(())))
    }

    fn put(&self, _id: &LayerId) -> Result<()> {
        Ok(())
    }

    fn exists(&self, id: &LayerId) -> Result<bool> {
        match fs::symlink_metadata(self.layer(id)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == IoKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("look for", self.layer(id), Some(id), error)),
        }
    }

    fn list_layers(&self) -> Result<Vec<LayerId>> {
        let entries = fs::read_dir(&self.layers).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.map_err(|e| Error::io("read directory", &self.layers, None, e))?;
        let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        let mut ids: Vec<LayerId> = names.filter_map(|name| LayerId::new(name).ok()).collect();
        ids.sort();
        Ok(ids)
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        let layers = self.list_layers()?.len().to_string();
        let note = self.note.iter().map(|note| ("Note".to_owned(), note.clone()));
        Ok([("Layers".to_owned(), layers)].into_iter().chain(note).collect())
    }

    fn metadata(&self, id: &LayerId) -> Result<BTreeMap<String, String>> {
        Ok([("Directory".to_owned(), self.existing(id)?.display().to_string())].into())
    }

    fn read_write_disk_usage(&self, id: &LayerId) -> Result<DiskUsage> {
        let (mut usage, mut seen) = (DiskUsage::default(), BTreeSet::new());
        for entry in walkdir::WalkDir::new(self.existing(id)?) {
            let metadata = entry.and_then(|entry| entry.metadata());
            let metadata = metadata.map_err(|e| Error::io("walk", self.layer(id), Some(id), e))?;
            if seen.insert((metadata.dev(), metadata.ino())) {
                usage.size += metadata.len();
                usage.inodes += 1;
            }
        }
        Ok(usage)
    }

    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    fn additional_image_stores(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        vec![self.temporary.clone()]
    }

    // NaiveDiff answers these itself and never asks.

    fn diff(&self, _: &DiffRequest<'_>, _: &mut dyn Write) -> Result<DiffReport> {
        self.unsupported("diff")
    }

    fn changes(&self, _: &DiffRequest<'_>) -> Result<Vec<Change>> {
        self.unsupported("changes")
    }

    fn apply_diff(
        &self,
        _: &LayerId,
        _: Option<&LayerId>,
        _: &mut dyn Read,
        _: &mut ApplyDiffOptions<'_>,
    ) -> Result<ApplyReport> {
        self.unsupported("apply_diff")
    }

    fn diff_size(&self, _: &DiffRequest<'_>) -> Result<u64> {
        self.unsupported("diff_size")
    }

    fn diff_getter(&self, _: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> {
        self.unsupported("diff_getter")
    }

    fn update_layer_id_map(&self, _: &LayerId, _: &IdMappings, _: &IdMappings, _: &str) -> Result<()> {
        self.unsupported("changing the owners of a layer")
    }

    fn supports_shifting(&self, _: &IdMappings) -> bool {
        false
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [conf, "status"] => status(conf),
        [conf, "conformance", place] => conformance(conf, Path::new(place)),
        _ => anyhow::bail!(
            "usage: custom_driver STORAGE.CONF status | custom_driver STORAGE.CONF conformance NEW-DIRECTORY"
        ),
    }
}

/// Reads the configuration: the one file, whatever else the machine has.
fn configuration(conf: &str) -> Result<(Environment, Resolved)> {
    let mut environment = Environment::root();
    environment.variables.insert(variable::CONTAINERS_STORAGE_CONF.to_owned(), conf.to_owned());
    let drivers = vec![HardcopyFactory.name().to_owned()];
    let resolved = Resolved::load(&environment, &LoadOptions { drivers, ..LoadOptions::default() })?;
    Ok((environment, resolved))
}

/// Opens the configured driver, and tells which one that is, and why.
fn status(conf: &str) -> anyhow::Result<()> {
    let (environment, resolved) = configuration(conf)?;
    for directory in [&resolved.graph_root, &resolved.run_root] {
        fs::create_dir_all(directory)?;
    }
    let registry = graphdriver::drivers::registry()?.with(HardcopyFactory)?;
    let selection = registry.select(&resolved.select_request(&environment))?;
    for file in &resolved.files {
        println!("Configuration: {}", file.display());
    }
    for notice in &resolved.notices {
        println!("Notice: {notice}");
    }
    println!("Root: {}", resolved.graph_root.display());
    println!("Driver Name: {} ({})", selection.name, selection.why);
    println!("Driver Options: [{}]", resolved.driver_options(&selection.name).join(" "));
    println!("Backing Filesystem: {}", selection.backing_file_system);
    for candidate in &selection.report {
        println!("Candidate: {candidate}");
    }
    for (key, value) in selection.driver.status()? {
        println!("{key}: {value}");
    }
    Ok(())
}

/// Runs every case of the contract's test on the driver, with the configured options.
fn conformance(conf: &str, place: &Path) -> anyhow::Result<()> {
    use graph_core::conformance::{self, Outcome};
    use graph_core::options::options_for;

    let (_, resolved) = configuration(conf)?;
    let name = HardcopyFactory.name();
    let setup =
        DriverSetup { options: options_for(name, &resolved.driver_options(name), [name])?, ..DriverSetup::default() };
    fs::create_dir(place)?;
    let mut failed = 0;
    for case in conformance::suite() {
        match conformance::run(&case, Arc::new(HardcopyFactory), &setup, &place.join(case.name))? {
            Outcome::Passed => println!("passed  {}", case.name),
            Outcome::Skipped(why) => println!("skipped {}: {why}", case.name),
            Outcome::Failed(why) => {
                failed += 1;
                println!("FAILED  {}: {why}", case.name);
            }
        }
    }
    fs::remove_dir(place)?;
    anyhow::ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}
