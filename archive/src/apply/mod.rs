//! Putting a layer's archive into a directory.

mod options;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

pub use options::{ApplyOptions, OverlayOptions, Style, WhiteoutForm, XattrNamespace};

use crate::entry::Entry;
use crate::error::{Error, Result};

/// Where a member's content can be found when the archive is to be put together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentPlace {
    /// In the file of the member's name, in the layer's diff.
    OnDisk,
    /// Nowhere: whoever wants it back has to keep the bytes themselves.
    Nowhere,
}

/// Sees the bytes of an archive once, in stream order, while it is applied. tar-split is made by one.
///
/// Every byte of the stream is handed over exactly once, either by `raw` or by `content`.
pub trait ApplyObserver {
    /// Bytes that are not the content of a regular file: headers, extension records, padding, end blocks, whatever
    /// follows them, and all bytes of sparse members (whose stored form cannot be made from the file).
    ///
    /// # Errors
    /// Ends the apply.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// A member begins; its header has been given to `raw`. For every member, with content or without.
    ///
    /// # Errors
    /// Ends the apply.
    fn begin(&mut self, entry: &Entry, place: ContentPlace) -> io::Result<()>;

    /// Content of the member that began last, in order.
    ///
    /// # Errors
    /// Ends the apply.
    fn content(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The content of a file that an earlier member of this archive made, and that is about to be lost because a later
    /// member replaces it. `content` is the whole file; which member it was is for the observer to find by checksum.
    ///
    /// # Errors
    /// Ends the apply.
    fn lost(&mut self, content: &mut dyn io::Read, size: u64) -> io::Result<()>;
}

/// What applying an archive found, all from the one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Members.
    pub entries: u64,
    /// Bytes of the uncompressed stream, whatever follows the end blocks included.
    pub bytes: u64,
    /// Sum of the sizes of regular files.
    pub content_bytes: u64,
    /// User ids that the members state (container ids), sorted, unique; whiteouts don't count.
    pub uids: Vec<u32>,
    /// Group ids that the members state (container ids), sorted, unique; whiteouts don't count.
    pub gids: Vec<u32>,
    /// Things that could not be kept and why, one sentence each, each kind once.
    pub notices: Vec<String>,
}

/// Applies the archive that `reader` gives, uncompressed, to the directory `root`.
///
/// # Errors
/// Typed, naming entry and offset. What has been made below `root` by then stays there: the caller applies to a staging
/// directory and removes it. Nothing outside `root` is ever touched.
pub fn apply(root: BorrowedFd<'_>, reader: impl Read, options: ApplyOptions<'_>) -> Result<ApplyReport> {
    let _ = (root, reader, options);
    Err(Error::Unsupported { what: "applying an archive".to_owned(), path: Vec::new() })
}
