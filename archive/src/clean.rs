//! Names without detours.

/// Go's `path.Clean` of the components `parts`, in a name that begins with a slash if it is `rooted`: the shortest name that
/// means the same if there are no symbolic links.
pub(crate) fn clean<'p>(rooted: bool, parts: impl IntoIterator<Item = &'p [u8]>) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in parts {
        match part {
            b"" | b"." => {}
            b".." => match kept.last() {
                Some(last) if *last != b".." => {
                    kept.pop();
                }
                _ if rooted => {}
                _ => kept.push(part),
            },
            _ => kept.push(part),
        }
    }
    let joined = kept.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}
