//! One store, two implementations: what we write the packaged tools read, what they write we read, also at the same time.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::process::Command;

use graph_store::{
    Container, CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, Expected, Image, Layer,
    MountOptions, Store, json,
};
use support::{DRIVERS, Place, gzip, has_program, isolated, three_layers, tree};

fn ready(program: &str) -> bool {
    isolated() && has_program(program)
}

fn import(store: &Store, parent: Option<String>, blob: &[u8]) -> String {
    let options = CreateLayer { parent, ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap().layer.id.clone()
}

fn diff(store: &Store, layer: &str) -> Vec<u8> {
    let mut out = Vec::new();
    store.diff(None, layer, &mut out, &DiffOptions { compression: Some(DiffCompression::None) }).unwrap();
    out
}

fn text<T: serde::Serialize>(records: &[T]) -> String {
    String::from_utf8(json::to_vec(records).unwrap()).unwrap()
}

#[test]
fn peer_reads_what_we_write() {
    if !ready("containers-storage") {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let blobs = three_layers();
        let mut ids: Vec<String> = Vec::new();
        for blob in &blobs {
            ids.push(import(&store, ids.last().cloned(), &gzip(blob)));
        }
        let image = CreateImage {
            names: vec!["localhost/ours:1".to_owned()],
            layer: ids.last().cloned(),
            big_data: vec![("manifest".to_owned(), b"{}".to_vec())],
            ..CreateImage::default()
        };
        let image = store.create_image(&image).unwrap();
        let container = CreateContainer {
            image: Some(image.id.clone()),
            names: vec!["box".to_owned()],
            ..CreateContainer::default()
        };
        let container = store.create_container(&container).unwrap();

        // Their listing of our records is our encoding of them.
        let layers: Vec<Layer> = store.layers().unwrap().iter().map(|layer| Layer::clone(layer)).collect();
        assert_eq!(place.peer(&["layers", "-j"]), text(&layers));
        let images: Vec<Image> = store.images().unwrap().iter().map(|image| Image::clone(image)).collect();
        assert_eq!(place.peer(&["images", "-j"]), text(&images));
        let containers: Vec<Container> = store.containers().unwrap().iter().map(|c| Container::clone(c)).collect();
        assert_eq!(place.peer(&["containers", "-j"]), text(&containers));
        assert_eq!(place.peer(&["get-image-data", "localhost/ours:1", "manifest"]), "{}");
        for (id, blob) in ids.iter().zip(&blobs) {
            assert!(place.peer_bytes(&["diff", "-u", id]) == *blob, "{driver}: their diff of our layer {id}");
        }

        // Counts go on across the two.
        let path = store.mount("box", &MountOptions::default()).unwrap();
        let ours = tree(&path);
        std::fs::write(path.join("written"), "1").unwrap();
        assert_eq!(place.peer(&["mount", "box"]), path.to_str().unwrap());
        assert_eq!(store.mounted("box").unwrap(), 2);
        assert_eq!(place.peer(&["unmount", "box"]), "", "still mounted");
        assert!(store.unmount("box", false).unwrap());
        let path = place.peer(&["mount", "box"]);
        std::fs::remove_file(format!("{path}/written")).unwrap();
        assert_eq!(tree(path.as_ref()), ours);
        assert_eq!(place.peer(&["changes", &container.layer]), "");
        assert!(store.unmount(&container.id, false).unwrap(), "what they mounted, we unmount");

        // A layer of theirs on ours, and all of it deleted by them.
        let theirs = place.peer(&["create-layer", "-n", "theirs", &ids[2]]);
        assert_eq!(store.layer("theirs").unwrap().id, theirs.lines().next().unwrap());
        place.peer(&["delete-layer", "theirs"]);
        place.peer(&["delete-container", "box"]);
        place.peer(&["delete-image", "localhost/ours:1"]);
        assert!(store.layers().unwrap().is_empty(), "{driver}");
        place.assert_no_leftovers(&store);
    }
}

#[test]
fn podman_shares_the_store() {
    if !ready("podman") {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let [base, ..] = three_layers();
        let tar = place.dir.path().join("base.tar");
        std::fs::write(&tar, &base).unwrap();
        let podman = |words: &[&str]| {
            let output = Command::new("podman")
                .arg("--root")
                .arg(place.root())
                .arg("--runroot")
                .arg(place.run())
                .args(["--storage-driver", driver, "--cgroup-manager=cgroupfs", "--events-backend=file"])
                .args(words)
                .output()
                .unwrap();
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        podman(&["import", "-q", tar.to_str().unwrap(), "localhost/base:1"]);
        let id = podman(&["create", "--name", "box", "localhost/base:1", "true"]);
        let store = place.open();
        let image = store.image("localhost/base:1").unwrap();
        assert_eq!(image.layer, store.layers().unwrap()[0].id);
        assert!(diff(&store, &image.layer) == base);
        let container = store.container("box").unwrap();
        assert_eq!((container.id.as_str(), container.image.as_str()), (id.as_str(), image.id.as_str()));
        let path = store.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "one\n");
        store.unmount("box", false).unwrap();
        // Another layer of ours under an image that they then see and delete.
        let layer = import(&store, Some(image.layer.clone()), &three_layers()[1]);
        let mine = CreateLayer { parent: Some(layer.clone()), ..CreateLayer::default() };
        let mine = store.create_layer(&mine).unwrap().id.clone();
        podman(&["rm", "box"]);
        store.delete_layer(&mine).unwrap();
        store.delete_layer(&layer).unwrap();
        podman(&["rmi", "localhost/base:1"]);
        assert!(store.layers().unwrap().is_empty());
        place.assert_no_leftovers(&store);
    }
}

/// Run by `both_write_at_the_same_time` as a process of its own.
#[test]
fn worker() {
    let Ok(root) = std::env::var("GRAPH_STORE_TEST_ROOT") else {
        eprintln!("skipped: worker: it is a part of both_write_at_the_same_time, which runs it");
        return;
    };
    let driver = DRIVERS.into_iter().find(|driver| root.ends_with(driver)).unwrap();
    let registry = graph_drivers::registry().unwrap();
    let options = graph_store::StoreOptions {
        root: format!("{root}/root").into(),
        run_root: format!("{root}/run").into(),
        driver: Some(driver.to_owned()),
        ..graph_store::StoreOptions::default()
    };
    let store = Store::open(options, &registry).unwrap();
    let [base, middle, _] = three_layers();
    for n in 0..10 {
        let lower = import(&store, None, &base);
        let upper = import(&store, Some(lower.clone()), &middle);
        store.mount(&upper, &MountOptions::default()).unwrap();
        assert!(store.unmount(&upper, false).unwrap());
        assert!(diff(&store, &upper) == middle);
        if n % 2 == 0 {
            store.delete_layer(&upper).unwrap();
            store.delete_layer(&lower).unwrap();
        }
    }
}

#[test]
fn both_write_at_the_same_time() {
    if !ready("containers-storage") {
        return;
    }
    for driver in DRIVERS {
        let outer = tempfile::tempdir().unwrap();
        // The worker tells the driver by the name of its directory.
        let dir = tempfile::Builder::new().suffix(driver).tempdir_in(outer.path()).unwrap();
        let place = Place { dir, driver };
        place.open().shutdown(true).unwrap();
        place.peer(&["layers"]);
        let workers: Vec<_> = (0..2)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "worker", "--nocapture"])
                    .env("GRAPH_STORE_TEST_ROOT", place.dir.path())
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let mut theirs = Vec::new();
        for n in 0..20 {
            let name = format!("peer{n}");
            let id = place.peer(&["create-layer", "-n", &name]);
            if n % 2 == 0 {
                place.peer(&["delete-layer", &name]);
            } else {
                theirs.push(id.lines().next().unwrap().to_owned());
            }
        }
        for worker in workers {
            let output = worker.wait_with_output().unwrap();
            assert!(output.status.success(), "{driver}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let store = place.open();
        let layers = store.layers().unwrap();
        assert_eq!(layers.len(), theirs.len() + 2 * 10, "{driver}: nothing lost, nothing left");
        assert!(theirs.iter().all(|id| layers.iter().any(|layer| layer.id == *id)));
        place.assert_no_leftovers(&store);
    }
}
