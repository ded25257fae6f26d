//! Whom the directories above a mount belong to: a container with id mappings can only reach its root where those owners
//! let it pass.

use std::path::Path;

use graph_archive::idmap::IdRange;

use crate::error::{Error, Result};
use crate::store::Store;

/// Owners of directories that a layer's id mappings do not cover, as host ids, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentOwners {
    /// User ids.
    pub uids: Vec<u32>,
    /// Group ids.
    pub gids: Vec<u32>,
}

fn covers(ranges: &[IdRange], host: u32) -> bool {
    // Without ranges every id is itself.
    ranges.is_empty()
        || ranges.iter().any(|range| host.checked_sub(range.host_id).is_some_and(|offset| offset < range.size))
}

/// Parents' owners.
impl Store {
    /// The owners of the directories above the mount point of a layer, or of a container's layer, that its mappings do not
    /// cover. Without mappings there are none.
    ///
    /// # Errors
    /// [`Error::LayerNotKnown`]; [`Error::LayerNotMounted`] for one with mappings; I/O.
    #[doc(alias = "LayerParentOwners")]
    #[doc(alias = "ContainerParentOwners")]
    pub fn parent_owners(&self, layer_or_container: &str) -> Result<ParentOwners> {
        let id = match self.container(layer_or_container) {
            Ok(container) => container.layer.clone(),
            Err(Error::ContainerNotKnown { .. }) => layer_or_container.to_owned(),
            Err(error) => return Err(error),
        };
        let layer = self.layer(&id)?;
        let mappings = layer.mappings();
        let mut owners = ParentOwners::default();
        if mappings.is_identity() {
            return Ok(owners);
        }
        let not_mounted = || Error::LayerNotMounted { id: layer.id.clone() };
        let mount_point = self.mount_point(&layer.id)?.ok_or_else(not_mounted)?;
        // Not the root of all: everybody may pass that.
        let above = mount_point.ancestors().skip(1).filter(|dir| *dir != Path::new("/") && *dir != Path::new(""));
        for dir in above {
            let stat = graph_sys::fs::stat(dir).map_err(|e| Error::io("look up", dir, e))?;
            if !covers(&mappings.uids, stat.st_uid) {
                owners.uids.push(stat.st_uid);
            }
            if !covers(&mappings.gids, stat.st_gid) {
                owners.gids.push(stat.st_gid);
            }
        }
        for ids in [&mut owners.uids, &mut owners.gids] {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok(owners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_what_is_in_them() {
        let range = |host_id, size| IdRange { container_id: 0, host_id, size };
        let ranges = [range(1000, 10), range(u32::MAX - 1, 2)];
        for (host, covered) in [(999, false), (1000, true), (1009, true), (1010, false), (u32::MAX, true), (0, false)] {
            assert_eq!(covers(&ranges, host), covered, "{host}");
        }
        assert!(covers(&[], 7));
    }
}
