//! One store, every engine: real images made by real tools come in, go out, and are shared live with the peers.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{TestStore, both, have, in_own_mount_namespace, run};

/// An image of three layers made by the packaged buildah in a store of its own: its OCI layout.
fn image_by_buildah(dir: &Path) -> bool {
    let script = r#"
set -eu
cd "$0"
G="--root $0/b/root --runroot $0/b/run --storage-driver vfs"
c=$(buildah $G from scratch)
m=$(buildah $G mount $c)
mkdir -p $m/bin $m/etc/conf.d $m/opq $m/proc $m/tmp
cp "$(command -v busybox)" $m/bin/busybox
for a in sh cat echo id ls mkdir rm sleep true; do ln -s busybox $m/bin/$a; done
echo 'root:x:0:0:root:/root:/bin/sh' >$m/etc/passwd
echo one >$m/etc/conf.d/a; ln $m/etc/conf.d/a $m/etc/conf.d/hard; echo two >$m/etc/conf.d/b; echo old >$m/opq/old
cp $m/bin/busybox $m/bin/suid; chown 1000:1001 $m/bin/suid; chmod 4755 $m/bin/suid; setcap cap_net_raw+ep $m/bin/suid
mkfifo $m/etc/fifo; truncate -s 1M $m/etc/sparse; setfattr -n user.colour -v blue $m/etc/passwd
: >"$m/etc/naïve"; chmod 1777 $m/tmp
buildah $G umount $c >/dev/null; buildah $G config --cmd /bin/sh --env PATH=/bin $c; buildah $G commit -q $c base:1 >/dev/null; buildah $G rm $c >/dev/null
c=$(buildah $G from base:1); m=$(buildah $G mount $c)
rm $m/etc/conf.d/b; rm -r $m/opq; mkdir $m/opq; echo new >$m/opq/new; mv $m/etc/conf.d $m/etc/conf2.d; chmod 700 $m/tmp
buildah $G umount $c >/dev/null; buildah $G commit -q $c app:1 >/dev/null
buildah $G push -q app:1 oci:$0/layout:app >/dev/null
buildah $G push -q app:1 docker-archive:$0/docker.tar:example.com/app:1 >/dev/null
buildah $G push -q app:1 oci-archive:$0/oci.tar:app >/dev/null
"#;
    let out = Command::new("sh").args(["-c", script]).arg(dir).env("BUILDAH_ISOLATION", "chroot").output().unwrap();
    assert!(out.status.success(), "{}", both(&out));
    true
}

