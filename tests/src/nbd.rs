//! A small NBD client (the protocol of github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), written for the tests so that
//! they share no code with what they test. One request at a time, simple replies, over a unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// A request's kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// NBD_CMD_READ.
    Read = 0,
    /// NBD_CMD_WRITE.
    Write = 1,
    /// NBD_CMD_FLUSH.
    Flush = 3,
}

/// A connection in the transmission phase.
pub struct Client {
    stream: UnixStream,
    /// Bytes of the export.
    pub size_bytes: u64,
    next: u64,
}

impl Client {
    /// Connects to the default export.
    ///
    /// # Errors
    /// The socket's, or a handshake that is not NBD's.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::other("not an NBD server"));
        }
        let mut hello = Vec::new();
        // Fixed newstyle, no zeroes; NBD_OPT_EXPORT_NAME with an empty name.
        hello.extend_from_slice(&3u32.to_be_bytes());
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&0u32.to_be_bytes());
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size_bytes = u64::from_be_bytes(export[..8].try_into().map_err(io::Error::other)?);
        Ok(Client { stream, size_bytes, next: 1 })
    }

    /// The header of a request.
    pub fn header(kind: Kind, cookie: u64, offset: u64, len_bytes: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&(kind as u16).to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len_bytes.to_be_bytes());
        out
    }

    /// The connection itself, for what is not done.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    fn request(&mut self, kind: Kind, offset: u64, len_bytes: usize, payload: &[u8]) -> io::Result<()> {
        let cookie = self.next;
        self.next += 1;
        let len = u32::try_from(len_bytes).map_err(io::Error::other)?;
        self.stream.write_all(&Self::header(kind, cookie, offset, len))?;
        self.stream.write_all(payload)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let u32_at = |at: usize| u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
        if u32_at(0) != REPLY_MAGIC || reply[8..] != cookie.to_be_bytes() {
            return Err(io::Error::other("a reply to something else"));
        }
        match u32_at(4) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.cast_signed())),
        }
    }

    /// Writes; the errno of the reply is the error's.
    ///
    /// # Errors
    /// As replied, or the connection's.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(Kind::Write, offset, bytes.len(), bytes)
    }

    /// Reads.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn read(&mut self, offset: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
        self.request(Kind::Read, offset, len_bytes, &[])?;
        let mut out = vec![0; len_bytes];
        self.stream.read_exact(&mut out)?;
        Ok(out)
    }

    /// Makes durable what was acknowledged.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(Kind::Flush, 0, 0, &[])
    }
}
