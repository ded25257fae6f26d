//! The command line's contract: words, outputs, exit statuses, error texts.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{DRIVERCTL, TestStore, both, in_own_mount_namespace, in_own_user_namespace, is_root, run};

const HEX: &str = "0123456789abcdef";

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|c| HEX.contains(c))
}

/// On both drivers, as root or, by the test's name, as root of a user namespace.
fn on_each_driver(test: &str, check: impl Fn(&TestStore)) {
    let inside = if test.starts_with("userns_") { in_own_user_namespace(test) } else { in_own_mount_namespace(test) };
    if !inside {
        return;
    }
    for driver in ["vfs", "overlay"] {
        check(&TestStore::new(driver));
    }
}

#[test]
fn flags_stand_before_and_behind_the_verb_and_the_last_wins() {
    if !is_root() {
        eprintln!("skipped: flags_stand_before_and_behind_the_verb_and_the_last_wins: needs root");
        return;
    }
    let store = TestStore::new("vfs");
    let root = store.path("root").display().to_string();
    let run_root = store.path("run").display().to_string();
    let id = run(Command::new(DRIVERCTL).args([
        "-g=/nonexistent/x",
        "--graph",
        &root,
        "create-layer",
        "-R",
        &run_root,
        "-s=vfs",
        "-n",
        "one",
        "-n=two",
    ]));
    let lines: Vec<&str> = id.lines().collect();
    assert_eq!(lines.len(), 3, "{id}");
    assert!(is_id(lines[0]), "{id}");
    assert_eq!(lines[1..], ["\tone", "\ttwo"]);
    assert_eq!(store.ok(&["--debug=false", "layers", "-q"]).trim(), lines[0]);
    assert!(!Path::new("/nonexistent").exists());
}

