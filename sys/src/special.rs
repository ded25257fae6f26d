//! Devices, fifos and sockets, and overlay's whiteout among them.
//!
//! `int mknodat(int dirfd, const char *path, mode_t mode, dev_t dev)`, Linux 2.6.16.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::{Errno, Result};

/// The device number, major 0 and minor 0, of a character device that hides a lower layer's file in overlay.
pub const WHITEOUT_DEVICE: u64 = 0;

/// Makes a device, fifo, socket or empty regular file named `name` in `dir`.
///
/// `mode` gives the permission bits with setuid, setgid and sticky (octal 07777; the umask is applied by the kernel),
/// `device` is the number of a device as [`rustix::fs::makedev`] builds it and is ignored for other types.
///
/// # Errors
/// `EEXIST`, `EPERM` (devices need `CAP_MKNOD` in the first user namespace; the whiteout device and fifos do not since
/// Linux 5.8), `EINVAL` for a directory or a symbolic link, `ENOSPC`, `EDQUOT`, `EROFS`.
pub fn make_node(dir: impl AsFd, name: &[u8], kind: FileType, mode: Mode, device: u64) -> Result<()> {
    match kind {
        FileType::Directory | FileType::Symlink | FileType::Unknown => Err(Errno::INVAL),
        kind => rustix::fs::mknodat(dir, name, kind, mode, device),
    }
}

/// Makes overlay's whiteout: a character device 0:0 with no permissions.
///
/// # Errors
/// As for [`make_node`]; without `CAP_MKNOD` only kernels before 5.8 refuse with `EPERM`.
pub fn make_whiteout(dir: impl AsFd, name: &[u8]) -> Result<()> {
    make_node(dir, name, FileType::CharacterDevice, Mode::empty(), WHITEOUT_DEVICE)
}

/// Whether a file is overlay's whiteout device. Overlay also knows whiteouts by xattr, which this does not see.
#[must_use]
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == WHITEOUT_DEVICE
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, CWD, OFlags};

    #[test]
    fn a_whiteout_is_told_from_other_nodes() {
        let temp = tempfile::tempdir().unwrap();
        let dir = rustix::fs::openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let stat = |name: &[u8]| rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        make_whiteout(&dir, b"w").unwrap();
        assert!(is_whiteout(&stat(b"w")));
        assert_eq!(make_whiteout(&dir, b"w"), Err(Errno::EXIST));
        make_node(&dir, b"fifo", FileType::Fifo, Mode::from(0o600), 0).unwrap();
        make_node(&dir, b"socket", FileType::Socket, Mode::from(0o600), 0).unwrap();
        assert!(!is_whiteout(&stat(b"fifo")));
        assert_eq!(FileType::from_raw_mode(stat(b"socket").st_mode), FileType::Socket);
        assert_eq!(make_node(&dir, b"d", FileType::Directory, Mode::empty(), 0), Err(Errno::INVAL));
        if rustix::process::geteuid().is_root() {
            let device = rustix::fs::makedev(259, 1_048_575);
            make_node(&dir, b"null", FileType::BlockDevice, Mode::from(0o600), device).unwrap();
            assert_eq!(stat(b"null").st_rdev, device);
            assert!(!is_whiteout(&stat(b"null")));
        } else {
            eprintln!("skipped: making real devices needs root");
        }
    }
}
