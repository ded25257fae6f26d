//! What layers change, and putting changes into them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use graph_archive::changes::ChangeKind;
use graph_store::{DiffCompression, DiffOptions, Expected, Store};
use serde::Serialize;

use super::{Outcome, layers, optional};
use crate::cli::diffs::Compared;
use crate::{output, progress};

#[derive(Serialize)]
struct Change<'c> {
    #[serde(rename = "Path")]
    path: std::borrow::Cow<'c, str>,
    #[serde(rename = "Kind")]
    kind: u8,
}

pub(crate) fn apply(store: &Store, layer: &str, file: Option<&Path>, json: bool) -> Result<Outcome> {
    let (input, bytes) = layers::input(file)?;
    let bar = progress::bytes("applying", bytes);
    let mut input = bar.wrap_read(input);
    let applied = store.apply_diff(layer, &Expected::default(), &mut input);
    bar.finish_and_clear();
    let applied = applied?;
    if json {
        output::json(&**applied.layer.record())?;
    }
    Ok(Outcome::Done)
}

/// Which compression was asked for.
pub(crate) fn compression(uncompressed: bool, gzip: bool, zstd: bool, bzip2: bool, xz: bool) -> Result<DiffOptions> {
    if bzip2 || xz {
        bail!("unsupported compression format {}", if bzip2 { "tar.bz2" } else { "tar.xz" });
    }
    let compression = match (uncompressed, gzip, zstd) {
        (false, false, false) => None,
        (_, _, true) => Some(DiffCompression::Zstd),
        (_, true, false) => Some(DiffCompression::Gzip),
        (true, false, false) => Some(DiffCompression::None),
    };
    Ok(DiffOptions { compression })
}

pub(crate) fn diff(store: &Store, words: &Compared, file: Option<&Path>, options: &DiffOptions) -> Result<Outcome> {
    let reference = optional(words.reference.as_deref());
    // Asked before the file is made, so that a mistyped id doesn't empty an older one.
    let layer = store.layer(&words.layer)?;
    if let Some(reference) = &reference {
        store.layer(reference)?;
    }
    let size = u64::try_from(layer.diff_size).ok().filter(|size| *size > 0 && reference.is_none());
    let bar = progress::bytes("writing", size);
    let report = match file {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
            store.diff(reference.as_deref(), &layer.id, &mut bar.wrap_write(file), options)
        }
        None => {
            let mut out = bar.wrap_write(io::stdout());
            let report = store.diff(reference.as_deref(), &layer.id, &mut out, options);
            out.flush().context("write to standard output")?;
            report
        }
    };
    bar.finish_and_clear();
    let report = report?;
    if words.json.json && file.is_some() {
        output::json(&serde_json::json!({"bytes": report.bytes, "notices": report.notices}))?;
    }
    Ok(Outcome::Done)
}

pub(crate) fn changes(store: &Store, words: &Compared) -> Result<Outcome> {
    let changes = store.changes(optional(words.reference.as_deref()).as_deref(), &words.layer)?;
    if words.json.json {
        let list: Vec<Change<'_>> = changes
            .iter()
            .map(|change| Change { path: String::from_utf8_lossy(&change.path), kind: change.kind as u8 })
            .collect();
        output::json(&(!list.is_empty()).then_some(list))?;
    } else {
        for change in &changes {
            let word = match change.kind {
                ChangeKind::Modify => "Modify",
                ChangeKind::Add => "Add",
                ChangeKind::Delete => "Delete",
            };
            output::line(&format!("{word} {}", output::quoted(&change.path)))?;
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn size(store: &Store, words: &Compared) -> Result<Outcome> {
    let size = store.diff_size(optional(words.reference.as_deref()).as_deref(), &words.layer)?;
    if words.json.json {
        output::json(&size)?;
    } else {
        output::line(&size.to_string())?;
    }
    Ok(Outcome::Done)
}
