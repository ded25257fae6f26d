//! Mounting file systems, by descriptors wherever the kernel can.
//!
//! ```text
//!  FsContext::open("overlay") ── set_* ──> create ──┐
//!                                                   ├──> DetachedMount ── attach ──> AttachedMount
//!  DetachedMount::copy_of(directory) ───────────────┘      │ files below it can be      │ drop unmounts,
//!    (open_tree, a bind mount without a place)             │ opened as it is            │ keep() leaves it
//! ```
//!
//! A [`DetachedMount`] is in no mount table and nobody else's way; the kernel takes it away when its last descriptor is
//! closed, also when the process is killed. That makes it the right thing for looking into a layer. Only what must
//! have a path is attached.
//!
//! [`classic`] is the interface of old kernels, by path and one string of options.

mod attached;
pub mod classic;
mod context;
mod detached;

pub use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags};

pub use attached::AttachedMount;
pub use context::{FsContext, VALUE_MAX};
pub use detached::DetachedMount;

#[cfg(test)]
mod tests;
