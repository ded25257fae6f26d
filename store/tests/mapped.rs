//! Mapped copies, automatic user namespaces: what is left after a kill at every step, and who gets which ids.

#![allow(clippy::disallowed_methods, reason = "tests set their scene by path")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests may fail at once, and say what they skip")]

mod support;

use std::os::unix::fs::MetadataExt;

use graph_archive::{IdMappings, IdRange};
use graph_store::{
    AutoUserNs, AutoUserNsConfig, CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, Expected,
    MountOptions, Store, StoreOptions,
};
use graph_sys::fault::{self, Action, ChildEnd};
use support::{DRIVERS, Place, isolated, three_layers};

fn unmapped(place: &Place) -> StoreOptions {
    StoreOptions { disable_id_mapped_mounts: true, ..place.options() }
}

fn open(options: StoreOptions) -> Store {
    Store::open(options, &graph_drivers::registry().unwrap()).unwrap()
}

/// An image of three layers; its id and its top layer's.
fn image(store: &Store) -> (String, String) {
    let mut parent = None;
    for tar in three_layers() {
        let options = CreateLayer { parent: parent.clone(), ..CreateLayer::default() };
        let made = store.import_layer(&options, &Expected::default(), &mut tar.as_slice()).unwrap();
        parent = Some(made.layer.id.clone());
    }
    let image = store.create_image(&CreateImage { layer: parent.clone(), ..CreateImage::default() }).unwrap();
    (image.id.clone(), parent.unwrap())
}

fn mappings(host_id: u32) -> IdMappings {
    let range = vec![IdRange { container_id: 0, host_id, size: 1000 }];
    IdMappings { uids: range.clone(), gids: range }
}

#[test]
fn a_kill_at_any_step_of_a_mapped_copy_leaves_the_image_as_it_was_or_with_the_copy() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::in_memory(driver);
        let (image, top) = image(&open(unmapped(&place)));
        let diff = |layer: &str| {
            let mut bytes = Vec::new();
            let options = DiffOptions { compression: Some(DiffCompression::None) };
            open(unmapped(&place)).diff(None, layer, &mut bytes, &options).unwrap();
            bytes
        };
        let original = diff(&top);
        let make = |host_id| {
            let wanted = CreateContainer {
                image: Some(image.clone()),
                mappings: Some(mappings(host_id)),
                ..CreateContainer::default()
            };
            open(unmapped(&place)).create_container(&wanted).unwrap()
        };
        let mut points = fault::record(|| drop(make(5000)));
        points.dedup();
        for point in ["reown.copied", "mapped.copied", "mapped.placed", "mapped.noted"] {
            assert!(points.contains(&point), "{driver}: {point} is not reached: {points:?}");
        }
        for (n, point) in (1..).zip(points) {
            let end = fault::in_child(|| {
                let _armed = fault::arm(point, 1, Action::Kill);
                drop(make(10_000 * n));
            });
            assert_eq!(end.unwrap(), ChildEnd::Killed, "{driver}: {point}");
            let store = place.open_with(unmapped(&place));
            place.assert_no_leftovers(&store);
            for copy in store.image(&image).unwrap().top_layers() {
                assert_eq!(diff(copy), original, "{driver}: {point}: layer {copy}");
            }
            // Once more, to the end.
            let container = make(10_000 * n);
            let path = store.mount(&container.id, &MountOptions::default()).unwrap();
            assert_eq!(std::fs::metadata(path.join("dir")).unwrap().uid(), 10_000 * n, "{driver}: {point}");
            store.unmount(&container.id, false).unwrap();
            store.delete_container(&container.id).unwrap();
        }
    }
}

