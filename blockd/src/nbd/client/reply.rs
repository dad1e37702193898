//! Replies as they come: simple ones, or chunks, which may be mixed with those of other requests. A run of zeros
//! comes as a hole, without its bytes.
//!
//! Whatever a server sends is checked before it is used: a chunk lies within what was asked for, its length fits its
//! type, and the last one leaves nothing out. What breaks a rule ends the connection, since nobody knows what
//! follows.

use std::io::{self, ErrorKind, Read};

use crate::device::IoError;
use crate::nbd::proto::chunk::{
    CHUNK_BYTES, CHUNK_MAGIC, EXTENDED_CHUNK_BYTES, FLAG_DONE, ReceivedChunk, TYPE_ERROR_BIT, TYPE_NONE,
    TYPE_OFFSET_DATA, TYPE_OFFSET_HOLE,
};
use crate::nbd::proto::errno;
use crate::nbd::proto::reply::{Replies, SIMPLE_REPLY_BYTES, SimpleReply};
use crate::nbd::proto::request::Request;
use crate::nbd::wire::receiver::Receiver;

/// Longest payload of an error that is taken ("Values": strings have at most 4096 bytes), in bytes.
const ERROR_BYTES_MAX: u64 = 4096 + 64;
/// So much of a server's sentence is said again, in bytes.
const SENTENCE_BYTES_MAX: usize = 256;

/// The head of a reply or of one of its chunks.
#[derive(Clone, Copy, Debug)]
pub enum Head {
    /// All there is, but for the bytes of a read.
    Simple(SimpleReply),
    /// One of many, maybe.
    Chunk(ReceivedChunk),
}

/// What came of one reply so far.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// Bytes of a read that came, zeros in holes included.
    covered_bytes: u64,
    /// The first error, or 0.
    errno: u32,
    /// The server's sentence about it.
    sentence: String,
}

fn broken<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidData, format!("protocol error: {what}")))
}

impl Head {
    /// The next head, in the form that was negotiated; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for a wrong magic.
    pub fn receive(receiver: &mut Receiver<impl Read>, form: Replies) -> io::Result<Option<Head>> {
        const WRONG: &str = "a reply has a wrong magic";
        if form == Replies::Extended {
            let Some(bytes) = receiver.head::<EXTENDED_CHUNK_BYTES>()? else { return Ok(None) };
            return ReceivedChunk::decode_extended(&bytes).map(Head::Chunk).map_or_else(|| broken(WRONG), ok);
        }
        let Some(bytes) = receiver.head::<SIMPLE_REPLY_BYTES>()? else { return Ok(None) };
        if let Some(reply) = SimpleReply::decode(&bytes) {
            return ok(Head::Simple(reply));
        }
        if form == Replies::Simple || bytes[..4] != CHUNK_MAGIC.to_be_bytes() {
            return broken(WRONG);
        }
        let mut whole = [0; CHUNK_BYTES];
        whole[..SIMPLE_REPLY_BYTES].copy_from_slice(&bytes);
        receiver.payload(&mut whole[SIMPLE_REPLY_BYTES..])?;
        ReceivedChunk::decode(&whole).map(Head::Chunk).map_or_else(|| broken(WRONG), ok)
    }

    /// Whose reply it is.
    pub fn cookie(&self) -> u64 {
        match self {
            Head::Simple(reply) => reply.cookie,
            Head::Chunk(chunk) => chunk.cookie,
        }
    }
}

fn ok(head: Head) -> io::Result<Option<Head>> {
    Ok(Some(head))
}

impl Progress {
    /// Takes what follows `head`, part of the reply to `request`; bytes read go to `out`, which is as long as the
    /// request. `true` if the reply is complete.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` if the server broke a rule.
    pub fn take(
        &mut self,
        receiver: &mut Receiver<impl Read>,
        head: Head,
        request: &Request,
        form: Replies,
        mut out: Option<&mut [u8]>,
    ) -> io::Result<bool> {
        let chunk = match head {
            Head::Simple(SimpleReply { errno: 0, .. }) => {
                if let Some(out) = out {
                    if form != Replies::Simple {
                        return broken("a simple reply to a read, where chunks were chosen");
                    }
                    receiver.payload(out)?;
                }
                return Ok(true);
            }
            Head::Simple(reply) => {
                self.errno = reply.errno;
                return Ok(true);
            }
            Head::Chunk(chunk) => chunk,
        };
        let done = chunk.flags & FLAG_DONE != 0;
        match chunk.kind {
            TYPE_NONE if chunk.payload_bytes == 0 && done => {}
            TYPE_OFFSET_DATA | TYPE_OFFSET_HOLE => {
                let Some(out) = out.as_deref_mut() else { return broken("data in the reply to no read") };
                self.content(receiver, &chunk, request, out)?;
            }
            kind if kind & TYPE_ERROR_BIT != 0 => self.error(receiver, &chunk)?,
            _ => return broken("a chunk of an unknown type or length"),
        }
        let asked = out.map_or(0, |out| out.len() as u64);
        if done && self.errno == 0 && self.covered_bytes != asked {
            return broken("a reply leaves some of the bytes out");
        }
        Ok(done)
    }

