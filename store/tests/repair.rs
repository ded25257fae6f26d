//! kill -9 and a full disk at every step of restoring, repairing and collecting garbage: the next command works, and doing it
//! again finishes it.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use graph_store::{CheckOptions, CreateImage, CreateLayer, Expected, RepairOptions, Store};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use support::{DRIVERS, Place, isolated, tar_of};

const BLOB: &str = "mkdir dir; seq 1000 >dir/one; seq 2000 >dir/two; echo three >three; chmod 600 three";

fn import(store: &Store, id: &str, parent: Option<&str>, blob: &[u8]) {
    let options = CreateLayer { id: Some(id.to_owned()), parent: parent.map(str::to_owned), ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap();
}

fn files(place: &Place, layer: &str) -> PathBuf {
    if place.driver == "overlay" {
        place.root().join("overlay").join(layer).join("diff")
    } else {
        place.root().join("vfs/dir").join(layer)
    }
}

/// Does `work` with a kill and with a full disk at every point that it passes, on a store that `prepare` has made.
fn matrix(prepare: impl Fn(&Place), work: impl Fn(&Store) -> bool, finished: impl Fn(&Place, &Store)) {
    for driver in DRIVERS {
        let mut points: BTreeMap<&'static str, u64> = BTreeMap::new();
        {
            let place = Place::in_memory(driver);
            prepare(&place);
            let store = place.open();
            for point in fault::record(|| assert!(work(&store))) {
                let hits = points.entry(point).or_default();
                *hits = hits.saturating_add(1).min(3);
            }
            finished(&place, &store);
        }
        assert!(points.len() >= 2, "{driver}: {points:?}");
        for (point, hits) in points {
            for hit in 1..=hits {
                for kill in [true, false] {
                    eprintln!("{driver}: {} at hit {hit} of {point}", if kill { "kill" } else { "full disk" });
                    let place = Place::in_memory(driver);
                    prepare(&place);
                    if kill {
                        let end = fault::in_child(|| {
                            let store = place.open();
                            let _armed = fault::arm(point, hit, Action::Kill);
                            work(&store);
                        });
                        assert_eq!(end, Ok(ChildEnd::Killed));
                    } else {
                        let store = place.open();
                        let _armed = fault::arm(point, hit, Action::Fail(Errno::NOSPC));
                        assert!(!work(&store), "{point} failed and nobody said so");
                    }
                    // The next command works; the work done again is finished.
                    let store = place.open();
                    store.layers().unwrap();
                    assert!(work(&store), "{point}: again");
                    finished(&place, &store);
                    place.assert_no_leftovers(&store);
                }
            }
        }
    }
}

#[test]
fn restoring_is_done_file_by_file() {
    if !isolated() {
        return;
    }
    let blob = tar_of(BLOB);
    let prepare = |place: &Place| {
        let store = place.open();
        import(&store, "layer", None, &blob);
        let image = CreateImage { layer: Some("layer".to_owned()), ..CreateImage::default() };
        store.create_image(&image).unwrap();
        let files = files(place, "layer");
        std::fs::write(files.join("dir/one"), "damaged").unwrap();
        std::fs::remove_file(files.join("dir/two")).unwrap();
        std::fs::write(files.join("three"), "eerht\n").unwrap();
    };
    matrix(
        prepare,
        |store| store.restore_layer("layer", &mut &*blob).is_ok(),
        |place, store| {
            assert!(store.check(&CheckOptions::default()).unwrap().is_clean());
            let files = files(place, "layer");
            assert_eq!(std::fs::read_to_string(files.join("three")).unwrap(), "three\n");
        },
    );
}

#[test]
fn repairing_goes_on_where_it_was_stopped() {
    if !isolated() {
        return;
    }
    let blob = tar_of(BLOB);
    let prepare = |place: &Place| {
        let store = place.open();
        import(&store, "layer", None, &blob);
        import(&store, "child", Some("layer"), &blob);
        import(&store, "good", None, &blob);
        for (name, layer) in [("bad", "child"), ("good", "good")] {
            let image =
                CreateImage { names: vec![name.to_owned()], layer: Some(layer.to_owned()), ..CreateImage::default() };
            store.create_image(&image).unwrap();
        }
        std::fs::write(files(place, "layer").join("three"), "eerht\n").unwrap();
        let unknown = files(place, "unknown");
        std::fs::create_dir_all(&unknown).unwrap();
    };
    matrix(
        prepare,
        |store| {
            let report = store.check(&CheckOptions::default()).unwrap();
            store.repair(&report, &RepairOptions::default()).is_empty()
        },
        |_, store| {
            assert!(store.check(&CheckOptions::default()).unwrap().is_clean());
            let layers: Vec<String> = store.layers().unwrap().iter().map(|layer| layer.id.clone()).collect();
            assert_eq!(layers, ["good"]);
            store.image("good").unwrap();
            assert!(store.image("bad").is_err());
        },
    );
}

#[test]
fn garbage_is_collected_in_the_end() {
    if !isolated() {
        return;
    }
    let prepare = |place: &Place| {
        let store = place.open();
        import(&store, "layer", None, &tar_of(BLOB));
        for n in 0..2 {
            let unknown = format!("{n}").repeat(64);
            std::fs::create_dir_all(files(place, &unknown)).unwrap();
            let name = format!("root/{}-layers/{unknown}.tar-split.gz", place.driver);
            std::fs::write(place.dir.path().join(name), "garbage").unwrap();
        }
    };
    matrix(
        prepare,
        |store| store.collect_garbage(false).is_ok_and(|found| found.iter().all(|piece| piece.error.is_none())),
        |_, store| {
            assert_eq!(store.collect_garbage(true).unwrap().len(), 0);
            assert_eq!(store.layers().unwrap().len(), 1);
        },
    );
}

#[test]
fn deleting_an_image_writes_the_layers_twice_however_many_there_are() {
    if !isolated() {
        return;
    }
    let blob = tar_of("echo x >x");
    for driver in DRIVERS {
        let mut writes = Vec::new();
        for depth in [2, 12] {
            let place = Place::in_memory(driver);
            let store = place.open();
            let mut parent: Option<String> = None;
            for n in 0..depth {
                let id = format!("layer{n}");
                import(&store, &id, parent.as_deref(), &blob);
                parent = Some(id);
            }
            let image = store.create_image(&CreateImage { layer: parent, ..CreateImage::default() }).unwrap();
            let points = fault::record(|| drop(store.delete_image(&image.id, true).unwrap()));
            assert!(store.layers().unwrap().is_empty());
            writes.push(points.into_iter().filter(|point| *point == "records.written").count());
        }
        // layers.json is marked and emptied, images.json is written once.
        assert_eq!(writes, [3, 3], "{driver}");
    }
}
