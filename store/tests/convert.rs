//! A store goes from one driver to another, with everything it has, or stays as it was.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use graph_archive::idmap::{IdMappings, IdRange};
use graph_store::{
    ConvertOptions, Converted, CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, ErrorKind,
    Expected, MountOptions, Store, StoreOptions,
};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use support::{Place, gzip, has_program, isolated, three_layers, tree};

const IMAGE: &str = "1111111111111111111111111111111111111111111111111111111111111111";

/// Points are the process's: one test at a time, where tests share one.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shell(dir: &Path, script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).current_dir(dir).status().unwrap().success(), "{script}");
}

/// All that a container can do to its tree.
const WRITES: &str = "echo changed >dir/one; rm -r opaque; mkdir opaque; echo fresh >opaque/fresh; rm link; ln -s elsewhere link; \
    mkdir -p deep/er; echo new >deep/er/new; ln deep/er/new deep/hard; chmod 700 big; mkfifo pipe; chmod 711 .; \
    touch -d '2021-02-03 04:05:06.123456789' deep/er/new deep/er deep; truncate -s 50M sparse; \
    setfattr -n user.note -v kept deep; mknod null c 1 3; chown 7:8 deep/er/new; \
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; rm dir/one; echo again >dir/one";

fn import(store: &Store, id: &str, parent: Option<&str>, blob: &[u8], names: &[&str]) {
    let options = CreateLayer {
        id: Some(id.to_owned()),
        parent: parent.map(str::to_owned),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        metadata: format!("about {id}"),
        big_data: vec![("some-key".to_owned(), b"some value".to_vec())],
        ..CreateLayer::default()
    };
    store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap();
}

/// Three layers, an image, a written container, a volatile one, and a layer that is a parent without an archive.
fn fill(store: &Store) {
    let [base, middle, top] = three_layers();
    import(store, "base", None, &base, &["first"]);
    import(store, "middle", Some("base"), &gzip(&middle), &[]);
    import(store, "top", Some("middle"), &top, &["top-name"]);
    let image = CreateImage {
        id: Some(IMAGE.to_owned()),
        names: vec!["localhost/app:1".to_owned(), "localhost/app:2".to_owned()],
        names_history: vec!["localhost/app:0".to_owned()],
        layer: Some("top".to_owned()),
        metadata: "{\"a\":1}".to_owned(),
        big_data: vec![("manifest".to_owned(), b"{}".to_vec()), ("sha256:x".to_owned(), b"config".to_vec())],
        ..CreateImage::default()
    };
    store.create_image(&image).unwrap();
    let container = CreateContainer {
        id: Some("box".to_owned()),
        names: vec!["boxed".to_owned()],
        image: Some(IMAGE.to_owned()),
        layer: Some("box-layer".to_owned()),
        metadata: "text".to_owned(),
        big_data: vec![("config".to_owned(), b"of the engine".to_vec())],
        ..CreateContainer::default()
    };
    store.create_container(&container).unwrap();
    let path = store.mount("box", &MountOptions::default()).unwrap();
    shell(&path, WRITES);
    store.unmount("box", false).unwrap();
    std::fs::write(store.container_directory("box").unwrap().join("hosts"), "127.0.0.1 localhost").unwrap();
    std::fs::write(store.container_run_directory("box").unwrap().join("pid"), "1").unwrap();
    let volatile = CreateContainer {
        id: Some("loose".to_owned()),
        image: Some(IMAGE.to_owned()),
        layer: Some("loose-layer".to_owned()),
        volatile: true,
        ..CreateContainer::default()
    };
    store.create_container(&volatile).unwrap();
    let built = CreateLayer {
        id: Some("built".to_owned()),
        parent: Some("base".to_owned()),
        read_write: true,
        ..CreateLayer::default()
    };
    store.create_layer(&built).unwrap();
    let path = store.mount("built", &MountOptions::default()).unwrap();
    shell(&path, "rm gone; echo built >built");
    store.unmount("built", false).unwrap();
    import(store, "on-built", Some("built"), &middle, &[]);
}

