//! Errors of this crate: one public type, told apart by [`Error::kind`].

use std::io;
use std::path::PathBuf;

use graph_core::id::InvalidId;

/// What went wrong in the store.
///
/// The messages are containers/storage's where scripts know them: [`ErrorKind::sentinel`] is always part of the text,
/// behind what it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No layer of that id, name or id prefix (or a prefix of several).
    #[error("locating layer with ID {reference:?}: layer not known")]
    LayerNotKnown {
        /// What was looked for.
        reference: String,
    },
    /// No image of that id, name or id prefix (or a prefix of several).
    #[error("locating image with ID {reference:?}: image not known")]
    ImageNotKnown {
        /// What was looked for.
        reference: String,
    },
    /// No container of that id, name, layer or id prefix (or a prefix of several).
    #[error("locating container with ID {reference:?}: container not known")]
    ContainerNotKnown {
        /// What was looked for.
        reference: String,
    },
    /// Neither a layer nor an image nor a container.
    #[error("locating {reference:?}: identifier is not a layer, image, or container")]
    NotKnown {
        /// What was looked for.
        reference: String,
    },
    /// A layer, image or container of that id exists.
    #[error("{kind} {id}: that ID is already in use")]
    IdInUse {
        /// `layer`, `image` or `container`.
        kind: &'static str,
        /// The id.
        id: String,
    },
    /// A layer of that name exists.
    #[error("layer name {name:?} is already in use by layer {owner}: that name is already in use")]
    LayerNameInUse {
        /// The name.
        name: String,
        /// Id of the layer that has it.
        owner: String,
    },
    /// An image of that name exists.
    #[error("image name {name:?} is already associated with image {owner:?}: that name is already in use")]
    ImageNameInUse {
        /// The name.
        name: String,
        /// Id of the image that has it.
        owner: String,
    },
    /// A container of that name exists.
    #[error(
        "the container name {name:?} is already in use by {owner}. You have to remove that container to be able to reuse that name: that name is already in use"
    )]
    ContainerNameInUse {
        /// The name.
        name: String,
        /// Id of the container that has it.
        owner: String,
    },
    /// Another layer is on top.
    #[error("used by layer {child}: layer has children")]
    LayerHasChildren {
        /// The layer.
        id: String,
        /// One of its children.
        child: String,
    },
    /// It is the top layer of an image.
    #[error("layer {id} used by image {image}: layer is in use by an image")]
    LayerUsedByImage {
        /// The layer.
        id: String,
        /// The image.
        image: String,
    },
    /// It is a container's read-write layer.
    #[error("layer {id} used by container {container}: layer is in use by a container")]
    LayerUsedByContainer {
        /// The layer.
        id: String,
        /// The container.
        container: String,
    },
    /// A container was made from it.
    #[error("image used by {container}: image is in use by a container")]
    ImageUsedByContainer {
        /// The image.
        id: String,
        /// The container.
        container: String,
    },
    /// A mount stands in the way of a shutdown.
    #[error("layer {id} is mounted at {}: a layer is mounted: layer is in use by a container", path.display())]
    LayerMounted {
        /// The layer.
        id: String,
        /// Where.
        path: PathBuf,
    },
    /// Something is mounted among a container's own files, so it runs.
    #[error("container {id} is running: {} is mounted; stop it first", path.display())]
    ContainerRunning {
        /// The container.
        id: String,
        /// What is mounted.
        path: PathBuf,
    },
    /// A layer that should be mounted is not.
    #[error("layer {id}: layer is not mounted")]
    LayerNotMounted {
        /// The layer.
        id: String,
    },
    /// The parent of a new layer is a container's layer, which may change.
    #[error("layer {id}: would-be parent layer is a container")]
    ParentIsContainer {
        /// The parent.
        id: String,
    },
    /// The parent of a layer that was being imported has gone, or changed; to be tried again.
    #[error("layer {id}: its parent {parent} was deleted while the layer was being imported: layer not known")]
    ParentGone {
        /// The new layer.
        id: String,
        /// The parent.
        parent: String,
    },
    /// Somebody else mounted, changed or removed a layer that was being filled; to be tried again.
    #[error(
        "layer {id} was changed or removed by somebody else while a diff for it was read; it was not touched, try again"
    )]
    LayerChanged {
        /// The layer.
        id: String,
    },
    /// Filling a mounted layer failed in the middle.
    #[error(
        "layer {id} holds a part of the diff now, its record is as before; delete the layer, or apply a whole diff"
    )]
    PartlyApplied {
        /// The layer.
        id: String,
        /// What failed.
        #[source]
        source: Box<Error>,
    },
    /// Files of a layer were restored, and its archive still cannot be put together.
    #[error("layer {id}: its files were restored, and it is still not what it was; delete it and fetch it again")]
    StillDamaged {
        /// The layer.
        id: String,
        /// What is wrong, beyond the digest.
        #[source]
        source: Option<graph_archive::Error>,
    },
    /// The object lies in an additional store, which is never written.
    #[error("{what} is in the read-only store {}: called a write method on a read-only store", store.display())]
    ReadOnlyStore {
        /// What should have been changed, or mounted.
        what: String,
        /// Root of the store.
        store: PathBuf,
    },
    /// A name that would garble what is printed.
    #[error("{name:?}: names must not have control characters")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// A key that cannot name a big data item.
    #[error("{}: not a valid name for a big data item",
        if key.is_empty() { "can't set empty name for a big data item".to_owned() } else { format!("{key:?}") })]
    InvalidBigDataName {
        /// The key.
        key: String,
    },
    /// No such big data item.
    #[error("locating item named {key:?} for {kind} with ID {id:?}{}: file does not exist",
        if *kind == "image" { " (consider removing the image to resolve the issue)" } else { "" })]
    BigDataNotFound {
        /// `layer`, `image` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The key.
        key: String,
    },
    /// No such big data item, or none that can be read: its size is not known.
    #[error("data item {key:?} of {kind} {id:?}: size is not known")]
    SizeUnknown {
        /// `image` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The key.
        key: String,
    },
    /// No such big data item, or none that can be read: its digest is not known.
    #[error("data item {key:?} of {kind} {id:?}: could not compute digest of item")]
    DigestUnknown {
        /// `image` or `container`.
        kind: &'static str,
        /// Its id.
        id: String,
        /// The key.
        key: String,
    },
    /// A string that is no digest.
    #[error("{digest:?}: invalid checksum digest format")]
    InvalidDigest {
        /// The string.
        digest: String,
    },
    /// A blob is not the one that was expected.
    #[error(
        "layer {id}: the {which} has the digest {found}, but should have {expected}: layer content incorrect digest"
    )]
    DigestMismatch {
        /// The layer, or what it would have become.
        id: String,
        /// What the digest is of: the blob, or the uncompressed layer.
        which: &'static str,
        /// What the bytes have.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// A string that cannot be an id.
    #[error(transparent)]
    InvalidId(#[from] InvalidId),
    /// The driver that was asked for is the one that the store had before it was converted.
    #[error(
        "the store was converted from {from}{}: ask for its driver now, on the command line or in storage.conf{}",
        to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default(),
        old.as_ref().map(|old| format!(" (the old store is in {})", old.display())).unwrap_or_default()
    )]
    WasConverted {
        /// The driver it had.
        from: String,
        /// The driver it has, where that is known.
        to: Option<String>,
        /// Where the old store is, if it is still there.
        old: Option<PathBuf>,
    },
    /// Arguments that contradict each other, or that this store cannot serve.
    #[error("{problem}")]
    InvalidArgument {
        /// What is wrong.
        problem: String,
    },
    /// The mappings asked for are not those of the layer, and the driver cannot shift ids.
    #[error("cannot mount layer {id}: shifting not enabled")]
    ShiftingNotEnabled {
        /// The layer.
        id: String,
    },
    /// A file of records does not parse; it is left as it is.
    #[error("{}: damaged records; nothing was changed, restore the file or remove it to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A record could not be encoded.
    #[error("encoding the record for {}", path.display())]
    Encode {
        /// The file it is for.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Two records of a read-only store have one name.
    #[error("{}: the name {name:?} belongs to several records of a read-only store", path.display())]
    DuplicateName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The driver, its choice or the configuration.
    #[error(transparent)]
    Driver(#[from] graph_core::Error),
    /// A layer's archive.
    #[error("layer {id}")]
    Archive {
        /// The layer, or what it would have become.
        id: String,
        /// What failed.
        #[source]
        source: graph_archive::Error,
    },
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The broad kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such layer.
    LayerNotKnown,
    /// No such image.
    ImageNotKnown,
    /// No such container.
    ContainerNotKnown,
    /// No such object of any kind.
    NotKnown,
    /// The id is taken.
    IdInUse,
    /// The name is taken.
    NameInUse,
    /// A layer with children.
    LayerHasChildren,
    /// A layer that an image uses.
    LayerUsedByImage,
    /// A layer that a container uses, that is mounted, or that somebody else changed.
    LayerUsedByContainer,
    /// An image that a container uses.
    ImageUsedByContainer,
    /// A container runs.
    ContainerRunning,
    /// Not mounted.
    LayerNotMounted,
    /// A parent that is a container's layer.
    ParentIsContainer,
    /// A read-only store.
    ReadOnlyStore,
    /// A bad key.
    InvalidBigDataName,
    /// No such big data item.
    BigDataNotFound,
    /// The size of a big data item that is not there.
    SizeUnknown,
    /// The digest of a big data item that is not there.
    DigestUnknown,
    /// A bad digest.
    InvalidDigest,
    /// Other content than expected.
    DigestMismatch,
    /// Bad arguments.
    InvalidArgument,
    /// A store that was converted to another driver.
    WasConverted,
    /// Records or layers on disk that contradict themselves.
    Corrupt,
    /// From the driver: see [`Error::Driver`].
    Driver,
    /// A bad archive: see [`Error::Archive`].
    Archive,
    /// The system refused or failed.
    Io,
}

impl ErrorKind {
    /// containers/storage's words for this kind, where it has any.
    #[must_use]
    pub fn sentinel(self) -> Option<&'static str> {
        Some(match self {
            Self::LayerNotKnown => "layer not known",
            Self::ImageNotKnown => "image not known",
            Self::ContainerNotKnown => "container not known",
            Self::NotKnown => "identifier is not a layer, image, or container",
            Self::IdInUse => "that ID is already in use",
            Self::NameInUse => "that name is already in use",
            Self::LayerHasChildren => "layer has children",
            Self::LayerUsedByImage => "layer is in use by an image",
            Self::LayerUsedByContainer => "layer is in use by a container",
            Self::ImageUsedByContainer => "image is in use by a container",
            Self::LayerNotMounted => "layer is not mounted",
            Self::ParentIsContainer => "would-be parent layer is a container",
            Self::ReadOnlyStore => "called a write method on a read-only store",
            Self::InvalidBigDataName => "not a valid name for a big data item",
            Self::BigDataNotFound => "file does not exist",
            Self::SizeUnknown => "size is not known",
            Self::DigestUnknown => "could not compute digest of item",
            Self::InvalidDigest => "invalid checksum digest format",
            Self::DigestMismatch => "layer content incorrect digest",
            Self::ContainerRunning
            | Self::InvalidArgument
            | Self::WasConverted
            | Self::Corrupt
            | Self::Driver
            | Self::Archive
            | Self::Io => return None,
        })
    }
}

