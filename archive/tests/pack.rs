//! Archives of trees, beside those that containers-storage and GNU tar make of the same trees.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code, in directories of its own"
)]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use graph_archive::apply::XattrNamespace;
use graph_archive::changes::{Change, OverlayTree, Tree, compare, overlay_upper};
use graph_archive::pack::{PackOptions, PackReport, WhiteoutSource, pack_changes, pack_tree};
use graph_archive::{ErrorKind, IdMappings, IdRange, Timestamp};
use graph_sys::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};
use graph_sys::xattr::{self, SetMode};
use support::{PeerStore, fd};

fn pack(root: &Path, options: &PackOptions<'_>) -> (Vec<u8>, PackReport) {
    let mut out = Vec::new();
    let report = pack_tree(fd(root).as_fd(), &mut out, options).unwrap();
    (out, report)
}

/// One line a member: type, mode, owner, time, name, target.
fn list(tar: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    for member in tar::Archive::new(tar).entries().unwrap() {
        let member = member.unwrap();
        let header = member.header();
        lines.push(format!(
            "{} {:o} {}:{} {} {}",
            char::from(header.entry_type().as_byte()),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            String::from_utf8_lossy(&member.path_bytes()),
            member.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default(),
        ));
    }
    lines
}

fn names(tar: &[u8]) -> Vec<String> {
    let members = tar::Archive::new(tar)
        .entries()
        .unwrap()
        .map(|member| member.unwrap().path_bytes().into_owned())
        .collect::<Vec<_>>();
    members.into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    xattr::set(fd(path), name.as_bytes(), value, SetMode::CreateOrReplace).unwrap();
}

