//! Errors that know what was being done, where, and for which layer.

use std::io;
use std::path::PathBuf;

use graph_core::{Error, LayerId, Result};

/// Adds operation, path and layer to a system's answer.
pub(crate) trait Context<T> {
    fn at(self, operation: &'static str, path: impl Into<PathBuf>, layer: Option<&LayerId>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn at(self, operation: &'static str, path: impl Into<PathBuf>, layer: Option<&LayerId>) -> Result<T> {
        self.map_err(|source| Error::io(operation, path, layer, source))
    }
}

/// Adds the layer to an error of the archive crate.
pub(crate) trait ArchiveContext<T> {
    fn of_layer(self, id: &LayerId) -> Result<T>;
}

impl<T> ArchiveContext<T> for graph_archive::Result<T> {
    fn of_layer(self, id: &LayerId) -> Result<T> {
        self.map_err(|source| Error::Archive { id: id.clone(), source })
    }
}
