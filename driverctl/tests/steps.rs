//! kill -9 and errors of the disk at every step of every verb that changes something. What the next command finds works,
//! ours or the peer's; what was acknowledged before is there, whole; `check` finds nothing; and nothing is left behind.

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
    /// What the layers base, top and full hold.
    tar: String,
    /// What may be put into full.
    more: String,
}

impl Scene {
    /// With records that are `large` enough for an index.
    fn new(driver: &'static str, large: bool) -> Self {
        let store = TestStore::new(driver);
        // A killed process loses nothing that is only in memory, so the disk would just cost time.
        store.in_memory();
        let [tar, more] = [("layer.tar", 2), ("more.tar", 3)].map(|(name, files)| {
            many_files_tar(&store.path(name), 2, files);
            store.path(name).display().to_string()
        });
        store.ok(&["import-layer", "--id", "base", "--file", &tar]);
        store.ok(&["import-layer", "--id", "top", "--file", &tar, "base"]);
        store.ok(&["import-layer", "--id", "full", "--file", &tar, "base"]);
        store.ok(&["create-layer", "--id", "empty", "base"]);
        store.ok(&["create-image", "--id", IMAGE, "--name", "localhost/image:1", "top"]);
        store.ok(&["create-container", "--id", CONTAINER, "--name", "box", IMAGE]);
        if large {
            for id in ["base", IMAGE, CONTAINER] {
                store.ok(&["set-metadata", "--metadata", &"long ".repeat(6000), id]);
            }
        }
        store.ok(&["shutdown"]);
        for part in ["root", "run"] {
            fs::rename(store.path(part), store.path(&format!("{part}.0"))).unwrap();
        }
        Self { store, tar, more }
    }

