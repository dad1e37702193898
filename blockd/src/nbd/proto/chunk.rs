//! A chunk of a reply ("Structured reply chunk message", or, after NBD_OPT_EXTENDED_HEADERS,
//! "Extended reply chunk message"); the last of a reply says so.
//!
//! ```text
//! compact:  0 magic 0x668e33ef (4) | 4 flags (2) | 6 type (2) | 8 cookie (8) | 16 payload bytes (4) | 20 payload
//! extended: 0 magic 0x6e8a278c (4) | 4 flags (2) | 6 type (2) | 8 cookie (8) | 16 request's offset (8)
//!           | 24 payload bytes (8) | 32 payload
//! ```

use super::request::Request;
use super::{take_u16, take_u32, take_u64};

/// Magic of a chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a chunk without its payload.
pub const CHUNK_BYTES: usize = 20;
/// Magic of an extended chunk.
pub const EXTENDED_CHUNK_MAGIC: u32 = 0x6e8a_278c;
/// Bytes of an extended chunk without its payload.
pub const EXTENDED_CHUNK_BYTES: usize = 32;
/// Bytes of the longest head: chunk, and offset and length of a hole.
pub const CHUNK_HEAD_BYTES_MAX: usize = EXTENDED_CHUNK_BYTES + 12;
/// Longest message of an error chunk that we send, in bytes.
pub const ERROR_TEXT_BYTES_MAX: usize = 256;

/// Flag: no chunk of this reply follows.
pub const FLAG_DONE: u16 = 1 << 0;

/// Type: nothing more to say.
pub const TYPE_NONE: u16 = 0;
/// Type: offset (8), bytes read.
pub const TYPE_OFFSET_DATA: u16 = 1;
/// Type: offset (8), length (4) of zeros.
pub const TYPE_OFFSET_HOLE: u16 = 2;
/// Type: context (4), then length (4) and status (4) of each extent.
pub const TYPE_BLOCK_STATUS: u16 = 5;
/// Type, extended only: context (4), extents (4), then length (8) and status (8) of each extent.
pub const TYPE_BLOCK_STATUS_EXTENDED: u16 = 6;
/// Types with this bit are errors; their payload begins as that of [`TYPE_ERROR`].
pub const TYPE_ERROR_BIT: u16 = 1 << 15;
/// Type: error (4), message bytes (2), message.
pub const TYPE_ERROR: u16 = TYPE_ERROR_BIT + 1;

/// Status of an extent in base:allocation: no space is allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Status of an extent in base:allocation: it reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// What a chunk says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// [`TYPE_NONE`].
    None,
    /// [`TYPE_OFFSET_DATA`]; the data follows the head.
    Data {
        /// Device byte of the first.
        offset: u64,
        /// Bytes that follow the head.
        len_bytes: u32,
    },
    /// [`TYPE_OFFSET_HOLE`].
    Hole {
        /// Device byte of the first.
        offset: u64,
        /// Zeros.
        len_bytes: u32,
    },
    /// [`TYPE_BLOCK_STATUS`], or [`TYPE_BLOCK_STATUS_EXTENDED`]; the extents (8 or 16 bytes each) follow
    /// the head.
    BlockStatus {
        /// Number of the metadata context.
        context: u32,
        /// Extents that follow the head.
        extents: u32,
    },
    /// [`TYPE_ERROR`]; the message follows the head.
    Error {
        /// One of [`super::errno`].
        errno: u32,
        /// Bytes of the message that follows the head.
        text_bytes: u16,
    },
}

/// A head with the fixed fields behind it.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    bytes: [u8; CHUNK_HEAD_BYTES_MAX],
    used: usize,
}

impl ChunkHead {
    /// What is sent before the chunk's variable part.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.used..self.used + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }
}

