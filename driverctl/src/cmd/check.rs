//! Finding and mending damage, and making room.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use graph_store::{CheckOptions, CheckReport, Problems, RepairOptions, Store};
use serde::Serialize;

use super::{Outcome, chain};
use crate::cli::check::CheckWords;
use crate::{output, progress};

#[derive(Serialize)]
struct JsonReport<'r> {
    #[serde(rename = "Layers")]
    layers: Texts<'r>,
    #[serde(rename = "ROLayers")]
    read_only_layers: Texts<'r>,
    #[serde(rename = "Images")]
    images: Texts<'r>,
    #[serde(rename = "ROImages")]
    read_only_images: Texts<'r>,
    #[serde(rename = "Containers")]
    containers: Texts<'r>,
}

type Texts<'r> = BTreeMap<&'r str, Vec<String>>;

fn texts(problems: &Problems) -> Texts<'_> {
    problems.iter().map(|(id, list)| (id.as_str(), list.iter().map(ToString::to_string).collect())).collect()
}

pub(crate) fn check(store: &Store, words: &CheckWords) -> Result<Outcome> {
    let unreferenced_after = duration(&words.max)?;
    let bar = progress::bytes("checking", Some(0));
    let told = bar.clone();
    let options = CheckOptions {
        contents: !words.quick,
        unreferenced_after,
        only: words.only.clone(),
        on_progress: Some(Arc::new(move |done, total| {
            told.set_length(total);
            told.set_position(done);
        })),
        ..CheckOptions::default()
    };
    let report = store.check(&options);
    bar.finish_and_clear();
    let report = report?;
    print(&report, words.json.json)?;
    if report.is_clean() {
        return Ok(Outcome::Done);
    }
    if !words.repair && !words.force {
        let [layers, read_only_layers, images, read_only_images, containers] = report.parts().map(Problems::len);
        output::complain(&format!(
            "{layers} layer errors, {read_only_layers} read-only layer errors, {images} image errors, \
             {read_only_images} read-only image errors, {containers} container errors"
        ));
        return Ok(Outcome::Failed);
    }
    let failed = store.repair(&report, &RepairOptions { remove_containers: words.force });
    let all_done = failed.is_empty();
    for error in failed {
        output::complain(&chain(error));
    }
    let left = !report.read_only_layers.is_empty()
        || !report.read_only_images.is_empty()
        || (!report.containers.is_empty() && !words.force);
    Ok(if all_done && !left { Outcome::Done } else { Outcome::Failed })
}

fn print(report: &CheckReport, json: bool) -> Result<()> {
    if json {
        let [layers, read_only_layers, images, read_only_images, containers] = report.parts().map(texts);
        return output::json(&JsonReport { layers, read_only_layers, images, read_only_images, containers });
    }
    let heads = ["layer", "read-only layer", "image", "read-only image", "container"];
    for (head, problems) in heads.into_iter().zip(report.parts()) {
        for (id, list) in problems {
            output::line(&format!("{head} {}:", output::safe(id)))?;
            for problem in list {
                output::line(&format!(" {}", output::safe(&problem.to_string())))?;
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct JsonGarbage {
    kind: &'static str,
    place: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn gc(store: &Store, dry_run: bool, json: bool) -> Result<Outcome> {
    let garbage = store.collect_garbage(dry_run)?;
    let failed = garbage.iter().any(|piece| piece.error.is_some());
    let bytes: u64 = garbage.iter().map(|piece| piece.bytes).sum();
    let mut list = Vec::with_capacity(garbage.len());
    for piece in garbage {
        let place = piece.place.display().to_string();
        let error = piece.error.map(chain);
        if let Some(error) = error.as_deref().filter(|_| !json || !dry_run) {
            output::complain(&format!("removing {} {}: {error}", piece.kind.words(), output::safe(&place)));
        }
        list.push(JsonGarbage { kind: piece.kind.words(), place, bytes: piece.bytes, error });
    }
    match (dry_run, json) {
        (true, true) => output::json(&list)?,
        // As the peers, for their scripts.
        (false, true) => output::json("")?,
        (false, false) => {}
        (true, false) => {
            for piece in &list {
                output::line(&format!("{}\t{}\t{}", piece.bytes, piece.kind, output::safe(&piece.place)))?;
            }
            if !list.is_empty() {
                output::line(&format!("{bytes}\ttotal"))?;
            }
        }
    }
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

pub(crate) fn dedup(store: &Store, method: &str, json: bool) -> Result<Outcome> {
    let report = store.dedup(method.parse()?)?;
    if !report.supported && std::io::stderr().is_terminal() {
        // For the person; scripts that take both streams together want the number alone.
        output::complain("the file system of the layers cannot share the contents of files (btrfs and XFS can)");
    }
    if json {
        output::json(&serde_json::json!({"Deduped": report.bytes}))?;
    } else {
        output::line(&format!("Deduplicated {} bytes", report.bytes))?;
    }
    Ok(Outcome::Done)
}

/// A duration as Go's `time.ParseDuration` reads it: `0`, `1h30m`, `1.5h`, `300ms`. A negative one is none.
fn duration(text: &str) -> Result<Duration> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = unsigned;
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        bail!("time: invalid duration {text:?}");
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let Some(value) = number.parse::<f64>().ok().filter(|_| number != ".") else {
            bail!("time: invalid duration {text:?}");
        };
        let end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, next) = behind.split_at(end);
        seconds += value
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                "" => bail!("time: missing unit in duration {text:?}"),
                unit => bail!("time: unknown unit {unit:?} in duration {text:?}"),
            };
        rest = next;
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    match Duration::try_from_secs_f64(seconds) {
        // 290 years are the most that Go's have.
        Ok(duration) if duration.as_nanos() <= i64::MAX.unsigned_abs().into() => Ok(duration),
        _ => bail!("time: invalid duration {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_reads_them() {
        for (text, milliseconds) in [
            ("0", 0),
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("-1h", 0),
            ("+5s", 5_000),
            (".5s", 500),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for (text, error) in [
            ("bad", "time: invalid duration \"bad\""),
            ("", "time: invalid duration \"\""),
            ("-", "time: invalid duration \"-\""),
            (".s", "time: invalid duration \".s\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
        ] {
            assert_eq!(duration(text).unwrap_err().to_string(), error);
        }
    }
}
