//! Whiteouts: member names by which a layer takes away what lower layers hold.
//!
//! The OCI image specification (layer.md, "Whiteouts") took them over from AUFS: a member `d/.wh.name` removes `d/name`
//! of the lower layers, `d/.wh..wh..opq` removes everything that the lower layers have in `d`, and other names that begin
//! with `.wh..wh.` are AUFS's own book-keeping, which means nothing to anybody else.

use crate::error::Defect;

/// What a whiteout's name begins with.
pub const PREFIX: &[u8] = b".wh.";
/// What the names of AUFS's own files begin with.
pub const METADATA_PREFIX: &[u8] = b".wh..wh.";
/// The name that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of a member's name says about lower layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whiteout<'n> {
    /// Remove this name, which is a single, ordinary path component, from the member's directory.
    Remove(&'n [u8]),
    /// Remove all that lower layers have in the member's directory.
    Opaque,
    /// A file that AUFS keeps for itself (`.wh..wh.aufs`, `.wh..wh.orph`, `.wh..wh.plnk`): to be ignored.
    AufsMetadata,
}

impl<'n> Whiteout<'n> {
    /// Parses the last component of a member's name; `None` when it is no whiteout at all.
    ///
    /// # Errors
    /// [`Defect::InvalidWhiteout`] when what is to be removed is not an ordinary name: empty, `.`, `..`, or holding `/` or
    /// NUL. Such a name must never be joined to anything: `.wh...` would remove the directory above.
    pub fn parse(component: &'n [u8]) -> Result<Option<Self>, Defect> {
        let Some(name) = component.strip_prefix(PREFIX) else { return Ok(None) };
        if component == OPAQUE {
            return Ok(Some(Self::Opaque));
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(Defect::InvalidWhiteout);
        }
        if component.starts_with(METADATA_PREFIX) {
            return Ok(Some(Self::AufsMetadata));
        }
        Ok(Some(Self::Remove(name)))
    }

    /// Parses a component that is not the last of a member's name.
    ///
    /// Below AUFS's own directories everything is AUFS's own, so `.wh..wh.plnk/7.1` is [`Whiteout::AufsMetadata`]. Any
    /// other whiteout name in the middle of a path is an error: a directory of such a name could never leave the store
    /// again, as every reader would take it for a whiteout. (umoci makes it a real directory, which it then cannot
    /// repack.)
    ///
    /// # Errors
    /// [`Defect::InvalidWhiteout`].
    pub fn parse_ancestor(component: &'n [u8]) -> Result<Option<Self>, Defect> {
        match Self::parse(component)? {
            None => Ok(None),
            Some(Self::AufsMetadata) => Ok(Some(Self::AufsMetadata)),
            Some(_) => Err(Defect::InvalidWhiteout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static [u8], Result<Option<Whiteout<'static>>, Defect>);

    #[test]
    fn last_components() {
        let table: &[Case] = &[
            (b"file", Ok(None)),
            (b".wh", Ok(None)),
            (b"a.wh.b", Ok(None)),
            (b".wh.file", Ok(Some(Whiteout::Remove(b"file")))),
            (b".wh..hidden", Ok(Some(Whiteout::Remove(b".hidden")))),
            (b".wh....", Ok(Some(Whiteout::Remove(b"...")))),
            (b".wh.\xff", Ok(Some(Whiteout::Remove(b"\xff")))),
            (b".wh..wh", Ok(Some(Whiteout::Remove(b".wh")))),
            (b".wh..wh..opq", Ok(Some(Whiteout::Opaque))),
            (b".wh..wh.aufs", Ok(Some(Whiteout::AufsMetadata))),
            (b".wh..wh.", Ok(Some(Whiteout::AufsMetadata))),
            (b".wh..wh..opq2", Ok(Some(Whiteout::AufsMetadata))),
            (b".wh.", Err(Defect::InvalidWhiteout)),
            (b".wh..", Err(Defect::InvalidWhiteout)),
            (b".wh...", Err(Defect::InvalidWhiteout)),
            (b".wh.a/b", Err(Defect::InvalidWhiteout)),
            (b".wh.a\0b", Err(Defect::InvalidWhiteout)),
            (b".wh..wh.a\0b", Err(Defect::InvalidWhiteout)),
        ];
        for (component, expected) in table {
            assert_eq!(&Whiteout::parse(component), expected, "{}", crate::error::show(component));
        }
    }

    #[test]
    fn ancestors() {
        assert_eq!(Whiteout::parse_ancestor(b"d"), Ok(None));
        assert_eq!(Whiteout::parse_ancestor(b".wh..wh.plnk"), Ok(Some(Whiteout::AufsMetadata)));
        for bad in [&b".wh.d"[..], b".wh..wh..opq", b".wh.", b".wh..."] {
            assert_eq!(Whiteout::parse_ancestor(bad), Err(Defect::InvalidWhiteout));
        }
    }
}
