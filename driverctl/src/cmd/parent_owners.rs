//! Whom the directories above mounts belong to.

use anyhow::Result;
use graph_store::{Error, ErrorKind, ParentOwners, Store};
use serde::Serialize;

use super::{Outcome, chain};
use crate::cli::Objects;
use crate::output::{self, complain, safe};

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    #[serde(rename = "UIDs")]
    uids: Option<&'a [u32]>,
    #[serde(rename = "GIDs")]
    gids: Option<&'a [u32]>,
}

fn list(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    format!("[{}]", ids.join(" "))
}

pub(crate) fn of_layers(store: &Store, words: &Objects) -> Result<Outcome> {
    each(store, words, "LayerParentOwner", false, |object| Ok(store.layer(object)?.id.clone()))
}

pub(crate) fn of_containers(store: &Store, words: &Objects) -> Result<Outcome> {
    each(store, words, "ContainerParentOwner", true, |object| Ok(store.container(object)?.id.clone()))
}

/// `empty`: whether empty lists are printed, too.
fn each(
    store: &Store,
    words: &Objects,
    what: &str,
    empty: bool,
    find: impl Fn(&str) -> Result<String, Error>,
) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    for object in &words.objects {
        let found = find(object).and_then(|id| Ok((store.parent_owners(&id)?, id)));
        let (ParentOwners { uids, gids, .. }, id) = match found {
            Ok(found) => found,
            Err(error) => {
                outcome = Outcome::Failed;
                match error.kind() {
                    // As the peers, nothing but the status.
                    ErrorKind::LayerNotKnown | ErrorKind::ContainerNotKnown => {}
                    ErrorKind::LayerNotMounted => complain(&format!("{what}: layer is not mounted")),
                    _ => complain(&format!("{what}: {}", chain(error))),
                }
                continue;
            }
        };
        if words.json.json {
            let uids = Some(&*uids).filter(|ids| !ids.is_empty());
            let gids = Some(&*gids).filter(|ids| !ids.is_empty());
            output::json(&Answer { id: &id, uids, gids })?;
            continue;
        }
        output::line(&format!("ID: {}", safe(&id)))?;
        for (name, ids) in [("UIDs", &uids), ("GIDs", &gids)] {
            if empty || !ids.is_empty() {
                output::line(&format!("{name}: {}", list(ids)))?;
            }
        }
    }
    Ok(outcome)
}
