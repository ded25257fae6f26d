//! The driver's options: every key that containers/storage 1.60 to 1.64 knows, parsed with its rules.
//!
//! What this driver does not do (composefs, additional layer stores, quotas) is refused by
//! [`Options::refuse_unsupported`] when the driver is opened, never ignored.

use std::path::{Path, PathBuf};

use graph_core::{Error, Result};

use crate::support::options::{parse_bool, parse_image_stores};

pub use crate::support::options::SyncMode;

/// The parsed options, after the driver's prefix was taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `mountopt`: words for every mount, as one string, because the names of cached probes contain it.
    pub mount_options: String,
    /// `size`: default size limit of read-write layers, bytes.
    pub size: Option<u64>,
    /// `inodes`: default inode limit of read-write layers.
    pub inodes: Option<u64>,
    /// `additionalimagestore` (also `imagestore` in this position): graph roots of read-only stores.
    pub additional_image_stores: Vec<PathBuf>,
    /// `additionallayerstore`: `path[:ref]` as given.
    pub additional_layer_stores: Vec<String>,
    /// `use_composefs`.
    pub use_composefs: bool,
    /// `mount_program`: a program that mounts instead of the kernel's overlay.
    pub mount_program: Option<PathBuf>,
    /// `skip_mount_home`: the home is not mounted on itself while layers are mounted.
    pub skip_mount_home: bool,
    /// `ignore_chown_errors`: a refused chown while extracting is no error.
    pub ignore_chown_errors: bool,
    /// `force_mask`: mode (octal) that every extracted file gets on disk.
    pub force_mask: Option<u32>,
    /// `sync`.
    pub sync: SyncMode,
}

impl Options {
    /// Parses `key=value` pairs in order; a later one wins. Keys are taken in any case.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key, for an unknown one and for a value it does not take.
    pub fn parse(pairs: &[(String, String)]) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in pairs {
            options.set(&key.to_ascii_lowercase(), value)?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let problem = |problem: String| Error::Config { place: format!("overlay.{key}"), problem };
        match key {
            // Kernels are probed, so there is nothing to override; peers ignore it as well.
            "override_kernel_check" => {}
            "mountopt" => value.clone_into(&mut self.mount_options),
            "size" => self.size = Some(parse_size(value).map_err(problem)?),
            "inodes" => {
                let inodes = value.parse().map_err(|_| problem(format!("{value:?} is not a number of inodes")))?;
                self.inodes = Some(inodes);
            }
            "imagestore" | "additionalimagestore" => {
                self.additional_image_stores.extend(parse_image_stores(value).map_err(problem)?);
            }
            "additionallayerstore" => {
                for store in value.split(',').filter(|store| !store.is_empty()) {
                    self.additional_layer_stores.push(layer_store(store).map_err(problem)?);
                }
            }
            "use_composefs" => self.use_composefs = parse_bool(value).map_err(problem)?,
            "mount_program" => {
                self.mount_program = (!value.is_empty()).then(|| PathBuf::from(value));
            }
            "skip_mount_home" => self.skip_mount_home = parse_bool(value).map_err(problem)?,
            "ignore_chown_errors" => self.ignore_chown_errors = parse_bool(value).map_err(problem)?,
            "force_mask" => self.force_mask = Some(parse_mask(value).map_err(problem)?),
            "sync" => self.sync = SyncMode::parse(value).map_err(problem)?,
            _ => {
                return Err(Error::Config {
                    place: "overlay".to_owned(),
                    problem: format!("unknown option overlay.{key}"),
                });
            }
        }
        Ok(())
    }

    /// Refuses what is asked for and cannot be done, so that no wish is silently ignored.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the option and what to do instead.
    pub fn refuse_unsupported(&self) -> Result<()> {
        let refuse =
            |operation: &str| Err(Error::Unsupported { driver: "overlay".into(), operation: operation.into() });
        if self.use_composefs {
            return refuse("option use_composefs (set it to false; layers are mounted as plain directories)");
        }
        if !self.additional_layer_stores.is_empty() {
            return refuse("option additionallayerstore (use additionalimagestore for read-only stores)");
        }
        if self.size.is_some() || self.inodes.is_some() {
            return refuse("setting size or inodes (they need project quotas, which this driver does not set)");
        }
        Ok(())
    }

    /// Whether `mountopt` holds exactly this word.
    #[must_use]
    pub fn has_mount_word(&self, word: &str) -> bool {
        self.mount_options.split(',').any(|have| have == word)
    }
}

