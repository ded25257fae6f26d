//! tar-split: what is needed, beside the files of a layer, to put its archive together again byte for byte.
//!
//! A tar-split is a list of records ([`mod@format`]): raw bytes of the archive (headers, padding, end blocks), and, where the
//! content of a file stood, the file's name, size and checksum. [`Packer`] makes the list while the archive is applied,
//! [`assemble`] puts the archive together from the list and the files.
//!
//! Readers of other makers refuse a list that names one file twice, and need every file's content under its name. Where
//! an archive replaces its own members, [`Packer`] therefore keeps what is lost and moves it into the list as raw bytes
//! when the archive has ended ([`Repair`]).

mod assemble;
pub mod crc64;
mod file;
pub mod format;
mod getter;
mod kept;
mod names;
mod packer;
mod read;
mod repair;

use std::fs::File;

pub use assemble::{assemble, verify};
pub use file::{GzipPacker, gzip_writer};
pub use getter::DirectoryGetter;
pub use packer::{Packed, Packer};
pub use read::{Assembled, Damaged, damaged};
pub use repair::Repair;

use crate::error::Result;

/// Opens regular files of a layer's diff by member name.
pub trait FileGetter {
    /// The file of that member name, resolved inside the layer's root; symbolic links never lead out of it.
    ///
    /// # Errors
    /// I/O errors, [`std::io::ErrorKind::NotFound`] among them.
    fn get(&self, name: &[u8]) -> Result<File>;
}
