//! What a kernel overlay notes down in its directories (Documentation/filesystems/overlayfs.rst).

use std::os::fd::AsFd;

use graph_sys::fs::FileType;
use graph_sys::io::Errno;
use graph_sys::special::WHITEOUT_DEVICE;
use graph_sys::statx::Metadata;
use graph_sys::xattr;

use crate::apply::XattrNamespace;
use crate::error::{Error, Result};
use crate::walk::join;

/// What a directory's `opaque` attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opacity {
    Merged,
    Opaque,
    /// Merged, and whiteouts may have the form of files with an attribute.
    XattrWhiteouts,
}

/// Reads the overlay's own attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    pub(crate) namespace: XattrNamespace,
}

impl Marks {
    /// One of the overlay's own attributes of the object `name` in `directory`; `parent` is for errors. What is gone has
    /// none.
    pub(crate) fn get(self, directory: impl AsFd, name: &[u8], parent: &[u8], mark: &[u8]) -> Result<Option<Vec<u8>>> {
        let attribute = [self.namespace.prefix(), mark].concat();
        match xattr::get_at(directory, name, &attribute) {
            Err(Errno::NOENT) => Ok(None),
            value => value.map_err(|error| Error::io("read attributes of", join(parent, name), error)),
        }
    }

    pub(crate) fn opacity(self, directory: impl AsFd, name: &[u8], parent: &[u8]) -> Result<Opacity> {
        Ok(match self.get(directory, name, parent, b"opaque")?.as_deref() {
            Some(b"y") => Opacity::Opaque,
            Some(b"x") => Opacity::XattrWhiteouts,
            _ => Opacity::Merged,
        })
    }

    /// Whether an object stands for one that is gone. `by_xattr`: its directory is one of [`Opacity::XattrWhiteouts`].
    pub(crate) fn is_whiteout(
        self,
        directory: impl AsFd,
        name: &[u8],
        parent: &[u8],
        status: &Metadata,
        by_xattr: bool,
    ) -> Result<bool> {
        Ok(match status.file_type {
            FileType::CharacterDevice => status.node_device == WHITEOUT_DEVICE,
            FileType::RegularFile if by_xattr && status.size == 0 => {
                self.get(directory, name, parent, b"whiteout")?.is_some()
            }
            _ => false,
        })
    }
}
