//! Copying between layers and the host. Every path is resolved inside its layer, on both ends, `..` and symbolic links
//! included, and nothing is followed while a tree is copied.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use graph_archive::copy::{CopyOptions, Owners, copy_file, copy_tree};
use graph_archive::{IdMappings, idmap::IdPair};
use graph_store::{MountOptions, Store};
use graph_sys::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Uid};
use graph_sys::io::Errno;
use graph_sys::resolve::RootDir;

use super::Outcome;
use crate::output;

/// A path on the host, or in a layer or container.
struct Place<'w> {
    word: &'w str,
    layer: Option<&'w str>,
    path: Vec<u8>,
}

impl<'w> Place<'w> {
    fn parse(word: &'w str) -> Result<Self> {
        // What begins like a path is one, colons or not.
        let named = if word.starts_with(['/', '.']) { None } else { word.split_once(':') };
        match named {
            Some((layer, path)) if !layer.is_empty() => {
                Ok(Self { word, layer: Some(layer), path: path.as_bytes().to_owned() })
            }
            _ => {
                let absolute = std::path::absolute(word).with_context(|| format!("bad path {word:?}"))?;
                let mut path = absolute.as_os_str().as_bytes().to_owned();
                if word.ends_with('/') && !path.ends_with(b"/") {
                    path.push(b'/');
                }
                Ok(Self { word, layer: None, path })
            }
        }
    }
}

/// A layer that is mounted for the time of the copy, or the host's tree.
struct Tree<'s> {
    store: &'s Store,
    mounted: Option<&'s str>,
    root: RootDir,
    mappings: IdMappings,
}

impl<'s> Tree<'s> {
    fn open(store: &'s Store, place: &Place<'s>) -> Result<Self> {
        let Some(layer) = place.layer else {
            return Ok(Self { store, mounted: None, root: RootDir::open("/")?, mappings: IdMappings::default() });
        };
        let mappings = match store.container(layer) {
            Ok(container) if store.layer(layer).is_err() => container.mappings(),
            _ => store.layer(layer)?.mappings(),
        };
        let path: PathBuf = store.mount(layer, &MountOptions::default())?;
        // From here on it is unmounted by drop.
        let root = RootDir::open(path.as_path());
        let unmounted = |_: &Errno| drop(store.unmount(layer, false));
        let root = root.inspect_err(unmounted).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { store, mounted: Some(layer), root, mappings })
    }

    /// Gives the mount up.
    fn close(mut self) -> Result<()> {
        let mounted = self.mounted.take();
        let store = self.store;
        // The directory must not be open any more.
        drop(self);
        if let Some(layer) = mounted {
            store.unmount(layer, false)?;
        }
        Ok(())
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        if let Some(layer) = self.mounted.take() {
            if let Ok(root) = RootDir::open("/") {
                self.root = root;
            }
            // On the way out with an error already.
            drop(self.store.unmount(layer, false));
        }
    }
}

/// Owners by container ids: `UID` or `UID:GID`; a lone user's group is of the same number.
fn parse_owner(word: &str) -> Result<IdPair> {
    let (uid, gid) = word.split_once(':').unwrap_or((word, word));
    let number = |what: &str, text: &str| text.parse::<u32>().map_err(|error| anyhow!("bad {what}: {text:?}: {error}"));
    Ok(IdPair { uid: number("UID", uid)?, gid: number("GID", gid)? })
}

pub(crate) fn copy(store: &Store, words: &[String], owner: Option<&str>, json: bool) -> Result<Outcome> {
    let all = owner.filter(|owner| !owner.is_empty()).map(parse_owner).transpose()?;
    let Some((target, sources)) = words.split_last() else { bail!("nothing to copy to") };
    let known = |layer: &str| store.layer(layer).is_ok() || store.container(layer).is_ok();
    let target = Place::parse(target)?;
    let sources = sources.iter().map(|word| Place::parse(word)).collect::<Result<Vec<_>>>()?;
    // All are looked for before anything is copied.
    for place in sources.iter().chain(std::iter::once(&target)) {
        if let Some(layer) = place.layer.filter(|layer| !known(layer)) {
            bail!("error finding layer {:?}: layer not known", output::safe(layer));
        }
    }
    let to = Tree::open(store, &target)?;
    for source in &sources {
        let from = Tree::open(store, source)?;
        let copied = copy_one(&from, source, &to, &target, all);
        copied.with_context(|| {
            format!("error copying {:?} to {:?}", output::safe(source.word), output::safe(target.word))
        })?;
        from.close()?;
    }
    to.close()?;
    if json {
        output::json("")?;
    }
    Ok(Outcome::Done)
}

