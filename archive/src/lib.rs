//! Layer archives: what a layer's tar says, put on disk and taken from disk again, byte for byte.
//!
//! The crate knows neither layers nor drivers. It reads and writes tar streams ([`entry`] is what a member says), keeps
//! the raw bytes that make a stream reproducible, translates whiteouts, shifts ids and finds what changed in a tree.

pub mod apply;
mod attribute_ids;
pub mod changes;
mod clean;
pub mod compress;
pub mod copy;
pub mod digest;
pub mod entry;
pub mod error;
pub mod idmap;
pub mod limits;
mod overlay;
pub mod owners;
pub mod pack;
pub mod pipeline;
pub mod restore;
pub mod split;
pub mod tar;
pub mod verify;
pub mod walk;
pub mod whiteout;

pub use entry::{Entry, EntryKind, Metadata, SparseRun, Timestamp};
pub use error::{Defect, Error, ErrorKind, Result};
pub use idmap::{IdMappings, IdPair, IdRange};
