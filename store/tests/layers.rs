//! Layers, images and containers through the store alone, on every driver.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};

use graph_store::{
    CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, Error, ErrorKind, Expected, Found,
    MountOptions, Store,
};
use support::{DRIVERS, Place, gzip, isolated, three_layers};

fn import(store: &Store, parent: Option<&str>, blob: &[u8]) -> String {
    let options = CreateLayer { parent: parent.map(str::to_owned), ..CreateLayer::default() };
    store.import_layer(&options, &Expected::default(), &mut &*blob).unwrap().layer.id.clone()
}

fn diff(store: &Store, layer: &str, compression: Option<DiffCompression>) -> Vec<u8> {
    let mut out = Vec::new();
    let report = store.diff(None, layer, &mut out, &DiffOptions { compression }).unwrap();
    assert_eq!(report.bytes, out.len() as u64);
    out
}

#[test]
fn what_is_imported_comes_out_the_same() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let blobs = three_layers();
        let mut parent: Option<String> = None;
        let mut ids = Vec::new();
        for (n, blob) in blobs.iter().enumerate() {
            let packed = if n == 1 { gzip(blob) } else { blob.clone() };
            let id = import(&store, parent.as_deref(), &packed);
            let layer = store.layer(&id).unwrap();
            assert_eq!(layer.diff_size, blob.len() as i64);
            assert_eq!(layer.compressed_size, packed.len() as i64);
            assert_eq!(layer.compression, if n == 1 { 2 } else { 0 });
            assert_eq!(layer.compressed_digest == layer.diff_digest, n != 1);
            assert_eq!(layer.uids, [0]);
            assert!(!layer.is_incomplete());
            assert_eq!(store.layers_by_uncompressed_digest(&layer.diff_digest).unwrap().len(), 1);
            assert_eq!(store.layers_by_compressed_digest(&layer.compressed_digest).unwrap()[0].id, id);
            parent = Some(id.clone());
            ids.push(id);
        }
        // In another process's eyes too.
        let store = place.open();
        for (id, blob) in ids.iter().zip(&blobs) {
            assert!(diff(&store, id, Some(DiffCompression::None)) == *blob, "{driver}: the diff has other bytes");
        }
        assert!(diff(&store, &ids[1], None).starts_with(b"\x1f\x8b"), "gzip came in, gzip goes out");
        let path = store.mount(&ids[2], &MountOptions { read_only: true, ..MountOptions::default() }).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "changed\n");
        assert_eq!(std::fs::read_to_string(path.join("gone/back")).unwrap(), "back\n");
        assert!(!path.join("dir/sub").exists() && !path.join("opaque/old").exists());
        assert!(store.unmount(&ids[2], false).unwrap());
        place.assert_no_leftovers(&store);
    }
}

#[test]
fn bad_blobs_leave_nothing() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let [base, ..] = three_layers();
        let before = place.json("layers");
        let try_import = |blob: &[u8], expected: &Expected| {
            store.import_layer(&CreateLayer::default(), expected, &mut &*blob).unwrap_err()
        };
        for (blob, words) in [
            (&base[..700], "unexpected EOF"),
            (&b"hello, this is no archive but a short piece of text"[..], "unexpected EOF"),
            (&[b'x'; 2048][..], "invalid tar header"),
            (&gzip(&base)[..300], ""),
        ] {
            let error = try_import(blob, &Expected::default());
            let text = chain(&error);
            assert!(text.contains(words), "{driver}: {text}: want {words}");
        }
        let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000".to_owned();
        let expected = Expected { diff_digest: Some(digest), ..Expected::default() };
        assert_eq!(try_import(&base, &expected).kind(), ErrorKind::DigestMismatch);
        let expected = Expected { compressed_digest: Some("md5:1".to_owned()), ..Expected::default() };
        assert_eq!(try_import(&base, &expected).kind(), ErrorKind::InvalidDigest);
        if store.driver().capabilities().staging {
            assert_eq!(place.json("layers"), before, "{driver}: the records were not even touched");
        }
        assert!(store.layers().unwrap().is_empty());
        place.assert_no_leftovers(&store);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Gives what it has after `go`, and says when it is first asked.
struct Waiting<'b> {
    blob: &'b [u8],
    asked: Sender<()>,
    go: Receiver<()>,
}

impl Read for Waiting<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.asked.send(()).unwrap_or_default();
        // Once the sender is dropped there is nothing to wait for any more.
        self.go.recv().unwrap_or_default();
        self.blob.read(buf)
    }
}

/// Fails the test when it is read.
struct Untouched;

impl Read for Untouched {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("read although somebody else makes the layer");
    }
}

