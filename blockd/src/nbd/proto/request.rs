//! A request in the transmission phase ("Request message").
//!
//! ```text
//! 0 magic 0x25609513 (4) | 4 command flags (2) | 6 type (2) | 8 cookie (8) | 16 offset (8) | 24 length (4)
//! ```
//! followed, for NBD_CMD_WRITE only, by `length` bytes.

use super::{take_u16, take_u32, take_u64};

/// Magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Bytes of a request without its payload.
pub const REQUEST_BYTES: usize = 28;

/// Reads a range.
pub const CMD_READ: u16 = 0;
/// Writes the payload.
pub const CMD_WRITE: u16 = 1;
/// Ends the connection; has no reply.
pub const CMD_DISC: u16 = 2;
/// Makes everything acknowledged before durable.
pub const CMD_FLUSH: u16 = 3;
/// The range is no longer needed.
pub const CMD_TRIM: u16 = 4;
/// The range will be read soon.
pub const CMD_CACHE: u16 = 5;
/// The range is to read as zeros.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Asks which parts of the range are holes.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// A request as it came; nothing but the magic is checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The `COMMAND_*` of [`super::flags`].
    pub flags: u16,
    /// One of the `CMD_*`.
    pub command: u16,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len_bytes: u32,
}

impl Request {
    /// Parses a request; `None` if the magic is wrong (the stream is out of step then).
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u32(&mut rest)? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: take_u16(&mut rest)?,
            command: take_u16(&mut rest)?,
            cookie: take_u64(&mut rest)?,
            offset: take_u64(&mut rest)?,
            len_bytes: take_u32(&mut rest)?,
        })
    }

    /// The bytes of the request.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&self.len_bytes.to_be_bytes());
        out
    }

    /// Name of a command for messages.
    pub fn name(command: u16) -> &'static str {
        match command {
            CMD_READ => "read",
            CMD_WRITE => "write",
            CMD_DISC => "disconnect",
            CMD_FLUSH => "flush",
            CMD_TRIM => "trim",
            CMD_CACHE => "cache",
            CMD_WRITE_ZEROES => "write zeroes",
            CMD_BLOCK_STATUS => "block status",
            _ => "unknown command",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_at_the_offsets_of_the_specification() {
        let request = Request {
            flags: 1,
            command: CMD_WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 1 << 61,
            len_bytes: 4096,
        };
        let mut bytes = request.encode();
        assert_eq!(bytes[..4], [0x25, 0x60, 0x95, 0x13]);
        assert_eq!(bytes[7], 1);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[24..], [0, 0, 16, 0]);
        assert_eq!(Request::decode(&bytes), Some(request));
        bytes[0] = 0;
        assert_eq!(Request::decode(&bytes), None);
    }
}
