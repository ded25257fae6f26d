//! `<driver>-images/images.json`.

use std::collections::BTreeMap;

use super::{Flags, Time, record};

record! {
    /// One image.
    pub struct Image {
        /// 64 lower-case hex digits as a rule (for OCI images, those of the config's digest).
        "id" => id: String, always;
        /// Digest of the manifest; may be empty. See [`Image::digests`].
        "digest" => digest: String;
        /// Names, unique among images.
        "names" => names: Vec<String>;
        /// Every name that it ever had, newest first.
        "names-history" => names_history: Vec<String>;
        /// Id of the top layer; empty for an image without layers.
        "layer" => layer: String;
        /// Copies of the top layer with other id mappings.
        "mapped-layers" => mapped_layers: Vec<String>;
        /// Free text of whoever made the image.
        "metadata" => metadata: String;
        /// Keys of the image's big data.
        "big-data-names" => big_data_names: Vec<String>;
        /// Bytes of each.
        "big-data-sizes" => big_data_sizes: BTreeMap<String, i64>;
        /// Digest of each.
        "big-data-digests" => big_data_digests: BTreeMap<String, String>;
        /// When the image was made.
        "created" => created: Time;
        /// Open set of flags.
        "flags" => flags: Flags;
    }
}

impl Image {
    /// All digests the image is found by: its own, and those of every big data item whose key starts with `manifest`.
    #[must_use]
    pub fn digests(&self) -> Vec<&str> {
        let manifests = self
            .big_data_names
            .iter()
            .filter(|key| key.starts_with("manifest"))
            .filter_map(|key| self.big_data_digests.get(key));
        let mut digests = Vec::new();
        for digest in std::iter::once(&self.digest).chain(manifests) {
            if !digest.is_empty() && !digests.contains(&digest.as_str()) {
                digests.push(digest.as_str());
            }
        }
        digests
    }

    /// The top layer and its mapped copies.
    pub fn top_layers(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.layer.as_str())
            .filter(|layer| !layer.is_empty())
            .chain(self.mapped_layers.iter().map(String::as_str))
    }
}
