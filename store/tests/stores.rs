//! Additional read-only stores, volatile and transient containers, and the state of several processes.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::sync::{Arc, Mutex};

use graph_core::lockfile::{LockFile, Wait};
use graph_sys::lock::LockKind;

use graph_store::{CreateContainer, CreateImage, CreateLayer, ErrorKind, Expected, MountOptions, Store, StoreOptions};
use support::{DRIVERS, Place, isolated, three_layers};

#[test]
fn images_of_an_additional_store_can_be_used_but_not_changed() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let below = Place::new(driver);
        let lower = below.open();
        let [base, ..] = three_layers();
        let options = CreateLayer { names: vec!["lower".to_owned()], ..CreateLayer::default() };
        let layer = lower.import_layer(&options, &Expected::default(), &mut &*base).unwrap().layer;
        let options = CreateImage {
            names: vec!["localhost/lower:1".to_owned()],
            layer: Some(layer.id.clone()),
            big_data: vec![("manifest".to_owned(), b"{}".to_vec())],
            ..CreateImage::default()
        };
        let image = lower.create_image(&options).unwrap();
        lower.shutdown(false).unwrap();
        let before = (
            below.json("layers"),
            below.json("images"),
            std::fs::read(below.root().join(format!("{driver}-layers/layers.lock"))).unwrap(),
        );

        let place = Place::new(driver);
        let options = StoreOptions {
            driver_options: vec![format!("{driver}.imagestore={}", below.root().display())],
            ..place.options()
        };
        let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
        assert!(store.layer("lower").unwrap().is_read_only());
        assert!(store.image("localhost/lower:1").unwrap().is_read_only());
        assert_eq!(store.image_big_data("localhost/lower:1", "manifest").unwrap(), b"{}");
        assert_eq!(store.layers_by_uncompressed_digest(&layer.diff_digest).unwrap().len(), 1);
        let mut out = Vec::new();
        store.diff(None, "lower", &mut out, &graph_store::DiffOptions::default()).unwrap();
        assert!(out == base, "{driver}");

        let options = CreateContainer {
            image: Some(image.id.clone()),
            names: vec!["box".to_owned()],
            ..CreateContainer::default()
        };
        let container = store.create_container(&options).unwrap();
        let path = store.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "one\n");
        std::fs::write(path.join("new"), "x").unwrap();
        assert_eq!(store.changes(None, &container.layer).unwrap().len(), 1);
        store.unmount("box", false).unwrap();
        for error in [
            store.delete_layer("lower").unwrap_err(),
            store.delete_image("localhost/lower:1", true).unwrap_err(),
            store.set_layer_big_data("lower", "k", b"").unwrap_err(),
            store.apply_diff("lower", &Expected::default(), &mut &*base).unwrap_err(),
            store.mount("lower", &MountOptions::default()).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::ReadOnlyStore, "{driver}: {error}");
        }
        store.delete_container("box").unwrap();
        assert_eq!(store.layers().unwrap().len(), 1);
        let after = (
            below.json("layers"),
            below.json("images"),
            std::fs::read(below.root().join(format!("{driver}-layers/layers.lock"))).unwrap(),
        );
        assert_eq!(after, before, "{driver}: the additional store was not written");
    }
}

#[test]
fn volatile_and_transient_containers_have_files_of_their_own() {
    if !isolated() {
        return;
    }
    for (driver, transient) in DRIVERS.into_iter().flat_map(|driver| [(driver, false), (driver, true)]) {
        let place = Place::new(driver);
        let options = StoreOptions { transient, ..place.options() };
        let store = Store::open(options.clone(), &graph_drivers::registry().unwrap()).unwrap();
        let options_of_container =
            CreateContainer { volatile: !transient, names: vec!["box".to_owned()], ..CreateContainer::default() };
        let container = store.create_container(&options_of_container).unwrap();
        assert!(container.is_volatile());
        let home = if transient { place.run() } else { place.root() };
        let read =
            |kind: &str| std::fs::read_to_string(home.join(format!("{driver}-{kind}/volatile-{kind}.json"))).unwrap();
        assert!(read("containers").contains(&container.id) && read("layers").contains(&container.layer));
        assert!(!place.json("containers").contains(&container.id) && !place.json("layers").contains(&container.layer));
        assert!(home.join(format!("{driver}-containers/containers.lock")).exists());
        let path = store.mount("box", &MountOptions::default()).unwrap();
        std::fs::write(path.join("kept"), "1").unwrap();
        store.unmount("box", false).unwrap();
        let again = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
        let path = again.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("kept")).unwrap(), "1");
        again.delete_container("box").unwrap();
        assert_eq!((read("containers"), read("layers")), ("[]".to_owned(), "[]".to_owned()));
        place.assert_no_leftovers(&again);
    }
}

#[test]
fn whoever_waits_for_a_lock_is_told_who_holds_it() {
    if !isolated() {
        return;
    }
    let place = Place::new("vfs");
    place.open().create_layer(&CreateLayer::default()).unwrap();
    // A peer holds this one for as long as it writes a diff; that keeps nobody from opening the store.
    let storage = LockFile::new(place.root().join("storage.lock"));
    let held = storage.lock(LockKind::Exclusive, Wait::Fail).unwrap();
    drop(place.open());
    drop(held);

    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let options = StoreOptions {
        on_lock_wait: Some(Arc::new(move |busy| telling.lock().unwrap().push(busy.to_string()))),
        ..place.options()
    };
    let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
    let path = place.root().join("vfs-layers/layers.lock");
    let (locked, wait_for_lock) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        let lock = LockFile::new(path);
        let _held = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
        locked.send(()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1600));
    });
    wait_for_lock.recv().unwrap();
    assert_eq!(store.layers().unwrap().len(), 1);
    holder.join().unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("layers.lock") && told[0].contains(&std::process::id().to_string()), "{told:?}");
}
