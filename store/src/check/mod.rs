//! Checking a store: whether layers, images and containers are what their records say.
//!
//! No lock is held while layers are read, so that others can work; what vanished or changed meanwhile is not reported.
//! Parents are judged when all stores have been read. Of trees only what the layers' archives state is compared
//! ([`graph_archive::verify`]).

mod layer;
mod objects;
mod repair;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use graph_archive::verify::{CompareOptions, ExpectedTree};
use graph_core::options::DriverOption;
use graph_core::{ErrorKind as DriverErrorKind, LayerId};

pub use repair::{RepairOptions, Unrepaired};
pub use report::{CheckReport, Defect, ObjectKind, Problem, Problems};

use crate::error::{Error, Result};
use crate::layers::LayerTables;
use crate::names::Found;
use crate::records::Layer;
use crate::store::{Home, Store, Stored};
use layer::{Looked, problem};

/// Told how far a check is: bytes read, and bytes there are to read.
pub type OnCheckProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// What a check looks at. The default looks at everything.
#[derive(Clone)]
pub struct CheckOptions {
    /// Put the archives of layers together again and compare digests and sizes.
    pub digests: bool,
    /// Compare the trees of the own store's layers with what their archives state; needs `digests`.
    pub contents: bool,
    /// Look for all data items.
    pub data: bool,
    /// Layers that nothing uses are reported when they are older than this.
    pub unreferenced_after: Duration,
    /// Only this layer, image or container (id, name or id prefix) with what it is made of.
    pub only: Option<String>,
    /// Layers to look at at the same time; 0 for as many as there are processors.
    pub threads: usize,
    /// Told of progress, from several threads.
    pub on_progress: Option<OnCheckProgress>,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            digests: true,
            contents: true,
            data: true,
            unreferenced_after: Duration::from_secs(24 * 3600),
            only: None,
            threads: 0,
            on_progress: None,
        }
    }
}

impl std::fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckOptions")
            .field("digests", &self.digests)
            .field("contents", &self.contents)
            .field("data", &self.data)
            .field("unreferenced_after", &self.unreferenced_after)
            .field("only", &self.only)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// What a check is limited to.
#[derive(Debug, Default)]
struct Scope {
    layers: BTreeSet<String>,
    images: BTreeSet<String>,
    containers: BTreeSet<String>,
}

/// An error about a layer and its causes on one line; the layer is said in front of it anyway.
fn text_of(layer: &str, error: &dyn std::error::Error) -> String {
    let text = text(error);
    match text.strip_prefix("layer ").and_then(|rest| rest.strip_prefix(layer)?.strip_prefix(": ")) {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

/// An error and its causes on one line.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = cause.source();
    }
    text
}

impl Store {
    /// Looks for damage. The store is not changed, but for a driver's own records of its layers, which it repairs as it
    /// goes (a lost name in overlay's `l/`).
    ///
    /// # Errors
    /// [`Error::NotKnown`] for an object to check that is not there; damaged files of records; I/O on those. What is wrong with
    /// single objects is in the report.
    pub fn check(&self, options: &CheckOptions) -> Result<CheckReport> {
        let scope = options.only.as_deref().map(|only| self.scope(only)).transpose()?;
        let tables = self.layer_tables()?;
        let layers = all_layers(&tables, scope.as_ref());
        let mut report = CheckReport::default();
        for layer in &layers {
            report.depths.insert(layer.id.clone(), tables.chain(&layer.id).len());
        }
        self.check_layers(&layers, options, &mut report);
        if scope.is_none() {
            self.check_driver(options, &mut report)?;
        }
        let tables = self.layer_tables()?;
        self.check_objects(&tables, scope.as_ref(), options, &mut report)?;
        self.drop_gone(&tables, &mut report);
        Ok(report)
    }

    /// The layers that a layer, an image or a container is made of: itself and all below.
    ///
    /// # Errors
    /// [`Error::NotKnown`].
    pub fn layers_of(&self, object: &str) -> Result<Vec<Stored<Layer>>> {
        let scope = self.scope(object)?;
        Ok(all_layers(&self.layer_tables()?, Some(&scope)))
    }