#[test]
fn bad_words_have_the_peers_texts_and_statuses() {
    let store = TestStore::new("vfs");
    for (args, status, text) in [
        (&["layers", "--foo"][..], 125, "flag provided but not defined: --foo"),
        (&["mount", "--option", "nosuid", "x"], 125, "flag provided but not defined: --option"),
        (&["create-layer", "--id"], 125, "flag needs an argument: --id"),
        (&["foo"], 1, "foo: unrecognized command."),
        (&["--nosuch", "layers"], 1, "flag provided but not defined: --nosuch"),
        (&["layer"], 1, "layer: more arguments required."),
        (&["layers", "extra"], 1, "layers: too many arguments ([extra])."),
        (&[], 1, "Usage:"),
    ] {
        let out = store.command(args).output().unwrap();
        assert_eq!(out.status.code(), Some(status), "{args:?}: {out:?}");
        assert!(both(&out).contains(text), "{args:?}: {}", both(&out));
    }
    let out = store.command(&["layers", "--storage-driver", "nosuch"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("error initializing: "), "{out:?}");
    assert!(both(&out).contains("driver not supported"), "{out:?}");
}

#[test]
fn ids_that_would_be_paths_are_refused() {
    if !is_root() {
        eprintln!("skipped: ids_that_would_be_paths_are_refused: needs root");
        return;
    }
    let store = TestStore::new("vfs");
    for id in ["../x", "..", ".", "a/b", "a\nb", "\u{1b}[31m"] {
        let said = store.fails(&["create-layer", "--id", id]);
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    assert_eq!(store.ok(&["layers"]), "");
    assert!(!store.path("root/x").exists() && !store.path("x").exists());
}

#[test]
fn root_layers_are_made_listed_and_deleted() {
    on_each_driver("root_layers_are_made_listed_and_deleted", layers_are_made_listed_and_deleted);
}

#[test]
fn userns_layers_are_made_listed_and_deleted() {
    on_each_driver("userns_layers_are_made_listed_and_deleted", layers_are_made_listed_and_deleted);
}

fn layers_are_made_listed_and_deleted(store: &TestStore) {
    assert_eq!(store.ok(&["layers"]), "");
    assert_eq!(store.ok(&["layers", "-j"]), "null\n");
    let base = store.ok(&["create-layer", ""]).trim().to_owned();
    assert!(is_id(&base), "{base}");
    let child = store.ok(&["create-layer", "--id", "child", "-n", "kid", &base]);
    assert_eq!(child, "child\n\tkid\n");
    assert_eq!(store.ok(&["layers"]), format!("{base}\nchild\n\tname: kid\n"));
    assert_eq!(store.ok(&["layers", "--tree"]), format!("(base)\n└─{base}\n  └─child\n    name: kid\n"));
    assert!(store.ok(&["layer", "kid"]).contains(&format!("Parent: {base}\n")));
    let json = store.ok(&["layers", "--json"]);
    assert!(json.starts_with(&format!("[{{\"id\":\"{base}\",\"created\":\"")), "{json}");
    assert!(store.fails(&["create-layer", "--id", "child"]).contains("that ID is already in use"));
    assert!(store.fails(&["create-layer", "-n", "kid"]).contains("that name is already in use"));
    assert!(store.fails(&["create-layer", "nosuch"]).contains("layer not known"));
    let said = store.fails(&["delete-layer", &base]);
    assert!(said.contains("used by layer child: layer has children"), "{said}");
    assert!(store.fails(&["delete-layer", "nosuch"]).contains("identifier is not a layer"));
    assert_eq!(store.ok(&["delete-layer", "-j", "kid"]), "{\"kid\":\"\"}\n");
    assert_eq!(store.ok(&["delete-layer", &base[..10]]), "");
    assert_eq!(store.ok(&["layers"]), "");
}

#[test]
fn root_mounts_are_counted_across_processes() {
    on_each_driver("root_mounts_are_counted_across_processes", mounts_are_counted_across_processes);
}

#[test]
fn userns_mounts_are_counted_across_processes() {
    on_each_driver("userns_mounts_are_counted_across_processes", mounts_are_counted_across_processes);
}

fn mounts_are_counted_across_processes(store: &TestStore) {
    let base = store.ok(&["create-layer"]).trim().to_owned();
    let layer = store.ok(&["create-layer", "-n", "top", &base]).trim().lines().next().unwrap().to_owned();
    assert_eq!(store.ok(&["mounted", &layer]), "");
    let path = store.ok(&["mount", &layer]);
    assert_eq!(store.ok(&["mount", "top"]), path);
    fs::write(Path::new(path.trim()).join("hello"), "hello").unwrap();
    assert_eq!(store.ok(&["mounted", &layer]), format!("{layer} mounted\n"));
    assert_eq!(store.ok(&["unmount", &layer]), "");
    assert_eq!(store.ok(&["mounted", &layer]), format!("{layer} mounted\n"));
    assert_eq!(store.ok(&["unmount", "top"]), "top mountpoint unmounted\n");
    assert_eq!(store.ok(&["mounted", &layer]), "");
    store.ok(&["mount", &layer]);
    store.ok(&["mount", &layer]);
    assert_eq!(store.ok(&["unmount", "--force", &layer]), format!("{layer} mountpoint unmounted\n"));
    assert_eq!(store.ok(&["changes", &layer]), "Add \"/hello\"\n");
    assert!(store.fails(&["mount", "nosuch"]).contains("layer not known while mounting nosuch"));
    store.ok(&["delete-layer", &layer]);
}

/// Three layers with files, directories, deletions and re-made names, as the peers' own tests make them.
fn populate(store: &TestStore) -> [String; 3] {
    let mut parent = String::new();
    [
        "echo base >base; echo t >text; mkdir -p sub/deep; echo s >sub/file; echo d >sub/deep/file; mkdir gone; echo g >gone/file; ln base hard; ln -s base link; mkdir empty",
        "echo more >>text; rm -r gone; mkdir sub/new; echo n >sub/new/file; rm link; chmod 700 empty",
        "mkdir gone; echo again >gone/again; rm -r sub/deep; echo top >top",
    ]
    .map(|script| {
        let layer = store.ok(&["create-layer", &parent]).trim().to_owned();
        let path = store.ok(&["mount", &layer]).trim().to_owned();
        run(Command::new("sh").args(["-ec", script]).current_dir(path));
        store.ok(&["unmount", &layer]);
        parent.clone_from(&layer);
        layer
    })
}

const CHANGES: [&str; 3] = [
    "Add \"/base\"\nAdd \"/empty\"\nAdd \"/gone\"\nAdd \"/gone/file\"\nAdd \"/hard\"\nAdd \"/link\"\nAdd \"/sub\"\nAdd \"/sub/deep\"\n\
     Add \"/sub/deep/file\"\nAdd \"/sub/file\"\nAdd \"/text\"\n",
    "Modify \"/empty\"\nDelete \"/gone\"\nDelete \"/link\"\nModify \"/sub\"\nAdd \"/sub/new\"\nAdd \"/sub/new/file\"\nModify \"/text\"\n",
    "Add \"/gone\"\nAdd \"/gone/again\"\nModify \"/sub\"\nDelete \"/sub/deep\"\nAdd \"/top\"\n",
];

const MEMBERS: [&str; 3] = [
    "base\nempty/\ngone/\ngone/file\nhard\nlink\nsub/\nsub/deep/\nsub/deep/file\nsub/file\ntext\n",
    ".wh.gone\n.wh.link\nempty/\nsub/\nsub/new/\nsub/new/file\ntext\n",
    "gone/\ngone/again\nsub/\nsub/.wh.deep\ntop\n",
];

fn sorted_members(tar: &Path) -> String {
    let listing = run(Command::new("tar").arg("-tf").arg(tar));
    let mut names: Vec<&str> = listing.lines().collect();
    names.sort_unstable();
    names.iter().map(|name| format!("{name}\n")).collect()
}

#[test]
fn root_changes_and_diffs_survive_a_round_trip() {
    on_each_driver("root_changes_and_diffs_survive_a_round_trip", changes_and_diffs_survive_a_round_trip);
}

#[test]
fn userns_changes_and_diffs_survive_a_round_trip() {
    on_each_driver("userns_changes_and_diffs_survive_a_round_trip", changes_and_diffs_survive_a_round_trip);
}

fn changes_and_diffs_survive_a_round_trip(store: &TestStore) {
    let layers = populate(store);
    let mut tars = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let changes = store.ok(&["changes", layer]);
        assert_eq!(changes, CHANGES[number], "{} layer {number}", store.driver);
        let tar = store.path(&format!("{number}.tar"));
        store.ok(&["diff", "-u", "-f", &tar.display().to_string(), layer]);
        assert_eq!(sorted_members(&tar), MEMBERS[number], "{} layer {number}", store.driver);
        let size: u64 = store.ok(&["diffsize", layer]).trim().parse().unwrap();
        assert!(size > 0);
        tars.push(tar);
    }
    for layer in layers.iter().rev() {
        store.ok(&["delete-layer", layer]);
    }
    let mut parent = String::new();
    for (number, tar) in tars.iter().enumerate() {
        let layer = store.ok(&["create-layer", &parent]).trim().to_owned();
        assert_eq!(store.ok(&["apply-diff", "--file", &tar.display().to_string(), &layer]), "");
        let changes = store.ok(&["changes", &layer]);
        assert_eq!(changes, CHANGES[number], "{} layer {number}, applied", store.driver);
        let again = store.path("again.tar");
        store.ok(&["diff", "--file", &again.display().to_string(), &layer]);
        assert_eq!(fs::read(&again).unwrap(), fs::read(tar).unwrap(), "{} layer {number}: other bytes", store.driver);
        parent = layer;
    }
}

#[test]
fn root_junk_is_refused_and_leaves_nothing() {
    on_each_driver("root_junk_is_refused_and_leaves_nothing", junk_is_refused_and_leaves_nothing);
}

#[test]
fn userns_junk_is_refused_and_leaves_nothing() {
    on_each_driver("userns_junk_is_refused_and_leaves_nothing", junk_is_refused_and_leaves_nothing);
}

fn junk_is_refused_and_leaves_nothing(store: &TestStore) {
    let base = store.ok(&["create-layer"]).trim().to_owned();
    let junk = store.path("junk");
    for (size, text) in [(50, "unexpected EOF"), (4096, "invalid tar header")] {
        fs::write(&junk, "junk".repeat(size / 4)).unwrap();
        for tool in ["cat", "gzip -c", "bzip2 -c", "xz -c", "zstd -qc"] {
            let blob = store.path("blob");
            run(Command::new("sh").args(["-c", &format!("{tool} <\"$0\" >\"$1\"")]).arg(&junk).arg(&blob));
            let said = store.fails(&["applydiff", "-f", &blob.display().to_string(), &base]);
            assert!(said.contains(text), "{tool}: {said}");
            let said = store.fails(&["import-layer", "-f", &blob.display().to_string()]);
            assert!(said.contains(text), "{tool}: {said}");
        }
    }
    assert_eq!(store.ok(&["layers"]), format!("{base}\n"));
    fs::write(&junk, vec![0_u8; 1024]).unwrap();
    store.ok(&["applydiff", "-f", &junk.display().to_string(), &base]);
    fs::write(&junk, b"").unwrap();
    store.ok(&["applydiff", "-f", &junk.display().to_string(), &base]);
}

#[test]
fn root_status_says_which_driver_and_why() {
    on_each_driver("root_status_says_which_driver_and_why", |store| {
        let status = store.ok(&["status"]);
        let lines: Vec<&str> = status.lines().collect();
        assert!(lines[0].starts_with("Root: ") && lines[1].starts_with("Run Root: "), "{status}");
        assert_eq!(lines[2], format!("Driver Name: {}", store.driver));
        assert!(lines[3].starts_with("Driver Options: ["), "{status}");
        let json: serde_json::Value = serde_json::from_str(&store.ok(&["status", "-j"])).unwrap();
        assert_eq!(json[0][0], "Root");
        assert_eq!(json[2], serde_json::json!(["Driver Name", store.driver]));
    });
}

#[test]
fn root_containers_and_images() {
    on_each_driver("root_containers_and_images", containers_and_images);
}

#[test]
fn userns_containers_and_images() {
    on_each_driver("userns_containers_and_images", containers_and_images);
}

fn containers_and_images(store: &TestStore) {
    assert_eq!(store.ok(&["images", "--json"]), "null\n");
    assert_eq!(store.ok(&["containers", "--json"]), "[]\n");
    let layer = store.ok(&["create-layer"]).trim().to_owned();
    let image = store.ok(&["create-image", "-n", "localhost/x:1", &layer]).lines().next().unwrap().to_owned();
    assert!(store.fails(&["create-container", "nosuch"]).contains("image not known"));
    let container = store.ok(&["create-container", "-n", "box", "-m", "{\"a\":1}", "localhost/x:1"]);
    let container = container.lines().next().unwrap().to_owned();
    assert!(store.ok(&["container", "box"]).contains("Size: 0\n"));
    assert!(store.fails(&["delete-layer", &layer]).contains("layer has children"));
    assert!(store.fails(&["delete-image", &image]).contains("image is in use by a container"));
    let record: serde_json::Value = serde_json::from_str(&store.ok(&["containers", "-j"])).unwrap();
    let own = record[0]["layer"].as_str().unwrap();
    assert!(
        store
            .fails(&["delete-layer", own])
            .contains(&format!("used by container {container}: layer is in use by a container"))
    );
    let path = store.ok(&["mount", "box"]);
    fs::write(Path::new(path.trim()).join("new"), "new").unwrap();
    store.ok(&["unmount", "box"]);
    assert_eq!(store.ok(&["changes", own]), "Add \"/new\"\n");
    store.ok(&["delete-container", "box"]);
    assert!(store.fails(&["delete-layer", &layer]).contains("layer is in use by an image"));
    assert_eq!(store.ok(&["containers"]), "");
    let out = store.command(&["delete-image", "localhost/x:1"]).output().unwrap();
    assert!(out.status.success());
    assert_eq!(both(&out), format!("localhost/x:1: {layer}\n"));
    assert_eq!(store.ok(&["layers"]), "");
}

#[test]
fn root_progress_is_for_terminals_only() {
    let name = "root_progress_is_for_terminals_only";
    if !support::have("script", name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("vfs");
    let tar = store.path("many.tar");
    support::many_files_tar(&tar, 40, 20);
    let tar = tar.display().to_string();
    // Into a pipe: not a byte. (`ok` looks.)
    store.ok(&["import-layer", "--id", "piped", "-f", &tar]);
    store.ok(&["diff", "-u", "-f", "/dev/null", "piped"]);
    // On a terminal: a bar, wiped at the end.
    let words = store.global().join(" ");
    for verb in [format!("import-layer --id shown -f {tar}"), "diff -u -f /dev/null shown".to_owned()] {
        let line = format!("{DRIVERCTL} {words} {verb}");
        let out = Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").output().unwrap();
        let shown = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{shown}");
        assert!(shown.contains('[') && shown.contains("B/"), "{verb}: no bar: {shown:?}");
    }
    assert_eq!(store.ok(&["layers"]), "piped\nshown\n");
}

#[test]
fn root_a_running_container_is_not_deleted() {
    on_each_driver("root_a_running_container_is_not_deleted", |store| {
        let container = store.ok(&["create-container", "-n", "box", ""]).lines().next().unwrap().to_owned();
        // As podman mounts a container's /dev/shm.
        let userdata = store.path("root").join(format!("{}-containers/{container}/userdata", store.driver));
        fs::create_dir_all(userdata.join("shm")).unwrap();
        fs::write(userdata.join("config.json"), "{}").unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "shm"]).arg(userdata.join("shm")));
        let said = store.fails(&["delete-container", "box"]);
        assert!(said.contains("is running") && said.contains("stop it first"), "{said}");
        assert!(userdata.join("config.json").exists());
        store.ok(&["mount", "box"]);
        store.ok(&["unmount", "box"]);
        run(Command::new("umount").arg(userdata.join("shm")));
        store.ok(&["delete-container", "box"]);
        assert_eq!(store.ok(&["layers"]), "");
    });
}
