//! A blob on its way to the one who applies it: what comes out, what is checked, and how failures surface.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
#![allow(clippy::disallowed_methods)] // /proc is read by path

use std::error::Error as _;
use std::io::{self, Read, Write};

use graph_archive::compress::{Compression, Compressor};
use graph_archive::digest::Digest;
use graph_archive::limits::Limits;
use graph_archive::pipeline::{Expected, Summary, import};
use graph_archive::{Defect, Error};

/// Not a multiple of any buffer's size, and several times all of them.
const SIZE: usize = 9_000_001;

fn archive() -> Vec<u8> {
    let mut state = 7_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    };
    (0..SIZE).map(next).collect()
}

fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut compressor = Compressor::new(Vec::new(), compression, Some(1)).unwrap();
    compressor.write_all(bytes).unwrap();
    compressor.finish().unwrap()
}

fn all(reader: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| Error::io("test", "", error))?;
    Ok(bytes)
}

/// Fails when threads of a pipeline are left. Other tests of this process may run some too, so it waits a while.
fn no_threads_are_left() {
    let left = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        names
            .filter(|task| {
                let name = std::fs::read_to_string(task.as_ref().unwrap().path().join("comm"));
                name.is_ok_and(|name| name.starts_with("layer-"))
            })
            .count()
    };
    let patience = std::time::Instant::now();
    while left() > 0 {
        assert!(patience.elapsed().as_secs() < 60, "{} threads are left", left());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A source that gives `good` bytes and then fails.
struct Failing<'b> {
    good: &'b [u8],
    with: Option<io::ErrorKind>,
}

impl Read for Failing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match (self.good.read(out)?, self.with) {
            (0, Some(kind)) => Err(kind.into()),
            (count, _) => Ok(count),
        }
    }
}

/// The innermost cause.
fn root_cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[test]
fn every_compression_gives_the_same_archive_and_both_digests() {
    let archive = archive();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let blob = compressed(&archive, compression);
        let summary = Summary {
            compression,
            blob_digest: Digest::of(&blob),
            blob_size: blob.len() as u64,
            diff_id: Digest::of(&archive),
            diff_size: SIZE as u64,
        };
        let expected = Expected {
            blob_digest: Some(summary.blob_digest),
            blob_size: Some(summary.blob_size),
            diff_id: Some(summary.diff_id),
            diff_size: Some(summary.diff_size),
        };
        for expected in [&Expected::default(), &expected] {
            let (read, found) = import(blob.as_slice(), expected, &Limits::default(), all).unwrap();
            assert!(read == archive, "{compression:?}");
            assert_eq!(found, summary);
            // What is not read is hashed all the same.
            let one_byte = |reader: &mut dyn Read| -> Result<u8, Error> {
                let mut byte = [0];
                reader.read_exact(&mut byte).unwrap();
                Ok(byte[0])
            };
            let (first, found) = import(blob.as_slice(), expected, &Limits::default(), one_byte).unwrap();
            assert_eq!((first, found), (archive[0], summary.clone()));
        }
    }
}

#[test]
fn an_empty_blob_is_an_empty_archive() {
    let (read, found) = import(io::empty(), &Expected::default(), &Limits::default(), all).unwrap();
    assert_eq!((read, found.diff_id, found.diff_size), (Vec::new(), Digest::EMPTY, 0));
}

#[test]
fn what_is_not_as_expected_is_an_error() {
    let archive = archive();
    let blob = compressed(&archive, Compression::Zstd);
    let wrong = Some(Digest::EMPTY);
    let size = blob.len() as u64;
    let table = [
        (Expected { blob_digest: wrong, ..Expected::default() }, "digest mismatch: the layer blob is sha256:"),
        (Expected { diff_id: wrong, ..Expected::default() }, "digest mismatch: the uncompressed layer (diff ID) is"),
        (Expected { blob_size: Some(size - 1), ..Expected::default() }, "size mismatch: the layer blob has"),
        (Expected { blob_size: Some(size + 1), ..Expected::default() }, "size mismatch: the layer blob has"),
        (Expected { diff_size: Some(1), ..Expected::default() }, "size mismatch: the uncompressed layer has 9000001"),
    ];
    for (expected, message) in table {
        let error = import(blob.as_slice(), &expected, &Limits::default(), all).unwrap_err();
        let mut messages = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(inner) = cause {
            messages.push(inner.to_string());
            cause = inner.source();
        }
        assert!(messages.iter().any(|text| text.starts_with(message)), "{messages:?} without {message}");
    }
}

