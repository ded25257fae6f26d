//! Reading a stream whose compression is told by its first bytes.

use std::fmt;
use std::io::{self, Read};

use super::Compression;
use super::engine::{Engine, Failure, engine};
use crate::error::{Defect, Error, Result};
use crate::limits::Limits;

/// Compressed bytes read at once.
const CAPACITY: usize = 128 * 1024;

/// Output after which the ratio is looked at: small streams may well be a thousand times their compressed size.
const RATIO_FROM: u64 = 64 << 20;

/// Decompresses a stream, whatever it is compressed with.
///
/// Streams of several gzip members, zstd frames (skippable ones too), xz or bzip2 streams are read through to the end of
/// the input, so that a hashing reader below has seen every byte when this one is at its end. NULs after the last gzip
/// member are ignored as gzip does; anything else behind the end is an error.
///
/// Errors of [`Read::read`] other than the reader's own hold an [`Error`]: a cut stream, corrupt data, a passed limit
/// (`total_bytes`, `ratio`, `window_bytes`). [`crate::tar::Decoder`] takes it out again. `Send` where the reader is.
pub struct Decompressor<R> {
    reader: R,
    compression: Compression,
    engine: Option<Box<dyn Engine>>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// The reader has come to its end.
    last: bool,
    state: State,
    limits: Limits,
    consumed: u64,
    produced: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Inside,
    /// Between two streams, or behind the last.
    Between,
    /// NULs behind a gzip stream.
    Zeros,
    Ended,
    Failed,
}

impl<R> fmt::Debug for Decompressor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("compression", &self.compression)
            .field("consumed", &self.consumed)
            .field("produced", &self.produced)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Decompressor<R> {
    /// Reads the first bytes of `reader` and gets ready for what they say.
    ///
    /// # Errors
    /// The reader's; [`Error::Unsupported`] for a format that is left out of this build.
    pub fn new(reader: R, limits: &Limits) -> Result<Self> {
        let mut this = Self {
            reader,
            compression: Compression::None,
            engine: None,
            input: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            last: false,
            state: State::Inside,
            limits: limits.clone(),
            consumed: 0,
            produced: 0,
        };
        while this.end < Compression::MAGIC_BYTES && !this.last {
            this.read_more().map_err(|error| Error::io("read layer", "", error))?;
        }
        this.compression = Compression::detect(this.input.get(..this.end).unwrap_or_default());
        this.engine = engine(this.compression, limits.window_bytes)?;
        Ok(this)
    }

    /// What the stream is compressed with.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Compressed bytes taken so far; at the end of the stream, its size.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Uncompressed bytes given so far.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    /// The reader. Reading from it would lose bytes.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Gives the reader back; what has been read ahead is lost.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// Reads behind what is there.
    fn read_more(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let room = self.input.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.reader.read(room) {
                Ok(0) => self.last = true,
                Ok(count) => self.end = self.end.saturating_add(count).min(CAPACITY),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }

    /// The first compressed byte at hand.
    fn peek(&self) -> Option<u8> {
        self.input.get(self.start..self.end)?.first().copied()
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        self.consumed = self.consumed.saturating_add(count as u64);
    }

    fn fail(&self, defect: Defect) -> io::Error {
        let kind = match defect {
            Defect::UnexpectedEof => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, Error::input("", self.produced, defect))
    }

    fn corrupt(&self) -> io::Error {
        self.fail(Defect::CorruptCompression { format: self.compression.name() })
    }

    fn limit(&self, limit: &'static str, maximum: u64, found: u64) -> io::Error {
        let error = Error::Limit { limit, maximum, found, entry: Vec::new(), offset: self.produced };
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    fn failure(&self, failure: Failure) -> io::Error {
        match failure {
            Failure::Corrupt => self.corrupt(),
            Failure::Memory => {
                self.limit("window_bytes", self.limits.window_bytes, self.limits.window_bytes.saturating_add(1))
            }
        }
    }

    fn count(&mut self, produced: usize) -> io::Result<usize> {
        self.produced = self.produced.saturating_add(produced as u64);
        if self.produced > self.limits.total_bytes {
            return Err(self.limit("total_bytes", self.limits.total_bytes, self.produced));
        }
        if self.compression != Compression::None
            && self.produced > RATIO_FROM
            && self.consumed.saturating_mul(self.limits.ratio) < self.produced
        {
            return Err(self.limit("ratio", self.limits.ratio, self.produced.div_ceil(self.consumed.max(1))));
        }
        Ok(produced)
    }

    /// No compression: what was read to look at the first bytes, then the reader itself.
    fn pass(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = if self.start < self.end {
            self.input.get(self.start..self.end).unwrap_or_default().read(out)?
        } else if self.last {
            0
        } else {
            let count = self.reader.read(out)?;
            self.consumed = self.consumed.saturating_add(count as u64);
            return self.count(count);
        };
        self.consume(count);
        self.count(count)
    }

    /// Behind a stream: is there another one?
    fn between(&mut self) -> io::Result<()> {
        let Some(byte) = self.peek() else {
            self.state = State::Ended;
            return Ok(());
        };
        self.state = match (self.compression, byte) {
            (Compression::Gzip, 0) => State::Zeros,
            (Compression::Gzip, 0x1f) | (Compression::Bzip2, b'B') | (Compression::Zstd, _) => {
                let restarted = self.engine.as_mut().map_or(Ok(()), |engine| engine.restart());
                restarted.map_err(|failure| self.failure(failure))?;
                State::Inside
            }
            _ => return Err(self.corrupt()),
        };
        Ok(())
    }

    fn zeros(&mut self) -> io::Result<()> {
        let zeros = self.input.get(self.start..self.end).unwrap_or_default();
        if zeros.is_empty() {
            self.state = State::Ended;
        } else if zeros.iter().all(|byte| *byte == 0) {
            self.consume(zeros.len());
        } else {
            return Err(self.corrupt());
        }
        Ok(())
    }

    fn step(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(engine) = self.engine.as_mut() else { return self.pass(out) };
        let input = self.input.get(self.start..self.end).unwrap_or_default();
        let empty = input.is_empty();
        let step = engine.step(input, out, self.last).map_err(|failure| self.failure(failure))?;
        self.consume(step.consumed);
        if step.ended {
            self.state = State::Between;
        } else if step.consumed == 0 && step.produced == 0 {
            // Nothing in, nothing out, and more input is not to be had, or not taken.
            return Err(if empty { self.fail(Defect::UnexpectedEof) } else { self.corrupt() });
        }
        self.count(step.produced)
    }

    fn next(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.start == self.end && !self.last && self.engine.is_some() {
                self.read_more()?;
            }
            match self.state {
                State::Inside => {
                    let count = self.step(out)?;
                    if count > 0 || self.engine.is_none() {
                        return Ok(count);
                    }
                }
                State::Between => self.between()?,
                State::Zeros => self.zeros()?,
                State::Ended => return Ok(0),
                State::Failed => return Err(io::Error::other("reading on after an error")),
            }
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let result = self.next(out);
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.state = State::Failed;
        }
        result
    }
}
