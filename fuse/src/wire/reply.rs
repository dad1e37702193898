//! The reply to a request, as the handler fills it.

use std::ops::Deref;

use zerocopy::{Immutable, IntoBytes};

/// Bytes that go out as they are, without a copy.
pub type Data = Box<dyn Deref<Target = [u8]> + Send>;

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The reply that was filled goes out.
    Done,
    /// An errno goes out instead.
    Failed(i32),
    /// The kernel waits for no reply.
    Silent,
}

/// A reply's content. It is used again for the next request.
#[derive(Default)]
pub struct Reply {
    bytes: Vec<u8>,
    data: Option<Data>,
}

impl Reply {
    /// Adds a structure.
    pub fn push(&mut self, value: &(impl IntoBytes + Immutable)) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Adds bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds zeros until the length is a multiple of 8 (FUSE_REC_ALIGN).
    pub fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Bytes added so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends the reply with bytes that are not copied.
    pub fn data(&mut self, data: Data) {
        self.data = Some(data);
    }

    /// The parts in order, the second is empty unless there is [`Reply::data`].
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.bytes, self.data.as_ref().map_or(&[], |data| data)]
    }

    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.data = None;
    }
}
