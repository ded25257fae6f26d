//! Making an archive of a tree, or of what changed in one.
//!
//! What is written is what containers/storage 1.64 writes of the same tree, byte for byte: members in the order of a walk
//! that goes into each directory at once and takes names sorted by bytes; directories with a slash at the end; no member
//! for the root; ustar where it suffices and PAX where not; whole seconds; further names of an inode as hard links to the
//! first. It differs where containers/storage loses something: an error while reading is an error and not a missing
//! member, whiteouts are converted before owners are mapped, and inodes are told apart by device too.

mod filter;
mod lower;
mod member;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use graph_sys::fs::{FileType, Mode, OFlags};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;

use crate::apply::XattrNamespace;
use crate::changes::{Change, ChangeKind};
use crate::entry::Timestamp;
use crate::error::{Error, Result};
use crate::idmap::IdMappings;
use crate::overlay::Opacity;
use crate::tar::EncodeOptions;
use crate::walk::{Descent, is_gone};
use crate::whiteout;
use filter::Filter;
use member::{Members, Place};

/// In which form the tree states what lower layers lose.
#[derive(Debug, Default)]
pub enum WhiteoutSource<'a> {
    /// It is a plain tree: everything in it is archived as it is.
    #[default]
    None,
    /// It is a directory of a kernel overlay: its whiteouts and opaque directories are translated.
    Overlay {
        /// Where the overlay keeps its own attributes.
        namespace: XattrNamespace,
        /// The layers below, nearest first. A directory marked opaque only gets a `.wh..wh..opq` if one of them has
        /// something of its name, for the kernel marks every new directory.
        lowers: Vec<BorrowedFd<'a>>,
    },
    /// It is a branch of AUFS: whiteouts are files named `.wh.*` already, AUFS's own files are left out.
    Aufs,
}

/// How a tree is archived. The default is the whole tree, as it is, with the ids on disk.
#[derive(Debug, Default)]
pub struct PackOptions<'a> {
    /// From container ids to those on disk. Members get container ids; an owner that no range covers is an error.
    pub mappings: IdMappings,
    /// Paths below the root; where there are any, only they and what is in them is archived, in this order.
    pub include: Vec<Vec<u8>>,
    /// Patterns of paths that are left out with all that is in them: `*`, `?` and `[a-z]` within a component, `**` for
    /// any number of components, `\` before a character that means itself. The last pattern that fits decides; one that
    /// begins with `!` brings paths back.
    pub exclude: Vec<Vec<u8>>,
    /// Write a member `./` for the root, and `./` before every name.
    pub root: bool,
    /// In which form the tree states what lower layers lose.
    pub whiteouts: WhiteoutSource<'a>,
    /// Nanoseconds and holes.
    pub encode: EncodeOptions,
    /// Later modification times are set back to this one.
    pub latest: Option<Timestamp>,
    /// Modification time of the whiteouts that [`pack_changes`] makes.
    pub deletion_time: Timestamp,
}

/// What was archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackReport {
    /// Members.
    pub entries: u64,
    /// Sum of the sizes of regular files.
    pub content_bytes: u64,
    /// Things that could not be archived and why, one sentence each, each kind once.
    pub notices: Vec<String>,
}

/// Writes an archive of the tree at `root` to `out`, with the two zero blocks at its end, and flushes it.
///
/// Objects that vanish between being listed and being read are left out. Nothing but regular files and directories is ever
/// opened, whatever others put under their names meanwhile.
///
/// # Errors
/// [`Error::Unmapped`], I/O errors with the path concerned (a file that shrinks while it is read is one), and what the
/// encoder refuses. What has been written is the beginning of an archive then.
pub fn pack_tree<W: Write>(root: BorrowedFd<'_>, out: W, options: &PackOptions<'_>) -> Result<PackReport> {
    let mut pack = Walk {
        descent: Descent::new(root)?,
        members: Members::new(BufWriter::with_capacity(256 << 10, out), options),
        filter: Filter::new(&options.exclude),
        seen: HashSet::new(),
        buffer: DirBuffer::new(),
        frames: Vec::new(),
    };
    if options.root {
        pack.members.root(pack.descent.directory()?)?;
    }
    if options.include.is_empty() {
        pack.open_frame(None)?;
        pack.run()?;
    } else {
        for path in &options.include {
            pack.include(path)?;
        }
    }
    pack.members.finish()
}

struct Walk<'a, W: Write> {
    descent: Descent,
    members: Members<'a, W>,
    filter: Filter,
    /// With an include list: paths archived already.
    seen: HashSet<Vec<u8>>,
    buffer: DirBuffer,
    frames: Vec<Frame>,
}

struct Frame {
    names: VecDeque<OwnedEntry>,
    /// Whiteouts in it may have the form of files with an attribute.
    xattr_whiteouts: bool,
}

