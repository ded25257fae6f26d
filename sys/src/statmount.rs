//! One mount by its id, without reading the whole table.
//!
//! `int statmount(struct mnt_id_req *req, struct statmount *buf, size_t size, unsigned flags)` and
//! `ssize_t listmount(struct mnt_id_req *req, u64 *mnt_ids, size_t nr, unsigned flags)`, Linux 6.8. Where they are
//! missing, [`mountinfo`](crate::mountinfo) gives the same.

use rustix::io::{Errno, Result};

use crate::mountinfo::MountInfo;
use crate::syscall::{self, MountIdRequest};

/// Asks for the mounts below the root of the namespace.
const LISTMOUNT_ROOT: u64 = u64::MAX;

// What is asked for.
const STATMOUNT_SB_BASIC: u64 = 0x1;
const STATMOUNT_MNT_BASIC: u64 = 0x2;
const STATMOUNT_MNT_ROOT: u64 = 0x8;
const STATMOUNT_MNT_POINT: u64 = 0x10;
const STATMOUNT_FS_TYPE: u64 = 0x20;
const STATMOUNT_SB_SOURCE: u64 = 0x200;

// Where `struct statmount` has what, in bytes. It is read by offsets, since later kernels make it longer.
const FIXED: usize = 512;
const MASK: usize = 8;
const DEVICE_MAJOR: usize = 16;
const DEVICE_MINOR: usize = 20;
const FS_TYPE: usize = 36;
const PARENT_ID_UNIQUE: usize = 48;
const ID: usize = 56;
const PARENT_ID: usize = 60;
const MNT_ATTR: usize = 64;
const PROPAGATION: usize = 72;
const PEER_GROUP: usize = 80;
const MASTER: usize = 88;
const MNT_ROOT: usize = 104;
const MNT_POINT: usize = 108;
const SB_SOURCE: usize = 124;

/// The fixed part as `<linux/mount.h>` declares it; only its layout is used, to prove the offsets above.
#[repr(C)]
struct Layout {
    size: u32,
    mnt_opts: u32,
    mask: u64,
    sb_dev_major: u32,
    sb_dev_minor: u32,
    sb_magic: u64,
    sb_flags: u32,
    fs_type: u32,
    mnt_id: u64,
    mnt_parent_id: u64,
    mnt_id_old: u32,
    mnt_parent_id_old: u32,
    mnt_attr: u64,
    mnt_propagation: u64,
    mnt_peer_group: u64,
    mnt_master: u64,
    propagate_from: u64,
    mnt_root: u32,
    mnt_point: u32,
    mnt_ns_id: u64,
    fs_subtype: u32,
    sb_source: u32,
    opt_num: u32,
    opt_array: u32,
    opt_sec_num: u32,
    opt_sec_array: u32,
    supported_mask: u64,
    mnt_uidmap_num: u32,
    mnt_uidmap: u32,
    mnt_gidmap_num: u32,
    mnt_gidmap: u32,
    spare: [u64; 43],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Layout>() == FIXED);
    assert!(offset_of!(Layout, mask) == MASK);
    assert!(offset_of!(Layout, sb_dev_major) == DEVICE_MAJOR);
    assert!(offset_of!(Layout, sb_dev_minor) == DEVICE_MINOR);
    assert!(offset_of!(Layout, fs_type) == FS_TYPE);
    assert!(offset_of!(Layout, mnt_parent_id) == PARENT_ID_UNIQUE);
    assert!(offset_of!(Layout, mnt_id_old) == ID);
    assert!(offset_of!(Layout, mnt_parent_id_old) == PARENT_ID);
    assert!(offset_of!(Layout, mnt_attr) == MNT_ATTR);
    assert!(offset_of!(Layout, mnt_propagation) == PROPAGATION);
    assert!(offset_of!(Layout, mnt_peer_group) == PEER_GROUP);
    assert!(offset_of!(Layout, mnt_master) == MASTER);
    assert!(offset_of!(Layout, mnt_root) == MNT_ROOT);
    assert!(offset_of!(Layout, mnt_point) == MNT_POINT);
    assert!(offset_of!(Layout, sb_source) == SB_SOURCE);
};

/// The mount with this [unique id](crate::statx::MountId::Unique); `None` when there is none such, or this process's
/// root does not show it.
///
/// Options are given as far as the mount's own flags go; `super_options` stay empty, and `source` before Linux 6.13.
///
/// # Errors
/// `ENOSYS` before Linux 6.8, `EPERM` for another namespace's mount, `EOVERFLOW` for strings over 1 MiB.
pub fn mount(id: u64) -> Result<Option<MountInfo>> {
    let wanted = STATMOUNT_SB_BASIC
        | STATMOUNT_MNT_BASIC
        | STATMOUNT_MNT_ROOT
        | STATMOUNT_MNT_POINT
        | STATMOUNT_FS_TYPE
        | STATMOUNT_SB_SOURCE;
    let request = MountIdRequest::new(id, wanted);
    let mut words = 256;
    loop {
        let mut buffer = vec![0_u64; words];
        match syscall::statmount(&request, &mut buffer) {
            Ok(()) => return Ok(decode(&buffer)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::OVERFLOW) if words < 1 << 17 => words *= 8,
            Err(error) => return Err(error),
        }
    }
}

