//! Giving a layer, and all that it inherits, to other owners.
//!
//! Files of the layers below belong to those layers and cannot change. So the layer gets copies of their directories,
//! re-owned, as `diff1`, `diff2`, …, which lie between its own `diff` and the layers below and hide these entirely. They
//! are lower directories, so that nothing in them counts as a change of the layer. (Peers get there by changing every
//! owner through a mount and putting the copied-up tree aside as `diff1`; that breaks hard links, and leaves a half
//! re-owned layer after a crash.)
//!
//! The copies share their data with the originals where the file system can, are made in `tempdirs/` without any lock,
//! and appear by one rename: of a new layer, or in exchange for the layer as it was.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use graph_archive::apply::XattrNamespace;
use graph_archive::copy::{CopyOptions, CopyReport, copy_tree};
use graph_archive::idmap::{IdMappings, IdPair};
use graph_archive::owners::OwnerShift;
use graph_core::driver::{CreateOptions, ReownRequest};
use graph_core::{Error, LayerId, Result};
use graph_sys::fs;
use graph_sys::io::Errno;
use graph_sys::xattr::{self, SetMode};

use super::driver::Overlay;
use super::layout::{
    COVERS_ALL, DIFF, EMPTY, Flush, LINK, LOWER, LOWER_LAYERS, Layer, MERGED, Small, WORK, make_dir, own, write_small,
};
use super::mount::not_mounted;
use super::options::SyncMode;
use super::parents::{MAX_LOWERS, missing_lower};
use super::staged::{NewLayer, Staged};
use crate::support::context::{ArchiveContext, Context};
use crate::support::exchange::{exchange, fault};
use crate::support::reowned::warn_of_full_copy;

/// What the new content is made of.
#[derive(Default)]
struct Sources {
    /// The layer's own.
    own: Option<OwnedFd>,
    /// All below it, nearest first.
    below: Vec<Source>,
}

struct Source {
    dir: OwnedFd,
    /// Only seen where something above does not hide it, which has the owners of a nearer mapping then.
    hidden: bool,
}

impl Sources {
    /// Adds a layer's content, unless a nearer layer hides all of it. Whether something may show below it.
    fn add(&mut self, layer: &Layer<'_>, own: bool) -> Result<bool> {
        let diff = layer.open(DIFF)?;
        let hidden = self.below.last().is_some_and(|source| source.hidden);
        if own {
            self.own = Some(diff);
        } else {
            self.below.push(Source { dir: diff, hidden });
        }
        let inherited = layer.inherited()?;
        let re_owned = !inherited.is_empty();
        self.below.extend(inherited.into_iter().map(|(_, dir)| Source { dir, hidden }));
        if layer.covers_all()? {
            return Ok(false);
        }
        if re_owned && let Some(last) = self.below.last_mut() {
            // Re-owned by a peer, which leaves uncovered what has the same owner by both mappings.
            last.hidden = true;
        }
        Ok(true)
    }
}