fn age(root: &Path) {
    for (number, entry) in (1..).zip(walkdir::WalkDir::new(root).contents_first(true)) {
        let time = Timespec { tv_sec: 1_500_000_000 + number, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, entry.unwrap().path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Everything that an archive can hold.
fn fill(root: &Path) {
    support::sample_tree(root);
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("t".repeat(150), root.join("long-target")).unwrap();
    fs::create_dir_all(root.join(format!("{}/{}", "p".repeat(120), "q".repeat(90)))).unwrap();
    fs::write(root.join(format!("{}/{}/file", "p".repeat(120), "q".repeat(90))), "deep").unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    set_xattr(&root.join("d/f"), "user.k", b"v");
    set_xattr(&root.join("d"), "user.other", &support::pattern(300));
    set_xattr(
        &root.join("d/more"),
        "security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    set_xattr(&root.join("d/more"), "trusted.x", b"not archived");
    fs::set_permissions(root.join("d/e"), fs::Permissions::from_mode(0o3070)).unwrap();
    mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o622), makedev(1, 3)).unwrap();
    mknodat(CWD, root.join("block"), FileType::BlockDevice, Mode::RUSR, makedev(259, 70_000)).unwrap();
    lchown(root.join("null"), Some(3_000_000), Some(2)).unwrap();
    lchown(root.join("absolute"), Some(5), Some(6)).unwrap();
    fs::set_permissions(root.join("d/block"), fs::Permissions::from_mode(0o6711)).unwrap();
    age(root);
}

/// Old releases of containers/storage (Debian bookworm has 1.43) also wrote the file's type into the mode field, and the
/// names that the host has for owners; newer ones (1.64) do
/// neither. Takes both away, and the target of whiteouts, which the kernel makes as links to each other.
fn as_newer_peers_write(tar: &[u8]) -> Vec<u8> {
    let mut new = tar.to_vec();
    for member in tar::Archive::new(tar).entries().unwrap().raw(true) {
        let member = member.unwrap();
        let mut header = member.header().clone();
        header.set_mode(header.mode().unwrap() & 0o7777);
        if header.entry_type().is_file() {
            header.as_old_mut().linkname = [0; 100];
        }
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.uname = [0; 32];
            ustar.gname = [0; 32];
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            .map(|(n, byte)| if (148..156).contains(&n) { 32 } else { u32::from(*byte) })
            .sum();
        header.as_old_mut().cksum.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let at = usize::try_from(member.raw_header_position()).unwrap();
        new[at..at + 512].copy_from_slice(header.as_bytes());
    }
    new
}

fn check_against_peer(ours: &[u8], theirs: &[u8]) {
    let theirs = &*as_newer_peers_write(theirs);
    if ours != theirs {
        assert_eq!(list(ours), list(theirs), "ours, theirs");
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
        let block = at.unwrap_or(0) / 512 * 512;
        let show = |tar: &[u8]| String::from_utf8_lossy(&tar[block..tar.len().min(block + 512)]).replace('\0', "");
        panic!("lengths {} and {}, differ at {at:?}:\n{:?}\n{:?}", ours.len(), theirs.len(), show(ours), show(theirs));
    }
}

#[test]
fn a_plain_layer_is_archived_as_the_peer_does() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(peer) = PeerStore::new(dir.path(), "vfs") else { return };
    let base = peer.create_layer(None);
    fill(&peer.layer(&base));
    let theirs = peer.run(&["diff", "--uncompressed", &base]);
    let (ours, report) = pack(&peer.layer(&base), &PackOptions::default());
    check_against_peer(&ours, &theirs);
    assert_eq!(report.entries, u64::try_from(list(&ours).len()).unwrap());
    assert_eq!(report.notices, [""; 0]);

    // And what changed in a child, nothing being gone: whiteouts carry the time of the call.
    let child = peer.create_layer(Some(&base));
    let root = peer.layer(&child);
    fs::write(root.join("d/new"), "new").unwrap();
    fs::hard_link(root.join("d/new"), root.join("again")).unwrap();
    fs::write(root.join("d/f"), "changed").unwrap();
    fs::remove_file(root.join("absolute")).unwrap();
    fs::create_dir_all(root.join("absolute/in")).unwrap();
    fs::set_permissions(root.join("d/e"), fs::Permissions::from_mode(0o700)).unwrap();
    let changed = |old: &str| {
        let (old, new) = (fd(&peer.layer(old)), fd(&root));
        let identity = IdMappings::default();
        let old = Tree { root: old.as_fd(), mappings: &identity };
        let set = compare(Some(old), Tree { root: new.as_fd(), mappings: &identity }).unwrap();
        let mut out = Vec::new();
        pack_changes(new.as_fd(), &set.changes, &mut out, &PackOptions::default()).unwrap();
        (out, set)
    };
    let (ours, set) = changed(&base);
    check_against_peer(&ours, &peer.run(&["diff", "--uncompressed", &child]));
    let size: u64 = String::from_utf8(peer.run(&["diffsize", &child])).unwrap().trim().parse().unwrap();
    assert_eq!(set.size, size);

    fs::remove_file(root.join("d/g")).unwrap();
    fs::remove_dir_all(root.join("p".repeat(120))).unwrap();
    let (ours, _) = changed(&base);
    assert_eq!(list(&ours), list(&as_newer_peers_write(&peer.run(&["diff", "--uncompressed", &child]))));
    assert!(list(&ours).contains(&"0 0 0:0 d/.wh.g ".to_owned()));
}

#[test]
fn an_overlay_layer_is_archived_as_the_peer_does() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(peer) = PeerStore::new(dir.path(), "overlay") else { return };
    if graph_sys::namespace::private_mounts().is_err() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let mut stack: Vec<String> = Vec::new();
    let mut layer = |same_changes: bool, change: &dyn Fn(&Path)| {
        let id = peer.create_layer(stack.first().map(String::as_str));
        let mounted = String::from_utf8(peer.run(&["mount", &id])).unwrap();
        let at = PathBuf::from(mounted.trim());
        change(&at);
        peer.run(&["unmount", &id]);
        let lowers: Vec<_> = stack.iter().map(|id| fd(&peer.layer(id))).collect();
        let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
        let namespace = XattrNamespace::Trusted;
        let whiteouts = WhiteoutSource::Overlay { namespace, lowers: lowers.clone() };
        let (ours, _) = pack(&peer.layer(&id), &PackOptions { whiteouts, ..PackOptions::default() });
        check_against_peer(&ours, &peer.run(&["diff", "--uncompressed", &id]));
        // What the peer's own tests check: the same changes, by our exact rules.
        let upper = fd(&peer.layer(&id));
        let identity = IdMappings::default();
        let set = overlay_upper(OverlayTree {
            upper: upper.as_fd(),
            upper_mappings: &identity,
            lowers: &lowers,
            lower_mappings: &identity,
            namespace,
        })
        .unwrap();
        if same_changes {
            let theirs = String::from_utf8(peer.run(&["changes", &id])).unwrap();
            let mut theirs: Vec<_> = theirs.lines().map(str::to_owned).collect();
            let show = |change: &Change| format!("{:?} {:?}", change.kind, String::from_utf8_lossy(&change.path));
            let mut ours: Vec<_> = set.changes.iter().map(show).collect();
            theirs.sort();
            ours.sort();
            assert_eq!(ours, theirs, "ours, theirs");
        }
        stack.insert(0, id);
    };
    // The peer's list names bytes that are not UTF-8 in its own way.
    layer(false, &fill);
    layer(true, &|at| {
        fs::remove_dir_all(at.join("d/e")).unwrap();
        fs::remove_file(at.join("null")).unwrap();
        fs::create_dir(at.join("new")).unwrap();
        fs::write(at.join("new/file"), "new").unwrap();
        fs::write(at.join("d/more"), "less").unwrap();
        age(&at.join("new"));
    });
    // Anew over a whiteout, and removed and made anew in one layer.
    layer(true, &|at| fs::create_dir_all(at.join("d/e/f")).unwrap());
    layer(false, &|at| {
        fs::remove_dir_all(at.join("new")).unwrap();
        fs::create_dir(at.join("new")).unwrap();
        fs::write(at.join("new/other"), "other").unwrap();
    });
    // Where a file takes a directory's place, the peer's list fails.
    layer(false, &|at| {
        fs::remove_dir_all(at.join("d")).unwrap();
        fs::write(at.join("d"), "a file").unwrap();
    });
    layer(false, &|at| {
        fs::remove_file(at.join("d")).unwrap();
        fs::create_dir_all(at.join("d/e")).unwrap();
        fs::hard_link(at.join("sparse"), at.join("d/sparse")).unwrap();
    });
}

