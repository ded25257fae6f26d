//! Mounting. Mounts are counted across processes and outlive this one.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use graph_archive::IdMappings;
use graph_store::{ErrorKind, MountOptions, Store};
use serde::Serialize;

use super::{Outcome, chain};
use crate::cli::Objects;
use crate::output::{self, complain, safe};

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mountpoint: Option<String>,
    error: String,
}

fn answer<'a>(answers: &mut Vec<Answer<'a>>, id: &'a str, mountpoint: Option<String>, error: Option<String>) {
    answers.push(Answer { id, mountpoint, error: error.unwrap_or_default() });
}

fn finish(answers: &[Answer<'_>], json: bool) -> Result<Outcome> {
    if json {
        output::json(answers)?;
    }
    Ok(if answers.iter().all(|answer| answer.error.is_empty()) { Outcome::Done } else { Outcome::Failed })
}

/// The layer to mount for an image: one whose files have the host's ids.
fn top_layer(store: &Store, image: &str) -> Result<String> {
    match store.image_top_layer(image, &IdMappings::default())? {
        Some(layer) => Ok(layer.id.clone()),
        None => Err(anyhow!("image {} has no layer to mount", store.image(image)?.id)),
    }
}

/// The layer that [`top_layer`] gave; without making one. Peers mount the layer that the image was made with.
fn mounted_layer(store: &Store, image: &str) -> Result<String> {
    let image = store.image(image)?;
    let shown = image.top_layers().find(|layer| {
        // Some of them may be gone.
        store.layer(layer).is_ok_and(|layer| layer.mappings().is_identity())
            && store.mounted(layer).is_ok_and(|n| n > 0)
    });
    if image.layer.is_empty() {
        Err(anyhow!("image {} has no layer to mount", image.id))
    } else {
        Ok(shown.unwrap_or(&image.layer).to_owned())
    }
}

pub(crate) fn mount(
    store: &Store,
    words: &Objects,
    opt: &[String],
    label: Option<&str>,
    read_only: bool,
) -> Result<Outcome> {
    let options = MountOptions {
        mount_label: label.map(str::to_owned),
        options: opt.iter().flat_map(|list| list.split(',')).filter(|o| !o.is_empty()).map(str::to_owned).collect(),
        read_only,
        mappings: None,
    };
    let mut answers = Vec::new();
    for object in &words.objects {
        let mounted = match store.mount(object, &options) {
            Err(error) if read_only && error.kind() == ErrorKind::LayerNotKnown => {
                top_layer(store, object).and_then(|layer| Ok(store.mount(&layer, &options)?))
            }
            other => other.map_err(anyhow::Error::from),
        };
        let (path, error) = match mounted {
            Ok(path) => (path.display().to_string(), None),
            Err(error) => (String::new(), Some(chain(error))),
        };
        if !words.json.json {
            output::line(&path)?;
            if let Some(error) = &error {
                complain(&format!("{error} while mounting {}", safe(object)));
            }
        }
        answer(&mut answers, object, Some(path), error);
    }
    finish(&answers, words.json.json)
}

pub(crate) fn unmount(store: &Store, words: &Objects, force: bool) -> Result<Outcome> {
    let mut answers = Vec::new();
    for object in &words.objects {
        let (gone, image) = match store.unmount(object, force) {
            Err(error) if error.kind() == ErrorKind::LayerNotKnown => match store.image(object) {
                Ok(_) => (mounted_layer(store, object).and_then(|layer| Ok(store.unmount(&layer, force)?)), true),
                Err(_) => (Err(error.into()), false),
            },
            other => (other.map_err(anyhow::Error::from), false),
        };
        let error = match gone {
            Ok(gone) => {
                if gone && !image {
                    output::line(&format!("{} mountpoint unmounted", safe(object)))?;
                }
                None
            }
            Err(error) => Some(chain(error)),
        };
        if let (Some(error), false) = (&error, words.json.json) {
            complain(&format!("{error} while unmounting {}", safe(object)));
        }
        answer(&mut answers, object, None, error);
    }
    finish(&answers, words.json.json)
}

pub(crate) fn mounted(store: &Store, words: &Objects) -> Result<Outcome> {
    let mut answers = Vec::new();
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    for object in &words.objects {
        if seen.insert(object, ()).is_some() {
            continue;
        }
        let error = match store.mounted(object) {
            Ok(count) => {
                if count > 0 {
                    output::line(&format!("{} mounted", safe(object)))?;
                }
                None
            }
            Err(error) => Some(chain(error)),
        };
        if let (Some(error), false) = (&error, words.json.json) {
            complain(&format!("{error} checking if {} is mounted", safe(object)));
        }
        answer(&mut answers, object, None, error);
    }
    finish(&answers, words.json.json)
}
