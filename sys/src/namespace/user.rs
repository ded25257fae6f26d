//! Being root without being root.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// Lets `command` start as root of a new user namespace and with mounts of its own, where root is the user that runs this
/// process and no other id exists. It may mount overlay and tmpfs there; nothing of it shows outside.
///
/// `CLONE_NEWUSER`, Linux 3.8. A process cannot do this to itself once it has threads: run the own program anew by
/// `/proc/self/exe`.
///
/// # Errors
/// None here; starting the command gives `EPERM`, `ENOSPC` or `EUSERS` where the machine allows no user namespaces.
pub fn as_root_in_user_namespace(command: &mut Command) {
    let uid_map = format!("0 {} 1\n", rustix::process::geteuid().as_raw());
    let gid_map = format!("0 {} 1\n", rustix::process::getegid().as_raw());
    let enter = move || -> io::Result<()> {
        super::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
        // The kernel takes the group map of somebody without CAP_SETGID only after this.
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", uid_map.as_bytes())?;
        write(c"/proc/self/gid_map", gid_map.as_bytes())?;
        rustix::mount::mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls with strings that are there already, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

fn write(path: &std::ffi::CStr, content: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::io::write(&file, content)? == content.len() { Ok(()) } else { Err(Errno::IO) }
}
