//! What the layers below a layer of an overlay or of AUFS show, merged as the kernel merges them.
//!
//! The rules are those of the kernel's Documentation/filesystems/overlayfs.rst: the nearest layer that has a name
//! decides; directories merge until one of them is opaque or something else than a directory comes; whiteouts hide what
//! is below. Redirected directories and files without data (`redirect_dir`, `metacopy`) are not followed: layers of
//! containers/storage never have them.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use graph_sys::io::Errno;

use super::names::{is_within, join, push};
use super::options::XattrNamespace;
use crate::error::{Error, Result};
use crate::overlay::{Marks, Opacity};
use crate::whiteout;

/// Descriptors kept of directories of lower layers.
const KEPT_DESCRIPTORS: usize = 128;

/// The lower layers.
#[derive(Debug)]
pub(super) struct Lowers {
    marks: Marks,
    layers: Rc<Vec<OwnedFd>>,
    /// Merged directories looked at lately, newest last.
    recent: Vec<(Vec<u8>, Rc<Vec<OwnedFd>>)>,
}

/// An entry that the lower layers show.
#[derive(Debug)]
pub(super) struct Found {
    stack: Rc<Vec<OwnedFd>>,
    layer: usize,
    pub(super) stat: Stat,
}

impl Found {
    /// The directory that holds the entry.
    pub(super) fn directory(&self) -> Result<&OwnedFd> {
        self.stack
            .get(self.layer)
            .ok_or_else(|| Error::io("look into lower layers", Vec::new(), std::io::Error::from(Errno::NOENT)))
    }

    pub(super) fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }
}

impl Lowers {
    pub(super) fn new(marks: Marks, layers: Vec<OwnedFd>) -> Self {
        Self { marks, layers: Rc::new(layers), recent: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The nearest layer's root.
    pub(super) fn nearest(&self) -> Option<&OwnedFd> {
        self.layers.first()
    }

    /// The directories that merge at `path`, nearest first; empty when the lower layers show no directory there. `path`
    /// holds no symbolic link.
    pub(super) fn stack(&mut self, path: &[u8]) -> Result<Rc<Vec<OwnedFd>>> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.layers));
        }
        if let Some((_, stack)) = self.recent.iter().rev().find(|(kept, _)| kept == path) {
            return Ok(Rc::clone(stack));
        }
        let start =
            self.recent.iter().rev().filter(|(kept, _)| is_within(path, kept)).max_by_key(|(kept, _)| kept.len());
        let (mut at, mut stack) = match start {
            Some((kept, stack)) => (kept.clone(), Rc::clone(stack)),
            None => (Vec::new(), Rc::clone(&self.layers)),
        };
        let rest = path.get(at.len()..).unwrap_or_default().to_vec();
        for component in rest.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
            push(&mut at, component);
            stack = Rc::new(self.descend(&stack, component, &at)?);
            if stack.is_empty() {
                return Ok(stack);
            }
        }
        self.keep(path.to_vec(), Rc::clone(&stack));
        Ok(stack)
    }

    fn keep(&mut self, path: Vec<u8>, stack: Rc<Vec<OwnedFd>>) {
        let mut total = stack.len();
        if total > KEPT_DESCRIPTORS {
            // Deep stacks: only the last directory, which the next entry asks for again.
            self.recent.clear();
        } else {
            let newest_first = self.recent.iter().rev();
            let fits = newest_first
                .take_while(|(_, kept)| {
                    total = total.saturating_add(kept.len());
                    total <= KEPT_DESCRIPTORS
                })
                .count();
            self.recent.drain(..self.recent.len().saturating_sub(fits));
        }
        self.recent.push((path, stack));
    }

    fn descend(&self, stack: &[OwnedFd], component: &[u8], at: &[u8]) -> Result<Vec<OwnedFd>> {
        let mut below = Vec::new();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for layer in stack {
            if self.marks.hides(layer, component, at)? {
                break;
            }
            match fs::openat(layer, component, flags, Mode::empty()) {
                Ok(fd) => {
                    let opaque = self.is_opaque(&fd, at)?;
                    below.push(fd);
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // Whiteouts are no directories, so they end up here too.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(error) => return Err(Error::io("open directory of a lower layer", at, error)),
            }
        }
        Ok(below)
    }

    fn is_opaque(&self, fd: &OwnedFd, at: &[u8]) -> Result<bool> {
        let Marks::Overlay(namespace) = self.marks else {
            // By another name than the branch's root, which is never opaque.
            return Ok(self.marks.opacity(fd, b"./.", at)? == Opacity::Opaque);
        };
        let name = [namespace.prefix(), b"opaque"].concat();
        let mut value = [0u8; 1];
        match fs::fgetxattr(fd, name, &mut value) {
            Ok(size) => Ok(size == 1 && value == *b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(error) => Err(Error::io("read opaque mark of a lower layer's", at, error)),
        }
    }

    /// What the lower layers show as `name` in the directory `path`, which holds no symbolic link.
    pub(super) fn find(&mut self, path: &[u8], name: &[u8]) -> Result<Option<Found>> {
        let stack = self.stack(path)?;
        for (layer, directory) in stack.iter().enumerate() {
            if self.marks.hides(directory, name, path)? {
                return Ok(None);
            }
            match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    if let Marks::Overlay(namespace) = self.marks
                        && is_whiteout(directory, name, &stat, namespace)?
                    {
                        return Ok(None);
                    }
                    return Ok(Some(Found { stack: Rc::clone(&stack), layer, stat }));
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io("stat in a lower layer", join(path, name), error)),
            }
        }
        Ok(None)
    }

    /// Target of a symbolic link found by [`Lowers::find`].
    pub(super) fn read_link(found: &Found, path: &[u8], name: &[u8]) -> Result<Vec<u8>> {
        fs::readlinkat(found.directory()?, name, Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|error| Error::io("read link of a lower layer", join(path, name), error))
    }

    /// The names that the lower layers show in the root.
    pub(super) fn root_names(&mut self) -> Result<Vec<Vec<u8>>> {
        let layers = Rc::clone(&self.layers);
        let mut names = std::collections::BTreeSet::new();
        for layer in layers.iter() {
            let entries = fs::Dir::read_from(layer).map_err(|error| Error::io("read directory", b"/", error))?;
            for entry in entries {
                let entry = entry.map_err(|error| Error::io("read directory", b"/", error))?;
                let name = entry.file_name().to_bytes();
                let own = self.marks == Marks::Aufs && name.starts_with(whiteout::PREFIX);
                if name != b"." && name != b".." && !own {
                    names.insert(name.to_vec());
                }
            }
        }
        let mut shown = Vec::new();
        for name in names {
            if self.find(b"", &name)?.is_some() {
                shown.push(name);
            }
        }
        Ok(shown)
    }
}

/// Whether an entry of a layer's directory is a whiteout, in either form.
pub(super) fn is_whiteout(
    directory: impl std::os::fd::AsFd,
    name: &[u8],
    stat: &Stat,
    namespace: XattrNamespace,
) -> Result<bool> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Ok(stat.st_rdev == 0),
        FileType::RegularFile if stat.st_size == 0 => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file =
                fs::openat(directory, name, flags, Mode::empty()).map_err(|error| Error::io("open", name, error))?;
            let attribute = [namespace.prefix(), b"whiteout"].concat();
            match fs::getxattr_query(super::attributes::by_descriptor(&file), attribute) {
                Ok(_) => Ok(true),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
                Err(error) => Err(Error::io("read whiteout mark of", name, error)),
            }
        }
        _ => Ok(false),
    }
}
