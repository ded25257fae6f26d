//! Named points where a test makes an operation fail, or the process die.
//!
//! Code that must survive a crash calls [`point`] between its steps. Without the cargo feature `fault-injection` that
//! is nothing at all; with it, a test arms a point for its n-th hit:
//!
//! ```
//! # #[cfg(feature = "fault-injection")] {
//! use graph_sys::fault::{self, Action, ChildEnd};
//! use graph_sys::io::Errno;
//!
//! fn create_layer() -> Result<(), Errno> {
//!     // … make the directory
//!     fault::point("layer.directory-made")?;
//!     // … write the record
//!     fault::point("layer.record-written")
//! }
//!
//! // An error from below.
//! let armed = fault::arm("layer.record-written", 1, Action::Fail(Errno::NOSPC));
//! assert_eq!(create_layer(), Err(Errno::NOSPC));
//! drop(armed);
//!
//! // A crash at every point in turn.
//! for point in fault::record(|| create_layer().unwrap()) {
//!     let end = fault::in_child(|| {
//!         let _armed = fault::arm(point, 1, Action::Kill);
//!         create_layer().unwrap();
//!     });
//!     assert_eq!(end.unwrap(), ChildEnd::Killed);
//!     // … open the store again and look
//! }
//! # }
//! ```
//!
//! Points are named `part.step`, by what is done already when they are reached.

use rustix::io::Result;

#[cfg(feature = "fault-injection")]
mod injection;

#[cfg(feature = "fault-injection")]
pub use injection::{Action, Armed, ChildEnd, arm, hits, in_child, record};

/// A point that tests can make fail. Nothing, and always `Ok`, without the feature `fault-injection`.
///
/// # Errors
/// The errno that the test has armed it with.
#[inline]
#[cfg_attr(not(feature = "fault-injection"), allow(clippy::unnecessary_wraps, reason = "see the other variant"))]
pub fn point(name: &'static str) -> Result<()> {
    #[cfg(feature = "fault-injection")]
    return injection::reached(name);
    #[cfg(not(feature = "fault-injection"))]
    {
        let _name: &'static str = name;
        Ok(())
    }
}