#[test]
fn who_imports_a_layer_that_somebody_imports_already_waits_for_it() {
    for driver in DRIVERS {
        let place = Place::in_memory(driver);
        let (first, second) = (place.open(), place.open());
        let [blob, ..] = three_layers();
        let options = CreateLayer { id: Some("twice".to_owned()), ..CreateLayer::default() };
        // The first one fails, then it succeeds.
        for good in [false, true] {
            let ((asked, is_asked), (start, go)) = (channel(), channel());
            let blob = if good { &blob[..] } else { &blob[..700] };
            std::thread::scope(|scope| {
                let (options, first, second) = (&options, &first, &second);
                let maker = scope.spawn(move || {
                    let mut source = Waiting { blob, asked, go };
                    first.import_layer(options, &Expected::default(), &mut source).map(|made| made.layer.id.clone())
                });
                is_asked.recv().unwrap();
                let waiter = scope.spawn(move || {
                    let mut untouched = Untouched;
                    let mut whatever: &[u8] = &blob[..700];
                    let source: &mut (dyn Read + Send) = if good { &mut untouched } else { &mut whatever };
                    second.import_layer(options, &Expected::default(), source).map(|made| made.layer.id.clone())
                });
                std::thread::sleep(std::time::Duration::from_millis(100));
                assert!(!waiter.is_finished());
                // Another layer is nobody's business.
                let other = import(second, None, &three_layers()[1]);
                second.delete_layer(&other).unwrap();
                drop(start);
                let (made, waited) = (maker.join().unwrap(), waiter.join().unwrap());
                if good {
                    assert_eq!(made.unwrap(), "twice");
                    assert_eq!(waited.unwrap_err().kind(), ErrorKind::IdInUse);
                } else {
                    assert_eq!([made.unwrap_err().kind(), waited.unwrap_err().kind()], [ErrorKind::Archive; 2]);
                }
            });
            place.assert_no_leftovers(&first);
        }
        assert_eq!(second.layer("twice").unwrap().id, "twice");
    }
}

#[test]
fn apply_diff_fills_a_layer_again() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let [base, _, top] = three_layers();
        let layer = store.create_layer(&CreateLayer { names: vec!["n".to_owned()], ..CreateLayer::default() }).unwrap();
        let path = store.mount("n", &MountOptions::default()).unwrap();
        store.apply_diff("n", &Expected::default(), &mut &*base).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/one")).unwrap(), "one\n", "visible in the mount");
        assert!(diff(&store, &layer.id, None) == base);
        store.apply_diff("n", &Expected::default(), &mut &*top).unwrap();
        assert!(diff(&store, &layer.id, None) == top, "replaces what was recorded");
        let before = place.json("layers");
        let error = store.apply_diff("n", &Expected::default(), &mut &top[..600]).unwrap_err();
        assert!(matches!(error, Error::PartlyApplied { .. }) && error.kind() == ErrorKind::Archive, "{error:?}");
        assert_eq!(place.json("layers"), before);
        store.unmount("n", true).unwrap();
        store.delete_layer("n").unwrap();
        place.assert_no_leftovers(&store);
    }
}

/// Does something when half of the blob was read.
struct Midway<'b, F: FnMut()> {
    rest: &'b [u8],
    half: usize,
    then: Option<F>,
}

impl<F: FnMut()> Read for Midway<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.len() <= self.half
            && let Some(mut then) = self.then.take()
        {
            then();
        }
        let most = buf.len().min(512);
        self.rest.read(&mut buf[..most])
    }
}

