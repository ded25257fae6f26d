//! Layers whose files get other owners by copies: all that a layer can hold comes along, on file systems that share data
//! between files and on those that do not; and the volatile containers and labels that go to mounts beside the mappings.

#![allow(clippy::disallowed_methods, reason = "tests set their scene by path")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "tests may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{DRIVERCTL, TestStore, have, in_own_mount_namespace, run};

/// Writes two layers: all kinds of files with all kinds of owners and attributes, and one that changes and deletes them.
const LAYERS: &str = r##"
import io, struct, sys, tarfile
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in
    [(1, 6, 0xffffffff), (2, 4, 1234), (4, 4, 0xffffffff), (8, 4, 4321), (16, 6, 0xffffffff), (32, 4, 0xffffffff)])
capability = bytes([1, 0, 0, 2, 0, 0x20]) + bytes(14)
rooted = bytes([1, 0, 0, 3, 0, 0x20]) + bytes(14) + struct.pack("<I", 1000)
def text(value): return value.decode("utf-8", "surrogateescape")
def layer(path, members):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name, kind, mode, uid, gid, extra in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, 1_600_000_000
            data = b""
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE): info.linkname = extra
            elif kind == tarfile.CHRTYPE: info.devmajor, info.devminor = extra
            elif isinstance(extra, dict): info.pax_headers = {"SCHILY.xattr." + key: text(value) for key, value in extra.items()}
            elif extra: data = extra
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
R, D, L, S, F, C = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
layer(sys.argv[1] + "/below.tar", [
    ("usr", D, 0o755, 0, 0, None), ("usr/file", R, 0o644, 5, 6, b"x" * 70000), ("usr/gone", R, 0o600, 0, 0, b"gone"),
    ("opaque", D, 0o755, 9, 9, None), ("opaque/old", R, 0o644, 0, 0, b"old"), ("kept", R, 0o4711, 3, 4, b"kept"),
    ("kept-too", L, 0o4711, 3, 4, "kept"), ("dir", D, 0o2775, 7, 8, None), ("dir/deep", R, 0o644, 65535, 65535, b"deep")])
layer(sys.argv[1] + "/above.tar", [
    ("bin", D, 0o755, 0, 0, None), ("bin/suid", R, 0o6755, 1000, 1001, b"#!"), ("bin/suid2", L, 0o6755, 1000, 1001, "bin/suid"),
    ("bin/ping", R, 0o755, 0, 0, {"security.capability": capability}),
    ("bin/rooted", R, 0o755, 0, 0, {"security.capability": rooted}),
    ("bin/user", R, 0o644, 12, 13, {"user.colour": b"blue"}),
    ("bin/acl", R, 0o664, 12, 13, {"system.posix_acl_access": acl}),
    ("bin/link", S, 0o777, 21, 22, "suid"), ("bin/pipe", F, 0o620, 2, 3, None), ("bin/null", C, 0o666, 4, 5, (1, 3)),
    ("usr", D, 0o755, 0, 0, None), ("usr/.wh.gone", R, 0, 0, 0, None),
    ("opaque", D, 0o1777, 9, 9, None), ("opaque/.wh..wh..opq", R, 0, 0, 0, None), ("opaque/new", R, 0o640, 1, 2, b"new")])
"##;

/// What a tree holds: for every name its owner and the rest, with the ids that an access list or a capability holds apart.
fn tree(path: &Path, start: u32) -> BTreeMap<String, String> {
    let text = run(Command::new("python3").args(["-c", include_str!("support/tree.py")]).arg(path));
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let at =
            words.iter().position(|word| word.split_once(':').is_some_and(|(a, b)| all_digits(a) && all_digits(b)));
        let at = at.unwrap_or_else(|| panic!("{line}"));
        let (uid, gid) = words[at].split_once(':').unwrap();
        let inside = |id: &str| i64::from(id.parse::<u32>().unwrap()) - i64::from(start);
        words[at] = format!("{}:{}", inside(uid), inside(gid));
        // Access lists a second time, as XFS has them.
        words.retain(|word| !word.starts_with("trusted.SGI_ACL_"));
        for word in &mut words {
            if let Some(hex) = word.strip_prefix("system.posix_acl_access=") {
                *word = format!("acl={:?}", acl(hex, start));
            } else if let Some(hex) = word.strip_prefix("security.capability=") {
                *word = format!("capability={:?}", capability(hex, start));
            }
        }
        found.insert(words[0].clone(), words[1..].join(" "));
    }
    found
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The entries of an access list: tag, permissions, id seen from inside.
fn acl(hex: &str, start: u32) -> Vec<(u16, u16, i64)> {
    let all = bytes(hex);
    all[4..]
        .chunks(8)
        .map(|entry| {
            let id = u32::from_le_bytes(entry[4..8].try_into().unwrap());
            let inside = if id == u32::MAX { -1 } else { i64::from(id) - i64::from(start) };
            (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]]), inside)
        })
        .collect()
}