    /// What is mounted below the store's directory of that name.
    fn mounted(&self, below: &str) -> Vec<String> {
        let here = self.store.path(below).display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.starts_with(&here)).map(str::to_owned).collect()
    }

    /// The store as it was at first.
    fn reset(&self) {
        for point in self.mounted("r").iter().rev() {
            run(Command::new("umount").arg(point));
        }
        for part in ["root", "run"] {
            if self.store.path(part).exists() {
                fs::remove_dir_all(self.store.path(part)).unwrap();
            }
        }
        let script = "cd \"$0\" && cp -a root.0 root && exec cp -a run.0 run";
        run(Command::new("sh").args(["-c", script]).arg(self.store.dir.path()));
    }

    fn silent(&self, words: &[&str], what: &str) -> String {
        let out = self.store.command(words).output().unwrap();
        assert!(out.status.success(), "{what}: {words:?}: {}", both(&out));
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{what}: {words:?} complained");
        String::from_utf8(out.stdout).unwrap()
    }

    /// What was acknowledged before and is not what the verb deletes is there, and whole.
    fn check(&self, gone: &[&str], what: &str) {
        let layers = self.silent(&["layers", "-q"], what);
        let kept = |id: &&str| !gone.contains(id);
        for id in ["base", "top", "full", "empty"].iter().filter(|id| kept(id)) {
            assert!(layers.lines().any(|line| line == *id), "{what}: layer {id} is lost: {layers:?}");
        }
        // Every archive can be put together again, and has its digest; all data is as its record says.
        assert_eq!(self.silent(&["check"], what), "", "{what}");
        if kept(&IMAGE) {
            assert!(self.silent(&["images"], what).contains(IMAGE), "{what}: the image is lost");
        }
        if kept(&CONTAINER) {
            let merged = self.silent(&["mount", CONTAINER], what);
            assert!(Path::new(merged.trim()).join("node_modules/package-0001/file-001.js").is_file(), "{what}");
        }
        self.nothing_left(what);
    }

    /// The layer that gets more has all of it, or nothing: in its record, its archive and its files.
    fn check_full(&self, what: &str) {
        let whole = self.store.path("whole.tar");
        self.silent(&["diff", "-u", "--file", &whole.display().to_string(), "full"], what);
        let bytes = fs::read(&whole).unwrap();
        let filled = bytes == fs::read(&self.more).unwrap();
        assert!(filled || bytes == fs::read(&self.tar).unwrap(), "{what}: other bytes");
        let merged = self.silent(&["mount", "full"], what);
        let files = |package: &str| {
            let dir = fs::read_dir(Path::new(merged.trim()).join("node_modules").join(package)).unwrap();
            dir.count()
        };
        let each = if filled { 3 } else { 2 };
        assert_eq!((files("package-0000"), files("package-0001")), (each, each), "{what}: a mixture");
    }

    /// The store can be emptied, and is empty then.
    fn nothing_left(&self, what: &str) {
        self.silent(&["wipe"], what);
        let mut left = Vec::new();
        let mut waiting = vec![self.store.path("root")];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let below = path.strip_prefix(self.store.path("root")).unwrap().display().to_string();
                if entry.file_type().unwrap().is_dir() {
                    waiting.push(path);
                    let known = ["tmp", "mounts"].contains(&below.as_str())
                        || ["overlay", "vfs"].iter().any(|home| {
                            let kinds = ["", "/l", "/dir", "/tempdirs", "/staging"];
                            let others = ["-layers", "-layers/tmp", "-images", "-containers"];
                            kinds.iter().chain(&others).any(|part| below == format!("{home}{part}"))
                        });
                    if known {
                        continue;
                    }
                } else if ["lock", "json"].iter().any(|ending| below.ends_with(&format!(".{ending}")))
                    && !below.contains("/.")
                    || below.ends_with(".has-mount-program")
                {
                    continue;
                }
                left.push(below);
            }
        }
        assert_eq!(left, [""; 0], "{what} left this behind");
        let mounted: Vec<String> = self.mounted("root/").into_iter().filter(|at| at.contains("merged")).collect();
        assert_eq!(mounted, [""; 0], "{what} left this mounted");
    }

    /// The peer's next command works, on what is there.
    fn check_by_peer(&self, what: &str) {
        let out = self.store.peer(&["layers"]).output().unwrap();
        assert!(out.status.success(), "{what}: the peer: {}", both(&out));
        if String::from_utf8_lossy(&out.stdout).lines().any(|line| line == "top") {
            let out = self.store.peer(&["diff", "-u", "-f", "/dev/null", "top"]).output().unwrap();
            assert!(out.status.success(), "{what}: the peer's diff: {}", both(&out));
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

const APPLY_TO_FULL: Verb = verb(&["apply-diff", "--file", "MORE", "full"]);

/// `TAR` and `MORE` stand for the scene's archives and `LAYOUT` for an image in files.
const VERBS: &[Verb] = &[
    verb(&["create-layer", "--id", "new", "--name", "name", "top"]),
    verb(&["import-layer", "--id", "new", "--file", "TAR", "top"]),
    verb(&["apply-diff", "--file", "TAR", "empty"]),
    APPLY_TO_FULL,
    // How an engine commits: a layer, an image on it, its manifest.
    Verb {
        before: &[&["import-layer", "--id", "new", "--file", "TAR", "top"]],
        words: &["create-image", "--name", "localhost/image:2", "--metadata", "text", "new"],
        gone: &[],
    },
    verb(&["set-image-data", "--file", "TAR", IMAGE, "sha256:0"]),
    verb(&["set-container-data", "--file", "TAR", CONTAINER, "data"]),
    verb(&["create-container", "--name", "other", IMAGE]),
    verb(&["add-names", "--name", "localhost/image:1", "--name", "another", CONTAINER]),
    verb(&["set-metadata", "--metadata", "text", IMAGE]),
    verb(&["load", "--name", "localhost/image:2", "LAYOUT"]),
    verb(&["mount", CONTAINER]),
    Verb { before: &[&["mount", CONTAINER]], words: &["unmount", CONTAINER], gone: &[] },
    Verb { before: &[&["mount", CONTAINER]], words: &["shutdown", "--force"], gone: &[] },
    Verb { before: &[], words: &["delete-layer", "empty"], gone: &["empty"] },
    Verb { before: &[], words: &["delete-container", CONTAINER], gone: &[CONTAINER] },
    Verb {
        before: &[&["delete-container", CONTAINER], &["delete-layer", "full"], &["delete-layer", "empty"]],
        words: &["delete-image", IMAGE],
        gone: &[CONTAINER, IMAGE, "top", "base", "full", "empty"],
    },
    Verb { before: &[], words: &["wipe"], gone: &[CONTAINER, IMAGE, "top", "base", "full", "empty"] },
];

/// How runs are spoiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// After a kill our next command and the peer's look first in turn.
    Kill,
    DiskErrors,
    /// Both, of every so many-th step.
    Sample(usize),
}

fn every_step(scene: &Scene, verbs: &[Verb], way: Way) {
    let driver = scene.store.driver;
    let peer = have("containers-storage", "the peer's look at what killed commands left");
    let layout = scene.store.path("layout");
    if !layout.exists() {
        support::make_layout(&layout, &scene.tar);
    }
    let layout = format!("oci:{}:1", layout.display());
    let words = |words: &[&'static str]| -> Vec<String> {
        let word = |word: &&'static str| match *word {
            "TAR" => scene.tar.clone(),
            "MORE" => scene.more.clone(),
            "LAYOUT" => layout.clone(),
            word => word.to_owned(),
        };
        words.iter().map(word).collect()
    };
    for verb in verbs {
        let begin = || {
            scene.reset();
            for before in verb.before {
                run(&mut scene.store.command(&words(before)));
            }
        };
        let words = words(verb.words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        begin();
        let steps = steps(&scene.store, &words);
        assert!(steps.len() >= 4, "{words:?}: {steps:?}");
        let mut blows = 0;
        for (number, step) in steps.iter().enumerate() {
            for blow in blows_at(step, number, way) {
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
                if blow == Blow::Kill && peer && blows % 4 == 0 && words[0] != "mount" {
                    scene.check_by_peer(&what);
                }
                if verb.words == APPLY_TO_FULL.words {
                    scene.check_full(&what);
                }
                scene.check(verb.gone, &what);
            }
        }
        eprintln!("{driver}: {}: {} steps, {blows} blows", words[0], steps.len());
    }
}

/// Which blows a step takes: errors only of the kind that its call can meet on a disk that is full or breaks.
fn blows_at(step: &Step, number: usize, way: Way) -> Vec<Blow> {
    let error = match step.call.as_str() {
        "write" | "pwrite64" | "mkdirat" | "symlinkat" | "copy_file_range" => Some(Blow::Error("ENOSPC")),
        "renameat" | "renameat2" | "unlinkat" | "fsync" | "fdatasync" | "syncfs" | "fchmod" => Some(Blow::Error("EIO")),
        _ => None,
    };
    match way {
        Way::Kill => vec![Blow::Kill],
        Way::DiskErrors => error.into_iter().collect(),
        Way::Sample(nth) if number.is_multiple_of(nth) => std::iter::once(Blow::Kill).chain(error).collect(),
        Way::Sample(_) => Vec::new(),
    }
}

fn can(name: &str) -> bool {
    have("strace", name) && have("python3", name) && in_own_mount_namespace(name)
}

#[test]
fn root_overlay_killed_at_every_step() {
    if can("root_overlay_killed_at_every_step") {
        every_step(&Scene::new("overlay", false), VERBS, Way::Kill);
    }
}

/// vfs has its own way of making, filling and removing layers, and nothing else.
#[test]
fn root_vfs_killed_and_failed_at_its_steps() {
    if can("root_vfs_killed_and_failed_at_its_steps") {
        let scene = Scene::new("vfs", false);
        every_step(&scene, &VERBS[..3], Way::Sample(3));
        every_step(&scene, &[APPLY_TO_FULL], Way::Sample(1));
    }
}

#[test]
fn root_overlay_disk_errors_at_every_step() {
    if can("root_overlay_disk_errors_at_every_step") {
        every_step(&Scene::new("overlay", false), VERBS, Way::DiskErrors);
    }
}

/// Records that are large enough for an index, which is written, too.
#[test]
fn root_killed_and_failed_at_steps_with_an_index() {
    if can("root_killed_and_failed_at_steps_with_an_index") {
        every_step(&Scene::new("overlay", true), VERBS, Way::Sample(4));
    }
}