#[test]
fn an_empty_layer_is_filled_in_one_step_and_without_the_lock() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        for parent in [false, true] {
            let place = Place::new(driver);
            let store = place.open();
            let [base, middle, _] = three_layers();
            let parent = parent.then(|| {
                let options = CreateLayer { names: vec!["below".to_owned()], ..CreateLayer::default() };
                store.import_layer(&options, &Expected::default(), &mut &*base).unwrap();
                "below".to_owned()
            });
            let blob = if parent.is_some() { &middle } else { &base };
            let options = CreateLayer { names: vec!["n".to_owned()], parent, ..CreateLayer::default() };
            let layer = store.create_layer(&options).unwrap();
            let before = place.json("layers");
            let empty = store.changes(None, "n").unwrap();
            for bad in [&blob[..600], &blob[..700], b"garbage that is no tar at all"] {
                let error = store.apply_diff("n", &Expected::default(), &mut &*bad).unwrap_err();
                assert!(matches!(error, Error::Archive { .. }), "{error:?}");
                assert_eq!((place.json("layers"), store.changes(None, "n").unwrap()), (before.clone(), empty.clone()));
                place.assert_no_leftovers(&store);
            }
            let expected = Expected { diff_digest: Some(format!("sha256:{}", "0".repeat(64))), ..Expected::default() };
            let error = store.apply_diff("n", &expected, &mut &**blob).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DigestMismatch);
            assert_eq!((place.json("layers"), store.changes(None, "n").unwrap()), (before.clone(), empty));

            // Another process changes records while this one reads: it would wait for ever if the lock were held.
            let mut tries = 0;
            let other = || {
                place.open().create_layer(&CreateLayer::default()).unwrap();
                tries += 1;
            };
            let mut blob_midway = Midway { rest: blob, half: blob.len() / 2, then: Some(other) };
            let filled = store.apply_diff("n", &Expected::default(), &mut blob_midway).unwrap();
            assert_eq!(tries, 1);
            assert_eq!((&filled.layer.id, &filled.layer.names), (&layer.id, &layer.names));
            assert!(diff(&store, "n", None) == **blob);
            place.assert_no_leftovers(&store);

            // Whoever uses the layer meanwhile is not disturbed.
            let options = CreateLayer { names: vec!["m".to_owned()], ..CreateLayer::default() };
            store.create_layer(&options).unwrap();
            let other = || {
                place.open().mount("m", &MountOptions::default()).unwrap();
            };
            let mut base_midway = Midway { rest: &base, half: base.len() / 2, then: Some(other) };
            let error = store.apply_diff("m", &Expected::default(), &mut base_midway).unwrap_err();
            assert!(matches!(error, Error::LayerChanged { .. }), "{error:?}");
            assert_eq!(store.mounted("m").unwrap(), 1);
            store.unmount("m", true).unwrap();
            place.assert_no_leftovers(&store);

            // What was written to the layer meanwhile is not lost.
            store.apply_diff("m", &Expected::default(), &mut &*base).unwrap();
            let other = || {
                let store = place.open();
                let path = store.mount("m", &MountOptions::default()).unwrap();
                std::fs::write(path.join("dir/written"), "x").unwrap();
                store.unmount("m", true).unwrap();
            };
            let mut base_midway = Midway { rest: &base, half: base.len() / 2, then: Some(other) };
            let error = store.apply_diff("m", &Expected::default(), &mut base_midway).unwrap_err();
            assert!(matches!(error, Error::LayerChanged { .. }), "{error:?}");
            let path = store.mount("m", &MountOptions::default()).unwrap();
            assert!(path.join("dir/written").is_file());
            store.unmount("m", true).unwrap();
            place.assert_no_leftovers(&store);

            // Below a mounted layer it works in place: the mount sees it.
            let on_it =
                CreateLayer { names: vec!["on".to_owned()], parent: Some("m".to_owned()), ..CreateLayer::default() };
            store.create_layer(&on_it).unwrap();
            let on = store.mount("on", &MountOptions::default()).unwrap();
            store.apply_diff("m", &Expected::default(), &mut &*base).unwrap();
            assert!(on.join("dir/one").is_file());
            store.unmount("on", true).unwrap();
            place.assert_no_leftovers(&store);
        }
    }
}

#[test]
fn ids_and_names_are_unique_and_names_move() {
    if !isolated() {
        return;
    }
    let place = Place::new("vfs");
    let store = place.open();
    let make = |id: &str, names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        store.create_layer(&CreateLayer { id: Some(id.to_owned()), names, ..CreateLayer::default() })
    };
    make("aaa", &["one"]).unwrap();
    make("aab", &["two"]).unwrap();
    assert_eq!(make("aaa", &[]).unwrap_err().to_string(), "layer aaa: that ID is already in use");
    assert_eq!(make("aac", &["two"]).unwrap_err().kind(), ErrorKind::NameInUse);
    for bad in ["../x", "a/b", "layers.json", "x.tar-split.gz", "tmp"] {
        assert_eq!(make(bad, &[]).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
    }
    assert_eq!(store.layer("aa").unwrap_err().to_string(), "locating layer with ID \"aa\": layer not known");
    assert_eq!(store.layer("two").unwrap().id, "aab");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(store.add_names("aaa", &names(&["new", "two"])).unwrap(), ["new", "two", "one"]);
    assert_eq!(store.names("aab").unwrap(), [] as [&str; 0]);
    assert_eq!(store.remove_names("aaa", &names(&["two"])).unwrap(), ["new", "one"]);
    assert_eq!(store.set_names("aab", &names(&["x", "x"])).unwrap(), ["x"]);
    store.set_metadata("x", "{}").unwrap();
    assert_eq!(place.open().metadata("aab").unwrap(), "{}");
    assert_eq!(store.names("nobody").unwrap_err().kind(), ErrorKind::NotKnown);
    store.set_layer_big_data("x", "Some Key", b"data").unwrap();
    assert_eq!(place.open().layer_big_data("aab", "Some Key").unwrap(), b"data");
    assert_eq!(place.names_in("root/vfs-layers/aab"), ["=U29tZSBLZXk="]);
    store.delete("x").unwrap();
    store.delete("aaa").unwrap();
    place.assert_no_leftovers(&store);
}

