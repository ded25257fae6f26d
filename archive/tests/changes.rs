//! What changed: tables, and the kernel as the judge of what an upper directory means.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code, in directories of its own"
)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use graph_archive::IdMappings;
use graph_archive::apply::XattrNamespace;
use graph_archive::changes::{ChangeKind, ChangeSet, OverlayTree, Tree, compare, overlay_upper};
use graph_sys::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use graph_sys::xattr::{self, SetMode};
use support::fd;

const IDENTITY: &IdMappings = &IdMappings { uids: Vec::new(), gids: Vec::new() };

fn show(set: &ChangeSet) -> Vec<String> {
    let letter = |kind| match kind {
        ChangeKind::Modify => 'C',
        ChangeKind::Add => 'A',
        ChangeKind::Delete => 'D',
    };
    set.changes.iter().map(|c| format!("{} {}", letter(c.kind), String::from_utf8_lossy(&c.path))).collect()
}

fn between(old: &Path, new: &Path) -> ChangeSet {
    let (old, new) = (fd(old), fd(new));
    let old = Tree { root: old.as_fd(), mappings: IDENTITY };
    compare(Some(old), Tree { root: new.as_fd(), mappings: IDENTITY }).unwrap()
}

fn upper(upper: &Path, lowers: &[&Path], namespace: XattrNamespace) -> ChangeSet {
    let upper = fd(upper);
    let lowers: Vec<_> = lowers.iter().map(|path| fd(path)).collect();
    let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    let tree = OverlayTree {
        upper: upper.as_fd(),
        upper_mappings: IDENTITY,
        lowers: &lowers,
        lower_mappings: IDENTITY,
        namespace,
    };
    overlay_upper(tree).unwrap()
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn age(root: &Path, seconds: i64) {
    for entry in walkdir::WalkDir::new(root).contents_first(true) {
        set_time(entry.unwrap().path(), seconds, 0);
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The tree of containers/storage's table of directory changes.
fn sample(root: &Path) {
    for dir in ["dir1", "dir2", "dir3"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for file in
        ["file1", "file2", "file3", "file4", "file5", "dir1/file1-1", "dir1/file1-2", "dir2/file2-1", "dir3/file3-1"]
    {
        fs::write(root.join(file), file).unwrap();
    }
    symlink("target1", root.join("symlink1")).unwrap();
    symlink("target2", root.join("symlink2")).unwrap();
    age(root, 1_000_000_000);
}

#[test]
fn a_copy_has_no_changes_and_a_mutated_one_the_expected() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    sample(&old);
    copy(&old, &new);
    assert_eq!(between(&old, &new), ChangeSet::default());

    fs::remove_file(new.join("file1")).unwrap();
    fs::remove_dir_all(new.join("dir1")).unwrap();
    fs::remove_file(new.join("symlink1")).unwrap();
    fs::write(new.join("file2"), "fileN").unwrap();
    fs::remove_file(new.join("file3")).unwrap();
    fs::write(new.join("file3"), "fileMM").unwrap();
    set_time(&new.join("file4"), 1_000_000_001, 0);
    fs::remove_file(new.join("file5")).unwrap();
    fs::create_dir(new.join("file5")).unwrap();
    fs::write(new.join("filenew"), "filenew").unwrap();
    fs::create_dir(new.join("dirnew")).unwrap();
    symlink("targetnew", new.join("symlinknew")).unwrap();
    fs::remove_file(new.join("symlink2")).unwrap();
    symlink("target3", new.join("symlink2")).unwrap();
    set_time(&new.join("symlink2"), 1_000_000_000, 0);
    fs::remove_dir_all(new.join("dir2")).unwrap();
    fs::write(new.join("dir2"), "dir2").unwrap();
    set_time(&new.join("dir3"), 1_000_000_001, 0);
    let found = between(&old, &new);
    let expected = [
        "D /dir1",
        "C /dir2",
        "C /dir3",
        "A /dirnew",
        "D /file1",
        "C /file2",
        "C /file3",
        "C /file4",
        "C /file5",
        "A /filenew",
        "D /symlink1",
        "C /symlink2",
        "A /symlinknew",
    ];
    assert_eq!(show(&found), expected);
    assert_eq!(found.size, 4 + 5 + 6 + 5 + 7 + 7 + 9);
}

#[test]
fn only_what_users_can_see_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    sample(&old);
    let attempt = |change: &dyn Fn(&Path)| {
        if new.exists() {
            fs::remove_dir_all(&new).unwrap();
        }
        copy(&old, &new);
        change(&new);
        show(&between(&old, &new))
    };
    let old_time = 1_000_000_000;
    let set = |path: PathBuf, name: &str, value: &[u8]| {
        xattr::set(fd(&path), name.as_bytes(), value, SetMode::CreateOrReplace).unwrap();
    };
    // A file in a directory: the directory is listed, the root is not.
    let none: [&str; 0] = [];
    assert_eq!(attempt(&|_| ()), none);
    assert_eq!(attempt(&|new| set_time(&new.join("dir1/file1-1"), old_time, 500)), none);
    assert_eq!(attempt(&|new| set_time(&new.join("dir1/file1-1"), old_time - 1, 0)), ["C /dir1", "C /dir1/file1-1"]);
    assert_eq!(
        attempt(&|new| {
            fs::write(new.join("dir1/x"), "x").unwrap();
            set_time(&new.join("dir1"), old_time, 0);
        }),
        ["C /dir1", "A /dir1/x"]
    );
    assert_eq!(
        attempt(&|new| fs::set_permissions(new.join("dir1"), fs::Permissions::from_mode(0o1711)).unwrap()),
        ["C /dir1"]
    );
    assert_eq!(attempt(&|new| set(new.join("dir1"), "user.a", b"b")), ["C /dir1"]);
    assert_eq!(attempt(&|new| set(new.join("file1"), "user.overlay.a", b"")), ["C /file1"]);
    assert_eq!(attempt(&|new| File::open(new.join("file1")).map(drop).unwrap()), none);
    if graph_sys::process::geteuid().is_root() {
        assert_eq!(attempt(&|new| set(new.join("file1"), "trusted.a", b"b")), none);
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(attempt(&|new| set(new.join("file1"), "security.capability", &capability)), ["C /file1"]);
        assert_eq!(attempt(&|new| chown(new.join("dir1"), Some(1), None).unwrap()), ["C /dir1"]);
        assert_eq!(attempt(&|new| lchown(new.join("symlink1"), None, Some(1)).unwrap()), ["C /symlink1"]);
    } else {
        eprintln!("skipped: changes of owners, capabilities and trusted attributes need root");
    }
}

#[test]
fn nothing_before_means_everything_is_new_and_links_count_once() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    fs::write(dir.path().join("a"), [0; 1000]).unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("dir1/b")).unwrap();
    fs::create_dir_all(dir.path().join("dir1/c/d/e")).unwrap();
    let root = fd(dir.path());
    let found = compare(None, Tree { root: root.as_fd(), mappings: IDENTITY }).unwrap();
    let mut expected: Vec<String> = walkdir::WalkDir::new(dir.path())
        .min_depth(1)
        .into_iter()
        .map(|entry| format!("A /{}", entry.unwrap().path().strip_prefix(dir.path()).unwrap().display()))
        .collect();
    expected.sort();
    assert_eq!(show(&found), expected);
    assert_eq!(found.size, 1000 + 5 * 5 + 4 * 12 + 2 * 7);
}

