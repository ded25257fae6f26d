//! The conformance suite on every driver, on every file system, as root and as root of a user namespace.
//!
//! A test is named `<who>::<file system>::<driver>::<topic>` and runs the topic's cases on one file system, made for it in
//! a mount namespace that ends with it. Every case's outcome is printed, skipped ones with the reason.
//!
//! The binary runs itself in stages: the test itself; `file-system`, in its own mount namespace, which makes and mounts the
//! file system; and `cases`, as whoever the test is about, which runs them.

#![allow(clippy::print_stdout, reason = "a test program says what it did")]

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use graph_core::conformance::{self, Case, Outcome};
use graph_core::registry::{DriverFactory, DriverSetup};
use libtest_mimic::{Arguments, Failed, Trial};

use support::filesystem::Kind;
use support::user_namespace;

/// As whom the cases run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    UserNamespace,
}

impl Who {
    const ALL: [Self; 2] = [Self::Root, Self::UserNamespace];

    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespace => "userns",
        }
    }
}

/// One test: the topic's cases in one surrounding.
#[derive(Clone, Copy, Debug)]
struct Group {
    who: Who,
    kind: Kind,
    driver: &'static str,
    topic: &'static str,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let stage = match words.as_slice() {
        ["stage:file-system", target, scratch, name] => {
            group(name).and_then(|group| make_file_system(group, Path::new(target), Path::new(scratch)))
        }
        ["stage:cases", target, name] => group(name).and_then(|group| run_cases(group, Path::new(target))),
        _ => {
            let trials = groups().into_iter().map(|group| Trial::test(group.name(), move || start(group))).collect();
            return libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        }
    };
    match stage {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The drivers by name. `&'static str` because trials outlive everything.
fn drivers() -> Vec<(&'static str, Arc<dyn DriverFactory>)> {
    graph_drivers::all()
        .into_iter()
        .map(|factory| (&*Box::leak(factory.name().to_owned().into_boxed_str()), factory))
        .collect()
}

fn topics() -> Vec<&'static str> {
    let mut topics: Vec<_> = conformance::suite().iter().map(|case| case.topic).collect();
    topics.dedup();
    topics
}

fn groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for (driver, _) in drivers() {
        for who in Who::ALL {
            for kind in Kind::ALL {
                groups.extend(topics().into_iter().map(|topic| Group { who, kind, driver, topic }));
            }
        }
    }
    groups
}

fn group(name: &str) -> Result<Group> {
    groups().into_iter().find(|group| group.name() == name).with_context(|| format!("no test {name}"))
}

impl Group {
    fn name(self) -> String {
        format!("{}::{}::{}::{}", self.who.name(), self.kind.name(), self.driver, self.topic)
    }
}

/// The test: starts the next stage in its own mount namespace and judges by its exit status.
fn start(group: Group) -> Result<(), Failed> {
    if !graph_sys::process::geteuid().is_root() {
        println!("skipped: {}: root makes the file systems and the user namespace", group.name());
        return Ok(());
    }
    if group.driver == "aufs" && !kernel_has("aufs") {
        println!("skipped: {}: AUFS was not found in /proc/filesystems", group.name());
        return Ok(());
    }
    if let Some(reason) = group.kind.missing() {
        println!("skipped: {}: {reason}", group.name());
        return Ok(());
    }
    let output = start_stage(group).map_err(|error| Failed::from(format!("{error:#}")))?;
    println!("{}", output.1);
    if output.0 { Ok(()) } else { Err(Failed::from(failures(&output.1))) }
}

/// Whether the kernel lists a file system.
fn kernel_has(name: &str) -> bool {
    let listed = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    listed.lines().any(|line| line.split_whitespace().next_back() == Some(name))
}

fn start_stage(group: Group) -> Result<(bool, String)> {
    // Below /tmp, because everybody can reach it there; the images on the disk that the build is on, or where SCRATCH says.
    let target = tempfile::Builder::new().prefix("conformance-").tempdir()?;
    std::fs::set_permissions(target.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    #[expect(clippy::disallowed_methods, reason = "the way in which a test program is told where to work")]
    let scratch = std::env::var_os("SCRATCH").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    std::fs::create_dir_all(&scratch)?;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .arg("stage:file-system")
        .args([target.path(), &scratch])
        .arg(group.name())
        .stdin(Stdio::null())
        .output()
        .context("starting unshare")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), text))
}

/// The lines that tell what went wrong; everything if none does.
fn failures(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("FAILED")).collect();
    if lines.is_empty() { text.to_owned() } else { lines.join("\n") }
}

fn make_file_system(group: Group, target: &Path, scratch: &Path) -> Result<()> {
    group.kind.mount(scratch, target)?;
    if group.who == Who::Root {
        return run_cases(group, target);
    }
    let first = user_namespace::FIRST_ID;
    std::os::unix::fs::chown(target, Some(first), Some(first))?;
    let name = group.name();
    let target = target.to_str().context("the target is not UTF-8")?;
    let status = user_namespace::run(&std::env::current_exe()?, &["stage:cases", target, &name])?;
    if !status.success() {
        bail!("the cases ended with {status}");
    }
    Ok(())
}

fn run_cases(group: Group, target: &Path) -> Result<()> {
    let (_, factory) = drivers()
        .into_iter()
        .find(|(name, _)| *name == group.driver)
        .with_context(|| format!("no driver {}", group.driver))?;
    let setup = DriverSetup { rootless: group.who == Who::UserNamespace, ..DriverSetup::default() };
    let cases: Vec<Case> = conformance::suite().into_iter().filter(|case| case.topic == group.topic).collect();
    let (mut passed, mut failed) = (0, 0);
    for case in &cases {
        let place: PathBuf = target.join(case.name);
        let start = std::time::Instant::now();
        match conformance::run(case, Arc::clone(&factory), &setup, &place)? {
            Outcome::Passed => {
                passed += 1;
                println!("passed: {} ({} ms)", case.name, start.elapsed().as_millis());
            }
            Outcome::Skipped(reason) => println!("skipped: {}: {reason}", case.name),
            Outcome::Failed(reason) => {
                failed += 1;
                println!("FAILED: {}: {reason}", case.name);
            }
        }
    }
    println!("{}: {passed} passed, {failed} failed, {} skipped", group.name(), cases.len() - passed - failed);
    if failed > 0 {
        bail!("{failed} of {} cases failed", cases.len());
    }
    Ok(())
}
