//! Stores that engines made, opened by us, and stores that we made, under engines that run containers from them.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::path::Path;

use support::engines::{
    APP, BASE, Engines, Privilege, assert_same_records, diff_ids, ids, json, layout, sha256, tools, tree,
};
use support::{TestStore, in_own_mount_namespace};

/// On top of the two images: a container that ran and wrote, and what only the low-level command makes. An image without
/// manifest ends `podman images` in an error, so that one comes last.
const BOX: &str = r#"
$P create --name box --network=none --cgroups=disabled localhost/app:1 /bin/sh -c \
  'echo hi >/hello; rm /etc/passwd; mkdir /n; echo e >/n/e; busybox chown 5:6 /n/e; echo ran' >/dev/null
$P start -a box
"#;
const RAW: &str = r#"
$C create-layer -n rawlayer >/dev/null
echo payload >payload; tar --numeric-owner -cf raw.tar payload
$C applydiff -f raw.tar rawlayer >/dev/null
$C set-layer-data -f payload rawlayer mykey
$C create-image -n localhost/rawimg:1 rawlayer >/dev/null; $C set-image-data -f payload localhost/rawimg:1 A_b-c
$C create-container -n rawbox -m '{"meta":"data"}' localhost/rawimg:1 >/dev/null
$C set-container-data -f payload rawbox item
"#;

fn opens_what_engines_made(driver: &'static str, name: &str) {
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new(driver);
    let engines = Engines::new(&store, Privilege::Root);
    engines.script(BASE);
    engines.script(APP);
    assert_eq!(engines.script(BOX), "ran\n");
    engines.script(RAW);

    assert_same_records(&engines);
    let layers = json(&engines.ours(&["layers", "-j"]));
    assert_eq!(layers.as_array().unwrap().len(), 5, "{layers}");
    for layer in layers.as_array().unwrap() {
        let id = layer["id"].as_str().unwrap();
        let theirs = engines.peer(&["mount", id]);
        let wanted = tree(&theirs);
        engines.peer(&["unmount", id]);
        let ours = engines.ours(&["mount", id]);
        assert_eq!(tree(&ours), wanted, "{driver}: the tree of layer {id}");
        engines.ours(&["unmount", id]);
        // Exact where it is recorded; a container's as the peer packs it.
        let out = store.path("files/diff.tar");
        let file = out.display().to_string();
        engines.ours(&["diff", "--uncompressed", "--file", &file, id]);
        match layer["diff-digest"].as_str() {
            Some(recorded) => assert_eq!(sha256(&out), recorded, "{driver}: layer {id}"),
            None => {
                let sorted = |text: String| {
                    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                    lines.sort();
                    lines
                };
                let changes = engines.ours(&["changes", id]);
                assert_eq!(sorted(changes), sorted(engines.peer(&["changes", id])), "{driver}: layer {id}");
            }
        }
    }
    assert_eq!(engines.peer(&["get-image-data", "localhost/rawimg:1", "A_b-c"]), "payload");
    support::check_clean(&store);

    // The engines go on with it.
    let said = engines.podman_run(&["--rm", "localhost/app:1", "sh", "-c", "cat /etc/conf2.d/hard /opq/*; ls /opq"]);
    assert_eq!(said, "one\nnew\nnew");
    assert_eq!(engines.podman(&["start", "-a", "box"]).lines().last(), Some("ran"));
    engines.podman(&["rm", "box"]);
    assert_same_records(&engines);
    // And we take away what they made.
    for (verb, object) in [
        ("delete-container", "rawbox"),
        ("delete-image", "localhost/rawimg:1"),
        ("delete-image", "localhost/app:1"),
        ("delete-image", "localhost/base:1"),
    ] {
        engines.ours(&[verb, object]);
    }
    assert_eq!(ids(&json(&engines.peer(&["layers", "-j"]))), Vec::<String>::new(), "{driver}");
    engines.assert_nothing_mounted();
}

#[test]
fn root_peer_an_overlay_store_of_podman_and_buildah() {
    opens_what_engines_made("overlay", "root_peer_an_overlay_store_of_podman_and_buildah");
}

