//! Layouts and archives as tools write them, and as nobody should.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

mod support;

use std::path::Path;

use graph_archive::digest::Digest;
use graph_oci::{Error, ErrorKind, Event, Reference, SaveCompression, SourceImage};
use graph_store::{CreateImage, CreateLayer, Expected};
use serde_json::{Value, json};
use support::{
    DRIVERS, INDEX, Layout, MANIFEST, Place, architecture, diff, isolated, layers, load, named, on, run, tar_of,
};

fn open(reference: &str) -> graph_oci::Result<SourceImage> {
    SourceImage::open(&Reference::parse(reference).unwrap())
}

fn author(image: &SourceImage) -> String {
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    config["author"].as_str().unwrap().to_owned()
}

/// It must be refused as bad input, in these words among others.
fn refused(reference: &str, words: &str) {
    let error = open(reference).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn the_image_for_this_platform_is_taken_from_an_index_within_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let tars = layers();
    let ours = on(layout.image("ours", &tars), "linux", architecture());
    let foreign = on(layout.image("foreign", &tars[..1]), "linux", "s390x");
    let windows = on(layout.image("windows", &tars[..1]), "windows", architecture());
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [foreign, windows, ours]});
    let inner = layout.document(INDEX, &index);
    layout.index(&[named(inner.clone(), "app")]);
    let image = open(&layout.reference(Some("app"))).unwrap();
    assert_eq!((author(&image).as_str(), image.layers.len()), ("ours", 3));
    assert_eq!(image.names, ["app"]);

    // Twice nested is taken, deeper is not.
    let nest = |inner: &Value| layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
    let twice = nest(&inner);
    layout.index(std::slice::from_ref(&twice));
    assert_eq!(author(&open(&layout.reference(None)).unwrap()), "ours");
    layout.index(&[nest(&twice)]);
    refused(&layout.reference(None), "manifest");

    let none = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [foreign, windows]});
    layout.index(&[layout.document(INDEX, &none)]);
    refused(&layout.reference(None), &format!("linux/{}", architecture()));

    let both = json!({"schemaVersion": 2, "manifests": [ours], "config": ours, "layers": []});
    layout.index(&[layout.document(INDEX, &both)]);
    refused(&layout.reference(None), "both");
}

#[test]
fn one_of_several_images_is_taken_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let tars = layers();
    let (one, two) = (layout.image("one", &tars[..1]), layout.image("two", &tars[..2]));
    layout.index(&[named(one.clone(), "app:1"), named(two.clone(), "app:2")]);
    assert_eq!(author(&open(&layout.reference(Some("app:2"))).unwrap()), "two");
    let by_digest = layout.reference(one["digest"].as_str());
    assert_eq!(author(&open(&by_digest).unwrap()), "one");
    for name in [None, Some("app:3")] {
        let error = open(&layout.reference(name)).unwrap_err();
        assert!(matches!(&error, Error::Ambiguous { names, .. } if names == &["app:1", "app:2"]), "{error:?}");
        assert!(error.to_string().contains("app:1, app:2"), "{error}");
    }
    // Two names of one image leave no choice.
    layout.index(&[named(one.clone(), "a"), named(one, "b")]);
    assert_eq!(author(&open(&layout.reference(None)).unwrap()), "one");
    layout.index(&[]);
    assert!(open(&layout.reference(None)).unwrap_err().to_string().contains("none"));
}

/// What `docker save` wrote before version 25: a directory for each layer, equal layers as links.
fn docker_archive(dir: &Path, tars: &[Vec<u8>], manifest: &dyn Fn(&str) -> Value) -> String {
    let mut names = Vec::new();
    for (n, tar) in tars.iter().enumerate() {
        std::fs::create_dir_all(dir.join(format!("l{n}"))).unwrap();
        std::fs::write(dir.join(format!("l{n}/layer.tar")), tar).unwrap();
        names.push(format!("l{n}/layer.tar"));
    }
    std::fs::create_dir(dir.join("again")).unwrap();
    std::os::unix::fs::symlink("../l0/layer.tar", dir.join("again/layer.tar")).unwrap();
    let mut diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    diff_ids.extend(diff_ids.first().cloned());
    let config = json!({"architecture": architecture(), "os": "linux", "author": "docker",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    std::fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest("config.json")).unwrap()).unwrap();
    let archive = dir.with_extension("tar");
    run("tar", &["-cf", archive.to_str().unwrap(), "."], dir, &[]);
    format!("docker-archive:{}", archive.display())
}

