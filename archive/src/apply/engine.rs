//! The model of one layer being applied: what is whose, and what each member does.
//!
//! All forms of trees are made by the same code. It asks three questions: what is at a path as the layers up to this
//! one show it, was that made by this layer, and what must be taken away. In the plain form all is in one tree; in the
//! overlay and AUFS forms the tree holds this layer alone, [`Lowers`] answers for what is below, and what is to vanish there
//! gets a whiteout or an opaque mark. An overlay's whiteout has the name of what is gone, so that something is in the way of
//! whatever takes the name again; AUFS's lies beside it, and goes when the name is taken ([`Engine::make_ours`]).
//!
//! What is whose: things made or stated by this layer are *ours*, all else in the tree belongs to lower layers (or, in
//! the overlay form, was copied up from them, or is a whiteout). Whiteouts remove what is not ours, so it does not matter
//! where they stand among the layer's own members. Since nearly everything in a directory that this layer made is ours
//! (the directory is *fresh*), only what it put into older directories is remembered one by one, and the exceptions are:
//!
//! ```text
//!   ours(path)  =  path is not foreign  and  (its directory is fresh  or  path is touched)
//! ```

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use graph_sys::io::Errno;

use super::attributes::Attributes;
use super::create::Writing;
use super::dirs::{Dir, Dirs, Opened};
use super::links::Links;
use super::lower::{Found, Lowers, is_whiteout};
use super::names::{PathSet, clean, join, push, split};
use super::options::{ApplyOptions, Style, WhiteoutForm};
use super::{ApplyReport, ContentPlace};
use crate::entry::{Entry, EntryKind};
use crate::error::{Defect, Error, Result};
use crate::overlay::Marks;
use crate::whiteout::{PREFIX, Whiteout};

/// Symbolic links followed in one name, as many as the kernel follows.
const SYMLINKS: u32 = 40;

/// The longest name that AUFS shows in bytes (its `f_namemax`): `.wh.` and room for temporary names come before it.
const AUFS_NAME_MAX: usize = 242;

/// Directories on the way to a name that are opened one by one; with more it is tried to open the last at once.
const STEPS: usize = 2;

/// What the overlay and AUFS forms need beside the tree.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) marks: Marks,
    /// Of an overlay.
    pub(super) form: WhiteoutForm,
    pub(super) lowers: Lowers,
    pub(super) lowers_unknown: bool,
}

/// One layer being applied.
#[derive(Debug)]
pub(super) struct Engine<'o> {
    pub(super) options: ApplyOptions<'o>,
    pub(super) overlay: Option<Overlay>,
    pub(super) root: Rc<Dir>,
    pub(super) dirs: Dirs,
    pub(super) touched: PathSet,
    pub(super) foreign: PathSet,
    /// Directories that this layer made in directories that are not fresh.
    fresh: PathSet,
    pub(super) opaque: PathSet,
    /// Names that AUFS's whiteouts were written for.
    pub(super) whited_out: PathSet,
    /// There was something in the tree before, and so there may be whiteouts of AUFS that nobody remembers.
    was_filled: bool,
    /// Names whose content the observer has, or of which it has none: sparse members, those reached through links, and
    /// hard links, which share another name's. One header makes any of them as big as the disk.
    pub(super) unwanted: PathSet,
    pub(super) links: Links,
    /// Bytes of files of lower layers that were copied.
    pub(super) copied: u64,
    pub(super) implied: Option<Attributes>,
    /// Directories made that nobody states: one short member can ask for thousands.
    pub(super) implied_count: u64,
    pub(super) report: ApplyReport,
    uids: HashSet<u32>,
    gids: HashSet<u32>,
    notices: HashSet<&'static str>,
    /// Owner of what this process makes.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Mode bits that this process's files do not get.
    pub(super) umask: Mode,
    /// Offset of the member at hand, for messages.
    pub(super) offset: u64,
    /// The parent directory of the last member: its clean path, and where that led.
    last: Option<(Vec<u8>, Located)>,
    root_stated: bool,
}

/// A directory found by its path.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) dir: Rc<Dir>,
    /// A symbolic link was followed on the way.
    pub(super) by_link: bool,
}

/// A directory as seen through the layers.
#[derive(Debug)]
pub(super) enum Seen {
    Here(Located),
    /// The path of a directory that only lower layers have (overlay only).
    Below(Vec<u8>),
}