#[test]
fn root_peer_a_vfs_store_of_podman_and_buildah() {
    opens_what_engines_made("vfs", "root_peer_a_vfs_store_of_podman_and_buildah");
}

fn engines_run_what_we_load(driver: &'static str, name: &str) {
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new(driver);
    let engines = Engines::new(&store, Privilege::Root);
    let source = store.path("files/layout");
    layout(&source, Privilege::Root);
    let wanted = diff_ids(&source);
    let loaded = engines.ours(&["load", "--name", "localhost/app:1", &format!("oci:{}:app", source.display())]);
    let image = loaded.lines().next().unwrap().to_owned();

    // podman
    assert_eq!(engines.podman(&["images", "-q", "--no-trunc"]), format!("sha256:{image}"));
    let words = "cat /etc/conf2.d/hard; echo written >/new; rm /etc/group; mkdir /made; ln /new /made/hard; \
                 busybox chown 7:8 /new; rm -r /var/lib/data; mkdir /var/lib/data; echo again >/var/lib/data/again";
    assert_eq!(engines.podman_run(&["--name", "writer", "localhost/app:1", "sh", "-c", words]), "one");
    let diff = engines.podman(&["diff", "writer"]);
    let has = |kind: &str, path: &str| diff.lines().any(|line| line == format!("{kind} {path}"));
    assert!(has("A", "/new") && has("A", "/made/hard") && has("D", "/etc/group"), "{diff}");
    // Our words for the container's changes are the low-level command's.
    let layer = json(&engines.ours(&["container", "-j", "writer"]))[0]["layer"].as_str().unwrap().to_owned();
    let ours = engines.ours(&["changes", &layer]);
    assert!(ours.lines().any(|line| line == "Add \"/new\""), "{ours}");
    assert!(ours.lines().any(|line| line == "Delete \"/etc/group\""), "{ours}");
    engines.podman(&["commit", "-q", "writer", "localhost/committed:1"]);
    engines.podman(&["rm", "writer"]);
    let said =
        engines.podman_run(&["--rm", "localhost/committed:1", "stat", "-c", "%n %u %g %h", "/new", "/made/hard"]);
    assert_eq!(said, "/new 7 8 2\n/made/hard 7 8 2");

    // buildah
    let from = engines.buildah(&["from", "localhost/committed:1"]);
    let ran = engines.buildah(&["run", &from, "sh", "-c", "cat /new; rm /new; echo built >/built"]);
    assert_eq!(ran, "written");
    engines.buildah(&["commit", "-q", &from, "localhost/built:1"]);
    engines.buildah(&["rm", &from]);
    let said =
        engines.podman_run(&["--rm", "localhost/built:1", "sh", "-c", "cat /built /made/hard; stat /new || true"]);
    assert_eq!(said.lines().take(2).collect::<Vec<_>>(), ["built", "written"], "{said}");

    // Out of the store: by skopeo and by us, with the digests it came in with.
    for (image, layers) in [("app", wanted.len()), ("committed", wanted.len() + 1), ("built", wanted.len() + 2)] {
        let name = format!("localhost/{image}:1");
        let theirs = store.path(&format!("files/{image}-skopeo"));
        engines.skopeo_copy(&engines.reference(&name), &format!("oci:{}:x", theirs.display()));
        let ours = store.path(&format!("files/{image}-ours"));
        engines.ours(&["save", &name, &format!("oci:{}:x", ours.display())]);
        let digests = diff_ids(&theirs);
        assert_eq!(diff_ids(&ours), digests, "{driver}: {name}");
        assert_eq!((digests.len(), &digests[..wanted.len()]), (layers, &wanted[..]), "{driver}: {name}");
    }
    assert_same_records(&engines);
    support::check_clean(&store);

    // A store of the same image by the engine alone shows the same tree.
    let twin = TestStore::new(driver);
    let alone = Engines::new(&twin, Privilege::Root);
    alone.skopeo_copy(&format!("oci:{}:app", source.display()), &alone.reference("localhost/app:1"));
    let top = |engines: &Engines<'_>| {
        json(&engines.peer(&["image", "-j", "localhost/app:1"]))[0]["layer"].as_str().unwrap().to_owned()
    };
    let (mine, other) = (top(&engines), top(&alone));
    assert_eq!(tree(engines.ours(&["mount", &mine])), tree(alone.peer(&["mount", &other])));
    engines.ours(&["unmount", &mine]);
    alone.peer(&["unmount", &other]);

    engines.podman(&["rmi", "--all", "--force"]);
    assert_eq!(ids(&json(&engines.ours(&["layers", "-j"]))), Vec::<String>::new());
    engines.assert_nothing_mounted();
}

