//! The armed side of fault points.

#![allow(unsafe_code, reason = "a crash test needs a copy of this process, which only fork makes")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::io::{Errno, Result};
use rustix::process::Signal;

/// What happens at an armed point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`point`](super::point) returns this error.
    Fail(Errno),
    /// The process is killed (`SIGKILL`): nothing runs any more, no destructor, no clean-up.
    Kill,
}

#[derive(Debug, Default)]
struct State {
    armed: Vec<(usize, &'static str, u64, Action)>,
    hits: HashMap<&'static str, u64>,
    recording: Option<Vec<&'static str>>,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
/// How many arms and recordings there are: points cost one load while there are none.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn with_state<T>(change: impl FnOnce(&mut State) -> T) -> T {
    // A test that panicked elsewhere must not take the others with it: the state is valid at any time.
    let mut guard: MutexGuard<'_, Option<State>> = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    change(guard.get_or_insert_default())
}

pub(super) fn reached(name: &'static str) -> Result<()> {
    if ACTIVE.load(Ordering::Acquire) == 0 {
        return Ok(());
    }
    let action = with_state(|state| {
        let hits = state.hits.entry(name).or_default();
        *hits += 1;
        let hits = *hits;
        if let Some(recording) = &mut state.recording {
            recording.push(name);
        }
        state.armed.iter().find(|(_, point, nth, _)| *point == name && *nth == hits).map(|(.., action)| *action)
    });
    match action {
        None => Ok(()),
        Some(Action::Fail(errno)) => Err(errno),
        Some(Action::Kill) => loop {
            // It cannot fail for one's own process; should it all the same, going on would make the test lie.
            rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).ok();
        },
    }
}

/// Keeps a point armed; dropping it disarms it.
#[derive(Debug)]
#[must_use = "the point is disarmed when this is dropped"]
pub struct Armed {
    id: usize,
}

/// Arms a point of this process, whatever thread reaches it: from now on, its `nth` hit (from 1) takes `action`. Hits
/// are counted anew when nothing was armed before.
pub fn arm(name: &'static str, nth: u64, action: Action) -> Armed {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    with_state(|state| {
        if ACTIVE.fetch_add(1, Ordering::AcqRel) == 0 {
            state.hits.clear();
        }
        state.armed.push((id, name, nth, action));
    });
    Armed { id }
}

impl Drop for Armed {
    fn drop(&mut self) {
        with_state(|state| {
            state.armed.retain(|(id, ..)| *id != self.id);
            ACTIVE.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// How often a point was hit since the first of the present arms or recordings.
#[must_use]
pub fn hits(name: &'static str) -> u64 {
    with_state(|state| state.hits.get(name).copied().unwrap_or(0))
}

/// Runs something and gives the points that it passes, in order, repetitions included. One recording at a time.
pub fn record(work: impl FnOnce()) -> Vec<&'static str> {
    with_state(|state| {
        if ACTIVE.fetch_add(1, Ordering::AcqRel) == 0 {
            state.hits.clear();
        }
        state.recording = Some(Vec::new());
    });
    work();
    with_state(|state| {
        ACTIVE.fetch_sub(1, Ordering::AcqRel);
        state.recording.take().unwrap_or_default()
    })
}

/// How the child of [`in_child`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEnd {
    /// The work was done.
    Finished,
    /// The work panicked.
    Panicked,
    /// It was killed, as an armed point does.
    Killed,
}

/// Runs `work` in a copy of this process, made by fork, and waits for its end. The copy has this thread only.
///
/// For tests. Threads of this process that hold locks at this moment hold them in the copy for ever; under nextest, or
/// with `--test-threads=1`, there are none that matter. Files, locks of open file descriptions and mounts are shared
/// with the copy until it ends.
///
/// # Errors
/// `EAGAIN`, `ENOMEM` when no process can be made; `EIO` for an end that is none of [`ChildEnd`]'s.
pub fn in_child(work: impl FnOnce()) -> Result<ChildEnd> {
    let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    // SAFETY: the child runs on with this thread alone. glibc makes its allocator usable there; other locks are the
    // caller's to mind, as documented. It never returns from here.
    match unsafe { fork() }.map_err(errno)? {
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the process at once; no destructor and no test harness of the parent's runs twice.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(ChildEnd::Finished),
                Ok(WaitStatus::Exited(_, 101)) => return Ok(ChildEnd::Panicked),
                Ok(WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)) => return Ok(ChildEnd::Killed),
                Ok(_) => return Err(Errno::IO),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(errno(error)),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::point;
    use super::*;

    // One test, since the state is the process's.
    #[test]
    fn points_fail_kill_and_are_recorded() {
        let work = || -> Result<()> {
            for _ in 0..2 {
                point("a")?;
                point("b")?;
            }
            Ok(())
        };
        assert_eq!(work(), Ok(()));
        assert_eq!(record(|| work().unwrap()), ["a", "b", "a", "b"]);
        {
            let _second_b = arm("b", 2, Action::Fail(Errno::NOSPC));
            assert_eq!(work(), Err(Errno::NOSPC));
            assert_eq!((hits("a"), hits("b")), (2, 2));
            // The third hit is as good as none.
            assert_eq!(work(), Ok(()));
        }
        assert_eq!(work(), Ok(()));
        let mut file = tempfile::tempfile().unwrap();
        let end = in_child(|| {
            use std::io::Write;
            let _armed = arm("b", 1, Action::Kill);
            file.write_all(b"before").unwrap();
            work().unwrap();
            file.write_all(b"after").unwrap();
        });
        assert_eq!(end, Ok(ChildEnd::Killed));
        assert_eq!(file.metadata().unwrap().len(), 6);
        assert_eq!(in_child(|| work().unwrap()), Ok(ChildEnd::Finished));
        assert_eq!(in_child(|| std::panic::resume_unwind(Box::new(()))), Ok(ChildEnd::Panicked));
    }
}
