//! kill -9 and errors of the disk at every step of every verb that changes something. What the next command finds works,
//! ours or the peer's; what was acknowledged before is there; and nothing is left behind.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::steps::{Blow, Step, steps, strike};
use support::{TestStore, both, have, in_own_mount_namespace, many_files_tar, run};

const IMAGE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const CONTAINER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// A store with something of each kind in it, of which every blow gets a copy.
struct Scene {
    store: TestStore,
    tar: String,
}

impl Scene {
    fn new(driver: &'static str) -> Self {
        let store = TestStore::new(driver);
        // A killed process loses nothing that is only in memory, so the disk would just cost time.
        store.in_memory();
        let tar = store.path("layer.tar");
        many_files_tar(&tar, 2, 2);
        let tar = tar.display().to_string();
        store.ok(&["import-layer", "--id", "base", "--file", &tar]);
        store.ok(&["import-layer", "--id", "top", "--file", &tar, "base"]);
        store.ok(&["create-layer", "--id", "empty", "base"]);
        store.ok(&["create-image", "--id", IMAGE, "--name", "localhost/image:1", "top"]);
        store.ok(&["create-container", "--id", CONTAINER, "--name", "box", IMAGE]);
        store.ok(&["shutdown"]);
        for part in ["root", "run"] {
            fs::rename(store.path(part), store.path(&format!("{part}.0"))).unwrap();
        }
        Self { store, tar }
    }

    /// The store as it was at first.
    fn reset(&self) {
        let script = "for m in $(awk '{print $5}' /proc/self/mountinfo | grep \"^$0/r\" | tac); do umount $m; done; \
                      cd \"$0\" && rm -rf root run && cp -a root.0 root && cp -a run.0 run";
        run(Command::new("sh").args(["-c", script]).arg(self.store.dir.path()));
    }

    /// What was acknowledged before and is not what the verb deletes is there, and whole.
    fn check(&self, gone: &[&str], what: &str) {
        let store = &self.store;
        let listed = |words: &[&str]| -> String {
            let out = store.command(words).output().unwrap();
            assert!(out.status.success(), "{what}: {words:?}: {}", both(&out));
            assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{what}: {words:?} complained");
            String::from_utf8(out.stdout).unwrap()
        };
        let layers = listed(&["layers", "-q"]);
        let kept = |id: &&str| !gone.contains(id);
        for id in ["base", "top", "empty"].iter().filter(|id| kept(id)) {
            assert!(layers.lines().any(|line| line == *id), "{what}: layer {id} is lost: {layers:?}");
        }
        for id in layers.lines().filter(|id| !["base", "top", "empty"].contains(id)) {
            // Whatever is there can be read whole.
            listed(&["diff", "-u", "--file", "/dev/null", id]);
        }
        let whole = store.path("whole.tar").display().to_string();
        if layers.lines().any(|line| line == "top") {
            listed(&["diff", "-u", "--file", &whole, "top"]);
            assert!(fs::read(&whole).unwrap() == fs::read(&self.tar).unwrap(), "{what}: other bytes");
        }
        if kept(&IMAGE) {
            assert!(listed(&["images"]).contains(IMAGE), "{what}: the image is lost");
        }
        if kept(&CONTAINER) {
            let merged = listed(&["mount", CONTAINER]);
            assert!(Path::new(merged.trim()).join("node_modules/package-0001/file-001.js").is_file(), "{what}");
        }
        self.nothing_left(what);
    }

    /// The store can be emptied, and is empty then.
    fn nothing_left(&self, what: &str) {
        let out = self.store.command(&["wipe"]).output().unwrap();
        assert!(out.status.success(), "{what}: wipe: {}", both(&out));
        let known = r#"find root -mindepth 1 -not -name '*.lock' -not -name '*layers.json' -not -name images.json \
            -not -name '*containers.json' -not -name .has-mount-program \
            -not -path root/overlay -not -path root/overlay/l -not -path root/overlay/tempdirs -not -path root/overlay/staging \
            -not -path root/tmp -not -path root/mounts -not -path root/vfs -not -path root/vfs/dir -not -path root/vfs/tempdirs \
            -not -regex 'root/\(overlay\|vfs\)-\(layers\|images\|containers\)\(/tmp\)?'"#;
        let left = run(Command::new("sh").args(["-c", known]).current_dir(self.store.dir.path()));
        assert_eq!(left, "", "{what} left this behind");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = format!("{}/root/", self.store.dir.path().display());
        let mounted: Vec<&str> =
            mounts.lines().filter(|line| line.contains(&here) && line.contains("merged")).collect();
        assert_eq!(mounted, [""; 0], "{what} left this mounted");
    }

    /// The peer's next command works, on what is there.
    fn check_by_peer(&self, what: &str) {
        let out = self.store.peer(&["layers"]).output().unwrap();
        assert!(out.status.success(), "{what}: the peer: {}", both(&out));
        for id in String::from_utf8_lossy(&out.stdout).lines().filter(|line| *line == "top" || *line == "base") {
            let out = self.store.peer(&["diff", "-u", "-f", "/dev/null", id]).output().unwrap();
            assert!(out.status.success(), "{what}: the peer's diff of {id}: {}", both(&out));
        }
    }
}

