//! Id mappings as people write them, and the ranges of ids that `/etc/subuid` and `/etc/subgid` give away.

use std::path::{Path, PathBuf};

use graph_archive::idmap::{IdMappings, IdRange};

use crate::error::{Error, Result};
use crate::fsutil;

/// The ranges of user ids that users may use.
pub const SUBUID_FILE: &str = "/etc/subuid";
/// The ranges of group ids that users may use.
pub const SUBGID_FILE: &str = "/etc/subgid";
/// Takes the ranges of everybody.
pub const EVERYBODY: &str = "ALL";
/// The most that such a file may have, in bytes; directory services make them big, but not that big.
const MAX_FILE: u64 = 64 << 20;

/// What is wrong with mappings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MappingError {
    /// A string that is not `container:host:size`, perhaps several times.
    #[error("initializing ID mappings: {setting} setting is malformed expected [\"uint32:uint32:uint32\"]: {given:?}")]
    Malformed {
        /// `uid` or `gid`, or the option's name.
        setting: String,
        /// All strings given.
        given: Vec<String>,
    },
    /// A line of a range file that is not `name:start:count`.
    #[error("{}:{line}: expected name:start:count, found {found:?}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The line.
        found: String,
    },
    /// The file gives that name nothing.
    #[error("no {kind} ranges found for {} {name:?} in {}", kind.whose(), path.display())]
    NoRanges {
        /// Which of the two files.
        kind: SubIdKind,
        /// User or group.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// More ids than there are.
    #[error("the ranges of {name:?} in {} have more than 4294967295 ids together", path.display())]
    TooMany {
        /// User or group.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Two ranges that map the same id twice.
    #[error("invalid mappings specified: {} and {} overlap", show(*.first), show(*.second))]
    Overlap {
        /// One.
        first: IdRange,
        /// The other.
        second: IdRange,
    },
}

fn show(range: IdRange) -> String {
    format!("{}:{}:{}", range.container_id, range.host_id, range.size)
}

/// Users or groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubIdKind {
    /// `/etc/subuid`
    User,
    /// `/etc/subgid`
    Group,
}

impl SubIdKind {
    /// The file of the running system.
    #[must_use]
    pub fn file(self) -> &'static Path {
        Path::new(match self {
            Self::User => SUBUID_FILE,
            Self::Group => SUBGID_FILE,
        })
    }

    fn whose(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
        }
    }
}

impl std::fmt::Display for SubIdKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::User => "subuid",
            Self::Group => "subgid",
        })
    }
}

/// Reads mappings written as `container:host:size`, several of them joined by `:` or in several strings. Empty strings
/// are passed over. `setting` names them in the error, for example `uid`.
///
/// # Errors
/// [`MappingError::Malformed`] in containers/storage's words.
pub fn parse_ranges<S: AsRef<str>>(given: &[S], setting: &str) -> Result<Vec<IdRange>, MappingError> {
    let malformed = || MappingError::Malformed {
        setting: setting.to_owned(),
        given: given.iter().map(|text| text.as_ref().to_owned()).collect(),
    };
    let mut ranges = Vec::new();
    for text in given.iter().map(AsRef::as_ref).filter(|text| !text.is_empty()) {
        let numbers: Vec<u32> =
            text.split(':').map(|number| decimal(number).ok_or_else(malformed)).collect::<Result<_, _>>()?;
        let (triples, rest) = numbers.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(malformed());
        }
        let range = |&[container_id, host_id, size]: &[u32; 3]| IdRange { container_id, host_id, size };
        ranges.extend(triples.iter().map(range));
    }
    Ok(ranges)
}

/// Digits only: no sign, which Rust would take.
fn decimal(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Checks that no id is mapped twice, on either side.
///
/// # Errors
/// [`MappingError::Overlap`].
pub fn check_overlaps(ranges: &[IdRange]) -> Result<(), MappingError> {
    for side in [|range: &IdRange| range.container_id, |range: &IdRange| range.host_id] {
        let mut sorted: Vec<&IdRange> = ranges.iter().filter(|range| range.size > 0).collect();
        sorted.sort_by_key(|range| side(range));
        for pair in sorted.windows(2) {
            if let [first, second] = pair
                && u64::from(side(first)).saturating_add(u64::from(first.size)) > u64::from(side(second))
            {
                return Err(MappingError::Overlap { first: **first, second: **second });
            }
        }
    }
    Ok(())
}

/// One line of a range file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubIdRange {
    /// User or group, by name or number.
    pub name: String,
    /// First id.
    pub start: u32,
    /// Number of ids.
    pub count: u32,
}

/// A range file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubIds {
    kind: SubIdKind,
    path: PathBuf,
    ranges: Vec<SubIdRange>,
}

impl SubIds {
    /// Reads the file at `path`; [`SubIdKind::file`] is the running system's.
    ///
    /// # Errors
    /// I/O errors with the path; [`MappingError::Line`].
    pub fn read(kind: SubIdKind, path: &Path) -> Result<Self> {
        let bytes = fsutil::read_small_path(path, MAX_FILE).map_err(|e| Error::io("read", path, None, e))?;
        Ok(Self::parse(kind, path, &String::from_utf8_lossy(&bytes))?)
    }

