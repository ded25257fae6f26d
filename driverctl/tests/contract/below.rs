//! Images and layers of stores that are not one's own: below it, read-only, apart.

use std::fs;
use std::path::PathBuf;

use crate::Row;
use crate::ground::{Ground, random_file};

pub(crate) const ROWS: &[Row] = &[
    Row::new("stores-below", additional),
    Row::new("split-store-graph-root", split_graph_root),
    Row::new("mount-image", mount_image),
];

/// A store below becomes read-only: its layers and images are used, and not written to.
fn additional(ground: &Ground) {
    let (graph, run) = (ground.text("ro-root"), ground.text("ro-runroot"));
    let below = ["--graph", graph.as_str(), "--run", &run];
    let option = format!("{}.imagestore={graph}", ground.driver);
    let above = ["--storage-opt", option.as_str()];
    ground.debugged(&[&below[..], &["layers"]].concat());
    ground.debugged(&[&above[..], &["layers"]].concat());
    let in_below = |words: &[&str]| ground.ok(&[&below[..], words].concat());
    let in_above = |words: &[&str]| ground.ok(&[&above[..], words].concat());

    let lower = in_below(&["create-layer"]);
    let lower_root = PathBuf::from(in_below(&["mount", &lower]));
    random_file(&lower_root.join("layer1file1"));
    let mid = in_below(&["create-layer", &lower]);
    let mid_root = PathBuf::from(in_below(&["mount", &mid]));
    fs::remove_file(mid_root.join("layer1file1")).unwrap();
    assert!(lower_root.join("layer1file1").is_file());
    random_file(&mid_root.join("layer2file1"));
    in_below(&["unmount", &mid]);
    in_below(&["unmount", &lower]);
    let image = in_below(&["create-image", &mid]);
    in_below(&["shutdown"]);
    let records = |name: &str| fs::read(ground.path(&format!("ro-root/{}-{name}/{name}.json", ground.driver))).unwrap();
    let before = (records("layers"), records("images"));

    let check = |root: PathBuf| {
        assert!(!root.join("layer1file1").exists() && root.join("layer2file1").is_file(), "{root:?}");
    };
    let upper = in_above(&["create-layer", &mid]);
    check(in_above(&["mount", &upper]).into());
    in_above(&["unmount", &upper]);
    for image in [in_above(&["create-image", &upper]), image.clone()] {
        let container = in_above(&["create-container", &image]);
        check(in_above(&["mount", &container]).into());
        assert!(!in_above(&["unmount", &container]).is_empty());
        in_above(&["delete-container", &container]);
    }
    // What lies below says so, and stays as it is.
    for (verb, id) in [("layer", &mid), ("image", &image)] {
        assert!(in_above(&[verb, id]).ends_with("\nRead Only: true"), "{verb}");
    }
    assert_eq!(in_above(&["storage-layers"]), upper);
    let said = ground.fails(&[&above[..], &["mount", &mid]].concat());
    assert!(said.contains("called a write method on a read-only store"), "{said}");
    assert_eq!(before, (records("layers"), records("images")), "the store below was written to");
    in_above(&["add-names", "--name", "a-name", &image]);
    assert!(in_above(&["image", "a-name"]).contains(&format!("ID: {image}")));
    in_above(&["delete-image", &image]);
    assert_eq!(before, (records("layers"), records("images")), "the store below was written to");
    in_above(&["wipe"]);
    in_above(&["shutdown"]);
    in_below(&["wipe"]);
    in_below(&["shutdown"]);
}

/// The graph root's own images stay in sight beside an image store, and can be deleted there.
fn split_graph_root(ground: &Ground) {
    let (graph, images) = (ground.text("graph"), ground.text("imagestore/"));
    fs::create_dir(ground.path("imagestore")).unwrap();
    let plain = |words: &[&str]| ground.run(&[&["--debug=false", "--graph", &graph], words].concat());
    let both =
        |words: &[&str]| ground.run(&[&["--debug=false", "--graph", &graph, "--image-store", &images], words].concat());
    let ok = |answer: crate::ground::Answer| {
        assert!(answer.status.success(), "{answer:?}");
        answer.output
    };
    let image = ok(plain(&["create-image", "--name", "wonderful-image"])).lines().next().unwrap().to_owned();
    random_file(&ground.path("random"));
    ok(plain(&["set-image-data", "-f", &ground.text("random"), &image, "random"]));
    ok(plain(&["shutdown"]));
    let shown = ok(both(&["image", &image]));
    assert!(shown.contains("Name: wonderful-image") && shown.contains("Data: random"), "{shown}");
    ok(both(&["shutdown"]));
    ok(both(&["delete-image", &image]));
    ok(both(&["shutdown"]));

    // A read-only layer lies in the image store, which is a store of its own.
    let layer = ok(both(&["create-layer", "--readonly"]));
    let store = ground.text("imagestore");
    let alone = |words: &[&str]| ok(ground.run(&[&["--debug=false", "--graph", &store], words].concat()));
    assert_eq!(alone(&["layers"]), layer);
    assert!(!alone(&["mount", &layer]).is_empty());
    alone(&["unmount", &layer]);
    alone(&["shutdown"]);
    assert!(!plain(&["exists", "-i", &image]).status.success());
    ok(plain(&["shutdown"]));
    ok(both(&["wipe"]));
    ok(both(&["shutdown"]));
    alone(&["wipe"]);
    alone(&["shutdown"]);
}

/// An image is mounted when it is asked for read-only, and counts for its top layer.
fn mount_image(ground: &Ground) {
    let layers = ground.populate();
    let image = ground.id(&["create-image", "--name", "wonderful-image", &layers[2]]);
    for flag in ["-r", "--ro", "--read-only"] {
        let root = PathBuf::from(ground.ok(&["mount", flag, "wonderful-image"]));
        assert!(root.join("layer2file1").is_file());
        if ground.driver == "overlay" {
            assert!(fs::write(root.join("new"), "").is_err(), "it was to be read-only");
        }
        assert_eq!(ground.ok(&["mounted", &layers[2]]), format!("{} mounted", layers[2]));
        ground.ok(&["umount", &image]);
        assert_eq!(ground.ok(&["mounted", &layers[2]]), "");
    }
    assert_eq!(ground.fails(&["mount", &image]), format!("\nlayer not known while mounting {image}"));
    // A container of it while it is mounted.
    ground.ok(&["mount", "-r", &image]);
    let container = ground.id(&["create-container", &image]);
    ground.ok(&["umount", &image]);
    ground.ok(&["delete-container", &container]);
    ground.ok(&["delete-image", &image]);
    assert_eq!(ground.ok(&["layers"]), "");
}
