//! tar-split: what is taken apart comes together again, byte for byte, and other makers' readers take it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code, in directories of its own")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use graph_archive::apply::{ApplyObserver, ContentPlace};
use graph_archive::split::{DirectoryGetter, GzipPacker, Packed, Packer, assemble, verify};
use graph_archive::{Defect, Entry, EntryKind, Error, Metadata};
use support::{fd, observe, pattern, tar_of};

fn pack(tar: &[u8], scratch: &Path) -> (Vec<u8>, bool) {
    let mut packer = Packer::new(Vec::new(), fd(scratch));
    observe(tar, &mut packer);
    let Packed { out, repair } = packer.finish().unwrap();
    (out, repair.is_some())
}

/// Lines of records without repair.
fn lines(tar: &[u8]) -> Vec<String> {
    let scratch = tempfile::tempdir().unwrap();
    String::from_utf8(pack(tar, scratch.path()).0).unwrap().lines().map(str::to_owned).collect()
}

/// Puts the archive together from files that are just the archive's.
fn round_trip(tar: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    let (records, repair) = pack(tar, root.path());
    assert!(!repair);
    for (name, content) in support::files(tar) {
        support::put(root.path(), &name, &content);
    }
    let getter = DirectoryGetter::new(fd(root.path()), Vec::new());
    let mut out = Vec::new();
    let count = assemble(records.as_slice(), &getter, &mut out).unwrap();
    assert!(out == tar, "{} bytes became {}", tar.len(), out.len());
    assert_eq!(count, u64::try_from(tar.len()).unwrap());
    assert_eq!(verify(records.as_slice(), &getter).unwrap(), count);
}

fn entry(path: &str, kind: EntryKind, size: u64) -> Entry {
    Entry {
        path: path.into(),
        kind,
        link_target: Vec::new(),
        size,
        sparse: None,
        metadata: Metadata::default(),
        offset: 0,
    }
}

#[test]
fn records_of_a_gnu_tar_are_those_measured_with_the_peer() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "hi\n").unwrap();
    fs::hard_link(dir.path().join("d/f"), dir.path().join("d/g")).unwrap();
    let Some(tar) = tar_of(dir.path(), "tar", &["--sort=name", "--format=gnu", "-cf", "-", "."]) else { return };
    let short: Vec<String> = lines(&tar)
        .iter()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            match value["name"].as_str() {
                Some(name) => format!("{name} {} {}", value["size"], value["payload"]),
                None => (value["payload"].as_str().unwrap().len() / 4 * 3).to_string(),
            }
        })
        .collect();
    assert_eq!(
        short,
        [
            "513",
            "./ null null",
            "513",
            "./d/ null null",
            "513",
            "./d/f 3 \"YUmYEAAAAAA=\"",
            "1023",
            "./d/g null null",
            "1026",
            "6657"
        ],
    );
}

#[test]
fn archives_of_many_makers_come_together_again() {
    let dir = tempfile::tempdir().unwrap();
    support::sample_tree(dir.path());
    for (program, args) in support::TAR_MAKERS {
        if let Some(tar) = tar_of(dir.path(), program, args) {
            round_trip(&tar);
        }
    }
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let script = format!(
            "import tarfile,sys;t=tarfile.open(fileobj=sys.stdout.buffer,mode='w|',format=tarfile.{format});t.add('.',filter=lambda i: None if 'long' in i.name and '{format}'[0]=='U' else i)\nt.close()"
        );
        if let Some(tar) = tar_of(dir.path(), "python3", &["-c", &script]) {
            round_trip(&tar);
        }
    }
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", dir.path()).unwrap();
    round_trip(&builder.into_inner().unwrap());
}

#[test]
fn odd_archives_come_together_again() {
    round_trip(b"");
    round_trip(&[0; 1024]);
    round_trip(&[0; 10240]);
    let mut tar = support::simple_tar(&[("f", b"x"), ("g", &[7; 512])]);
    round_trip(&tar);
    let whole = tar.len();
    tar.truncate(whole - 1024);
    round_trip(&tar);
    tar.extend([0; 1024]);
    tar.extend(pattern(3 << 20));
    round_trip(&tar);
    let longest = lines(&tar).iter().map(String::len).max().unwrap();
    assert!(longest < (1 << 20) * 4 / 3 + 100, "{longest}");
}

