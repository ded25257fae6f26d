//! An overlay's upper directory, or the uppermost branch of AUFS, read against the layers below it.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_sys::fs::{self, FileType, Mode, OFlags};
use graph_sys::getdents::{DirBuffer, OwnedEntry, read_sorted};
use graph_sys::io::Errno;
use graph_sys::statx::Metadata;

use super::compare::list_parents;
use super::status::{Collector, Object, differ, status};
use super::{ChangeKind, ChangeSet, content};
use crate::apply::XattrNamespace;
use crate::error::{Error, Result};
use crate::idmap::IdMappings;
use crate::overlay::{Marks, Opacity};
use crate::walk::{Descent, is_gone};
use crate::whiteout::{self, Whiteout};

/// Directories of lower layers that are held open; those further up are closed first.
const OPEN_LOWERS: usize = 192;

/// The parts of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct OverlayTree<'a> {
    /// The upper directory, as it lies on disk.
    pub upper: BorrowedFd<'a>,
    /// From container ids to those in the upper directory.
    pub upper_mappings: &'a IdMappings,
    /// The lower directories, nearest first, as they lie on disk; or one mount of them all.
    pub lowers: &'a [BorrowedFd<'a>],
    /// From container ids to those in the lower directories.
    pub lower_mappings: &'a IdMappings,
    /// Where the overlay keeps its own attributes.
    pub namespace: XattrNamespace,
}

/// What changed from the lower directories to what a mount with the upper one shows. Costs what the upper directory holds,
/// whatever the lower ones do.
///
/// Whiteouts are character devices 0:0 and, as the kernel has them since 6.7, empty files marked `whiteout` in
/// directories marked opaque with `x`.
///
/// # Errors
/// [`Error::Unsupported`] for directories that were renamed with `redirect_dir=on`, whose content is somewhere else in the
/// lower layers (compare the mounts instead); I/O errors with the path concerned.
pub fn overlay_upper(tree: OverlayTree<'_>) -> Result<ChangeSet> {
    let OverlayTree { upper, upper_mappings, lowers, lower_mappings, namespace } = tree;
    read(AufsTree { upper, upper_mappings, lowers, lower_mappings }, Marks::Overlay(namespace))
}

/// The branches of an AUFS mount.
#[derive(Clone, Copy, Debug)]
pub struct AufsTree<'a> {
    /// The uppermost branch, as it lies on disk.
    pub upper: BorrowedFd<'a>,
    /// From container ids to those in the uppermost branch.
    pub upper_mappings: &'a IdMappings,
    /// The branches below, nearest first, as they lie on disk.
    pub lowers: &'a [BorrowedFd<'a>],
    /// From container ids to those in the branches below.
    pub lower_mappings: &'a IdMappings,
}

/// What changed from the lower branches (mounted so that their whiteouts count, `ro+wh`) to what a mount with the uppermost
/// one shows. Costs what the uppermost branch holds. AUFS's own files (`.wh..wh.*`) are nothing that anybody sees.
///
/// # Errors
/// I/O errors with the path concerned.
pub fn aufs_branch(tree: AufsTree<'_>) -> Result<ChangeSet> {
    read(tree, Marks::Aufs)
}

fn read(tree: AufsTree<'_>, marks: Marks) -> Result<ChangeSet> {
    let upper = Descent::new(tree.upper)?;
    let mut lowers = Vec::new();
    for index in 0..tree.lowers.len() {
        let xattr_whiteouts = match tree.lowers.get(index) {
            Some(lower) => marks.opacity(lower, b".", b"")? == Opacity::XattrWhiteouts,
            None => false,
        };
        lowers.push(LowerDirectory { index, directory: None, xattr_whiteouts });
    }
    let mut walk =
        Walk { tree, marks, upper, frames: Vec::new(), open: 0, buffer: DirBuffer::new(), found: Collector::default() };
    let opacity = walk.marks.opacity(walk.upper.directory()?, b".", b"")?;
    walk.open_frame(lowers, opacity, opacity == Opacity::Opaque, true)?;
    while let Some(frame) = walk.frames.last_mut() {
        match frame.names.pop_front() {
            Some(entry) => walk.entry(&entry)?,
            None => walk.leave()?,
        }
    }
    Ok(walk.found.finish())
}

