//! Loading that fails or is killed in the middle: nothing of it stays but whole layers, and those only after a kill.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use graph_archive::digest::Digest;
use graph_oci::{Event, Reference, SourceImage};
use graph_store::{CreateImage, GarbageKind, Store};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use support::{DRIVERS, Layout, Place, isolated, layers, load, named, run};

/// Fault points are the process's: one test at a time, where tests share one.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole chain of an error in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A layout of three layers, the last of them compressed.
fn layout(dir: &Path, tars: &[Vec<u8>]) -> Layout {
    let layout = Layout::new(dir);
    let ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let mut blobs: Vec<_> =
        tars[..2].iter().map(|tar| layout.blob("application/vnd.oci.image.layer.v1.tar", tar)).collect();
    let packed = run("gzip", &["-nc"], dir, &tars[2]);
    blobs.push(layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &packed));
    layout.index(&[named(layout.manifest("app", &blobs, &ids), "app")]);
    layout
}

/// The blob of the third layer.
fn third(layout: &Layout) -> std::path::PathBuf {
    let image = SourceImage::open(&Reference::parse(&layout.reference(None)).unwrap()).unwrap();
    layout.path_of(&image.layers[2].blob.unwrap().to_string())
}

#[test]
fn a_bad_third_layer_takes_the_first_two_with_it() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let tars = layers();
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 6] = [
        ("cut", |path| cut(path, 2), "the manifest says"),
        ("missing", |path| std::fs::remove_file(path).unwrap(), "No such file"),
        (
            "directory",
            |path| std::fs::remove_file(path).and_then(|()| std::fs::create_dir(path)).unwrap(),
            "regular file",
        ),
        ("garbage", |path| overwrite(path, 0, b"garbage!"), "invalid tar header"),
        ("flipped", |path| overwrite(path, 5000, b"\x00\xff\x55"), ""),
        ("flipped at the end", |path| overwrite(path, std::fs::metadata(path).unwrap().len() - 3, b"\x01\x02"), ""),
    ];
    for driver in DRIVERS {
        for (case, spoil, words) in cases {
            let place = Place::new(driver);
            let store = place.open();
            let layout = layout(&place.dir.path().join("in"), &tars);
            let path = third(&layout);
            let good = std::fs::read(&path).unwrap();
            spoil(&path);
            let error = load(&store, &layout.reference(None)).unwrap_err();
            assert!(told(&error).contains(words), "{case}: {}", told(&error));
            assert!(!told(&error).contains("temp-dir"), "an error names the layer: {}", told(&error));
            assert!(store.layers().unwrap().is_empty(), "{driver}: {case} left layers");
            assert!(store.images().unwrap().is_empty());
            place.assert_sound(&store);
            // Put right, it loads.
            drop(std::fs::remove_dir(&path));
            std::fs::write(&path, good).unwrap();
            assert_eq!(load(&store, &layout.reference(None)).unwrap().imported, 3);
            place.assert_sound(&store);
        }
    }
}

fn cut(path: &Path, part: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / part).unwrap();
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn layers_that_were_there_before_stay_when_a_load_fails() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let tars = layers();
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let other = Layout::new(&place.dir.path().join("other"));
        other.index(&[other.image("other", &tars[..1])]);
        let base = load(&store, &other.reference(None)).unwrap().image;
        let layout = layout(&place.dir.path().join("in"), &tars);
        cut(&third(&layout), 2);
        load(&store, &layout.reference(None)).unwrap_err();
        let left: Vec<String> = store.layers().unwrap().iter().map(|layer| layer.id.clone()).collect();
        assert_eq!(left, [base.layer.as_str()]);
        place.assert_sound(&store);
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let tars = layers();
    let size: usize = tars.iter().map(Vec::len).sum();
    for driver in DRIVERS {
        let mut failed = 0;
        // From too small for anything up to just too small for the last layer.
        for kibibytes in (64..).step_by(64) {
            let place = Place::new(driver);
            let options = format!("size={kibibytes}k,mode=700");
            let root = place.root();
            std::fs::create_dir(&root).unwrap();
            let mount = ["-t", "tmpfs", "-o", &options, "tmpfs", root.to_str().unwrap()];
            assert!(Command::new("mount").args(mount).status().unwrap().success());
            let store = place.open();
            let layout = layout(&place.dir.path().join("in"), &tars);
            let result = load(&store, &layout.reference(None));
            place.assert_sound(&store);
            let whole = result.is_ok();
            if let Err(error) = result {
                assert!(told(&error).contains("No space left"), "{driver} {kibibytes}: {}", told(&error));
                assert!(store.layers().unwrap().is_empty() && store.images().unwrap().is_empty());
                failed += 1;
            }
            drop(store);
            assert!(Command::new("umount").args(["-l", root.to_str().unwrap()]).status().unwrap().success());
            if whole {
                break;
            }
            assert!(kibibytes * 1024 < 8 * size, "{driver} finds no room at all");
        }
        assert!(failed >= 3, "{driver}: {failed}");
    }
}