/// Whether missing directories are made on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    Look,
    Create,
}

/// What a member came to.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(ContentPlace),
    /// A file that waits for its content.
    File(Writing, ContentPlace),
}

impl<'o> Engine<'o> {
    pub(super) fn new(root: BorrowedFd<'_>, mut options: ApplyOptions<'o>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(root, ".", flags, Mode::empty()).map_err(|error| Error::io("open", b"/", error))?;
        let empty = is_empty(&fd)?;
        let overlay = match std::mem::take(&mut options.style) {
            Style::Plain => None,
            Style::Overlay(overlay) => Some(Overlay {
                marks: Marks::Overlay(overlay.namespace),
                form: overlay.whiteout,
                lowers: Lowers::new(Marks::Overlay(overlay.namespace), overlay.lowers),
                lowers_unknown: overlay.lowers_unknown,
            }),
            Style::Aufs(aufs) => Some(Overlay {
                marks: Marks::Aufs,
                form: WhiteoutForm::default(),
                lowers: Lowers::new(Marks::Aufs, aufs.lowers),
                lowers_unknown: false,
            }),
        };
        let mut engine = Self {
            options,
            overlay,
            root: Rc::new(Dir::new(Vec::new(), fd, empty, false)),
            dirs: Dirs::new(),
            touched: PathSet::default(),
            foreign: PathSet::default(),
            fresh: PathSet::default(),
            opaque: PathSet::default(),
            whited_out: PathSet::default(),
            was_filled: !empty,
            unwanted: PathSet::default(),
            links: Links::default(),
            copied: 0,
            implied: None,
            implied_count: 0,
            report: ApplyReport::default(),
            uids: HashSet::new(),
            gids: HashSet::new(),
            notices: HashSet::new(),
            uid: graph_sys::process::geteuid().as_raw(),
            gid: graph_sys::process::getegid().as_raw(),
            umask: super::process::umask(),
            offset: 0,
            last: None,
            root_stated: false,
        };
        engine.root.prepare(engine.gid)?;
        if empty && engine.overlay.as_ref().is_some_and(|overlay| !overlay.lowers.is_empty()) {
            engine.copy_up_root()?;
        }
        Ok(engine)
    }

    /// Adds a sentence to the report, once for each `kind`.
    pub(super) fn notice(&mut self, kind: &'static str, sentence: impl FnOnce() -> String) {
        if self.notices.insert(kind) {
            self.report.notices.push(sentence());
        }
    }

    pub(super) fn input(&self, name: &[u8], defect: Defect) -> Error {
        Error::input(name, self.offset, defect)
    }

    // ---- members ----

    pub(super) fn member(&mut self, entry: &Entry) -> Result<Outcome> {
        self.offset = entry.offset;
        self.report.entries = self.report.entries.saturating_add(1);
        if entry.kind == EntryKind::File {
            self.report.content_bytes = self.report.content_bytes.saturating_add(entry.size);
        }
        let name = clean(&entry.path).map_err(|defect| self.input(&entry.path, defect))?;
        match self.whiteout(&name.path, &entry.path)? {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(()) => return Ok(Outcome::Done(ContentPlace::Nowhere)),
        }
        if self.is_aufs() && name.path.split(|byte| *byte == b'/').any(|part| part.len() > AUFS_NAME_MAX) {
            return Err(self.input(&entry.path, Defect::NameTooLongForAufs));
        }
        self.uids.insert(entry.metadata.uid);
        self.gids.insert(entry.metadata.gid);
        if name.path.is_empty() {
            if entry.kind != EntryKind::Directory {
                return Err(self.input(&entry.path, Defect::InvalidRoot));
            }
            self.state_root(entry)?;
            return Ok(Outcome::Done(ContentPlace::Nowhere));
        }
        let (parent, last) = split(&name.path);
        let parent = self.parent(parent, &entry.path)?;
        // Other readers may resolve such names to another place, and links may be gone when the file is looked for.
        let place = if parent.by_link || name.climbs || entry.sparse.is_some() {
            ContentPlace::Nowhere
        } else {
            ContentPlace::OnDisk
        };
        match self.create(&parent.dir, last, entry)? {
            Some(file) => {
                self.note_content(file.path(), place == ContentPlace::OnDisk);
                Ok(Outcome::File(file, place))
            }
            None => Ok(Outcome::Done(ContentPlace::OnDisk)),
        }
    }

