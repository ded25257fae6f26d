//! What `check` says of damage, what its repair leaves, and what it leaves alone in a store that is only read; `gc`, `dedup`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Row;
use crate::ground::{Ground, merged, names, random_file};
use crate::support::filesystem::Kind;

pub(crate) const ROWS: &[Row] = &[
    Row::new("check-unmanaged-layers", unmanaged).once(),
    Row::new("check-unmanaged-ro-layers", unmanaged_below).once(),
    Row::new("check-unmanaged-rw-layers", unmanaged_above).once(),
    Row::new("check-unused-layers", unused).once(),
    Row::new("check-unused-ro-layers", unused_below).once(),
    Row::new("check-unused-rw-layers", unused_above).once(),
    Row::new("check-layer-content-digest", content_digest).everywhere(),
    Row::new("check-ro-layer-content-digest", content_digest_below).once(),
    Row::new("check-layer-content-modified", content_modified).everywhere(),
    Row::new("check-image-layer-missing", image_layer_missing).once(),
    Row::new("check-ro-image-layer-missing", image_layer_missing_below).once(),
    Row::new("check-container-image-missing", container_image_missing).everywhere(),
    Row::new("check-container-ro-image-missing", container_image_missing_below).everywhere(),
    Row::new("check-layer-data-missing", layer_data_missing).once(),
    Row::new("check-ro-layer-data-missing", layer_data_missing_below).once(),
    Row::new("check-image-data-missing", image_data_missing).once(),
    Row::new("check-ro-image-data-missing", image_data_missing_below).once(),
    Row::new("check-image-data-modified", image_data_modified).once(),
    Row::new("check-ro-image-data-modified", image_data_modified_below).once(),
    Row::new("check-container-data-missing", container_data_missing),
    Row::new("check-container-data-modified", container_data_modified),
    Row::new("check-parent-below", parent_below).once(),
    Row::new("gc", garbage).everywhere(),
    Row::new("dedup", dedup).on(&[Kind::Xfs, Kind::Btrfs]),
    Row::new("dedup-without-reflinks", dedup_nothing).once(),
];

/// The store of the row, with or without one below that is only read.
struct Scene<'g> {
    ground: &'g Ground,
    /// The option that lays the other store below this one; empty where the row has none.
    above: Vec<String>,
}

impl<'g> Scene<'g> {
    fn alone(ground: &'g Ground) -> Self {
        Self { ground, above: Vec::new() }
    }

    fn with_below(ground: &'g Ground) -> Self {
        let option = format!("--storage-opt={}.imagestore={}", ground.driver, ground.text("ro-root"));
        Self { ground, above: vec![option] }
    }

