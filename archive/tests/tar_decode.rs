//! The decoder against archives that other programs made, and against damaged ones.

#![allow(clippy::unwrap_used)] // helpers of tests fail by panicking
use std::io::Read;
use std::process::{Command, Stdio};

use graph_archive::limits::Limits;
use graph_archive::tar::Decoder;
use graph_archive::{Defect, Entry, Error, Result};

/// Gives its bytes in pieces of a fixed size, as slow pipes do.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.size.min(out.len());
        self.bytes.read(&mut out[..count])
    }
}

/// A decoded member with its content (holes filled).
#[derive(Debug, PartialEq, Eq)]
struct Member {
    entry: Entry,
    content: Vec<u8>,
}

/// Decodes all, checking that raw bytes and data together are the input.
fn decode_pieces(bytes: &[u8], size: usize, limits: Limits) -> Result<Vec<Member>> {
    let mut decoder = Decoder::new(Pieces { bytes, size }, limits);
    let mut members = Vec::new();
    let stream = std::cell::RefCell::new(Vec::new());
    let mut raw = |bytes: &[u8]| {
        stream.borrow_mut().extend_from_slice(bytes);
        Ok(())
    };
    while let Some(entry) = decoder.next_entry(&mut raw)? {
        let mut content = Vec::new();
        while let Some(data) = decoder.next_data(&mut raw)? {
            if entry.sparse.is_none() {
                stream.borrow_mut().extend_from_slice(data.bytes);
                assert_eq!(data.offset, content.len() as u64);
            }
            content.resize(usize::try_from(data.offset).unwrap(), 0);
            content.extend_from_slice(data.bytes);
        }
        content.resize(usize::try_from(entry.size).unwrap(), 0);
        members.push(Member { entry, content });
    }
    assert_eq!(decoder.finish(&mut raw)?, bytes.len() as u64);
    assert!(*stream.borrow() == bytes, "raw bytes and data are not the stream");
    Ok(members)
}

fn decode(bytes: &[u8]) -> Result<Vec<Member>> {
    decode_pieces(bytes, usize::MAX, Limits::default())
}

fn defect(bytes: &[u8]) -> Option<Defect> {
    match decode(bytes) {
        Err(Error::Input { defect, .. }) => Some(defect),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

fn run(command: &str, directory: &std::path::Path) -> Vec<u8> {
    let output =
        Command::new("sh").args(["-ec", command]).current_dir(directory).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

#[test]
fn gnu_tar_smoke() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["v7", "ustar", "oldgnu", "gnu", "posix"] {
        let bytes = run(
            &format!(
                "mkdir -p t/d; echo hi >t/d/f; ln -sf f t/d/s; ln -f t/d/f t/d/h; truncate -s 70001 t/z; tar -c --sort=name --format={format} t"
            ),
            directory.path(),
        );
        for size in [1, 7, 512, 513, usize::MAX] {
            let members = decode_pieces(&bytes, size, Limits::default()).unwrap();
            let names: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.entry.path).into_owned()).collect();
            assert_eq!(names, ["t/", "t/d/", "t/d/f", "t/d/h", "t/d/s", "t/z"], "{format}");
            assert_eq!(members[2].content, b"hi\n");
            assert_eq!(members[3].entry.link_target, b"t/d/f");
            assert_eq!(members[5].content, vec![0; 70001]);
        }
    }
}

#[test]
fn empty_and_junk() {
    assert_eq!(defect(b""), None);
    assert_eq!(defect(&[0; 1024]), None);
    assert_eq!(defect(&[0; 512]), None);
    assert_eq!(defect(&[0; 700]), Some(Defect::UnexpectedEof));
    assert_eq!(defect(&[b'x'; 511]), Some(Defect::UnexpectedEof));
    assert_eq!(defect(&[b'x'; 512]), Some(Defect::InvalidHeader));
    assert_eq!(defect(&[[0; 512], [1; 512]].concat()), Some(Defect::InvalidHeader));
}
