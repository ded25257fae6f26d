//! An ordinary user with ids in /etc/subuid: the store works without further ado.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::{DRIVERCTL, TestStore, both, have, in_own_mount_namespace, run};

const USER: &str = "54321";

/// Lets this mount namespace have a user with sub-ids, and gives the user a home.
fn user(store: &TestStore, home: &Path) {
    for (file, line) in [
        ("passwd", format!("graphtest:x:{USER}:{USER}::{}:/bin/sh\n", home.display())),
        ("subuid", "somebody:1:1\ngraphtest:300000:65536\n".to_owned()),
        ("subgid", "graphtest:400000:65536\n".to_owned()),
    ] {
        let (etc, copy) = (Path::new("/etc").join(file), store.path(file));
        let text = if file == "passwd" { fs::read_to_string(&etc).unwrap() } else { String::new() };
        fs::write(&copy, text + &line).unwrap();
        run(Command::new("mount").arg("--bind").args([&copy, &etc]));
    }
    fs::set_permissions(store.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir_all(home.join("run")).unwrap();
    let id = USER.parse().ok();
    for path in [home, &home.join("run")] {
        std::os::unix::fs::chown(path, id, id).unwrap();
    }
    fs::copy(DRIVERCTL, home.join("driverctl")).unwrap();
}

fn as_user(home: &Path, words: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(home.join("driverctl")).args(words);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("XDG_RUNTIME_DIR", home.join("run"));
    command.current_dir(home).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn root_an_ordinary_user_becomes_root_of_a_namespace() {
    let name = "root_an_ordinary_user_becomes_root_of_a_namespace";
    if !["setpriv", "newuidmap"].iter().all(|tool| have(tool, name)) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("vfs");
    let home = store.path("home");
    fs::create_dir(&home).unwrap();
    user(&store, &home);
    let ok = |words: &[&str]| {
        let out = as_user(&home, words);
        assert!(out.status.success() && out.stderr.is_empty(), "{words:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    // A command in the namespace: its words are its own.
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; echo $_CONTAINERS_USERNS_CONFIGURED \
         $_CONTAINERS_ROOTLESS_UID $_CONTAINERS_ROOTLESS_GID; echo $1";
    let said = ok(&["unshare", "sh", "-c", script, "sh", "-f"]);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "0", "0", "0", USER, "1", "1", "300000", "65536", "0", USER, "1", "1", "400000", "65536", "done", USER,
            USER, "-f"
        ]
    );
    let out = as_user(&home, &["unshare", "sh", "-c", "exit 3"]);
    assert_eq!((out.status.code(), both(&out).as_str()), (Some(1), "exit status 3\n"));
    let out = as_user(&home, &["unshare", "/no/such/command"]);
    assert!(out.status.code() == Some(1) && both(&out).contains("/no/such/command"), "{out:?}");

    // Layers of several owners, without a word of namespaces.
    let tar = store.path("owners.tar");
    fs::write(store.path("file"), "").unwrap();
    let parts: [&str; 2] = ["--owner=5", "--group=6"];
    run(Command::new("tar").args(parts).arg("-C").arg(store.dir.path()).arg("-cf").arg(&tar).arg("file"));
    let graph = home.join("g").display().to_string();
    let global = ["-g", &graph, "-R", "r", "-s", "vfs"];
    let layer = ok(&[&global[..], &["import-layer", "-f", tar.to_str().unwrap()]].concat());
    let file = fs::metadata(home.join("g/vfs/dir").join(layer.trim()).join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (300_004, 400_005));
    assert_eq!(ok(&[&global[..], &["layers"]].concat()), layer);
    // Mounted things would go with the namespace; the kernel's overlay works in it.
    let script = format!(
        "d=$(\"$0\" -g {graph}2 -R r2 -s overlay create-layer) && m=$(\"$0\" -g {graph}2 -R r2 -s overlay mount $d) && \
         touch $m/x && stat -c %u $m/x && \"$0\" -g {graph}2 -R r2 -s overlay unmount $d >/dev/null"
    );
    assert_eq!(ok(&["unshare", "sh", "-c", &script, home.join("driverctl").to_str().unwrap()]), "0\n");
    ok(&[&global[..], &["wipe"]].concat());
    assert_eq!(ok(&[&global[..], &["-U", "layers"]].concat()), "");
}

#[test]
fn config_is_that_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("storage.conf");
    fs::write(
        &conf,
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"/some/<graph>\"\nrunroot = \"/some/run\"\n[storage.options]\n\
         pull_options = {enable_partial_images = \"true\"}\n",
    )
    .unwrap();
    let mut command = Command::new(DRIVERCTL);
    command.env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS").env("CONTAINERS_STORAGE_CONF", &conf);
    let text = run(command.args(["--graph", "/else/where", "config"]));
    assert!(
        text.starts_with("{\"runroot\":\"/some/run\",\"root\":\"/some/\\u003cgraph\\u003e\",\"driver\":\"vfs\","),
        "{text}"
    );
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["root"], "/some/<graph>");
    assert_eq!((&config["driver"], &config["runroot"]), (&"vfs".into(), &"/some/run".into()));
    assert_eq!(config["PullOptions"]["enable_partial_images"], "true");
    let on_top = dir.path().join("on-top.conf");
    fs::write(&on_top, "[storage]\nrunroot = \"/other/run\"\ntransient_store = true\n").unwrap();
    let mut command = Command::new(DRIVERCTL);
    command.env_remove("STORAGE_DRIVER").env_remove("STORAGE_OPTS").env("CONTAINERS_STORAGE_CONF", &conf);
    let config: serde_json::Value = serde_json::from_str(&run(command.arg("config").arg(&on_top))).unwrap();
    assert_eq!((&config["root"], &config["runroot"]), (&"/some/<graph>".into(), &"/other/run".into()));
    assert_eq!(config["transient_store"], true);
}
