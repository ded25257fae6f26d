//! `examples/engine.rs` does what it says, on both drivers, as configured by a storage.conf, as root and in a user namespace.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const INSIDE: &str = "GRAPHDRIVER_TEST_INSIDE";

/// Runs its arguments as root of a new user namespace of 65,536 ids, in a mount namespace that belongs to it. Somebody has to
/// hold the namespace until it is entered, and mapped ids have to be entered, as an exec without them loses all rights.
const USER_NAMESPACE: &str = "unshare --user sleep 1000 & pid=$!; trap 'kill $pid' EXIT; \
    while [ \"$(readlink /proc/self/ns/user)\" = \"$(readlink /proc/$pid/ns/user)\" ]; do sleep 0.01; done; \
    echo 0 100000 65536 >/proc/$pid/uid_map && echo 0 100000 65536 >/proc/$pid/gid_map && \
    nsenter --target $pid --user --setuid 0 --setgid 0 unshare --mount --propagation private \"$@\"";

/// Examples lie beside the directory of the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

fn sh(script: &str, dir: &Path) -> String {
    let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// An image of one layer with a busybox in it.
fn image(dir: &Path) {
    let script = r#"
mkdir -p root/bin root/proc root/etc layout/blobs/sha256
cp "$(command -v busybox)" root/bin/busybox
for a in sh cat rm mkdir id; do ln -s busybox root/bin/$a; done
echo old >root/etc/old; echo keep >root/etc/keep
tar -C root --numeric-owner --owner=0 --group=0 -cf layer.tar bin etc proc
blob() { d=$(sha256sum <"$1" | cut -d' ' -f1); cp "$1" layout/blobs/sha256/$d; echo "\"digest\":\"sha256:$d\",\"size\":$(stat -c%s "$1")"; }
diff=$(sha256sum <layer.tar | cut -d' ' -f1)
layer=$(blob layer.tar)
printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh","-c","id -u; cat /etc/old"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created_by":"test"}]}' $diff >config
config=$(blob config)
printf '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' "$config" "$layer" >manifest
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s}]}' "$(blob manifest)" >layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
"#;
    sh(script, dir);
}

fn engine(driver: &str, name: &str) {
    if sh("id -u", Path::new("/")) != "0" {
        eprintln!("skipped: {name}: needs root");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        let mut command;
        if name.starts_with("userns_") {
            command = Command::new("sh");
            command.args(["-c", USER_NAMESPACE, "sh"]);
        } else {
            command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private"]);
        }
        let out = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        return;
    }
    let dir = tempfile::Builder::new().prefix("graphdriver-engine-").tempdir_in("/var/tmp").unwrap();
    let path = dir.path();
    image(path);
    let conf = path.join("storage.conf");
    let text =
        format!("[storage]\ndriver = \"{driver}\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n", path.display());
    fs::write(&conf, text).unwrap();
    let command = [
        "/bin/sh",
        "-c",
        "cat /etc/old; cat /proc/self/stat | { read pid rest; echo pid $pid; }; rm /etc/old; mkdir /made; echo new >/made/file",
    ];
    let out = Command::new(example("engine"))
        .arg(path.join("layout"))
        .args(command)
        .env("CONTAINERS_STORAGE_CONF", &conf)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    for line in [
        &format!("store {}/graph with driver {driver}", path.display()),
        "1 layers imported, 0 were there",
        "loaded localhost/engine:latest",
        "old",
        "Delete /etc/old",
        "Add /made",
        "Add /made/file",
    ] {
        assert!(said.lines().any(|said| said == line), "{line:?} is not in\n{said}");
    }
    let pid = said.lines().find_map(|line| line.strip_prefix("pid ")).unwrap().parse::<u32>().unwrap();
    assert!(pid < 10, "the command had process id {pid}, so not a namespace of its own");
    assert!(!said.contains("Modify /bin"), "{said}");
    assert_eq!(said.matches("deleted image").count(), 2, "{said}");
    // Nothing is left: no layer, no image, no mount.
    let store = path.join("graph");
    assert_eq!(
        sh(&format!("cat {0}/{driver}-layers/layers.json {0}/{driver}-images/images.json", store.display()), path),
        "[][]"
    );
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap()));
}

#[test]
fn root_the_example_engine_on_overlay() {
    engine("overlay", "root_the_example_engine_on_overlay");
}

#[test]
fn root_the_example_engine_on_vfs() {
    engine("vfs", "root_the_example_engine_on_vfs");
}

#[test]
fn userns_the_example_engine_on_overlay() {
    engine("overlay", "userns_the_example_engine_on_overlay");
}

#[test]
fn userns_the_example_engine_on_vfs() {
    engine("vfs", "userns_the_example_engine_on_vfs");
}
