//! One descriptor at a time over a unix socket: a byte that carries it (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The byte that goes with it.
const BYTE: u8 = b'F';

/// Sends one; the caller keeps its own.
///
/// # Errors
/// Those of sendmsg(2).
pub(crate) fn send(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&[BYTE])], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(1) => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one; waits as the socket does.
///
/// # Errors
/// `UnexpectedEof`; `Other` if a byte comes without a descriptor; those of recvmsg(2).
pub(crate) fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    take(socket, RecvFlags::empty())
}

/// Receives one within a time; the socket may be blocking or not.
///
/// # Errors
/// `TimedOut`; those of [`receive`] and of poll(2).
pub(crate) fn receive_within(socket: impl AsFd, patience: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match take(&socket, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

fn take(socket: impl AsFd, flags: RecvFlags) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = loop {
        let parts = &mut [IoSliceMut::new(&mut byte)];
        match recvmsg(&socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC | flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor
        .filter(|_| byte == [BYTE])
        .ok_or_else(|| io::Error::other("a byte came without its descriptor"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_descriptor_arrives_on_sockets_of_both_kinds() {
        for nonblocking in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_nonblocking(nonblocking).unwrap();
            let (mut kept, sent) = UnixStream::pair().unwrap();
            send(&ours, &sent).unwrap();
            drop(sent);
            let mut got = UnixStream::from(receive_within(&theirs, LONG).unwrap());
            got.write_all(b"hello").unwrap();
            drop(got);
            let mut text = String::new();
            kept.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        }
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let silent = receive_within(&theirs, Duration::ZERO).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        ours.write_all(b"F").unwrap();
        assert_eq!(receive_within(&theirs, LONG).unwrap_err().kind(), io::ErrorKind::Other);
        drop(ours);
        assert_eq!(receive_within(&theirs, LONG).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
