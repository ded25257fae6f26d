//! `<driver>-layers/layers.json`.

use graph_archive::idmap::{IdMappings, IdRange};

use super::{Flags, Time, record};

record! {
    /// One layer.
    pub struct Layer {
        /// 64 lower-case hex digits as a rule.
        "id" => id: String, always;
        /// Names, unique among layers.
        "names" => names: Vec<String>;
        /// Id of the layer below; empty for a base layer.
        "parent" => parent: String;
        /// Free text of whoever made the layer.
        "metadata" => metadata: String;
        /// SELinux label.
        "mountlabel" => mount_label: String;
        /// When the record was made.
        "created" => created: Time;
        /// Digest of the blob that the layer was filled from, as it came in.
        "compressed-diff-digest" => compressed_digest: String;
        /// Bytes of that blob.
        "compressed-size" => compressed_size: i64;
        /// Digest of the uncompressed tar (the diff ID).
        "diff-digest" => diff_digest: String;
        /// Digest of the table of contents, for layers that were fetched in parts.
        "toc-digest" => toc_digest: String;
        /// Bytes of the uncompressed tar; -1 when not known.
        "diff-size" => diff_size: i64;
        /// How the blob was compressed: 0 not at all, 1 bzip2, 2 gzip, 3 xz, 4 zstd.
        "compression" => compression: i64;
        /// User ids that the tar states (container ids), ascending.
        "uidset" => uids: Vec<u32>;
        /// Group ids that the tar states (container ids), ascending.
        "gidset" => gids: Vec<u32>;
        /// See [`Layer::is_incomplete`].
        "flags" => flags: Flags;
        /// User ids of the files on disk.
        "uidmap" => uid_map: Vec<IdRange>;
        /// Group ids of the files on disk.
        "gidmap" => gid_map: Vec<IdRange>;
        /// Keys of the layer's big data.
        "big-data-names" => big_data_names: Vec<String>;
    }
}

impl Layer {
    /// The flag of a layer that is being made, or whose making was interrupted: the next one to open the store
    /// deletes it.
    pub(crate) const INCOMPLETE: &'static str = "incomplete";

    /// Whether the layer is unfinished.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.flags.is_set(Self::INCOMPLETE)
    }

    /// The mappings of the ids on disk.
    #[must_use]
    pub fn mappings(&self) -> IdMappings {
        IdMappings { uids: self.uid_map.clone(), gids: self.gid_map.clone() }
    }
}
