//! Damaged and hostile archives: each gives its own error, early and with bounded memory.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

mod tar_support;

/// A name, an archive, and what is wrong with it.
type Case<'a, T> = (&'a str, T, Option<Defect>);

use std::io::{self, Read};

use graph_archive::limits::Limits;
use graph_archive::tar::{Decoder, EncodeOptions};
use graph_archive::{Defect, EntryKind, Error};
use tar_support::{decode, defect, encode, file, header, limit, member, padded, pax, record, seal};

fn number(field: &'static str) -> Option<Defect> {
    Some(Defect::InvalidNumber { field })
}

/// The header with `bytes` at `at`, and the checksum put right.
fn patched(mut block: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&mut block);
    block
}

#[test]
fn ends_and_beginnings() {
    let one = header("a", b'0', 0);
    let table: &[Case<'_, Vec<u8>>] = &[
        ("nothing", vec![], None),
        ("one zero block", vec![0; 512], None),
        ("two zero blocks", vec![0; 1024], None),
        ("one zero block and a piece", vec![0; 1023], Some(Defect::UnexpectedEof)),
        ("a piece of zeros", vec![0; 511], Some(Defect::UnexpectedEof)),
        ("a little junk", vec![b'x'; 511], Some(Defect::UnexpectedEof)),
        ("junk", vec![b'x'; 512], Some(Defect::InvalidHeader)),
        ("a zero block, then a member", [vec![0; 512], one.clone()].concat(), Some(Defect::InvalidHeader)),
        ("no end blocks", one.clone(), None),
        ("one end block", [one.clone(), vec![0; 512]].concat(), None),
        ("junk behind the end", [one.clone(), vec![0; 1024], vec![b'x'; 700]].concat(), None),
        ("junk behind a member", [one, vec![b'x'; 512]].concat(), Some(Defect::InvalidHeader)),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(defect(bytes), *expected, "{name}");
    }
}

