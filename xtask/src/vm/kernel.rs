//! Kernels to boot: given as files, or Debian's, fetched through apt from where this machine gets its packages.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::run::{output, run, top};
use crate::say;

/// How long fetched package lists are good for.
const LISTS_KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// A bzImage or a directory of unpacked packages.
pub(super) fn find_or_fetch(name: &str) -> Result<PathBuf> {
    if let Some(suite) = name.strip_prefix("debian:") {
        if suite.is_empty() || !suite.bytes().all(|b| b.is_ascii_lowercase()) {
            bail!("{suite:?} is no Debian suite");
        }
        return debian(suite);
    }
    let path = PathBuf::from(name);
    path.canonicalize().with_context(|| format!("the kernel {name}"))
}

/// The kernel that `linux-image-amd64` of a suite stands for, unpacked below `target/vm/kernels`.
fn debian(suite: &str) -> Result<PathBuf> {
    let apt = Apt::new(suite)?;
    let kept = top().join("target/vm/kernels").join(suite);
    if let Err(error) = apt.update() {
        // Without a network, the one of last time will do.
        let last = std::fs::read_dir(&kept).ok().and_then(|entries| entries.flatten().map(|entry| entry.path()).max());
        let last = last.with_context(|| format!("no kernel of {suite}: {error:#}"))?;
        say(&format!("going on with {}: {error:#}", last.display()));
        return Ok(last);
    }
    let packages = apt.packages("linux-image-amd64")?;
    let version = packages.iter().next().context("linux-image-amd64 names no kernel")?;
    let place = kept.join(version);
    if place.exists() {
        return Ok(place);
    }
    say(&format!("fetching {}", packages.iter().map(String::as_str).collect::<Vec<_>>().join(", ")));
    // In a directory that counts only once it is whole; what an earlier kernel of the suite left is no longer wanted.
    if kept.exists() {
        std::fs::remove_dir_all(&kept)?;
    }
    let half = apt.dir.join("unpacked");
    if half.exists() {
        std::fs::remove_dir_all(&half)?;
    }
    std::fs::create_dir_all(&half)?;
    std::fs::create_dir_all(&kept)?;
    run(apt.command("apt-get").args(["-qq", "download"]).args(&packages).current_dir(&half))?;
    for entry in std::fs::read_dir(&half)?.collect::<Result<Vec<_>, _>>()? {
        run(Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(&half))?;
        std::fs::remove_file(entry.path())?;
    }
    std::fs::rename(&half, &place)?;
    Ok(place)
}

/// apt with lists of one suite of its own; this machine's are not touched.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(suite: &str) -> Result<Self> {
        let dir = top().join("target/vm/apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        let apt = Self { dir };
        let sources = sources(suite)?;
        if !std::fs::read_to_string(apt.list()).is_ok_and(|old| old == sources) {
            std::fs::write(apt.list(), sources)?;
            drop(std::fs::remove_file(apt.stamp()));
        }
        Ok(apt)
    }

    fn list(&self) -> PathBuf {
        self.dir.join("sources.list")
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("updated")
    }

    /// Everything else, such as proxies, is as this machine's apt has it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |name: &str, value: &Path| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::Etc::SourceList", &self.list());
        set("Dir::Etc::SourceParts", Path::new("/dev/null"));
        set("Dir::State::Lists", &self.dir.join("lists"));
        set("Dir::Cache", &self.dir.join("cache"));
        set("APT::Sandbox::User", Path::new("root"));
        set("Acquire::Languages", Path::new("none"));
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false"));
        command
    }

    fn update(&self) -> Result<()> {
        let age =
            std::fs::metadata(self.stamp()).and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_KEEP) {
            return Ok(());
        }
        run(self.command("apt-get").args(["-qq", "--error-on=any", "update"]))?;
        std::fs::write(self.stamp(), "")?;
        Ok(())
    }

    /// What the package depends on that holds parts of the kernel: newer releases spread it over several packages.
    fn packages(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut ask = vec![name.to_owned()];
        while let Some(name) = ask.pop() {
            let text = output(self.command("apt-cache").args(["depends", "--no-recommends", "--no-suggests", &name]))?;
            for package in text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")) {
                let part = ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|p| package.starts_with(p));
                if part && found.insert(package.to_owned()) {
                    ask.push(package.to_owned());
                }
            }
        }
        Ok(found)
    }
}

/// The list of one suite, from the place that this machine's Debian packages come from.
fn sources(suite: &str) -> Result<String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let place = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|main|"));
    let place = place.context("this machine's apt has no Debian main; give --kernel a file or a directory")?;
    let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed = if keys.exists() { format!("[signed-by={}] ", keys.display()) } else { String::new() };
    Ok(format!("deb {signed}{place} {suite} main\n"))
}