/// The permitted capabilities and the root that they are for, seen from inside; 0 where none is named.
fn capability(hex: &str, start: u32) -> (Vec<u8>, i64) {
    let all = bytes(hex);
    let root = all.get(20..24).map_or(0, |root| u32::from_le_bytes(root.try_into().unwrap()));
    let inside = if root == 0 { 0 } else { i64::from(root) - i64::from(start) };
    (all[4..20].to_vec(), inside)
}

fn flags(start: u32) -> Vec<String> {
    let map = format!("0:{start}:65536");
    ["--uidmap", &map, "--gidmap", &map].map(str::to_owned).to_vec()
}

/// A graph root on a file system of its own, and overlay that maps no ids at mount time.
struct Ground {
    store: TestStore,
}

impl Ground {
    fn new(driver: &'static str, kind: &str) -> Option<Self> {
        let store = TestStore::new(driver);
        let (image, root) = (store.path("image"), store.path("root"));
        let size = if kind == "ext4" { 64 } else { 320 };
        fs::File::create(&image).unwrap().set_len(size << 20).unwrap();
        fs::create_dir(&root).unwrap();
        let options: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q", "-f", "-K"] };
        let mkfs = Command::new(format!("mkfs.{kind}")).args(options).arg(&image).stdout(Stdio::null()).status();
        let mounted = || Command::new("mount").args(["-o", "loop"]).args([&image, &root]).status();
        if !mkfs.is_ok_and(|status| status.success()) || !mounted().is_ok_and(|status| status.success()) {
            eprintln!("skipped: {kind} cannot be made or mounted here");
            return None;
        }
        Some(Self { store })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.store.command(words);
        command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes");
        command
    }

    /// Must succeed in silence; the first line of what it says.
    fn ok(&self, words: &[&str]) -> String {
        let out = self.command(words).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{words:?}: {}", support::both(&out));
        String::from_utf8(out.stdout).unwrap().lines().next().unwrap_or_default().to_owned()
    }

    fn with(&self, words: &[&str], flags: &[String], object: &str) -> String {
        let mut all = words.to_vec();
        all.extend(flags.iter().map(String::as_str));
        all.push(object);
        self.ok(&all)
    }

    fn layer(&self, id: &str) -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(&self.ok(&["layer", "--json", id])).unwrap()[0].clone()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        drop(self.command(&["shutdown", "--force"]).output());
        drop(Command::new("umount").arg("--lazy").arg(self.store.path("root")).output());
    }
}