impl Chunk {
    /// The head of a compact chunk; `done` on the last chunk of a reply.
    pub fn head(&self, cookie: u64, done: bool) -> ChunkHead {
        let (kind, payload_bytes) = match *self {
            Chunk::None => (TYPE_NONE, 0),
            Chunk::Data { len_bytes, .. } => (TYPE_OFFSET_DATA, 8 + len_bytes),
            Chunk::Hole { .. } => (TYPE_OFFSET_HOLE, 12),
            Chunk::BlockStatus { extents, .. } => (TYPE_BLOCK_STATUS, 4 + 8 * extents),
            Chunk::Error { text_bytes, .. } => (TYPE_ERROR, 6 + u32::from(text_bytes)),
        };
        let mut head = ChunkHead { bytes: [0; CHUNK_HEAD_BYTES_MAX], used: 0 };
        head.put(&CHUNK_MAGIC.to_be_bytes());
        head.put(&if done { FLAG_DONE } else { 0 }.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&cookie.to_be_bytes());
        head.put(&payload_bytes.to_be_bytes());
        self.put_fixed(&mut head);
        head
    }

    /// As [`Chunk::head`] of an extended chunk, of the reply to `request`.
    pub fn head_extended(&self, request: &Request, done: bool) -> ChunkHead {
        let (kind, payload_bytes) = match *self {
            Chunk::None => (TYPE_NONE, 0),
            Chunk::Data { len_bytes, .. } => (TYPE_OFFSET_DATA, 8 + u64::from(len_bytes)),
            Chunk::Hole { .. } => (TYPE_OFFSET_HOLE, 12),
            Chunk::BlockStatus { extents, .. } => (TYPE_BLOCK_STATUS_EXTENDED, 8 + 16 * u64::from(extents)),
            Chunk::Error { text_bytes, .. } => (TYPE_ERROR, 6 + u64::from(text_bytes)),
        };
        let mut head = ChunkHead { bytes: [0; CHUNK_HEAD_BYTES_MAX], used: 0 };
        head.put(&EXTENDED_CHUNK_MAGIC.to_be_bytes());
        head.put(&if done { FLAG_DONE } else { 0 }.to_be_bytes());
        head.put(&kind.to_be_bytes());
        head.put(&request.cookie.to_be_bytes());
        head.put(&request.offset.to_be_bytes());
        head.put(&payload_bytes.to_be_bytes());
        self.put_fixed(&mut head);
        if let Chunk::BlockStatus { extents, .. } = *self {
            head.put(&extents.to_be_bytes());
        }
        head
    }

    /// The fields of the payload that stand before its variable part.
    fn put_fixed(&self, head: &mut ChunkHead) {
        match *self {
            Chunk::None => {}
            Chunk::Data { offset, .. } => head.put(&offset.to_be_bytes()),
            Chunk::Hole { offset, len_bytes } => {
                head.put(&offset.to_be_bytes());
                head.put(&len_bytes.to_be_bytes());
            }
            Chunk::BlockStatus { context, .. } => head.put(&context.to_be_bytes()),
            Chunk::Error { errno, text_bytes } => {
                head.put(&errno.to_be_bytes());
                head.put(&text_bytes.to_be_bytes());
            }
        }
    }
}

/// The head of a chunk as it came; nothing but the magic is checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivedChunk {
    /// [`FLAG_DONE`] or none.
    pub flags: u16,
    /// One of the `TYPE_*`.
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// Bytes that follow.
    pub payload_bytes: u64,
}