impl<W: Write> Walk<'_, W> {
    /// Begins with the current directory; `only` one name of it.
    fn open_frame(&mut self, only: Option<&[u8]>) -> Result<()> {
        let mut names: VecDeque<_> = self.descent.list(&mut self.buffer)?.into();
        if matches!(self.members.options.whiteouts, WhiteoutSource::Aufs) {
            // AUFS shows nothing under a name that has a whiteout beside it.
            let gone: HashSet<Vec<u8>> = names
                .iter()
                .filter_map(|entry| entry.name.strip_prefix(whiteout::PREFIX))
                .map(<[u8]>::to_vec)
                .collect();
            names.retain(|entry| !gone.contains(&entry.name));
        }
        if let Some(only) = only {
            names.retain(|entry| entry.name == only);
        }
        let xattr_whiteouts = match self.members.marks() {
            Some(marks) => {
                let path = self.descent.path();
                marks.opacity(self.descent.directory()?, b".", path)? == Opacity::XattrWhiteouts
            }
            None => false,
        };
        self.frames.push(Frame { names, xattr_whiteouts });
        Ok(())
    }

    /// Archives what the open frames hold.
    fn run(&mut self) -> Result<()> {
        while let Some(frame) = self.frames.last_mut() {
            let Some(entry) = frame.names.pop_front() else {
                self.frames.pop();
                if !self.frames.is_empty() {
                    self.descent.leave()?;
                }
                continue;
            };
            let xattr_whiteouts = frame.xattr_whiteouts;
            self.entry(&entry, xattr_whiteouts)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &OwnedEntry, xattr_whiteouts: bool) -> Result<()> {
        let name = entry.name.as_slice();
        let path = self.descent.join(name);
        let left_out = self.filter.excludes(&path);
        if left_out && !self.filter.brings_back() {
            return Ok(());
        }
        let again = !self.members.options.include.is_empty() && !self.seen.insert(path.clone());
        let directory = self.descent.directory()?;
        let is_directory = if left_out || again {
            self.members.is_directory(directory, name, &path)?
        } else {
            let maybe_file = matches!(entry.file_type, FileType::RegularFile | FileType::Unknown);
            self.members.object(Place { directory, name, path: &path, xattr_whiteouts, maybe_file })?
        };
        if is_directory {
            match self.descent.enter(name) {
                Ok(()) => self.open_frame(None)?,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Archives one path of the include list and what is in it.
    fn include(&mut self, path: &[u8]) -> Result<()> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).peekable();
        let mut depth = 0_usize;
        let mut last = None;
        while let Some(part) = parts.next() {
            if part == b".." {
                return Err(Error::input(path, 0, crate::Defect::Escapes));
            }
            if parts.peek().is_none() {
                last = Some(part);
                break;
            }
            self.descent.enter(part)?;
            depth = depth.saturating_add(1);
        }
        self.open_frame(last)?;
        if last.is_some() && self.frames.last().is_some_and(|frame| frame.names.is_empty()) {
            return Err(Error::io("open", path, Errno::NOENT));
        }
        self.run()?;
        for _ in 0..depth {
            self.descent.leave()?;
        }
        Ok(())
    }
}

/// Writes an archive of `changes`, as [`crate::changes::compare`] found them in the tree at `root`, to `out`: a whiteout
/// for what is gone, a member for everything else, sorted by path. [`PackOptions::include`], [`PackOptions::root`] and
/// [`PackOptions::whiteouts`] mean nothing here.
///
/// # Errors
/// As [`pack_tree`].
pub fn pack_changes<W: Write>(
    root: BorrowedFd<'_>,
    changes: &[Change],
    out: W,
    options: &PackOptions<'_>,
) -> Result<PackReport> {
    let owned = root.try_clone_to_owned().map_err(|error| Error::io("open", b".".as_slice(), error))?;
    let root = RootDir::from_fd(owned);
    let filter = Filter::new(&options.exclude);
    let mut members = Members::new(BufWriter::with_capacity(256 << 10, out), options);
    let mut sorted: Vec<&Change> = changes.iter().collect();
    sorted.sort_unstable();
    let mut parent: Option<(Vec<u8>, OwnedFd)> = None;
    for change in sorted {
        let path = change.path.strip_prefix(b"/").unwrap_or(&change.path);
        if path.is_empty() || filter.excludes(path) {
            continue;
        }
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let above = cut.and_then(|cut| path.get(..cut)).unwrap_or_default();
        let name = cut.and_then(|cut| path.get(cut.saturating_add(1)..)).unwrap_or(path);
        if change.kind == ChangeKind::Delete {
            members.whiteout(path, name)?;
            continue;
        }
        let directory = match parent.take() {
            Some(known) if known.0 == above => known,
            _ => match root.open_beneath(above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
                Ok(directory) => (above.to_vec(), directory),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(Error::io("open", above, error)),
            },
        };
        let at = directory.1.as_fd();
        members.object(Place { directory: at, name, path, xattr_whiteouts: false, maybe_file: true })?;
        parent = Some(directory);
    }
    members.finish()
}

/// Each notice once, sorted.
pub(crate) type Notices = BTreeSet<String>;