#[test]
fn lists_are_sorted_by_path_and_trees_of_one_inode_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/x", "a.b/x", "a b/x", "a/y/z"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    let root = fd(dir.path());
    let tree = Tree { root: root.as_fd(), mappings: IDENTITY };
    let found = show(&compare(None, tree).unwrap());
    assert_eq!(found, ["A /a", "A /a b", "A /a b/x", "A /a.b", "A /a.b/x", "A /a/x", "A /a/y", "A /a/y/z"]);
    assert_eq!(compare(Some(tree), tree).unwrap(), ChangeSet::default());
}

#[test]
fn owners_are_compared_as_container_ids() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: changing owners needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::create_dir(&old).unwrap();
    sample(&old);
    copy(&old, &new);
    for entry in walkdir::WalkDir::new(&new) {
        lchown(entry.unwrap().path(), Some(100_000), Some(200_000)).unwrap();
    }
    lchown(new.join("file3"), Some(100_001), Some(200_000)).unwrap();
    let range = |host_id| vec![graph_archive::IdRange { container_id: 0, host_id, size: 1000 }];
    let mappings = IdMappings { uids: range(100_000), gids: range(200_000) };
    let (a, b) = (fd(&old), fd(&new));
    let old = Tree { root: a.as_fd(), mappings: IDENTITY };
    let new = Tree { root: b.as_fd(), mappings: &mappings };
    assert_eq!(show(&compare(Some(old), new).unwrap()), ["C /file3"]);
}

