//! Patterns of paths that are left out.

/// One pattern.
#[derive(Debug)]
struct Pattern {
    brings_back: bool,
    components: Vec<Vec<u8>>,
}

/// A list of patterns; the last that fits decides.
#[derive(Debug)]
pub(super) struct Filter {
    patterns: Vec<Pattern>,
}

impl Filter {
    pub(super) fn new(patterns: &[Vec<u8>]) -> Self {
        let patterns = patterns.iter().filter_map(|pattern| {
            let pattern = pattern.trim_ascii();
            let (brings_back, pattern) = match pattern.strip_prefix(b"!") {
                Some(rest) => (true, rest),
                None => (false, pattern),
            };
            let parts = pattern.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
            let components: Vec<_> = parts.map(<[u8]>::to_vec).collect();
            (!components.is_empty()).then_some(Pattern { brings_back, components })
        });
        Self { patterns: patterns.collect() }
    }

    /// Whether something in a path that is left out may be in again.
    pub(super) fn brings_back(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.brings_back)
    }

    /// Whether the path, or a directory that it is in, is left out.
    pub(super) fn excludes(&self, path: &[u8]) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let mut excluded = false;
        for pattern in &self.patterns {
            if pattern.brings_back == excluded && fits_a_prefix(&pattern.components, &parts) {
                excluded = !pattern.brings_back;
            }
        }
        excluded
    }
}

/// Whether the pattern fits the path or one of the directories that it is in. Dynamic programming over path components,
/// so that no pattern takes exponential time.
fn fits_a_prefix(pattern: &[Vec<u8>], parts: &[&[u8]]) -> bool {
    // reach[n]: the pattern so far fits the first n components.
    let mut reach = vec![false; parts.len().saturating_add(1)];
    if let Some(first) = reach.first_mut() {
        *first = true;
    }
    for component in pattern {
        let mut next = vec![false; reach.len()];
        if component == b"**" {
            let mut reached = false;
            for (now, after) in reach.iter().zip(&mut next) {
                reached |= *now;
                *after = reached;
            }
        } else {
            for ((now, after), part) in reach.iter().zip(next.iter_mut().skip(1)).zip(parts) {
                *after = *now && fits(component, part);
            }
        }
        reach = next;
    }
    // Nothing of the path is no path.
    reach.iter().skip(1).any(|reached| *reached)
}

/// Whether one component fits.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    // Where to go on if what follows the last star does not fit.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            retry = Some((rest, name));
            pattern = rest;
            continue;
        }
        let matched = match name.split_first() {
            None if pattern.is_empty() => return true,
            None => None,
            Some((byte, left)) => one(pattern, *byte).map(|rest| (rest, left)),
        };
        (pattern, name) = match (matched, retry) {
            (Some(next), _) => next,
            (None, Some((after, from))) => {
                let Some((_, from)) = from.split_first() else { return false };
                retry = Some((after, from));
                (after, from)
            }
            (None, None) => return false,
        };
    }
}

/// Whether the pattern's first character fits the byte; what follows it then.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (first, rest) = pattern.split_first()?;
    match first {
        b'?' => Some(rest),
        b'\\' => rest.split_first().filter(|(escaped, _)| **escaped == byte).map(|(_, rest)| rest),
        b'[' => set(rest, byte),
        _ => (*first == byte).then_some(rest),
    }
}

/// The rest of `[abc]`, `[a-c]`, `[^a-c]`.
fn set(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (inverted, mut pattern) = match pattern.split_first() {
        Some((b'^', rest)) => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut first = true;
    loop {
        let (low, rest) = match pattern.split_first()? {
            (b']', rest) if !first => return (found != inverted).then_some(rest),
            (b'\\', rest) => rest.split_first()?,
            other => other,
        };
        let (high, rest) = match rest {
            [b'-', b'\\', high, rest @ ..] => (high, rest),
            [b'-', high, rest @ ..] if *high != b']' => (high, rest),
            _ => (low, rest),
        };
        found |= (*low..=*high).contains(&byte);
        pattern = rest;
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_they_should() {
        let table = [
            (&["a"][..], &["a", "a/b", "a/b/c"][..], &["b", "ab", "b/a"][..]),
            (&["/a/b/"], &["a/b", "a/b/c"], &["a", "a/c", "c/a/b"]),
            (&["*.o"], &["x.o", ".o", "x.o/y"], &["x.oo", "d/x.o"]),
            (&["**/*.o"], &["x.o", "d/x.o", "d/e/x.o/f"], &["x.c"]),
            (&["a/**"], &["a/b", "a/b/c"], &["b"]),
            (&["a*b*c"], &["abc", "aXbYc", "abbcc"], &["ab", "abcd", "xabc"]),
            (&["a?c"], &["abc"], &["ac", "abbc"]),
            (&["[a-c]x", "[^0-9]y"], &["ax", "cx", "ay"], &["dx", "0y", "9y"]),
            (&["\\*x", "[\\]]z"], &["*x", "]z"], &["ax", "az"]),
            (&["a", "!a/b"], &["a", "a/c"], &["a/b", "a/b/c"]),
            (&["!a", "a"], &["a"], &["b"]),
            (&["", " ", "/", "!"], &[], &["a", "a/b"]),
            (&["[", "[a", "a\\"], &[], &["[", "a", "a\\"]),
        ];
        for (patterns, out, kept) in table {
            let patterns: Vec<Vec<u8>> = patterns.iter().map(|p| p.as_bytes().to_vec()).collect();
            let filter = Filter::new(&patterns);
            for path in out {
                assert!(filter.excludes(path.as_bytes()), "{path}");
            }
            for path in kept {
                assert!(!filter.excludes(path.as_bytes()), "{path}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let filter = Filter::new(&[b"*a".repeat(100), [b"**/a/".repeat(100), b"x".to_vec()].concat()]);
        assert!(!filter.excludes(&[b"a".repeat(10_000), b"b".to_vec()].concat()));
        assert!(!filter.excludes(&[b"a/".repeat(1000), b"b".to_vec()].concat()));
    }
}