    fn words<'w>(&'w self, words: &[&'w str]) -> Vec<&'w str> {
        self.above.iter().map(String::as_str).chain(words.iter().copied()).collect()
    }

    fn ok(&self, words: &[&str]) -> String {
        self.ground.ok(&self.words(words))
    }

    /// In the store below, which becomes an ordinary one for that.
    fn below(&self, words: &[&str]) -> String {
        let (graph, run) = (self.ground.text("ro-root"), self.ground.text("ro-runroot"));
        self.ground.ok(&[&["--graph", &graph, "--run", &run], words].concat())
    }

    fn copy_below(&self, from: &str, to: &str) {
        self.below(&["copy", &self.ground.text(from), to]);
    }

    /// An image with a layer of its own.
    fn image(&self) -> String {
        let layer = self.ok(&["create-layer"]);
        self.ok(&["create-image", &layer])
    }

    /// Must succeed, perhaps with debugging output between the lines; whatever was said.
    fn repairs(&self, words: &[&str], texts: &[&str]) {
        let answer = self.ground.run(&self.words(words));
        assert_eq!(answer.status.code(), Some(0), "{words:?}: {answer:?}");
        for text in texts {
            assert!(answer.output.contains(text), "{words:?} does not say {text:?}: {answer:?}");
        }
    }

    /// Must fail and say all of this.
    fn finds(&self, words: &[&str], texts: &[&str]) {
        let answer = self.ground.run(&self.words(words));
        assert_eq!(answer.status.code(), Some(1), "{words:?}: {answer:?}");
        for text in texts {
            assert!(answer.output.contains(text), "{words:?} does not say {text:?}: {answer:?}");
        }
    }

    /// Nothing is wrong, and nothing is said.
    fn clean(&self) {
        assert_eq!(self.ok(&["check"]), "");
    }

    /// What was found below can be found again, as nothing can be done about it, and not from the upper store alone.
    fn stays_below(&self, texts: &[&str]) {
        self.finds(&["check", "-r"], texts);
        self.finds(&["check"], texts);
        assert_eq!(self.ground.ok(&["check"]), "");
    }

    fn data_file(&self, root: &str, kind: &str, id: &str) -> PathBuf {
        self.ground.path(&format!("{root}/{}-{kind}/{id}/datafile", self.ground.driver))
    }

    /// A diff of two files, which becomes the content of the layer.
    fn diff(&self) -> String {
        for name in ["datafile1", "datafile2", "datafile3", "datafile"] {
            random_file(&self.ground.path(name));
        }
        let list =
            merged(Command::new("tar").args(["-cf", "diff", "datafile1", "datafile2"]).current_dir(&self.ground.dir));
        assert!(list.status.success(), "{list:?}");
        self.ground.text("diff")
    }
}

fn unaccounted(layer: &str) -> String {
    format!("layer {layer}: layer in lower level storage driver not accounted for")
}

fn unreferenced(layer: &str) -> String {
    format!("layer {layer}: layer not referenced by any images or containers")
}

fn missing(kind: &str, id: &str) -> String {
    format!("{kind} {id}: data item \"datafile\": {kind} data item is missing")
}

fn modified(kind: &str, id: &str) -> String {
    format!("{kind} {id}: data item \"datafile\": {kind} data item has incorrect size")
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn lengthen(path: &Path) {
    fs::File::options().append(true).open(path).unwrap().write_all(b"\n").unwrap();
}

/// Layers that only the driver knows go, children with their parents.
fn unmanaged(ground: &Ground) {
    let scene = Scene::alone(ground);
    let layer = scene.ok(&["create-storage-layer"]);
    let child = scene.ok(&["create-storage-layer", &layer]);
    let other = scene.ok(&["create-storage-layer"]);
    scene.repairs(&["check", "-r"], &[&unaccounted(&layer), &unaccounted(&child), &unaccounted(&other)]);
    assert_eq!(scene.ok(&["storage-layers"]), "");
}

/// Such layers of the store below are nobody's business.
fn unmanaged_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let layer = scene.below(&["create-storage-layer"]);
    scene.below(&["create-storage-layer", &layer]);
    scene.below(&["shutdown"]);
    scene.image();
    scene.clean();
    assert_eq!(scene.ok(&["check", "-r"]), "");
}

/// Those of one's own store go, and what lies below stays.
fn unmanaged_above(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let kept = scene.below(&["create-layer"]);
    scene.below(&["create-image", &kept]);
    scene.below(&["shutdown"]);
    let layer = scene.ok(&["create-storage-layer"]);
    let other = scene.ok(&["create-storage-layer", &layer]);
    scene.repairs(&["check", "-r"], &[&unaccounted(&layer), &unaccounted(&other)]);
    assert_eq!(ground.ok(&["storage-layers"]), "");
    assert_eq!(scene.ok(&["layers", "-q"]), kept);
}

/// Layers without an image go when they are old enough.
fn unused(ground: &Ground) {
    let scene = Scene::alone(ground);
    let layer = scene.ok(&["create-layer"]);
    let child = scene.ok(&["create-layer", &layer]);
    assert_eq!(scene.ok(&["check", "-r"]), "");
    assert_eq!(scene.ok(&["check", "-r", "-m", "1h30m"]), "");
    assert!(ground.fails(&["check", "-m", "bad"]).contains("time: invalid duration \"bad\""));
    scene.repairs(&["check", "-r", "-m", "0"], &[&unreferenced(&layer), &unreferenced(&child)]);
    assert_eq!(scene.ok(&["layers"]), "");
}

fn unused_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let layer = scene.below(&["create-layer"]);
    scene.below(&["create-layer", &layer]);
    scene.below(&["shutdown"]);
    scene.image();
    assert_eq!(scene.ok(&["check", "-m", "0"]), "");
}

