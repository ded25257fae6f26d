//! A real stack of layers, with every kind of change between them: what we mount is what the packaged containers-storage
//! mounts from the same layers, and every diff has its diff ID.
//!
//! `GRAPHDRIVER_PERFDATA` names a directory made by `cargo xtask perfdata`; without it a smaller stack of the same kinds
//! of changes is made from this machine's installed packages.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{TestStore, have, in_own_mount_namespace, run};

const TREE: &str = include_str!("support/tree.py");

/// The stacks' layers as uncompressed tars, each stack's base first.
fn stacks(driver: &str, dir: &Path) -> Vec<Vec<PathBuf>> {
    if let Some(data) = std::env::var_os("GRAPHDRIVER_PERFDATA") {
        let data = PathBuf::from(data);
        let mut tall = vec![data.join("base.tar")];
        tall.extend((1..=30).map(|number| data.join(format!("stack/{number:02}.tar"))));
        // The other two are images of their own. Below the tall stack they would cost vfs 30 GB of copies.
        return vec![tall, vec![data.join("small.tar")], vec![data.join("big.tar")]];
    }
    let base = dir.join("base.tar");
    // Whole packages: thousands of files, links, setuid programs, directories of several depths and owners.
    // Where /bin is a link to usr/bin, dpkg still lists /bin/cat: a file goes by the name that its directory really has.
    let list = "dpkg -L coreutils tar util-linux passwd dpkg 2>/dev/null | python3 -c '\n\
                import os, sys\n\
                real = lambda path: os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))\n\
                names = {real(line.rstrip()) for line in sys.stdin if line.startswith(\"/\")}\n\
                names = sorted(name[1:] for name in names if len(name) > 2 and os.path.lexists(name))\n\
                sys.stdout.write(\"\\0\".join(names) + \"\\0\")'";
    let pack = "tar --numeric-owner --xattrs --xattrs-include='*' --format=posix --pax-option=delete=atime,delete=ctime \
                --no-recursion --null -C / -T - -cf \"$0\"";
    run(Command::new("sh").args(["-c", &format!("{list} | {pack}")]).arg(&base));
    let out = dir.join("stack");
    std::fs::create_dir(&out).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/perfdata/make-stack.py");
    // Each of vfs's layers is a copy of all below it, four times over in this test. Twelve have every kind of change.
    let count = if driver == "vfs" { 12 } else { 30 };
    run(Command::new("python3").arg(script).arg(&base).arg(&out).arg(count.to_string()));
    let mut all = vec![base];
    all.extend((1..=count).map(|number| out.join(format!("{number:02}.tar"))));
    vec![all]
}

fn sha256(path: &Path) -> String {
    let line = run(Command::new("sha256sum").arg(path));
    line.split_whitespace().next().unwrap().to_owned()
}

fn compressed(tar: &Path, dir: &Path, how: &str) -> PathBuf {
    let made = |suffix: &str| {
        let ready = PathBuf::from(format!("{}{suffix}", tar.display()));
        if ready.exists() { ready } else { dir.join(format!("{}{suffix}", tar.file_name().unwrap().display())) }
    };
    let (out, tool) = match how {
        "tar" => return tar.to_path_buf(),
        "gzip" => (made(".gz"), "gzip -n -6 -c"),
        _ => (made(".zst"), "zstd -q -3 -c"),
    };
    if !out.exists() {
        run(Command::new("sh").args(["-c", &format!("{tool} \"$0\" >\"$1\"")]).arg(tar).arg(&out));
    }
    out
}

fn tree(path: &str) -> String {
    run(Command::new("python3").args(["-c", TREE, path]))
}

/// The peer on overlay makes whiteouts where its own opaque directories leave nothing to hide (a layer may say `d/.wh..wh..opq`
/// and `d/e/.wh.x`). The kernel looks for whiteouts in merged directories only, and so lists these as names that cannot be
/// looked up. In the archive they are whiteouts, and on the peer's vfs there is nothing: so there is nothing in the image.
fn tree_of_peer(path: &str) -> String {
    run(Command::new("python3").args(["-c", TREE, path]).env("TOLERATE_GHOSTS", "1"))
}

/// The first lines that differ; whole trees have tens of thousands.
fn assert_same(ours: &str, theirs: &str, what: &str) {
    let differing: Vec<String> = ours
        .lines()
        .map(Some)
        .chain(std::iter::repeat(None))
        .zip(theirs.lines().map(Some).chain(std::iter::repeat(None)))
        .take_while(|(a, b)| a.is_some() || b.is_some())
        .filter(|(a, b)| a != b)
        .take(5)
        .map(|(a, b)| format!("ours:   {}\ntheirs: {}", a.unwrap_or("-"), b.unwrap_or("-")))
        .collect();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

fn compare(driver: &'static str, name: &str) {
    if !have("python3", name)
        || !have("zstd", name)
        || !have("containers-storage", name)
        || !in_own_mount_namespace(name)
    {
        return;
    }
    let files = TestStore::new(driver);
    for tars in stacks(driver, files.dir.path()) {
        compare_stack(driver, files.dir.path(), &tars);
    }
}

fn compare_stack(driver: &'static str, files: &Path, tars: &[PathBuf]) {
    let diff_ids: Vec<String> = tars.iter().map(|tar| sha256(tar)).collect();
    let theirs = {
        let peer = TestStore::new(driver);
        let mut parent = String::new();
        for tar in tars {
            let out = run(peer.peer(&["import-layer", "-f"]).arg(tar).arg(&parent));
            out.lines().next().unwrap().clone_into(&mut parent);
        }
        let mounted = run(&mut peer.peer(&["mount", &parent]));
        let theirs = tree_of_peer(mounted.trim());
        run(&mut peer.peer(&["unmount", &parent]));
        theirs
    };
    for how in ["tar", "gzip", "zstd"] {
        let ours = TestStore::new(driver);
        let mut ids: Vec<String> = Vec::new();
        for tar in tars {
            let blob = compressed(tar, files, how);
            let parent = ids.last().cloned().unwrap_or_default();
            let out = ours.ok(&["import-layer", "--file", &blob.display().to_string(), &parent]);
            ids.push(out.trim().to_owned());
        }
        let top = ids.last().unwrap();
        let mounted = ours.ok(&["mount", top]);
        assert_same(&tree(mounted.trim()), &theirs, &format!("{driver}, layers as {how}"));
        ours.ok(&["unmount", top]);
        let out = ours.path("diff.tar");
        for (id, diff_id) in ids.iter().zip(&diff_ids) {
            ours.ok(&["diff", "--uncompressed", "--file", &out.display().to_string(), id]);
            assert_eq!(&sha256(&out), diff_id, "{driver}, {how}: layer {id}");
        }
    }
}

#[test]
fn root_peer_a_stack_of_layers_on_overlay() {
    compare("overlay", "root_peer_a_stack_of_layers_on_overlay");
}

#[test]
fn root_peer_a_stack_of_layers_on_vfs() {
    compare("vfs", "root_peer_a_stack_of_layers_on_vfs");
}
