//! Which store: flags over environment over storage.conf.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use graph_store::{Store, StoreOptions};

use crate::cli::Global;

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// Opens the store that the flags and the configuration name.
pub(crate) fn open(global: &Global) -> Result<Store> {
    let options = StoreOptions {
        root: absolute(global.graph.as_deref().unwrap_or(Path::new("/var/lib/containers/storage")))?,
        run_root: absolute(global.run.as_deref().unwrap_or(Path::new("/run/containers/storage")))?,
        driver: global.storage_driver.clone(),
        driver_options: global.storage_opt.clone(),
        image_store: global.image_store.as_deref().map(absolute).transpose()?,
        transient: global.transient_store.unwrap_or_default(),
        on_lock_wait: Some(Arc::new(|busy| crate::output::complain(&format!("waiting: {busy}")))),
        ..StoreOptions::default()
    };
    Ok(Store::open(options, &graph_core::registry::Registry::new())?)
}
