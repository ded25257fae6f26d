//! What a store takes on disk, and which of it belongs to what.
//!
//! Every file and directory below the graph root is looked at once and belongs to one owner:
//!
//! ```text
//! <root>/<driver>/<id>/  <root>/<driver>/<any>/<id>/                              layer <id>
//! <root>/<driver>-layers/<id>/  <root>/<driver>-layers/<id>.tar-split.gz          layer <id>
//! <root>/<driver>-images/<id>/                                                     image <id>
//! <root>/<driver>-containers/<id>/                                                 container <id>
//! everything else                                                                  the store itself
//! ```
//!
//! The sums are those of `du -x`: an inode counts once however many names it has, directories count with the blocks that they
//! take, what is mounted inside is left out.

mod walk;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::Result;
use crate::records::{Container, Image, Layer};
use crate::store::{Home, Store, Stored};
use walk::{Found, Job, Root};

/// Space that files take. Each inode counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes of contents: the sizes of regular files and of the targets of symbolic links.
    pub apparent: u64,
    /// Bytes allocated on disk (512-byte blocks of everything, directories included).
    pub on_disk: u64,
    /// Bytes of [`Space::on_disk`] that share their place with other files (reflinks); `None` where the file system cannot tell.
    pub reflinked: Option<u64>,
    /// Inodes.
    pub inodes: u64,
}

impl Space {
    /// Nothing, of which also nothing is shared.
    const NONE: Self = Self { apparent: 0, on_disk: 0, reflinked: Some(0), inodes: 0 };

    fn add(&mut self, other: &Self) {
        self.apparent = self.apparent.saturating_add(other.apparent);
        self.on_disk = self.on_disk.saturating_add(other.on_disk);
        self.reflinked = self.reflinked.zip(other.reflinked).map(|(a, b)| a.saturating_add(b));
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// A layer and what it takes: its files as the driver keeps them, its tar-split and its big data.
#[derive(Clone, Debug)]
pub struct LayerUsage {
    /// The layer.
    pub layer: Stored<Layer>,
    /// What it takes.
    pub space: Space,
}

/// An image and what it takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// The image.
    pub image: Stored<Image>,
    /// Its manifest, config and other big data.
    pub data: Space,
    /// Its layers that no other image has, and its data: what deleting it frees when no container is on them.
    pub unique: Space,
    /// Its layers that other images have, too.
    pub shared: Space,
}

/// A container and what it takes.
#[derive(Clone, Debug)]
pub struct ContainerUsage {
    /// The container.
    pub container: Stored<Container>,
    /// Its own layer; with drivers that copy, the whole tree.
    pub layer: Space,
    /// Its directory below the graph root: big data and its engine's files.
    pub data: Space,
}

/// What a store takes.
#[derive(Clone, Debug)]
pub struct StoreUsage {
    /// The layers, containers' too, in the order of the records; those of additional stores last.
    pub layers: Vec<LayerUsage>,
    /// The images.
    pub images: Vec<ImageUsage>,
    /// The containers.
    pub containers: Vec<ContainerUsage>,
    /// What belongs to none of them: records, locks, the driver's own files, left-overs.
    pub other: Space,
    /// All of the graph root (and of a separate image store), each inode once. Additional stores are not in it.
    pub total: Space,
}

/// How [`Store::disk_usage`] goes about it.
#[derive(Clone, Copy, Default)]
pub struct UsageOptions<'o> {
    /// Threads that look at files; 0 for as many as there are processors, eight at most.
    pub threads: usize,
    /// Told now and then how many of the directories of layers, images and containers are done, and how many there are.
    pub on_progress: Option<&'o (dyn Fn(usize, usize) + Sync)>,
}

impl std::fmt::Debug for UsageOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UsageOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    /// By number in the list of layers, and so on.
    Layer(usize),
    Image(usize),
    Container(usize),
    /// The store itself, by the number of its root.
    Root(usize),
}

