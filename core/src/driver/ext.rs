//! Conveniences on every driver. Nothing here does what the trait's own methods do not.

use graph_archive::changes::Change;
use graph_archive::idmap::IdMappings;

use super::{ApplyDiffOptions, DiffReport, DiffRequest, Driver, GetOptions, Mounted};
use crate::error::{Error, Result};
use crate::id::LayerId;

/// Short forms of [`Driver`]'s methods. Implemented for every driver; do not implement it.
pub trait DriverExt: Driver {
    /// Mounts a layer for reading only.
    ///
    /// # Errors
    /// Those of [`Driver::get`].
    fn mount_read_only(&self, id: &LayerId) -> Result<Mounted<'_>> {
        self.get(id, &GetOptions { options: vec!["ro".to_owned()], ..GetOptions::default() })
    }

    /// Mounts a layer for reading and writing, with the configured options.
    ///
    /// # Errors
    /// Those of [`Driver::get`].
    fn mount(&self, id: &LayerId) -> Result<Mounted<'_>> {
        self.get(id, &GetOptions::default())
    }

    /// Fails with [`Error::LayerUnknown`] unless there is such a layer.
    ///
    /// # Errors
    /// Also those of [`Driver::exists`].
    fn require(&self, id: &LayerId) -> Result<()> {
        if self.exists(id)? { Ok(()) } else { Err(Error::LayerUnknown { id: id.clone() }) }
    }

    /// The diff in memory: for small layers and tests. Ids are not mapped.
    ///
    /// # Errors
    /// Those of [`Driver::diff`].
    fn diff_to_vec(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<(Vec<u8>, DiffReport)> {
        let mut out = Vec::new();
        let report = self.diff(&DiffRequest::unmapped(id, parent), &mut out)?;
        Ok((out, report))
    }

    /// The changes, ids not mapped.
    ///
    /// # Errors
    /// Those of [`Driver::changes`].
    fn changes_to(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<Change>> {
        self.changes(&DiffRequest::unmapped(id, parent))
    }

    /// Puts an archive in memory into a layer, with the default options.
    ///
    /// # Errors
    /// Those of [`Driver::apply_diff`].
    fn apply_slice(
        &self,
        id: &LayerId,
        parent: Option<&LayerId>,
        mut archive: &[u8],
    ) -> Result<graph_archive::apply::ApplyReport> {
        self.apply_diff(id, parent, &mut archive, &mut ApplyDiffOptions::default())
    }
}

impl<D: Driver + ?Sized> DriverExt for D {}

impl<'r> DiffRequest<'r> {
    /// The difference between two layers as their ids are on disk, without a label.
    #[must_use]
    pub fn unmapped(id: &'r LayerId, parent: Option<&'r LayerId>) -> Self {
        const IDENTITY: &IdMappings = &IdMappings { uids: Vec::new(), gids: Vec::new() };
        DiffRequest { id, mappings: IDENTITY, parent, parent_mappings: IDENTITY, mount_label: "" }
    }
}