#[test]
fn layers_of_a_docker_archive_may_be_links() {
    if !isolated() {
        return;
    }
    let tars = &layers()[..2];
    let whole = |config: &str| {
        json!([{"Config": config, "RepoTags": ["app:1", "docker.io/me/app:2"],
        "Layers": ["l0/layer.tar", "l1/layer.tar", "again/layer.tar"]}])
    };
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let files = place.dir.path().join("saved");
        let archive = docker_archive(&files, tars, &whole);
        for reference in [archive.clone(), format!("{archive}:app:1"), files.display().to_string()] {
            let loaded = load(&store, &reference).unwrap();
            let image = open(&reference).unwrap();
            assert!(image.is_docker());
            assert_eq!(image.names, ["app:1", "docker.io/me/app:2"]);
            assert_eq!(loaded.imported + loaded.reused, 3);
            assert!(diff(&store, &loaded.image.layer) == tars[0], "the link is the base layer once more");
        }
        place.assert_sound(&store);
        let error = open(&format!("{archive}:app:9")).unwrap_err();
        assert!(error.to_string().contains("app:1, docker.io/me/app:2"), "{error}");
    }
}

#[test]
fn members_outside_of_an_archive_and_rings_of_links_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("secret"),
        r#"{"architecture":"amd64","os":"linux","author":"stolen","rootfs":{"type":"layers","diff_ids":[]}}"#,
    )
    .unwrap();
    let secret = dir.path().join("secret").display().to_string();
    for (n, config) in ["../secret", "x/../../secret", secret.as_str(), "link", "ring"].into_iter().enumerate() {
        let files = dir.path().join(format!("saved{n}"));
        std::fs::create_dir(&files).unwrap();
        std::os::unix::fs::symlink(&secret, files.join("link")).unwrap();
        std::os::unix::fs::symlink("ring", files.join("ring")).unwrap();
        let archive = docker_archive(&files, &[], &|_| json!([{"Config": config, "Layers": []}]));
        // The archive, and the directory that it was made of.
        for reference in [archive, format!("docker-archive:{}", files.display())] {
            let error = open(&reference).map(|image| author(&image)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Io), "{reference} {config}: {error}");
        }
    }
    // A layout's blobs are found by their digests alone.
    let layout = Layout::new(&dir.path().join("layout"));
    let evil = json!({"mediaType": MANIFEST, "digest": "sha256:../../../secret", "size": 10});
    layout.index(&[evil]);
    assert_eq!(open(&layout.reference(None)).unwrap_err().kind(), ErrorKind::InvalidInput);
    // A fifo in the place of a file does not keep anybody waiting.
    let fifo = dir.path().join("layout/index.json");
    std::fs::remove_file(&fifo).unwrap();
    run("mkfifo", &[fifo.to_str().unwrap()], dir.path(), &[]);
    refused(&layout.reference(None), "not a regular file");
}

#[test]
fn archives_may_be_compressed() {
    if !isolated() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(&dir.path().join("layout"));
    let tars = layers();
    let mut descriptors = Vec::new();
    for (tar, (program, kind)) in tars.iter().zip([("gzip", "+gzip"), ("zstd", "+zstd"), ("xz", "")]) {
        let bytes = run(program, &["-c"], dir.path(), tar);
        descriptors.push(layout.blob(&format!("application/vnd.oci.image.layer.v1.tar{kind}"), &bytes));
    }
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    layout.index(&[named(layout.manifest("packed", &descriptors, &diff_ids), "app")]);
    let tar = run("tar", &["-cf", "-", "."], &layout.dir, &[]);
    for driver in DRIVERS {
        for program in ["cat", "gzip", "zstd", "xz", "bzip2"] {
            let words: &[&str] = if program == "cat" { &[] } else { &["-c"] };
            let path = dir.path().join("image"); // the name says nothing
            std::fs::write(&path, run(program, words, dir.path(), &tar)).unwrap();
            let place = Place::new(driver);
            let store = place.open();
            let loaded = load(&store, &format!("oci-archive:{}:app", path.display())).unwrap();
            assert_eq!((loaded.imported, loaded.reused), (3, 0), "{program}");
            place.assert_sound(&store);
            // Cut off anywhere it is an error.
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let place = Place::new(driver);
            let store = place.open();
            let error = load(&store, &format!("oci-archive:{}", path.display())).unwrap_err();
            assert!(!error.to_string().is_empty());
            assert!(store.layers().unwrap().is_empty() && store.images().unwrap().is_empty());
            place.assert_sound(&store);
        }
    }
}

