//! Layers: listing, making, showing, deleting.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use graph_archive::{IdMappings, IdRange};
use graph_store::{Container, CreateLayer, Expected, Image, Layer, Store, Stored};
use indicatif::DecimalBytes;

use super::{Outcome, each, id_and_names, optional};
use crate::cli::layers::NewLayer;
use crate::cli::{Listing, Objects};
use crate::output::{self, safe};
use crate::table::{self, Column, Paint, Table};
use crate::{id_map, progress};

/// What uses layers, by layer.
struct Users {
    images: HashMap<String, Vec<Stored<Image>>>,
    containers: HashMap<String, Vec<Stored<Container>>>,
}

impl Users {
    fn of(store: &Store) -> Result<Self> {
        let mut users = Self { images: HashMap::new(), containers: HashMap::new() };
        for image in store.images()? {
            for top in image.top_layers() {
                let of = users.images.entry(top.to_owned()).or_default();
                // An image may name its top layer twice.
                if of.last().is_none_or(|last| last.id != image.id) {
                    of.push(image.clone());
                }
            }
        }
        for container in store.containers()? {
            users.containers.entry(container.layer.clone()).or_default().push(container);
        }
        Ok(users)
    }

    fn images(&self, layer: &str) -> &[Stored<Image>] {
        self.images.get(layer).map(Vec::as_slice).unwrap_or_default()
    }

    fn containers(&self, layer: &str) -> &[Stored<Container>] {
        self.containers.get(layer).map(Vec::as_slice).unwrap_or_default()
    }
}

pub(crate) fn list(store: &Store, listing: &Listing, tree: bool) -> Result<Outcome> {
    let layers = store.layers()?;
    if listing.json.json {
        let records: Vec<&Layer> = layers.iter().map(|layer| &**layer.record()).collect();
        output::json(&(!records.is_empty()).then_some(records))?;
    } else if tree {
        print_tree(store, &layers)?;
    } else if listing.quiet {
        output::lines(layers.iter().map(|layer| safe(&layer.id)))?;
    } else if table::wanted() {
        print_table(&layers, &Users::of(store)?)?;
    } else {
        output::lines(described(&layers, &Users::of(store)?))?;
    }
    Ok(Outcome::Done)
}

/// Each layer's id, then what is known of it, line by line.
fn described(layers: &[Stored<Layer>], users: &Users) -> Vec<String> {
    let mut lines = Vec::new();
    for layer in layers {
        lines.push(safe(&layer.id));
        lines.extend(layer.names.iter().map(|name| format!("\tname: {}", safe(name))));
        for image in users.images(&layer.id) {
            lines.push(format!("\timage: {}", safe(&image.id)));
            lines.extend(image.names.iter().map(|name| format!("\t\tname: {}", safe(name))));
        }
        for container in users.containers(&layer.id) {
            lines.push(format!("\tcontainer: {}", safe(&container.id)));
            lines.extend(container.names.iter().map(|name| format!("\t\tname: {}", safe(name))));
        }
    }
    lines
}

fn print_table(layers: &[Stored<Layer>], users: &Users) -> Result<()> {
    let mut table = Table::new(&[
        Column::Id("ID"),
        Column::Text("PARENT"),
        Column::Text("CREATED"),
        Column::Number("SIZE"),
        Column::Text("NAMES, USED BY"),
    ]);
    for layer in layers {
        let named = |names: &[String], id: &str| names.first().map_or_else(|| table::short(id), Clone::clone);
        let mut notes = layer.names.clone();
        notes.extend(users.images(&layer.id).iter().map(|image| format!("image {}", named(&image.names, &image.id))));
        notes.extend(users.containers(&layer.id).iter().map(|c| format!("container {}", named(&c.names, &c.id))));
        if layer.is_read_only() {
            notes.push("read-only".to_owned());
        }
        let size = u64::try_from(layer.diff_size).ok().filter(|_| !layer.diff_digest.is_empty());
        table.row([
            table::short(&layer.id),
            table::short(&layer.parent),
            table::minute(layer.created.as_str()),
            size.map_or_else(|| "-".to_owned(), |size| DecimalBytes(size).to_string()),
            notes.join(", "),
        ]);
    }
    Ok(table.print()?)
}