#[test]
fn an_archive_cut_anywhere() {
    let mut rich = file("dir/rich", &[b'x'; 700]);
    rich.entry.metadata.xattrs = vec![(b"user.k".to_vec(), b"v".to_vec())];
    let bytes =
        encode(&[member("dir/", EntryKind::Directory, "", b""), rich, file("last", b"y")], EncodeOptions::default());
    // dir/: 0; its end 512. Extended header 512, records 1024 to 1049, header 1536, content 2048 to 2748, padding to 3072.
    // last: header 3072, content 3584, padding from 3585 to 4096, end blocks.
    assert_eq!(bytes.len(), 4096 + 1024);
    for cut in 0..bytes.len() {
        let whole = match cut {
            // Between members, in padding, and at the end blocks' boundaries.
            0 | 512 | 2748..=3072 | 3585..=4096 | 4608 => true,
            _ => false,
        };
        let expected = (!whole).then_some(Defect::UnexpectedEof);
        assert_eq!(defect(&bytes[..cut]), expected, "cut at {cut}");
        if whole {
            let members = decode(&bytes[..cut]).unwrap().len();
            assert_eq!(
                members,
                usize::from(cut >= 512) + usize::from(cut >= 2748) + usize::from(cut >= 3585),
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn errors_name_the_member_and_the_place() {
    let bytes = [header("first", b'0', 0), header("dir/second", b'0', 100), vec![b'x'; 50]].concat();
    let error = decode(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "unexpected EOF (entry \"dir/second\", offset 1074)");
    let bytes = [header("first", b'0', 0), pax(&[("mtime", "x")])].concat();
    assert_eq!(
        decode(&bytes).unwrap_err().to_string(),
        "invalid tar header: mtime is not a number that fits (entry \"\", offset 1536)"
    );
}

#[test]
fn checksums() {
    let mut block = header("a\u{e4}\u{f6}", b'0', 0);
    assert_eq!(defect(&block), None);
    block[0] = b'b';
    assert_eq!(defect(&block), Some(Defect::InvalidHeader));
    // As Suns computed it: bytes are signed.
    block[148..156].fill(b' ');
    let sum: i32 = block.iter().map(|byte| i32::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(defect(&block), None);
    for wrong in
        [&b"        "[..], b"0000000\0", b"7777777\0", b"-000001\0", b"xxxxxxxx", b"\xff\xff\xff\xff\xff\xff\xff\xff"]
    {
        block[148..156].copy_from_slice(wrong);
        assert_eq!(defect(&block), Some(Defect::InvalidHeader), "{}", wrong.escape_ascii());
    }
}

#[test]
fn numbers() {
    let block = || header("a", b'0', 0);
    let huge = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    let minus_one = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    let table: &[Case<'_, Vec<u8>>] = &[
        ("mode", patched(block(), 100, b"0000648\0"), number("mode")),
        ("uid", patched(block(), 108, b"-1     \0"), number("uid")),
        ("a negative uid", patched(block(), 108, &minus_one[..8]), number("uid")),
        ("no uid", patched(block(), 108, b"\x80\0\0\0\xff\xff\xff\xff"), number("uid")),
        ("the largest uid", patched(block(), 108, b"\x80\0\0\0\xff\xff\xff\xfe"), None),
        ("a huge gid", patched(block(), 116, b"\x80\0\0\x01\0\0\0\0"), number("gid")),
        ("a negative size", patched(block(), 124, minus_one), number("size")),
        ("a size", patched(block(), 124, b"0000000000x\0"), number("size")),
        ("a negative mtime", patched(block(), 136, minus_one), None),
        ("a huge mtime", patched(block(), 136, huge), None),
        ("an mtime beyond all", patched(block(), 136, b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), number("mtime")),
        ("devmajor of a file", patched(block(), 329, b"9999999\0"), number("devmajor")),
        ("a negative device", patched(header("a", b'3', 0), 337, &minus_one[..8]), number("devminor")),
        ("a negative device of a file", patched(block(), 337, &minus_one[..8]), None),
        ("a negative size of a directory", patched(header("a/", b'5', 0), 124, minus_one), None),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(defect(bytes), *expected, "{name}");
    }
    // 8 EiB: refused before anything is read.
    assert_eq!(limit(&patched(block(), 124, huge), Limits::default()), Some("total_bytes"));
    let cut = decode_without_limits(&patched(block(), 124, huge));
    assert!(matches!(cut, Err(Error::Input { defect: Defect::UnexpectedEof, .. })), "{cut:?}");
}

fn decode_without_limits(bytes: &[u8]) -> graph_archive::Result<Vec<tar_support::Member>> {
    tar_support::decode_pieces(bytes, usize::MAX, Limits::NONE)
}

#[test]
fn names() {
    let table: &[Case<'_, Vec<u8>>] = &[
        ("empty", header("", b'0', 0), Some(Defect::InvalidName)),
        ("NUL in path", [pax(&[("path", "a\0b")]), header("a", b'0', 0)].concat(), Some(Defect::InvalidName)),
        ("NUL in linkpath", [pax(&[("linkpath", "\0")]), header("a", b'2', 0)].concat(), Some(Defect::InvalidName)),
        ("NUL in uname", [pax(&[("uname", "r\0")]), header("a", b'0', 0)].concat(), Some(Defect::InvalidPax)),
        ("an empty path record", [pax(&[("path", "")]), header("a", b'0', 0)].concat(), None),
        ("dots", header("../../etc/passwd", b'0', 0), None),
    ];
    for (name, bytes, expected) in table {
        assert_eq!(defect(bytes), *expected, "{name}");
    }
    // A GNU long name ends at its first NUL.
    let bytes = [header("././@LongLink", b'L', 8), padded(b"long\0xy\0"), header("short", b'0', 0)].concat();
    assert_eq!(decode(&bytes).unwrap()[0].entry.path, b"long");
}

#[test]
fn types() {
    for type_flag in [b'8', b'A', b'D', b'M', b'N', b'V', b'X', b'z', 1, 0xff] {
        assert_eq!(defect(&header("a", type_flag, 0)), Some(Defect::UnknownType { type_flag }));
    }
    // Solaris' extended headers are refused rather than passed over: they can rename the next member.
    assert_eq!(defect(&header("a", b'X', 0)), Some(Defect::UnknownType { type_flag: b'X' }));
    // Old GNU sparse in a header of another format.
    assert_eq!(defect(&header("a", b'S', 0)), Some(Defect::InvalidHeader));
}

/// Only files have content, whatever the size field says; some writers state a link's target's size there.
#[test]
fn links_directories_and_devices_have_no_content() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let bytes = [pax(&[("size", "1000000")]), header("a", flag, 4096), header("b", b'0', 0)].concat();
        let members = decode(&bytes).unwrap();
        let names: Vec<_> = members.iter().map(|member| member.entry.path.as_slice()).collect();
        assert_eq!(names, [b"a", b"b"], "{}", char::from(flag));
        assert_eq!(members[0].entry.size, 0);
    }
}

/// The size of a PAX record and that of the header differ, and the header's hides an archive inside of the file: a reader
/// that frames by the wrong one sees members that others don't. <https://nvd.nist.gov/vuln/detail/CVE-2025-62518>
#[test]
fn cve_2025_62518_pax_size_frames_the_stream() {
    let inner = encode(&[file("smuggled", b"evil")], EncodeOptions::default());
    let size = inner.len().to_string();
    // The header says 0, so that the inner archive would be read as members.
    let bytes = [pax(&[("size", &size)]), header("outer", b'0', 0), inner.clone(), header("next", b'0', 0)].concat();
    let members = decode(&bytes).unwrap();
    assert_eq!(members.len(), 2);
    assert_eq!((members[0].entry.path.as_slice(), &members[0].content), (&b"outer"[..], &inner));
    assert_eq!(members[1].entry.path, b"next");
    // The other way round: the header's size would hide members.
    let bytes =
        [pax(&[("size", "4")]), header("outer", b'0', 1536), padded(b"data"), header("hidden", b'0', 0)].concat();
    let names: Vec<_> = decode(&bytes).unwrap().into_iter().map(|member| member.entry.path).collect();
    assert_eq!(names, [b"outer".to_vec(), b"hidden".to_vec()]);
    // A long name in between has a size of its own, which the record does not touch.
    let bytes = [
        pax(&[("size", &size)]),
        header("././@LongLink", b'L', 5),
        padded(b"long\0"),
        header("outer", b'0', 0),
        inner.clone(),
        header("next", b'0', 0),
    ]
    .concat();
    let members = decode(&bytes).unwrap();
    assert_eq!((members[0].entry.path.as_slice(), &members[0].content), (&b"long"[..], &inner));
    assert_eq!(members[1].entry.path, b"next");
    // A global header is not a record of the member.
    let global = record("size", &size);
    let bytes =
        [header("g", b'g', global.len() as u64), padded(global.as_bytes()), header("outer", b'0', 0), inner].concat();
    let names: Vec<_> = decode(&bytes).unwrap().into_iter().map(|member| member.entry.path).collect();
    assert_eq!(names, [b"outer".to_vec(), b"smuggled".to_vec()]);
    for (size, field) in [("-1", "size"), ("9223372036854775808", "size")] {
        assert_eq!(defect(&[pax(&[("size", size)]), header("a", b'0', 0)].concat()), number(field));
    }
}

#[test]
fn malformed_pax_is_an_error() {
    for body in ["\n", "6 a=b", "8 a=b\n\n", "60 path=b\n", "-6 a=b\n", "5 =b\n", "5 ab\n", "6 a=b\n\0", "x"] {
        for flag in [b'x', b'g'] {
            let bytes = [header("x", flag, body.len() as u64), padded(body.as_bytes()), header("a", b'0', 0)].concat();
            assert_eq!(defect(&bytes), Some(Defect::InvalidPax), "{body:?}");
        }
    }
}

/// An endless stream of the same bytes.
struct Endless {
    bytes: Vec<u8>,
    at: usize,
    given: u64,
}

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = (&self.bytes[self.at..]).read(out)?;
        self.at = (self.at + count) % self.bytes.len();
        self.given += count as u64;
        Ok(count)
    }
}

/// Reads without end, dropping everything; the error, and how many bytes it took.
fn endless(bytes: Vec<u8>, limits: Limits) -> (Error, u64) {
    let mut decoder = Decoder::new(Endless { bytes, at: 0, given: 0 }, limits);
    loop {
        match decoder.next_entry(&mut |_| Ok(())) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an endless archive has ended"),
            Err(error) => return (error, decoder.get_ref().given),
        }
    }
}

