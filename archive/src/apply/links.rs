//! Hard links: to members before and after them, and to files of lower layers.
//!
//! A link is one more name of its target's inode, and states owner, mode and times of that inode anew, as in every engine
//! (containers/storage, moby and containerd set what the link's header says; GNU tar and bsdtar do not, but write headers
//! that agree). Extended attributes are added, never taken off: archivers leave them out of links. A link before its target
//! is followed by the target's own statement, which wins.
//! A target is a path inside the root, like a member's name; its last component is not followed, so a link to a symbolic
//! link links that. In the overlay form a target of a lower layer is copied up first, as the kernel does on a mounted
//! overlay, and then both names are one inode. Other names of the target in lower layers stay as they are, also in a plain
//! tree, where the target is copied for that.

use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType};
use graph_sys::io::Errno;

use super::attributes::{Handle, open_path};
use super::dirs::Dir;
use super::engine::{Engine, Seen, Walk};
use super::names::{clean, split};
use super::remove::remove;
use crate::entry::Entry;
use crate::error::{Defect, Error, Result};

/// Bytes of names that links to later members may keep in memory. Real layers hardly have any.
const WAITING_BYTES: u64 = 8 << 20;

/// Passes over the waiting links, alternately from the front and from the back, so that links to links find each other.
const PASSES: usize = 64;

const CAPABILITY: &[u8] = b"security.capability";

/// Links whose targets have not come yet.
#[derive(Debug, Default)]
pub(super) struct Links {
    waiting: Vec<Waiting>,
    bytes: u64,
    /// Makes temporary names differ.
    counter: u64,
}

#[derive(Debug)]
struct Waiting {
    path: Vec<u8>,
    target: Vec<u8>,
    name: Vec<u8>,
    offset: u64,
}

/// What became of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Linked {
    Done,
    TargetMissing,
}