/// A lower layer's directory at the current path.
#[derive(Debug)]
struct LowerDirectory {
    /// Which layer.
    index: usize,
    /// `None` while closed, and for the layers' roots, which are the caller's.
    directory: Option<OwnedFd>,
    xattr_whiteouts: bool,
}

/// One directory of the upper layer on the way.
#[derive(Debug)]
struct Frame {
    names: VecDeque<OwnedEntry>,
    /// The lower layers' directories that make up what was seen here before, nearest first.
    lowers: Vec<LowerDirectory>,
    xattr_whiteouts: bool,
    /// Nothing of the lower layers is seen here any more.
    opaque: bool,
    /// In an opaque directory: what was seen before and has not been met again.
    gone: BTreeSet<Vec<u8>>,
    listed: bool,
}

/// What was seen under a name before.
#[derive(Debug)]
enum Below {
    Nothing,
    /// In the lower directory of that number in the frame.
    Object(usize, Metadata),
    /// The directories of these lower directories of the frame, merged.
    Directories(Vec<(usize, bool)>, Metadata),
}

struct Walk<'a> {
    tree: AufsTree<'a>,
    marks: Marks,
    upper: Descent,
    frames: Vec<Frame>,
    /// Directories of lower layers that are open.
    open: usize,
    buffer: DirBuffer,
    found: Collector,
}

fn open_directory(at: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(at, name, flags, Mode::empty())
}

