//! Options that several drivers have, with the rules of containers/storage.

#[cfg(any(feature = "overlay", feature = "vfs"))]
use std::path::{Path, PathBuf};

/// Whether a layer's files reach the disk before the layer counts as made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Nothing is flushed; a power loss can damage layers made shortly before it.
    None,
    /// One `syncfs` per layer, and `fsync` of small files made outside of staging. The default here; containers/storage's is
    /// `none`.
    #[default]
    Filesystem,
}

impl SyncMode {
    /// The value of `sync`.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        match value {
            "none" | "" => Ok(Self::None),
            "filesystem" => Ok(Self::Filesystem),
            _ => Err(format!("{value:?} is neither \"none\" nor \"filesystem\"")),
        }
    }
}

/// A boolean as Go's `strconv.ParseBool` takes it.
#[cfg(any(feature = "overlay", feature = "vfs"))]
pub(crate) fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("{value:?} is not a boolean (true or false)")),
    }
}

/// The graph roots of `imagestore` or `additionalimagestore`: absolute paths with commas between them.
#[cfg(any(feature = "overlay", feature = "vfs"))]
pub(crate) fn parse_image_stores(value: &str) -> Result<Vec<PathBuf>, String> {
    let absolute = |store: &str| {
        let path = Path::new(store);
        if path.is_absolute() {
            Ok(path.to_owned())
        } else {
            Err(format!("image store {store:?} is not an absolute path"))
        }
    };
    value.split(',').filter(|store| !store.is_empty()).map(absolute).collect()
}
