//! Which calls stack a layer on those below it.
//!
//! AUFS keeps the options of one call in a page: 84 of them fit, every branch counts as one, and with more of them kernels hang or
//! write where they should not. So no call gets more than [`CALL_OPTIONS`], nor more bytes than mount(2) takes; the
//! branches that are left are appended to the mount by as many calls more. Nothing can be escaped in AUFS's options:
//! branches need plain paths.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use graph_core::{Error, LayerId, Result};
use graph_sys::mount::{MountFlags, UnmountFlags, VALUE_MAX, classic};

use super::layout::check_depth;
use super::mounter::{Mounter, Setting};

/// Options in one call, branches among them.
pub(super) const CALL_OPTIONS: usize = 60;

/// What the options of a call may take, in bytes: what mount(2) copies.
const CALL_BYTES: usize = classic::OPTIONS_MAX;

/// What lower branches may do. Without `+wh` AUFS does not heed their whiteouts: what was deleted would come back.
const LOWER: &str = "ro+wh";

/// One mount.
#[derive(Clone, Debug)]
pub(super) struct Stack<'s> {
    pub(super) id: &'s LayerId,
    pub(super) target: &'s Path,
    /// The layer's own content.
    pub(super) upper: PathBuf,
    /// Those of the layers below, nearest first.
    pub(super) lowers: Vec<PathBuf>,
    pub(super) read_only: bool,
    /// Options of AUFS, `key` or `key=value`.
    pub(super) words: Vec<String>,
    /// Flags of the mount.
    pub(super) flags: MountFlags,
}

/// A path that can be an option's value.
pub(super) fn plain<'p>(id: &LayerId, path: &'p Path) -> Result<&'p [u8]> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().find(|byte| matches!(byte, b':' | b',' | b'=' | b'\n' | b'\\')) {
        None => Ok(bytes),
        Some(byte) => Err(Error::Config {
            place: format!("layer {id}: branch {}", path.display()),
            problem: format!(
                "AUFS takes no path with {:?} in it; move the store to another directory",
                char::from(*byte).to_string()
            ),
        }),
    }
}

