//! What "linked by a container engine" means: open the store that storage.conf names, load an image, make a container, run
//! a command in it in its own mount and process namespaces, commit what it changed as a new image, remove all of it.
//!
//!     cargo run --example engine -- IMAGE [COMMAND [ARGUMENT...]]
//!
//! IMAGE is an OCI layout, an oci-archive or a docker-archive. `CONTAINERS_STORAGE_CONF` names another storage.conf.
//! Everything comes from the facade; namespaces come from util-linux's `unshare`, where a real engine has its runtime.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use graphdriver::archive::digest::Digest;
use graphdriver::config::{Environment, LoadOptions, Resolved};
use graphdriver::oci::{Reference, SourceImage, load, normalized_name};
use graphdriver::store::{
    Container, CreateContainer, CreateImage, CreateLayer, DiffCompression, DiffOptions, Expected, Image, MountOptions,
    Stored,
};
use graphdriver::{Store, StoreOptions, drivers};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[expect(clippy::print_stdout, reason = "an example talks to its terminal")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "an example talks to its terminal")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((image, command)) = args.split_first() else {
        eprintln!("usage: engine IMAGE [COMMAND [ARGUMENT...]]");
        return ExitCode::FAILURE;
    };
    match run(image, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                text.push_str(&format!(": {inner}"));
                cause = inner.source();
            }
            eprintln!("engine: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run(image: &str, command: &[String]) -> Result<()> {
    let engine = Engine { store: open_store()? };
    say(&format!("store {} with driver {}", engine.store.root().display(), engine.store.driver().name()));

    let image = engine.load(image)?;
    say(&format!("loaded {}", image.names.join(", ")));

    let container = engine.create(&image)?;
    let result = engine.use_container(&image, &container, command);
    // Whatever happened in it, the container goes.
    engine.remove(&container)?;
    let committed = result?;

    for image in [&committed, &image] {
        let layers = engine.store.delete_image(&image.id, true)?;
        say(&format!("deleted image {} with {} layers", short(&image.id), layers.len()));
    }
    engine.store.shutdown(false)?;
    Ok(())
}

/// The store of this user on this machine, exactly as podman would find it.
fn open_store() -> Result<Store> {
    let process = std::fs::metadata("/proc/self")?;
    let environment = Environment {
        variables: std::env::vars().collect(),
        uid: process.uid(),
        home: std::env::home_dir(),
        rootless: process.uid() != 0 || !whole_user_namespace()?,
        system_root: PathBuf::from("/"),
    };
    let config = Resolved::load(&environment, &LoadOptions::default())?;
    for notice in &config.notices {
        say(&format!("storage.conf: {notice}"));
    }
    // An engine adds drivers of its own here.
    let registry = drivers::registry()?;
    let store = Store::open(StoreOptions::from_config(&config, &environment), &registry)?;
    for warning in store.warnings() {
        say(&format!("store: {warning}"));
    }
    Ok(store)
}

fn whole_user_namespace() -> Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_whitespace().eq(["0", "0", "4294967295"]))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

struct Engine {
    store: Store,
}

impl Engine {
    fn load(&self, image: &str) -> Result<Stored<Image>> {
        let source = SourceImage::open(&Reference::parse(image)?)?;
        let mut names: Vec<String> =
            source.names.iter().map(|name| normalized_name(name, source.is_docker())).collect();
        if names.is_empty() {
            names.push("localhost/engine:latest".to_owned());
        }
        let loaded = load(&self.store, &source, &names, &|_| {})?;
        say(&format!("{} layers imported, {} were there", loaded.imported, loaded.reused));
        Ok(loaded.image)
    }

    fn create(&self, image: &Stored<Image>) -> Result<Stored<Container>> {
        let container = self
            .store
            .create_container(&CreateContainer { image: Some(image.id.clone()), ..CreateContainer::default() })?;
        say(&format!("container {}", short(&container.id)));
        Ok(container)
    }

    fn use_container(
        &self,
        image: &Stored<Image>,
        container: &Stored<Container>,
        command: &[String],
    ) -> Result<Stored<Image>> {
        let root = self.store.mount(&container.id, &MountOptions::default())?;
        let run = self.run_in(&root, image, command);
        self.store.unmount(&container.id, false)?;
        run?;
        for change in self.store.changes(None, &container.layer)? {
            say(&format!("{:?} {}", change.kind, String::from_utf8_lossy(&change.path)));
        }
        self.commit(image, container)
    }

