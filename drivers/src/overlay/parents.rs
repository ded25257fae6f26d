//! Which layers are below a layer: the files `lower-layers` and `lower`, read with suspicion and repaired from each other.
//!
//! Two files say the same. containers/storage up to 1.63 knows only `lower` (names of links in `l/`); 1.64 writes both and
//! believes `lower-layers` (layer ids). A power loss can leave either of them empty, people delete `l/`, and a store copied
//! without its links is common. So: `lower-layers` is read first, checked against `lower`, and whichever of the two is lost
//! is written anew from the other; where they contradict each other the parent's own records decide. An empty file never
//! means "no parents".

use graph_core::{Error, LayerId, Result};

use super::Homes;
use super::layout::{LINK, LINKS, LOWER, LOWER_LAYERS, Layer, LinkId, Small};

/// How many layers the kernel stacks below a mount.
pub(super) const MAX_LOWERS: usize = 500;

/// One of the two files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record<T> {
    Absent,
    Damaged(&'static str),
    Good(Vec<T>),
}

fn record<T>(small: Small, parse: impl Fn(&str) -> Option<T>) -> Record<T> {
    match small {
        Small::Absent => Record::Absent,
        Small::Damaged(defect) => Record::Damaged(defect),
        Small::Text(text) => text
            .split(':')
            .map(parse)
            .collect::<Option<Vec<T>>>()
            .map_or(Record::Damaged("not a list of layers"), Record::Good),
    }
}

fn parse_link_entry(entry: &str) -> Option<LinkId> {
    LinkId::parse(entry.strip_prefix(LINKS)?.strip_prefix('/')?)
}

fn records(layer: &Layer<'_>) -> Result<(Record<LayerId>, Record<LinkId>)> {
    Ok((
        record(layer.read_small(LOWER_LAYERS)?, |id| LayerId::new(id).ok()),
        record(layer.read_small(LOWER)?, parse_link_entry),
    ))
}

/// The text of `lower-layers`.
pub(super) fn ids_text(ids: &[LayerId]) -> String {
    ids.iter().map(LayerId::as_str).collect::<Vec<_>>().join(":")
}

/// The text of `lower`.
pub(super) fn links_text(links: &[LinkId]) -> String {
    links.iter().map(|link| format!("{LINKS}/{link}")).collect::<Vec<_>>().join(":")
}

/// The layers below `layer`, nearest first; empty for a layer without parent.
///
/// # Errors
/// [`Error::Corrupt`] when the records are lost or contradict each other beyond repair.
pub(super) fn parents(homes: &Homes, layer: &Layer<'_>) -> Result<Vec<LayerId>> {
    parents_within(homes, layer, MAX_LOWERS)
}

fn parents_within(homes: &Homes, layer: &Layer<'_>, depth: usize) -> Result<Vec<LayerId>> {
    let (by_id, by_link) = records(layer)?;
    match (by_id, by_link) {
        (Record::Absent, Record::Absent) => Ok(Vec::new()),
        (Record::Good(ids), Record::Good(links)) => {
            let nearest = links.first().map(|link| homes.read_link(link)).transpose()?.flatten();
            // A missing link is no contradiction: the ids say where to look, and links are made again elsewhere.
            let agree = ids.len() == links.len() && (nearest.is_none() || nearest.as_ref() == ids.first());
            if agree { Ok(ids) } else { judge(homes, layer, ids, &links, depth) }
        }
        // Stores of 1.63 and before; nothing is wrong with them.
        (Record::Absent, Record::Good(links)) => resolve(homes, layer, &links),
        (Record::Damaged(defect), Record::Good(links)) => {
            let ids = resolve(homes, layer, &links)?;
            note(layer, LOWER_LAYERS, defect);
            rewrite(layer, LOWER_LAYERS, &ids_text(&ids))?;
            Ok(ids)
        }
        (Record::Good(ids), lost) => {
            note(layer, LOWER, if let Record::Damaged(defect) = lost { defect } else { "missing" });
            rewrite_lower(homes, layer, &ids)?;
            Ok(ids)
        }
        (Record::Damaged(defect), _) => Err(corrupt(layer, LOWER_LAYERS, defect)),
        (Record::Absent, Record::Damaged(defect)) => Err(corrupt(layer, LOWER, defect)),
    }
}

