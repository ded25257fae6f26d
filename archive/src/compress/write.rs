//! Writing compressed streams.

use std::fmt;
use std::io::{self, Write};

use super::Compression;
use crate::error::{Error, Result};

/// Compresses what is written to it: with gzip, zstd, or not at all.
///
/// The output depends on nothing but the input, the format and the level: no time, no name.
pub struct Compressor<W: Write>(Kind<W>);

enum Kind<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> fmt::Debug for Compressor<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compressor").field(&self.compression()).finish()
    }
}

impl<W: Write> Compressor<W> {
    /// Writes to `writer`. `level` is the format's own: gzip 0 to 9 (default 6), zstd -7 to 22 (default 3); beyond that
    /// the nearest.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for bzip2 and xz, which are only read; no memory.
    pub fn new(writer: W, compression: Compression, level: Option<i32>) -> Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::None(writer),
            Compression::Gzip => {
                let level = u32::try_from(level.unwrap_or(6)).unwrap_or(0).min(9);
                Kind::Gzip(flate2::GzBuilder::new().mtime(0).write(writer, flate2::Compression::new(level)))
            }
            Compression::Zstd => {
                let failed = |error| Error::io("set up zstd for", "layer", error);
                let level = level.unwrap_or(3).clamp(-7, 22);
                let mut encoder = zstd::stream::write::Encoder::new(writer, level).map_err(failed)?;
                encoder.include_checksum(true).map_err(failed)?;
                Kind::Zstd(encoder)
            }
            Compression::Bzip2 | Compression::Xz => {
                let what = format!("compressing with {}", compression.name());
                return Err(Error::Unsupported { what, path: b"layer".to_vec() });
            }
        }))
    }

    /// What it compresses with.
    pub fn compression(&self) -> Compression {
        match &self.0 {
            Kind::None(_) => Compression::None,
            Kind::Gzip(_) => Compression::Gzip,
            Kind::Zstd(_) => Compression::Zstd,
        }
    }

    /// Writes what is left and gives the writer back. Without this the stream is incomplete.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Kind::None(mut writer) => {
                writer.flush()?;
                Ok(writer)
            }
            Kind::Gzip(encoder) => encoder.finish(),
            Kind::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::None(writer) => writer.write(bytes),
            Kind::Gzip(encoder) => encoder.write(bytes),
            Kind::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::None(writer) => writer.flush(),
            Kind::Gzip(encoder) => encoder.flush(),
            Kind::Zstd(encoder) => encoder.flush(),
        }
    }
}