    /// Reads the text of a file: `name:start:count`, with blank lines and lines that start with `#` passed over.
    ///
    /// # Errors
    /// [`MappingError::Line`].
    pub fn parse(kind: SubIdKind, path: &Path, text: &str) -> Result<Self, MappingError> {
        let mut ranges = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = || MappingError::Line {
                path: path.to_path_buf(),
                line: number.saturating_add(1),
                found: line.to_owned(),
            };
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, start, count] = fields.as_slice() else { return Err(wrong()) };
            let (start, count) = decimal(start).zip(decimal(count)).ok_or_else(wrong)?;
            ranges.push(SubIdRange { name: name.to_owned(), start, count });
        }
        Ok(Self { kind, path: path.to_path_buf(), ranges })
    }

    /// All lines.
    #[must_use]
    pub fn ranges(&self) -> &[SubIdRange] {
        &self.ranges
    }

    /// The ranges of a user or group, known by name and, if there is one, by number, as a mapping: sorted by host id and laid out one after
    /// the other from container id 0. [`EVERYBODY`] takes all lines.
    ///
    /// # Errors
    /// [`MappingError::NoRanges`] when there are none, [`MappingError::TooMany`].
    pub fn mapping(&self, name: &str, id: Option<u32>) -> Result<Vec<IdRange>, MappingError> {
        let id = id.map(|id| id.to_string());
        let mut own: Vec<&SubIdRange> = self
            .ranges
            .iter()
            .filter(|range| name == EVERYBODY || range.name == name || id.as_ref() == Some(&range.name))
            .collect();
        if own.is_empty() {
            return Err(MappingError::NoRanges { kind: self.kind, name: name.to_owned(), path: self.path.clone() });
        }
        own.sort_by_key(|range| range.start);
        let (mut mapping, mut next) = (Vec::new(), 0_u32);
        for SubIdRange { start, count, .. } in own {
            mapping.push(IdRange { container_id: next, host_id: *start, size: *count });
            let too_many = || MappingError::TooMany { name: name.to_owned(), path: self.path.clone() };
            next = next.checked_add(*count).ok_or_else(too_many)?;
        }
        Ok(mapping)
    }
}

/// Puts the two sides together: where only one is given, it counts for both.
#[must_use]
pub fn both_sides(uids: Vec<IdRange>, gids: Vec<IdRange>) -> IdMappings {
    match (uids.is_empty(), gids.is_empty()) {
        (true, false) => IdMappings { uids: gids.clone(), gids },
        (false, true) => IdMappings { gids: uids.clone(), uids },
        _ => IdMappings { uids, gids },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, size: u32) -> IdRange {
        IdRange { container_id, host_id, size }
    }

    #[test]
    fn ranges_as_people_write_them() {
        assert_eq!(parse_ranges(&["0:100000:65536"], "uid").unwrap(), [range(0, 100_000, 65_536)]);
        assert_eq!(
            parse_ranges(&["", "0:1:2:3:4:5", "4294967295:0:1"], "uid").unwrap(),
            [range(0, 1, 2), range(3, 4, 5), range(u32::MAX, 0, 1)]
        );
        assert_eq!(parse_ranges::<&str>(&[], "uid").unwrap(), []);
        for bad in ["0:1", "0:1:2:3", ":", "a:b:c", "0:1:4294967296", "+1:2:3", "0::1", " 0:1:2"] {
            assert_eq!(
                parse_ranges(&[bad], "gid").unwrap_err().to_string(),
                format!(
                    "initializing ID mappings: gid setting is malformed expected [\"uint32:uint32:uint32\"]: [\"{bad}\"]"
                )
            );
        }
    }

    #[test]
    fn ranges_files() {
        let text = "# comment\n\nalice:300000:10\nbob:100000:65536\n1000:200000:5\nalice:50:1\n";
        let file = SubIds::parse(SubIdKind::User, Path::new("/etc/subuid"), text).unwrap();
        assert_eq!(file.mapping("alice", None).unwrap(), [range(0, 50, 1), range(1, 300_000, 10)]);
        let both = [range(0, 50, 1), range(1, 200_000, 5), range(6, 300_000, 10)];
        assert_eq!(file.mapping("alice", Some(1000)).unwrap(), both);
        assert_eq!(file.mapping(EVERYBODY, None).unwrap().len(), 4);
        let none = file.mapping("x", None).unwrap_err();
        assert_eq!(none.to_string(), "no subuid ranges found for user \"x\" in /etc/subuid");

        for bad in ["alice:1", "alice:1:2:3", "alice:x:1", "alice:1:-1"] {
            let error = SubIds::parse(SubIdKind::Group, Path::new("/g"), &format!("\n{bad}\n")).unwrap_err();
            assert_eq!(error.to_string(), format!("/g:2: expected name:start:count, found \"{bad}\""));
        }
        let huge = SubIds::parse(SubIdKind::User, Path::new("/u"), "a:0:4294967295\na:5:4294967295\n").unwrap();
        huge.mapping("a", None).unwrap_err();
    }

    #[test]
    fn overlaps_on_either_side() {
        check_overlaps(&[range(0, 1000, 10), range(10, 0, 10), range(5, 5, 0)]).unwrap();
        let error = check_overlaps(&[range(9, 5000, 1), range(0, 1000, 10)]).unwrap_err();
        assert_eq!(error.to_string(), "invalid mappings specified: 0:1000:10 and 9:5000:1 overlap");
        check_overlaps(&[range(0, 1000, 10), range(100, 1009, 1)]).unwrap_err();
        check_overlaps(&[range(0, u32::MAX, 10), range(100, 0, 1)]).unwrap();
    }

    #[test]
    fn one_side_serves_both() {
        let ranges = vec![range(0, 5, 1)];
        let both = IdMappings { uids: ranges.clone(), gids: ranges.clone() };
        assert_eq!(both_sides(ranges.clone(), Vec::new()), both);
        assert_eq!(both_sides(Vec::new(), ranges), both);
    }
}