#[test]
fn endless_archives() {
    let limit_of = |error: &Error| match error {
        Error::Limit { limit, .. } => *limit,
        error => panic!("{error}"),
    };
    for (name, bytes) in [
        ("extended headers", pax(&[("comment", "x")])),
        ("empty extended headers", header("x", b'x', 0)),
        ("global headers", [header("g", b'g', 0)].concat()),
        ("long names", [header("L", b'L', 5), padded(b"long\0")].concat()),
    ] {
        let (error, given) = endless(bytes, Limits::default());
        assert_eq!(limit_of(&error), "pax_bytes", "{name}");
        assert!(given < 4 << 20, "{name}: {given} bytes");
    }
    let (error, _) = endless(header("a", b'0', 0), Limits { entries: 1000, ..Limits::default() });
    assert_eq!(limit_of(&error), "entries");
    let (error, given) = endless(header("a", b'0', 0), Limits { total_bytes: 1 << 20, ..Limits::default() });
    assert_eq!(limit_of(&error), "total_bytes");
    assert!(given <= 2 << 20);
}

#[test]
fn limits() {
    let long = "n".repeat(5000);
    let link = [pax(&[("linkpath", &long)]), header("a", b'2', 0)].concat();
    let gnu = [header("L", b'L', 5001), padded(long.as_bytes()), header("a", b'0', 0)].concat();
    let path = [pax(&[("path", &long)]), header("a", b'0', 0)].concat();
    let small = || Limits { name_bytes: 4999, ..Limits::default() };
    let enough = || Limits { name_bytes: 5000, ..Limits::default() };
    for bytes in [&link, &gnu, &path] {
        assert_eq!(limit(bytes, small()), Some("name_bytes"));
        assert_eq!(limit(bytes, enough()), None);
    }
    assert_eq!(limit(&path, Limits { pax_bytes: 4000, ..Limits::default() }), Some("pax_bytes"));
    // 1 MiB and a byte, by the header alone.
    assert_eq!(limit(&header("x", b'x', (1 << 20) + 1), Limits::default()), Some("pax_bytes"));

    // A flood of attributes that PAX alone would let pass.
    let records: String = (0..2000).map(|at| record(&format!("SCHILY.xattr.user.{at}"), &"v".repeat(100))).collect();
    let flood = [header("x", b'x', records.len() as u64), padded(records.as_bytes()), header("a", b'0', 0)].concat();
    assert_eq!(limit(&flood, Limits { xattr_bytes: 200_000, ..Limits::default() }), Some("xattr_bytes"));
    assert_eq!(limit(&flood, Limits { xattr_bytes: 300_000, ..Limits::default() }), None);
    assert_eq!(decode(&flood).unwrap()[0].entry.metadata.xattrs.len(), 2000);

    let bytes = [header("a", b'0', 3000), vec![b'x'; 3072]].concat();
    assert_eq!(limit(&bytes, Limits { total_bytes: 3583, ..Limits::default() }), Some("total_bytes"));
    assert_eq!(limit(&bytes, Limits { total_bytes: 3584, ..Limits::default() }), None);
    // Trailing bytes count.
    let bytes = [vec![0; 1024], vec![b'x'; 4096]].concat();
    assert_eq!(limit(&bytes, Limits { total_bytes: 5119, ..Limits::default() }), Some("total_bytes"));
}

