//! storage.conf: found, read, merged, and turned into one [`Resolved`] configuration that knows where each value is from.
//!
//! Nothing here reads the environment: it comes in as an [`Environment`]. The files are those that podman, buildah,
//! skopeo and CRI-O read, so that every tool on a machine finds the same store. Two orders are in use:
//!
//! - [`SearchOrder::V1_63`] (containers/storage 1.63 and later, our default): the first main file of the user's, `/etc` and
//!   `/usr/share`; then all drop-ins merged on top in the order of their base names, where a file of a later directory
//!   replaces one of the same name; then `CONTAINERS_STORAGE_CONF_OVERRIDE`.
//! - [`SearchOrder::V1_60`]: one file wins, nothing is merged. A rootless user who has none takes only a few values from
//!   the system's.
//!
//! `CONTAINERS_STORAGE_CONF` names the one file to read in both. `STORAGE_DRIVER` and `STORAGE_OPTS` come on top.
//!
//! Differences to the peers, on purpose: a key that does not exist is reported with file and line ([`Resolved::notices`])
//! instead of being dropped; a rootless user is not sent to the root user's own default directories by a system-wide file
//! that states them; the driver is never guessed here, but chosen by [`crate::select`], which tells why.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use graph_sys::fs::{self, CWD, Mode, OFlags};

use crate::error::{Error, Result};
use crate::options::{DriverOption, KNOWN_PREFIXES, canonical};
use crate::registry::DriverSetup;
use crate::select::SelectRequest;

mod environment;
mod keys;
mod parse;
mod search;
#[cfg(test)]
mod tests;

pub use environment::{Environment, variable};
pub use parse::{Notice, Origin};

use parse::Value;
use search::Source;

/// The root user's store when nothing is configured.
pub const DEFAULT_GRAPH_ROOT: &str = "/var/lib/containers/storage";
/// The root user's run root when nothing is configured.
pub const DEFAULT_RUN_ROOT: &str = "/run/containers/storage";
/// Least size of an automatic user namespace when nothing is configured.
pub const DEFAULT_AUTO_USERNS_MIN_SIZE: u32 = 1024;
/// Greatest size of an automatic user namespace when nothing is configured.
pub const DEFAULT_AUTO_USERNS_MAX_SIZE: u32 = 65_536;

/// Drivers that a rootless user takes over from the system's file in the 1.60 order.
const ROOTLESS_DRIVERS: [&str; 4] = ["btrfs", "overlay", "overlay2", "vfs"];

/// Which files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchOrder {
    /// One file wins.
    V1_60,
    /// One main file and drop-ins.
    #[default]
    V1_63,
}

/// How to read the configuration.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which files are read.
    pub order: SearchOrder,
    /// Names of drivers beside containers/storage's own. `[storage.options.<name>]` may hold what keys it likes.
    pub drivers: Vec<String>,
    /// A file to merge on top of all others. It must exist.
    pub on_top: Option<PathBuf>,
}

/// The configuration in effect.
///
/// The fields may be changed before it is used, for example by a command line's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where layers, images and containers are.
    pub graph_root: PathBuf,
    /// Where mounts and other things are kept until the next boot.
    pub run_root: PathBuf,
    /// The driver; `None` to choose one.
    pub driver: Option<String>,
    /// Drivers in the order to try them; empty for the built-in order.
    pub driver_priority: Vec<String>,
    /// A separate read-write store for images.
    pub image_store: Option<PathBuf>,
    /// Containers' records are kept in the run root only.
    pub transient_store: bool,
    /// Volatile mounts are refused.
    pub disable_volatile: bool,
    /// User in /etc/subuid and /etc/subgid whose ranges automatic user namespaces are cut from; empty when not configured.
    pub root_auto_userns_user: String,
    /// Least size of an automatic user namespace.
    pub auto_userns_min_size: u32,
    /// Greatest size of an automatic user namespace.
    pub auto_userns_max_size: u32,
    /// Options for whoever pulls images, as they stand.
    pub pull_options: BTreeMap<String, String>,
    /// Additional, read-only image stores, nearest first.
    pub additional_image_stores: Vec<PathBuf>,
    /// Additional layer stores (`path` or `path:ref`), as they stand.
    pub additional_layer_stores: Vec<String>,
    /// Driver options that replace or follow those of the files, from `STORAGE_OPTS` or a command line.
    pub driver_option_override: Option<OptionOverride>,
    /// The files that were read, in the order in which they were merged.
    pub files: Vec<PathBuf>,
    /// What an operator should hear of.
    pub notices: Vec<Notice>,
    settings: BTreeMap<String, (Value, Origin)>,
    drivers: Vec<String>,
}

