//! Images in files - OCI layouts, oci-archives, docker-archives - read into a layer store and written out of it.
//!
//! Bytes that have a digest are kept as they are: manifests and configs are stored as read and never encoded anew, unless
//! a layer's blob comes out of the compressor with other bytes than it came in.

mod error;
mod files;
mod image;
mod load;
mod reference;
mod save;

pub use error::{Error, ErrorKind, Result};
pub use image::{Platform, REF_NAME, SourceImage, SourceLayer};
pub use load::{Event, Loaded, OnEvent, layer_ids, load, normalized_name};
pub use reference::{Reference, Transport};
pub use save::{SaveCompression, Saved, save, save_to};
