#![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]

use std::collections::HashMap;
use std::fs::{self as std_fs, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use graph_sys::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, linkat, mknodat, openat, statat, utimensat,
};
use graph_sys::xattr;

use super::*;
use crate::error::{ErrorKind, show};
use crate::idmap::{IdMappings, IdRange};

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn copy(from: &Path, to: &Path) -> CopyReport {
    copy_tree(open(from).as_fd(), open(to).as_fd(), &CopyOptions::default()).unwrap()
}

/// Every line tells all about one name; the inode as the first name that has it.
fn describe(root: &Path) -> Vec<String> {
    let mut first = HashMap::new();
    let mut lines = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let (path, stat) = (entry.path(), entry.metadata().unwrap());
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        let same = first.entry((stat.dev(), stat.ino())).or_insert_with(|| name.clone()).clone();
        let content = match stat.file_type() {
            kind if kind.is_file() => std_fs::read(path).unwrap(),
            kind if kind.is_symlink() => std_fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        let mut attributes: Vec<_> = xattr::list_at(CWD, path.as_os_str().as_bytes())
            .unwrap()
            .iter()
            .map(|key| (show(key), xattr::get_at(CWD, path.as_os_str().as_bytes(), key).unwrap()))
            .collect();
        attributes.sort();
        let size = if stat.is_dir() { 0 } else { stat.size() };
        lines.push(format!(
            "{name:?} {:o} {}:{} {} {size} {}.{} {same:?} {attributes:?} {:x?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.rdev(),
            stat.mtime(),
            stat.mtime_nsec(),
            content
        ));
    }
    lines
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn all_that_a_layer_can_hold_is_kept() {
    let root = graph_sys::process::geteuid().is_root();
    if !root {
        eprintln!("skipped in part: owners, devices and capabilities need root");
    }
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std_fs::create_dir(&from).unwrap();
    std_fs::create_dir(&to).unwrap();
    let at = |name: &str| from.join(name);
    std_fs::create_dir_all(at("z/deep")).unwrap();
    std_fs::write(at("z/file"), "content").unwrap();
    std_fs::write(at("empty"), "").unwrap();
    std_fs::hard_link(at("z/file"), at("a-link")).unwrap();
    symlink("../z/nowhere", at("z/deep/symlink")).unwrap();
    std_fs::hard_link(at("z/deep/symlink"), at("symlink-too")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, at("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
    for (name, value) in [("user.key", &b"value"[..]), ("user.empty", b""), ("user.binary", &[0, 255])] {
        for path in ["z/file", "z", ""] {
            fs::lsetxattr(at(path), name, value, XattrFlags::empty()).unwrap();
        }
    }
    if root {
        for (name, uid) in [("z/file", 1), ("z", 2), ("symlink-too", 3), ("fifo", 4), ("socket", 5), ("", 6)] {
            std::os::unix::fs::lchown(at(name), Some(uid), Some(uid + 10)).unwrap();
        }
        mknodat(CWD, at("char"), FileType::CharacterDevice, Mode::RUSR, fs::makedev(1, 3)).unwrap();
        mknodat(CWD, at("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        mknodat(CWD, at("block"), FileType::BlockDevice, Mode::RUSR, fs::makedev(259, 70_000)).unwrap();
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fs::lsetxattr(at("empty"), "security.capability", &capability, XattrFlags::empty()).unwrap();
        fs::lsetxattr(at("symlink-too"), "trusted.key", b"value", XattrFlags::empty()).unwrap();
    }
    // user:1:rw, mask rw.
    let list = [2, 0, 0, 0]
        .into_iter()
        .chain(
            [(1, 6, u32::MAX), (2, 6, 1), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)].into_iter().flat_map(
                |(tag, rights, id): (u16, u16, u32)| {
                    [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
                },
            ),
        )
        .collect::<Vec<u8>>();
    fs::lsetxattr(at("empty"), "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
    let modes =
        [("z/file", 0o6511), ("z/deep", 0o1000), ("z", 0o2750), ("fifo", 0o000), ("socket", 0o640), ("", 0o711)];
    for (name, mode) in modes {
        std_fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    let times = [("z/file", -5), ("symlink-too", 7), ("fifo", 9), ("z/deep", 11), ("z", 5_000_000_000), ("", 15)];
    for (name, seconds) in times {
        set_time(&at(name), seconds);
    }

    let report = copy(&from, &to);
    assert_eq!(report.notices, [""; 0]);
    assert_eq!((report.bytes, report.inodes), (7, if root { 10 } else { 7 }));
    let (copied, original) = (describe(&to), describe(&from));
    assert_eq!(copied.len(), original.len());
    for (copied, original) in copied.iter().zip(&original) {
        assert_eq!(copied, original);
    }
}

#[test]
fn holes_stay_holes_and_files_are_apart() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std_fs::create_dir(&from).unwrap();
    std_fs::create_dir(&to).unwrap();
    let sparse = File::create(from.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 5000], 32 << 20).unwrap();
    let report = copy(&from, &to);
    assert_eq!(report.bytes, 64 << 20);
    assert!(report.method.is_some());
    let copied = std_fs::metadata(to.join("sparse")).unwrap();
    assert_eq!(copied.len(), 64 << 20);
    assert!(copied.blocks() < 1024, "{} blocks", copied.blocks());
    let expected = std_fs::read(from.join("sparse")).unwrap();
    assert!(std_fs::read(to.join("sparse")).unwrap() == expected);
    std_fs::write(to.join("sparse"), "changed").unwrap();
    assert!(std_fs::read(from.join("sparse")).unwrap() == expected);
}

#[test]
fn trees_deeper_than_any_path_are_copied_with_their_links() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std_fs::create_dir(&from).unwrap();
    std_fs::create_dir(&to).unwrap();
    let name = "d".repeat(200);
    let mut at = open(&from);
    for _ in 0..60 {
        fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
        at = openat(&at, name.as_str(), OFlags::RDONLY, Mode::empty()).unwrap();
    }
    drop(openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
    linkat(&at, "file", &at, "zlink", AtFlags::empty()).unwrap();
    // Begun at the deepest, so that both names are far from the root.
    let report = copy(&from, &to);
    assert_eq!(report.inodes, 61);
    let mut copied = open(&to);
    for _ in 0..60 {
        copied = openat(&copied, name.as_str(), OFlags::RDONLY, Mode::empty()).unwrap();
    }
    let (one, two) =
        (statat(&copied, "file", AtFlags::empty()).unwrap(), statat(&copied, "zlink", AtFlags::empty()).unwrap());
    assert_eq!((one.st_ino, one.st_nlink), (two.st_ino, 2));
    for name in ["from", "to"] {
        graph_sys::remove::remove_tree(open(temp.path()), name).unwrap();
    }
}

#[test]
fn an_error_names_the_path() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std_fs::create_dir_all(from.join("dir")).unwrap();
    std_fs::create_dir_all(to.join("dir")).unwrap();
    let error = copy_tree(open(&from).as_fd(), open(&to).as_fd(), &CopyOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "make directory \"dir\"");
}

#[test]
fn several_threads_copy_a_large_tree_as_one_does() {
    // In memory where there is such a place: a thousand files, five times.
    let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let from = temp.path().join("from");
    for top in 0..12 {
        std_fs::create_dir_all(from.join(top.to_string())).unwrap();
    }
    for top in 0..12 {
        for sub in 0..6 {
            let dir = from.join(format!("{top}/sub-{sub}/deep/er"));
            std_fs::create_dir_all(&dir).unwrap();
            for file in 0..10 {
                std_fs::write(dir.join(format!("file-{file}")), format!("{top} {sub} {file}").repeat(50)).unwrap();
            }
            // Names of one inode in directories that different threads copy.
            std_fs::hard_link(dir.join("file-3"), from.join(format!("{}/link-{top}-{sub}", (top + sub) % 12))).unwrap();
            set_time(&dir, 1_000_000 + top * 100 + sub);
        }
    }
    for top in 0..12 {
        set_time(&from.join(top.to_string()), 77 + top);
    }
    let mut all = Vec::new();
    for threads in [1, 4, 4, 4] {
        let to = tempfile::tempdir_in(temp.path()).unwrap();
        let options = CopyOptions { threads, ..CopyOptions::default() };
        let report = copy_tree(open(&from).as_fd(), open(to.path()).as_fd(), &options).unwrap();
        all.push((report, describe(to.path())));
    }
    assert_eq!(all[0].0.inodes, 12 + 12 * 6 * 13);
    assert_eq!(all[0].1, describe(&from));
    for other in &all[1..] {
        assert_eq!(*other, all[0]);
    }
    // An error of any of them is the error of all.
    let to = tempfile::tempdir_in(temp.path()).unwrap();
    std_fs::create_dir_all(to.path().join("7")).unwrap();
    let options = CopyOptions { threads: 4, ..CopyOptions::default() };
    let error = copy_tree(open(&from).as_fd(), open(to.path()).as_fd(), &options).unwrap_err();
    assert_eq!(error.to_string(), "make directory \"7\"");
}

#[test]
fn owners_of_another_mapping() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: only root gives files away");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    std_fs::create_dir_all(from.join("dir")).unwrap();
    std_fs::create_dir(&to).unwrap();
    let capability = |root: u32| {
        let mut value = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        value.extend_from_slice(&root.to_le_bytes());
        value
    };
    std_fs::write(from.join("dir/file"), "content").unwrap();
    std_fs::hard_link(from.join("dir/file"), from.join("link")).unwrap();
    symlink("dir/file", from.join("symlink")).unwrap();
    mknodat(CWD, from.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let owners = [("dir/file", 1, 2), ("symlink", 3, 4), ("dir", 5, 6), ("whiteout", 70_000, 80_000), ("", 0, 0)];
    for (name, uid, gid) in owners {
        std::os::unix::fs::lchown(from.join(name), Some(uid), Some(gid)).unwrap();
    }
    fs::lsetxattr(from.join("dir/file"), "security.capability", &capability(7), XattrFlags::empty()).unwrap();
    std_fs::set_permissions(from.join("dir/file"), PermissionsExt::from_mode(0o6755)).unwrap();
    std_fs::set_permissions(from.join("dir"), PermissionsExt::from_mode(0o2700)).unwrap();
    set_time(&from.join("dir/file"), 5);

    let mappings = |host_id| {
        let range = vec![IdRange { container_id: 0, host_id, size: 65_536 }];
        IdMappings { uids: range.clone(), gids: range }
    };
    let shift = |from: u32, to: u32| {
        let mappings = |start| if start == 0 { IdMappings::default() } else { mappings(start) };
        CopyOptions { reown: Some(OwnerShift::new(mappings(from), mappings(to))), ..CopyOptions::default() }
    };
    let report = copy_tree(open(&from).as_fd(), open(&to).as_fd(), &shift(0, 100_000)).unwrap();
    assert_eq!(report.notices, ["some files have owners that the new ID mappings leave out; these became 65534"]);
    let owner = |name: &str| {
        let stat = std_fs::symlink_metadata(to.join(name)).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    assert_eq!(owner("dir/file"), (100_001, 100_002, 0o6755));
    assert_eq!(owner("symlink"), (100_003, 100_004, 0o777));
    assert_eq!(owner("dir"), (100_005, 100_006, 0o2700));
    assert_eq!(owner("whiteout"), (65_534, 65_534, 0));
    assert_eq!((owner("").0, owner("").1), (100_000, 100_000));
    let (before, after) = (std_fs::metadata(from.join("link")).unwrap(), std_fs::metadata(to.join("link")).unwrap());
    assert_eq!((after.nlink(), after.mtime(), after.mtime_nsec()), (2, before.mtime(), before.mtime_nsec()));
    let value = xattr::get_at(CWD, to.join("link").as_os_str().as_bytes(), b"security.capability").unwrap();
    assert_eq!(value, Some(capability(100_007)));

    // Back again, but for the whiteout, whose owner means nothing and is no reason to leave it out.
    let back = temp.path().join("back");
    std_fs::create_dir(&back).unwrap();
    copy_tree(open(&to).as_fd(), open(&back).as_fd(), &shift(100_000, 0)).unwrap();
    let without =
        |root: &Path| describe(root).into_iter().filter(|line| !line.contains("whiteout")).collect::<Vec<_>>();
    assert_eq!(without(&back), without(&from));
    assert_eq!(describe(&back).len(), describe(&from).len());

    // An owner on disk that the old mappings do not know cannot be told.
    let to = tempfile::tempdir_in(temp.path()).unwrap();
    let error = copy_tree(open(&from).as_fd(), open(to.path()).as_fd(), &shift(200_000, 0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unmapped, "{error}");
}
