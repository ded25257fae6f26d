//! The packaged containers-storage writes records; reading and writing them again must give its very bytes.

#![allow(clippy::disallowed_methods, reason = "tests set their scene by path")]

use std::path::Path;
use std::process::Command;

use crate::json::{Slot, parse_array, write_array};
use crate::records::{Container, Image, Layer};
use crate::table::Record;

fn peer(root: &Path, words: &[&str]) -> String {
    let output = Command::new("containers-storage")
        .args([
            "--graph",
            root.join("root").to_str().unwrap(),
            "--run",
            root.join("run").to_str().unwrap(),
            "-s",
            "vfs",
        ])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().next().unwrap_or_default().to_owned()
}

/// Every record re-encoded, not copied.
fn rewrite<T: Record>(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let mut slots: Vec<Slot<T>> = parse_array(bytes.clone()).unwrap();
    assert_eq!(write_array(&slots).unwrap(), bytes);
    for slot in &mut slots {
        slot.change();
    }
    let written = String::from_utf8(write_array(&slots).unwrap()).unwrap();
    assert_eq!(written, String::from_utf8(bytes).unwrap(), "{}", path.display());
    slots.len()
}

#[test]
fn peer_records_round_trip() {
    if Command::new("containers-storage").arg("version").output().is_err() {
        eprintln!("skipped: there is no containers-storage here (Debian package containers-storage)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let tar = root.join("layer.tar");
    std::fs::write(root.join("file"), "hello").unwrap();
    let made = Command::new("tar").args(["-cf", tar.to_str().unwrap(), "-C", root.to_str().unwrap(), "file"]).status();
    assert!(made.unwrap().success());
    let data = root.join("file");
    let (tar, data) = (tar.to_str().unwrap(), data.to_str().unwrap());

    let base = peer(root, &["import-layer", "-f", tar, "-n", "base <&> \u{2028}é\u{7f}"]);
    peer(root, &["set-layer-data", "-f", data, &base, "some Key"]);
    let mapped =
        ["create-layer", "--uidmap", "0:100000:65536:70000:1:1", "--gidmap", "0:200000:65536", "-l", "label", &base];
    peer(root, &mapped);
    peer(root, &["set-metadata", "-m", r#"{"a":"<b>","c":[1,2.50]}"#, &base]);
    let image = peer(root, &["create-image", "-n", "localhost/x:1", "-m", "tab\tand \"quotes\"", &base]);
    for key in ["manifest", "zz", "sha256:abc", "aa"] {
        peer(root, &["set-image-data", "-f", data, &image, key]);
    }
    peer(root, &["add-names", "-n", "localhost/y:1", &image]);
    let container = peer(root, &["create-container", "-n", "box", "-m", "{}", &image]);
    peer(root, &["set-container-data", "-f", data, &container, "big-item-1"]);

    assert_eq!(rewrite::<Layer>(&root.join("root/vfs-layers/layers.json")), 3);
    assert_eq!(rewrite::<Image>(&root.join("root/vfs-images/images.json")), 1);
    assert_eq!(rewrite::<Container>(&root.join("root/vfs-containers/containers.json")), 1);
}

#[test]
fn every_field_is_written_where_containers_storage_writes_it() {
    // All fields of containers/storage's structs, in their order, with values that are not left out.
    let layer = r#"[{"id":"a","names":["n"],"parent":"p","metadata":"m","mountlabel":"l","created":"2026-11-21T06:52:14.114090173Z","compressed-diff-digest":"sha256:1","compressed-size":1,"diff-digest":"sha256:2","toc-digest":"sha256:3","diff-size":-1,"compression":4,"uidset":[0,4294967295],"gidset":[0],"flags":{"a":[1],"incomplete":true},"uidmap":[{"container_id":0,"host_id":100000,"size":65536}],"gidmap":[{"container_id":0,"host_id":1,"size":1}],"big-data-names":["k"]}]"#;
    let image = r#"[{"id":"a","digest":"sha256:1","names":["n"],"names-history":["n","o"],"layer":"l","mapped-layers":["q"],"metadata":"m","big-data-names":["b","a"],"big-data-sizes":{"a":0,"b":2},"big-data-digests":{"a":"sha256:1","b":"sha256:2"},"created":"1970-01-01T00:00:00Z","flags":{"x":null}}]"#;
    let container = r#"[{"id":"a","names":["n"],"image":"","layer":"","metadata":"m","big-data-names":["b"],"big-data-sizes":{"b":2},"big-data-digests":{"b":"sha256:2"},"created":"0001-01-01T00:00:00Z","uidmap":[{"container_id":0,"host_id":1,"size":1}],"gidmap":[{"container_id":0,"host_id":1,"size":1}],"flags":{"MountLabel":"","MountOpts":["nodev"],"ProcessLabel":"","Volatile":true}}]"#;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.json");
    std::fs::write(&path, layer).unwrap();
    rewrite::<Layer>(&path);
    std::fs::write(&path, image).unwrap();
    rewrite::<Image>(&path);
    std::fs::write(&path, container).unwrap();
    rewrite::<Container>(&path);
}
