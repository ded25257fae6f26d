//! Identifiers, parsed once at the edge, so that nothing from outside ever becomes a path unchecked.

use std::fmt;

/// The id of a layer, as it names directories and records.
///
/// containers/storage makes 64 lower-case hex digits, but accepts any string from its callers. Accepted here: 1 to 255
/// bytes without `/`, NUL and control characters, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(Box<str>);

/// Why a string is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid layer ID {0:?}: an ID has 1 to 255 bytes, no slash, no control character, and is not \".\" or \"..\"")]
pub struct InvalidId(pub String);

impl LayerId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`InvalidId`] for a string that must not become a file name.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidId> {
        let id = id.into();
        let bad = id.is_empty()
            || id.len() > 255
            || id == "."
            || id == ".."
            || id.chars().any(|c| c == '/' || c.is_control());
        if bad { Err(InvalidId(id)) } else { Ok(Self(id.into_boxed_str())) }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
