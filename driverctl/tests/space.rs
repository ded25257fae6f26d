//! `tree` and `du`, beside coreutils' du and find.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{TestStore, in_own_mount_namespace, run};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn json(store: &TestStore, args: &[&str]) -> Value {
    serde_json::from_str(&store.ok(args)).unwrap()
}

fn of<'v>(list: &'v Value, id: &str) -> &'v Value {
    list.as_array().unwrap().iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {list}"))
}

/// What coreutils say: bytes on disk.
fn du(paths: &[&Path]) -> u64 {
    let out = run(Command::new("du").args(["-x", "-s", "-c", "--block-size=1"]).args(paths));
    out.lines().last().unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// Sizes of files and links by findutils, each inode once.
fn apparent(path: &Path) -> u64 {
    let out = run(Command::new("find")
        .arg(path)
        .args(["-xdev", "(", "-type", "f", "-o", "-type", "l", ")"])
        .args(["-printf", "%D:%i %s\n"]));
    let inodes: HashSet<&str> = out.lines().collect();
    inodes.iter().map(|line| line.split_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

/// Base layer with hard links, a sparse file, a symbolic link; two layers on it; two images; a container.
fn fill(store: &TestStore) -> [String; 6] {
    let tree = store.path("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/big"), vec![7; 300_000]).unwrap();
    fs::hard_link(tree.join("a/big"), tree.join("a/b/link")).unwrap();
    fs::write(tree.join("a/small"), "x").unwrap();
    symlink("a/small", tree.join("symlink")).unwrap();
    fs::File::create(tree.join("sparse")).unwrap().set_len(10 << 20).unwrap();
    let tar = |name: &str, what: &[&str]| {
        let file = store.path(name);
        run(Command::new("tar").arg("-C").arg(&tree).arg("-cSf").arg(&file).args(what));
        file.display().to_string()
    };
    let base = store.ok(&["import-layer", "-f", &tar("base.tar", &["a", "symlink", "sparse"])]).trim().to_owned();
    fs::write(tree.join("one"), vec![1; 50_000]).unwrap();
    fs::write(tree.join("two"), vec![2; 90_000]).unwrap();
    let one = store.ok(&["import-layer", "-f", &tar("one.tar", &["one"]), &base]).trim().to_owned();
    let two = store.ok(&["import-layer", "-f", &tar("two.tar", &["two"]), &base]).trim().to_owned();
    let first = store.ok(&["create-image", "--name", "first", &one]).lines().next().unwrap().to_owned();
    let second = store.ok(&["create-image", "--name", "second", &two]).lines().next().unwrap().to_owned();
    let container = store.ok(&["create-container", "--name", "box", "first"]).lines().next().unwrap().to_owned();
    let at = store.ok(&["mount", "box"]);
    fs::write(Path::new(at.trim()).join("written"), vec![3; 40_000]).unwrap();
    [base, one, two, first, second, container]
}

fn layer_paths(store: &TestStore, layer: &str) -> Vec<std::path::PathBuf> {
    let root = store.path("root");
    let driver = store.driver;
    let home = if driver == "vfs" { root.join("vfs/dir") } else { root.join(driver) };
    let records = root.join(format!("{driver}-layers"));
    let all = [home.join(layer), records.join(layer), records.join(format!("{layer}.tar-split.gz"))];
    all.into_iter().filter(|path| path.exists()).collect()
}

#[test]
fn root_du_says_what_coreutils_say() {
    if !in_own_mount_namespace("root_du_says_what_coreutils_say") {
        return;
    }
    for driver in ["vfs", "overlay"] {
        let store = TestStore::new(driver);
        let [base, one, two, first, second, container] = fill(&store);
        run(Command::new("sync").arg("-f").arg(store.path("root")));
        // Once with the container mounted, whose mount is not the store's; once without.
        for _ in 0..2 {
            let usage = json(&store, &["du", "--json"]);
            assert_eq!(number(&usage["total"]["on-disk"]), du(&[&store.path("root")]), "{driver}");
            assert_eq!(number(&usage["total"]["apparent"]), apparent(&store.path("root")), "{driver}");
            let inodes = run(Command::new("find").arg(store.path("root")).args(["-xdev", "-printf", "%D:%i\n"]));
            let mount = usize::from(driver == "overlay" && store.ok(&["mounted", "box"]).contains("mounted"));
            let inodes = inodes.lines().collect::<HashSet<_>>().len() - mount;
            assert_eq!(number(&usage["total"]["inodes"]), inodes as u64, "{driver}");
            for layer in [&base, &one, &two] {
                let paths = layer_paths(&store, layer);
                let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
                assert_eq!(number(&of(&usage["layers"], layer)["space"]["on-disk"]), du(&paths), "{driver} {layer}");
            }
            store.ok(&["unmount", "box"]);
        }
        let usage = json(&store, &["du", "-j"]);
        let layer = |id: &str| number(&of(&usage["layers"], id)["space"]["on-disk"]);
        for (image, own) in [(&first, &one), (&second, &two)] {
            let image = of(&usage["images"], image);
            assert_eq!(number(&image["shared"]["on-disk"]), layer(&base), "{driver}");
            assert_eq!(number(&image["unique"]["on-disk"]), layer(own) + number(&image["data"]["on-disk"]), "{driver}");
        }
        let container = of(&usage["containers"], &container);
        assert!(number(&container["layer"]["apparent"]) >= 40_000, "{container}");
        // In a pipe: a line each, cells behind tabs, exact numbers.
        let lines = store.ok(&["du"]);
        let total = lines.lines().last().unwrap();
        let cells: Vec<&str> = total.split('\t').collect();
        assert_eq!(cells[0], "total");
        assert_eq!(cells[3], usage["total"]["on-disk"].to_string());
        assert_eq!(lines.lines().count(), usage["layers"].as_array().unwrap().len() + 2 + 1 + 2);
        assert!(lines.lines().any(|line| line.starts_with(&format!("image\t{first}\t")) && line.ends_with("\tfirst")));
    }
}

#[test]
fn root_du_tells_shared_extents() {
    if !in_own_mount_namespace("root_du_tells_shared_extents") {
        return;
    }
    let store = TestStore::new("vfs");
    let (image, root) = (store.path("image"), store.path("root"));
    fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    fs::create_dir(&root).unwrap();
    let made = Command::new("mkfs.btrfs").args(["-q", "-K"]).arg(&image).output().is_ok_and(|o| o.status.success())
        && Command::new("mount").args(["-o", "loop"]).args([&image, &root]).output().is_ok_and(|o| o.status.success());
    if !made {
        eprintln!("skipped: root_du_tells_shared_extents: btrfs cannot be made or mounted here");
        return;
    }
    let [base, one, ..] = fill(&store);
    run(Command::new("sync").arg("-f").arg(&root));
    let usage = json(&store, &["du", "--json"]);
    // Each layer above the base is a copy that shares the base's big file.
    for layer in [&base, &one] {
        let space = &of(&usage["layers"], layer)["space"];
        let (reflinked, on_disk) = (number(&space["reflinked"]), number(&space["on-disk"]));
        assert!((300_000..=on_disk).contains(&reflinked), "{layer}: {space}");
    }
    assert!(number(&of(&usage["layers"], &one)["space"]["on-disk"]) >= 350_000);
    let data = root.join("alone");
    fs::write(&data, vec![9; 500_000]).unwrap();
    run(Command::new("sync").arg("-f").arg(&root));
    let after = json(&store, &["du", "--json"]);
    assert_eq!(after["total"]["reflinked"], usage["total"]["reflinked"], "what is not shared is not counted as shared");
    let added = fs::metadata(&data).unwrap().blocks() * 512;
    assert_eq!(number(&after["other"]["on-disk"]), number(&usage["other"]["on-disk"]) + added);
    store.ok(&["shutdown", "--force"]);
    run(Command::new("umount").arg(&root));
}

#[test]
fn root_the_tree_shows_each_layer_once() {
    if !in_own_mount_namespace("root_the_tree_shows_each_layer_once") {
        return;
    }
    for driver in ["vfs", "overlay"] {
        let store = TestStore::new(driver);
        store.in_memory();
        let [base, one, two, first, _, container] = fill(&store);
        let text = store.ok(&["tree"]);
        let short = |id: &str| id[..12].to_owned();
        for (id, line) in [
            (&base, format!("└─ {}  ", short(&base))),
            (&one, format!("   ├─ {}  ", short(&one))),
            (&first, format!("   │  ├─ image {} first  ", short(&first))),
            (&container, format!("   │  └─ container {} box  ", short(&container))),
            (&two, format!("   └─ {}  ", short(&two))),
        ] {
            let found: Vec<&str> = text.lines().filter(|line| line.contains(&short(id))).collect();
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].starts_with(&line), "{line:?} in\n{text}");
        }
        let mounted = text.lines().find(|line| line.contains("container")).unwrap();
        assert!(mounted.contains("  mounted at /"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("; 4 layers, 2 images, 1 container"), "{text}");

        let tree = json(&store, &["tree", "--json"]);
        let sizes: u64 = tree["layers"].as_array().unwrap().iter().map(|layer| number(&layer["size"])).sum();
        assert_eq!(number(&tree["size"]), sizes);
        let layer = |id: &str| number(&of(&tree["layers"], id)["size"]);
        assert_eq!(number(&of(&tree["images"], &first)["size"]), layer(&base) + layer(&one));
        assert_eq!(of(&tree["layers"], &one)["parent"], base);
        let recorded = json(&store, &["layers", "--json"]);
        assert_eq!(layer(&base), number(&of(&recorded, &base)["diff-size"]));
        store.ok(&["shutdown", "--force"]);
    }
}
