//! What lies in the home and belongs to no layer: entries of `l/` that lead nowhere or that nobody uses, and peers'
//! `staging/` directories whose owners are dead.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use graph_core::driver::Leftover;
use graph_core::{Error, Result};
use graph_sys::fs::{self, AtFlags, FileType, Mode, OFlags};
use graph_sys::lock::{LockKind, try_lock};

use super::Homes;
use super::layout::{Context, Home, LINK, LINKS, LOWER, LinkId, STAGING, Small, each_entry, open_dir, optional};
use crate::support::usage::disk_usage;

/// The lock that owners of a staging directory hold (containers/storage, `staging.lock`).
const STAGING_LOCK: &str = "staging.lock";

/// A staging directory without a lock may be one that is just being made, unless it is as old as this.
const SURELY_DEAD: Duration = Duration::from_secs(24 * 3600);

/// Lists what belongs to no layer, and removes it if asked to.
pub(super) fn of(homes: &Homes, remove: bool) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for home in homes.writable() {
        links(homes, home, remove, &mut found)?;
        staging(home, remove, &mut found)?;
    }
    Ok(found)
}

/// The names in `l/` that are of use: each layer's own, and those that other layers' `lower` files say. Layers in
/// additional stores have their own `l/`.
fn used_links(homes: &Homes) -> Result<HashSet<LinkId>> {
    let mut used = HashSet::new();
    for home in homes.writable() {
        for id in home.list()? {
            let Some(layer) = home.layer(&id)? else { continue };
            let own = match layer.read_small(LINK)? {
                Small::Text(text) => LinkId::parse(&text),
                Small::Absent | Small::Damaged(_) => None,
            };
            match own {
                Some(link) => drop(used.insert(link)),
                // A layer that has lost its name finds it again in l/.
                None => used.extend(home.links_to(&id)?),
            }
            if let Small::Text(text) = layer.read_small(LOWER)? {
                let names = text.split(':').filter_map(|entry| entry.strip_prefix("l/"));
                used.extend(names.filter_map(LinkId::parse));
            }
        }
    }
    Ok(used)
}

fn links(homes: &Homes, home: &Home, remove: bool, found: &mut Vec<Leftover>) -> Result<()> {
    let path = home.path.join(LINKS);
    let Some(directory) = optional(open_dir(&home.dir, LINKS)).at("open", &path, None)? else { return Ok(()) };
    let mut names = Vec::new();
    each_entry(&directory, |name, kind| {
        // What is no link is nobody's that we know.
        if kind == FileType::Symlink
            && let Some(link) = std::str::from_utf8(name).ok().and_then(LinkId::parse)
        {
            names.push(link);
        }
        Ok(())
    })
    .at("read", &path, None)?;
    if names.is_empty() {
        return Ok(());
    }
    let used = used_links(homes)?;
    names.retain(|link| !used.contains(link));
    names.sort_unstable();
    for link in names {
        let error = if remove {
            optional(fs::unlinkat(&directory, link.as_str(), AtFlags::empty()))
                .err()
                .map(|error| Error::io("remove link", path.join(link.as_str()), None, error))
        } else {
            None
        };
        found.push(Leftover { path: path.join(link.as_str()), bytes: 0, error });
    }
    Ok(())
}

fn staging(home: &Home, remove: bool, found: &mut Vec<Leftover>) -> Result<()> {
    let path = home.path.join(STAGING);
    let Some(root) = optional(open_dir(&home.dir, STAGING)).at("open", &path, None)? else { return Ok(()) };
    let mut names = Vec::new();
    each_entry(&root, |name, _| {
        names.push(name.to_vec());
        Ok(())
    })
    .at("read", &path, None)?;
    names.sort_unstable();
    for name in names {
        let shown = path.join(String::from_utf8_lossy(&name).as_ref());
        let Some(name) = std::str::from_utf8(&name).ok() else { continue };
        let Ok(directory) = open_dir(&root, name) else { continue };
        // Held until the directory is gone.
        let Some(_lock) = dead(&directory).at("look for the owner of", &shown, None)? else { continue };
        let bytes = disk_usage(directory.as_fd()).map_or(0, |usage| usage.size);
        let error = if remove {
            graph_sys::remove::remove_tree(&root, name)
                .err()
                .map(|error| Error::io("remove", &shown, None, std::io::Error::other(error)))
        } else {
            None
        };
        found.push(Leftover { path: shown, bytes, error });
    }
    Ok(())
}

/// The lock of a directory whose owner is dead; `None` while it lives, or may.
fn dead(directory: &OwnedFd) -> std::io::Result<Option<Option<OwnedFd>>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match optional(fs::openat(directory, STAGING_LOCK, flags, Mode::empty()))? {
        Some(file) => Ok(try_lock(&file, LockKind::Exclusive)?.then_some(Some(file))),
        None => {
            let changed = u64::try_from(fs::fstat(directory)?.st_mtime).unwrap_or(0);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let old = now.saturating_sub(Duration::from_secs(changed)) > SURELY_DEAD;
            Ok(old.then_some(None))
        }
    }
}
