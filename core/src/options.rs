//! Driver options as people write them: `overlay.mountopt=nodev`, `.size=10G` or just `size=10G`.

use crate::error::{Error, Result};

/// Prefixes that are known whether or not the driver is there: those of containers/storage's drivers.
pub const KNOWN_PREFIXES: [&str; 7] = ["overlay", "overlay2", "vfs", "btrfs", "zfs", "aufs", "thinpool"];

/// One option, cut into its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverOption<'o> {
    /// The driver it is for; `None` for whichever is chosen.
    pub driver: Option<&'o str>,
    /// The key as written, without the prefix.
    pub key: &'o str,
    /// The value, which may be empty and may hold further `=`.
    pub value: &'o str,
}

impl<'o> DriverOption<'o> {
    /// Cuts `option` into its parts. Spaces around key and value are dropped.
    ///
    /// # Errors
    /// [`Error::Config`] without a `=` or without a key.
    pub fn parse(option: &'o str) -> Result<Self> {
        let bad = || Error::Config {
            place: "driver option".to_owned(),
            problem: format!("unable to parse key/value option: {option}"),
        };
        let (key, value) = option.split_once('=').ok_or_else(bad)?;
        let (key, value) = (key.trim(), value.trim());
        let (driver, key) = key.split_once('.').map_or((None, key), |(driver, key)| (Some(driver), key));
        if key.is_empty() {
            return Err(bad());
        }
        Ok(Self { driver: driver.filter(|driver| !driver.is_empty()), key, value })
    }
}

/// The options of `options` that are for `driver`, keys in lower case and without prefix, in order.
///
/// `overlay2` means `overlay`. What is meant for another driver is left out, so that one configuration serves several;
/// `drivers` are the names that are known beside [`KNOWN_PREFIXES`]. (containers/storage from 1.63 on does the same; older
/// ones refuse another driver's options.) Whether a key exists is for the driver to say.
///
/// # Errors
/// [`Error::Config`] for an option without `=`, and for a prefix that is no driver's.
pub fn options_for<'d>(
    driver: &str,
    options: &[String],
    drivers: impl IntoIterator<Item = &'d str> + Clone,
) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for option in options {
        let DriverOption { driver: prefix, key, value } = DriverOption::parse(option)?;
        let meant = match prefix.map(str::to_ascii_lowercase) {
            None => true,
            Some(prefix) => {
                let is_known = KNOWN_PREFIXES.contains(&prefix.as_str())
                    || prefix.eq_ignore_ascii_case(driver)
                    || drivers.clone().into_iter().any(|name| name.eq_ignore_ascii_case(&prefix));
                if !is_known {
                    return Err(Error::Config {
                        place: format!("driver option {option:?}"),
                        problem: format!("no driver is called {prefix}"),
                    });
                }
                canonical(&prefix).eq_ignore_ascii_case(canonical(driver))
            }
        };
        if meant {
            found.push((key.to_ascii_lowercase(), value.to_owned()));
        }
    }
    Ok(found)
}

/// The driver's real name: `overlay2` has long been `overlay`.
#[must_use]
pub fn canonical(driver: &str) -> &str {
    if driver == "overlay2" { "overlay" } else { driver }
}

/// A boolean as Go's `strconv.ParseBool` reads it, which is how storage.conf has always been read.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(driver: &str, options: &[&str]) -> Result<Vec<(String, String)>> {
        let options: Vec<String> = options.iter().copied().map(str::to_owned).collect();
        options_for(driver, &options, ["hardcopy"])
    }

    #[test]
    fn prefixes_choose_the_driver() {
        let options =
            ["overlay.mountopt=nodev,x=y", ".Size=10G", " inodes = 5 ", "vfs.sync=none", "overlay2.a=", "hardcopy.b=1"];
        let pairs = |list: &[(&str, &str)]| -> Vec<_> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let overlay = [("mountopt", "nodev,x=y"), ("size", "10G"), ("inodes", "5"), ("a", "")];
        assert_eq!(pick("overlay", &options).unwrap(), pairs(&overlay));
        assert_eq!(pick("vfs", &options).unwrap(), pairs(&[("size", "10G"), ("inodes", "5"), ("sync", "none")]));
        assert_eq!(pick("hardcopy", &options).unwrap(), pairs(&[("size", "10G"), ("inodes", "5"), ("b", "1")]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (option, text) in [
            ("foo", "driver option: unable to parse key/value option: foo"),
            ("overlay.=x", "driver option: unable to parse key/value option: overlay.=x"),
            ("nosuch.size=1", "driver option \"nosuch.size=1\": no driver is called nosuch"),
        ] {
            assert_eq!(pick("overlay", &[option]).unwrap_err().to_string(), text);
        }
    }
}
