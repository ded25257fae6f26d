//! Putting a layer's archive into a directory.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![warn(clippy::arithmetic_side_effects)]

mod attributes;
mod copy_up;
mod create;
mod dirs;
mod engine;
mod hide;
mod links;
mod lower;
mod names;
mod options;
mod process;
mod remove;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

pub use options::{ApplyOptions, AufsOptions, OverlayOptions, Style, WhiteoutForm, XattrNamespace};

use engine::{Engine, Outcome};

use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::tar::Decoder;

/// Where a member's content can be found when the archive is to be put together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentPlace {
    /// In the file of the member's name, in the layer's diff.
    OnDisk,
    /// Nowhere: whoever wants it back has to keep the bytes themselves.
    Nowhere,
}

/// Sees the bytes of an archive once, in stream order, while it is applied. tar-split is made by one.
///
/// Every byte of the stream is handed over exactly once, either by `raw` or by `content`.
pub trait ApplyObserver {
    /// Bytes that are not the content of a regular file: headers, extension records, padding, end blocks, whatever
    /// follows them, and all bytes of sparse members (whose stored form cannot be made from the file).
    ///
    /// # Errors
    /// Ends the apply.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// A member begins; its header has been given to `raw`. For every member, with content or without.
    ///
    /// # Errors
    /// Ends the apply.
    fn begin(&mut self, entry: &Entry, place: ContentPlace) -> io::Result<()>;

    /// Content of the member that began last, in order.
    ///
    /// # Errors
    /// Ends the apply.
    fn content(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The content of a file that an earlier member of this archive made, and that is about to be lost because a later
    /// member replaces it. `content` is the whole file; which member it was is for the observer to find by checksum.
    ///
    /// # Errors
    /// Ends the apply.
    fn lost(&mut self, content: &mut dyn io::Read, size: u64) -> io::Result<()>;
}

/// What applying an archive found, all from the one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Members.
    pub entries: u64,
    /// Bytes of the uncompressed stream, whatever follows the end blocks included.
    pub bytes: u64,
    /// Sum of the sizes of regular files.
    pub content_bytes: u64,
    /// User ids that the members state (container ids), sorted, unique; whiteouts don't count.
    pub uids: Vec<u32>,
    /// Group ids that the members state (container ids), sorted, unique; whiteouts don't count.
    pub gids: Vec<u32>,
    /// Things that could not be kept and why, one sentence each, each kind once.
    pub notices: Vec<String>,
}

/// Applies the archive that `reader` gives, uncompressed, to the directory `root`, in one pass.
///
/// **Names.** A member's name is a path below `root`: `..` does not lead above it, and neither do symbolic links, absolute
/// ones and those of lower layers included. The kernel never follows anything for this, so it does not matter what others
/// do to the tree meanwhile. Missing directories, and those where something else is, are made: 0755, the mapped root, the
/// epoch. Repeated names: the last one wins.
///
/// **Whiteouts** ([`crate::whiteout`]) hit what lower layers have, wherever they stand among the layer's own members. A
/// directory that the layer removes without stating it, but puts something into, is one that nobody states.
///
/// **Attributes** are all stated anew for every member. A hard link restates owner, mode and times of its target, as in
/// containers/storage, moby and containerd, and adds the extended attributes it has; one that comes before its target leaves
/// the last word to it. A target of a lower layer is parted from its other names, which keep what they have. Directories that
/// the layer does not state keep what the lower layer has. Access time: the stated one, otherwise the time of modification.
/// `security.selinux` and `system.nfs4_acl` are neither set nor cleared. Attributes of the overlay itself are
/// escaped in the overlay form, so that a mount shows them but does not obey; in the other forms they are left out.
/// Ids in version 3 `security.capability` and in access lists are mapped as owners are.
///
/// **Refused**: a character device 0:0, which would become a whiteout; device numbers that do not fit; ids that are not
/// mapped; hard links to directories or to nothing; a root that is no directory.
///
/// **The umask** of the process must not change meanwhile.
///
/// # Errors
/// Typed, naming entry and offset. What has been made below `root` by then stays there: the caller applies to a staging
/// directory and removes it. Nothing outside `root` is ever touched. The reader is not read to its end then.
pub fn apply(root: BorrowedFd<'_>, reader: impl Read, options: ApplyOptions<'_>) -> Result<ApplyReport> {
    let label = match options.mount_label.as_str() {
        "" => None,
        label => Some(process::FileLabel::set(label)),
    };
    let mut decoder = Decoder::new(reader, options.limits.clone());
    let mut engine = Engine::new(root, options)?;
    if let Some(None) = label {
        engine.notice("label", || "the SELinux label could not be set".to_owned());
    }
    while let Some(entry) = decoder.next_entry(&mut |bytes| raw(&mut engine, bytes))? {
        let outcome = engine.member(&entry)?;
        let place = match &outcome {
            Outcome::Done(place) | Outcome::File(_, place) => *place,
        };
        if let Some(observer) = &mut engine.options.observer {
            observer.begin(&entry, place).map_err(|error| Error::io("observe", entry.path.as_slice(), error))?;
        }
        let mut file = match outcome {
            Outcome::Done(_) => None,
            Outcome::File(file, _) => Some(file),
        };
        while let Some(data) = decoder.next_data(&mut |bytes| raw(&mut engine, bytes))? {
            if entry.sparse.is_none()
                && let Some(observer) = &mut engine.options.observer
            {
                observer.content(data.bytes).map_err(|error| Error::io("observe", entry.path.as_slice(), error))?;
            }
            if let Some(file) = &mut file {
                file.write(data.offset, data.bytes)?;
            }
        }
        if let Some(file) = file {
            engine.finish_file(file)?;
        }
    }
    let bytes = decoder.finish(&mut |bytes| raw(&mut engine, bytes))?;
    let mut report = engine.finish()?;
    report.bytes = bytes;
    Ok(report)
}

fn raw(engine: &mut Engine<'_>, bytes: &[u8]) -> io::Result<()> {
    match &mut engine.options.observer {
        Some(observer) => observer.raw(bytes),
        None => Ok(()),
    }
}
