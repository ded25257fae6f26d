//! The driver's options: `mountopt`, the one that containers/storage's driver had, and `sync` as in the other drivers.

use graph_core::{Error, Result};

pub use crate::support::options::SyncMode;

/// The parsed options, after the driver's prefix was taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `mountopt`: words for every mount, separated by commas.
    pub mount_options: String,
    /// `sync`.
    pub sync: SyncMode,
}

impl Options {
    /// Parses `key=value` pairs in order; a later one wins. Keys are taken in any case.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, for an unknown one and for a value that it does not take.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let key = key.to_ascii_lowercase();
            let problem = |problem: String| Error::Config { place: format!("aufs.{key}"), problem };
            match key.as_str() {
                "mountopt" => {
                    check_words(value.split(',')).map_err(problem)?;
                    value.clone_into(&mut options.mount_options);
                }
                "sync" => options.sync = SyncMode::parse(value).map_err(problem)?,
                _ => return Err(problem(format!("option {key} not supported"))),
            }
        }
        Ok(options)
    }
}

/// Refuses words that would change which branches are mounted.
pub(super) fn check_words<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<(), String> {
    const BRANCHES: [&str; 9] = ["br", "dirs", "add", "ins", "append", "prepend", "del", "mod", "remount"];
    for word in words {
        let name = word.split(['=', ':']).next().unwrap_or(word);
        if BRANCHES.contains(&name) {
            return Err(format!("{word:?} would change the branches, which the driver sets itself"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Options> {
        Options::parse(&[(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn keys_and_refusals() {
        assert_eq!(parse("MountOpt", "nodev,udba=none").unwrap().mount_options, "nodev,udba=none");
        assert_eq!(parse("sync", "none").unwrap().sync, SyncMode::None);
        assert_eq!(Options::parse(&[]).unwrap().sync, SyncMode::Filesystem);
        for (key, value, text) in [
            ("size", "1G", "aufs.size: option size not supported"),
            ("sync", "x", "aufs.sync: \"x\" is neither \"none\" nor \"filesystem\""),
            (
                "mountopt",
                "nodev,append:/x=rw",
                "aufs.mountopt: \"append:/x=rw\" would change the branches, which the driver sets itself",
            ),
        ] {
            assert_eq!(parse(key, value).unwrap_err().to_string(), text);
        }
    }
}