impl Stack<'_> {
    /// All branches with their permissions, the uppermost first.
    fn branches(&self) -> Result<Vec<Vec<u8>>> {
        check_depth(self.id, self.lowers.len())?;
        let branch = |path: &Path, permission: &str| -> Result<Vec<u8>> {
            Ok([plain(self.id, path)?, b"=", permission.as_bytes()].concat())
        };
        let mut all = vec![branch(&self.upper, if self.read_only { LOWER } else { "rw" })?];
        for lower in &self.lowers {
            all.push(branch(lower, LOWER)?);
        }
        if let Some(branch) = all.iter().find(|branch| branch.len() + b"append:".len() > CALL_BYTES) {
            return Err(Error::Config {
                place: format!("layer {}", self.id),
                problem: format!("the path of a branch has {} bytes, more than fit into a mount call", branch.len()),
            });
        }
        Ok(all)
    }

    fn all_flags(&self) -> MountFlags {
        if self.read_only { self.flags | MountFlags::RDONLY } else { self.flags }
    }

    /// Mounts. Nothing stays mounted after an error.
    pub(super) fn mount(&self, mounter: &dyn Mounter) -> Result<()> {
        let branches = self.branches()?;
        let failed = |source: graph_sys::Error| Error::io("mount the aufs of", self.target, Some(self.id), source);
        let appended = match self.by_settings(mounter, &branches) {
            Some(done) => done,
            None => self.classic(mounter, &branches).map_err(failed)?,
        };
        let finish = || -> Result<()> {
            self.append(mounter, branches.get(appended..).unwrap_or_default()).map_err(failed)?;
            self.check(mounter, &branches)
        };
        finish().inspect_err(|_| {
            if let Err(error) = mounter.unmount(self.target, UnmountFlags::DETACH) {
                tracing::warn!(%error, target = %self.target.display(), "unmounting a layer that could not be mounted whole");
            }
        })
    }

    /// The mount with the first branches, option by option; how many. `None` where that cannot be done: the other calls do it then, or
    /// say what is wrong.
    fn by_settings(&self, mounter: &dyn Mounter, branches: &[Vec<u8>]) -> Option<usize> {
        // Their flags would have to be told as attributes of the mount.
        if !self.flags.is_empty() {
            return None;
        }
        let room = CALL_OPTIONS.saturating_sub(self.words.len());
        let first = branches.get(..room.min(branches.len())).unwrap_or_default();
        let mut settings = Vec::with_capacity(CALL_OPTIONS);
        for (position, branch) in first.iter().enumerate() {
            settings.push(Setting::Text(if position == 0 { "br" } else { "append" }, branch.clone()));
        }
        for word in &self.words {
            settings.push(match word.split_once('=') {
                None => Setting::Flag(word.clone()),
                Some(("xino", value)) => Setting::Text("xino", value.as_bytes().to_vec()),
                // Keys that the driver does not know have to go the other way.
                Some(_) => return None,
            });
        }
        let long = |setting: &Setting| matches!(setting, Setting::Text(_, value) if value.len() > VALUE_MAX);
        if settings.iter().any(long) {
            return None;
        }
        match mounter.mount_by_settings(self.target, self.read_only, &settings) {
            Ok(()) => Some(first.len()),
            Err(error) => {
                tracing::debug!(%error, "mounting option by option; trying with one string");
                None
            }
        }
    }

    /// The mount with as many branches as one call takes; how many.
    fn classic(&self, mounter: &dyn Mounter, branches: &[Vec<u8>]) -> graph_sys::Result<usize> {
        let words: String = self.words.iter().flat_map(|word| [",", word.as_str()]).collect();
        let mut options = b"br".to_vec();
        let mut count = 0_usize;
        for branch in branches {
            let bytes = options.len() + 1 + branch.len() + words.len();
            if count > 0 && (count + self.words.len() >= CALL_OPTIONS || bytes > CALL_BYTES) {
                break;
            }
            options.push(b':');
            options.extend_from_slice(branch);
            count += 1;
        }
        options.extend_from_slice(words.as_bytes());
        mounter.mount(self.target, self.all_flags(), &options)?;
        Ok(count)
    }

    /// Appends branches to the mount.
    fn append(&self, mounter: &dyn Mounter, branches: &[Vec<u8>]) -> graph_sys::Result<()> {
        let mut options: Vec<u8> = Vec::new();
        let mut count = 0_usize;
        for branch in branches {
            let bytes = options.len() + b",append:".len() + branch.len();
            if count == CALL_OPTIONS || (count > 0 && bytes > CALL_BYTES) {
                mounter.remount(self.target, self.all_flags(), &options)?;
                options.clear();
                count = 0;
            }
            if count > 0 {
                options.push(b',');
            }
            options.extend_from_slice(b"append:");
            options.extend_from_slice(branch);
            count += 1;
        }
        if count > 0 {
            mounter.remount(self.target, self.all_flags(), &options)?;
        }
        Ok(())
    }

    /// Compares the kernel's list of branches with what was asked for: a layer with one missing shows other files.
    fn check(&self, mounter: &dyn Mounter, branches: &[Vec<u8>]) -> Result<()> {
        let at = |source| Error::io("read the branches of", self.target, Some(self.id), source);
        let Some(found) = mounter.branches(self.target).map_err(at)? else { return Ok(()) };
        // The kernel may add attributes to what was asked for.
        let same = |(found, asked): (&Vec<u8>, &Vec<u8>)| found.starts_with(asked);
        if found.len() == branches.len() && found.iter().zip(branches).all(same) {
            return Ok(());
        }
        let problem = format!("AUFS has stacked {} branches where {} were asked for", found.len(), branches.len());
        Err(Error::io("mount the aufs of", self.target, Some(self.id), std::io::Error::other(problem)))
    }
}
