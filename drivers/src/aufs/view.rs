//! A layer's whole tree for reading, attached nowhere.
//!
//! Where the kernel has AUFS, it makes the tree. Elsewhere the overlay file system shows the same: it stacks the layers'
//! directories too, and only the form of their marks is foreign to it. So beside each layer that has marks, directories on a
//! small file system in memory are stacked that say the same in the overlay's words:
//!
//! ```text
//!   above the layer   whiteouts for the marks themselves, `.wh.*`, which nobody is to see (and for what lies beside its own whiteout)
//!   the layer
//!   below the layer   whiteouts for what its marks take away, and opaque directories
//! ```
//!
//! Both hold nothing but the directories on the way to a mark; those above have the attributes of the layer's own, because
//! the uppermost directory of a name gives its attributes to all.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use graph_archive::walk::{Descent, is_gone};
use graph_archive::whiteout::{PREFIX, Whiteout};
use graph_core::driver::GetOptions;
use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use graph_sys::getdents::{DirBuffer, OwnedEntry};
use graph_sys::io::Errno;
use graph_sys::mount::{DetachedMount, FsContext, MountAttrFlags, MountFlags, UnmountFlags, classic};
use graph_sys::resolve::RootDir;
use graph_sys::special;
use graph_sys::xattr::{self, SetMode};

use super::DRIVER;
use super::driver::Aufs;
use super::layout::open_directory;
use super::unmount::take_down;
use crate::support::context::{ArchiveContext, Context};

/// fsconfig's key for one of overlay's lower directories, Linux 6.5.
const LOWER_KEY: &str = "lowerdir+";

/// Attributes of the overlay's own.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

impl Aufs {
    /// Opens the root of the layer's whole tree.
    pub(super) fn look_into(&self, id: &LayerId) -> Result<OwnedFd> {
        let parents = self.home.parents(id)?;
        let upper = self.home.open_diff(id)?;
        if self.kernel.is_ok() && !parents.is_empty() {
            return self.look_by_aufs(id, &parents);
        }
        let mut layers = vec![upper];
        layers.extend(self.home.open_chain(id, &parents)?);
        self.look_by_overlay(id, layers)
    }

    /// A mount where nobody knows, copied and taken down again.
    fn look_by_aufs(&self, id: &LayerId, parents: &[LayerId]) -> Result<OwnedFd> {
        super::layout::check_depth(id, parents.len())?;
        let mut temporary = self.home.temp_dir()?;
        let (addition, _directory) = temporary.add_directory(0o700)?;
        let target = temporary.addition_path(&addition);
        let words = self.words(id, &GetOptions::default())?;
        self.stack(id, &target, parents, true, words).mount(&*self.mounter)?;
        let copy = open_directory(fs::CWD, &target.to_string_lossy())
            .map_err(graph_sys_error)
            .and_then(|root| DetachedMount::copy_of(root, b"", false).map_err(std::io::Error::from))
            .at("copy the mount on", &target, Some(id));
        take_down(&*self.mounter, &target, Some(id), std::time::Duration::from_millis(20))?;
        temporary.finish()?;
        reopen(&copy?).at("open", &target, Some(id))
    }

    fn look_by_overlay(&self, id: &LayerId, layers: Vec<OwnedFd>) -> Result<OwnedFd> {
        let path = self.home.path();
        let failed = |operation| move |error: graph_sys::Error| Error::io(operation, path, Some(id), error);
        let mut temporary = self.home.temp_dir()?;
        let (addition, place) = temporary.add_directory(0o700)?;
        let memory = FsContext::open("tmpfs")
            .and_then(|context| {
                context.set_string("mode", b"0700")?;
                context.create(MountAttrFlags::empty())
            })
            .and_then(|mount| mount.attach(&place))
            .map_err(failed("mount a file system in memory for"))?;
        drop(place);
        let scratch = open_directory(&memory, ".").at("open", temporary.addition_path(&addition), Some(id))?;
        let mut stack = Vec::with_capacity(layers.len());
        for (number, layer) in layers.into_iter().enumerate() {
            let shadows = Shadows::of(&layer, &scratch, number, id)?;
            stack.extend(shadows.above);
            stack.push(layer);
            stack.extend(shadows.below);
        }
        let opened = match stack.as_slice() {
            // The layer itself shows all.
            [only] => reopen(only).at("open", path, Some(id)),
            stack => stacked(stack, &scratch).and_then(|mount| Ok(reopen(&mount)?)).at(
                "show by the overlay file system",
                path,
                Some(id),
            ),
        };
        // The overlay holds what it needs of it.
        drop((scratch, stack));
        memory.unmount().map_err(failed("unmount"))?;
        temporary.finish()?;
        opened
    }
}