fn copy_one(from: &Tree<'_>, source: &Place<'_>, to: &Tree<'_>, target: &Place<'_>, all: Option<IdPair>) -> Result<()> {
    let options = CopyOptions {
        owners: Owners { source: from.mappings.clone(), destination: to.mappings.clone(), all },
        merge: true,
        in_user_namespace: graph_sys::userns::is_in_user_namespace().unwrap_or(false),
        ..CopyOptions::default()
    };
    let owner = to.mappings.to_host(all.unwrap_or(IdPair { uid: 0, gid: 0 }), &target.path)?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    match from.root.open_in_root(&source.path, directory) {
        Ok(tree) => {
            let into = directories(&to.root, &target.path, owner)?;
            copy_tree(tree.as_fd(), into.as_fd(), &options)?;
            return Ok(());
        }
        Err(Errno::NOTDIR) if !source.path.ends_with(b"/") => {}
        Err(error) => {
            return Err(std::io::Error::from(error)).with_context(|| format!("stat {}", output::safe(source.word)));
        }
    }
    let (parent, name) = followed(&from.root, &source.path)?;
    match to.root.open_in_root(&target.path, directory) {
        Ok(into) => {
            // Into a directory under its own name, as cp does it.
            let own = last(&source.path).context("the source has no name")?;
            copy_file(parent.as_fd(), &name, into.as_fd(), own, &options)?;
        }
        Err(error) if target.path.ends_with(b"/") => return Err(std::io::Error::from(error).into()),
        Err(_) => {
            let own = last(&target.path).context("the target has no name")?;
            let above = &target.path[..target.path.len() - own.len()];
            let into = directories(&to.root, above, owner)?;
            copy_file(parent.as_fd(), &name, into.as_fd(), own, &options)?;
        }
    }
    Ok(())
}

/// The last component, unless it has no name of its own.
fn last(path: &[u8]) -> Option<&[u8]> {
    path.rsplit(|byte| *byte == b'/').next().filter(|name| !name.is_empty() && *name != b"." && *name != b"..")
}

/// The directory and name of what a path means when links at its end are followed, inside the root.
fn followed(root: &RootDir, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
    let mut path = path.to_owned();
    // As many as the kernel follows.
    for _ in 0..40 {
        let (parent, name) = root.open_parent_in_root(&path).map_err(std::io::Error::from)?;
        let name = name.to_owned();
        let stat = fs::statat(&parent, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).map_err(std::io::Error::from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok((parent, name));
        }
        let link = fs::readlinkat(&parent, name.as_slice(), Vec::new()).map_err(std::io::Error::from)?.into_bytes();
        if link.starts_with(b"/") {
            path = link;
        } else {
            path.truncate(path.len() - name.len());
            path.extend_from_slice(&link);
        }
    }
    Err(std::io::Error::from(Errno::LOOP).into())
}

/// Opens a directory, making it and those above it where they are missing.
fn directories(root: &RootDir, path: &[u8], owner: IdPair) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut end = 0;
    for component in path.split_inclusive(|byte| *byte == b'/') {
        end += component.len();
        let so_far = &path[..end];
        match root.open_in_root(so_far, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let said = || format!("mkdir {}", output::safe(&String::from_utf8_lossy(so_far)));
                make(root, so_far, owner).map_err(std::io::Error::from).with_context(said)?;
            }
            Err(error) => {
                let said = || format!("mkdir {}", output::safe(&String::from_utf8_lossy(so_far)));
                return Err(std::io::Error::from(error)).with_context(said);
            }
        }
    }
    Ok(root.open_in_root(path, flags).map_err(std::io::Error::from)?)
}

fn make(root: &RootDir, path: &[u8], owner: IdPair) -> Result<(), Errno> {
    let (parent, name) = root.open_parent_in_root(path)?;
    fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    let own = |parent: BorrowedFd<'_>| {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
    };
    own(parent.as_fd())
}
