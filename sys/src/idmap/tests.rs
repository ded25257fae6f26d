use super::*;
use crate::mount::{DetachedMount, FsContext, MountAttrFlags};
use rustix::fs::{AtFlags, FileType};
use rustix::process::{Gid, Uid};

fn range(inside: u32, outside: u32, count: u32) -> IdRange {
    IdRange { inside, outside, count }
}

fn root_or_skip() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: id mappings need root");
    }
    root
}

/// Children of this process, zombies included; each test of these runs in a process of its own under nextest, but with
/// threads under `cargo test`: so only children of this very thread are looked at.
fn children() -> Vec<u8> {
    crate::procfs::read("children").unwrap()
}

#[test]
fn root_a_mapped_mount_shows_other_owners_and_stores_the_inside_ones() {
    if !root_or_skip() {
        return;
    }
    let tmpfs = FsContext::open("tmpfs").unwrap().create(MountAttrFlags::empty()).unwrap();
    for (name, id) in [("a", 0), ("b", 1000), ("c", 70_000)] {
        rustix::fs::mknodat(&tmpfs, name, FileType::RegularFile, Mode::from(0o600), 0).unwrap();
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::fs::chownat(&tmpfs, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    let target = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            crate::namespace::private_mounts().unwrap();
            let attached = tmpfs.attach_path(target.path().as_os_str().as_encoded_bytes()).unwrap();
            let namespace =
                UserNamespace::with_ranges(&[range(0, 100_000, 1000), range(1000, 5, 1)], &[range(0, 200_000, 65_536)])
                    .unwrap();
            let mapped = DetachedMount::copy_of(&attached, b"", false).unwrap();
            mapped.map_ids(&namespace, false).unwrap();
            let owners = |name: &str| {
                let stat = rustix::fs::statat(&mapped, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                (stat.st_uid, stat.st_gid)
            };
            assert_eq!(owners("a"), (100_000, 200_000));
            assert_eq!(owners("b"), (5, 201_000));
            // Not covered by the mapping: the overflow ids.
            assert_eq!(owners("c"), (65_534, 65_534));
            // Mapped once, mapped for good.
            assert_eq!(mapped.map_ids(&namespace, false).unwrap_err().errno(), Errno::PERM);
            // What is created through the mapping is stored as the inside id.
            let (uid, gid) = (Uid::from_raw(100_007), Gid::from_raw(200_007));
            rustix::fs::chownat(&mapped, "a", Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let stored = rustix::fs::statat(&attached, "a", AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!((stored.st_uid, stored.st_gid), (7, 7));
            drop(mapped);
            attached.unmount().unwrap();
        });
    });
}

#[test]
fn root_children_are_reaped_on_success_and_on_failure() {
    if !root_or_skip() {
        return;
    }
    let before = children();
    for _ in 0..20 {
        UserNamespace::with_ranges(&[range(0, 1, 1)], &[range(0, 1, 1)]).unwrap();
    }
    for (uids, gids) in [
        (vec![], vec![range(0, 0, 1)]),
        (vec![range(0, 0, 1)], vec![range(0, 0, 0)]),
        (vec![range(0, 0, 10), range(5, 100, 10)], vec![range(0, 0, 1)]),
        (vec![range(0, 0, 10), range(100, 5, 10)], vec![range(0, 0, 1)]),
        (vec![range(u32::MAX - 1, 0, 10)], vec![range(0, 0, 1)]),
        (vec![range(0, 0, 1); RANGES_MAX + 1], vec![range(0, 0, 1)]),
    ] {
        let error = UserNamespace::with_ranges(&uids, &gids).unwrap_err();
        assert!(matches!(error.errno(), Errno::INVAL | Errno::PERM), "{error}");
    }
    assert_eq!(children(), before);
}

#[test]
fn root_as_many_ranges_as_the_kernel_takes() {
    if !root_or_skip() {
        return;
    }
    let many: Vec<_> = (0..RANGES_MAX as u32).map(|n| range(n * 2, 100_000 + n * 2, 1)).collect();
    // All lines must fit in one page.
    let lines = map_lines(&many).unwrap();
    if lines.len() < 4096 {
        UserNamespace::with_ranges(&many, &many).unwrap();
    } else {
        assert_eq!(UserNamespace::with_ranges(&many, &many).unwrap_err().errno(), Errno::INVAL);
    }
    let fewer = &many[..200];
    UserNamespace::with_ranges(fewer, fewer).unwrap();
}

#[test]
fn the_current_namespace_is_a_namespace() {
    let namespace = UserNamespace::current().unwrap();
    let own = rustix::fs::stat("/proc/self/ns/user").unwrap();
    assert_eq!(rustix::fs::fstat(&namespace).unwrap().st_ino, own.st_ino);
}