fn points(driver: &'static str, tars: &[Vec<u8>]) -> BTreeMap<&'static str, u64> {
    let place = Place::in_memory(driver);
    let store = place.open();
    let layout = layout(&place.dir.path().join("in"), tars);
    let mut points: BTreeMap<&'static str, u64> = BTreeMap::new();
    for point in fault::record(|| drop(load_named(&store, &layout).unwrap())) {
        *points.entry(point).or_default() += 1;
    }
    points
}

fn load_named(store: &Store, layout: &Layout) -> graph_oci::Result<graph_oci::Loaded> {
    let source = SourceImage::open(&Reference::parse(&layout.reference(None)).unwrap())?;
    graph_oci::load(store, &source, &["localhost/app:1".to_owned()], &|_: Event<'_>| {})
}

/// First, middle and last of so many hits.
fn some_of(hits: u64) -> Vec<u64> {
    let mut some = vec![1, hits.div_ceil(2), hits];
    some.dedup();
    some
}

#[test]
fn errors_of_reading_and_writing_leave_nothing() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let tars = layers();
    for driver in DRIVERS {
        let points = points(driver, &tars);
        for point in ["load.read", "apply.write", "import.tar-split", "records.token-written", "image.data-written"] {
            assert!(points.contains_key(point), "{point} is not among {points:?}");
        }
        for (point, hits) in points {
            for hit in some_of(hits) {
                let place = Place::in_memory(driver);
                let store = place.open();
                let layout = layout(&place.dir.path().join("in"), &tars);
                let armed = fault::arm(point, hit, Action::Fail(Errno::IO));
                let result = load_named(&store, &layout);
                drop(armed);
                let error = result.expect_err(point);
                assert!(told(&error).contains("Input/output error"), "{driver} {point} {hit}: {}", told(&error));
                assert!(store.layers().unwrap().is_empty(), "{driver}: {point} {hit} left layers");
                assert!(store.images().unwrap().is_empty());
                place.assert_sound(&store);
                assert_eq!(load_named(&store, &layout).unwrap().imported, 3);
                place.assert_sound(&store);
            }
        }
    }
}

#[test]
fn a_killed_load_leaves_whole_layers_at_most_and_the_next_takes_them() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let tars = layers();
    for driver in DRIVERS {
        let mut most = 0;
        for (point, hits) in points(driver, &tars) {
            for hit in some_of(hits) {
                let place = Place::in_memory(driver);
                let layout = layout(&place.dir.path().join("in"), &tars);
                // Another image has the name: it keeps it, or loses it to the new one, and nothing between.
                let earlier = CreateImage {
                    id: Some("e".repeat(64)),
                    names: vec!["localhost/app:1".to_owned()],
                    ..CreateImage::default()
                };
                place.open().create_image(&earlier).unwrap();
                let end = fault::in_child(|| {
                    let store = place.open();
                    let _armed = fault::arm(point, hit, Action::Kill);
                    load_named(&store, &layout).unwrap();
                });
                assert_eq!(end, Ok(ChildEnd::Killed), "{driver} {point} {hit}");
                let store = place.open();
                place.assert_sound(&store);
                let image = store.image("localhost/app:1").unwrap();
                if image.id != "e".repeat(64) {
                    store.image_big_data(&image.id, "manifest").unwrap();
                    assert_eq!(store.layers().unwrap().len(), 3);
                }
                assert_eq!(store.images().unwrap().len(), if image.id == "e".repeat(64) { 1 } else { 2 });
                let kept = store.layers().unwrap().len();
                most = most.max(kept);
                // With nothing on them they are left-overs: garbage at once, or the next load's.
                let garbage: Vec<_> = store.collect_garbage(true).unwrap();
                if image.id == "e".repeat(64) {
                    assert_eq!(garbage.len(), kept, "{driver} {point} {hit}");
                    assert!(garbage.iter().all(|one| one.kind == GarbageKind::KilledLoad));
                } else {
                    assert_eq!(garbage.len(), 0);
                }
                if hit % 2 == 0 {
                    let removed = store.collect_garbage(false).unwrap();
                    assert!(removed.iter().all(|one| one.error.is_none()), "{removed:?}");
                    assert_eq!(store.layers().unwrap().len(), kept - removed.len());
                    place.assert_sound(&store);
                }
                let kept = store.layers().unwrap().len();
                let loaded = load_named(&store, &layout).unwrap();
                assert_eq!((loaded.reused, loaded.imported), (kept, 3 - kept), "{driver} {point} {hit}");
                assert_eq!(store.image("localhost/app:1").unwrap().id, loaded.image.id);
                place.assert_sound(&store);
                assert_eq!(place.names_in(&format!("{driver}-layers/tmp")), [] as [&str; 0]);
                assert_eq!(store.collect_garbage(true).unwrap().len(), 0);
            }
        }
        assert_eq!(most, 3);
    }
}
