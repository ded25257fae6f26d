//! Full disks, killed processes, two at once, and archives that mean harm: nothing is left behind, nothing gets out.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{DRIVERCTL, TestStore, both, in_own_mount_namespace, many_files_tar, run};

/// Everything below the store that is neither an empty directory nor part of an empty store.
fn left_overs(store: &TestStore) -> Vec<String> {
    let found = run(Command::new("find").arg(store.path("root")).args([
        "-not",
        "-type",
        "d",
        "-not",
        "-name",
        "*.lock",
        "-not",
        "-name",
        "*layers.json",
        "-not",
        "-name",
        "images.json",
        "-not",
        "-name",
        "*containers.json",
        "-not",
        "-name",
        ".has-mount-program",
    ]));
    let layers = store.path("root").join(store.driver);
    let dirs = if store.driver == "vfs" { layers.join("dir") } else { layers };
    let names =
        fs::read_dir(&dirs).map(|all| all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>());
    let special = ["l", "staging", "tempdirs"];
    let layers = names
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !special.contains(&name.as_str()) && !name.starts_with('.'));
    found.lines().map(str::to_owned).chain(layers).collect()
}

fn mounts_below(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.display().to_string();
    table.lines().filter(|line| line.contains(&path)).map(str::to_owned).collect()
}

fn on_each_driver(test: &str, check: impl Fn(&TestStore)) {
    if in_own_mount_namespace(test) {
        for driver in ["vfs", "overlay"] {
            check(&TestStore::new(driver));
        }
    }
}

#[test]
fn root_a_full_disk_leaves_nothing_behind() {
    on_each_driver("root_a_full_disk_leaves_nothing_behind", |store| {
        let tar = store.path("layer.tar");
        many_files_tar(&tar, 300, 20);
        for name in ["root", "run"] {
            fs::create_dir(store.path(name)).unwrap();
        }
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "full"]).arg(store.path("root")));
        store.ok(&["layers"]);
        for _ in 0..2 {
            let said = store.fails(&["import-layer", "--file", &tar.display().to_string()]);
            assert!(said.contains("No space left on device"), "{said}");
            assert_eq!(store.ok(&["layers"]), "");
            assert_eq!(left_overs(store), Vec::<String>::new(), "{}", store.driver);
        }
        run(Command::new("mount").args(["-o", "remount,size=200m"]).arg(store.path("root")));
        let id = store.ok(&["import-layer", "--file", &tar.display().to_string()]);
        store.ok(&["delete-layer", id.trim()]);
        assert_eq!(left_overs(store), Vec::<String>::new(), "{}", store.driver);
        store.ok(&["shutdown"]);
        run(Command::new("umount").arg(store.path("root")));
    });
}

