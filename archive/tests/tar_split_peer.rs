//! tar-split between us and containers-storage, in both directions, and through our own apply.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "test code, in directories of its own"
)]

mod support;

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use graph_archive::apply::{ApplyObserver, ApplyOptions, OverlayOptions, Style, apply};
use graph_archive::split::{DirectoryGetter, GzipPacker, assemble, verify};
use support::{PeerStore, TAR_MAKERS, fd, observe_decoded, tar_of};

fn unpacked(file: &mut File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    flate2::bufread::GzDecoder::new(BufReader::new(file)).read_to_string(&mut text).unwrap();
    text
}

/// Our tar-split of an archive, applied to `root` by `work`.
fn split(root: &Path, scratch: &Path, work: impl FnOnce(&mut dyn ApplyObserver)) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(scratch.join("split")).unwrap();
    let mut packer = GzipPacker::new(file, fd(scratch));
    work(&mut packer);
    packer.finish(&DirectoryGetter::new(fd(root), Vec::new())).unwrap()
}

/// Archives that every reader takes.
fn archives(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    support::sample_tree(&tree);
    let mut all = vec![("empty".to_owned(), vec![0; 1024]), ("long empty".to_owned(), vec![0; 10240])];
    for (program, args) in TAR_MAKERS {
        all.extend(tar_of(&tree, program, args).map(|tar| (format!("{program} {args:?}"), tar)));
    }
    let mut plain = support::simple_tar(&[("f", b"x"), ("g", &support::pattern(1000))]);
    all.push(("plain".to_owned(), plain.clone()));
    plain.extend([0; 3000]);
    all.push(("zeros after the end".to_owned(), plain.clone()));
    plain.extend(b"and something else");
    all.push(("data after the end".to_owned(), plain));
    all
}

/// How many lines there are before the segments at the end. Old releases (Debian bookworm has 1.43) cut what follows the
/// archive as they happen to read it, and end with an empty segment; newer ones (1.64) do neither.
fn end(text: &str) -> usize {
    text.lines().count() - text.lines().rev().take_while(|line| line.starts_with("{\"type\":2")).count()
}

/// The lines up to the first segment of the end (with the end blocks, if something follows them), long ones shortened.
fn before_the_end(text: &str) -> Vec<String> {
    let cut = |line: &str| {
        let sum = line.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        if line.len() > 300 { format!("{} of {}, {sum:x}", &line[..60], line.len()) } else { line.to_owned() }
    };
    text.lines().take(end(text) + 1).map(cut).collect()
}

fn bytes_of_the_end(text: &str) -> Vec<u8> {
    use base64::Engine;
    let payload = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        base64::engine::general_purpose::STANDARD.decode(value["payload"].as_str().unwrap()).unwrap()
    };
    text.lines().skip(end(text)).flat_map(payload).collect()
}

#[test]
fn the_peers_records_are_ours_and_each_reads_the_others() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(peer) = PeerStore::new(dir.path(), "vfs") else { return };
    for (maker, tar) in archives(dir.path()) {
        let id = peer.create_layer(None);
        let path = dir.path().join("tar");
        fs::write(&path, &tar).unwrap();
        peer.run(&["applydiff", "--file", path.to_str().unwrap(), &id]);
        let split_path = peer.root.join("graph/vfs-layers").join(format!("{id}.tar-split.gz"));
        let theirs = unpacked(&mut File::open(&split_path).unwrap());
        let root = peer.layer(&id);

        // Theirs, read by us.
        let getter = DirectoryGetter::new(fd(&root), Vec::new());
        let mut out = Vec::new();
        assemble(theirs.as_bytes(), &getter, &mut out).unwrap();
        assert!(out == tar, "{maker}");
        assert_eq!(verify(theirs.as_bytes(), &getter).unwrap(), u64::try_from(tar.len()).unwrap());

        // Ours is theirs, letter by letter.
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut file = split(&root, scratch.path(), |observer| observe_decoded(&tar, observer));
        let ours = unpacked(&mut file);
        assert_eq!(before_the_end(&ours), before_the_end(&theirs), "ours, theirs: {maker}");
        assert!(bytes_of_the_end(&ours) == bytes_of_the_end(&theirs), "{maker}");

        // Ours, read by them.
        fs::copy(scratch.path().join("split"), &split_path).unwrap();
        assert!(peer.run(&["diff", "--uncompressed", &id]) == tar, "{maker}");
    }
}

