//! Ids inside extended attributes: those that the kernel keeps as numbers.

use crate::error::Result;
use crate::idmap::IdPair;

/// The value of an attribute with the ids in it as `shift` gives them; the value as it is for an attribute without ids, and for one
/// whose form is not known.
///
/// # Errors
/// Those of `shift`.
pub(crate) fn shift(key: &[u8], value: &[u8], shift: &dyn Fn(IdPair) -> Result<IdPair>) -> Result<Vec<u8>> {
    match key {
        b"security.capability" => capability(value, shift),
        b"system.posix_acl_access" | b"system.posix_acl_default" => access_list(value, shift),
        _ => Ok(value.to_vec()),
    }
}

/// A version 3 capability names the root of the user namespace it is valid in (include/uapi/linux/capability.h): six
/// 32-bit words, little-endian, the first with the version in its top byte, the last the root's id.
fn capability(value: &[u8], shift: &dyn Fn(IdPair) -> Result<IdPair>) -> Result<Vec<u8>> {
    let mut value = value.to_vec();
    if value.len() == 24
        && value.get(3) == Some(&3)
        && let Some(field) = value.get_mut(20..24)
        && let Ok(bytes) = <[u8; 4]>::try_from(&*field)
    {
        let owner = shift(IdPair { uid: u32::from_le_bytes(bytes), gid: 0 })?;
        field.copy_from_slice(&owner.uid.to_le_bytes());
    }
    Ok(value)
}

/// Access lists name users and groups (include/uapi/linux/posix_acl_xattr.h): a 32-bit version, then entries of a
/// 16-bit tag, 16-bit permissions and a 32-bit id, all little-endian.
fn access_list(value: &[u8], shift: &dyn Fn(IdPair) -> Result<IdPair>) -> Result<Vec<u8>> {
    const USER: [u8; 2] = [2, 0];
    const GROUP: [u8; 2] = [8, 0];
    let mut value = value.to_vec();
    for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let Some((tag, rest)) = entry.split_at_mut_checked(2) else { continue };
        let Some(field) = rest.get_mut(2..6) else { continue };
        let Ok(bytes) = <[u8; 4]>::try_from(&*field) else { continue };
        let id = u32::from_le_bytes(bytes);
        let shifted = match tag {
            tag if *tag == USER => shift(IdPair { uid: id, gid: 0 })?.uid,
            tag if *tag == GROUP => shift(IdPair { uid: 0, gid: id })?.gid,
            _ => id,
        };
        field.copy_from_slice(&shifted.to_le_bytes());
    }
    Ok(value)
}
