//! A request in the transmission phase ("Request message"), compact or, after
//! NBD_OPT_EXTENDED_HEADERS, extended.
//!
//! ```text
//! compact:  0 magic 0x25609513 (4) | 4 command flags (2) | 6 type (2) | 8 cookie (8) | 16 offset (8) | 24 length (4)
//! extended: 0 magic 0x21e41c71 (4) | 4 command flags (2) | 6 type (2) | 8 cookie (8) | 16 offset (8) | 24 length (8)
//! ```
//! followed by `length` bytes: compact for NBD_CMD_WRITE only, extended if the flags say so.

use super::flags::COMMAND_PAYLOAD_LEN;
use super::{take_u16, take_u32, take_u64};

/// Magic of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Bytes of a compact request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Magic of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Bytes of an extended request without its payload.
pub const EXTENDED_REQUEST_BYTES: usize = 32;

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
    /// Bytes; at most `u32::MAX` in a compact request.
    pub len_bytes: u64,
}

impl Request {
    /// Parses a compact request; `None` if the magic is wrong (the stream is out of step then).
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
            len_bytes: u64::from(take_u32(&mut rest)?),
        })
    }

    /// As [`Request::decode`] for an extended request.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u32(&mut rest)? != EXTENDED_REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: take_u16(&mut rest)?,
            command: take_u16(&mut rest)?,
            cookie: take_u64(&mut rest)?,
            offset: take_u64(&mut rest)?,
            len_bytes: take_u64(&mut rest)?,
        })
    }

    /// The bytes of the compact request.
    ///
    /// # Panics
    /// If the length is beyond a u32: whoever makes a request knows what was negotiated.
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let len_bytes = u32::try_from(self.len_bytes).expect("a compact request has a 32-bit length");
        let mut out = [0; REQUEST_BYTES];
        out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..].copy_from_slice(&len_bytes.to_be_bytes());
        out
    }

    /// The bytes of the extended request; a write says that its payload follows.
    pub fn encode_extended(&self) -> [u8; EXTENDED_REQUEST_BYTES] {
        let payload = if self.command == CMD_WRITE { COMMAND_PAYLOAD_LEN } else { 0 };
        let mut out = [0; EXTENDED_REQUEST_BYTES];
        out[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&(self.flags | payload).to_be_bytes());
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

    #[test]
    fn extended_requests_have_long_lengths_and_say_their_payload() {
        let trim = Request { flags: 1, command: CMD_TRIM, cookie: 5, offset: 3, len_bytes: 1 << 40 };
        let mut bytes = trim.encode_extended();
        assert_eq!(bytes[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 1, 0, 4]);
        assert_eq!(bytes[24..], (1u64 << 40).to_be_bytes());
        assert_eq!(Request::decode_extended(&bytes), Some(trim));
        bytes[3] ^= 1;
        assert_eq!(Request::decode_extended(&bytes), None);
        let write = Request { command: CMD_WRITE, len_bytes: 512, ..trim };
        assert_eq!(write.encode_extended()[4..6], [0, 0x21]);
    }
}
