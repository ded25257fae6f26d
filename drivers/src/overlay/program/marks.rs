//! Marks of deletion as other programs write them, turned into the kernel's.
//!
//! ```text
//! .wh.<name>                     -> <name>, character device 0:0
//! .wh.<name> beside <name>/      -> the directory gets the opaque mark: what it replaces does not show
//! .wh..wh..opq                   -> opaque mark on the directory
//! user.fuseoverlayfs.opaque=y    -> the same
//! ```
//!
//! The new mark is made before the old one goes, so being killed in between loses nothing: it is done again. fuse-overlayfs
//! understands the kernel's marks too. Times of directories stay.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use graph_archive::apply::XattrNamespace;
use graph_core::Error;
use graph_sys::fs::{self, AtFlags, FileType, Mode, Timespec, Timestamps};
use graph_sys::io::Errno;
use graph_sys::special::is_whiteout;
use graph_sys::xattr::{self, SetMode};

use crate::overlay::layout::{each_entry, open_dir};

/// On the root of a lower directory that needs no second look.
const DONE: &[u8] = b"user.graphdriver.kernel_whiteouts";
const FUSE_OPAQUE: &[u8] = b"user.fuseoverlayfs.opaque";
const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const INTERNAL: &[u8] = b".wh..wh.";

/// Whether a directory is looked through only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Once {
    /// It does not change any more: a lower directory.
    Yes,
    /// A program may write to it again: an upper directory.
    No,
}

pub(super) fn at(path: &Path, error: Errno) -> Error {
    Error::io("turn the whiteouts into the kernel's in", path, None, error)
}

/// Turns all marks below `root`.
pub(super) fn to_kernel(root: &OwnedFd, namespace: XattrNamespace, once: Once) -> Result<(), Errno> {
    if once == Once::Yes && matches!(xattr::get(root, DONE), Ok(Some(_))) {
        return Ok(());
    }
    let mut waiting: Vec<(Rc<OwnedFd>, Vec<u8>)> = Vec::new();
    let first = Rc::new(open_dir(root, ".")?);
    directory(&first, namespace, &mut waiting)?;
    while let Some((parent, name)) = waiting.pop() {
        use std::os::unix::ffi::OsStrExt;
        match open_dir(&*parent, std::ffi::OsStr::from_bytes(&name)) {
            Ok(dir) => directory(&Rc::new(dir), namespace, &mut waiting)?,
            // Gone, or no directory any more: the engine's own affair.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error),
        }
    }
    if once == Once::Yes {
        // Where it cannot be kept, it is looked at again next time.
        match xattr::set(root, DONE, b"y", SetMode::CreateOrReplace) {
            Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::ROFS | Errno::NOSPC) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn directory(
    dir: &Rc<OwnedFd>,
    namespace: XattrNamespace,
    waiting: &mut Vec<(Rc<OwnedFd>, Vec<u8>)>,
) -> Result<(), Errno> {
    let mut marks: Vec<Vec<u8>> = Vec::new();
    each_entry(&**dir, |name, kind| {
        if name.starts_with(PREFIX) && (name == OPAQUE || !name.starts_with(INTERNAL)) {
            marks.push(name.to_vec());
        } else if matches!(kind, FileType::Directory | FileType::Unknown) {
            waiting.push((Rc::clone(dir), name.to_vec()));
        }
        Ok(())
    })?;
    if matches!(xattr::get(&**dir, FUSE_OPAQUE), Ok(Some(value)) if value == b"y") {
        set_opaque(dir, namespace)?;
    }
    if marks.is_empty() {
        return Ok(());
    }
    let before = fs::fstat(&**dir)?;
    for mark in marks {
        // A whiteout is an empty file; whatever else is called so is content.
        let stat = fs::statat(&**dir, &*mark, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size != 0 {
            continue;
        }
        if mark == OPAQUE {
            set_opaque(dir, namespace)?;
        } else {
            hide(dir, mark.get(PREFIX.len()..).unwrap_or_default(), namespace)?;
        }
        fs::unlinkat(&**dir, &*mark, AtFlags::empty())?;
    }
    let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos.cast_signed() };
    let times = Timestamps {
        last_access: time(before.st_atime, before.st_atime_nsec),
        last_modification: time(before.st_mtime, before.st_mtime_nsec),
    };
    fs::futimens(&**dir, &times)
}

fn hide(dir: &OwnedFd, name: &[u8], namespace: XattrNamespace) -> Result<(), Errno> {
    match fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), fs::makedev(0, 0)) {
        Err(Errno::EXIST) => {}
        made => return made,
    }
    let there = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(there.st_mode) == FileType::Directory && !is_whiteout(&there) {
        use std::os::unix::ffi::OsStrExt;
        return set_opaque(&open_dir(dir, std::ffi::OsStr::from_bytes(name))?, namespace);
    }
    Ok(())
}

fn set_opaque(dir: &OwnedFd, namespace: XattrNamespace) -> Result<(), Errno> {
    let name = [namespace.prefix(), b"opaque"].concat();
    xattr::set(dir, &name, b"y", SetMode::CreateOrReplace)
}
