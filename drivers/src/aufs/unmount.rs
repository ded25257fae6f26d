//! Taking a mount down: its hard links made whole first, tried again while it is busy, and a word on who keeps it so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use graph_core::{Error, LayerId, Result, fsutil};
use graph_sys::fs;
use graph_sys::io::Errno;
use graph_sys::mount::UnmountFlags;

use super::flush::flush;
use super::mounter::{Kernel, Mounter};
use crate::support::context::Context;

/// How often a busy mount is tried again, and how long is waited in between: containers/storage's numbers.
const RETRIES: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How many processes are named that keep a mount busy.
const HOLDERS_NAMED: usize = 5;

/// Unmounts the AUFS at `target`, having given every name of its files that have several to the uppermost branch. Nothing
/// mounted is no error.
///
/// The branch that was written to is the first one that the kernel tells of. Where it tells none, nothing is known of links
/// that are not whole, and the mount is only taken down.
///
/// # Errors
/// `EBUSY` with the names of processes that use it, `EPERM`.
#[doc(alias = "Unmount")]
pub fn unmount(target: &Path) -> Result<()> {
    let mounter = Kernel;
    if !mounter.is_mounted(target).at("look at the mount point", target, None)? {
        return Ok(());
    }
    let branches = mounter.branches(target).at("read the branches of", target, None)?.unwrap_or_default();
    let written = branches.first().and_then(|branch| branch.strip_suffix(b"=rw"));
    if let Some(path) = written {
        let path = PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
        flush(target, &fsutil::open_directory(&path)?).at("make the hard links whole of", target, None)?;
    }
    take_down(&mounter, target, None, RETRY_AFTER)
}

/// Unmounts a layer whose content is `upper`.
pub(super) fn unmount_layer(
    mounter: &dyn Mounter,
    target: &Path,
    id: &LayerId,
    upper: &impl std::os::fd::AsFd,
) -> Result<()> {
    if !mounter.is_mounted(target).at("look at the mount point", target, Some(id))? {
        return Ok(());
    }
    flush(target, upper).at("make the hard links whole of", target, Some(id))?;
    take_down(mounter, target, Some(id), RETRY_AFTER)
}

pub(super) fn take_down(mounter: &dyn Mounter, target: &Path, id: Option<&LayerId>, wait: Duration) -> Result<()> {
    let mut tried = 0;
    loop {
        let error = match mounter.unmount(target, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match error.errno() {
            // Somebody else was faster.
            Errno::INVAL if !mounter.is_mounted(target).at("look at the mount point", target, id)? => return Ok(()),
            Errno::BUSY if tried < RETRIES => {
                tried += 1;
                std::thread::sleep(wait);
            }
            Errno::BUSY => {
                let holders = holders(target);
                return Err(match id {
                    Some(id) => Error::InUse {
                        id: id.clone(),
                        by: format!("{holders}, which uses {}; end it, then unmount again", target.display()),
                    },
                    None => Error::io("unmount", target, None, std::io::Error::other(format!("in use by {holders}"))),
                });
            }
            _ => return Err(Error::io("unmount", target, id, error)),
        }
    }
}

/// The processes with a file of the mount open, mapped, or as their directory or root.
fn holders(target: &Path) -> String {
    let Ok(mount) = fs::stat(target) else { return "an unknown process".to_owned() };
    let mut found: BTreeSet<u32> = BTreeSet::new();
    let processes = list("/proc");
    for process in processes.iter().filter_map(|name| name.parse::<u32>().ok()) {
        let base = format!("/proc/{process}");
        let names = ["cwd", "root", "exe"].map(str::to_owned).into_iter();
        let names = names.chain(list(&format!("{base}/fd")).into_iter().map(|name| format!("fd/{name}")));
        let names = names.chain(list(&format!("{base}/map_files")).into_iter().map(|name| format!("map_files/{name}")));
        for name in names {
            if fs::stat(format!("{base}/{name}").as_str()).is_ok_and(|stat| stat.st_dev == mount.st_dev) {
                found.insert(process);
                break;
            }
        }
    }
    let describe = |process: &u32| {
        let command = fsutil::read_small_path(Path::new(&format!("/proc/{process}/comm")), 4096).unwrap_or_default();
        format!("{} (process {process})", String::from_utf8_lossy(&command).trim_end())
    };
    let named: Vec<String> = found.iter().take(HOLDERS_NAMED).map(describe).collect();
    match (named.is_empty(), found.len().saturating_sub(named.len())) {
        (true, _) => "a process in another process namespace, or a mount below it".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{} and {more} more", named.join(", ")),
    }
}

fn list(path: &str) -> Vec<String> {
    let Ok(directory) = fsutil::open_directory(Path::new(path)) else { return Vec::new() };
    let names = fsutil::list(&directory).unwrap_or_default();
    names.into_iter().filter_map(|name| name.into_string().ok()).collect()
}
