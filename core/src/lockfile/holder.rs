//! Finding out who holds a lock, for the message to whoever waits.

use std::fmt;
use std::fs::File;
use std::io;

use graph_sys::fs::{self, CWD, Mode, OFlags, Stat};
use graph_sys::lock::LockKind;

use crate::fsutil;

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, in our process-id namespace.
    pub pid: u32,
    /// Its name (`/proc/<pid>/comm`); empty when it has gone meanwhile.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.command.is_empty() {
            write!(f, "process {}", self.pid)
        } else {
            write!(f, "{} (process {})", self.command, self.pid)
        }
    }
}

/// The processes whose locks are in the way of `kind` on `file`. Best effort: what cannot be read is left out.
///
/// The kernel names the owner of a classic lock, but gives -1 for a lock of an open file description. The owner of that one
/// is found by the `lock:` lines of `/proc/<pid>/fdinfo/<fd>` (proc(5)), which carry device and inode of the file.
pub(super) fn find(file: &File, kind: LockKind) -> Vec<Holder> {
    let Ok(stat) = fs::fstat(file) else { return Vec::new() };
    let own = std::process::id();
    let Ok(names) = list("/proc") else { return Vec::new() };
    let pids = names.iter().filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let holders = pids.filter(|&pid| holds(pid, &stat, kind).unwrap_or(false)).map(|pid| {
        let comm = fsutil::read_small_path(format!("/proc/{pid}/comm").as_ref(), 4096).unwrap_or_default();
        Holder { pid, command: String::from_utf8_lossy(&comm).trim_end().to_owned() }
    });
    let mut holders: Vec<Holder> = holders.collect();
    // Ourselves last: another thread's lock is possible, another process is the likelier trouble.
    holders.sort_by_key(|holder| (holder.pid == own, holder.pid));
    holders
}

fn holds(pid: u32, wanted: &Stat, kind: LockKind) -> io::Result<bool> {
    let directory = format!("/proc/{pid}/fdinfo");
    for name in list(&directory)? {
        let name = name.to_string_lossy();
        // Descriptors come and go while we look.
        let path = format!("{directory}/{name}");
        let Ok(bytes) = fsutil::read_small_path(path.as_ref(), 1 << 20) else { continue };
        if String::from_utf8_lossy(&bytes).lines().any(|line| line_matches(line, wanted.st_ino, kind)) {
            // The line's device is the file system's own, which is not what stat(2) says on btrfs and overlay.
            let found = fs::stat(format!("/proc/{pid}/fd/{name}").as_str())?;
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// `lock: 1: POSIX  ADVISORY  WRITE 1234 00:15:678 0 EOF`, or `OFDLCK … -1 …`; flock's are of another kind.
fn line_matches(line: &str, inode: u64, kind: LockKind) -> bool {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("lock:") {
        return false;
    }
    let words: Vec<&str> = words.collect();
    let (class, access) = (words.get(1).copied(), words.get(3).copied());
    matches!(class, Some("POSIX" | "OFDLCK"))
        && (access == Some("WRITE") || kind == LockKind::Exclusive)
        && words.iter().any(|word| word.rsplit_once(':').is_some_and(|(_, digits)| digits == inode.to_string()))
}

fn list(path: &str) -> io::Result<Vec<std::ffi::OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fsutil::list(fs::openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        let ofd = "lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:132110 0 EOF";
        assert!(line_matches(ofd, 132_110, LockKind::Shared));
        assert!(!line_matches(ofd, 13_211, LockKind::Shared));
        let read = "lock:\t2: POSIX  ADVISORY  READ 814 fe:00:132110 0 EOF";
        assert!(line_matches(read, 132_110, LockKind::Exclusive));
        assert!(!line_matches(read, 132_110, LockKind::Shared));
        assert!(!line_matches("lock:\t1: FLOCK  ADVISORY  WRITE 814 fe:00:132110 0 EOF", 132_110, LockKind::Shared));
        assert!(!line_matches("pos:\t0", 132_110, LockKind::Shared));
    }
}
