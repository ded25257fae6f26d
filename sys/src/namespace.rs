//! Leaving the namespaces that this thread was born into, and starting programs in others.
//!
//! `int unshare(int flags)`, Linux 2.6.16. A namespace belongs to a thread: call these on a thread that does nothing
//! else, or before any other thread is started; threads and processes that it starts afterwards are born into the new
//! ones.

#![allow(unsafe_code, reason = "rustix marks unshare unsafe because of one flag that is never passed here")]

use rustix::io::Result;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

pub use isolated::Isolated;
pub use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
pub use user::as_root_in_user_namespace;

mod isolated;
mod user;

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

/// Gives this thread its own working directory, root directory and umask, initially the process's.
///
/// # Errors
/// `ENOMEM`.
pub fn private_working_directory() -> Result<()> {
    unshare(UnshareFlags::FS)
}

/// As [`private_mounts`], but mounts that the machine makes later on still arrive here.
///
/// # Errors
/// As for [`private_mounts`].
pub fn downstream_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// Makes this process, which must have one thread only, the owner of a new user namespace without ids, and gives it its own
/// copy of all mounts: what is mounted in there stays in there, what the machine mounts later on still arrives.
///
/// Its ids are nobody's until somebody outside with the right to do so writes `/proc/PID/uid_map` and `gid_map`; until the
/// next `exec` it has all capabilities inside. `CLONE_NEWUSER`, Linux 3.8, by anybody.
///
/// # Errors
/// `EINVAL` with more than one thread; `EPERM`, `ENOSPC` or `EUSERS` where the machine allows no user namespaces.
pub fn user_namespace() -> Result<()> {
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::DetachedMount;
    use rustix::fs::{CWD, Mode, OFlags};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    fn text(output: &std::process::Output) -> String {
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
    }

    #[test]
    fn root_a_program_sees_its_own_root_processes_and_mounts_only() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return;
        }
        let before = crate::mountinfo::read().unwrap();
        // The machine's own tree, by a mount that is attached nowhere.
        let tree = DetachedMount::copy_of(CWD, b"/", true).unwrap();
        let isolated = Isolated::below(tree.as_fd());
        let sh = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            isolated.output(command).unwrap()
        };
        assert_eq!(text(&sh("echo $$ $PWD $(tr '\\0' ' ' </proc/1/cmdline | cut -c1-10)")), "1 / /bin/sh -c");
        assert_eq!(text(&sh("mount -t tmpfs none /tmp && ls -A /tmp")), "");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]);
        assert_eq!(isolated.run(command).unwrap().code(), Some(7));
        let error = isolated.run(Command::new("/no/such/program")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        drop(tree);
        assert_eq!(crate::mountinfo::read().unwrap(), before);
    }

    #[test]
    fn a_user_namespace_gives_root_without_being_it() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "id -u; cat /proc/self/uid_map; mount -t tmpfs none /tmp && ls -A /tmp"]);
        as_root_in_user_namespace(&mut command);
        let output = match command.output() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSPC | libc::EUSERS)) => {
                eprintln!("skipped: no user namespaces here: {error}");
                return;
            }
            output => text(&output.unwrap()),
        };
        let words: Vec<_> = output.split_whitespace().collect();
        assert_eq!(words, ["0", "0", &rustix::process::geteuid().as_raw().to_string(), "1"]);
    }

    #[test]
    fn root_private_mounts_do_not_show_outside() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let open = || rustix::fs::openat(CWD, temp.path(), OFlags::PATH, Mode::empty()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                private_mounts().unwrap();
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("t", temp.path(), "tmpfs", flags, None).unwrap();
                assert!(crate::mountinfo::is_mount_point(open()).unwrap());
            });
        });
        assert!(!crate::mountinfo::is_mount_point(open()).unwrap());
    }
}
