//! A connected socket of the side thread: read and written through io_uring, or by epoll and plain calls.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the side thread runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// tokio-uring.
    Uring,
    /// tokio alone.
    Epoll,
}

impl Engine {
    /// Its name in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Uring => "io_uring",
            Engine::Epoll => "epoll",
        }
    }
}

/// A listening socket of any kind, waiting to be accepted from.
///
/// Accepting goes by epoll on both engines: a wait for readiness can be given up without a trace, while an accept in a
/// ring that is given up may still take a connection, which a successor at the same socket would then miss.
pub struct Acceptor(AsyncFd<Arc<OwnedFd>>);

impl Acceptor {
    /// # Errors
    /// Those of epoll_ctl(2) and ioctl(2).
    pub fn new(listener: Arc<OwnedFd>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        // SAFETY: the shared descriptor is owned, so it stays open and the same until it is deregistered by the drop.
        let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?;
        Ok(Acceptor(registered))
    }

    /// The next connection. Can be given up.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self, flags: SocketFlags) -> io::Result<OwnedFd> {
        let accept = |fd: &Arc<OwnedFd>| Ok(rustix::net::accept_with(fd, flags | SocketFlags::CLOEXEC)?);
        self.0.async_io(Interest::READABLE, accept).await
    }
}

/// See the module.
pub enum Stream {
    /// Through the ring. Any stream socket: the type's name matters only to its constructors.
    Uring(tokio_uring::net::UnixStream),
    /// By epoll.
    Epoll(AsyncFd<OwnedFd>),
}

impl Stream {
    /// Takes an accepted socket.
    ///
    /// # Errors
    /// Those of epoll_ctl(2) and ioctl(2).
    pub fn new(fd: OwnedFd, engine: Engine) -> io::Result<Stream> {
        // A ring would hand EAGAIN back for a non-blocking socket instead of waiting.
        rustix::io::ioctl_fionbio(&fd, engine == Engine::Epoll)?;
        Ok(match engine {
            Engine::Uring => Stream::Uring(tokio_uring::net::UnixStream::from_std(fd.into())),
            // SAFETY: the descriptor is owned, so it stays open and the same until it is deregistered by the drop.
            Engine::Epoll => Stream::Epoll(unsafe { AsyncFd::register(fd) }?),
        })
    }

    /// Reads once, behind what `buf` holds, at most to its capacity; 0 at the end.
    ///
    /// # Errors
    /// Those of read(2).
    async fn read(&self, mut buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let filled = buf.len();
        match self {
            Stream::Uring(stream) => {
                use tokio_uring::buf::BoundedBuf;
                let (result, slice) = stream.read(buf.slice(filled..)).await;
                (result, slice.into_inner())
            }
            Stream::Epoll(fd) => {
                let mut part = vec![0; buf.capacity() - filled];
                let receive = |fd: &OwnedFd| Ok(rustix::net::recv(fd, &mut part[..], RecvFlags::empty())?.1);
                let result = fd.async_io(Interest::READABLE, receive).await;
                if let Ok(got) = result {
                    buf.extend_from_slice(&part[..got]);
                }
                (result, buf)
            }
        }
    }

    async fn write_all(&self, bytes: Vec<u8>) -> io::Result<()> {
        match self {
            Stream::Uring(stream) => stream.write_all(bytes).await.0,
            Stream::Epoll(fd) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let send = |fd: &OwnedFd| Ok(rustix::net::send(fd, rest, SendFlags::NOSIGNAL)?);
                    let sent = fd.async_io(Interest::WRITABLE, send).await?;
                    rest = rest.get(sent..).unwrap_or_default();
                }
                Ok(())
            }
        }
    }

    /// As `read`, with at most `room` bytes more and within a time limit, after which the socket is shut down.
    ///
    /// # Errors
    /// Those of read(2); `TimedOut`.
    pub async fn read_within(&self, buf: &mut Vec<u8>, room: usize, limit: Duration) -> io::Result<usize> {
        let mut taken = std::mem::take(buf);
        taken.reserve_exact(room);
        match tokio::time::timeout(limit, self.read(taken)).await {
            Ok((result, back)) => {
                *buf = back;
                result
            }
            Err(_) => Err(self.too_late()),
        }
    }

    /// Writes all within a time limit, after which the socket is shut down.
    ///
    /// # Errors
    /// Those of write(2); `TimedOut`.
    pub async fn write_within(&self, bytes: Vec<u8>, limit: Duration) -> io::Result<()> {
        tokio::time::timeout(limit, self.write_all(bytes)).await.unwrap_or_else(|_| Err(self.too_late()))
    }

    fn too_late(&self) -> io::Error {
        self.shut_down();
        ErrorKind::TimedOut.into()
    }

    /// Ends what is under way: a request in the ring holds its buffer and the socket until then.
    pub fn shut_down(&self) {
        // Fails only if the peer has gone already.
        let _ = rustix::net::shutdown(self.as_fd(), Shutdown::Both);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            // SAFETY: the stream owns the descriptor and lives as long as the borrow of `self`.
            Stream::Uring(stream) => unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) },
            Stream::Epoll(fd) => fd.get_ref().as_fd(),
        }
    }
}