impl Error {
    /// The broad kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::LayerNotKnown { .. } | Self::ParentGone { .. } => ErrorKind::LayerNotKnown,
            Self::ImageNotKnown { .. } => ErrorKind::ImageNotKnown,
            Self::ContainerNotKnown { .. } => ErrorKind::ContainerNotKnown,
            Self::NotKnown { .. } => ErrorKind::NotKnown,
            Self::IdInUse { .. } => ErrorKind::IdInUse,
            Self::LayerNameInUse { .. } | Self::ImageNameInUse { .. } | Self::ContainerNameInUse { .. } => {
                ErrorKind::NameInUse
            }
            Self::LayerHasChildren { .. } => ErrorKind::LayerHasChildren,
            Self::LayerUsedByImage { .. } => ErrorKind::LayerUsedByImage,
            Self::LayerUsedByContainer { .. } | Self::LayerMounted { .. } => ErrorKind::LayerUsedByContainer,
            Self::ImageUsedByContainer { .. } => ErrorKind::ImageUsedByContainer,
            Self::ContainerRunning { .. } => ErrorKind::ContainerRunning,
            Self::LayerNotMounted { .. } => ErrorKind::LayerNotMounted,
            Self::ParentIsContainer { .. } => ErrorKind::ParentIsContainer,
            Self::ReadOnlyStore { .. } => ErrorKind::ReadOnlyStore,
            Self::InvalidBigDataName { .. } => ErrorKind::InvalidBigDataName,
            Self::BigDataNotFound { .. } => ErrorKind::BigDataNotFound,
            Self::SizeUnknown { .. } => ErrorKind::SizeUnknown,
            Self::DigestUnknown { .. } => ErrorKind::DigestUnknown,
            Self::InvalidDigest { .. } => ErrorKind::InvalidDigest,
            Self::DigestMismatch { .. } => ErrorKind::DigestMismatch,
            Self::InvalidId(_)
            | Self::InvalidName { .. }
            | Self::InvalidArgument { .. }
            | Self::ShiftingNotEnabled { .. } => ErrorKind::InvalidArgument,
            Self::WasConverted { .. } => ErrorKind::WasConverted,
            Self::Corrupt { .. } | Self::DuplicateName { .. } | Self::Encode { .. } => ErrorKind::Corrupt,
            Self::LayerChanged { .. } => ErrorKind::LayerUsedByContainer,
            Self::StillDamaged { .. } => ErrorKind::DigestMismatch,
            Self::PartlyApplied { source, .. } => source.kind(),
            Self::Driver(_) => ErrorKind::Driver,
            Self::Archive { .. } => ErrorKind::Archive,
            Self::Io { .. } => ErrorKind::Io,
        }
    }

    /// Whether the file system takes no changes at all.
    pub(crate) fn is_read_only_file_system(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Driver(graph_core::Error::Io { source, .. }) => {
                source.kind() == io::ErrorKind::ReadOnlyFilesystem
            }
            _ => false,
        }
    }

    /// An I/O error with its operation and path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

/// A point at which tests make the store fail, or the process die. Nothing otherwise.
pub(crate) fn fault(point: &'static str) -> Result<()> {
    graph_sys::fault::point(point).map_err(|e| Error::io("reach", point, e))
}

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
