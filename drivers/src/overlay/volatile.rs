//! The mark that a `volatile` mount leaves in the work directory.
//!
//! The kernel makes `work/work/incompat/volatile` when it mounts without syncing, and from then on refuses every mount of
//! that upper directory: after a crash its files may be anything. It never takes the mark away itself. Peers remove it
//! before each mount, and so reuse a damaged layer without a word.
//!
//! Here the mark may go if nothing can have been lost: when the mount was made since the machine was started. A note
//! with the boot's id in the run home says so; for mounts that a peer made, the mark's own time of change does. Otherwise
//! the layer is reported, and somebody has to decide.

use std::os::fd::{AsFd, OwnedFd};

use graph_core::{Error, LayerId, Result};
use graph_sys::fs::{self, Mode};
use graph_sys::io::Errno;
use graph_sys::time::{ClockId, clock_gettime};

use super::layout::{Context, Flush, Layer, Small, WORK, make_dirs, open_dir, optional, read_small};

/// Where the kernel puts the mark, below the layer's `work`.
const MARK_PARENT: &str = "work/incompat";
const MARK: &str = "volatile";
/// Our note, in the layer's run directory.
const NOTE: &str = "volatile-boot";

/// Makes the layer mountable if it may be, and notes that it is about to be mounted `volatile`.
///
/// # Errors
/// [`Error::Corrupt`] when it was mounted `volatile` before the machine was last started.
pub(super) fn prepare(layer: &Layer<'_>, run_home: &std::path::Path, volatile: bool) -> Result<()> {
    prepare_at(layer, run_home, volatile, started_at())
}

/// [`prepare`] on a machine that was started at that time, in seconds since the epoch.
pub(super) fn prepare_at(layer: &Layer<'_>, run_home: &std::path::Path, volatile: bool, started_at: i64) -> Result<()> {
    let run = run_home.join(layer.id.as_str());
    let boot = boot_id();
    if let Some(parent) = mark_parent(layer)?
        && let Some(changed) = changed_at(&parent).at("read the status of", mark_path(layer), Some(&layer.id))?
    {
        let noted = match optional(open_dir(fs::CWD, &run)).at("open", &run, Some(&layer.id))? {
            Some(dir) => read_small(&dir, NOTE).at("read", run.join(NOTE), Some(&layer.id))?,
            None => Small::Absent,
        };
        let ours = boot.is_some() && matches!(noted, Small::Text(text) if Some(&text) == boot.as_ref());
        if !ours && changed < started_at {
            return Err(interrupted(layer));
        }
        graph_sys::remove::remove_tree(&parent, MARK).map_err(std::io::Error::other).at(
            "remove the volatile mark",
            mark_path(layer),
            Some(&layer.id),
        )?;
    }
    if volatile && let Some(boot) = boot {
        make_dirs(&run, Mode::RWXU)?;
        let dir = open_dir(fs::CWD, &run).at("open", &run, Some(&layer.id))?;
        write_note(&dir, &boot).at("write", run.join(NOTE), Some(&layer.id))?;
    }
    Ok(())
}

/// Forgets the note of a layer that is gone.
pub(super) fn forget(run_home: &OwnedFd, id: &LayerId) {
    if let Ok(Some(dir)) = optional(open_dir(run_home, id.as_str())) {
        fs::unlinkat(&dir, NOTE, fs::AtFlags::empty()).ok();
        // Not empty while something is mounted there.
        fs::unlinkat(run_home, id.as_str(), fs::AtFlags::REMOVEDIR).ok();
    }
}

fn write_note(dir: &OwnedFd, boot: &str) -> std::io::Result<()> {
    match fs::unlinkat(dir, NOTE, fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    super::layout::write_small(dir, NOTE, boot, None, Flush::No)
}

fn mark_path(layer: &Layer<'_>) -> std::path::PathBuf {
    layer.path().join(WORK).join(MARK_PARENT).join(MARK)
}

fn mark_parent(layer: &Layer<'_>) -> Result<Option<OwnedFd>> {
    // Component by component, because nothing here may be followed.
    let Some(mut dir) = layer.open_optional(WORK)? else { return Ok(None) };
    for name in MARK_PARENT.split('/') {
        match optional(open_dir(&dir, name)).at("open", mark_path(layer), Some(&layer.id))? {
            Some(below) => dir = below,
            None => return Ok(None),
        }
    }
    Ok(Some(dir))
}

/// When the mark was last changed, seconds since the epoch; `None` without a mark.
fn changed_at(parent: impl AsFd) -> std::result::Result<Option<i64>, Errno> {
    let stat = optional(fs::statat(parent, MARK, fs::AtFlags::SYMLINK_NOFOLLOW))?;
    Ok(stat.map(|stat| stat.st_ctime))
}

/// When the machine was started, seconds since the epoch, by today's clock.
fn started_at() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec.saturating_sub(clock_gettime(ClockId::Boottime).tv_sec)
}

/// The kernel's id of this boot; `None` where `/proc` does not show it.
fn boot_id() -> Option<String> {
    let dir = open_dir(fs::CWD, "/proc/sys/kernel/random").ok()?;
    match read_small(&dir, "boot_id").ok()? {
        Small::Text(text) => Some(text),
        Small::Absent | Small::Damaged(_) => None,
    }
}

fn interrupted(layer: &Layer<'_>) -> Error {
    Error::Corrupt {
        id: layer.id.clone(),
        defect: format!(
            "it was mounted with \"volatile\" and the machine has been restarted since, so its changes may be damaged; \
             delete it, or remove {} to use it all the same",
            mark_path(layer).display()
        ),
    }
}
