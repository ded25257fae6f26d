//! Choosing the driver for a graph root.
//!
//! 1. A driver named explicitly is taken, or its error returned.
//! 2. Otherwise a driver with **prior state** (its home `<root>/<name>` exists) is taken. If it fails its error is
//!    returned: with another driver all images would seem to be gone. If there are several such drivers, or the only one
//!    is not to be taken silently, the operator has to say which is meant.
//! 3. Otherwise the first driver of the priority list that works here, then the first of the remaining ones in the order
//!    in which they were added. Only refusals (not supported, prerequisites, file system) lead on to the next; any other
//!    error ends the search.
//!
//! Without a priority list from the caller it is overlay, aufs, btrfs, zfs; `vfs`, which copies whole layers, is never
//! chosen silently. Same as containers/storage's `drivers.New`, with two differences, both on the safe side: it would fall
//! back to vfs in the end, and it would pass over a prior vfs store and begin an empty one with another driver.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use graph_sys::fs::{self, AtFlags, CWD, Mode, OFlags};

use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{canonical, options_for};
use crate::registry::{DriverFactory, DriverSetup, Registry};

#[cfg(test)]
mod tests;

/// The order in which drivers are tried when nobody says another.
pub const DEFAULT_PRIORITY: [&str; 5] = ["overlay", "aufs", "btrfs", "zfs", "vfs"];
/// The driver that is only taken when it is asked for.
const NEVER_SILENTLY: &str = "vfs";

/// What to select for.
#[derive(Clone, Debug, Default)]
pub struct SelectRequest {
    /// The driver's name; `None` or empty to choose one.
    pub name: Option<String>,
    /// Names in the order to try them; empty for [`DEFAULT_PRIORITY`]. With a list of the caller's own, `vfs` in it
    /// counts like any other.
    pub priority: Vec<String>,
    /// Options as written (`overlay.mountopt=nodev`); each driver is given its own. A later one wins.
    pub options: Vec<String>,
    /// What every driver is told. Its `options` are put after those picked from `options`.
    pub setup: DriverSetup,
}

/// What became of one driver in a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is the one.
    Chosen,
    /// It was tried and cannot be used here.
    Refused {
        /// How: one of the three kinds that let selection go on.
        kind: ErrorKind,
        /// Its own words.
        reason: String,
    },
    /// It was not tried, and why.
    Passed(&'static str),
}

/// One driver in the report of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The driver.
    pub name: String,
    /// Whether its home directory was there before.
    pub prior: bool,
    /// What became of it.
    pub outcome: Outcome,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.outcome {
            Outcome::Chosen => f.write_str("chosen")?,
            Outcome::Refused { reason, .. } => write!(f, "cannot be used: {reason}")?,
            Outcome::Passed(why) => write!(f, "not tried: {why}")?,
        }
        if self.prior { f.write_str(" (has layers here)") } else { Ok(()) }
    }
}

/// A driver that was chosen and opened, and the reasons.
#[derive(Debug)]
pub struct Selection {
    /// The driver.
    pub driver: Arc<dyn Driver>,
    /// Its name.
    pub name: String,
    /// Why this one, in one sentence.
    pub why: &'static str,
    /// Every driver that was thought of, in that order.
    pub report: Vec<Candidate>,
    /// The file system below the graph root, as statfs(2) names it; `<unknown>` for one without a name.
    pub backing_file_system: String,
}

const WHY_NAMED: &str = "it was asked for by name";
const WHY_PRIOR: &str = "the store was made with it";
const WHY_FIRST: &str = "the first one that works here";
const PASSED_LATER: &str = "another was chosen first";
const PASSED_VFS: &str = "it copies whole layers, so it is only used when asked for";

impl Registry {
    /// Chooses and opens a driver; the module says how. The graph root and the run root must exist.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a name that is not registered and when no driver works, with every driver's reason;
    /// [`Error::Config`] when the store holds several drivers' layers, or an option is malformed; otherwise the error of
    /// the driver that was to be taken.
    pub fn select(&self, request: &SelectRequest) -> Result<Selection> {
        let root = request.setup.root.as_path();
        let prior = self.prior(root)?;
        let mut search = Search { registry: self, request, prior, report: Vec::new() };
        let (driver, name, why) = search.run()?;
        for factory in self.factories() {
            search.passed(factory.name(), PASSED_LATER);
        }
        Ok(Selection { driver, name, why, report: search.report, backing_file_system: backing_file_system(root) })
    }

    /// The registered drivers whose home directory exists below `root`, in the order they were added; and those of
    /// [`DEFAULT_PRIORITY`] that are not registered but have a home and layer records there.
    ///
    /// # Errors
    /// I/O errors other than that nothing is there.
    pub fn prior(&self, root: &Path) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for factory in self.factories() {
            if exists(&root.join(factory.name()))? {
                found.push(factory.name().to_owned());
            }
        }
        for name in DEFAULT_PRIORITY.into_iter().filter(|name| self.get(name).is_none()) {
            if exists(&root.join(name))? && exists(&root.join(format!("{name}-layers")))? {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }
}

/// One run of a selection.
struct Search<'s> {
    registry: &'s Registry,
    request: &'s SelectRequest,
    prior: Vec<String>,
    report: Vec<Candidate>,
}

