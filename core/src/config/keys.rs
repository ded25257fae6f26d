//! Every key of storage.conf.

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string.
    Text,
    /// A boolean, or a string that Go's `ParseBool` takes; kept as text.
    BoolText,
    /// A boolean (or such a string: older files have them).
    Bool,
    /// A whole number of 32 bits.
    Number,
    /// Permissions: a number, or a string to be understood by the driver; kept as text.
    Mask,
    /// An array of strings, with `{append=true}` allowed among them.
    List,
    /// A table of strings.
    Table,
}

/// Keys with their full names.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("storage.driver", Kind::Text),
    ("storage.driver_priority", Kind::List),
    ("storage.runroot", Kind::Text),
    ("storage.graphroot", Kind::Text),
    ("storage.imagestore", Kind::Text),
    ("storage.rootless_storage_path", Kind::Text),
    ("storage.transient_store", Kind::Bool),
    ("storage.options.additionalimagestores", Kind::List),
    ("storage.options.additionallayerstores", Kind::List),
    ("storage.options.imagestore", Kind::Text),
    ("storage.options.size", Kind::Text),
    ("storage.options.ignore_chown_errors", Kind::BoolText),
    ("storage.options.use_composefs", Kind::BoolText),
    ("storage.options.force_mask", Kind::Mask),
    ("storage.options.root-auto-userns-user", Kind::Text),
    ("storage.options.auto-userns-min-size", Kind::Number),
    ("storage.options.auto-userns-max-size", Kind::Number),
    ("storage.options.skip_mount_home", Kind::BoolText),
    ("storage.options.mount_program", Kind::Text),
    ("storage.options.mountopt", Kind::Text),
    ("storage.options.disable-volatile", Kind::Bool),
    ("storage.options.pull_options", Kind::Table),
    ("storage.options.overlay.ignore_chown_errors", Kind::BoolText),
    ("storage.options.overlay.mountopt", Kind::Text),
    ("storage.options.overlay.mount_program", Kind::Text),
    ("storage.options.overlay.size", Kind::Text),
    ("storage.options.overlay.inodes", Kind::Text),
    ("storage.options.overlay.skip_mount_home", Kind::BoolText),
    ("storage.options.overlay.use_composefs", Kind::BoolText),
    ("storage.options.overlay.force_mask", Kind::Mask),
    ("storage.options.overlay.sync", Kind::Text),
    ("storage.options.vfs.ignore_chown_errors", Kind::BoolText),
    ("storage.options.vfs.sync", Kind::Text),
    ("storage.options.btrfs.min_space", Kind::Text),
    ("storage.options.btrfs.size", Kind::Text),
    ("storage.options.zfs.fsname", Kind::Text),
    ("storage.options.zfs.mountopt", Kind::Text),
    ("storage.options.zfs.size", Kind::Text),
    ("storage.options.aufs.mountopt", Kind::Text),
];

/// Tables with keys of their own.
pub(super) const TABLES: &[&str] = &[
    "storage",
    "storage.options",
    "storage.options.overlay",
    "storage.options.vfs",
    "storage.options.btrfs",
    "storage.options.zfs",
    "storage.options.aufs",
];

/// Accepted and without any effect: the device mapper driver is gone.
pub(super) const IGNORED_TABLE: &str = "storage.options.thinpool";

/// What a driver takes of `[storage.options]` when its own table does not say otherwise.
pub(super) const GENERIC: &[(&str, &[&str])] = &[
    (
        "overlay",
        &["size", "mount_program", "skip_mount_home", "ignore_chown_errors", "use_composefs", "force_mask", "mountopt"],
    ),
    ("vfs", &["ignore_chown_errors"]),
    ("btrfs", &["size"]),
    ("zfs", &["mountopt", "size"]),
    ("aufs", &["mountopt"]),
];

pub(super) fn kind_of(key: &str) -> Option<Kind> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind)
}
