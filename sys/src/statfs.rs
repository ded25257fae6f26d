//! Which file system a file is on.
//!
//! `int fstatfs(int fd, struct statfs *buf)`. The numbers and the display names are those of containers/storage, which
//! writes them into its answers; several names that the kernel knows have none there.

use std::os::fd::AsFd;

use rustix::io::Result;

/// The number by which a file system is known (`f_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Magic(pub u32);

impl Magic {
    /// aufs.
    pub const AUFS: Self = Self(0x6175_6673);
    /// btrfs.
    pub const BTRFS: Self = Self(0x9123_683e);
    /// erofs.
    pub const EROFS: Self = Self(0xe0f5_e1e2);
    /// ext2, ext3 and ext4.
    pub const EXT: Self = Self(0xef53);
    /// FUSE, whatever the server.
    pub const FUSE: Self = Self(0x6573_5546);
    /// NFS client.
    pub const NFS: Self = Self(0x6969);
    /// overlay.
    pub const OVERLAY: Self = Self(0x794c_7630);
    /// procfs.
    pub const PROC: Self = Self(0x9fa0);
    /// ramfs.
    pub const RAMFS: Self = Self(0x8584_58f6);
    /// squashfs.
    pub const SQUASHFS: Self = Self(0x7371_7368);
    /// tmpfs.
    pub const TMPFS: Self = Self(0x0102_1994);
    /// XFS.
    pub const XFS: Self = Self(0x5846_5342);
    /// ZFS.
    pub const ZFS: Self = Self(0x2fc1_2fc1);
    /// eCryptfs.
    pub const ECRYPTFS: Self = Self(0xf15f);

    /// The name that containers/storage shows, or `None` where it shows `<unknown>`.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(magic, ..)| *magic == self.0).and_then(|(_, name, _)| *name)
    }

    /// Whether containers/storage takes it for a network file system, on which overlay does not work rootless.
    #[must_use]
    pub fn is_network(self) -> bool {
        NAMES.iter().any(|(magic, _, network)| *magic == self.0 && *network)
    }
}

/// Number, display name, whether it is a network file system.
const NAMES: &[(u32, Option<&str>, bool)] = &[
    (0x6175_6673, Some("aufs"), false),
    (0x9123_683e, Some("btrfs"), false),
    (0x28cd_3d45, Some("cramfs"), false),
    (0xf15f, Some("ecryptfs"), false),
    (0xe0f5_e1e2, Some("erofs"), false),
    (0xef53, Some("extfs"), false),
    (0xf2f5_2010, Some("f2fs"), false),
    (0x4750_4653, Some("gpfs"), true),
    (0x72b6, Some("jffs2"), false),
    (0x3153_464a, Some("jfs"), false),
    (0x6969, Some("nfs"), true),
    (0x794c_7630, Some("overlayfs"), false),
    (0x8584_58f6, Some("ramfs"), false),
    (0x5265_4973, Some("reiserfs"), false),
    (0x517b, Some("smb"), true),
    (0x7371_7368, Some("squashfs"), false),
    (0x0102_1994, Some("tmpfs"), false),
    (0xa501_fcf5, Some("vxfs"), true),
    (0x5846_5342, Some("xfs"), false),
    (0x2fc1_2fc1, Some("zfs"), false),
    // Without a name.
    (0x6573_5546, None, false), // FUSE
    (0x6163_6673, None, true),  // acfs
    (0x5346_414f, None, true),  // afs
    (0x00c3_6400, None, true),  // ceph
    (0xff53_4d42, None, true),  // cifs
    (0x1983_0326, None, false), // fhgfs
    (0x0130_11a8, None, true),  // ibrix
    (0x6b41_4653, None, true),  // kafs
    (0x0bd0_0bd0, None, true),  // lustre
    (0x564c, None, true),       // ncp
    (0x6e66_7364, None, true),  // nfsd
    (0x7461_636f, None, true),  // ocfs2
    (0xaad7_aaea, None, true),  // panfs
    (0x7c7c_6673, None, true),  // prlfs
    (0xfe53_4d42, None, true),  // smb2
    (0xbeef_dead, None, true),  // snfs
    (0x786f_4256, None, true),  // vboxsf
];

/// The file system of an open file (any descriptor, also `O_PATH`).
///
/// # Errors
/// `EBADF`, `EIO`, `ENOSYS` where the file system does not answer.
pub fn magic(file: impl AsFd) -> Result<Magic> {
    #[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a pattern of 32 bits on every system")]
    let number = rustix::fs::fstatfs(file)?.f_type as u32;
    Ok(Magic(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};

    #[test]
    fn proc_is_known_and_names_are_those_of_the_peer() {
        let proc = rustix::fs::openat(CWD, "/proc", OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(magic(&proc).unwrap(), Magic::PROC);
        assert_eq!(Magic::EXT.name(), Some("extfs"));
        assert_eq!(Magic::OVERLAY.name(), Some("overlayfs"));
        assert_eq!(Magic::FUSE.name(), None);
        assert!(Magic::NFS.is_network() && !Magic::XFS.is_network());
    }
}
