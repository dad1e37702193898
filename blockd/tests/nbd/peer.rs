//! A hand-written NBD client that can break every rule. It shares no code with the library but
//! the numbers of the specification, written out again here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

/// A chunk of a structured reply.
#[derive(PartialEq, Eq, Debug)]
pub struct Chunk {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub payload: Vec<u8>,
}

pub struct Peer<S = UnixStream>(pub S);

impl Peer {
    /// Connects and reads the greeting.
    pub fn greeted(path: &Path) -> Peer {
        let stream = UnixStream::connect(path).expect("connected");
        // Only so that a failing test ends; no test waits for it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut peer = Peer(stream);
        peer.hear_greeting();
        peer
    }

    /// In the option phase.
    pub fn negotiating(path: &Path) -> Peer {
        let mut peer = Self::greeted(path);
        peer.put(&3u32.to_be_bytes());
        peer
    }

    /// In the transmission phase, by NBD_OPT_GO of the default export.
    pub fn transmitting(path: &Path) -> Peer {
        let mut peer = Self::negotiating(path);
        peer.go("");
        peer
    }

    /// As [`Peer::transmitting`], with structured replies and base:allocation.
    pub fn structured(path: &Path) -> Peer {
        let mut peer = Self::negotiating(path);
        peer.option(8, b"");
        assert_eq!(peer.option_reply(), (8, 1, vec![]));
        peer.option(10, &meta("", &["base:allocation"]));
        assert_eq!(peer.option_reply(), (10, 4, b"\0\0\0\x01base:allocation".to_vec()));
        assert_eq!(peer.option_reply(), (10, 1, vec![]));
        peer.go("");
        peer
    }

    /// As [`Peer::structured`], with extended headers instead.
    pub fn extended(path: &Path) -> Peer {
        let mut peer = Self::negotiating(path);
        peer.option(11, b"");
        assert_eq!(peer.option_reply(), (11, 1, vec![]));
        peer.option(10, &meta("", &["base:allocation"]));
        assert_eq!(peer.option_reply(), (10, 4, b"\0\0\0\x01base:allocation".to_vec()));
        assert_eq!(peer.option_reply(), (10, 1, vec![]));
        peer.go("");
        peer
    }
}

impl<S: Read + Write> Peer<S> {
    pub fn hear_greeting(&mut self) {
        let hello = self.take(18);
        assert_eq!(hello, b"NBDMAGICIHAVEOPT\0\x03");
    }

    /// With extended headers; a write says that its payload follows.
    pub fn long_request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u64) {
        let flags = if command == WRITE { flags | 32 } else { flags };
        self.put(&long_request(flags, command, cookie, offset, len));
    }

    /// All chunks of the only request's reply, with extended headers.
    pub fn long_chunks(&mut self, offset: u64) -> Vec<Chunk> {
        let mut all = Vec::new();
        loop {
            let head = self.take(32);
            assert_eq!(head[..4], 0x6e8a_278cu32.to_be_bytes(), "in step");
            assert_eq!(head[16..24], offset.to_be_bytes(), "the request's offset");
            let payload = self.take(u64::from_be_bytes(head[24..].try_into().unwrap()) as usize);
            let flags = u16::from_be_bytes(head[4..6].try_into().unwrap());
            all.push(Chunk {
                flags,
                kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
                cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
                payload,
            });
            if flags == 1 {
                return all;
            }
            assert_eq!(flags, 0);
        }
    }

    /// NBD_OPT_GO; gives the export's flags.
    pub fn go(&mut self, name: &str) -> u16 {
        self.option(7, &go(name, &[]));
        let mut flags = 0;
        loop {
            let (option, kind, data) = self.option_reply();
            assert_eq!(option, 7);
            if kind == 1 {
                return flags;
            }
            assert_eq!(kind, 3);
            if data[..2] == [0, 0] {
                flags = u16::from_be_bytes(data[10..12].try_into().unwrap());
            }
        }
    }

    pub fn chunk(&mut self) -> Chunk {
        let head = self.take(20);
        assert_eq!(head[..4], 0x668e_33efu32.to_be_bytes(), "in step");
        let payload = self.take(u32::from_be_bytes(head[16..20].try_into().unwrap()) as usize);
        Chunk {
            flags: u16::from_be_bytes(head[4..6].try_into().unwrap()),
            kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            payload,
        }
    }

    /// All chunks of the only request's reply.
    pub fn chunks(&mut self) -> Vec<Chunk> {
        let mut all = vec![self.chunk()];
        while all.last().is_some_and(|c| c.flags == 0) {
            all.push(self.chunk());
        }
        assert_eq!(all.last().map(|c| c.flags), Some(1), "done");
        all
    }

    /// NBD_CMD_BLOCK_STATUS: (length, state) of each extent, or the error.
    pub fn status(&mut self, flags: u16, offset: u64, len: u32) -> Result<Vec<(u32, u32)>, u32> {
        self.request(flags, STATUS, 79, offset, len);
        let chunk = self.chunk();
        assert_eq!((chunk.flags, chunk.cookie), (1, 79));
        let words: Vec<u32> =
            chunk.payload.chunks_exact(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect();
        match chunk.kind {
            5 => {
                assert_eq!(words[0], 1, "the context");
                Ok(words[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
            }
            0x8001 => Err(words[0]),
            other => panic!("a chunk of type {other}"),
        }
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the server reads");
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        self.0.read_exact(&mut out).expect("the server answers");
        out
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.put(b"IHAVEOPT");
        self.put(&option.to_be_bytes());
        self.put(&(data.len() as u32).to_be_bytes());
        self.put(data);
    }

    /// (option, kind, data)
    pub fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        let word = |i: usize| u32::from_be_bytes(head[i..i + 4].try_into().unwrap());
        let data = self.take(word(16) as usize);
        (word(8), word(12), data)
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        self.put(&request(flags, command, cookie, offset, len));
    }

    /// (error, cookie)
    pub fn reply(&mut self) -> (u32, u64) {
        let head = self.take(16);
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes(), "in step");
        (
            u32::from_be_bytes(head[4..8].try_into().unwrap()),
            u64::from_be_bytes(head[8..].try_into().unwrap()),
        )
    }

    /// A request without payload, and its reply.
    pub fn call(&mut self, flags: u16, command: u16, offset: u64, len: u32) -> u32 {
        self.request(flags, command, 77, offset, len);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 77);
        error
    }

    pub fn write(&mut self, flags: u16, offset: u64, bytes: &[u8]) -> u32 {
        self.request(flags, WRITE, 78, offset, bytes.len() as u32);
        self.put(bytes);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 78);
        error
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.call(0, READ, offset, len), 0);
        self.take(len as usize)
    }

    /// The server has closed the connection, without sending anything more.
    pub fn assert_closed(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{} bytes came instead of a close", rest.len()),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

pub fn long_request(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut out = 0x21e4_1c71u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend((infos.len() as u16).to_be_bytes());
    for info in infos {
        out.extend(info.to_be_bytes());
    }
    out
}

/// Data of the two options about metadata contexts.
pub fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let string = |s: &str| [&(s.len() as u32).to_be_bytes()[..], s.as_bytes()].concat();
    let mut out = string(name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| out.extend(string(query)));
    out
}
