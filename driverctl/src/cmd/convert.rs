//! Moving a store to another driver.

use std::path::PathBuf;

use anyhow::{Result, bail};
use graph_core::options::canonical;
use graph_store::{ConvertEvent, ConvertOptions, Error, Store};
use serde_json::json;

use super::Outcome;
use crate::cli::convert::Convert;
use crate::output::{self, safe};
use crate::progress;

pub(crate) fn convert(store: &Store, words: &Convert) -> Result<Outcome> {
    let bar = progress::bytes("converting", Some(0));
    let on_event = |event: ConvertEvent<'_>| match event {
        ConvertEvent::Layer { id, index, count, bytes } => {
            bar.set_length(bytes);
            bar.set_position(0);
            let short: String = id.chars().take(12).collect();
            bar.set_message(format!("converting layer {}/{count} {}", index.saturating_add(1), safe(&short)));
        }
        ConvertEvent::Bytes(done) => bar.set_position(done),
        ConvertEvent::Records => bar.set_message("copying records"),
        _ => {}
    };
    if let Some(from) = &words.from
        && canonical(from) != store.driver().name()
    {
        bail!("the store has the driver {}, not {}", store.driver().name(), safe(from));
    }
    let options =
        ConvertOptions { remove_old: words.remove_old, adopt: words.from.is_some(), on_event: Some(&on_event) };
    let converted = store.convert(&words.to, &graph_drivers::registry()?, &options);
    bar.finish_and_clear();
    let converted = converted?;
    if words.json.json {
        output::json(&json!({"from": converted.from, "to": converted.to, "layers": converted.layers,
            "kept": converted.kept, "images": converted.images, "containers": converted.containers,
            "old": converted.old, "notices": converted.notices}))?;
        return Ok(Outcome::Done);
    }
    for notice in &converted.notices {
        output::complain(&safe(notice));
    }
    let (from, to) = (safe(&converted.from), safe(&converted.to));
    output::line(&format!(
        "converted from {from} to {to}: {} layers, {} images, {} containers",
        converted.layers, converted.images, converted.containers
    ))?;
    say_what_is_next(store, &from, &to, converted.old.as_ref())?;
    Ok(Outcome::Done)
}

/// What the person has to do now: nobody else can.
fn say_what_is_next(store: &Store, from: &str, to: &str, old: Option<&PathBuf>) -> Result<()> {
    if let Some(old) = old {
        output::line(&format!("the old store is in {}; remove it when all is well", safe(&old.display().to_string())))?;
    }
    output::line(&format!("name the driver {to} in storage.conf, or with --storage-driver, where {from} was named"))?;
    if store.root().join("libpod").is_dir() {
        output::line(&format!(
            "podman remembers the driver {from} in {}: see the manual on converting",
            safe(&store.root().join("libpod").display().to_string())
        ))?;
    }
    Ok(())
}

/// The answer, where opening the store has just completed the conversion.
pub(crate) fn completed(words: &Convert, error: &anyhow::Error) -> Option<Result<Outcome>> {
    let Some(Error::WasConverted { from, to: Some(to), old }) = error.downcast_ref::<Error>() else { return None };
    if *to != words.to {
        return None;
    }
    let print = || -> Result<Outcome> {
        if words.json.json {
            output::json(&json!({"from": from, "to": to, "old": old}))?;
        } else {
            output::line(&format!("converted from {} to {}", safe(from), safe(to)))?;
            if let Some(old) = old {
                output::line(&format!("the old store is in {}", safe(&old.display().to_string())))?;
            }
        }
        Ok(Outcome::Done)
    };
    Some(print())
}