#[test]
fn a_name_of_any_kind_comes_before_the_beginning_of_an_id_of_another() {
    if !isolated() {
        return;
    }
    let place = Place::in_memory("vfs");
    let store = place.open();
    let layer = CreateLayer { id: Some("cafe1".to_owned()), ..CreateLayer::default() };
    store.create_layer(&layer).unwrap();
    let container = CreateContainer { id: Some("cafe2".to_owned()), ..CreateContainer::default() };
    store.create_container(&container).unwrap();
    let image = CreateImage { names: vec!["cafe".to_owned()], ..CreateImage::default() };
    let image = store.create_image(&image).unwrap();
    assert_eq!(store.find("cafe").unwrap(), Found::Image(image.id.clone()));
    store.set_metadata("cafe", "of the image").unwrap();
    assert_eq!(store.image("cafe").unwrap().metadata, "of the image");
    store.delete("cafe").unwrap();
    assert!(store.container("cafe2").is_ok() && store.layer("cafe1").is_ok());
    // Without one, the beginning counts: of a layer first, and when deleting of a container first.
    assert_eq!(store.find("cafe").unwrap(), Found::Layer("cafe1".to_owned()));
    store.delete("cafe").unwrap();
    assert!(store.container("cafe2").is_err() && store.layer("cafe1").is_ok());
    // Of two of one name, deleting takes the image, and everything else the layer.
    store.add_names("cafe1", &["both".to_owned()]).unwrap();
    let image = CreateImage { names: vec!["both".to_owned()], ..CreateImage::default() };
    let image = store.create_image(&image).unwrap();
    assert_eq!(store.find("both").unwrap(), Found::Layer("cafe1".to_owned()));
    store.delete("both").unwrap();
    assert!(store.image(&image.id).is_err() && store.layer("cafe1").is_ok());
    store.delete("both").unwrap();
    place.assert_no_leftovers(&store);
}

#[test]
fn unknown_fields_survive_changes_beside_them_and_to_them() {
    if !isolated() {
        return;
    }
    let place = Place::new("vfs");
    let store = place.open();
    store.create_layer(&CreateLayer { id: Some("aaa".to_owned()), ..CreateLayer::default() }).unwrap();
    let path = place.root().join("vfs-layers/layers.json");
    let text = place.json("layers").replace("\"id\":", "\"zz-new\":{\"b\": 1.0,\"a\":[]},\"id\":");
    std::fs::write(&path, &text).unwrap();
    store.create_layer(&CreateLayer { id: Some("bbb".to_owned()), ..CreateLayer::default() }).unwrap();
    assert!(place.json("layers").starts_with(text.trim_end_matches(']')), "untouched records keep their bytes");
    store.add_names("aaa", &["n".to_owned()]).unwrap();
    assert!(place.json("layers").contains("\"zz-new\":{\"b\": 1.0,\"a\":[]}"));
    assert!(place.json("layers").starts_with("[{\"id\":\"aaa\",\"names\":[\"n\"],"));
}

#[test]
fn damaged_and_hostile_records_are_refused_without_harm() {
    if !isolated() {
        return;
    }
    let place = Place::new("vfs");
    let store = place.open();
    let path = place.root().join("vfs-images/images.json");
    std::fs::write(&path, "[{\"id\":").unwrap();
    assert_eq!(store.images().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "[{\"id\":");
    let victim = place.dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    let hostile = "[{\"id\":\"../../victim\",\"big-data-names\":[\"k\"],\"created\":\"x\"}]";
    std::fs::write(&path, hostile).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert!(store.image_big_data("../../victim", "k").is_err());
    assert!(store.set_image_big_data("../../victim", "k", b"").is_err());
    assert_eq!(store.delete_image("../../victim", true).unwrap(), [] as [&str; 0]);
    assert!(victim.is_dir(), "nothing outside the store was touched");
    let layers = place.root().join("vfs-layers/layers.json");
    std::fs::write(layers, "[{\"id\":\"../../victim\",\"flags\":{\"incomplete\":true},\"created\":\"x\"}]").unwrap();
    let store = Store::open(place.options(), &graph_drivers::registry().unwrap()).unwrap();
    assert_eq!(store.warnings().len(), 1, "one bad record does not block the store");
    assert!(store.layers().unwrap().is_empty());
    assert!(victim.is_dir());
}
