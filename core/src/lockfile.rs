//! The lock files of a store: who may read or write its records, and whether somebody else wrote since.
//!
//! ```text
//! overlay-layers/layers.lock     mode 0644
//! ┌──────────────────┬──────────────────┬──────────┬──────────────────────┐
//! │ u64 LE unix nanos│ u64 LE counter   │ u32 LE   │ 44 random bytes      │   the last writer's token: 64 bytes,
//! │                  │ of the process   │ pid      │                      │   compared as a whole; or nothing at all
//! └──────────────────┴──────────────────┴──────────┴──────────────────────┘
//! ```
//!
//! - The lock is an advisory record lock on the whole file. containers/storage takes classic POSIX locks; we take the open
//!   file description's own (`F_OFD_SETLK`, Linux 3.15), which conflict with those both ways, hold between threads of one process as well, and are
//!   not lost when some other descriptor of the file is closed.
//! - Whoever changes records calls [`LockGuard::record_write`] **before** it writes them: a crash in between makes others
//!   reload what has not changed, which is harmless.
//! - Whoever reads them remembers the token it saw and reloads when [`LockGuard::modified_since`] says so.
//!
//! Locks die with the process, so a killed one leaves nothing to clean up.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use graph_sys::fs::{self, CWD, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::lock::{self, LockKind};

use crate::error::{Error, Result};
use crate::fsutil;

mod holder;
#[cfg(test)]
mod tests;

pub use holder::Holder;

/// Length of a token on disk in bytes.
const TOKEN_BYTES: usize = 64;
/// Mode of a new lock file.
const LOCK_FILE_MODE: Mode = Mode::from_raw_mode(0o644);
/// How often a lock is tried while its holder may still be named.
const POLL: Duration = Duration::from_millis(20);

/// Numbers the tokens of this process, so that no two are alike whatever the clock does.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What the last writer left in the lock file. Opaque; two are equal when nobody wrote in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token(Vec<u8>);

impl Token {
    fn new() -> io::Result<Self> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut bytes = vec![0_u8; TOKEN_BYTES];
        fsutil::random(&mut bytes)?;
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let head = (u64::try_from(nanos).unwrap_or(u64::MAX).to_le_bytes().into_iter())
            .chain(counter.to_le_bytes())
            .chain(std::process::id().to_le_bytes());
        bytes.iter_mut().zip(head).for_each(|(byte, value)| *byte = value);
        Ok(Self(bytes))
    }

    /// The bytes, at most 64; none for a file that nobody has written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The process that wrote the token, where it has our format (very old ones are 64 hexadecimal digits).
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        if self.0.len() != TOKEN_BYTES || self.0.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let pid = u32::from_le_bytes(self.0.get(16..20)?.try_into().ok()?);
        (pid != 0).then_some(pid)
    }
}

/// What to do when somebody else holds the lock.
#[derive(Clone, Copy)]
pub enum Wait<'w> {
    /// Wait for ever.
    Block,
    /// Fail at once with [`Error::Locked`].
    Fail,
    /// Wait for ever, but tell after a second who holds the lock, for a message to the operator. Called at most once.
    Tell(&'w (dyn Fn(&Busy) + Sync)),
    /// Wait so long, then fail with [`Error::Locked`].
    AtMost(Duration),
}

impl fmt::Debug for Wait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("Block"),
            Self::Fail => f.write_str("Fail"),
            Self::Tell(_) => f.write_str("Tell"),
            Self::AtMost(time) => f.debug_tuple("AtMost").field(time).finish(),
        }
    }
}

