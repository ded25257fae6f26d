//! Stacking a layer on those below it, and taking that down again.
//!
//! The mount is made by descriptors: `lowerdir+` once per lower directory, so neither the length of paths nor what
//! characters are in them matters, and 500 directories go in one mount. Where the kernel has no such interface,
//! mount(2) does it: with the real paths if they fit its page of options, else with descriptor numbers as paths, seen
//! from a thread whose working directory is `/proc/self/fd`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use graph_archive::apply::XattrNamespace;
use graph_core::refcount::MountCheck;
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, AtFlags, Mode, OFlags};
use graph_sys::io::Errno;
use graph_sys::mount::{AttachedMount, DetachedMount, FsContext, MountFlags, UnmountFlags, classic};
use graph_sys::{statfs, statx};

use super::Homes;
use super::layout::{Context, DIFF, EMPTY, Layer, MERGED, WORK, make_dir, make_dirs, open_dir, optional};
use super::parents::{MAX_LOWERS, missing_lower};
use super::words::Words;

/// How a mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// fsopen, fsconfig with descriptors, fsmount, move_mount.
    Descriptors,
    /// mount(2) and one string.
    Classic,
}

/// What is to be mounted.
pub(super) struct Stack<'s> {
    pub(super) homes: &'s Homes,
    pub(super) layer: &'s Layer<'s>,
    /// The layers below, nearest first.
    pub(super) chain: &'s [LayerId],
    pub(super) read_only: bool,
    /// Where lower directories are opened instead of in their home: a mount of the home through an id mapping.
    pub(super) mapped: &'s [(PathBuf, DetachedMount)],
    /// Whether the layer's own directory, where it is a lower one, is opened there too. A container's is not: its files
    /// were written with host ids.
    pub(super) own_mapped: bool,
    /// An empty directory, for a mount that would have too few directories otherwise.
    pub(super) run_home: &'s Path,
}

impl<'s> Stack<'s> {
    /// All layers as they are on disk, none of them to be written to.
    pub(super) fn read_only(homes: &'s Homes, layer: &'s Layer<'s>, chain: &'s [LayerId], run_home: &'s Path) -> Self {
        Self { homes, layer, chain, read_only: true, mapped: &[], own_mapped: false, run_home }
    }

    /// Calls `visit` for every lower directory, nearest first, with its real path.
    pub(super) fn each_lower(&self, mut visit: impl FnMut(&Path, OwnedFd) -> Result<()>) -> Result<()> {
        let count = std::cell::Cell::new(0_usize);
        let id = &self.layer.id;
        let mut visit = |path: &Path, dir: OwnedFd| {
            count.set(count.get().saturating_add(1));
            if count.get() > MAX_LOWERS {
                return Err(Error::TooDeep {
                    id: id.clone(),
                    depth: self.chain.len().max(count.get()),
                    limit: MAX_LOWERS,
                });
            }
            visit(path, dir)
        };
        if self.chain.len() > MAX_LOWERS {
            return Err(Error::TooDeep { id: id.clone(), depth: self.chain.len(), limit: MAX_LOWERS });
        }
        if self.read_only && self.own_mapped {
            self.content(self.layer, DIFF, &mut visit)?;
        } else if self.read_only {
            visit(&self.layer.path().join(DIFF), self.layer.open(DIFF)?)?;
        }
        let covered = self.inherited(self.layer, &mut visit)?;
        for lower in self.chain.iter().filter(|_| !covered) {
            let lower = self.homes.find(lower)?.ok_or_else(|| missing_lower(self.layer, lower))?;
            self.content(&lower, DIFF, &mut visit)?;
            if self.inherited(&lower, &mut visit)? {
                break;
            }
        }
        if count.get() < if self.read_only { 2 } else { 1 } {
            let (path, dir) = self.empty()?;
            visit(&path, dir)?;
        }
        Ok(())
    }

