//! Giving a layer, and all that it inherits, to other owners.
//!
//! Files of the layers below belong to those layers and cannot change. So the layer gets copies of their directories,
//! re-owned, as `diff1`, `diff2`, …, which lie between its own `diff` and the layers below and hide these entirely. They
//! are lower directories, so that nothing in them counts as a change of the layer. (Peers get there by changing every
//! owner through a mount and putting the copied-up tree aside as `diff1`; that breaks hard links, and leaves a half
//! re-owned layer after a crash.)
//!
//! All of it is made in `tempdirs/` and exchanged with the layer's directory by one rename.

use std::os::fd::{AsFd, OwnedFd};

use graph_archive::apply::XattrNamespace;
use graph_archive::copy::{CopyOptions, copy_tree};
use graph_archive::idmap::IdMappings;
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, RenameFlags};
use graph_sys::io::Errno;
use graph_sys::xattr::{self, SetMode};

use super::driver::Overlay;
use super::layout::{
    COVERS_ALL, DIFF, EMPTY, Flush, LINK, LOWER, LOWER_LAYERS, Layer, MERGED, Small, WORK, make_dir, own, write_small,
};
use super::mount::not_mounted;
use super::options::SyncMode;
use super::parents::{MAX_LOWERS, missing_lower};
use crate::support::context::{ArchiveContext, Context};
use crate::support::owners::{Shift, shift_owners};

impl Overlay {
    /// Takes every owner to the container's by `from` and to the new host's by `to`.
    pub(super) fn reown(&self, id: &LayerId, from: &IdMappings, to: &IdMappings) -> Result<()> {
        let layer = self.require_writable(id)?;
        if from == to {
            return Ok(());
        }
        not_mounted(&layer, &layer.path().join(MERGED))?;
        let chain = self.ready(&layer)?;
        let sources = self.sources(&layer, &chain)?;
        if sources.len() > MAX_LOWERS {
            return Err(Error::TooDeep { id: id.clone(), depth: sources.len(), limit: MAX_LOWERS });
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
        let options = CopyOptions {
            ignore_chown_errors: self.options.ignore_chown_errors,
            in_user_namespace: self.namespace == XattrNamespace::User,
            ..CopyOptions::default()
        };
        let mut bytes = 0_u64;
        for (number, source) in sources.iter().enumerate() {
            let name = if number == 0 { DIFF.to_owned() } else { format!("{DIFF}{number}") };
            let target = make_dir(&dir, &name, 0o700, owner).at("make directory", shown.join(&name), Some(id))?;
            let report = copy_tree(source.as_fd(), target.as_fd(), &options).of_layer(id)?;
            bytes = bytes.saturating_add(report.bytes);
            if number == 1 {
                mark(&target).at("set attributes of", shown.join(&name), Some(id))?;
            }
            shift_owners(target.as_fd(), Shift { from, to }).of_layer(id)?;
        }
        if !self.features.reflink.works && bytes > 0 {
            tracing::warn!(
                layer = %id,
                bytes,
                "copied the files of a layer to change their owners: this file system does not share data between files; \
                 with ID-mapped mounts, or on xfs or btrfs, nothing need be copied"
            );
        }
        if self.options.sync == SyncMode::Filesystem {
            fs::syncfs(&dir).at("flush the file system of", &shown, Some(id))?;
        }
        let addition_path = shown.strip_prefix(&home.path).unwrap_or(&shown);
        match fs::renameat_with(&home.dir, addition_path, &home.dir, id.as_str(), RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // A file system without that flag: there is a moment without the layer.
            Err(Errno::INVAL) => {
                temp.stage_deletion(&home.dir, id.as_str())?;
                temp.commit(addition, &home.dir, id.as_str())?;
            }
            Err(error) => return Err(Error::io("exchange layer directory", layer.path(), Some(id), error)),
        }
        temp.finish()
    }

    /// The layer's own content, then all that is below it, nearest first.
    fn sources(&self, layer: &Layer<'_>, chain: &[LayerId]) -> Result<Vec<OwnedFd>> {
        let mut sources = vec![layer.open(DIFF)?];
        sources.extend(layer.inherited()?.into_iter().map(|(_, dir)| dir));
        if layer.covers_all()? {
            return Ok(sources);
        }
        for id in chain {
            let lower = self.homes.find(id)?.ok_or_else(|| missing_lower(layer, id))?;
            sources.push(lower.open(DIFF)?);
            sources.extend(lower.inherited()?.into_iter().map(|(_, dir)| dir));
            // Below it are files with owners of another mapping, which nobody sees.
            if lower.covers_all()? {
                break;
            }
        }
        Ok(sources)
    }
}

/// Marks the first inherited directory: nothing of the layers below shows. Without the mark all is well too, only dearer.
fn mark(dir: &OwnedFd) -> Result<(), Errno> {
    match xattr::set(dir, COVERS_ALL, b"y", SetMode::CreateOrReplace) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}
