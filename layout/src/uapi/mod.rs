//! The binary requests of the session files `put` and `search` (FORMAT.md section 6.5).
//!
//! [`raw`] is made from `uapi/vexfs.h`, the one definition. [`put`] and [`search`] view untrusted
//! bytes as checked requests, and build requests and replies into the caller's buffers. What a
//! request means for a given collection (dim, element, permissions) is checked later, by the rows
//! and the search.

pub mod put;
pub mod raw;
pub mod search;

use crate::error::{Error, Result};

/// A request or reply that is too short, too long or of another kind.
const TRUNCATED: Error =
    Error::Invalid("the request is shorter than its fixed structure; write all of it before reading");

/// Refuses a path that is absolute, empty in a part, or has `.`, `..` or NUL in it.
///
/// # Errors
/// [`Error::Invalid`] with the rule that is broken; [`Error::NameTooLong`] for a part over 255 bytes.
pub fn check_relative_path(path: &[u8]) -> Result<()> {
    if path.len() > raw::VEXFS_PATH_BYTES_MAX as usize {
        return Err(Error::NameTooLong);
    }
    path.split(|&byte| byte == b'/').try_for_each(check_name)
}

/// Refuses what cannot be the name of a directory entry.
///
/// # Errors
/// [`Error::Invalid`] with the rule that is broken; [`Error::NameTooLong`] over 255 bytes.
pub fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => {
            Err(Error::Invalid("a path is relative, with single slashes between names and none at its ends"))
        }
        b"." | b".." => Err(Error::Invalid("a path may not have . or .. in it")),
        _ if name.contains(&0) => Err(Error::Invalid("a path may not have a NUL byte in it")),
        _ if name.contains(&b'/') => Err(Error::Invalid("a name may not have a slash in it")),
        _ if name.len() > raw::VEXFS_NAME_BYTES_MAX as usize => Err(Error::NameTooLong),
        _ => Ok(()),
    }
}

/// Bytes of one element of a `VEXFS_ELEMENT_*` type code.
///
/// # Errors
/// [`Error::Invalid`] for a code that is not known, [`Error::Unsupported`] for the reserved one.
pub fn element_bytes(element: u8) -> Result<usize> {
    match u32::from(element) {
        raw::VEXFS_ELEMENT_F32 => Ok(4),
        raw::VEXFS_ELEMENT_F16 => Ok(2),
        raw::VEXFS_ELEMENT_I8 => Ok(1),
        raw::VEXFS_ELEMENT_B1 => Err(Error::Unsupported),
        _ => Err(Error::Invalid("unknown element type; it is 1 (f32), 2 (f16) or 3 (i8)")),
    }
}

fn check_version(version: u32) -> Result<()> {
    if version == raw::VEXFS_UAPI_VERSION {
        Ok(())
    } else {
        Err(Error::Invalid("unknown version of the request; this side speaks version 1 of uapi/vexfs.h"))
    }
}

fn check_total(total_bytes: u64, given: usize) -> Result<()> {
    match (given as u64).cmp(&total_bytes) {
        core::cmp::Ordering::Equal => Ok(()),
        core::cmp::Ordering::Less => {
            Err(Error::Invalid("the request is incomplete: fewer bytes than its total_bytes were written"))
        }
        core::cmp::Ordering::Greater => {
            Err(Error::Invalid("the request has more bytes than its total_bytes says"))
        }
    }
}

fn check_message(len: usize) -> Result<u32> {
    match u32::try_from(len) {
        Ok(len) if len <= raw::VEXFS_MESSAGE_BYTES_MAX => Ok(len),
        _ => Err(Error::Invalid("a message is longer than VEXFS_MESSAGE_BYTES_MAX")),
    }
}

/// Cuts `len` bytes off the front of `rest`.
fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (part, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(part)
}

/// Copies `parts` one after the other into `out` and gives the length of all.
fn concat(parts: &[&[u8]], out: &mut [u8]) -> Result<usize> {
    let mut at = 0;
    for part in parts {
        let end = at + part.len();
        out.get_mut(at..end).ok_or(Error::Range)?.copy_from_slice(part);
        at = end;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_and_plain() {
        for good in [&b"a"[..], b"a/b", b"...", b"\xff\xfe/x y"] {
            assert_eq!(check_relative_path(good), Ok(()));
        }
        for bad in [&b""[..], b"/a", b"a/", b"a//b", b".", b"a/../b", b"a/.", b"a\0b"] {
            assert!(matches!(check_relative_path(bad), Err(Error::Invalid(_))), "{bad:?}");
        }
        assert_eq!(check_relative_path(&[b'a'; 256]), Err(Error::NameTooLong));
        assert_eq!(check_relative_path(&[b'/'; 5000]), Err(Error::NameTooLong));
    }
}
