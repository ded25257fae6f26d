//! Names, data and images in stores of one, two and three directories. (`contract_records.rs` has the details of each verb.)

use std::fs;

use crate::Row;
use crate::ground::{Ground, merged, random_file};

pub(crate) const ROWS: &[Row] = &[
    Row::new("names", names).everywhere(),
    Row::new("bigdata", big_data).everywhere(),
    Row::new("directories", directories).everywhere(),
    Row::new("create-container", containers).everywhere(),
    Row::new("stores", additional_stores).everywhere(),
    Row::new("split-store", split_store).everywhere(),
];

fn exists(ground: &Ground, flags: &[&str], kind: &str, object: &str) -> bool {
    ground.run(&[flags, &["exists", kind, object]].concat()).status.success()
}

/// Names given at creation, added, set and moved, for each kind.
fn names(ground: &Ground) {
    let layer = ground.id(&["create-layer"]);
    for (kind, words) in
        [("-l", &["create-layer", ""][..]), ("-i", &["create-image", &layer]), ("-c", &["create-container", ""])]
    {
        let (verb, rest) = words.split_first().unwrap();
        let have = |wanted: &[&str], id: &str| {
            let all = ["foo", "bar", "new", "other"];
            let names = ground.ok(&["get-names", id]);
            for name in all {
                let here = wanted.contains(&name);
                assert_eq!(names.lines().any(|line| line == name), here, "{kind} {name}: {names}");
                assert!(!here || exists(ground, &[], kind, name));
            }
        };
        let first = ground.id(&[&[*verb, "-n", "foo", "-n", "bar"][..], rest].concat());
        assert!(exists(ground, &[], kind, &first) && !exists(ground, &[], kind, "no-such-thing-as-this-name"));
        have(&["foo", "bar"], &first);
        ground.debugged(&["add-names", "-n", "new", "-n", "other", &first]);
        have(&["foo", "bar", "new", "other"], &first);
        ground.debugged(&["set-names", "-n", "new", "-n", "other", &first]);
        have(&["new", "other"], &first);
        assert!(!exists(ground, &[], kind, "foo"));
        let second = ground.id(words);
        ground.debugged(&["set-names", "-n", "foo", "-n", "new", &second]);
        have(&["other"], &first);
        have(&["foo", "new"], &second);
        ground.debugged(&["remove-names", "-n", "other", &first]);
        have(&[], &first);
        ground.debugged(&["delete", &first]);
        ground.debugged(&["delete", &second]);
    }
}

/// Items of data go in and come out with their sizes and digests.
fn big_data(ground: &Ground) {
    let layer = ground.id(&["create-layer"]);
    let image = ground.id(&["create-image", &layer]);
    let container = ground.id(&["create-container", &image]);
    for name in ["big-item-1", "big-item-2"] {
        random_file(&ground.path(name));
    }
    for (kind, id) in [("layer", &layer), ("image", &image), ("container", &container)] {
        let verb = |verb: &str, rest: &str| format!("{verb}-{kind}-data{rest}");
        assert_eq!(ground.ok(&[&verb("list", ""), id]), "");
        for name in ["big-item-1", "big-item-2"] {
            ground.debugged(&[&verb("set", ""), "-f", &ground.text(name), id, name]);
            ground.debugged(&[&verb("get", ""), "-f", &ground.text("copy"), id, name]);
            assert_eq!(fs::read(ground.path("copy")).unwrap(), fs::read(ground.path(name)).unwrap());
            if kind != "layer" {
                assert_eq!(ground.ok(&[&verb("get", "-size"), id, name]), "256");
                let sum = merged(std::process::Command::new("sha256sum").arg(ground.path(name))).output;
                let sum = sum.split(' ').next().unwrap();
                assert_eq!(ground.ok(&[&verb("get", "-digest"), id, name]), format!("sha256:{sum}"));
            }
        }
        assert_eq!(ground.ok(&[&verb("list", ""), id]), "big-item-1\nbig-item-2");
        assert!(ground.fails(&[&verb("get", ""), id, "no-such-item"]).contains("does not exist"));
    }
    assert!(ground.fails(&["get-image-data", "nosuchimage", "big-item"]).contains("image not known"));
}

/// Directories for engines lie in the two roots and can be written to.
fn directories(ground: &Ground) {
    let image = ground.id(&["create-image"]);
    let container = ground.id(&["create-container", &image]);
    for (kind, id) in [("image", &image), ("container", &container)] {
        for (verb, root) in [("dir", "root/"), ("run-dir", "runroot/")] {
            let path = ground.ok(&[&format!("get-{kind}-{verb}"), id]);
            assert!(path.starts_with(&ground.text(root)), "{path}");
            fs::write(format!("{path}/file"), "1").unwrap();
        }
    }
}

/// Containers of nothing, of an empty image, of a layer; what a volatile one wrote is there after unmounting.
fn containers(ground: &Ground) {
    let mut made = vec![ground.id(&["create-container", ""])];
    let empty = ground.id(&["create-image", ""]);
    made.push(ground.id(&["create-container", &empty]));
    let layer = ground.id(&["create-layer"]);
    let image = ground.id(&["create-image", &layer]);
    made.push(ground.id(&["create-container", &image]));
    made.push(ground.id(&["create-container", "--volatile", &image]));
    let listed = ground.ok(&["containers"]);
    let mut listed: Vec<&str> = listed.lines().collect();
    listed.sort_unstable();
    let volatile = made.last().unwrap().clone();
    made.sort();
    assert_eq!(listed, made);
    let root = ground.mount(&volatile);
    random_file(&root.join("file"));
    let bytes = fs::read(root.join("file")).unwrap();
    ground.debugged(&["unmount", &volatile]);
    assert_eq!(fs::read(ground.mount(&volatile).join("file")).unwrap(), bytes);
    ground.debugged(&["unmount", &volatile]);
}

