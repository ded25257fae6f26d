//! Whether a tree on disk is what a stack of archives says.
//!
//! [`members`] reads what an archive states, [`ExpectedTree`] puts the statements of a layer and of all layers below it
//! together, [`ExpectedTree::compare`] walks the tree on disk along with it, [`ExpectedTree::amend`] puts right what it can. Contents are not compared: tar-split's
//! checksums and the archive's digest tell more about those ([`crate::split::Assembled`]).
//!
//! Only what is stated counts. Directories that a layer has files in without stating them itself have attributes that
//! makers of layers disagree on; where a layer's path leads through a symbolic link, they disagree on the place. Of
//! neither anything is expected.

mod amend;
mod compare;
mod expected;

use std::io::{self, Read};

pub use amend::Amended;
pub use compare::{CompareOptions, Difference, DifferenceKind};
pub use expected::ExpectedTree;

use crate::entry::Entry;
use crate::error::Result;
use crate::limits::Limits;
use crate::tar::Decoder;

/// The members of the archive that `reader` gives, uncompressed; the stream is read to its end, whatever follows the end
/// blocks included.
///
/// # Errors
/// Bad input, limits, and the reader's.
pub fn members(reader: impl Read, limits: &Limits) -> Result<Vec<Entry>> {
    let mut decoder = Decoder::new(reader, limits.clone());
    let mut ignore = |_: &[u8]| -> io::Result<()> { Ok(()) };
    let mut members = Vec::new();
    while let Some(mut entry) = decoder.next_entry(&mut ignore)? {
        entry.sparse = None;
        entry.metadata.user_name = Vec::new();
        entry.metadata.group_name = Vec::new();
        members.push(entry);
    }
    decoder.finish(&mut ignore)?;
    Ok(members)
}
