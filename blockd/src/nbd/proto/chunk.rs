//! A chunk of a structured reply ("Structured reply chunk message"); the last of a reply says so.
//!
//! ```text
//! 0 magic 0x668e33ef (4) | 4 flags (2) | 6 type (2) | 8 cookie (8) | 16 payload bytes (4) | 20 payload
//! ```

/// Magic of a chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a chunk without its payload.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of the longest head: chunk, and offset and length of a hole.
pub const CHUNK_HEAD_BYTES_MAX: usize = CHUNK_BYTES + 12;
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
/// Type: error (4), message bytes (2), message.
pub const TYPE_ERROR: u16 = (1 << 15) + 1;

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
    /// [`TYPE_BLOCK_STATUS`]; the extents (8 bytes each) follow the head.
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
    /// The head; `done` on the last chunk of a reply.
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
        head
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
}
