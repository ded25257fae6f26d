//! What changed between two trees, or in an overlay's upper directory.
//!
//! Both ways of asking answer the same question: **how does the tree that users see differ from the one they saw
//! before?** [`compare`] walks both trees; [`overlay_upper`] (and [`aufs_branch`]) reads the upper directory and looks up in the lower ones what
//! it covers. The answer is exact about what users see, whichever way it is found:
//!
//! * An object is different when its type, mode, owner, group, device number, time of last modification, size (but of
//!   directories), link target, `security.capability` or a `user.*` attribute differs. Owners are compared as container
//!   ids. Two times are equal when they are, or when their seconds are and one has no nanoseconds.
//! * What is new is [`ChangeKind::Add`], with everything in it. What differs is [`ChangeKind::Modify`], and so is every
//!   directory above a change, except the root, which is never listed. What is gone is [`ChangeKind::Delete`]: the
//!   topmost name only.
//! * A change of type is a Modify; where the new object is a directory, what is in it is Add; where the old one was, what
//!   was in it is not listed.
//! * A directory that was removed and made anew (opaque in the upper directory) is compared like any other: a Modify if
//!   it differs, and Add, Modify or Delete for what is in it. (containers/storage 1.64 reports a Delete of the directory
//!   and then its new content as Add or Modify.) A directory made where a lower layer had a whiteout is an Add.
//! * What the kernel copied up without a change (a directory on the way to a change, a file that was opened for writing
//!   only or got a further name) is no change. Where everything above is equal, [`overlay_upper`] compares the contents
//!   of files, [`compare`] does not: a content that changed with size and time kept is a Modify for the first alone.
//! * A whiteout over nothing is no change.
//!
//! Lists are sorted by path, by bytes.

mod compare;
mod content;
mod overlay;
mod status;

pub use compare::{Tree, compare};
pub use overlay::{AufsTree, OverlayTree, aufs_branch, overlay_upper};

/// The kind of a change, with the numbers of containers/storage's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// Something that was there is different (0, `C`).
    Modify = 0,
    /// Something new (1, `A`).
    Add = 1,
    /// Something gone (2, `D`).
    Delete = 2,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// Absolute within the layer, `/a/b`, no slash at the end; raw bytes.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// All changes of a layer, and their size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Sorted by path.
    pub changes: Vec<Change>,
    /// Sum of the apparent sizes in bytes of everything that was added or modified, directories left out; an inode with
    /// several names counts once.
    pub size: u64,
}
