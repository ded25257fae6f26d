//! What the drivers' differences are needed for: a container's life, and a store that the peer made.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use graph_archive::changes::ChangeKind;
use graph_store::{
    CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, ErrorKind, Expected, Layer, MountOptions,
    Store, json,
};
use support::{DRIVERS, Place, gzip, has_program, isolated, three_layers, tree};

fn import(store: &Store, parent: Option<&str>, blob: &[u8]) -> String {
    let options = CreateLayer { parent: parent.map(str::to_owned), ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap().layer.id.clone()
}

fn diff(store: &Store, layer: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let options = DiffOptions { compression: Some(DiffCompression::None) };
    let report = store.diff(None, layer, &mut out, &options).unwrap();
    assert_eq!(report.bytes, out.len() as u64);
    out
}

#[test]
fn a_container_has_a_life() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let [base, ..] = three_layers();
        let layer = import(&store, None, &base);
        let image = store
            .create_image(&CreateImage {
                names: vec!["localhost/app:1".to_owned()],
                layer: Some(layer.clone()),
                big_data: vec![("manifest".to_owned(), b"{\"m\":1}".to_vec()), ("sha256:x y".to_owned(), vec![0; 9])],
                ..CreateImage::default()
            })
            .unwrap();
        assert_eq!(store.image_big_data("localhost/app:1", "manifest").unwrap(), b"{\"m\":1}");
        assert_eq!(store.image_big_data(&image.id[..9], "sha256:x y").unwrap(), [0; 9]);
        assert_eq!(store.image_big_data(&image.id, "none").unwrap_err().kind(), ErrorKind::BigDataNotFound);
        assert_eq!(store.images_by_digest(&image.digest).unwrap().len(), 1);
        assert_eq!(store.image_size(&image.id).unwrap(), base.len() as u64 + 16);

        let container = store
            .create_container(&CreateContainer {
                image: Some("localhost/app:1".to_owned()),
                names: vec!["box".to_owned()],
                ..CreateContainer::default()
            })
            .unwrap();
        assert_eq!(store.container_size("box").unwrap(), 0);
        assert!(store.changes(None, &container.layer).unwrap().is_empty());
        let path = store.mount("box", &MountOptions::default()).unwrap();
        std::fs::write(path.join("dir/new"), "new").unwrap();
        std::fs::remove_file(path.join("gone")).unwrap();
        let changes = store.changes(None, &container.layer).unwrap();
        let changes: Vec<_> = changes.iter().map(|c| (c.kind, String::from_utf8_lossy(&c.path).into_owned())).collect();
        let change = |kind, path: &str| (kind, path.to_owned());
        assert_eq!(
            changes,
            [
                change(ChangeKind::Modify, "/dir"),
                change(ChangeKind::Add, "/dir/new"),
                change(ChangeKind::Delete, "/gone")
            ],
            "{driver}"
        );
        assert_eq!(store.diff_size(None, &container.layer).unwrap(), 3);
        let written = diff(&store, &container.layer);
        assert_eq!(written.len() % 512, 0);
        assert!(written.windows(8).any(|w| w == b".wh.gone"));

        // Counted across processes, or what amounts to that.
        let other = place.open();
        assert_eq!(other.mount(&container.id, &MountOptions::default()).unwrap(), path);
        assert_eq!(other.mounted("box").unwrap(), 2);
        assert!(!store.unmount("box", false).unwrap());
        assert_eq!(store.shutdown(false).unwrap_err().kind(), ErrorKind::LayerUsedByContainer);
        assert!(other.unmount("box", false).unwrap());
        assert!(store.unmount("box", false).unwrap(), "not mounted is no error");
        let path = store.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/new")).unwrap(), "new");

        let userdata = store.container_directory("box").unwrap();
        std::fs::write(userdata.join("config"), [0; 5]).unwrap();
        std::fs::write(store.container_run_directory("box").unwrap().join("state"), [0; 7]).unwrap();
        assert_eq!(store.container_size("box").unwrap(), 15);

        // What is in use stays.
        assert_eq!(store.delete_image(&image.id, true).unwrap_err().kind(), ErrorKind::ImageUsedByContainer);
        let text = |error: graph_store::Error| error.to_string();
        let (layer_id, child) = (layer.clone(), container.layer.clone());
        assert_eq!(
            text(store.delete_layer(&layer_id).unwrap_err()),
            format!("used by layer {child}: layer has children")
        );
        assert_eq!(
            text(store.delete_layer(&child).unwrap_err()),
            format!("layer {child} used by container {}: layer is in use by a container", container.id)
        );
        let on_top = CreateLayer { parent: Some(child), ..CreateLayer::default() };
        assert_eq!(store.create_layer(&on_top).unwrap_err().kind(), ErrorKind::ParentIsContainer);
        // Mounted as it is.
        store.delete_container("box").unwrap();
        assert!(!userdata.exists());
        assert_eq!(
            text(store.delete_layer(&layer_id).unwrap_err()),
            format!("layer {layer_id} used by image {}: layer is in use by an image", image.id)
        );
        assert_eq!(store.delete_image("localhost/app:1", false).unwrap(), [layer_id.as_str()]);
        assert_eq!(store.delete_image("localhost/app:1", true).unwrap(), [layer_id.as_str()]);
        assert!(store.layers().unwrap().is_empty() && store.images().unwrap().is_empty());
        assert_eq!(place.names_in(&format!("root/{driver}-images")), ["images.json", "images.lock"]);
        place.assert_no_leftovers(&store);
        store.shutdown(false).unwrap();
    }
}