    /// Runs the command in mount and process namespaces of its own, with the container's tree as its root.
    fn run_in(&self, root: &Path, image: &Stored<Image>, command: &[String]) -> Result<()> {
        let config = self.config(image)?;
        let words = |pointer: &str| -> Vec<String> {
            let list = config.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            list.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect()
        };
        let mut line = words("/config/Entrypoint");
        line.extend(if command.is_empty() { words("/config/Cmd") } else { command.to_vec() });
        if line.is_empty() {
            line.push("/bin/sh".to_owned());
        }
        let mut run = Command::new("unshare");
        run.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--root"]).arg(root);
        if root.join("proc").is_dir() {
            run.arg("--mount-proc");
        }
        run.args(["--wd", "/", "--"]).args(&line).env_clear();
        run.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        for variable in words("/config/Env") {
            if let Some((name, value)) = variable.split_once('=') {
                run.env(name, value);
            }
        }
        let status = run.status()?;
        if status.success() { Ok(()) } else { Err(format!("{} in the container: {status}", line.join(" ")).into()) }
    }

    fn config(&self, image: &Stored<Image>) -> Result<Value> {
        let bytes = self.store.image_big_data(&image.id, &format!("sha256:{}", image.id))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// What the container changed becomes a layer, and the layer an image.
    fn commit(&self, image: &Stored<Image>, container: &Stored<Container>) -> Result<Stored<Image>> {
        let path = std::env::temp_dir().join(format!("engine-{}.tar", container.id));
        let file = File::create_new(&path)?;
        // From here on the file has no name, and goes with its descriptor.
        let mut reader = File::open(&path)?;
        std::fs::remove_file(&path)?;
        let plain = DiffOptions { compression: Some(DiffCompression::None) };
        self.store.diff(None, &container.layer, &mut &file, &plain)?;

        let mut config = self.config(image)?;
        let diff_ids: Vec<String> = serde_json::from_value(config["rootfs"]["diff_ids"].clone())?;
        let mut digests = diff_ids.iter().map(|id| Ok(id.parse()?)).collect::<Result<Vec<Digest>>>()?;
        let scratch = self.store.import_layer(
            &CreateLayer { parent: (!image.layer.is_empty()).then(|| image.layer.clone()), ..CreateLayer::default() },
            &Expected::default(),
            &mut reader,
        )?;
        digests.push(scratch.layer.diff_digest.parse()?);
        say(&format!("committed {} bytes as layer {}", scratch.report.bytes, short(&scratch.layer.id)));

        config["rootfs"]["diff_ids"] = digests.iter().map(ToString::to_string).collect();
        if let Some(history) = config["history"].as_array_mut() {
            history.push(json!({"created_by": "engine", "comment": "what the container changed"}));
        }
        let config = serde_json::to_vec(&config)?;
        let config_digest = Digest::of(&config);
        let manifest =
            self.manifest(&image.id, &config, &config_digest, &scratch.layer.diff_digest, scratch.report.bytes)?;
        let manifest_digest = Digest::of(&manifest).to_string();
        Ok(self.store.create_image(&CreateImage {
            id: Some(config_digest.hex()),
            names: vec!["localhost/engine:committed".to_owned()],
            layer: Some(scratch.layer.id.clone()),
            digest: Some(manifest_digest.clone()),
            metadata: "{}".to_owned(),
            big_data: vec![
                (config_digest.to_string(), config),
                (format!("manifest-{manifest_digest}"), manifest.clone()),
                ("manifest".to_owned(), manifest),
            ],
            ..CreateImage::default()
        })?)
    }

    /// The old manifest with the new config and one more layer.
    fn manifest(&self, image: &str, config: &[u8], digest: &Digest, layer: &str, bytes: u64) -> Result<Vec<u8>> {
        let mut manifest: Value = serde_json::from_slice(&self.store.image_big_data(image, "manifest")?)?;
        manifest["config"]["digest"] = json!(digest.to_string());
        manifest["config"]["size"] = json!(config.len());
        let layers = manifest["layers"].as_array_mut().ok_or("the manifest has no layers")?;
        layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": bytes}));
        Ok(serde_json::to_vec(&manifest)?)
    }

    fn remove(&self, container: &Stored<Container>) -> Result<()> {
        self.store.unmount(&container.id, true)?;
        Ok(self.store.delete_container(&container.id)?)
    }
}
