//! The driver's options: every key that containers/storage 1.60 to 1.64 knows, parsed with its rules.

use std::path::PathBuf;

use graph_core::{Error, Result};

use crate::support::options::{parse_bool, parse_image_stores};

pub use crate::support::options::SyncMode;

/// The parsed options, after the driver's prefix was taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `imagestore` (also `additionalimagestore`): graph roots of read-only stores.
    pub additional_image_stores: Vec<PathBuf>,
    /// `ignore_chown_errors`: a refused chown while extracting or copying is no error.
    pub ignore_chown_errors: bool,
    /// `sync`.
    pub sync: SyncMode,
}

impl Options {
    /// Parses `key=value` pairs in order; a later one wins, stores add up. Keys are taken in any case.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, for an unknown one, for a value it does not take, and for `mountopt`: vfs mounts
    /// nothing.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let key = key.to_ascii_lowercase();
            options.set(&key, value).map_err(|problem| match key.as_str() {
                // containers/storage's words.
                "mountopt" => Error::Config { place: "vfs".to_owned(), problem },
                _ => Error::Config { place: format!("vfs.{key}"), problem },
            })?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "imagestore" | "additionalimagestore" => {
                self.additional_image_stores.extend(parse_image_stores(value)?);
            }
            "ignore_chown_errors" => self.ignore_chown_errors = parse_bool(value)?,
            "sync" => self.sync = SyncMode::parse(value)?,
            "mountopt" => return Err("vfs driver does not support mount options".to_owned()),
            _ => return Err(format!("vfs driver does not support vfs.{key} options")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        let owned: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Options::parse(&owned)
    }

    #[test]
    fn every_key_is_taken_in_any_case_and_the_later_one_wins() {
        let options = parse(&[
            ("imagestore", "/a,/b"),
            ("additionalimagestore", "/c"),
            ("Ignore_Chown_Errors", "T"),
            ("sync", "filesystem"),
            ("sync", "none"),
        ])
        .unwrap();
        assert_eq!(options.additional_image_stores, ["/a", "/b", "/c"].map(PathBuf::from));
        assert!(options.ignore_chown_errors);
        assert_eq!(options.sync, SyncMode::None);
        assert_eq!(parse(&[]).unwrap(), Options::default());
    }

    #[test]
    fn refusals_name_the_key() {
        for (key, value, expected) in [
            ("mountopt", "nodev", "vfs: vfs driver does not support mount options"),
            ("no_such_key", "1", "vfs.no_such_key: vfs driver does not support vfs.no_such_key options"),
            ("ignore_chown_errors", "yes", "vfs.ignore_chown_errors: \"yes\" is not a boolean (true or false)"),
            ("sync", "fs", "vfs.sync: \"fs\" is neither \"none\" nor \"filesystem\""),
            ("imagestore", "a/b", "vfs.imagestore: image store \"a/b\" is not an absolute path"),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap_err().to_string(), expected);
        }
    }
}