/// Driver options that did not come from files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionOverride {
    /// As written: `overlay.mountopt=nodev`, `.size=1G`, `inodes=5`.
    pub options: Vec<String>,
    /// They come after those of the files instead of in their place.
    pub append: bool,
}

impl Resolved {
    /// Finds and reads the configuration files.
    ///
    /// # Errors
    /// [`Error::Config`] with file and line for text that is not TOML and values of the wrong type, and for roots that make no sense;
    /// [`Error::Io`] for files that exist but cannot be read, and for missing ones that were named explicitly.
    pub fn load(environment: &Environment, options: &LoadOptions) -> Result<Self> {
        let mut sources = search::find(environment, options.order)?;
        if let Some(path) = &options.on_top {
            sources.push(search::named(path)?);
        }
        Self::from_sources(environment, options, &sources)
    }

    fn from_sources(environment: &Environment, options: &LoadOptions, sources: &[Source]) -> Result<Self> {
        let drivers: Vec<&str> = options.drivers.iter().map(String::as_str).collect();
        let (mut merged, mut notices) = (BTreeMap::new(), Vec::new());
        for source in sources {
            let mut parsed = parse::parse(&source.path, &source.text, &drivers)?;
            if source.system_wide && environment.per_user() {
                parsed.settings.retain(|(key, value, _)| for_every_user(key, value, options.order));
            }
            notices.append(&mut parsed.notices);
            for (key, value, origin) in parsed.settings {
                merge(&mut merged, key, value, origin);
            }
        }
        if let Some(driver) = environment.get(variable::STORAGE_DRIVER) {
            let origin = Origin::Variable(variable::STORAGE_DRIVER);
            merged.insert("storage.driver".to_owned(), (Value::Text(driver.to_owned()), origin));
        }
        let storage_opts = environment.variables.get(variable::STORAGE_OPTS);
        let driver_option_override = storage_opts.map(|list| OptionOverride {
            options: list.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect(),
            append: options.order == SearchOrder::V1_60 && environment.per_user(),
        });
        let settings = Settings(&merged);
        let driver = settings.text("storage.driver").map(|driver| {
            if driver != canonical(driver) {
                let text = format!("{driver} is now called {}", canonical(driver));
                notices.push(Notice { origin: settings.origin("storage.driver"), text });
            }
            canonical(driver).to_owned()
        });
        let (graph_root, run_root) = (graph_root(environment, settings)?, run_root(environment, settings)?);
        let image_store = settings.text("storage.imagestore").or_else(|| settings.text("storage.options.imagestore"));
        let image_store = image_store.map(|path| real_path(&environment.expand(path)));
        if image_store.as_ref() == Some(&graph_root) {
            return Err(Error::Config {
                place: settings.origin("storage.imagestore").to_string(),
                problem: format!(
                    "imagestore {} must either be not set or be a different than graphroot",
                    graph_root.display()
                ),
            });
        }
        let number = |key, default| match settings.get(key) {
            Some(Value::Number(number)) if *number > 0 => *number,
            _ => default,
        };
        let resolved = Self {
            graph_root,
            run_root,
            driver,
            driver_priority: settings.list("storage.driver_priority"),
            image_store,
            transient_store: settings.flag("storage.transient_store"),
            disable_volatile: settings.flag("storage.options.disable-volatile"),
            root_auto_userns_user: settings.text("storage.options.root-auto-userns-user").unwrap_or("").to_owned(),
            auto_userns_min_size: number("storage.options.auto-userns-min-size", DEFAULT_AUTO_USERNS_MIN_SIZE),
            auto_userns_max_size: number("storage.options.auto-userns-max-size", DEFAULT_AUTO_USERNS_MAX_SIZE),
            pull_options: match settings.get("storage.options.pull_options") {
                Some(Value::Table(table)) => table.clone(),
                _ => BTreeMap::new(),
            },
            additional_image_stores: settings
                .list("storage.options.additionalimagestores")
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            additional_layer_stores: settings.list("storage.options.additionallayerstores"),
            driver_option_override,
            files: sources.iter().map(|source| source.path.clone()).collect(),
            notices,
            drivers: options.drivers.clone(),
            settings: merged,
        };
        Ok(resolved)
    }