impl ReceivedChunk {
    /// Parses a compact head; `None` if the magic is wrong (the stream is out of step then).
    pub fn decode(bytes: &[u8; CHUNK_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u32(&mut rest)? != CHUNK_MAGIC {
            return None;
        }
        Some(ReceivedChunk {
            flags: take_u16(&mut rest)?,
            kind: take_u16(&mut rest)?,
            cookie: take_u64(&mut rest)?,
            payload_bytes: u64::from(take_u32(&mut rest)?),
        })
    }

    /// As [`ReceivedChunk::decode`] for an extended head. The request's offset in it says nothing that the
    /// cookie does not.
    pub fn decode_extended(bytes: &[u8; EXTENDED_CHUNK_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if take_u32(&mut rest)? != EXTENDED_CHUNK_MAGIC {
            return None;
        }
        let (flags, kind, cookie) = (take_u16(&mut rest)?, take_u16(&mut rest)?, take_u64(&mut rest)?);
        let _offset = take_u64(&mut rest)?;
        Some(ReceivedChunk { flags, kind, cookie, payload_bytes: take_u64(&mut rest)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_stand_at_the_offsets_of_the_specification() {
        let head = Chunk::Data { offset: 0x1122, len_bytes: 512 }.head(7, true);
        let bytes = head.as_bytes();
        assert_eq!(bytes[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(bytes[8..16], 7u64.to_be_bytes());
        assert_eq!(bytes[16..20], 520u32.to_be_bytes());
        assert_eq!(bytes[20..], 0x1122u64.to_be_bytes());
        let hole = Chunk::Hole { offset: 3, len_bytes: 9 }.head(7, false);
        assert_eq!(hole.as_bytes()[4..8], [0, 0, 0, 2]);
        assert_eq!(hole.as_bytes()[16..], [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9]);
        let error = Chunk::Error { errno: 5, text_bytes: 3 }.head(7, true);
        assert_eq!(error.as_bytes()[6..8], [0x80, 1]);
        assert_eq!(error.as_bytes()[16..], [0, 0, 0, 9, 0, 0, 0, 5, 0, 3]);
        let status = Chunk::BlockStatus { context: 1, extents: 2 }.head(7, true);
        assert_eq!(status.as_bytes()[16..], [0, 0, 0, 20, 0, 0, 0, 1]);
        assert_eq!(Chunk::None.head(7, true).as_bytes().len(), CHUNK_BYTES);
    }

    #[test]
    fn extended_heads_repeat_the_offset_and_count_in_64_bits() {
        let request = Request { flags: 0, command: 0, cookie: 7, offset: 0x1122, len_bytes: 512 };
        let data = Chunk::Data { offset: 0x1144, len_bytes: 512 }.head_extended(&request, true);
        let bytes = data.as_bytes();
        assert_eq!(bytes[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1]);
        assert_eq!(bytes[8..16], 7u64.to_be_bytes());
        assert_eq!(bytes[16..24], 0x1122u64.to_be_bytes());
        assert_eq!(bytes[24..32], 520u64.to_be_bytes());
        assert_eq!(bytes[32..], 0x1144u64.to_be_bytes());
        let status = Chunk::BlockStatus { context: 1, extents: 2 }.head_extended(&request, true);
        assert_eq!(status.as_bytes()[6..8], [0, 6]);
        assert_eq!(status.as_bytes()[24..], [0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 2]);
        let hole = Chunk::Hole { offset: 3, len_bytes: 9 }.head_extended(&request, false);
        assert_eq!(hole.as_bytes().len(), CHUNK_HEAD_BYTES_MAX);
    }

    #[test]
    fn heads_are_read_back_and_a_wrong_magic_is_noticed() {
        let request = Request { flags: 0, command: 0, cookie: 7, offset: 0x1122, len_bytes: 512 };
        let chunk = Chunk::Data { offset: 0, len_bytes: 512 };
        let expected =
            ReceivedChunk { flags: FLAG_DONE, kind: TYPE_OFFSET_DATA, cookie: 7, payload_bytes: 520 };
        let mut compact: [u8; CHUNK_BYTES] = chunk.head(7, true).as_bytes()[..20].try_into().unwrap();
        assert_eq!(ReceivedChunk::decode(&compact), Some(expected));
        compact[2] ^= 1;
        assert_eq!(ReceivedChunk::decode(&compact), None);
        let head = chunk.head_extended(&request, true);
        let mut extended: [u8; EXTENDED_CHUNK_BYTES] = head.as_bytes()[..32].try_into().unwrap();
        assert_eq!(ReceivedChunk::decode_extended(&extended), Some(expected));
        extended[0] ^= 1;
        assert_eq!(ReceivedChunk::decode_extended(&extended), None);
    }
}