    fn content(
        &mut self,
        receiver: &mut Receiver<impl Read>,
        chunk: &ReceivedChunk,
        request: &Request,
        out: &mut [u8],
    ) -> io::Result<()> {
        let hole = chunk.kind == TYPE_OFFSET_HOLE;
        if (hole && chunk.payload_bytes != 12) || (!hole && chunk.payload_bytes <= 8) {
            return broken("a chunk's length does not fit its type");
        }
        let mut word = [0; 8];
        receiver.payload(&mut word)?;
        let offset = u64::from_be_bytes(word);
        let len_bytes = if hole {
            let mut word = [0; 4];
            receiver.payload(&mut word)?;
            u64::from(u32::from_be_bytes(word))
        } else {
            chunk.payload_bytes - 8
        };
        let begin = offset.checked_sub(request.offset);
        let part = begin.and_then(|begin| {
            let end = begin.checked_add(len_bytes)?;
            out.get_mut(usize::try_from(begin).ok()?..usize::try_from(end).ok()?)
        });
        let Some(part) = part.filter(|part| !part.is_empty()) else {
            return broken("a chunk lies outside what was asked for");
        };
        // Each byte comes once, so the sum is never more.
        self.covered_bytes += len_bytes;
        if self.covered_bytes > request.len_bytes {
            return broken("the chunks of a reply overlap");
        }
        if hole {
            part.fill(0);
            Ok(())
        } else {
            receiver.payload(part)
        }
    }

