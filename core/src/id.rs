//! Identifiers, parsed once at the edge, so that nothing from outside ever becomes a path unchecked.

use std::fmt;

use graph_archive::digest::Digest;

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

/// The digest of a layer's uncompressed archive (`rootfs.diff_ids` of an image's configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId(pub Digest);

/// The digest of a layer with all layers below it: what tells equal stacks apart from equal layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain ID of a layer upon `parent`: the diff ID itself for a base layer, otherwise the digest of the text
    /// `<parent's chain ID> <diff ID>` (OCI image specification, "Layer ChainID").
    #[must_use]
    pub fn upon(parent: Option<&Self>, diff: &DiffId) -> Self {
        Self(parent.map_or_else(|| diff.0, |parent| Digest::of(format!("{} {}", parent.0, diff.0).as_bytes())))
    }

    /// The chain ID of the uppermost of `diffs`, which are in order from the base; `None` for none.
    #[must_use]
    pub fn of(diffs: &[DiffId]) -> Option<Self> {
        diffs.iter().fold(None, |parent, diff| Some(Self::upon(parent.as_ref(), diff)))
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_name_another_directory() {
        for bad in ["", ".", "..", "a/b", "/", "a\nb", "a\0"] {
            LayerId::new(bad).unwrap_err();
        }
        LayerId::new("x".repeat(256)).unwrap_err();
        for good in ["layer-gzip", "...", "x:y", &"x".repeat(255)] {
            assert_eq!(LayerId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn chain_ids_are_those_of_other_tools() {
        let diffs = [b"one", b"two"].map(|text| DiffId(Digest::of(text)));
        let [one, two] = &diffs;
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(std::slice::from_ref(one)), Some(ChainId(one.0)));
        // Made with sha256sum: the digest of "<digest of one> <digest of two>".
        let expected = "sha256:ee90d7132b9e9a049b7b0a88db345ca31fb5e8a74a5ee57210478a9a2522d499";
        assert_eq!(ChainId::of(&diffs).unwrap().to_string(), expected);
        assert_eq!(ChainId::upon(Some(&ChainId(one.0)), two).to_string(), expected);
    }
}
