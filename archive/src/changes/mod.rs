//! What changed between two trees, or in an overlay's upper directory.

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