/// A mount of an overlay in this thread's own mount namespace.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        let status = Command::new("mount").args(["-t", "overlay", "overlay", "-o", options]).arg(&at).status().unwrap();
        assert!(status.success(), "{options}");
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}

/// A tmpfs in a mount namespace of this thread's own; `None` when that is not allowed.
fn playground() -> Option<Playground> {
    if !graph_sys::process::geteuid().is_root() || graph_sys::namespace::private_mounts().is_err() {
        eprintln!("skipped: mounting overlays needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(dir.path()).status().unwrap().success());
    Some(Playground(dir))
}

struct Playground(tempfile::TempDir);

impl Drop for Playground {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..=self.below(3) {
            path.push(["a", "b", "c", "d.x"][usize::try_from(self.below(4)).unwrap()]);
        }
        path
    }
}

/// Does something to the tree; whether it works does not matter.
fn mutate(root: &Path, random: &mut Random) {
    let (path, other) = (random.path(root), random.path(root));
    match random.below(17) {
        0..=2 => drop(fs::create_dir_all(&path)),
        3 | 4 => {
            // Pipes are among what is there: never wait for the other end.
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).custom_flags(0o4000);
            let content = support::pattern(usize::try_from(random.below(4)).unwrap());
            drop(options.open(&path).and_then(|mut file| file.write_all(&content)));
        }
        5 => {
            if let Ok(mut file) = OpenOptions::new().append(true).custom_flags(0o4000).open(&path) {
                drop(file.write_all(b"more"));
            }
        }
        // Copies up without a change.
        6 => drop(OpenOptions::new().write(true).custom_flags(0o4000).open(&path)),
        7 => drop(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o700 + u32::try_from(random.below(2)).unwrap()),
        )),
        8 => drop(lchown(&path, Some(u32::try_from(random.below(2)).unwrap()), None)),
        9 | 10 => drop(fs::remove_dir_all(&path)),
        11 => drop(fs::remove_file(&path)),
        12 => drop(fs::rename(&path, &other)),
        13 => drop(fs::hard_link(&path, &other)),
        14 => drop(symlink(["x", "y"][usize::try_from(random.below(2)).unwrap()], &path)),
        15 => {
            if let Ok(file) = OpenOptions::new().read(true).custom_flags(0o4000).open(&path) {
                let name = [&b"user.a"[..], b"user.overlay.a"][usize::try_from(random.below(2)).unwrap()];
                let value = [u8::try_from(random.below(2)).unwrap()];
                xattr::set(&file, name, &value, SetMode::CreateOrReplace).ok();
            }
        }
        _ => {
            if fs::symlink_metadata(&path).is_ok_and(|status| !status.is_symlink()) {
                // Only a whole second that nothing else has.
                set_time(&path, 1000 + i64::try_from(random.below(1000)).unwrap(), 0);
            } else {
                support::try_fifo(&path);
            }
        }
    }
}

