//! A layer's way from its blob to whoever applies it, in one pass: read, decompress, both digests, with bounded memory.
//!
//! ```text
//!   blob ─> [ read, hash blob, decompress ] ─> [ hash archive ] ─> reader of the caller ─┐
//!             thread                             thread              caller's thread     │
//!                 └────────────────────── empty buffers <────────────────────────────────┘
//! ```
//!
//! Buffers go round: when the slowest stage has them all, the others wait. Eight of 256 KiB are enough to keep three
//! stages busy, and small enough to stay in a processor's cache on the way.

use std::fmt;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use crate::compress::{Compression, Decompressor};
use crate::digest::{Algorithm, Digest, Hasher, Hashing};
use crate::error::{Error, Result};
use crate::limits::Limits;

const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 256 * 1024;

/// What a layer is claimed to be. Whatever is stated is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Digest of the blob, as it came.
    pub blob_digest: Option<Digest>,
    /// Size of the blob in bytes. Not a byte more is read, except one to see that there is more.
    pub blob_size: Option<u64>,
    /// Digest of the uncompressed archive, the OCI image specification's DiffID.
    pub diff_id: Option<Digest>,
    /// Size of the uncompressed archive in bytes.
    pub diff_size: Option<u64>,
}

/// What a layer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the blob: in the algorithm of the expected one, otherwise SHA-256.
    pub blob_digest: Digest,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Digest of the uncompressed archive, whatever follows the end blocks included; algorithm as for the blob.
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub diff_size: u64,
}

/// Reads the blob `source` once, and lets `consume` read the archive in it while two threads decompress and hash.
///
/// What `consume` leaves unread is read to the end, so that the digests are those of the whole. The threads have ended
/// when this returns, in every case; for that, a source must come to an end or fail.
///
/// # Errors
/// The first of: what `consume` returns (reading gives it the source's and the decompressor's errors, an [`Error`] inside
/// where there is one, and [`io::ErrorKind::UnexpectedEof`] or [`crate::Defect::UnexpectedEof`] for a blob that is cut
/// short); the same errors in what it left unread, or had hidden; [`Error::SizeMismatch`] and [`Error::DigestMismatch`]
/// for what is not as expected. On any error what `consume` has made must not be used.
pub fn import<T, E: From<Error>>(
    source: impl Read + Send,
    expected: &Expected,
    limits: &Limits,
    consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
) -> Result<(T, Summary), E> {
    let (to_hasher, from_decompressor) = sync_channel(BUFFERS);
    let (to_reader, from_hasher) = sync_channel(BUFFERS);
    let (give_back, empty) = channel();
    for _ in 0..BUFFERS {
        // The receiver is here.
        let _sent = give_back.send(Vec::with_capacity(BUFFER_BYTES));
    }
    let algorithm = expected.blob_digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let diff_algorithm = expected.diff_id.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    thread::scope(|scope| {
        let source = Exactly { inner: Hashing::new(source, algorithm), left: expected.blob_size };
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let failed = |error| E::from(Error::io("start a thread for", "layer", error));
        let decompressor = spawn("layer-inflate")
            .spawn_scoped(scope, move || decompress(source, limits, &to_hasher, &empty))
            .map_err(failed)?;
        let hasher = spawn("layer-hash")
            .spawn_scoped(scope, move || hash(diff_algorithm, algorithm, &from_decompressor, &to_reader))
            .map_err(failed)?;

        let mut reader =
            Reader { filled: from_hasher, give_back, buffer: Vec::new(), at: 0, failure: None, ended: false };
        let consumed = consume(&mut reader);
        let drained = match &consumed {
            Ok(_) => reader.drain(),
            Err(_) => Ok(()),
        };
        // Closes the channels: whoever still works stops at the next buffer.
        drop(reader);
        let blob = decompressor.join();
        let archive = hasher.join();
        let value = consumed?;
        drained?;
        let (Ok(Some(blob)), Ok((diff_id, diff_size))) = (blob, archive) else {
            return Err(Error::io("decompress", "layer", io::Error::other("a thread stopped")).into());
        };
        let diff_id = diff_id.unwrap_or(blob.digest);
        let summary = Summary {
            compression: blob.compression,
            blob_digest: blob.digest,
            blob_size: blob.size,
            diff_id,
            diff_size,
        };
        summary.check(expected)?;
        Ok((value, summary))
    })
}

impl Summary {
    fn check(&self, expected: &Expected) -> Result<()> {
        let digest = |what, expected: &Option<Digest>, found: &Digest| match expected {
            Some(expected) if expected != found => {
                Err(Error::DigestMismatch { what, expected: expected.to_string(), found: found.to_string() })
            }
            _ => Ok(()),
        };
        let size = |what, expected: Option<u64>, found: u64| match expected {
            Some(expected) if expected != found => Err(Error::SizeMismatch { what, expected, found }),
            _ => Ok(()),
        };
        digest("layer blob", &expected.blob_digest, &self.blob_digest)?;
        size("layer blob", expected.blob_size, self.blob_size)?;
        digest("uncompressed layer (diff ID)", &expected.diff_id, &self.diff_id)?;
        size("uncompressed layer", expected.diff_size, self.diff_size)
    }
}

