//! Programs that mount instead of the engine: ours under an unmodified podman, and fuse-overlayfs under both.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::engines::{APP, BASE, Engines, Privilege, tools};
use support::{
    DRIVERCTL, TestStore, both, have, in_own_mount_namespace, in_own_user_namespace, in_own_user_namespace_with, run,
};

/// The name under which driverctl is a mount program.
fn our_program(store: &TestStore) -> PathBuf {
    let program = store.path("driverctl-overlay-mount");
    symlink(DRIVERCTL, &program).unwrap();
    program
}

/// Images with deletions built, run, committed and run again, all through mounts of that program.
fn a_round_of_podman(engines: &Engines<'_>) {
    engines.script(BASE);
    engines.script(APP);
    let look =
        "cat /etc/conf2.d/hard /opq/*; ls /opq; busybox test ! -e /etc/conf.d; busybox stat -c '%u %g %a' /bin/suid";
    let wanted = "one\nnew\nnew\n1000 1001 4755";
    assert_eq!(engines.podman_run(&["--rm", "localhost/app:1", "sh", "-c", look]), wanted);
    let write = "echo written >/new; rm /etc/group; busybox rm -r /opq; mkdir /opq; echo again >/opq/again; busybox chown 7:8 /new";
    engines.podman_run(&["--name", "c", "localhost/app:1", "sh", "-c", write]);
    // A second mount of the same container.
    engines.podman(&["start", "-a", "c"]);
    let diff = engines.podman(&["diff", "c"]);
    for line in ["A /new", "D /etc/group", "A /opq/again"] {
        assert!(diff.lines().any(|found| found == line), "{line} is not in\n{diff}");
    }
    engines.podman(&["commit", "-q", "c", "localhost/committed:1"]);
    let look = "cat /new; ls /opq; stat -c '%u %g' /new; test ! -e /etc/group";
    let said = engines.podman_run(&[
        "--rm",
        "localhost/committed:1",
        "sh",
        "-c",
        look.replace("test", "busybox test").as_str(),
    ]);
    assert_eq!(said, "written\nagain\n7 8");
    engines.podman(&["rm", "c"]);
    engines.assert_nothing_mounted();
}

fn mounts_for_podman(privilege: Privilege, name: &str) {
    let store = TestStore::new("overlay");
    let program = our_program(&store);
    let engines = Engines::new(&store, privilege).option(format!("overlay.mount_program={}", program.display()));
    a_round_of_podman(&engines);
    assert_eq!(fs::read_to_string(store.path("root/overlay/.has-mount-program")).unwrap(), "true", "{name}");
}

#[test]
fn root_peer_we_mount_for_podman() {
    let name = "root_peer_we_mount_for_podman";
    if tools(&[], name) && in_own_mount_namespace(name) {
        mounts_for_podman(Privilege::Root, name);
    }
}

#[test]
fn userns_peer_we_mount_for_podman() {
    let name = "userns_peer_we_mount_for_podman";
    if tools(&[], name) && in_own_user_namespace(name) {
        mounts_for_podman(Privilege::Namespace, name);
    }
}

