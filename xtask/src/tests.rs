//! Checks, tests, benches and fuzzing.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, find, have, is_root, run as execute, top};
use crate::say;

/// Debian packages of the tests: the peers that are compared with, file systems, and tools for making awkward archives.
const PACKAGES: &[(&str, &str)] = &[
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("skopeo", "skopeo"),
    ("containers-storage", "containers-storage"),
    ("umoci", "umoci"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("fuse-overlayfs", "fuse-overlayfs"),
    ("debootstrap", "debootstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("busybox", "busybox-static"),
    ("bsdtar", "libarchive-tools"),
    ("python3", "python3"),
    ("zstd", "zstd"),
    ("xz", "xz-utils"),
    ("bzip2", "bzip2"),
    ("pigz", "pigz"),
    ("setfattr", "attr"),
    ("setfacl", "acl"),
    ("setcap", "libcap2-bin"),
    ("newuidmap", "uidmap"),
    ("strace", "strace"),
    ("losetup", "mount"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("go", "golang-go"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ruby", "ruby"),
];

/// Installs what is missing, when that is possible.
pub(crate) fn install_packages() -> Result<()> {
    let missing: BTreeSet<&str> =
        PACKAGES.iter().filter(|(program, _)| !have(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        let list = missing.iter().copied().collect::<Vec<_>>().join(" ");
        if !is_root() || !have("apt-get") {
            say(&format!("not installed, so the tests that need them will say that they are skipped: {list}"));
        } else {
            say(&format!("installing {list}"));
            // Somebody else's repository that is out of order must not keep us from Debian's.
            if let Err(error) = execute(Command::new("apt-get").args(["update", "-qq"])) {
                say(&format!("going on with the package lists there are: {error:#}"));
            }
            let install = |packages: &[&str]| {
                execute(
                    Command::new("apt-get")
                        .args(["install", "-y", "-qq", "--no-install-recommends"])
                        .args(packages)
                        .env("DEBIAN_FRONTEND", "noninteractive"),
                )
            };
            // A release may lack one of them; the others are still wanted.
            if install(&missing.iter().copied().collect::<Vec<_>>()).is_err() {
                for package in &missing {
                    if let Err(error) = install(&[package]) {
                        say(&format!("the tests that need {package} will say that they are skipped: {error:#}"));
                    }
                }
            }
        }
    }
    if find("cargo-nextest").is_none()
        && cargo().args(["nextest", "--version"]).output().is_ok_and(|o| !o.status.success())
    {
        say("installing cargo-nextest");
        execute(cargo().args(["install", "cargo-nextest", "--locked"]))?;
    }
    Ok(())
}

/// Everything that has to hold before a change is good.
fn check_and_test(args: &[String]) -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let tool = component.trim_start_matches("rust");
        if have("rustup") && !cargo().args([tool, "--version"]).output().is_ok_and(|out| out.status.success()) {
            execute(Command::new("rustup").args(["component", "add", component]).current_dir(top()))?;
        }
    }
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    execute(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    execute(cargo().args(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    // The tests run the command line too, as its users have it.
    execute(cargo().args(["build", "--quiet", "--workspace", "--bins", "--examples"]))?;
    let junit = top().join("target/nextest/ci/junit.xml");
    // An earlier run's report must not be taken for this one's.
    if junit.exists() {
        std::fs::remove_file(&junit)?;
    }
    let tests = execute(cargo().args(["nextest", "run", "--workspace", "--profile", "ci"]).args(args));
    skipped(&junit)?;
    tests?;
    if args.is_empty() {
        execute(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
        crate::vm::for_tests()?;
    }
    Ok(())
}

/// Installs, then tests.
pub(crate) fn run(args: &[String]) -> Result<()> {
    install_packages()?;
    check_and_test(args)
}

/// Prints what tests said they left out, each reason once.
fn skipped(junit: &std::path::Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(junit) else { return Ok(()) };
    let mut reasons: BTreeSet<String> = BTreeSet::new();
    for line in text.lines() {
        if let Some((_, reason)) = line.split_once("skipped: ") {
            let reason = reason.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            reasons.insert(reason.trim_end_matches("</system-err>").trim_end_matches("</system-out>").to_owned());
        }
    }
    if reasons.is_empty() {
        say("nothing was skipped");
    }
    for reason in reasons {
        say(&format!("skipped: {reason}"));
    }
    Ok(())
}

/// Makes the benchmark data.
pub(crate) fn perfdata(dir: Option<&str>) -> Result<()> {
    let dir = dir.map_or_else(|| top().join("target/perfdata"), Into::into);
    execute(Command::new("bash").arg(top().join("benches/perfdata/make-perfdata.sh")).arg(dir))
}

/// Runs the benches.
pub(crate) fn bench(args: &[String]) -> Result<()> {
    execute(cargo().args(["build", "--release", "--package", "driverctl", "--package", "graph-benches"]))?;
    execute(Command::new(top().join("target/release/graph-benches")).args(args).current_dir(top()))
}

/// Writes manual pages, and completions for the shells that have them.
pub(crate) fn man(dir: Option<&str>) -> Result<()> {
    let dir = dir.map_or_else(|| top().join("target/man"), Into::into);
    execute(cargo().args(["build", "--quiet", "--package", "driverctl"]))?;
    let driverctl = top().join("target/debug/driverctl");
    execute(Command::new(&driverctl).arg("man-pages").arg(&dir))?;
    for (shell, name) in [("bash", "driverctl.bash"), ("zsh", "_driverctl"), ("fish", "driverctl.fish")] {
        let file = std::fs::File::create(dir.join(name)).with_context(|| format!("creating {name}"))?;
        execute(Command::new(&driverctl).args(["completions", shell]).stdout(file))?;
    }
    say(&format!("{}: install *.1 as manual pages, the others where the shells look for completions", dir.display()));
    Ok(())
}

/// Runs every fuzz target for a while.
pub(crate) fn fuzz(seconds: Option<&str>) -> Result<()> {
    let seconds: u32 = seconds.unwrap_or("600").parse().context("SECONDS is a whole number")?;
    if cargo().args(["fuzz", "--version"]).output().is_ok_and(|o| !o.status.success()) {
        bail!("cargo-fuzz is not installed: cargo install cargo-fuzz (it needs a nightly toolchain)");
    }
    for target in ["decoder", "tar_split", "apply"] {
        say(&format!("fuzzing {target} for {seconds} s"));
        execute(
            Command::new("cargo")
                .args(["+nightly", "fuzz", "run", target, "--", "-rss_limit_mb=1024"])
                .arg(format!("-max_total_time={seconds}"))
                .current_dir(top()),
        )?;
    }
    Ok(())
}