/// Two records that contradict each other: the one that agrees with the parent's own records is right.
fn judge(homes: &Homes, layer: &Layer<'_>, ids: Vec<LayerId>, links: &[LinkId], depth: usize) -> Result<Vec<LayerId>> {
    let contradiction = || Error::Corrupt {
        id: layer.id.clone(),
        defect: format!(
            "its files {LOWER_LAYERS} and {LOWER} contradict each other ({} and {} layers); correct them after the \
             parent recorded in layers.json, or delete the layer",
            ids.len(),
            links.len()
        ),
    };
    let depth = depth.checked_sub(1).ok_or_else(contradiction)?;
    let expected = |nearest: Option<&LayerId>| -> Result<Option<Vec<LayerId>>> {
        let Some(nearest) = nearest else { return Ok(None) };
        let Some(parent) = homes.find(nearest)? else { return Ok(None) };
        let mut chain = vec![nearest.clone()];
        chain.extend(parents_within(homes, &parent, depth)?);
        Ok(Some(chain))
    };
    let resolved = resolve(homes, layer, links).ok();
    if expected(ids.first())?.as_ref() == Some(&ids) {
        let other = match &resolved {
            Some(other) => expected(other.first())?.as_ref() == Some(other),
            None => false,
        };
        if other {
            return Err(contradiction());
        }
        note(layer, LOWER, "contradicts the parent's records");
        rewrite_lower(homes, layer, &ids)?;
        return Ok(ids);
    }
    if let Some(resolved) = resolved
        && expected(resolved.first())?.as_ref() == Some(&resolved)
    {
        note(layer, LOWER_LAYERS, "contradicts the parent's records");
        rewrite(layer, LOWER_LAYERS, &ids_text(&resolved))?;
        return Ok(resolved);
    }
    Err(contradiction())
}

/// The layers that links stand for, by `l/` or, where that lost them, by the layers' `link` files.
fn resolve(homes: &Homes, layer: &Layer<'_>, links: &[LinkId]) -> Result<Vec<LayerId>> {
    let mut ids = links.iter().map(|link| homes.read_link(link)).collect::<Result<Vec<_>>>()?;
    if ids.iter().any(Option::is_none) {
        // Looking at every layer, as peers do then, is the price of a lost l/.
        let named = homes.layers_by_link()?;
        for (id, link) in ids.iter_mut().zip(links) {
            if id.is_none() {
                *id = named.get(link).cloned();
                if let Some(id) = id
                    && let Some(lower) = homes.find(id)?
                    && lower.home.writable()
                {
                    lower.home.write_link(link, id)?;
                    note(&lower, LINKS, "link was missing");
                }
            }
        }
    }
    links.iter().zip(ids).map(|(link, id)| id.ok_or_else(|| Error::Corrupt {
        id: layer.id.clone(),
        defect: format!(
            "a layer below it cannot be found: {LINKS}/{link} is missing and no layer has that link; write the ids of its \
             parents to {LOWER_LAYERS}, nearest first, separated by colons"
        ),
    })).collect()
}

/// The name of the layer's link, with the entry in `l/` in place. What is lost is made again: under its old name if an
/// entry of `l/` still tells it, else as `hint` (what a child's `lower` called it), else under a new one.
pub(super) fn link_of(homes: &Homes, layer: &Layer<'_>, hint: Option<&LinkId>) -> Result<LinkId> {
    let recorded = match layer.read_small(LINK)? {
        Small::Text(text) => LinkId::parse(&text),
        Small::Absent | Small::Damaged(_) => None,
    };
    if let Some(link) = &recorded {
        match layer.home.read_link(link)? {
            Some(target) if target == layer.id => return Ok(link.clone()),
            None if !layer.home.writable() => return Ok(link.clone()),
            Some(other) if claims(homes, &other, link)? => {}
            Some(_) | None => {
                layer.home.write_link(link, &layer.id)?;
                note(layer, LINKS, "link was missing");
                return Ok(link.clone());
            }
        }
    }
    let existing = layer.home.links_to(&layer.id)?.into_iter().next();
    if !layer.home.writable() {
        return existing.or_else(|| hint.cloned()).ok_or_else(|| Error::Corrupt {
            id: layer.id.clone(),
            defect: format!("its file {LINK} is missing in a read-only store; open that store as a writable one once"),
        });
    }
    let free = |link: &LinkId| -> Result<bool> { Ok(layer.home.read_link(link)?.is_none()) };
    let link = match (existing, hint) {
        (Some(link), _) => link,
        (None, Some(hint)) if free(hint)? => hint.clone(),
        (None, _) => LinkId::random()?,
    };
    layer.home.write_link(&link, &layer.id)?;
    layer.replace_small(LINK, link.as_str())?;
    note(layer, LINK, "was missing");
    Ok(link)
}

