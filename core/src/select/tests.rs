//! Selection with drivers that only open or refuse.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;

use graph_archive::apply::ApplyReport;
use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;

use super::*;
use crate::LayerId;
use crate::driver::*;

/// A driver that is open and can do nothing.
#[derive(Debug)]
struct Opened {
    name: &'static str,
    capabilities: Capabilities,
    options: Vec<(String, String)>,
}

impl Opened {
    fn cannot<T>(&self) -> Result<T> {
        Err(Error::Unsupported { driver: self.name.to_owned(), operation: "anything".to_owned() })
    }
}

#[rustfmt::skip]
impl Driver for Opened {
    fn name(&self) -> &str { self.name }
    fn capabilities(&self) -> &Capabilities { &self.capabilities }
    fn create(&self, _: &LayerId, _: Option<&LayerId>, _: &CreateOptions) -> Result<()> { self.cannot() }
    fn create_read_write(&self, _: &LayerId, _: Option<&LayerId>, _: &CreateOptions) -> Result<()> { self.cannot() }
    fn create_from_template(&self, _: &LayerId, _: &LayerId, _: &IdMappings, _: Option<&LayerId>, _: &IdMappings, _: &CreateOptions, _: bool) -> Result<()> { self.cannot() }
    fn begin_staged(&self, _: Option<&LayerId>, _: &CreateOptions) -> Result<Box<dyn StagedLayer + '_>> { self.cannot() }
    fn remove(&self, _: &LayerId) -> Result<()> { self.cannot() }
    fn deferred_remove(&self, _: &LayerId) -> Result<DeferredRemoval> { self.cannot() }
    fn get(&self, _: &LayerId, _: &GetOptions) -> Result<Mounted<'_>> { self.cannot() }
    fn put(&self, _: &LayerId) -> Result<()> { self.cannot() }
    fn exists(&self, _: &LayerId) -> Result<bool> { self.cannot() }
    fn list_layers(&self) -> Result<Vec<LayerId>> { self.cannot() }
    fn status(&self) -> Result<Vec<(String, String)>> { Ok(self.options.clone()) }
    fn metadata(&self, _: &LayerId) -> Result<BTreeMap<String, String>> { self.cannot() }
    fn read_write_disk_usage(&self, _: &LayerId) -> Result<DiskUsage> { self.cannot() }
    fn cleanup(&self) -> Result<()> { Ok(()) }
    fn additional_image_stores(&self) -> Vec<PathBuf> { Vec::new() }
    fn temp_dir_roots(&self) -> Vec<PathBuf> { Vec::new() }
    fn diff(&self, _: &DiffRequest<'_>, _: &mut dyn Write) -> Result<DiffReport> { self.cannot() }
    fn changes(&self, _: &DiffRequest<'_>) -> Result<Vec<Change>> { self.cannot() }
    fn apply_diff(&self, _: &LayerId, _: Option<&LayerId>, _: &mut dyn Read, _: &mut ApplyDiffOptions<'_>) -> Result<ApplyReport> { self.cannot() }
    fn diff_size(&self, _: &DiffRequest<'_>) -> Result<u64> { self.cannot() }
    fn diff_getter(&self, _: &LayerId) -> Result<Box<dyn FileGetter + Send + '_>> { self.cannot() }
    fn update_layer_id_map(&self, _: &LayerId, _: &IdMappings, _: &IdMappings, _: &str) -> Result<()> { self.cannot() }
    fn supports_shifting(&self, _: &IdMappings) -> bool { false }
}

#[derive(Clone, Copy, Debug)]
enum Opens {
    Yes,
    Refuses,
    Breaks,
}

#[derive(Debug)]
struct Factory(&'static str, Opens);

impl DriverFactory for Factory {
    fn name(&self) -> &str {
        self.0
    }
    fn open(&self, setup: &DriverSetup) -> Result<Arc<dyn Driver>> {
        std::fs::create_dir_all(setup.root.join(self.0)).unwrap();
        match self.1 {
            Opens::Yes => Ok(Arc::new(Opened {
                name: self.0,
                capabilities: Capabilities::default(),
                options: setup.options.clone(),
            })),
            Opens::Refuses => Err(Error::IncompatibleFs { context: format!("{} on tmpfs", self.0) }),
            Opens::Breaks => Err(Error::Config { place: "option x".to_owned(), problem: "unknown".to_owned() }),
        }
    }
}

fn registry(factories: &[(&'static str, Opens)]) -> Registry {
    factories.iter().fold(Registry::new(), |registry, &(name, opens)| registry.with(Factory(name, opens)).unwrap())
}

/// The chosen driver's name, or the error's text with the root's path taken out.
fn select(factories: &[(&'static str, Opens)], prior: &[&str], name: &str, priority: &[&str]) -> String {
    let root = tempfile::tempdir().unwrap();
    for home in prior {
        std::fs::create_dir(root.path().join(home)).unwrap();
    }
    let request = SelectRequest {
        name: Some(name.to_owned()),
        priority: priority.iter().copied().map(str::to_owned).collect(),
        setup: DriverSetup { root: root.path().to_path_buf(), ..DriverSetup::default() },
        ..SelectRequest::default()
    };
    let result = registry(factories).select(&request);
    let mut homes: Vec<_> =
        std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    homes.sort_unstable();
    let mut expected: Vec<_> = prior.iter().copied().map(str::to_owned).collect();
    if let Ok(selection) = &result {
        assert!(selection.report.iter().any(|c| c.outcome == Outcome::Chosen && c.name == selection.name));
        expected.push(selection.name.clone());
    }
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(homes, expected, "an attempt left or removed a home");
    match result {
        Ok(selection) => selection.driver.name().to_owned(),
        Err(error) => chain(&error).replace(root.path().to_str().unwrap(), "ROOT"),
    }
}

use Opens::{Breaks, Refuses, Yes};

#[test]
fn a_name_decides() {
    let all = [("vfs", Yes), ("overlay", Yes)];
    assert_eq!(select(&all, &[], "vfs", &[]), "vfs");
    assert_eq!(select(&all, &["overlay"], "vfs", &[]), "vfs");
    assert_eq!(select(&all, &[], "overlay2", &[]), "overlay");
    assert_eq!(select(&all, &[], "nosuch", &[]), "failed to GetDriver graph nosuch ROOT: driver not supported");
    let refused = "overlay on tmpfs: backing file system is unsupported for this graph driver";
    assert_eq!(select(&[("vfs", Yes), ("overlay", Refuses)], &[], "overlay", &[]), refused);
}

#[test]
fn the_first_that_works_and_never_vfs() {
    let all = [("vfs", Yes), ("btrfs", Yes), ("overlay", Yes)];
    assert_eq!(select(&all, &[], "", &[]), "overlay");
    assert_eq!(select(&[("vfs", Yes), ("btrfs", Yes), ("overlay", Refuses)], &[], "", &[]), "btrfs");
    assert_eq!(select(&[("hardcopy", Yes), ("overlay", Refuses)], &[], "", &[]), "hardcopy");
    assert_eq!(
        select(&[("vfs", Yes), ("overlay", Refuses)], &[], "", &[]),
        "no supported storage backend found; overlay: cannot be used: overlay on tmpfs: backing file system is \
         unsupported for this graph driver; vfs: not tried: it copies whole layers, so it is only used when asked for: \
         driver not supported"
    );
    assert_eq!(select(&[("btrfs", Yes), ("overlay", Breaks)], &[], "", &[]), "option x: unknown");
}

#[test]
fn a_priority_list_may_ask_for_vfs() {
    let all = [("vfs", Yes), ("overlay", Yes)];
    assert_eq!(select(&all, &[], "", &["nosuch", "vfs", "overlay"]), "vfs");
    assert_eq!(select(&all, &["vfs"], "", &["overlay", "vfs"]), "vfs");
}

#[test]
fn never_another_driver_than_the_prior_one() {
    let all = [("vfs", Yes), ("btrfs", Yes), ("overlay", Yes)];
    assert_eq!(select(&all, &["btrfs"], "", &[]), "btrfs");
    assert_eq!(select(&all, &["btrfs"], "", &["overlay"]), "btrfs");
    let broken = [("vfs", Yes), ("btrfs", Refuses), ("overlay", Yes)];
    assert_eq!(
        select(&broken, &["btrfs"], "", &[]),
        "btrfs on tmpfs: backing file system is unsupported for this graph driver"
    );
    assert_eq!(
        select(&all, &["vfs"], "", &[]),
        "driver for ROOT: ROOT was made with vfs, which is only used when asked for: choose it explicitly (-s vfs), or \
         remove ROOT/vfs"
    );
    assert_eq!(
        select(&all, &["zfs", "zfs-layers"], "", &[]),
        "ROOT was made with the driver zfs, which is not part of this program; its images would seem to be gone with \
         another one: driver not supported"
    );
}

#[test]
fn several_prior_drivers_must_be_told_apart_by_the_operator() {
    assert_eq!(
        select(&[("vfs", Yes), ("overlay", Yes)], &["overlay", "vfs"], "", &[]),
        "driver for ROOT: ROOT contains several valid graphdrivers: vfs, overlay; Please cleanup or explicitly choose \
         storage driver (-s <DRIVER>)"
    );
}

#[test]
fn names_are_registered_once() {
    let error = registry(&[("overlay", Yes)]).with(Factory("overlay", Yes)).unwrap_err();
    assert_eq!(error.to_string(), "driver overlay: name already registered");
    for bad in ["", ".", "a/b", "a.b", "a=b"] {
        Registry::new().with(Factory(bad, Yes)).unwrap_err();
    }
}

#[test]
fn each_driver_gets_its_own_options_and_the_report_names_all() {
    let root = tempfile::tempdir().unwrap();
    let request = SelectRequest {
        options: ["overlay.mountopt=nodev", "vfs.sync=none", "size=1G"].map(str::to_owned).to_vec(),
        setup: DriverSetup { root: root.path().to_path_buf(), ..DriverSetup::default() },
        ..SelectRequest::default()
    };
    let selection = registry(&[("vfs", Yes), ("btrfs", Yes), ("overlay", Yes)]).select(&request).unwrap();
    let options = [("mountopt", "nodev"), ("size", "1G")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(selection.driver.status().unwrap(), options);
    let report: Vec<String> = selection.report.iter().map(ToString::to_string).collect();
    assert_eq!(
        report,
        ["overlay: chosen", "vfs: not tried: another was chosen first", "btrfs: not tried: another was chosen first"]
    );
    assert_eq!(selection.why, WHY_FIRST);
    assert_ne!(selection.backing_file_system, "<unknown>");
}
