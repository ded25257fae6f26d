//! The test of the driver contract: a list of cases that any [`Driver`](crate::Driver) must pass, ours or somebody else's.
//!
//! Each [`Case`] gets a [`Fixture`]: a driver opened on an empty root of its own. A case that needs something the driver
//! or the place does not have says so and is skipped with that reason. After every case [`run`] removes the layers that
//! are left, and fails the case if files or mounts stay behind.
//!
//! ```no_run
//! use graph_core::conformance::{self, Outcome};
//! # use graph_core::registry::{DriverFactory, DriverSetup};
//! # fn factory() -> std::sync::Arc<dyn DriverFactory> { unreachable!() }
//! # fn main() -> std::io::Result<()> {
//! let place = std::path::Path::new("/var/tmp/conformance");
//! for case in conformance::suite() {
//!     let outcome = conformance::run(&case, factory(), &DriverSetup::default(), &place.join(case.name))?;
//!     assert!(!matches!(outcome, Outcome::Failed(_)), "{}: {outcome:?}", case.name);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The cases of containers/storage's own suite (`drivers/graphtest`) are here under their names in snake case; the others
//! test what the trait's documentation promises beyond it. They work as root and as root of a user namespace.

mod deep;
mod diffs;
mod failure;
mod fixture;
mod layers;
mod mounts;
mod owners;
mod roundtrip;
mod staged;
mod tar;
mod tree;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use crate::registry::{DriverFactory, DriverSetup};

pub use failure::Failure;
pub use fixture::{Environment, Fixture};
pub use tar::{Archive, Member};
pub use tree::{Node, NodeKind, Snapshot, Tree};

/// What a case returns; the error says what the driver did wrong.
pub type Checked = Result<(), Failure>;

/// One promise of the contract and its test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What is tested, unique in the suite, in snake case.
    pub name: &'static str,
    /// The group of cases it belongs to: `layers`, `mounts`, `deep`, `diffs`, `roundtrip`, `staged` or `owners`.
    pub topic: &'static str,
    /// Whether the case can run here: the reason when it cannot.
    pub needs: fn(&Fixture) -> Result<(), String>,
    /// The test.
    pub run: fn(&Fixture) -> Checked,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The driver keeps the promise.
    Passed,
    /// The case needs what is not here; the reason.
    Skipped(String),
    /// The driver breaks the promise; how.
    Failed(String),
}

/// All cases, in an order that goes from the simple to the complicated.
#[must_use]
pub fn suite() -> Vec<Case> {
    [layers::CASES, mounts::CASES, deep::CASES, diffs::CASES, roundtrip::CASES, staged::CASES, owners::CASES].concat()
}

/// Nothing is needed beyond the trait.
fn nothing(_: &Fixture) -> Result<(), String> {
    Ok(())
}

/// Runs one case on a root of its own in `place`, an absolute path that must not exist yet and is removed again.
///
/// `setup` gives the driver's options; its root and run root are replaced by directories in `place`.
///
/// # Errors
/// When `place` cannot be made. All that the driver does wrong is in the [`Outcome`].
pub fn run(
    case: &Case,
    factory: Arc<dyn DriverFactory>,
    setup: &DriverSetup,
    place: &Path,
) -> std::io::Result<Outcome> {
    let fixture = match Fixture::new(factory, setup, place)? {
        Ok(fixture) => fixture,
        Err(failure) => return Ok(Outcome::Failed(format!("opening the driver: {failure}"))),
    };
    if let Err(reason) = (case.needs)(&fixture) {
        return Ok(match fixture.finish() {
            Ok(()) => Outcome::Skipped(reason),
            Err(failure) => Outcome::Failed(failure.to_string()),
        });
    }
    // A driver that panics fails the case, not the suite.
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&fixture)))
        .unwrap_or_else(|_| Err(Failure::new("the driver or the case panicked")));
    let end = fixture.finish();
    Ok(match result.and(end) {
        Ok(()) => Outcome::Passed,
        Err(failure) => Outcome::Failed(failure.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_topics_follow_the_modules() {
        let suite = super::suite();
        let names: BTreeSet<_> = suite.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), suite.len());
        assert!(
            suite
                .iter()
                .all(|case| case.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()))
        );
    }
}
