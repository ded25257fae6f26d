//! The words of the command line.
//!
//! Verbs, flags and aliases are those of the `containers-storage` command, so that scripts work with either; `load`,
//! `save` and `--json` everywhere are ours. Global flags are taken before and after the verb, a repeated one overrides the
//! earlier, `--storage-opt` adds up, and a boolean flag takes a value only behind `=`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

/// Copy-on-write layer storage for container engines, in the store that podman, buildah and CRI-O use
#[derive(Debug, Parser)]
#[command(name = "driverctl", version, disable_help_subcommand = true, args_override_self = true)]
#[command(after_help = "Ids may be cut short as long as they are unique; names work wherever ids do.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags that every verb takes.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Global {
    /// Graph root: where layers, images and containers are
    #[arg(long, short = 'g', global = true, value_name = "DIR")]
    pub(crate) graph: Option<PathBuf>,
    /// Run root: what a reboot may lose
    #[arg(long, short = 'R', global = true, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Separate store for images and read-only layers
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) image_store: Option<PathBuf>,
    /// Keep the records of containers in the run root
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub(crate) transient_store: Option<bool>,
    /// Driver; without it the store's own, else the first that works
    #[arg(long, short = 's', global = true, value_name = "DRIVER")]
    pub(crate) storage_driver: Option<String>,
    /// Driver option, for example overlay.mountopt=nodev; may be given several times
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub(crate) storage_opt: Vec<String>,
    /// Log what is done, on standard error
    #[arg(long, short = 'D', global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub(crate) debug: Option<bool>,
}

/// The booleans that Go's flag package takes.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("invalid boolean value {text:?}")),
    }
}

/// A flag that switches on, or off behind `=`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Json {
    /// Print JSON
    #[arg(long, short = 'j', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
    pub(crate) json: bool,
}

/// Whose ids the files of a layer or container have.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct IdMap {
    /// User ids as CONTAINER:HOST:SIZE, further ones behind another colon
    #[arg(long, value_name = "MAP")]
    pub(crate) uidmap: Option<String>,
    /// Group ids as CONTAINER:HOST:SIZE, further ones behind another colon
    #[arg(long, value_name = "MAP")]
    pub(crate) gidmap: Option<String>,
    /// Take the user ids that /etc/subuid gives this user
    #[arg(long, value_name = "USER")]
    pub(crate) subuidmap: Option<String>,
    /// Take the group ids that /etc/subgid gives this group
    #[arg(long, value_name = "GROUP")]
    pub(crate) subgidmap: Option<String>,
    /// No mapping of user ids, even if the parent has one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
    pub(crate) hostuidmap: bool,
    /// No mapping of group ids, even if the parent has one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
    pub(crate) hostgidmap: bool,
}

/// How a new layer is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct NewLayer {
    /// The layer below; none, or an empty word, makes a base layer
    pub(crate) parent: Option<String>,
    /// SELinux label
    #[arg(long, short = 'l', value_name = "LABEL")]
    pub(crate) label: Option<String>,
    /// A name for it; may be given several times
    #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
    pub(crate) name: Vec<String>,
    /// Its id
    #[arg(long, short = 'i', value_name = "ID")]
    pub(crate) id: Option<String>,
    /// Containers don't write to it
    #[arg(long, short = 'r', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
    pub(crate) readonly: bool,
    #[command(flatten)]
    pub(crate) id_map: IdMap,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Ids or names, and JSON.
