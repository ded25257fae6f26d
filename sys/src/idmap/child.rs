//! The short-lived child whose user namespace is wanted.

#![allow(unsafe_code, reason = "a process cannot be started in a new user namespace through any safe interface")]

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal};

/// A process that does nothing, in a user namespace of its own. Ended and reaped on drop at the latest.
pub(super) struct Paused {
    pid: Pid,
    running: bool,
}

/// Enough for a handful of system calls and a signal frame with all vector registers.
const STACK: usize = 64 * 1024;

impl Paused {
    /// Starts the child.
    ///
    /// It ends without a signal to us (exit signal 0), so that an engine's SIGCHLD handler is not called for a child
    /// that it does not know, and its `waitpid(-1, …)` does not take it away from us.
    pub(super) fn start() -> Result<Self> {
        let mut stack = vec![0; STACK];
        let parent = nix::unistd::getpid().as_raw();
        let child = Box::new(move || -> isize {
            // SAFETY: only async-signal-safe calls, as is due after a fork of a process with threads: no allocation,
            // no lock, no return into Rust's runtime (the child is killed, or exits from here).
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The parent may have died before that call.
                if libc::getppid() == parent {
                    loop {
                        libc::pause();
                    }
                }
                libc::_exit(0)
            }
        });
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_FILES;
        let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
        // The child is born with all signals blocked: an engine's handler must not run in it too, say for a Ctrl-C that
        // goes to the whole group. SIGKILL cannot be blocked.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(errno)?;
        // SAFETY: without CLONE_VM the child has a copy of our memory, the stack included, so that nothing is shared
        // but descriptors, which it does not touch; what it runs is async-signal-safe as said above.
        let started = unsafe { nix::sched::clone(child, &mut stack, flags, None) };
        let restored = before.thread_set_mask();
        let pid = Pid::from_raw(started.map_err(errno)?.as_raw()).ok_or(Errno::CHILD)?;
        let child = Self { pid, running: true };
        restored.map_err(errno)?;
        Ok(child)
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        // The number cannot be another process's meanwhile: ours is not reaped yet.
        let path = format!("/proc/{}/{name}", self.pid.as_raw_nonzero());
        rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Writes one of the files of the child's mapping. The kernel wants it in one call.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<()> {
        let file = self.open(name, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, content.as_bytes())?;
        if written == content.len() { Ok(()) } else { Err(Errno::IO) }
    }

    pub(super) fn open_namespace(&self, kind: &str) -> Result<OwnedFd> {
        self.open(&format!("ns/{kind}"), OFlags::RDONLY)
    }

    /// Ends and reaps the child.
    pub(super) fn end(mut self) -> Result<()> {
        self.reap()
    }

    fn reap(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        rustix::process::kill_process(self.pid, Signal::KILL)?;
        let pid = self.pid.as_raw_nonzero().get();
        loop {
            // SAFETY: no memory is passed. (`__WALL`: a child without an exit signal is waited for by no other flag.)
            let waited = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
            if waited == pid {
                return Ok(());
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                // Somebody has waited for all children there are, of every kind.
                Some(Errno::CHILD) => return Ok(()),
                other => return Err(other.unwrap_or(Errno::IO)),
            }
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.reap().ok();
    }
}