#[test]
fn root_kill_9_in_the_middle_of_an_import_leaves_nothing_for_long() {
    on_each_driver("root_kill_9_in_the_middle_of_an_import_leaves_nothing_for_long", |store| {
        // A killed process loses nothing that is only in memory, so the disk would just cost time.
        store.in_memory();
        let tar = store.path("layer.tar");
        many_files_tar(&tar, 200, 20);
        store.ok(&["layers"]);
        let bytes = fs::read(&tar).unwrap();
        let mut killed = 0;
        for step in 0..16_usize {
            let mut child = store
                .command(&["import-layer", "--id", "victim"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // It dies waiting for more, or, at the end, somewhere on its way to being done.
            let mut archive = child.stdin.take().unwrap();
            if step < 12 {
                archive.write_all(&bytes[..bytes.len() * step / 12]).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                child.kill().unwrap();
                drop(archive);
            } else {
                archive.write_all(&bytes).unwrap();
                drop(archive);
                std::thread::sleep(Duration::from_millis(4 * (step as u64 - 12)));
                child.kill().unwrap();
            }
            let status = child.wait().unwrap();
            // The next command finds a store that works, with all of the layer or none of it.
            let layers = store.ok(&["layers", "-q"]);
            if layers.is_empty() {
                killed += 1;
                assert_eq!(left_overs(store), Vec::<String>::new(), "{} step {step}", store.driver);
            } else {
                assert_eq!(layers, "victim\n", "step {step}, {status}");
                let out = store.path("again.tar");
                store.ok(&["diff", "-u", "-f", &out.display().to_string(), "victim"]);
                assert!(fs::read(&out).unwrap() == fs::read(&tar).unwrap(), "step {step}: other bytes");
                store.ok(&["delete-layer", "victim"]);
            }
        }
        assert!(killed >= 12, "only {killed} of 16 died before they were done");
        eprintln!("{}: {killed} of 16 imports died in the middle", store.driver);
        for part in ["root", "run"] {
            assert_eq!(mounts_below(&store.path(part)), Vec::<String>::new());
        }
    });
}

#[test]
fn root_eight_processes_at_once() {
    on_each_driver("root_eight_processes_at_once", |store| {
        let tar = store.path("layer.tar");
        many_files_tar(&tar, 10, 10);
        let base = store.ok(&["import-layer", "--file", &tar.display().to_string()]).trim().to_owned();
        let script = format!(
            "for i in 1 2 3 4 5; do l=$(\"$0\" \"$@\" import-layer --file {} {base}) || exit 1; \
             m=$(\"$0\" \"$@\" mount $l) || exit 1; [ -e $m/node_modules/package-0003/file-003.js ] || exit 2; \
             \"$0\" \"$@\" unmount $l >/dev/null || exit 1; \"$0\" \"$@\" delete-layer $l || exit 1; done",
            tar.display()
        );
        let children: Vec<_> = (0..8)
            .map(|_| {
                let mut command = Command::new("sh");
                command.args(["-c", &script, DRIVERCTL]).args(store.global());
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in children {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "{}: {}", store.driver, both(&out));
        }
        assert_eq!(store.ok(&["layers", "-q"]), format!("{base}\n"));
        store.ok(&["delete-layer", &base]);
        assert_eq!(left_overs(store), Vec::<String>::new(), "{}", store.driver);
    });
}

/// Archives that try to get out, by python's tarfile, which writes whatever it is told.
const HOSTILE: &str = r#"
import io, sys, tarfile
out = sys.argv[1]
F, D, S, H, C = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
up = "../" * 12
def tar(name, *members):
    with tarfile.open(f"{out}/{name}.tar", "w", format=tarfile.PAX_FORMAT) as t:
        for m in members:
            path, kind, link = (m + (F, ""))[:3] if len(m) == 1 else (m + ("",))[:3]
            i = tarfile.TarInfo(path); i.type = kind; i.linkname = link; i.mode = 0o755
            data = b"owned\n" if kind == F else b""
            i.size = len(data)
            t.addfile(i, io.BytesIO(data))
v = sys.argv[2]
tar("dotdot", (up + v.lstrip("/") + "/hello",))
tar("absolute", (v + "/hello",))
tar("symlink-abs", ("l", S, v), ("l/hello",))
tar("symlink-rel", ("d", D), ("d/l", S, up + v.lstrip("/")), ("d/l/hello",))
tar("hardlink-abs", ("h", H, v + "/hello"), ("h",))
tar("hardlink-rel", ("h", H, up + v.lstrip("/") + "/hello"), ("h",))
tar("hardlink-via-symlink", ("l", S, v), ("h", H, "l/hello"), ("h",))
tar("symlink-over-dir", ("d", D), ("d/f",), ("d", S, v), ("d/hello",))
tar("whiteout-dot", ("d", D), ("d/.wh..",))
tar("whiteout-dotdot", ("d", D), ("d/.wh...",))
tar("whiteout-root", (".wh..",))
tar("whiteout-empty", ("d/.wh.",))
tar("root-symlink", (".", S, v), ("hello",))
tar("device-00", ("d", D), ("d/hello", C))
"#;

#[test]
fn root_hostile_archives_stay_inside() {
    on_each_driver("root_hostile_archives_stay_inside", |store| {
        let victim = store.path("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("hello"), "safe").unwrap();
        let tars = store.path("tars");
        fs::create_dir(&tars).unwrap();
        run(Command::new("python3").args(["-c", HOSTILE]).arg(&tars).arg(&victim));
        let before = run(Command::new("find").arg(&victim).args(["-printf", "%p %s %T@ %C@ %n\n"]));
        let mut refused = 0;
        for entry in fs::read_dir(&tars).unwrap() {
            let tar = entry.unwrap().path();
            let out = store
                .command(&["import-layer", "--id", "hostile", "--file", &tar.display().to_string()])
                .output()
                .unwrap();
            let after = run(Command::new("find").arg(&victim).args(["-printf", "%p %s %T@ %C@ %n\n"]));
            assert_eq!(after, before, "{}: {}", tar.display(), both(&out));
            if out.status.success() {
                store.ok(&["delete-layer", "hostile"]);
            } else {
                assert_eq!(out.status.code(), Some(1), "{}", both(&out));
                refused += 1;
            }
            assert_eq!(left_overs(store), Vec::<String>::new(), "{}: {}", store.driver, tar.display());
        }
        assert!(refused >= 5, "whiteouts of the directory itself and a root that is a symlink are errors: {refused}");
    });
}
