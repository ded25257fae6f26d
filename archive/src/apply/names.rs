//! Member names, cleaned; and compact sets of paths.
//!
//! Paths inside the engine are relative to the root, without a slash at either end; the root itself is the empty path.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use crate::error::Defect;

/// The longest component that Linux takes.
const COMPONENT_BYTES: usize = 255;

/// A member's name as a path below the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clean {
    pub(super) path: Vec<u8>,
    /// The name had a `..` in it, so that others may understand it differently.
    pub(super) climbs: bool,
}

/// Cleans `name` lexically, as Go's `path.Clean("/" + name)` does: `..` never leads above the root.
pub(super) fn clean(name: &[u8]) -> Result<Clean, Defect> {
    let mut path = Vec::with_capacity(name.len());
    let mut climbs = false;
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                climbs = true;
                path.truncate(split(&path).0.len());
            }
            _ if component.len() > COMPONENT_BYTES || component.contains(&0) => return Err(Defect::InvalidName),
            _ => push(&mut path, component),
        }
    }
    Ok(Clean { path, climbs })
}

/// Appends a component.
pub(super) fn push(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// `path` with `component` appended.
pub(super) fn join(path: &[u8], component: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len().saturating_add(component.len()).saturating_add(1));
    joined.extend_from_slice(path);
    push(&mut joined, component);
    joined
}

/// Parent and last component. The root has neither: two empty slices.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (parent, rest) = path.split_at(slash);
            (parent, rest.strip_prefix(b"/").unwrap_or(rest))
        }
        None => (b"", path),
    }
}

/// Whether `path` is `ancestor` or lies below it.
pub(super) fn is_within(path: &[u8], ancestor: &[u8]) -> bool {
    ancestor.is_empty() || path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Hands on a number that is a good hash already.
#[derive(Debug, Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A set of paths that keeps 8 bytes of each: a keyed 64-bit hash. With a million paths two of them meet with a
/// probability of one in 37 million, and nobody who does not know the key can make them meet.
#[derive(Debug, Default)]
pub(super) struct PathSet {
    keys: RandomState,
    hashes: HashSet<u64, BuildHasherDefault<Identity>>,
}

impl PathSet {
    fn hash(&self, path: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write(path);
        hasher.finish()
    }
    pub(super) fn insert(&mut self, path: &[u8]) {
        let hash = self.hash(path);
        self.hashes.insert(hash);
    }
    pub(super) fn remove(&mut self, path: &[u8]) {
        if !self.hashes.is_empty() {
            self.hashes.remove(&self.hash(path));
        }
    }
    pub(super) fn contains(&self, path: &[u8]) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.hash(path))
    }
    /// Whether it holds `path` or any of the directories on the way to it, the root left out. One pass over `path`.
    pub(super) fn contains_part(&self, path: &[u8]) -> bool {
        if self.hashes.is_empty() {
            return false;
        }
        let mut hasher = self.keys.build_hasher();
        path.split_inclusive(|byte| *byte == b'/').any(|part| {
            let (component, slash) = part.split_at(part.len().saturating_sub(usize::from(part.ends_with(b"/"))));
            hasher.write(component);
            let found = self.hashes.contains(&hasher.finish());
            hasher.write(slash);
            found
        })
    }
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        let (long, longest) = ([b'x'; 256], [b'x'; 255]);
        let table: &[(&[u8], &[u8], bool)] = &[
            (b"a/b", b"a/b", false),
            (b"./a//b/", b"a/b", false),
            (b"/a/./b", b"a/b", false),
            (b"./", b"", false),
            (b"/", b"", false),
            (b"..", b"", true),
            (b"../../x", b"x", true),
            (b"a/../b", b"b", true),
            (b"a/b/../..", b"", true),
            (b"a/...", b"a/...", false),
            (&longest, &longest, false),
        ];
        for (name, path, climbs) in table {
            assert_eq!(clean(name), Ok(Clean { path: path.to_vec(), climbs: *climbs }));
        }
        assert_eq!(clean(&long), Err(Defect::InvalidName));
    }

    #[test]
    fn parts_of_paths_are_found_as_paths() {
        let mut set = PathSet::default();
        assert!(!set.contains_part(b"a/b"));
        set.insert(b"a/bc");
        for (path, found) in [("a/bc", true), ("a/bc/d/e", true), ("a/b", false), ("a/bcd", false), ("a", false)] {
            assert_eq!(set.contains_part(path.as_bytes()), found, "{path}");
        }
        set.remove(b"a/bc");
        set.insert(b"f");
        assert!(set.contains_part(b"f/g") && !set.contains_part(b"a/bc"));
    }

    #[test]
    fn ancestry() {
        assert!(is_within(b"a/b", b"a"));
        assert!(is_within(b"a", b"a"));
        assert!(is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a"));
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
    }
}
