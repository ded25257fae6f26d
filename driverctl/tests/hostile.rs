//! Stores whose records somebody has tampered with: no id or name in them ever becomes a path that leads out.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use support::{TestStore, both, in_own_mount_namespace};

/// Every file below `dir` with its content, the store's own roots left out.
fn outside(dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            into.insert(path.clone(), Vec::new());
            outside(&path, into);
        } else {
            into.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

struct Hostile {
    store: TestStore,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Hostile {
    fn new(driver: &'static str) -> Self {
        let store = TestStore::new(driver);
        // What `../x`, `../../x` and `../../../x` may mean, seen from the directories that ids name things in.
        for place in ["x", "root/x", "run/x"] {
            for name in ["keep", "diff/keep", "userdata/keep", "merged/keep"] {
                let path = store.path(place).join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "precious").unwrap();
            }
            fs::write(store.path(&format!("{place}.tar-split.gz")), "precious").unwrap();
        }
        store.ok(&["create-layer", "--id", "good"]);
        store.ok(&["create-image", "--id", "img", "good"]);
        store.ok(&["create-container", "--id", "con", "img"]);
        let mut hostile = Self { store, before: BTreeMap::new() };
        hostile.before = hostile.precious();
        hostile
    }

    fn precious(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for place in ["x", "root/x", "run/x"] {
            outside(&self.store.path(place), &mut found);
            let file = self.store.path(&format!("{place}.tar-split.gz"));
            found.insert(file.clone(), fs::read(file).unwrap());
        }
        found
    }

    fn record_file(&self, kind: &str) -> PathBuf {
        self.store.path(&format!("root/{}-{kind}/{kind}.json", self.store.driver))
    }

    /// Puts `records` in place of the kind's, runs the commands, puts the old ones back.
    fn with(&self, kind: &str, records: &str, commands: &[&str]) {
        for command in commands {
            let kept: Vec<(PathBuf, Vec<u8>)> = ["layers", "images", "containers"]
                .iter()
                .map(|kind| self.record_file(kind))
                .map(|path| (path.clone(), fs::read(&path).unwrap()))
                .collect();
            fs::write(self.record_file(kind), records).unwrap();
            let words: Vec<&str> = command.split(' ').collect();
            let out = self.store.command(&words).stdin(std::process::Stdio::null()).output().unwrap();
            let said = both(&out);
            assert!(matches!(out.status.code(), Some(0 | 1)), "{command} with {records}: {:?}: {said}", out.status);
            assert!(!said.contains("panicked"), "{command} with {records}: {said}");
            assert_eq!(self.precious(), self.before, "{command} with {records} touched what is not the store's");
            for (path, bytes) in kept {
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

const GOOD: &str = r#"{"id":"good","created":"2024-01-01T00:00:00Z"}"#;

fn ids_in_records_never_lead_out(driver: &'static str) {
    let hostile = Hostile::new(driver);
    for id in ["../x", "../../x", "../../../x", "..", ".", "x/../../x"] {
        let evil = format!(
            r#"[{GOOD},{{"id":"{id}","names":["evil"],"diff-digest":"sha256:{}","diff-size":5,"big-data-names":["../../x/keep"],"created":"2024-01-01T00:00:00Z"}}]"#,
            "0".repeat(64)
        );
        let verbs = [
            "layers",
            "layers --tree",
            "layer evil",
            "mount evil",
            "unmount evil",
            "changes evil",
            "diffsize evil",
            "diff -u evil",
            "applydiff evil",
            "create-layer evil",
            "create-image evil",
            "delete-layer evil",
            "shutdown -f",
        ];
        hostile.with("layers", &evil, &verbs);
        let said = {
            fs::write(hostile.record_file("layers"), &evil).unwrap();
            let said = hostile.store.fails(&["diff", "-u", "evil"]);
            fs::write(hostile.record_file("layers"), format!("[{GOOD}]")).unwrap();
            said
        };
        assert!(said.contains(&format!("invalid layer ID {id:?}")), "the record is named: {said}");

        let begun = evil.replace(r#"{"id":"../"#, r#"{"flags":{"incomplete":true},"id":"../"#);
        hostile.with("layers", &begun, &["layers", "shutdown"]);
        let orphan = format!(r#"[{{"id":"good","parent":"{id}","created":"2024-01-01T00:00:00Z"}}]"#);
        hostile.with("layers", &orphan, &["mount good", "unmount good", "changes good", "diff -u good", "layers -t"]);

        let container = |id: &str, layer: &str| {
            format!(
                r#"[{{"id":"{id}","names":["evil"],"image":"img","layer":"{layer}","big-data-names":["../../../x/keep"],"created":"2024-01-01T00:00:00Z"}}]"#
            )
        };
        let verbs = ["container evil", "mount evil", "changes evil", "unmount evil", "delete-container evil"];
        hostile.with("containers", &container("con", id), &verbs);
        hostile.with("containers", &container(id, "gone"), &verbs);
        // A record that can be nothing's can still be got rid of.
        fs::write(hostile.record_file("containers"), container(id, "gone")).unwrap();
        hostile.store.ok(&["delete-container", "evil"]);
        assert_eq!(hostile.store.ok(&["containers"]), "");

        let image = |id: &str, layer: &str| {
            format!(
                r#"[{{"id":"{id}","names":["evil"],"layer":"{layer}","mapped-layers":["{layer}"],"big-data-names":["manifest","../../../x/keep"],"created":"2024-01-01T00:00:00Z"}}]"#
            )
        };
        let save = format!("save evil {}", hostile.store.path("out").display());
        let verbs = ["image evil", "create-container evil", "mount -r evil", &save, "delete-image evil"];
        hostile.with("images", &image("img", id), &verbs);
        hostile.with("images", &image(id, "gone"), &verbs);
        drop(fs::remove_dir_all(hostile.store.path("out")));

        // Mount points of nobody's: never unmounted, never removed.
        let run = hostile.store.path(&format!("run/{driver}-layers/mountpoints.json"));
        let point = format!(r#"[{{"id":"{id}","path":"{}","count":1}}]"#, hostile.store.path("x").display());
        fs::write(&run, point).unwrap();
        hostile.with("layers", &evil, &["shutdown -f", "unmount -f evil", "layers -t"]);
        fs::remove_file(run).unwrap();
    }
}

#[test]
fn root_ids_in_records_never_lead_out_of_a_vfs_store() {
    if in_own_mount_namespace("root_ids_in_records_never_lead_out_of_a_vfs_store") {
        ids_in_records_never_lead_out("vfs");
    }
}

#[test]
fn root_ids_in_records_never_lead_out_of_an_overlay_store() {
    if in_own_mount_namespace("root_ids_in_records_never_lead_out_of_an_overlay_store") {
        ids_in_records_never_lead_out("overlay");
    }
}

/// The overlay driver's own small files, as a hostile store may have them.
#[test]
fn root_links_and_lowers_never_lead_out() {
    if !in_own_mount_namespace("root_links_and_lowers_never_lead_out") {
        return;
    }
    for (file, text) in [
        ("link", "../../../x"),
        ("link", "../x"),
        ("lower", "l/../../../x/diff"),
        ("lower", "../../x/diff"),
        ("lower", "l/EVIL"),
        ("lower-layers", "../../x"),
        ("lower-layers", "/x"),
    ] {
        let hostile = Hostile::new("overlay");
        let store = &hostile.store;
        store.ok(&["create-layer", "--id", "kid", "good"]);
        let home = store.path("root/overlay");
        std::os::unix::fs::symlink("../../../x/diff", home.join("l/EVIL")).unwrap();
        fs::write(home.join("kid").join(file), text).unwrap();
        for verb in ["mount", "changes", "diff", "diffsize", "unmount", "delete-layer"] {
            let out = store.command(&[verb, "kid"]).output().unwrap();
            assert!(matches!(out.status.code(), Some(0 | 1)), "{verb} with {file} {text:?}: {}", both(&out));
            let shown = String::from_utf8_lossy(&out.stdout);
            if verb == "mount" && out.status.success() {
                assert!(!Path::new(shown.trim()).join("keep").exists(), "{file} {text:?} shows what is outside");
            }
            assert!(verb == "mount" || !shown.contains("keep"), "{verb} with {file} {text:?}: {shown}");
            assert_eq!(hostile.precious(), hostile.before, "{verb} with {file} {text:?}");
        }
    }
}
