//! Sizes of layers, counted a second time by other crates: fs_extra and walkdir see the same plain files.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

use std::path::Path;
use std::process::Command;

use fs_extra::dir::CopyOptions;
use graphdriver::archive::IdMappings;
use graphdriver::driver::{CreateOptions, DiffRequest, GetOptions};
use graphdriver::id::LayerId;
use graphdriver::registry::DriverSetup;
use graphdriver::select::SelectRequest;
use graphdriver::{Driver, drivers};
use walkdir::WalkDir;

const INSIDE: &str = "GRAPHDRIVER_TEST_INSIDE";

/// Whether this process may go on: it is root, in a mount namespace of its own.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if Command::new("id").arg("-u").output().unwrap().stdout != b"0\n" {
        eprintln!("skipped: {name}: needs root");
        return false;
    }
    let out = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    false
}

/// Puts a copy of `files` into the layer.
fn fill(driver: &dyn Driver, layer: &LayerId, files: &Path) {
    let mounted = driver.get(layer, &GetOptions::default()).unwrap();
    fs_extra::dir::copy(files, mounted.path(), &CopyOptions::new()).unwrap();
}

fn size_of_diff(driver: &dyn Driver, id: &LayerId, parent: Option<&LayerId>) -> u64 {
    let none = IdMappings::default();
    let request = DiffRequest { id, mappings: &none, parent, parent_mappings: &none, mount_label: "" };
    driver.diff_size(&request).unwrap()
}

fn sizes_agree(name: &str) {
    if !inside(name) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("graphdriver-usage-").tempdir_in("/var/tmp").unwrap();
    for (number, text) in ["", "a", "some text", &"long ".repeat(50_000)].iter().enumerate() {
        let place = dir.path().join(format!("files/sub{}/deeper", number % 2));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(format!("file{number}")), text).unwrap();
    }
    let files = dir.path().join("files");
    let bytes = fs_extra::dir::get_size(&files).unwrap();
    assert_eq!(bytes, 250_010, "fs_extra counts files, not directories");

    for driver_name in ["vfs", "overlay"] {
        let root = dir.path().join(driver_name);
        let setup = DriverSetup { root: root.join("root"), run_root: root.join("run"), ..DriverSetup::default() };
        std::fs::create_dir_all(&setup.root).unwrap();
        std::fs::create_dir_all(&setup.run_root).unwrap();
        let request = SelectRequest { name: Some(driver_name.to_owned()), setup, ..SelectRequest::default() };
        let driver = drivers::registry().unwrap().select(&request).unwrap().driver;
        let [base, child] = ["base", "child"].map(|id| LayerId::new(id).unwrap());
        driver.create_read_write(&base, None, &CreateOptions::default()).unwrap();
        fill(&*driver, &base, &files);
        let usage = driver.read_write_disk_usage(&base).unwrap();
        let mounted = driver.get(&base, &GetOptions::default()).unwrap();
        let entries = WalkDir::new(mounted.path()).min_depth(1).into_iter().map(Result::unwrap);
        let (directories, plain): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.file_type().is_dir());
        let counted: u64 = plain.iter().map(|entry| entry.metadata().unwrap().len()).sum();
        assert_eq!((directories.len(), plain.len(), counted), (5, 4, bytes), "{driver_name}");
        drop(mounted);
        assert_eq!(size_of_diff(&*driver, &base, None), bytes, "{driver_name}");
        // The layer's own directory is an inode too.
        assert_eq!(usage.inodes, 10, "{driver_name}");

        // One more copy of one file, on top.
        driver.create_read_write(&child, Some(&base), &CreateOptions::default()).unwrap();
        let more = dir.path().join("more");
        std::fs::create_dir_all(&more).unwrap();
        std::fs::write(more.join("file"), "1234567").unwrap();
        fill(&*driver, &child, &more);
        let own = size_of_diff(&*driver, &child, Some(&base));
        assert_eq!(own, fs_extra::dir::get_size(&more).unwrap(), "{driver_name}");
        std::fs::remove_dir_all(more).unwrap();
    }
}

#[test]
fn root_sizes_of_layers_agree_with_other_counts() {
    sizes_agree("root_sizes_of_layers_agree_with_other_counts");
}
