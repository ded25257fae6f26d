//! The stream as the decoder sees it: a window of bytes that have been read and not yet been handed out.

use std::io::{self, Read};
use std::ops::Range;

use super::BLOCK_SIZE;
use super::block::Block;

/// Bytes read ahead at most. Big enough to make reads and writes of content few, small enough to stay in the L2 cache.
const CAPACITY: usize = 256 * 1024;

/// What a read of the stream may answer.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    /// More bytes than allowed; how many at least.
    TooLong(u64),
}

/// The window.
pub(super) struct Window<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// The bytes that have been read and not been handed out.
    start: usize,
    end: usize,
    /// Offset of `start` in the stream.
    offset: u64,
    maximum: u64,
    ended: bool,
}

impl<R: Read> Window<R> {
    pub(super) fn new(reader: R, maximum: u64) -> Self {
        Self {
            reader,
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
            maximum,
            ended: false,
        }
    }

    /// Offset in the stream of the next byte to hand out.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes at hand.
    pub(super) fn available(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Reads until `wanted` bytes (at most the capacity) are at hand or the stream ends; how many there are.
    pub(super) fn fill(&mut self, wanted: usize) -> Result<usize, ReadError> {
        let wanted = wanted.min(self.buffer.len());
        if self.available() >= wanted {
            return Ok(self.available());
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len().saturating_sub(self.start) < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.available());
        }
        while self.available() < wanted && !self.ended {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.reader.read(room) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.end = self.end.saturating_add(count).min(self.buffer.len());
                    let total = self.offset.saturating_add(self.available() as u64);
                    if total > self.maximum {
                        return Err(ReadError::TooLong(total));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        Ok(self.available())
    }

    /// Hands out up to `count` bytes of those at hand.
    pub(super) fn take(&mut self, count: usize) -> Range<usize> {
        let count = count.min(self.available());
        let from = self.start;
        self.start = self.start.saturating_add(count);
        self.offset = self.offset.saturating_add(count as u64);
        from..self.start
    }

    /// The bytes of a range that [`take`](Self::take) gave, until the next `fill`.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// A copy of the block at hand.
    pub(super) fn block(&self) -> Option<Block> {
        self.buffer.get(self.start..self.end)?.first_chunk::<BLOCK_SIZE>().copied()
    }

    pub(super) fn into_inner(self) -> R {
        self.reader
    }

    pub(super) fn get_ref(&self) -> &R {
        &self.reader
    }
}