    /// Carries out a whiteout, or says to go on.
    fn whiteout(&mut self, path: &[u8], name: &[u8]) -> Result<ControlFlow<()>> {
        // Few names have the prefix anywhere.
        if !path.windows(PREFIX.len()).any(|window| window == PREFIX) {
            return Ok(ControlFlow::Continue(()));
        }
        let (parent, last) = split(path);
        for component in parent.split(|byte| *byte == b'/') {
            let ancestor = Whiteout::parse_ancestor(component).map_err(|defect| self.input(name, defect))?;
            if ancestor.is_some() {
                return Ok(ControlFlow::Break(()));
            }
        }
        match Whiteout::parse(last).map_err(|defect| self.input(name, defect))? {
            None => return Ok(ControlFlow::Continue(())),
            Some(Whiteout::AufsMetadata) => {}
            Some(Whiteout::Remove(removed)) => self.remove_below(parent, removed, name)?,
            Some(Whiteout::Opaque) => self.make_opaque(parent, name)?,
        }
        Ok(ControlFlow::Break(()))
    }

    fn parent(&mut self, path: &[u8], name: &[u8]) -> Result<Located> {
        if let Some((last, located)) = &self.last
            && last == path
        {
            return Ok(located.clone());
        }
        self.last = None;
        match self.walk(path, Walk::Create, name)? {
            Some(Seen::Here(located)) => {
                // A symbolic link of a lower layer may be hidden at any moment by what takes its name.
                if !located.by_link {
                    self.last = Some((path.to_vec(), located.clone()));
                }
                Ok(located)
            }
            // Directories are made where they are missing.
            _ => Err(Error::io("make directory", path, Errno::NOENT)),
        }
    }

    fn state_root(&mut self, entry: &Entry) -> Result<()> {
        let attributes = self.translate(&entry.metadata, EntryKind::Directory, &entry.path)?;
        let root = Rc::clone(&self.root);
        self.root_stated = true;
        self.restate(&root, &attributes, &entry.path)
    }

    /// Ends the layer: what was put off is done.
    pub(super) fn finish(mut self) -> Result<ApplyReport> {
        self.last = None;
        self.finish_links()?;
        self.last = None;
        self.dirs.retire(b"")?;
        if self.options.force_mask.is_some() && !self.root_stated {
            // Without it the root would show the mask.
            let attributes = self.implied()?;
            let root = Rc::clone(&self.root);
            self.restate(&root, &attributes, b"/")?;
        }
        self.root.seal()?;
        let sorted = |ids: HashSet<u32>| {
            let mut ids: Vec<_> = ids.into_iter().collect();
            ids.sort_unstable();
            ids
        };
        self.report.uids = sorted(self.uids);
        self.report.gids = sorted(self.gids);
        Ok(self.report)
    }

    // ---- what is whose ----

    pub(super) fn is_ours(&self, fresh: bool, path: &[u8]) -> bool {
        !self.foreign.contains(path) && (fresh || self.touched.contains(path))
    }

    /// Notes that something of this layer is at `path` in `dir`, and takes away a whiteout of AUFS for that name. Whether there
    /// was one.
    pub(super) fn make_ours(&mut self, dir: &Dir, path: &[u8]) -> Result<bool> {
        self.foreign.remove(path);
        if !dir.fresh.get() {
            self.touched.insert(path);
        }
        if !self.is_aufs() || !(self.whited_out.contains(path) || (self.was_filled && !dir.fresh.get())) {
            return Ok(false);
        }
        self.whited_out.remove(path);
        let whiteout = [PREFIX, split(path).1].concat();
        self.foreign.remove(&dir.child(&whiteout));
        match fs::unlinkat(dir, whiteout.as_slice(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("remove whiteout of", path, error)),
        }
    }

