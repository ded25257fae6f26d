//! What the layers below have under a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_sys::fs::{self, FileType, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::statx;

use crate::error::{Error, Result};
use crate::overlay::{Marks, Opacity};

/// Whether something of that path is seen through the lower layers, nearest first.
pub(super) fn has(lowers: &[BorrowedFd<'_>], marks: Marks, path: &[u8]) -> Result<bool> {
    for lower in lowers {
        match look(*lower, marks, path)? {
            Found::Object => return Ok(true),
            Found::Hidden => return Ok(false),
            Found::Nothing => {}
        }
    }
    Ok(false)
}

enum Found {
    Object,
    /// Nothing, and nothing further down is seen either.
    Hidden,
    Nothing,
}

fn look(lower: BorrowedFd<'_>, marks: Marks, path: &[u8]) -> Result<Found> {
    let failed = |operation| move |error: Errno| Error::io(operation, path, error);
    let mut owned: Option<OwnedFd> = None;
    let mut hidden = false;
    let mut by_xattr = marks.opacity(lower, b".", b"")? == Opacity::XattrWhiteouts;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let directory = owned.as_ref().map_or(lower, AsFd::as_fd);
        let nothing = if hidden { Found::Hidden } else { Found::Nothing };
        let status = match statx::metadata(directory, part) {
            Ok(status) => status,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(nothing),
            Err(error) => return Err(failed("stat lower")(error)),
        };
        if marks.is_whiteout(directory, part, path, &status, by_xattr)? {
            return Ok(Found::Hidden);
        }
        if parts.peek().is_none() {
            return Ok(Found::Object);
        }
        if status.file_type != FileType::Directory {
            return Ok(Found::Hidden);
        }
        let opacity = marks.opacity(directory, part, path)?;
        hidden |= opacity == Opacity::Opaque;
        by_xattr = opacity == Opacity::XattrWhiteouts;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        owned = Some(fs::openat(directory, part, flags, Mode::empty()).map_err(failed("open lower"))?);
    }
    Ok(Found::Nothing)
}
