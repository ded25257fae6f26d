//! Reads a layer in any compression, and says what is in it and how fast that went: `read_layer <file>`.

#![allow(clippy::print_stdout, clippy::disallowed_methods)] // a program with a file name for an argument

use std::fs::File;
use std::time::Instant;

use graph_archive::compress::Decompressor;
use graph_archive::digest::{Algorithm, Hashing};
use graph_archive::limits::Limits;
use graph_archive::tar::Decoder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("which file?")?;
    let start = Instant::now();
    let blob = Hashing::new(File::open(path)?, Algorithm::Sha256);
    let decompressor = Decompressor::new(blob, &Limits::default())?;
    let compression = decompressor.compression();
    let mut decoder = Decoder::new(decompressor, Limits::default());
    let (mut members, mut raw_bytes, mut content_bytes, mut pieces) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut raw = |bytes: &[u8]| {
        raw_bytes += bytes.len() as u64;
        Ok(())
    };
    while let Some(_entry) = decoder.next_entry(&mut raw)? {
        members += 1;
        while let Some(data) = decoder.next_data(&mut raw)? {
            content_bytes += data.bytes.len() as u64;
            pieces += 1;
        }
    }
    let total = decoder.finish(&mut raw)?;
    let (_, digest, size) = decoder.into_inner().into_inner().finish();
    println!("{digest}, {size} bytes, {}: {members} members, {total} bytes uncompressed", compression.name());
    println!("{content_bytes} bytes of content in {pieces} pieces, {raw_bytes} raw bytes");
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.3} s, {:.0} MB/s uncompressed", seconds, total as f64 / 1e6 / seconds);
    Ok(())
}
