//! What the caller of a driver states.

use std::collections::BTreeMap;
use std::fmt;

use graph_archive::apply::ApplyObserver;
use graph_archive::idmap::IdMappings;
use graph_archive::limits::Limits;

use crate::id::LayerId;

/// What a layer begins with whose files are to have other owners.
#[derive(Clone, Copy, Debug)]
pub struct ReownRequest<'r> {
    /// The layer below the new one.
    pub parent: Option<&'r LayerId>,
    /// A layer on the same parent whose own differences the new one takes over; `None` for none.
    pub template: Option<&'r LayerId>,
    /// Mappings of the ids that the template's files have on disk, or else the parent's. The new ones are in
    /// [`CreateOptions::mappings`].
    pub mappings: &'r IdMappings,
}

/// How a layer is made.
///
/// The default makes a layer without a label and without limits, whose files have the same ids on disk and in the container.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// SELinux label for the layer's files (`system_u:object_r:container_file_t:s0:c1,c2`); empty for none. Drivers that
    /// label at mount time leave the files alone.
    pub mount_label: String,
    /// Limits of a read-write layer: `size` (bytes, with units) and `inodes`: `10G`, `512m` (powers of 1,024), and a whole number.
    /// Drivers without quotas refuse any.
    pub storage_opt: BTreeMap<String, String>,
    /// The layer's own id mappings: its files are stored with host ids. Empty where ids are shifted at mount time.
    pub mappings: IdMappings,
    /// For `begin_staged`: the layer will be written to, so it belongs where `create_read_write` puts layers and not into
    /// a separate image store. The other methods say so by their names.
    pub read_write: bool,
}

/// How a layer is mounted. Only the first of several references has a say.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// SELinux label of the mount; empty for none.
    pub mount_label: String,
    /// Mappings to show the layer through, where the driver can shift ids at mount time.
    pub mappings: IdMappings,
    /// Mount options: `ro` makes the mount read-only; the others, if there are any, replace the driver's configured
    /// `mountopt`. Drivers that do not mount refuse all but `ro`, and `ro` only promises that the caller does not write.
    pub options: Vec<String>,
    /// The container's changes may be lost in a crash: no syncing at unmount.
    pub volatile: bool,
    /// Show ids as they are on disk, whatever `mappings` says and whether or not the driver could shift them.
    pub disable_shifting: bool,
    /// The layer is a container's, mounted through `mappings` whenever it is written to: its own files are on disk with
    /// host ids, and only what is below it is shifted. Matters for read-only mounts; in others that is always so.
    pub own_files_as_on_disk: bool,
}

/// How a diff is put into a layer.
#[derive(Default)]
pub struct ApplyDiffOptions<'o> {
    /// Mappings from the archive's (container) ids to those on disk.
    pub mappings: IdMappings,
    /// SELinux label for new files; empty for none.
    pub mount_label: String,
    /// A refused chown is no error.
    pub ignore_chown_errors: bool,
    /// Give every file this mode (octal) and keep the real one in `user.containers.override_stat`.
    pub force_mask: Option<u32>,
    /// What the archive may ask for.
    pub limits: Limits,
    /// Sees every raw byte and every file's content once, in stream order; a driver must pass it on to the code that
    /// applies, because tar-split is made from it.
    pub observer: Option<&'o mut dyn ApplyObserver>,
}

impl fmt::Debug for ApplyDiffOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyDiffOptions")
            .field("mappings", &self.mappings)
            .field("ignore_chown_errors", &self.ignore_chown_errors)
            .field("force_mask", &self.force_mask)
            .finish_non_exhaustive()
    }
}

/// Which two states a diff, a change list or a diff size compares.
#[derive(Clone, Debug)]
pub struct DiffRequest<'r> {
    /// The layer asked about.
    pub id: &'r LayerId,
    /// Mappings of its ids on disk.
    pub mappings: &'r IdMappings,
    /// The state to compare with; `None` compares with nothing (everything is an addition).
    pub parent: Option<&'r LayerId>,
    /// Mappings of the parent's ids on disk.
    pub parent_mappings: &'r IdMappings,
    /// SELinux label for a mount that the comparison may need; empty for none.
    pub mount_label: &'r str,
}
