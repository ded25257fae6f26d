//! Giving a whole tree other owners.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use graph_archive::idmap::{IdMappings, IdPair, IdRange};
use graph_archive::walk::Descent;
use graph_archive::{Error, Result};
use graph_sys::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid, chmodat, chownat, statat};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::xattr::{self, SetMode};

const CAPABILITY: &[u8] = b"security.capability";

/// Where ids come from and where they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift<'m> {
    /// Mappings of the ids that are on disk now.
    pub(crate) from: &'m IdMappings,
    /// Mappings of those to be.
    pub(crate) to: &'m IdMappings,
}

impl Shift<'_> {
    /// The new ids of a file. Root stays root even where the old mappings leave it out; where the new ones map a single
    /// id, everybody becomes that one.
    fn ids(&self, old: IdPair, path: &[u8]) -> Result<IdPair> {
        let container = match old {
            IdPair { uid: 0, gid: 0 } => old,
            _ => self.from.to_container(old, path)?,
        };
        let single = |ranges: &[IdRange]| matches!(ranges, [only] if only.size == 1);
        let (squash_uid, squash_gid) = (single(&self.to.uids), single(&self.to.gids));
        let root = if squash_uid || squash_gid { self.to.root()? } else { container };
        let asked =
            IdPair { uid: if squash_uid { 0 } else { container.uid }, gid: if squash_gid { 0 } else { container.gid } };
        let one_by_one = IdMappings {
            uids: if squash_uid { Vec::new() } else { self.to.uids.clone() },
            gids: if squash_gid { Vec::new() } else { self.to.gids.clone() },
        };
        let mapped = one_by_one.to_host(asked, path)?;
        Ok(IdPair {
            uid: if squash_uid { root.uid } else { mapped.uid },
            gid: if squash_gid { root.gid } else { mapped.gid },
        })
    }

    /// A capability of version 3 names the root of the namespace it is valid in, in its last four bytes
    /// (`struct vfs_ns_cap_data` of include/uapi/linux/capability.h, little-endian).
    fn capability(&self, mut value: Vec<u8>, path: &[u8]) -> Result<Vec<u8>> {
        if value.len() == 24
            && value.get(3) == Some(&3)
            && let Some(field) = value.get_mut(20..24)
            && let Ok(bytes) = <[u8; 4]>::try_from(&*field)
        {
            let root = self.ids(IdPair { uid: u32::from_le_bytes(bytes), gid: 0 }, path)?;
            field.copy_from_slice(&root.uid.to_le_bytes());
        }
        Ok(value)
    }
}

/// Re-owns everything below `root`, and `root` itself, which goes to the root of the new mappings. Modes with setuid and
/// setgid, capabilities, times and hard links stay as they are.
///
/// The whole tree is looked through first, so that an id that cannot be mapped is an error that changes nothing. A crash
/// in between leaves a tree with owners of both kinds: it can only be thrown away.
pub(crate) fn shift_owners(root: BorrowedFd<'_>, shift: Shift<'_>) -> Result<()> {
    for_each(root, |_, stat, path| shift.ids(owner(stat), path).map(drop))?;
    for_each(root, |descent, stat, path| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let (old, new) = (owner(stat), shift.ids(owner(stat), path)?);
        if old == new { Ok(()) } else { change(descent.directory()?, name, stat, new, shift, path) }
    })?;
    let failed = |error: Errno| Error::io("change the owner of", b".".as_slice(), error);
    let new = shift.to.root()?;
    let mode = graph_sys::fs::fstat(root).map_err(failed)?.st_mode;
    graph_sys::fs::fchown(root, Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(new.gid))).map_err(failed)?;
    graph_sys::fs::fchmod(root, Mode::from_raw_mode(mode & 0o7777)).map_err(failed)
}

fn change(
    directory: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    new: IdPair,
    shift: Shift<'_>,
    path: &[u8],
) -> Result<()> {
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    // A change of owner takes setuid, setgid and capabilities away.
    let capability = if file {
        xattr::get_at(directory, name, CAPABILITY).map_err(failed("read the capabilities of"))?
    } else {
        None
    };
    chownat(directory, name, Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(new.gid)), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("change the owner of"))?;
    let mode = stat.st_mode & 0o7777;
    if mode & 0o6000 != 0 && FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed("set the mode of"))?;
    }
    if let Some(value) = capability {
        let value = shift.capability(value, path)?;
        xattr::set_at(directory, name, CAPABILITY, &value, SetMode::CreateOrReplace)
            .map_err(failed("set the capabilities of"))?;
    }
    Ok(())
}

fn owner(stat: &Stat) -> IdPair {
    IdPair { uid: stat.st_uid, gid: stat.st_gid }
}

