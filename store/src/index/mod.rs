//! Where the records of a large file are, so that a command reads the ones it needs and no others.
//!
//! Beside `mountpoints.json` in the run root, one file for each large file of records:
//!
//! ```text
//! overlay-layers.index
//! ┌────────┬───────────────┬──────────────┬──────────┬─────────┬─────────┐
//! │ header │ bytes by 4096 │ bytes by 64  │ bytes of │ buckets │ entries │
//! │        │ rows          │ rows         │ each row │         │         │
//! └────────┴───────────────┴──────────────┴──────────┴─────────┴─────────┘
//! ```
//!
//! A row is a record; where it begins is the sum of the bytes before it, so that a record that grows moves nothing else in
//! here. Entries tell the rows of a key (an id, a name, a parent, …), chained from a table of buckets.
//!
//! It is never trusted over the records:
//!
//! - The header says under which tokens of the lock files, and for which files (inode, size, time), in which boot it was
//!   made. Anything else, and it is not used; whoever reads all of the records then makes it anew. A writer changes it in
//!   place, under the lock, between writing its token and the header: should it be killed, the token tells.
//! - A record that it leads to is parsed and must be the one that was asked for, with the right separators around.
//! - Buckets and entries have check sums with a number drawn at random for each index, so that a "no such record" does not
//!   come from a damaged one. Whoever can forge those may as well change the records: the run root belongs to the store's
//!   owner.
//!
//! Anything amiss, and all records are read, as without it.

mod edit;
mod format;
mod read;
mod splice;

use std::path::Path;
use std::sync::OnceLock;

pub(crate) use edit::build;
pub(crate) use format::{Index, mix, tidy_stamp};
pub(crate) use read::Base;
pub(crate) use splice::{Change, splice};

/// What records are looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Key {
    /// Its id.
    Id = 0,
    /// One of its names.
    Name = 1,
    /// The first bytes of its id, see [`PREFIX`].
    Prefix = 2,
    /// A container's layer.
    Alias = 3,
    /// A layer's digests, an image's.
    Digest = 4,
    /// A layer's digest as it came in.
    CompressedDigest = 5,
    /// A layer's digest of its table of contents.
    TocDigest = 6,
    /// A layer's parent, an image's top layers, a container's image: many records may have the same.
    Uses = 7,
}

impl Key {
    /// Whether any number of records may have the same value. Those have buckets of their own, so that they do not lengthen
    /// others' chains.
    fn is_shared(self) -> bool {
        matches!(self, Self::Uses)
    }
}

/// So many bytes of an id find it by a prefix; a shorter one has to be looked for among all.
pub(crate) const PREFIX: usize = 4;

/// Smaller files of records are read whole: that is as fast.
pub(crate) const WORTH_IT: u64 = 24 << 10;

/// A number for this boot of the system: what lay about in a run root that is not emptied says nothing.
pub(crate) fn boot() -> [u64; 2] {
    static BOOT: OnceLock<[u64; 2]> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = graph_core::fsutil::read_small_path(Path::new("/proc/sys/kernel/random/boot_id"), 4096);
        let words: Vec<u64> = id.unwrap_or_default().into_iter().map(u64::from).collect();
        [mix(&words), u64::try_from(words.len()).unwrap_or(0)]
    })
}