    /// A single object with all that it is made of.
    fn scope(&self, only: &str) -> Result<Scope> {
        let tables = self.layer_tables()?;
        let mut scope = Scope::default();
        let add_image = |scope: &mut Scope, id: &str| -> Result<()> {
            match self.image(id) {
                Ok(image) => {
                    scope.images.insert(image.id.clone());
                    for top in image.top_layers() {
                        scope.layers.extend(tables.chain(top).iter().map(|layer| layer.id.clone()));
                    }
                    Ok(())
                }
                Err(Error::ImageNotKnown { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        match self.find(only)? {
            Found::Layer(id) => scope.layers.extend(tables.chain(&id).iter().map(|layer| layer.id.clone())),
            Found::Image(id) => add_image(&mut scope, &id)?,
            Found::Container(id) => {
                let container = self.container(&id)?;
                scope.containers.insert(id);
                scope.layers.extend(tables.chain(&container.layer).iter().map(|layer| layer.id.clone()));
                add_image(&mut scope, &container.image)?;
            }
        }
        Ok(scope)
    }

    fn check_layers(&self, layers: &[Stored<Layer>], options: &CheckOptions, report: &mut CheckReport) {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        };
        let total: u64 = layers.iter().filter_map(|layer| u64::try_from(layer.diff_size).ok()).sum();
        let done = AtomicU64::new(0);
        let count = |bytes: u64| {
            let now = done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            if let Some(tell) = &options.on_progress {
                tell(now.min(total), total);
            }
        };
        // The biggest first, so that no thread is left alone with one at the end.
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(layers.get(*at).map_or(0, |layer| layer.diff_size)));
        let mut looked = in_threads(threads, &order, |at| match layers.get(at) {
            Some(layer) => self.look_at_layer(layer, options.digests, options.data, &count),
            None => Looked::default(),
        });

        let compare = self.compare_options();
        let trees =
            if options.contents && options.digests { expected_trees(layers, &mut looked) } else { HashMap::new() };
        let mounted = self.mounts.read().ok();
        let is_mounted = |id: &str| mounted.as_ref().is_some_and(|m| m.by_id(id).is_some_and(|row| row.count > 0));
        let own: Vec<usize> = order
            .into_iter()
            .filter(|at| {
                layers
                    .get(*at)
                    .is_some_and(|layer| !layer.is_read_only() && !is_mounted(&layer.id) || trees.contains_key(at))
            })
            .filter(|at| layers.get(*at).is_some_and(|layer| !layer.is_read_only()))
            .collect();
        let compared = in_threads(threads, &own, |at| match layers.get(at) {
            Some(layer) => self.look_at_tree(layer, trees.get(&at), &compare),
            None => Vec::new(),
        });
        for (at, layer) in layers.iter().enumerate() {
            if layer.is_incomplete() {
                report.add(problem(layer, Defect::Incomplete));
                continue;
            }
            let found = looked.get_mut(&at).map(|looked| std::mem::take(&mut looked.problems)).unwrap_or_default();
            let compared = compared.get(&at).cloned().unwrap_or_default();
            for problem in found.into_iter().chain(compared) {
                report.add(problem);
            }
        }
    }

    /// How far the driver's options let trees differ.
    pub(crate) fn compare_options(&self) -> CompareOptions {
        let mut options = CompareOptions {
            in_user_namespace: graph_sys::userns::is_in_user_namespace().unwrap_or(false),
            ..CompareOptions::default()
        };
        for option in self.options.driver_options.iter().filter_map(|option| DriverOption::parse(option).ok()) {
            let set = matches!(option.value, "1" | "t" | "T" | "TRUE" | "true" | "True");
            match option.key {
                "ignore_chown_errors" if set => options.ignore_owners = true,
                "force_mask" => options.ignore_modes = true,
                _ => {}
            }
        }
        options
    }

    /// Layers that nothing uses, and layers of the driver that no record knows: looked up together, under the lock that whoever
    /// makes layers holds.
    fn check_driver(&self, options: &CheckOptions, report: &mut CheckReport) -> Result<()> {
        let (_guard, own) = self.layers.records.read_locked()?;
        let tables = self.layer_tables_with(Arc::clone(&own))?;
        let mut used: BTreeSet<String> = BTreeSet::new();
        for (_, images) in self.image_tables()? {
            for image in images.iter() {
                for top in image.top_layers() {
                    used.extend(tables.chain(top).iter().map(|layer| layer.id.clone()));
                }
            }
        }
        for container in self.containers.records.read()?.iter() {
            used.extend(tables.chain(&container.layer).iter().map(|layer| layer.id.clone()));
        }
        let now = jiff::Timestamp::now();
        for layer in own.iter().filter(|layer| !used.contains(&layer.id) && !layer.is_incomplete()) {
            let age = layer.created.timestamp().map(|made| now.duration_since(made));
            let limit = jiff::SignedDuration::try_from(options.unreferenced_after).unwrap_or(jiff::SignedDuration::MAX);
            // Without a date nobody will ever know.
            if age.is_none_or(|age| age > limit) {
                report.add(problem(&Stored::new(layer, Home::Own), Defect::Unreferenced));
            }
        }
        let known = match self.driver.list_layers() {
            Ok(known) => known,
            Err(error) if error.kind() == DriverErrorKind::Unsupported => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let elsewhere = self.layers_recorded_elsewhere()?;
        let is_known = |id: &LayerId| own.by_id(id.as_str()).is_some() || elsewhere.contains_key(id.as_str());
        let unaccounted: Vec<LayerId> = known.into_iter().filter(|id| !is_known(id)).collect();
        for id in unaccounted {
            let bytes = self.driver.read_write_disk_usage(&id).map_or(0, |usage| usage.size);
            report.unaccounted_bytes = report.unaccounted_bytes.saturating_add(bytes);
            report.add(Problem {
                object: ObjectKind::Layer,
                id: id.to_string(),
                read_only: false,
                defect: Defect::Unaccounted { bytes },
            });
        }
        Ok(())
    }

    /// Forgets what was found of layers that were deleted or made anew meanwhile.
    fn drop_gone(&self, tables: &LayerTables, report: &mut CheckReport) {
        let gone = |id: &String, problems: &Vec<Problem>| {
            let own_record = problems.iter().any(|problem| !matches!(problem.defect, Defect::Unaccounted { .. }));
            own_record && tables.by_id(id).is_none()
        };
        for part in [&mut report.layers, &mut report.read_only_layers] {
            part.retain(|id, problems| !gone(id, problems));
        }
    }
}

/// The layers of all stores, each id once, own ones first.
fn all_layers(tables: &LayerTables, scope: Option<&Scope>) -> Vec<Stored<Layer>> {
    let mut seen = BTreeSet::new();
    let mut layers = Vec::new();
    for (home, table) in &tables.tables {
        for layer in table.iter() {
            if scope.is_none_or(|scope| scope.layers.contains(&layer.id)) && seen.insert(layer.id.clone()) {
                layers.push(Stored::new(layer, *home));
            }
        }
    }
    layers
}

/// The tree of every layer of which all archives down to the base are known.
fn expected_trees(layers: &[Stored<Layer>], looked: &mut BTreeMap<usize, Looked>) -> HashMap<usize, Arc<ExpectedTree>> {
    let places: HashMap<&str, usize> = layers.iter().enumerate().map(|(at, layer)| (layer.id.as_str(), at)).collect();
    let mut trees: HashMap<usize, Option<Arc<ExpectedTree>>> = HashMap::new();
    for start in 0..layers.len() {
        // Down to a layer whose tree is known, or to the base; then up again.
        let mut chain = Vec::new();
        let mut at = Some(start);
        let mut below: Option<Arc<ExpectedTree>> = Some(Arc::default());
        while let Some(now) = at {
            if let Some(known) = trees.get(&now) {
                below.clone_from(known);
                break;
            }
            // A chain that bites its tail has no base.
            if chain.contains(&now) {
                below = None;
                break;
            }
            chain.push(now);
            let Some(layer) = layers.get(now).filter(|layer| !layer.parent.is_empty()) else { break };
            at = places.get(layer.parent.as_str()).copied();
            if at.is_none() {
                below = None;
            }
        }
        while let Some(now) = chain.pop() {
            let members = looked.get_mut(&now).and_then(|looked| looked.members.take());
            below = match (below, members) {
                (Some(below), Some(members)) => {
                    let mut tree = (*below).clone();
                    tree.apply(&members);
                    Some(Arc::new(tree))
                }
                _ => None,
            };
            trees.insert(now, below.clone());
        }
    }
    trees.into_iter().filter_map(|(at, tree)| Some((at, tree?))).collect()
}

/// Does something for each number, in several threads.
fn in_threads<T: Send>(threads: usize, order: &[usize], work: impl Fn(usize) -> T + Sync) -> BTreeMap<usize, T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    let run = || {
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = work(*at);
            results.lock().unwrap_or_else(PoisonError::into_inner).insert(*at, result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(order.len()) {
            scope.spawn(run);
        }
        run();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}