/// Everything about a store that the driver must not change.
struct Seen {
    records: BTreeMap<String, String>,
    trees: BTreeMap<String, String>,
    diffs: BTreeMap<String, Vec<u8>>,
    changes: BTreeMap<String, String>,
    data: Vec<Vec<u8>>,
    container: String,
}

/// Says what differs, and only that.
fn assert_same(found: &Seen, expected: &Seen, when: &str) {
    let same = |what: &str, found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>| {
        let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(expected), "{when}: {what}");
        for (name, text) in expected {
            let lines: Vec<(&str, &str)> =
                found[name].lines().zip(text.lines()).filter(|(found, expected)| found != expected).collect();
            assert!(found[name] == *text, "{when}: {what} of {name}: (found, expected): {lines:#?}");
        }
    };
    same("record", &found.records, &expected.records);
    same("tree", &found.trees, &expected.trees);
    same("changes", &found.changes, &expected.changes);
    assert!(found.diffs == expected.diffs, "{when}: diffs");
    assert_eq!(found.data, expected.data, "{when}");
    assert_eq!(found.container, expected.container, "{when}");
}

/// As `tree`, with times to the nanosecond and attributes.
fn full_tree(path: &Path) -> String {
    let times = Command::new("find")
        .args([".", "-not", "-type", "s", "-printf", "%p %m %T+\n"])
        .current_dir(path)
        .output()
        .unwrap();
    let attributes = Command::new("getfattr").args(["-Rdh", "-m", "user"]).arg(".").current_dir(path).output().unwrap();
    let mut lines: Vec<String> = String::from_utf8(times.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    let linked = std::fs::metadata(path.join("deep/er/new")).map_or(0, |file| file.nlink());
    lines.push(format!("deep/er/new has {linked} names"));
    let tree: Vec<String> =
        tree(path).lines().filter(|line| !line.starts_with("./socket ")).map(str::to_owned).collect();
    format!("{}\n{}\n{}", tree.join("\n"), lines.join("\n"), String::from_utf8_lossy(&attributes.stdout))
}

fn see(store: &Store) -> Seen {
    let driver = store.driver().name();
    let mut records = BTreeMap::new();
    for (kind, file) in [
        ("layers", "layers.json"),
        ("layers", "volatile-layers.json"),
        ("images", "images.json"),
        ("containers", "containers.json"),
        ("containers", "volatile-containers.json"),
    ] {
        let path = store.root().join(format!("{driver}-{kind}")).join(file);
        records.insert(file.to_owned(), std::fs::read_to_string(path).unwrap_or_default());
    }
    let mut seen = Seen {
        records,
        trees: BTreeMap::new(),
        diffs: BTreeMap::new(),
        changes: BTreeMap::new(),
        data: Vec::new(),
        container: String::new(),
    };
    for layer in store.layers().unwrap() {
        let mut options = MountOptions { read_only: true, ..MountOptions::default() };
        options.mappings = Some(layer.mappings());
        let path = store.mount(&layer.id, &options).unwrap();
        seen.trees.insert(layer.id.clone(), full_tree(&path));
        store.unmount(&layer.id, false).unwrap();
        // Whether a socket is listed as a change is the one thing that may differ.
        let changes = store.changes(None, &layer.id).unwrap();
        let changes = changes.iter().filter(|change| change.path != b"/socket");
        seen.changes.insert(layer.id.clone(), format!("{:?}", changes.collect::<Vec<_>>()));
        if !layer.diff_digest.is_empty() {
            let mut out = Vec::new();
            let plain = DiffOptions { compression: Some(DiffCompression::None) };
            store.diff(None, &layer.id, &mut out, &plain).unwrap();
            seen.diffs.insert(layer.id.clone(), out);
        }
        if layer.big_data_names.contains(&"some-key".to_owned()) {
            seen.data.push(store.layer_big_data(&layer.id, "some-key").unwrap());
        }
    }
    seen.data.push(store.image_big_data(IMAGE, "sha256:x").unwrap());
    seen.data.push(store.container_big_data("box", "config").unwrap());
    seen.data.push(std::fs::read(store.container_directory("box").unwrap().join("hosts")).unwrap());
    seen.data.push(std::fs::read(store.container_run_directory("box").unwrap().join("pid")).unwrap());
    let container = store.container("boxed").unwrap();
    seen.container = format!("{} {} {}", container.id, container.image, container.layer);
    seen
}

fn open(place: &Place, driver: &str) -> graph_store::Result<Store> {
    let options = StoreOptions { driver: Some(driver.to_owned()), ..place.options() };
    Store::open(options, &graph_drivers::registry().unwrap())
}

fn convert(store: Store, to: &str) -> graph_store::Result<Converted> {
    store.convert(to, &graph_drivers::registry().unwrap(), &ConvertOptions::default())
}

const WAYS: [(&str, &str); 2] = [("overlay", "vfs"), ("vfs", "overlay")];

#[test]
fn a_store_goes_over_and_back_with_all_it_has() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    for (from, to) in WAYS {
        let place = Place::new(from);
        let store = place.open();
        fill(&store);
        let before = see(&store);
        let converted = convert(store, to).unwrap();
        assert_eq!((converted.from.as_str(), converted.to.as_str()), (from, to));
        assert_eq!((converted.layers, converted.kept, converted.images, converted.containers), (7, 0, 1, 2));
        assert_eq!(converted.notices.len(), 1, "the socket: {:?}", converted.notices);
        let old = place.root().join(format!("converted-from-{from}"));
        assert_eq!(converted.old.as_deref(), Some(old.as_path()));

        let store = open(&place, to).unwrap();
        assert_eq!(store.warnings(), [] as [String; 0]);
        let after = see(&store);
        assert_same(&after, &before, &format!("{from} to {to}"));
        drop(store);
        // Nobody begins an empty store where the old one was.
        let error = open(&place, from).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WasConverted, "{error}");
        // The old store is whole, where it is now.
        let options = StoreOptions {
            root: old.clone(),
            run_root: place.dir.path().join("old-run"),
            driver: Some(from.to_owned()),
            ..StoreOptions::default()
        };
        let kept = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
        assert_eq!(kept.layers().unwrap().len(), 7);
        let path = kept.mount("box", &MountOptions::default()).unwrap();
        assert_eq!(full_tree(&path), before.trees["box-layer"]);
        kept.unmount("box", false).unwrap();
        drop(kept);

        if has_program("containers-storage") {
            let peer = |words: &[&str]| {
                let output = Command::new("containers-storage")
                    .arg("--graph")
                    .arg(place.root())
                    .arg("--run")
                    .arg(place.run())
                    .args(["-s", to])
                    .args(words)
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            };
            let mut listed: Vec<String> =
                peer(&["layers"]).lines().filter(|line| !line.starts_with('\t')).map(str::to_owned).collect();
            listed.sort();
            // Older peers know no volatile layers.
            listed.retain(|layer| layer != "loose-layer");
            let layers = before.trees.keys().filter(|layer| *layer != "loose-layer");
            assert_eq!(listed, layers.cloned().collect::<Vec<_>>());
            let path = peer(&["mount", "box"]);
            assert_eq!(full_tree(Path::new(path.trim())), before.trees["box-layer"], "as the peer mounts it");
            peer(&["unmount", "box"]);
        }

        let back = convert(open(&place, to).unwrap(), from).unwrap();
        assert_eq!(back.notices, [] as [&str; 0], "the socket did not come along");
        assert_same(&see(&open(&place, from).unwrap()), &before, &format!("{from} to {to} and back"));
    }
}

