//! What layers change, and putting changes into them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use graph_archive::changes::ChangeKind;
use graph_archive::pack::{PackOptions, pack_tree};
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

/// An archive that another thread writes: it only ends well if that thread says so.
struct Archive<'a> {
    pipe: io::PipeReader,
    whole: &'a AtomicBool,
}

impl io::Read for Archive<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(buffer)?;
        if count == 0 && !buffer.is_empty() && !self.whole.load(Ordering::Acquire) {
            return Err(io::Error::other("the directory could not be read to its end"));
        }
        Ok(count)
    }
}

/// Puts a directory's content into a layer: as an archive of it, in one pass and without a copy of its own on disk.
pub(crate) fn apply_directory(store: &Store, layer: &str, directory: &Path, json: bool) -> Result<Outcome> {
    let root = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
    let (pipe, writer) = io::pipe().context("make a pipe")?;
    let whole = AtomicBool::new(false);
    let (packed, applied) = std::thread::scope(|scope| {
        let pack = scope.spawn(|| {
            // Moved here, so that the pipe ends with this thread.
            let writer = writer;
            let packed = pack_tree(root.as_fd(), &writer, &PackOptions::default());
            whole.store(packed.is_ok(), Ordering::Release);
            packed
        });
        let mut archive = Archive { pipe, whole: &whole };
        let applied = store.apply_diff(layer, &Expected::default(), &mut archive);
        // Nobody reads any more: the other thread ends with that.
        drop(archive);
        (pack.join(), applied)
    });
    match packed {
        // What cannot be read is the cause of what could not be applied, unless it is only that nobody listened.
        Ok(Err(error)) if !is_broken_pipe(&error) => {
            return Err(error).with_context(|| format!("read {}", directory.display()));
        }
        Ok(_) => {}
        Err(_) => bail!("reading {} came to no end", directory.display()),
    }
    let applied = applied?;
    if json {
        output::json(&**applied.layer.record())?;
    }
    Ok(Outcome::Done)
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|io| io.kind() == io::ErrorKind::BrokenPipe)
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
