//! Copying between layers and the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use crate::Row;
use crate::ground::{Ground, names};

pub(crate) const ROWS: &[Row] = &[
    Row::new("copy", copy).everywhere(),
    Row::new("copy-owners", owners),
    Row::new("copy-stays-inside", stays_inside),
];

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

/// A small tree on the host.
fn source(ground: &Ground) -> std::path::PathBuf {
    let dir = ground.path("source");
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("file"), "file").unwrap();
    fs::write(dir.join("sub/other"), "other").unwrap();
    fs::hard_link(dir.join("sub/other"), dir.join("sub/deep/same")).unwrap();
    symlink("other", dir.join("sub/link")).unwrap();
    chown(dir.join("sub/other"), Some(7), Some(8)).unwrap();
    fs::set_permissions(dir.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
    dir
}

fn copy(ground: &Ground) {
    let dir = source(ground);
    let layer = ground.id(&["create-layer"]);
    let other = ground.id(&["create-layer", "-n", "named"]);
    let at = |path: &str| format!("{layer}:{path}");
    // A file to a path, a relative one on both sides, over a file, into a directory.
    assert_eq!(ground.ok(&["copy", "source/file", &at("/a")]), "");
    ground.ok(&["copy", dir.join("sub/other").to_str().unwrap(), &at("made/on/the/way")]);
    ground.ok(&["copy", "./source/file", &at("/made/on/the/way")]);
    ground.ok(&["copy", "source/file", "source/sub/other", &at("/made/on")]);
    ground.ok(&["copy", "source/sub/link", &at("/followed")]);
    // A directory's content, merged into what is there.
    ground.ok(&["copy", "source", &at("/tree")]);
    fs::write(dir.join("file"), "newer").unwrap();
    fs::remove_file(dir.join("sub/link")).unwrap();
    ground.ok(&["copy", "source/", &at("/tree/")]);
    // From layer to layer, by name, while it is mounted, and back to the host.
    let root = ground.mount(&layer);
    ground.ok(&["copy", &at("/tree"), "named:/from/layer"]);
    ground.ok(&["copy", "named:/from/layer/sub", ground.path("back").to_str().unwrap()]);
    assert_eq!(ground.ok(&["mounted", &layer]), format!("{layer} mounted"));

    assert_eq!(names(&root), ["a", "followed", "made", "tree"]);
    assert_eq!(fs::read(root.join("a")).unwrap(), b"file");
    assert_eq!(fs::read(root.join("made/on/the/way")).unwrap(), b"file");
    assert_eq!(names(&root.join("made/on")), ["file", "other", "the"]);
    assert_eq!(owner(&root.join("made/on/other")), (7, 8));
    assert!(fs::symlink_metadata(root.join("followed")).unwrap().is_file());
    assert_eq!(fs::read(root.join("tree/file")).unwrap(), b"newer");
    assert_eq!(names(&root.join("tree/sub")), ["deep", "link", "other"]);
    assert_eq!(fs::metadata(root.join("tree/sub")).unwrap().mode() & 0o7777, 0o750);
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("tree/sub/other"), inode("tree/sub/deep/same"));
    let back = ground.path("back");
    assert_eq!(names(&back), ["deep", "link", "other"]);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("other"));
    assert_eq!(owner(&back.join("other")), (7, 8));
    ground.ok(&["unmount", &layer]);
    assert_eq!(ground.ok(&["mounted", &layer, &other]), "");

    for (words, text) in [
        (&["copy", "source", "nosuch:/x"][..], "error finding layer \"nosuch\": layer not known"),
        (&["copy", "nofile", "named:/x"], "stat nofile: No such file or directory"),
        (&["copy", "named:/nofile", "there"], "error copying \"named:/nofile\" to \"there\": "),
        (&["copy", "source", &at("/a")], "error copying \"source\" to "),
        (&["copy", "--chown", "x", "source", "named:/x"], "bad UID: \"x\""),
        (&["copy", "-o=1:y", "source", "named:/x"], "bad GID: \"y\""),
        (&["copy", "named:/from", "named:/from/layer"], "copy into itself"),
    ] {
        let said = ground.fails(words);
        assert!(said.contains(text), "{words:?}: {said}");
    }
    assert_eq!(ground.ok(&["mounted", &layer, &other]), "", "a copy that failed left a mount");
}

