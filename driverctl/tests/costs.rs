//! Costs that do not depend on the machine: system calls for each entry, peak memory.

#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, reason = "tests")]

mod support;

use std::process::Command;

use support::{TestStore, have, in_own_mount_namespace, is_root, many_files_tar, run};

fn import_system_calls(driver: &'static str) {
    let store = TestStore::new(driver);
    let tar = store.path("layer.tar");
    let entries = many_files_tar(&tar, 440, 4);
    assert!((2_200..=2_210).contains(&entries), "{entries}");
    run(Command::new("gzip").arg("-6").arg(&tar));
    // The store is there already, as it is for every layer but a machine's first.
    store.ok(&["layers"]);
    let counts = store.path("counts");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-c", "-U", "calls,name", "-o"]).arg(&counts).arg(support::DRIVERCTL);
    traced.args(store.global()).args(["import-layer", "--file"]).arg(store.path("layer.tar.gz"));
    run(&mut traced);
    let table = std::fs::read_to_string(&counts).unwrap();
    let count = |name: &str| -> u64 {
        let row = table.lines().find(|line| line.split_whitespace().last() == Some(name));
        row.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    let mut total = count("total");
    assert!(total > 0, "{table}");
    if cfg!(debug_assertions) {
        // With debug assertions the standard library asks fcntl about every descriptor before it closes it.
        total -= count("close").min(count("fcntl"));
    }
    let each = total as f64 / entries as f64;
    eprintln!("{driver}: {total} system calls for {entries} entries: {each:.2} each");
    assert!(each <= 5.0, "{each:.2} system calls an entry\n{table}");
}

#[test]
fn root_an_overlay_import_takes_at_most_five_system_calls_an_entry() {
    let name = "root_an_overlay_import_takes_at_most_five_system_calls_an_entry";
    if have("strace", name) && in_own_mount_namespace(name) {
        import_system_calls("overlay");
    }
}

#[test]
fn root_a_vfs_import_takes_at_most_five_system_calls_an_entry() {
    let name = "root_a_vfs_import_takes_at_most_five_system_calls_an_entry";
    if have("strace", name) && in_own_mount_namespace(name) {
        import_system_calls("vfs");
    }
}

/// Runs the rest of its arguments and prints their peak memory in KiB.
const PEAK: &str = "import resource, subprocess, sys\n\
                    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
                    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)";

#[test]
fn root_no_import_takes_more_than_24_mib_of_memory() {
    let name = "root_no_import_takes_more_than_24_mib_of_memory";
    if !have("python3", name) || !is_root() || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    // The disk would only cost time: pages of tmpfs are not memory of the process.
    store.in_memory();
    // Many entries fill tables, big files fill buffers: compressed, too, this one alone is more than the limit.
    let many = store.path("many.tar");
    many_files_tar(&many, 1000, 30);
    let big = store.path("big.tar");
    let noise = store.path("noise");
    run(Command::new("sh")
        .args(["-c", "head -c 28000000 /dev/urandom >\"$0\"; head -c 12000000 /dev/zero >>\"$0\""])
        .arg(&noise));
    run(Command::new("tar").arg("-cf").arg(&big).arg("-C").arg(store.dir.path()).arg("noise"));
    let peak = |words: &[&str]| -> u64 {
        let mut command = Command::new("python3");
        command.args(["-c", PEAK, support::DRIVERCTL]).args(store.global()).args(words);
        run(&mut command).trim().parse().unwrap()
    };
    // Code that is not optimised is several times as large, and is no memory of the import: there, what counts is how much
    // more an import takes than a command that imports nothing.
    let (floor, limit) = if cfg!(debug_assertions) { (peak(&["layers"]), 12 * 1024) } else { (0, 24 * 1024) };
    for (tar, tool, suffix) in [
        (&many, "gzip -k1", ".gz"),
        (&big, "", ""),
        (&big, "gzip -k1", ".gz"),
        (&big, "zstd -qk", ".zst"),
        (&big, "xz -k0", ".xz"),
        (&big, "bzip2 -k", ".bz2"),
    ] {
        let blob = format!("{}{suffix}", tar.display());
        if !tool.is_empty() {
            if !have(tool.split(' ').next().unwrap(), name) {
                continue;
            }
            run(Command::new("sh").args(["-c", &format!("{tool} \"$0\"")]).arg(tar));
        }
        let kib = peak(&["import-layer", "--file", &blob]);
        eprintln!("{blob}: {kib} KiB, {floor} KiB of it without an import");
        assert!(kib - floor <= limit, "{blob}: {kib} KiB, {floor} KiB of it without an import");
    }
}
