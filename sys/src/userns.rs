//! Which user namespace this process is in, and what it may do there.

use rustix::io::{Errno, Result};

use crate::idmap::IdRange;

pub use rustix::thread::{CapabilitySet, CapabilitySets};

/// The ranges of user ids that this process's namespace maps, as `/proc/self/uid_map` shows them.
///
/// # Errors
/// `ENOENT` where `/proc` is not mounted or the kernel has no user namespaces, `EIO` for a file that is not one.
pub fn own_uid_ranges() -> Result<Vec<IdRange>> {
    crate::procfs::read("uid_map").and_then(|map| parse_map(&map).ok_or(Errno::IO))
}

/// The ranges of group ids that this process's namespace maps, as `/proc/self/gid_map` shows them.
///
/// # Errors
/// As for [`own_uid_ranges`].
pub fn own_gid_ranges() -> Result<Vec<IdRange>> {
    crate::procfs::read("gid_map").and_then(|map| parse_map(&map).ok_or(Errno::IO))
}

/// Reads the lines of a `uid_map` or `gid_map`: inside, outside, count. `None` when it is not one.
#[must_use]
pub fn parse_map(map: &[u8]) -> Option<Vec<IdRange>> {
    let text = std::str::from_utf8(map).ok()?;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let mut numbers = line.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        ranges.push(IdRange { inside: next()?, outside: next()?, count: next()? });
        if numbers.next().is_some() {
            return None;
        }
    }
    Some(ranges)
}

/// Whether these ranges are what only the machine's first user namespace has: every id, as itself.
#[must_use]
pub fn is_full_range(ranges: &[IdRange]) -> bool {
    matches!(ranges, [IdRange { inside: 0, outside: 0, count: u32::MAX }])
}

/// Whether this process is in another user namespace than the machine's first: where its namespace does not map all
/// 32-bit ids to themselves. That is what containers/storage asks too. A kernel without user namespaces has the first
/// one only.
///
/// # Errors
/// `EIO` when the kernel's answer makes no sense; `EXDEV` when something else than procfs is mounted at `/proc`.
pub fn is_in_user_namespace() -> Result<bool> {
    match own_uid_ranges() {
        Ok(ranges) => Ok(!is_full_range(&ranges)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The capabilities of this thread, in its own user namespace.
///
/// `int capget(cap_user_header_t hdr, cap_user_data_t data)`, Linux 2.2.
///
/// # Errors
/// None is known for one's own thread.
pub fn capabilities() -> Result<CapabilitySets> {
    rustix::thread::capabilities(None)
}

/// Whether this thread has all the given capabilities in effect, in its own user namespace. Most of what needs
/// `CAP_SYS_ADMIN` wants it in the first one, so ask [`is_in_user_namespace`] too.
#[must_use]
pub fn has_capabilities(wanted: CapabilitySet) -> bool {
    capabilities().is_ok_and(|sets| sets.effective.contains(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn range(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange { inside, outside, count }
    }

    #[test]
    fn maps_are_read_as_the_kernel_writes_them() {
        let table: &[(&[u8], Option<Vec<IdRange>>)] = &[
            (b"         0          0 4294967295\n", Some(vec![range(0, 0, u32::MAX)])),
            (b"0 1000 1\n1 100000 65536\n", Some(vec![range(0, 1000, 1), range(1, 100_000, 65_536)])),
            (b"", Some(vec![])),
            (b"0 0\n", None),
            (b"0 0 1 1\n", None),
            (b"0 0 4294967296\n", None),
            (b"0 -1 1\n", None),
            (b"\xff 0 1\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_map(text), *expected, "{}", text.escape_ascii());
        }
        assert!(is_full_range(&[range(0, 0, u32::MAX)]));
        assert!(!is_full_range(&[range(0, 0, 65_536)]));
        assert!(!is_full_range(&[range(0, 1, u32::MAX)]));
        assert!(!is_full_range(&[]));
    }

    #[test]
    fn inside_and_outside_are_told_apart() {
        let own = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let first = own.split_whitespace().eq(["0", "0", "4294967295"]);
        assert_eq!(is_in_user_namespace().unwrap(), !first);
        let output = Command::new("unshare").args(["-Ur", "cat", "/proc/self/uid_map"]).output();
        match output {
            Ok(output) if output.status.success() => {
                assert!(!is_full_range(&parse_map(&output.stdout).unwrap()));
            }
            other => eprintln!("skipped: unshare -Ur does not work here: {other:?}"),
        }
    }

    #[test]
    fn capabilities_are_those_of_the_status_file() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
        assert_eq!(capabilities().unwrap().effective.bits(), effective);
        assert!(has_capabilities(CapabilitySet::empty()));
    }
}
