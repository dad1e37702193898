//! A stream that one thread reads and others write.

use std::io::{self, IoSliceMut, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The reading end of a shared unix stream.
pub struct SharedStream(pub Arc<UnixStream>);

impl Read for SharedStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(out)
    }
    fn read_vectored(&mut self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self.0).read_vectored(out)
    }
}