#[test]
fn killed_at_every_step_it_can_be_called_again() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    for (from, to) in WAYS {
        // Made once and copied: only the conversion is tested here.
        let template = Place::in_memory(from);
        fill(&template.open());
        let before = see(&template.open());
        let copy = || {
            let place = Place::in_memory(from);
            let all = template.dir.path().join(".");
            assert!(Command::new("cp").arg("-a").args([&all, place.dir.path()]).status().unwrap().success());
            place
        };
        let place = copy();
        let store = place.open();
        let mut points: BTreeMap<&str, u64> = BTreeMap::new();
        for point in fault::record(|| drop(convert(store, to).unwrap())) {
            let hits = points.entry(point).or_default();
            // Every rename at the end; what comes with every layer, for the first layers; and the points of what is beneath
            // once, as they have tests of their own.
            let most = match point {
                "convert.moved" => 8,
                _ if point.starts_with("convert.") => 3,
                _ => 1,
            };
            *hits = hits.saturating_add(1).min(most);
        }
        assert!(points.keys().filter(|point| point.starts_with("convert.")).count() >= 9, "{points:?}");
        for (point, hits) in points {
            for hit in 1..=hits {
                eprintln!("{from} to {to}: kill at hit {hit} of {point}");
                let place = copy();
                let end = fault::in_child(|| {
                    let store = place.open();
                    let _armed = fault::arm(point, hit, Action::Kill);
                    drop(convert(store, to));
                });
                assert_eq!(end, Ok(ChildEnd::Killed));
                match open(&place, from) {
                    Ok(store) => {
                        assert_eq!(store.warnings(), [] as [String; 0]);
                        drop(convert(store, to).unwrap());
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WasConverted, "{error}"),
                }
                let store = open(&place, to).unwrap();
                assert_same(&see(&store), &before, &format!("killed at hit {hit} of {point}"));
                let names = place.names_in("root");
                assert!(!names.iter().any(|name| name.starts_with("converting-to")), "{names:?}");
            }
        }
    }
}

