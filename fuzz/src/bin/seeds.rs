//! Writes seeds for the fuzz targets to `corpus/<target>/` beside this crate's manifest.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use graph_archive::compress::{Compression, Compressor, Decompressor};
use graph_archive::limits::Limits;
use graph_archive::tar::{Decoder, EncodeOptions, Encoder};
use graph_archive::{Entry, EntryKind, Metadata, SparseRun, Timestamp};

fn entry(path: &str, kind: EntryKind, link_target: &str, size: u64) -> Entry {
    let metadata = Metadata { mode: 0o755, mtime: Timestamp { seconds: 1, nanoseconds: 0 }, ..Metadata::default() };
    Entry { path: path.into(), kind, link_target: link_target.into(), size, sparse: None, metadata, offset: 0 }
}

/// An archive of members, each with `size` bytes of content; sparse ones with that of their runs.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let options = EncodeOptions { nanoseconds: true, access_times: true, sparse: true };
    let mut encoder = Encoder::with_options(Vec::new(), options);
    for entry in entries {
        encoder.write_entry(entry).expect("a member");
        let content = vec![b'x'; usize::try_from(encoder.remaining()).expect("small")];
        encoder.append(&content).expect("content");
    }
    encoder.finish().expect("an archive")
}

/// A header block as other programs write it.
fn header(name: &[u8], type_flag: u8, size: u64, magic: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..124].fill(b' ');
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000 ");
    block[156] = type_flag;
    block[257..257 + magic.len()].copy_from_slice(magic);
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

fn pax(records: &[&str]) -> Vec<u8> {
    let mut body = String::new();
    for record in records {
        // A length of two digits suits them all.
        assert!((7..96).contains(&record.len()));
        body += &format!("{} {record}\n", record.len() + 4);
    }
    [header(b"x", b'x', body.len() as u64, b"ustar\x0000"), padded(body.as_bytes())].concat()
}

fn decoder() -> Vec<(&'static str, Vec<u8>)> {
    let long = "long/".repeat(60);
    let mut rich = entry("ü/rich", EntryKind::File, "", 3);
    rich.metadata.uid = 3_000_000;
    rich.metadata.mtime = Timestamp { seconds: -2, nanoseconds: 5 };
    rich.metadata.atime = Some(Timestamp { seconds: 7, nanoseconds: 900 });
    rich.metadata.xattrs =
        vec![(b"security.capability".to_vec(), vec![1, 0, 2]), (b"user.a=b".to_vec(), b"v".to_vec())];
    let mut sparse = entry("sparse", EntryKind::File, "", 70_000);
    sparse.sparse = Some(vec![SparseRun { offset: 512, length: 10 }, SparseRun { offset: 65_536, length: 512 }]);
    let whole = archive(&[
        entry("d/", EntryKind::Directory, "", 0),
        entry("d/f", EntryKind::File, "", 600),
        entry("d/h", EntryKind::HardLink, "d/f", 0),
        entry("d/s", EntryKind::Symlink, "../f", 0),
        entry("d/p", EntryKind::Fifo, "", 0),
        entry("d/c", EntryKind::CharDevice { major: 1, minor: 3 }, "", 0),
        entry("d/b", EntryKind::BlockDevice { major: 8, minor: 0 }, "", 0),
        entry("d/.wh.gone", EntryKind::File, "", 0),
        entry(&format!("{long}f"), EntryKind::File, "", 1),
        rich,
        sparse,
    ]);
    let compressed = |compression| {
        let mut compressor = Compressor::new(Vec::new(), compression, None).expect("a compressor");
        compressor.write_all(&whole).expect("writing to memory");
        compressor.finish().expect("writing to memory")
    };
    let gnu = |name: &[u8], flag, size| header(name, flag, size, b"ustar  \0");
    let long_name = format!("{long}f\0");
    let mut old_sparse = gnu(b"sparse", b'S', 20);
    old_sparse[386..398].copy_from_slice(b"00000001000\0");
    old_sparse[398..410].copy_from_slice(b"00000000012\0");
    old_sparse[482] = 1;
    old_sparse[483..495].copy_from_slice(b"00000010000\0");
    seal(&mut old_sparse);
    let mut extension = vec![0; 512];
    extension[..12].copy_from_slice(b"00000004000\0");
    extension[12..24].copy_from_slice(b"00000000012\0");
    vec![
        ("empty", Vec::new()),
        ("zeros", vec![0; 1024]),
        ("gzip", compressed(Compression::Gzip)),
        ("zstd", compressed(Compression::Zstd)),
        ("v7", [header(b"d/", 0, 0, b""), header(b"f", 0, 3, b""), padded(b"abc")].concat()),
        ("star", header(b"f", b'0', 0, b"ustar\x0000")),
        (
            "gnu-long",
            [gnu(b"././@LongLink", b'L', long_name.len() as u64), padded(long_name.as_bytes()), gnu(b"f", b'0', 0)]
                .concat(),
        ),
        ("gnu-sparse", [old_sparse, extension, padded(&[b'y'; 20])].concat()),
        (
            "pax-sparse-0.0",
            [
                pax(&["GNU.sparse.numblocks=1", "GNU.sparse.size=900", "GNU.sparse.offset=5", "GNU.sparse.numbytes=3"]),
                header(b"f", b'0', 3, b"ustar\x0000"),
                padded(b"abc"),
            ]
            .concat(),
        ),
        (
            "pax-sparse-0.1",
            [
                pax(&["GNU.sparse.numblocks=1", "GNU.sparse.size=900", "GNU.sparse.map=5,3"]),
                header(b"f", b'0', 3, b"ustar\x0000"),
                padded(b"abc"),
            ]
            .concat(),
        ),
        (
            "pax-sparse-1.0",
            [
                pax(&["GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=file", "GNU.sparse.realsize=900"]),
                header(b"f", b'0', 515, b"ustar\x0000"),
                padded(b"1\n5\n3\n"),
                padded(b"abc"),
            ]
            .concat(),
        ),
        (
            "pax-size",
            [pax(&["size=000005"]), header(b"f", b'0', 1024, b"ustar\x0000"), padded(b"hello"), whole.clone()].concat(),
        ),
        (
            "pax-global",
            [header(b"g", b'g', 9, b"ustar\x0000"), padded(b"9 path=x\n"), header(b"f", b'7', 0, b"ustar\x0000")]
                .concat(),
        ),
        ("libarchive", [pax(&["LIBARCHIVE.xattr.user%2Ea=dg"]), header(b"f", b'0', 0, b"ustar\x0000")].concat()),
        ("whole", whole),
    ]
}

