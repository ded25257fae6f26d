//! Registries and whatever else skopeo reaches: it brings an image into a layout of ours, or takes it from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use graph_oci::Platform;

use crate::output::safe;

/// What skopeo knows and we do not (containers-transports(5)).
const TRANSPORTS: [&str; 5] = ["docker://", "docker-daemon:", "dir:", "sif:", "containers-storage:"];

/// A place that only skopeo reaches.
#[derive(Debug)]
pub(crate) struct Foreign {
    reference: String,
}

impl Foreign {
    /// `None` for what is ours to read.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let known = TRANSPORTS.iter().any(|transport| text.starts_with(transport));
        known.then(|| Self { reference: text.to_owned() })
    }

    /// The names that an image from there has.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = ["docker://", "docker-daemon:"].iter().find_map(|transport| self.reference.strip_prefix(transport));
        name.map(|name| graph_oci::normalized_name(name, true)).into_iter().collect()
    }
}

/// A directory that goes when it is no longer needed.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    layout: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        // Where other programs put big temporary things; /tmp is memory on many machines.
        let asked = std::env::temp_dir();
        let parent = if asked == Path::new("/tmp") { PathBuf::from("/var/tmp") } else { asked };
        for number in 0..1000_u32 {
            let directory = parent.join(format!("driverctl-{}-{number}", std::process::id()));
            match std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&directory) {
                Ok(()) => return Ok(Self { layout: directory.join("image"), directory }),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("create {}", directory.display())),
            }
        }
        bail!("no directory can be made in {}", parent.display())
    }

    /// Where the layout is, or is to be.
    pub(crate) fn path(&self) -> &Path {
        &self.layout
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody waits for what becomes of it.
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// Brings an image into a layout.
pub(crate) fn fetch(foreign: &Foreign, platform: Option<&Platform>) -> Result<Scratch> {
    let scratch = Scratch::new()?;
    let mut command = Command::new("skopeo");
    if let Some(Platform { os, architecture, variant }) = platform {
        command.args(["--override-os", os, "--override-arch", architecture]);
        if let Some(variant) = variant {
            command.args(["--override-variant", variant]);
        }
    }
    command.args(["copy", "--quiet"]).arg(&foreign.reference).arg(format!("oci:{}:image", scratch.path().display()));
    run(command, foreign)?;
    Ok(scratch)
}

/// Takes an image out of a layout.
pub(crate) fn send(scratch: &Scratch, foreign: &Foreign) -> Result<()> {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet"]).arg(format!("oci:{}", scratch.path().display())).arg(&foreign.reference);
    run(command, foreign)
}

fn run(mut command: Command, foreign: &Foreign) -> Result<()> {
    let name = safe(&foreign.reference);
    let out = command.stdin(Stdio::inherit()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let out = match out {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "{name} is reached through skopeo, which is not installed: install it, or bring the image into files \
             (oci:, oci-archive:, docker-archive:) by other means"
        ),
        other => other.context("run skopeo")?,
    };
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    bail!("{name}: skopeo: {}", safe(last))
}