fn sparse(records: &[(&str, &str)], stored: &[u8]) -> Vec<u8> {
    [pax(records), header("GNUSparseFile/f", b'0', stored.len() as u64), padded(stored)].concat()
}

fn sparse_1_0(size: &str, map: &str, data: &[u8]) -> Vec<u8> {
    let records =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f"), ("GNU.sparse.realsize", size)];
    sparse(&records, &[padded(map.as_bytes()), data.to_vec()].concat())
}

#[test]
fn sparse_maps() {
    let bad = Some(Defect::InvalidSparseMap);
    let text = number("sparse map");
    let table: &[Case<'_, (&str, &str, &[u8])>] = &[
        ("fine", ("10", "2\n1\n2\n5\n3\n", b"abcde"), None),
        ("no data", ("10", "0\n", b""), None),
        ("an empty run at the end", ("10", "2\n0\n1\n10\n0\n", b"a"), None),
        ("overlap", ("10", "2\n1\n2\n2\n3\n", b"abcde"), bad.clone()),
        ("backwards", ("10", "2\n5\n2\n1\n3\n", b"abcde"), bad.clone()),
        ("beyond the end", ("7", "2\n1\n2\n5\n3\n", b"abcde"), bad.clone()),
        ("beyond all", ("10", "1\n9223372036854775807\n9223372036854775807\n", b""), bad.clone()),
        ("too little data", ("10", "1\n1\n5\n", b"abcd"), bad.clone()),
        ("too much data", ("10", "1\n1\n3\n", b"abcd"), bad.clone()),
        ("negative", ("10", "1\n-1\n3\n", b"abc"), text.clone()),
        ("not a number", ("10", "1\nx\n3\n", b"abc"), text.clone()),
        ("an empty line", ("10", "1\n\n3\n", b"abc"), text.clone()),
        ("a number without end", ("10", "1\n11111111111111111111\n3\n", b"abc"), text),
        ("a negative size", ("-1", "0\n", b""), number("GNU.sparse.size")),
        ("a size", ("x", "0\n", b""), number("GNU.sparse.size")),
        ("NULs in the map", ("10", "2\n1\n", b""), number("sparse map")),
    ];
    for (name, (size, map, data), expected) in table {
        assert_eq!(defect(&sparse_1_0(size, map, data)), *expected, "{name}");
    }
    // The map does not end within the stored content.
    assert_eq!(defect(&sparse_1_0("10", &"1".repeat(18), b"")), number("sparse map"));
    let numbers = format!("200\n{}", "1\n".repeat(254));
    assert_eq!(defect(&sparse_1_0("10", &numbers[..512], b"")), bad);
    assert_eq!(limit(&sparse_1_0("10", "300000\n", b""), Limits::default()), Some("sparse_runs"));
    assert_eq!(limit(&sparse_1_0("9223372036854775807", "0\n", b""), Limits::default()), Some("total_bytes"));

    let table: &[Case<'_, &[(&str, &str)]>] = &[
        ("0.1", &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "3,3")], None),
        (
            "count",
            &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "3,3")],
            number("GNU.sparse.numblocks"),
        ),
        ("no count", &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "3,3")], number("GNU.sparse.numblocks")),
        ("odd", &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "3")], bad.clone()),
        (
            "text",
            &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "3,x")],
            number("GNU.sparse.map"),
        ),
        (
            "negative",
            &[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "-3,3")],
            bad.clone(),
        ),
        (
            "0.0",
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.offset", "3"),
                ("GNU.sparse.numbytes", "3"),
            ],
            None,
        ),
        ("order", &[("GNU.sparse.numbytes", "3"), ("GNU.sparse.offset", "3")], bad.clone()),
        ("half", &[("GNU.sparse.offset", "3")], bad.clone()),
        (
            "an unknown version is a plain file",
            &[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.map", "x")],
            None,
        ),
    ];
    for (name, records, expected) in table {
        assert_eq!(defect(&sparse(records, b"abc")), *expected, "{name}");
    }
    let records = [("GNU.sparse.numblocks", "0"), ("GNU.sparse.map", "0,0")];
    assert_eq!(defect(&[pax(&records), header("d/", b'5', 0)].concat()), bad);
}

