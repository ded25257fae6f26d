//! The power goes just after a command has exited: what it acknowledged is there.
//!
//! The store is on a loop device. Copying the file behind it at that moment gives what the disk would have: whatever the
//! kernel still kept in memory is lost, and mounting the copy replays the journal, as after a restart.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{TestStore, have, in_own_mount_namespace, many_files_tar, run};

/// How each file system is made, and mounted so that its own timers come too late to help.
const FILE_SYSTEMS: [FileSystem; 3] = [
    ("ext4", "64M", "mkfs.ext4 -q -F", "loop,commit=600"),
    ("xfs", "320M", "mkfs.xfs -q -f", "loop"),
    ("btrfs", "120M", "mkfs.btrfs -q -f", "loop,commit=300"),
];

/// A store on a disk of its own.
struct Disk {
    store: TestStore,
    kind: &'static str,
    options: &'static str,
}

impl Disk {
    fn new(driver: &'static str, (kind, size, make, options): FileSystem) -> Self {
        let disk = Self { store: TestStore::new(driver), kind, options };
        disk.store.in_memory();
        fs::create_dir(disk.store.path("root")).unwrap();
        let image = disk.store.path("disk");
        run(Command::new("truncate").args(["-s", size]).arg(&image));
        run(Command::new("sh").args(["-c", &format!("{make} \"$0\"")]).arg(&image));
        disk.mount("disk");
        disk
    }

    fn mount(&self, image: &str) {
        let mut mount = Command::new("mount");
        run(mount.args(["-t", self.kind, "-o", self.options]).arg(self.store.path(image)).arg(self.store.path("root")));
    }

    fn unmount(&self) {
        self.store.ok(&["shutdown", "--force"]);
        run(Command::new("umount").arg(self.store.path("root")));
        fs::remove_dir_all(self.store.path("run")).unwrap();
    }

    /// What the disk has at this moment.
    fn copy(&self) {
        run(Command::new("cp").arg("--sparse=always").arg(self.store.path("disk")).arg(self.store.path("cut")));
    }

    /// Does something with the store as it would be had the power gone when [`Disk::copy`] was called.
    fn after_the_cut<T>(&self, look: impl FnOnce(&TestStore) -> T) -> T {
        self.unmount();
        self.mount("cut");
        let seen = look(&self.store);
        self.unmount();
        self.mount("disk");
        seen
    }

    /// Does something, cuts the power, and compares all that the store says before and after.
    fn step(&self, words: &[&str]) -> String {
        let out = self.store.command(words).output().unwrap();
        self.copy();
        assert!(out.status.success(), "{words:?}: {out:?}");
        let before = describe(&self.store);
        let after = self.after_the_cut(describe);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after, "{} after {words:?}:\n{before:?}\nbecame\n{after:?}", self.store.driver);
        }
        assert_eq!(before.len(), after.len());
        String::from_utf8(out.stdout).unwrap()
    }
}

