//! Compression of layers: told by the first bytes, never by a name; read by [`Decompressor`], written by [`Compressor`].
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![warn(clippy::arithmetic_side_effects)]

mod engine;
mod read;
mod write;

use serde::{Deserialize, Serialize};

pub use read::Decompressor;
pub use write::Compressor;

/// How a layer is compressed, with the numbers that containers/storage's layer records have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum Compression {
    /// Not at all (0).
    #[default]
    None = 0,
    /// bzip2 (1).
    Bzip2 = 1,
    /// gzip (2).
    Gzip = 2,
    /// xz (3).
    Xz = 3,
    /// Zstandard (4).
    Zstd = 4,
}

impl Compression {
    /// The bytes at the beginning of a stream that [`detect`](Self::detect) looks at, at most.
    pub const MAGIC_BYTES: usize = 6;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::None, Self::Bzip2, Self::Gzip, Self::Xz, Self::Zstd];

    /// How a stream that begins with `bytes` is compressed. A stream that is shorter than a magic, or has none, isn't:
    /// an empty stream is an empty layer.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Self {
        const MAGICS: [(&[u8], Compression); 4] = [
            (b"BZh", Compression::Bzip2),
            (b"\x1f\x8b\x08", Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map_or(Self::None, |(_, compression)| *compression)
    }

    /// The number in containers/storage's records.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Bzip2 => 1,
            Self::Gzip => 2,
            Self::Xz => 3,
            Self::Zstd => 4,
        }
    }

    /// The compression of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.number() == number)
    }

    /// Its name: `none`, `bzip2`, `gzip`, `xz`, `zstd`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// The file name extension of a tar so compressed: `tar`, `tar.bz2`, `tar.gz`, `tar.xz`, `tar.zst`.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Bzip2 => "tar.bz2",
            Self::Gzip => "tar.gz",
            Self::Xz => "tar.xz",
            Self::Zstd => "tar.zst",
        }
    }

    /// What goes behind `application/vnd.oci.image.layer.v1.tar`; `None` where the OCI image specification has nothing.
    #[must_use]
    pub fn media_type_suffix(self) -> Option<&'static str> {
        match self {
            Self::None => Some(""),
            Self::Gzip => Some("+gzip"),
            Self::Zstd => Some("+zstd"),
            Self::Bzip2 | Self::Xz => None,
        }
    }

    /// The compression that a layer's media type states: OCI (`…tar`, `…tar+gzip`, `…tar+zstd`) or Docker
    /// (`…tar.gzip`, `…tar.zstd`). `None` where it states something else.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        let (_, suffix) = media_type.rsplit_once(".tar")?;
        match suffix {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl From<Compression> for u8 {
    fn from(compression: Compression) -> Self {
        compression.number()
    }
}

impl TryFrom<u8> for Compression {
    type Error = UnknownCompression;

    fn try_from(number: u8) -> Result<Self, UnknownCompression> {
        Self::from_number(number).ok_or(UnknownCompression(number))
    }
}

/// A number that no compression has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression number {0}")]
pub struct UnknownCompression(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magics() {
        let table: &[(&[u8], Compression)] = &[
            (b"", Compression::None),
            (b"\x1f\x8b", Compression::None),
            (b"\x1f\x8b\x08\0", Compression::Gzip),
            (b"BZh9", Compression::Bzip2),
            (b"\xfd7zXZ\0\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd\0", Compression::Zstd),
            (b"\xfd7zX", Compression::None),
            (b"etc/", Compression::None),
        ];
        for (bytes, compression) in table {
            assert_eq!(Compression::detect(bytes), *compression, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn numbers_in_records() {
        for (number, compression) in Compression::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(compression.number()), number);
            let json = serde_json::to_string(&compression).unwrap();
            assert_eq!(json, number.to_string());
            assert_eq!(serde_json::from_str::<Compression>(&json).unwrap(), compression);
        }
        assert!(serde_json::from_str::<Compression>("5").is_err());
    }

    #[test]
    fn media_types() {
        let table = [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+xz", None),
            ("application/octet-stream", None),
        ];
        for (media_type, compression) in table {
            assert_eq!(Compression::from_media_type(media_type), compression, "{media_type}");
        }
    }
}
