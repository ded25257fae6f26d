//! Compressed streams: what the real tools write, what they refuse, and what would fill the disk.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use graph_archive::compress::{Compression, Compressor, Decompressor};
use graph_archive::limits::Limits;
use graph_archive::{Defect, Error};

fn sample(size: usize) -> Vec<u8> {
    // Compresses somewhat, repeats nothing exactly.
    let mut state = 1_u32;
    (0..size)
        .map(|at| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if at % 3 == 0 { (state >> 24) as u8 } else { b"layer archive"[at % 13] }
        })
        .collect()
}

fn tool(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(command[0]).args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let mut out = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        assert!(child.wait().unwrap().success());
        out
    })
}

/// What a read of a whole stream gives.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Bytes(Vec<u8>),
    Defect(Defect),
    Limit(&'static str),
}

struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.1.min(out.len());
        self.0.read(&mut out[..count])
    }
}

fn read_pieces(bytes: &[u8], size: usize, limits: &Limits) -> Outcome {
    let mut decompressor = Decompressor::new(Pieces(bytes, size), limits).unwrap();
    let mut out = Vec::new();
    match decompressor.read_to_end(&mut out) {
        Ok(_) => {
            assert_eq!(decompressor.consumed(), bytes.len() as u64);
            assert_eq!(decompressor.produced(), out.len() as u64);
            Outcome::Bytes(out)
        }
        Err(error) => match error.downcast::<Error>().unwrap() {
            Error::Input { defect, .. } => Outcome::Defect(defect),
            Error::Limit { limit, .. } => Outcome::Limit(limit),
            error => panic!("{error}"),
        },
    }
}

fn read(bytes: &[u8]) -> Outcome {
    read_pieces(bytes, usize::MAX, &Limits::default())
}

const TOOLS: [(Compression, &[&str]); 5] = [
    (Compression::None, &["cat"]),
    (Compression::Bzip2, &["bzip2", "-c"]),
    (Compression::Gzip, &["gzip", "-c"]),
    (Compression::Xz, &["xz", "-c"]),
    (Compression::Zstd, &["zstd", "-qc"]),
];

#[test]
fn what_the_tools_write() {
    for content in [sample(0), sample(1), sample(700_000)] {
        for (compression, command) in TOOLS {
            let bytes = tool(command, &content);
            for size in [1, 5, 4096, usize::MAX] {
                if size == 1 && content.len() > 1 {
                    continue;
                }
                let decompressor = Decompressor::new(Pieces(&bytes, size), &Limits::default()).unwrap();
                assert_eq!(decompressor.compression(), compression);
                assert!(
                    read_pieces(&bytes, size, &Limits::default()) == Outcome::Bytes(content.clone()),
                    "{command:?}"
                );
            }
        }
    }
}

#[test]
fn cut_streams() {
    let content = sample(5000);
    for (compression, command) in TOOLS {
        if compression == Compression::None {
            continue;
        }
        let bytes = tool(command, &content);
        // Cut below the magic the stream is not a compressed one.
        for cut in Compression::MAGIC_BYTES..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Outcome::Defect(Defect::UnexpectedEof), "{command:?} cut at {cut}");
        }
    }
}

#[test]
fn several_streams_in_one() {
    let (first, second) = (sample(3000), sample(70));
    let whole = [first.as_slice(), &second].concat();
    for (_, command) in TOOLS {
        let bytes = [tool(command, &first), tool(command, &second)].concat();
        assert_eq!(read(&bytes), Outcome::Bytes(whole.clone()), "{command:?}");
        assert_eq!(read_pieces(&bytes, 1, &Limits::default()), Outcome::Bytes(whole.clone()), "{command:?}");
    }
}

#[test]
fn zstd_skippable_frames() {
    let content = sample(3000);
    let frame = tool(&["zstd", "-qc"], &content);
    let skippable = [&b"\x50\x2a\x4d\x18\x05\0\0\0abcde"[..]].concat();
    let bytes = [frame.as_slice(), &skippable, &frame, &skippable].concat();
    assert_eq!(read(&bytes), Outcome::Bytes([content.as_slice(), &content].concat()));
    let cut = &bytes[..bytes.len() - 1];
    assert_eq!(read(cut), Outcome::Defect(Defect::UnexpectedEof));
}

