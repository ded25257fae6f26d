//! The graph-driver contract.

pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod driver;
pub mod error;
pub mod fsutil;
pub mod id;
pub mod lockfile;

pub mod naive;
pub mod options;
pub mod refcount;
pub mod registry;
pub mod select;
pub mod subid;
pub mod tempdir;

pub use driver::{Driver, DriverExt};
pub use error::{Error, ErrorKind, Result};
pub use id::{ChainId, DiffId, LayerId};
