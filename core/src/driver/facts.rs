//! What a driver states: its capabilities and the results of its calls.

use std::path::PathBuf;

use crate::error::Error;

/// What writing a diff found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffReport {
    /// Bytes written.
    pub bytes: u64,
    /// Things left out and why, one sentence each (sockets, for example).
    pub notices: Vec<String>,
}

/// Space and inodes that a layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a driver can do on its home directory, found by probing, not by kernel version.
///
/// A capability that is missing is not an error of the caller's: methods and options that need it answer
/// [`Unsupported`](crate::ErrorKind::Unsupported), and the conformance suite leaves out their cases, saying so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// `get` shows a layer through mappings without touching its files.
    pub shifts_ids: bool,
    /// Changes are read from the layer's own directory, without comparing trees.
    pub native_diff: bool,
    /// `storage_opt` `size` and `inodes` work.
    pub quotas: bool,
    /// `get` with `volatile` skips syncing.
    pub volatile: bool,
    /// `begin_staged` works: extraction needs no lock.
    pub staging: bool,
    /// Copies within the home share extents.
    pub reflink: bool,
    /// The most layers that can be below one layer; `None` for no limit.
    pub max_depth: Option<usize>,
    /// Additional, read-only stores can be used (option `imagestore`).
    pub additional_stores: bool,
    /// `get` with `ro` gives a tree that refuses writes.
    pub read_only_mounts: bool,
}

/// Something in a driver's home that belongs to no layer.
#[derive(Debug)]
pub struct Leftover {
    /// Where it is, or was.
    pub path: PathBuf,
    /// Apparent bytes of it and all below it.
    pub bytes: u64,
    /// Why it could not be removed.
    pub error: Option<Error>,
}
