//! What stacking file systems note down in the directories they stack: the kernel's overlay
//! (Documentation/filesystems/overlayfs.rst) in devices and attributes, AUFS in files of reserved names ([`crate::whiteout`]).

use std::os::fd::AsFd;

use graph_sys::fs::{self, AtFlags, FileType};
use graph_sys::io::Errno;
use graph_sys::special::WHITEOUT_DEVICE;
use graph_sys::statx::Metadata;
use graph_sys::xattr;

use crate::apply::XattrNamespace;
use crate::error::{Error, Result};
use crate::walk::join;
use crate::whiteout;

/// What a directory's `opaque` attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opacity {
    Merged,
    Opaque,
    /// Merged, and whiteouts may have the form of files with an attribute.
    XattrWhiteouts,
}

/// How to read what a directory of a layer notes down about the layers below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    /// A directory of a kernel overlay, with its own attributes in this namespace.
    Overlay(XattrNamespace),
    /// A branch of AUFS.
    Aufs,
}

impl Marks {
    /// One of the overlay's own attributes of the object `name` in `directory`; `parent` is for errors. What is gone has
    /// none.
    pub(crate) fn get(self, directory: impl AsFd, name: &[u8], parent: &[u8], mark: &[u8]) -> Result<Option<Vec<u8>>> {
        let Self::Overlay(namespace) = self else { return Ok(None) };
        let attribute = [namespace.prefix(), mark].concat();
        match xattr::get_at(directory, name, &attribute) {
            Err(Errno::NOENT) => Ok(None),
            value => value.map_err(|error| Error::io("read attributes of", join(parent, name), error)),
        }
    }

    /// Where the overlay keeps its own attributes, if it is one.
    pub(crate) fn namespace(self) -> Option<XattrNamespace> {
        match self {
            Self::Overlay(namespace) => Some(namespace),
            Self::Aufs => None,
        }
    }

    /// Whether the directory has a file that says of `name`, whatever else is there, that nothing is seen under it: AUFS's
    /// form of a whiteout.
    pub(crate) fn hides(self, directory: impl AsFd, name: &[u8], parent: &[u8]) -> Result<bool> {
        if self != Self::Aufs {
            return Ok(false);
        }
        is_there(directory, &[whiteout::PREFIX, name].concat(), parent)
    }

    pub(crate) fn opacity(self, directory: impl AsFd, name: &[u8], parent: &[u8]) -> Result<Opacity> {
        if self == Self::Aufs {
            // The root of a branch is never opaque.
            let opaque = name != b"." && is_there(directory, &[name, b"/", whiteout::OPAQUE].concat(), parent)?;
            return Ok(if opaque { Opacity::Opaque } else { Opacity::Merged });
        }
        Ok(match self.get(directory, name, parent, b"opaque")?.as_deref() {
            Some(b"y") => Opacity::Opaque,
            Some(b"x") => Opacity::XattrWhiteouts,
            _ => Opacity::Merged,
        })
    }

    /// Whether an object stands for one that is gone. `by_xattr`: its directory is one of [`Opacity::XattrWhiteouts`]. Of AUFS
    /// none does: see [`Marks::hides`].
    pub(crate) fn is_whiteout(
        self,
        directory: impl AsFd,
        name: &[u8],
        parent: &[u8],
        status: &Metadata,
        by_xattr: bool,
    ) -> Result<bool> {
        Ok(match status.file_type {
            _ if self == Self::Aufs => false,
            FileType::CharacterDevice => status.node_device == WHITEOUT_DEVICE,
            FileType::RegularFile if by_xattr && status.size == 0 => {
                self.get(directory, name, parent, b"whiteout")?.is_some()
            }
            _ => false,
        })
    }
}

fn is_there(directory: impl AsFd, name: &[u8], parent: &[u8]) -> Result<bool> {
    match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        // No room for a mark: no mark.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP) => Ok(false),
        Err(error) => Err(Error::io("stat", join(parent, name), error)),
    }
}