/// Calls `action` for every inode below the root once, with its directory as the current one; a directory comes before
/// what is in it.
fn for_each(root: BorrowedFd<'_>, mut action: impl FnMut(&Descent, &Stat, &[u8]) -> Result<()>) -> Result<()> {
    let mut linked = HashSet::new();
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(root)?;
    let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> = vec![descent.list(&mut buffer)?.into_iter()];
    while let Some(level) = waiting.last_mut() {
        let Some(entry) = level.next() else {
            waiting.pop();
            descent.leave()?;
            continue;
        };
        let path = descent.join(&entry.name);
        let stat = statat(descent.directory()?, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io("stat", path.as_slice(), error))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // A second name of an inode must not shift it twice.
        if directory || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
            action(&descent, &stat, &path)?;
        }
        if directory {
            descent.enter(&entry.name)?;
            waiting.push(descent.list(&mut buffer)?.into_iter());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests work in directories of their own")]

    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

    use super::*;

    fn mappings(ranges: &[(u32, u32, u32)]) -> IdMappings {
        let ranges: Vec<_> =
            ranges.iter().map(|&(container_id, host_id, size)| IdRange { container_id, host_id, size }).collect();
        IdMappings { uids: ranges.clone(), gids: ranges }
    }

    /// Version 3, effective, `cap_net_raw`, valid below the namespace whose root is `root`.
    fn capability(root: u32) -> Vec<u8> {
        let mut value = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        value.extend_from_slice(&root.to_le_bytes());
        value
    }

    #[test]
    fn one_mapping_after_the_other() {
        let identity = mappings(&[]);
        let (from, to) = (mappings(&[(0, 1000, 100)]), mappings(&[(0, 5000, 50), (50, 9000, 50)]));
        let pair = |uid, gid| IdPair { uid, gid };
        let shift = Shift { from: &from, to: &to };
        assert_eq!(shift.ids(pair(1001, 1060), b"x").unwrap(), pair(5001, 9010));
        assert_eq!(shift.ids(pair(0, 0), b"x").unwrap(), pair(5000, 5000), "unmapped root stays root");
        assert_eq!(shift.ids(pair(999, 1000), b"x").unwrap_err().kind(), graph_archive::ErrorKind::Unmapped);
        let back = Shift { from: &to, to: &from };
        assert_eq!(back.ids(pair(5001, 9010), b"x").unwrap(), pair(1001, 1060));
        let single = mappings(&[(0, 1234, 1)]);
        let squash = Shift { from: &identity, to: &single };
        assert_eq!(squash.ids(pair(33, 44), b"x").unwrap(), pair(1234, 1234));
        let half = IdMappings { uids: single.uids.clone(), gids: Vec::new() };
        assert_eq!(Shift { from: &identity, to: &half }.ids(pair(33, 44), b"x").unwrap(), pair(1234, 44));
        let nothing = Shift { from: &identity, to: &identity };
        assert_eq!(nothing.ids(pair(33, 44), b"x").unwrap(), pair(33, 44));
    }

    #[test]
    fn everything_but_the_owner_stays() {
        if !graph_sys::process::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("dir/sub")).unwrap();
        fs::write(at("dir/file"), "content").unwrap();
        fs::hard_link(at("dir/file"), at("link")).unwrap();
        symlink("dir/file", at("symlink")).unwrap();
        lchown(at("dir/file"), Some(1), Some(2)).unwrap();
        lchown(at("symlink"), Some(3), Some(4)).unwrap();
        lchown(at("dir/sub"), Some(5), Some(6)).unwrap();
        fs::set_permissions(at("dir/file"), PermissionsExt::from_mode(0o6755)).unwrap();
        fs::set_permissions(at("dir/sub"), PermissionsExt::from_mode(0o2700)).unwrap();
        fs::set_permissions(at(""), PermissionsExt::from_mode(0o2711)).unwrap();
        xattr::set_at(
            graph_sys::fs::CWD,
            at("dir/file").as_os_str().as_encoded_bytes(),
            CAPABILITY,
            &capability(7),
            SetMode::Create,
        )
        .unwrap();
        let before = fs::metadata(at("dir/file")).unwrap();

        let (identity, shifted) = (mappings(&[]), mappings(&[(0, 100_000, 65_536)]));
        let root = File::open(temp.path()).unwrap();
        shift_owners(root.as_fd(), Shift { from: &identity, to: &shifted }).unwrap();

        let owner = |name: &str| {
            let stat = fs::symlink_metadata(at(name)).unwrap();
            (stat.uid(), stat.gid(), stat.mode() & 0o7777)
        };
        assert_eq!(owner("dir/file"), (100_001, 100_002, 0o6755));
        assert_eq!(owner("symlink"), (100_003, 100_004, 0o777));
        assert_eq!(owner("dir/sub"), (100_005, 100_006, 0o2700));
        assert_eq!(owner(""), (100_000, 100_000, 0o2711));
        let after = fs::metadata(at("link")).unwrap();
        assert_eq!((after.ino(), after.nlink(), after.mtime_nsec()), (before.ino(), 2, before.mtime_nsec()));
        let value = xattr::get_at(graph_sys::fs::CWD, at("link").as_os_str().as_encoded_bytes(), CAPABILITY).unwrap();
        assert_eq!(value, Some(capability(100_007)));

        // An id that cannot be mapped is found before anything is changed.
        lchown(at("symlink"), Some(70), Some(70)).unwrap();
        let error = shift_owners(root.as_fd(), Shift { from: &shifted, to: &identity }).unwrap_err();
        assert_eq!(error.to_string(), "host ID 70 cannot be mapped to a container ID (entry \"symlink\")");
        assert_eq!(owner("dir/file"), (100_001, 100_002, 0o6755));
    }
}