/// All that a store says of what is in it.
fn describe(store: &TestStore) -> Vec<(Vec<String>, Option<i32>, String)> {
    let mut said = Vec::new();
    let mut ask = |words: &[&str]| {
        let out = store.command(words).output().unwrap();
        // Archives are long.
        let text = if words[0] == "diff" {
            let sum = out.stdout.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{} bytes, {sum:x}", out.stdout.len())
        } else {
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        said.push((words.iter().map(|word| (*word).to_owned()).collect(), out.status.code(), text));
    };
    for listing in ["layers", "images", "containers"] {
        ask(&[listing]);
    }
    for listing in ["layers", "images", "containers"] {
        ask(&[listing, "--json"]);
    }
    for layer in store.ok(&["layers", "-q"]).lines() {
        ask(&["mount", layer]);
        ask(&["diff", "-u", layer]);
        ask(&["changes", layer]);
        ask(&["unmount", layer]);
    }
    said
}

type FileSystem = (&'static str, &'static str, &'static str, &'static str);

fn all(test: &str, check: impl Fn(&'static str, FileSystem)) {
    if !in_own_mount_namespace(test) {
        return;
    }
    for file_system in FILE_SYSTEMS {
        if have(file_system.2.split(' ').next().unwrap(), test) {
            for driver in ["overlay", "vfs"] {
                eprintln!("{driver} on {}", file_system.0);
                check(driver, file_system);
            }
        }
    }
}

#[test]
fn root_what_was_acknowledged_survives_a_power_cut() {
    all("root_what_was_acknowledged_survives_a_power_cut", |driver, file_system| {
        let disk = Disk::new(driver, file_system);
        let tar = disk.store.path("layer.tar");
        many_files_tar(&tar, 12, 8);
        let tar = tar.display().to_string();

        // The very first command makes the store as well.
        disk.step(&["import-layer", "--id", "base", "--name", "first", "--file", &tar]);
        disk.step(&["create-layer", "--id", "empty", "base"]);
        disk.step(&["apply-diff", "--file", &tar, "empty"]);
        disk.step(&["create-layer", "--id", "alone"]);
        disk.step(&["create-image", "--name", "localhost/image:1", "--metadata", "some text", "empty"]);
        let container = disk.step(&["create-container", "--name", "box", "localhost/image:1"]);
        let container = container.lines().next().unwrap();

        // What a container wrote is on the disk when its layer is unmounted.
        let merged = disk.store.ok(&["mount", container]);
        fs::write(Path::new(merged.trim()).join("written"), vec![7; 100_000]).unwrap();
        if driver == "overlay" {
            disk.step(&["unmount", container]);
        }
        disk.store.ok(&["unmount", "--force", container]);

        disk.step(&["delete-container", container]);
        disk.step(&["delete-layer", "alone"]);
        disk.step(&["delete-image", "localhost/image:1"]);
        assert_eq!(disk.store.ok(&["layers", "-q"]), "");
    });
}

#[test]
fn root_a_loaded_image_survives_a_power_cut() {
    all("root_a_loaded_image_survives_a_power_cut", |driver, file_system| {
        let disk = Disk::new(driver, file_system);
        let source = TestStore::new("vfs");
        source.in_memory();
        let tar = source.path("layer.tar");
        many_files_tar(&tar, 4, 4);
        let tar = tar.display().to_string();
        support::make_layout(&source.path("layout"), &tar);
        let layout = format!("oci:{}:1", source.path("layout").display());
        let again = format!("oci:{}:2", source.path("again").display());
        disk.step(&["load", "--name", "localhost/image:1", &layout]);
        let save = |store: &TestStore| {
            store.ok(&["save", "localhost/image:1", &again]);
        };
        save(&disk.store);
        disk.copy();
        disk.after_the_cut(save);
    });
}

/// `sync=none` gives that up; were the test above blind, it would find nothing here either.
#[test]
fn root_without_sync_a_power_cut_takes_a_layers_data() {
    let name = "root_without_sync_a_power_cut_takes_a_layers_data";
    if !have("mkfs.ext4", name) || !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let disk = Disk::new(driver, FILE_SYSTEMS[0]);
        let tar = disk.store.path("layer.tar");
        many_files_tar(&tar, 12, 8);
        disk.store.ok(&["layers"]);
        run(Command::new("sync").arg("--file-system").arg(disk.store.path("root")));
        let tar = tar.display().to_string();
        disk.store.ok(&["--storage-opt", "sync=none", "import-layer", "--id", "base", "--file", &tar]);
        disk.copy();
        let whole = |store: &TestStore| {
            store.command(&["diff", "-u", "base"]).output().unwrap().stdout == fs::read(&tar).unwrap()
        };
        assert!(whole(&disk.store), "{driver}");
        assert!(!disk.after_the_cut(whole), "{driver}: nothing was lost, so this test would not see a loss");
    }
}