/// Whether the layer `id` has `link` for its own.
fn claims(homes: &Homes, id: &LayerId, link: &LinkId) -> Result<bool> {
    let Some(layer) = homes.find(id)? else { return Ok(false) };
    Ok(matches!(layer.read_small(LINK)?, Small::Text(text) if text == link.as_str()))
}

/// Looks at the layer's own link, and puts those of the whole chain in order when it is lost: what took one away mostly
/// took all.
pub(super) fn ensure_links(homes: &Homes, layer: &Layer<'_>, chain: &[LayerId]) -> Result<()> {
    if !layer.home.writable() {
        return Ok(());
    }
    if let Small::Text(text) = layer.read_small(LINK)?
        && let Some(link) = LinkId::parse(&text)
        && layer.home.read_link(&link)?.as_ref() == Some(&layer.id)
    {
        return Ok(());
    }
    link_of(homes, layer, None)?;
    if !chain.is_empty() {
        rewrite_lower(homes, layer, chain)?;
    }
    Ok(())
}

/// Puts the links of all layers below in order, and writes `lower` anew if that changed it.
fn rewrite_lower(homes: &Homes, layer: &Layer<'_>, chain: &[LayerId]) -> Result<()> {
    let old = match records(layer)?.1 {
        Record::Good(links) if links.len() == chain.len() => links,
        _ => Vec::new(),
    };
    let mut links = Vec::with_capacity(chain.len());
    for (position, id) in chain.iter().enumerate() {
        let lower = homes.find(id)?.ok_or_else(|| missing_lower(layer, id))?;
        links.push(link_of(homes, &lower, old.get(position))?);
    }
    if links != old {
        rewrite(layer, LOWER, &links_text(&links))?;
    }
    Ok(())
}

/// The links of `layer`'s parents, which are `chain`; put in order if they are not whole.
pub(super) fn lower_links(homes: &Homes, layer: &Layer<'_>, chain: &[LayerId]) -> Result<Vec<LinkId>> {
    if let Record::Good(links) = records(layer)?.1
        && links.len() == chain.len()
    {
        return Ok(links);
    }
    if layer.home.writable() {
        rewrite_lower(homes, layer, chain)?;
    }
    chain.iter().map(|id| link_of(homes, &homes.find(id)?.ok_or_else(|| missing_lower(layer, id))?, None)).collect()
}

fn rewrite(layer: &Layer<'_>, name: &str, text: &str) -> Result<()> {
    if layer.home.writable() { layer.replace_small(name, text) } else { Ok(()) }
}

fn note(layer: &Layer<'_>, file: &str, defect: &str) {
    tracing::warn!(layer = %layer.id, file, defect, "repairing a layer's records");
}

/// The error for a chain with a hole.
pub(super) fn missing_lower(layer: &Layer<'_>, id: &LayerId) -> Error {
    Error::Corrupt {
        id: layer.id.clone(),
        defect: format!("layer {id} below it is missing; restore that layer, or delete this one"),
    }
}

fn corrupt(layer: &Layer<'_>, file: &str, defect: &str) -> Error {
    Error::Corrupt {
        id: layer.id.clone(),
        defect: format!(
            "its record of parents {file} is {defect}, as after a power loss; write the ids of its parents in layers.json \
             to {LOWER_LAYERS}, nearest first, separated by colons"
        ),
    }
}