#[test]
fn an_error_of_the_sink_ends_reading() {
    let bytes = encode(&[file("a", b"x")], EncodeOptions::default());
    let mut decoder = Decoder::new(bytes.as_slice(), Limits::default());
    let error = decoder.next_entry(&mut |_| Err(io::Error::other("disk full"))).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(decoder.next_entry(&mut |_| Ok(())).is_err());
    assert!(decoder.next_data(&mut |_| Ok(())).is_err());
    assert!(decoder.finish(&mut |_| Ok(())).is_err());
}

#[test]
fn errors_of_a_decompressor_come_out_as_they_are() {
    use graph_archive::compress::{Compression, Compressor, Decompressor};
    let archive = encode(&[file("a", &vec![b'x'; 100_000])], EncodeOptions::default());
    let mut gzip = Compressor::new(Vec::new(), Compression::Gzip, None).unwrap();
    io::Write::write_all(&mut gzip, &archive).unwrap();
    let gzip = gzip.finish().unwrap();
    let decompressor = Decompressor::new(&gzip[..gzip.len() - 20], &Limits::default()).unwrap();
    let mut decoder = Decoder::new(decompressor, Limits::default());
    let error = loop {
        match decoder.next_entry(&mut |_| Ok(())).and_then(|entry| match entry {
            Some(_) => Ok(()),
            None => decoder.finish(&mut |_| Ok(())).map(|_| ()),
        }) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Input { defect: Defect::UnexpectedEof, .. }), "{error:?}");
}
