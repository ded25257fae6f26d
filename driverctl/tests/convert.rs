//! `convert`: engines go on with a store that got another driver.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::engines::{APP, BASE, Engines, Privilege, assert_same_records, tools};
use support::{TestStore, both, in_own_mount_namespace};

/// The same store with another driver.
fn with_driver(mut store: TestStore, driver: &'static str) -> TestStore {
    store.driver = driver;
    store
}

fn goes_over(from: &'static str, to: &'static str, name: &str) {
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new(from);
    let engines = Engines::new(&store, Privilege::Root);
    engines.script(BASE);
    engines.script(APP);
    store.ok(&["create-container", "--name", "box", "localhost/app:1"]);
    let at = store.ok(&["mount", "box"]);
    assert!(store.fails(&["convert", "--to", to]).contains(" is mounted at "), "{from}");
    fs::write(Path::new(at.trim()).join("written"), "by us").unwrap();
    fs::remove_file(Path::new(at.trim()).join("etc/passwd")).unwrap();
    store.ok(&["unmount", "box"]);
    assert!(store.fails(&["convert", "--to", from]).contains("has the driver"), "{from}");
    let images = store.ok(&["images"]);
    let changes = store.ok(&["changes", "box"]);
    drop(engines);
    // Podman's own database names the old driver; what it knows of containers goes with it.
    drop(fs::remove_dir_all(store.path("root/libpod")));

    let said = store.ok(&["convert", "--to", to, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["from"].as_str(), said["to"].as_str()), (Some(from), Some(to)));
    assert_eq!(said["containers"], 1);
    let old = store.path(&format!("root/converted-from-{from}"));
    assert_eq!(said["old"].as_str(), old.to_str());
    let refused = store.command(&["layers"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(both(&refused).contains(&format!("the store was converted from {from}")), "{}", both(&refused));

    let store = with_driver(store, to);
    assert_eq!(store.ok(&["images"]), images);
    assert_eq!(store.ok(&["changes", "box"]), changes);
    let engines = Engines::new(&store, Privilege::Root);
    assert_same_records(&engines);
    let said = engines.podman_run(&["--rm", "localhost/app:1", "sh", "-c", "cat /etc/conf2.d/hard /opq/*; ls /opq"]);
    assert_eq!(said, "one\nnew\nnew", "{from} to {to}");
    let at = engines.peer(&["mount", "box"]);
    assert_eq!(fs::read_to_string(Path::new(at.trim()).join("written")).unwrap(), "by us");
    assert!(!Path::new(at.trim()).join("etc/passwd").exists());
    engines.peer(&["unmount", "box"]);
    // The old one is a store, too, until somebody removes it.
    let layers = Command::new(support::DRIVERCTL)
        .arg("--graph")
        .arg(&old)
        .arg("--run")
        .arg(store.path("old-run"))
        .args(["-s", from, "images"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&layers.stdout), images);
}

#[test]
fn root_peer_podman_runs_what_was_converted_to_vfs() {
    goes_over("overlay", "vfs", "root_peer_podman_runs_what_was_converted_to_vfs");
}

#[test]
fn root_peer_podman_runs_what_was_converted_to_overlay() {
    goes_over("vfs", "overlay", "root_peer_podman_runs_what_was_converted_to_overlay");
}

#[test]
fn root_killed_conversions_are_repeated_with_the_same_words() {
    let name = "root_killed_conversions_are_repeated_with_the_same_words";
    if !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    store.in_memory();
    let tar = store.path("layer.tar");
    support::many_files_tar(&tar, 60, 20);
    let tar = tar.display().to_string();
    let base = store.ok(&["import-layer", "-f", &tar]).trim().to_owned();
    let top = store.ok(&["import-layer", "-f", &tar, &base]).trim().to_owned();
    let image = store.ok(&["create-image", "--name", "app", &top]);
    let mut killed = 0;
    let mut step = 1;
    let done = loop {
        let mut child = store
            .command(&["convert", "--to", "vfs"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(10 * step));
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            child.kill().unwrap();
            killed += 1;
        }
        let out = child.wait_with_output().unwrap();
        if ended {
            break out;
        }
        step += 1;
    };
    assert!(done.status.success(), "{}", both(&done));
    assert!(both(&done).starts_with("converted from overlay to vfs"), "{}", both(&done));
    assert!(killed > 0, "it was too quick to be killed");
    let store = with_driver(store, "vfs");
    assert_eq!(store.ok(&["images"]).lines().next(), image.lines().next());
    let out = store.path("again.tar");
    store.ok(&["diff", "-u", "-f", &out.display().to_string(), &top]);
    assert!(fs::read(&out).unwrap() == fs::read(&tar).unwrap(), "the layer's very bytes");
    assert!(!store.path("root/converting-to-vfs").exists());
}
