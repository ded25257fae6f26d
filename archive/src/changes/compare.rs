//! Two trees, walked together.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use graph_sys::fs::FileType;
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::statx;

use super::status::{Collector, Object, differ, status};
use super::{ChangeKind, ChangeSet};
use crate::error::{Error, Result};
use crate::idmap::IdMappings;
use crate::walk::{Descent, is_gone};

/// A tree to compare.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    /// Its root directory.
    pub root: BorrowedFd<'a>,
    /// From container ids to the ids on disk.
    pub mappings: &'a IdMappings,
}

/// What changed from `old` to `new`; without `old` everything is an Add.
///
/// Memory is that of the listings of the directories on the way from the root to the one being looked at, and of the
/// result. A name that stands for the same inode of the same device in both trees is not looked into. Objects that
/// vanish meanwhile are taken as gone.
///
/// # Errors
/// I/O errors with the path concerned.
pub fn compare(old: Option<Tree<'_>>, new: Tree<'_>) -> Result<ChangeSet> {
    let mut walk = Walk {
        old: old.map(|tree| Ok::<_, Error>((Descent::new(tree.root)?, tree.mappings))).transpose()?,
        new: Descent::new(new.root)?,
        mappings: new.mappings,
        frames: Vec::new(),
        buffer: DirBuffer::new(),
        found: Collector::default(),
    };
    walk.open_frame(old.is_some(), true)?;
    while let Some(frame) = walk.frames.last_mut() {
        let order = match (frame.old.front(), frame.new.front()) {
            (None, None) => {
                walk.leave()?;
                continue;
            }
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.name.cmp(&new.name),
        };
        let gone = if order.is_le() { frame.old.pop_front() } else { None };
        let come = if order.is_ge() { frame.new.pop_front() } else { None };
        walk.pair(gone, come)?;
    }
    Ok(walk.found.finish())
}

/// One directory on the way.
#[derive(Debug)]
struct Frame {
    old: VecDeque<OwnedEntry>,
    new: VecDeque<OwnedEntry>,
    /// The directory is there in the old tree too.
    in_old: bool,
    /// Device of both directories, if they are on the same.
    device: Option<u64>,
    /// The directory is in the list of changes already, or is the root.
    listed: bool,
}

struct Walk<'a> {
    old: Option<(Descent, &'a IdMappings)>,
    new: Descent,
    mappings: &'a IdMappings,
    frames: Vec<Frame>,
    buffer: DirBuffer,
    found: Collector,
}

impl Walk<'_> {
    fn open_frame(&mut self, in_old: bool, listed: bool) -> Result<()> {
        let new: VecDeque<_> = self.new.list(&mut self.buffer)?.into();
        let mut frame = Frame { old: VecDeque::new(), new, in_old, device: None, listed };
        if let (true, Some((old, _))) = (in_old, &self.old) {
            frame.old = old.list(&mut self.buffer)?.into();
            let device = |tree: &Descent| {
                statx::metadata(tree.directory()?, b"").map_err(|error| tree.error("stat", error)).map(|s| s.device)
            };
            let (a, b) = (device(old)?, device(&self.new)?);
            frame.device = (a == b).then_some(a);
        }
        self.frames.push(frame);
        Ok(())
    }

    fn leave(&mut self) -> Result<()> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if self.frames.is_empty() {
            return Ok(());
        }
        self.new.leave()?;
        match &mut self.old {
            Some((old, _)) if frame.in_old => old.leave(),
            _ => Ok(()),
        }
    }

    /// Notes a change in the current directory, after the directories above it.
    fn note(&mut self, kind: ChangeKind, name: &[u8], status: Option<&statx::Metadata>) {
        list_parents(&mut self.frames, self.new.path(), &mut self.found, |frame| &mut frame.listed);
        self.found.push(kind, self.new.path(), name, status);
    }

    /// One name, in one of the trees or in both.
    fn pair(&mut self, old: Option<OwnedEntry>, new: Option<OwnedEntry>) -> Result<()> {
        let Some(new_entry) = new else {
            if let Some(old) = old {
                self.note(ChangeKind::Delete, &old.name, None);
            }
            return Ok(());
        };
        let name = new_entry.name.as_slice();
        let device = self.frames.last().and_then(|frame| frame.device);
        let same_inode = device.is_some() && old.as_ref().is_some_and(|old| old.inode == new_entry.inode);
        if same_inode && new_entry.file_type != FileType::Directory {
            return Ok(());
        }
        let new_status = status(self.new.directory()?, name, self.new.path())?;
        let old_status = match (&old, &self.old) {
            (Some(_), Some((tree, _))) => status(tree.directory()?, name, tree.path())?,
            _ => None,
        };
        let Some(new_status) = new_status else {
            if old_status.is_some() {
                self.note(ChangeKind::Delete, name, None);
            }
            return Ok(());
        };
        let (Some(old_status), Some((old_tree, old_mappings))) = (old_status, &self.old) else {
            self.note(ChangeKind::Add, name, Some(&new_status));
            return self.go_in(name, &new_status, false, true);
        };
        // A directory's number in its parent is another one's where something is mounted on it.
        if same_inode && (old_status.device, old_status.inode) == (new_status.device, new_status.inode) {
            return Ok(());
        }
        let old_object =
            Object { directory: old_tree.directory()?, status: &old_status, mappings: old_mappings, namespace: None };
        let new_object =
            Object { directory: self.new.directory()?, status: &new_status, mappings: self.mappings, namespace: None };
        let different = match differ(&old_object, &new_object, self.new.path(), name) {
            Err(error) if is_gone(&error) => {
                self.note(ChangeKind::Delete, name, None);
                return Ok(());
            }
            different => different?,
        };
        if different {
            self.note(ChangeKind::Modify, name, Some(&new_status));
        }
        self.go_in(name, &new_status, old_status.file_type == FileType::Directory, different)
    }

    /// Continues in a directory, if it is one and still there.
    fn go_in(&mut self, name: &[u8], status: &statx::Metadata, in_old: bool, listed: bool) -> Result<()> {
        if status.file_type != FileType::Directory {
            return Ok(());
        }
        match self.new.enter(name) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        if in_old && let Some((old, _)) = &mut self.old {
            old.enter(name)?;
        }
        self.open_frame(in_old, listed)
    }
}

/// Lists as Modify all directories on the way to the current one, of path `path`, that are not listed yet.
pub(super) fn list_parents<F>(
    frames: &mut [F],
    path: &[u8],
    found: &mut Collector,
    listed: impl Fn(&mut F) -> &mut bool,
) {
    let mut path = path;
    for frame in frames.iter_mut().rev() {
        // Whoever is listed had its parents listed.
        if std::mem::replace(listed(frame), true) {
            break;
        }
        found.push_path(ChangeKind::Modify, [b"/", path].concat());
        path = path.iter().rposition(|byte| *byte == b'/').and_then(|end| path.get(..end)).unwrap_or_default();
    }
}