fn unused_above(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let kept = scene.below(&["create-layer"]);
    scene.below(&["create-image", &kept]);
    scene.below(&["shutdown"]);
    let layer = scene.ok(&["create-layer"]);
    let child = scene.ok(&["create-layer", &layer]);
    assert_eq!(scene.ok(&["check", "-r"]), "");
    scene.repairs(&["check", "-r", "-m", "0"], &[&unreferenced(&layer), &unreferenced(&child)]);
    assert_eq!(scene.ok(&["layers", "-q"]), kept);
}

/// Whether the layer is said to have other content than it was given.
fn says_content(output: &str, layer: &str) -> bool {
    ["layer content incorrect digest", "file integrity checksum failed"]
        .iter()
        .any(|text| output.contains(&format!("layer {layer}: {text}")))
}

/// A file of the diff that was overwritten.
fn content_digest(ground: &Ground) {
    let scene = Scene::alone(ground);
    let diff = scene.diff();
    let layer = scene.ok(&["create-layer"]);
    scene.ok(&["apply-diff", "-f", &diff, &layer]);
    scene.ok(&["create-image", &layer]);
    scene.clean();
    scene.ok(&["copy", &ground.text("datafile3"), &format!("{layer}:/datafile1")]);
    let answer = ground.run(&["check", "-r"]);
    assert_eq!(answer.status.code(), Some(0), "{answer:?}");
    assert!(says_content(&answer.output, &layer), "{answer:?}");
    assert_eq!(scene.ok(&["images"]), "");
    assert_eq!(scene.ok(&["layers"]), "");
}

fn content_digest_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let diff = scene.diff();
    let layer = scene.below(&["create-layer"]);
    scene.below(&["apply-diff", "-f", &diff, &layer]);
    scene.copy_below("datafile3", &format!("{layer}:/datafile1"));
    scene.below(&["create-image", &layer]);
    scene.below(&["shutdown"]);
    scene.image();
    let answer = ground.run(&scene.words(&["check", "-r"]));
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(says_content(&answer.output, &layer), "{answer:?}");
    assert_eq!(ground.ok(&["check"]), "");
    assert_eq!(scene.ok(&["images", "-q"]).lines().count(), 2);
}

/// A file that no diff knows.
fn content_modified(ground: &Ground) {
    let scene = Scene::alone(ground);
    let diff = scene.diff();
    let layer = scene.ok(&["create-layer"]);
    scene.ok(&["apply-diff", "-f", &diff, &layer]);
    scene.ok(&["copy", &ground.text("datafile3"), &format!("{layer}:/datafile3")]);
    scene.ok(&["create-image", &layer]);
    // Not looked for.
    assert_eq!(scene.ok(&["check", "-q"]), "");
    scene.repairs(&["check", "-r"], &[&format!("layer {layer}: +/datafile3, layer content modified")]);
    scene.clean();
}

fn image_layer_missing(ground: &Ground) {
    let scene = Scene::alone(ground);
    let layer = scene.ok(&["create-layer"]);
    let image = scene.ok(&["create-image", &layer]);
    scene.ok(&["delete", &layer]);
    scene.repairs(&["check", "-r"], &[&format!("image {image}: layer {layer}: image layer is missing")]);
    scene.clean();
}

fn image_layer_missing_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let layer = scene.below(&["create-layer"]);
    let image = scene.below(&["create-image", &layer]);
    scene.below(&["delete", &layer]);
    scene.below(&["shutdown"]);
    scene.image();
    scene.stays_below(&[&format!("image {image}: layer {layer}: image layer is missing")]);
}

/// A container stays until one insists.
fn container_image_missing(ground: &Ground) {
    let scene = Scene::alone(ground);
    let image = scene.image();
    let container = scene.ok(&["create-container", &image]);
    scene.ok(&["delete", &image]);
    let texts = [&*format!("container {container}:"), &format!("image {image}: image missing")];
    scene.finds(&["check", "-r"], &texts);
    scene.finds(&["check"], &texts);
    scene.repairs(&["check", "-r", "-f"], &texts);
    scene.clean();
    assert_eq!(scene.ok(&["containers"]), "");
}

