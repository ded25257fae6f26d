//! What the configuration needs to know of the process: a value, so that no library reads the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The environment variables that mean something here, each once.
pub mod variable {
    /// The one configuration file to read, instead of all others and their drop-ins. It must exist.
    pub const CONTAINERS_STORAGE_CONF: &str = "CONTAINERS_STORAGE_CONF";
    /// A file to merge on top of all others, last (1.63 order only). It must exist.
    pub const CONTAINERS_STORAGE_CONF_OVERRIDE: &str = "CONTAINERS_STORAGE_CONF_OVERRIDE";
    /// The driver, instead of the files' `driver`. Empty counts as unset.
    pub const STORAGE_DRIVER: &str = "STORAGE_DRIVER";
    /// Driver options, comma-separated, instead of all of the files'. Set but empty means none.
    pub const STORAGE_OPTS: &str = "STORAGE_OPTS";
    /// Where a user's configuration is; `~/.config` when unset.
    pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
    /// Where a rootless store is; `~/.local/share` when unset.
    pub const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
    /// Where a rootless store's run root is; `/run/user/<uid>` when unset.
    pub const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
    /// Where a rootless store's run root is when there is no run-time directory; `/tmp` when unset.
    pub const TMPDIR: &str = "TMPDIR";
    /// The user's home directory.
    pub const HOME: &str = "HOME";
    /// The user outside the user namespace that a rootless engine has made and entered.
    pub const ROOTLESS_UID: &str = "_CONTAINERS_ROOTLESS_UID";
    /// The group outside the user namespace that a rootless engine has made and entered.
    pub const ROOTLESS_GID: &str = "_CONTAINERS_ROOTLESS_GID";
    /// Set by an engine that has entered a user namespace: the process counts as rootless.
    pub const USERNS_CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
    /// `yes` switches id-mapped mounts off ([`DriverSetup::disable_id_mapped_mounts`](crate::registry::DriverSetup)).
    pub const OVERLAY_DISABLE_IDMAP: &str = "_CONTAINERS_OVERLAY_DISABLE_IDMAP";
}

/// Who asks for the configuration, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// Environment variables; only those of [`variable`] and those named in configured paths are looked at.
    pub variables: BTreeMap<String, String>,
    /// User id of the process.
    pub uid: u32,
    /// The user's home directory; `None` where there is none.
    pub home: Option<PathBuf>,
    /// Whether the process is without the initial user namespace's privileges (containers/storage's sense of rootless).
    pub rootless: bool,
    /// What stands before `/etc`, `/usr/share` and `/run`: `/`, or another root directory (for a look at an installation
    /// that is not the running one, and for tests). Configured paths are not touched by it.
    pub system_root: PathBuf,
}

impl Environment {
    /// Root on an ordinary machine, without any variables.
    #[must_use]
    pub fn root() -> Self {
        Self {
            variables: BTreeMap::new(),
            uid: 0,
            home: Some(PathBuf::from("/root")),
            rootless: false,
            system_root: PathBuf::from("/"),
        }
    }

    /// A variable that is set to something.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The user whose store it is: the one outside the user namespace, if this is in one.
    #[must_use]
    pub fn rootless_uid(&self) -> u32 {
        self.get(variable::ROOTLESS_UID).and_then(|uid| uid.parse().ok()).unwrap_or(self.uid)
    }

    /// Whether the store is a user's private one. A root user within somebody's namespace uses the system's paths.
    #[must_use]
    pub fn per_user(&self) -> bool {
        self.rootless && self.rootless_uid() != 0
    }

    /// Whether id-mapped mounts are switched off.
    #[must_use]
    pub fn disables_id_mapped_mounts(&self) -> bool {
        self.get(variable::OVERLAY_DISABLE_IDMAP) == Some("yes")
    }

    /// A path of the system.
    #[must_use]
    pub fn system(&self, path: &str) -> PathBuf {
        self.system_root.join(path.trim_start_matches('/'))
    }

    /// The user's configuration directory.
    #[must_use]
    pub fn config_home(&self) -> Option<PathBuf> {
        self.below_home(variable::XDG_CONFIG_HOME, ".config")
    }

    /// The user's data directory.
    #[must_use]
    pub fn data_home(&self) -> Option<PathBuf> {
        self.below_home(variable::XDG_DATA_HOME, ".local/share")
    }

    fn below_home(&self, variable: &str, path: &str) -> Option<PathBuf> {
        self.get(variable).map(PathBuf::from).or_else(|| self.home().map(|home| home.join(path)))
    }

    fn home(&self) -> Option<&Path> {
        self.home.as_deref().or_else(|| self.get(variable::HOME).map(Path::new))
    }

    /// `$NAME` and `${NAME}` in `text` replaced by the variable's value, an unset one by nothing. `$UID` is the store's
    /// user, whatever the variable says.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let (name, tail) = braced.unwrap_or_else(|| {
                let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                after.split_at_checked(end).unwrap_or((after, ""))
            });
            if name.is_empty() {
                out.push('$');
            } else if name == "UID" {
                out.push_str(&self.rootless_uid().to_string());
            } else if let Some(value) = self.variables.get(name) {
                out.push_str(value);
            }
            rest = tail;
        }
        out.push_str(rest);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_paths() {
        let mut environment = Environment { uid: 1000, ..Environment::root() };
        environment.variables.insert("DATA".to_owned(), "/data".to_owned());
        for (text, expanded) in [
            ("/plain", "/plain"),
            ("$DATA/$UID/store", "/data/1000/store"),
            ("${DATA}x/${UID}", "/datax/1000"),
            ("/a$NONE/b", "/a/b"),
            ("/cost$", "/cost$"),
            ("/${open", "/${open"),
            ("$$DATA", "$/data"),
        ] {
            assert_eq!(environment.expand(text), expanded, "{text}");
        }
        environment.variables.insert(variable::ROOTLESS_UID.to_owned(), "1234".to_owned());
        assert_eq!(environment.expand("$UID"), "1234");
    }
}
