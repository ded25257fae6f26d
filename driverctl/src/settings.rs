//! Which store: flags over environment over storage.conf.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use graph_core::config::{Environment, LoadOptions, Resolved, variable};
use graph_core::options::{DriverOption, canonical};
use graph_store::{Store, StoreOptions};

use crate::cli::Global;

/// An open store, and what it was configured by.
pub(crate) struct Opened {
    pub(crate) store: Store,
    /// The configuration files that were read, in the order in which they were merged.
    pub(crate) files: Vec<PathBuf>,
    /// What names the driver, if something does: a flag, a variable, or a file and line.
    pub(crate) asked_by: Option<String>,
    /// Keys that mean nothing, and the like, with file and line.
    pub(crate) notices: Vec<String>,
}

/// What the process was started with. The one place that looks at the environment.
pub(crate) fn environment() -> Environment {
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let variables: std::collections::BTreeMap<String, String> = variables.collect();
    let uid = graph_sys::process::geteuid().as_raw();
    // Without CAP_SYS_ADMIN, or with it in some other user namespace than the first, we are what the peers call rootless.
    let admin = graph_sys::userns::has_capabilities(graph_sys::thread::CapabilitySet::SYS_ADMIN);
    let inside = graph_sys::userns::is_in_user_namespace().unwrap_or(true);
    Environment {
        uid,
        home: variables.get(variable::HOME).map(PathBuf::from),
        rootless: !admin || inside || variables.contains_key(variable::USERNS_CONFIGURED),
        system_root: PathBuf::from("/"),
        variables,
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// Opens the store that the flags and the configuration name. Flags `before` the verb choose a store; those behind it only
/// override single values of the one that is chosen. `driver` is the one that the verb names, if it does.
pub(crate) fn open(global: &Global, before: &[String], driver: Option<&str>, only_looks: bool) -> Result<Opened> {
    let environment = environment();
    let registry = graph_drivers::registry()?;
    let chooses = |flag: &String| ["graph", "run", "storage_driver", "storage_opt"].contains(&flag.as_str());
    let explicit = before.iter().any(chooses);
    // With both roots given nothing of the configuration is asked for, so a broken one does no harm.
    let config = if explicit && global.graph.is_some() && global.run.is_some() {
        None
    } else {
        Some(Resolved::load(&environment, &LoadOptions::default())?)
    };
    let mut options = match &config {
        Some(config) => StoreOptions::from_config(config, &environment),
        None => StoreOptions {
            rootless: environment.rootless,
            disable_id_mapped_mounts: environment.disables_id_mapped_mounts(),
            ..StoreOptions::default()
        },
    };
    if explicit {
        // Options for the configured store's driver mean nothing to another store.
        options.driver = None;
        options.driver_priority = Vec::new();
        options.driver_options = Vec::new();
        options.image_store = None;
    }
    if let Some(graph) = &global.graph {
        options.root = absolute(graph)?;
    }
    if let Some(run) = &global.run {
        options.run_root = absolute(run)?;
    }
    let named = global.storage_driver.as_deref().or(driver);
    if let Some(driver) = named {
        options.driver = Some(driver.to_owned());
    } else if explicit {
        options.driver = environment.get(variable::STORAGE_DRIVER).map(str::to_owned);
    }
    options.driver_options.extend(global.storage_opt.iter().cloned());
    if let Some(store) = &global.image_store {
        options.image_store = Some(absolute(store)?);
    }
    if let Some(transient) = global.transient_store {
        options.transient = transient;
    }
    // Only ever when somebody holds a lock for more than a second; a person, or a log, then says who.
    options.on_lock_wait = Some(Arc::new(|busy| crate::output::complain(&format!("waiting: {busy}"))));
    let asked_by = options.driver.is_some().then(|| match &config {
        _ if global.storage_driver.is_some() => "--storage-driver".to_owned(),
        Some(config) if !explicit => config.origin("storage.driver").to_string(),
        _ => format!("${}", variable::STORAGE_DRIVER),
    });
    let (files, notices) = config.map_or_else(Default::default, |config| {
        (config.files, config.notices.iter().map(ToString::to_string).collect())
    });
    options.leave_left_overs = only_looks;
    let store = Store::open(options, &registry)?;
    refuse_others_options(&global.storage_opt, &store.selection().name)?;
    Ok(Opened { store, files, asked_by, notices })
}

/// Refuses options on the command line that are for another driver. (storage.conf may hold several drivers' options.)
fn refuse_others_options(options: &[String], driver: &str) -> Result<()> {
    for option in options {
        if let DriverOption { driver: Some(prefix), key, .. } = DriverOption::parse(option)?
            && !canonical(&prefix.to_ascii_lowercase()).eq_ignore_ascii_case(canonical(driver))
        {
            bail!("{driver}: unknown option {prefix}.{key}");
        }
    }
    Ok(())
}