#[test]
fn an_archive_that_replaces_its_own_members_is_read_by_the_peer() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let Some(peer) = PeerStore::new(dir.path(), "vfs") else { return };
    let big = support::pattern(2 << 20);
    let tar = support::simple_tar(&[
        ("f", b"first"),
        ("d/g", &big),
        ("f", b"second"),
        ("./d/g", b"small"),
        ("h", b"first"),
        ("f", b""),
        ("i", &big),
    ]);
    // The peer refuses to import it, so the layer is filled by us.
    let id = peer.create_layer(None);
    let whatever = dir.path().join("tar");
    fs::write(&whatever, support::simple_tar(&[("x", b"x")])).unwrap();
    peer.run(&["applydiff", "--file", whatever.to_str().unwrap(), &id]);
    let root = peer.layer(&id);
    fs::remove_file(root.join("x")).unwrap();
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut file = split(&root, scratch.path(), |observer| {
        let options = ApplyOptions { observer: Some(observer), ..ApplyOptions::default() };
        apply(fd(&root).as_fd(), tar.as_slice(), options).unwrap();
    });
    assert!(unpacked(&mut file).contains("\"name\":\"i\",\"size\":2097152"));
    let split_path = peer.root.join("graph/vfs-layers").join(format!("{id}.tar-split.gz"));
    fs::copy(scratch.path().join("split"), split_path).unwrap();
    assert!(peer.run(&["diff", "--uncompressed", &id]) == tar);
}

#[test]
fn everything_that_is_applied_comes_out_again() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut all = archives(dir.path());
    let big = support::pattern(2 << 20);
    let odd: &[&[(&str, &[u8])]] = &[
        &[("f", b"one"), ("f", b"two"), ("f", b"one"), ("f", b"two")],
        &[("d/f", b"one"), ("d", b"a file"), ("d/f", b"one")],
        &[("f", &big), ("g", &big), ("f", b"x"), ("g", b"y")],
        &[(".wh.f", b"with content"), ("d/.wh..wh..opq", b"too"), ("f", b"x")],
        &[("./f", b"x"), ("f", b"yy"), ("a/./f", b"z"), ("a/f", b"zz")],
    ];
    all.extend(odd.iter().map(|members| {
        (format!("{:?}", members.iter().map(|m| m.0).collect::<Vec<_>>()), support::simple_tar(members))
    }));
    let sparse = File::create(dir.path().join("tree/sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    sparse.write_all_at(b"data", 5 << 20).unwrap();
    drop(sparse);
    for format in ["gnu", "posix"] {
        let format = format!("--format={format}");
        let sparse = tar_of(&dir.path().join("tree"), "tar", &["--sparse", &format, "-cf", "-", "sparse", "d"]);
        all.extend(sparse.map(|tar| (format, tar)));
    }
    for (maker, tar) in all {
        for overlay in [false, true] {
            if overlay && !graph_sys::process::geteuid().is_root() {
                eprintln!("skipped: attributes of overlays need root");
                continue;
            }
            let root = tempfile::tempdir_in("/var/tmp").unwrap();
            let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
            let mut file = split(root.path(), scratch.path(), |observer| {
                let style = if overlay { Style::Overlay(OverlayOptions::default()) } else { Style::Plain };
                let options = ApplyOptions { style, observer: Some(observer), ..ApplyOptions::default() };
                apply(fd(root.path()).as_fd(), tar.as_slice(), options).unwrap();
            });
            let records = unpacked(&mut file);
            let mut out = Vec::new();
            let getter = DirectoryGetter::new(fd(root.path()), Vec::new());
            assemble(records.as_bytes(), &getter, &mut out)
                .unwrap_or_else(|error| panic!("{maker}, {overlay}: {error}"));
            assert!(out == tar, "{maker}, {overlay}");
        }
    }
}