fn tools(name: &str) -> bool {
    ["buildah", "podman", "skopeo", "containers-storage", "busybox", "setcap", "setfattr"]
        .iter()
        .all(|tool| have(tool, name))
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The ids of the layers that containers-storage finds (1.43 has no `layers -q`).
fn layers_by_peer(store: &TestStore) -> Vec<String> {
    let records = json(run(&mut store.peer(&["layers", "-j"])).as_bytes());
    let id = |record: &serde_json::Value| record["id"].as_str().unwrap().to_owned();
    records.as_array().map(|records| records.iter().map(id).collect()).unwrap_or_default()
}

/// The diff IDs of an OCI layout's only image.
fn diff_ids(layout: &Path) -> Vec<String> {
    let blob = |value: &serde_json::Value| {
        let digest = value["digest"].as_str().unwrap().replace(':', "/");
        json(&fs::read(layout.join("blobs").join(digest)).unwrap())
    };
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let config = blob(&blob(&index["manifests"][0])["config"]);
    config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn loads_and_shares(driver: &'static str, name: &str) {
    if !tools(name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new(driver);
    let files = store.path("files");
    fs::create_dir(&files).unwrap();
    image_by_buildah(&files);
    let layout = files.join("layout");
    let wanted = diff_ids(&layout);
    assert!(wanted.len() >= 2);

    let text = |path: &Path| path.display().to_string();
    // Two processes at once make one image of one set of layers.
    let both_at_once: Vec<_> = ["localhost/app:1", "localhost/twin:1"]
        .map(|name| store.command(&["load", "--name", name, &format!("oci:{}:app", text(&layout))]).spawn().unwrap())
        .into();
    for mut child in both_at_once {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(store.ok(&["images", "-q"]).lines().count(), 1);
    let id = store.ok(&["images", "-q"]).trim().to_owned();
    assert!(store.command(&["delete-image", &id]).output().unwrap().status.success());
    assert_eq!(store.ok(&["layers", "-q"]), "", "no layer is in nobody's image");

    // Every form of the image is the same image.
    let loaded = store.ok(&["load", "--name", "localhost/app:1", &format!("oci:{}:app", text(&layout))]);
    let id = loaded.lines().next().unwrap().to_owned();
    assert_eq!(loaded, format!("{id}\n\tlocalhost/app:1\n"));
    let again = store.ok(&["load", &format!("oci-archive:{}", text(&files.join("oci.tar")))]);
    assert!(again.starts_with(&id), "{again}");
    let docker = store.ok(&["load", &text(&files.join("docker.tar"))]);
    assert!(docker.contains("\texample.com/app:1\n"), "{docker}");
    let layers = store.ok(&["layers", "-q"]);
    assert_eq!(layers.lines().count(), wanted.len(), "layers are shared: {layers}");

    // The peers see it live.
    assert_eq!(layers_by_peer(&store).len(), wanted.len());
    assert!(run(&mut store.peer(&["images"])).contains("name: localhost/app:1"));
    let root =
        ["--root", &text(&store.path("root")), "--runroot", &text(&store.path("run")), "--storage-driver", driver];
    let images = run(Command::new("podman").args(root).args([
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
        "images",
        "--no-trunc",
    ]));
    assert!(images.contains("localhost/app"), "{images}");
    let mounted = run(&mut store.peer(&["mount", layers.lines().last().unwrap()]));
    assert_eq!(fs::read_to_string(Path::new(mounted.trim()).join("opq/new")).unwrap(), "new\n");
    assert!(!Path::new(mounted.trim()).join("opq/old").exists());
    run(&mut store.peer(&["unmount", layers.lines().last().unwrap()]));

    // A container of theirs is a container of ours, and the reverse.
    run(&mut store.peer(&["create-container", "-n", "theirs", "localhost/app:1"]));
    let path = store.ok(&["mount", "theirs"]);
    fs::write(Path::new(path.trim()).join("written"), "x").unwrap();
    fs::remove_file(Path::new(path.trim()).join("etc/passwd")).unwrap();
    store.ok(&["unmount", "theirs"]);
    let layer = json(run(&mut store.peer(&["containers", "-j"])).as_bytes())[0]["layer"].as_str().unwrap().to_owned();
    let ours = store.ok(&["changes", &layer]);
    // The peer's order is that of a hash table.
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&ours), sorted(&run(&mut store.peer(&["changes", &layer]))), "the same changes");
    assert!(ours.contains("Add \"/written\"\n") && ours.contains("Delete \"/etc/passwd\"\n"), "{ours}");
    run(&mut store.peer(&["delete-container", "theirs"]));
    store.ok(&["create-container", "-n", "ours", "localhost/app:1"]);
    let path = run(&mut store.peer(&["mount", "ours"]));
    assert_eq!(fs::read_to_string(Path::new(path.trim()).join("etc/conf2.d/hard")).unwrap(), "one\n");
    run(&mut store.peer(&["unmount", "ours"]));
    store.ok(&["delete-container", "ours"]);

    // Out again: by us and by skopeo, with the diff IDs it came in with.
    let out = files.join("saved");
    store.ok(&["save", "localhost/app:1", &format!("oci:{}:app", text(&out))]);
    assert_eq!(diff_ids(&out), wanted);
    let reference = format!(
        "containers-storage:[{driver}@{}+{}]localhost/app:1",
        text(&store.path("root")),
        text(&store.path("run"))
    );
    run(Command::new("skopeo").args(["copy", "-q", &reference, &format!("oci:{}:app", text(&files.join("theirs")))]));
    assert_eq!(diff_ids(&files.join("theirs")), wanted);
    run(Command::new("skopeo").args([
        "copy",
        "-q",
        &format!("oci:{}:app", text(&out)),
        &format!("dir:{}", text(&files.join("dir"))),
    ]));

    // And gone: nothing is left for the peer to find.
    for image in store.ok(&["images", "-q"]).lines() {
        assert!(store.command(&["delete-image", image]).output().unwrap().status.success());
    }
    assert_eq!(layers_by_peer(&store), Vec::<String>::new());
    assert_eq!(run(&mut store.peer(&["images", "-q"])), "");
}

#[test]
fn root_peer_overlay_store_is_shared_with_podman_and_skopeo() {
    loads_and_shares("overlay", "root_peer_overlay_store_is_shared_with_podman_and_skopeo");
}

#[test]
fn root_peer_vfs_store_is_shared_with_podman_and_skopeo() {
    loads_and_shares("vfs", "root_peer_vfs_store_is_shared_with_podman_and_skopeo");
}

#[test]
fn root_peer_a_container_of_our_image_runs_under_podman() {
    let name = "root_peer_a_container_of_our_image_runs_under_podman";
    if !tools(name) || !have("runc", name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let files = store.path("files");
    fs::create_dir(&files).unwrap();
    image_by_buildah(&files);
    store.ok(&["load", "--name", "localhost/app:1", &format!("oci:{}:app", files.join("layout").display())]);
    // Some machines lack the right to raise limits, so none is raised.
    let conf = store.path("containers.conf");
    fs::write(&conf, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\",\"nproc=1000:1000\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n").unwrap();
    let out = Command::new("podman")
        .arg("--root")
        .arg(store.path("root"))
        .arg("--runroot")
        .arg(store.path("run"))
        .args(["--storage-driver", "overlay", "--runtime", "/usr/sbin/runc", "run", "--rm", "--network=none"])
        .args(["localhost/app:1", "sh", "-c", "cat /etc/conf2.d/a; id -u; echo written >/new"])
        .env("CONTAINERS_CONF", &conf)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", both(&out));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "one\n0\n");
}
