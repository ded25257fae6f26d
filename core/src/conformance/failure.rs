//! What a case found wrong, with the place in the case that found it.

use std::fmt;
use std::panic::Location;

/// A broken promise: what was expected, what happened, and the line of the case.
pub struct Failure {
    message: String,
    place: &'static Location<'static>,
}

impl Failure {
    /// A failure found by the calling line.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: Location::caller() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.message, self.place.file(), self.place.line())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// `?` on any error records the line; that keeps Failure itself from being an Error.
impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message.push_str(": ");
            message.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self { message, place: Location::caller() }
    }
}

/// Fails the case with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($message)+)));
        }
    };
}

/// Fails the case and shows both values unless they are equal.
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {
        match (&$left, &$right) {
            (left, right) => {
                if *left != *right {
                    return Err($crate::conformance::Failure::new(format!(
                        "{}: found {left:?}, expected {right:?}",
                        format_args!($($message)+)
                    )));
                }
            }
        }
    };
}

/// Fails the case unless the result is an error of that kind.
macro_rules! ensure_kind {
    ($result:expr, $kind:pat, $($message:tt)+) => {
        match $result {
            Err(error) if matches!(error.kind(), $kind) => {}
            Err(error) => {
                return Err($crate::conformance::Failure::new(format!(
                    "{}: wrong kind of error {:?}: {error}",
                    format_args!($($message)+),
                    error.kind()
                )));
            }
            Ok(_) => return Err($crate::conformance::Failure::new(format!("{}: no error", format_args!($($message)+)))),
        }
    };
}

pub(super) use {ensure, ensure_eq, ensure_kind};