/// Layers and images of a store that is only read: parents, images, containers, names in a copy.
fn additional_stores(ground: &Ground) {
    let (root, run) = (ground.text("ro-root"), ground.text("ro-runroot"));
    let theirs = ["--graph", &*root, "--run", &*run];
    let their_id = |words: &[&str]| ground.id(&[&theirs, words].concat());
    ground.debugged(&[&theirs[..], &["layers"]].concat());
    let option = format!("{}.imagestore={root}", ground.driver);
    let ours = ["--storage-opt", &*option];
    let id = |words: &[&str]| ground.id(&[&ours, words].concat());
    ground.debugged(&[&ours[..], &["layers"]].concat());
    let lower = their_id(&["create-layer"]);
    let path = their_id(&["mount", &lower]);
    random_file(format!("{path}/layer1file1").as_ref());
    let mid = their_id(&["create-layer", &lower]);
    let path = their_id(&["mount", &mid]);
    fs::remove_file(format!("{path}/layer1file1")).unwrap();
    random_file(format!("{path}/layer2file1").as_ref());
    ground.debugged(&[&theirs[..], &["unmount", &mid]].concat());
    ground.debugged(&[&theirs[..], &["unmount", &lower]].concat());
    let image = their_id(&["create-image", "-n", "fooimage", "-n", "barimage", &mid]);
    ground.debugged(&[&theirs[..], &["shutdown"]].concat());

    let check = |object: &str| {
        let path = id(&["mount", object]);
        assert!(!fs::exists(format!("{path}/layer1file1")).unwrap());
        assert_eq!(fs::metadata(format!("{path}/layer2file1")).unwrap().len(), 256);
        ground.debugged(&[&ours[..], &["unmount", object]].concat());
    };
    let upper = id(&["create-layer", &mid]);
    check(&upper);
    let upper_image = id(&["create-image", &upper]);
    for image in [&upper_image, &image] {
        let container = id(&["create-container", image]);
        check(&container);
        ground.debugged(&[&ours[..], &["delete-container", &container]].concat());
    }
    let shown = ground.ok(&[&ours[..], &["image", &image]].concat());
    assert!(shown.lines().any(|line| line == "Read Only: true"), "{shown}");
    ground.debugged(&[&ours[..], &["add-names", "-n", "newimage", &image]].concat());
    ground.debugged(&[&ours[..], &["remove-names", "-n", "barimage", &image]].concat());
    for (name, there) in [(&*image, true), ("fooimage", true), ("newimage", true), ("barimage", false)] {
        assert_eq!(exists(ground, &ours, "-i", name), there, "{name}");
    }
    ground.debugged(&[&ours[..], &["delete-image", &image]].concat());
    assert!(exists(ground, &ours, "-i", "barimage"));
    ground.debugged(&[&ours[..], &["delete-image", &upper_image]].concat());
    ground.debugged(&[&theirs[..], &["wipe"]].concat());
    ground.debugged(&[&theirs[..], &["shutdown"]].concat());
}

/// Images and read-only layers in a directory of their own.
fn split_store(ground: &Ground) {
    let (images, empty) = (ground.text("imagestore/"), ground.text("emptyimagestore"));
    let split = ["--image-store", &*images];
    let ok = |words: &[&str]| ground.ok(&[&split, words].concat());
    let id = |words: &[&str]| ground.id(&[&split, words].concat());
    for name in ["random1", "random2"] {
        random_file(&ground.path(name));
    }
    let image = id(&["create-image", "--name", "wonderful-image"]);
    for name in ["random1", "random2"] {
        ok(&["set-image-data", "-f", &ground.text(name), &image, name]);
    }
    let shown = ok(&["image", &image]);
    for line in [&*format!("ID: {image}"), "Name: wonderful-image", "Data: random1", "Data: random2", "Size: 512"] {
        assert!(shown.lines().any(|other| other == line), "{line}: {shown}");
    }
    ok(&["shutdown"]);
    assert_eq!(ground.fails(&["--image-store", &empty, "image", &image]), "");
    ok(&["delete-image", &image]);

    let own = ground.id(&["create-image", "--name", "wonderful-image"]);
    ground.ok(&["set-image-data", "-f", &ground.text("random1"), &own, "random1"]);
    assert!(ok(&["image", &own]).contains("Name: wonderful-image"));
    ok(&["delete-image", &own]);
    assert!(!exists(ground, &[], "-i", &own));

    let layer = id(&["create-layer", "--readonly"]);
    let alone = ["--graph", &*images];
    assert!(fs::exists(ground.ok(&[&alone[..], &["mount", &layer]].concat())).unwrap());
    ground.ok(&[&alone[..], &["unmount", &layer]].concat());
    ground.ok(&[&alone[..], &["shutdown"]].concat());
    let on_top = id(&["create-layer", &layer]);
    random_file(format!("{}/file", ok(&["mount", &on_top])).as_ref());
    ok(&["unmount", &on_top]);
    assert_eq!(ok(&["changes", &on_top]), "Add \"/file\"");
    assert_eq!(ground.path("imagestore/overlay/l").is_dir(), ground.driver == "overlay");
    ok(&["wipe"]);
    ok(&["shutdown"]);
}