/// Unique ids of the mounts that lie directly on the mount `parent`, or of all in this namespace when it is `None`.
///
/// # Errors
/// `ENOSYS` before Linux 6.8, `ENOENT` for an id that is no mount's, `EPERM` for another namespace's.
pub fn list(parent: Option<u64>) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    let mut last = 0;
    let mut ids = [0; 256];
    loop {
        let request = MountIdRequest::new(parent.unwrap_or(LISTMOUNT_ROOT), last);
        let found = syscall::listmount(&request, &mut ids)?;
        let Some(some) = ids.get(..found) else { return Err(Errno::IO) };
        all.extend_from_slice(some);
        match some.last() {
            Some(&id) if found == ids.len() => last = id,
            _ => return Ok(all),
        }
    }
}

fn decode(buffer: &[u64]) -> Option<MountInfo> {
    // The kernel writes native numbers, so that a byte view in native order is what is wanted.
    #[allow(clippy::host_endian_bytes, reason = "the other side is this machine's kernel")]
    let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_ne_bytes()).collect();
    #[allow(clippy::host_endian_bytes, reason = "the other side is this machine's kernel")]
    let u32_at = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    #[allow(clippy::host_endian_bytes, reason = "the other side is this machine's kernel")]
    let u64_at = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes);
    let mask = u64_at(MASK)?;
    let string = |bit: u64, at: usize| -> Option<Vec<u8>> {
        if mask & bit == 0 {
            return Some(Vec::new());
        }
        let start = FIXED.checked_add(usize::try_from(u32_at(at)?).ok()?)?;
        bytes.get(start..)?.split(|&byte| byte == 0).next().map(<[u8]>::to_vec)
    };
    let propagation = u64_at(PROPAGATION)?;
    let group = |at: usize| u64_at(at).filter(|&group| group != 0);
    Some(MountInfo {
        id: u32_at(ID)?.into(),
        parent_id: u32_at(PARENT_ID)?.into(),
        device: (u32_at(DEVICE_MAJOR)?, u32_at(DEVICE_MINOR)?),
        root: string(STATMOUNT_MNT_ROOT, MNT_ROOT)?,
        mount_point: string(STATMOUNT_MNT_POINT, MNT_POINT)?,
        options: options(u64_at(MNT_ATTR)?),
        shared: group(PEER_GROUP),
        master: group(MASTER),
        unbindable: propagation & libc::MS_UNBINDABLE != 0,
        file_system: string(STATMOUNT_FS_TYPE, FS_TYPE)?,
        source: string(STATMOUNT_SB_SOURCE, SB_SOURCE)?,
        super_options: Vec::new(),
    })
}

/// The mount's own flags in the words and the order of mountinfo.
fn options(attributes: u64) -> Vec<u8> {
    use rustix::mount::MountAttrFlags as Flags;
    // Bits of no kernel fit 32 bits only; those that we name do.
    let set = |flag: Flags| attributes & u64::from(flag.bits()) != 0;
    let mut words = vec![if set(Flags::MOUNT_ATTR_RDONLY) { "ro" } else { "rw" }];
    for (flag, word) in [
        (Flags::MOUNT_ATTR_NOSUID, "nosuid"),
        (Flags::MOUNT_ATTR_NODEV, "nodev"),
        (Flags::MOUNT_ATTR_NOEXEC, "noexec"),
        (Flags::MOUNT_ATTR_NOATIME, "noatime"),
        (Flags::MOUNT_ATTR_NODIRATIME, "nodiratime"),
    ] {
        if set(flag) {
            words.push(word);
        }
    }
    let atime = u64::from(Flags::MOUNT_ATTR__ATIME.bits());
    if attributes & atime == u64::from(Flags::MOUNT_ATTR_RELATIME.bits()) {
        words.push("relatime");
    }
    for (flag, word) in [(Flags::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"), (Flags::MOUNT_ATTR_IDMAP, "idmapped")] {
        if set(flag) {
            words.push(word);
        }
    }
    words.join(",").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statx::{MountId, metadata};
    use rustix::fs::CWD;

    #[test]
    fn agrees_with_mountinfo_on_every_mount() {
        let ids = match list(None) {
            Err(Errno::NOSYS) => {
                eprintln!("skipped: this kernel has no listmount");
                return;
            }
            ids => ids.unwrap(),
        };
        let table = crate::mountinfo::read().unwrap();
        let mut compared = 0;
        for id in ids {
            let Some(mount) = mount(id).unwrap() else { continue };
            // Other tests mount and unmount in namespaces of their own only.
            let line = table.iter().find(|line| line.id == mount.id).unwrap();
            assert_eq!(mount.mount_point, line.mount_point);
            assert_eq!(mount.root, line.root);
            assert_eq!((mount.device, mount.parent_id), (line.device, line.parent_id));
            assert_eq!((mount.shared, mount.master, mount.unbindable), (line.shared, line.master, line.unbindable));
            assert_eq!(mount.options, line.options, "{}", String::from_utf8_lossy(&line.options));
            assert!(line.file_system.starts_with(&mount.file_system));
            compared += 1;
        }
        assert!(compared > 1, "only {compared} mounts");
    }

    #[test]
    fn an_unknown_id_is_no_mount() {
        match metadata(CWD, b"/").unwrap().mount {
            Some(MountId::Unique(_)) if mount(1) == Err(Errno::NOSYS) => {
                eprintln!("skipped: this kernel has no statmount");
            }
            Some(MountId::Unique(id)) => {
                assert!(mount(id).unwrap().is_some());
                assert_eq!(mount(u64::MAX / 2).unwrap(), None);
            }
            _ => eprintln!("skipped: this kernel has no unique mount ids"),
        }
    }
}
