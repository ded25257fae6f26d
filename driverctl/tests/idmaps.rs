//! Layers, images and containers with id mappings, without mapped mounts: files have to be owned by the ids of the
//! container's processes. What the peer's own suite demands of that, for both drivers, and side by side with the peer.

#![allow(clippy::disallowed_methods, reason = "tests set their scene by path")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may fail at once, and say what they skip")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{TestStore, both, have, in_own_mount_namespace, run};

/// Start of the `n`-th range: far up, where ids have their highest bit set.
fn range(n: u32) -> u32 {
    (49_152 + 37 * n) * 65_536
}

fn map(n: u32) -> String {
    format!("0:{}:7", range(n))
}

/// Both flags for the `n`-th range; 0 stands for the host's ids.
fn flags(n: u32) -> Vec<String> {
    if n == 0 {
        vec!["--hostuidmap".to_owned(), "--hostgidmap".to_owned()]
    } else {
        vec!["--uidmap".to_owned(), map(n), "--gidmap".to_owned(), map(n)]
    }
}

fn start(n: u32) -> u32 {
    if n == 0 { 0 } else { range(n) }
}

/// A store whose overlay does not map ids at mount time.
struct Unmapped {
    store: TestStore,
    /// Further global flags.
    more: Vec<String>,
}