#[test]
fn an_error_leaves_the_store_as_it_was() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let place = Place::in_memory("overlay");
    fill(&place.open());
    let before = see(&place.open());
    for point in ["convert.read", "convert.layer-staged", "convert.layer-made", "convert.records-copied"] {
        let store = place.open();
        let armed = fault::arm(point, 1, Action::Fail(Errno::NOSPC));
        convert(store, "vfs").unwrap_err();
        drop(armed);
        assert_same(&see(&place.open()), &before, point);
    }
    // What was done by then is not done again.
    let converted = convert(place.open(), "vfs").unwrap();
    assert!(converted.kept >= 3, "{converted:?}");
    assert_same(&see(&open(&place, "vfs").unwrap()), &before, "afterwards");
}

#[test]
fn an_old_store_that_changed_after_a_kill_is_converted_anew() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let place = Place::in_memory("overlay");
    fill(&place.open());
    // Killed when the new store is in its place, and the old one is, too.
    let end = fault::in_child(|| {
        let store = place.open();
        let _armed = fault::arm("convert.moved", 4, Action::Kill);
        drop(convert(store, "vfs"));
    });
    assert_eq!(end, Ok(ChildEnd::Killed));
    if !has_program("containers-storage") {
        return;
    }
    place.peer(&["create-layer", "-i", "late"]);
    let store = place.open();
    assert!(store.layer("late").is_ok());
    let before = see(&store);
    let converted = convert(store, "vfs").unwrap();
    assert_eq!(converted.layers, 8);
    assert_same(&see(&open(&place, "vfs").unwrap()), &before, "afterwards");
}

#[test]
fn what_was_written_after_a_layer_was_filled_goes_along() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    for (from, to) in WAYS {
        let place = Place::in_memory(from);
        let store = place.open();
        fill(&store);
        let path = store.mount("top", &MountOptions::default()).unwrap();
        shell(&path, "echo more >more; mkdir -p dir/deeper");
        store.unmount("top", false).unwrap();
        let before = see(&store);
        assert!(before.trees["top"].contains("./more"));
        convert(store, to).unwrap();
        let after = see(&open(&place, to).unwrap());
        for (layer, tree) in &before.trees {
            assert_eq!(&after.trees[layer], tree, "{from} to {to}: {layer}");
        }
    }
}

