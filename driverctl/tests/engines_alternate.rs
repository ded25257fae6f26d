//! One store, four tools, four workers at once: 200 operations in random order, each done by a tool chosen at random. At the
//! end every tool tells the same, nothing is mounted, and taking all away leaves nothing.
//!
//! The seed is printed; `ALTERNATION_SEED` replays it (each worker's choices, not how the workers interleave).

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use support::engines::{APP, BASE, Engines, Privilege, ids, json, tools};
use support::{TestStore, both, in_own_mount_namespace};

const WORKERS: usize = 4;
const OPERATIONS: usize = 50;

/// A generator of numbers that a seed determines (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        if all.is_empty() { None } else { Some(all[self.below(all.len())].clone()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Ours,
    Peer,
    Podman,
    Buildah,
}

/// A container, by the tool that keeps a state of its own for it, if one does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Container {
    name: String,
    of: Tool,
    image: String,
}

struct Worker<'e> {
    engines: &'e Engines<'e>,
    number: usize,
    random: Random,
    made: usize,
    /// Layers of this worker with their parents.
    layers: Vec<(String, Option<String>)>,
    images: Vec<String>,
    containers: Vec<Container>,
    done: Vec<String>,
}

impl Worker<'_> {
    fn name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("w{}-{kind}{}", self.number, self.made)
    }

    fn command(&self, tool: Tool, words: &[&str]) -> Command {
        match tool {
            Tool::Ours => self.engines.ours_command(words),
            Tool::Peer => self.engines.peer_command(words),
            Tool::Podman => self.engines.podman_command(words),
            Tool::Buildah => self.engines.buildah_command(words),
        }
    }

    fn call(&mut self, tool: Tool, words: &[&str]) -> Result<String, String> {
        self.done.push(format!("{tool:?} {}", words.join(" ")));
        let out = self.command(tool, words).output().unwrap();
        if !out.status.success() {
            return Err(format!("{tool:?} {words:?}: {}: {}", out.status, both(&out)));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
    }

    fn low(&mut self) -> Tool {
        self.random.of(&[Tool::Ours, Tool::Peer]).unwrap()
    }

    fn high(&mut self) -> Tool {
        self.random.of(&[Tool::Podman, Tool::Buildah]).unwrap()
    }

    fn any(&mut self) -> Tool {
        self.random.of(&[Tool::Ours, Tool::Peer, Tool::Podman, Tool::Buildah]).unwrap()
    }

    fn image(&mut self) -> String {
        let mut images = self.images.clone();
        images.extend(["localhost/base:1".to_owned(), "localhost/app:1".to_owned()]);
        self.random.of(&images).unwrap()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(13) {
            0 | 1 => self.make_layer(),
            2 => self.delete_layer(),
            3 | 4 => self.make_container(),
            5 => self.delete_container(),
            6 | 7 => self.write(),
            8 => self.commit(),
            9 => self.tag(),
            10 => self.delete_image(),
            11 => self.there_and_back(),
            _ => self.look(),
        }
    }

    fn make_layer(&mut self) -> Result<(), String> {
        let name = self.name("layer");
        let names: Vec<String> = self.layers.iter().map(|(name, _)| name.clone()).collect();
        let parent = self.random.of(&names);
        let tool = self.low();
        let mut words = vec!["create-layer", "-n", &name];
        words.extend(parent.as_deref());
        self.call(tool, &words)?;
        let dir = self.engines.store.path("files").join(&name);
        fs::create_dir_all(dir.join("dir")).unwrap();
        fs::write(dir.join("dir").join(&name), name.repeat(100)).unwrap();
        let tar = dir.with_extension("tar");
        support::run(Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&tar).arg("dir"));
        let tool = self.low();
        self.call(tool, &["applydiff", "-f", &tar.display().to_string(), &name])?;
        fs::remove_dir_all(&dir).unwrap();
        // Both make the archive again, byte for byte.
        let tool = self.low();
        self.done.push(format!("{tool:?} diff -u {name}"));
        let out = self.command(tool, &["diff", "-u", &name]).output().unwrap();
        if !out.status.success() || out.stdout != fs::read(&tar).unwrap() {
            return Err(format!("{tool:?} diff -u {name}: {}: another archive", out.status));
        }
        fs::remove_file(&tar).unwrap();
        self.layers.push((name, parent));
        Ok(())
    }

    fn delete_layer(&mut self) -> Result<(), String> {
        let is_parent = |name: &String| self.layers.iter().any(|(_, parent)| parent.as_ref() == Some(name));
        let free: Vec<String> =
            self.layers.iter().map(|(name, _)| name.clone()).filter(|name| !is_parent(name)).collect();
        let Some(name) = self.random.of(&free) else { return self.make_layer() };
        let tool = self.low();
        self.call(tool, &["delete-layer", &name])?;
        self.layers.retain(|(have, _)| *have != name);
        Ok(())
    }

    fn make_container(&mut self) -> Result<(), String> {
        let name = self.name("box");
        let image = self.image();
        let tool = self.any();
        match tool {
            Tool::Ours | Tool::Peer => self.call(tool, &["create-container", "-n", &name, &image])?,
            Tool::Podman => self.call(tool, &["create", "--name", &name, "--network=none", &image, "true"])?,
            Tool::Buildah => self.call(tool, &["from", "--pull-never", "--name", &name, &image])?,
        };
        if matches!(tool, Tool::Podman | Tool::Buildah) {
            // Equal layers of two workers would be one layer, which one of them takes away while the other's engine counts on it.
            let path = self.call(tool, &["mount", &name])?;
            fs::write(Path::new(&path).join(&name), &name).map_err(|error| format!("write to {path}: {error}"))?;
            self.call(tool, &["umount", &name])?;
        }
        self.containers.push(Container { name, of: tool, image });
        Ok(())
    }

    fn delete_container(&mut self) -> Result<(), String> {
        let Some(container) = self.random.of(&self.containers) else { return self.make_container() };
        match container.of {
            Tool::Ours | Tool::Peer => {
                let tool = self.low();
                self.call(tool, &["delete-container", &container.name])?;
            }
            tool => {
                self.call(tool, &["rm", &container.name])?;
            }
        }
        self.containers.retain(|have| *have != container);
        Ok(())
    }

    /// Writes into a container or layer that one tool mounts and, where the tools share the count, another unmounts.
    fn write(&mut self) -> Result<(), String> {
        let mut all: Vec<(String, Tool)> = self.containers.iter().map(|c| (c.name.clone(), c.of)).collect();
        all.extend(self.layers.iter().map(|(name, _)| (name.clone(), Tool::Ours)));
        let Some((name, of)) = self.random.of(&all) else { return self.make_container() };
        let own = matches!(of, Tool::Podman | Tool::Buildah) && self.random.below(2) == 0;
        let is_layer = self.layers.iter().any(|(layer, _)| *layer == name);
        // A layer's file would be none that its record knows; so layers are only looked at.
        let file = self.name("file");
        let (path, unmount): (String, _) = if own {
            (self.call(of, &["mount", &name])?, (of, "umount"))
        } else {
            let tool = self.low();
            // The old peer does not resolve names of layers here.
            let id = json(&self.call(Tool::Ours, &[if is_layer { "layer" } else { "container" }, "-j", &name])?);
            let id = id[0]["id"].as_str().unwrap().to_owned();
            let path = self.call(tool, &["mount", &id])?;
            (path, (self.low(), "unmount"))
        };
        let path = PathBuf::from(path.lines().last().unwrap_or_default());
        let result = if is_layer {
            if path.join("dir").join(&name).is_file() { Ok(()) } else { Err(format!("{name} lacks its file")) }
        } else {
            fs::create_dir_all(path.join("made"))
                .and_then(|()| fs::write(path.join("made").join(&file), &file))
                .map_err(|error| format!("write to {}: {error}", path.display()))
        };
        let id = if is_layer {
            json(&self.call(Tool::Ours, &["layer", "-j", &name])?)[0]["id"].as_str().unwrap().to_owned()
        } else {
            name
        };
        self.call(unmount.0, &[unmount.1, &id])?;
        result
    }

    fn commit(&mut self) -> Result<(), String> {
        let high: Vec<Container> =
            self.containers.iter().filter(|c| matches!(c.of, Tool::Podman | Tool::Buildah)).cloned().collect();
        let Some(container) = self.random.of(&high) else { return self.make_container() };
        let image = format!("localhost/{}:1", self.name("image"));
        self.call(container.of, &["commit", "-q", &container.name, &image])?;
        self.images.push(image);
        Ok(())
    }

    fn tag(&mut self) -> Result<(), String> {
        let Some(image) = self.random.of(&self.images) else { return self.commit() };
        let name = format!("localhost/{}:1", self.name("tag"));
        let tool = self.high();
        self.call(tool, &["tag", &image, &name])?;
        self.call(Tool::Podman, &["untag", &image, &name])?;
        Ok(())
    }

    /// An image of this worker that none of its containers has.
    fn free_image(&mut self) -> Option<String> {
        let free: Vec<String> =
            self.images.iter().filter(|image| self.containers.iter().all(|c| c.image != **image)).cloned().collect();
        self.random.of(&free)
    }

    fn delete_image(&mut self) -> Result<(), String> {
        let Some(image) = self.free_image() else { return self.make_container() };
        let tool = self.any();
        match tool {
            Tool::Ours | Tool::Peer => self.call(tool, &["delete-image", &image])?,
            Tool::Podman | Tool::Buildah => self.call(tool, &["rmi", &image])?,
        };
        self.images.retain(|have| *have != image);
        Ok(())
    }

    /// Out of the store by one, away by another, in again by a third.
    fn there_and_back(&mut self) -> Result<(), String> {
        let Some(image) = self.free_image() else { return self.commit() };
        let dir = self.engines.store.path("files").join(self.name("layout"));
        let layout = format!("oci:{}:x", dir.display());
        let reference = self.engines.reference(&image);
        let by_us = self.random.below(2) == 0;
        if by_us {
            self.call(Tool::Ours, &["save", &image, &layout])?;
        } else {
            self.call(Tool::Podman, &["push", "-q", &image, &layout])?;
        }
        let tool = self.low();
        self.call(tool, &["delete-image", &image])?;
        if self.random.below(2) == 0 {
            self.call(Tool::Ours, &["load", "--name", &image, &layout])?;
        } else {
            self.done.push(format!("skopeo copy {layout} {reference}"));
            self.engines.skopeo_copy(&layout, &reference);
        }
        fs::remove_dir_all(dir).unwrap();
        Ok(())
    }

    fn look(&mut self) -> Result<(), String> {
        let tool = self.any();
        match tool {
            Tool::Ours | Tool::Peer => {
                for verb in ["layers", "images", "containers"] {
                    self.call(tool, &[verb])?;
                }
            }
            Tool::Podman | Tool::Buildah => {
                let image = self.image();
                self.call(tool, &["inspect", "--type", "image", &image])?;
            }
        }
        Ok(())
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim_start_matches("sha256:").to_owned()).filter(|line| !line.is_empty()).collect()
}