impl Unmapped {
    fn new(driver: &'static str) -> Self {
        let store = TestStore::new(driver);
        store.in_memory();
        Self { store, more: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.path(name)
    }

    fn output(&self, words: &[&str]) -> Output {
        let mut command = self.store.command(&self.more);
        command.args(words).env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes").output().unwrap()
    }

    /// The first line of what a verb prints that must succeed, in silence on standard error.
    fn ok(&self, words: &[&str]) -> String {
        let all = self.all(words);
        all.lines().next().unwrap_or_default().to_owned()
    }

    fn all(&self, words: &[&str]) -> String {
        let out = self.output(words);
        assert!(out.status.success() && out.stderr.is_empty(), "{words:?}: {}: {}", out.status, both(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    fn mapped(&self, verb: &str, n: u32, object: &str) -> String {
        let flags = flags(n);
        let mut words = vec![verb];
        words.extend(flags.iter().map(String::as_str));
        words.push(object);
        self.ok(&words)
    }

    fn peer(&self, words: &[&str]) -> String {
        let mut command = self.store.peer(&self.more);
        run(command.args(words).env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes")).trim_end().to_owned()
    }

    fn mount(&self, object: &str) -> PathBuf {
        PathBuf::from(self.ok(&["mount", object]))
    }

    /// Where the layer's ids begin, by its record. (A peer that cannot be kept from mapping ids at mount time records none.)
    fn recorded(&self, layer: &str) -> u32 {
        let record: serde_json::Value = serde_json::from_str(&self.all(&["layer", "--json", layer])).unwrap();
        record[0]["uidmap"][0]["host_id"].as_u64().map_or(0, |id| u32::try_from(id).unwrap())
    }

    /// The values of lines that begin with `key`.
    fn values(&self, verb: &str, object: &str, key: &str) -> Vec<String> {
        let all = self.all(&[verb, object]);
        all.lines().filter_map(|line| line.strip_prefix(key)).map(|value| value.trim_start().to_owned()).collect()
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (stat.uid(), stat.gid())
}

/// `file1` to `file5`, each owned by its number above `start`.
fn files(dir: &Path, start: u32) {
    for n in 1..=5 {
        let path = dir.join(format!("file{n}"));
        fs::write(&path, format!("content of file {n}")).unwrap();
        lchown(&path, Some(start + n), Some(start + n)).unwrap();
    }
}

fn assert_files(dir: &Path, start: u32) {
    for n in 1..=5 {
        let path = dir.join(format!("file{n}"));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("content of file {n}"));
        assert_eq!(owner(&path), (start + n, start + n), "{}", path.display());
    }
}

fn tar(dir: &Path, archive: &Path, names: &[&str]) {
    run(Command::new("tar").args(["--numeric-owner", "-cf"]).arg(archive).arg("-C").arg(dir).args(names));
}

fn for_each_driver(work: impl Fn(&Unmapped)) {
    for driver in ["overlay", "vfs"] {
        eprintln!("driver {driver}");
        work(&Unmapped::new(driver));
    }
}

#[test]
fn root_inherited_and_applied_files_have_the_layers_owners() {
    if !in_own_mount_namespace("root_inherited_and_applied_files_have_the_layers_owners") {
        return;
    }
    for_each_driver(|store| {
        let source = store.path("source");
        for n in 1..=5 {
            fs::create_dir_all(source.join(format!("sub{n}"))).unwrap();
            files(&source.join(format!("sub{n}")), 0);
            tar(&source, &store.path(&format!("diff{n}.tar")), &[&format!("sub{n}")]);
        }
        let base = store.mapped("create-layer", 0, "");
        let mount = store.mount(&base);
        files(&mount, 0);
        fs::write(mount.join("origin"), "two names").unwrap();
        fs::hard_link(mount.join("origin"), mount.join("further")).unwrap();
        let mut lower = base;
        for n in 1..=5_u32 {
            // One of them goes back to the host's ids.
            let which = if n == 2 { 0 } else { n };
            let layer = store.mapped("create-layer", which, &lower);
            let mount = store.mount(&layer);
            assert_eq!(owner(&mount), (start(which), start(which)), "the root");
            let archive = store.path(&format!("diff{n}.tar"));
            assert_eq!(store.all(&["apply-diff", "-f", archive.to_str().unwrap(), &layer]), "");
            let inode = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
            assert_eq!(inode("origin"), inode("further"), "a hard link was broken");
            assert_files(&mount, start(which));
            for applied in 1..=n {
                assert_files(&mount.join(format!("sub{applied}")), start(which));
            }
            lower = layer;
        }
    });
}

#[test]
fn root_new_owners_are_no_change() {
    if !in_own_mount_namespace("root_new_owners_are_no_change") {
        return;
    }
    for_each_driver(|store| {
        let base = store.mapped("create-layer", 1, "");
        files(&store.mount(&base), range(1));
        let mut lower = base;
        for n in 1..=5_u32 {
            let which = if n == 2 { 0 } else { n + 1 };
            let layer = store.mapped("create-layer", which, &lower);
            let mount = store.mount(&layer);
            assert_eq!(store.all(&["changes", &layer]), "");
            let name = format!("file{n}");
            lchown(mount.join(&name), Some(start(which)), Some(start(which))).unwrap();
            assert_eq!(store.all(&["changes", &layer]), format!("Modify \"/{name}\"\n"));
            let archive = store.path("diff.tar");
            assert_eq!(store.all(&["diff", "-u", "-f", archive.to_str().unwrap(), &layer]), "");
            let listed = run(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&archive));
            let columns: Vec<&str> = listed.split_whitespace().collect();
            assert_eq!(
                (listed.lines().count(), columns.get(1), columns.last()),
                (1, Some(&"0/0"), Some(&name.as_str())),
                "{listed}"
            );
            lower = layer;
        }
        // An image of it: whatever containers ask for, they get.
        store.ok(&["create-image", "--name=mapped", &lower]);
        let all_root = |dir: &Path, start: u32| {
            for n in 1..=5 {
                assert_eq!(owner(&dir.join(format!("file{n}"))), (start, start));
            }
        };
        for (n, start) in [(0, 0), (0, 0), (9, range(9))] {
            all_root(&store.mount(&store.mapped("create-container", n, "mapped")), start);
        }
        all_root(&store.mount(&store.ok(&["create-container", "mapped"])), 0);
        let tops = store.values("image", "mapped", "Top Layer:");
        assert_eq!(tops.len(), 3, "its own, one of the host's ids, one of the ninth range");
        // The image itself is shown with the host's ids, by the copy that is there.
        let path = PathBuf::from(store.ok(&["mount", "-r", "mapped"]));
        all_root(&path, 0);
        assert_eq!(store.values("image", "mapped", "Top Layer:"), tops);
        assert_eq!(store.all(&["unmount", "mapped"]), "");
        assert!(store.store.driver == "vfs" || fs::read_dir(&path).unwrap().next().is_none(), "still mounted");
    });
}

/// An image of two layers, its second with the files.
fn image(store: &Unmapped) -> (String, String) {
    let source = store.path("source");
    fs::create_dir_all(&source).unwrap();
    files(&source, 0);
    tar(&source, &store.path("layer.tar"), &["file1", "file2", "file3", "file4", "file5"]);
    fs::write(store.path("empty.tar"), [0; 1024]).unwrap();
    let base = store.mapped("create-layer", 0, "");
    store.all(&["applydiff", "-f", store.path("empty.tar").to_str().unwrap(), &base]);
    let top = store.mapped("create-layer", 0, &base);
    store.all(&["applydiff", "-f", store.path("layer.tar").to_str().unwrap(), &top]);
    (store.ok(&["create-image", &top]), top)
}

fn sha256(path: &Path) -> String {
    let sum = run(Command::new("sha256sum").arg(path));
    format!("sha256:{}", sum.split(' ').next().unwrap())
}

#[test]
fn root_every_mapping_gets_its_copy_of_the_top_layer() {
    if !in_own_mount_namespace("root_every_mapping_gets_its_copy_of_the_top_layer") {
        return;
    }
    for_each_driver(|store| {
        let (image, top) = image(store);
        let mut containers = Vec::new();
        for n in [1, 0, 3, 4, 5] {
            let container = store.mapped("create-container", n, &image);
            let mount = store.mount(&container);
            assert_files(&mount, start(n));
            assert_eq!(owner(&mount), (start(n), start(n)), "the root");
            store.all(&["unmount", &container]);
            containers.push(container);
        }
        // Once more the same costs no further layer.
        containers.push(store.mapped("create-container", 4, &image));
        let tops = store.values("image", &image, "Top Layer:");
        assert_eq!(tops.len(), 5);
        let mut parents = Vec::new();
        for container in &containers {
            assert_eq!(store.values("container", container, "Size:"), ["0"]);
            let layer = store.values("container", container, "Layer:").remove(0);
            parents.extend(store.values("layer", &layer, "Parent:"));
        }
        parents.sort();
        parents.dedup();
        let mut sorted = tops.clone();
        sorted.sort();
        assert_eq!(parents, sorted);
        // Each has the digest and size that are recorded, and says of itself what the original does.
        let changes = store.all(&["changes", &top]);
        for layer in &tops {
            let archive = store.path("diff.tar");
            store.all(&["diff", "-u", "-f", archive.to_str().unwrap(), layer]);
            let record: serde_json::Value = serde_json::from_str(&store.all(&["layer", "--json", layer])).unwrap();
            assert_eq!(record[0]["diff-digest"], sha256(&archive));
            assert_eq!(record[0]["diff-size"], fs::metadata(&archive).unwrap().len());
            assert_eq!(store.all(&["changes", layer]), changes);
        }
        // A second image on the first one's layers.
        let upper = store.mapped("create-layer", 0, &top);
        store.all(&["applydiff", "-f", store.path("empty.tar").to_str().unwrap(), &upper]);
        let upper_image = store.ok(&["create-image", &upper]);
        for container in &containers {
            store.all(&["delete-container", container]);
        }
        assert!(store.output(&["delete-image", &image]).status.success());
        assert_eq!(store.all(&["layers", "-q"]).lines().count(), 3, "{}", store.all(&["layers", "-t"]));
        assert!(store.output(&["delete-image", &upper_image]).status.success());
        assert_eq!(store.all(&["layers"]), "");
        let left = fs::read_dir(store.path("root").join(store.store.driver).join(if store.store.driver == "vfs" {
            "dir"
        } else {
            "l"
        }));
        assert_eq!(left.unwrap().count(), 0);
    });
}

#[test]
fn root_images_of_read_only_stores_stay_as_they_are() {
    if !in_own_mount_namespace("root_images_of_read_only_stores_stay_as_they_are") {
        return;
    }
    for_each_driver(|store| {
        let root = store.path("ro-root").display().to_string();
        let other = Unmapped {
            store: TestStore { dir: tempfile::tempdir_in(store.path("")).unwrap(), driver: store.store.driver },
            more: vec![
                "--graph".to_owned(),
                root.clone(),
                "--run".to_owned(),
                store.path("ro-run").display().to_string(),
            ],
        };
        let base = other.mapped("create-layer", 0, "");
        let top = other.mapped("create-layer", 0, &base);
        files(&other.mount(&top), 0);
        other.all(&["unmount", &top]);
        let image = other.ok(&["create-image", &top]);
        other.all(&["shutdown"]);
        let before = fs::read(store.path(&format!("ro-root/{}-images/images.json", store.store.driver))).unwrap();

        let own = Unmapped {
            store: TestStore { dir: tempfile::tempdir_in(store.path("")).unwrap(), driver: store.store.driver },
            more: vec!["--storage-opt".to_owned(), format!("{}.imagestore={root}", store.store.driver)],
        };
        let mut containers = Vec::new();
        for n in [1, 0, 3, 4, 5] {
            let container = own.mapped("create-container", n, &image);
            assert_files(&own.mount(&container), start(n));
            own.all(&["unmount", &container]);
            assert_eq!(own.values("container", &container, "Size:"), ["0"]);
            let layer = own.values("container", &container, "Layer:").remove(0);
            assert_eq!(own.values("layer", &layer, "Parent:"), [top.as_str()]);
            containers.push(container);
        }
        assert_eq!(own.values("image", &image, "Top Layer:"), [top.as_str()]);
        // An own image of a layer that lies only there: the same.
        let image = own.ok(&["create-image", &top]);
        assert_files(&own.mount(&own.mapped("create-container", 6, &image)), range(6));
        assert_eq!(own.values("image", &image, "Top Layer:"), [top.as_str()]);
        for container in &containers {
            own.all(&["delete-container", container]);
        }
        assert_eq!(
            fs::read(store.path(&format!("ro-root/{}-images/images.json", store.store.driver))).unwrap(),
            before
        );
    });
}

#[test]
fn root_mapped_read_only_layers_are_deleted_by_the_rules() {
    if !in_own_mount_namespace("root_mapped_read_only_layers_are_deleted_by_the_rules") {
        return;
    }
    for_each_driver(|store| {
        let below = store.ok(&["create-layer", "-r"]);
        let middle = store.ok(&["create-layer", "-r", "--uidmap", "0:100:100000", "--gidmap", "0:100:100000", &below]);
        let top = store.ok(&["create-layer", "-r", "--uidmap", "0:200:100000", "--gidmap", "0:200:100000", &middle]);
        for used in [&below, &middle] {
            assert!(!store.output(&["delete-layer", used]).status.success());
        }
        // Its mappings, one line each, and the parent's where none are asked for.
        assert_eq!(store.values("layer", &top, "UID mapping:"), ["(container=0, host=200, size=100000)"]);
        let child = store.ok(&["create-layer", &top]);
        assert_eq!(store.values("layer", &child, "GID mapping:"), ["(container=0, host=200, size=100000)"]);
        for layer in [&child, &top, &middle] {
            store.all(&["delete-layer", layer]);
        }
        let image = store.ok(&["create-image", &below]);
        assert!(!store.output(&["delete-layer", &below]).status.success());
        assert!(store.output(&["delete-image", &image]).status.success());
        assert_eq!(store.all(&["layers"]), "");
    });
}

#[test]
fn root_peer_and_we_use_each_others_mapped_layers() {
    if !in_own_mount_namespace("root_peer_and_we_use_each_others_mapped_layers")
        || !have("containers-storage", "mapped layers beside the peer")
    {
        return;
    }
    for_each_driver(|store| {
        let (image, top) = image(store);
        // Ours, used by the peer.
        let ours = store.mapped("create-container", 1, &image);
        let words = |n| [vec!["create-container".to_owned()], flags(n), vec![image.clone()]].concat();
        let peer = |n| {
            let words = words(n);
            store.peer(&words.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let theirs = peer(1);
        assert_eq!(store.values("image", &image, "Top Layer:").len(), 2, "the peer copied what was copied already");
        let mount = PathBuf::from(store.peer(&["mount", &theirs]));
        assert_files(&mount, range(1));
        store.peer(&["unmount", &theirs]);
        // The peer's, used by us.
        let theirs_too = peer(2);
        let ours_too = store.mapped("create-container", 2, &image);
        assert_eq!(store.values("image", &image, "Top Layer:").len(), 3, "we copied what was copied already");
        assert_files(&store.mount(&ours_too), range(2));
        store.all(&["unmount", &ours_too]);
        // Both say the same of all top layers.
        for layer in store.values("image", &image, "Top Layer:") {
            let (mine, yours) = (store.path("mine.tar"), store.path("yours.tar"));
            store.all(&["diff", "-u", "-f", mine.to_str().unwrap(), &layer]);
            store.peer(&["diff", "-u", "-f", yours.to_str().unwrap(), &layer]);
            assert_eq!(sha256(&mine), sha256(&yours));
            assert_eq!(sha256(&mine), sha256(&store.path("layer.tar")));
        }
        // A copy that we make of the peer's mapped layer, on which the peer makes one in turn.
        let peers_layer = store.peer(&["create-layer", "--uidmap", &map(3), "--gidmap", &map(3), &top]);
        let on_it = store.mapped("create-layer", 4, &peers_layer);
        assert_files(&store.mount(&on_it), range(4));
        assert_eq!(store.all(&["changes", &on_it]), "");
        store.all(&["unmount", &on_it]);
        let on_that = store.peer(&["create-layer", "--uidmap", &map(5), "--gidmap", &map(5), &on_it]);
        assert_files(&PathBuf::from(store.peer(&["mount", &on_that])), store.recorded(&on_that));
        store.peer(&["unmount", &on_that]);
        for container in [ours, theirs, theirs_too, ours_too] {
            store.peer(&["delete-container", &container]);
        }
        for layer in [on_that, on_it, peers_layer] {
            store.peer(&["delete-layer", &layer]);
        }
        store.peer(&["delete-image", &image]);
        assert_eq!(store.peer(&["layers"]), "");
        store.peer(&["shutdown"]);
    });
}
