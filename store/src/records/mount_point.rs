//! `<run root>/<driver>-layers/mountpoints.json`.

use super::record;

record! {
    /// One mounted layer.
    pub struct MountPoint {
        /// Id of the layer.
        "id" => id: String, always;
        /// Where it is mounted, absolute.
        "path" => path: String, always;
        /// How many times it was mounted, by whatever processes; never 0 in the file.
        "count" => count: i64, always;
    }
}
