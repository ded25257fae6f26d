//! Containers with user namespaces of their own, ours and podman's, on one store: what they see, what they cost, and that
//! automatic ones do not get in each other's way.

#![allow(clippy::disallowed_methods, reason = "tests set their scene by path")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "tests may fail at once, and say what they skip"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::engines::{BASE, Engines, Privilege, json, layout, tools};
use support::{TestStore, have, in_own_mount_namespace, in_own_user_namespace, many_files_tar, run};

fn owner(path: &Path) -> (u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (stat.uid(), stat.gid())
}

/// System calls of a verb, by strace's summary, but for those that wait for locks or make threads.
fn system_calls(store: &TestStore, words: &[&str]) -> (u64, String) {
    let counts = store.path("counts");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-c", "-U", "calls,name", "-o"]).arg(&counts).arg(support::DRIVERCTL);
    let said = run(traced.args(store.global()).args(words));
    let table = fs::read_to_string(&counts).unwrap();
    let total = table.lines().find(|line| line.split_whitespace().last() == Some("total")).unwrap();
    (total.split_whitespace().next().unwrap().parse().unwrap(), said.lines().next().unwrap().to_owned())
}

#[test]
fn root_a_container_on_new_ids_costs_the_same_for_an_image_of_30_files_and_of_3000() {
    let name = "root_a_container_on_new_ids_costs_the_same_for_an_image_of_30_files_and_of_3000";
    if !have("strace", name) || !in_own_mount_namespace(name) {
        return;
    }
    let cost = |directories| {
        let store = TestStore::new("overlay");
        let tar = store.path("layer.tar");
        many_files_tar(&tar, directories, 10);
        let layer = store.ok(&["import-layer", "--file", tar.to_str().unwrap()]);
        let layer = layer.lines().next().unwrap();
        store.ok(&["create-image", "-n", "image", layer]);
        // The first mount of a store's home is dearer.
        let first = store.ok(&["create-container", "image"]);
        store.ok(&["mount", first.lines().next().unwrap()]);
        let map = "0:300000:65536";
        let (made, container) = system_calls(&store, &["create-container", "--uidmap", map, "--gidmap", map, "image"]);
        let (mounted, path) = system_calls(&store, &["mount", &container]);
        let file = Path::new(&path).join("node_modules/package-0000/file-000.js");
        assert_eq!(owner(&file), (300_000, 300_000));
        assert_eq!(owner(Path::new(&path)), (300_000, 300_000));
        made + mounted
    };
    let (few, many) = (cost(3), cost(300));
    eprintln!("{few} system calls for 30 files, {many} for 3,000");
    assert!(many.abs_diff(few) <= 20, "{few} system calls for 30 files, {many} for 3,000");
}

