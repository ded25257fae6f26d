//! The graph-driver contract.

pub mod driver;
pub mod error;
pub mod id;
pub mod refcount;
pub mod registry;

pub use driver::Driver;
pub use error::{Error, ErrorKind, Result};
pub use id::LayerId;