#[test]
fn a_kill_while_a_layer_is_exchanged_leaves_the_old_or_the_new_one() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        for point in ["reown.copied", "reown.exchanged"] {
            let place = Place::in_memory(driver);
            let (_, top) = image(&open(unmapped(&place)));
            let id = graph_core::LayerId::new(top.clone()).unwrap();
            let end = fault::in_child(|| {
                let _armed = fault::arm(point, 1, Action::Kill);
                let store = open(unmapped(&place));
                store.driver().update_layer_id_map(&id, &IdMappings::default(), &mappings(7000), "").unwrap();
            });
            assert_eq!(end.unwrap(), ChildEnd::Killed, "{driver}: {point}");
            let store = place.open_with(unmapped(&place));
            place.assert_no_leftovers(&store);
            let path = store.mount(&top, &MountOptions::default()).unwrap();
            let owners: Vec<u32> = ["dir", "hard", "big", "gone/back", "opaque/new"]
                .map(|name| std::fs::symlink_metadata(path.join(name)).unwrap().uid())
                .to_vec();
            let expected = if point == "reown.exchanged" { 7000 } else { 0 };
            assert_eq!(owners, [expected; 5], "{driver}: {point}");
            assert!(!path.join("dir/sub").exists() && !path.join("opaque/old").exists());
            store.unmount(&top, false).unwrap();
        }
    }
}

#[test]
fn automatic_user_namespaces_do_not_overlap() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::in_memory(driver);
        let subids = place.dir.path().join("subids");
        std::fs::write(&subids, "somebody:1:5\ncontainers:100000:4000\ncontainers:300000:70000\n").unwrap();
        let config = AutoUserNsConfig { subuid: subids.clone(), subgid: subids, ..AutoUserNsConfig::default() };
        let store = open(StoreOptions { auto_userns: config, ..unmapped(&place) });
        // Accounts behind a link that must not lead out of the image.
        let tar = support::tar_of(
            "mkdir -p etc usr; ln -s /usr/accounts etc/passwd; echo 'root:x:0:0::/:\nnobody:x:65534:65534::/:\nuser:x:1999:7::/:' >usr/accounts",
        );
        let layer = store.import_layer(&CreateLayer::default(), &Expected::default(), &mut tar.as_slice()).unwrap();
        let image =
            store.create_image(&CreateImage { layer: Some(layer.layer.id.clone()), ..CreateImage::default() }).unwrap();
        let make = |wish: AutoUserNs| {
            store.create_container(&CreateContainer {
                image: Some(image.id.clone()),
                auto_userns: Some(wish),
                ..CreateContainer::default()
            })
        };
        let ids = |wish| {
            make(wish).map(|container| {
                container.uid_map.iter().map(|r| (r.container_id, r.host_id, r.size)).collect::<Vec<_>>()
            })
        };
        assert_eq!(ids(AutoUserNs::default()).unwrap(), [(0, 100_000, 2000)], "{driver}: as many as the accounts need");
        let sized = AutoUserNs { size: 3000, ..AutoUserNs::default() };
        assert_eq!(ids(sized).unwrap(), [(0, 102_000, 2000), (2000, 300_000, 1000)]);
        let additional = vec![IdRange { container_id: 3, host_id: 301_000, size: 1 }];
        let additional = IdMappings { uids: additional.clone(), gids: additional };
        let wish = AutoUserNs { size: 10, additional, ..AutoUserNs::default() };
        assert_eq!(ids(wish).unwrap(), [(0, 301_001, 3), (4, 301_004, 6), (3, 301_000, 1)]);
        let error = make(AutoUserNs { size: 70_000, ..AutoUserNs::default() }).unwrap_err();
        assert!(error.to_string().contains("not enough unused IDs in user namespace"), "{error}");
        let error = make(AutoUserNs { initial_size: 65_537, ..AutoUserNs::default() }).unwrap_err();
        assert!(error.to_string().contains("bigger than the maximum value allowed with userns=auto 65536"), "{error}");
        // What a deleted container had is free again.
        for container in store.containers().unwrap() {
            store.delete_container(&container.id).unwrap();
        }
        assert_eq!(ids(AutoUserNs::default()).unwrap(), [(0, 100_000, 2000)]);
    }
}
