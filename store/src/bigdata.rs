//! Big data: items of any size that belong to a layer, an image or a container, each a file of its own.
//!
//! `<driver>-images/<id>/manifest`, `<driver>-images/<id>/=c2hhMjU2OjA…` (the key `sha256:0…`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use graph_archive::digest::Digest;
use graph_core::fsutil::Durability;

use crate::dirs::Dir;
use crate::error::{Error, Result};

/// The file name of a key: the key itself if it has nothing but `a`-`z`, `0`-`9` and `.`, otherwise `=` and the key's
/// base64.
///
/// containers/storage looks no further than the last but one character, so a key whose only other character is its last
/// one stays as it is; that is kept, or their items would not be found.
pub(crate) fn file_name(key: &str) -> Result<String> {
    let plain = |c: char| matches!(c, '.' | 'a'..='z' | '0'..='9');
    let name = match key.char_indices().find(|(_, c)| !plain(*c)) {
        Some((at, c)) if at.saturating_add(c.len_utf8()) < key.len() => format!("={}", STANDARD.encode(key)),
        _ => key.to_owned(),
    };
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::InvalidBigDataName { key: key.to_owned() });
    }
    Ok(name)
}

/// Refuses a new item's key that has no file name, or would garble what is printed. Items that are there already can be
/// read whatever their keys.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.chars().any(char::is_control) {
        return Err(Error::InvalidBigDataName { key: key.to_owned() });
    }
    file_name(key).map(drop)
}

/// The sha256 of an item, as records have it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Checks that a string is a digest.
pub(crate) fn check_digest(digest: &str) -> Result<()> {
    match digest.parse::<Digest>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::InvalidDigest { digest: digest.to_owned() }),
    }
}

/// Whose item: for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'o> {
    pub(crate) kind: &'static str,
    pub(crate) id: &'o str,
}

/// Reads an item. `known` says whether the record has it; a file without is not looked for.
pub(crate) fn read(parent: &Dir, owner: Owner<'_>, key: &str, known: bool) -> Result<Vec<u8>> {
    let name = file_name(key)?;
    let missing = || Error::BigDataNotFound { kind: owner.kind, id: owner.id.to_owned(), key: key.to_owned() };
    if !known {
        return Err(missing());
    }
    parent.open_dir(owner.id)?.map(|dir| dir.read(&name)).transpose()?.flatten().ok_or_else(missing)
}

/// The size of an item: as recorded, or where an old writer has not recorded it, of what is there.
pub(crate) fn size(recorded: Option<&i64>, parent: &Dir, owner: Owner<'_>, key: &str, known: bool) -> Result<u64> {
    if let Some(size) = recorded.and_then(|size| u64::try_from(*size).ok()) {
        return Ok(size);
    }
    match read(parent, owner, key, known) {
        Ok(data) => Ok(u64::try_from(data.len()).unwrap_or(u64::MAX)),
        Err(Error::BigDataNotFound { kind, id, key }) => Err(Error::SizeUnknown { kind, id, key }),
        Err(Error::InvalidBigDataName { key }) => {
            Err(Error::SizeUnknown { kind: owner.kind, id: owner.id.to_owned(), key })
        }
        Err(error) => Err(error),
    }
}

/// The digest of an item: as recorded, or where an old writer has not recorded it, of what is there.
pub(crate) fn recorded_digest(
    recorded: Option<&String>,
    parent: &Dir,
    owner: Owner<'_>,
    key: &str,
    known: bool,
) -> Result<String> {
    if let Some(digest) = recorded.filter(|digest| !digest.is_empty()) {
        return Ok(digest.clone());
    }
    match read(parent, owner, key, known) {
        Ok(data) => Ok(digest(&data)),
        Err(Error::BigDataNotFound { kind, id, key }) => Err(Error::DigestUnknown { kind, id, key }),
        Err(Error::InvalidBigDataName { key }) => {
            Err(Error::DigestUnknown { kind: owner.kind, id: owner.id.to_owned(), key })
        }
        Err(error) => Err(error),
    }
}

/// Writes an item, whole or not at all.
pub(crate) fn write(parent: &Dir, owner: Owner<'_>, key: &str, data: &[u8], durability: Durability) -> Result<()> {
    let name = file_name(key)?;
    parent.make_dir(owner.id)?.write(&name, data, durability)?;
    // The item's directory, should it be new.
    if durability == Durability::Full { parent.flush() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn big_data_file_names() {
        let table = [
            ("manifest", "manifest"),
            ("bigdata.1", "bigdata.1"),
            ("sha256:Ab/c", "=c2hhMjU2OkFiL2M="),
            ("A_b-c", "=QV9iLWM="),
            ("manifest-x", "=bWFuaWZlc3QteA=="),
            ("ä", "ä"),
            ("dataX", "dataX"),
            ("../x", "=Li4veA=="),
        ];
        for (key, name) in table {
            assert_eq!(file_name(key).unwrap(), name, "{key}");
        }
        for key in ["", ".", "..", "/", "abc/", "\0"] {
            assert!(matches!(file_name(key), Err(Error::InvalidBigDataName { .. })), "{key:?}");
        }
    }

    #[test]
    fn digests() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        check_digest(&digest(b"x")).unwrap();
        for bad in ["", "sha256:", "sha256:abc", "sha256:E3", "foo:bar", &digest(b"").to_uppercase()] {
            assert!(check_digest(bad).is_err(), "{bad}");
        }
    }
}
