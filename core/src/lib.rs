//! The graph-driver contract.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod driver;
pub mod error;
pub mod id;
pub mod refcount;
pub mod registry;

pub use driver::Driver;
pub use error::{Error, ErrorKind, Result};
pub use id::LayerId;