#[test]
fn a_record_ends_after_the_end_blocks_as_the_peers_does() {
    let mut tar = support::simple_tar(&[("f", b"xyz")]);
    tar.extend([0; 512]);
    let sizes: Vec<usize> = lines(&tar).iter().filter(|l| l.contains("\"type\":2")).map(String::len).collect();
    let of = |bytes: usize| bytes.div_ceil(3) * 4 + "{\"type\":2,\"payload\":\"\",\"position\":0}".len();
    assert_eq!(sizes, [of(512), of(509 + 1024), of(512)]);
}

#[test]
fn a_changed_missing_or_irregular_file_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let tar = support::simple_tar(&[("d/f", b"content")]);
    let (records, _) = pack(&tar, root.path());
    let getter = DirectoryGetter::new(fd(root.path()), Vec::new());
    let attempt = || assemble(records.as_slice(), &getter, &mut io::sink());
    assert!(matches!(attempt().unwrap_err(), Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound));
    for wrong in ["contenT", "conten", "contents", ""] {
        support::put(root.path(), b"d/f", wrong.as_bytes());
        let error = attempt().unwrap_err();
        assert!(matches!(&error, Error::Input { entry, defect: Defect::ChecksumMismatch { name }, .. }
            if entry == b"d/f" && name == "d/f"));
        assert!(error.to_string().starts_with("file integrity checksum failed for \"d/f\""), "{error}");
    }
    fs::remove_file(root.path().join("d/f")).unwrap();
    support::make_fifo(&root.path().join("d/f"));
    assert!(matches!(attempt().unwrap_err(), Error::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput));
}

#[test]
fn files_are_found_in_the_first_directory_and_never_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    fs::create_dir_all(upper.join("d")).unwrap();
    fs::create_dir_all(lower.join("d")).unwrap();
    fs::write(upper.join("d/f"), "upper").unwrap();
    fs::write(lower.join("d/f"), "lower").unwrap();
    fs::write(lower.join("d/g"), "lower").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", upper.join("link")).unwrap();
    std::os::unix::fs::symlink("..", upper.join("up")).unwrap();
    std::os::unix::fs::symlink("/d", upper.join("inside")).unwrap();
    let getter = DirectoryGetter::new(fd(&upper), vec![fd(&lower)]);
    let get = |name: &str| {
        use graph_archive::split::FileGetter;
        let mut text = String::new();
        getter.get(name.as_bytes()).map(|mut file| {
            file.read_to_string(&mut text).unwrap();
            text
        })
    };
    assert_eq!(get("d/f").unwrap(), "upper");
    assert_eq!(get("/d/f").unwrap(), "upper");
    assert_eq!(get("./d/../../d/f").unwrap(), "upper");
    assert_eq!(get("inside/f").unwrap(), "upper");
    assert_eq!(get("d/g").unwrap(), "lower");
    for name in ["../secret", "link", "up/secret", "d", "nothing", "d/f/x", "", "a\0b"] {
        assert!(get(name).is_err(), "{name}");
    }
}

/// Applies an archive of files the simple way, telling the observer what is lost.
fn apply(members: &[(&str, &[u8])], root: &Path, observer: &mut dyn ApplyObserver) -> Vec<u8> {
    let mut stream = Vec::new();
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into().unwrap());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_cksum();
        observer.raw(header.as_bytes()).unwrap();
        stream.extend_from_slice(header.as_bytes());
        let kind = if name.ends_with('/') { EntryKind::Directory } else { EntryKind::File };
        observer.begin(&entry(name, kind, content.len().try_into().unwrap()), ContentPlace::OnDisk).unwrap();
        let path = root.join(name.strip_prefix("x/../").unwrap_or(name).trim_end_matches('/'));
        if let Ok(old) = fs::read(&path) {
            observer.lost(&mut old.as_slice(), old.len().try_into().unwrap()).unwrap();
            fs::remove_file(&path).unwrap();
        }
        if kind == EntryKind::File {
            if path.is_dir() {
                fs::remove_dir(&path).unwrap();
            }
            if name.starts_with("x/") {
                // The reader goes through it.
                fs::create_dir_all(root.join("x")).unwrap();
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
        } else {
            fs::create_dir_all(&path).unwrap();
        }
        for chunk in content.chunks(1000) {
            observer.content(chunk).unwrap();
        }
        stream.extend_from_slice(content);
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        observer.raw(&padding).unwrap();
        stream.extend_from_slice(&padding);
    }
    observer.raw(&[0; 1024]).unwrap();
    stream.extend([0; 1024]);
    stream
}

