//! Threads that copy parts of one tree.
//!
//! A part is a directory with all below it. Whoever walks a tree gives a directory away when somebody waits for work, and
//! otherwise goes on into it; so one thread copies a small tree, and a large one keeps all of them busy to its end.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use graph_sys::fs::{self, Stat};

use super::tree::{Help, Walk};
use super::{CopyOptions, CopyReport};
use crate::error::{Error, Result};

/// A directory to be copied with all below it, into one that has been made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) from: OwnedFd,
    pub(super) to: OwnedFd,
    /// Its path below the root.
    pub(super) path: Vec<u8>,
    /// Its status in the source.
    pub(super) stat: Stat,
}

/// Where the first name of an inode with several is, below the root of the copy, by device and inode of the source.
pub(super) type Linked = HashMap<(u64, u64), Vec<u8>>;

/// One copy, by however many threads.
#[derive(Debug)]
pub(super) struct Pool<'c> {
    pub(super) options: &'c CopyOptions,
    /// Root of the copy.
    pub(super) root: BorrowedFd<'c>,
    /// Its device and inode.
    pub(super) itself: (u64, u64),
    linked: Mutex<Linked>,
    state: Mutex<State>,
    wake: Condvar,
    /// Threads that wait and have no job in sight.
    hungry: AtomicUsize,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Job>,
    running: usize,
    waiting: usize,
    error: Option<Error>,
    report: CopyReport,
    /// Kinds of notices given already.
    kinds: BTreeSet<&'static str>,
}

impl<'c> Pool<'c> {
    pub(super) fn new(options: &'c CopyOptions, root: BorrowedFd<'c>) -> Result<Self> {
        let own = fs::fstat(root).map_err(|error| Error::io("stat", b".".as_slice(), error))?;
        Ok(Self {
            options,
            root,
            itself: (own.st_dev, own.st_ino),
            linked: Mutex::default(),
            state: Mutex::default(),
            wake: Condvar::new(),
            hungry: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// Copies one thing that is no directory.
    pub(super) fn copy_one(self, source: BorrowedFd<'_>, name: &[u8], new: &[u8]) -> Result<CopyReport> {
        let mut walk = Walk::new(&self, None);
        walk.one(source, name, new)?;
        let (mut report, notices, _) = walk.into_parts();
        report.notices = notices.into_iter().map(|(_, notice)| notice).collect();
        Ok(report)
    }

    /// The names of inodes with several, locked: held while one of them is copied, so that no other thread links to a
    /// file that is not whole.
    pub(super) fn linked(&self) -> MutexGuard<'_, Linked> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for work.
    pub(super) fn is_hungry(&self) -> bool {
        self.hungry.load(Ordering::Relaxed) > 0
    }

    /// Whether some thread met an error: the copy is of no use.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, job: Job) {
        let mut state = self.state();
        state.jobs.push(job);
        self.count(&state);
        self.wake.notify_one();
    }

    fn count(&self, state: &State) {
        self.hungry.store(state.waiting.saturating_sub(state.jobs.len()), Ordering::Relaxed);
    }

    /// Copies one directory after the other until there are none left anywhere. `help` is called when there is a lot to do.
    pub(super) fn work<'p>(&'p self, mut help: Option<Help<'p>>) {
        while let Some(job) = self.next() {
            let mut walk = Walk::new(self, help.take());
            let result = walk.run(job);
            let (report, notices, unused) = walk.into_parts();
            help = unused;
            let mut state = self.state();
            state.report.inodes = state.report.inodes.saturating_add(report.inodes);
            state.report.bytes = state.report.bytes.saturating_add(report.bytes);
            state.report.method = state.report.method.max(report.method);
            for (kind, notice) in notices {
                if state.kinds.insert(kind) {
                    state.report.notices.push(notice);
                }
            }
            if let Err(error) = result {
                self.failed.store(true, Ordering::Relaxed);
                state.error.get_or_insert(error);
            }
            state.running = state.running.saturating_sub(1);
            if state.running == 0 {
                self.wake.notify_all();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop() {
                state.running = state.running.saturating_add(1);
                self.count(&state);
                return Some(job);
            }
            if state.running == 0 {
                return None;
            }
            state.waiting = state.waiting.saturating_add(1);
            self.count(&state);
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting = state.waiting.saturating_sub(1);
            self.count(&state);
        }
    }

    /// What all threads found.
    pub(super) fn finish(self) -> Result<CopyReport> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.error.map_or(Ok(state.report), Err)
    }
}
