//! What `stat` does not tell: the birth time and the mount that a file is on.
//!
//! `int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)`, Linux 4.11.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags, StatxTimestamp};
use rustix::io::{Errno, Result};

/// Asks for the never re-used 64-bit mount id (`STATX_MNT_ID_UNIQUE`, Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A point in time, in seconds since 1970 (negative before) and nanoseconds (below 1,000,000,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Self {
        Self { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
    }
}

/// The id of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MountId {
    /// Never used again while the machine runs; what [`statmount`](https://man7.org/linux/man-pages/man2/statmount.2.html) takes. Linux 6.8.
    Unique(u64),
    /// The first number of a line in mountinfo; used again after the mount is gone. Linux 5.8.
    Reusable(u64),
}

/// All about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its type.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky (octal 07777).
    pub mode: u32,
    /// Owner, as this process's user namespace and the mount's mapping show it.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Number of names.
    pub links: u32,
    /// Inode number.
    pub inode: u64,
    /// Device of the file system, comparable with [`rustix::fs::Stat::st_dev`].
    pub device: u64,
    /// Number of the device that a device node stands for.
    pub node_device: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last read.
    pub atime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Creation, where the file system keeps it.
    pub btime: Option<Time>,
    /// The mount it was found on, from Linux 5.8.
    pub mount: Option<MountId>,
    /// Whether it is the root of a mount; `None` before Linux 5.8.
    pub is_mount_root: Option<bool>,
}

impl From<&rustix::fs::Stat> for Metadata {
    /// What `stat` tells too; the rest is `None`.
    fn from(stat: &rustix::fs::Stat) -> Self {
        // A nanosecond field holds 0 to 999,999,999 whatever its type is.
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
        Self {
            file_type: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            inode: stat.st_ino,
            device: stat.st_dev,
            node_device: stat.st_rdev,
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            btime: None,
            mount: None,
            is_mount_root: None,
        }
    }
}

/// All about the file `path` below `dir`, a symbolic link not followed; `dir` itself for an empty path.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`, `EACCES`, `ENAMETOOLONG`, `ELOOP`, `EIO`; `ENOSYS` before Linux 4.11.
pub fn metadata(dir: impl AsFd, path: &[u8]) -> Result<Metadata> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    let dir = dir.as_fd();
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID | MNT_ID_UNIQUE;
    let found = match rustix::fs::statx(dir, path, flags, mask) {
        // Kernels are meant to ignore bits that they do not know; a sandbox may not.
        Err(Errno::INVAL) => rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS)?,
        other => other?,
    };
    let told = |bit: StatxFlags| found.stx_mask & bit.bits() != 0;
    let mount_root = rustix::fs::StatxAttributes::MOUNT_ROOT;
    Ok(Metadata {
        file_type: FileType::from_raw_mode(found.stx_mode.into()),
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        size: found.stx_size,
        blocks: found.stx_blocks,
        links: found.stx_nlink,
        inode: found.stx_ino,
        device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
        node_device: rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor),
        mtime: found.stx_mtime.into(),
        atime: found.stx_atime.into(),
        ctime: found.stx_ctime.into(),
        btime: told(StatxFlags::BTIME).then(|| found.stx_btime.into()),
        mount: if told(MNT_ID_UNIQUE) {
            Some(MountId::Unique(found.stx_mnt_id))
        } else {
            told(StatxFlags::MNT_ID).then_some(MountId::Reusable(found.stx_mnt_id))
        },
        is_mount_root: found
            .stx_attributes_mask
            .contains(mount_root)
            .then(|| found.stx_attributes.contains(mount_root)),
    })
}

/// The number of a mount as mountinfo has it, of any kernel since 3.15: from `statx`, else from `/proc/self/fdinfo`.
///
/// # Errors
/// `ENOENT` where neither is available, and as for [`metadata`].
pub fn reusable_mount_id(file: impl AsFd) -> Result<u64> {
    let file = file.as_fd();
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    match found {
        Ok(found) if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(found.stx_mnt_id),
        Ok(_) | Err(Errno::NOSYS) => {
            let info = crate::procfs::read(&format!("fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))?;
            info.split(|&byte| byte == b'\n')
                .find_map(|line| line.strip_prefix(b"mnt_id:"))
                .and_then(|number| std::str::from_utf8(number).ok()?.trim().parse().ok())
                .ok_or(Errno::NOENT)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};

    #[test]
    fn agrees_with_stat() {
        let temp = tempfile::tempdir().unwrap();
        let dir = rustix::fs::openat(CWD, temp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        rustix::fs::symlinkat("nowhere", &dir, "link").unwrap();
        let stat = rustix::fs::statat(&dir, "link", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        let metadata = metadata(&dir, b"link").unwrap();
        assert_eq!(metadata.file_type, FileType::Symlink);
        assert_eq!((metadata.device, metadata.inode), (stat.st_dev, stat.st_ino));
        assert_eq!((metadata.mode, metadata.size, metadata.uid), (0o777, 7, stat.st_uid));
        assert_eq!(metadata.mtime, Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 });
        let same = Metadata { btime: None, mount: None, is_mount_root: None, ..metadata };
        assert_eq!(Metadata::from(&stat), same);
        assert_eq!(super::metadata(&dir, b"").unwrap().inode, rustix::fs::fstat(&dir).unwrap().st_ino);
        assert_eq!(super::metadata(&dir, b"nowhere"), Err(Errno::NOENT));
        assert_eq!(super::metadata(CWD, b"/proc").unwrap().is_mount_root, Some(true));
        assert_eq!(metadata.is_mount_root, Some(false));
    }

    #[test]
    fn mount_ids_tell_mounts_apart() {
        let open = |path: &str| rustix::fs::openat(CWD, path, OFlags::PATH, Mode::empty()).unwrap();
        let (root, proc) = (open("/"), open("/proc"));
        assert_ne!(reusable_mount_id(&root).unwrap(), reusable_mount_id(&proc).unwrap());
        assert!(matches!(metadata(&root, b"").unwrap().mount, Some(MountId::Unique(_) | MountId::Reusable(_))));
    }
}
