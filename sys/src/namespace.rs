//! Leaving the namespaces that this thread was born into.
//!
//! `int unshare(int flags)`, Linux 2.6.16. A namespace belongs to a thread: call these on a thread that does nothing
//! else, or before any other thread is started; threads and processes that it starts afterwards are born into the new
//! ones.

#![allow(unsafe_code, reason = "rustix marks unshare unsafe because of one flag that is never passed here")]

use rustix::io::Result;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

pub use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Gives this thread a copy of all mounts, from which nothing gets back to the machine's: neither mounts nor unmounts.
///
/// The thread's working directory becomes its own too. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EPERM` without the capability, `ENOSPC` when there are too many mounts or namespaces.
pub fn private_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    // Without this, copies of shared mounts would hand ours on to where they were copied from.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// As [`private_mounts`], but mounts that the machine makes later on still arrive here.
///
/// # Errors
/// As for [`private_mounts`].
pub fn downstream_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// Lets the next process that this thread starts be the first of a new process-id namespace. The thread stays where it
/// is. When that first process ends, the kernel kills all others in there. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EPERM` without the capability, `ENOSPC` when namespaces are nested too deep.
pub fn new_pids_for_children() -> Result<()> {
    unshare(UnshareFlags::NEWPID)
}

/// Gives this thread its own host name, initially the machine's. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EPERM` without the capability.
pub fn private_host_name() -> Result<()> {
    unshare(UnshareFlags::NEWUTS)
}

/// Gives this thread its own System V and POSIX message queues and semaphores. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// `EPERM` without the capability.
pub fn private_ipc() -> Result<()> {
    unshare(UnshareFlags::NEWIPC)
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only `CLONE_FILES` breaks Rust's promise about descriptors, and no caller in this module passes it.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