#[test]
fn the_upper_directory_and_the_mounted_trees_tell_the_same() {
    let Some(play) = playground() else { return };
    let mut kinds = [0; 3];
    for seed in 0..60 {
        let user = seed % 2 == 1;
        let namespace = if user { XattrNamespace::User } else { XattrNamespace::Trusted };
        let mut random = Random(seed);
        let at = play.0.path().join(seed.to_string());
        let layer = |n: usize| at.join(format!("layer{n}"));
        fs::create_dir_all(layer(0)).unwrap();
        for _ in 0..40 {
            mutate(&layer(0), &mut random);
        }
        age(&layer(0), 1_000_000_000);
        for n in 1..4 {
            fs::create_dir_all(layer(n)).unwrap();
            fs::create_dir_all(at.join("work")).unwrap();
            let lowers: Vec<PathBuf> = (0..n).rev().map(layer).collect();
            let list: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
            let list = list.join(":");
            let extra = if user { ",userxattr" } else { "" };
            {
                let options = format!(
                    "lowerdir={list},upperdir={},workdir={}{extra}",
                    layer(n).display(),
                    at.join("work").display()
                );
                let merged = Mounted::new(at.join("merged"), &options);
                // The clock of the file system ticks in milliseconds.
                std::thread::sleep(Duration::from_millis(12));
                for _ in 0..25 {
                    mutate(&merged.0, &mut random);
                }
                // With an empty directory on top, since one alone is not mounted.
                let empty = at.join("empty");
                fs::create_dir_all(&empty).unwrap();
                let below = Mounted::new(at.join("below"), &format!("lowerdir={}:{list}{extra}", empty.display()));
                let walked = between(&below.0, &merged.0);
                let borrowed: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
                let read = upper(&layer(n), &borrowed, namespace);
                assert_eq!(show(&read), show(&walked), "seed {seed}, layer {n}, {}", at.display());
                assert_eq!(read.size, walked.size, "seed {seed}, layer {n}");
                for change in &read.changes {
                    kinds[change.kind as usize] += 1;
                }
            }
            fs::remove_dir_all(at.join("work")).unwrap();
        }
    }
    assert!(kinds.iter().all(|count| *count > 100), "{kinds:?}");
}

#[test]
fn the_facts_that_the_peers_tests_check_hold_on_a_real_overlay() {
    let Some(play) = playground() else { return };
    let at = play.0.path();
    let layer = |n: usize| at.join(n.to_string());
    let stack = |n: usize, change: &dyn Fn(&Path)| -> Vec<String> {
        fs::create_dir_all(layer(n)).unwrap();
        fs::create_dir_all(at.join(format!("work{n}"))).unwrap();
        let lowers: Vec<PathBuf> = (0..n).rev().map(layer).collect();
        let list: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
        let options =
            format!("lowerdir={},upperdir={},workdir={}/work{n}", list.join(":"), layer(n).display(), at.display());
        let merged = Mounted::new(at.join("merged"), &options);
        change(&merged.0);
        let borrowed: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        show(&upper(&layer(n), &borrowed, XattrNamespace::Trusted))
    };
    fs::create_dir_all(layer(0).join("sub1/sub2/sub3")).unwrap();
    fs::create_dir_all(layer(0).join("gone/in")).unwrap();
    fs::write(layer(0).join("sub1/sub2/sub3/file"), "x").unwrap();
    age(&layer(0), 1_000_000_000);
    // Only the topmost of what is removed, and no parent in the root.
    assert_eq!(stack(1, &|m| fs::remove_dir_all(m.join("gone")).unwrap()), ["D /gone"]);
    // Anew over a whiteout: Add.
    assert_eq!(stack(2, &|m| fs::create_dir(m.join("gone")).unwrap()), ["A /gone"]);
    // Below inherited directories.
    assert_eq!(stack(3, &|m| fs::write(m.join("sub1/new"), "x").unwrap()), ["C /sub1", "A /sub1/new"]);
    assert_eq!(stack(4, &|m| fs::remove_dir_all(m.join("sub1/sub2")).unwrap()), ["C /sub1", "D /sub1/sub2"]);
    assert_eq!(
        stack(5, &|m| {
            fs::create_dir_all(m.join("sub1/sub2/sub3")).unwrap();
            fs::write(m.join("sub1/sub2/sub3/file"), "x").unwrap();
        }),
        ["C /sub1", "A /sub1/sub2", "A /sub1/sub2/sub3", "A /sub1/sub2/sub3/file"]
    );
    // Touched only, and removed and made anew in one layer.
    assert_eq!(stack(6, &|m| drop(OpenOptions::new().append(true).open(m.join("sub1/new")).unwrap())), [""; 0]);
    assert_eq!(
        stack(7, &|m| {
            fs::remove_dir_all(m.join("sub1")).unwrap();
            fs::create_dir_all(m.join("sub1/sub2")).unwrap();
        }),
        ["C /sub1", "D /sub1/new", "C /sub1/sub2", "D /sub1/sub2/sub3"]
    );
}

