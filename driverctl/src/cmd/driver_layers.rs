//! The driver's layers, whether the store knows them or not.

use anyhow::Result;
use graph_store::{CreateLayer, Store};

use super::{Outcome, optional};
use crate::cli::layers::NewStorageLayer;
use crate::id_map;
use crate::output::{self, safe};

pub(crate) fn list(store: &Store, json: bool) -> Result<Outcome> {
    let layers = store.driver_layers()?;
    if json {
        output::json(&layers.iter().map(graph_core::LayerId::as_str).collect::<Vec<_>>())?;
    } else {
        for layer in &layers {
            output::line(&safe(layer.as_str()))?;
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn create(store: &Store, words: &NewStorageLayer) -> Result<Outcome> {
    let id = store.create_driver_layer(&CreateLayer {
        id: optional(words.id.as_deref()),
        parent: optional(words.parent.as_deref()),
        read_write: !words.readonly,
        mappings: id_map::parse(&words.id_map)?,
        mount_label: words.label.clone().unwrap_or_default(),
        ..CreateLayer::default()
    })?;
    if words.json.json {
        output::json(id.as_str())?;
    } else {
        output::line(&safe(id.as_str()))?;
    }
    Ok(Outcome::Done)
}
