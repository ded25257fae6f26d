//! `<driver>-containers/containers.json` and `volatile-containers.json`.

use std::collections::BTreeMap;

use graph_archive::idmap::{IdMappings, IdRange};

use super::{Flags, Time, record};

record! {
    /// One container.
    pub struct Container {
        /// 64 lower-case hex digits as a rule.
        "id" => id: String, always;
        /// Names, unique among containers.
        "names" => names: Vec<String>;
        /// Id of the image it was made from; may be empty.
        "image" => image: String, always;
        /// Id of its own read-write layer.
        "layer" => layer: String, always;
        /// Free text of whoever made the container.
        "metadata" => metadata: String;
        /// Keys of the container's big data.
        "big-data-names" => big_data_names: Vec<String>;
        /// Bytes of each.
        "big-data-sizes" => big_data_sizes: BTreeMap<String, i64>;
        /// Digest of each.
        "big-data-digests" => big_data_digests: BTreeMap<String, String>;
        /// When the container was made.
        "created" => created: Time;
        /// User ids inside.
        "uidmap" => uid_map: Vec<IdRange>;
        /// Group ids inside.
        "gidmap" => gid_map: Vec<IdRange>;
        /// `MountLabel` and `ProcessLabel` (always both), `MountOpts`, `Volatile`.
        "flags" => flags: Flags;
    }
}

impl Container {
    /// The mappings of the ids inside.
    #[must_use]
    pub fn mappings(&self) -> IdMappings {
        IdMappings { uids: self.uid_map.clone(), gids: self.gid_map.clone() }
    }

    /// Whether a crash may lose what the container wrote.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.flags.is_set("Volatile")
    }

    /// SELinux label of its mount; empty for none.
    #[must_use]
    pub fn mount_label(&self) -> String {
        self.flags.string("MountLabel").unwrap_or_default()
    }

    /// Mount options it was made with.
    #[must_use]
    pub fn mount_options(&self) -> Vec<String> {
        self.flags.strings("MountOpts").unwrap_or_default()
    }
}