fn keeps_everything(driver: &'static str, kind: &str) {
    eprintln!("{driver} on {kind}");
    let Some(ground) = Ground::new(driver, kind) else { return };
    let store = &ground.store;
    let files = store.path("files");
    fs::create_dir(&files).unwrap();
    run(Command::new("python3").args(["-c", LAYERS]).arg(&files));
    let archive = |name: &str| files.join(name).display().to_string();
    let below = ground.ok(&["import-layer", "--file", &archive("below.tar")]);
    let top = ground.ok(&["import-layer", "--file", &archive("above.tar"), &below]);
    ground.ok(&["create-image", "-n", "image", &top]);
    let plain = tree(Path::new(&ground.ok(&["mount", "-r", "image"])), 0);
    ground.ok(&["unmount", "image"]);
    assert!(plain["b'/bin/acl'"].contains("(2, 4, 1234)"), "{plain:#?}");
    assert!(plain["b'/bin/rooted'"].contains(", 1000)"), "{plain:#?}");
    assert!(plain["b'/bin/suid'"].starts_with("0o106755 1000:1001"), "{plain:#?}");
    assert!(!plain.contains_key("b'/usr/gone'") && !plain.contains_key("b'/opaque/old'"), "{plain:#?}");

    let shared = kind != "ext4";
    let status = String::from_utf8(ground.command(&["status"]).output().unwrap().stdout).unwrap();
    let way = if shared { "re-owned copies that share their data (reflink)" } else { "re-owned full copies" };
    assert!(status.contains(&format!("Layers Of Other Owners: {way}\n")), "{status}");

    // Far apart, overlapping with the host's ids, and far up.
    for start in [100_000, 1, 3_000_000_000] {
        // Under a terminal's eyes or with --debug it is said when everything is copied in full.
        let words = [&["--debug", "create-container"].map(str::to_owned)[..], &flags(start), &["image".to_owned()]];
        let words = words.concat();
        let out = ground.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        assert!(out.status.success(), "{}", support::both(&out));
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(stderr.contains("copied the files of a layer in full"), !shared, "{driver} on {kind}: {stderr}");
        let container = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        let path = PathBuf::from(ground.ok(&["mount", &container]));
        let mapped = tree(&path, start);
        assert_eq!(mapped, plain, "{driver} on {kind}: ids from {start}");
        ground.ok(&["unmount", &container]);
    }
    // Two copies of one mapping are one; nobody is told of a copy that is not made.
    let before = fs::read_dir(store.path("root").join(format!("{driver}-layers"))).unwrap().count();
    let again = ground.with(&["create-container"], &flags(100_000), "image");
    assert!(!again.is_empty());
    assert_eq!(fs::read_dir(store.path("root").join(format!("{driver}-layers"))).unwrap().count(), before);

    let images: serde_json::Value = serde_json::from_str(&ground.ok(&["images", "--json"])).unwrap();
    let copies = images[0]["mapped-layers"].as_array().unwrap().clone();
    assert_eq!(copies.len(), 3, "{images}");
    let recorded = ground.layer(&top);
    for copy in copies.iter().map(|copy| copy.as_str().unwrap()) {
        let record = ground.layer(copy);
        for key in ["diff-digest", "diff-size", "parent"] {
            assert_eq!(record[key], recorded[key], "{driver} on {kind}: {key} of {copy}");
        }
        let out = files.join("out.tar");
        ground.ok(&["diff", "-u", "-f", out.to_str().unwrap(), copy]);
        assert_eq!(fs::read(&out).unwrap(), fs::read(files.join("above.tar")).unwrap(), "{driver} on {kind}: {copy}");
        let changes = |layer: &str| ground.command(&["changes", layer]).output().unwrap().stdout;
        assert_eq!(
            String::from_utf8(changes(copy)).unwrap(),
            String::from_utf8(changes(&top)).unwrap(),
            "{driver} on {kind}: changes of {copy}"
        );
    }
    // A layer of other owners than its parent's has no changes.
    let child = ground.with(&["create-layer"], &flags(500_000), &top);
    assert_eq!(ground.ok(&["changes", &child]), "", "{driver} on {kind}");
    ground.ok(&["check"]);
}

fn on(kind: &'static str, name: &str) {
    if !have("python3", name) || !in_own_mount_namespace(name) {
        return;
    }
    keeps_everything("overlay", kind);
    keeps_everything("vfs", kind);
}

#[test]
fn root_new_owners_keep_everything_by_full_copies_on_ext4() {
    on("ext4", "root_new_owners_keep_everything_by_full_copies_on_ext4");
}

#[test]
fn root_new_owners_keep_everything_by_shared_copies_on_btrfs() {
    on("btrfs", "root_new_owners_keep_everything_by_shared_copies_on_btrfs");
}

#[test]
fn root_new_owners_keep_everything_by_shared_copies_on_xfs() {
    on("xfs", "root_new_owners_keep_everything_by_shared_copies_on_xfs");
}

