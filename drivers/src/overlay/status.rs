//! What the driver tells of itself and of a layer, in the words of containers/storage.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use graph_core::Result;

use super::Homes;
use super::layout::{DIFF, Layer, MERGED, WORK};
use super::parents::{missing_lower, parents};
use super::probe::Features;

/// The name of the file system that holds `dir`; `<unknown>` for one that peers have no name for.
pub(super) fn file_system(dir: impl AsFd) -> Result<&'static str, graph_sys::io::Errno> {
    Ok(graph_sys::statfs::magic(dir)?.name().unwrap_or("<unknown>"))
}

/// The pairs of `status`, in the peers' order and words.
pub(super) fn pairs(file_system: &str, features: &Features, shifting: bool) -> Vec<(String, String)> {
    [
        ("Backing Filesystem", file_system.to_owned()),
        // A file system without entry types is refused.
        ("Supports d_type", features.overlay.works.to_string()),
        ("Native Overlay Diff", features.native_diff.works.to_string()),
        ("Using metacopy", features.metacopy.works.to_string()),
        ("Supports shifting", shifting.to_string()),
        ("Supports volatile", features.volatile.works.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// `WorkDir`, `MergedDir`, `UpperDir` and, for a layer with parents, `LowerDir`: absolute paths.
pub(super) fn metadata(homes: &Homes, layer: &Layer<'_>) -> Result<BTreeMap<String, String>> {
    let own = |name: &str| layer.path().join(name).display().to_string();
    let mut pairs = BTreeMap::from([
        ("WorkDir".to_owned(), own(WORK)),
        ("MergedDir".to_owned(), own(MERGED)),
        ("UpperDir".to_owned(), own(DIFF)),
    ]);
    let mut lowers = Vec::new();
    for id in parents(homes, layer)? {
        let lower = homes.find(&id)?.ok_or_else(|| missing_lower(layer, &id))?;
        lowers.push(lower.path().join(DIFF).display().to_string());
    }
    if !lowers.is_empty() {
        pairs.insert("LowerDir".to_owned(), lowers.join(":"));
    }
    Ok(pairs)
}
