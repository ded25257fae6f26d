//! The main job, on a throw-away store: a real image through the whole stack and out again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{cargo, find, have, is_root, line, output, run as execute, top};
use crate::{image, say};

/// Set in the process that already sits in namespaces of its own.
const INSIDE: &str = "GRAPHDRIVER_DEMO_INSIDE";

/// Runs the demo on `given`, or on an image it makes.
pub(crate) fn run(given: Option<PathBuf>) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "how the demo finds out that it runs in its own namespaces")]
    let inside = std::env::var_os(INSIDE).is_some();
    if !inside {
        execute(cargo().args(["build", "--release", "--package", "driverctl"]))?;
        let given = given.map(|path| path.canonicalize().with_context(|| path.display().to_string())).transpose()?;
        let mut command = namespaces(given.as_deref())?;
        let status = command.status().with_context(|| line(&command))?;
        ensure!(status.success(), "not all of it worked; see above");
        return Ok(());
    }
    let work = top().join("target/demo");
    fs::create_dir_all(&work)?;
    // A demo that was killed may still have a part of itself running.
    let lock = fs::File::create(work.join("lock"))?;
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        say("waiting for another demo in this directory");
        lock.lock()?;
    }
    let source = match given {
        Some(path) => path,
        None => image::make(&work)?,
    };
    let began = Instant::now();
    let dir = work.join("run");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove the last run's {}", dir.display()))?;
    }
    fs::create_dir_all(&dir)?;
    let demo = Demo { dir: dir.clone(), driverctl: top().join("target/release/driverctl") };
    let result = demo.main_job(&source);
    // Whatever happened, the store goes; a mount that is still there goes with this mount namespace.
    let cleaned = demo.driverctl(&["wipe"]).or_else(|_| demo.driverctl(&["shutdown", "--force"]));
    let removed = fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()));
    result?;
    cleaned?;
    removed?;
    say(&format!("\nall of it worked, and nothing is left behind: {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

/// This program again, in a mount namespace of its own and, without root, in a user namespace.
fn namespaces(given: Option<&Path>) -> Result<Command> {
    let unshare = find("unshare").context("unshare (package util-linux) is not installed")?;
    let mut command = Command::new(unshare);
    command.args(["--mount", "--propagation", "private"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
        let works = |args: &[&str]| {
            let mut probe = Command::new("unshare");
            probe.args(["--user", "--map-root-user"]).args(args).args(["--mount", "true"]);
            probe.output().is_ok_and(|out| out.status.success())
        };
        // With ranges from /etc/subuid the image's other owners exist in the namespace; without, all is squashed to one.
        if works(&["--map-auto"]) {
            command.arg("--map-auto");
        } else {
            ensure!(
                works(&[]),
                "this machine lets no ordinary user make a user namespace (see the sysctls \
                 kernel.unprivileged_userns_clone, user.max_user_namespaces and \
                 kernel.apparmor_restrict_unprivileged_userns): run this as root"
            );
            say("no sub-ids (lines for this user in /etc/subuid and /etc/subgid, and newuidmap of package uidmap): \
                 every file will belong to one user");
            command.env("GRAPHDRIVER_DEMO_ONE_ID", "1");
        }
    }
    command.arg(std::env::current_exe()?).arg("demo").args(given).env(INSIDE, "1");
    Ok(command)
}

struct Demo {
    dir: PathBuf,
    driverctl: PathBuf,
}

impl Demo {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.driverctl);
        command.arg("--graph").arg(self.dir.join("root")).arg("--run").arg(self.dir.join("run"));
        command.args(["--storage-driver", "overlay"]);
        #[expect(clippy::disallowed_methods, reason = "handed on by the process outside the namespace")]
        if std::env::var_os("GRAPHDRIVER_DEMO_ONE_ID").is_some() {
            command.args(["--storage-opt", "overlay.ignore_chown_errors=true"]);
        }
        command.args(args);
        command
    }

    /// Runs driverctl quietly.
    fn driverctl(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args))
    }

    /// Shows the command, runs it, shows the beginning of what it says.
    fn show(&self, args: &[&str]) -> Result<String> {
        self.show_rows(args, 24)
    }

    fn show_rows(&self, args: &[&str], most: usize) -> Result<String> {
        say(&format!("\n$ driverctl {}", args.join(" ")));
        let mut command = self.command(args);
        let out = command.output().with_context(|| line(&command))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let rows: Vec<&str> = text.lines().collect();
        for row in rows.iter().take(most) {
            say(&format!("  {row}"));
        }
        if rows.len() > most {
            say(&format!("  ... {} more", rows.len() - most));
        }
        for row in String::from_utf8_lossy(&out.stderr).lines() {
            say(&format!("  {row}"));
        }
        ensure!(out.status.success(), "driverctl {} failed: {}", args.join(" "), out.status);
        Ok(text)
    }

    fn main_job(&self, source: &Path) -> Result<()> {
        let source = source.to_str().context("the image's path is not UTF-8")?;
        let loaded = self.show(&["load", "--name", "localhost/demo:1", source])?;
        ensure!(!loaded.trim().is_empty(), "load printed no image");
        self.show_rows(&["status"], usize::MAX)?;
        self.show(&["images"])?;

        self.show(&["create-container", "--name", "demo", "localhost/demo:1"])?;
        let root = self.show(&["mount", "demo"])?.trim().to_owned();
        let script = "set -e; id -u; mkdir -p /etc /srv/demo; echo changed >>/etc/hosts.demo; echo hello >/srv/demo/file; \
                      ln -s file /srv/demo/link; ln /srv/demo/file /srv/demo/hard; chmod 4755 /srv/demo/file; \
                      rm -rf /usr/share/doc /usr/share/demo-data";
        say(&format!("\n$ chroot {root} /bin/sh -c '...change and delete files...'"));
        let chroot = find("chroot").context("chroot (package coreutils) is not installed")?;
        let inside = |script: &str| {
            let mut command = Command::new(&chroot);
            command.arg(&root).args(["/bin/sh", "-c", script]);
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            command
        };
        ensure!(
            inside(":").output().is_ok_and(|out| out.status.success()),
            "the image has no /bin/sh that runs on this machine; name one that has"
        );
        say(&format!("  as uid {}", output(&mut inside(script))?));

        let container = self.driverctl(&["containers", "--json"])?;
        let layer = field(&container, "layer")?;
        let changes = self.show(&["changes", &layer])?;
        // The image may have had a file of that name.
        for path in ["/srv/demo/file", "/srv/demo/hard", "/etc/hosts.demo"] {
            let told =
                ["Add", "Modify"].iter().any(|kind| changes.lines().any(|row| row == format!("{kind} {path:?}")));
            ensure!(told, "changes does not list {path}");
        }
        self.show(&["diffsize", &layer])?;
        let tar = self.dir.join("changes.tar");
        self.show(&["diff", "--uncompressed", "--file", &tar.display().to_string(), &layer])?;
        let members = output(Command::new("tar").arg("-tf").arg(&tar))?;
        say(&format!("  {} members, {} bytes", members.lines().count(), fs::metadata(&tar)?.len()));
        ensure!(members.lines().any(|name| name == "srv/demo/file"), "the diff lacks srv/demo/file");

        let out = self.dir.join("out");
        self.show(&["save", "localhost/demo:1", &format!("oci:{}:1", out.display())])?;
        let layers = check_layout(&out, &image::diff_ids(source))?;
        say(&format!("\n{layers} layers exported; every blob has its digest, every layer its diff ID"));

        self.show(&["unmount", "demo"])?;
        self.show(&["delete-container", "demo"])?;
        self.show(&["delete-image", "localhost/demo:1"])?;
        let left = self.driverctl(&["layers", "--quiet"])?;
        ensure!(left.is_empty(), "layers left in the store: {left}");
        Ok(())
    }
}