#[test]
fn we_read_what_the_peer_writes() {
    if !isolated() || !has_program("containers-storage") {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let [base, middle, _] = three_layers();
        let files = [("base", base), ("middle", middle)].map(|(name, blob)| {
            let path = place.dir.path().join(name);
            std::fs::write(&path, gzip(&blob)).unwrap();
            (path.to_str().unwrap().to_owned(), blob)
        });
        let lower = place.peer(&["import-layer", "-f", &files[0].0, "-n", "lower"]);
        let lower = lower.lines().next().unwrap().to_owned();
        let upper = place.peer(&["import-layer", "-f", &files[1].0, &lower]);
        let image = place.peer(&["create-image", "-n", "localhost/theirs:1", &upper]);
        let image = image.lines().next().unwrap().to_owned();
        place.peer(&["set-image-data", "-f", &files[0].0, &image, "manifest"]);
        let container = place.peer(&["create-container", "-n", "box", &image]);
        let container = container.lines().next().unwrap().to_owned();
        let path = place.peer(&["mount", "box"]);
        std::fs::write(format!("{path}/added"), "x").unwrap();
        let theirs = tree(path.as_ref());

        let store = place.open();
        let layers: Vec<Layer> = store.layers().unwrap().iter().map(|layer| Layer::clone(layer)).collect();
        assert_eq!(place.peer(&["layers", "-j"]), String::from_utf8(json::to_vec(&layers).unwrap()).unwrap());
        assert!(diff(&store, &lower) == files[0].1 && diff(&store, &upper) == files[1].1, "{driver}");
        assert_eq!(store.image_big_data(&image, "manifest").unwrap(), std::fs::read(&files[0].0).unwrap());
        assert_eq!(store.image_size(&image).unwrap().to_string(), {
            let text = place.peer(&["image", &image]);
            text.lines().find_map(|line| line.strip_prefix("Size: ")).unwrap().to_owned()
        });
        assert_eq!(store.mounted("box").unwrap(), 1);
        let changes = store.changes(None, &container).unwrap();
        assert_eq!(changes.iter().map(|c| c.path.as_slice()).collect::<Vec<_>>(), [b"/added"]);
        assert!(!{
            assert_eq!(store.mount(&container, &MountOptions::default()).unwrap().to_str().unwrap(), path);
            store.unmount("box", false).unwrap()
        });
        assert!(store.unmount("box", false).unwrap(), "{driver}: what they mounted, we unmount");
        let ours = store.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(tree(&ours), theirs);
        store.set_names("lower", &["renamed".to_owned()]).unwrap();
        assert_eq!(place.peer(&["get-names", &lower]), "renamed");
        store.delete_container("box").unwrap();
        assert_eq!(store.delete_image("localhost/theirs:1", true).unwrap(), [upper, lower]);
        assert_eq!(place.peer(&["layers"]), "");
        place.assert_no_leftovers(&store);
    }
}