fn listed(engines: &Engines<'_>, kind: &str) -> BTreeSet<String> {
    let ours: BTreeSet<String> = ids(&json(&engines.ours(&[kind, "-j"]))).into_iter().collect();
    let theirs: BTreeSet<String> = ids(&json(&engines.peer(&[kind, "-j"]))).into_iter().collect();
    assert_eq!(ours, theirs, "{kind}");
    ours
}

fn alternate(driver: &'static str, name: &str) {
    if !tools(&[], name) || !in_own_mount_namespace(name) {
        return;
    }
    let seed = match std::env::var("ALTERNATION_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) << 20 | std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() & 0xf_ffff,
    };
    eprintln!("{name}: ALTERNATION_SEED={seed}");
    let store = TestStore::new(driver);
    store.in_memory();
    let engines = Engines::new(&store, Privilege::Root);
    engines.script(BASE);
    engines.script(APP);

    let failed = Mutex::new(None::<String>);
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let (engines, failed) = (&engines, &failed);
            scope.spawn(move || {
                let mut worker = Worker {
                    engines,
                    number,
                    random: Random(seed ^ (number as u64) << 32),
                    made: 0,
                    layers: Vec::new(),
                    images: Vec::new(),
                    containers: Vec::new(),
                    done: Vec::new(),
                };
                for _ in 0..OPERATIONS {
                    if failed.lock().unwrap().is_some() {
                        return;
                    }
                    if let Err(error) = worker.step() {
                        let mut failed = failed.lock().unwrap();
                        let history = worker.done.join("\n  ");
                        failed.get_or_insert(format!("worker {number}: {error}\n  {history}"));
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap() {
        panic!("ALTERNATION_SEED={seed}: {error}");
    }

    listed(&engines, "layers");
    let images = listed(&engines, "images");
    let containers = listed(&engines, "containers");
    assert_eq!(lines(&engines.podman(&["images", "-a", "-q", "--no-trunc"])), images, "podman's images");
    assert_eq!(lines(&engines.buildah(&["images", "-a", "-q", "--no-trunc"])), images, "buildah's images");
    assert_eq!(
        lines(&engines.podman(&["ps", "-a", "-q", "--external", "--no-trunc"])),
        containers,
        "podman's containers"
    );
    assert_eq!(
        lines(&engines.buildah(&["containers", "-a", "-q", "--notruncate"])),
        containers,
        "buildah's containers"
    );
    engines.assert_nothing_mounted();
    let counts = store.path("run").join(format!("{driver}-layers/mountpoints.json"));
    assert_eq!(fs::read_to_string(counts).unwrap(), "[]", "counts of mounts");
    support::check_clean(&store);

    // Away with everything; what is left are the records and the driver's own names.
    engines.podman(&["rm", "--all", "--force"]);
    for kind in ["container", "image", "layer"] {
        let mut left = listed(&engines, &format!("{kind}s"));
        while !left.is_empty() {
            let before = left.len();
            for id in &left {
                // A layer with children goes in a later round.
                drop(engines.ours_command(&[&format!("delete-{kind}"), id]).output());
            }
            left = listed(&engines, &format!("{kind}s"));
            assert!(left.len() < before, "{kind}s that do not go: {left:?}");
        }
    }
    for (dir, own) in [
        (store.path("root").join(driver), &["l", "tempdirs", "dir", "staging", ".has-mount-program"][..]),
        (store.path("root").join(driver).join("l"), &[]),
        (store.path("root").join(driver).join("dir"), &[]),
        (store.path("root").join(driver).join("tempdirs"), &[]),
        (
            store.path("root").join(format!("{driver}-layers")),
            &["layers.json", "layers.lock", "tmp", "volatile-layers.json"],
        ),
        (store.path("root").join(format!("{driver}-images")), &["images.json", "images.lock"]),
        (
            store.path("root").join(format!("{driver}-containers")),
            &["containers.json", "containers.lock", "volatile-containers.json"],
        ),
    ] {
        assert_eq!(besides(&dir, own), Vec::<String>::new(), "{}", dir.display());
    }
}

fn besides(dir: &Path, own: &[&str]) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| !own.contains(&name.as_str())).collect()
}

#[test]
fn root_peer_four_tools_take_turns_on_overlay() {
    alternate("overlay", "root_peer_four_tools_take_turns_on_overlay");
}

#[test]
fn root_peer_four_tools_take_turns_on_vfs() {
    alternate("vfs", "root_peer_four_tools_take_turns_on_vfs");
}
