//! What a check found.

use std::collections::BTreeMap;
use std::fmt;

/// The kind of object that a problem is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ObjectKind {
    /// A layer.
    Layer,
    /// An image.
    Image,
    /// A container.
    Container,
}

impl ObjectKind {
    fn word(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Image => "image",
            Self::Container => "container",
        }
    }
}

/// What is wrong. Displayed, with the object in front, in containers/storage's words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// A layer of the driver that no record knows.
    Unaccounted {
        /// Apparent bytes that it takes.
        bytes: u64,
    },
    /// A layer that no image and no container uses, and that is older than such a layer should get.
    Unreferenced,
    /// A layer whose making or deleting was interrupted and that could not be cleaned up.
    Incomplete,
    /// The layer's archive, put together again, has another digest.
    IncorrectDigest,
    /// The layer's archive, put together again, has another size.
    IncorrectSize {
        /// Bytes of the archive as it is.
        found: u64,
        /// Bytes recorded.
        expected: u64,
    },
    /// A file whose content is not what the layer was filled with.
    Content {
        /// The member's name (lossy), unquoted.
        file: String,
    },
    /// A difference between the layer's tree and what its archives state, in the form `+/path`.
    Modified {
        /// The difference.
        difference: String,
    },
    /// The parent that the layer's record names has no record.
    ParentMissing {
        /// The parent.
        parent: String,
    },
    /// A layer of the image, or the container's own, has no record, or the driver does not have it.
    LayerMissing {
        /// The layer.
        layer: String,
    },
    /// A data item is not there.
    DataMissing {
        /// Its key.
        key: String,
    },
    /// A data item has another size than recorded.
    DataSize {
        /// Its key.
        key: String,
    },
    /// The container's image has no record.
    ImageMissing {
        /// The image.
        image: String,
    },
    /// It cannot be read, or mounted.
    Unusable {
        /// Why.
        reason: String,
    },
}

/// A defect of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of object.
    pub object: ObjectKind,
    /// Its id.
    pub id: String,
    /// Whether it lies in an additional store.
    pub read_only: bool,
    /// What is wrong.
    pub defect: Defect,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, id, read_only, defect } = self;
        match defect {
            // In containers/storage these two name only what is missing.
            Defect::ParentMissing { parent } => {
                return write!(f, "{}layer {parent}: layer is missing", if *read_only { "read-only " } else { "" });
            }
            Defect::ImageMissing { image } => return write!(f, "image {image}: image missing"),
            _ => {}
        }
        write!(f, "{}{} {id}: ", if *read_only { "read-only " } else { "" }, object.word())?;
        match defect {
            Defect::Unaccounted { bytes } => {
                write!(f, "layer in lower level storage driver not accounted for ({bytes} bytes)")
            }
            Defect::Unreferenced => f.write_str("layer not referenced by any images or containers"),
            Defect::Incomplete => f.write_str("incomplete layer that could not be removed"),
            Defect::IncorrectDigest => f.write_str("layer content incorrect digest"),
            Defect::IncorrectSize { found, expected } => {
                write!(f, "read {found} bytes instead of {expected} bytes: layer content incorrect size")
            }
            Defect::Content { file } => write!(f, "file integrity checksum failed for {file:?}"),
            Defect::Modified { difference } => write!(f, "{difference}, layer content modified"),
            Defect::LayerMissing { layer } => write!(f, "layer {layer}: {} layer is missing", object.word()),
            Defect::DataMissing { key } => write!(f, "data item {key:?}: {} data item is missing", object.word()),
            Defect::DataSize { key } => write!(f, "data item {key:?}: {} data item has incorrect size", object.word()),
            Defect::Unusable { reason } => f.write_str(reason),
            Defect::ParentMissing { .. } | Defect::ImageMissing { .. } => Ok(()),
        }
    }
}

/// The problems of one kind of object, by id.
pub type Problems = BTreeMap<String, Vec<Problem>>;

/// What a check found. Empty in all parts for a store without problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// Damaged layers of the own store.
    pub layers: Problems,
    /// Damaged layers of additional stores.
    pub read_only_layers: Problems,
    /// Damaged images of the own store, those with damaged layers included.
    pub images: Problems,
    /// Damaged images of additional stores.
    pub read_only_images: Problems,
    /// Damaged containers, those of damaged images included.
    pub containers: Problems,
    /// Apparent bytes of the driver's layers that no record knows.
    pub unaccounted_bytes: u64,
    /// How deep a layer lies in its chain, for removing children first.
    pub(crate) depths: BTreeMap<String, usize>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.parts().iter().all(|part| part.is_empty())
    }

    /// The five parts, in the order in which they are told.
    #[must_use]
    pub fn parts(&self) -> [&Problems; 5] {
        [&self.layers, &self.read_only_layers, &self.images, &self.read_only_images, &self.containers]
    }

    /// Notes a problem.
    pub(crate) fn add(&mut self, problem: Problem) {
        let part = match (problem.object, problem.read_only) {
            (ObjectKind::Layer, false) => &mut self.layers,
            (ObjectKind::Layer, true) => &mut self.read_only_layers,
            (ObjectKind::Image, false) => &mut self.images,
            (ObjectKind::Image, true) => &mut self.read_only_images,
            (ObjectKind::Container, _) => &mut self.containers,
        };
        part.entry(problem.id.clone()).or_default().push(problem);
    }
}