    /// Where the value of a key, for example `storage.options.overlay.mountopt`, comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        Settings(&self.settings).origin(key)
    }

    /// Every key that a file or a variable set, and where, sorted by key.
    pub fn origins(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.settings.iter().map(|(key, (_, origin))| (key.as_str(), origin))
    }

    /// The options for one driver, as `<driver>.key=value`: the additional stores, then what its own table says, and
    /// what `[storage.options]` says where its own table says nothing. With an override: that one's options for this driver, as written.
    #[must_use]
    pub fn driver_options(&self, driver: &str) -> Vec<String> {
        let driver = canonical(driver);
        let mut options = match &self.driver_option_override {
            Some(OptionOverride { append: false, .. }) => Vec::new(),
            _ => self.file_options(driver),
        };
        if let Some(OptionOverride { options: more, .. }) = &self.driver_option_override {
            let meant = |option: &&String| match DriverOption::parse(option) {
                Ok(DriverOption { driver: Some(prefix), .. }) => canonical(&prefix.to_ascii_lowercase()) == driver,
                // Malformed ones too: selection has the error message.
                _ => true,
            };
            options.extend(more.iter().filter(meant).cloned());
        }
        options
    }

    fn file_options(&self, driver: &str) -> Vec<String> {
        let settings = Settings(&self.settings);
        let stores = self.additional_image_stores.iter().map(|path| format!("{driver}.imagestore={}", path.display()));
        let layer_stores = self.additional_layer_stores.iter();
        let mut options: Vec<String> =
            stores.chain(layer_stores.map(|store| format!("{driver}.additionallayerstore={store}"))).collect();
        let prefix = format!("storage.options.{driver}.");
        let own: Vec<&str> = self.settings.keys().filter_map(|key| key.strip_prefix(&prefix)).collect();
        let generic = keys::GENERIC.iter().find(|(name, _)| *name == driver).map_or(&[][..], |(_, keys)| *keys);
        let mut names: Vec<&str> = generic.iter().copied().chain(own).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let value = settings.text(&format!("{prefix}{name}")).or_else(|| {
                generic.contains(&name).then(|| settings.text(&format!("storage.options.{name}"))).flatten()
            });
            options.extend(value.map(|value| format!("{driver}.{name}={value}")));
        }
        options
    }

    /// The options of all drivers, each with its driver's prefix: whichever is chosen picks its own.
    #[must_use]
    pub fn all_driver_options(&self) -> Vec<String> {
        let mut options = Vec::new();
        if !matches!(self.driver_option_override, Some(OptionOverride { append: false, .. })) {
            let names = KNOWN_PREFIXES.into_iter().filter(|name| *name == canonical(name));
            let own = self.drivers.iter().map(String::as_str).filter(|name| !KNOWN_PREFIXES.contains(name));
            options.extend(names.chain(own).flat_map(|name| self.file_options(name)));
        }
        options.extend(self.driver_option_override.iter().flat_map(|more| more.options.iter().cloned()));
        options
    }

    /// What [`Registry::select`](crate::registry::Registry::select) needs to open the configured driver.
    #[must_use]
    pub fn select_request(&self, environment: &Environment) -> SelectRequest {
        SelectRequest {
            name: self.driver.clone(),
            priority: self.driver_priority.clone(),
            options: self.all_driver_options(),
            setup: DriverSetup {
                root: self.graph_root.clone(),
                run_root: self.run_root.clone(),
                image_store: self.image_store.clone(),
                options: Vec::new(),
                rootless: environment.rootless,
                disable_id_mapped_mounts: environment.disables_id_mapped_mounts(),
            },
        }
    }
}

/// Typed looks at merged settings. Empty strings count as unset, as they do for the peers.
#[derive(Clone, Copy)]
struct Settings<'s>(&'s BTreeMap<String, (Value, Origin)>);

impl<'s> Settings<'s> {
    fn get(self, key: &str) -> Option<&'s Value> {
        self.0.get(key).map(|(value, _)| value)
    }

    fn text(self, key: &str) -> Option<&'s str> {
        match self.get(key) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn list(self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List { items, .. }) => items.clone(),
            _ => Vec::new(),
        }
    }

    fn flag(self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    fn origin(self, key: &str) -> Origin {
        self.0.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }
}

