//! Images written into archives and layouts: whole or not at all, and read by other programs; images chosen from an index.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use graph_archive::digest::Digest;
use graph_oci::{Event, Platform, Reference, SaveCompression, Saved, SourceImage, save_to};
use graph_store::{Image, Store, Stored};
use graph_sys::fault::{self, Action, ChildEnd};
use graph_sys::io::Errno;
use serde_json::{Value, json};
use support::{Layout, Place, isolated, layers, load, named, on, run};

fn save(store: &Store, images: &[&Stored<Image>], target: &str, how: SaveCompression) -> graph_oci::Result<Vec<Saved>> {
    save_to(store, images, &Reference::parse(target).unwrap(), how, &|_: Event<'_>| {})
}

/// Two images, the second on the first.
fn two(place: &Place, store: &Store) -> [Stored<Image>; 2] {
    let layout = Layout::new(&place.dir.path().join("in"));
    let tars = layers();
    layout.index(&[named(layout.image("one", &tars[..2]), "one"), named(layout.image("two", &tars), "two")]);
    ["one", "two"].map(|name| {
        let source = SourceImage::open(&Reference::parse(&layout.reference(Some(name))).unwrap()).unwrap();
        let names = [format!("localhost/{name}:1"), format!("localhost/{name}:2")];
        graph_oci::load(store, &source, &names, &|_: Event<'_>| {}).unwrap().image
    })
}

/// Fault points are the process's: one test at a time, where tests share one.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn archives_of_several_images_are_read_by_others_and_by_us() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    let place = Place::new("overlay");
    let store = place.open();
    let [one, two] = two(&place, &store);
    let dir = place.dir.path();
    for kind in ["docker-archive", "oci-archive"] {
        let target = format!("{kind}:{}", dir.join(kind).display());
        let saved = save(&store, &[&one, &two], &target, SaveCompression::AsLoaded).unwrap();
        assert_eq!(saved.len(), 2);
        // Members are there once, though the images share layers; GNU tar has nothing to complain of.
        let listed = String::from_utf8(run("tar", &["-tf", kind], dir, &[])).unwrap();
        let mut members: Vec<&str> = listed.lines().collect();
        let all = members.len();
        members.sort_unstable();
        members.dedup();
        assert_eq!(members.len(), all, "{listed}");
        for image in [&one, &two] {
            let name = &image.names[0];
            let inspected = run("skopeo", &["inspect", "--config", "--raw", &format!("{target}:{name}")], dir, &[]);
            assert_eq!(Digest::of(&inspected).hex(), image.id, "{kind}: the config is the same to the byte");
            let copied = format!("dir:{}", dir.join(format!("{kind}-{}", &image.id[..8])).display());
            run("skopeo", &["copy", "-q", &format!("{target}:{name}"), &copied], dir, &[]);
            // By us, into another store.
            let other = Place::new("vfs");
            let elsewhere = other.open();
            let loaded = load(&elsewhere, &format!("{target}:{name}")).unwrap();
            assert_eq!((&loaded.image.id, &loaded.image.layer), (&image.id, &image.layer));
            if kind == "oci-archive" {
                assert_eq!(loaded.image.digest, image.digest, "plain layers: the loaded manifest");
            }
            other.assert_sound(&elsewhere);
        }
        let all = SourceImage::open_all(&Reference::parse(&target).unwrap(), &Platform::here()).unwrap();
        let ids: Vec<String> = all.iter().map(|image| image.config_digest.hex()).collect();
        assert_eq!(ids, [one.id.clone(), two.id.clone()]);
        assert_eq!(all[1].names, two.names, "{kind}");
    }
    // What cannot be.
    let refused =
        |images: &[&Stored<Image>], target: &str, how| save(&store, images, target, how).unwrap_err().to_string();
    let said = refused(&[&one, &two], "oci-archive:/nowhere:name", SaveCompression::None);
    assert!(said.contains("several images cannot have one name"), "{said}");
    let said = refused(&[&one], "docker-archive:/nowhere", SaveCompression::Zstd);
    assert!(said.contains("are not compressed"), "{said}");
    let said = refused(&[&one], "oci-archive:/dev", SaveCompression::None);
    assert!(said.contains("no regular file"), "{said}");
}

#[test]
fn a_save_that_fails_or_is_killed_leaves_what_was_there() {
    if !isolated() {
        return;
    }
    let _alone = alone();
    for kind in ["oci", "oci-archive", "docker-archive"] {
        let place = Place::in_memory("vfs");
        let store = place.open();
        let [one, two] = two(&place, &store);
        let out = place.dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let target = format!("{kind}:{}", out.join("image").display());
        let how = if kind == "docker-archive" { SaveCompression::None } else { SaveCompression::Gzip };
        let again = || save(&store, &[&two], &target, how);
        let hits =
            fault::record(|| drop(again().unwrap())).into_iter().filter(|point| *point == "save.written").count();
        assert!(hits >= 1, "{kind}");
        let remove = || drop((std::fs::remove_file(out.join("image")), std::fs::remove_dir_all(out.join("image"))));
        for hit in 1..=hits as u64 {
            // A new one: nothing of it stays after an error, and after a kill nothing that is an image.
            remove();
            let armed = fault::arm("save.written", hit, Action::Fail(Errno::NOSPC));
            let error = again().unwrap_err();
            drop(armed);
            assert!(std::error::Error::source(&error).is_some(), "{error}");
            assert_eq!(names_in(&out), [] as [&str; 0], "{kind} {hit}");
            let end = fault::in_child(|| {
                let _armed = fault::arm("save.written", hit, Action::Kill);
                drop(again());
            });
            assert_eq!(end, Ok(ChildEnd::Killed));
            assert!(SourceImage::open(&Reference::parse(&target).unwrap()).is_err(), "{kind} {hit}");
            if kind != "oci" {
                assert_eq!(names_in(&out), [] as [&str; 0], "{kind}: no half archive, by no name");
            }
            // One over another: that one is still there.
            remove();
            save(&store, &[&one], &target, SaveCompression::None).unwrap();
            let before = names_in(&out.join("image/blobs/sha256"));
            let armed = fault::arm("save.written", hit, Action::Fail(Errno::NOSPC));
            let failed = again();
            drop(armed);
            if failed.is_err() {
                assert_eq!(names_in(&out.join("image/blobs/sha256")), before, "{kind} {hit}");
                let still = SourceImage::open(&Reference::parse(&target).unwrap()).unwrap();
                assert_eq!(still.config_digest.hex(), one.id, "{kind} {hit}");
            }
        }
        again().unwrap();
    }
}

#[test]
fn images_are_chosen_by_platform_and_by_digest() {
    let temp = tempfile::tempdir().unwrap();
    let layout = Layout::new(temp.path());
    let tars = layers();
    let arm = layout.image("arm", &tars[..1]);
    let v7 = layout.image("v7", &tars[..1]);
    let here = layout.image("here", &tars[..1]);
    let mut v7_entry = on(v7.clone(), "linux", "arm");
    v7_entry["platform"]["variant"] = json!("v7");
    let inner = layout.document(
        "application/vnd.oci.image.index.v1+json",
        &json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
            on(here.clone(), "linux", support::architecture()), on(arm.clone(), "linux", "s390x"), v7_entry]}),
    );
    layout.index(&[named(inner, "app")]);
    let open = |name: &str, platform: &str| {
        let reference = Reference::parse(&layout.reference(Some(name))).unwrap();
        let image = SourceImage::open_for(&reference, &Platform::parse(platform).unwrap())?;
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        Ok::<_, graph_oci::Error>((config["author"].as_str().unwrap_or_default().to_owned(), image))
    };
    let digest_of = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    let found = |name: &str, platform: &str| open(name, platform).unwrap().1.manifest_digest.to_string();
    let us = Platform::here().to_string();
    assert_eq!(found("app", &us), digest_of(&here));
    assert_eq!(found("app", "linux/s390x"), digest_of(&arm));
    assert_eq!(found("app", "linux/arm/v7"), digest_of(&v7));
    let error = open("app", "linux/arm/v6").unwrap_err().to_string();
    assert!(error.contains("has no image for linux/arm/v6"), "{error}");
    // A digest names one, whatever the platform; also within the index.
    for descriptor in [&here, &arm, &v7] {
        let digest = digest_of(descriptor);
        assert_eq!(found(&digest, &us), digest);
        assert_eq!(found(&format!("@{digest}"), &us), digest);
    }
    let other = Digest::of(b"other").to_string();
    assert!(open(&other, &us).unwrap_err().to_string().contains("has no image named"));
    for bad in ["", "/", "linux/", "a/b/c/d", "linux/arm/"] {
        assert!(Platform::parse(bad).is_err(), "{bad:?}");
    }
}
