//! Automatic user namespaces: mappings for a container that nobody else's container has.
//!
//! The ids on disk are cut from the ranges that /etc/subuid and /etc/subgid give to one user, less what containers of this
//! store have already; the size is what the image seems to need. All of it happens under `userns.lock`, which peers take
//! for the same, until the container's record is written.

use std::path::{Path, PathBuf};

use graph_archive::idmap::{IdMappings, IdRange};
use graph_core::config::{DEFAULT_AUTO_USERNS_MAX_SIZE, DEFAULT_AUTO_USERNS_MIN_SIZE};
use graph_core::lockfile::{LockFile, LockGuard, Wait};
use graph_core::subid::{SUBGID_FILE, SUBUID_FILE, SubIdKind, SubIds};
use graph_core::{ErrorKind as DriverErrorKind, LayerId, fsutil};
use graph_sys::fs::{self, FileType, OFlags};
use graph_sys::lock::LockKind;
use graph_sys::resolve::RootDir;

use crate::error::{Error, Result};
use crate::records::Image;
use crate::store::{Store, Stored};

/// The user whose ranges are taken where none is configured.
pub const AUTO_USER: &str = "containers";
/// An id that belongs to nobody, and does not make a namespace larger.
const NOBODY: u32 = 65_534;
/// Bytes of /etc/passwd and /etc/group that are looked at.
const MAX_FILE: u64 = 16 << 20;

/// Where automatic user namespaces come from, and how large they may be.
#[derive(Clone, Debug)]
pub struct AutoUserNsConfig {
    /// User in the range files; [`AUTO_USER`] when empty. Of no account without privileges: then the ids of the process's own
    /// user namespace are given away.
    pub user: String,
    /// Least size.
    pub min_size: u32,
    /// Greatest size; 0 for any.
    pub max_size: u32,
    /// The ranges of users, `/etc/subuid`.
    pub subuid: PathBuf,
    /// The ranges of groups, `/etc/subgid`.
    pub subgid: PathBuf,
}

impl Default for AutoUserNsConfig {
    fn default() -> Self {
        Self {
            user: String::new(),
            min_size: DEFAULT_AUTO_USERNS_MIN_SIZE,
            max_size: DEFAULT_AUTO_USERNS_MAX_SIZE,
            subuid: SUBUID_FILE.into(),
            subgid: SUBGID_FILE.into(),
        }
    }
}

/// A wish for an automatic user namespace.
#[derive(Clone, Debug, Default)]
pub struct AutoUserNs {
    /// How many ids; 0 for as many as the image needs, within the configured bounds.
    pub size: u32,
    /// At least so many, where the image's need is looked for.
    pub initial_size: u32,
    /// Mappings beside the automatic ones; these ids are not given automatically.
    pub additional: IdMappings,
}

impl Store {
    /// Takes the lock under which ids are given away.
    pub(crate) fn lock_user_namespaces(&self) -> Result<LockGuard> {
        Ok(LockFile::new(self.options.root.join("userns.lock")).lock(LockKind::Exclusive, Wait::Block)?)
    }

    /// Mappings that no container has. The lock of [`Store::lock_user_namespaces`] must be held.
    pub(crate) fn automatic_mappings(&self, wish: &AutoUserNs, image: Option<&Stored<Image>>) -> Result<IdMappings> {
        let config = &self.options.auto_userns;
        let size = if wish.size > 0 {
            wish.size
        } else {
            let needed = image.map(|image| self.ids_of_image(image)).transpose()?.unwrap_or(0);
            let size = needed.max(wish.initial_size).max(config.min_size).max(1);
            if config.max_size > 0 && size > config.max_size {
                return Err(Error::InvalidArgument {
                    problem: format!(
                        "the container needs a user namespace with size {size} that is bigger than the maximum value \
                         allowed with userns=auto {}",
                        config.max_size
                    ),
                });
            }
            size
        };
        let containers = self.containers.records.read()?;
        let allot = |kind: SubIdKind, additional: &[IdRange]| -> Result<Vec<IdRange>> {
            let used = containers.iter().flat_map(|container| match kind {
                SubIdKind::User => container.uid_map.clone(),
                SubIdKind::Group => container.gid_map.clone(),
            });
            let used = IdSet::of(used.chain(additional.iter().copied()), |range| range.host_id);
            let wanted =
                IdSet::interval(0, u64::from(size)).without(&IdSet::of(additional.iter().copied(), |r| r.container_id));
            let free = self.available(kind)?.without(&used);
            let mut ranges = free.allot(&wanted).ok_or_else(|| Error::InvalidArgument {
                problem: format!("not enough unused IDs in user namespace: {size} {kind}s are needed"),
            })?;
            ranges.extend_from_slice(additional);
            Ok(ranges)
        };
        Ok(IdMappings {
            uids: allot(SubIdKind::User, &wish.additional.uids)?,
            gids: allot(SubIdKind::Group, &wish.additional.gids)?,
        })
    }

