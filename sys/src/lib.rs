//! System calls for copy-on-write layer storage, and every `unsafe` of the project.
//!
//! Plain calls that the `rustix` crate wraps safely are handed on as they are in [`fs`], [`io`], [`process`] and
//! [`thread`]; what it lacks, or what needs a rule of ours to be safe, has a module here.
//!
//! Names and paths are bytes, descriptors are [`OwnedFd`](std::os::fd::OwnedFd) and
//! [`BorrowedFd`](std::os::fd::BorrowedFd), and plain calls fail with [`io::Errno`], so that a caller can match on it
//! and add operation, path and layer.

pub use error::{Error, ErrorKind, Result};
pub use rustix::{io, path, process, rand, thread, time};

pub mod dedupe;
mod error;
pub mod extents;
pub mod fault;
pub mod found;
pub mod getdents;
pub mod idmap;
pub mod lock;
pub mod mount;
pub mod mount_attr;
pub mod mountinfo;
pub mod namespace;
pub mod probe;
mod procfs;
pub mod reflink;
pub mod remove;
pub mod resolve;
pub mod special;
pub mod statfs;
pub mod statmount;
pub mod statx;
pub mod sync;
mod syscall;
pub mod userns;
pub mod xattr;

/// Files and directories by descriptor.
pub mod fs {
    pub use rustix::fs::*;
}

#[cfg(test)]
mod older_kernels;