/// Directories with two files and a deletion each, and how to call the program on them.
fn lay_out(store: &TestStore) -> Command {
    for (dir, file) in [("l1", "a"), ("l2", "b"), ("l2", "gone"), ("up", "c"), ("work", ""), ("merged", "")] {
        fs::create_dir_all(store.path(dir)).unwrap();
        if !file.is_empty() {
            fs::write(store.path(dir).join(file), file).unwrap();
        }
    }
    let mut command = Command::new(DRIVERCTL);
    command.current_dir(store.dir.path()).args(["overlay-mount", "-o"]);
    command
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn root_overlay_mount_takes_long_and_odd_paths_and_whiteouts_of_others() {
    let name = "root_overlay_mount_takes_long_and_odd_paths_and_whiteouts_of_others";
    if !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let mut command = lay_out(&store);
    let merged = store.path("merged");
    // Deletions as engines write them for a mount program; content that is only called so stays.
    fs::write(store.path("l1/.wh.gone"), "").unwrap();
    fs::write(store.path("l1/.wh.content"), "x").unwrap();
    fs::create_dir_all(store.path("l1/dir")).unwrap();
    fs::write(store.path("l1/dir/.wh..wh..opq"), "").unwrap();
    fs::create_dir_all(store.path("l1/again")).unwrap();
    fs::write(store.path("l1/.wh.again"), "").unwrap();
    for dir in ["dir", "again"] {
        fs::create_dir_all(store.path("l2").join(dir)).unwrap();
        fs::write(store.path("l2").join(dir).join("old"), "").unwrap();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(store.path("l1/dir")).unwrap().set_modified(time).unwrap();
    // A path of 3,000 bytes, a comma, a colon, and 500 directories.
    let mut long = store.path("x,y:z");
    for _ in 0..15 {
        long.push("n".repeat(200));
    }
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("far"), "").unwrap();
    let escaped = long.display().to_string().replace(',', "\\,").replace(':', "\\:");
    let mut lowers = vec!["l1".to_owned(), escaped];
    for number in 0..497 {
        fs::create_dir(store.path(&format!("e{number}"))).unwrap();
        lowers.push(format!("e{number}"));
    }
    lowers.push("l2".to_owned());
    assert_eq!(lowers.len(), 500);
    run(command.arg(format!("lowerdir={},upperdir=up,workdir=work,,volatile", lowers.join(":"))).arg("merged"));
    assert_eq!(names(&merged), [".wh.content", "a", "again", "b", "c", "dir", "far"]);
    assert!(names(&merged.join("dir")).is_empty() && names(&merged.join("again")).is_empty());
    assert_eq!(fs::metadata(merged.join("dir")).unwrap().modified().unwrap(), time);
    run(Command::new("umount").arg(&merged));

    // Read-only: of several directories, and of one.
    for lowers in ["l1:l2", "l2"] {
        run(lay_out(&store).arg(format!("lowerdir={lowers}")).arg("merged"));
        assert!(merged.join("b").exists());
        assert!(fs::write(merged.join("new"), "").is_err());
        run(Command::new("umount").arg(&merged));
    }

    // Other owners: on disk 5, shown as 100005, and the other way round; root stays root.
    std::os::unix::fs::chown(store.path("l2/b"), Some(5), Some(6)).unwrap();
    let mapped =
        "lowerdir=l1:l2,upperdir=up2,workdir=work2,uidmapping=:0:0:1:1:100001:65535,gidmapping=:0:0:1:1:100001:65535";
    fs::create_dir(store.path("up2")).unwrap();
    fs::create_dir(store.path("work2")).unwrap();
    run(lay_out(&store).arg(mapped).arg("merged"));
    let shown = fs::metadata(merged.join("b")).unwrap();
    assert_eq!((shown.uid(), shown.gid()), (100_005, 100_006));
    std::os::unix::fs::chown(merged.join("b"), Some(100_007), Some(100_008)).unwrap();
    run(Command::new("umount").arg(&merged));
    let stored = fs::metadata(store.path("up2/b")).unwrap();
    assert_eq!((stored.uid(), stored.gid()), (7, 8));
    run(lay_out(&store).arg("lowerdir=l1:l2,uidmapping=:0:100000:65536,gidmapping=:0:100000:65536").arg("merged"));
    assert_eq!(fs::metadata(merged.join("a")).unwrap().uid(), 100_000);
    run(Command::new("umount").arg(&merged));

    // What cannot be done is said, and nothing is mounted.
    for (words, said) in [
        ("lowerdir=l1:l2,squash_to_uid=5", "squash_to_uid"),
        ("lowerdir=l1:missing", "missing"),
        ("upperdir=up,workdir=work", "lowerdir"),
        ("lowerdir=l1:l2,nonsense=1", "nonsense"),
        ("lowerdir=l1:l2,upperdir=up2,workdir=work2,uidmapping=0:100000:65536", "leave out 0:0"),
    ] {
        let out = lay_out(&store).arg(words).arg("merged").output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{words}: {}", both(&out));
        assert!(both(&out).contains(said), "{words}: {}", both(&out));
        assert!(!merged.join("b").exists(), "{words}");
    }
}

/// Moves the test into a user namespace in which /dev/fuse is for everybody. A node for that is made outside, where one may.
fn with_fuse(name: &str) -> bool {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: {name}: there is no /dev/fuse");
        return false;
    }
    let node = support::is_root()
        .then(|| tempfile::Builder::new().prefix("driverctl-test-fuse").tempdir_in("/var/tmp").unwrap());
    let path = node.as_ref().map(|dir| dir.path().join("fuse"));
    let inside = in_own_user_namespace_with(name, |command| {
        if let Some(path) = &path {
            run(Command::new("mknod").args(["-m", "666"]).arg(path).args(["c", "10", "229"]));
            run(Command::new("chmod").arg("755").arg(path.parent().unwrap()));
            command.env("DRIVERCTL_TEST_FUSE", path);
        }
    });
    if inside && let Some(path) = std::env::var_os("DRIVERCTL_TEST_FUSE") {
        run(Command::new("mount").arg("--bind").arg(path).arg("/dev/fuse"));
    }
    inside
}

#[test]
fn userns_peer_fuse_overlayfs_mounts_for_podman() {
    let name = "userns_peer_fuse_overlayfs_mounts_for_podman";
    if !tools(&["fuse-overlayfs"], name) || !have("mknod", name) || !with_fuse(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let engines = Engines::new(&store, Privilege::Namespace).option("overlay.mount_program=/usr/bin/fuse-overlayfs");
    a_round_of_podman(&engines);
}