    /// The ids that may be given away at all.
    fn available(&self, kind: SubIdKind) -> Result<IdSet> {
        let config = &self.options.auto_userns;
        if self.options.rootless {
            // Those of our own user namespace but its root's.
            let path = Path::new(match kind {
                SubIdKind::User => "/proc/self/uid_map",
                SubIdKind::Group => "/proc/self/gid_map",
            });
            let text = fsutil::read_small_path(path, MAX_FILE).map_err(|e| Error::io("read", path, e))?;
            let lines = String::from_utf8_lossy(&text).into_owned();
            let ranges = lines.lines().filter_map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse::<u32>);
                let (container_id, _, size) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
                Some(IdRange { container_id, host_id: container_id, size })
            });
            return Ok(IdSet::of(ranges, |range| range.host_id).without(&IdSet::interval(0, 1)));
        }
        let user = if config.user.is_empty() { AUTO_USER } else { &config.user };
        let file = match kind {
            SubIdKind::User => &config.subuid,
            SubIdKind::Group => &config.subgid,
        };
        let ranges = SubIds::read(kind, file)?.mapping(user, None).map_err(graph_core::Error::from)?;
        Ok(IdSet::of(ranges.into_iter(), |range| range.host_id))
    }

    /// One more than the greatest id that the image's layers or its /etc/passwd and /etc/group speak of.
    fn ids_of_image(&self, image: &Stored<Image>) -> Result<u32> {
        let chain = self.layer_tables()?.chain(&image.layer);
        let recorded = chain.iter().flat_map(|layer| layer.uids.iter().chain(&layer.gids)).max();
        let mut size = recorded.map_or(0, |id| id.saturating_add(1));
        if let Some(top) = chain.first() {
            match self.driver.peek(&LayerId::new(top.id.clone())?) {
                Ok(root) => {
                    let root = RootDir::from_fd(root);
                    for (file, columns) in [("etc/passwd", &[2, 3][..]), ("etc/group", &[2])] {
                        size = size.max(ids_of_accounts(&read(&root, file)?, columns));
                    }
                }
                // A guess from the records alone.
                Err(error) if error.kind() == DriverErrorKind::Unsupported => {
                    tracing::debug!(%error, image = %image.id, "reading the accounts of an image");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(size)
    }
}

/// A file of an image, found inside of its root whatever links say; nothing for what is no file.
fn read(root: &RootDir, path: &'static str) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Whatever is wrong with it, the image has no accounts then.
    let Ok(file) = root.open_in_root(path.as_bytes(), flags) else { return Ok(String::new()) };
    let stat = fs::fstat(&file).map_err(|e| Error::io("read the status of", path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let limited = std::io::Read::take(std::fs::File::from(file), MAX_FILE);
    std::io::Read::read_to_end(&mut { limited }, &mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One more than the greatest id in these columns (from 0) of lines separated by colons.
fn ids_of_accounts(text: &str, columns: &[usize]) -> u32 {
    let mut size = 0_u32;
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        if matches!(fields.first(), None | Some(&("nobody" | "nogroup"))) {
            continue;
        }
        let ids = columns.iter().filter_map(|column| fields.get(*column)?.parse::<u32>().ok());
        size = ids.filter(|id| *id != NOBODY).fold(size, |size, id| size.max(id.saturating_add(1)));
    }
    size
}

/// Ids, as sorted intervals that do not touch: first, and one behind the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IdSet(Vec<(u64, u64)>);

impl IdSet {
    fn interval(start: u64, end: u64) -> Self {
        Self(if start < end { vec![(start, end)] } else { Vec::new() })
    }

    /// One side of some ranges.
    fn of(ranges: impl Iterator<Item = IdRange>, side: impl Fn(&IdRange) -> u32) -> Self {
        let mut all: Vec<(u64, u64)> = ranges
            .filter(|range| range.size > 0)
            .map(|range| (u64::from(side(&range)), u64::from(side(&range)).saturating_add(u64::from(range.size))))
            .collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for &(mut start, end) in &self.0 {
            for &(from, to) in other.0.iter().filter(|(from, _)| *from < end) {
                if to <= start {
                    continue;
                }
                if from > start {
                    left.push((start, from));
                }
                start = start.max(to);
            }
            if start < end {
                left.push((start, end));
            }
        }
        Self(left)
    }

    /// Ids of this set for each of `wanted`, lowest first; `None` if there are not enough.
    fn allot(&self, wanted: &Self) -> Option<Vec<IdRange>> {
        let mut ranges = Vec::new();
        let mut free = self.0.iter().copied();
        let mut current = (0, 0);
        for &(mut start, end) in &wanted.0 {
            while start < end {
                if current.0 >= current.1 {
                    current = free.next()?;
                }
                let size = end.saturating_sub(start).min(current.1.saturating_sub(current.0));
                let id = |id: u64| u32::try_from(id).ok();
                ranges.push(IdRange { container_id: id(start)?, host_id: id(current.0)?, size: id(size)? });
                start = start.saturating_add(size);
                current.0 = current.0.saturating_add(size);
            }
        }
        Some(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, size: u32) -> IdRange {
        IdRange { container_id, host_id, size }
    }

    fn allot(free: &[IdRange], used: &[IdRange], additional: &[IdRange], size: u64) -> Option<Vec<IdRange>> {
        let host = |ranges: &[IdRange]| IdSet::of(ranges.iter().copied(), |range| range.host_id);
        let wanted =
            IdSet::interval(0, size).without(&IdSet::of(additional.iter().copied(), |range| range.container_id));
        let used = [used, additional].concat();
        host(free).without(&host(&used)).allot(&wanted)
    }

    #[test]
    fn ids_are_cut_from_what_is_free() {
        let free = [range(0, 1000, 99_000)];
        assert_eq!(allot(&free, &[], &[], 65_536).unwrap(), [range(0, 1000, 65_536)]);
        let used = [range(0, 2000, 10_000)];
        assert_eq!(allot(&free, &used, &[], 65_536).unwrap(), [range(0, 1000, 1000), range(1000, 12_000, 64_536)]);
        assert_eq!(allot(&free, &[range(0, 1000, 34_000)], &[], 65_536), None);
        // One of the container's ids is spoken for, and one of the host's.
        assert_eq!(
            allot(&free, &[], &[range(5, 1002, 1)], 10).unwrap(),
            [range(0, 1000, 2), range(2, 1003, 3), range(6, 1006, 4)]
        );
        // Ranges that touch, overlap and end at the last id.
        let free = [range(0, 10, 5), range(5, 15, 5), range(0, 12, 4), range(0, u32::MAX - 4, 5)];
        assert_eq!(allot(&free, &[], &[], 15).unwrap(), [range(0, 10, 10), range(10, u32::MAX - 4, 5)]);
        assert_eq!(allot(&free, &[], &[], 16), None);
    }

    #[test]
    fn accounts_tell_how_many_ids_there_are() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody:x:99999:99999::/:\nuser:x:1000:2000::/:\nweb:x:65534:33::/:\n";
        assert_eq!(ids_of_accounts(passwd, &[2, 3]), 2001);
        assert_eq!(ids_of_accounts("nogroup:x:70000:\nusers:x:100:a,b\n", &[2]), 101);
        for odd in ["", ":::", "a:b:c:d", "a:x:-1:4294967296", "#"] {
            assert_eq!(ids_of_accounts(odd, &[2, 3]), 0);
        }
        assert_eq!(ids_of_accounts("a:x:4294967295:0", &[2, 3]), u32::MAX);
    }
}
