//! Mappings of ids, from the command line.

use anyhow::{Result, bail};
use graph_archive::IdMappings;

use crate::cli::IdMap;

/// The mappings that the flags ask for; `None` when they ask for nothing, so that the parent's apply.
pub(crate) fn parse(words: &IdMap) -> Result<Option<IdMappings>> {
    let none = [&words.uidmap, &words.gidmap, &words.subuidmap, &words.subgidmap].iter().all(|word| word.is_none());
    if none && !words.hostuidmap && !words.hostgidmap {
        return Ok(None);
    }
    bail!("mappings are not taken from the command line yet")
}