#[derive(Clone, Debug, Args)]
pub(crate) struct Objects {
    /// Ids or names
    #[arg(required = true, value_name = "ID")]
    pub(crate) objects: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// A list.
#[derive(Clone, Debug, Args)]
pub(crate) struct Listing {
    /// Only ids
    #[arg(long, short = 'q', alias = "quick", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// A layer, and what to compare it with.
#[derive(Clone, Debug, Args)]
pub(crate) struct Compared {
    /// The layer
    pub(crate) layer: String,
    /// Compare with this layer instead of the parent
    pub(crate) reference: Option<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Which driver was chosen, and why; what it can do here
    Status {
        #[command(flatten)]
        json: Json,
    },
    /// List layers
    Layers {
        /// As a tree
        #[arg(long, short = 't', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        tree: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Make an empty layer
    #[command(alias = "createlayer")]
    CreateLayer(NewLayer),
    /// Make a layer from a tar, compressed or not
    #[command(alias = "importlayer")]
    ImportLayer {
        #[command(flatten)]
        layer: NewLayer,
        /// The tar; without it standard input
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Put a tar, compressed or not, into a layer
    #[command(name = "applydiff", alias = "apply-diff")]
    ApplyDiff {
        /// The layer
        layer: String,
        /// The tar; without it standard input
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        json: Json,
    },
    /// Write a layer's changes as a tar
    Diff {
        #[command(flatten)]
        compared: Compared,
        /// Where to; without it standard output
        #[arg(long, short = 'f', value_name = "FILE")]
        file: Option<PathBuf>,
        /// Don't compress
        #[arg(long, short = 'u', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        uncompressed: bool,
        /// Compress with gzip
        #[arg(long, short = 'c', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        gzip: bool,
        /// Compress with zstd
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        zstd: bool,
        /// Not supported for writing
        #[arg(long, short = 'b', alias = "bz2", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = go_bool)]
        bzip2: bool,
        /// Not supported for writing
        #[arg(long, short = 'x', hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = go_bool)]
        xz: bool,
    },
    /// List a layer's changes
    Changes(Compared),
    /// Bytes in a layer's added and modified files
    #[command(name = "diffsize", alias = "diff-size")]
    DiffSize(Compared),
    /// Mount layers or containers, and print where
    Mount {
        /// Mount option; replaces the configured ones
        #[arg(long, short = 'o', value_name = "OPTION", action = ArgAction::Append)]
        opt: Vec<String>,
        /// SELinux label
        #[arg(long, short = 'l', value_name = "LABEL")]
        label: Option<String>,
        /// Mount an image, read-only
        #[arg(long, short = 'r', alias = "ro", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        read_only: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// Give up mounts of layers, containers or images
    #[command(alias = "umount")]
    Unmount {
        /// However often it is mounted
        #[arg(long, short = 'f', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        force: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// Which of these layers are mounted
    Mounted(Objects),
    /// Delete layers that nothing uses
    #[command(alias = "deletelayer")]
    DeleteLayer(Objects),
    /// Show layers
    Layer(Objects),
    /// List images
    Images(Listing),
    /// Show images
    Image(Objects),
    /// Make an image of a layer
    #[command(alias = "createimage")]
    CreateImage {
        /// The top layer; none, or an empty word, makes an image without layers
        layer: Option<String>,
        /// A name for it; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        /// Its id
        #[arg(long, short = 'i', value_name = "ID")]
        id: Option<String>,
        /// Digest of its manifest
        #[arg(long, short = 'd', value_name = "DIGEST")]
        digest: Option<String>,
        #[command(flatten)]
        metadata: Metadata,
        #[command(flatten)]
        json: Json,
    },
    /// Delete images, and their layers that nothing else uses
    #[command(alias = "deleteimage")]
    DeleteImage {
        /// Only print which layers would go
        #[arg(long, short = 't', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        test: bool,
        #[command(flatten)]
        objects: Objects,
    },
    /// List containers
    Containers(Listing),
    /// Show containers
    Container(Objects),
    /// Make a container of an image
    #[command(alias = "createcontainer")]
    CreateContainer {
        /// The image; an empty word makes a container of nothing
        image: String,
        /// A name for it; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        /// Its id
        #[arg(long, short = 'i', value_name = "ID")]
        id: Option<String>,
        /// A crash may lose what it writes
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        volatile: bool,
        #[command(flatten)]
        metadata: Metadata,
        #[command(flatten)]
        id_map: IdMap,
        #[command(flatten)]
        json: Json,
    },
    /// Delete containers
    #[command(alias = "deletecontainer")]
    DeleteContainer(Objects),
    /// Put an image from files into the store
    Load {
        /// A name for it, instead of those in the files; may be given several times
        #[arg(long, short = 'n', value_name = "NAME", action = ArgAction::Append)]
        name: Vec<String>,
        // No comment for documentation: it would take the brackets for links.
        #[arg(
            help = "oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], or a directory or file of one of these"
        )]
        source: String,
        #[command(flatten)]
        json: Json,
    },
    /// Write an image into an OCI layout
    Save {
        /// How to compress layers: as-loaded, none, gzip or zstd
        #[arg(long, value_name = "HOW", default_value = "as-loaded")]
        compression: String,
        /// The image
        image: String,
        #[arg(help = "oci:DIR[:NAME], or a directory")]
        target: String,
        #[command(flatten)]
        json: Json,
    },
    /// Unmount everything and let go of the driver
    Shutdown {
        /// Also what is mounted
        #[arg(long, short = 'f', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, value_parser = go_bool, value_name = "BOOL")]
        force: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Delete all containers, images and layers
    Wipe {
        #[command(flatten)]
        json: Json,
    },
    /// Print the version
    Version {
        #[command(flatten)]
        json: Json,
    },
}

/// Free text kept with an image or a container.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Metadata {
    /// Free text to keep with it
    #[arg(long, short = 'm', value_name = "TEXT")]
    pub(crate) metadata: Option<String>,
    /// A file with the free text
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
}
