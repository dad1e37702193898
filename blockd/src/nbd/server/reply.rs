//! Replies as frames: simple ones, or chunks once the client negotiated structured replies.

use std::ops::Range;
use std::sync::Arc;

use super::budget::Permit;
use super::handshake::Replies;
use crate::buf::AlignedBuf;
use crate::device::Extent;
use crate::nbd::proto::chunk::{
    CHUNK_HEAD_BYTES_MAX, Chunk, ChunkHead, ERROR_TEXT_BYTES_MAX, STATE_HOLE, STATE_ZERO,
};
use crate::nbd::proto::reply::{SIMPLE_REPLY_BYTES, SimpleReply};
use crate::nbd::proto::request::{CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Request};
use crate::nbd::wire::outbox::{Frame, Outbox, Push};
use crate::stats::Kind;

/// Number of base:allocation on every connection.
pub const ALLOCATION_CONTEXT: u32 = 1;
/// Most extents in one answer to NBD_CMD_BLOCK_STATUS.
pub const EXTENTS_MAX: usize = 1024;
/// Shorter runs of zeros are sent as data: a chunk costs more than they do.
const HOLE_BYTES_MIN: usize = 32 << 10;
/// Zeros are looked for in blocks of this many bytes.
const ZERO_BLOCK_BYTES: usize = 4096;

const _: () = assert!(SIMPLE_REPLY_BYTES <= CHUNK_HEAD_BYTES_MAX);

enum Head {
    Simple([u8; SIMPLE_REPLY_BYTES]),
    Chunk(ChunkHead),
}

enum Payload {
    None,
    Whole(AlignedBuf),
    Part(Arc<AlignedBuf>, Range<usize>),
    Bytes(Vec<u8>),
}

/// A reply, or a chunk of one, on its way. The last one holds the request's share of the budget,
/// which goes back when it is written.
pub struct Reply {
    head: Head,
    payload: Payload,
    _permit: Option<Permit>,
}

impl Frame for Reply {
    fn head(&self) -> &[u8] {
        match &self.head {
            Head::Simple(bytes) => bytes,
            Head::Chunk(head) => head.as_bytes(),
        }
    }
    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::None => &[],
            Payload::Whole(buf) => buf,
            Payload::Part(buf, part) => buf.get(part.clone()).unwrap_or_default(),
            Payload::Bytes(bytes) => bytes,
        }
    }
}

