//! The error of operations whose errno alone does not tell enough: mounts and id mappings.

use rustix::io::Errno;

/// What was being done, to what, what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{operation}{}{}{}", spaced(subject), hinted(hint), quoted(log))]
pub struct Error {
    operation: &'static str,
    subject: String,
    hint: &'static str,
    log: Vec<String>,
    #[source]
    source: Errno,
}

/// The broad kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel or the file system cannot do this at all: try another way.
    Unsupported,
    /// This process may not.
    Permission,
    /// Something named does not exist.
    NotFound,
    /// Something else uses it.
    Busy,
    /// The kernel refuses these values.
    Invalid,
    /// Out of memory, disk space, descriptors, mounts or processes.
    Exhausted,
    /// Anything else.
    Io,
}

fn spaced(subject: &str) -> String {
    if subject.is_empty() { String::new() } else { format!(" {subject}") }
}

fn hinted(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

fn quoted(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; the kernel says: {}", log.join("; ")) }
}

impl Error {
    pub(crate) fn new(operation: &'static str, subject: impl Into<String>, source: Errno) -> Self {
        Self { operation, subject: subject.into(), hint: "", log: Vec::new(), source }
    }

    pub(crate) fn with_log(mut self, log: Vec<String>) -> Self {
        self.log = log;
        self
    }

    pub(crate) fn with_hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }

    /// The broad kind, by errno.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.source {
            Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV | Errno::NOTTY => ErrorKind::Unsupported,
            Errno::PERM | Errno::ACCESS | Errno::ROFS => ErrorKind::Permission,
            Errno::NOENT | Errno::NOTDIR => ErrorKind::NotFound,
            Errno::BUSY | Errno::TXTBSY => ErrorKind::Busy,
            Errno::INVAL | Errno::TOOBIG | Errno::NAMETOOLONG | Errno::LOOP | Errno::RANGE => ErrorKind::Invalid,
            Errno::NOMEM | Errno::NOSPC | Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::DQUOT => {
                ErrorKind::Exhausted
            }
            _ => ErrorKind::Io,
        }
    }

    /// The errno of the call that failed.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.source
    }

    /// The kernel's own messages about this operation, oldest first; the first letter tells an error (`e`), a warning
    /// (`w`) or an information (`i`).
    #[must_use]
    pub fn log(&self) -> &[String] {
        &self.log
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::new(std::io::Error::from(error.source).kind(), error)
    }
}

/// The result type of mounts and id mappings.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A path for a message: bytes that are not UTF-8 are shown as `\xNN`.
pub(crate) fn show(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_holds_operation_subject_hint_and_log() {
        let error = Error::new("set mount option", "lowerdir+=/a", Errno::INVAL)
            .with_hint("at most 500")
            .with_log(vec!["e overlay: too many".into()]);
        assert_eq!(
            error.to_string(),
            "set mount option lowerdir+=/a (at most 500); the kernel says: e overlay: too many"
        );
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Invalid, Errno::INVAL));
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::InvalidInput);
    }
}
