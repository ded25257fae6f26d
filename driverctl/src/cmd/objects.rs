//! Objects of any kind.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use graph_store::{Error, ErrorKind, Store};

use super::{Outcome, chain, each};
use crate::cli::data::{Kinds, Listed, Names};
use crate::cli::{self, Objects};
use crate::output::{self, safe};

/// Whether objects are there. What is printed is whether there is anything of that name; the exit status says whether it
/// is of the kind that was asked for.
pub(crate) fn exists(store: &Store, words: &Objects, kinds: Kinds, quiet: bool) -> Result<Outcome> {
    let mut answers: BTreeMap<&str, bool> = BTreeMap::new();
    let mut all = true;
    for object in &words.objects {
        let exists = store.find(object).is_ok();
        let right = (!kinds.layer || store.layer(object).is_ok())
            && (!kinds.image || store.image(object).is_ok())
            && (!kinds.container || store.container(object).is_ok());
        all &= exists && right;
        if answers.insert(object, exists).is_none() && !quiet && !words.json.json {
            output::line(&format!("{}: {exists}", safe(object)))?;
        }
    }
    if words.json.json {
        output::json(&answers)?;
    }
    Ok(if all { Outcome::Done } else { Outcome::Failed })
}

/// Deletes without asking what uses it.
pub(crate) fn delete(store: &Store, words: &Objects) -> Result<Outcome> {
    each(&words.objects, words.json.json, |object| match store.delete(object) {
        Err(error) if error.kind() == ErrorKind::NotKnown => Err(anyhow!("layer not known")),
        other => other.map_err(anyhow::Error::from),
    })
}

/// An unknown object, as the peers' verbs on names call it.
fn unknown_as_layer(error: Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotKnown { anyhow!("layer not known") } else { error.into() }
}

pub(crate) fn names(store: &Store, words: &Listed) -> Result<Outcome> {
    let names = store.names(&words.object).map_err(unknown_as_layer)?;
    if words.json.json {
        output::json(&names)?;
    } else {
        for name in names {
            output::line(&safe(&name))?;
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn change_names(
    words: &Names,
    change: impl Fn(&str, &[String]) -> Result<Vec<String>, Error>,
) -> Result<Outcome> {
    let names = change(&words.object, &words.name).map_err(unknown_as_layer)?;
    if words.json.json {
        output::json(&names)?;
    }
    Ok(Outcome::Done)
}

/// Prints free texts, without the line end that a text from a file has.
pub(crate) fn metadata(store: &Store, words: &Objects, quiet: bool) -> Result<Outcome> {
    let mut answers: BTreeMap<&str, String> = BTreeMap::new();
    let mut outcome = Outcome::Done;
    for object in &words.objects {
        let text = match store.metadata(object) {
            Ok(text) => {
                let text = text.strip_suffix('\n').map(str::to_owned).unwrap_or(text);
                answers.insert(object, text.clone());
                text
            }
            Err(error) => {
                outcome = Outcome::Failed;
                if error.kind() != ErrorKind::NotKnown {
                    output::complain(&format!("{}: {}", safe(object), chain(error)));
                }
                String::new()
            }
        };
        if words.json.json {
            continue;
        }
        let text = output::free_text(&text);
        if quiet {
            output::line(&text)?;
        } else {
            output::line(&format!("{}: {text}", safe(object)))?;
        }
    }
    if words.json.json {
        output::json(&answers)?;
    }
    Ok(outcome)
}

pub(crate) fn set_metadata(store: &Store, object: &str, words: &cli::Metadata) -> Result<Outcome> {
    let text = super::metadata(words)?;
    if text.is_empty() {
        bail!("no new metadata provided");
    }
    store.set_metadata(object, &text)?;
    Ok(Outcome::Done)
}
