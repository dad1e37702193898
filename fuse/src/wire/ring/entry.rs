//! An entry of a ring: memory for one request and its reply.
//!
//! ```text
//! header:  0    struct fuse_in_header, or fuse_out_header in a reply
//!          128  the operation's first structure
//!          256  struct fuse_uring_ent_in_out: flags u64, commit id u64, bytes of payload u32
//! payload: what follows the first structure of a request; the reply behind its header
//! ```

use std::io;

use blockd::buf::AlignedBuf;
use zerocopy::{FromBytes, IntoBytes};

use crate::wire::abi::{InHeader, OutHeader};
use crate::wire::reply::{Outcome, Reply};
use crate::wire::request::Request;
use crate::wire::server::{Handler, WRITE_BYTES_MAX, handle};

const HEADER_BYTES: usize = 288;
const FIRST_AT: usize = 128;
const ENTRY_AT: usize = 256;
const COMMIT_ID_AT: usize = ENTRY_AT + 8;
const PAYLOAD_LEN_AT: usize = ENTRY_AT + 16;

/// The kernel writes to its memory only while it owns the entry.
pub struct Entry {
    header: AlignedBuf,
    payload: AlignedBuf,
    vectors: Box<[u64; 4]>,
}

impl Entry {
    /// An entry of zeros.
    pub fn new() -> Self {
        let mut header = AlignedBuf::zeroed(HEADER_BYTES);
        let mut payload = AlignedBuf::zeroed(WRITE_BYTES_MAX as usize);
        let vectors = [
            header.as_mut_ptr() as u64,
            header.len() as u64,
            payload.as_mut_ptr() as u64,
            payload.len() as u64,
        ];
        Entry { header, payload, vectors: Box::new(vectors) }
    }

    /// Where two struct iovec stand that tell the kernel of its memory; as long as the entry.
    pub fn vectors(&self) -> *const u64 {
        self.vectors.as_ptr()
    }

    /// The request that it holds.
    ///
    /// # Errors
    /// What it says of itself can't be.
    pub fn request(&self) -> io::Result<Request<'_>> {
        let broken = || io::Error::other("a ring entry's request is longer than its memory");
        let (header, _) = InHeader::read_from_prefix(&self.header).map_err(|_| broken())?;
        let len = u32::from_ne_bytes(self.header[PAYLOAD_LEN_AT..][..4].try_into().map_err(|_| broken())?);
        let payload = self.payload.get(..len as usize).ok_or_else(broken)?;
        Ok(Request::of_ring(header, &self.header[FIRST_AT..ENTRY_AT], payload))
    }

    /// Has its request handled; then it holds the reply.
    pub fn carry_out(&mut self, handler: &dyn Handler, reply: &mut Reply) {
        reply.clear();
        let (unique, outcome) = match self.request() {
            Ok(request) => (request.header.unique, handle(handler, request, reply)),
            Err(error) => {
                tracing::error!("{error}");
                (0, Outcome::Failed(libc::EIO))
            }
        };
        match outcome {
            Outcome::Failed(errno) => self.answer(unique, -errno, 0),
            Outcome::Silent => self.answer(unique, 0, 0),
            Outcome::Done => {
                let mut len = 0;
                for part in reply.parts() {
                    let Some(place) = self.payload.get_mut(len..len + part.len()) else {
                        tracing::error!("a reply is longer than a ring entry");
                        return self.answer(unique, -libc::EIO, 0);
                    };
                    place.copy_from_slice(part);
                    len += part.len();
                }
                self.answer(unique, 0, len);
            }
        }
    }

    /// It holds an errno as the reply.
    pub fn refuse(&mut self, errno: i32) {
        let unique = self.request().map_or(0, |request| request.header.unique);
        self.answer(unique, -errno, 0);
    }

    /// By what the kernel finds the request that the reply is for.
    pub fn commit_id(&self) -> u64 {
        let mut id = [0; 8];
        id.copy_from_slice(&self.header[COMMIT_ID_AT..][..8]);
        u64::from_ne_bytes(id)
    }

    fn answer(&mut self, unique: u64, error: i32, len: usize) {
        let header = OutHeader { len: (size_of::<OutHeader>() + len) as u32, error, unique };
        self.header[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        self.header[PAYLOAD_LEN_AT..][..4].copy_from_slice(&(len as u32).to_ne_bytes());
    }
}