fn maps(words: &[&'static str], start: u32) -> Vec<String> {
    let map = format!("0:{start}:65536");
    let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    all.extend(["--uidmap".to_owned(), map.clone(), "--gidmap".to_owned(), map]);
    all
}

/// Runs a container that says who owns a file of the image, writes one, and stays.
fn stays(engines: &Engines<'_>, name: &str, options: &[String], image: &str) -> PathBuf {
    let mut words: Vec<String> =
        ["run", "-d", "--network=none", "--cgroups=disabled", "--name", name].map(str::to_owned).to_vec();
    words.extend_from_slice(options);
    let script = "stat -c %u:%g /bin/suid >/seen; echo written >/written; busybox chown 7:8 /written; \
                  echo 1 >/ready; sleep 120";
    words.extend([image, "sh", "-c", script].map(str::to_owned));
    engines.podman(&words);
    let path = PathBuf::from(engines.ours(&["mount", name]));
    for _ in 0..600 {
        if path.join("ready").exists() {
            return path;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{name} has not begun: {}", engines.podman(&["logs", name]));
}

/// Stops and deletes a container. Podman finds its own mounts busy now and then, while what follows a container's end goes on.
fn remove(engines: &Engines<'_>, name: &str) {
    for _ in 0..40 {
        if engines.podman_command(&["rm", "-f", "-t", "0", name]).output().unwrap().status.success() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    panic!("{}", engines.podman(&["rm", "-f", "-t", "0", name]));
}

#[test]
fn root_peer_containers_with_different_ids_run_on_one_image_at_once() {
    let name = "root_peer_containers_with_different_ids_run_on_one_image_at_once";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    // Where ids are mapped at mount time, and where every mapping has its copy.
    for driver in ["overlay", "vfs"] {
        eprintln!("driver {driver}");
        let source = tempfile::tempdir_in("/var/tmp").unwrap();
        let source = source.path().join("layout");
        layout(&source, Privilege::Root);
        let store = TestStore::new(driver);
        let engines = Engines::new(&store, Privilege::Root);
        engines.ours(&["load", "--name", "localhost/app:1", &format!("oci:{}:app", source.display())]);
        let image = "localhost/app:1";
        let layers = json(&engines.ours(&["layers", "-j"])).as_array().unwrap().len();

        let starts = [("one", 100_000), ("two", 300_000), ("three", 500_000)];
        let running: Vec<PathBuf> =
            starts.iter().map(|(name, start)| stays(&engines, name, &maps(&[], *start), image)).collect();
        // One of ours beside them.
        let mut words = maps(&["create-container", "-n", "ours"], 700_000);
        words.push(image.to_owned());
        engines.ours(&words);
        let ours = PathBuf::from(engines.ours(&["mount", "ours"]));
        fs::write(ours.join("written"), "written").unwrap();
        lchown(ours.join("written"), Some(700_007), Some(700_008)).unwrap();
        for (path, start) in running.iter().chain([&ours]).zip([100_000, 300_000, 500_000, 700_000]) {
            assert_eq!(owner(&path.join("bin/suid")), (start + 1000, start + 1001), "{}", path.display());
            assert_eq!(owner(path), (start, start));
            assert_eq!(owner(&path.join("written")), (start + 7, start + 8));
        }
        for path in &running {
            assert_eq!(fs::read_to_string(path.join("seen")).unwrap(), "1000:1001\n");
        }
        if driver == "overlay" {
            // A layer for each container, and none for mappings.
            assert_eq!(json(&engines.ours(&["layers", "-j"])).as_array().unwrap().len(), layers + 4);
        }
        for (name, _) in starts {
            engines.ours(&["unmount", name]);
            remove(&engines, name);
        }
        // What a container wrote keeps its owners for those who only read.
        engines.ours(&["unmount", "ours"]);
        let read = PathBuf::from(engines.ours(&["mount", "-r", "ours"]));
        assert_eq!(owner(&read.join("written")), (700_007, 700_008));
        assert_eq!(owner(&read.join("bin/suid")), (701_000, 701_001));
        engines.ours(&["unmount", "ours"]);
        let changes = engines.ours(&["changes", "ours"]);
        assert_eq!(changes.trim_end(), "Add \"/written\"");
        engines.ours(&["delete-container", "ours"]);
        engines.assert_nothing_mounted();
    }
}

#[test]
fn root_peer_our_containers_with_ids_of_their_own_on_podmans_store() {
    let name = "root_peer_our_containers_with_ids_of_their_own_on_podmans_store";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        eprintln!("driver {driver}");
        let store = TestStore::new(driver);
        let engines = Engines::new(&store, Privilege::Root);
        engines.script(BASE);
        let mut words = maps(&["create-container", "-n", "ours"], 200_000);
        words.push("localhost/base:1".to_owned());
        engines.ours(&words);
        let path = PathBuf::from(engines.ours(&["mount", "ours"]));
        assert_eq!(owner(&path.join("bin/suid")), (201_000, 201_001));
        fs::write(path.join("written"), "written").unwrap();
        lchown(path.join("written"), Some(200_003), Some(200_004)).unwrap();
        engines.ours(&["unmount", "ours"]);
        // As the peer sees it.
        let theirs = PathBuf::from(engines.peer(&["mount", "ours"]));
        assert_eq!(owner(&theirs.join("bin/suid")), (201_000, 201_001));
        assert_eq!(owner(&theirs.join("written")), (200_003, 200_004));
        engines.peer(&["unmount", "ours"]);
        // The root, which the peer gives to the host's root at every mount, is the container's with us again.
        assert_eq!(owner(&PathBuf::from(engines.ours(&["mount", "ours"]))), (200_000, 200_000));
        engines.ours(&["unmount", "ours"]);
        // And podman's of the same mapping, beside it.
        let script = ["run", "--rm", "--network=none", "--cgroups=disabled"].map(str::to_owned).to_vec();
        let mut words = [script, maps(&[], 200_000)].concat();
        words.extend(["localhost/base:1", "stat", "-c", "%u:%g", "/bin/suid", "/"].map(str::to_owned));
        assert_eq!(engines.podman(&words), "1000:1001\n0:0");
        engines.peer(&["delete-container", "ours"]);
        engines.assert_nothing_mounted();
    }
}

/// Binds files over /etc/subuid and /etc/subgid, for this test alone.
fn sub_ids(store: &TestStore, lines: &str) {
    let file = store.path("subids");
    fs::write(&file, lines).unwrap();
    for target in ["/etc/subuid", "/etc/subgid"] {
        run(Command::new("mount").arg("--bind").arg(&file).arg(target));
    }
}

/// The ranges of a container's ids on the host, by the records.
fn host_ids(engines: &Engines<'_>, kind: &str) -> Vec<(String, u64, u64)> {
    let containers = json(&engines.ours(&["containers", "-j"]));
    let mut all = Vec::new();
    for container in containers.as_array().unwrap() {
        let name = container["names"][0].as_str().unwrap_or_default().to_owned();
        for range in container[kind].as_array().into_iter().flatten() {
            let number = |key: &str| range[key].as_u64().unwrap();
            all.push((name.clone(), number("host_id"), number("host_id") + number("size")));
        }
    }
    all.sort_by_key(|(_, start, _)| *start);
    all
}

fn assert_apart(ranges: &[(String, u64, u64)]) {
    for pair in ranges.windows(2) {
        let [(_, _, end), (_, start, _)] = pair else { continue };
        assert!(end <= start, "ids of two containers: {ranges:?}");
    }
}

#[test]
fn root_peer_automatic_namespaces_of_podman_and_of_ours_do_not_overlap() {
    let name = "root_peer_automatic_namespaces_of_podman_and_of_ours_do_not_overlap";
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        eprintln!("driver {driver}");
        let store = TestStore::new(driver);
        sub_ids(&store, "somebody:1000:100\ncontainers:2147483648:10000\n");
        let engines = Engines::new(&store, Privilege::Root);
        engines.script(BASE);
        let auto = |words: &str| vec![format!("--userns={words}")];
        let ours = |name: &str, words: &str| {
            engines.ours(&["create-container", "-n", name, "--userns", words, "localhost/base:1"]);
        };
        stays(&engines, "a", &auto("auto"), "localhost/base:1");
        ours("b", "auto");
        stays(&engines, "c", &auto("auto:size=1500"), "localhost/base:1");
        ours("d", "auto:size=1500");
        // At once.
        std::thread::scope(|scope| {
            for n in 0..3 {
                scope.spawn(move || ours(&format!("e{n}"), "auto:size=300"));
            }
            scope.spawn(|| stays(&engines, "f", &auto("auto:size=300"), "localhost/base:1"));
        });
        for kind in ["uidmap", "gidmap"] {
            let ranges = host_ids(&engines, kind);
            assert_apart(&ranges);
            let size = |name: &str| -> u64 {
                ranges.iter().filter(|(of, _, _)| of == name).map(|(_, start, end)| end - start).sum()
            };
            // The image's largest id is 1001: both find the least size that there is.
            assert_eq!([size("a"), size("b"), size("c"), size("d")], [1024, 1024, 1500, 1500], "{kind}: {ranges:?}");
            assert_eq!(size("e0") + size("e1") + size("e2") + size("f"), 1200, "{kind}: {ranges:?}");
            let (first, last) = (ranges.first().unwrap(), ranges.last().unwrap());
            assert!(first.1 >= 2_147_483_648 && last.2 <= 2_147_493_648, "{ranges:?}");
        }
        // Too many for what is left.
        let said = store.fails(&["create-container", "--userns", "auto:size=9000", "localhost/base:1"]);
        assert!(said.contains("not enough unused IDs in user namespace"), "{said}");
        let said = engines.podman_command(&["create", "--userns=auto:size=9000", "localhost/base:1", "true"]).output();
        assert!(!said.as_ref().unwrap().status.success(), "{said:?}");
        // The files of ours belong to its ids.
        let path = PathBuf::from(engines.ours(&["mount", "d"]));
        let start = host_ids(&engines, "uidmap").iter().find(|(name, _, _)| name == "d").unwrap().1;
        assert_eq!(u64::from(owner(&path.join("bin/sh")).0), start);
        engines.ours(&["unmount", "d"]);
        for name in ["a", "c", "f"] {
            engines.ours(&["unmount", name]);
            remove(&engines, name);
        }
        for target in ["/etc/subuid", "/etc/subgid"] {
            run(Command::new("umount").arg(target));
        }
    }
}

#[test]
fn rootless_automatic_namespaces_are_of_the_users_own_ids() {
    let name = "rootless_automatic_namespaces_are_of_the_users_own_ids";
    if !tools(&[], name) || !in_own_user_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        eprintln!("driver {driver}");
        let store = TestStore::new(driver);
        let engines = Engines::new(&store, Privilege::Namespace);
        engines.script(BASE);
        for (name, words) in [("one", "auto"), ("two", "auto:size=2000")] {
            engines.ours(&["create-container", "-n", name, "--userns", words, "localhost/base:1"]);
        }
        for kind in ["uidmap", "gidmap"] {
            let ranges = host_ids(&engines, kind);
            // By ids of the user's namespace, of which the first is the user.
            let expected = [("one".to_owned(), 1, 1025), ("two".to_owned(), 1025, 3025)];
            assert_eq!(ranges, expected, "{driver}: {kind}");
        }
        let path = PathBuf::from(engines.ours(&["mount", "two"]));
        assert_eq!(owner(&path.join("bin/suid")), (2025, 2026));
        engines.ours(&["unmount", "two"]);
        let said = store.fails(&["create-container", "--userns", "auto:size=65536", "localhost/base:1"]);
        assert!(said.contains("not enough unused IDs in user namespace"), "{said}");
    }
}
