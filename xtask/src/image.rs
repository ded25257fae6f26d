//! A real image for the demo, as an OCI layout.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::run::{find, have, is_root, output, run};
use crate::{mirror, say};

/// Makes `work/image`, or finds the one an earlier run made: a base layer and a small one on top of it.
pub(crate) fn make(work: &Path) -> Result<PathBuf> {
    let layout = work.join("image");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    let scratch = work.join("image.tmp");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(scratch.join("blobs/sha256"))?;
    let root = work.join("rootfs");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    if !debootstrap(&root)? {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        from_host(&root)?;
    }
    let base = layer(&scratch, &root)?;
    let top = work.join("top");
    if top.exists() {
        fs::remove_dir_all(&top)?;
    }
    fs::create_dir_all(top.join("usr/share/demo-data"))?;
    for number in 0..50 {
        fs::write(top.join(format!("usr/share/demo-data/{number}")), format!("{number}\n").repeat(200))?;
    }
    fs::create_dir_all(top.join("etc"))?;
    fs::write(top.join("etc/hosts.demo"), "127.0.0.1 localhost\n")?;
    let data = layer(&scratch, &top)?;
    fs::remove_dir_all(&root)?;
    fs::remove_dir_all(&top)?;

    let config = json!({"created": "2023-11-14T22:13:20Z", "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [base.diff_id, data.diff_id]},
        "history": [{"created_by": "base"}, {"created_by": "data"}]});
    let config = blob(&scratch, &serde_json::to_vec(&config)?)?;
    let layers = [base, data].map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.blob));
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers});
    let manifest = blob(&scratch, &serde_json::to_vec(&manifest)?)?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "demo"});
    fs::write(scratch.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(scratch.join("index.json"), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?)?;
    fs::rename(&scratch, &layout)?;
    Ok(layout)
}

/// The diff IDs of a layout directory's first image, where it is one.
pub(crate) fn diff_ids(source: &str) -> Option<Vec<String>> {
    let layout = Path::new(source);
    let read = |path: PathBuf| -> Option<Value> { serde_json::from_slice(&fs::read(path).ok()?).ok() };
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"));
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(index.pointer("/manifests/0/digest")?))?;
    let config = read(blob(manifest.pointer("/config/digest")?))?;
    let ids = config.pointer("/rootfs/diff_ids")?.as_array()?;
    Some(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
}

struct Blob {
    digest: String,
    size: u64,
}

struct Layer {
    blob: Blob,
    diff_id: String,
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

fn digest_of(path: &Path) -> Result<String> {
    let line = output(Command::new("sha256sum").arg(path))?;
    let hex = line.split_whitespace().next().context("sha256sum printed nothing")?;
    Ok(format!("sha256:{}", hex.trim_start_matches('\\')))
}

/// Moves a finished file among the blobs.
fn adopt(layout: &Path, file: &Path) -> Result<Blob> {
    let digest = digest_of(file)?;
    let size = fs::metadata(file)?.len();
    fs::rename(file, layout.join("blobs").join(digest.replace(':', "/")))?;
    Ok(Blob { digest, size })
}

fn blob(layout: &Path, bytes: &[u8]) -> Result<Blob> {
    let file = layout.join("blob.tmp");
    fs::File::create(&file)?.write_all(bytes)?;
    adopt(layout, &file)
}

/// A tree as a gzipped layer, members named as container engines name them.
fn layer(layout: &Path, root: &Path) -> Result<Layer> {
    let tar = layout.join("layer.tar");
    let pack = "find . -mindepth 1 -printf '%P\\0' | LC_ALL=C sort -z | tar --numeric-owner --xattrs \
                --xattrs-include='*' --format=posix --pax-option=delete=atime,delete=ctime --no-recursion --null -T - -cf";
    run(Command::new("sh").args(["-c", &format!("{pack} \"$0\"")]).arg(&tar).current_dir(root))?;
    let diff_id = digest_of(&tar)?;
    run(Command::new("gzip").args(["-n", "-6"]).arg(&tar))?;
    Ok(Layer { blob: adopt(layout, &layout.join("layer.tar.gz"))?, diff_id })
}

/// A Debian base system from the mirror that this machine's own apt uses.
fn debootstrap(root: &Path) -> Result<bool> {
    let Some(program) = find("debootstrap") else { return Ok(false) };
    let mapped = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !is_root() || !mapped.contains("4294967295") {
        return Ok(false);
    }
    let Some((mirror, suite)) = mirror::of_this_machine() else { return Ok(false) };
    if !mirror::answers(&mirror) {
        say(&format!("the mirror {mirror} does not answer"));
        return Ok(false);
    }
    say(&format!("making an image: a Debian {suite} base system (once; it is kept for the next run)"));
    // A mirror that stops answering must not hold the demo for ever.
    let done = Command::new("timeout")
        .args(["--kill-after=10", "900"])
        .arg(program)
        .args(["--variant=minbase", &suite])
        .arg(root)
        .arg(mirror)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if done {
        // Device nodes are the container's, not the image's; what apt can fetch again needs no place in it.
        let clean = "rm -rf dev/* var/cache/apt/archives var/lib/apt/lists";
        return Ok(run(Command::new("sh").args(["-c", clean]).current_dir(root)).is_ok());
    }
    say("no base system from the mirror; taking this machine's busybox and installed packages instead");
    Ok(false)
}

/// This machine's busybox, and the files of some of its installed packages.
fn from_host(root: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "srv", "sys", "tmp", "usr/share/doc", "var/tmp"] {
        fs::create_dir_all(root.join(dir))?;
    }
    if let Some(busybox) = find("busybox") {
        fs::copy(busybox, root.join("bin/busybox"))?;
        for name in ["sh", "id", "echo", "mkdir", "ln", "chmod", "rm", "cat", "ls"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
        }
    } else {
        let programs =
            ["sh", "id", "mkdir", "ln", "chmod", "rm", "cat", "ls"].map(|name| format!("$(command -v {name})"));
        let copy = format!(
            "for p in {}; do cp -L \"$p\" \"$0/bin/\"; ldd \"$p\" | grep -o '/[^ ]*' | while read -r l; do \
             mkdir -p \"$0$(dirname \"$l\")\"; cp -L \"$l\" \"$0$l\"; done; done",
            programs.join(" ")
        );
        run(Command::new("sh").args(["-c", &copy]).arg(root))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    if have("dpkg") {
        let files = "for p in coreutils tar gzip sed grep; do dpkg -L $p; done 2>/dev/null | sort -u | while read -r f; do \
                     if [ -f \"$f\" ] && [ -r \"$f\" ]; then echo \"$f\"; fi; done | tar -cf - -T - 2>/dev/null | tar -xf - -C \"$0\" --no-same-owner -k 2>/dev/null || true";
        run(Command::new("sh").args(["-c", files]).arg(root))?;
    }
    ensure!(root.join("bin/sh").exists(), "found no shell to put into an image");
    Ok(())
}
