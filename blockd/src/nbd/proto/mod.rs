//! What stands on the wire, one concept per file. All integers are big-endian.

pub mod chunk;
pub mod errno;
pub mod flags;
pub mod greeting;
pub mod info;
pub mod meta;
pub mod option;
pub mod reply;
pub mod request;

/// Most payload bytes of one READ or WRITE that we take and send: the largest that every client
/// may assume ("Block size constraints": 32 MiB).
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Longest string (export name, description, message) on the wire, in bytes ("Values": 4096).
pub const STRING_BYTES_MAX: usize = 4096;

/// Reads a big-endian u16 at the front of `bytes` and moves past it; `None` if too short.
pub(crate) fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    Some(u16::from_be_bytes(*head))
}

/// As [`take_u16`] for a u32.
pub(crate) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*head))
}

/// As [`take_u16`] for a u64.
pub(crate) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_be_bytes(*head))
}

/// As [`take_u16`] for `n` bytes.
pub(crate) fn take_bytes<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}
