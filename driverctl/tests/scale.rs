//! What a command costs in a store of 5,000 layers, 1,000 images and 1,000 containers, against one of five of each.
//!
//! Counted are bytes that the process reads and writes (read, pread, write, pwrite, getdents) and its peak memory. Not counted
//! is what the kernel copies from the old file of records to the new one (copy_file_range): the format wants the whole file
//! replaced at each change, so that grows with the store; the test prints it.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::process::Command;

use support::seed::{id, seed};
use support::{TestStore, have, in_own_mount_namespace, run};

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    read: u64,
    written: u64,
    listed: u64,
    copied: u64,
    calls: u64,
}

fn cost(store: &TestStore, words: &[&str]) -> Cost {
    let trace = store.path("trace");
    let calls =
        "trace=read,pread64,readv,preadv,write,pwrite64,writev,pwritev,getdents64,copy_file_range,openat,sendfile";
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "signal=none", "-e", calls, "-o"]).arg(&trace);
    command.arg(support::DRIVERCTL).args(store.global()).args(words);
    run(&mut command);
    let mut cost = Cost::default();
    for line in std::fs::read_to_string(&trace).unwrap().lines() {
        let Some((call, rest)) = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('(')) else {
            continue;
        };
        cost.calls += 1;
        let Some(bytes) = rest.rsplit("= ").next().and_then(|bytes| bytes.trim().parse::<u64>().ok()) else { continue };
        match call {
            "read" | "pread64" | "readv" | "preadv" => cost.read += bytes,
            "write" | "pwrite64" | "writev" | "pwritev" => cost.written += bytes,
            "getdents64" => cost.listed += bytes,
            "copy_file_range" | "sendfile" => cost.copied += bytes,
            _ => {}
        }
    }
    cost
}

/// Verbs and what is done, each after the one before it.
fn commands() -> Vec<(&'static str, Vec<String>)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (layer, image, container) = (id(1, 3), id(2, 3), id(3, 3));
    let (new, box_, new_image) = (id(8, 0), id(8, 1), id(8, 2));
    let (new, box_, new_image) = (new.as_str(), box_.as_str(), new_image.as_str());
    vec![
        ("create-layer", words(&["create-layer", "--id", new, "--name", "new-name", &layer])),
        ("mount", words(&["mount", new])),
        ("unmount", words(&["unmount", new])),
        ("delete-layer", words(&["delete-layer", new])),
        ("layer", words(&["layer", &layer])),
        ("layer by prefix", words(&["layer", &layer[..12]])),
        ("layer by name", words(&["layer", "layer-3"])),
        ("image", words(&["image", &image])),
        ("container", words(&["container", &container])),
        ("exists", words(&["exists", "-l", &layer])),
        ("create-container", words(&["create-container", "--id", box_, "localhost/image-3:1"])),
        ("mount of a container", words(&["mount", box_])),
        ("unmount of a container", words(&["unmount", box_])),
        ("diffsize", words(&["diffsize", box_])),
        ("delete-container", words(&["delete-container", box_])),
        ("create-image", words(&["create-image", "--id", new_image, "--name", "localhost/new:1", &layer])),
        ("delete-image", words(&["delete-image", new_image])),
    ]
}

#[test]
fn root_a_command_costs_as_much_in_a_large_store_as_in_a_small_one() {
    let name = "root_a_command_costs_as_much_in_a_large_store_as_in_a_small_one";
    if !have("strace", name) || !have("python3", name) || !in_own_mount_namespace(name) {
        return;
    }
    let stores = [(5, 5), (5000, 1000)].map(|(layers, others)| {
        let store = TestStore::new("overlay");
        store.in_memory();
        seed(&store, layers, others, others);
        // The first to come after somebody else has written reads everything, the next finds everything in order.
        store.ok(&["layer", &id(1, 0)]);
        store.ok(&["layer", &id(1, 0)]);
        store
    });
    let mut dear = Vec::new();
    for (what, words) in commands() {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let [small, large] = [&stores[0], &stores[1]].map(|store| cost(store, &words));
        eprintln!("{what}: {small:?}\n{:width$}  {large:?}", "", width = what.len());
        for (part, small, large) in [
            ("read", small.read, large.read),
            ("written", small.written, large.written),
            ("listed", small.listed, large.listed),
        ] {
            if large * 2 > small * 3 {
                dear.push(format!("{what}: {part} {large} bytes instead of {small}"));
            }
        }
    }
    assert_eq!(dear, Vec::<String>::new());
}