/// A later file's value replaces an earlier one's, but tables are merged, and arrays appended to once a file has said
/// `{append=true}` (until one says `{append=false}`).
fn merge(merged: &mut BTreeMap<String, (Value, Origin)>, key: String, value: Value, origin: Origin) {
    let value = match (value, merged.get(&key)) {
        (Value::List { items, append }, Some((Value::List { items: old, append: said }, _))) => {
            let append = append.or(*said);
            let mut all = if append == Some(true) { old.clone() } else { Vec::new() };
            all.extend(items);
            Value::List { items: all, append }
        }
        (Value::Table(table), Some((Value::Table(old), _))) => {
            let mut all = old.clone();
            all.extend(table);
            Value::Table(all)
        }
        (value, _) => value,
    };
    merged.insert(key, (value, origin));
}

/// Whether a rootless user takes this over from a system-wide file.
fn for_every_user(key: &str, value: &Value, order: SearchOrder) -> bool {
    let is = |default: &str| matches!(value, Value::Text(text) if Path::new(text) == Path::new(default));
    match (order, key) {
        // Distributions ship a file for root that states the defaults. Nobody else can use those directories.
        (SearchOrder::V1_63, "storage.graphroot") => !is(DEFAULT_GRAPH_ROOT),
        (SearchOrder::V1_63, "storage.runroot") => !is(DEFAULT_RUN_ROOT) && !is("/var/run/containers/storage"),
        (SearchOrder::V1_63, _) => true,
        (SearchOrder::V1_60, "storage.driver") => {
            matches!(value, Value::Text(driver) if ROOTLESS_DRIVERS.contains(&driver.as_str()))
        }
        (SearchOrder::V1_60, _) => {
            key.ends_with(".ignore_chown_errors")
                || key == "storage.rootless_storage_path"
                || key == "storage.options.pull_options"
        }
    }
}

fn graph_root(environment: &Environment, settings: Settings<'_>) -> Result<PathBuf> {
    let configured = settings
        .text("storage.graphroot")
        .or_else(|| settings.text("storage.rootless_storage_path").filter(|_| environment.per_user()));
    if let Some(path) = configured {
        return absolute(environment, path, &settings.origin("storage.graphroot"));
    }
    if !environment.per_user() {
        return Ok(environment.system(DEFAULT_GRAPH_ROOT));
    }
    let data = environment.data_home().ok_or_else(|| Error::Config {
        place: "graphroot".to_owned(),
        problem: format!(
            "neither {} nor a home directory is known, and no graphroot is configured",
            variable::XDG_DATA_HOME
        ),
    })?;
    Ok(data.join("containers/storage"))
}

fn run_root(environment: &Environment, settings: Settings<'_>) -> Result<PathBuf> {
    if let Some(path) = settings.text("storage.runroot") {
        return absolute(environment, path, &settings.origin("storage.runroot"));
    }
    if !environment.per_user() {
        return Ok(environment.system(DEFAULT_RUN_ROOT));
    }
    if let Some(directory) = environment.get(variable::XDG_RUNTIME_DIR) {
        return Ok(Path::new(directory).join("containers"));
    }
    let uid = environment.rootless_uid();
    let run_user = environment.system(&format!("/run/user/{uid}"));
    if owner(&run_user) == Some(environment.uid) {
        return Ok(run_user.join("containers"));
    }
    let temporary = environment.get(variable::TMPDIR).map_or_else(|| environment.system("/tmp"), PathBuf::from);
    let temporary = temporary.join(format!("storage-run-{uid}"));
    // Anybody can make a directory of that name in /tmp.
    match owner(&temporary) {
        None => Ok(temporary.join("containers")),
        Some(owner) if owner == environment.uid => Ok(temporary.join("containers")),
        Some(owner) => Err(Error::Config {
            place: "runroot".to_owned(),
            problem: format!(
                "{} belongs to user {owner}, not to {}: set {}, or runroot in storage.conf",
                temporary.display(),
                environment.uid,
                variable::XDG_RUNTIME_DIR
            ),
        }),
    }
}

fn absolute(environment: &Environment, path: &str, origin: &Origin) -> Result<PathBuf> {
    let expanded = environment.expand(path);
    if !Path::new(&expanded).is_absolute() {
        let problem = format!("{path:?} is not an absolute path");
        return Err(Error::Config { place: origin.to_string(), problem });
    }
    Ok(real_path(&expanded))
}

/// The path with its symbolic links resolved, or only tidied up where it does not exist.
fn real_path(path: &str) -> PathBuf {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if let Ok(fd) = fs::openat(CWD, path, flags, Mode::empty()) {
        let found = crate::fsutil::path_of(std::os::fd::AsFd::as_fd(&fd), ".");
        if found.is_absolute() {
            return found;
        }
    }
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

fn owner(path: &Path) -> Option<u32> {
    fs::statat(CWD, path, fs::AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| stat.st_uid)
}