impl Overlay {
    /// A layer in the making with the files of `request` in their new owners' hands.
    pub(super) fn begin_reowned_layer(
        &self,
        request: &ReownRequest<'_>,
        options: &CreateOptions,
    ) -> Result<Staged<'_>> {
        let (from, to) = (request.mappings, &options.mappings);
        let new = NewLayer::begin(self, request.parent, to, options.read_write, false)?;
        let mut sources = Sources::default();
        let mut more = true;
        if let Some(id) = request.template {
            more = sources.add(&self.homes.require(id)?, true)?;
        }
        for id in &new.plan.chain {
            if !more {
                break;
            }
            more = sources.add(&self.homes.require(id)?, false)?;
        }
        let shift = OwnerShift::new(from.clone(), to.clone());
        let id = request.template.or(request.parent).unwrap_or(&new.working_name);
        self.copy_sources(&new.dir, &new.path, sources, &shift, to, id)?;
        if request.template.is_none() {
            // The new root has the owner that the parent's has on disk.
            let stat = fs::fstat(&new.diff).at("read the status of", new.path.join(DIFF), Some(id))?;
            let owner = shift.owner_or_root(IdPair { uid: stat.st_uid, gid: stat.st_gid });
            own(&new.diff, owner).at("change the owner of", new.path.join(DIFF), Some(id))?;
            fs::fchmod(&new.diff, fs::Mode::from_raw_mode(stat.st_mode & 0o7777)).at(
                "set the mode of",
                new.path.join(DIFF),
                Some(id),
            )?;
        }
        fault("reown.copied")?;
        Ok(Staged::of(new, request.parent.cloned()))
    }

    /// Takes every owner to the container's by `from` and to the new host's by `to`.
    pub(super) fn reown(&self, id: &LayerId, from: &IdMappings, to: &IdMappings) -> Result<()> {
        let layer = self.require_writable(id)?;
        if from == to {
            return Ok(());
        }
        not_mounted(&layer, &layer.path().join(MERGED))?;
        let chain = self.ready(&layer)?;
        let mut sources = Sources::default();
        let mut more = sources.add(&layer, true)?;
        for below in &chain {
            if !more {
                break;
            }
            let lower = self.homes.find(below)?.ok_or_else(|| missing_lower(&layer, below))?;
            more = sources.add(&lower, false)?;
        }
        let owner = to.root().of_layer(id)?;
        let home = layer.home;
        let mut temp = home.temp_dir()?;
        let (addition, dir) = temp.add_directory(0o700)?;
        let shown = temp.addition_path(&addition);
        own(&dir, owner).at("change the owner of", &shown, Some(id))?;
        for name in [LINK, LOWER, LOWER_LAYERS] {
            if let Small::Text(text) = layer.read_small(name)? {
                write_small(&dir, name, &text, Some(owner), Flush::No).at("write", shown.join(name), Some(id))?;
            }
        }
        let empty = chain.is_empty().then_some(EMPTY);
        for name in [WORK, MERGED].into_iter().chain(empty) {
            make_dir(&dir, name, 0o700, owner).at("make directory", shown.join(name), Some(id))?;
        }
        make_dir(&dir, DIFF, 0o700, owner).at("make directory", shown.join(DIFF), Some(id))?;
        self.copy_sources(&dir, &shown, sources, &OwnerShift::new(from.clone(), to.clone()), to, id)?;
        if self.options.sync == SyncMode::Filesystem {
            fs::syncfs(&dir).at("flush the file system of", &shown, Some(id))?;
        }
        exchange(temp, addition, &home.dir, id)
    }

    /// Copies everything into the directory of a layer in the making.
    fn copy_sources(
        &self,
        dir: &OwnedFd,
        shown: &Path,
        sources: Sources,
        shift: &OwnerShift,
        to: &IdMappings,
        id: &LayerId,
    ) -> Result<()> {
        let depth = sources.below.len();
        if depth > MAX_LOWERS {
            return Err(Error::TooDeep { id: id.clone(), depth, limit: MAX_LOWERS });
        }
        let owner = to.root().of_layer(id)?;
        let options = |hidden: bool| CopyOptions {
            ignore_chown_errors: self.options.ignore_chown_errors,
            in_user_namespace: self.namespace == XattrNamespace::User,
            reown: Some(if hidden { shift.clone().of_hidden_files() } else { shift.clone() }),
            ..CopyOptions::default()
        };
        let mut total = CopyReport::default();
        let mut copy = |source: &OwnedFd, target: &OwnedFd, hidden: bool| -> Result<()> {
            let report = copy_tree(source.as_fd(), target.as_fd(), &options(hidden)).of_layer(id)?;
            total.bytes = total.bytes.saturating_add(report.bytes);
            total.method = total.method.max(report.method);
            for notice in report.notices {
                tracing::warn!(layer = %id, notice, "changing the owners of a layer");
            }
            Ok(())
        };
        if let Some(source) = &sources.own {
            let target = super::layout::open_dir(dir, DIFF).at("open", shown.join(DIFF), Some(id))?;
            copy(source, &target, false)?;
        }
        for (number, source) in (1_usize..).zip(&sources.below) {
            let name = format!("{DIFF}{number}");
            let target = make_dir(dir, &name, 0o700, owner).at("make directory", shown.join(&name), Some(id))?;
            copy(&source.dir, &target, source.hidden)?;
            if number == 1 {
                mark(&target).at("set attributes of", shown.join(&name), Some(id))?;
            }
        }
        warn_of_full_copy(&total, id);
        Ok(())
    }
}

/// Marks the first inherited directory: nothing of the layers below shows. Without the mark all is well too, only dearer.
fn mark(dir: &OwnedFd) -> Result<(), Errno> {
    match xattr::set(dir, COVERS_ALL, b"y", SetMode::CreateOrReplace) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}
