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
