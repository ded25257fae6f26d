//! Digests in the words of the OCI image specification: `sha256:` and hexadecimal digits.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![warn(clippy::arithmetic_side_effects)]

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// The hash functions that the OCI image specification registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 32 bytes; what everybody uses.
    #[default]
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// `sha256` or `sha512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a hash.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest. Its text form is `sha256:<64 lower-case hexadecimal digits>` or `sha512:<128 of them>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    /// Zero behind the algorithm's size.
    bytes: [u8; 64],
}

/// A text that is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: {0:?} (want sha256: or sha512: and lower-case hexadecimal digits)")]
pub struct InvalidDigest(pub String);

impl Digest {
    /// The SHA-256 of nothing: the digest of an empty file, and the diff ID of an empty stream.
    pub const EMPTY: Self = Self::sha256([
        0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae,
        0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
    ]);

    /// The SHA-256 of 1,024 zeros: the diff ID of the empty archive.
    pub const EMPTY_ARCHIVE: Self = Self::sha256([
        0x5f, 0x70, 0xbf, 0x18, 0xa0, 0x86, 0x00, 0x70, 0x16, 0xe9, 0x48, 0xb0, 0x4a, 0xed, 0x3b, 0x82, 0x10, 0x3a,
        0x36, 0xbe, 0xa4, 0x17, 0x55, 0xb6, 0xcd, 0xdf, 0xaf, 0x10, 0xac, 0xe3, 0xc6, 0xef,
    ]);

    /// From the bytes of a SHA-256.
    #[must_use]
    pub const fn sha256(hash: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        // Not `copy_from_slice` on a range: that is indexing.
        let (head, _) = bytes.split_at_mut(32);
        head.copy_from_slice(&hash);
        Self { algorithm: Algorithm::Sha256, bytes }
    }

    /// From the bytes of a SHA-512.
    #[must_use]
    pub const fn sha512(hash: [u8; 64]) -> Self {
        Self { algorithm: Algorithm::Sha512, bytes: hash }
    }

    /// The SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The hash function.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash, 32 or 64 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.size()).unwrap_or_default()
    }

    /// The hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS.get(usize::from(value)).copied().unwrap_or(b'0'));
        self.as_bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        parse(text).ok_or_else(|| InvalidDigest(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Digest> {
    let (name, hex) = text.split_once(':')?;
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|known| known.name() == name)?;
    if hex.len() != algorithm.size().checked_mul(2)? {
        return None;
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        // Upper case is not allowed: one digest has one spelling.
        b'a'..=b'f' => digit.checked_sub(b'a').and_then(|value| value.checked_add(10)),
        _ => None,
    };
    let mut bytes = [0; 64];
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let [high, low] = digits else { return None };
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(Digest { algorithm, bytes })
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        parse(&text).ok_or(InvalidDigest(text))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes a digest from pieces.
#[derive(Clone, Debug)]
pub struct Hasher(Function);

#[derive(Clone, Debug)]
enum Function {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Algorithm::Sha256)
    }
}

impl Hasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Function::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Function::Sha512(sha2::Sha512::new()),
        })
    }

    /// Hashes further bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Function::Sha256(hasher) => hasher.update(bytes),
            Function::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Function::Sha256(hasher) => Digest::sha256(hasher.finalize().into()),
            Function::Sha512(hasher) => Digest::sha512(hasher.finalize().into()),
        }
    }
}

/// Hashes and counts what passes through it, reading or writing.
#[derive(Clone, Debug)]
pub struct Hashing<T> {
    inner: T,
    hasher: Hasher,
    bytes: u64,
}

impl<T> Hashing<T> {
    /// Hashes what is read from, or written to, `inner`.
    pub fn new(inner: T, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), bytes: 0 }
    }

    /// Bytes that have passed.
    pub fn byte_count(&self) -> u64 {
        self.bytes
    }

    /// What is below.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// What is below, the digest of the bytes that have passed, and their number.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, self.hasher.finish(), self.bytes)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.passed(out.get(..count).unwrap_or_default());
        Ok(count)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.passed(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest: Digest = abc.parse().unwrap();
        assert_eq!(digest, Digest::of(b"abc"));
        assert_eq!(digest.to_string(), abc);
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{abc}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{abc}\"")).unwrap(), digest);
        for wrong in [
            "",
            "sha256",
            "sha256:",
            "sha1:00",
            &abc[..70],
            &abc.to_uppercase(),
            &abc.replace('a', "g"),
            &format!("{abc}0"),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn known_digests() {
        assert_eq!(Digest::of(b""), Digest::EMPTY);
        assert_eq!(Digest::of(&[0; 1024]), Digest::EMPTY_ARCHIVE);
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"a");
        hasher.update(b"bc");
        let text = hasher.finish().to_string();
        assert!(text.starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{text}");
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
    }

    #[test]
    fn hashing_both_ways() {
        let mut reader = Hashing::new(&b"abc"[..], Algorithm::Sha256);
        let mut writer = Hashing::new(Vec::new(), Algorithm::Sha256);
        assert_eq!(io::copy(&mut reader, &mut writer).unwrap(), 3);
        assert_eq!(reader.byte_count(), 3);
        let (_, read, _) = reader.finish();
        let (copy, written, bytes) = writer.finish();
        assert_eq!((copy.as_slice(), bytes), (&b"abc"[..], 3));
        assert_eq!((read, written), (Digest::of(b"abc"), Digest::of(b"abc")));
    }
}
