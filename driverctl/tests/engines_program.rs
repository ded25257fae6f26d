//! Programs that mount instead of the engine: ours under an unmodified podman, and fuse-overlayfs under both.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::engines::{APP, BASE, Engines, Privilege, assert_same_records, json, layout, sha256, tools, tree};
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
    engines.podman_run(&["--name", "writer", "localhost/app:1", "sh", "-c", write]);
    // A second mount of the same container.
    engines.podman(&["start", "-a", "writer"]);
    let diff = engines.podman(&["diff", "writer"]);
    for line in ["A /new", "D /etc/group", "A /opq/again"] {
        assert!(diff.lines().any(|found| found == line), "{line} is not in\n{diff}");
    }
    engines.podman(&["commit", "-q", "writer", "localhost/committed:1"]);
    let look = "cat /new; ls /opq; stat -c '%u %g' /new; test ! -e /etc/group";
    let said = engines.podman_run(&[
        "--rm",
        "localhost/committed:1",
        "sh",
        "-c",
        look.replace("test", "busybox test").as_str(),
    ]);
    assert_eq!(said, "written\nagain\n7 8");
    engines.podman(&["rm", "writer"]);
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

/// A store whose layers fuse-overlayfs shows, used by podman and by us in turns.
fn shares_a_store_of_fuse_overlayfs(privilege: Privilege) {
    let store = TestStore::new("overlay");
    let program = "overlay.mount_program=/usr/bin/fuse-overlayfs";
    let engines = Engines::new(&store, privilege).option(program);
    a_round_of_podman(&engines);
    let write =
        "echo written >/new; rm /etc/group; busybox chown 7:8 /new; busybox rm -r /opq; mkdir /opq; echo x >/opq/x";
    engines.podman_run(&["--name", "writer", "localhost/app:1", "sh", "-c", write]);

    // What podman made.
    assert_same_records(&engines);
    let records = json(&engines.ours(&["layers", "-j"]));
    for layer in records.as_array().unwrap() {
        let id = layer["id"].as_str().unwrap();
        let theirs = engines.peer(&["mount", id]);
        let wanted = tree(&theirs);
        engines.peer(&["unmount", id]);
        let ours = engines.ours(&["mount", id]);
        assert_eq!(tree(&ours), wanted, "the tree of layer {id}");
        engines.ours(&["unmount", id]);
        let out = store.path("files/diff.tar");
        engines.ours(&["diff", "--uncompressed", "--file", &out.display().to_string(), id]);
        if let Some(recorded) = layer["diff-digest"].as_str() {
            assert_eq!(sha256(&out), recorded, "layer {id}");
        }
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(engines.ours(&["changes", id])), sorted(engines.peer(&["changes", id])), "layer {id}");
    }
    // Nothing that a program mounts is taken for damage.
    assert_eq!(engines.ours(&["check"]), "");
    assert_eq!(engines.ours(&["gc", "--dry-run"]), "");
    // The store itself says that a program is needed.
    let container = json(&engines.ours(&["container", "-j", "writer"]))[0]["layer"].as_str().unwrap().to_owned();
    let path = store.ok(&["mount", &container]);
    assert_eq!(fs::read_to_string(Path::new(path.trim()).join("new")).unwrap(), "written\n");
    assert!(!Path::new(path.trim()).join("etc/group").exists());
    store.ok(&["unmount", &container]);
    let mut lines: Vec<String> = engines.ours(&["changes", &container]).lines().map(str::to_owned).collect();
    lines.retain(|line| line.contains("\"/new") || line.contains("/group"));
    assert_eq!(lines, ["Delete \"/etc/group\"", "Add \"/new\""]);

    // Out by us, and in by us, under podman.
    let layout = format!("oci:{}:x", store.path("files/layout").display());
    engines.podman(&["commit", "-q", "writer", "localhost/both:1"]);
    engines.ours(&["save", "localhost/both:1", &layout]);
    engines.podman(&["rm", "writer"]);
    engines.podman(&["rmi", "--all", "--force"]);
    assert_eq!(engines.ours(&["layers", "-q"]), "");
    engines.ours(&["load", "--name", "localhost/ours:1", &layout]);
    let look = "cat /new /opq/x /etc/conf2.d/hard; ls /opq; busybox stat -c '%u %g %a' /new /bin/suid; busybox test ! -e /etc/group; \
                busybox test ! -e /etc/conf.d";
    let said = engines.podman_run(&["--rm", "localhost/ours:1", "sh", "-c", look]);
    assert_eq!(said, "written\nx\none\nx\n7 8 644\n1000 1001 4755");
    // A container of ours, written to through our mount.
    engines.ours(&["create-container", "-n", "box", "localhost/ours:1"]);
    let path = PathBuf::from(engines.ours(&["mount", "box"]));
    fs::remove_file(path.join("etc/passwd")).unwrap();
    fs::write(path.join("etc/added"), "").unwrap();
    engines.ours(&["unmount", "box"]);
    let layer = json(&engines.ours(&["container", "-j", "box"]))[0]["layer"].as_str().unwrap().to_owned();
    let ours = engines.ours(&["changes", &layer]);
    assert_eq!(ours, "Modify \"/etc\"\nAdd \"/etc/added\"\nDelete \"/etc/passwd\"");
    engines.ours(&["delete-container", "box"]);
    engines.assert_nothing_mounted();
}

