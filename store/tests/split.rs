//! Stores that are split over several directories: a separate image store, additional read-only stores.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::path::{Path, PathBuf};

use graph_store::{
    CreateContainer, CreateImage, CreateLayer, DiffOptions, ErrorKind, Expected, MountOptions, Store, StoreOptions,
};
use support::{DRIVERS, Place, isolated, three_layers};

fn open(options: StoreOptions) -> Store {
    let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
    assert_eq!(store.warnings(), [] as [String; 0]);
    store
}

fn json(root: &Path, driver: &str, kind: &str) -> String {
    std::fs::read_to_string(root.join(format!("{driver}-{kind}/{kind}.json"))).unwrap_or_default()
}

fn layer_dir(root: &Path, driver: &str, id: &str) -> PathBuf {
    if driver == "vfs" { root.join("vfs/dir").join(id) } else { root.join(driver).join(id) }
}

/// Every file below a directory, with its contents.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                pending.push(path.clone());
            }
            all.push((path.clone(), kind.is_file().then(|| std::fs::read(&path).unwrap())));
        }
    }
    all.sort();
    all
}

#[test]
fn images_and_read_only_layers_go_to_the_image_store_and_the_rest_to_the_graph_root() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::in_memory(driver);
        let images = place.dir.path().join("images");
        let split = StoreOptions { image_store: Some(images.clone()), ..place.options() };
        let [base, mid, ..] = three_layers();

        // What is there before the store is split stays where it is.
        let before = place.open();
        let old_layer = before.create_layer(&CreateLayer::default()).unwrap();
        let names = |name: &str| vec![name.to_owned()];
        let old_image =
            CreateImage { names: names("old"), layer: Some(old_layer.id.clone()), ..CreateImage::default() };
        let old_image = before.create_image(&old_image).unwrap();
        drop(before);

        let store = open(split.clone());
        let import = |parent: Option<&str>, blob: &[u8], read_write| {
            let options = CreateLayer { parent: parent.map(str::to_owned), read_write, ..CreateLayer::default() };
            store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap().layer
        };
        let lower = import(None, &base, false);
        let upper = import(Some(&lower.id), &mid, true);
        let options = CreateImage {
            names: names("new"),
            layer: Some(lower.id.clone()),
            big_data: vec![("manifest".to_owned(), b"{}".to_vec())],
            ..CreateImage::default()
        };
        let image = store.create_image(&options).unwrap();
        let options =
            CreateContainer { image: Some("new".to_owned()), names: names("box"), ..CreateContainer::default() };
        let container = store.create_container(&options).unwrap();
        store.set_layer_big_data(&lower.id, "key", b"value").unwrap();

        let (root, id) = (place.root(), |text: &str, id: &str| text.contains(&format!("\"id\":\"{id}\"")));
        let holds = |root: &Path, layer: &str| {
            let recorded = id(&json(root, driver, "layers"), layer);
            assert_eq!(recorded, layer_dir(root, driver, layer).exists(), "{driver}: {layer} in {root:?}");
            recorded
        };
        assert!(holds(&images, &lower.id) && !holds(&root, &lower.id), "{driver}: a read-only layer");
        for layer in [&upper.id, &container.layer, &old_layer.id] {
            assert!(holds(&root, layer) && !holds(&images, layer), "{driver}: a read-write layer");
        }
        assert!(id(&json(&images, driver, "images"), &image.id) && !id(&json(&root, driver, "images"), &image.id));
        assert!(id(&json(&root, driver, "containers"), &container.id));
        // As the peers have it: what belongs to layers' records lies below the graph root.
        assert!(root.join(format!("{driver}-layers/{}.tar-split.gz", lower.id)).exists());
        assert!(root.join(format!("{driver}-layers/{}/key", lower.id)).exists());
        assert_eq!(images.join("overlay/l").is_dir(), driver == "overlay");

        // Everything can be used, whichever directory it is in.
        let path = store.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "one\n");
        std::fs::write(path.join("new"), "x").unwrap();
        store.unmount("box", false).unwrap();
        assert_eq!(store.changes(None, &container.layer).unwrap().len(), 1);
        for (layer, blob) in [(&lower, &base), (&upper, &mid)] {
            let mut out = Vec::new();
            store.diff(None, &layer.id, &mut out, &DiffOptions::default()).unwrap();
            assert!(out == *blob, "{driver}: the diff of {}", layer.id);
        }

        // The graph root's own images stay visible, can be changed, and names are one for both.
        assert!(!store.image("old").unwrap().is_read_only());
        assert_eq!(store.images().unwrap().len(), 2);
        let error = store.create_image(&CreateImage { names: names("old"), ..CreateImage::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NameInUse);
        store.set_image_big_data("old", "manifest", b"old").unwrap();
        store.set_metadata("old", "text").unwrap();
        store.add_names("old", &names("new")).unwrap();
        assert_eq!(store.image("new").unwrap().id, old_image.id);
        assert!(store.names(&image.id).unwrap().is_empty());
        store.add_names(&image.id, &names("new")).unwrap();
        assert_eq!(store.names("old").unwrap(), ["old"]);
        assert!(json(&root, driver, "images").contains("\"metadata\":\"text\""));
        assert_eq!(store.delete_image("old", true).unwrap(), [old_layer.id.as_str()]);
        assert_eq!(json(&root, driver, "images"), "[]");
        assert!(!layer_dir(&root, driver, &old_layer.id).exists());

        // Another image store hides the image; the image store is a store of its own.
        let elsewhere = StoreOptions { image_store: Some(place.dir.path().join("others")), ..place.options() };
        assert_eq!(open(elsewhere).image("new").unwrap_err().kind(), ErrorKind::ImageNotKnown);
        let alone = StoreOptions { root: images.clone(), run_root: place.dir.path().join("run2"), ..place.options() };
        let alone = open(alone);
        let path = alone.mount(&lower.id, &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "one\n");
        alone.unmount(&lower.id, false).unwrap();
        // And what is written there is seen here at once.
        alone.set_names(&lower.id, &names("lower")).unwrap();
        assert_eq!(store.layer("lower").unwrap().id, lower.id);
        store.set_names(&lower.id, &names("below")).unwrap();
        assert_eq!(alone.layer("below").unwrap().id, lower.id);
        alone.shutdown(false).unwrap();

        store.delete_container("box").unwrap();
        store.delete_layer(&upper.id).unwrap();
        assert_eq!(store.delete_image("new", true).unwrap(), [lower.id.as_str()]);
        for root in [&root, &images] {
            for kind in ["layers", "images"] {
                assert_eq!(json(root, driver, kind), "[]", "{driver}: {kind} in {root:?}");
            }
            let left: Vec<_> = snapshot(&root.join(format!("{driver}-images"))).into_iter().collect();
            assert_eq!(left.len(), 2, "{driver}: {left:?}");
        }
        assert!(store.driver().list_layers().unwrap().is_empty(), "{driver}");
        place.assert_no_leftovers(&store);
    }
}