/// The same with an image below that is gone with its layer, so that the container's own layer has no parent.
fn container_image_missing_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let layer = scene.below(&["create-layer"]);
    let image = scene.below(&["create-image", &layer]);
    scene.below(&["shutdown"]);
    let container = scene.ok(&["create-container", &image]);
    scene.clean();
    let shown = scene.ok(&["container", &container]);
    let own = shown.lines().find_map(|line| line.strip_prefix("Layer: ")).unwrap();
    scene.below(&["delete", &layer]);
    scene.below(&["delete", &image]);
    scene.below(&["shutdown"]);
    let texts = [&*format!("container {container}:"), &format!("image {image}: image missing")];
    let in_use = format!("layer {own} used by container {container}: layer is in use by a container");
    scene.finds(&["check", "-r"], &[&texts[..], &[&in_use]].concat());
    scene.finds(&["check"], &texts);
    scene.repairs(&["check", "-r", "-f"], &texts);
    scene.clean();
    assert_eq!(scene.ok(&["layers"]), "");
}

/// A data item of a layer or an image that is damaged: the image goes.
fn data(ground: &Ground, kind: &str, damage: fn(&Path), text: fn(&str, &str) -> String) {
    let scene = Scene::alone(ground);
    scene.diff();
    let layer = scene.ok(&["create-layer"]);
    let image = scene.ok(&["create-image", &layer]);
    let id = if kind == "layer" { &layer } else { &image };
    scene.ok(&[&format!("set-{kind}-data"), "-f", &ground.text("datafile"), id, "datafile"]);
    assert_eq!(scene.ok(&[&format!("list-{kind}-data"), id]), "datafile");
    scene.clean();
    damage(&scene.data_file("root", &format!("{kind}s"), id));
    scene.repairs(&["check", "-r"], &[&text(kind, id)]);
    scene.clean();
    assert_eq!(scene.ok(&["images"]), "");
    assert_eq!(scene.ok(&["layers"]), "");
}

/// The same below: nothing goes.
fn data_below(ground: &Ground, kind: &str, damage: fn(&Path), text: fn(&str, &str) -> String) {
    let scene = Scene::with_below(ground);
    scene.diff();
    let layer = scene.below(&["create-layer"]);
    let image = scene.below(&["create-image", &layer]);
    let id = if kind == "layer" { &layer } else { &image };
    scene.below(&[&format!("set-{kind}-data"), "-f", &ground.text("datafile"), id, "datafile"]);
    assert_eq!(scene.below(&["check"]), "");
    scene.below(&["shutdown"]);
    let own = scene.image();
    scene.clean();
    damage(&scene.data_file("ro-root", &format!("{kind}s"), id));
    scene.stays_below(&[&text(kind, id), &format!("read-only {kind} {id}:")]);
    let images = scene.ok(&["images", "-q"]);
    let mut images: Vec<&str> = images.lines().collect();
    images.sort_unstable();
    let mut all = [own, image];
    all.sort();
    assert_eq!(images, all);
}

fn layer_data_missing(ground: &Ground) {
    data(ground, "layer", remove, missing);
}

fn layer_data_missing_below(ground: &Ground) {
    data_below(ground, "layer", remove, missing);
}

fn image_data_missing(ground: &Ground) {
    data(ground, "image", remove, missing);
}

fn image_data_missing_below(ground: &Ground) {
    data_below(ground, "image", remove, missing);
}

fn image_data_modified(ground: &Ground) {
    data(ground, "image", lengthen, modified);
}

fn image_data_modified_below(ground: &Ground) {
    data_below(ground, "image", lengthen, modified);
}

/// A damaged container stays until one insists.
fn container_data(ground: &Ground, damage: fn(&Path), text: fn(&str, &str) -> String) {
    let scene = Scene::alone(ground);
    scene.diff();
    let image = scene.image();
    let container = scene.ok(&["create-container", &image]);
    scene.ok(&["set-container-data", "-f", &ground.text("datafile"), &container, "datafile"]);
    scene.clean();
    damage(&scene.data_file("root", "containers", &container));
    let said = text("container", &container);
    scene.finds(&["check", "-r"], &[&said]);
    scene.finds(&["check"], &[&said]);
    scene.repairs(&["check", "-r", "-f"], &[&said]);
    scene.clean();
    assert_eq!(scene.ok(&["containers"]), "");
    assert_eq!(scene.ok(&["images", "-q"]), image);
}

fn container_data_missing(ground: &Ground) {
    container_data(ground, remove, missing);
}

fn container_data_modified(ground: &Ground) {
    container_data(ground, lengthen, modified);
}

