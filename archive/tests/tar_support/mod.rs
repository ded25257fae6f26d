//! What the tests of the tar codec share.

#![allow(dead_code)] // each test program uses a part of it
#![allow(clippy::unwrap_used, clippy::print_stderr)] // helpers of tests fail by panicking and say what they skip

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use graph_archive::limits::Limits;
use graph_archive::tar::{Decoder, EncodeOptions, Encoder};
use graph_archive::{Defect, Entry, EntryKind, Error, Metadata, Result, Timestamp};

/// Gives its bytes in pieces of a fixed size, as slow pipes do.
pub(crate) struct Pieces<'a>(pub(crate) &'a [u8], pub(crate) usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(out.len());
        self.0.read(&mut out[..count])
    }
}

/// A decoded member with its content, holes filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) entry: Entry,
    pub(crate) content: Vec<u8>,
}

/// Decodes all, checking that raw bytes and data together are the input.
pub(crate) fn decode_pieces(bytes: &[u8], size: usize, limits: Limits) -> Result<Vec<Member>> {
    let mut decoder = Decoder::new(Pieces(bytes, size), limits);
    let stream = RefCell::new(Vec::with_capacity(bytes.len()));
    let mut members = Vec::new();
    match decode_all(&mut decoder, &stream, &mut members) {
        Ok(total) => {
            assert_eq!(total, bytes.len() as u64);
            assert!(*stream.borrow() == bytes, "raw bytes and data are not the stream");
            Ok(members)
        }
        Err(error) => {
            assert!(bytes.starts_with(&stream.borrow()), "what came out before the error is not the stream");
            assert!(decoder.next_entry(&mut |_| Ok(())).is_err(), "reading goes on after {error}");
            Err(error)
        }
    }
}

fn decode_all<R: Read>(decoder: &mut Decoder<R>, stream: &RefCell<Vec<u8>>, members: &mut Vec<Member>) -> Result<u64> {
    let mut raw = |bytes: &[u8]| {
        stream.borrow_mut().extend_from_slice(bytes);
        Ok(())
    };
    while let Some(entry) = decoder.next_entry(&mut raw)? {
        let mut content = Vec::new();
        // Hostile sizes are a hole's; nothing is allocated for them.
        let plain = entry.size <= 1 << 30;
        while let Some(data) = decoder.next_data(&mut raw)? {
            assert!(!data.bytes.is_empty());
            if entry.sparse.is_none() {
                stream.borrow_mut().extend_from_slice(data.bytes);
                assert_eq!(data.offset, content.len() as u64);
            }
            if plain {
                content.resize(usize::try_from(data.offset).unwrap(), 0);
                content.extend_from_slice(data.bytes);
            }
        }
        if plain {
            content.resize(usize::try_from(entry.size).unwrap(), 0);
        }
        members.push(Member { entry, content });
    }
    assert!(decoder.next_entry(&mut raw)?.is_none());
    decoder.finish(&mut raw)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Member>> {
    decode_pieces(bytes, usize::MAX, Limits::default())
}

/// What is wrong with the archive, `None` if nothing.
pub(crate) fn defect(bytes: &[u8]) -> Option<Defect> {
    match decode(bytes) {
        Err(Error::Input { defect, .. }) => Some(defect),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

/// Which limit the archive passes.
pub(crate) fn limit(bytes: &[u8], limits: Limits) -> Option<&'static str> {
    match decode_pieces(bytes, usize::MAX, limits) {
        Err(Error::Limit { limit, .. }) => Some(limit),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

pub(crate) fn encode(members: &[Member], options: EncodeOptions) -> Vec<u8> {
    let mut encoder = Encoder::with_options(Vec::new(), options);
    for Member { entry, content } in members {
        encoder.write_entry(entry).unwrap();
        match &entry.sparse {
            Some(runs) => {
                for run in runs {
                    let from = usize::try_from(run.offset).unwrap();
                    let to = from + usize::try_from(run.length).unwrap();
                    encoder.append_at(run.offset, &content[from..to]).unwrap();
                }
                encoder.append_at(entry.size, b"").unwrap();
            }
            None => encoder.append(content).unwrap(),
        }
    }
    encoder.finish().unwrap()
}

/// A member of that kind, with plain metadata.
pub(crate) fn member(path: &str, kind: EntryKind, link_target: &str, content: &[u8]) -> Member {
    let entry = Entry {
        path: path.into(),
        kind,
        link_target: link_target.into(),
        size: content.len() as u64,
        sparse: None,
        metadata: Metadata {
            mode: 0o644,
            mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
            ..Metadata::default()
        },
        offset: 0,
    };
    Member { entry, content: content.to_vec() }
}

pub(crate) fn file(path: &str, content: &[u8]) -> Member {
    member(path, EntryKind::File, "", content)
}

/// Runs a shell command in a directory and gives what it prints.
pub(crate) fn sh(command: &str, directory: &Path) -> Vec<u8> {
    let mut shell = Command::new("bash");
    shell.args(["-ec", command]).current_dir(directory).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    let output = shell.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

/// Runs a program, gives it `input`, and gives what it prints.
pub(crate) fn pipe(program: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        let mut out = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        assert!(child.wait().unwrap().success(), "{program:?} {arguments:?}");
        out
    })
}

/// Tells whether a program can be run, and prints that its tests are skipped if not.
pub(crate) fn have(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksum of gzip, in the way of every tool that has one.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Puts the right checksum into a header block.
pub(crate) fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A header block as other programs write it.
pub(crate) fn header(name: &str, type_flag: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = type_flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

/// The bytes and what fills up the block.
pub(crate) fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

/// A PAX record.
pub(crate) fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// An extended header with these records.
pub(crate) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let body: String = records.iter().map(|(key, value)| record(key, value)).collect();
    [header("PaxHeaders/x", b'x', body.len() as u64), padded(body.as_bytes())].concat()
}
