//! Without root: what an ordinary user is told, and one store shared with podman inside a user namespace.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::{DRIVERCTL, TestStore, both, have, in_own_user_namespace, is_root, run};

/// A user that no machine has.
const NOBODY_S_ID: &str = "54321";

/// `driverctl` as a user without name, privileges and sub-ids. `None` where this process cannot become one.
fn as_ordinary_user(test: &str, home: &Path) -> Option<Command> {
    if !is_root() {
        eprintln!("skipped: {test}: needs root to become an ordinary user");
        return None;
    }
    if !have("setpriv", test) {
        return None;
    }
    let id: u32 = NOBODY_S_ID.parse().unwrap();
    fs::create_dir(home).unwrap();
    fs::set_permissions(home.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(home, Some(id), Some(id)).unwrap();
    // The build directory may be closed to others.
    let program = home.join("driverctl");
    fs::copy(DRIVERCTL, &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY_S_ID, "--regid", NOBODY_S_ID, "--clear-groups"]).arg(program);
    command.env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home.join("run")).current_dir(home);
    Some(command)
}

#[test]
fn root_an_ordinary_user_is_told_of_user_namespaces() {
    let name = "root_an_ordinary_user_is_told_of_user_namespaces";
    let store = TestStore::new("overlay");
    let home = store.path("home");
    // A copy of a command line with more words.
    let say = |words: &[&str]| {
        let home = store.path(&format!("home-{}", words.join("-").replace('/', "_")));
        let mut command = as_ordinary_user(name, &home)?;
        Some((command.args(words).output().unwrap(), home))
    };
    let hint = "podman unshare";
    for words in
        [&["--graph", "g", "--run", "r", "--storage-driver", "overlay", "status"][..], &["-s=overlay", "layers"]]
    {
        let Some((out, _)) = say(words) else { return };
        let said = both(&out);
        assert_eq!(out.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains(hint) && said.contains("--map-root-user"), "{words:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{words:?}: {said}");
    }
    // vfs opens, so a user can look at a store, but has no other ids to give to the files of a layer.
    let vfs = ["--graph", "g", "--run", "r", "--storage-driver", "vfs"];
    let (out, at) = say(&[&vfs[..], &["status"]].concat()).unwrap();
    assert!(out.status.success(), "{}", both(&out));
    assert!(both(&out).contains("Driver Name: vfs"), "{}", both(&out));
    assert_eq!(fs::metadata(at.join("g")).unwrap().uid().to_string(), NOBODY_S_ID);
    let (out, at) = say(&[&vfs[..], &["create-layer"]].concat()).unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", both(&out));
    assert!(both(&out).contains(hint), "{}", both(&out));
    assert_eq!(fs::read_dir(at.join("g/vfs/dir")).unwrap().count(), 0, "the failed layer left something");
    // What has nothing to do with privileges has no such advice.
    let (out, _) = say(&[&vfs[..], &["mount", "none"]].concat()).unwrap();
    assert!(!out.status.success() && !both(&out).contains(hint), "{}", both(&out));
    // A refused overlay is not remembered: root of a user namespace may have it.
    let mut command = as_ordinary_user(name, &home).unwrap();
    let out = command.args(["--graph", "g", "--run", "r", "--storage-driver", "overlay", "status"]).output().unwrap();
    assert!(!out.status.success());
    let kept: Vec<_> =
        fs::read_dir(home.join("r/overlay")).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
    assert!(!kept.iter().any(|name| name == "overlay-false"), "{kept:?}");
}

#[test]
fn root_an_ordinary_user_s_store_is_where_podman_has_it() {
    let name = "root_an_ordinary_user_s_store_is_where_podman_has_it";
    let store = TestStore::new("vfs");
    let home = store.path("home");
    let Some(mut command) = as_ordinary_user(name, &home) else { return };
    fs::create_dir_all(home.join(".config/containers")).unwrap();
    fs::write(home.join(".config/containers/storage.conf"), "[storage]\ndriver = \"vfs\"\n").unwrap();
    fs::create_dir(home.join("run")).unwrap();
    std::os::unix::fs::chown(home.join("run"), Some(54321), Some(54321)).unwrap();
    let status = run(command.arg("status"));
    for line in [
        format!("Root: {}/.local/share/containers/storage", home.display()),
        format!("Run Root: {}/run/containers", home.display()),
        "Driver Name: vfs".to_owned(),
    ] {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in\n{status}");
    }
    assert!(status.contains(".config/containers/storage.conf"), "{status}");
}

/// podman as it is below `podman unshare`: root of a user namespace that knows it.
fn podman<S: AsRef<OsStr>>(store: &TestStore, args: &[S]) -> Command {
    let mut command = Command::new("podman");
    command.args(store.global().iter().map(|word| match word.as_str() {
        "--graph" => "--root",
        "--run" => "--runroot",
        word => word,
    }));
    command.args(["--runtime", "crun", "--events-backend=file", "--cgroup-manager=cgroupfs", "--log-level=error"]);
    command.args(args).env("HOME", store.path("home")).env("XDG_RUNTIME_DIR", store.path("xdg"));
    command.env("_CONTAINERS_USERNS_CONFIGURED", "done");
    command.env("_CONTAINERS_ROOTLESS_UID", "100000").env("_CONTAINERS_ROOTLESS_GID", "100000");
    command
}

