//! tar-split: records of anybody's are read without harm, and any archive comes together again.
#![no_main]

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;

use graph_archive::apply::{ApplyObserver, ContentPlace};
use graph_archive::limits::Limits;
use graph_archive::split::{FileGetter, Packed, Packer, assemble};
use graph_archive::tar::Decoder;
use graph_archive::{EntryKind, Error, Result};
use graph_sys::fs::{MemfdFlags, memfd_create};
use libfuzzer_sys::fuzz_target;

/// The files of a layer in the simplest form: by name.
#[derive(Default)]
struct Files(BTreeMap<Vec<u8>, Vec<u8>>);

fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("file", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The name inside the root, without `.`, `..` and slashes that do not count.
fn inside(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

impl FileGetter for Files {
    fn get(&self, name: &[u8]) -> Result<File> {
        let found = self.0.get(&inside(name)).map(|content| memory(content));
        found
            .unwrap_or(Err(io::ErrorKind::NotFound.into()))
            .map_err(|error| Error::io("open", name, error))
    }
}

/// Counts, and refuses more than a fuzzer should write.
struct Bounded(u64);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_records(records: &[u8]) {
    let files = Files(BTreeMap::from([(b"f".to_vec(), b"hi\n".to_vec()), (b"empty".to_vec(), Vec::new())]));
    let mut out = Bounded(0);
    if let Ok(count) = assemble(records, &files, &mut out) {
        assert_eq!(count, out.0);
    }
    // Three bytes for each record that names the file, and less than the base64 for the others.
    assert!(out.0 <= records.len() as u64);
}

/// Takes an archive apart, as far as it is one; `None` if it is not.
fn take_apart(tar: &[u8], files: &mut Files) -> Option<Vec<u8>> {
    let scratch: OwnedFd = File::open("/dev/shm").ok()?.into();
    let mut packer = Packer::new(Vec::new(), scratch);
    let limits = Limits { total_bytes: 4 << 20, entries: 1000, sparse_runs: 1000, ..Limits::default() };
    let mut decoder = Decoder::new(tar, limits);
    while let Some(entry) = decoder.next_entry(&mut |bytes| packer.raw(bytes)).ok()? {
        let name = inside(&entry.path);
        let place =
            if entry.path.windows(4).any(|part| part == b".wh.") { ContentPlace::Nowhere } else { ContentPlace::OnDisk };
        packer.begin(&entry, place).expect("memory");
        // Whatever comes in the way of the member goes, and a hard link makes nothing here.
        let below = [name.as_slice(), b"/"].concat();
        let gone: Vec<Vec<u8>> = files
            .0
            .keys()
            .filter(|key| {
                let parent = [key.as_slice(), b"/"].concat();
                **key == name
                    || name.starts_with(&parent)
                    || (entry.kind != EntryKind::Directory && (key.starts_with(&below) || name.is_empty()))
            })
            .cloned()
            .collect();
        for key in gone {
            let content = files.0.remove(&key).expect("found before");
            if packer.lost(&mut content.as_slice(), content.len() as u64).is_err() {
                // Two contents made to have one checksum.
                return None;
            }
        }
        let mut content = Vec::new();
        let plain = entry.kind == EntryKind::File && entry.sparse.is_none();
        loop {
            // Raw bytes come with the data of sparse members only, which is not content.
            match decoder.next_data(&mut |bytes| packer.raw(bytes)).ok()? {
                Some(data) if plain => {
                    packer.content(data.bytes).expect("memory");
                    content.extend_from_slice(data.bytes);
                }
                Some(_) => {}
                None => break,
            }
        }
        if plain && place == ContentPlace::OnDisk {
            files.0.insert(name, content);
        }
    }
    decoder.finish(&mut |bytes| packer.raw(bytes)).ok()?;
    let Packed { out, repair } = packer.finish().expect("memory");
    let Some(repair) = repair else { return Some(out) };
    let mut repaired = Vec::new();
    repair.rewrite(out.as_slice(), files, &mut repaired).expect("every content is on disk or was kept");
    Some(repaired)
}

/// Go's `filepath.Clean`, which old readers tell duplicates by.
fn clean(name: &str) -> String {
    let rooted = name.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else if joined.is_empty() { ".".to_owned() } else { joined }
}

fn round_trip(tar: &[u8]) {
    let mut files = Files::default();
    let Some(records) = take_apart(tar, &mut files) else { return };
    let mut out = Vec::new();
    assemble(records.as_slice(), &files, &mut out).expect("what was taken apart comes together");
    assert!(out == tar, "{} bytes became {}", tar.len(), out.len());
    let mut names = HashSet::new();
    for line in std::str::from_utf8(&records).expect("JSON").lines() {
        if let Some(name) = line.strip_prefix("{\"type\":1,\"name\":\"").and_then(|rest| rest.split_once("\",\"")) {
            // Escapes come out the same for the same name.
            assert!(names.insert(clean(name.0)), "{line}");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((byte, records)) if byte % 2 == 0 => read_records(records),
        Some((_, tar)) => round_trip(tar),
        None => {}
    }
});