fn fuse_test(name: &str, namespace: bool) {
    if !tools(&["fuse-overlayfs"], name) || !have("mknod", name) {
        return;
    }
    if namespace {
        if with_fuse(name) {
            shares_a_store_of_fuse_overlayfs(Privilege::Namespace);
        }
    } else if in_own_mount_namespace(name) {
        shares_a_store_of_fuse_overlayfs(Privilege::Root);
    }
}

#[test]
fn userns_peer_a_store_of_fuse_overlayfs_is_shared_with_podman() {
    fuse_test("userns_peer_a_store_of_fuse_overlayfs_is_shared_with_podman", true);
}

#[test]
fn root_peer_a_store_of_fuse_overlayfs_is_shared_with_podman() {
    fuse_test("root_peer_a_store_of_fuse_overlayfs_is_shared_with_podman", false);
}

/// Every file on disk has the mask for its mode, its real owner and mode beside it, and shows them through the program.
#[test]
fn root_peer_masked_modes_show_through_the_program() {
    let name = "root_peer_masked_modes_show_through_the_program";
    if !tools(&["fuse-overlayfs"], name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let engines = Engines::new(&store, Privilege::Root)
        .option("overlay.mount_program=/usr/bin/fuse-overlayfs")
        .option("overlay.force_mask=700");
    let source = store.path("files/layout");
    layout(&source, Privilege::Root);
    engines.ours(&["load", "--name", "localhost/app:1", &format!("oci:{}:app", source.display())]);
    let records = json(&engines.ours(&["layers", "-j"]));
    assert_eq!(records.as_array().unwrap().len(), 2);
    for layer in records.as_array().unwrap() {
        let id = layer["id"].as_str().unwrap();
        let out = store.path("files/diff.tar");
        engines.ours(&["diff", "--uncompressed", "--file", &out.display().to_string(), id]);
        assert_eq!(sha256(&out), layer["diff-digest"].as_str().unwrap(), "layer {id}");
        let files = run(Command::new("find")
            .arg(store.path("root/overlay").join(id).join("diff"))
            .args(["(", "-type", "f", "-o", "-type", "d", ")", "-not", "(", "-perm", "700", "-uid", "0", ")"]));
        assert_eq!(files, "", "not masked");
    }
    let look = "busybox stat -c '%u %g %a %F' /bin/suid /tmp /var/lib/data /etc/group; cat /etc/conf2.d/hard; ls /opq";
    let said = engines.podman_run(&["--rm", "localhost/app:1", "sh", "-c", look]);
    assert_eq!(
        said,
        "1000 1001 4755 regular file\n0 0 1777 directory\n0 0 700 directory\n0 0 644 regular file\none\nnew"
    );
    // The same by us, in a container that we write to.
    engines.ours(&["create-container", "-n", "box", "localhost/app:1"]);
    let path = PathBuf::from(engines.ours(&["mount", "box"]));
    let suid = fs::metadata(path.join("bin/suid")).unwrap();
    assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777), (1000, 1001, 0o4755));
    fs::write(path.join("new"), "").unwrap();
    std::os::unix::fs::chown(path.join("new"), Some(5), Some(6)).unwrap();
    fs::remove_file(path.join("etc/passwd")).unwrap();
    engines.ours(&["unmount", "box"]);
    let layer = json(&engines.ours(&["container", "-j", "box"]))[0]["layer"].as_str().unwrap().to_owned();
    assert_eq!(engines.ours(&["changes", &layer]), "Modify \"/etc\"\nDelete \"/etc/passwd\"\nAdd \"/new\"");
    let out = store.path("files/diff.tar");
    engines.ours(&["diff", "--uncompressed", "--file", &out.display().to_string(), &layer]);
    let members = run(Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(&out));
    assert!(members.lines().any(|row| row.contains(" 5/6 ") && row.ends_with(" new")), "{members}");
    assert!(members.lines().any(|row| row.ends_with("etc/.wh.passwd")), "{members}");
    engines.ours(&["delete-container", "box"]);
    engines.assert_nothing_mounted();
}
