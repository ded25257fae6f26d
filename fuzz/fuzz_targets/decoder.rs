//! The decompressor and the tar decoder on anything, and the encoder on what they made of it.
#![no_main]

use std::cell::RefCell;
use std::io::{self, Read};

use graph_archive::compress::Decompressor;
use graph_archive::limits::Limits;
use graph_archive::tar::{Decoder, EncodeOptions, Encoder};
use graph_archive::{Entry, EntryKind, Result};
use libfuzzer_sys::fuzz_target;

/// Small enough for a fuzzer to pass.
const LIMITS: Limits = Limits {
    entries: 1000,
    name_bytes: 4096,
    pax_bytes: 16_384,
    xattr_bytes: 8192,
    total_bytes: 4 << 20,
    ratio: 2000,
    sparse_runs: 1000,
    window_bytes: 8 << 20,
};

/// Members with the data of their runs (not the holes).
type Members = Vec<(Entry, Vec<(u64, Vec<u8>)>)>;

struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(out.len());
        self.0.read(&mut out[..count])
    }
}

fn check(entry: &Entry) {
    assert!(!entry.path.is_empty() && !entry.path.contains(&0) && entry.path.len() <= 4096);
    assert!(!entry.link_target.contains(&0) && entry.link_target.len() <= 4096);
    assert!(entry.size == 0 || entry.kind == EntryKind::File);
    assert!(entry.size <= LIMITS.total_bytes && entry.metadata.mode <= 0o7777);
    assert!(entry.metadata.mtime.nanoseconds < 1_000_000_000);
    assert!(entry.metadata.xattrs.is_sorted_by(|a, b| a.0 < b.0));
    let mut end = 0;
    for (at, run) in entry.sparse.iter().flatten().enumerate() {
        assert!(run.length > 0 && (run.offset > end || at == 0));
        end = run.offset + run.length;
    }
    assert!(end <= entry.size);
}

fn decode(bytes: &[u8], size: usize) -> Result<Members> {
    let mut decoder = Decoder::new(Pieces(bytes, size), LIMITS);
    let stream = RefCell::new(Vec::new());
    let mut members = Members::new();
    let result = decode_all(&mut decoder, &stream, &mut members);
    match result {
        Ok(total) => {
            assert_eq!(total, bytes.len() as u64);
            assert!(*stream.borrow() == bytes, "raw bytes and data are not the stream");
            Ok(members)
        }
        Err(error) => {
            assert!(bytes.starts_with(&stream.borrow()));
            assert!(!error.to_string().is_empty());
            assert!(decoder.next_entry(&mut |_| Ok(())).is_err());
            Err(error)
        }
    }
}

fn decode_all<R: Read>(decoder: &mut Decoder<R>, stream: &RefCell<Vec<u8>>, members: &mut Members) -> Result<u64> {
    let mut raw = |bytes: &[u8]| {
        stream.borrow_mut().extend_from_slice(bytes);
        Ok(())
    };
    while let Some(entry) = decoder.next_entry(&mut raw)? {
        check(&entry);
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut taken = 0;
        while let Some(data) = decoder.next_data(&mut raw)? {
            assert!(!data.bytes.is_empty());
            taken += data.bytes.len() as u64;
            if entry.sparse.is_none() {
                stream.borrow_mut().extend_from_slice(data.bytes);
            }
            match pieces.last_mut() {
                Some((offset, bytes)) if *offset + bytes.len() as u64 == data.offset => {
                    bytes.extend_from_slice(data.bytes);
                }
                _ => pieces.push((data.offset, data.bytes.to_vec())),
            }
        }
        let stored = entry.sparse.as_ref().map_or(entry.size, |runs| runs.iter().map(|run| run.length).sum());
        assert_eq!(taken, stored);
        members.push((entry, pieces));
    }
    decoder.finish(&mut raw)
}

fn encode(members: &Members, sparse: bool) -> Option<Vec<u8>> {
    let options = EncodeOptions { nanoseconds: true, access_times: true, sparse };
    let mut encoder = Encoder::with_options(Vec::new(), options);
    for (entry, pieces) in members {
        // A regular file with a name like a directory's, or a device number beyond any kernel's.
        encoder.write_entry(entry).ok()?;
        for (offset, bytes) in pieces {
            encoder.append_at(*offset, bytes).expect("data belongs where the decoder says");
        }
        encoder.append_at(entry.size, b"").expect("the data is all there");
    }
    Some(encoder.finish().expect("writing to memory"))
}

/// What must survive encoding and decoding.
fn same(mut members: Members, sparse: bool) -> Members {
    for (entry, pieces) in &mut members {
        entry.offset = 0;
        if !sparse && entry.sparse.take().is_some() {
            let mut content = vec![0; entry.size as usize];
            for (offset, bytes) in pieces.drain(..) {
                content[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            if entry.size > 0 {
                pieces.push((0, content));
            }
        }
    }
    members
}

/// The archive with the right checksum in every block that looks like a header: mutations hardly ever get past it.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

fn run(bytes: &[u8]) {
    let whole = decode(bytes, usize::MAX);
    let pieces = decode(bytes, 1 + bytes.len() % 700);
    let members = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole, pieces);
            whole
        }
        (Err(whole), Err(pieces)) => {
            assert_eq!(whole.to_string(), pieces.to_string());
            return;
        }
        (whole, pieces) => panic!("whole: {whole:?}\nin pieces: {pieces:?}"),
    };
    let size: u64 = members.iter().map(|(entry, _)| entry.size).sum();
    for sparse in [false, true] {
        // Holes written out take memory; that is the encoder's business.
        if !sparse && size > LIMITS.total_bytes {
            continue;
        }
        if let Some(archive) = encode(&members, sparse) {
            // Encoding may pass a limit: holes written out, records that were header fields.
            if let Ok(again) = decode(&archive, usize::MAX) {
                assert_eq!(same(again, sparse), same(members.clone(), sparse));
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(mut decompressor) = Decompressor::new(bytes, &LIMITS) {
        let mut plain = Vec::new();
        if decompressor.read_to_end(&mut plain).is_ok() {
            assert_eq!(decompressor.consumed(), bytes.len() as u64);
        }
        assert!(plain.len() as u64 <= LIMITS.total_bytes);
        if plain != bytes {
            let _members = decode(&plain, usize::MAX);
        }
    }
    run(bytes);
    let sealed = sealed(bytes);
    if sealed != bytes {
        run(&sealed);
    }
});
