//! Advisory record locks of open file descriptions: the kind that excludes containers/storage's POSIX locks both ways.
//!
//! `int fcntl(int fd, F_OFD_SETLK | F_OFD_SETLKW, struct flock *)`, Linux 3.15, fcntl_locking(2).
//!
//! - The lock belongs to the open file description: other threads that open the file themselves are excluded like other
//!   processes, and closing some other descriptor of the file does not lose it, as it would lose a POSIX lock.
//! - It ends when the last duplicate of the descriptor is closed, at the latest with the process. A child made by fork(2)
//!   shares it until it closes its copy or executes (`O_CLOEXEC`).
//! - flock(2) locks are a world of their own and exclude none of these.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Beside others of its kind, or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// Others may hold it shared too (`F_RDLCK`). The descriptor must be readable.
    Shared,
    /// Nobody else may hold it (`F_WRLCK`). The descriptor must be writable.
    Exclusive,
}

/// The whole file, however long it gets.
fn whole_file(kind: libc::c_int) -> libc::flock {
    // The constants are small; kernel and C library only disagree on their type.
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn type_of(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// Takes the lock on the whole file, waiting for it without limit; interruptions by signals are waited through. Held
/// already in the other way, it is changed, not necessarily without a gap.
///
/// # Errors
/// `EBADF` when the descriptor is not open in a way that suits `kind`; `ENOLCK` where the file system has no locks.
/// Deadlocks are not detected for this kind of lock.
pub fn lock(fd: impl AsFd, kind: LockKind) -> io::Result<()> {
    let request = whole_file(type_of(kind));
    loop {
        match fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLKW(&request)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the lock on the whole file if that can be done at once; false when somebody else holds it.
///
/// # Errors
/// As [`lock`].
pub fn try_lock(fd: impl AsFd, kind: LockKind) -> io::Result<bool> {
    let request = whole_file(type_of(kind));
    loop {
        match fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(&request)) {
            Ok(_) => return Ok(true),
            // Either answer means "busy", says the manual.
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives the lock back, without closing the descriptor.
///
/// # Errors
/// The system's; none is known for a lock that is held.
pub fn unlock(fd: impl AsFd) -> io::Result<()> {
    let request = whole_file(libc::F_UNLCK);
    fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(&request)).map(drop).map_err(io::Error::from)
}

/// The process that holds a lock in the way of `kind`: `None` when there is none, `Some(None)` when the kernel does not
/// tell (locks of open file descriptions have no owner). `F_OFD_GETLK`.
///
/// # Errors
/// As [`lock`].
pub fn holder(fd: impl AsFd, kind: LockKind) -> io::Result<Option<Option<u32>>> {
    let mut request = whole_file(type_of(kind));
    fcntl(fd.as_fd(), FcntlArg::F_OFD_GETLK(&mut request))?;
    if libc::c_int::from(request.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(u32::try_from(request.l_pid).ok()))
}

/// The processes that hold any record lock on the file, for a message to a person: best effort, and out of date when it
/// returns. Sorted, without repetitions.
///
/// Looks through `/proc/PID/fd` and `/proc/PID/fdinfo`, Linux 3.15: other users' processes show to root alone, those of
/// other process-id namespaces to none. Costs a call per descriptor that is open on the machine, so ask after waiting.
///
/// # Errors
/// Only for `fd` itself and for `/proc` missing.
pub fn holders(fd: impl AsFd) -> io::Result<Vec<u32>> {
    let wanted = rustix::fs::fstat(fd.as_fd())?;
    let proc = crate::procfs::open("", rustix::fs::OFlags::DIRECTORY)?;
    let mut holders = Vec::new();
    for process in crate::procfs::numbers(&proc)? {
        // Any of these calls fails for a process that ends meanwhile, or that is not ours to look at.
        let Ok(descriptors) = crate::procfs::open(&format!("{process}/fd"), rustix::fs::OFlags::DIRECTORY) else {
            continue;
        };
        for number in crate::procfs::numbers(&descriptors).unwrap_or_default() {
            let path = number.to_string();
            let same = rustix::fs::statat(&descriptors, &*path, rustix::fs::AtFlags::empty())
                .is_ok_and(|found| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino));
            if same && holds_lock(process, number) {
                holders.push(process);
                break;
            }
        }
    }
    holders.sort_unstable();
    Ok(holders)
}

/// Whether a process's descriptor shows a record lock of either kind in its `fdinfo`.
fn holds_lock(process: u32, descriptor: u32) -> bool {
    crate::procfs::open(&format!("{process}/fdinfo/{descriptor}"), rustix::fs::OFlags::RDONLY)
        .and_then(|file| crate::procfs::read_all(&file))
        .is_ok_and(|info| {
            info.split(|&byte| byte == b'\n').any(|line| {
                line.strip_prefix(b"lock:").is_some_and(|lock| {
                    lock.windows(6).any(|word| word == b"OFDLCK") || lock.windows(5).any(|word| word == b"POSIX")
                })
            })
        })
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    fn open(path: &std::path::Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn two_descriptions_of_one_process_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (open(file.path()), open(file.path()));
        lock(&one, LockKind::Exclusive).unwrap();
        assert!(!try_lock(&two, LockKind::Shared).unwrap());
        assert_eq!(holder(&two, LockKind::Shared).unwrap(), Some(None));
        // Closing another descriptor would lose a POSIX lock here.
        drop(open(file.path()));
        assert!(!try_lock(&two, LockKind::Shared).unwrap());
        unlock(&one).unwrap();
        assert_eq!(holder(&two, LockKind::Exclusive).unwrap(), None);
        assert!(try_lock(&two, LockKind::Shared).unwrap());
        assert!(try_lock(&one, LockKind::Shared).unwrap());
        assert!(!try_lock(&one, LockKind::Exclusive).unwrap());
    }

    #[test]
    fn a_descriptor_of_the_wrong_kind_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(file.path()).unwrap();
        assert_eq!(try_lock(&read_only, LockKind::Exclusive).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    /// Starts python3 holding a POSIX lock on the whole file, as Go's containers/storage takes it.
    fn posix_holder(path: &std::path::Path, kind: &str) -> Option<std::process::Child> {
        use std::io::Read;
        let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,getattr(fcntl,sys.argv[2]))\n\
                      print('x',end='',flush=True)\nsys.stdin.read()";
        let child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .arg(kind)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: no python3");
            return None;
        };
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Some(child)
    }

    fn posix_try(path: &std::path::Path, kind: &str) -> bool {
        let script =
            "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,getattr(fcntl,sys.argv[2])|fcntl.LOCK_NB)";
        let output = std::process::Command::new("python3").args(["-c", script]).arg(path).arg(kind).output().unwrap();
        assert!(output.status.success() || output.stderr.windows(15).any(|w| w == b"BlockingIOError"));
        output.status.success()
    }

    #[test]
    fn posix_locks_of_another_process_exclude_and_are_excluded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ours = open(file.path());
        for (theirs, shared, exclusive) in [("LOCK_EX", false, false), ("LOCK_SH", true, false)] {
            let Some(mut child) = posix_holder(file.path(), theirs) else { return };
            assert_eq!(holder(&ours, LockKind::Exclusive).unwrap(), Some(Some(child.id())));
            assert_eq!(holders(&ours).unwrap(), [child.id()]);
            assert_eq!(try_lock(&ours, LockKind::Exclusive).unwrap(), exclusive);
            assert_eq!(try_lock(&ours, LockKind::Shared).unwrap(), shared);
            unlock(&ours).unwrap();
            drop(child.stdin.take());
            child.wait().unwrap();
        }
        lock(&ours, LockKind::Exclusive).unwrap();
        assert!(!posix_try(file.path(), "LOCK_SH") && !posix_try(file.path(), "LOCK_EX"));
        assert_eq!(holders(&ours).unwrap(), [std::process::id()]);
        lock(&ours, LockKind::Shared).unwrap();
        assert!(posix_try(file.path(), "LOCK_SH") && !posix_try(file.path(), "LOCK_EX"));
        unlock(&ours).unwrap();
        assert!(posix_try(file.path(), "LOCK_EX"));
        assert_eq!(holders(&ours).unwrap(), []);
    }

    #[test]
    fn waiting_ends_when_the_other_process_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ours = open(file.path());
        let Some(mut child) = posix_holder(file.path(), "LOCK_EX") else { return };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(&ours, LockKind::Exclusive));
            child.kill().unwrap();
            child.wait().unwrap();
            waiting.join().unwrap().unwrap();
        });
        assert!(!posix_try(file.path(), "LOCK_SH"));
    }
}
