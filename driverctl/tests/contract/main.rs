//! The contract of the command line: what scripts written for `containers-storage` rely on, row by row, on overlay and vfs, on
//! ext4, XFS and Btrfs, with and without `--transient-store`.
//!
//! A test is named `<file system>::<driver>[::transient]::<row>`. It runs in a mount namespace of its own on a file system
//! made for it. Everything is called as those scripts call it, and standard output and error are read together.
//!
//! # Adding a row
//!
//! Write a function `fn(&Ground)` that panics when something is wrong, in a file of your own beside this one, with its
//! `pub(crate) const ROWS: &[Row]`, and add that to [`rows`]. `Row::new(name, function)` runs on ext4 with both drivers, with and
//! without `--transient-store`; `.everywhere()` also on XFS and Btrfs (for what depends on the file system), `.on(&[...])`
//! on those file systems only, `.only("overlay")` with that driver only, `.once()` without the transient round. [`Ground`] has the
//! calls: `ok` must succeed and gives all it said, `fails` must fail, `run` does not care. Whatever stays mounted after
//! `wipe` and `shutdown` is found by the harness.
//!
//!     cargo test -p driverctl --test contract ext4::vfs::diff

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "tests")]

#[path = "../../../tests/support/mod.rs"]
#[allow(dead_code, reason = "shared with other test programs")]
mod support;

mod basics;
mod below;
mod checks;
mod copies;
mod diffs;
mod ground;
mod mounts;
mod stores;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

use ground::Ground;
use support::filesystem::Kind;

/// One row of the contract.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    name: &'static str,
    run: fn(&Ground),
    driver: Option<&'static str>,
    systems: &'static [Kind],
    transient: bool,
}

impl Row {
    /// On ext4, with every driver, with and without transient stores.
    pub(crate) const fn new(name: &'static str, run: fn(&Ground)) -> Self {
        Self { name, run, driver: None, systems: &[Kind::Ext4], transient: true }
    }

    /// Also on XFS and Btrfs (not transient there).
    pub(crate) const fn everywhere(self) -> Self {
        self.on(&[Kind::Ext4, Kind::Xfs, Kind::Btrfs])
    }

    /// On these file systems.
    pub(crate) const fn on(mut self, systems: &'static [Kind]) -> Self {
        self.systems = systems;
        self
    }

    /// With one driver only.
    pub(crate) const fn only(mut self, driver: &'static str) -> Self {
        self.driver = Some(driver);
        self
    }

    /// Not with transient stores.
    pub(crate) const fn once(mut self) -> Self {
        self.transient = false;
        self
    }
}

fn rows() -> Vec<Row> {
    [basics::ROWS, below::ROWS, checks::ROWS, copies::ROWS, diffs::ROWS, mounts::ROWS, stores::ROWS].concat()
}

/// A row in one surrounding.
#[derive(Clone, Copy)]
struct Case {
    row: Row,
    kind: Kind,
    driver: &'static str,
    transient: bool,
}

impl Case {
    fn name(self) -> String {
        let transient = if self.transient { "::transient" } else { "" };
        format!("{}::{}{transient}::{}", self.kind.name(), self.driver, self.row.name)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for row in rows() {
        for kind in row.systems.iter().copied() {
            for driver in ["overlay", "vfs"].into_iter().filter(|driver| row.driver.is_none_or(|only| only == *driver))
            {
                for transient in [false, true] {
                    if !transient || (row.transient && kind == Kind::Ext4) {
                        cases.push(Case { row, kind, driver, transient });
                    }
                }
            }
        }
    }
    cases
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [stage, target, scratch, name] = words.as_slice()
        && stage == "stage:row"
    {
        let case = cases().into_iter().find(|case| case.name() == *name).unwrap();
        case.kind.mount(Path::new(scratch), Path::new(target)).unwrap();
        let ground = Ground::new(Path::new(target), case.driver, case.transient);
        (case.row.run)(&ground);
        ground.finish();
        return ExitCode::SUCCESS;
    }
    let trials = cases().into_iter().map(|case| Trial::test(case.name(), move || start(case))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs the row in its own mount namespace; the file system goes with it.
fn start(case: Case) -> Result<(), Failed> {
    if !graph_sys::process::geteuid().is_root() {
        println!("skipped: {}: root makes the file systems", case.name());
        return Ok(());
    }
    if let Some(reason) = case.kind.missing() {
        println!("skipped: {}: {reason}", case.name());
        return Ok(());
    }
    let target = tempfile::Builder::new().prefix("contract-").tempdir()?;
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(scratch)?;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .arg("stage:row")
        .args([target.path(), scratch])
        .arg(case.name())
        .stdin(Stdio::null())
        .output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for line in text.lines().filter(|line| line.starts_with("skipped: ")) {
        println!("{line}");
    }
    if output.status.success() { Ok(()) } else { Err(Failed::from(text)) }
}