impl Walk<'_> {
    fn open_frame(&mut self, lowers: Vec<LowerDirectory>, opacity: Opacity, opaque: bool, listed: bool) -> Result<()> {
        let names = self.upper.list(&mut self.buffer)?.into();
        let xattr_whiteouts = opacity == Opacity::XattrWhiteouts;
        let mut frame = Frame { names, lowers, xattr_whiteouts, opaque, gone: BTreeSet::new(), listed };
        if opaque && !frame.lowers.is_empty() {
            frame.gone = self.seen_names(&frame.lowers)?;
        }
        self.frames.push(frame);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let gone = self.frames.last_mut().map(|frame| std::mem::take(&mut frame.gone)).unwrap_or_default();
        for name in gone {
            self.note(ChangeKind::Delete, &name, None);
        }
        if let Some(frame) = self.frames.pop() {
            self.open = self.open.saturating_sub(frame.lowers.iter().filter(|l| l.directory.is_some()).count());
        }
        if self.frames.is_empty() {
            return Ok(());
        }
        self.upper.leave()?;
        self.reopen()
    }

    /// Opens the current frame's lower directories that were closed meanwhile.
    fn reopen(&mut self) -> Result<()> {
        if self.frames.len() < 2 {
            return Ok(());
        }
        let path = self.upper.path();
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        for lower in frame.lowers.iter_mut().filter(|lower| lower.directory.is_none()) {
            let Some(root) = self.tree.lowers.get(lower.index) else { continue };
            let mut parts = path.split(|byte| *byte == b'/');
            let first = open_directory(root, parts.next().unwrap_or_default());
            let directory = parts
                .try_fold(first, |at, part| Ok::<_, Errno>(open_directory(at?, part)))
                .and_then(std::convert::identity)
                .map_err(|error| Error::io("open lower", path, error))?;
            lower.directory = Some(directory);
            self.open = self.open.saturating_add(1);
        }
        Ok(())
    }

    /// Closes lower directories above the current one, outermost first, until `more` can be opened.
    fn make_room(&mut self, more: usize) {
        let above = self.frames.len().saturating_sub(1);
        for frame in self.frames.iter_mut().take(above) {
            if self.open.saturating_add(more) <= OPEN_LOWERS {
                break;
            }
            for lower in &mut frame.lowers {
                if lower.directory.take().is_some() {
                    self.open = self.open.saturating_sub(1);
                }
            }
        }
    }

    fn note(&mut self, kind: ChangeKind, name: &[u8], status: Option<&Metadata>) {
        list_parents(&mut self.frames, self.upper.path(), &mut self.found, |frame| &mut frame.listed);
        self.found.push(kind, self.upper.path(), name, status);
    }

    fn lower<'s>(&'s self, lower: &'s LowerDirectory) -> Result<BorrowedFd<'s>> {
        match (&lower.directory, self.tree.lowers.get(lower.index)) {
            (Some(directory), _) => Ok(directory.as_fd()),
            (None, Some(root)) => Ok(*root),
            (None, None) => Err(self.upper.error("open lower", Errno::BADF)),
        }
    }

    /// What was seen under that name before the upper layer.
    fn below(&self, name: &[u8]) -> Result<Below> {
        let Some(frame) = self.frames.last() else { return Ok(Below::Nothing) };
        let (parent, marks) = (self.upper.path(), self.marks);
        let mut merged: Option<(Vec<(usize, bool)>, Metadata)> = None;
        for (number, lower) in frame.lowers.iter().enumerate() {
            let directory = self.lower(lower)?;
            if marks.hides(directory, name, parent)? {
                break;
            }
            let Some(found) = status(directory, name, parent)? else { continue };
            if marks.is_whiteout(directory, name, parent, &found, lower.xattr_whiteouts)? {
                break;
            }
            if found.file_type != FileType::Directory {
                if merged.is_none() {
                    return Ok(Below::Object(number, found));
                }
                break;
            }
            let opacity = marks.opacity(directory, name, parent)?;
            let (numbers, _) = merged.get_or_insert_with(|| (Vec::new(), found));
            numbers.push((number, opacity == Opacity::XattrWhiteouts));
            if opacity == Opacity::Opaque {
                break;
            }
        }
        Ok(merged.map_or(Below::Nothing, |(numbers, found)| Below::Directories(numbers, found)))
    }

    /// The names that were seen in the current directory, of these lower directories.
    fn seen_names(&mut self, lowers: &[LowerDirectory]) -> Result<BTreeSet<Vec<u8>>> {
        let mut seen = BTreeSet::new();
        let mut hidden: BTreeSet<Vec<u8>> = BTreeSet::new();
        for lower in lowers {
            let path = self.upper.path();
            let directory = match (&lower.directory, self.tree.lowers.get(lower.index)) {
                (Some(directory), _) => directory.as_fd(),
                (None, Some(root)) => *root,
                (None, None) => continue,
            };
            // A descriptor of the caller's may not be open for reading, or be in use.
            let reading = open_directory(directory, b".").map_err(|error| Error::io("open lower", path, error))?;
            let names = read_sorted(&reading, &mut self.buffer).map_err(|e| Error::io("list lower", path, e))?;
            if self.marks == Marks::Aufs {
                for entry in &names {
                    if let Ok(Some(Whiteout::Remove(name))) = Whiteout::parse(&entry.name)
                        && !seen.contains(name)
                    {
                        hidden.insert(name.to_vec());
                    }
                }
            }
            for entry in names {
                if self.marks == Marks::Aufs && entry.name.starts_with(whiteout::PREFIX) {
                    continue;
                }
                if seen.contains(&entry.name) || hidden.contains(&entry.name) {
                    continue;
                }
                let Some(found) = status(directory, &entry.name, path)? else { continue };
                if self.marks.is_whiteout(directory, &entry.name, path, &found, lower.xattr_whiteouts)? {
                    hidden.insert(entry.name);
                } else {
                    seen.insert(entry.name);
                }
            }
        }
        Ok(seen)
    }

    /// One name of the upper directory.
    fn entry(&mut self, entry: &OwnedEntry) -> Result<()> {
        let name = entry.name.as_slice();
        let parent = self.upper.path();
        let Some(upper) = status(self.upper.directory()?, name, parent)? else { return Ok(()) };
        let (opaque, by_xattr) = match self.frames.last_mut() {
            Some(frame) => (frame.opaque, frame.xattr_whiteouts),
            None => (false, false),
        };
        if self.marks == Marks::Aufs {
            match Whiteout::parse(name) {
                Ok(None) if !self.marks.hides(self.upper.directory()?, name, parent)? => {}
                Ok(Some(Whiteout::Remove(removed))) => {
                    if !opaque && !matches!(self.below(removed)?, Below::Nothing) {
                        self.note(ChangeKind::Delete, removed, None);
                    }
                    return Ok(());
                }
                // AUFS's own, or nothing that it shows: the whiteout beside it speaks for it.
                _ => return Ok(()),
            }
        }
        if self.marks.is_whiteout(self.upper.directory()?, name, parent, &upper, by_xattr)? {
            // In an opaque directory it is among those that are gone anyway.
            if !opaque && !matches!(self.below(name)?, Below::Nothing) {
                self.note(ChangeKind::Delete, name, None);
            }
            return Ok(());
        }
        if let Some(frame) = self.frames.last_mut() {
            frame.gone.remove(name);
        }
        let below = self.below(name)?;
        let (before, number) = match &below {
            Below::Nothing => {
                self.note(ChangeKind::Add, name, Some(&upper));
                return self.go_in(name, &upper, Vec::new(), true);
            }
            Below::Object(number, before) => (before, *number),
            Below::Directories(numbers, before) => (before, numbers.first().map_or(0, |first| first.0)),
        };
        let different = match self.differs(name, number, before, &upper) {
            Err(error) if is_gone(&error) => {
                self.note(ChangeKind::Delete, name, None);
                return Ok(());
            }
            different => different?,
        };
        if different {
            self.note(ChangeKind::Modify, name, Some(&upper));
        }
        let numbers = if let Below::Directories(numbers, _) = below { numbers } else { Vec::new() };
        self.go_in(name, &upper, numbers, different)
    }

    fn differs(&mut self, name: &[u8], number: usize, before: &Metadata, upper: &Metadata) -> Result<bool> {
        let parent = self.upper.path();
        let Some(lower) = self.frames.last().and_then(|frame| frame.lowers.get(number)) else { return Ok(true) };
        let (lower, directory) = (self.lower(lower)?, self.upper.directory()?);
        let namespace = self.marks.namespace();
        let old = Object { directory: lower, status: before, mappings: self.tree.lower_mappings, namespace };
        let new = Object { directory, status: upper, mappings: self.tree.upper_mappings, namespace };
        if differ(&old, &new, parent, name)? {
            return Ok(true);
        }
        if upper.file_type != FileType::RegularFile || upper.size == 0 {
            return Ok(false);
        }
        // A copy without the content: that is the lower file's still.
        let marks = self.marks;
        if marks.get(directory, name, parent, b"metacopy")?.is_some() {
            return Ok(false);
        }
        Ok(!content::same(lower, directory, parent, name, upper.size)?)
    }

    /// Continues in a directory of the upper layer, if it is one; `numbers` are the lower directories under it.
    fn go_in(&mut self, name: &[u8], upper: &Metadata, numbers: Vec<(usize, bool)>, listed: bool) -> Result<()> {
        if upper.file_type != FileType::Directory {
            return Ok(());
        }
        let parent = self.upper.path();
        if self.marks.get(self.upper.directory()?, name, parent, b"redirect")?.is_some() {
            let what = "reading an overlay's upper directory with renamed directories (redirect_dir=on)".to_owned();
            return Err(Error::Unsupported { what, path: self.upper.join(name) });
        }
        let opacity = self.marks.opacity(self.upper.directory()?, name, parent)?;
        let parent_opaque = self.frames.last().is_some_and(|frame| frame.opaque);
        self.make_room(numbers.len());
        let mut lowers = Vec::with_capacity(numbers.len());
        for (number, xattr_whiteouts) in numbers {
            let Some(lower) = self.frames.last().and_then(|frame| frame.lowers.get(number)) else { continue };
            let directory = open_directory(self.lower(lower)?, name)
                .map_err(|error| Error::io("open lower", self.upper.join(name), error))?;
            lowers.push(LowerDirectory { index: lower.index, directory: Some(directory), xattr_whiteouts });
        }
        match self.upper.enter(name) {
            Err(error) if is_gone(&error) => return Ok(()),
            entered => entered?,
        }
        self.open = self.open.saturating_add(lowers.len());
        self.open_frame(lowers, opacity, parent_opaque || opacity == Opacity::Opaque, listed)
    }
}
