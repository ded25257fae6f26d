//! Copies of trees: nothing that a layer can hold is lost.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code, in directories of its own"
)]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use graph_archive::copy::{CopyOptions, CopyReport, copy_tree};
use graph_sys::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use graph_sys::reflink::CopyMethod;
use graph_sys::xattr::{self, SetMode};
use support::fd;

fn copy(from: &Path, to: &Path) -> CopyReport {
    fs::create_dir(to).unwrap();
    let (from, to) = (fd(from), fd(to));
    copy_tree(from.as_fd(), to.as_fd(), &CopyOptions::default()).unwrap()
}

/// Everything about a tree but inode numbers, change times and allocation, one line a name; hard links by their first name.
fn describe(root: &Path) -> Vec<String> {
    let mut first = std::collections::HashMap::new();
    let mut lines = Vec::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let status = fs::symlink_metadata(entry.path()).unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_owned();
        let link = first.entry(status.ino()).or_insert_with(|| name.clone()).clone();
        let mut attributes = Vec::new();
        for attribute in xattr::list_at(CWD, entry.path().as_os_str().as_encoded_bytes()).unwrap().iter() {
            let value = xattr::get_at(CWD, entry.path().as_os_str().as_encoded_bytes(), attribute).unwrap();
            attributes.push((String::from_utf8_lossy(attribute).into_owned(), value));
        }
        attributes.sort();
        let content = match status.file_type() {
            kind if kind.is_file() => fs::read(entry.path())
                .unwrap()
                .iter()
                .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte))),
            kind if kind.is_symlink() => fs::read_link(entry.path()).unwrap().as_os_str().len().try_into().unwrap(),
            _ => 0,
        };
        let size = if status.is_dir() { 0 } else { status.size() };
        lines.push(format!(
            "{name:?} {:o} {}:{} {} {} {}.{:09} {}.{:09} {content} {link:?} {attributes:?}",
            status.mode(),
            status.uid(),
            status.gid(),
            size,
            status.rdev(),
            status.mtime(),
            status.mtime_nsec(),
            status.atime(),
            status.atime_nsec(),
        ));
    }
    lines
}

fn fill(root: &Path) {
    support::sample_tree(root);
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(b"data", 20 << 20).unwrap();
    fs::write(root.join("big"), support::pattern(3 << 20)).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("d/e"), fs::Permissions::from_mode(0o3070)).unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        xattr::set(fd(&root.join(name)), attribute.as_bytes(), value, SetMode::Create).unwrap();
    };
    set("d/f", "user.a", b"1");
    set("d", "user.b", &[7; 200]);
    let acl = |user: u32| {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, bits, id) in
            [(1_u16, 7_u16, u32::MAX), (2, 5, user), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
        {
            value.extend(tag.to_le_bytes());
            value.extend(bits.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    };
    set("d/more", "system.posix_acl_access", &acl(5));
    set("d", "system.posix_acl_default", &acl(6));
    set("d/block", "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("d/e", "trusted.overlay.opaque", b"y");
    set("d/e", "trusted.own", b"y");
    mknodat(CWD, root.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o622), makedev(1, 3)).unwrap();
    mknodat(CWD, root.join("loop"), FileType::BlockDevice, Mode::RUSR, makedev(7, 0)).unwrap();
    mknodat(CWD, root.join("socket"), FileType::Socket, Mode::from_raw_mode(0o755), 0).unwrap();
    fs::hard_link(root.join("null"), root.join("d/null-again")).unwrap();
    fs::hard_link(root.join("dangling"), root.join("d/dangling-again")).unwrap();
    for (number, entry) in (1_u32..).zip(walkdir::WalkDir::new(root).contents_first(true).sort_by_file_name()) {
        let entry = entry.unwrap();
        if ["d/block", "d/f", "d/g"].iter().all(|keep| entry.path() != root.join(keep)) {
            lchown(entry.path(), Some(number), Some(number + 1)).unwrap();
        }
        let access = Timespec { tv_sec: 5, tv_nsec: number.into() };
        let times = Timestamps {
            last_access: access,
            last_modification: Timespec { tv_sec: -i64::from(number), tv_nsec: 999_999_999 },
        };
        utimensat(CWD, entry.path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn check(dir: &Path) -> CopyReport {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::create_dir(&from).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o1711)).unwrap();
    fill(&from);
    let report = copy(&from, &to);
    assert_eq!(report.notices, [""; 0]);
    let (before, after) = (describe(&from), describe(&to));
    for (before, after) in before.iter().zip(&after) {
        // Reading for the copy moves access times, and so does this test; they are compared on the copy's side only.
        let strip = |line: &str| {
            line.split(' ').enumerate().filter(|(n, _)| *n != 6).map(|(_, s)| s.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(strip(before), strip(after));
    }
    assert_eq!(before.len(), after.len());
    // Three of the names are further ones.
    assert_eq!(report.inodes, u64::try_from(before.len() - 1 - 3).unwrap());
    assert!(fs::metadata(to.join("sparse")).unwrap().blocks() < 2048);
    report
}

#[test]
fn nothing_is_lost() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: owners and devices need root");
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    check(dir.path());
}

#[test]
fn extents_are_shared_where_the_file_system_can() {
    if !graph_sys::process::geteuid().is_root() || graph_sys::namespace::private_mounts().is_err() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (image, at) = (dir.path().join("image"), dir.path().join("at"));
    fs::create_dir(&at).unwrap();
    File::create(&image).unwrap().set_len(320 << 20).unwrap();
    let run = |program: &str, args: &[&str], last: &Path| {
        Command::new(program).args(args).arg(last).output().is_ok_and(|output| output.status.success())
    };
    if !run("mkfs.xfs", &["-q"], &image) {
        eprintln!("skipped: mkfs.xfs is not installed");
        return;
    }
    assert!(run("mount", &["-o", "loop", image.to_str().unwrap()], &at));
    let report = check(&at);
    assert!(run("umount", &[], &at));
    assert_eq!(report.method, Some(CopyMethod::Reflink));
}

#[test]
fn a_deep_tree_and_a_used_destination() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut at = fd(&from);
    for n in 0..1500 {
        graph_sys::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
        at = graph_sys::fs::openat(&at, "directory", graph_sys::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        if n == 1200 {
            graph_sys::fs::mknodat(&at, "one", FileType::RegularFile, Mode::RUSR, 0).unwrap();
            graph_sys::fs::linkat(&at, "one", &at, "two", AtFlags::empty()).unwrap();
        }
    }
    let report = copy(&from, &dir.path().join("to"));
    assert_eq!(report.inodes, 1501);
    let (from, to) = (fd(&from), fd(&dir.path().join("to")));
    let error = copy_tree(from.as_fd(), to.as_fd(), &CopyOptions::default()).unwrap_err();
    assert!(
        matches!(error, graph_archive::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists)
    );
    for name in ["from", "to"] {
        graph_sys::remove::remove_tree(fd(dir.path()), name).unwrap();
    }
}
