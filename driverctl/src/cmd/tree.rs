//! Layers with what is on them, as a tree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use anyhow::Result;
use graph_store::{Container, Image, Layer, Store, Stored};
use indicatif::DecimalBytes;
use serde_json::json;

use super::Outcome;
use crate::output::{self, safe};

/// Everything that the tree shows.
struct Forest {
    layers: Vec<Stored<Layer>>,
    images: Vec<Stored<Image>>,
    containers: Vec<Stored<Container>>,
    /// Bytes of a layer's own files, by id; `None` where they could not be told.
    sizes: HashMap<String, Option<u64>>,
    /// Where layers are mounted, by id.
    mounts: HashMap<String, String>,
}

/// A line of the tree, before what is below it.
enum Node<'f> {
    Layer(&'f Stored<Layer>),
    /// A layer that records name and nobody has.
    Missing(&'f str),
    Image(&'f Stored<Image>),
    Container(&'f Stored<Container>),
}

impl Forest {
    fn of(store: &Store) -> Result<Self> {
        let (layers, images, containers) = (store.layers()?, store.images()?, store.containers()?);
        let mut sizes = HashMap::new();
        let mut mounts = HashMap::new();
        for layer in &layers {
            // The size of its archive where it came from one; what was written into it otherwise.
            let recorded = u64::try_from(layer.diff_size).ok().filter(|_| !layer.diff_digest.is_empty());
            sizes.insert(layer.id.clone(), recorded.or_else(|| store.diff_size(None, &layer.id).ok()));
            if let Ok(Some(path)) = store.mount_point(&layer.id) {
                mounts.insert(layer.id.clone(), path.display().to_string());
            }
        }
        Ok(Self { layers, images, containers, sizes, mounts })
    }

    /// An image's layers together, each once; `None` when one is missing or not known.
    fn image_size(&self, image: &Image) -> Option<u64> {
        let parents: HashMap<&str, &str> = self.layers.iter().map(|l| (l.id.as_str(), l.parent.as_str())).collect();
        let mut counted: HashSet<&str> = HashSet::new();
        let mut size: u64 = 0;
        for top in image.top_layers() {
            let mut next = top;
            while !next.is_empty() && counted.insert(next) {
                size = size.saturating_add(self.sizes.get(next).copied().flatten()?);
                next = parents.get(next)?;
            }
        }
        Some(size)
    }

    fn total(&self) -> u64 {
        self.sizes.values().flatten().fold(0, |sum, size| sum.saturating_add(*size))
    }

    fn size(&self, layer: &str) -> Option<u64> {
        self.sizes.get(layer).copied().flatten()
    }

    /// What hangs below each layer: images, then containers and layers. What has no layer below hangs below "".
    fn children(&self) -> BTreeMap<&str, Vec<Node<'_>>> {
        let mut children: BTreeMap<&str, Vec<Node<'_>>> = BTreeMap::new();
        let known: HashSet<&str> = self.layers.iter().map(|layer| layer.id.as_str()).collect();
        for image in &self.images {
            let mut tops: Vec<&str> = image.top_layers().collect();
            if tops.is_empty() {
                tops.push("");
            }
            for top in tops {
                children.entry(top).or_default().push(Node::Image(image));
            }
        }
        let of_container: HashMap<&str, &Stored<Container>> =
            self.containers.iter().map(|container| (container.layer.as_str(), container)).collect();
        for layer in &self.layers {
            let node = of_container.get(layer.id.as_str()).map_or(Node::Layer(layer), |c| Node::Container(c));
            children.entry(layer.parent.as_str()).or_default().push(node);
        }
        for container in self.containers.iter().filter(|container| !known.contains(container.layer.as_str())) {
            children.entry("").or_default().push(Node::Container(container));
        }
        let missing: Vec<&str> = children.keys().copied().filter(|id| !id.is_empty() && !known.contains(id)).collect();
        for id in missing {
            children.entry("").or_default().push(Node::Missing(id));
        }
        children
    }
}

pub(crate) fn tree(store: &Store, json: bool) -> Result<Outcome> {
    let forest = Forest::of(store)?;
    if json {
        print_json(store, &forest)?;
        return Ok(Outcome::Done);
    }
    output::line(&format!("{}: {}", store.driver().name(), safe(&store.root().display().to_string())))?;
    let children = forest.children();
    // (node, indent of its line, whether it is its parent's last child): deep stacks must not overflow ours.
    let mut pending: Vec<(&Node<'_>, String, bool)> = Vec::new();
    push(&children, "", "", &mut pending);
    let mut shown: HashSet<&str> = HashSet::new();
    while let Some((node, indent, last)) = pending.pop() {
        output::line(&format!("{indent}{} {}", if last { "└─" } else { "├─" }, line(&forest, node)))?;
        let below = match node {
            Node::Layer(layer) => layer.id.as_str(),
            Node::Missing(id) => id,
            Node::Container(container) => container.layer.as_str(),
            Node::Image(_) => continue,
        };
        // Records can be made to run in a circle.
        if shown.insert(below) {
            push(&children, below, &format!("{indent}{}", if last { "   " } else { "│  " }), &mut pending);
        }
    }
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    output::line(&format!(
        "{} with each layer counted once; {}, {}, {}",
        size(Some(forest.total())),
        count(forest.layers.len(), "layer"),
        count(forest.images.len(), "image"),
        count(forest.containers.len(), "container"),
    ))?;
    Ok(Outcome::Done)
}

fn push<'t, 'f>(
    children: &'t BTreeMap<&str, Vec<Node<'f>>>,
    parent: &str,
    indent: &str,
    pending: &mut Vec<(&'t Node<'f>, String, bool)>,
) {
    let all = children.get(parent).map(Vec::as_slice).unwrap_or_default();
    for (index, child) in all.iter().enumerate().rev() {
        pending.push((child, indent.to_owned(), index.saturating_add(1) == all.len()));
    }
}

/// The first twelve characters of an id.
fn short(id: &str) -> String {
    safe(&id.chars().take(12).collect::<String>())
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "size unknown".to_owned(), |bytes| DecimalBytes(bytes).to_string())
}

fn line(forest: &Forest, node: &Node<'_>) -> String {
    let (mut text, names, bytes, layer, read_only) = match node {
        Node::Layer(layer) => {
            (short(&layer.id), &layer.names, forest.size(&layer.id), Some(&layer.id), layer.is_read_only())
        }
        Node::Missing(id) => return format!("{} is missing", short(id)),
        Node::Image(image) => {
            let text = format!("image {}", short(&image.id));
            (text, &image.names, forest.image_size(image), None, image.is_read_only())
        }
        Node::Container(container) => {
            let text = format!("container {}", short(&container.id));
            (text, &container.names, forest.size(&container.layer), Some(&container.layer), false)
        }
    };
    for name in names {
        // Writing to a String cannot fail.
        let _ = write!(text, " {}", safe(name));
    }
    let _ = write!(text, "  {}", size(bytes));
    if read_only {
        text.push_str("  read-only");
    }
    if let Some(path) = layer.and_then(|layer| forest.mounts.get(layer)) {
        let _ = write!(text, "  mounted at {}", safe(path));
    }
    text
}

/// Flat lists that refer to each other by id: nesting as deep as stacks of layers go is more than JSON readers take.
fn print_json(store: &Store, forest: &Forest) -> Result<()> {
    let layers: Vec<_> = (forest.layers.iter())
        .map(|layer| {
            json!({"id": layer.id, "parent": layer.parent, "names": layer.names, "size": forest.size(&layer.id),
                "mounted-at": forest.mounts.get(&layer.id), "read-only": layer.is_read_only()})
        })
        .collect();
    let images: Vec<_> = (forest.images.iter())
        .map(|image| {
            json!({"id": image.id, "names": image.names, "layers": image.top_layers().collect::<Vec<_>>(),
                "size": forest.image_size(image), "read-only": image.is_read_only()})
        })
        .collect();
    let containers: Vec<_> = (forest.containers.iter())
        .map(|container| {
            json!({"id": container.id, "names": container.names, "image": container.image, "layer": container.layer,
                "size": forest.size(&container.layer), "mounted-at": forest.mounts.get(&container.layer)})
        })
        .collect();
    output::json(&json!({"driver": store.driver().name(), "root": store.root().display().to_string(),
        "size": forest.total(), "layers": layers, "images": images, "containers": containers}))
}