#[test]
fn whiteouts_in_the_form_of_attributes_are_read_as_the_kernel_reads_them() {
    let Some(play) = playground() else { return };
    let at = play.0.path();
    let set = |path: PathBuf, name: &str, value: &[u8]| {
        xattr::set(fd(&path), format!("trusted.overlay.{name}").as_bytes(), value, SetMode::Create).unwrap();
    };
    let (lower, middle, top) = (at.join("lower"), at.join("middle"), at.join("top"));
    for path in [lower.join("d"), lower.join("e"), middle.join("d"), middle.join("e"), top.join("d"), top.join("e")] {
        fs::create_dir_all(path).unwrap();
    }
    for file in ["d/kept", "d/hidden", "d/again", "d/top", "e/unmarked"] {
        fs::write(lower.join(file), "lower").unwrap();
    }
    for file in ["d/hidden", "d/again", "e/unmarked"] {
        fs::write(middle.join(file), "").unwrap();
        set(middle.join(file), "whiteout", b"");
    }
    set(middle.join("d"), "opaque", b"x");
    fs::write(top.join("d/again"), "top").unwrap();
    fs::write(top.join("d/top"), "").unwrap();
    set(top.join("d/top"), "whiteout", b"");
    set(top.join("d"), "opaque", b"x");
    set(top.join("e"), "opaque", b"y");
    for dir in [&lower, &middle, &top] {
        age(dir, 1_000_000_000);
    }
    set_time(&top.join("d/again"), 1_000_000_001, 0);
    let below = Mounted::new(at.join("below"), &format!("lowerdir={}:{}", middle.display(), lower.display()));
    let options = format!("lowerdir={}:{}:{}", top.display(), middle.display(), lower.display());
    let merged = Mounted::new(at.join("merged"), &options);
    let read = upper(&top, &[&middle, &lower], XattrNamespace::Trusted);
    assert_eq!(show(&read), show(&between(&below.0, &merged.0)));
    assert_eq!(show(&read), ["C /d", "A /d/again", "D /d/top", "C /e", "D /e/unmarked"]);
}

#[test]
fn renamed_directories_are_refused_and_contents_are_compared() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: trusted attributes need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (lower, top) = (dir.path().join("lower"), dir.path().join("top"));
    fs::create_dir_all(&lower).unwrap();
    fs::create_dir_all(&top).unwrap();
    for (name, content) in [("same", "aaaa"), ("other", "aaaa"), ("short", "aaaa")] {
        fs::write(lower.join(name), content).unwrap();
    }
    for (name, content) in [("same", "aaaa"), ("other", "aaab"), ("short", "aaa")] {
        fs::write(top.join(name), content).unwrap();
    }
    age(&lower, 5);
    age(&top, 5);
    assert_eq!(show(&upper(&top, &[&lower], XattrNamespace::Trusted)), ["C /other", "C /short"]);
    fs::create_dir(top.join("d")).unwrap();
    xattr::set(fd(&top.join("d")), b"trusted.overlay.redirect", b"old", SetMode::Create).unwrap();
    let (top, lower) = (fd(&top), fd(&lower));
    let tree = OverlayTree {
        upper: top.as_fd(),
        upper_mappings: IDENTITY,
        lowers: &[lower.as_fd()],
        lower_mappings: IDENTITY,
        namespace: XattrNamespace::Trusted,
    };
    let error = overlay_upper(tree).unwrap_err();
    assert_eq!(error.kind(), graph_archive::ErrorKind::Unsupported);
    assert_eq!(fs::metadata(dir.path()).unwrap().nlink(), 4);
}