/// A seed that is refused at once teaches the fuzzer nothing.
fn check(name: &str, bytes: &[u8]) {
    let decompressor = Decompressor::new(bytes, &Limits::default()).expect("a known format");
    let mut decoder = Decoder::new(decompressor, Limits::default());
    while decoder.next_entry(&mut |_| Ok(())).unwrap_or_else(|error| panic!("{name}: {error}")).is_some() {}
}

/// Archives after an odd byte, records after an even one.
fn tar_split() -> Vec<(String, Vec<u8>)> {
    let archives = decoder().into_iter().map(|(name, bytes)| (name.to_owned(), [b"1", bytes.as_slice()].concat()));
    let file = |path, size| entry(path, EntryKind::File, "", size);
    let again = archive(&[
        file("f", 3),
        entry("d/", EntryKind::Directory, "", 0),
        file("d/f", 600),
        file("./f", 5),
        entry("d/", EntryKind::Directory, "", 0),
        entry("l", EntryKind::Symlink, "d", 0),
        file("l/f", 7),
        file("d", 4),
        file("f", 0),
        file(".wh.x", 9),
    ]);
    let records = concat!(
        "0{\"type\":2,\"payload\":\"aGkK\",\"position\":0}\n",
        "{\"type\":1,\"name\":\"f\",\"size\":3,\"payload\":\"YUmYEAAAAAA=\",\"position\":1}\n",
        "{\"type\":1,\"name_raw\":\"//4=\",\"payload\":null,\"position\":2}\n",
    );
    archives
        .chain([("again".to_owned(), [b"1", again.as_slice()].concat()), ("records".to_owned(), records.into())])
        .collect()
}

/// Stacks of layers in the compact form of the target `apply`: the number of layers less one, then for each the number of
/// members; of a member its kind, what the kind needs, its path, and its attributes. A path is the number of its components
/// less one and the components' indexes in the target's table (0 `a`, 1 `b`, 2 `c`, 6 `.wh.a`, 7 `.wh.b`, 9 opaque).
fn apply() -> Vec<(&'static str, Vec<u8>)> {
    const FILE: u8 = 0;
    const DIRECTORY: u8 = 3;
    const HARD_LINK: u8 = 7;
    // The file a, with b and c for further names; then a name of a of another owner and time; then one more of c.
    let links_to_lower = [
        &[2, 3, FILE, 9, 0, 0, 0, HARD_LINK, 0, 0, 0, 1, 0, HARD_LINK, 0, 0, 0, 2, 0][..],
        &[1, HARD_LINK, 0, 0, 0, 15, 0x90],
        &[2, HARD_LINK, 0, 2, 0, 13, 0x60, HARD_LINK, 0, 2, 0, 15, 0x20],
    ]
    .concat();
    // a/a and a/b; a made opaque with a/b stated anew; b removed, then a directory there.
    let whiteouts = [
        &[2, 3, DIRECTORY, 0, 0, 0, FILE, 5, 1, 0, 0, 0, FILE, 4, 1, 0, 1, 0][..],
        &[2, FILE, 0, 1, 0, 9, 0, FILE, 3, 1, 0, 1, 0x40],
        &[2, FILE, 0, 1, 0, 7, 0, DIRECTORY, 1, 0, 1, 0x41, 7],
    ]
    .concat();
    vec![("links-to-lower", links_to_lower), ("whiteouts", whiteouts)]
}

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let directory = corpus.join("decoder");
    fs::create_dir_all(&directory)?;
    for (name, bytes) in decoder() {
        check(name, &bytes);
        fs::write(directory.join(format!("seed-{name}")), bytes)?;
    }
    let directory = corpus.join("tar_split");
    fs::create_dir_all(&directory)?;
    for (name, bytes) in tar_split() {
        fs::write(directory.join(format!("seed-{name}")), bytes)?;
    }
    let directory = corpus.join("apply");
    fs::create_dir_all(&directory)?;
    for (name, bytes) in apply() {
        fs::write(directory.join(format!("seed-{name}")), bytes)?;
    }
    for (name, bytes) in decoder() {
        fs::write(directory.join(format!("seed-raw-{name}")), [b"R", bytes.as_slice()].concat())?;
    }
    Ok(())
}