#[test]
fn include_exclude_and_the_root() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/b/c", "a/b/d", "a/e", "f.o", "g/h.o", "g/keep.o", "a.x/y"] {
        support::put(dir.path(), name.as_bytes(), b"");
    }
    let bytes = |list: &[&str]| list.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
    let run = |include: &[&str], exclude: &[&str], root| {
        let options = PackOptions { include: bytes(include), exclude: bytes(exclude), root, ..PackOptions::default() };
        names(&pack(dir.path(), &options).0)
    };
    assert_eq!(
        run(&[], &[], false),
        ["a/", "a/b/", "a/b/c", "a/b/d", "a/e", "a.x/", "a.x/y", "f.o", "g/", "g/h.o", "g/keep.o"]
    );
    assert_eq!(run(&["g", "a/b"], &[], false), ["g/", "g/h.o", "g/keep.o", "a/b/", "a/b/c", "a/b/d"]);
    assert_eq!(run(&["a/e", "./a//b/", "a/b/c"], &["a/b/d"], false), ["a/e", "a/b/", "a/b/c"]);
    assert_eq!(run(&[], &["a", "**/*.o", "!g/keep.o"], true), ["./", "./a.x/", "./a.x/y", "./g/", "./g/keep.o"]);
    let include = |path: &str| {
        let options = PackOptions { include: bytes(&[path]), ..PackOptions::default() };
        pack_tree(fd(dir.path()).as_fd(), Vec::new(), &options).unwrap_err().kind()
    };
    assert_eq!(include("nothing"), ErrorKind::Io);
    assert_eq!(include("../x"), ErrorKind::InvalidInput);
}