    pub(super) fn is_aufs(&self) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.marks == Marks::Aufs)
    }

    /// Notes whether the content of the file just made at `path` is to be handed over before it is lost.
    pub(super) fn note_content(&mut self, path: &[u8], wanted: bool) {
        if self.options.observer.is_none() {
            return;
        }
        if wanted {
            self.unwanted.remove(path);
        } else {
            self.unwanted.insert(path);
        }
    }

    /// As [`Engine::make_ours`], for a directory that was not there before.
    pub(super) fn make_fresh(&mut self, dir: &Dir, path: &[u8]) -> Result<bool> {
        let hidden = self.make_ours(dir, path)?;
        if !dir.fresh.get() {
            self.fresh.insert(path);
        }
        Ok(hidden)
    }

    /// All that is in this directory is ours from now on.
    pub(super) fn set_fresh(&mut self, path: &[u8]) {
        self.fresh.insert(path);
    }

    pub(super) fn is_fresh(&self, parent: bool, path: &[u8]) -> bool {
        parent || self.fresh.contains(path)
    }

    /// Forgets where names lead, because directories or links are about to go.
    pub(super) fn forget_paths(&mut self) {
        self.last = None;
    }

    // ---- the view ----

    /// What the lower layers show as `name` in `dir`; nothing in the plain form, nor where a whiteout of AUFS hides it.
    pub(super) fn below(&mut self, dir: &Dir, name: &[u8]) -> Result<Option<Found>> {
        if dir.hidden.get() {
            return Ok(None);
        }
        if let Some(overlay) = &self.overlay
            && overlay.marks.hides(dir, name, &dir.path)?
        {
            return Ok(None);
        }
        match &mut self.overlay {
            Some(overlay) => overlay.lowers.find(&dir.path, name),
            None => Ok(None),
        }
    }

    pub(super) fn lowers_unknown(&self) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.lowers_unknown)
    }

    /// The entry `name` of `dir` in the tree itself; `None` when there is none.
    pub(super) fn stat(&self, dir: &Dir, name: &[u8]) -> Result<Option<Stat>> {
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::io("stat", dir.child(name), error)),
        }
    }

    pub(super) fn is_whiteout(&self, dir: &Dir, name: &[u8], stat: &Stat) -> Result<bool> {
        match &self.overlay {
            Some(Overlay { marks: Marks::Overlay(namespace), .. }) => is_whiteout(dir, name, stat, *namespace),
            _ => Ok(false),
        }
    }

    /// Takes in an open directory of the tree, which was there already.
    pub(super) fn adopt(&mut self, parent: &Dir, path: Vec<u8>, fd: std::os::fd::OwnedFd) -> Result<Rc<Dir>> {
        let fresh = self.is_fresh(parent.fresh.get(), &path);
        let hidden = parent.hidden.get() || self.opaque.contains(&path);
        self.dirs.insert(Dir::new(path, fd, fresh, hidden))
    }

    /// Goes to the directory `path` (clean), following symbolic links as if the root were the file system's root. Nothing
    /// is ever followed by the kernel, so that it does not matter what others do to the tree meanwhile.
    ///
    /// `None` when there is no such directory and it is not to be made. `name` is for messages.
    pub(super) fn walk(&mut self, path: &[u8], walk: Walk, name: &[u8]) -> Result<Option<Seen>> {
        let mut by_link = false;
        if path.is_empty() {
            return Ok(Some(Seen::Here(Located { dir: Rc::clone(&self.root), by_link })));
        }
        if let Some(dir) = self.dirs.get(path) {
            return Ok(Some(Seen::Here(Located { dir, by_link })));
        }
        let mut links = 0u32;
        // Components to come, the next one last.
        let mut pending: Vec<Vec<u8>> = Vec::new();
        let mut here = self.nearest_open(path, &mut pending);
        here = self.leap(here, path, &mut pending)?;
        // The canonical path, once it has left this layer's own tree, which it did in `here`.
        let mut below: Option<Vec<u8>> = None;
        while let Some(component) = pending.pop() {
            let target = match component.as_slice() {
                b"" | b"." => continue,
                // Out of a symbolic link's target.
                long if long.len() > 255 => return Err(self.input(name, Defect::InvalidName)),
                b".." => {
                    // To the canonical parent, which is open nearly always: links may go up and down thousands of times.
                    match below.take() {
                        Some(mut at) => {
                            at.truncate(split(&at).0.len());
                            below = (at.len() > here.path.len()).then_some(at);
                        }
                        None => here = self.nearest_open(split(&here.path).0, &mut pending),
                    }
                    continue;
                }
                _ => match &mut below {
                    None => match self.step(&here, &component, walk)? {
                        Step::Here(dir) => {
                            here = dir;
                            continue;
                        }
                        Step::Below(path) => {
                            below = Some(path);
                            continue;
                        }
                        Step::None => return Ok(None),
                        Step::Link(target) => target,
                    },
                    Some(at) => {
                        let Some(overlay) = &mut self.overlay else { return Ok(None) };
                        let Some(found) = overlay.lowers.find(at, &component)? else { return Ok(None) };
                        match FileType::from_raw_mode(found.stat.st_mode) {
                            FileType::Directory => {
                                push(at, &component);
                                continue;
                            }
                            FileType::Symlink => Lowers::read_link(&found, at, &component)?,
                            _ => return Ok(None),
                        }
                    }
                },
            };
            links = links.saturating_add(1);
            if links > SYMLINKS {
                return Err(self.input(name, Defect::SymlinkLoop));
            }
            by_link = true;
            let absolute = target.starts_with(b"/");
            pending.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
            if absolute {
                here = Rc::clone(&self.root);
                below = None;
            }
        }
        Ok(Some(match below {
            Some(path) => Seen::Below(path),
            None => Seen::Here(Located { dir: here, by_link }),
        }))
    }

    /// The nearest open directory on the way to `path` (clean), or that itself; what is left of the way is put on `pending`.
    fn nearest_open(&mut self, path: &[u8], pending: &mut Vec<Vec<u8>>) -> Rc<Dir> {
        let here = self.dirs.nearest(path).unwrap_or_else(|| Rc::clone(&self.root));
        let rest = path.get(here.path.len()..).unwrap_or_default();
        pending.extend(rest.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
        here
    }

    /// Goes from `here` as far on the way to `path` as real directories lead, thousands of them in one call.
    fn leap(&mut self, mut here: Rc<Dir>, path: &[u8], pending: &mut Vec<Vec<u8>>) -> Result<Rc<Dir>> {
        while pending.len() > STEPS {
            let rest = path.get(here.path.len()..).unwrap_or_default();
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            let part = match rest.get(..graph_sys::resolve::PATH_MAX) {
                Some(start) => split(start).0,
                None => rest,
            };
            let Some(fd) = self.dirs.open_far(&here, part) else { break };
            let at = here.child(part);
            // What is true of a directory is true of all that it holds.
            let fresh = here.fresh.get() || self.fresh.contains_part(&at);
            let hidden = here.hidden.get() || self.opaque.contains_part(&at);
            pending.truncate(pending.len().saturating_sub(part.split(|byte| *byte == b'/').count()));
            here = self.dirs.insert(Dir::new(at, fd, fresh, hidden))?;
        }
        Ok(here)
    }

    fn step(&mut self, here: &Rc<Dir>, component: &[u8], walk: Walk) -> Result<Step> {
        let path = here.child(component);
        if let Some(dir) = self.dirs.get(&path) {
            return Ok(Step::Here(dir));
        }
        match self.dirs.open(here, component)? {
            Opened::Directory(fd) => return Ok(Step::Here(self.adopt(here, path, fd)?)),
            Opened::Missing => {
                let found = self.below(here, component)?;
                return match (found, walk) {
                    (Some(found), _) if FileType::from_raw_mode(found.stat.st_mode) == FileType::Symlink => {
                        Ok(Step::Link(Lowers::read_link(&found, &here.path, component)?))
                    }
                    (Some(found), Walk::Look) if found.is_dir() => Ok(Step::Below(path)),
                    (_, Walk::Look) => Ok(Step::None),
                    (Some(found), Walk::Create) if found.is_dir() => {
                        self.copy_up_directory(here, component, &found).map(Step::Here)
                    }
                    (_, Walk::Create) => self.make_implied(here, component).map(Step::Here),
                };
            }
            Opened::NotDirectory => {}
        }
        if let Some(stat) = self.stat(here, component)?
            && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
        {
            return fs::readlinkat(&**here, component, Vec::new())
                .map(|target| Step::Link(target.into_bytes()))
                .map_err(|error| Error::io("read link", join(&here.path, component), error));
        }
        match walk {
            Walk::Look => Ok(Step::None),
            Walk::Create => self.make_implied(here, component).map(Step::Here),
        }
    }
}

/// Where one component leads.
enum Step {
    Here(Rc<Dir>),
    Below(Vec<u8>),
    Link(Vec<u8>),
    None,
}

fn is_empty(fd: &std::os::fd::OwnedFd) -> Result<bool> {
    let entries = fs::Dir::read_from(fd).map_err(|error| Error::io("read directory", b"/", error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read directory", b"/", error))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