fn print_tree(store: &Store, layers: &[Stored<Layer>]) -> Result<()> {
    let users = Users::of(store)?;
    let mut lines = Vec::new();
    let mut children: BTreeMap<&str, Vec<&Stored<Layer>>> = BTreeMap::new();
    for layer in layers {
        children.entry(layer.parent.as_str()).or_default().push(layer);
    }
    // Layers whose parent nobody knows hang below their parent's id.
    let known: HashSet<&str> = layers.iter().map(|layer| layer.id.as_str()).collect();
    let roots = children.keys().copied().filter(|parent| !known.contains(parent));
    for root in roots.collect::<Vec<_>>() {
        lines.push(if root.is_empty() { "(base)".to_owned() } else { safe(root) });
        // (layer, indent of its line, whether it is its parent's last child): deep stacks must not overflow ours.
        let mut pending: Vec<(&Stored<Layer>, String, bool)> = Vec::new();
        push_children(&children, root, "", &mut pending);
        while let Some((layer, indent, last)) = pending.pop() {
            let id = table::painted(&safe(&layer.id), Paint::Cyan);
            lines.push(format!("{indent}{}{id}", if last { "└─" } else { "├─" }));
            let inner = format!("{indent}{}", if last { "  " } else { "│ " });
            for name in &layer.names {
                lines.push(format!("{inner}name: {}", safe(name)));
            }
            if let Some(path) = store.mount_point(&layer.id)? {
                lines.push(format!("{inner}mount: {}", safe(&path.display().to_string())));
            }
            for image in users.images(&layer.id) {
                lines.push(format!("{inner}image: {}", safe(&image.id)));
                for name in &image.names {
                    lines.push(format!("{inner}image name: {}", safe(name)));
                }
            }
            for container in users.containers(&layer.id) {
                lines.push(format!("{inner}container: {}", safe(&container.id)));
                for name in &container.names {
                    lines.push(format!("{inner}container name: {}", safe(name)));
                }
            }
            push_children(&children, &layer.id, &inner, &mut pending);
        }
    }
    Ok(output::lines(lines)?)
}

fn push_children<'l>(
    children: &BTreeMap<&str, Vec<&'l Stored<Layer>>>,
    parent: &str,
    indent: &str,
    pending: &mut Vec<(&'l Stored<Layer>, String, bool)>,
) {
    let all = children.get(parent).map(Vec::as_slice).unwrap_or_default();
    for (index, child) in all.iter().enumerate().rev() {
        pending.push((child, indent.to_owned(), index + 1 == all.len()));
    }
}

fn options(words: &NewLayer) -> Result<CreateLayer> {
    Ok(CreateLayer {
        id: optional(words.id.as_deref()),
        parent: optional(words.parent.as_deref()),
        names: words.name.clone(),
        read_write: !words.readonly,
        mappings: id_map::parse(&words.id_map)?,
        mount_label: words.label.clone().unwrap_or_default(),
        ..CreateLayer::default()
    })
}

pub(crate) fn create(store: &Store, words: &NewLayer) -> Result<Outcome> {
    print(&store.create_layer(&options(words)?)?, words.json.json)
}

pub(crate) fn import(store: &Store, words: &NewLayer, file: Option<&Path>) -> Result<Outcome> {
    let (input, bytes) = input(file)?;
    let bar = progress::bytes("importing", bytes);
    let mut input = bar.wrap_read(input);
    let imported = store.import_layer(&options(words)?, &Expected::default(), &mut input);
    bar.finish_and_clear();
    print(&imported?.layer, words.json.json)
}

/// The named file, or standard input; its size where that is known.
pub(crate) fn input(file: Option<&Path>) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    match file {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let bytes = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            Ok((Box::new(file), bytes))
        }
        None => Ok((Box::new(std::io::stdin()), None)),
    }
}

fn print(layer: &Stored<Layer>, json: bool) -> Result<Outcome> {
    if json {
        output::json(&**layer.record())?;
    } else {
        id_and_names(&layer.id, &layer.names)?;
    }
    Ok(Outcome::Done)
}

/// Lines of a mapping, as `layer` shows it.
fn mapping(kind: &str, ranges: &[IdRange]) -> Result<()> {
    for range in ranges {
        let IdRange { container_id, host_id, size } = range;
        output::line(&format!("{kind} mapping: (container={container_id}, host={host_id}, size={size})"))?;
    }
    Ok(())
}

pub(crate) fn show(store: &Store, words: &Objects) -> Result<Outcome> {
    let found: Vec<Stored<Layer>> = words.objects.iter().filter_map(|object| store.layer(object).ok()).collect();
    if words.json.json {
        output::json(&found.iter().map(|layer| &**layer.record()).collect::<Vec<_>>())?;
    } else {
        for layer in &found {
            output::line(&format!("ID: {}", safe(&layer.id)))?;
            let IdMappings { uids, gids } = layer.mappings();
            mapping("UID", &uids)?;
            mapping("GID", &gids)?;
            if !layer.parent.is_empty() {
                output::line(&format!("Parent: {}", safe(&layer.parent)))?;
            }
            for name in &layer.names {
                output::line(&format!("Name: {}", safe(name)))?;
            }
            if layer.is_read_only() {
                output::line("Read Only: true")?;
            }
        }
    }
    Ok(if found.len() == words.objects.len() { Outcome::Done } else { Outcome::Failed })
}

pub(crate) fn delete(store: &Store, words: &Objects) -> Result<Outcome> {
    each(&words.objects, words.json.json, |layer| match store.delete_layer(layer) {
        Err(error) if error.kind() == graph_store::ErrorKind::LayerNotKnown => {
            Err(anyhow::anyhow!("identifier is not a layer"))
        }
        other => other.map_err(anyhow::Error::from),
    })
}