#[test]
fn no_byte_behind_an_expected_size_is_used() {
    // A source without end is given up one byte behind its end.
    let mut given = 0u64;
    let endless = io::repeat(1).take(u64::MAX);
    struct Counted<'c, R>(R, &'c mut u64);
    impl<R: Read> Read for Counted<'_, R> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(out)?;
            *self.1 += count as u64;
            Ok(count)
        }
    }
    let expected = Expected { blob_size: Some(1_000_000), ..Expected::default() };
    let error = import(Counted(endless, &mut given), &expected, &Limits::default(), all).unwrap_err();
    assert!(root_cause(&error).contains("size mismatch"), "{error:?}");
    assert_eq!(given, 1_000_001);
}

#[test]
fn failures_of_the_source_surface() {
    let archive = archive();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let blob = compressed(&archive, compression);
        for cut in [0, 3, blob.len() / 2, blob.len()] {
            let source = Failing { good: &blob[..cut], with: Some(io::ErrorKind::ConnectionReset) };
            let error = import(source, &Expected::default(), &Limits::default(), all).unwrap_err();
            assert_eq!(root_cause(&error), "connection reset", "{compression:?} cut at {cut}");
        }
    }
    no_threads_are_left();
}

#[test]
fn a_cut_blob_is_an_unexpected_end() {
    let archive = archive();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob = compressed(&archive, compression);
        for cut in [7, blob.len() / 2, blob.len() - 1] {
            let error = import(&blob[..cut], &Expected::default(), &Limits::default(), all).unwrap_err();
            let cause = root_cause(&error);
            assert!(cause.starts_with(&Defect::UnexpectedEof.to_string()), "{compression:?} cut at {cut}: {cause}");
        }
    }
}

#[test]
fn an_error_that_was_hidden_is_still_an_error() {
    let source = Failing { good: b"x", with: Some(io::ErrorKind::TimedOut) };
    let hide = |reader: &mut dyn Read| -> Result<(), Error> {
        let _hidden = io::copy(reader, &mut io::sink());
        Ok(())
    };
    let error = import(source, &Expected::default(), &Limits::default(), hide).unwrap_err();
    assert!(root_cause(&error).contains("timed out"), "{error:?}");
}

#[test]
fn the_appliers_error_comes_first_and_ends_everything() {
    // Neither an endless source nor a failing one keeps it.
    let give_up = |reader: &mut dyn Read| -> Result<(), Error> {
        let mut some = [0; 1000];
        reader.read_exact(&mut some).unwrap();
        Err(Error::io("create file", "usr/bin/x", io::ErrorKind::StorageFull))
    };
    let error = import(io::repeat(7), &Expected::default(), &Limits::default(), give_up).unwrap_err();
    assert_eq!(error.to_string(), "create file \"usr/bin/x\"");
    let good = vec![0; 2000];
    let source = Failing { good: &good, with: Some(io::ErrorKind::TimedOut) };
    let error = import(source, &Expected::default(), &Limits::default(), give_up).unwrap_err();
    assert_eq!(error.to_string(), "create file \"usr/bin/x\"");
    no_threads_are_left();
}

#[test]
fn an_applier_that_panics_leaves_no_threads() {
    let panicking = std::panic::catch_unwind(|| {
        import(io::repeat(7), &Expected::default(), &Limits::default(), |_| -> Result<(), Error> { panic!("applier") })
    });
    assert!(panicking.is_err());
    no_threads_are_left();
}

#[test]
fn bombs_are_given_up() {
    // 300 MB of zeros shrink more than limits let them grow again.
    let mut compressor = Compressor::new(Vec::new(), Compression::Zstd, Some(1)).unwrap();
    for _ in 0..300 {
        compressor.write_all(&[0; 1_000_000]).unwrap();
    }
    let bomb = compressor.finish().unwrap();
    let sink = |reader: &mut dyn Read| io::copy(reader, &mut io::sink()).map_err(|error| Error::io("test", "", error));
    let error = import(bomb.as_slice(), &Expected::default(), &Limits::default(), sink).unwrap_err();
    assert!(root_cause(&error).starts_with("ratio is limited to"), "{error:?}");
}
