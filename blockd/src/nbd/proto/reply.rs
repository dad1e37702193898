//! A reply in the transmission phase ("Simple reply message").
//!
//! ```text
//! 0 magic 0x67446698 (4) | 4 error, 0 = none (4) | 8 cookie (8)
//! ```
//! followed, for a NBD_CMD_READ without error, by the bytes read.

use super::{take_u32, take_u64};
use serde::{Deserialize, Serialize};

/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;

/// The form of requests and replies on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub enum Replies {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, replies in chunks (or simple ones without payload).
    Chunks,
    /// Extended requests, replies in extended chunks.
    Extended,
}

/// A simple reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleReply {
    /// 0 or one of [`super::errno`].
    pub errno: u32,
    /// The request's cookie.
    pub cookie: u64,
}

impl SimpleReply {
    /// Parses a reply; `None` if the magic is wrong (the stream is out of step then).
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u32(&mut rest)? != SIMPLE_REPLY_MAGIC {
            return None;
        }
        Some(SimpleReply { errno: take_u32(&mut rest)?, cookie: take_u64(&mut rest)? })
    }

    /// The bytes of the reply.
    pub fn encode(&self) -> [u8; SIMPLE_REPLY_BYTES] {
        let mut out = [0; SIMPLE_REPLY_BYTES];
        out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.errno.to_be_bytes());
        out[8..].copy_from_slice(&self.cookie.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_magic() {
        let reply = SimpleReply { errno: 28, cookie: 7 };
        let mut bytes = reply.encode();
        assert_eq!(bytes[..4], [0x67, 0x44, 0x66, 0x98]);
        assert_eq!(SimpleReply::decode(&bytes), Some(reply));
        bytes[3] ^= 1;
        assert_eq!(SimpleReply::decode(&bytes), None);
    }
}