    /// An error of any type: they all begin with the number and a sentence.
    fn error(&mut self, receiver: &mut Receiver<impl Read>, chunk: &ReceivedChunk) -> io::Result<()> {
        if !(6..=ERROR_BYTES_MAX).contains(&chunk.payload_bytes) {
            return broken("an error has an impossible length");
        }
        let mut payload = vec![0; chunk.payload_bytes as usize];
        receiver.payload(&mut payload)?;
        let (fixed, rest) = payload.split_at(6);
        let number = u32::from_be_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]);
        let text_bytes = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let Some(text) = rest.get(..text_bytes) else { return broken("an error's sentence is cut off") };
        if self.errno == 0 {
            // An error that says 0 is one all the same.
            self.errno = if number == 0 { errno::EIO } else { number };
            let text = String::from_utf8_lossy(text);
            let end = text.floor_char_boundary(SENTENCE_BYTES_MAX);
            self.sentence = text[..end].escape_debug().to_string();
        }
        Ok(())
    }

    /// What a complete reply means; `what` names the request.
    ///
    /// # Errors
    /// The server's answer.
    pub fn finish(self, what: impl FnOnce() -> String) -> Result<(), IoError> {
        match self.errno {
            0 => Ok(()),
            number => Err(errno::from_wire(number, &what(), &self.sentence)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::proto::chunk::Chunk;
    use crate::nbd::proto::request::CMD_READ;

    const ASKED: Request = Request { flags: 0, command: CMD_READ, cookie: 7, offset: 4096, len_bytes: 100 };

    /// Feeds `bytes` as the reply to [`ASKED`]; the bytes read, or how it failed.
    fn read(form: Replies, bytes: &[u8]) -> io::Result<Result<Vec<u8>, IoError>> {
        let mut receiver = Receiver::new(bytes);
        let mut progress = Progress::default();
        let mut out = vec![0xee; 100];
        loop {
            let head = Head::receive(&mut receiver, form)?.ok_or(ErrorKind::UnexpectedEof)?;
            assert_eq!(head.cookie(), 7);
            if progress.take(&mut receiver, head, &ASKED, form, Some(&mut out))? {
                return Ok(progress.finish(|| "a read".into()).map(|()| out));
            }
        }
    }

    fn reply(form: Replies, chunks: &[(Chunk, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, (chunk, payload)) in chunks.iter().enumerate() {
            let done = i + 1 == chunks.len();
            let head = match form {
                Replies::Extended => chunk.head_extended(&ASKED, done),
                _ => chunk.head(ASKED.cookie, done),
            };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(payload);
        }
        out
    }

    fn data(offset: u64, bytes: &[u8]) -> (Chunk, &[u8]) {
        (Chunk::Data { offset, len_bytes: bytes.len() as u32 }, bytes)
    }

    fn hole(offset: u64, len_bytes: u32) -> (Chunk, &'static [u8]) {
        (Chunk::Hole { offset, len_bytes }, b"")
    }

    #[test]
    fn data_and_holes_come_in_any_order() {
        let expected = [&[1; 10][..], &[0; 50], &[2; 40]].concat();
        for form in [Replies::Chunks, Replies::Extended] {
            let bytes = reply(form, &[data(4156, &[2; 40]), hole(4106, 50), data(4096, &[1; 10])]);
            assert_eq!(read(form, &bytes).unwrap().unwrap(), expected);
            // Data, and the end by itself.
            let bytes = reply(form, &[data(4096, &[3; 100]), (Chunk::None, b"")]);
            assert_eq!(read(form, &bytes).unwrap().unwrap(), [3; 100]);
        }
        let simple = SimpleReply { errno: 0, cookie: 7 }.encode();
        let bytes = [&simple[..], &[4; 100]].concat();
        assert_eq!(read(Replies::Simple, &bytes).unwrap().unwrap(), [4; 100]);
    }

    #[test]
    fn the_first_error_counts_with_its_sentence() {
        for form in [Replies::Chunks, Replies::Extended] {
            let chunks = [
                data(4096, &[1; 10]),
                (Chunk::Error { errno: 5, text_bytes: 8 }, &b"page 77\n"[..]),
                (Chunk::Error { errno: 28, text_bytes: 0 }, b""),
            ];
            let error = read(form, &reply(form, &chunks)).unwrap().unwrap_err().to_string();
            assert!(error.contains("page 77\\n") && error.contains("I/O"), "{error}");
        }
        let simple = SimpleReply { errno: 28, cookie: 7 }.encode();
        for form in [Replies::Simple, Replies::Chunks] {
            assert!(matches!(read(form, &simple).unwrap(), Err(IoError::NoSpace)));
        }
        let zero = reply(Replies::Chunks, &[(Chunk::Error { errno: 0, text_bytes: 0 }, b"")]);
        assert!(matches!(read(Replies::Chunks, &zero).unwrap(), Err(IoError::Io(_))));
    }

    #[test]
    fn what_breaks_a_rule_ends_the_connection() {
        let form = Replies::Extended;
        let cases: &[&[(Chunk, &[u8])]] = &[
            &[data(4095, &[1; 100])],
            &[data(4097, &[1; 100])],
            &[data(u64::MAX, &[1; 100])],
            &[hole(4096, 101)],
            &[hole(4096, 0), data(4096, &[1; 100])],
            &[data(4096, &[1; 99])],
            &[(Chunk::None, b"")],
            &[data(4096, &[1; 60]), data(4096, &[1; 60])],
            &[hole(4096, 100), hole(4196, 1)],
            &[(Chunk::BlockStatus { context: 1, extents: 1 }, &[0; 16])],
            &[(Chunk::Error { errno: 5, text_bytes: 9 }, b"short")],
        ];
        for (i, chunks) in cases.iter().enumerate() {
            let mut bytes = reply(form, chunks);
            if i == 10 {
                // The sentence is longer than the chunk.
                bytes[31] = 6 + 5;
            }
            let error = read(form, &bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "case {i}: {error}");
        }
        // None before the end; lengths that lie.
        let mut none = reply(form, &[(Chunk::None, b"")]);
        none[5] = 0;
        let mut long = reply(form, &[(Chunk::Error { errno: 5, text_bytes: 0 }, b"")]);
        long[24] = 0x7f;
        let mut endless = reply(form, &[data(4096, &[1; 100])]);
        endless[24] = 0xff;
        for bytes in [none, long, endless] {
            assert_eq!(read(form, &bytes).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        let simple = [&SimpleReply { errno: 0, cookie: 7 }.encode()[..], &[4; 100]].concat();
        for form in [Replies::Chunks, Replies::Extended] {
            assert_eq!(read(form, &simple).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }
}