impl Store {
    /// Measures what the store takes, by looking at every file in it. No lock is held meanwhile: what others make or delete
    /// while it runs may be counted or not.
    ///
    /// # Errors
    /// I/O; damaged records.
    pub fn disk_usage(&self, options: &UsageOptions<'_>) -> Result<StoreUsage> {
        let (layers, images, containers) = (self.layers()?, self.images()?, self.containers()?);
        let own = std::iter::once(self.root()).chain(self.options.image_store.as_deref()).map(|root| (root, None));
        let others = self.additional.iter().enumerate().map(|(number, store)| (store.root.as_path(), Some(number)));
        let (mut roots, mut places) = (Vec::new(), Vec::new());
        for (root, place) in own.chain(others) {
            roots.push(Root::open(root, self.driver.name())?);
            places.push(place);
        }
        let mut jobs: Vec<Job> = Vec::new();
        let mut sums: BTreeMap<Owner, Found> = BTreeMap::new();
        for (number, (root, place)) in roots.iter().zip(&places).enumerate() {
            let owners = walk::Owners {
                layers: index(&layers, *place, |layer| &layer.id),
                images: index(&images, *place, |image| &image.id),
                containers: index(&containers, *place, |container| &container.id),
                root: number,
            };
            root.split(&owners, &mut jobs, &mut sums)?;
        }
        for (owner, found) in walk::run(&roots, &jobs, options)? {
            sums.entry(owner).or_default().merge(found);
        }

        let own_layer = |id: &str| layers.iter().position(|layer| layer.id == id).map(Owner::Layer);
        let of = |owner: Owner| sums.get(&owner).map_or(Space::NONE, Found::space);
        let is_own = |owner: &Owner| match owner {
            Owner::Layer(number) => layers.get(*number).is_some_and(|layer| !layer.is_read_only()),
            Owner::Image(number) => images.get(*number).is_some_and(|image| !image.is_read_only()),
            Owner::Container(_) => true,
            Owner::Root(number) => places.get(*number).is_some_and(Option::is_none),
        };
        let total = sum(&sums, sums.keys().copied().filter(is_own));
        let others = sums.keys().copied().filter(|owner| matches!(owner, Owner::Root(_)) && is_own(owner));
        let chains: Vec<Vec<Owner>> = images.iter().map(|image| chain(image, &layers)).collect();
        let mut users: HashMap<Owner, usize> = HashMap::new();
        for owner in chains.iter().flatten() {
            let count = users.entry(*owner).or_default();
            *count = count.saturating_add(1);
        }
        let measure_image = |(number, image): (usize, &Stored<Image>)| {
            let chain = chains.get(number).map(Vec::as_slice).unwrap_or_default();
            let is_shared = |owner: &&Owner| users.get(owner).is_some_and(|users| *users > 1);
            let unique = chain.iter().filter(|owner| !is_shared(owner)).copied().chain([Owner::Image(number)]);
            ImageUsage {
                image: image.clone(),
                data: of(Owner::Image(number)),
                unique: sum(&sums, unique),
                shared: sum(&sums, chain.iter().filter(is_shared).copied()),
            }
        };
        Ok(StoreUsage {
            images: images.iter().enumerate().map(measure_image).collect(),
            containers: (containers.iter().enumerate())
                .map(|(number, container)| ContainerUsage {
                    container: container.clone(),
                    layer: own_layer(&container.layer).map_or(Space::NONE, of),
                    data: of(Owner::Container(number)),
                })
                .collect(),
            layers: (layers.iter().enumerate())
                .map(|(number, layer)| LayerUsage { layer: layer.clone(), space: of(Owner::Layer(number)) })
                .collect(),
            other: sum(&sums, others),
            total,
        })
    }
}

/// The numbers of what lies in one store, by id.
fn index<T>(all: &[Stored<T>], additional: Option<usize>, id: impl Fn(&T) -> &String) -> HashMap<String, usize> {
    let place = |home| if let Home::Additional(number) = home { Some(number) } else { None };
    let own = all.iter().enumerate().filter(|(_, one)| place(one.home()) == additional);
    own.map(|(number, one)| (id(one).clone(), number)).collect()
}

/// The layers that an image has, its mapped top layers among them, each once.
fn chain(image: &Image, layers: &[Stored<Layer>]) -> Vec<Owner> {
    let mut chain: Vec<Owner> = Vec::new();
    for top in image.top_layers() {
        let mut next = top.to_owned();
        while let Some(number) = layers.iter().position(|layer| layer.id == next) {
            if chain.contains(&Owner::Layer(number)) {
                break;
            }
            chain.push(Owner::Layer(number));
            next = layers.get(number).map(|layer| layer.parent.clone()).unwrap_or_default();
        }
    }
    chain
}

/// What several owners take together: an inode that several have counts once.
fn sum(sums: &BTreeMap<Owner, Found>, owners: impl Iterator<Item = Owner>) -> Space {
    let mut all = Space::NONE;
    let mut seen: HashSet<(u64, u64)> = HashSet::new();
    for found in owners.filter_map(|owner| sums.get(&owner)) {
        all.add(&found.alone);
        for (inode, space) in &found.linked {
            if seen.insert(*inode) {
                all.add(space);
            }
        }
    }
    all
}
