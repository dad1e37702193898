//! A descriptor of /dev/fuse: requests in, replies and notifications out.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use zerocopy::IntoBytes;

use super::abi::{DEV_IOC_CLONE, OutHeader};

/// One descriptor of a connection. Each thread has its own, so that replies find their request faster
/// (requests that were read are listed per descriptor).
pub struct Channel(File);

impl Channel {
    /// The first descriptor of a connection.
    pub fn new(fd: OwnedFd) -> Self {
        Channel(File::from(fd))
    }

    /// One more descriptor of the same connection (FUSE_DEV_IOC_CLONE, Linux 4.2), or the same where that fails.
    ///
    /// # Errors
    /// When no descriptor can be had at all.
    pub fn another(&self) -> io::Result<Channel> {
        self.clone_connection().or_else(|_| self.0.try_clone().map(Channel))
    }

    fn clone_connection(&self) -> io::Result<Channel> {
        let new = File::options().read(true).write(true).open("/dev/fuse")?;
        let source = self.0.as_raw_fd() as u32;
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, the descriptor to clone, from the pointer; both
        // descriptors and the number live for the whole call.
        let done =
            unsafe { libc::ioctl(new.as_raw_fd(), libc::c_ulong::from(DEV_IOC_CLONE), &raw const source) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(Channel(new)) }
    }

    /// Reads one request; waits for it.
    ///
    /// # Errors
    /// ENODEV once the mount is gone; EINTR and ENOENT (the request was interrupted before it was read) mean: again.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buf)
    }

    /// Sends a reply; `error` is 0 or an errno, then without parts.
    ///
    /// # Errors
    /// ENOENT: nobody waits for it any more; ENODEV: the mount is gone.
    pub fn reply(&self, unique: u64, error: i32, parts: [&[u8]; 2]) -> io::Result<()> {
        self.send(unique, -error, parts)
    }

    /// Sends a notification (enum fuse_notify_code).
    ///
    /// # Errors
    /// ENOENT if the kernel does not know what it is about.
    pub fn notify(&self, code: i32, parts: [&[u8]; 2]) -> io::Result<()> {
        self.send(0, code, parts)
    }

    fn send(&self, unique: u64, error: i32, [first, second]: [&[u8]; 2]) -> io::Result<()> {
        let len = size_of::<OutHeader>() + first.len() + second.len();
        let len = u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let header = OutHeader { len, error, unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(first), IoSlice::new(second)];
        // The device takes a message as a whole or not at all.
        (&self.0).write_vectored(&parts).map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
