//! User and group id mappings between a container and the host.

use serde::{Deserialize, Serialize};

use crate::error::{Error, IdSide, Result};

/// One range of a mapping, in the words of containers/storage's JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside the container.
    pub container_id: u32,
    /// First id on the host.
    pub host_id: u32,
    /// Number of ids.
    pub size: u32,
}

/// The mappings of user and group ids. Empty means identity, in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMappings {
    /// Ranges of user ids; the first that covers an id wins.
    #[serde(rename = "uidmap", default)]
    pub uids: Vec<IdRange>,
    /// Ranges of group ids; the first that covers an id wins.
    #[serde(rename = "gidmap", default)]
    pub gids: Vec<IdRange>,
}

/// An owner and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdPair {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

fn map(ranges: &[IdRange], id: u32, from: IdSide) -> Option<u32> {
    if ranges.is_empty() {
        return Some(id);
    }
    // 64-bit arithmetic: a range may end at the very last id, and hostile ones claim to pass it.
    ranges.iter().find_map(|range| {
        let (base, other) = match from {
            IdSide::Container => (range.container_id, range.host_id),
            IdSide::Host => (range.host_id, range.container_id),
        };
        let offset = u64::from(id).checked_sub(u64::from(base))?;
        if offset >= u64::from(range.size) {
            return None;
        }
        u32::try_from(u64::from(other).checked_add(offset)?).ok()
    })
}

impl IdMappings {
    /// Whether nothing is mapped at all.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The host's ids for a container's.
    ///
    /// # Errors
    /// [`Error::Unmapped`] naming `entry` when an id is not covered.
    pub fn to_host(&self, pair: IdPair, entry: &[u8]) -> Result<IdPair> {
        self.shift(pair, IdSide::Container, entry)
    }

    /// The container's ids for the host's.
    ///
    /// # Errors
    /// [`Error::Unmapped`] naming `entry` when an id is not covered.
    pub fn to_container(&self, pair: IdPair, entry: &[u8]) -> Result<IdPair> {
        self.shift(pair, IdSide::Host, entry)
    }

    /// The container's user id for the host's.
    ///
    /// # Errors
    /// As [`IdMappings::to_container`].
    pub fn user_to_container(&self, uid: u32, entry: &[u8]) -> Result<u32> {
        let unmapped = || Error::Unmapped { id: uid, from: IdSide::Host, entry: entry.to_vec() };
        map(&self.uids, uid, IdSide::Host).ok_or_else(unmapped)
    }

    /// The host's user id for the container's.
    ///
    /// # Errors
    /// As [`IdMappings::to_host`].
    pub fn user_to_host(&self, uid: u32, entry: &[u8]) -> Result<u32> {
        let unmapped = || Error::Unmapped { id: uid, from: IdSide::Container, entry: entry.to_vec() };
        map(&self.uids, uid, IdSide::Container).ok_or_else(unmapped)
    }

    fn shift(&self, pair: IdPair, from: IdSide, entry: &[u8]) -> Result<IdPair> {
        let one = |ranges: &[IdRange], id| {
            map(ranges, id, from).ok_or_else(|| Error::Unmapped { id, from, entry: entry.to_vec() })
        };
        Ok(IdPair { uid: one(&self.uids, pair.uid)?, gid: one(&self.gids, pair.gid)? })
    }

    /// The host's ids of the container's root: 0:0 mapped, or, where a side has exactly one range of size 1, that
    /// range's host id (everything is squashed to it).
    ///
    /// # Errors
    /// [`Error::Unmapped`] when the mappings leave out id 0.
    pub fn root(&self) -> Result<IdPair> {
        let squash = |ranges: &[IdRange]| match ranges {
            [only] if only.size == 1 => Some(only.host_id),
            _ => None,
        };
        let (uid, gid) = (squash(&self.uids), squash(&self.gids));
        let one = |ranges: &[IdRange], squashed: Option<u32>| {
            squashed.or_else(|| map(ranges, 0, IdSide::Container)).ok_or_else(|| Error::Unmapped {
                id: 0,
                from: IdSide::Container,
                entry: b"/".to_vec(),
            })
        };
        Ok(IdPair { uid: one(&self.uids, uid)?, gid: one(&self.gids, gid)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_ends_at_the_last_id_does_not_wrap() {
        let range = IdRange { container_id: 0, host_id: u32::MAX - 1, size: 4 };
        assert_eq!(map(&[range], 1, IdSide::Container), Some(u32::MAX));
        assert_eq!(map(&[range], 2, IdSide::Container), None);
        assert_eq!(map(&[range], u32::MAX, IdSide::Host), Some(1));
    }

    #[test]
    fn the_first_range_that_covers_an_id_wins() {
        let ranges = [
            IdRange { container_id: 0, host_id: 1000, size: 10 },
            IdRange { container_id: 5, host_id: 5000, size: 10 },
        ];
        assert_eq!(map(&ranges, 5, IdSide::Container), Some(1005));
        assert_eq!(map(&ranges, 12, IdSide::Container), Some(5007));
        assert_eq!(map(&ranges, 99, IdSide::Container), None);
    }
}