    fn content(
        &self,
        layer: &Layer<'_>,
        name: &str,
        visit: &mut impl FnMut(&Path, OwnedFd) -> Result<()>,
    ) -> Result<()> {
        let path = layer.path().join(name);
        let dir = match self.mapped.iter().find(|(home, _)| *home == layer.home.path) {
            None => layer.open(name)?,
            Some((_, home)) => open_dir(home, layer.id.as_str()).and_then(|dir| open_dir(dir, name)).at(
                "open",
                &path,
                Some(&layer.id),
            )?,
        };
        visit(&path, dir)
    }

    /// What the layer inherits re-owned; true if that hides all that is below.
    fn inherited(&self, layer: &Layer<'_>, visit: &mut impl FnMut(&Path, OwnedFd) -> Result<()>) -> Result<bool> {
        let inherited = layer.inherited()?;
        for (name, _) in &inherited {
            self.content(layer, name, visit)?;
        }
        Ok(!inherited.is_empty() && layer.covers_all()?)
    }

    /// The layer's `empty`; for a layer of a read-only store that has none, one in the run home.
    fn empty(&self) -> Result<(PathBuf, OwnedFd)> {
        let id = Some(&self.layer.id);
        let own = self.layer.path().join(EMPTY);
        if let Some(dir) = self.layer.open_optional(EMPTY)? {
            return Ok((own, dir));
        }
        if self.layer.home.writable() {
            let dir =
                make_dir(&self.layer.dir, EMPTY, 0o700, owner_of(&self.layer.dir)?).at("make directory", &own, id)?;
            return Ok((own, dir));
        }
        let path = self.run_home.join(self.layer.id.as_str()).join(EMPTY);
        make_dirs(&path, Mode::RWXU)?;
        let dir = open_dir(fs::CWD, &path).at("open", &path, id)?;
        Ok((path, dir))
    }

    /// The layer's scratch directory, made anew where it was lost.
    pub(super) fn work(&self) -> Result<OwnedFd> {
        match self.layer.open_optional(WORK)? {
            Some(dir) => Ok(dir),
            None => make_dir(&self.layer.dir, WORK, 0o700, owner_of(&self.layer.dir)?).at(
                "make directory",
                self.layer.path().join(WORK),
                Some(&self.layer.id),
            ),
        }
    }

    /// Mounts on `target`, which `shown` is the path of.
    pub(super) fn mount(&self, words: &Words, target: &OwnedFd, shown: &Path, method: Method) -> Result<()> {
        match method {
            Method::Descriptors => self.detached(words)?.attach(target).map(AttachedMount::keep).at(
                "mount on",
                shown,
                Some(&self.layer.id),
            ),
            Method::Classic => self.mount_classic(words, target, shown),
        }
    }

    /// The mount without a place. [`Error::Unsupported`] where the kernel has no such calls.
    pub(super) fn detached(&self, words: &Words) -> Result<DetachedMount> {
        let (path, id) = (self.layer.path(), Some(&self.layer.id));
        let failed = |source: graph_sys::Error| Error::io("mount the overlay of", &path, id, source);
        let context = FsContext::open("overlay").map_err(failed)?;
        context.set_string("source", b"overlay").map_err(failed)?;
        words.configure(&context).map_err(failed)?;
        self.each_lower(|_, dir| context.set_directory(LOWER_KEY, dir).map_err(failed))?;
        if !self.read_only {
            context.set_directory("upperdir", self.layer.open(DIFF)?).map_err(failed)?;
            context.set_directory("workdir", self.work()?).map_err(failed)?;
        }
        context.create(words.attributes()).map_err(|error| match error.errno() {
            Errno::BUSY => Error::InUse {
                id: self.layer.id.clone(),
                by: format!("another mount of its {DIFF} or {WORK} directory ({error})"),
            },
            _ => failed(error),
        })
    }

