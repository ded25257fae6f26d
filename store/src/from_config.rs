//! From storage.conf to an open store.

use graph_core::config::{Environment, Resolved};

use crate::options::StoreOptions;
use crate::userns::AutoUserNsConfig;

impl StoreOptions {
    /// The options of the store that the configuration names.
    #[must_use]
    pub fn from_config(config: &Resolved, environment: &Environment) -> Self {
        Self {
            root: config.graph_root.clone(),
            run_root: config.run_root.clone(),
            driver: config.driver.clone(),
            driver_priority: config.driver_priority.clone(),
            driver_options: config.all_driver_options(),
            image_store: config.image_store.clone(),
            transient: config.transient_store,
            disable_volatile: config.disable_volatile,
            rootless: environment.rootless,
            auto_userns: AutoUserNsConfig {
                user: config.root_auto_userns_user.clone(),
                min_size: config.auto_userns_min_size,
                max_size: config.auto_userns_max_size,
                ..AutoUserNsConfig::default()
            },
            disable_id_mapped_mounts: environment.disables_id_mapped_mounts(),
            ..Self::default()
        }
    }
}