/// A lock that somebody else holds.
#[derive(Clone, Debug)]
pub struct Busy {
    /// The lock file.
    pub path: PathBuf,
    /// Who holds it, as far as that can be seen: other users' processes cannot be looked into.
    pub holders: Vec<Holder>,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is locked by ", self.path.display())?;
        if self.holders.is_empty() {
            return f.write_str("another process");
        }
        for (n, holder) in self.holders.iter().enumerate() {
            write!(f, "{}{holder}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// One lock file of a store.
///
/// Any number of these may exist for one file, also in one process; each [`LockFile::lock`] is a holder of its own. A clone is
/// the same object.
#[derive(Clone)]
pub struct LockFile {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    read_only: bool,
    /// The thread that holds this object's exclusive lock: its asking again would wait for itself for ever.
    exclusive: Mutex<Option<ThreadId>>,
}

impl Inner {
    fn owner(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.exclusive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LockFile {
    /// The lock file at `path` of a store that is written to. It is made, with mode 0644, when it is first locked; its
    /// directory must exist.
    ///
    /// On a read-only file system it can be locked [`LockKind::Shared`] only; where it is missing there, without a lock
    /// ([`LockGuard::is_locked`] says no).
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::make(path.into(), false)
    }

    /// The lock file at `path` of an additional, read-only store: can only be locked [`LockKind::Shared`].
    ///
    /// It is never made: nothing is written in such a store. Where it is missing or cannot be had (someone else's
    /// directory, no locks on this network file system) the store is read without a lock; [`LockGuard::is_locked`] then
    /// says no. Records are replaced by renaming, so what is read is whole even so.
    pub fn read_only(path: impl Into<PathBuf>) -> Self {
        Self::make(path.into(), true)
    }

    fn make(path: PathBuf, read_only: bool) -> Self {
        Self { inner: Arc::new(Inner { path, read_only, exclusive: Mutex::new(None) }) }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether this is the lock of a read-only store.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Takes the lock, alone ([`LockKind::Exclusive`]) or beside other readers ([`LockKind::Shared`]). Dropping the guard
    /// gives it back.
    ///
    /// The locks of several files must always be taken in the store's order, or two processes wait for each other.
    ///
    /// # Errors
    /// [`Error::Locked`] as `wait` says; [`Error::Io`] when the file can be neither opened nor made, and
    /// (`EDEADLK`) when this thread already holds this object exclusively, and (`EROFS`) for an exclusive lock on a read-only store.
    pub fn lock(&self, kind: LockKind, wait: Wait<'_>) -> Result<LockGuard> {
        let error = |operation, source: Errno| Error::io(operation, &self.inner.path, None, source);
        if kind == LockKind::Exclusive && self.inner.read_only {
            return Err(error("lock a read-only store for writing", Errno::ROFS));
        }
        if *self.inner.owner() == Some(std::thread::current().id()) {
            return Err(error("lock once more in the same thread", Errno::DEADLK));
        }
        let opened = match self.open(self.inner.read_only) {
            Err(Errno::ROFS) if kind == LockKind::Shared => match self.open(true) {
                // Nobody can write here, so nobody has to be kept from it.
                Err(Errno::NOENT) => return Ok(LockGuard { lock: Arc::clone(&self.inner), file: None, kind }),
                other => other,
            },
            other => other,
        };
        let file = match opened {
            Ok(file) => file,
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) if self.inner.read_only => {
                return Ok(LockGuard { lock: Arc::clone(&self.inner), file: None, kind });
            }
            Err(source) => return Err(error("open lock file", source)),
        };
        match self.wait(&file, kind, wait) {
            Ok(true) => {}
            Ok(false) => return Err(Error::Locked { busy: self.busy(&file, kind) }),
            // No lock manager behind this network file system.
            Err(source)
                if self.inner.read_only
                    && [Errno::NOLCK, Errno::OPNOTSUPP]
                        .iter()
                        .any(|e| source.raw_os_error() == Some(e.raw_os_error())) =>
            {
                return Ok(LockGuard { lock: Arc::clone(&self.inner), file: None, kind });
            }
            Err(source) => return Err(Error::io("lock", &self.inner.path, None, source)),
        }
        if kind == LockKind::Exclusive {
            *self.inner.owner() = Some(std::thread::current().id());
        }
        Ok(LockGuard { lock: Arc::clone(&self.inner), file: Some(file), kind })
    }

    fn open(&self, read_only: bool) -> Result<File, Errno> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let flags = access | OFlags::CLOEXEC | OFlags::NOCTTY;
        loop {
            match fs::openat(CWD, &self.inner.path, flags, Mode::empty()) {
                Err(Errno::NOENT) if !read_only => {
                    match fs::openat(CWD, &self.inner.path, flags | OFlags::CREATE, LOCK_FILE_MODE) {
                        Err(Errno::INTR) => {}
                        other => return other.map(File::from),
                    }
                }
                Err(Errno::INTR) => {}
                other => return other.map(File::from),
            }
        }
    }

    /// Whether the lock was got.
    fn wait(&self, file: &File, kind: LockKind, wait: Wait<'_>) -> io::Result<bool> {
        if lock::try_lock(file, kind)? {
            return Ok(true);
        }
        let patience = match wait {
            Wait::Fail => return Ok(false),
            Wait::Block => Duration::ZERO,
            Wait::Tell(_) => Duration::from_secs(1),
            Wait::AtMost(time) => time,
        };
        // There is no waiting with a time limit in the kernel, so that one is polled.
        let mut waited = Duration::ZERO;
        while waited < patience {
            let pause = POLL.min(patience.saturating_sub(waited));
            std::thread::sleep(pause);
            waited = waited.saturating_add(pause);
            if lock::try_lock(file, kind)? {
                return Ok(true);
            }
        }
        match wait {
            Wait::AtMost(_) | Wait::Fail => return Ok(false),
            Wait::Tell(tell) => tell(&self.busy(file, kind)),
            Wait::Block => {}
        }
        lock::lock(file, kind)?;
        Ok(true)
    }

    fn busy(&self, file: &File, kind: LockKind) -> Busy {
        Busy { path: self.inner.path.clone(), holders: holder::find(file, kind) }
    }
}

impl fmt::Debug for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockFile")
            .field("path", &self.inner.path)
            .field("read_only", &self.inner.read_only)
            .finish_non_exhaustive()
    }
}

/// A held lock.
#[must_use = "dropping it gives the lock back"]
pub struct LockGuard {
    lock: Arc<Inner>,
    file: Option<File>,
    kind: LockKind,
}

impl LockGuard {
    /// Whether there is a lock at all; see [`LockFile::read_only`].
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.file.is_some()
    }

