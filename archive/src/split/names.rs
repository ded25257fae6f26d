//! Which names an archive has used, in little memory: 16 bytes each, whatever their length.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};

/// A cleaned name in 128 bits of two keyed hashes. The keys are random, so an archive cannot be made to have two names
/// with one hash.
pub(super) type NameHash = u128;

/// Hashes names as cleaned by Go's `filepath.Clean`, which decides what old readers call a duplicate.
#[derive(Clone, Debug, Default)]
pub(super) struct NameHasher {
    low: RandomState,
    high: RandomState,
}

impl NameHasher {
    pub(super) fn hash(&self, name: &[u8]) -> NameHash {
        if is_clean(name) { self.hash_clean(name) } else { self.hash_clean(&clean(name)) }
    }

    fn hash_clean(&self, name: &[u8]) -> NameHash {
        let (mut low, mut high) = (self.low.build_hasher(), self.high.build_hasher());
        low.write(name);
        high.write(name);
        together(&low, &high)
    }

    /// The hashes of all directories on the way to `name` (clean), and its own, in one pass over it.
    fn parts<'n>(&self, name: &'n [u8]) -> impl Iterator<Item = NameHash> + 'n {
        let (mut low, mut high) = (self.low.build_hasher(), self.high.build_hasher());
        name.split_inclusive(|byte| *byte == b'/').map(move |part| {
            let (component, slash) = part.split_at(part.len().saturating_sub(usize::from(part.ends_with(b"/"))));
            low.write(component);
            high.write(component);
            let hash = together(&low, &high);
            low.write(slash);
            high.write(slash);
            hash
        })
    }
}

fn together(low: &impl Hasher, high: &impl Hasher) -> NameHash {
    u128::from(low.finish()) | (u128::from(high.finish()) << 64)
}

/// The names of an archive's members so far.
#[derive(Debug, Default)]
pub(super) struct Names {
    hasher: NameHasher,
    seen: HashSet<NameHash>,
    /// Names that this archive made symbolic links of.
    symlinks: HashSet<NameHash>,
    /// For names that came again with content: the number of the last file record that has it.
    again: HashMap<NameHash, u64>,
    /// The directory last looked up in `symlinks`, and the answer.
    last_parent: (Vec<u8>, bool),
}

impl Names {
    /// Notes a name; whether it is new.
    pub(super) fn add(&mut self, name: &[u8], is_symlink: bool) -> (NameHash, bool) {
        let hash = self.hasher.hash(name);
        let new = self.seen.insert(hash);
        if is_symlink {
            self.symlinks.insert(hash);
            self.last_parent.0.clear();
        } else if !new && self.symlinks.remove(&hash) {
            self.last_parent.0.clear();
        }
        (hash, new)
    }

    /// Notes that a name came again, with content, as the file record of number `record`.
    pub(super) fn came_again(&mut self, hash: NameHash, record: u64) {
        self.again.insert(hash, record);
    }

    /// Whether a symbolic link of this archive stands between the root and the name. Such a link may be replaced later,
    /// and then leads elsewhere.
    pub(super) fn is_below_symlink(&mut self, name: &[u8]) -> bool {
        if self.symlinks.is_empty() {
            return false;
        }
        let cleaned;
        let name = if is_clean(name) {
            name
        } else {
            cleaned = clean(name);
            &cleaned
        };
        let Some(end) = name.iter().rposition(|b| *b == b'/') else { return false };
        let parent = name.get(..end).unwrap_or_default();
        if parent.is_empty() {
            return false;
        }
        if self.last_parent.0 == parent {
            return self.last_parent.1;
        }
        let below = self.hasher.parts(parent).any(|hash| self.symlinks.contains(&hash));
        self.last_parent.0.clear();
        self.last_parent.0.extend_from_slice(parent);
        self.last_parent.1 = below;
        below
    }

    /// What a repair needs to know: how names are hashed, and the last file record of those that came again.
    pub(super) fn into_again(self) -> (NameHasher, HashMap<NameHash, u64>) {
        (self.hasher, self.again)
    }
}

fn is_clean(name: &[u8]) -> bool {
    let inner = name.strip_prefix(b"/").unwrap_or(name);
    !inner.is_empty() && inner.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

fn clean(name: &[u8]) -> Vec<u8> {
    crate::clean::clean(name.starts_with(b"/"), name.split(|byte| *byte == b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_go_does() {
        for (name, cleaned) in [
            ("", "."),
            ("./", "."),
            ("./d/", "d"),
            ("/d", "/d"),
            ("//d//e/", "/d/e"),
            ("../x", "../x"),
            ("../../x", "../../x"),
            ("a/../..", ".."),
            ("a/../b", "b"),
            ("/..", "/"),
            ("/../a", "/a"),
            ("a/b/../../..", ".."),
            ("a/.b/..c", "a/.b/..c"),
        ] {
            assert_eq!(clean(name.as_bytes()), cleaned.as_bytes(), "{name}");
            assert_eq!(
                is_clean(name.as_bytes()),
                name == cleaned && !matches!(name, "/" | "..") && !name.starts_with("..")
            );
        }
    }

    #[test]
    fn a_name_below_a_link_is_noticed_until_the_link_is_gone() {
        let mut names = Names::default();
        assert!(!names.is_below_symlink(b"l/f"));
        assert!(names.add(b"./a/l", true).1);
        assert!(names.is_below_symlink(b"a/l/f"));
        assert!(names.is_below_symlink(b"a/l/x/f"));
        assert!(!names.is_below_symlink(b"a/lx/f"));
        assert!(!names.is_below_symlink(b"a/l"));
        assert!(!names.add(b"a/l/", false).1);
        assert!(!names.is_below_symlink(b"a/l/f"));
    }
}