/// A layer whose parent lies below has its parent, and nothing that is well is deleted.
fn parent_below(ground: &Ground) {
    let scene = Scene::with_below(ground);
    let diff = scene.diff();
    let parent = scene.below(&["import-layer", "-f", &diff]);
    let parent_image = scene.below(&["create-image", &parent]);
    scene.below(&["shutdown"]);
    let layer = scene.ok(&["import-layer", "-f", &diff, &parent]);
    let image = scene.ok(&["create-image", &layer]);
    let container = scene.ok(&["create-container", &parent_image]);
    scene.clean();
    assert_eq!(scene.ok(&["check", "-r", "-f", "-m", "0"]), "");
    assert_eq!(ground.ok(&["images", "-q"]), image);
    assert_eq!(scene.ok(&["containers", "-q"]), container);
    // Our own leftovers are found beside theirs.
    let unused = scene.ok(&["create-layer"]);
    scene.repairs(&["check", "-r", "-m", "0"], &[&unreferenced(&unused)]);
    assert_eq!(scene.ok(&["layers", "-q"]).lines().count(), 3);
}

/// Data that belongs to no record goes; everything else stays, and so does data of layers that may lie in an image store that
/// is not open.
fn garbage(ground: &Ground) {
    let scene = Scene::alone(ground);
    scene.diff();
    let image = scene.image();
    scene.ok(&["set-image-data", "-f", &ground.text("datafile"), &image, "datafile"]);
    let container = scene.ok(&["create-container", &image]);
    assert_eq!(scene.ok(&["gc"]), "");
    assert_eq!(scene.ok(&["gc", "-j"]), "\"\"");
    let nobody = "0123456789abcdef".repeat(4);
    let dirs =
        ["layers", "images", "containers"].map(|kind| ground.path(&format!("root/{}-{kind}/{nobody}", ground.driver)));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("datafile"), "data").unwrap();
    }
    assert_eq!(scene.ok(&["gc"]), "");
    let [of_layer, rest @ ..] = &dirs;
    assert!(of_layer.exists(), "{of_layer:?}");
    for dir in rest {
        assert!(!dir.exists(), "{dir:?}");
    }
    fs::remove_dir_all(of_layer).unwrap();
    assert_eq!(names(scene.data_file("root", "images", &image).parent().unwrap()), ["datafile"]);
    assert_eq!(scene.ok(&["containers", "-q"]), container);
    scene.clean();
}

/// Three layers that share two files.
fn shared(scene: &Scene<'_>) {
    for name in ["one", "two"] {
        let mut bytes = vec![0; 100_000];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
        fs::write(scene.ground.path(name), bytes).unwrap();
    }
    let mut parent = String::new();
    for n in 1..=3 {
        parent = scene.ok(&["create-layer", &parent]);
        for name in ["one", "two"] {
            scene.ok(&["copy", &scene.ground.text(name), &format!("{parent}:/{name}-{n}")]);
        }
    }
    // What was not written yet lies nowhere.
    assert!(merged(&mut Command::new("sync")).status.success());
}

/// Every run counts what is shared, by every method.
fn dedup(ground: &Ground) {
    let scene = Scene::alone(ground);
    shared(&scene);
    let count = || {
        let said = scene.ok(&["dedup"]);
        said.strip_prefix("Deduplicated ").and_then(|rest| rest.strip_suffix(" bytes")).unwrap().parse::<u64>().unwrap()
    };
    let first = count();
    assert!(first > 0);
    for method in ["crc", "size", "sha256"] {
        for _ in 0..10 {
            assert_eq!(
                scene.ok(&["dedup", "--hash-method", method, "-j"]),
                format!("{{\"Deduped\":{first}}}"),
                "{method}"
            );
        }
    }
    assert_eq!(count(), first);
}

/// Where files cannot share their place nothing is done.
fn dedup_nothing(ground: &Ground) {
    let scene = Scene::alone(ground);
    shared(&scene);
    assert_eq!(scene.ok(&["dedup"]), "Deduplicated 0 bytes");
    assert_eq!(scene.ok(&["dedup", "-j"]), "{\"Deduped\":0}");
    assert_eq!(ground.fails(&["dedup", "--hash-method", "foo"]).lines().last(), Some("invalid hash method: foo"));
}
