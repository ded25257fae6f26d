//! System calls for copy-on-write layer storage, and every `unsafe` of the project.
//!
//! Plain calls that the `rustix` crate wraps safely are handed on as they are in [`fs`], [`io`], [`process`] and
//! [`thread`]; what it lacks, or what needs a rule of ours to be safe, has a module here.

pub mod remove;

pub use rustix::{io, process, rand, thread, time};

/// Files and directories by descriptor.
pub mod fs {
    pub use rustix::fs::*;
}
