//! What the driver tells about itself.

use std::collections::BTreeMap;

use graph_core::{LayerId, Result};
use graph_sys::statfs;

use super::driver::Aufs;
use super::probe;
use crate::support::context::Context;

/// The pairs of `status`: the four of containers/storage, in its words, then ours.
pub(super) fn pairs(aufs: &Aufs) -> Result<Vec<(String, String)>> {
    let home = &aufs.home;
    let magic = statfs::magic(home.diff()).at("statfs", home.path(), None)?;
    let pair = |key: &str, value: String| (key.to_owned(), value);
    let kernel = match &aufs.kernel {
        Ok(()) => probe::version().map_or_else(|| "yes".to_owned(), |version| format!("yes (AUFS {version})")),
        Err(reason) => format!("no: {reason}"),
    };
    Ok(vec![
        pair("Root Dir", home.path().display().to_string()),
        pair("Backing Filesystem", magic.name().unwrap_or("<unknown>").to_owned()),
        pair("Dirs", home.lists()?.len().to_string()),
        pair("Dirperm1 Supported", aufs.dirperm1.to_string()),
        pair("Supports mounting", kernel),
    ])
}

/// Facts about a layer.
pub(super) fn metadata(aufs: &Aufs, id: &LayerId) -> Result<BTreeMap<String, String>> {
    let home = &aufs.home;
    let parents = home.parents(id)?;
    let mut pairs = BTreeMap::from([("Dir".to_owned(), home.diff_path(id).display().to_string())]);
    pairs.insert("Parent".to_owned(), parents.first().map(ToString::to_string).unwrap_or_default());
    if !parents.is_empty() {
        let target = home.mount_path(id);
        pairs.insert("MountPoint".to_owned(), target.display().to_string());
        let lowers: Vec<String> = parents.iter().map(|id| home.diff_path(id).display().to_string()).collect();
        pairs.insert("LowerDirs".to_owned(), lowers.join(":"));
        if aufs.kernel.is_ok()
            && aufs.mounter.is_mounted(&target).at("look at the mount point", &target, Some(id))?
            && let Some(branches) = aufs.mounter.branches(&target).at("read the branches of", &target, Some(id))?
        {
            let branches: Vec<_> = branches.iter().map(|branch| String::from_utf8_lossy(branch).into_owned()).collect();
            pairs.insert("Branches".to_owned(), branches.join(":"));
        }
    }
    Ok(pairs)
}