    /// The same without the calls for it: mounted on a directory that nobody knows, copied, and unmounted.
    pub(super) fn detached_classic(&self, words: &Words) -> Result<DetachedMount> {
        let id = Some(&self.layer.id);
        let mut temp = self.homes.own.temp_dir()?;
        let (addition, target) = temp.add_directory(0o700)?;
        let path = temp.addition_path(&addition);
        self.mount_classic(words, &target, &path)?;
        let attached = open_dir(fs::CWD, &path).at("open", &path, id)?;
        let copy = DetachedMount::copy_of(&attached, b"", false).at("copy the mount on", &path, id);
        classic::unmount(format!("/proc/self/fd/{}", attached.as_raw_fd()).as_bytes(), UnmountFlags::DETACH)
            .at("unmount", &path, id)?;
        drop(attached);
        temp.finish()?;
        copy
    }

    fn mount_classic(&self, words: &Words, target: &OwnedFd, shown: &Path) -> Result<()> {
        let mut paths = Vec::new();
        let mut dirs = Vec::new();
        self.each_lower(|path, dir| {
            paths.push(path.to_owned());
            dirs.push(dir);
            Ok(())
        })?;
        let own = if self.read_only { Vec::new() } else { vec![("upperdir", DIFF), ("workdir", WORK)] };
        let mut options = b"lowerdir=".to_vec();
        options.extend(joined(paths.iter().map(|path| classic::escape_overlay_path(path.as_os_str().as_bytes()))));
        for (key, name) in &own {
            options.extend(format!(",{key}=").bytes());
            options.extend(classic::escape_overlay_path(self.layer.path().join(name).as_os_str().as_bytes()));
        }
        options.extend(words.classic_options().bytes());
        let at = |result: graph_sys::Result<()>| result.at("mount on", shown, Some(&self.layer.id));
        // Paths of a mapped home would lead to the unmapped files.
        if options.len() <= classic::OPTIONS_MAX && self.mapped.is_empty() {
            return at(mount_on(target, words.classic_flags(), &options));
        }
        let lowers: Vec<(&str, OwnedFd)> = dirs.into_iter().map(|dir| (LOWER_KEY, dir)).collect();
        let upper = if self.read_only { None } else { Some((self.layer.open(DIFF)?, self.work()?)) };
        let upper = upper.as_ref().map(|(diff, work)| (diff, work));
        mount_by_numbers(words, &lowers, upper, target).at("mount on", shown, Some(&self.layer.id))
    }
}

/// fsconfig's key for a lower directory.
pub(super) const LOWER_KEY: &str = "lowerdir+";
/// fsconfig's key for a lower directory that only gives data to others.
pub(super) const DATA_KEY: &str = "datadir+";