/// What a request came to.
pub enum Answer<'a> {
    /// Done, nothing to say.
    Done,
    /// The bytes read; as many as were asked for.
    Data(AlignedBuf),
    /// Of base:allocation; each at most `u32::MAX` bytes unless headers are extended. Only with chunks.
    Extents(&'a [Extent]),
    /// One of [`crate::nbd::proto::errno`], and a sentence for clients that can hear it.
    Error(u32, &'a str),
}

/// Queues the reply, and has it sent as `push` says.
pub fn send(
    outbox: &Outbox<Reply>,
    replies: Replies,
    request: &Request,
    answer: Answer<'_>,
    permit: Permit,
    push: Push,
) {
    permit.count(kind(request), request.len_bytes, !matches!(answer, Answer::Error(..)));
    let permit = Some(permit);
    if replies != Replies::Simple {
        return send_chunks(outbox, replies, request, answer, permit, push);
    }
    let (errno, payload) = match answer {
        Answer::Data(buf) => (0, Payload::Whole(buf)),
        Answer::Done | Answer::Extents(_) => (0, Payload::None),
        Answer::Error(errno, _) => (errno, Payload::None),
    };
    let head = Head::Simple(SimpleReply { errno, cookie: request.cookie }.encode());
    outbox.push(Reply { head, payload, _permit: permit }, push);
}

/// The head of a chunk in the form that was negotiated.
fn chunk_head(replies: Replies, chunk: Chunk, request: &Request, done: bool) -> Head {
    Head::Chunk(match replies {
        Replies::Extended => chunk.head_extended(request, done),
        _ => chunk.head(request.cookie, done),
    })
}

/// The extents as they stand behind the head of a chunk.
fn encode_extents(replies: Replies, extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(extents.len() * 16);
    for extent in extents {
        let state = if extent.mapped { 0 } else { STATE_HOLE | STATE_ZERO };
        if replies == Replies::Extended {
            bytes.extend_from_slice(&extent.len_bytes.to_be_bytes());
            bytes.extend_from_slice(&u64::from(state).to_be_bytes());
        } else {
            // The caller cut them to the request's length, a u32.
            bytes.extend_from_slice(&(extent.len_bytes as u32).to_be_bytes());
            bytes.extend_from_slice(&state.to_be_bytes());
        }
    }
    bytes
}

/// As what a request is counted.
fn kind(request: &Request) -> Kind {
    match request.command {
        CMD_READ => Kind::Read,
        CMD_WRITE => Kind::Write,
        CMD_FLUSH => Kind::Flush,
        CMD_TRIM => Kind::Trim,
        CMD_WRITE_ZEROES => Kind::WriteZeroes,
        _ => Kind::Other,
    }
}

fn send_chunks(
    outbox: &Outbox<Reply>,
    replies: Replies,
    request: &Request,
    answer: Answer<'_>,
    permit: Option<Permit>,
    push: Push,
) {
    let (chunk, payload) = match answer {
        Answer::Done => (Chunk::None, Payload::None),
        Answer::Data(buf) => return send_data(outbox, replies, request, buf, permit, push),
        Answer::Extents(extents) => {
            let bytes = encode_extents(replies, extents);
            let extents = extents.len() as u32;
            (Chunk::BlockStatus { context: ALLOCATION_CONTEXT, extents }, Payload::Bytes(bytes))
        }
        Answer::Error(errno, text) => {
            let text = &text[..text.floor_char_boundary(ERROR_TEXT_BYTES_MAX)];
            let chunk = Chunk::Error { errno, text_bytes: text.len() as u16 };
            (chunk, Payload::Bytes(text.as_bytes().to_vec()))
        }
    };
    let head = chunk_head(replies, chunk, request, true);
    outbox.push(Reply { head, payload, _permit: permit }, push);
}

/// The bytes read, with long runs of zeros as holes.
fn send_data(
    outbox: &Outbox<Reply>,
    replies: Replies,
    request: &Request,
    buf: AlignedBuf,
    mut permit: Option<Permit>,
    push: Push,
) {
    let whole_only = request.flags & crate::nbd::proto::flags::COMMAND_DONT_FRAGMENT != 0;
    let runs = if whole_only { vec![(0..buf.len(), is_zero(&buf))] } else { runs(&buf) };
    let chunk = |part: &Range<usize>, zero| {
        // Within the payload's bounds, which are those of a u32.
        let (offset, len_bytes) = (request.offset + part.start as u64, part.len() as u32);
        if zero { Chunk::Hole { offset, len_bytes } } else { Chunk::Data { offset, len_bytes } }
    };
    if let [(part, zero)] = &runs[..] {
        let head = chunk_head(replies, chunk(part, *zero), request, true);
        let payload = if *zero { Payload::None } else { Payload::Whole(buf) };
        outbox.push(Reply { head, payload, _permit: permit }, push);
        return;
    }
    let buf = Arc::new(buf);
    let last = runs.len().saturating_sub(1);
    for (i, (part, zero)) in runs.into_iter().enumerate() {
        let head = chunk_head(replies, chunk(&part, zero), request, i == last);
        let payload = if zero { Payload::None } else { Payload::Part(Arc::clone(&buf), part) };
        let (permit, push) = if i == last { (permit.take(), push) } else { (None, Push::Hold) };
        outbox.push(Reply { head, payload, _permit: permit }, push);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first part decides for nearly all data.
    bytes.chunks(512).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Cuts bytes into runs (part, whether it is zeros): in order, without gaps, at least one.
fn runs(bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut add = |part: Range<usize>, zero: bool| {
        let zero = zero && (part.len() >= HOLE_BYTES_MIN || part.len() == bytes.len());
        match runs.last_mut() {
            Some((last, kind)) if *kind == zero => last.end = part.end,
            _ => runs.push((part, zero)),
        }
    };
    let mut start = 0;
    let mut zero = false;
    for (i, block) in bytes.chunks(ZERO_BLOCK_BYTES).enumerate() {
        let at = i * ZERO_BLOCK_BYTES;
        let this = is_zero(block);
        if i > 0 && this != zero {
            add(start..at, zero);
            start = at;
        }
        zero = this;
    }
    add(start..bytes.len(), zero);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_everything_in_order_and_short_holes_are_data() {
        let block = ZERO_BLOCK_BYTES;
        let mut bytes = vec![0; 40 * block];
        assert_eq!(runs(&bytes), [(0..40 * block, true)]);
        assert_eq!(runs(&bytes[..512]), [(0..512, true)]);
        bytes[10 * block + 4095] = 1;
        assert_eq!(
            runs(&bytes),
            [(0..10 * block, true), (10 * block..11 * block, false), (11 * block..40 * block, true)]
        );
        bytes[17 * block] = 1;
        let expected =
            [(0..10 * block, true), (10 * block..18 * block, false), (18 * block..40 * block, true)];
        assert_eq!(runs(&bytes), expected, "six blocks of zeros between are not worth a chunk");
        bytes.truncate(18 * block + 100);
        assert_eq!(runs(&bytes), [(0..10 * block, true), (10 * block..bytes.len(), false)]);
        bytes.fill(1);
        assert_eq!(runs(&bytes), [(0..bytes.len(), false)]);
    }
}
