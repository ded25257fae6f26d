//! Locks between threads, between processes, and with the POSIX locks that containers/storage takes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;

use super::*;

fn fixture() -> (tempfile::TempDir, LockFile) {
    let dir = tempfile::tempdir().unwrap();
    let lock = LockFile::new(dir.path().join("layers.lock"));
    (dir, lock)
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

/// A Python process that holds a POSIX lock, the way Go does, until its input is closed.
fn posix_holder(path: &Path, operation: &str) -> Option<Child> {
    let script = format!(
        "import fcntl,sys\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.{operation})\nprint('held',flush=True)\nsys.stdin.read()"
    );
    let child =
        Command::new("python3").args(["-c", &script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: python3: {error}");
            return None;
        }
    };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    Some(child)
}

#[test]
fn exclusive_excludes_and_shared_shares() {
    let (_dir, lock) = fixture();
    let guard = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
    let other = LockFile::new(lock.path());
    let busy = other.lock(LockKind::Shared, Wait::Fail).unwrap_err();
    assert_eq!(busy.kind(), crate::ErrorKind::Locked);
    assert!(busy.to_string().contains(&format!("(process {})", std::process::id())), "{busy}");
    drop(guard);
    let one = lock.lock(LockKind::Shared, Wait::Fail).unwrap();
    let two = other.lock(LockKind::Shared, Wait::Fail).unwrap();
    other.lock(LockKind::Exclusive, Wait::AtMost(Duration::from_millis(30))).unwrap_err();
    drop((one, two));
    drop(other.lock(LockKind::Exclusive, Wait::Fail).unwrap());
}

#[test]
fn a_thread_does_not_wait_for_itself() {
    let (_dir, lock) = fixture();
    let guard = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
    let error = lock.clone().lock(LockKind::Shared, Wait::Block).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::DEADLK.raw_os_error()));
    drop(guard);
    drop(lock.lock(LockKind::Exclusive, Wait::Fail).unwrap());
}

#[test]
fn posix_locks_of_another_process_exclude_ours_and_ours_theirs() {
    let (_dir, lock) = fixture();
    drop(lock.lock(LockKind::Exclusive, Wait::Fail).unwrap());
    let Some(mut child) = posix_holder(lock.path(), "LOCK_SH") else { return };
    let pid = child.id();
    drop(lock.lock(LockKind::Shared, Wait::Fail).unwrap());
    let error = lock.lock(LockKind::Exclusive, Wait::Fail).unwrap_err();
    let Error::Locked { busy } = error else { panic!("{error}") };
    assert_eq!(busy.holders, [Holder { pid, command: "python3".to_owned() }]);
    // The holder lets go only after the message.
    let told = AtomicBool::new(false);
    let stdin = Mutex::new(child.stdin.take());
    let tell = |busy: &Busy| {
        assert_eq!(busy.holders.first().map(|h| h.pid), Some(pid));
        told.store(true, Ordering::SeqCst);
        drop(stdin.lock().unwrap().take());
    };
    let guard = lock.lock(LockKind::Exclusive, Wait::Tell(&tell)).unwrap();
    assert!(told.load(Ordering::SeqCst));
    child.wait().unwrap();

    let refused = Command::new("python3")
        .args(["-c", "import fcntl,sys\nf=open(sys.argv[1],'r+b')\nfcntl.lockf(f,fcntl.LOCK_SH|fcntl.LOCK_NB)"])
        .arg(lock.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!refused.success());
    drop(guard);
}

#[test]
fn closing_another_descriptor_keeps_the_lock() {
    let (_dir, lock) = fixture();
    let guard = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
    drop(File::open(lock.path()).unwrap());
    LockFile::new(lock.path()).lock(LockKind::Shared, Wait::Fail).unwrap_err();
    drop(guard);
}

#[test]
fn tokens_change_with_every_write_and_old_formats_are_taken() {
    let (_dir, lock) = fixture();
    let guard = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
    let empty = guard.token().unwrap();
    assert!(empty.as_bytes().is_empty() && empty.pid().is_none());
    let first = guard.record_write().unwrap();
    assert!(guard.modified_since(&empty).unwrap() && !guard.modified_since(&first).unwrap());
    assert_eq!((first.as_bytes().len(), first.pid()), (64, Some(std::process::id())));
    let second = guard.record_write().unwrap();
    assert!(guard.modified_since(&first).unwrap() && first != second);
    assert_eq!(std::fs::read(lock.path()).unwrap(), second.as_bytes());
    drop(guard);

    let old = "0123456789abcdef".repeat(4);
    File::options().write(true).open(lock.path()).unwrap().write_all(old.as_bytes()).unwrap();
    let guard = lock.lock(LockKind::Shared, Wait::Block).unwrap();
    assert_eq!((guard.token().unwrap().as_bytes(), guard.token().unwrap().pid()), (old.as_bytes(), None));
    assert_eq!(errno(&guard.record_write().unwrap_err()), Some(Errno::BADF.raw_os_error()));
}

#[test]
fn read_only_stores_are_never_locked_for_writing_and_need_no_lock_file() {
    let dir = tempfile::tempdir().unwrap();
    let lock = LockFile::read_only(dir.path().join("layers.lock"));
    assert_eq!(errno(&lock.lock(LockKind::Exclusive, Wait::Fail).unwrap_err()), Some(Errno::ROFS.raw_os_error()));
    let guard = lock.lock(LockKind::Shared, Wait::Fail).unwrap();
    assert!(!guard.is_locked() && guard.token().unwrap() == Token::default());
    assert!(!lock.path().exists(), "nothing is made in a read-only store");
    let writer = LockFile::new(lock.path());
    let token = writer.lock(LockKind::Exclusive, Wait::Fail).unwrap().record_write().unwrap();
    let guard = lock.lock(LockKind::Shared, Wait::Fail).unwrap();
    assert!(guard.is_locked() && guard.token().unwrap() == token);
}

#[test]
fn writers_never_overlap() {
    let (dir, lock) = fixture();
    let counter = dir.path().join("counter");
    std::fs::write(&counter, "0").unwrap();
    std::thread::scope(|scope| {
        for n in 0..6 {
            // Half of the threads share one object.
            let lock = if n % 2 == 0 { lock.clone() } else { LockFile::new(lock.path()) };
            let counter = &counter;
            scope.spawn(move || {
                for _ in 0..30 {
                    let guard = lock.lock(LockKind::Exclusive, Wait::Block).unwrap();
                    let value: u32 = std::fs::read_to_string(counter).unwrap().parse().unwrap();
                    std::fs::write(counter, (value + 1).to_string()).unwrap();
                    drop(guard);
                }
            });
        }
    });
    assert_eq!(std::fs::read_to_string(&counter).unwrap(), "180");
}

#[test]
fn lock_files_have_the_peers_mode() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, lock) = fixture();
    drop(lock.lock(LockKind::Exclusive, Wait::Block).unwrap());
    assert_eq!(lock.path().metadata().unwrap().permissions().mode() & 0o777, 0o644);
}