impl Engine<'_> {
    /// Makes `name` in `dir` another name of the member's target, now or at the end of the layer.
    pub(super) fn hard_link(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> Result<()> {
        let target = clean(&entry.link_target).map_err(|defect| self.input(&entry.path, defect))?.path;
        dir.prepare(self.gid)?;
        if self.link(dir, name, &target, &entry.path, true)? == Linked::Done {
            return self.restate_by_link(dir, name, entry);
        }
        // Whatever is at this name now would have been replaced. What comes to be there later replaces the link.
        let path = dir.child(name);
        self.leave_out(dir, name, &path)?;
        let bytes = (path.len() as u64)
            .saturating_add(target.len() as u64)
            .saturating_add(entry.path.len() as u64)
            .saturating_add(size_of::<Waiting>() as u64);
        self.links.bytes = self.links.bytes.saturating_add(bytes);
        if self.links.bytes > WAITING_BYTES {
            return Err(Error::Limit {
                limit: "memory for hard links to later members",
                maximum: WAITING_BYTES,
                found: self.links.bytes,
                entry: entry.path.clone(),
                offset: self.offset,
            });
        }
        self.links.waiting.push(Waiting { path, target, name: entry.path.clone(), offset: self.offset });
        Ok(())
    }

    /// Sets what the link states on the inode that it is a name of now, where that differs.
    fn restate_by_link(&mut self, dir: &Rc<Dir>, name: &[u8], entry: &Entry) -> Result<()> {
        // What the file should have been is an attribute of the target's member then.
        if self.options.force_mask.is_some() {
            return Ok(());
        }
        let wanted = self.translate(&entry.metadata, entry.kind, &entry.path)?;
        let Some(stat) = self.stat(dir, name)? else { return Ok(()) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let chown = (stat.st_uid, stat.st_gid) != (wanted.owner.uid, wanted.owner.gid);
        let settable = kind != FileType::Symlink;
        // A change of owner takes setuid bits and capabilities off.
        let chmod = settable && (chown || stat.st_mode & 0o7777 != wanted.mode.as_raw_mode());
        let time = &wanted.times.modification;
        let touch = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).ok()) != (time.tv_sec, Some(time.tv_nsec));
        if chown || chmod || !wanted.xattrs.is_empty() {
            let file = Handle::Path(open_path(dir, name)?);
            let capability = if chown && kind == FileType::RegularFile { file.get(CAPABILITY).ok() } else { None };
            if chown {
                self.chown(&file, wanted.owner, &entry.path)?;
            }
            if chmod {
                file.chmod(wanted.mode).map_err(|error| Error::io("change mode of", entry.path.as_slice(), error))?;
            }
            if let Some(value) = capability {
                self.set_xattrs(&file, &[(CAPABILITY.to_vec(), value)], &entry.path)?;
            }
            self.set_xattrs(&file, &wanted.xattrs, &entry.path)?;
        }
        if touch {
            fs::utimensat(&**dir, name, &wanted.times.stamps(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| Error::io("set times of", dir.child(name), error))?;
        }
        Ok(())
    }

    fn link(&mut self, dir: &Rc<Dir>, name: &[u8], target: &[u8], member: &[u8], replace: bool) -> Result<Linked> {
        if target.is_empty() {
            return Err(self.input(member, Defect::LinkToDirectory));
        }
        let (parent, last) = split(target);
        let from = match self.walk(parent, Walk::Look, member)? {
            None => return Ok(Linked::TargetMissing),
            Some(Seen::Here(located)) => {
                if self.overlay.is_some() {
                    match self.stat(&located.dir, last)? {
                        Some(stat) if self.is_whiteout(&located.dir, last, &stat)? => return Ok(Linked::TargetMissing),
                        Some(_) => self.part(&located.dir, last)?,
                        None => match self.below(&located.dir, last)? {
                            None => return Ok(Linked::TargetMissing),
                            Some(found) if found.is_dir() => {
                                return Err(self.input(member, Defect::LinkToDirectory));
                            }
                            Some(found) => self.copy_up_file(&located.dir, last, &found)?,
                        },
                    }
                } else {
                    self.part(&located.dir, last)?;
                }
                located.dir
            }
            Some(Seen::Below(path)) => {
                let found = match &mut self.overlay {
                    Some(overlay) => overlay.lowers.find(&path, last)?,
                    None => None,
                };
                match found {
                    None => return Ok(Linked::TargetMissing),
                    Some(found) if found.is_dir() => return Err(self.input(member, Defect::LinkToDirectory)),
                    Some(found) => {
                        let dir = self.made(&path, member)?;
                        self.copy_up_file(&dir, last, &found)?;
                        dir
                    }
                }
            }
        };
        if from.path == dir.path && last == name {
            // A link to itself: there already, or never.
            return match self.stat(dir, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                None => Ok(Linked::TargetMissing),
                Some(FileType::Directory) => Err(self.input(member, Defect::LinkToDirectory)),
                Some(_) => Ok(Linked::Done),
            };
        }
        let path = dir.child(name);
        match fs::linkat(&*from, last, &**dir, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(Linked::TargetMissing),
            Err(Errno::EXIST) if !replace => return Ok(Linked::Done),
            Err(Errno::EXIST) => self.link_over(&from, last, dir, name, &path, member)?,
            Err(error) => return Err(self.link_failed(&from, last, &path, member, error)?),
        }
        self.make_ours(dir, &path)?;
        self.note_content(&path, false);
        Ok(Linked::Done)
    }

    /// Replaces what is at the name. The target may lie in what is replaced, so it is linked beside it first.
    fn link_over(
        &mut self,
        from: &Rc<Dir>,
        last: &[u8],
        dir: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        member: &[u8],
    ) -> Result<()> {
        let temporary = loop {
            let temporary = self.temporary_name();
            match fs::linkat(&**from, last, &**dir, &temporary, AtFlags::empty()) {
                Ok(()) => break temporary,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(self.link_failed(from, last, path, member, error)?),
            }
        };
        let temporary_path = dir.child(&temporary);
        if let Err(error) = self.vacate(dir, name, path) {
            remove(&**dir, &temporary, &temporary_path, AtFlags::empty())?;
            return Err(error);
        }
        fs::renameat(&**dir, &temporary, &**dir, name).map_err(|error| Error::io("link", path, error))
    }

    /// A name that nothing in the tree has, unless an archive guesses it.
    pub(super) fn temporary_name(&mut self) -> Vec<u8> {
        self.links.counter = self.links.counter.wrapping_add(1);
        format!(".graph-link-{}-{}", std::process::id(), self.links.counter).into_bytes()
    }

    fn link_failed(&self, from: &Rc<Dir>, last: &[u8], path: &[u8], member: &[u8], error: Errno) -> Result<Error> {
        let stat = self.stat(from, last)?;
        if stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
            return Ok(self.input(member, Defect::LinkToDirectory));
        }
        Ok(Error::io("link", path, error))
    }

    /// Makes the links that waited.
    pub(super) fn finish_links(&mut self) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.links.waiting);
        for _ in 0..PASSES {
            let before = waiting.len();
            let mut left = Vec::new();
            for link in waiting {
                self.offset = link.offset;
                if self.link_now(&link)? == Linked::TargetMissing {
                    left.push(link);
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            let stuck = left.len() == before;
            left.reverse();
            waiting = left;
            if stuck {
                break;
            }
        }
        let Some(first) = waiting.iter().min_by_key(|link| link.offset) else { return Ok(()) };
        Err(Error::input(first.name.as_slice(), first.offset, Defect::MissingLinkTarget))
    }

    fn link_now(&mut self, link: &Waiting) -> Result<Linked> {
        let (parent, name) = split(&link.path);
        // A directory that later members removed took the link with it.
        let Some(Seen::Here(located)) = self.walk(parent, Walk::Look, &link.name)? else { return Ok(Linked::Done) };
        if located.by_link {
            return Ok(Linked::Done);
        }
        let dir = located.dir;
        dir.prepare(self.gid)?;
        let path = dir.child(name);
        match self.stat(&dir, name)? {
            None => {}
            // The whiteout that the link left in its place.
            Some(stat) if self.is_whiteout(&dir, name, &stat)? => {
                let linked = self.link(&dir, name, &link.target, &link.name, true)?;
                return Ok(linked);
            }
            Some(_) => return Ok(Linked::Done),
        }
        let linked = self.link(&dir, name, &link.target, &link.name, false)?;
        if linked == Linked::Done {
            self.make_ours(&dir, &path)?;
        }
        Ok(linked)
    }
}