    /// How the lock is held.
    #[must_use]
    pub fn kind(&self) -> LockKind {
        self.kind
    }

    /// The last writer's token; empty when nobody ever wrote, or when there is no lock file.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn token(&self) -> Result<Token> {
        let Some(file) = &self.file else { return Ok(Token::default()) };
        read_token(file.as_fd()).map_err(|e| Error::io("read", &self.lock.path, None, e))
    }

    /// Whether somebody wrote since `token` was read or recorded.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn modified_since(&self, token: &Token) -> Result<bool> {
        Ok(self.token()? != *token)
    }

    /// Says that the holder is about to write: puts a new token into the file and returns it. Not flushed to disk, as
    /// no token outlives the processes that compare it.
    ///
    /// # Errors
    /// I/O errors with the path; `EBADF` without an exclusive lock.
    #[doc(alias = "Touch")]
    #[doc(alias = "RecordWrite")]
    pub fn record_write(&self) -> Result<Token> {
        let error = |source| Error::io("write", &self.lock.path, None, source);
        let Some(file) = self.file.as_ref().filter(|_| self.kind == LockKind::Exclusive) else {
            return Err(error(Errno::BADF.into()));
        };
        let token = Token::new().map_err(error)?;
        let mut written = 0;
        while let Some(rest) = token.0.get(written..).filter(|rest| !rest.is_empty()) {
            match graph_sys::io::pwrite(file, rest, u64::try_from(written).unwrap_or(0)) {
                Ok(0) => return Err(error(io::ErrorKind::WriteZero.into())),
                Ok(count) => written = written.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(error(errno.into())),
            }
        }
        Ok(token)
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.kind == LockKind::Exclusive {
            // Before the file is closed, or another thread's entry could be wiped out.
            *self.lock.owner() = None;
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("path", &self.lock.path)
            .field("kind", &self.kind)
            .field("locked", &self.is_locked())
            .finish()
    }
}

fn read_token(file: BorrowedFd<'_>) -> io::Result<Token> {
    let mut bytes = vec![0_u8; TOKEN_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match graph_sys::io::pread(file, rest, u64::try_from(filled).unwrap_or(0)) {
            Ok(0) => break,
            Ok(count) => filled = filled.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(filled);
    Ok(Token(bytes))
}

/// A file whose lock lives as long as the value: for left-overs that a living process still owns (`lock-<digits>` beside
/// `temp-dir-<digits>`).
#[derive(Debug)]
pub(crate) struct OwnerLock {
    file: File,
}

impl OwnerLock {
    /// Makes `name` in `dir` and locks it. `None` when the name is taken, or a clean-up took the new file for a left-over.
    pub(crate) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(dir, name, flags, LOCK_FILE_MODE) {
            Ok(fd) => Self::take(File::from(fd)),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes over `name` in `dir`, made where it is missing. `None` when its owner lives, or it is gone meanwhile.
    pub(crate) fn take_over(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::take(File::from(fs::openat(dir, name, flags, LOCK_FILE_MODE)?))
    }

    /// Locks `name` in `dir`, made where it is missing, when its owner has let go.
    pub(crate) fn wait_for(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = File::from(fs::openat(dir, name, flags, LOCK_FILE_MODE)?);
            lock::lock(&file, LockKind::Exclusive)?;
            // The owner has removed it as a rule, and somebody else may have made it anew.
            if fs::fstat(&file)?.st_nlink > 0 {
                return Ok(Self { file });
            }
        }
    }

    fn take(file: File) -> io::Result<Option<Self>> {
        if !lock::try_lock(&file, LockKind::Exclusive)? {
            return Ok(None);
        }
        // Between opening and locking, another process may have locked and removed the file: then this lock protects
        // nothing that anybody else can find.
        Ok((fs::fstat(&file)?.st_nlink > 0).then_some(Self { file }))
    }

    /// The file itself, at its end as a rule.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Removes the file while it is still locked, then lets go.
    pub(crate) fn remove(self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let result = match fs::unlinkat(dir, name, graph_sys::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        };
        drop(self.file);
        result
    }
}
