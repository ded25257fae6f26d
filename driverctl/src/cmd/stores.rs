//! The store as a whole.

use anyhow::Result;
use graph_store::Store;
use graph_sys::probe::{KernelFeatures, Support};

use super::Outcome;
use crate::output;
use crate::settings::Opened;
use crate::table::{self, Paint};

pub(crate) fn status(opened: &Opened, json: bool) -> Result<Outcome> {
    let mut pairs = opened.store.status()?;
    let selection = opened.store.selection();
    let mut add = |key: &str, value: String| pairs.push((key.to_owned(), value));
    add("Backing Filesystem Of Graph Root", selection.backing_file_system.clone());
    add("Chosen Because", selection.why.to_owned());
    if let Some(place) = &opened.asked_by {
        add("Asked For By", place.clone());
    }
    for candidate in &selection.report {
        add("Candidate", candidate.to_string());
    }
    let can = opened.store.driver().capabilities();
    add("Shifts Ids At Mount Time", can.shifts_ids.to_string());
    let owners = match (can.shifts_ids, can.reflink) {
        (true, _) => "id-mapped mounts, nothing is copied",
        (false, true) => "re-owned copies that share their data (reflink)",
        (false, false) => "re-owned full copies",
    };
    add("Layers Of Other Owners", owners.to_owned());
    add("Reads Changes From The Layer", can.native_diff.to_string());
    add("Extracts Without A Lock", can.staging.to_string());
    add("Copies Share Extents", can.reflink.to_string());
    add("Quotas", can.quotas.to_string());
    add("Layers Below A Layer At Most", can.max_depth.map_or_else(|| "no limit".to_owned(), |depth| depth.to_string()));
    for feature in KernelFeatures::probe().rows() {
        let state = match feature.support {
            Support::Works => "works".to_owned(),
            Support::NotPermitted => format!("not permitted; instead: {}", feature.fallback),
            Support::Missing => format!("missing; instead: {}", feature.fallback),
        };
        add(&format!("Kernel: {}", feature.name), state);
    }
    let files: Vec<String> = opened.files.iter().map(|file| file.display().to_string()).collect();
    if !files.is_empty() {
        pairs.push(("Configuration Files".to_owned(), files.join(", ")));
    }
    pairs.extend(opened.notices.iter().map(|notice| ("Configuration Notice".to_owned(), notice.clone())));
    if json {
        output::json(&pairs)?;
    } else {
        for (key, value) in &pairs {
            let key = table::painted(&format!("{}:", output::safe(key)), Paint::Bold);
            output::line(&format!("{key} {}", output::safe(value)))?;
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn shutdown(store: &Store, force: bool, json: bool) -> Result<Outcome> {
    store.shutdown(force)?;
    if json {
        output::json("")?;
    }
    Ok(Outcome::Done)
}

/// Deletes everything; what cannot be deleted is told and stepped over.
pub(crate) fn wipe(store: &Store, json: bool) -> Result<Outcome> {
    let failed = store.wipe()?;
    let outcome = if failed.is_empty() { Outcome::Done } else { Outcome::Failed };
    for error in failed {
        output::complain(&super::chain(error));
    }
    if json {
        output::json("")?;
    }
    Ok(outcome)
}

pub(crate) fn version(json: bool) -> Result<Outcome> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        output::json(&[["Version", version]])?;
    } else {
        output::line(&format!("Version: {version}"))?;
    }
    Ok(Outcome::Done)
}
