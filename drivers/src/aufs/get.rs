//! `get` and `put`: what is asked for, put together for a mount.

use std::path::{Path, PathBuf};

use graph_core::driver::{GetOptions, Mounted};
use graph_core::{Error, LayerId, Result, fsutil};
use graph_sys::mount::{MountFlags, UnmountFlags};
use graph_sys::statfs::{self, Magic};

use super::DRIVER;
use super::driver::Aufs;
use super::layout::check_depth;
use super::mount::{Stack, plain};
use super::options::check_words;
use super::unmount::unmount_layer;
use crate::support::context::Context;

/// Where AUFS keeps its table of inode numbers if the run root cannot be told to it: containers/storage's place.
const XINO: &str = "/dev/shm/aufs.xino";

/// Words of mount options that are flags of the mount, not options of AUFS.
const FLAGS: [(&str, MountFlags); 6] = [
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("nosuid", MountFlags::NOSUID),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
];

impl Aufs {
    /// Mounts the layer, or takes one more reference. A base layer's tree is its own directory.
    pub(super) fn get_layer(&self, id: &LayerId, options: &GetOptions) -> Result<Mounted<'_>> {
        let parents = self.home.parents(id)?;
        check_depth(id, parents.len())?;
        if !options.disable_shifting && !options.mappings.is_identity() {
            return Err(self.unsupported("showing a layer through ID mappings (its files have to be re-owned)"));
        }
        let words = self.words(id, options)?;
        if parents.is_empty() {
            self.home.open_diff(id)?;
            return Ok(Mounted::new(self.home.diff_path(id), || Ok(())));
        }
        if let Err(reason) = &self.kernel {
            return Err(Error::Unsupported {
                driver: DRIVER.to_owned(),
                operation: format!(
                    "mounting layer {id} ({reason}; layers can be read and compared, and the store converted: convert --to overlay)"
                ),
            });
        }
        let upper = self.home.open_diff(id)?;
        // A missing one is told by name; the kernel would only say that an argument is not valid.
        self.home.open_chain(id, &parents)?;
        let target = self.home.mount_path(id);
        self.mounts.get(&target, || {
            self.home.make_mount_point(id, &upper)?;
            let read_only = options.options.iter().any(|word| word == "ro");
            self.stack(id, &target, &parents, read_only, words).mount(&*self.mounter)
        })?;
        let id = id.clone();
        Ok(Mounted::new(target, move || self.put_layer(&id)))
    }

    /// Gives up a reference.
    pub(super) fn put_layer(&self, id: &LayerId) -> Result<()> {
        let target = self.home.mount_path(id);
        match self.home.parents(id) {
            Ok(parents) if parents.is_empty() => return Ok(()),
            Ok(_) => {}
            // Removed, and the mount with it.
            Err(Error::LayerUnknown { .. }) if self.mounts.references(&target) > 0 => {
                return self.mounts.put(&target, || Ok(())).map(drop);
            }
            Err(error) => return Err(error),
        }
        let upper = self.home.open_diff(id)?;
        self.mounts.put(&target, || unmount_layer(&*self.mounter, &target, id, &upper)).map(drop)
    }

    /// What is to be mounted; `words` as [`Aufs::words`] made them.
    pub(super) fn stack<'s>(
        &self,
        id: &'s LayerId,
        target: &'s Path,
        parents: &[LayerId],
        read_only: bool,
        (words, flags): (Vec<String>, MountFlags),
    ) -> Stack<'s> {
        let lowers: Vec<PathBuf> = parents.iter().map(|parent| self.home.diff_path(parent)).collect();
        Stack { id, target, upper: self.home.diff_path(id), lowers, read_only, words, flags }
    }

    /// The options of the mount.
    pub(super) fn words(&self, id: &LayerId, options: &GetOptions) -> Result<(Vec<String>, MountFlags)> {
        let asked: Vec<&str> = options.options.iter().map(String::as_str).filter(|word| *word != "ro").collect();
        let refuse = |problem| Error::Config { place: format!("mount options for layer {id}"), problem };
        check_words(asked.iter().copied()).map_err(refuse)?;
        let mut words = vec!["dio".to_owned(), format!("xino={}", self.xino(id))];
        if self.dirperm1 {
            words.push("dirperm1".to_owned());
        }
        let mut flags = MountFlags::empty();
        let configured = self.options.mount_options.split(',').filter(|word| asked.is_empty() && !word.is_empty());
        for word in configured.chain(asked.iter().copied()) {
            match FLAGS.iter().find(|(name, _)| *name == word) {
                Some((_, flag)) => flags |= *flag,
                None if words.iter().any(|have| have == word) => {}
                None => words.push(word.to_owned()),
            }
        }
        if !options.mount_label.is_empty() {
            words.push(format!("context=\"{}\"", options.mount_label));
        }
        Ok((words, flags))
    }

    fn xino(&self, id: &LayerId) -> String {
        let own = self.run_path.join("aufs.xino");
        match (plain(id, &own), own.to_str()) {
            (Ok(_), Some(own)) if self.run_holds_xino => own.to_owned(),
            _ => XINO.to_owned(),
        }
    }
}

/// Whether AUFS can keep its table there. It cannot on the file systems that stack others.
pub(super) fn can_hold_xino(run_path: &Path) -> Result<bool> {
    let directory = fsutil::create_directories(run_path)?;
    let magic = statfs::magic(&directory).at("statfs", run_path, None)?;
    Ok(!matches!(magic, Magic::AUFS | Magic::OVERLAY | Magic::NFS | Magic::FUSE | Magic::ECRYPTFS))
}

/// Whether directories' permissions are those of the uppermost branch that has them (`dirperm1`): found by a mount, as
/// containers/storage does.
pub(super) fn has_dirperm1(aufs: &Aufs) -> Result<bool> {
    let mut temporary = aufs.home.temp_dir()?;
    let (base_addition, _base) = temporary.add_directory(0o700)?;
    let (union_addition, _union) = temporary.add_directory(0o700)?;
    let (base, union) = (temporary.addition_path(&base_addition), temporary.addition_path(&union_addition));
    let id = LayerId::new("dirperm1")?;
    let mut options = b"br:".to_vec();
    options.extend_from_slice(plain(&id, &base)?);
    options.extend_from_slice(format!("=rw,dirperm1,xino={}", aufs.xino(&id)).as_bytes());
    let works = match aufs.mounter.mount(&union, MountFlags::empty(), &options) {
        Ok(()) => {
            aufs.mounter
                .unmount(&union, UnmountFlags::DETACH)
                .map_err(|error| Error::io("unmount", &union, None, error))?;
            true
        }
        Err(error) => {
            tracing::debug!(%error, "trying dirperm1");
            false
        }
    };
    temporary.finish()?;
    Ok(works)
}
