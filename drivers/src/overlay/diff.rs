//! What a layer changed: read from its own directory where that tells all, else found by comparing whole trees.
//!
//! The own directory tells all if the kernel leaves neither redirects nor files without data there (the `native-diff`
//! probe) and if the state to compare with is the layer's own parent. Otherwise both trees are mounted, read-only and
//! attached nowhere: no mount point is needed, nobody else's mount is used, and nothing stays behind.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_archive::changes::{ChangeSet, OverlayTree, Tree, compare, overlay_upper};
use graph_archive::pack::{PackOptions, WhiteoutSource, pack_changes, pack_tree};
use graph_core::driver::{DiffReport, DiffRequest};
use graph_core::{LayerId, Result};

use super::driver::Overlay;
use super::layout::{DIFF, Layer};
use crate::support::context::ArchiveContext;
use crate::support::counted::Counted;

/// A layer's own directory and what is below it.
pub(super) struct Parts {
    pub(super) upper: OwnedFd,
    pub(super) lowers: Vec<OwnedFd>,
    /// What the layer inherits has been re-owned together with it.
    pub(super) lowers_follow_upper: bool,
}

/// The two states of a request.
pub(super) enum Sides {
    /// The layer's own directory tells.
    Native(Parts),
    /// Whole trees; `old` is `None` for nothing.
    Naive { new: OwnedFd, old: Option<OwnedFd> },
}

impl Overlay {
    /// Opens what the request compares.
    pub(super) fn sides(&self, request: &DiffRequest<'_>) -> Result<Sides> {
        let layer = self.homes.require(request.id)?;
        let parent = request.parent.map(|id| self.homes.require(id)).transpose()?;
        let chain = self.ready(&layer)?;
        if self.features.native_diff.works && chain.first() == request.parent {
            return self.parts(&layer, &chain).map(Sides::Native);
        }
        let new = self.look_into(&layer)?;
        let old = parent.map(|parent| self.look_into(&parent)).transpose()?;
        Ok(Sides::Naive { new, old })
    }

    fn parts(&self, layer: &Layer<'_>, chain: &[LayerId]) -> Result<Parts> {
        let mut lowers: Vec<OwnedFd> = layer.inherited()?.into_iter().map(|(_, dir)| dir).collect();
        let lowers_follow_upper = !lowers.is_empty();
        lowers.extend(self.open_chain(&layer.id, chain)?);
        Ok(Parts { upper: layer.open(DIFF)?, lowers, lowers_follow_upper })
    }

    /// The archive of the changes.
    pub(super) fn write_diff(&self, request: &DiffRequest<'_>, out: &mut dyn Write) -> Result<DiffReport> {
        let mut out = Counted { out, bytes: 0 };
        let options =
            |whiteouts| PackOptions { mappings: request.mappings.clone(), whiteouts, ..PackOptions::default() };
        let report = match self.sides(request)? {
            Sides::Native(parts) => {
                let lowers = parts.lowers.iter().map(AsFd::as_fd).collect();
                let whiteouts = WhiteoutSource::Overlay { namespace: self.namespace, lowers };
                pack_tree(parts.upper.as_fd(), &mut out, &options(whiteouts))
            }
            Sides::Naive { new, old } => self
                .compare_trees(request, &new, old.as_ref())
                .and_then(|set| pack_changes(new.as_fd(), &set.changes, &mut out, &options(WhiteoutSource::None))),
        }
        .of_layer(request.id)?;
        Ok(DiffReport { bytes: out.bytes, notices: report.notices })
    }

    fn compare_trees(
        &self,
        request: &DiffRequest<'_>,
        new: &OwnedFd,
        old: Option<&OwnedFd>,
    ) -> graph_archive::Result<ChangeSet> {
        let old = old.map(|old| Tree { root: old.as_fd(), mappings: request.parent_mappings });
        compare(old, Tree { root: new.as_fd(), mappings: request.mappings })
    }

    /// The changes, and their size.
    pub(super) fn change_set(&self, request: &DiffRequest<'_>) -> Result<ChangeSet> {
        match self.sides(request)? {
            Sides::Native(parts) => {
                let lowers: Vec<BorrowedFd<'_>> = parts.lowers.iter().map(AsFd::as_fd).collect();
                overlay_upper(parts.tree(&lowers, request, self.namespace))
            }
            Sides::Naive { new, old } => self.compare_trees(request, &new, old.as_ref()),
        }
        .of_layer(request.id)
    }
}

impl Parts {
    pub(super) fn tree<'a>(
        &'a self,
        lowers: &'a [BorrowedFd<'a>],
        request: &'a DiffRequest<'_>,
        namespace: graph_archive::apply::XattrNamespace,
    ) -> OverlayTree<'a> {
        OverlayTree {
            upper: self.upper.as_fd(),
            upper_mappings: request.mappings,
            lowers,
            // What is re-owned hides all that has the parent's owners.
            lower_mappings: if self.lowers_follow_upper { request.mappings } else { request.parent_mappings },
            namespace,
        }
    }
}
