//! kill -9 and errors at every step: what the next open finds is either all or nothing.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use graph_store::{CreateImage, CreateLayer, Expected, Store};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use support::{DRIVERS, Place, gzip, isolated, three_layers};

fn import(store: &Store, id: &str, parent: Option<&str>, blob: &[u8]) -> graph_store::Result<()> {
    let options = CreateLayer { id: Some(id.to_owned()), parent: parent.map(str::to_owned), ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).map(drop)
}

/// The points that `work` passes, and how often (four times are enough of one).
fn points(driver: &'static str, prepare: impl Fn(&Store), work: impl Fn(&Store)) -> BTreeMap<&'static str, u64> {
    let place = Place::new(driver);
    let store = place.open();
    prepare(&store);
    let mut points = BTreeMap::new();
    for point in fault::record(|| work(&store)) {
        let hits: &mut u64 = points.entry(point).or_default();
        *hits = hits.saturating_add(1).min(4);
    }
    points
}

/// Points are the process's: one test at a time, where tests share one.
static ALONE: Mutex<()> = Mutex::new(());

fn matrix(prepare: impl Fn(&Store), work: impl Fn(&Store) -> graph_store::Result<()>, check: impl Fn(&Place, &Store)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for driver in DRIVERS {
        let names = points(driver, &prepare, |store| work(store).unwrap());
        assert!(names.len() >= 3, "{driver}: {names:?}");
        for (point, hits) in names {
            for hit in 1..=hits {
                for action in ["kill", "fail"] {
                    eprintln!("{driver}: {action} at hit {hit} of {point}");
                    let place = Place::new(driver);
                    prepare(&place.open());
                    if action == "kill" {
                        let end = fault::in_child(|| {
                            let store = place.open();
                            let _armed = fault::arm(point, hit, Action::Kill);
                            work(&store).unwrap();
                        });
                        assert_eq!(end, Ok(ChildEnd::Killed));
                    } else {
                        let store = place.open();
                        let _armed = fault::arm(point, hit, Action::Fail(Errno::NOSPC));
                        work(&store).unwrap_err();
                    }
                    let store = place.open();
                    place.assert_no_leftovers(&store);
                    check(&place, &store);
                    // And it goes on from there.
                    let [base, ..] = three_layers();
                    import(&store, "after", None, &base).unwrap();
                }
            }
        }
    }
}

#[test]
fn import_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    let [base, middle, _] = three_layers();
    let packed = gzip(&middle);
    matrix(
        |store| import(store, "base", None, &base).unwrap(),
        |store| import(store, "middle", Some("base"), &packed),
        |_, store| {
            assert!(store.layer("base").is_ok());
            if let Ok(layer) = store.layer("middle") {
                let mut out = Vec::new();
                let plain = graph_store::DiffOptions { compression: Some(graph_store::DiffCompression::None) };
                store.diff(None, &layer.id, &mut out, &plain).unwrap();
                assert!(out == middle, "a layer that is there is whole");
            }
        },
    );
}

#[test]
fn deletion_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    let [base, middle, _] = three_layers();
    let prepare = |store: &Store| {
        import(store, "base", None, &base).unwrap();
        import(store, "top", Some("base"), &middle).unwrap();
        let options = CreateImage {
            id: Some("image".to_owned()),
            layer: Some("top".to_owned()),
            big_data: vec![("manifest".to_owned(), vec![1; 10])],
            ..CreateImage::default()
        };
        store.create_image(&options).unwrap();
    };
    matrix(
        prepare,
        |store| store.delete_image("image", true).map(drop),
        |place, store| {
            if let Ok(image) = store.image("image") {
                store.image_size(&image.id).unwrap();
                assert_eq!(store.image_big_data("image", "manifest").unwrap(), [1; 10]);
                assert_eq!(store.layers().unwrap().len(), 2, "an image that is there has its layers");
                store.delete_image("image", true).unwrap();
                place.assert_no_leftovers(store);
                assert!(store.layers().unwrap().is_empty());
            }
        },
    );
}

#[test]
fn a_layer_marked_incomplete_by_hand_goes_at_the_next_open() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let [base, ..] = three_layers();
        import(&place.open(), "base", None, &base).unwrap();
        let path = place.root().join(format!("{driver}-layers/layers.json"));
        // As a test of the peer's does it with sed.
        let text = place.json("layers").replace("\"id\":", "\"flags\":{\"incomplete\":true},\"id\":");
        std::fs::write(&path, text).unwrap();
        let store = place.open();
        assert!(store.layers().unwrap().is_empty());
        assert_eq!(place.json("layers"), "[]");
        place.assert_no_leftovers(&store);
    }
}