#[test]
fn hostile_documents_are_refused_in_bounded_time_and_stack() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let index = dir.path().join("index.json");
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    let objects = format!("{}1{}", "{\"a\":".repeat(500_000), "}".repeat(500_000));
    for text in [
        deep.clone(),
        objects.clone(),
        format!(r#"{{"schemaVersion":2,"manifests":{deep}}}"#),
        String::new(),
        "null".to_owned(),
        "{}".to_owned(),
        "[]".to_owned(),
        "\u{0}".repeat(100),
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:0","size":-1}]}"#.to_owned(),
        r#"{"schemaVersion":1e999,"manifests":[]}"#.to_owned(),
        format!(r#"{{"schemaVersion":2,"manifests":[],"a":"{}"}}"#, "x".repeat(9 << 20)),
    ] {
        std::fs::write(&index, &text).unwrap();
        refused(&layout.reference(None), "index.json");
    }
    // The same in the places that the index leads to, where unknown members are passed over.
    let passed = |text: &str| format!(r#"{{"schemaVersion":2,"unknown":{text}}}"#);
    for text in [deep.clone(), passed(&deep), passed(&objects), "7".to_owned(), "\"x\"".to_owned()] {
        layout.index(&[layout.blob(MANIFEST, text.as_bytes())]);
        refused(&layout.reference(None), "manifest");
    }
    let config = layout.blob("application/vnd.oci.image.config.v1+json", deep.as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    layout.index(&[layout.document(MANIFEST, &manifest)]);
    refused(&layout.reference(None), "config");
    // A size that no document has is not even read.
    let mut huge = layout.image("huge", &[]);
    let path = layout.path_of(huge["digest"].as_str().unwrap());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    huge["size"] = json!(1_u64 << 40);
    layout.index(&[huge]);
    refused(&layout.reference(None), "limited");
}

#[test]
fn every_digest_and_size_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let tars = layers();
    let fresh = |name: &str| {
        let layout = Layout::new(&dir.path().join(name));
        let manifest = layout.image("x", &tars);
        layout.index(std::slice::from_ref(&manifest));
        (layout, manifest)
    };
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        // A blank more or less is the same JSON: only the digest tells.
        let last = bytes.len() - 1;
        bytes.insert(last, b' ');
        std::fs::write(path, bytes).unwrap();
    };
    let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    for same_size in [false, true] {
        for which in ["manifest", "config"] {
            let (layout, mut manifest) = fresh(&format!("{which}{same_size}"));
            let text: Value =
                serde_json::from_slice(&std::fs::read(layout.path_of(&digest(&manifest))).unwrap()).unwrap();
            if which == "manifest" {
                flip(&layout.path_of(&digest(&manifest)));
                if same_size {
                    manifest["size"] = json!(manifest["size"].as_u64().unwrap() + 1);
                }
                layout.index(&[manifest]);
            } else {
                flip(&layout.path_of(&digest(&text["config"])));
                if same_size {
                    let mut text = text;
                    text["config"]["size"] = json!(text["config"]["size"].as_u64().unwrap() + 1);
                    layout.index(&[layout.document(MANIFEST, &text)]);
                }
            }
            refused(&layout.reference(None), if same_size { "another digest" } else { "bytes; its descriptor says" });
        }
    }
    let (layout, _) = fresh("layer");
    flip(&layout.path_of(&Digest::of(&tars[1]).to_string()));
    let image = open(&layout.reference(None)).unwrap();
    let error = image.open_layer(&image.layers[1]).map(drop).unwrap_err();
    assert!(error.to_string().contains("the manifest says"), "{error}");
}

#[test]
fn layers_and_diff_ids_must_be_equally_many() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let tars = layers();
    let blobs: Vec<Value> = tars.iter().map(|tar| layout.blob("application/vnd.oci.image.layer.v1.tar", tar)).collect();
    let ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    for (blobs, ids) in [(&blobs[..], &ids[..2]), (&blobs[..1], &ids[..]), (&blobs[..1], &[])] {
        layout.index(&[layout.manifest("x", blobs, ids)]);
        refused(&layout.reference(None), &format!("{} layers, but {} diff IDs", blobs.len(), ids.len()));
    }
    layout.index(&[layout.manifest("x", &blobs[..1], &["sha256:../../x".to_owned()])]);
    refused(&layout.reference(None), "is no digest");
}