#[test]
fn root_peer_engines_run_what_we_load_on_overlay() {
    engines_run_what_we_load("overlay", "root_peer_engines_run_what_we_load_on_overlay");
}

#[test]
fn root_peer_engines_run_what_we_load_on_vfs() {
    engines_run_what_we_load("vfs", "root_peer_engines_run_what_we_load_on_vfs");
}

/// Peers mount their home on itself when they open it, over whatever is mounted below.
#[test]
fn root_peer_a_mount_of_ours_stays_reachable_when_peers_open_the_store() {
    let name = "root_peer_a_mount_of_ours_stays_reachable_when_peers_open_the_store";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let engines = Engines::new(&store, Privilege::Root);
    let layer = engines.ours(&["create-layer"]);
    let path = engines.ours(&["mount", &layer]);
    let file = Path::new(&path).join("file");
    std::fs::write(&file, "x").unwrap();
    engines.peer(&["layers"]);
    engines.podman(&["images"]);
    // buildah gives the home up again when it ends, unless something is mounted.
    engines.buildah(&["images"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
    assert_eq!(engines.peer(&["mount", &layer]), path);
    engines.ours(&["unmount", &layer]);
    assert!(file.exists(), "it is still mounted once");
    engines.ours(&["unmount", &layer]);
    assert!(!file.exists());
    // The last one to unmount leaves nothing that hinders removing the store.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&store.path("root").display().to_string()), "{mounts}");
    // Without the mount of the home, as the operator wants it.
    let plain = ["--storage-opt", "overlay.skip_mount_home=true", "mount", &layer];
    let path = engines.ours(&plain);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = store.path("root").display().to_string();
    assert_eq!(mounts.lines().filter(|line| line.contains(&root)).count(), 1, "{mounts}");
    assert!(Path::new(&path).join("file").exists());
    engines.ours(&["--storage-opt", "overlay.skip_mount_home=true", "unmount", &layer]);
    engines.assert_nothing_mounted();
}

/// A store that is only read, below a store of each tool: images of the one are containers of the other.
#[test]
fn root_peer_an_additional_image_store_is_shared_with_podman() {
    let name = "root_peer_an_additional_image_store_is_shared_with_podman";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let lower = TestStore::new("overlay");
    let engines = Engines::new(&lower, Privilege::Root);
    engines.script(BASE);
    engines.script(APP);
    engines.ours(&["shutdown"]);
    let root = lower.path("root").display().to_string();
    support::run(std::process::Command::new("mount").args(["--bind", "-o", "ro", &root, &root]));
    let store = TestStore::new("overlay");
    let engines = Engines::new(&store, Privilege::Root).option(format!("overlay.imagestore={root}"));
    let said = engines.podman_run(&["--name", "writer", "localhost/app:1", "sh", "-c", "cat /opq/new; echo x >/x"]);
    assert_eq!(said, "new");
    assert_same_records(&engines);
    let layer = json(&engines.ours(&["container", "-j", "writer"]))[0]["layer"].as_str().unwrap().to_owned();
    assert!(engines.ours(&["changes", &layer]).lines().any(|line| line == "Add \"/x\""));
    engines.ours(&["create-container", "-n", "box", "localhost/app:1"]);
    let path = engines.ours(&["mount", "box"]);
    assert_eq!(std::fs::read_to_string(Path::new(&path).join("opq/new")).unwrap(), "new\n");
    engines.peer(&["unmount", "box"]);
    engines.podman(&["rm", "writer"]);
    engines.ours(&["delete-container", "box"]);
    assert_eq!(ids(&json(&engines.peer(&["containers", "-j"]))), Vec::<String>::new());
    engines.assert_nothing_mounted();
}
