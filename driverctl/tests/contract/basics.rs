//! Roots, listing, deleting, and what the store says of itself.

use std::fs;

use crate::Row;
use crate::ground::{Ground, merged};

pub(crate) const ROWS: &[Row] = &[
    Row::new("abs", abs),
    Row::new("cleanup-layer", cleanup_layer),
    Row::new("delete", delete),
    Row::new("layers", layers).once(),
    Row::new("status", status),
    Row::new("storage-layers", storage_layers),
];

/// Roots that are relative, that are not there yet, and that end in a slash.
fn abs(ground: &Ground) {
    for (n, dir) in ["rel", "./rel", "some/where/below", "./some/./other", "slash/"].into_iter().enumerate() {
        let (graph, run) = (format!("{dir}{n}g"), format!("{dir}{n}r/"));
        for verb in [&["layers"][..], &["create-layer"], &["layers"], &["wipe"], &["shutdown"]] {
            let mut command = ground.bare();
            command.args(["--debug=false", "--graph", &graph, &format!("--run={run}"), "-s", ground.driver]).args(verb);
            let answer = merged(&mut command);
            assert!(answer.status.success(), "{dir} {verb:?}: {answer:?}");
        }
        assert!(ground.path(&graph).join(format!("{}-layers", ground.driver)).is_dir(), "{graph}");
        assert!(ground.path(&run).is_dir(), "{run}");
    }
}

/// A layer that somebody did not finish is gone with the next command, which says nothing of it.
fn cleanup_layer(ground: &Ground) {
    ground.id(&["create-layer"]);
    let file = ground.path(&format!("root/{}-layers/layers.json", ground.driver));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"id\":"), "{text}");
    fs::write(&file, text.replace("\"id\":", "\"flags\":{\"incomplete\":true},\"id\":")).unwrap();
    assert_eq!(ground.ok(&["layers"]), "");
    assert_eq!(ground.ok(&["storage-layers"]), "");
}

/// Deleting by kind is careful, deleting by `delete` is not.
fn delete(ground: &Ground) {
    let layer = ground.id(&["create-layer"]);
    let child = ground.id(&["create-layer", &layer]);
    let image = ground.id(&["create-image", &child]);
    let container = ground.id(&["create-container", &image]);
    for object in [&layer, &child, &image, &container] {
        assert_eq!(ground.ok(&["exists", object]), format!("{object}: true"));
    }
    for (kind, id) in [("-l", &layer), ("-l", &child), ("-i", &image), ("-c", &container)] {
        ground.ok(&["exists", kind, id]);
    }
    ground.fails(&["exists", "-c", &layer]);
    let used = ground.fails(&["delete-layer", &layer]);
    assert_eq!(used, format!("{layer}: used by layer {child}: layer has children"));
    assert!(ground.fails(&["delete-image", &image]).contains("image is in use by a container"));
    let writable = ground.ok(&["container", &container]);
    let writable = writable.lines().find_map(|line| line.strip_prefix("Layer: ")).unwrap().to_owned();
    assert!(ground.fails(&["delete-layer", &writable]).contains("layer is in use by a container"));

    assert_eq!(ground.ok(&["delete", &image]), "");
    ground.fails(&["exists", &image]);
    for layer in [&layer, &child, &writable] {
        assert_eq!(ground.ok(&["exists", "-l", layer]), format!("{layer}: true"));
    }
    assert_eq!(ground.ok(&["delete", &container]), "");
    for gone in [&container, &writable] {
        assert_eq!(ground.fails(&["exists", gone]), format!("{gone}: false"));
    }
    assert_eq!(ground.ok(&["delete", &child, &layer]), "");
    assert_eq!(ground.ok(&["layers"]), "");
    assert_eq!(ground.fails(&["delete", &layer]), format!("{layer}: layer not known"));
}

/// 301 layers on each other, more than one mount call takes.
fn layers(ground: &Ground) {
    let mut layer = String::new();
    for n in 0..=300 {
        layer = ground.id(&["create-layer", &layer]);
        let root = ground.mount(&layer);
        fs::write(root.join(n.to_string()), "").unwrap();
        assert_eq!(ground.ok(&["unmount", &layer]), format!("{layer} mountpoint unmounted"));
    }
    assert_eq!(ground.ok(&["layers"]).lines().count(), 301);
    assert_eq!(ground.ok(&["storage-layers"]).lines().count(), 301);
    let image = ground.id(&["create-image", &layer]);
    let container = ground.id(&["create-container", &image]);
    let root = ground.mount(&container);
    for n in 0..=300 {
        assert!(root.join(n.to_string()).is_file(), "the file of layer {n} is not there");
    }
    fs::write(root.join("written"), "").unwrap();
    ground.ok(&["unmount", &container]);
}

/// Root, run root, driver and its options come first, in this order.
fn status(ground: &Ground) {
    let options = if ground.driver == "overlay" { "--storage-opt=overlay.mountopt=nodev" } else { "--debug=false" };
    let answer = ground.ok(&[options, "status"]);
    let first: Vec<&str> = answer.lines().take(4).collect();
    let given = if ground.driver == "overlay" { "[overlay.mountopt=nodev]" } else { "[]" };
    let expected = [
        format!("Root: {}", ground.text("root")),
        format!("Run Root: {}", ground.text("runroot")),
        format!("Driver Name: {}", ground.driver),
        format!("Driver Options: {given}"),
    ];
    assert_eq!(first, expected);
    // Scripts look for these lines in the middle of what is logged.
    let debugged = ground.run(&["status"]);
    let roots =
        debugged.lines().iter().filter(|line| line.starts_with("Root:") || line.starts_with("Run Root:")).count();
    assert_eq!(roots, 2, "{debugged:?}");
    if ground.driver == "overlay" {
        assert!(answer.contains("\nSupports shifting: false\n"), "id-mapped mounts are switched off: {answer}");
    }
    let json: serde_json::Value = serde_json::from_str(&ground.ok(&["status", "-j"])).unwrap();
    assert_eq!(json[0], serde_json::json!(["Root", ground.text("root")]));
}

/// What only the driver has is listed beside what the store knows, and nowhere else.
fn storage_layers(ground: &Ground) {
    assert_eq!(ground.ok(&["storage-layers"]), "");
    assert_eq!(ground.ok(&["storage-layers", "-j"]), "[]");
    let known = ground.id(&["create-layer", "-i", "known"]);
    assert_eq!(ground.ok(&["create-storage-layer", "--id", "stray"]), "stray");
    assert_eq!(ground.ok(&["create-storage-layer", "-j", "-i=stray2", &known]), "\"stray2\"");
    assert_eq!(ground.id(&["create-storage-layer", "-r", "stray"]).len(), 64);
    let all = ground.ok(&["storage-layers"]);
    assert_eq!(all.lines().count(), 4);
    assert!(all.ends_with("known\nstray\nstray2"), "{all}");
    assert_eq!(ground.ok(&["layers", "-q"]), "known");
    assert!(ground.fails(&["create-storage-layer", "-i", "stray"]).contains("that ID is already in use"));
    assert_eq!(ground.fails(&["create-storage-layer", "nosuch"]), "layer not known");
    ground.fails(&["create-storage-layer", "-i", "../x"]);
}
