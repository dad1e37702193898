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
pub const ZEROES: u16 = 6;

pub struct Peer(pub UnixStream);

impl Peer {
    /// Connects and reads the greeting.
    pub fn greeted(path: &Path) -> Peer {
        let stream = UnixStream::connect(path).expect("connected");
        // Only so that a failing test ends; no test waits for it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut peer = Peer(stream);
        let hello = peer.take(18);
        assert_eq!(hello, b"NBDMAGICIHAVEOPT\0\x03");
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
        peer.option(7, &go("", &[]));
        loop {
            let (option, kind, _) = peer.option_reply();
            assert_eq!(option, 7);
            if kind == 1 {
                return peer;
            }
            assert_eq!(kind, 3);
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

pub fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut out = (name.len() as u32).to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out.extend((infos.len() as u16).to_be_bytes());
    for info in infos {
        out.extend(info.to_be_bytes());
    }
    out
}
