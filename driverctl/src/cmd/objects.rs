//! Objects of any kind.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use graph_store::{ErrorKind, Store};

use super::{Outcome, each};
use crate::cli::Objects;
use crate::cli::data::Kinds;
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