fn graph_sys_error(error: Errno) -> std::io::Error {
    error.into()
}

/// The same directory, for reading: mounts come as descriptors that only name them.
fn reopen(directory: &impl AsFd) -> Result<OwnedFd, Errno> {
    open_directory(directory, ".")
}

/// An overlay of nothing but lower directories.
fn stacked(stack: &[OwnedFd], scratch: &OwnedFd) -> std::io::Result<DetachedMount> {
    let context = FsContext::open("overlay")?;
    context.set_string("source", DRIVER.as_bytes())?;
    // Attributes of a layer's files that mean something to the overlay came from somewhere else.
    context.set_string("redirect_dir", b"nofollow")?;
    for (position, directory) in stack.iter().enumerate() {
        match context.set_directory(LOWER_KEY, directory) {
            Ok(()) => {}
            Err(error) if position == 0 && matches!(error.errno(), Errno::INVAL | Errno::OPNOTSUPP) => {
                return stacked_classic(stack, scratch);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(context.create(MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

/// The same on kernels before 6.5, as far as a page of options reaches: some 200 directories.
fn stacked_classic(stack: &[OwnedFd], scratch: &OwnedFd) -> std::io::Result<DetachedMount> {
    let name = "merged";
    fs::mkdirat(scratch, name, Mode::RWXU)?;
    let target = open_directory(scratch, name)?;
    let paths: Vec<String> = stack.iter().map(|directory| format!("/proc/self/fd/{}", directory.as_raw_fd())).collect();
    let options = format!("redirect_dir=nofollow,lowerdir={}", paths.join(":"));
    let path = format!("/proc/self/fd/{}", target.as_raw_fd());
    classic::mount(b"aufs", path.as_bytes(), "overlay", MountFlags::RDONLY, options.as_bytes())?;
    let root = open_directory(scratch, name)?;
    let copy = DetachedMount::copy_of(&root, b"", false);
    classic::unmount(format!("/proc/self/fd/{}", root.as_raw_fd()).as_bytes(), UnmountFlags::DETACH)?;
    Ok(copy?)
}

/// What is stacked beside a layer.
struct Shadows {
    above: Option<OwnedFd>,
    below: Option<OwnedFd>,
}

/// One of the two being made.
struct Shadow<'s> {
    scratch: &'s OwnedFd,
    name: String,
    root: Option<OwnedFd>,
    /// Paths of directories that are there.
    made: HashSet<Vec<u8>>,
    /// Whose attributes the directories get, if any.
    like: Option<&'s RootDir>,
}

impl Shadow<'_> {
    /// The directory of that path, made where it is missing.
    fn directory(&mut self, path: &[u8]) -> graph_archive::Result<OwnedFd> {
        let failed = |error: Errno| graph_archive::Error::io("make a directory beside", path, error);
        let root = match &self.root {
            Some(root) => root,
            None => {
                fs::mkdirat(self.scratch, self.name.as_str(), Mode::RWXU).map_err(failed)?;
                let root = open_directory(self.scratch, &self.name).map_err(failed)?;
                if let Some(like) = self.like {
                    take_attributes(like, b"", &root)?;
                }
                self.made.insert(Vec::new());
                self.root.insert(root)
            }
        };
        let mut at = root.try_clone().map_err(|error| graph_archive::Error::io("open", path, error))?;
        let mut done = Vec::new();
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(part);
            let is_new = self.made.insert(done.clone());
            if is_new {
                fs::mkdirat(&at, part, Mode::RWXU).map_err(failed)?;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = fs::openat(&at, part, flags, Mode::empty()).map_err(failed)?;
            if is_new && let Some(like) = self.like {
                take_attributes(like, &done, &at)?;
            }
        }
        Ok(at)
    }

    fn whiteout(&mut self, path: &[u8], name: &[u8]) -> graph_archive::Result<()> {
        match special::make_whiteout(self.directory(path)?, name) {
            Ok(()) => Ok(()),
            // Two marks said so.
            Err(error) if error == Errno::EXIST => Ok(()),
            Err(error) => Err(graph_archive::Error::io("hide", [path, b"/", name].concat(), error)),
        }
    }

    /// Gives the directories the times of the layer's, now that all is in them.
    fn finish(self) -> graph_archive::Result<Option<OwnedFd>> {
        if let (Some(root), Some(like)) = (&self.root, self.like) {
            let shadow =
                RootDir::from_fd(root.try_clone().map_err(|e| graph_archive::Error::io("open", b".".as_slice(), e))?);
            for path in &self.made {
                let failed = |error: Errno| graph_archive::Error::io("set times beside", path.as_slice(), error);
                let stat = fs::fstat(at(like, path).map_err(failed)?).map_err(failed)?;
                let nanoseconds = |value| i64::try_from(value).unwrap_or(0);
                let times = Timestamps {
                    last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanoseconds(stat.st_atime_nsec) },
                    last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds(stat.st_mtime_nsec) },
                };
                fs::futimens(at(&shadow, path).map_err(failed)?, &times).map_err(failed)?;
            }
        }
        Ok(self.root)
    }
}

fn at(root: &RootDir, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    root.open_beneath(std::ffi::OsStr::from_bytes(path).as_bytes(), flags, Mode::empty())
}

fn take_attributes(like: &RootDir, path: &[u8], to: &OwnedFd) -> graph_archive::Result<()> {
    let failed = |error: Errno| graph_archive::Error::io("copy the attributes of", path, error);
    let from = at(like, path).map_err(failed)?;
    let stat = fs::fstat(&from).map_err(failed)?;
    fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(failed)?;
    for name in xattr::list(&from).map_err(failed)?.iter() {
        if name != b"security.selinux"
            && !name.starts_with(b"trusted.overlay.")
            && let Some(value) = xattr::get(&from, name).map_err(failed)?
        {
            xattr::set(to, name, &value, SetMode::CreateOrReplace).map_err(failed)?;
        }
    }
    fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed)
}

impl Shadows {
    fn of(layer: &OwnedFd, scratch: &OwnedFd, number: usize, id: &LayerId) -> Result<Self> {
        let owned = layer.try_clone().at("open", "the layer's directory", Some(id))?;
        make(layer, &RootDir::from_fd(owned), scratch, number).of_layer(id)
    }
}

fn make(layer: &OwnedFd, like: &RootDir, scratch: &OwnedFd, number: usize) -> graph_archive::Result<Shadows> {
    let shadow =
        |name: &str, like| Shadow { scratch, name: format!("{name}{number}"), root: None, made: HashSet::new(), like };
    let (mut above, mut below) = (shadow("above", Some(like)), shadow("below", None));
    let mut buffer = DirBuffer::new();
    let mut descent = Descent::new(layer.as_fd())?;
    let mut waiting: Vec<std::vec::IntoIter<OwnedEntry>> = Vec::new();
    let mut names = marks(&descent, &mut buffer, &mut above, &mut below)?;
    loop {
        waiting.push(names);
        names = loop {
            let Some(level) = waiting.last_mut() else {
                return Ok(Shadows { above: above.finish()?, below: below.finish()? });
            };
            let Some(entry) = level.next() else {
                waiting.pop();
                descent.leave()?;
                continue;
            };
            if !matches!(entry.file_type, FileType::Directory | FileType::Unknown) {
                continue;
            }
            match descent.enter(&entry.name) {
                Ok(()) => break marks(&descent, &mut buffer, &mut above, &mut below)?,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        };
    }
}

/// Translates the marks of the current directory. Gives back the names that are seen in it.
fn marks(
    descent: &Descent,
    buffer: &mut DirBuffer,
    above: &mut Shadow<'_>,
    below: &mut Shadow<'_>,
) -> graph_archive::Result<std::vec::IntoIter<OwnedEntry>> {
    let path = descent.path();
    let mut names = descent.list(buffer)?;
    let hidden: HashSet<Vec<u8>> =
        names.iter().filter_map(|entry| entry.name.strip_prefix(PREFIX)).map(<[u8]>::to_vec).collect();
    if hidden.is_empty() {
        return Ok(names.into_iter());
    }
    for entry in &names {
        let name = entry.name.as_slice();
        match Whiteout::parse(name) {
            Ok(None) if !hidden.contains(name) => continue,
            Ok(Some(Whiteout::Remove(removed))) => below.whiteout(path, removed)?,
            // The root of a branch is never opaque.
            Ok(Some(Whiteout::Opaque)) if !path.is_empty() => {
                xattr::set(below.directory(path)?, OPAQUE, b"y", SetMode::CreateOrReplace)
                    .map_err(|error| graph_archive::Error::io("mark opaque", path, error))?;
            }
            // AUFS's own, or beside its whiteout.
            Ok(Some(_) | None) | Err(_) => {}
        }
        above.whiteout(path, name)?;
    }
    names.retain(|entry| !entry.name.starts_with(PREFIX) && !hidden.contains(&entry.name));
    Ok(names.into_iter())
}
