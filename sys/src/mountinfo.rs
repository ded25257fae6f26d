//! The table of mounts.
//!
//! `/proc/self/mountinfo`, Linux 2.6.26; format in `Documentation/filesystems/proc.rst` §3.5:
//!
//! ```text
//!   36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//!   id parent device root mount-point options propagation… - type source super-options
//! ```
//!
//! Space, tab, newline and backslash in paths are `\040`, `\011`, `\012` and `\134`; any other octal escape is read too.

use std::os::fd::AsFd;

use rustix::io::{Errno, Result};

use crate::statx::{self, MountId};

/// One mount, all paths and strings as bytes with escapes undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountInfo {
    /// Its number, used again once the mount is gone.
    pub id: u64,
    /// Number of the mount that it is on; its own for the topmost.
    pub parent_id: u64,
    /// Device number, major and minor.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted, from the file system's own root.
    pub root: Vec<u8>,
    /// Where it is mounted, from this process's root.
    pub mount_point: Vec<u8>,
    /// Options of this mount (`rw`, `nosuid`, `idmapped`…), with commas between. Escapes are left in.
    pub options: Vec<u8>,
    /// Peer group that it propagates to and from (`shared:N`).
    pub shared: Option<u64>,
    /// Peer group that it receives from (`master:N`).
    pub master: Option<u64>,
    /// Whether it can be copied (`unbindable` if not).
    pub unbindable: bool,
    /// Type, with the subtype of FUSE after a dot.
    pub file_system: Vec<u8>,
    /// What is mounted: a device, a host and path, or a word of the user's.
    pub source: Vec<u8>,
    /// Options of the file system, with commas between. Escapes are left in, since a comma in a value may be one.
    pub super_options: Vec<u8>,
}

/// All mounts of this thread's mount namespace that its root shows, parents before children.
///
/// The kernel writes the table in pieces: a mount made or unmounted meanwhile may be in it or not, others are whole.
/// Lines that cannot be parsed are left out.
///
/// # Errors
/// `ENOENT` where `/proc` is not mounted.
pub fn read() -> Result<Vec<MountInfo>> {
    let table = crate::procfs::read("mountinfo")?;
    Ok(parse(&table).collect())
}

/// Reads a table, line by line; lines that cannot be parsed are left out.
pub fn parse(table: &[u8]) -> impl Iterator<Item = MountInfo> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line)
}

/// Reads one line, without its newline; `None` when it is not one of mountinfo.
#[must_use]
pub fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut info = MountInfo {
        id: number(fields.next()?)?,
        parent_id: number(fields.next()?)?,
        device: {
            let device = fields.next()?;
            let colon = device.iter().position(|&byte| byte == b':')?;
            (number(device.get(..colon)?)?, number(device.get(colon + 1..)?)?)
        },
        root: unescape(fields.next()?),
        mount_point: unescape(fields.next()?),
        options: fields.next()?.to_vec(),
        ..MountInfo::default()
    };
    loop {
        let field = fields.next()?;
        if field == b"-" {
            break;
        } else if let Some(group) = field.strip_prefix(b"shared:") {
            info.shared = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            info.master = Some(number(group)?);
        } else if field == b"unbindable" {
            info.unbindable = true;
        }
        // Others, which later kernels may add, are to be ignored.
    }
    info.file_system = unescape(fields.next()?);
    info.source = unescape(fields.next()?);
    info.super_options = fields.next().unwrap_or_default().to_vec();
    Some(info)
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes `\ooo`; a backslash before anything else stands for itself.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    bytes
}

/// The mount that an open file is on: one look-up by `statmount` from Linux 6.8, else a search of the table.
///
/// `None` for a mount that is in no table, or that this process's root does not show.
///
/// # Errors
/// `ENOENT` where `/proc` is not mounted and would be needed.
pub fn of(file: impl AsFd) -> Result<Option<MountInfo>> {
    let file = file.as_fd();
    if let Some(MountId::Unique(id)) = statx::metadata(file, b"")?.mount {
        match crate::statmount::mount(id) {
            Ok(mount) => return Ok(mount),
            Err(Errno::NOSYS | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
    }
    let id = statx::reusable_mount_id(file)?;
    Ok(read()?.into_iter().find(|mount| mount.id == id))
}

/// Whether an open directory or file is the root of a mount. Costs one `statx` from Linux 5.8.
///
/// # Errors
/// As for [`of`] and [`statx::metadata`].
pub fn is_mount_point(file: impl AsFd) -> Result<bool> {
    is_mount_point_at(file, b"")
}

/// Whether `path` below `dir` (not followed if a link) is the root of a mount.
///
/// # Errors
/// As for [`is_mount_point`].
pub fn is_mount_point_at(dir: impl AsFd, path: &[u8]) -> Result<bool> {
    let dir = dir.as_fd();
    if let Some(known) = statx::metadata(dir, path)?.is_mount_root {
        return Ok(known);
    }
    // Before 5.8: the root of a mount is where the path through its descriptor is a mount point of the table.
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let opened =
        if path.is_empty() { None } else { Some(rustix::fs::openat(dir, path, flags, rustix::fs::Mode::empty())?) };
    let file = opened.as_ref().map_or(dir, AsFd::as_fd);
    let id = statx::reusable_mount_id(file)?;
    let name = crate::procfs::link_of(file)?;
    Ok(read()?.iter().any(|mount| mount.id == id && mount.mount_point == name))
}

#[cfg(test)]
mod tests;
