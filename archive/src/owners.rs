//! Taking what a tree says of ids from one mapping to another: owners, the root that a capability is valid for, and the
//! users and groups of access lists.

use crate::attribute_ids;
use crate::error::Result;
use crate::idmap::{IdMappings, IdPair, IdRange};

/// What ids become that the new mappings have no place for: the kernel's overflow id (`/proc/sys/kernel/overflowuid`, its
/// default), as in containers/storage.
pub const OVERFLOW: u32 = 65_534;

/// `security.capability`
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// A change of owners: from the ids on disk to the container's, and from there to other ids on disk.
///
/// Root (0:0 on disk) stays root even where the old mappings leave it out. New mappings with a single range of one id give
/// everything to that id. Container ids that the new mappings leave out become [`OVERFLOW`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerShift {
    /// Mappings of the ids on disk now.
    from: IdMappings,
    /// Mappings of those to be.
    to: IdMappings,
    /// Ids that the old mappings leave out are no error.
    any_source: bool,
}

impl OwnerShift {
    /// From the ids of one mapping to those of another.
    #[must_use]
    pub fn new(from: IdMappings, to: IdMappings) -> Self {
        Self { from, to, any_source: false }
    }

    /// The same for files of which some may have ids that the old mappings do not cover, because nobody sees them: they
    /// get [`OVERFLOW`] too, instead of an error.
    #[must_use]
    pub fn of_hidden_files(self) -> Self {
        Self { any_source: true, ..self }
    }

    /// Whether every id stays as it is.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.from == self.to
    }

    /// The new owner of an object. `path` is for the error.
    ///
    /// # Errors
    /// [`crate::Error::Unmapped`] for an id on disk that the old mappings do not cover.
    pub fn owner(&self, old: IdPair, path: &[u8]) -> Result<IdPair> {
        if self.is_identity() {
            return Ok(old);
        }
        let container = match old {
            IdPair { uid: 0, gid: 0 } => old,
            _ => match self.from.to_container(old, path) {
                Err(_) if self.any_source => return Ok(IdPair { uid: OVERFLOW, gid: OVERFLOW }),
                other => other?,
            },
        };
        Ok(IdPair { uid: to_host(&self.to.uids, container.uid), gid: to_host(&self.to.gids, container.gid) })
    }

    /// The new owner, or root's where the old mappings do not cover the old one: never an error.
    #[must_use]
    pub fn owner_or_root(&self, old: IdPair) -> IdPair {
        self.owner(old, b"").unwrap_or(IdPair { uid: to_host(&self.to.uids, 0), gid: to_host(&self.to.gids, 0) })
    }

    /// Whether a new owner is [`OVERFLOW`] because the new mappings have no place for what it was.
    #[must_use]
    pub fn is_left_out(&self, new: IdPair) -> bool {
        let has = |ranges: &[IdRange]| {
            let inside =
                |range: &IdRange| OVERFLOW.checked_sub(range.host_id).is_some_and(|offset| offset < range.size);
            ranges.is_empty() || ranges.iter().any(inside)
        };
        (new.uid == OVERFLOW && !has(&self.to.uids)) || (new.gid == OVERFLOW && !has(&self.to.gids))
    }

    /// The new value of an extended attribute, if it has ids in it: capabilities of version 3 name the root of the user
    /// namespace that they are valid in, access lists name users and groups. Values that are not understood stay.
    ///
    /// # Errors
    /// As [`OwnerShift::owner`].
    pub fn attribute(&self, key: &[u8], value: Vec<u8>, path: &[u8]) -> Result<Vec<u8>> {
        if self.is_identity() {
            return Ok(value);
        }
        // The two sides are looked up apart: who is named in an attribute need not be a pair that owns a file.
        attribute_ids::shift(key, &value, &|pair| {
            Ok(IdPair { uid: self.user(pair.uid, path)?, gid: self.group(pair.gid, path)? })
        })
    }

    fn user(&self, id: u32, path: &[u8]) -> Result<u32> {
        let users = Self {
            from: IdMappings { uids: self.from.uids.clone(), gids: Vec::new() },
            to: IdMappings { uids: self.to.uids.clone(), gids: Vec::new() },
            any_source: self.any_source,
        };
        Ok(users.owner(IdPair { uid: id, gid: 0 }, path)?.uid)
    }

    fn group(&self, id: u32, path: &[u8]) -> Result<u32> {
        let groups = Self {
            from: IdMappings { uids: Vec::new(), gids: self.from.gids.clone() },
            to: IdMappings { uids: Vec::new(), gids: self.to.gids.clone() },
            any_source: self.any_source,
        };
        Ok(groups.owner(IdPair { uid: 0, gid: id }, path)?.gid)
    }
}

