//! Errors of drivers, selection and configuration.

use std::io;
use std::path::PathBuf;

use crate::id::{InvalidId, LayerId};

/// What went wrong in a driver, in choosing one, or in the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No driver of that name, or a driver that cannot work here at all.
    #[error("{context}: driver not supported")]
    NotSupported {
        /// Which driver and why.
        context: String,
    },
    /// A program, a module or a privilege that the driver needs is missing.
    #[error("{context}: prerequisites for driver not satisfied (wrong filesystem?)")]
    Prerequisites {
        /// Which driver and what is missing.
        context: String,
    },
    /// The file system below the graph root does not suit the driver.
    #[error("{context}: backing file system is unsupported for this graph driver")]
    IncompatibleFs {
        /// Which driver and which file system.
        context: String,
    },
    /// The driver has no such layer.
    #[error("layer {id}: unknown layer")]
    LayerUnknown {
        /// The layer.
        id: LayerId,
    },
    /// The driver already has such a layer.
    #[error("layer {id}: already exists")]
    LayerExists {
        /// The layer.
        id: LayerId,
    },
    /// Something else uses the layer, its mount or a file of it.
    #[error("layer {id}: in use: {by}")]
    InUse {
        /// The layer.
        id: LayerId,
        /// Who or what uses it.
        by: String,
    },
    /// The layer's directory or records contradict each other.
    #[error("layer {id}: {defect}")]
    Corrupt {
        /// The layer.
        id: LayerId,
        /// What is wrong, and what to do next.
        defect: String,
    },
    /// More parents than the kernel stacks.
    #[error("layer {id}: max depth exceeded: {depth} layers below it, the limit is {limit}")]
    TooDeep {
        /// The layer.
        id: LayerId,
        /// Layers below it.
        depth: usize,
        /// How many the driver can stack.
        limit: usize,
    },
    /// Somebody else holds a lock, and the caller did not want to wait for it.
    #[error("{busy}: try again later")]
    Locked {
        /// The lock file and its holders.
        busy: crate::lockfile::Busy,
    },
    /// An option that does not exist, or a value that it does not take.
    #[error("{place}: {problem}")]
    Config {
        /// Option name, or file and line.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An operation that this driver does not have.
    #[error("{driver}: {operation} is not supported")]
    Unsupported {
        /// The driver.
        driver: String,
        /// The operation or the option.
        operation: String,
    },
    /// A string that cannot be a layer's id.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// Id mappings that make no sense.
    #[error(transparent)]
    Mappings(#[from] crate::subid::MappingError),
    /// A system call failed.
    #[error("{operation} {}{}", path.display(), layer.as_ref().map(|l| format!(" (layer {l})")).unwrap_or_default())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// For which layer, if for one.
        layer: Option<LayerId>,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Reading or writing the layer's archive or tree failed.
    #[error("layer {id}")]
    Archive {
        /// The layer.
        id: LayerId,
        /// What failed.
        #[source]
        source: graph_archive::Error,
    },
}

/// The broad kinds of [`Error`]. The first three drive driver selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// See [`Error::NotSupported`].
    NotSupported,
    /// See [`Error::Prerequisites`].
    Prerequisites,
    /// See [`Error::IncompatibleFs`].
    IncompatibleFs,
    /// No such layer.
    NotFound,
    /// Already there.
    Exists,
    /// In use.
    InUse,
    /// Damaged.
    Corrupt,
    /// Too many layers.
    TooDeep,
    /// Locked by somebody else.
    Locked,
    /// Bad configuration.
    Config,
    /// Not an operation of this driver.
    Unsupported,
    /// Bad argument.
    InvalidArgument,
    /// The system refused or failed.
    Io,
    /// The layer's archive is bad, or reading or writing it failed.
    Archive,
}

impl Error {
    /// The broad kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotSupported { .. } => ErrorKind::NotSupported,
            Self::Prerequisites { .. } => ErrorKind::Prerequisites,
            Self::IncompatibleFs { .. } => ErrorKind::IncompatibleFs,
            Self::LayerUnknown { .. } => ErrorKind::NotFound,
            Self::LayerExists { .. } => ErrorKind::Exists,
            Self::InUse { .. } => ErrorKind::InUse,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::TooDeep { .. } => ErrorKind::TooDeep,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::Config { .. } => ErrorKind::Config,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::InvalidId(_) | Self::Mappings(_) => ErrorKind::InvalidArgument,
            Self::Io { .. } => ErrorKind::Io,
            Self::Archive { .. } => ErrorKind::Archive,
        }
    }

    /// An I/O error with its operation, path and layer.
    pub fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        layer: Option<&LayerId>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), layer: layer.cloned(), source: source.into() }
    }
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