#[test]
fn behind_the_end() {
    let content = sample(3000);
    let gzip = tool(&["gzip", "-c"], &content);
    let zeros = [gzip.as_slice(), &[0; 100]].concat();
    assert_eq!(read(&zeros), Outcome::Bytes(content.clone()));
    assert_eq!(read_pieces(&zeros, 1, &Limits::default()), Outcome::Bytes(content.clone()));
    let many_zeros = [gzip.as_slice(), &vec![0; 1_000_000]].concat();
    assert_eq!(read(&many_zeros), Outcome::Bytes(content.clone()));
    let corrupt = |format| Outcome::Defect(Defect::CorruptCompression { format });
    assert_eq!(read(&[zeros.as_slice(), b"x"].concat()), corrupt("gzip"));
    assert_eq!(read(&[zeros.as_slice(), &gzip].concat()), corrupt("gzip"));
    assert_eq!(read(&[gzip.as_slice(), b"junk"].concat()), corrupt("gzip"));
    assert_eq!(read(&[gzip.as_slice(), b"\x1fjunk and more of it"].concat()), corrupt("gzip"));
    for (compression, command) in TOOLS {
        if compression != Compression::None {
            let bytes = [tool(command, &content), b"junk junk junk junk".to_vec()].concat();
            assert_eq!(read(&bytes), corrupt(compression.name()), "{command:?}");
        }
    }
}

#[test]
fn damaged_content() {
    let content = sample(20_000);
    for (compression, command) in TOOLS {
        if compression == Compression::None {
            continue;
        }
        let mut bytes = tool(command, &content);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        let outcome = read(&bytes);
        let expected = Outcome::Defect(Defect::CorruptCompression { format: compression.name() });
        assert_eq!(outcome, expected, "{command:?}");
    }
}

#[test]
fn bombs() {
    let mut bomb = Compressor::new(Vec::new(), Compression::Zstd, None).unwrap();
    for _ in 0..100 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 20_000, "{}", bomb.len());
    assert_eq!(read(&bomb), Outcome::Limit("ratio"));
    let limits = Limits { total_bytes: 10 << 20, ..Limits::NONE };
    assert_eq!(read_pieces(&bomb, usize::MAX, &limits), Outcome::Limit("total_bytes"));
    assert!(matches!(read_pieces(&bomb, usize::MAX, &Limits::NONE), Outcome::Bytes(bytes) if bytes.len() == 100 << 20));
}

#[test]
fn memory_is_limited() {
    let content = sample(9 << 20);
    let limits = Limits { window_bytes: 1 << 20, ..Limits::default() };
    let zstd = tool(&["zstd", "-qc", "-19"], &content);
    assert_eq!(read_pieces(&zstd, usize::MAX, &limits), Outcome::Limit("window_bytes"));
    let xz = tool(&["xz", "-c", "-0", "--lzma2=dict=8MiB,mode=fast,mf=hc3"], &content);
    assert_eq!(read_pieces(&xz, usize::MAX, &limits), Outcome::Limit("window_bytes"));
    assert!(read(&zstd) == Outcome::Bytes(content));
}

#[test]
fn tools_read_what_we_write() {
    let content = sample(300_000);
    for (compression, command, levels) in [
        (Compression::None, &["cat"][..], [None, Some(1), Some(9)]),
        (Compression::Gzip, &["gzip", "-dc"], [None, Some(0), Some(99)]),
        (Compression::Zstd, &["zstd", "-qdc"], [None, Some(-100), Some(19)]),
    ] {
        for level in levels {
            let write = || {
                let mut compressor = Compressor::new(Vec::new(), compression, level).unwrap();
                compressor.write_all(&content).unwrap();
                compressor.finish().unwrap()
            };
            let bytes = write();
            assert!(tool(command, &bytes) == content, "{compression:?} {level:?}");
            assert!(bytes == write(), "{compression:?} {level:?} is not deterministic");
            assert!(read(&bytes) == Outcome::Bytes(content.clone()));
        }
    }
    for compression in [Compression::Bzip2, Compression::Xz] {
        let error = Compressor::new(Vec::new(), compression, None).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn gzip_header_has_no_time_and_no_name() {
    let bytes = Compressor::new(Vec::new(), Compression::Gzip, None).unwrap().finish().unwrap();
    assert_eq!(bytes[..10], *b"\x1f\x8b\x08\0\0\0\0\0\0\xff");
}

/// Another backend would be slower by half. Another crate can switch it by a feature, so look at what was resolved.
#[test]
fn inflate_is_zlib_rs() {
    let lock = include_str!("../../Cargo.lock");
    let flate2 = lock.split("[[package]]").find(|package| package.contains("name = \"flate2\"")).unwrap();
    assert!(flate2.contains("\"zlib-rs\""), "{flate2}");
    for other in ["libz-sys", "libz-ng-sys", "cloudflare-zlib-sys", "miniz_oxide"] {
        assert!(!flate2.contains(other), "flate2 is built with {other} too");
    }
}

#[test]
fn decompressors_can_move_to_a_thread() {
    let bytes = tool(&["gzip", "-c"], &sample(1000));
    let mut decompressor = Decompressor::new(std::io::Cursor::new(bytes), &Limits::default()).unwrap();
    let content = std::thread::spawn(move || {
        let mut out = Vec::new();
        decompressor.read_to_end(&mut out).unwrap();
        out
    });
    assert_eq!(content.join().unwrap(), sample(1000));
}