#[test]
fn what_cannot_be_converted_is_refused_and_says_why() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let place = Place::in_memory("overlay");
    fill(&place.open());
    let refused = |to: &str| convert(place.open(), to).unwrap_err().to_string();
    assert_eq!(refused("overlay"), "the store has the driver overlay already");
    assert!(refused("nosuch").contains("nosuch"), "{}", refused("nosuch"));
    std::fs::create_dir(place.root().join("vfs-layers")).unwrap();
    assert!(refused("vfs").contains("vfs-layers is there already"), "{}", refused("vfs"));
    std::fs::remove_dir(place.root().join("vfs-layers")).unwrap();
    let store = place.open();
    store.mount("box", &MountOptions::default()).unwrap();
    let said = refused("vfs");
    assert!(said.contains("layer box-layer is mounted at "), "{said}");
    store.unmount("box", false).unwrap();

    // A layer whose files are not what its archive says.
    let file = place.root().join("overlay/base/diff/dir/sub/two");
    let content = std::fs::read(&file).unwrap();
    std::fs::write(&file, "TWO\n").unwrap();
    let error = convert(place.open(), "vfs").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Archive, "{error}");
    assert!(error.to_string().contains("layer base"), "{error}");
    std::fs::write(&file, content).unwrap();
    // One without files.
    std::fs::rename(place.root().join("overlay/on-built"), place.dir.path().join("aside")).unwrap();
    assert!(refused("vfs").contains("layer on-built has a record and no files"), "{}", refused("vfs"));
    std::fs::rename(place.dir.path().join("aside"), place.root().join("overlay/on-built")).unwrap();

    // A disk that is too small.
    let small = tempfile::tempdir().unwrap();
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(small.path())
            .status()
            .unwrap()
            .success()
    );
    let options = StoreOptions {
        root: small.path().join("root"),
        run_root: small.path().join("run"),
        driver: Some("overlay".to_owned()),
        ..StoreOptions::default()
    };
    let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
    let [base, middle, top] = three_layers();
    import(&store, "base", None, &base, &[]);
    import(&store, "middle", Some("base"), &middle, &[]);
    import(&store, "top", Some("middle"), &top, &[]);
    let filler = graph_sys::fs::statvfs(small.path()).unwrap();
    let filler = vec![1_u8; usize::try_from(filler.f_bavail * filler.f_frsize).unwrap() - (500 << 10)];
    std::fs::write(small.path().join("filler"), filler).unwrap();
    let said = convert(store, "vfs").unwrap_err().to_string();
    assert!(said.starts_with("converting needs about ") && said.ends_with(" are free"), "{said}");
    drop(Command::new("umount").arg("-l").arg(small.path()).status());
    convert(place.open(), "vfs").unwrap();
}

#[test]
fn a_container_with_mappings_keeps_its_owners() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let range = |host_id| vec![IdRange { container_id: 0, host_id, size: 65_536 }];
    let mappings = IdMappings { uids: range(100_000), gids: range(200_000) };
    for (from, to) in WAYS {
        let place = Place::in_memory(from);
        let store = place.open();
        fill(&store);
        let container = CreateContainer {
            id: Some("mapped".to_owned()),
            image: Some(IMAGE.to_owned()),
            mappings: Some(mappings.clone()),
            ..CreateContainer::default()
        };
        store.create_container(&container).unwrap();
        let look = |store: &Store| {
            let path = store.mount("mapped", &MountOptions::default()).unwrap();
            let seen = tree(&path);
            store.unmount("mapped", false).unwrap();
            seen
        };
        let path = store.mount("mapped", &MountOptions::default()).unwrap();
        shell(&path, "echo mine >mine; chown 100007:200008 mine");
        store.unmount("mapped", false).unwrap();
        let before = look(&store);
        assert!(before.contains("100007:200008"), "{before}");
        convert(store, to).unwrap();
        let store = open(&place, to).unwrap();
        assert_eq!(look(&store), before, "{from} to {to}");
        assert_eq!(store.container("mapped").unwrap().mappings(), mappings);
    }
}

#[test]
fn the_old_store_goes_when_that_is_asked_for() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let place = Place::in_memory("vfs");
    let store = place.open();
    fill(&store);
    let options = ConvertOptions { remove_old: true, ..ConvertOptions::default() };
    let converted = store.convert("overlay", &graph_drivers::registry().unwrap(), &options).unwrap();
    assert_eq!(converted.old, None);
    let names = place.names_in("root");
    assert!(!names.iter().any(|name| name.starts_with("vfs") || name.starts_with("converted")), "{names:?}");
    assert_eq!(open(&place, "overlay").unwrap().layers().unwrap().len(), 7);
}
