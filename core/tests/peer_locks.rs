//! Our locks and those of the packaged containers-storage exclude each other, and each sees that the other wrote.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails, and says what it skips")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use graph_core::lockfile::{LockFile, Wait};
use graph_sys::lock::LockKind;

fn containers_storage(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("containers-storage");
    command.arg("--graph").arg(root.join("graph")).arg("--run").arg(root.join("run")).args(["-s", "vfs"]);
    command.args(arguments).env_remove("STORAGE_OPTS").env_remove("STORAGE_DRIVER");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn peer_containers_storage_waits_for_our_lock_and_we_see_its_writes() {
    let dir = tempfile::tempdir().unwrap();
    match containers_storage(dir.path(), &["create-layer"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("skipped: containers-storage: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        Err(error) => {
            eprintln!("skipped: containers-storage: {error}");
            return;
        }
    }
    let lock = LockFile::new(dir.path().join("graph/vfs-layers/layers.lock"));
    let guard = lock.lock(LockKind::Exclusive, Wait::AtMost(Duration::from_secs(10))).unwrap();
    let token = guard.token().unwrap();
    assert!(!token.as_bytes().is_empty(), "the peer wrote no token");

    let start = Instant::now();
    let mut child = containers_storage(dir.path(), &["create-layer"]).spawn().unwrap();
    while start.elapsed() < Duration::from_millis(500) {
        assert!(child.try_wait().unwrap().is_none(), "containers-storage went past our lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!guard.modified_since(&token).unwrap());
    drop(guard);
    assert!(child.wait().unwrap().success());

    let guard = lock.lock(LockKind::Shared, Wait::AtMost(Duration::from_secs(10))).unwrap();
    assert!(guard.modified_since(&token).unwrap(), "the peer's write left no trace");
    drop(guard);

    // A token of ours is one that the peer reads, and replaces by its own.
    let ours = lock.lock(LockKind::Exclusive, Wait::Block).unwrap().record_write().unwrap();
    assert!(containers_storage(dir.path(), &["create-layer"]).status().unwrap().success());
    assert!(lock.lock(LockKind::Shared, Wait::Block).unwrap().modified_since(&ours).unwrap());
}