#[test]
fn an_archive_that_replaces_its_own_members_comes_together_and_names_nothing_twice() {
    let (big, bigger) = (pattern(3 << 20), pattern(5 << 20));
    let table: &[&[(&str, &[u8])]] = &[
        &[("f", b"one"), ("f", b"two")],
        &[("f", b"one"), ("./f", b"two"), ("x/../f", b"three"), ("g", b"one")],
        &[("f", b"same"), ("f", b"same")],
        &[("f", b""), ("f", b"two")],
        &[("f", b"one"), ("f", b"")],
        &[("d/", b""), ("d/f", b"x"), ("d/", b""), ("d/g", b"x")],
        &[("f", b"one"), ("f/", b""), ("f/g", b"one")],
        &[("f/", b""), ("f", b"one")],
        &[("f", &big), ("g", &bigger), ("f", &bigger), ("g", &big), ("f", b"small")],
        &[("f", &big), ("f", b"a"), ("f", &big), ("f", b"a"), ("f", &big)],
    ];
    for members in table {
        let root = tempfile::tempdir().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let output = tempfile::tempfile().unwrap();
        let mut packer = GzipPacker::new(output, fd(scratch.path()));
        let tar = apply(members, root.path(), &mut packer);
        let getter = DirectoryGetter::new(fd(root.path()), Vec::new());
        let mut file = packer.finish(&getter).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        file.rewind().unwrap();
        let mut records = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut records).unwrap();
        let mut out = Vec::new();
        assemble(records.as_bytes(), &getter, &mut out).unwrap();
        assert!(out == tar, "{:?}", members.iter().map(|m| m.0).collect::<Vec<_>>());
        let mut seen = HashMap::new();
        for (position, line) in records.lines().enumerate() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["position"], position);
            if let Some(name) = value["name"].as_str() {
                let clean = name.trim_start_matches("./").trim_start_matches("x/../").trim_end_matches('/');
                assert_eq!(seen.insert(clean.to_owned(), position), None, "{records:.300}");
            }
        }
    }
}

#[test]
fn two_lost_contents_with_one_checksum_are_refused() {
    // Adding a multiple of the polynomial, x^64 + x^4 + x^3 + x + 1, lowest bit of each byte first, leaves a CRC as it is.
    let other = [0x01, 0, 0, 0, 0, 0, 0, 0xb0, 0x01];
    let scratch = tempfile::tempdir().unwrap();
    let mut packer = Packer::new(Vec::new(), fd(scratch.path()));
    packer.lost(&mut [0_u8; 9].as_slice(), 9).unwrap();
    packer.lost(&mut [0_u8; 9].as_slice(), 9).unwrap();
    let error = packer.lost(&mut other.as_slice(), 9).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let error = packer.lost(&mut [1_u8; 3].as_slice(), 4).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn the_gzip_header_is_the_peers() {
    let mut encoder = graph_archive::split::gzip_writer(Vec::new());
    encoder.write_all(b"x").unwrap();
    let bytes = encoder.finish().unwrap();
    assert_eq!(bytes[..10], [0x1f, 0x8b, 8, 0, 0, 9, 0x6e, 0x88, 4, 0xff]);
}

#[test]
fn content_that_is_nowhere_or_behind_a_link_is_kept_in_the_records() {
    let scratch = tempfile::tempdir().unwrap();
    let empty: OwnedFd = fd(scratch.path());
    let mut packer = Packer::new(Vec::new(), fd(scratch.path()));
    packer.raw(b"header").unwrap();
    packer.begin(&entry("gone", EntryKind::File, 4), ContentPlace::Nowhere).unwrap();
    packer.content(b"gone").unwrap();
    packer.raw(b"link").unwrap();
    packer.begin(&entry("l", EntryKind::Symlink, 0), ContentPlace::OnDisk).unwrap();
    packer.raw(b"header").unwrap();
    packer.begin(&entry("l/f", EntryKind::File, 4), ContentPlace::OnDisk).unwrap();
    packer.content(b"file").unwrap();
    let Packed { out, repair } = packer.finish().unwrap();
    assert!(repair.is_none());
    let mut tar = Vec::new();
    assemble(out.as_slice(), &DirectoryGetter::new(empty, Vec::new()), &mut tar).unwrap();
    assert_eq!(tar, b"headergonelinkheaderfile");
}
