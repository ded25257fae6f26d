//! A program in a mounted layer, as a small engine or a test runs it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output};

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::mount::DetachedMount;

/// Runs programs with mounts, process ids, host name and message queues of their own, below another root directory.
///
/// Everything that is mounted for the program, and every process that it starts, is gone when it ends; it is killed
/// when this process ends. Needs `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT`, or [`super::as_root_in_user_namespace`] before.
///
/// This keeps an image's programs from meddling with the machine by accident. It is no fence against hostile ones: they
/// keep this process's capabilities, user and devices. Containers are for a runtime to make.
#[derive(Clone, Copy, Debug)]
pub struct Isolated<'a> {
    root: BorrowedFd<'a>,
    proc: bool,
}

impl<'a> Isolated<'a> {
    /// Programs below the directory `root`, with the mounts that lie in it. From Linux 6.15 it may be on a
    /// [`DetachedMount`]; before, running fails with `EINVAL` there.
    #[must_use]
    pub fn below(root: BorrowedFd<'a>) -> Self {
        Self { root, proc: true }
    }

    /// Leaves out procfs, which is else mounted on `/proc` where the tree has such a directory.
    #[must_use]
    pub fn without_proc(mut self) -> Self {
        self.proc = false;
        self
    }

    /// Runs a program to its end. Its path is looked up below the root, as is its working directory, which is `/` unless
    /// `command` says otherwise.
    ///
    /// # Errors
    /// `EPERM` without the capabilities, `ENOENT` for a program that is not there, and as for starting any program.
    pub fn run(&self, command: Command) -> io::Result<ExitStatus> {
        self.with(command, |mut child| child.wait())
    }

    /// As [`Self::run`], and collects what the program writes where `command` has pipes for it.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub fn output(&self, command: Command) -> io::Result<Output> {
        self.with(command, Child::wait_with_output)
    }

    fn with<T: Send>(&self, mut command: Command, wait: impl FnOnce(Child) -> io::Result<T> + Send) -> io::Result<T> {
        // A copy, because nothing can be mounted on mounts of the namespace that is left.
        let tree = DetachedMount::copy_of(self.root, b"", true)?;
        let (root, proc) = (tree.as_fd().try_clone_to_owned()?, self.proc);
        let enter = move || -> io::Result<()> {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            rustix::process::fchdir(&root)?;
            rustix::process::chroot(c".")?;
            rustix::process::chdir(c"/")?;
            if proc {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                match rustix::mount::mount(c"proc", c"/proc", c"proc", flags, None) {
                    // An image need not have the directory.
                    Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls with constant strings only, and allocates nothing.
        unsafe { command.pre_exec(enter) };
        // Namespaces belong to threads: this one is thrown away afterwards, and its mounts with it.
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                super::private_mounts()?;
                super::private_host_name()?;
                super::private_ipc()?;
                super::new_pids_for_children()?;
                // Over this thread's own root: any place in the new namespace would do, and this one is always there.
                let attached = tree.attach_path(b"/")?;
                let ended = command.spawn().and_then(wait);
                drop(attached);
                ended
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