#[test]
fn saving_replaces_the_tag_and_keeps_the_others() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let layout = Layout::new(&place.dir.path().join("in"));
        let tars = layers();
        layout.index(&[named(layout.image("one", &tars[..1]), "one"), named(layout.image("two", &tars[..2]), "two")]);
        let one = load(&store, &layout.reference(Some("one"))).unwrap().image;
        let two = load(&store, &layout.reference(Some("two"))).unwrap().image;
        let out = place.dir.path().join("out");
        let save = |image, name| {
            graph_oci::save(&store, image, &out, name, SaveCompression::AsLoaded, &|_: Event<'_>| {}).unwrap()
        };
        let at = |name: &str| author(&open(&format!("oci:{}:{name}", out.display())).unwrap());
        save(&one, Some("tag"));
        save(&one, Some("other"));
        assert_eq!((at("tag").as_str(), at("other").as_str()), ("one", "one"));
        let saved = save(&two, Some("tag"));
        assert_eq!((at("tag").as_str(), at("other").as_str()), ("two", "one"));
        assert_eq!(
            saved.manifest.to_string(),
            two.digest,
            "plain layers come out as they went in, so does the manifest"
        );
        save(&two, None);
        save(&two, None);
        let index: Value = serde_json::from_slice(&std::fs::read(out.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 3, "{index}");
        // Another program reads it.
        let inspect = ["inspect", &format!("oci:{}:tag", out.display())];
        let seen: Value = serde_json::from_slice(&run("skopeo", &inspect, place.dir.path(), &[])).unwrap();
        assert_eq!(seen["Digest"], json!(two.digest));
        let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }
}

#[test]
fn an_image_without_manifest_and_config_can_be_saved() {
    if !isolated() {
        return;
    }
    for driver in DRIVERS {
        let place = Place::new(driver);
        let store = place.open();
        let tar = tar_of("echo a >a");
        let layer =
            store.import_layer(&CreateLayer::default(), &Expected::default(), &mut &*tar).unwrap().layer.id.clone();
        for layer in [Some(layer), None] {
            let image = store.create_image(&CreateImage { layer: layer.clone(), ..CreateImage::default() }).unwrap();
            let out = place.dir.path().join(format!("out{}", layer.is_some()));
            graph_oci::save(&store, &image, &out, Some("x"), SaveCompression::Gzip, &|_: Event<'_>| {}).unwrap();
            let reference = format!("oci:{}:x", out.display());
            assert_eq!(open(&reference).unwrap().layers.len(), usize::from(layer.is_some()));
            run("skopeo", &["inspect", &reference], place.dir.path(), &[]);
            let other = Place::new(driver);
            let store = other.open();
            let loaded = load(&store, &reference).unwrap();
            if layer.is_some() {
                assert!(diff(&store, &loaded.image.layer) == tar);
            }
            other.assert_sound(&store);
        }
    }
}

#[test]
fn two_loads_of_one_image_at_once_do_the_work_once() {
    let tars: Vec<Vec<u8>> =
        (0..4).map(|number| tar_of(&format!("dd if=/dev/urandom of=f{number} bs=64k count=20 2>/dev/null"))).collect();
    for driver in DRIVERS {
        let place = Place::in_memory(driver);
        let layout = Layout::new(&place.dir.path().join("layout"));
        let image = layout.image("both", &tars);
        layout.index(&[named(image, "app")]);
        let stores = [place.open(), place.open(), place.open()];
        let reference = layout.reference(Some("app"));
        let loaded: Vec<_> = std::thread::scope(|scope| {
            let loads: Vec<_> = stores.iter().map(|store| scope.spawn(|| load(store, &reference).unwrap())).collect();
            loads.into_iter().map(|load| load.join().unwrap()).collect()
        });
        assert_eq!(loaded.iter().map(|loaded| loaded.imported).sum::<usize>(), 4, "{driver}");
        assert!(loaded.iter().all(|loaded| loaded.imported + loaded.reused == 4), "{driver}");
        place.assert_sound(&stores[0]);
    }
}