/// The first value of a key in a JSON listing.
fn field(json: &str, key: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(json).context("driverctl's JSON")?;
    let found = value.get(0).and_then(|first| first.get(key)).and_then(|value| value.as_str());
    found.map(str::to_owned).with_context(|| format!("no {key:?} in {json}"))
}

/// Recomputes every digest of an OCI layout with the system's own tools; the number of layers of its first image.
fn check_layout(layout: &Path, came_in: &Option<Vec<String>>) -> Result<usize> {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let read = |digest: &str| -> Result<serde_json::Value> {
        let path = blob(digest);
        Ok(serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?)
    };
    let text = |value: &serde_json::Value, pointer: &str| -> Result<String> {
        let found = value.pointer(pointer).and_then(|value| value.as_str());
        found.map(str::to_owned).with_context(|| format!("no {pointer} in {value}"))
    };
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sum = output(Command::new("sha256sum").arg(&path))?;
        ensure!(sum.starts_with(&name), "blob {name} has another digest: {sum}");
    }
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest = read(&text(&index, "/manifests/0/digest")?)?;
    let config = read(&text(&manifest, "/config/digest")?)?;
    let empty = Vec::new();
    let layers = manifest.pointer("/layers").and_then(|v| v.as_array()).unwrap_or(&empty);
    let diff_ids = config.pointer("/rootfs/diff_ids").and_then(|v| v.as_array()).unwrap_or(&empty);
    ensure!(
        !layers.is_empty() && layers.len() == diff_ids.len(),
        "{} layers, {} diff IDs",
        layers.len(),
        diff_ids.len()
    );
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let digest = text(layer, "/digest")?;
        let media_type = text(layer, "/mediaType")?;
        let unpack = match media_type.rsplit_once(['+', '.']) {
            Some((_, "gzip")) => "gzip -dc",
            Some((_, "zstd")) if have("zstd") => "zstd -dc",
            Some((_, "zstd")) => {
                say(&format!("zstd is not installed: the diff ID of layer {digest} is not computed anew"));
                continue;
            }
            Some((_, "tar")) => "cat",
            _ => bail!("layer {digest} has media type {media_type}"),
        };
        let sum = output(
            Command::new("sh").args(["-c", &format!("{unpack} | sha256sum")]).stdin(fs::File::open(blob(&digest))?),
        )?;
        let diff_id = diff_id.as_str().unwrap_or_default();
        ensure!(
            diff_id == format!("sha256:{}", sum.trim_end_matches([' ', '-'])),
            "layer {digest}: {sum} is not {diff_id}"
        );
    }
    if let Some(came_in) = came_in {
        let went_out: Vec<String> = diff_ids.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        ensure!(&went_out == came_in, "the image came in with other diff IDs");
    }
    Ok(layers.len())
}
