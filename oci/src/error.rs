//! Errors of reading and writing images.

use std::io;
use std::path::PathBuf;

/// What went wrong with an image in files, or on its way into a store or out of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The words that name an image's place do not parse.
    #[error("{reference:?} names no image: {problem}")]
    Reference {
        /// What was given.
        reference: String,
        /// Why it doesn't do.
        problem: String,
    },
    /// The files are no image, or a damaged one.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The layout directory or archive.
        path: PathBuf,
        /// What is wrong, naming the blob or document concerned.
        problem: String,
    },
    /// There are several images, or none of that name.
    #[error("{}: {problem}; there are: {}", path.display(), list(names))]
    Ambiguous {
        /// The layout directory or archive.
        path: PathBuf,
        /// What was looked for.
        problem: String,
        /// The names that are there.
        names: Vec<String>,
    },
    /// Reading or unpacking an archive failed.
    #[error("{}", path.display())]
    Archive {
        /// The archive or the blob.
        path: PathBuf,
        /// What failed.
        #[source]
        source: graph_archive::Error,
    },
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] graph_store::Error),
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The broad kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused or failed.
    Io,
    /// Bad argument.
    InvalidArgument,
    /// Damaged or hostile input.
    InvalidInput,
    /// No such image.
    NotFound,
    /// The store refused or failed; see its own kind.
    Store,
}

impl Error {
    /// The broad kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Reference { .. } => ErrorKind::InvalidArgument,
            Self::Invalid { .. } | Self::Archive { .. } => ErrorKind::InvalidInput,
            Self::Ambiguous { .. } => ErrorKind::NotFound,
            Self::Store(_) => ErrorKind::Store,
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn invalid(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), problem: problem.into() }
    }
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
