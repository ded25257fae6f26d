//! `dedup`: equal files share their place on disk where the file system can, and every run counts the same.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::process::Command;

use support::{TestStore, have, in_own_mount_namespace, run};

/// A store on a file system of its own, in an image file that is mounted in this mount namespace alone.
fn store_on(driver: &'static str, kind: &str) -> Option<TestStore> {
    let store = TestStore::new(driver);
    let image = store.path("image");
    fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    if !have(&format!("mkfs.{kind}"), "dedup") {
        return None;
    }
    run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(store.dir.path()));
    Some(store)
}

fn fill(store: &TestStore) -> Vec<String> {
    let script = "mkdir -p d e; head -c 1000000 /dev/urandom >d/random; cp d/random d/same; ln d/random e/linked; \
                  head -c 65536 /dev/zero | tr '\\0' z >d/zs; echo small >e/small; : >e/empty; \
                  tar -cf one.tar d e; mkdir f; cp d/random f/again; cp d/random f/other; \
                  printf x | dd of=f/other bs=1 seek=500000 conv=notrunc status=none; tar -cf two.tar f d/zs";
    run(Command::new("sh").args(["-ec", script]).current_dir(store.dir.path()));
    let mut layers = vec![String::new()];
    for tar in ["one.tar", "two.tar", "one.tar"] {
        let parent = layers.last().unwrap();
        let layer = store.ok(&["import-layer", "--file", store.path(tar).to_str().unwrap(), parent]);
        layers.push(layer.trim().to_owned());
    }
    layers.remove(0);
    layers
}

#[test]
fn root_equal_files_share_their_place_and_every_run_counts_the_same() {
    if !in_own_mount_namespace("root_equal_files_share_their_place_and_every_run_counts_the_same") {
        return;
    }
    for (driver, kind) in [("overlay", "xfs"), ("vfs", "btrfs"), ("overlay", "btrfs"), ("vfs", "xfs")] {
        eprintln!("{driver} on {kind}");
        let Some(store) = store_on(driver, kind) else { continue };
        fill(&store);
        run(&mut Command::new("sync"));
        let first = store.ok(&["dedup"]);
        let count = |text: &str| -> u64 {
            text.strip_prefix("Deduplicated ").and_then(|rest| rest.strip_suffix(" bytes\n")).unwrap().parse().unwrap()
        };
        // At least the copies in the same layer and in the others.
        assert!(count(&first) >= 3_000_000, "{first}");
        for method in ["crc", "size", "sha256", "crc"] {
            for _ in 0..3 {
                assert_eq!(store.ok(&["dedup", "--hash-method", method]), first, "{driver} on {kind}: {method}");
            }
        }
        let json = store.ok(&["dedup", "-j"]);
        assert_eq!(json, format!("{{\"Deduped\":{}}}\n", count(&first)));
        // Contents are what they were.
        assert_eq!(store.ok(&["check", "-m", "1h"]), "");
        if driver == "overlay" {
            // What is shared is on the disk once: 1 MB thrice would be more.
            let du = run(Command::new("sh")
                .args([
                    "-c",
                    "find root -name random -o -name same -o -name again | xargs -n1 filefrag -v | grep -c shared",
                ])
                .current_dir(store.dir.path()));
            assert!(du.trim().parse::<u32>().unwrap() >= 4, "{du}");
        }
        drop(Command::new("umount").arg(store.dir.path()).output());
    }
}

#[test]
fn root_where_the_file_system_cannot_nothing_is_done() {
    if !in_own_mount_namespace("root_where_the_file_system_cannot_nothing_is_done") {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let Some(store) = store_on(driver, "ext4") else { continue };
        fill(&store);
        assert_eq!(store.ok(&["dedup"]), "Deduplicated 0 bytes\n");
        assert_eq!(store.ok(&["dedup", "--json"]), "{\"Deduped\":0}\n");
        assert!(store.fails(&["dedup", "--hash-method", "foo"]).contains("invalid hash method: foo"));
        drop(Command::new("umount").arg(store.dir.path()).output());
    }
}
