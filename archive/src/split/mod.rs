//! tar-split: what is needed, beside the files of a layer, to put its archive together again byte for byte.

use std::fs::File;

use crate::error::Result;

/// Opens regular files of a layer's diff by member name.
pub trait FileGetter {
    /// The file of that member name, resolved inside the layer's root; symbolic links never lead out of it.
    ///
    /// # Errors
    /// I/O errors, [`std::io::ErrorKind::NotFound`] among them.
    fn get(&self, name: &[u8]) -> Result<File>;
}
