//! Staging, committing and recovering.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

fn fixture() -> (tempfile::TempDir, TempDirRoot, File) {
    let dir = tempfile::tempdir().unwrap();
    let root = TempDirRoot::create(dir.path().join("tempdirs")).unwrap();
    let home = File::open(dir.path()).unwrap();
    (dir, root, home)
}

fn names(path: &Path) -> Vec<OsString> {
    fsutil::list(File::open(path).unwrap()).unwrap()
}

#[test]
fn staged_deletions_are_named_by_number_and_base_name() {
    let (dir, root, home) = fixture();
    let long = "x".repeat(255);
    for name in ["layer", "link", &long] {
        std::fs::create_dir_all(dir.path().join(name).join("a/b")).unwrap();
    }
    let mut temp = root.make().unwrap();
    assert!(temp.stage_deletion(&home, "layer").unwrap());
    assert!(!temp.stage_deletion(&home, "missing").unwrap());
    assert!(temp.stage_deletion(&home, "link").unwrap());
    assert!(temp.stage_deletion(&home, &long).unwrap());
    assert_eq!(names(temp.path()), ["0-layer", "2-link", &*format!("3-{}", "x".repeat(253))]);
    assert_eq!(names(dir.path()), ["tempdirs"]);
    let id = temp.path().file_name().unwrap().to_str().unwrap().strip_prefix("temp-dir-").unwrap().to_owned();
    assert_eq!(names(root.path()), [OsString::from(format!("lock-{id}")), OsString::from(format!("temp-dir-{id}"))]);
    temp.finish().unwrap();
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn additions_are_committed_by_a_rename_that_replaces_nothing() {
    let (dir, root, home) = fixture();
    let mut temp = root.make().unwrap();
    let (tree, tree_fd) = temp.add_directory(0o555).unwrap();
    fs::mkdirat(&tree_fd, "inside", Mode::RWXU).unwrap();
    let (file, _) = temp.add_file(0o644).unwrap();
    let (late, _) = temp.add_file(0o600).unwrap();
    assert_eq!(names(temp.path()), ["0-addition", "1-addition", "2-addition"]);
    temp.commit(tree, &home, "diff").unwrap();
    temp.commit(file, &home, "split").unwrap();
    let error = temp.commit(late, &home, "diff").unwrap_err();
    let Error::Io { source, path, .. } = error else { panic!("{error}") };
    assert_eq!((source.kind(), path), (io::ErrorKind::AlreadyExists, dir.path().join("diff")));
    temp.finish().unwrap();
    assert_eq!(names(dir.path()), ["diff", "split", "tempdirs"]);
    assert_eq!(names(&dir.path().join("diff")), ["inside"]);
}

#[test]
fn recovery_takes_what_has_no_owner_and_only_that() {
    let (_dir, root, home) = fixture();
    let mut alive = root.make().unwrap();
    std::fs::write(root.path().join("../victim"), "x").unwrap();
    alive.stage_deletion(&home, "victim").unwrap();
    // Left by killed processes: both, only a lock, only a directory; and what is none of ours.
    std::fs::write(root.path().join("lock-1"), "").unwrap();
    std::fs::create_dir_all(root.path().join("temp-dir-1/0-layer/sub")).unwrap();
    std::fs::write(root.path().join("lock-2"), "").unwrap();
    std::fs::create_dir_all(root.path().join("temp-dir-3/1-addition")).unwrap();
    std::fs::create_dir_all(root.path().join("other")).unwrap();
    let recovery = root.recover_stale().unwrap();
    assert_eq!(recovery.removed, ["1", "2", "3"]);
    assert_eq!(recovery.in_use.len(), 1);
    assert!(recovery.failed.is_empty(), "{:?}", recovery.failed);
    assert_eq!(names(alive.path()), ["0-victim"]);
    assert_eq!(names(root.path()).len(), 3);
    alive.finish().unwrap();
    assert_eq!(names(root.path()), ["other"]);
}

#[test]
fn a_missing_root_has_nothing_to_recover() {
    let dir = tempfile::tempdir().unwrap();
    assert!(TempDirRoot::open(dir.path().join("none")).unwrap().is_none());
    let recovery = recover_stale(&[dir.path().join("none")]);
    assert!(recovery.removed.is_empty() && recovery.failed.is_empty());
}

#[test]
fn a_drop_cleans_up_too() {
    let (_dir, root, home) = fixture();
    std::fs::create_dir(root.path().join("../layer")).unwrap();
    let mut temp = root.make().unwrap();
    temp.stage_deletion(&home, "layer").unwrap();
    drop(temp);
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn what_is_claimed_is_waited_for() {
    let (_dir, root, _home) = fixture();
    // A left-over of a killed process is no claim.
    File::create(root.path().join("lock-layer-a")).unwrap();
    let (counter, most, claims) = (&AtomicUsize::new(0), &AtomicUsize::new(0), &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let root = TempDirRoot::create(root.path()).unwrap();
            scope.spawn(move || {
                for _ in 0..40 {
                    let claim = root.claim("layer-a").unwrap();
                    most.fetch_max(counter.fetch_add(1, SeqCst) + 1, SeqCst);
                    assert!(root.recover_stale().unwrap().failed.is_empty());
                    std::thread::yield_now();
                    counter.fetch_sub(1, SeqCst);
                    claims.fetch_add(1, SeqCst);
                    drop(claim);
                }
            });
        }
    });
    assert_eq!((most.load(SeqCst), claims.load(SeqCst)), (1, 240));
    assert_eq!(names(root.path()), [""; 0]);

    // Other work is not waited for, and a claim is no left-over.
    let both = [root.claim("layer-a").unwrap(), root.claim("layer-b").unwrap()];
    assert_eq!(root.recover_stale().unwrap().in_use, ["layer-a", "layer-b"]);
    drop(both);
    File::create(root.path().join("lock-layer-a")).unwrap();
    assert_eq!(root.recover_stale().unwrap().removed, ["layer-a"]);
    let long = root.claim(&"x/".repeat(300)).unwrap();
    assert_eq!(names(root.path()).len(), 1);
    drop(long);
    assert_eq!(names(root.path()), [""; 0]);
}

#[test]
fn many_owners_and_a_constant_clean_up_do_not_disturb_each_other() {
    let (dir, root, _home) = fixture();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cleaner = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let recovery = root.recover_stale().unwrap();
                assert!(recovery.failed.is_empty(), "{:?}", recovery.failed);
            }
        });
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let (root, dir) = (&root, &dir);
                scope.spawn(move || {
                    let home = File::open(dir.path()).unwrap();
                    for n in 0..50 {
                        let mut temp = root.make().unwrap();
                        let (addition, _) = temp.add_directory(0o755).unwrap();
                        temp.commit(addition, &home, format!("{worker}-{n}")).unwrap();
                        temp.finish().unwrap();
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        cleaner.join().unwrap();
    });
    assert_eq!(names(dir.path()).len(), 201);
    assert_eq!(names(root.path()), [""; 0]);
}
