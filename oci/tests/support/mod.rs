//! A throw-away store, and images in files of any shape, good and bad.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests set their scene by path, may fail at once, and say what they skip"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use graph_archive::digest::Digest;
use graph_oci::{Event, Loaded, Reference, SourceImage};
use graph_store::{DiffCompression, DiffOptions, Store, StoreOptions};
use serde_json::{Value, json};

pub(crate) const DRIVERS: [&str; 2] = ["overlay", "vfs"];
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// This machine's architecture, in the words of Go.
pub(crate) fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

/// Gives the thread its own mounts, and says why a test is skipped where that cannot be had.
pub(crate) fn isolated() -> bool {
    match graph_sys::namespace::private_mounts() {
        Ok(()) => true,
        Err(error) => {
            eprintln!("skipped: no mount namespace of our own ({error}); run as root");
            false
        }
    }
}

/// A store's two roots below a directory.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) driver: &'static str,
}

impl Place {
    pub(crate) fn new(driver: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), driver }
    }

    /// One in memory, where there is room for that: for tests that make hundreds of stores and would wait for the disk
    /// most of the time.
    pub(crate) fn in_memory(driver: &'static str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir, driver }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn open(&self) -> Store {
        let options = StoreOptions {
            root: self.root(),
            run_root: self.dir.path().join("run"),
            driver: Some(self.driver.to_owned()),
            ..StoreOptions::default()
        };
        let store = Store::open(options, &graph_drivers::registry().unwrap()).unwrap();
        assert_eq!(store.warnings(), [] as [String; 0]);
        store
    }

    pub(crate) fn names_in(&self, below: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root().join(below)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Nothing that no record knows, nothing temporary, and every layer whole: its tar has its diff ID.
    pub(crate) fn assert_sound(&self, store: &Store) {
        let layers = store.layers().unwrap();
        let known: Vec<String> = layers.iter().map(|layer| layer.id.clone()).collect();
        let mut of_driver: Vec<String> =
            store.driver().list_layers().unwrap().iter().map(ToString::to_string).collect();
        of_driver.sort();
        let mut sorted = known.clone();
        sorted.sort();
        assert_eq!(of_driver, sorted);
        let images: Vec<String> = store.images().unwrap().iter().map(|image| image.id.clone()).collect();
        for (kind, ids) in [("layers", &known), ("images", &images)] {
            for name in self.names_in(&format!("{}-{kind}", self.driver)) {
                let own = [".json", ".lock"].iter().any(|end| name.ends_with(end)) || name == "tmp";
                let owner = name.strip_suffix(".tar-split.gz").unwrap_or(&name).to_owned();
                assert!(own || ids.contains(&owner), "{kind}/{name} belongs to nobody");
            }
        }
        let mut temporary = self.names_in(&format!("{}-layers/tmp", self.driver));
        temporary.retain(|name| !name.starts_with("pending-load-"));
        assert_eq!(temporary, [] as [&str; 0]);
        for root in store.driver().temp_dir_roots() {
            let left = std::fs::read_dir(&root).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{}", root.display());
        }
        for layer in &layers {
            assert_eq!(Digest::of(&diff(store, &layer.id)).to_string(), layer.diff_digest);
        }
    }
}

/// A layer's tar as the store gives it back.
pub(crate) fn diff(store: &Store, layer: &str) -> Vec<u8> {
    let mut out = Vec::new();
    store.diff(None, layer, &mut out, &DiffOptions { compression: Some(DiffCompression::None) }).unwrap();
    out
}

/// Loads without names.
pub(crate) fn load(store: &Store, reference: &str) -> graph_oci::Result<Loaded> {
    let source = SourceImage::open(&Reference::parse(reference).unwrap())?;
    graph_oci::load(store, &source, &[], &|_: Event<'_>| {})
}

/// A shell script run in an empty directory, and the directory packed by GNU tar.
pub(crate) fn tar_of(script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    run("sh", &["-ec", &format!("umask 022; {script}")], dir.path(), &[]);
    run("tar", &["--numeric-owner", "--sort=name", "-cf", "-", "."], dir.path(), &[])
}

/// A program's output; it must succeed.
pub(crate) fn run(program: &str, words: &[&str], dir: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(pipe.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{program} {words:?}");
    output.stdout
}

/// Three small layers.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    vec![
        tar_of("mkdir dir; echo one >dir/one; head -c 200000 /dev/urandom >big"),
        tar_of("mkdir dir; echo two >dir/two; touch dir/.wh.one"),
        tar_of("mkdir new; echo three >new/three; head -c 300000 /dev/urandom >more"),
    ]
}

/// A layout being made, step by step, so that any of them can be made wrong.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn reference(&self, name: Option<&str>) -> String {
        let name = name.map(|name| format!(":{name}")).unwrap_or_default();
        format!("oci:{}{name}", self.dir.display())
    }

    /// Puts a blob; its descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        std::fs::write(self.path_of(&digest.to_string()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub(crate) fn path_of(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    pub(crate) fn document(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, &serde_json::to_vec(value).unwrap())
    }

    /// Config and manifest of an image with these layers (descriptors) and diff IDs; the manifest's descriptor.
    pub(crate) fn manifest(&self, comment: &str, layers: &[Value], diff_ids: &[String]) -> Value {
        let config = json!({"architecture": architecture(), "os": "linux", "author": comment,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.document("application/vnd.oci.image.config.v1+json", &config);
        self.document(MANIFEST, &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}))
    }

    /// An image of plain tars; its manifest's descriptor.
    pub(crate) fn image(&self, comment: &str, tars: &[Vec<u8>]) -> Value {
        let layers: Vec<Value> =
            tars.iter().map(|tar| self.blob("application/vnd.oci.image.layer.v1.tar", tar)).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        self.manifest(comment, &layers, &diff_ids)
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        std::fs::write(self.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }
}

/// A descriptor with a name.
pub(crate) fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

/// A descriptor with a platform.
pub(crate) fn on(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}
