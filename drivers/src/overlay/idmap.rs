//! Layers seen through id mappings: by mapped mounts of the lower directories, which costs nothing per file.

use std::os::fd::AsFd;
use std::path::PathBuf;

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::{LayerId, Result};
use graph_sys::fs::{self, Gid, Uid};
use graph_sys::idmap::{IdRange as KernelRange, UserNamespace};
use graph_sys::mount::DetachedMount;

use super::Homes;
use super::layout::{Context, DIFF, Layer};

/// The user namespace that stands for these mappings: on disk are container ids, host ids are shown.
pub(super) fn namespace(mappings: &IdMappings) -> graph_sys::Result<UserNamespace> {
    let kernel = |ranges: &[IdRange]| -> Vec<KernelRange> {
        if ranges.is_empty() {
            // No mapping of that kind of id: every id stands for itself.
            return vec![KernelRange { inside: 0, outside: 0, count: u32::MAX }];
        }
        let range =
            |range: &IdRange| KernelRange { inside: range.container_id, outside: range.host_id, count: range.size };
        ranges.iter().map(range).collect()
    };
    UserNamespace::with_ranges(&kernel(&mappings.uids), &kernel(&mappings.gids))
}

/// Mounts, attached nowhere, of every home that the layers are in, through the mappings.
pub(super) fn mapped_homes(
    homes: &Homes,
    layer: &Layer<'_>,
    chain: &[LayerId],
    mappings: &IdMappings,
) -> Result<Vec<(PathBuf, DetachedMount)>> {
    let id = Some(&layer.id);
    let namespace = namespace(mappings).at("make a user namespace for the ID mappings", layer.path(), id)?;
    let mut mapped: Vec<(PathBuf, DetachedMount)> = Vec::new();
    for below in std::iter::once(&layer.id).chain(chain) {
        let Some(found) = homes.find(below)? else { continue };
        let home = found.home;
        if mapped.iter().any(|(path, _)| *path == home.path) {
            continue;
        }
        let mount = DetachedMount::copy_of(&home.dir, b"", false).at("clone the mount of", &home.path, id)?;
        mount.map_ids(&namespace, false).at("map the IDs of", &home.path, id)?;
        mapped.push((home.path.clone(), mount));
    }
    Ok(mapped)
}

/// Gives the root of a layer that containers write to to the container's root.
///
/// It was made with the owner that the layer below has on disk; that one is shown through the mapping, the layer's own is not.
pub(super) fn own_root(homes: &Homes, layer: &Layer<'_>, chain: &[LayerId], mappings: &IdMappings) -> Result<()> {
    let id = Some(&layer.id);
    let path = || layer.path().join(DIFF);
    let own = layer.open(DIFF)?;
    let now = fs::fstat(&own).at("read the status of", path(), id)?;
    let below = match chain.first() {
        Some(lower) => {
            let Some(lower) = homes.find(lower)? else { return Ok(()) };
            let stat = fs::fstat(lower.open(DIFF)?).at("read the status of", lower.path().join(DIFF), id)?;
            graph_archive::IdPair { uid: stat.st_uid, gid: stat.st_gid }
        }
        None => graph_archive::IdPair { uid: 0, gid: 0 },
    };
    if (now.st_uid, now.st_gid) != (below.uid, below.gid) {
        return Ok(());
    }
    let wanted =
        mappings.to_host(below, b"/").map_err(|source| graph_core::Error::Archive { id: layer.id.clone(), source })?;
    if wanted != below {
        chown_keeping_mode(&own, now.st_mode, wanted).at("change the owner of", path(), id)?;
    }
    Ok(())
}

/// Changing the owner takes set-id bits away; they come back.
fn chown_keeping_mode(
    dir: impl AsFd,
    mode: u32,
    owner: graph_archive::IdPair,
) -> std::result::Result<(), graph_sys::io::Errno> {
    fs::fchown(&dir, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    fs::fchmod(dir, fs::Mode::from_raw_mode(mode & 0o7777))
}
