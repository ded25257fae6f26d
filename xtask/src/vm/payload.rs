//! The payload of a machine: statically linked test programs, the command line and the script that runs them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, line, top};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds what is tested and puts it, with `vagrant/run.sh`, into `target/vm/payload`.
pub(super) fn gather(expected: &str, conformance: &str, tests: &[String]) -> Result<PathBuf> {
    let payload = top().join("target/vm/payload");
    if payload.exists() {
        std::fs::remove_dir_all(&payload)?;
    }
    let programs = payload.join("tests");
    std::fs::create_dir_all(&programs)?;
    std::fs::copy(top().join("vagrant/run.sh"), payload.join("run.sh"))?;
    let tests = tests.join(" ");
    let env = format!("EXPECT_DRIVERS={expected}\nCONFORMANCE={conformance}\nTESTS={tests}\n");
    std::fs::write(payload.join("env"), env)?;

    // One build for the programs and the tests that stand beside them: what they share is built once.
    let mut build = vec!["build", "--package", "driverctl", "--package", "graphdriver", "--package", "graph-sys"];
    let of_drivers = integration_tests(&top().join("drivers/tests"))?;
    if !of_drivers.is_empty() {
        build.extend(["--package", "graph-drivers"]);
    }
    build.extend(["--bin", "driverctl", "--test", "conformance", "--test", "file_systems"]);
    build.extend(of_drivers.iter().flat_map(|name| ["--test", name.as_str()]));
    let mut built = compile(&build)?;
    built.extend(compile(&["test", "--no-run", "--package", "graph-drivers", "--package", "graph-sys", "--lib"])?);
    for (name, file) in built {
        let place = if name == "driverctl" { payload.join(name) } else { programs.join(name) };
        std::fs::copy(&file, &place).with_context(|| format!("copying {}", file.display()))?;
    }
    Ok(payload)
}

/// The names of the integration tests in a directory, which may not be there.
fn integration_tests(dir: &Path) -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Builds and gives the programs: name and file. Statically linked, so that they run on every machine; naming the target keeps
/// those flags away from build scripts and macros.
fn compile(args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command
        .args(args)
        .args([
            "--quiet",
            "--target",
            TARGET,
            "--target-dir",
            "target/vm",
            "--message-format",
            "json-render-diagnostics",
        ])
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static -C debuginfo=0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stderr(Stdio::inherit());
    let out = command.output().with_context(|| format!("cannot run {}", line(&command)))?;
    if !out.status.success() {
        bail!("{} failed: {}", line(&command), out.status);
    }
    let mut programs = Vec::new();
    for message in String::from_utf8_lossy(&out.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(message).context("reading cargo's messages")?;
        if let (Some(file), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) {
            programs.push((name.to_owned(), file.into()));
        }
    }
    if programs.is_empty() {
        bail!("{} built no programs", line(&command));
    }
    Ok(programs)
}
