//! Errors of this crate: one public type, told apart by [`Error::kind`].

use std::io;

/// What went wrong with an archive, a tree, or the system under them.
///
/// The message of every variant names the thing concerned: the operation and the path for an I/O error; the entry, the
/// byte offset and, where one was passed, the limit for bad input. The cause is in [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or a read of the input failed.
    #[error("{operation} {}", show(path))]
    Io {
        /// What was being done, for example `open` or `read layer`.
        operation: &'static str,
        /// The path below the root concerned, or the name of the stream.
        path: Vec<u8>,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The input is not what it claims to be.
    #[error("{defect} (entry {}, offset {offset})", show(entry))]
    Input {
        /// Name of the member being read; empty before the first.
        entry: Vec<u8>,
        /// Byte offset in the uncompressed stream.
        offset: u64,
        /// What is wrong. Part of the message, so not the error's source as well.
        defect: Defect,
    },
    /// A named limit was passed.
    #[error("{limit} is limited to {maximum}: {found} (entry {}, offset {offset})", show(entry))]
    Limit {
        /// The limit's name as in [`crate::limits::Limits`].
        limit: &'static str,
        /// Its value.
        maximum: u64,
        /// What the input asked for.
        found: u64,
        /// Name of the member being read; empty before the first.
        entry: Vec<u8>,
        /// Byte offset in the uncompressed stream.
        offset: u64,
    },
    /// An id that the mappings do not cover.
    #[error("{} ID {id} cannot be mapped to a {} ID (entry {})", from.name(), from.other(), show(entry))]
    Unmapped {
        /// The id.
        id: u32,
        /// Which side the id is of.
        from: IdSide,
        /// Path or member concerned.
        entry: Vec<u8>,
    },
    /// A digest that was promised is not that of the data.
    #[error("digest mismatch: the {what} is {found}, but should be {expected}")]
    DigestMismatch {
        /// What the digest is of.
        what: &'static str,
        /// The promised digest.
        expected: String,
        /// The data's.
        found: String,
    },
    /// A size that was promised is not that of the data.
    #[error("size mismatch: the {what} has {found} bytes, but should have {expected}")]
    SizeMismatch {
        /// What the size is of.
        what: &'static str,
        /// The promised size in bytes.
        expected: u64,
        /// Bytes found; where more than promised were found, there may be even more.
        found: u64,
    },
    /// Something that this build or this file system cannot do.
    #[error("{what} is not supported ({})", show(path))]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Path or member concerned.
        path: Vec<u8>,
    },
}

/// Which side of a mapping an id belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdSide {
    /// An id on disk.
    Host,
    /// An id inside the container, as archives state it.
    Container,
}

impl IdSide {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
        }
    }
    fn other(self) -> &'static str {
        match self {
            Self::Host => "container",
            Self::Container => "host",
        }
    }
}

/// What is wrong with the input, one variant per defect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The stream ends inside a header, an extension record or a member's content.
    #[error("unexpected EOF")]
    UnexpectedEof,
    /// A block that should be a header has the wrong checksum or no tar layout at all.
    #[error("invalid tar header")]
    InvalidHeader,
    /// A number field does not parse, or does not fit.
    #[error("invalid tar header: {field} is not a number that fits")]
    InvalidNumber {
        /// The field, for example `size` or `GNU.sparse.offset`.
        field: &'static str,
    },
    /// A PAX record does not parse.
    #[error("invalid PAX record")]
    InvalidPax,
    /// A sparse map that overlaps, goes backwards or passes the file's end.
    #[error("invalid sparse map")]
    InvalidSparseMap,
    /// A member type that a layer cannot hold.
    #[error("unhandled tar header type {type_flag:#04x}")]
    UnknownType {
        /// The type flag byte.
        type_flag: u8,
    },
    /// A name that is empty, or holds NUL, or has a component longer than 255 bytes.
    #[error("invalid member name")]
    InvalidName,
    /// A name with a component longer than the 242 bytes that AUFS shows: it needs the rest for its whiteouts.
    #[error("a name of more than 242 bytes, which AUFS cannot show")]
    NameTooLongForAufs,
    /// A name or a link that leads out of the root.
    #[error("path leads outside the root")]
    Escapes,
    /// A whiteout whose name part is empty, `.`, `..`, or holds `/` or NUL.
    #[error("invalid whiteout name")]
    InvalidWhiteout,
    /// The root of the layer stated as something other than a directory, or removed.
    #[error("the layer's root must be a directory")]
    InvalidRoot,
    /// A hard link whose target is in neither this layer nor a lower one.
    #[error("hard link target does not exist")]
    MissingLinkTarget,
    /// A hard link whose target is a directory.
    #[error("hard link target is a directory")]
    LinkToDirectory,
    /// More symbolic links on the way to a name than Linux follows.
    #[error("too many levels of symbolic links")]
    SymlinkLoop,
    /// A character device 0:0, which an overlay takes for a whiteout.
    #[error("a character device 0:0 would become a whiteout")]
    WhiteoutDevice,
    /// The name of an extended attribute is empty, holds NUL, or is longer than 255 bytes.
    #[error("invalid extended attribute name")]
    InvalidXattr,
    /// Compressed data that does not decompress.
    #[error("corrupt compressed data ({format})")]
    CorruptCompression {
        /// `gzip`, `zstd`, `xz` or `bzip2`.
        format: &'static str,
    },
    /// A tar-split record that does not parse.
    #[error("invalid tar-split record")]
    InvalidTarSplit,
    /// A file's content is not what the tar-split says it was.
    #[error("file integrity checksum failed for {name:?}")]
    ChecksumMismatch {
        /// The file's name (lossy).
        name: String,
    },
}

/// The broad kinds of [`Error`], for callers that decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused or failed.
    Io,
    /// The input is damaged or hostile.
    InvalidInput,
    /// The input passes a limit.
    LimitExceeded,
    /// An id is outside the mappings.
    Unmapped,
    /// Not possible here.
    Unsupported,
}

impl Error {
    /// The broad kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Input { .. } | Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => ErrorKind::InvalidInput,
            Self::Limit { .. } => ErrorKind::LimitExceeded,
            Self::Unmapped { .. } => ErrorKind::Unmapped,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }

    /// An I/O error with its operation and path.
    pub fn io(operation: &'static str, path: impl Into<Vec<u8>>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }

    /// Bad input at `offset` while reading `entry`.
    pub fn input(entry: impl Into<Vec<u8>>, offset: u64, defect: Defect) -> Self {
        Self::Input { entry: entry.into(), offset, defect }
    }

    /// The same error, naming `entry` if it names none yet: a decompressor does not know which member it is reading.
    pub(crate) fn about(mut self, name: &[u8]) -> Self {
        if let Self::Input { entry, .. } | Self::Limit { entry, .. } = &mut self
            && entry.is_empty()
        {
            entry.extend_from_slice(name);
        }
        self
    }
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A byte name for people: valid UTF-8 as it is with control characters escaped, other bytes as `\xNN`; quoted.
#[must_use]
pub fn show(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len().saturating_add(2));
    out.push('"');
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '"' || c == '\\' {
                out.push('\\');
                out.push(c);
            } else if c.is_control() {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out.push('"');
    out
}
