//! Whiteouts: what lower layers have is removed, or hidden by a whiteout or an opaque mark.

use std::os::fd::AsFd;
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use graph_sys::io::Errno;

use super::dirs::{Dir, Times};
use super::engine::{Engine, Located, Overlay, Seen, Walk};
use super::options::WhiteoutForm;
use super::remove::{Sweep, remove};
use crate::error::{Error, Result};
use crate::overlay::Marks;
use crate::whiteout;

impl Engine<'_> {
    /// Carries out the whiteout of `removed` in the directory `parent` (clean).
    pub(super) fn remove_below(&mut self, parent: &[u8], removed: &[u8], name: &[u8]) -> Result<()> {
        let dir = match self.walk(parent, Walk::Look, name)? {
            Some(Seen::Here(located)) => located.dir,
            Some(Seen::Below(path)) => {
                let shown = match &mut self.overlay {
                    Some(overlay) => overlay.lowers.find(&path, removed)?.is_some(),
                    None => false,
                };
                if !shown {
                    return Ok(());
                }
                self.made(&path, name)?
            }
            // There is nothing to remove, or it is removed already.
            None if !self.lowers_unknown() || self.is_below_whiteout(parent) => return Ok(()),
            None => self.made(parent, name)?,
        };
        let path = dir.child(removed);
        let stat = self.stat(&dir, removed)?;
        match stat {
            None => {}
            Some(stat) if self.is_whiteout(&dir, removed, &stat)? => return Ok(()),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let kept = self.keep_ours(&dir, removed, &path)?;
                if kept {
                    return Ok(());
                }
            }
            Some(_) => {
                if self.is_ours(dir.fresh.get(), &path) {
                    return Ok(());
                }
                dir.prepare(self.gid)?;
                self.forget_paths();
                self.foreign.remove(&path);
                remove(&*dir, removed, &path, AtFlags::empty())?;
            }
        }
        if self.below(&dir, removed)?.is_some() || (self.lowers_unknown() && !dir.hidden.get()) {
            self.write_whiteout(&dir, removed, &path)?;
        }
        Ok(())
    }

    /// Whether a whiteout of this layer hides `path`. For unknown lower layers, where nothing else is foreign.
    fn is_below_whiteout(&self, path: &[u8]) -> bool {
        self.foreign.contains_part(path)
    }

    /// Reduces a directory to what this layer has made. Whether it is still there.
    fn keep_ours(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<bool> {
        let fresh = self.is_fresh(dir.fresh.get(), path);
        let ours = self.is_ours(dir.fresh.get(), path);
        if ours && (self.opaque.contains(path) || (self.overlay.is_none() && fresh)) {
            // Nothing of lower layers is in it. Archives may say so as often as they like.
            return Ok(true);
        }
        self.forget_paths();
        self.dirs.retire(path)?;
        dir.prepare(self.gid)?;
        let fd = self.open_beneath(dir.as_fd(), name, path)?;
        let before = fs::fstat(&fd).map_err(|error| Error::io("stat directory", path, error))?;
        let kept = self.sweep(fd.as_fd(), path, fresh, Sweep::NotOurs)?;
        if !ours && !kept {
            self.foreign.remove(path);
            remove(&**dir, name, path, AtFlags::REMOVEDIR)?;
            return Ok(false);
        }
        if ours {
            fs::futimens(&fd, &Times::of(&before).stamps()).map_err(|error| Error::io("set times of", path, error))?;
        } else {
            self.reset(fd.as_fd(), path)?;
        }
        self.make_fresh(dir, path)?;
        if self.overlay.is_some()
            && !dir.hidden.get()
            && (self.lowers_unknown() || self.below(dir, name)?.is_some_and(|found| found.is_dir()))
        {
            self.set_opaque(&fd, path)?;
        }
        // With or without a mark, nothing of lower layers shows in it from now on.
        self.opaque.insert(path);
        Ok(true)
    }

    /// Carries out the opaque whiteout of the directory `path` (clean), which exists afterwards.
    pub(super) fn make_opaque(&mut self, path: &[u8], name: &[u8]) -> Result<()> {
        let dir = self.made(path, name)?;
        if self.opaque.contains(&dir.path) || (self.overlay.is_none() && dir.fresh.get()) {
            // Nothing of lower layers is in it, and nothing has come since.
            return Ok(());
        }
        self.forget_paths();
        self.dirs.retire(&dir.path)?;
        dir.prepare(self.gid)?;
        self.sweep(dir.as_fd(), &dir.path, dir.fresh.get(), Sweep::NotOurs)?;
        if !dir.fresh.replace(true) && !dir.path.is_empty() {
            // What is left in it is all ours. The root remembers that itself.
            self.set_fresh(&dir.path);
        }
        if !dir.hidden.get()
            && let Some(overlay) = &mut self.overlay
        {
            if overlay.lowers_unknown || (!dir.path.is_empty() && !overlay.lowers.stack(&dir.path)?.is_empty()) {
                self.set_opaque(&*dir, &dir.path)?;
                dir.hidden.set(true);
            } else if dir.path.is_empty() {
                self.hide_root(&dir)?;
            }
        }
        // With or without a mark, nothing of lower layers shows in it from now on.
        self.opaque.insert(&dir.path);
        dir.seal()
    }

    /// The kernel does not look for an opaque mark on the root, so all that lower layers have there is hidden name by
    /// name.
    fn hide_root(&mut self, root: &Rc<Dir>) -> Result<()> {
        let names = match &mut self.overlay {
            Some(overlay) => overlay.lowers.root_names()?,
            None => return Ok(()),
        };
        for name in names {
            match self.stat(root, &name)? {
                None => self.write_whiteout(root, &name, &name)?,
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    if self.below(root, &name)?.is_some_and(|found| found.is_dir()) {
                        let fd = self.open_beneath(root.as_fd(), &name, &name)?;
                        self.set_opaque(&fd, &name)?;
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The directory `path`, made if it is missing.
    pub(super) fn made(&mut self, path: &[u8], name: &[u8]) -> Result<Rc<Dir>> {
        match self.walk(path, Walk::Create, name)? {
            Some(Seen::Here(Located { dir, .. })) => Ok(dir),
            // Directories are made where they are missing.
            _ => Err(Error::io("make directory", path, Errno::NOENT)),
        }
    }

    /// Writes a whiteout, at a free name. Nothing happens in the plain form.
    pub(super) fn write_whiteout(&mut self, dir: &Rc<Dir>, name: &[u8], path: &[u8]) -> Result<()> {
        let Some(Overlay { marks, form, .. }) = &self.overlay else { return Ok(()) };
        let (marks, form) = (*marks, *form);
        dir.prepare(self.gid)?;
        let failed = |error| Error::io("write whiteout", path, error);
        let Marks::Overlay(namespace) = marks else {
            let whiteout = [whiteout::PREFIX, name].concat();
            write_mark(&**dir, &whiteout).map_err(failed)?;
            self.whited_out.insert(path);
            self.foreign.insert(&dir.child(&whiteout));
            return Ok(());
        };
        match form {
            WhiteoutForm::CharDevice => {
                fs::mknodat(&**dir, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed)?;
            }
            WhiteoutForm::Xattr => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = fs::openat(&**dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let attribute = [namespace.prefix(), b"whiteout"].concat();
                fs::fsetxattr(&file, attribute, b"y", XattrFlags::empty()).map_err(failed)?;
                if !dir.holds_xattr_whiteouts.replace(true) {
                    let attribute = [namespace.prefix(), b"opaque"].concat();
                    fs::fsetxattr(&**dir, attribute, b"x", XattrFlags::empty()).map_err(failed)?;
                }
            }
        }
        self.foreign.insert(path);
        Ok(())
    }

    /// Marks a directory opaque. Nothing happens in the plain form.
    pub(super) fn set_opaque(&mut self, dir: impl AsFd, path: &[u8]) -> Result<()> {
        let Some(overlay) = &self.overlay else { return Ok(()) };
        let failed = |error| Error::io("mark opaque directory", path, error);
        match overlay.marks {
            Marks::Overlay(namespace) => {
                let attribute = [namespace.prefix(), b"opaque"].concat();
                fs::fsetxattr(dir, attribute, b"y", XattrFlags::empty()).map_err(failed)?;
            }
            Marks::Aufs => {
                // The directory keeps its time, whether it is known to be open or not.
                let before = fs::fstat(&dir).map_err(failed)?;
                write_mark(&dir, whiteout::OPAQUE).map_err(failed)?;
                fs::futimens(&dir, &Times::of(&before).stamps()).map_err(failed)?;
                self.foreign.insert(&super::names::join(path, whiteout::OPAQUE));
            }
        }
        self.opaque.insert(path);
        Ok(())
    }
}

/// Makes one of AUFS's marks: an empty file that nobody writes to. AUFS itself makes them names of one inode, which takes less
/// room, but is nothing that it asks for.
fn write_mark(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::RUSR | Mode::RGRP | Mode::ROTH) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