/// `shared` (0755), `private` (0700) or an octal mode.
fn parse_mask(value: &str) -> Result<u32, String> {
    match value {
        "shared" => Ok(0o755),
        "private" => Ok(0o700),
        _ => match u32::from_str_radix(value, 8) {
            Ok(mask) if mask <= 0o7777 => Ok(mask),
            _ => Err(format!("{value:?} is neither \"shared\" nor \"private\" nor an octal mode")),
        },
    }
}

/// Bytes with an optional unit, in powers of 1024: `10G`, `50MiB`, `1.5g`, `4096`.
pub(super) fn parse_size(value: &str) -> Result<u64, String> {
    let refuse = || format!("{value:?} is not a size such as 512M or 10G");
    let text = value.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(refuse()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| refuse())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(refuse)?;
    if !fraction.is_empty() {
        // Whole numbers all the way: a float would round a large size. 18 decimals are more than any unit has bytes.
        let decimals = fraction.get(..fraction.len().min(18)).ok_or_else(refuse)?;
        let scale = 10_u128.pow(u32::try_from(decimals.len()).unwrap_or(18));
        let share: u128 = decimals.parse().map_err(|_| refuse())?;
        let share = u64::try_from((share << shift) / scale).map_err(|_| refuse())?;
        bytes = bytes.checked_add(share).ok_or_else(refuse)?;
    }
    Ok(bytes)
}

/// `path[:ref]`, where `ref` may stand once.
fn layer_store(value: &str) -> Result<String, String> {
    let (path, suffixes) = value.split_once(':').map_or((value, None), |(path, suffixes)| (path, Some(suffixes)));
    if !Path::new(path).is_absolute() {
        return Err(format!("additional layer store {path:?} is not an absolute path"));
    }
    match suffixes {
        None | Some("ref") => Ok(value.to_owned()),
        Some(other) => Err(format!("{other:?} after an additional layer store is not \"ref\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::parse(&pairs)
    }

    #[test]
    fn every_key_of_the_peers_is_known() {
        let options = parse(&[
            ("override_kernel_check", "true"),
            ("mountopt", "nodev,metacopy=on"),
            ("Size", "10G"),
            ("inodes", "1000"),
            ("additionalimagestore", "/a,/b"),
            ("imagestore", "/c"),
            ("additionallayerstore", "/layers:ref"),
            ("use_composefs", "f"),
            ("mount_program", "/usr/bin/fuse-overlayfs"),
            ("skip_mount_home", "1"),
            ("ignore_chown_errors", "True"),
            ("force_mask", "shared"),
            ("sync", "none"),
        ])
        .unwrap();
        assert_eq!(
            options,
            Options {
                mount_options: "nodev,metacopy=on".into(),
                size: Some(10 << 30),
                inodes: Some(1000),
                additional_image_stores: vec!["/a".into(), "/b".into(), "/c".into()],
                additional_layer_stores: vec!["/layers:ref".into()],
                use_composefs: false,
                mount_program: Some("/usr/bin/fuse-overlayfs".into()),
                skip_mount_home: true,
                ignore_chown_errors: true,
                force_mask: Some(0o755),
                sync: SyncMode::None,
            }
        );
        assert!(options.has_mount_word("metacopy=on") && !options.has_mount_word("metacopy"));
    }

    #[test]
    fn wrong_values_are_errors_that_name_the_key() {
        for (key, value) in [
            ("size", "ten"),
            ("size", "1X"),
            ("size", "1.2.3k"),
            ("size", "99999999999P"),
            ("inodes", "-1"),
            ("imagestore", "relative"),
            ("additionallayerstore", "/x:ref:ref"),
            ("additionallayerstore", "/x:other"),
            ("use_composefs", "yes"),
            ("force_mask", "999"),
            ("force_mask", "17777"),
            ("sync", "always"),
            ("unheard_of", "1"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(matches!(&error, Error::Config { .. }), "{key}={value}: {error}");
            assert!(error.to_string().contains(key), "{error}");
        }
        // The peer's words.
        let unknown = parse(&[("foo", "1")]).unwrap_err();
        assert_eq!(unknown.to_string(), "overlay: unknown option overlay.foo");
    }

    #[test]
    fn what_is_not_done_is_refused_not_ignored() {
        for (key, value) in [("use_composefs", "true"), ("additionallayerstore", "/x"), ("size", "1G"), ("inodes", "1")]
        {
            let error = parse(&[(key, value)]).unwrap().refuse_unsupported().unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        parse(&[("mount_program", "")]).unwrap().refuse_unsupported().unwrap();
    }

    #[test]
    fn sizes_count_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("50M", 50 << 20),
            ("1.5GiB", 3 << 29),
            ("0.1k", 102),
            ("2tb", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }
}