type Filled = io::Result<Vec<u8>>;

/// A piece of the archive, and whether the blob is not compressed.
type Piece = (Filled, bool);

#[derive(Debug)]
struct Blob {
    compression: Compression,
    digest: Digest,
    size: u64,
}

/// The first stage. `None` when it failed, or nobody wanted more; the error has been sent on then.
fn decompress(
    source: Exactly<Hashing<impl Read>>,
    limits: &Limits,
    filled: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> Option<Blob> {
    let mut decompressor = match Decompressor::new(source, limits) {
        Ok(decompressor) => decompressor,
        Err(error) => {
            let _sent = filled.send((Err(io::Error::other(error)), false));
            return None;
        }
    };
    let plain = decompressor.compression() == Compression::None;
    loop {
        let mut buffer = empty.recv().ok()?;
        buffer.clear();
        let result = (&mut decompressor).take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
        let count = buffer.len();
        if count > 0 {
            filled.send((Ok(buffer), plain)).ok()?;
        }
        if let Err(error) = result {
            let _sent = filled.send((Err(error), plain));
            return None;
        }
        if count < BUFFER_BYTES {
            let compression = decompressor.compression();
            let (_, digest, size) = decompressor.into_inner().inner.finish();
            return Some(Blob { compression, digest, size });
        }
    }
}

/// The second stage. No digest when the archive is the blob, whose digest the first stage has.
fn hash(
    algorithm: Algorithm,
    blob_algorithm: Algorithm,
    from: &Receiver<Piece>,
    to: &SyncSender<Filled>,
) -> (Option<Digest>, u64) {
    let mut hasher = Hasher::new(algorithm);
    let (mut size, mut hashed_already) = (0u64, false);
    while let Ok((piece, plain)) = from.recv() {
        if let Ok(bytes) = &piece {
            hashed_already = plain && algorithm == blob_algorithm;
            if !hashed_already {
                hasher.update(bytes);
            }
            size = size.saturating_add(bytes.len() as u64);
        }
        if to.send(piece).is_err() {
            break;
        }
    }
    ((!hashed_already).then(|| hasher.finish()), size)
}

/// The caller's end.
struct Reader {
    filled: Receiver<Filled>,
    give_back: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    /// Kind and text of the error that reading came to.
    failure: Option<(io::ErrorKind, String)>,
    ended: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("ended", &self.ended).field("failure", &self.failure).finish_non_exhaustive()
    }
}

impl Reader {
    /// Goes to the next buffer when this one is used up. False at the end.
    fn advance(&mut self) -> io::Result<bool> {
        while self.at >= self.buffer.len() {
            if let Some((kind, text)) = &self.failure {
                return Err(io::Error::new(*kind, text.clone()));
            }
            if self.ended {
                return Ok(false);
            }
            if self.buffer.capacity() > 0 {
                // Nobody takes it any more when all has been read.
                let _taken = self.give_back.send(std::mem::take(&mut self.buffer));
            }
            self.at = 0;
            match self.filled.recv() {
                Ok(Ok(buffer)) => self.buffer = buffer,
                Ok(Err(error)) => {
                    self.failure = Some((error.kind(), with_causes(&error)));
                    return Err(error);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(true)
    }

    fn drain(&mut self) -> Result<()> {
        loop {
            self.at = self.buffer.len();
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => {
                    return Err(error.downcast::<Error>().unwrap_or_else(|error| Error::io("read", "layer", error)));
                }
            }
        }
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || !self.advance()? {
            return Ok(0);
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let count = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at = self.at.saturating_add(count);
        Ok(count)
    }
}

/// The error's text and those of its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Refuses to go on behind the size that a blob should have.
struct Exactly<R> {
    inner: R,
    left: Option<u64>,
}

impl<R: Read> Read for Exactly<Hashing<R>> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(left) = &mut self.left else { return self.inner.read(out) };
        // One byte more than there may be tells a blob that is too long from one that ends in time.
        let room = usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX).min(out.len());
        let count = self.inner.read(out.get_mut(..room).unwrap_or_default())?;
        match left.checked_sub(count as u64) {
            Some(less) => *left = less,
            None => {
                let found = self.inner.byte_count();
                return Err(io::Error::other(Error::SizeMismatch {
                    what: "layer blob",
                    expected: found.saturating_sub(1),
                    found,
                }));
            }
        }
        Ok(count)
    }
}