/// The way this kernel stacks directories best: `lowerdir+` came with Linux 6.5.
pub(super) fn best_method(dir: &OwnedFd) -> Method {
    let tried = FsContext::open("overlay").and_then(|context| context.set_directory(LOWER_KEY, dir));
    match tried {
        Err(error) if matches!(error.errno(), Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => Method::Classic,
        // Whatever else is wrong shows when something is mounted.
        Ok(()) | Err(_) => Method::Descriptors,
    }
}

/// mount(2) with the numbers of descriptors for paths. `upper` is the upper and the work directory.
pub(super) fn mount_by_numbers(
    words: &Words,
    lowers: &[(&str, OwnedFd)],
    upper: Option<(&OwnedFd, &OwnedFd)>,
    target: &OwnedFd,
) -> io::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    for (position, (key, dir)) in lowers.iter().enumerate() {
        if position > 0 {
            options.extend(if *key == DATA_KEY { b"::".as_slice() } else { b":" });
        }
        options.extend(dir.as_raw_fd().to_string().bytes());
    }
    if let Some((upper, work)) = upper {
        options.extend(format!(",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd()).bytes());
    }
    options.extend(words.classic_options().bytes());
    in_fd_directory(|| mount_on(target, words.classic_flags(), &options))
}

fn joined(parts: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    parts.collect::<Vec<_>>().join(&b':')
}

fn mount_on(target: &OwnedFd, flags: MountFlags, options: &[u8]) -> graph_sys::Result<()> {
    let target = format!("/proc/self/fd/{}", target.as_raw_fd());
    classic::mount(b"overlay", target.as_bytes(), "overlay", flags, options)
}

/// Calls `mount` on a thread of its own whose working directory is this process's directory of descriptors, so that
/// their bare numbers are paths. The process's own working directory does not change.
fn in_fd_directory(mount: impl FnOnce() -> graph_sys::Result<()> + Send) -> io::Result<()> {
    let descriptors = format!("/proc/{}/fd", graph_sys::process::getpid().as_raw_nonzero());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> io::Result<()> {
            graph_sys::namespace::private_working_directory()?;
            graph_sys::process::chdir(descriptors)?;
            Ok(mount()?)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn owner_of(dir: impl AsFd) -> Result<graph_archive::IdPair> {
    let stat = fs::fstat(dir).at("read the status of", "layer directory", None)?;
    Ok(graph_archive::IdPair { uid: stat.st_uid, gid: stat.st_gid })
}

/// Mounts of this driver: the root of an overlay. Anything else at a mount point is somebody else's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OverlayMount;

impl MountCheck for OverlayMount {
    fn is_mounted(&self, path: &Path) -> io::Result<bool> {
        Ok(matches!(look(path)?, Found::Overlay(_)))
    }
}

/// What is at a mount point.
pub(super) enum Found {
    /// No such directory.
    Missing,
    /// A directory and nothing on it.
    Nothing(OwnedFd),
    /// The root of an overlay, the kernel's or a program's.
    Overlay(OwnedFd),
    /// The root of something else, by the name of its file system.
    Foreign(String),
}

pub(super) fn look(path: &Path) -> io::Result<Found> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Some(dir) = optional(fs::openat(fs::CWD, path, flags, Mode::empty()))? else { return Ok(Found::Missing) };
    if statx::metadata(&dir, b"")?.is_mount_root == Some(false) {
        return Ok(Found::Nothing(dir));
    }
    let magic = statfs::magic(&dir)?;
    // What a mount program serves is a FUSE.
    if magic == statfs::Magic::OVERLAY || magic == statfs::Magic::FUSE {
        return Ok(Found::Overlay(dir));
    }
    Ok(Found::Foreign(magic.name().unwrap_or("another file system").to_owned()))
}

/// Where the layer is mounted: in its own directory, or in the run home for a layer of a read-only store.
pub(super) fn merged_path(layer: &Layer<'_>, run_home: &Path) -> PathBuf {
    if layer.home.writable() { layer.path().join(MERGED) } else { run_home.join(layer.id.as_str()).join(MERGED) }
}

/// The mount point, made where it was lost. Something of somebody else's on it is an error.
pub(super) fn mount_point(layer: &Layer<'_>, path: &Path) -> Result<OwnedFd> {
    let id = Some(&layer.id);
    match look(path).at("look at the mount point", path, id)? {
        Found::Nothing(dir) => Ok(dir),
        Found::Missing if layer.home.writable() => {
            make_dir(&layer.dir, MERGED, 0o700, owner_of(&layer.dir)?).at("make directory", path, id)
        }
        Found::Missing => {
            make_dirs(path, Mode::RWXU)?;
            open_dir(fs::CWD, path).at("open", path, id)
        }
        Found::Overlay(_) => Err(Error::InUse { id: layer.id.clone(), by: format!("a mount on {}", path.display()) }),
        Found::Foreign(kind) => Err(foreign(&layer.id, path, &kind)),
    }
}

fn foreign(id: &LayerId, path: &Path, kind: &str) -> Error {
    Error::InUse {
        id: id.clone(),
        by: format!("{kind} that is mounted on {} and is not this driver's; unmount it first", path.display()),
    }
}

/// Unmounts the layer. Nothing mounted is no error.
///
/// Afterwards the mount point is replaced by a fresh directory: the kernel then takes down copies of the mount that are
/// left over in other mount namespaces, which would keep the layer busy for ever.
pub(super) fn unmount(layer: &Layer<'_>, path: &Path) -> Result<()> {
    let id = Some(&layer.id);
    match look(path).at("look at the mount point", path, id)? {
        Found::Missing => return Ok(()),
        Found::Nothing(_) => {}
        Found::Foreign(kind) => return Err(foreign(&layer.id, path, &kind)),
        Found::Overlay(root) => {
            // By descriptor: what was looked at is what is unmounted.
            let target = format!("/proc/self/fd/{}", root.as_raw_fd());
            match classic::unmount(target.as_bytes(), UnmountFlags::DETACH) {
                Err(error) if error.errno() != Errno::INVAL => {
                    return Err(Error::io("unmount", path, id, error));
                }
                Ok(()) | Err(_) => {}
            }
            match look(path).at("look at the mount point", path, id)? {
                Found::Foreign(kind) => return Err(foreign(&layer.id, path, &kind)),
                Found::Overlay(_) => {
                    return Err(Error::InUse {
                        id: layer.id.clone(),
                        by: format!("a second mount on {}; unmount it first", path.display()),
                    });
                }
                Found::Missing | Found::Nothing(_) => {}
            }
        }
    }
    renew_mount_point(layer, path)
}

/// An error if anything is mounted there.
pub(super) fn not_mounted(layer: &Layer<'_>, path: &Path) -> Result<()> {
    match look(path).at("look at the mount point", path, Some(&layer.id))? {
        Found::Missing | Found::Nothing(_) => Ok(()),
        Found::Overlay(_) => Err(Error::InUse { id: layer.id.clone(), by: format!("a mount on {}", path.display()) }),
        Found::Foreign(kind) => Err(foreign(&layer.id, path, &kind)),
    }
}

fn renew_mount_point(layer: &Layer<'_>, path: &Path) -> Result<()> {
    let id = Some(&layer.id);
    if !layer.home.writable() {
        optional(fs::unlinkat(fs::CWD, path, AtFlags::REMOVEDIR)).at("remove mount point", path, id)?;
        if let Some(parent) = path.parent() {
            // Other things of the layer may be there.
            fs::unlinkat(fs::CWD, parent.join(EMPTY), AtFlags::REMOVEDIR).ok();
            fs::unlinkat(fs::CWD, parent, AtFlags::REMOVEDIR).ok();
        }
        return Ok(());
    }
    let fresh = format!("{MERGED}.1");
    match make_dir(&layer.dir, &fresh, 0o700, owner_of(&layer.dir)?) {
        Ok(_) | Err(Errno::EXIST) => {}
        // Then nobody puts files below the mount point either.
        Err(Errno::ROFS) => return Ok(()),
        Err(error) => return Err(Error::io("make directory", layer.path().join(fresh), id, error)),
    }
    match fs::renameat(&layer.dir, &fresh, &layer.dir, MERGED) {
        Ok(()) => Ok(()),
        Err(error) => {
            fs::unlinkat(&layer.dir, &fresh, AtFlags::REMOVEDIR).ok();
            match error {
                Errno::BUSY => Err(Error::InUse {
                    id: layer.id.clone(),
                    by: format!("a mount on {} that this process cannot see", path.display()),
                }),
                // Somebody put files below the mount point: they stay, and hinder nobody.
                Errno::NOTEMPTY | Errno::EXIST => Ok(()),
                error => Err(Error::io("replace mount point", path, id, error)),
            }
        }
    }
}

/// The words every mount of ours needs besides those asked for.
pub(super) fn own_words(words: &mut Words, namespace: XattrNamespace) -> Result<()> {
    if namespace == XattrNamespace::User && !words.has("userxattr") {
        words.add("userxattr")?;
    }
    Ok(())
}