#[test]
fn owners_are_container_ids_and_whiteouts_need_none() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: changing owners needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "").unwrap();
    lchown(dir.path().join("d"), Some(100_000), Some(100_001)).unwrap();
    lchown(dir.path().join("d/f"), Some(100_009), Some(100_000)).unwrap();
    // Version 3: the last word is the root of the namespace that it holds in.
    let mut capability = [1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capability[20..].copy_from_slice(&100_000_u32.to_le_bytes());
    set_xattr(&dir.path().join("d/f"), "security.capability", &capability);
    mknodat(CWD, dir.path().join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let range = || vec![IdRange { container_id: 0, host_id: 100_000, size: 10 }];
    let mappings = IdMappings { uids: range(), gids: range() };
    let overlay = || WhiteoutSource::Overlay { namespace: XattrNamespace::Trusted, lowers: Vec::new() };
    let options = PackOptions { mappings: mappings.clone(), whiteouts: overlay(), ..PackOptions::default() };
    let (tar, _) = pack(dir.path(), &options);
    assert_eq!(list(&tar), ["5 755 0:1 d/ ", "0 644 9:0 d/f ", "0 0 0:0 .wh.gone "]);
    capability[20..].copy_from_slice(&[0; 4]);
    assert!(tar.windows(24).any(|window| window == capability));

    lchown(dir.path().join("d/f"), Some(5), Some(100_000)).unwrap();
    let options = PackOptions { mappings, whiteouts: overlay(), ..PackOptions::default() };
    let error = pack_tree(fd(dir.path()).as_fd(), Vec::new(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unmapped);
    assert_eq!(error.to_string(), "host ID 5 cannot be mapped to a container ID (entry \"d/f\")");
}

#[test]
fn links_sockets_times_and_holes() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("b"), "text").unwrap();
    fs::hard_link(dir.path().join("b"), dir.path().join("a")).unwrap();
    mknodat(CWD, dir.path().join("socket"), FileType::Socket, Mode::RWXU, 0).unwrap();
    let sparse = File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&support::pattern(100), 32 << 20).unwrap();
    drop(sparse);
    age(dir.path());
    let (tar, report) = pack(dir.path(), &PackOptions::default());
    assert_eq!(names(&tar), ["a", "b", "sparse"]);
    assert_eq!(report.notices, ["sockets were left out, since archives cannot hold them"]);
    assert_eq!(report.content_bytes, 4 + (64 << 20));
    assert!(tar.len() > 64 << 20);
    let times = |tar: &[u8]| -> Vec<u64> {
        tar::Archive::new(tar).entries().unwrap().map(|m| m.unwrap().header().mtime().unwrap()).collect()
    };
    assert!(times(&tar).iter().all(|time| *time > 1_500_000_000));

    let mut options = PackOptions { latest: Some(Timestamp { seconds: 7, nanoseconds: 0 }), ..PackOptions::default() };
    options.encode.sparse = true;
    let (small, _) = pack(dir.path(), &options);
    assert!(small.len() < 100_000, "{}", small.len());
    assert!(times(&small).iter().all(|time| *time == 7));
    // Another program's reader gets the file back.
    if support::have("tar") {
        let out = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(out.path().join("t"), &small).unwrap();
        assert!(Command::new("tar").args(["-xf", "t"]).current_dir(out.path()).status().unwrap().success());
        assert!(fs::read(out.path().join("sparse")).unwrap() == fs::read(dir.path().join("sparse")).unwrap());
    }
}

#[test]
fn kernel_whiteouts_are_never_links_and_escaped_attributes_come_back() {
    if !graph_sys::process::geteuid().is_root() {
        eprintln!("skipped: devices need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    fs::create_dir_all(upper.join("opaque")).unwrap();
    fs::create_dir_all(upper.join("fresh")).unwrap();
    fs::create_dir_all(lower.join("opaque")).unwrap();
    mknodat(CWD, upper.join("a"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::hard_link(upper.join("a"), upper.join("b")).unwrap();
    fs::write(upper.join("opaque/x"), "").unwrap();
    set_xattr(&upper.join("opaque"), "user.overlay.opaque", b"y");
    set_xattr(&upper.join("fresh"), "user.overlay.opaque", b"y");
    set_xattr(&upper.join("opaque"), "user.overlay.origin", b"y");
    set_xattr(&upper.join("opaque"), "user.overlay.overlay.mine", b"mine");
    fs::set_permissions(upper.join("opaque"), fs::Permissions::from_mode(0o2750)).unwrap();
    let lower_fd = fd(&lower);
    let run = |lowers| {
        let whiteouts = WhiteoutSource::Overlay { namespace: XattrNamespace::User, lowers };
        pack(&upper, &PackOptions { whiteouts, ..PackOptions::default() }).0
    };
    let tar = run(vec![lower_fd.as_fd()]);
    assert_eq!(
        list(&tar),
        [
            "0 0 0:0 .wh.a ",
            "0 0 0:0 .wh.b ",
            "5 755 0:0 fresh/ ",
            "5 2750 0:0 opaque/ ",
            "0 750 0:0 opaque/.wh..wh..opq ",
            "0 644 0:0 opaque/x "
        ]
    );
    let text = String::from_utf8_lossy(&tar);
    assert!(text.contains("SCHILY.xattr.user.overlay.mine=mine"));
    assert!(!text.contains("origin") && !text.contains("overlay.opaque"));
    assert!(!names(&run(Vec::new())).iter().any(|name| name.contains("opq")));

    // AUFS has whiteouts by name.
    for name in [".wh.gone", ".wh..wh..opq", ".wh..wh.plnk/1.2", "kept"] {
        support::put(&lower, name.as_bytes(), b"");
    }
    fs::hard_link(lower.join(".wh.gone"), lower.join(".wh.too")).unwrap();
    let (tar, _) = pack(&lower, &PackOptions { whiteouts: WhiteoutSource::Aufs, ..PackOptions::default() });
    assert_eq!(
        list(&tar),
        ["0 0 0:0 .wh..wh..opq ", "0 0 0:0 .wh.gone ", "0 0 0:0 .wh.too ", "0 644 0:0 kept ", "5 755 0:0 opaque/ "]
    );
}
