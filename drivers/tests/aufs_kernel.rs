//! The aufs driver on a kernel that has AUFS: the conformance suite, and what only such a kernel can show.
//!
//! Elsewhere every test says that it is skipped, unless `EXPECT_DRIVERS` names `aufs`: then a kernel without it is a failure.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests work in directories of their own and say what they skip"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use graph_core::conformance::{self, Outcome};
use graph_core::driver::{CreateOptions, GetOptions};
use graph_core::registry::{DriverFactory, DriverSetup};
use graph_core::{Driver, DriverExt, ErrorKind, LayerId};
use graph_drivers::aufs::{Aufs, Factory, unmount};
use graph_sys::mount::{MountFlags, classic};

fn id(text: &str) -> LayerId {
    LayerId::new(text).unwrap()
}

/// Runs on a file system in memory, in a mount namespace of its own, if the kernel has AUFS.
fn with_aufs(test: impl FnOnce(&Path) + Send + 'static) {
    let listed = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !listed.lines().any(|line| line.split_whitespace().next_back() == Some("aufs")) {
        let expected = std::env::var("EXPECT_DRIVERS").unwrap_or_default();
        assert!(
            !expected.split_whitespace().any(|driver| driver == "aufs"),
            "this kernel has no AUFS, which is expected"
        );
        eprintln!("skipped: AUFS was not found in /proc/filesystems");
        return;
    }
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    std::thread::spawn(|| {
        graph_sys::namespace::private_mounts().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().as_os_str().as_encoded_bytes();
        classic::mount(b"tmpfs", target, "tmpfs", MountFlags::empty(), b"size=512m").unwrap();
        test(temp.path());
        classic::unmount(target, graph_sys::mount::UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn open(root: &Path) -> Aufs {
    Aufs::open(&DriverSetup { root: root.to_path_buf(), run_root: root.join("run"), ..DriverSetup::default() }).unwrap()
}

fn create(aufs: &Aufs, name: &str, parent: Option<&str>) {
    aufs.create_read_write(&id(name), parent.map(id).as_ref(), &CreateOptions::default()).unwrap();
}

#[test]
fn conformance_on_a_kernel_with_aufs() {
    with_aufs(|place| {
        let factory: Arc<dyn DriverFactory> = Arc::new(Factory);
        let mut failed = Vec::new();
        for case in conformance::suite() {
            match conformance::run(&case, Arc::clone(&factory), &DriverSetup::default(), &place.join(case.name))
                .unwrap()
            {
                Outcome::Passed => println!("passed: {}", case.name),
                Outcome::Skipped(reason) => println!("skipped: {}: {reason}", case.name),
                Outcome::Failed(reason) => failed.push(format!("{}: {reason}", case.name)),
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    });
}

#[test]
fn mounts_show_layers_and_take_changes() {
    with_aufs(|place| {
        let aufs = open(place);
        create(&aufs, "1", None);
        create(&aufs, "2", Some("1"));
        create(&aufs, "3", Some("2"));
        let base = aufs.mount(&id("1")).unwrap();
        assert_eq!(base.path(), place.join("aufs/diff/1"));
        fs::write(base.path().join("below"), "1").unwrap();
        let two = aufs.mount(&id("2")).unwrap();
        assert_eq!(two.path(), place.join("aufs/mnt/2"));
        assert!(aufs.metadata(&id("2")).unwrap()["Branches"].ends_with("=ro+wh"));
        fs::write(two.path().join("test.txt"), "x").unwrap();
        fs::remove_file(two.path().join("below")).unwrap();
        two.put().unwrap();
        let told = |name: &str, parent: &str| -> Vec<String> {
            let changes = aufs.changes_to(&id(name), Some(&id(parent))).unwrap();
            changes.iter().map(|c| format!("{:?} {}", c.kind, String::from_utf8_lossy(&c.path))).collect()
        };
        assert_eq!(told("2", "1"), ["Delete /below", "Add /test.txt"]);
        let three = aufs.mount(&id("3")).unwrap();
        assert!(!three.path().join("below").exists() && three.path().join("test.txt").exists());
        fs::write(three.path().join("test2.txt"), "y").unwrap();
        assert_eq!(told("3", "2"), ["Add /test2.txt"]);
        // Removing a mounted layer succeeds.
        aufs.remove(&id("3")).unwrap();
        assert!(!place.join("aufs/mnt/3").exists());
        three.put().unwrap();
        let read_only = aufs.mount_read_only(&id("2")).unwrap();
        fs::write(read_only.path().join("no"), "").unwrap_err();
    });
}

/// 126 layers below, of which every tenth deletes a file of the one below it.
#[test]
fn as_many_layers_as_aufs_stacks() {
    with_aufs(|place| {
        // The second time the boundary of a page falls into a path.
        for root in [place.join("short"), place.join("x".repeat(180))] {
            fs::create_dir(&root).unwrap();
            let aufs = open(&root);
            create(&aufs, "0", None);
            let mut expected = 0;
            for number in 1..=126 {
                create(&aufs, &number.to_string(), Some(&(number - 1).to_string()));
                let mounted = aufs.mount(&id(&number.to_string())).unwrap();
                fs::write(mounted.path().join(format!("f{number}")), "x").unwrap();
                expected += 1;
                if number % 10 == 0 {
                    fs::remove_file(mounted.path().join(format!("f{}", number - 1))).unwrap();
                    expected -= 1;
                }
                mounted.put().unwrap();
            }
            let mounted = aufs.mount(&id("126")).unwrap();
            assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), expected);
            mounted.put().unwrap();
            let error = aufs.create(&id("127"), Some(&id("126")), &CreateOptions::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooDeep);
        }
    });
}

/// A file with four names, one of which is written to: all four have the new content after the next mount.
#[test]
fn hard_links_outlive_the_mount() {
    with_aufs(|place| {
        let aufs = open(place);
        create(&aufs, "base", None);
        let base = place.join("aufs/diff/base");
        fs::create_dir(base.join("d")).unwrap();
        fs::write(base.join("a"), "old").unwrap();
        fs::set_permissions(base.join("a"), PermissionsExt::from_mode(0o4755)).unwrap();
        for name in ["b", "c", "d/e"] {
            fs::hard_link(base.join("a"), base.join(name)).unwrap();
        }
        create(&aufs, "c", Some("base"));
        for by_hand in [false, true] {
            let mounted = aufs.get(&id("c"), &GetOptions::default()).unwrap();
            let content = if by_hand { "by hand" } else { "by the driver" };
            fs::write(mounted.path().join("a"), content).unwrap();
            fs::set_permissions(mounted.path().join("a"), PermissionsExt::from_mode(0o4755)).unwrap();
            if by_hand {
                let path = mounted.persist();
                unmount(&path).unwrap();
                unmount(&path).unwrap();
            } else {
                mounted.put().unwrap();
            }
            let mounted = aufs.mount(&id("c")).unwrap();
            for name in ["a", "b", "c", "d/e"] {
                assert_eq!(fs::read_to_string(mounted.path().join(name)).unwrap(), content, "{name}");
                assert_eq!(fs::metadata(mounted.path().join(name)).unwrap().mode() & 0o7777, 0o4755, "{name}");
            }
            mounted.put().unwrap();
        }
        let (diff, _) = aufs.diff_to_vec(&id("c"), Some(&id("base"))).unwrap();
        assert!(!diff.windows(6).any(|part| part == b".plnk/"), "AUFS's own files are in the diff");
    });
}

/// Who keeps a mount busy is named.
#[test]
fn busy_mounts_tell_who_holds_them() {
    with_aufs(|place| {
        let aufs = open(place);
        create(&aufs, "1", None);
        create(&aufs, "2", Some("1"));
        let mounted = aufs.mount(&id("2")).unwrap();
        let open = fs::File::create(mounted.path().join("file")).unwrap();
        let error = mounted.put().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(open);
        aufs.put(&id("2")).unwrap();
    });
}