fn shares_with_podman(driver: &'static str, name: &str) {
    if !["podman", "crun", "busybox", "containers-storage"].iter().all(|tool| have(tool, name)) {
        return;
    }
    if !in_own_user_namespace(name) {
        return;
    }
    // crun refuses a second cgroup hierarchy beside the first; in this mount namespace there is none.
    if Path::new("/sys/fs/cgroup/unified").is_dir() {
        run(Command::new("mount").args(["-t", "tmpfs", "none", "/sys/fs/cgroup/unified"]));
    }
    let store = TestStore::new(driver);
    for dir in ["home", "xdg", "files"] {
        fs::create_dir(store.path(dir)).unwrap();
        fs::set_permissions(store.path(dir), PermissionsExt::from_mode(0o700)).unwrap();
    }
    let make = "mkdir bin data; cp \"$(command -v busybox)\" bin/busybox; ln -s busybox bin/sh; echo old >data/old; \
                cp bin/busybox bin/suid; chown 1000:1001 bin/suid; chmod 4755 bin/suid; mkdir closed; chown 12:13 closed; \
                chmod 0 closed; tar --numeric-owner -cf ../image.tar bin data closed";
    run(Command::new("sh").args(["-ec", make]).current_dir(store.path("files")));

    // Theirs is ours.
    run(&mut podman(&store, &["import", "-q", &store.path("image.tar").display().to_string(), "localhost/theirs:1"]));
    let in_it = "echo new >/new; b=/bin/busybox; $b chown 3:4 /new; $b mkdir /made; $b rm -r /data; $b mkdir /data; \
                 echo again >/data/again; $b chmod 711 /closed";
    let one = ["run", "--network=none", "--cgroups=disabled"];
    run(&mut podman(&store, &[&one[..], &["--name", "c", "localhost/theirs:1", "/bin/sh", "-c", in_it]].concat()));
    let containers: serde_json::Value = serde_json::from_str(&store.ok(&["containers", "--json"])).unwrap();
    assert_eq!(containers[0]["names"][0], "c", "{containers}");
    let layer = containers[0]["layer"].as_str().unwrap().to_owned();
    let changes = store.ok(&["changes", &layer]);
    for line in ["Add \"/new\"", "Add \"/made\"", "Add \"/data/again\"", "Delete \"/data/old\"", "Modify \"/closed\""] {
        assert!(changes.lines().any(|found| found == line), "{line} is not in\n{changes}");
    }
    let mut theirs = store.peer(&["changes", &layer]);
    let theirs = run(theirs.env("_CONTAINERS_USERNS_CONFIGURED", "done").env("_CONTAINERS_ROOTLESS_UID", "100000"));
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    // Of a directory that was made anew the peer says only that it is gone.
    let plain = |text: &str| text.lines().filter(|row| !row.contains("\"/data")).collect::<Vec<_>>().join("\n");
    assert_eq!(sorted(&plain(&changes)), sorted(&plain(&theirs)));
    let root = store.ok(&["mount", &layer]).trim().to_owned();
    let new = fs::metadata(format!("{root}/new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (3, 4));
    assert_eq!(fs::read_to_string(format!("{root}/data/again")).unwrap(), "again\n");
    store.ok(&["unmount", &layer]);
    let diff = store.path("diff.tar");
    store.ok(&["diff", "--uncompressed", "--file", &diff.display().to_string(), &layer]);
    let members = run(Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(&diff));
    assert!(members.lines().any(|row| row.contains(" 3/4 ") && row.ends_with(" new")), "{members}");
    assert!(
        members.lines().any(|row| row.ends_with("data/.wh.old") || row.ends_with("data/.wh..wh..opq")),
        "{members}"
    );

    // Ours is theirs.
    let id = run(&mut podman(&store, &["commit", "-q", "c", "localhost/both:1"])).trim().to_owned();
    let layout = format!("oci:{}:1", store.path("out").display());
    store.ok(&["save", "localhost/both:1", &layout]);
    run(&mut podman(&store, &["rm", "c"]));
    run(&mut podman(&store, &["rmi", "--all", "--force"]));
    assert_eq!(store.ok(&["layers", "--quiet"]), "");
    let loaded = store.ok(&["load", "--name", "localhost/ours:1", &layout]);
    assert_eq!(loaded.lines().next().unwrap(), id, "the image came back under another id");
    let in_it = "/bin/busybox cat /new /data/again; /bin/busybox stat -c '%n %u %g %a' /new /bin/suid /closed; \
                 /bin/busybox ls /data";
    let said = run(&mut podman(&store, &[&one[..], &["--rm", "localhost/ours:1", "/bin/sh", "-c", in_it]].concat()));
    assert_eq!(said, "new\nagain\n/new 3 4 644\n/bin/suid 1000 1001 4755\n/closed 12 13 711\nagain\n");
    let images = run(&mut podman(&store, &["images", "--quiet", "--no-trunc"]));
    assert_eq!(images.trim(), format!("sha256:{id}"));
    run(&mut podman(&store, &["rmi", "localhost/ours:1"]));
    assert_eq!(store.ok(&["layers", "--quiet"]), "");
}

#[test]
fn userns_a_store_on_overlay_is_shared_with_podman() {
    shares_with_podman("overlay", "userns_a_store_on_overlay_is_shared_with_podman");
}

#[test]
fn userns_a_store_on_vfs_is_shared_with_podman() {
    shares_with_podman("vfs", "userns_a_store_on_vfs_is_shared_with_podman");
}