/// A container's id on disk; everything is squashed to a single range of one id.
fn to_host(ranges: &[IdRange], id: u32) -> u32 {
    if let [only] = ranges
        && only.size == 1
    {
        return only.host_id;
    }
    let mappings = IdMappings { uids: ranges.to_vec(), gids: Vec::new() };
    mappings.to_host(IdPair { uid: id, gid: 0 }, b"").map_or(OVERFLOW, |pair| pair.uid)
}

/// The user id of the root of the namespace that a capability is valid in: the last four bytes of one of version 3
/// (`struct vfs_ns_cap_data` of include/uapi/linux/capability.h, little-endian). Older versions have none.
pub(crate) fn capability_root(value: &[u8]) -> Option<u32> {
    let (rest, root) = value.split_last_chunk::<4>()?;
    (rest.len() == 20 && rest.get(3) == Some(&3)).then(|| u32::from_le_bytes(*root))
}

pub(crate) fn set_capability_root(value: &mut [u8], root: u32) {
    if let Some((_, field)) = value.split_last_chunk_mut::<4>() {
        *field = root.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mappings(ranges: &[(u32, u32, u32)]) -> IdMappings {
        let ranges: Vec<_> =
            ranges.iter().map(|&(container_id, host_id, size)| IdRange { container_id, host_id, size }).collect();
        IdMappings { uids: ranges.clone(), gids: ranges }
    }

    fn pair(uid: u32, gid: u32) -> IdPair {
        IdPair { uid, gid }
    }

    #[test]
    fn one_mapping_after_the_other() {
        let identity = mappings(&[]);
        let (from, to) = (mappings(&[(0, 1000, 100)]), mappings(&[(0, 5000, 50), (50, 9000, 50)]));
        let shift = OwnerShift::new(from.clone(), to.clone());
        assert_eq!(shift.owner(pair(1001, 1060), b"x").unwrap(), pair(5001, 9010));
        assert_eq!(shift.owner(pair(0, 0), b"x").unwrap(), pair(5000, 5000), "unmapped root stays root");
        let error = shift.owner(pair(999, 1000), b"x").unwrap_err();
        assert_eq!(error.to_string(), "host ID 999 cannot be mapped to a container ID (entry \"x\")");
        assert_eq!(shift.owner_or_root(pair(999, 1000)), pair(5000, 5000));
        assert_eq!(shift.of_hidden_files().owner(pair(999, 1000), b"x").unwrap(), pair(OVERFLOW, OVERFLOW));
        assert_eq!(OwnerShift::new(to, from).owner(pair(5001, 9010), b"x").unwrap(), pair(1001, 1060));

        let single = mappings(&[(0, 1234, 1)]);
        let squash = OwnerShift::new(identity.clone(), single.clone());
        assert_eq!(squash.owner(pair(33, 44), b"x").unwrap(), pair(1234, 1234));
        let half = IdMappings { uids: single.uids, gids: Vec::new() };
        assert_eq!(OwnerShift::new(identity.clone(), half).owner(pair(33, 44), b"x").unwrap(), pair(1234, 44));
        assert_eq!(OwnerShift::default().owner(pair(33, 44), b"x").unwrap(), pair(33, 44));

        // Far up, where signed numbers would be negative; and what there is no room for.
        let high = OwnerShift::new(identity, mappings(&[(0, 4_294_836_224, 106)]));
        assert_eq!(high.owner(pair(105, 106), b"x").unwrap(), pair(4_294_836_329, OVERFLOW));
    }

    /// Version 3, effective, `cap_net_raw`, valid below the namespace whose root is `root`.
    fn capability(root: u32) -> Vec<u8> {
        let mut value = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        value.extend_from_slice(&root.to_le_bytes());
        value
    }

    #[test]
    fn ids_in_attributes() {
        let shift = OwnerShift::new(mappings(&[]), mappings(&[(0, 100_000, 65_536)]));
        assert_eq!(shift.attribute(CAPABILITY, capability(7), b"x").unwrap(), capability(100_007));
        // Version 2 has no such id.
        let old = vec![1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(shift.attribute(CAPABILITY, old.clone(), b"x").unwrap(), old);
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[6, 0], &id.to_le_bytes()].concat();
        let list = |user, group| {
            [&[2, 0, 0, 0][..], &entry(1, u32::MAX), &entry(2, user), &entry(8, group), &entry(0x20, u32::MAX)].concat()
        };
        for key in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
            assert_eq!(shift.attribute(key, list(33, 44), b"x").unwrap(), list(100_033, 100_044));
        }
        assert_eq!(shift.attribute(b"user.x", list(33, 44), b"x").unwrap(), list(33, 44));
        for damaged in [&b""[..], b"\x02\0", b"\x02\0\0\0\x02\0\0"] {
            assert_eq!(shift.attribute(b"system.posix_acl_access", damaged.to_vec(), b"x").unwrap(), damaged);
        }
    }
}
