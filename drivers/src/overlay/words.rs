//! Mount options as operators write them, sorted into what the kernel wants where.

use graph_core::{Error, Result};
use graph_sys::mount::{FsContext, MountAttrFlags, MountFlags};

/// Words that turn an attribute of the one mount on, for the new and for the old mount call.
const ATTRIBUTES: &[(&str, MountAttrFlags, MountFlags)] = &[
    ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
    ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
    ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
    ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
    ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
    ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
    ("strictatime", MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
    // Relative access times are what a mount has unless told otherwise.
    ("relatime", MountAttrFlags::empty(), MountFlags::RELATIME),
];

/// Words that turn an attribute off, and what they turn off. Nothing is on by default.
const OFF: &[(&str, &str)] = &[
    ("rw", "ro"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("exec", "noexec"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("norelatime", "relatime"),
    ("nostrictatime", "strictatime"),
    ("async", "sync"),
    ("nomand", "mand"),
];

/// Words for the file system as a whole that the kernel takes from every one.
const WHOLE: &[(&str, MountFlags)] = &[
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
];

/// Words that ask for something else than a mount of a layer.
const REFUSED: &[&str] = &[
    "remount",
    "bind",
    "rbind",
    "move",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "lowerdir",
    "lowerdir+",
    "datadir+",
    "upperdir",
    "workdir",
];

/// Parsed mount options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// Attributes in force, by the word that turns them on.
    attributes: Vec<&'static str>,
    whole: Vec<&'static str>,
    /// Options of overlay itself, in order; a later one replaces an earlier one of the same key.
    own: Vec<(String, Option<String>)>,
}

/// Splits at commas that do not stand between double quotes.
pub(super) fn split(options: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    options
        .split(move |c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .filter(|word| !word.is_empty())
}

impl Words {
    /// Sorts the words. A later word undoes an earlier one.
    ///
    /// # Errors
    /// [`Error::Config`] for a word that would make something else of the mount.
    pub(super) fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self> {
        let mut parsed = Self::default();
        for word in words {
            parsed.add(word)?;
        }
        Ok(parsed)
    }

    /// Adds one word.
    pub(super) fn add(&mut self, word: &str) -> Result<()> {
        if word.is_empty() || word == "defaults" {
            return Ok(());
        }
        if let Some((name, ..)) = ATTRIBUTES.iter().find(|(name, ..)| *name == word) {
            self.attributes.retain(|have| have != name);
            self.attributes.push(name);
        } else if let Some((name, _)) = WHOLE.iter().find(|(name, _)| *name == word) {
            self.whole.retain(|have| have != name);
            self.whole.push(name);
        } else if let Some((_, undone)) = OFF.iter().find(|(name, _)| *name == word) {
            self.attributes.retain(|have| have != undone);
            self.whole.retain(|have| have != undone);
        } else {
            let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
            if REFUSED.contains(&key) {
                return Err(Error::Config {
                    place: "mount options".into(),
                    problem: format!("{key:?} is not for the operator to set on a layer's mount; leave it out"),
                });
            }
            let value = value.map(|value| value.trim_matches('"').to_owned());
            self.own.retain(|(have, _)| have != key);
            self.own.push((key.to_owned(), value));
        }
        Ok(())
    }

    /// Whether the mount is to refuse writes.
    pub(super) fn read_only(&self) -> bool {
        self.attributes.contains(&"ro")
    }

    /// Whether overlay gets this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.own.iter().any(|(have, _)| have == key)
    }

    /// Drops `key=value`.
    pub(super) fn remove(&mut self, key: &str, value: &str) {
        self.own.retain(|(have, with)| !(have == key && with.as_deref() == Some(value)));
    }

    /// Attributes for `fsmount`.
    pub(super) fn attributes(&self) -> MountAttrFlags {
        let on = ATTRIBUTES.iter().filter(|(name, ..)| self.attributes.contains(name));
        on.fold(MountAttrFlags::empty(), |all, (_, flag, _)| all | *flag)
    }

    /// Sets all but the attributes on a new mount.
    pub(super) fn configure(&self, context: &FsContext) -> graph_sys::Result<()> {
        for name in &self.whole {
            context.set_flag(name)?;
        }
        for (key, value) in &self.own {
            match value {
                None => context.set_flag(key)?,
                Some(value) => context.set_string(key, value.as_bytes())?,
            }
        }
        Ok(())
    }

    /// Flags for mount(2).
    pub(super) fn classic_flags(&self) -> MountFlags {
        let attributes = ATTRIBUTES.iter().filter(|(name, ..)| self.attributes.contains(name)).map(|(.., flag)| *flag);
        let whole = WHOLE.iter().filter(|(name, _)| self.whole.contains(name)).map(|(_, flag)| *flag);
        attributes.chain(whole).fold(MountFlags::empty(), |all, flag| all | flag)
    }

    /// All words for a program that mounts, each preceded by a comma.
    pub(super) fn for_program(&self) -> String {
        let flags: String = self.attributes.iter().chain(&self.whole).map(|name| format!(",{name}")).collect();
        flags + &self.classic_options()
    }

    /// Options for mount(2)'s string, each preceded by a comma.
    pub(super) fn classic_options(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.own {
            text.push(',');
            text.push_str(key);
            if let Some(value) = value {
                text.push('=');
                if value.contains(',') {
                    text.push_str(&format!("\"{value}\""));
                } else {
                    text.push_str(value);
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_and_later_ones_win() {
        let words =
            Words::parse(split("nodev,ro,metacopy=on,volatile,,defaults,dev,noatime,sync,index=on,index=off")).unwrap();
        assert_eq!(words.attributes(), MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME);
        assert_eq!(words.classic_flags(), MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::SYNCHRONOUS);
        assert_eq!(words.classic_options(), ",metacopy=on,volatile,index=off");
        assert!(words.read_only() && words.has("volatile") && !words.has("nodev"));
        assert!(!Words::parse(["ro", "rw"]).unwrap().read_only());
    }

    #[test]
    fn a_quoted_label_keeps_its_comma() {
        let label = r#"context="system_u:object_r:container_file_t:s0:c1,c2""#;
        let words = Words::parse(split(&format!("nodev,{label}"))).unwrap();
        assert_eq!(words.classic_options(), format!(",{label}"));
    }

    #[test]
    fn words_that_make_something_else_of_the_mount_are_refused() {
        for word in ["remount", "bind", "lowerdir=/x", "upperdir=/x", "rshared"] {
            assert!(matches!(Words::parse([word]), Err(Error::Config { .. })), "{word}");
        }
    }
}
