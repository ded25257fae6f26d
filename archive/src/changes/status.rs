//! What is compared of an object.

use std::collections::HashSet;
use std::os::fd::AsFd;

use graph_sys::fs::{self, FileType};
use graph_sys::io::Errno;
use graph_sys::statx::{self, Metadata, Time};
use graph_sys::xattr;

use super::{Change, ChangeKind, ChangeSet};
use crate::apply::XattrNamespace;
use crate::error::{Error, Result};
use crate::idmap::{IdMappings, IdPair};
use crate::owners::{CAPABILITY, capability_root, set_capability_root};
use crate::walk::join;

/// All about the object `name` in `directory`; `None` if there is none (any more).
pub(super) fn status(directory: impl AsFd, name: &[u8], parent: &[u8]) -> Result<Option<Metadata>> {
    match statx::metadata(directory, name) {
        Ok(status) => Ok(Some(status)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(Error::io("stat", join(parent, name), error)),
    }
}

/// Where an object is, how its owner is to be understood, and which of its attributes are an overlay's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<'a, Fd> {
    pub(super) directory: Fd,
    pub(super) status: &'a Metadata,
    pub(super) mappings: &'a IdMappings,
    pub(super) namespace: Option<XattrNamespace>,
}

/// Whether two objects of one name differ. `parent` is the path of the directory that they are in, for errors.
pub(super) fn differ<A: AsFd, B: AsFd>(
    old: &Object<'_, A>,
    new: &Object<'_, B>,
    parent: &[u8],
    name: &[u8],
) -> Result<bool> {
    let (a, b) = (old.status, new.status);
    if a.file_type != b.file_type
        || a.mode != b.mode
        || owner(old) != owner(new)
        || !same_time(a.mtime, b.mtime)
        || (a.file_type != FileType::Directory && a.size != b.size)
    {
        return Ok(true);
    }
    match a.file_type {
        FileType::CharacterDevice | FileType::BlockDevice if a.node_device != b.node_device => return Ok(true),
        FileType::Symlink => {
            let failed = |error| Error::io("read link", join(parent, name), error);
            let old_target = fs::readlinkat(&old.directory, name, Vec::new()).map_err(failed)?;
            let new_target = fs::readlinkat(&new.directory, name, Vec::new()).map_err(failed)?;
            if old_target != new_target {
                return Ok(true);
            }
        }
        _ => {}
    }
    Ok(attributes(old, parent, name)? != attributes(new, parent, name)?)
}

/// The owner inside the container; the host's where the mappings do not tell.
fn owner<Fd>(object: &Object<'_, Fd>) -> (u32, u32) {
    let pair = IdPair { uid: object.status.uid, gid: object.status.gid };
    let pair = object.mappings.to_container(pair, b"").unwrap_or(pair);
    (pair.uid, pair.gid)
}

fn same_time(a: Time, b: Time) -> bool {
    a.seconds == b.seconds && (a.nanoseconds == b.nanoseconds || a.nanoseconds == 0 || b.nanoseconds == 0)
}

/// Capabilities and `user.` attributes as users see them, sorted.
fn attributes<Fd: AsFd>(object: &Object<'_, Fd>, parent: &[u8], name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let failed = |error| Error::io("read attributes of", join(parent, name), error);
    let names = match xattr::list_at(&object.directory, name) {
        Ok(names) => names,
        // More than the kernel can list: nobody can read them, so nobody can tell.
        Err(Errno::TOOBIG) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut all = Vec::new();
    for stored in names.iter() {
        let Some(seen) = seen_name(stored, object.namespace) else { continue };
        if let Some(mut value) = xattr::get_at(&object.directory, name, stored).map_err(failed)? {
            // It names a user, as an owner does.
            if seen == CAPABILITY
                && let Some(root) = capability_root(&value)
                && let Ok(root) = object.mappings.user_to_container(root, b"")
            {
                set_capability_root(&mut value, root);
            }
            all.push((seen, value));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// The name under which an attribute is seen through the overlay mount, if it is one that is compared.
pub(super) fn seen_name(stored: &[u8], namespace: Option<XattrNamespace>) -> Option<Vec<u8>> {
    if stored == CAPABILITY {
        return Some(stored.to_vec());
    }
    if !stored.starts_with(b"user.") {
        return None;
    }
    match (namespace, stored.strip_prefix(b"user.overlay.")) {
        // The overlay's own; `user.overlay.overlay.x` is a `user.overlay.x` of a user, escaped.
        (Some(XattrNamespace::User), Some(own)) => {
            own.strip_prefix(b"overlay.").map(|rest| [b"user.overlay.", rest].concat())
        }
        _ => Some(stored.to_vec()),
    }
}

/// Collects changes and their size.
#[derive(Debug, Default)]
pub(super) struct Collector {
    set: ChangeSet,
    inodes: HashSet<(u64, u64)>,
}

impl Collector {
    /// Notes a change of `name` in the directory of path `parent`; `status` is the new object's.
    pub(super) fn push(&mut self, kind: ChangeKind, parent: &[u8], name: &[u8], status: Option<&Metadata>) {
        if let Some(status) = status.filter(|status| status.file_type != FileType::Directory)
            && (status.links < 2 || self.inodes.insert((status.device, status.inode)))
        {
            self.set.size = self.set.size.saturating_add(status.size);
        }
        self.push_path(kind, [b"/", join(parent, name).as_slice()].concat());
    }

    /// Notes a directory that is not different but has changes in it.
    pub(super) fn push_path(&mut self, kind: ChangeKind, path: Vec<u8>) {
        self.set.changes.push(Change { path, kind });
    }

    pub(super) fn finish(mut self) -> ChangeSet {
        self.set.changes.sort_unstable();
        self.set
    }
}
