//! Sending without SIGPIPE.

use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Sends what the socket takes of `parts`; with `wait` at least one byte.
///
/// # Errors
/// `WouldBlock` when `wait` is false and the socket is full; else those of sendmsg(2).
pub fn send_some(stream: &UnixStream, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
    let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
    loop {
        match sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Sends all of `bytes`, waiting for the peer to take them.
///
/// # Errors
/// Those of sendmsg(2); `WouldBlock` after the socket's write timeout.
pub fn send_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = send_some(stream, &[IoSlice::new(bytes)], true)?;
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}
