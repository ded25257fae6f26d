//! Many processes on one store: nobody waits for somebody's slow input or output, nobody trips over another.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{TestStore, both, have, in_own_mount_namespace, many_files_tar, run};

/// Does it and fails if it takes longer than anybody should have to wait.
fn soon(mut command: Command, what: &str) {
    let began = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            panic!("{what} waited for a stalled process");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{what}: {}", both(&out));
}

fn others_go_on(store: &TestStore, what: &str) {
    for words in [
        &["create-layer", "--id", "other", "base"][..],
        &["mount", "other"],
        &["unmount", "other"],
        &["changes", "base"],
        &["delete-layer", "other"],
        &["layers"],
    ] {
        soon(store.command(words), &format!("{what}: {words:?}"));
    }
    if have("containers-storage", what) {
        soon(store.peer(&["layers"]), &format!("{what}: the peer"));
    }
}

fn finish(mut child: Child, what: &str) {
    let status = child.wait().unwrap();
    assert!(status.success(), "{what}: {status}");
}

#[test]
fn root_nobody_waits_for_a_stalled_import_apply_or_diff() {
    let name = "root_nobody_waits_for_a_stalled_import_apply_or_diff";
    if !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        let store = TestStore::new(driver);
        store.in_memory();
        let tar = store.path("layer.tar");
        // More than the pipes hold.
        many_files_tar(&tar, 60, 10);
        let bytes = fs::read(&tar).unwrap();
        store.ok(&["import-layer", "--id", "base", "--file", &tar.display().to_string()]);
        store.ok(&["create-layer", "--id", "empty", "base"]);

        for words in [&["import-layer", "--id", "slow"][..], &["apply-diff", "empty"]] {
            let what = format!("{driver}: {words:?}");
            let mut slow = store.command(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            let mut input = slow.stdin.take().unwrap();
            let (half, rest) = bytes.split_at(bytes.len() / 2);
            input.write_all(half).unwrap();
            others_go_on(&store, &what);
            input.write_all(rest).unwrap();
            drop(input);
            finish(slow, &what);
        }

        let what = format!("{driver}: diff");
        let mut slow = store.command(&["diff", "-u", "slow"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = slow.stdout.take().unwrap();
        let mut whole = vec![0; 10_000];
        output.read_exact(&mut whole).unwrap();
        others_go_on(&store, &what);
        output.read_to_end(&mut whole).unwrap();
        finish(slow, &what);
        assert!(whole == bytes, "{what}: other bytes");
    }
}

/// A layer that goes while it is read gives an error, never a wrong archive that looks whole.
#[test]
fn root_a_layer_deleted_under_a_diff_is_an_error() {
    let name = "root_a_layer_deleted_under_a_diff_is_an_error";
    if !in_own_mount_namespace(name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        for by_peer in [false, true] {
            if by_peer && !have("containers-storage", name) {
                continue;
            }
            let store = TestStore::new(driver);
            store.in_memory();
            let tar = store.path("layer.tar");
            many_files_tar(&tar, 200, 10);
            let bytes = fs::read(&tar).unwrap();
            store.ok(&["import-layer", "--id", "victim", "--file", &tar.display().to_string()]);
            let mut slow =
                store.command(&["diff", "-u", "victim"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut output = slow.stdout.take().unwrap();
            let mut got = vec![0; 10_000];
            output.read_exact(&mut got).unwrap();
            let mut delete = if by_peer {
                store.peer(&["delete-layer", "victim"])
            } else {
                store.command(&["delete-layer", "victim"])
            };
            run(&mut delete);
            output.read_to_end(&mut got).unwrap();
            let status = slow.wait().unwrap();
            if status.success() {
                assert!(got == bytes, "{driver}: a diff that succeeded has other bytes");
            } else {
                assert_eq!(status.code(), Some(1), "{driver}");
                assert!(bytes.starts_with(&got[..got.len().min(512)]), "{driver}");
            }
            assert_eq!(store.ok(&["layers"]), "");
        }
    }
}

#[test]
fn root_eight_processes_make_mount_unmount_and_delete_fifty_times() {
    let name = "root_eight_processes_make_mount_unmount_and_delete_fifty_times";
    if !in_own_mount_namespace(name) {
        return;
    }
    let store = TestStore::new("overlay");
    store.in_memory();
    let tar = store.path("layer.tar");
    many_files_tar(&tar, 2, 2);
    store.ok(&["import-layer", "--id", "base", "--file", &tar.display().to_string()]);
    let script = r#"i=0; while [ $i -lt 50 ]; do i=$((i+1)); l=worker-$w-$i
        "$0" "$@" create-layer --id $l base >/dev/null && m=$("$0" "$@" mount $l) && [ -e $m/node_modules ] &&
        "$0" "$@" unmount $l >/dev/null && "$0" "$@" delete-layer $l >/dev/null || { echo "round $i"; exit 1; }; done"#;
    let began = Instant::now();
    let workers: Vec<Child> = (0..8)
        .map(|worker| {
            let mut command = Command::new("sh");
            command.args(["-c", script, support::DRIVERCTL]).args(store.global()).env("w", worker.to_string());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for worker in workers {
        let out = worker.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", both(&out));
        assert_eq!(both(&out), "");
    }
    let rate = 1600.0 / began.elapsed().as_secs_f64();
    eprintln!("8 processes, 1,600 operations: {rate:.0} a second");
    assert_eq!(store.ok(&["layers", "-q"]), "base\n");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("worker-"), "{mounts}");
    let homes = fs::read_dir(store.path("root/overlay")).unwrap();
    let left: Vec<_> =
        homes.map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().contains("worker")).collect();
    assert_eq!(left.len(), 0, "{left:?}");
    for dir in ["root/overlay/l", "root/overlay/tempdirs", "root/overlay-layers/tmp"] {
        let count = fs::read_dir(store.path(dir)).map_or(0, Iterator::count);
        assert_eq!(count, usize::from(dir.ends_with("/l")), "{dir}");
    }
}

/// Whether everything that was put aside for deletion is gone.
fn nothing_aside(store: &TestStore) -> bool {
    ["overlay/tempdirs", "vfs/tempdirs", "overlay-layers/tmp", "vfs-layers/tmp"]
        .iter()
        .all(|dir| fs::read_dir(store.path("root").join(dir)).map_or(0, Iterator::count) == 0)
}

/// The files of what is deleted go without a lock: however long that takes, others go on.
#[test]
fn root_nobody_waits_for_a_stalled_deletion() {
    let name = "root_nobody_waits_for_a_stalled_deletion";
    if !in_own_mount_namespace(name) || !have("strace", name) {
        return;
    }
    for driver in ["overlay", "vfs"] {
        for object in ["layer", "image", "container"] {
            let store = TestStore::new(driver);
            store.in_memory();
            let tar = store.path("layer.tar");
            many_files_tar(&tar, 20, 10);
            let tar = tar.display().to_string();
            store.ok(&["import-layer", "--id", "base", "--file", &tar]);
            store.ok(&["import-layer", "--id", "victim", "--file", &tar]);
            let verb = format!("delete-{object}");
            let victim = if object == "layer" { "victim" } else { "object" };
            if object != "layer" {
                store.ok(&["create-image", "--name", "object", "victim"]);
            }
            if object == "container" {
                store.ok(&["create-container", "--name", "box", "object"]);
                let merged = store.ok(&["mount", "box"]);
                run(Command::new("cp")
                    .args(["-a", &format!("{}/node_modules", merged.trim())])
                    .arg(format!("{}/copy", merged.trim())));
                store.ok(&["unmount", "box"]);
            }
            let victim = if object == "container" { "box" } else { victim };
            let what = format!("{driver}: {verb}");
            // Each of more than 200 files takes two seconds to remove.
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat", "-e", "signal=none"]);
            command.args(["-e", "inject=unlinkat:delay_enter=2000000", support::DRIVERCTL]);
            command.args(store.global()).args([verb.as_str(), victim]);
            let mut slow = command.stdout(Stdio::null()).spawn().unwrap();
            let began = Instant::now();
            while store.command(&["exists", victim]).output().unwrap().status.code().is_none_or(|code| code == 0) {
                assert!(began.elapsed() < Duration::from_secs(60), "{what} has not begun");
                std::thread::sleep(Duration::from_millis(20));
            }
            others_go_on(&store, &what);
            assert!(slow.try_wait().unwrap().is_none() && !nothing_aside(&store), "{what} was not slow at all");
            // Without strace it is as fast as ever.
            slow.kill().unwrap();
            slow.wait().unwrap();
            while !nothing_aside(&store) {
                assert!(began.elapsed() < Duration::from_secs(120), "{what} does not end");
                std::thread::sleep(Duration::from_millis(20));
            }
            store.ok(&["check"]);
        }
    }
}