#[test]
fn root_full_copies_are_told_on_a_terminal() {
    let name = "root_full_copies_are_told_on_a_terminal";
    if !have("script", name) || !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let Some(ground) = Ground::new(driver, "ext4") else { return };
        let layer = ground.ok(&["create-layer"]);
        fs::write(Path::new(&ground.ok(&["mount", &layer])).join("file"), "content").unwrap();
        ground.ok(&["unmount", &layer]);
        ground.ok(&["create-image", "-n", "image", &layer]);
        let on_terminal = |start: u32| {
            let words = format!("create-container {} image", flags(start).join(" "));
            let line = format!("{DRIVERCTL} {} {words}", ground.store.global().join(" "));
            let mut command = Command::new("script");
            command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
            run(command.env("_CONTAINERS_OVERLAY_DISABLE_IDMAP", "yes"))
        };
        assert_eq!(on_terminal(100_000).matches("copied the files of a layer in full").count(), 1, "{driver}");
        // The copy is there by now.
        assert!(!on_terminal(100_000).contains("copied the files"), "{driver}");
    }
}

/// What strace shows of the calls that tell the kernel the options of an overlay.
fn mount_calls(store: &TestStore, traced: Command, out: &str) -> String {
    let file = store.path(out);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-s", "4096", "-e", "trace=mount,fsconfig", "-o"]).arg(&file);
    command.arg(traced.get_program()).args(traced.get_args());
    for (key, value) in traced.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    // Without SELinux the kernel refuses the label, from whomever it comes.
    drop(command.stdin(Stdio::null()).output().unwrap());
    fs::read_to_string(&file).unwrap()
}

#[test]
fn root_peer_volatile_containers_and_labels_reach_the_mount() {
    let name = "root_peer_volatile_containers_and_labels_reach_the_mount";
    if !have("strace", name) || !have("containers-storage", name) || !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    let layer = store.ok(&["create-layer"]);
    let layer = layer.lines().next().unwrap();
    store.ok(&["create-image", "-n", "image", layer]);
    store.ok(&["create-container", "-n", "volatile", "--volatile", "image"]);
    store.ok(&["create-container", "-n", "lasting", "image"]);

    let record = |name: &str| {
        let all: serde_json::Value = serde_json::from_str(&store.ok(&["containers", "--json"])).unwrap();
        let all = all.as_array().unwrap().clone();
        all.into_iter().find(|container| container["names"][0] == name).unwrap()
    };
    assert_eq!(record("volatile")["flags"]["Volatile"], true);
    // The word goes to the kernel for this container and no other. (The packaged peer does not know the file with volatile records.)
    let ours = |words: &[&str]| mount_calls(&store, store.command(words), "ours");
    let peer = |words: &[&str]| mount_calls(&store, store.peer(words), "peers");
    assert!(ours(&["mount", "volatile"]).contains("FSCONFIG_SET_FLAG, \"volatile\""));
    store.ok(&["unmount", "volatile"]);
    assert!(!ours(&["mount", "lasting"]).contains("volatile\""));
    store.ok(&["unmount", "lasting"]);
    // A label: the same to the kernel as the peer's, quoted where it goes as one of many words.
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    let said = peer(&["mount", "-l", label, "lasting"]);
    assert!(said.contains(&format!(",context=\\\"{label}\\\"")), "{said}");
    drop(store.peer(&["unmount", "--force", "lasting"]).output());
    let said = ours(&["mount", "-l", label, "lasting"]);
    assert!(said.contains(&format!("FSCONFIG_SET_STRING, \"context\", \"{label}\"")), "{said}");
    drop(store.command(&["unmount", "--force", "lasting"]).output());
    // And back in the records, where an engine has put one.
    let file = store.path("root/overlay-containers/containers.json");
    let text = fs::read_to_string(&file).unwrap();
    let id = record("lasting")["id"].as_str().unwrap().to_owned();
    let mut records: serde_json::Value = serde_json::from_str(&text).unwrap();
    for record in records.as_array_mut().unwrap() {
        if record["id"] == *id {
            record["flags"] =
                serde_json::json!({ "MountLabel": label, "ProcessLabel": "system_u:system_r:container_t:s0:c1,c2" });
        }
    }
    fs::write(&file, records.to_string()).unwrap();
    let said = ours(&["mount", "lasting"]);
    assert!(said.contains(&format!("FSCONFIG_SET_STRING, \"context\", \"{label}\"")), "{said}");
}