/// A verb: what is done before it, its words, and what of the scene may be gone afterwards.
struct Verb {
    before: &'static [&'static [&'static str]],
    words: &'static [&'static str],
    gone: &'static [&'static str],
}

const fn verb(words: &'static [&'static str]) -> Verb {
    Verb { before: &[], words, gone: &[] }
}

/// `TAR` stands for the scene's archive and `LAYOUT` for an image in files.
const VERBS: &[Verb] = &[
    verb(&["create-layer", "--id", "new", "--name", "name", "top"]),
    verb(&["import-layer", "--id", "new", "--file", "TAR", "top"]),
    verb(&["apply-diff", "--file", "TAR", "empty"]),
    verb(&["create-image", "--name", "localhost/image:2", "--metadata", "text", "top"]),
    verb(&["create-container", "--name", "other", IMAGE]),
    verb(&["load", "--name", "localhost/image:2", "LAYOUT"]),
    verb(&["mount", CONTAINER]),
    Verb { before: &[&["mount", CONTAINER]], words: &["unmount", CONTAINER], gone: &[] },
    Verb { before: &[&["mount", CONTAINER]], words: &["shutdown", "--force"], gone: &[] },
    Verb { before: &[], words: &["delete-layer", "empty"], gone: &["empty"] },
    Verb { before: &[], words: &["delete-container", CONTAINER], gone: &[CONTAINER] },
    Verb {
        before: &[&["delete-container", CONTAINER]],
        words: &["delete-image", IMAGE],
        gone: &[CONTAINER, IMAGE, "top", "base"],
    },
    Verb { before: &[], words: &["wipe"], gone: &[CONTAINER, IMAGE, "top", "base", "empty"] },
];

/// How a run of a verb is spoiled. After a kill our next command and the peer's look first in turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Kill,
    DiskErrors,
}

fn every_step(driver: &'static str, way: Way) {
    let scene = Scene::new(driver);
    let peer = have("containers-storage", "the peer's look at what killed commands left");
    let layout = format!("oci:{}:1", scene.store.path("layout").display());
    support::make_layout(&scene.store.path("layout"), &scene.tar);
    // vfs has its own way of making, filling and removing layers, and nothing else.
    let verbs = if driver == "vfs" { &VERBS[..3] } else { VERBS };
    for verb in verbs {
        let words: Vec<&str> = verb
            .words
            .iter()
            .map(|word| match *word {
                "TAR" => scene.tar.as_str(),
                "LAYOUT" => layout.as_str(),
                word => word,
            })
            .collect();
        let begin = || {
            scene.reset();
            for words in verb.before {
                assert!(scene.store.command(words).output().unwrap().status.success(), "{words:?}");
            }
        };
        begin();
        let steps = steps(&scene.store, &words);
        assert!(steps.len() >= 5, "{words:?}: {steps:?}");
        let mut blows = 0;
        for step in &steps {
            for blow in blows_at(step, way) {
                let what = format!("{driver}: {blow:?} at {step:?} of {words:?}");
                begin();
                let out = strike(&scene.store, &words, step, blow);
                blows += 1;
                if blow != Blow::Kill {
                    let text = both(&out);
                    assert!(!text.contains("panicked"), "{what}: {text}");
                    assert!(out.status.code().is_some(), "{what}: {}", out.status);
                }
                // The peer binds its home upon itself, which hides a mount that a killed one had left.
                if blow == Blow::Kill && peer && blows % 2 == 0 && words[0] != "mount" {
                    scene.check_by_peer(&what);
                }
                scene.check(verb.gone, &what);
            }
        }
        eprintln!("{driver}: {}: {} steps, {blows} blows", words[0], steps.len());
    }
}

/// Which blows a step takes: errors only of the kind that its call can meet on a disk that is full or breaks.
fn blows_at(step: &Step, way: Way) -> Vec<Blow> {
    match (way, step.call.as_str()) {
        (Way::Kill, _) => vec![Blow::Kill],
        (_, "write" | "pwrite64" | "mkdirat" | "symlinkat" | "copy_file_range") => vec![Blow::Error("ENOSPC")],
        (_, "renameat" | "renameat2" | "unlinkat" | "fsync" | "fdatasync" | "syncfs" | "fchmod") => {
            vec![Blow::Error("EIO")]
        }
        _ => Vec::new(),
    }
}

fn test(name: &str, driver: &'static str, way: Way) {
    if have("strace", name) && have("python3", name) && in_own_mount_namespace(name) {
        every_step(driver, way);
    }
}

#[test]
fn root_overlay_killed_at_every_step() {
    test("root_overlay_killed_at_every_step", "overlay", Way::Kill);
}

#[test]
fn root_vfs_killed_at_every_step() {
    test("root_vfs_killed_at_every_step", "vfs", Way::Kill);
}

#[test]
fn root_overlay_disk_errors_at_every_step() {
    test("root_overlay_disk_errors_at_every_step", "overlay", Way::DiskErrors);
}