#[test]
fn nothing_is_made_in_an_additional_store_and_its_images_can_be_renamed_in_a_copy() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let below = Place::in_memory(driver);
        let lower = below.open();
        let [base, ..] = three_layers();
        let layer = lower.import_layer(&CreateLayer::default(), &Expected::default(), &mut &*base).unwrap().layer;
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let options = CreateImage {
            names: names(&["one", "two", "shared"]),
            layer: Some(layer.id.clone()),
            metadata: "text".to_owned(),
            big_data: vec![("manifest".to_owned(), b"{}".to_vec()), ("sha256:x".to_owned(), vec![0, 255])],
            ..CreateImage::default()
        };
        let image = lower.create_image(&options).unwrap();
        lower.shutdown(false).unwrap();
        drop(lower);
        // A store that was copied or unpacked has no lock files.
        for kind in ["layers", "images"] {
            std::fs::remove_file(below.root().join(format!("{driver}-{kind}/{kind}.lock"))).unwrap();
        }
        let before = snapshot(&below.root());

        let place = Place::in_memory(driver);
        let options =
            StoreOptions { driver_options: vec![format!(".imagestore={}", below.root().display())], ..place.options() };
        let store = open(options.clone());
        let own = store.create_image(&CreateImage { names: names(&["shared"]), ..CreateImage::default() }).unwrap();
        assert!(store.image("one").unwrap().is_read_only());
        let on_top = CreateLayer { parent: Some(layer.id.clone()), ..CreateLayer::default() };
        let on_top = store.create_layer(&on_top).unwrap();
        let directly = CreateImage { layer: Some(layer.id.clone()), ..CreateImage::default() };
        let directly = store.create_image(&directly).unwrap();

        // Removing a name makes a copy of the record, which hides the original.
        assert_eq!(store.remove_names("one", &names(&["two"])).unwrap(), names(&["one"]));
        assert_eq!(store.image("two").unwrap_err().kind(), ErrorKind::ImageNotKnown, "{driver}");
        let copy = store.image("one").unwrap();
        assert!(!copy.is_read_only() && copy.id == image.id && copy.layer == layer.id && copy.metadata == "text");
        assert_eq!(copy.created, image.created);
        assert_eq!(store.image_big_data("one", "sha256:x").unwrap(), [0, 255]);
        assert_eq!(store.image("shared").unwrap().id, own.id, "{driver}: an own image keeps its name");
        assert_eq!(store.images().unwrap().len(), 3);
        store.set_image_big_data("one", "more", b"1").unwrap();
        assert_eq!(store.add_names("one", &names(&["three", "shared"])).unwrap(), names(&["three", "shared", "one"]));
        assert!(store.names(&own.id).unwrap().is_empty());
        // Deleting the copy shows the original again.
        assert!(store.delete_image("three", true).unwrap().is_empty());
        assert!(store.image("two").unwrap().is_read_only());

        // Making an image of that id copies it, too.
        let again = CreateImage {
            id: Some(image.id.clone()),
            names: names(&["again"]),
            layer: Some(layer.id.clone()),
            big_data: vec![("manifest".to_owned(), b"new".to_vec())],
            ..CreateImage::default()
        };
        let again = store.create_image(&again).unwrap();
        assert_eq!(again.names, names(&["one", "two", "shared", "again"]));
        assert_eq!(again.metadata, "text");
        assert_eq!(store.image_big_data("again", "manifest").unwrap(), b"new");
        assert_eq!(store.image_big_data("again", "sha256:x").unwrap(), [0, 255]);
        store.delete_image("again", true).unwrap();

        store.delete_image(&directly.id, true).unwrap();
        store.delete_image(&own.id, true).unwrap();
        store.delete_layer(&on_top.id).unwrap();
        assert_eq!(snapshot(&below.root()), before, "{driver}: the additional store was not touched");
        assert!(store.driver().list_layers().unwrap().is_empty());
        assert_eq!(place.json("layers"), "[]");
    }
}
