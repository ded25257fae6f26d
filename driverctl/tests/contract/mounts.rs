//! Mounting and counting.

use std::fs;

use crate::Row;
use crate::ground::Ground;

pub(crate) const ROWS: &[Row] = &[
    Row::new("mount-layer", mount_layer).everywhere(),
    Row::new("overlay-recreate", overlay_recreate).only("overlay").everywhere(),
];

/// Mounts are counted by all processes together; an unknown flag is an error.
fn mount_layer(ground: &Ground) {
    let layer = ground.id(&["create-layer"]);
    let root = ground.mount(&layer);
    fs::write(root.join("file"), "content").unwrap();
    assert_eq!(ground.ok(&["mounted", &layer]), format!("{layer} mounted"));
    let gone = format!("{layer} mountpoint unmounted");
    assert_eq!(ground.ok(&["unmount", &layer]), gone);
    assert_eq!(ground.ok(&["mounted", &layer]), "");

    assert_eq!(ground.mount(&layer), root);
    assert_eq!(ground.mount(&layer), root);
    assert_eq!(ground.ok(&["unmount", &layer]), "");
    assert_eq!(ground.ok(&["mounted", &layer]), format!("{layer} mounted"));
    assert_eq!(fs::read(root.join("file")).unwrap(), b"content");
    assert_eq!(ground.ok(&["umount", &layer]), gone);
    assert_eq!(ground.ok(&["mounted", &layer]), "");

    ground.mount(&layer);
    ground.mount(&layer);
    ground.mount(&layer);
    assert_eq!(ground.ok(&["unmount", "--force", &layer]), gone);
    assert_eq!(ground.ok(&["mounted", &layer]), "");
    assert_eq!(ground.ok(&["unmount", &layer]), gone, "one that is not mounted is unmounted");

    let answer = ground.run(&["--debug=false", "mount", "--option", "nosuid", &layer]);
    assert_eq!(answer.status.code(), Some(125), "{answer:?}");
    assert!(answer.output.starts_with("flag provided but not defined: --option\nSee '"), "{answer:?}");
    assert_eq!(ground.fails(&["mount", "nosuch"]), "\nlayer not known while mounting nosuch");
    assert_eq!(ground.fails(&["unmount", "nosuch"]), "layer not known while unmounting nosuch");
    assert_eq!(ground.fails(&["mounted", "nosuch"]), "layer not known checking if nosuch is mounted");
}

/// Links and mount points that somebody deleted are made again.
fn overlay_recreate(ground: &Ground) {
    let [lower, mid, upper] = ground.populate();
    let overlay = ground.path("root/overlay");
    let mut links = 0;
    for entry in fs::read_dir(overlay.join("l")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        links += 1;
    }
    assert!(links >= 3);
    let round = |layer: &str| {
        ground.debugged(&["mount", layer]);
        ground.debugged(&["unmount", layer]);
    };
    round(&lower);
    round(&mid);
    let merged = ground.mount(&upper);
    assert!(merged.join("layer1file3").is_file());
    ground.debugged(&["unmount", &upper]);
    for layer in [&lower, &mid, &upper] {
        fs::remove_file(overlay.join(layer).join("link")).unwrap();
    }
    round(&lower);
    round(&mid);
    fs::remove_dir(&merged).unwrap();
    round(&upper);
    assert!(ground.mount(&upper).join("layer1file3").is_file());
    ground.ok(&["unmount", &upper]);
}
