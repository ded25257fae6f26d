//! The codecs, each behind the same small trait: bytes in, bytes out, is this stream at its end.

use super::Compression;
use crate::error::Error;

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    /// The stream (gzip member, zstd frame, …) is complete.
    pub(super) ended: bool,
}

/// Why a step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Corrupt,
    /// More memory than allowed is needed.
    Memory,
}

/// A decompressor for one stream after the other.
pub(super) trait Engine: Send {
    /// Takes what it can from `input`, of which `last` says whether more will follow, and fills what it can of `output`.
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Failure>;

    /// Gets ready for a further stream.
    fn restart(&mut self) -> Result<(), Failure>;
}

/// The engine for a format; `None` for no compression.
///
/// # Errors
/// [`Error::Unsupported`] where the format is left out of this build; no memory.
pub(super) fn engine(compression: Compression, window_bytes: u64) -> Result<Option<Box<dyn Engine>>, Error> {
    Ok(match compression {
        Compression::None => None,
        Compression::Gzip => Some(Box::new(Gzip::new())),
        Compression::Zstd => Some(Box::new(Zstd::new(window_bytes)?)),
        #[cfg(feature = "xz")]
        Compression::Xz => Some(Box::new(Xz::new(window_bytes)?)),
        #[cfg(feature = "bzip2")]
        Compression::Bzip2 => Some(Box::new(Bzip2::new())),
        #[allow(unreachable_patterns)] // reachable only with fewer features
        left_out => {
            let what = format!("{} (left out when this was built)", left_out.name());
            return Err(Error::Unsupported { what, path: b"layer".to_vec() });
        }
    })
}

/// Bytes of a counter's growth.
fn grown(before: u64, after: u64) -> usize {
    usize::try_from(after.saturating_sub(before)).unwrap_or_default()
}

struct Gzip(flate2::Decompress);

impl Gzip {
    /// The largest window, which is what every gzip header means.
    const WINDOW_BITS: u8 = 15;

    fn new() -> Self {
        Self(flate2::Decompress::new_gzip(Self::WINDOW_BITS))
    }
}

impl Engine for Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8], _last: bool) -> Result<Step, Failure> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output, flate2::FlushDecompress::None).map_err(|_| Failure::Corrupt)?;
        Ok(Step {
            consumed: grown(read, self.0.total_in()),
            produced: grown(written, self.0.total_out()),
            ended: status == flate2::Status::StreamEnd,
        })
    }

    fn restart(&mut self) -> Result<(), Failure> {
        // `reset` would forget that this is gzip and not zlib.
        *self = Self::new();
        Ok(())
    }
}

struct Zstd(zstd::stream::raw::Decoder<'static>);

impl Zstd {
    fn new(window_bytes: u64) -> Result<Self, Error> {
        let failed = |error| Error::io("set up zstd for", "layer", error);
        let mut decoder = zstd::stream::raw::Decoder::new().map_err(failed)?;
        // The library's own bounds, 64-bit.
        let log = window_bytes.checked_ilog2().unwrap_or(0).clamp(10, 31);
        decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(log)).map_err(failed)?;
        Ok(Self(decoder))
    }
}

impl Engine for Zstd {
    fn step(&mut self, input: &[u8], output: &mut [u8], _last: bool) -> Result<Step, Failure> {
        use zstd::stream::raw::Operation as _;
        match self.0.run_on_buffers(input, output) {
            Ok(status) => {
                Ok(Step { consumed: status.bytes_read, produced: status.bytes_written, ended: status.remaining == 0 })
            }
            // The library's error numbers do not come through the binding, only their texts.
            Err(error) if error.to_string().contains("too much memory") => Err(Failure::Memory),
            Err(_) => Err(Failure::Corrupt),
        }
    }

    fn restart(&mut self) -> Result<(), Failure> {
        // The next frame begins by itself.
        Ok(())
    }
}

#[cfg(feature = "xz")]
struct Xz(liblzma::stream::Stream);

#[cfg(feature = "xz")]
impl Xz {
    fn new(window_bytes: u64) -> Result<Self, Error> {
        let stream = liblzma::stream::Stream::new_stream_decoder(window_bytes, liblzma::stream::CONCATENATED);
        stream.map(Self).map_err(|error| Error::io("set up xz for", "layer", error))
    }
}

#[cfg(feature = "xz")]
impl Engine for Xz {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Failure> {
        use liblzma::stream::{Action, Error, Status};
        let (read, written) = (self.0.total_in(), self.0.total_out());
        // Streams and the padding between them are the library's business; only the end of the input ends them.
        let action = if last { Action::Finish } else { Action::Run };
        let status = self.0.process(input, output, action).map_err(|error| match error {
            Error::MemLimit | Error::Mem => Failure::Memory,
            _ => Failure::Corrupt,
        })?;
        Ok(Step {
            consumed: grown(read, self.0.total_in()),
            produced: grown(written, self.0.total_out()),
            ended: status == Status::StreamEnd,
        })
    }

    fn restart(&mut self) -> Result<(), Failure> {
        Err(Failure::Corrupt)
    }
}

#[cfg(feature = "bzip2")]
struct Bzip2(bzip2::Decompress);

#[cfg(feature = "bzip2")]
impl Bzip2 {
    fn new() -> Self {
        Self(bzip2::Decompress::new(false))
    }
}

#[cfg(feature = "bzip2")]
impl Engine for Bzip2 {
    fn step(&mut self, input: &[u8], output: &mut [u8], _last: bool) -> Result<Step, Failure> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output).map_err(|_| Failure::Corrupt)?;
        Ok(Step {
            consumed: grown(read, self.0.total_in()),
            produced: grown(written, self.0.total_out()),
            ended: status == bzip2::Status::StreamEnd,
        })
    }

    fn restart(&mut self) -> Result<(), Failure> {
        *self = Self::new();
        Ok(())
    }
}