impl Search<'_> {
    fn run(&mut self) -> Result<(Arc<dyn Driver>, String, &'static str)> {
        let root = self.request.setup.root.display();
        if let Some(name) = self.request.name.as_deref().filter(|name| !name.is_empty()) {
            let factory = self.registry.get(name).or_else(|| self.registry.get(canonical(name)));
            let Some(factory) = factory else {
                return Err(Error::NotSupported { context: format!("failed to GetDriver graph {name} {root}") });
            };
            let driver = self.open(factory.as_ref())?;
            return Ok((driver, factory.name().to_owned(), WHY_NAMED));
        }
        let given = !self.request.priority.is_empty();
        let priority: Vec<String> = if given {
            self.request.priority.iter().map(|name| canonical(name).to_owned()).collect()
        } else {
            DEFAULT_PRIORITY.map(str::to_owned).to_vec()
        };
        let silent = |name: &str| given || name != NEVER_SILENTLY;

        if let [first, ..] = self.prior.as_slice() {
            let listed = priority.iter().find(|name| self.prior.contains(name) && silent(name));
            let name = listed.unwrap_or(first).clone();
            return self.take_prior(&name, silent(&name));
        }

        let rest = self.registry.factories().iter().map(|factory| factory.name().to_owned());
        let mut names = priority.clone();
        names.extend(rest.filter(|name| !priority.contains(name)));
        for name in names {
            let Some(factory) = self.registry.get(&name).cloned() else {
                // Of the names nobody registered only the caller's own are worth a word.
                if given {
                    self.passed(&name, "no such driver here");
                }
                continue;
            };
            if !silent(&name) {
                self.passed(&name, PASSED_VFS);
                continue;
            }
            match self.open(factory.as_ref()) {
                Ok(driver) => return Ok((driver, name, WHY_FIRST)),
                Err(error) if is_refusal(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut context = "no supported storage backend found".to_owned();
        for candidate in &self.report {
            // Writing to a String cannot fail.
            let _ = write!(context, "; {candidate}");
        }
        Err(Error::NotSupported { context })
    }

    /// Takes the driver that the store was made with, or nothing.
    fn take_prior(&mut self, name: &str, silent: bool) -> Result<(Arc<dyn Driver>, String, &'static str)> {
        let root = self.request.setup.root.display();
        let place = format!("driver for {root}");
        let Some(factory) = self.registry.get(name).cloned() else {
            return Err(Error::NotSupported {
                context: format!(
                    "{root} was made with the driver {name}, which is not part of this program; its images would seem to \
                     be gone with another one"
                ),
            });
        };
        if !silent && self.prior.len() == 1 {
            return Err(Error::Config {
                place,
                problem: format!(
                    "{root} was made with {name}, which is only used when asked for: choose it explicitly (-s {name}), or \
                     remove {root}/{name}"
                ),
            });
        }
        let driver = self.open(factory.as_ref())?;
        if self.prior.len() > 1 {
            return Err(Error::Config {
                place,
                problem: format!(
                    "{root} contains several valid graphdrivers: {}; Please cleanup or explicitly choose storage driver \
                     (-s <DRIVER>)",
                    self.prior.join(", ")
                ),
            });
        }
        Ok((driver, name.to_owned(), WHY_PRIOR))
    }

    fn open(&mut self, factory: &dyn DriverFactory) -> Result<Arc<dyn Driver>> {
        let name = factory.name();
        let names = self.registry.factories().iter().map(|factory| factory.name());
        let mut options = options_for(name, &self.request.options, names)?;
        options.extend(self.request.setup.options.iter().cloned());
        let result = factory.open(&DriverSetup { options, ..self.request.setup.clone() });
        let prior = self.prior.iter().any(|found| found == name);
        let outcome = match &result {
            Ok(_) => Outcome::Chosen,
            Err(error) => Outcome::Refused { kind: error.kind(), reason: chain(error) },
        };
        self.report.push(Candidate { name: name.to_owned(), prior, outcome });
        if result.is_err() && !prior {
            // An empty home that the failed attempt left would look like prior state the next time. It is not an error
            // if there is none, or if there is something in it.
            fs::unlinkat(CWD, self.request.setup.root.join(name), AtFlags::REMOVEDIR).ok();
        }
        result
    }

    fn passed(&mut self, name: &str, why: &'static str) {
        if !self.report.iter().any(|candidate| candidate.name == name) {
            let prior = self.prior.iter().any(|found| found == name);
            self.report.push(Candidate { name: name.to_owned(), prior, outcome: Outcome::Passed(why) });
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotSupported | ErrorKind::Prerequisites | ErrorKind::IncompatibleFs)
}

fn exists(path: &Path) -> Result<bool> {
    use graph_sys::io::Errno;
    match fs::statat(CWD, path, AtFlags::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(Error::io("look for a driver's home", path, None, error)),
    }
}

/// The name of the file system that `path` is on. Of the root itself: the driver's home may be a mount of its own.
#[must_use]
pub fn backing_file_system(path: &Path) -> String {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let magic = fs::openat(CWD, path, flags, Mode::empty()).and_then(graph_sys::statfs::magic);
    magic.ok().and_then(graph_sys::statfs::Magic::name).unwrap_or("<unknown>").to_owned()
}
