//! kill -9 and errors at every step: what the next open finds is either all or nothing.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use graph_store::{CreateContainer, CreateImage, CreateLayer, Expected, MountOptions, Store};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use support::{DRIVERS, Place, gzip, isolated, three_layers};

fn import(store: &Store, id: &str, parent: Option<&str>, blob: &[u8]) -> graph_store::Result<()> {
    let options = CreateLayer { id: Some(id.to_owned()), parent: parent.map(str::to_owned), ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).map(drop)
}

/// The points that `work` passes, and how often (four times are enough of one).
fn points(driver: &'static str, prepare: impl Fn(&Store), work: impl Fn(&Store)) -> BTreeMap<&'static str, u64> {
    let place = Place::in_memory(driver);
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

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an error leaves: deletion has begun and goes on at the next open; making is undone at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Makes,
    Deletes,
}

fn matrix(
    kind: Work,
    prepare: impl Fn(&Store),
    work: impl Fn(&Store) -> graph_store::Result<()>,
    check: impl Fn(&Place, &Store),
) {
    for driver in DRIVERS {
        matrix_of(driver, kind, &prepare, &work, &check);
    }
}

fn matrix_of(
    driver: &'static str,
    kind: Work,
    prepare: impl Fn(&Store),
    work: impl Fn(&Store) -> graph_store::Result<()>,
    mut check: impl FnMut(&Place, &Store),
) {
    let _alone = alone();
    {
        let names = points(driver, &prepare, |store| work(store).unwrap());
        assert!(names.len() >= 3, "{driver}: {names:?}");
        for (point, hits) in names {
            for hit in 1..=hits {
                for action in ["kill", "fail"] {
                    eprintln!("{driver}: {action} at hit {hit} of {point}");
                    let place = Place::in_memory(driver);
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
                        if kind == Work::Makes {
                            place.assert_no_leftovers(&store);
                        }
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
        Work::Makes,
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

/// Ids of the usual kind: only data directories of such names are known to be a store's own.
const IMAGE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const CONTAINER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn base_and_top(store: &Store) {
    let [base, middle, _] = three_layers();
    import(store, "base", None, &base).unwrap();
    import(store, "top", Some("base"), &middle).unwrap();
}

fn create_image(store: &Store) -> graph_store::Result<()> {
    let options = CreateImage {
        id: Some(IMAGE.to_owned()),
        names: vec!["localhost/app:1".to_owned()],
        layer: Some("top".to_owned()),
        big_data: vec![("manifest".to_owned(), vec![1; 10]), ("sha256:x".to_owned(), vec![2; 10])],
        ..CreateImage::default()
    };
    store.create_image(&options).map(drop)
}

fn create_container(store: &Store) -> graph_store::Result<()> {
    let options = CreateContainer {
        id: Some(CONTAINER.to_owned()),
        names: vec!["box".to_owned()],
        image: Some(IMAGE.to_owned()),
        big_data: vec![("config.json".to_owned(), vec![3; 10])],
        ..CreateContainer::default()
    };
    store.create_container(&options).map(drop)
}

/// An image that is there is whole, and can be deleted.
fn assert_image_whole(place: &Place, store: &Store) {
    if let Ok(image) = store.image("localhost/app:1") {
        store.image_size(&image.id).unwrap();
        assert_eq!(store.image_big_data(IMAGE, "manifest").unwrap(), [1; 10]);
        assert_eq!(store.image_big_data(IMAGE, "sha256:x").unwrap(), [2; 10]);
        assert!(store.layer("top").is_ok() && store.layer("base").is_ok(), "an image that is there has its layers");
        store.delete_image(&image.id, true).unwrap();
        place.assert_no_leftovers(store);
        assert!(store.layers().unwrap().is_empty());
    }
}

#[test]
fn making_an_image_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    matrix(Work::Makes, base_and_top, create_image, |place, store| {
        assert_eq!(store.layers().unwrap().len(), 2, "the layers were there before");
        assert_image_whole(place, store);
    });
}

#[test]
fn deleting_an_image_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    let prepare = |store: &Store| {
        base_and_top(store);
        create_image(store).unwrap();
    };
    matrix(
        Work::Deletes,
        prepare,
        |store| store.delete_image(IMAGE, true).map(drop),
        |place, store| {
            if store.image(IMAGE).is_err() {
                assert!(store.layers().unwrap().is_empty(), "the layers go with their image");
            }
            assert_image_whole(place, store);
        },
    );
}

#[test]
fn making_a_container_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    let prepare = |store: &Store| {
        base_and_top(store);
        create_image(store).unwrap();
    };
    matrix(Work::Makes, prepare, create_container, |place, store| {
        assert_eq!(store.layers().unwrap().len(), if store.container("box").is_ok() { 3 } else { 2 });
        if let Ok(container) = store.container("box") {
            assert_eq!(store.container_big_data(CONTAINER, "config.json").unwrap(), [3; 10]);
            store.mount(&container.id, &MountOptions::default()).unwrap();
            store.delete_container(CONTAINER).unwrap();
            place.assert_no_leftovers(store);
        }
        create_container(store).unwrap();
        store.delete_container(CONTAINER).unwrap();
        assert_image_whole(place, store);
    });
}

#[test]
fn deleting_a_container_is_all_or_nothing() {
    if !isolated() {
        return;
    }
    let prepare = |store: &Store| {
        base_and_top(store);
        create_image(store).unwrap();
        create_container(store).unwrap();
        store.container_directory(CONTAINER).unwrap();
        store.container_run_directory(CONTAINER).unwrap();
    };
    matrix(
        Work::Deletes,
        prepare,
        |store| store.delete_container(CONTAINER),
        |place, store| {
            assert_eq!(store.layers().unwrap().len(), if store.container("box").is_ok() { 3 } else { 2 });
            if store.container("box").is_ok() {
                assert_eq!(store.container_big_data(CONTAINER, "config.json").unwrap(), [3; 10]);
                store.delete_container(CONTAINER).unwrap();
            }
            assert_image_whole(place, store);
        },
    );
}

#[test]
fn filling_an_empty_layer_leaves_it_empty_or_filled() {
    if !isolated() {
        return;
    }
    let [base, middle, _] = three_layers();
    let prepare = |store: &Store| {
        import(store, "base", None, &base).unwrap();
        let options =
            CreateLayer { id: Some("new".to_owned()), parent: Some("base".to_owned()), ..CreateLayer::default() };
        store.create_layer(&options).unwrap();
    };
    let plain = graph_store::DiffOptions { compression: Some(graph_store::DiffCompression::None) };
    matrix(
        Work::Makes,
        prepare,
        |store| store.apply_diff("new", &Expected::default(), &mut &*middle).map(drop),
        |_, store| {
            let layer = store.layer("new").unwrap();
            if layer.diff_digest.is_empty() {
                assert_eq!(store.changes(None, "new").unwrap(), []);
                store.apply_diff("new", &Expected::default(), &mut &*middle).unwrap();
            }
            let mut out = Vec::new();
            store.diff(None, "new", &mut out, &plain).unwrap();
            assert!(out == middle);
        },
    );
}

/// A layer with a child on it, which was filled and then changed through a mount, gets one more archive: it has all of its old
/// content and record, or all of the new.
#[test]
fn filling_a_filled_layer_leaves_the_old_or_the_new() {
    if !isolated() {
        return;
    }
    let [base, middle, top] = three_layers();
    let prepare = |store: &Store| {
        import(store, "base", None, &base).unwrap();
        import(store, "full", Some("base"), &middle).unwrap();
        let path = store.mount("full", &MountOptions::default()).unwrap();
        std::fs::write(path.join("opaque/more"), "more").unwrap();
        std::fs::hard_link(path.join("opaque/more"), path.join("again")).unwrap();
        std::fs::remove_file(path.join("hard")).unwrap();
        store.unmount("full", true).unwrap();
        let options =
            CreateLayer { id: Some("child".to_owned()), parent: Some("full".to_owned()), ..CreateLayer::default() };
        store.create_layer(&options).unwrap();
    };
    let seen = |store: &Store| {
        let path = store.mount("full", &MountOptions::default()).unwrap();
        let tree = support::tree(&path);
        store.unmount("full", true).unwrap();
        tree
    };
    for driver in DRIVERS {
        // What there is to see before and after.
        let place = Place::in_memory(driver);
        let store = place.open();
        prepare(&store);
        let (old, old_record) = (seen(&store), store.layer("full").unwrap());
        store.apply_diff("full", &Expected::default(), &mut &*top).unwrap();
        let (new, new_record) = (seen(&store), store.layer("full").unwrap());
        assert!(old != new && old_record.diff_digest != new_record.diff_digest);
        place.assert_no_leftovers(&store);
        let (mut olds, mut news) = (0, 0);
        matrix_of(
            driver,
            Work::Makes,
            prepare,
            |store| store.apply_diff("full", &Expected::default(), &mut &*top).map(drop),
            |_, store| {
                let record = store.layer("full").unwrap();
                let archive = if record.diff_digest == new_record.diff_digest {
                    news += 1;
                    assert_eq!(seen(store), new);
                    &top
                } else {
                    olds += 1;
                    assert_eq!((&record.diff_digest, &record.uids), (&old_record.diff_digest, &old_record.uids));
                    assert_eq!(seen(store), old);
                    &middle
                };
                assert!(store.layer("child").is_ok());
                // The members of the archive that nobody has changed since are where its tar-split says.
                if archive == &top {
                    let mut out = Vec::new();
                    let plain = graph_store::DiffOptions { compression: Some(graph_store::DiffCompression::None) };
                    store.diff(None, "full", &mut out, &plain).unwrap();
                    assert!(out == top);
                }
                store.apply_diff("full", &Expected::default(), &mut &*top).unwrap();
                assert_eq!(seen(store), new);
            },
        );
        assert!(olds > 0 && news > 0, "{olds} old, {news} new");
    }
}

/// Killed once more while the next open goes on with it.
#[test]
fn an_interrupted_exchange_is_finished_by_whichever_open_lives() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let [base, _, top] = three_layers();
    for driver in DRIVERS {
        for at in ["refill.exchanged", "refill.recorded"] {
            for then in ["refill.recovered-record", "refill.recovered-tar-split"] {
                let place = Place::in_memory(driver);
                import(&place.open(), "full", None, &base).unwrap();
                let killed = |point: &'static str, work: &dyn Fn()| {
                    let end = fault::in_child(|| {
                        let _armed = fault::arm(point, 1, Action::Kill);
                        work();
                    });
                    assert_eq!(end, Ok(ChildEnd::Killed), "{point}");
                };
                killed(at, &|| {
                    drop(place.open().apply_diff("full", &Expected::default(), &mut &*top));
                });
                killed(then, &|| drop(place.open()));
                let store = place.open();
                let mut out = Vec::new();
                let plain = graph_store::DiffOptions { compression: Some(graph_store::DiffCompression::None) };
                store.diff(None, "full", &mut out, &plain).unwrap();
                assert!(out == top, "{driver}: {at}, {then}");
                place.assert_no_leftovers(&store);
            }
        }
    }
}

#[test]
fn only_orphans_of_the_usual_name_are_removed_at_opening() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        base_and_top(&store);
        create_image(&store).unwrap();
        create_container(&store).unwrap();
        drop(store);
        let orphan = "3".repeat(64);
        for kind in ["images", "containers"] {
            for name in [orphan.as_str(), "notes", &"A".repeat(64)] {
                let dir = place.root().join(format!("{driver}-{kind}/{name}"));
                std::fs::create_dir(&dir).unwrap();
                std::fs::write(dir.join("manifest"), "x").unwrap();
            }
        }
        let store = place.open();
        for kind in ["images", "containers"] {
            let names = place.names_in(&format!("root/{driver}-{kind}"));
            assert!(!names.contains(&orphan) && names.contains(&"notes".to_owned()), "{names:?}");
            assert!(names.contains(&"A".repeat(64)), "{names:?}");
        }
        assert_eq!(store.image_big_data(IMAGE, "manifest").unwrap(), [1; 10]);
        assert_eq!(store.container_big_data(CONTAINER, "config.json").unwrap(), [3; 10]);
    }
}

#[test]
fn a_layer_marked_incomplete_by_hand_goes_at_the_next_open() {
    if !isolated() {
        return;
    }
    let _alone = alone();
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