/// Owners go from one layer's ids to the other's.
fn owners(ground: &Ground) {
    source(ground);
    let plain = ground.id(&["create-layer"]);
    let map = |first: u32| format!("0:{first}:1000");
    let one = ground.id(&["create-layer", "--uidmap", &map(10_000), "--gidmap", &map(20_000)]);
    let two = ground.id(&["create-layer", "--uidmap", &map(30_000), "--gidmap", &map(40_000)]);
    ground.ok(&["copy", "source", &format!("{one}:/new/tree")]);
    ground.ok(&["copy", &format!("{one}:/new/tree"), &format!("{two}:/tree")]);
    ground.ok(&["copy", &format!("{two}:/tree"), &format!("{plain}:/tree")]);
    ground.ok(&["copy", "--chown", "5:6", "source", &format!("{two}:/owned")]);
    ground.ok(&["copy", "-o=9", "source/file", &format!("{two}:/nine")]);
    let (plain, one, two) = (ground.mount(&plain), ground.mount(&one), ground.mount(&two));
    assert_eq!(owner(&one.join("new")), (10_000, 20_000));
    assert_eq!(owner(&one.join("new/tree/sub/other")), (10_007, 20_008));
    assert_eq!(owner(&two.join("tree/file")), (30_000, 40_000));
    assert_eq!(owner(&two.join("tree/sub/other")), (30_007, 40_008));
    assert_eq!(owner(&plain.join("tree/sub/other")), (7, 8));
    for name in ["owned", "owned/file", "owned/sub", "owned/sub/other", "owned/sub/link", "owned/sub/deep"] {
        assert_eq!(owner(&two.join(name)), (30_005, 40_006), "{name}");
    }
    assert_eq!(owner(&two.join("nine")), (30_009, 40_009));
}

/// Links and `..` in a layer lead nowhere outside of it, neither reading nor writing.
fn stays_inside(ground: &Ground) {
    let layer = ground.id(&["create-layer", "-n", "evil"]);
    let root = ground.mount(&layer);
    let outside = ground.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("out")).unwrap();
    symlink(outside.join("secret"), root.join("secret")).unwrap();
    symlink("../../../../../../../..", root.join("up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/inside", root.join("way")).unwrap();
    fs::create_dir(root.join("inside")).unwrap();
    fs::write(root.join("inside/file"), "inside").unwrap();
    fs::write(ground.path("new"), "new").unwrap();

    for path in ["/out/secret", "/secret", "/loop", "/loop/x", "../outside/secret"] {
        ground.fails(&["copy", &format!("evil:{path}"), "taken"]);
        assert!(!ground.path("taken").exists(), "{path} led outside");
    }
    // Links that lead somewhere inside are followed there, `/` and `..` from the root mean the layer's root.
    ground.ok(&["copy", "evil:/way/file", "taken"]);
    assert_eq!(fs::read(ground.path("taken")).unwrap(), b"inside");
    ground.ok(&["copy", "evil:/up/../inside", "taken-dir"]);
    assert_eq!(names(&ground.path("taken-dir")), ["file"]);

    for path in ["/up/new", "../../../../new", "/way/new"] {
        ground.ok(&["copy", "new", &format!("evil:{path}")]);
    }
    assert!(root.join("new").is_file() && root.join("inside/new").is_file());
    // A link at the end is replaced, not written through.
    ground.ok(&["copy", "new", "evil:/secret"]);
    assert!(fs::symlink_metadata(root.join("secret")).unwrap().is_file());
    // A link to nothing is no directory to make others in.
    ground.fails(&["copy", "new", "evil:/out/deeper/new"]);
    // A tree with a link where the other has a directory: the link is replaced and nothing is written through it.
    let tree = ground.path("tree");
    fs::create_dir_all(tree.join("out")).unwrap();
    fs::write(tree.join("out/written"), "written").unwrap();
    ground.ok(&["copy", "tree", "evil:/"]);
    assert!(fs::symlink_metadata(root.join("out")).unwrap().is_dir());
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    ground.ok(&["unmount", "evil"]);
}
