//! What a layer changed: read from its own directory, whose marks are those of archives, or, against anything but the layer
//! below it, found by comparing whole trees.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_archive::changes::{AufsTree, ChangeSet, Tree, aufs_branch, compare};
use graph_archive::pack::{PackOptions, WhiteoutSource, pack_changes, pack_tree};
use graph_core::driver::{DiffReport, DiffRequest};
use graph_core::{Error, LayerId, Result};

use super::driver::Aufs;
use super::flush::flush;
use super::reown::is_reowned;
use crate::support::context::{ArchiveContext, Context};
use crate::support::counted::Counted;

/// The two states of a request.
enum Sides {
    /// The layer's own directory and those below it.
    Native {
        upper: OwnedFd,
        lowers: Vec<OwnedFd>,
        /// The directory also holds what the layer inherits, with other owners.
        reowned: bool,
    },
    /// Whole trees; `old` is `None` for nothing.
    Naive { new: OwnedFd, old: Option<OwnedFd> },
}

impl Aufs {
    fn sides(&self, request: &DiffRequest<'_>) -> Result<Sides> {
        let chain = self.home.parents(request.id)?;
        if let Some(parent) = request.parent
            && !self.home.has(parent)?
        {
            return Err(Error::LayerUnknown { id: parent.clone() });
        }
        let upper = self.home.open_diff(request.id)?;
        self.settle(request.id, &chain, &upper)?;
        if chain.first() == request.parent {
            let reowned =
                is_reowned(&upper).at("read the attributes of", self.home.diff_path(request.id), Some(request.id))?;
            return Ok(Sides::Native { lowers: self.home.open_chain(request.id, &chain)?, upper, reowned });
        }
        let new = self.look_into(request.id)?;
        let old = request.parent.map(|parent| self.look_into(parent)).transpose()?;
        Ok(Sides::Naive { new, old })
    }

    /// While the layer is mounted its directory may lack names of files that have several.
    fn settle(&self, id: &LayerId, chain: &[LayerId], upper: &OwnedFd) -> Result<()> {
        let target = self.home.mount_path(id);
        if chain.is_empty() || self.kernel.is_err() {
            return Ok(());
        }
        if self.mounter.is_mounted(&target).at("look at the mount point", &target, Some(id))? {
            flush(&target, upper).at("make the hard links whole of", &target, Some(id))?;
        }
        Ok(())
    }

    /// The archive of the changes.
    pub(super) fn write_diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
        let mut out = Counted { out, bytes: 0 };
        let options =
            |whiteouts| PackOptions { mappings: request.mappings.clone(), whiteouts, ..PackOptions::default() };
        let report = match self.sides(request)? {
            Sides::Native { upper, reowned: false, .. } => {
                pack_tree(upper.as_fd(), &mut out, &options(WhiteoutSource::Aufs))
            }
            Sides::Native { upper, lowers, reowned: true } => branch(request, &upper, &lowers)
                .and_then(|set| pack_changes(upper.as_fd(), &set.changes, &mut out, &options(WhiteoutSource::None))),
            Sides::Naive { new, old: None } => pack_tree(new.as_fd(), &mut out, &options(WhiteoutSource::None)),
            Sides::Naive { new, old } => trees(request, &new, old.as_ref())
                .and_then(|set| pack_changes(new.as_fd(), &set.changes, &mut out, &options(WhiteoutSource::None))),
        }
        .of_layer(request.id)?;
        Ok(DiffReport { bytes: out.bytes, notices: report.notices })
    }

    /// The changes, and their size.
    pub(super) fn change_set(&self, request: &DiffRequest<'_>) -> Result<ChangeSet> {
        match self.sides(request)? {
            Sides::Native { upper, lowers, .. } => branch(request, &upper, &lowers),
            Sides::Naive { new, old } => trees(request, &new, old.as_ref()),
        }
        .of_layer(request.id)
    }
}

fn branch(request: &DiffRequest<'_>, upper: &OwnedFd, lowers: &[OwnedFd]) -> graph_archive::Result<ChangeSet> {
    let lowers: Vec<BorrowedFd<'_>> = lowers.iter().map(AsFd::as_fd).collect();
    aufs_branch(AufsTree {
        upper: upper.as_fd(),
        upper_mappings: request.mappings,
        lowers: &lowers,
        lower_mappings: request.parent_mappings,
    })
}

fn trees(request: &DiffRequest<'_>, new: &OwnedFd, old: Option<&OwnedFd>) -> graph_archive::Result<ChangeSet> {
    let old = old.map(|old| Tree { root: old.as_fd(), mappings: request.parent_mappings });
    compare(old, Tree { root: new.as_fd(), mappings: request.mappings })
}
