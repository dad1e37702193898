//! Plain system calls: the engine where io_uring is not permitted.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::{Chunk, Completion, Waiter, Waker, WriteQueue};

/// Most pieces of memory of one pwritev (IOV_MAX on Linux).
pub(super) const IOVECS_MAX: usize = 1024;

/// Writes all chunks one after another, going on after short writes and interruptions.
pub(super) fn write_chunks(
    file: &File,
    mut offset: u64,
    chunks: &[Chunk],
    mut skip_bytes: usize,
) -> io::Result<()> {
    let mut rest = chunks;
    offset += skip_bytes as u64;
    loop {
        while let Some(first) = rest.first() {
            let len = first.bytes().len();
            if skip_bytes < len {
                break;
            }
            skip_bytes -= len;
            rest = &rest[1..];
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut slices: Vec<IoSlice<'_>> =
            rest.iter().take(IOVECS_MAX).map(|chunk| IoSlice::new(chunk.bytes())).collect();
        if skip_bytes > 0 {
            slices[0] = IoSlice::new(&rest[0].bytes()[skip_bytes..]);
        }
        match rustix::io::pwritev(file, &slices, offset) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(written) => {
                offset += written as u64;
                skip_bytes += written;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads all of `buf`, the first `skip_bytes` being there already.
pub(super) fn read_rest(file: &File, offset: u64, buf: &mut [u8], skip_bytes: usize) -> io::Result<()> {
    let rest = buf.get_mut(skip_bytes..).unwrap_or(&mut []);
    file.read_exact_at(rest, offset + skip_bytes as u64)
}

/// Carries each request out at once, in the calling thread.
pub(super) struct PlainQueue {
    file: Arc<File>,
    done: Vec<Completion>,
    wake: Arc<Wake>,
}

#[derive(Default)]
struct Wake {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    fn wait(&self) {
        let mut woken = self.woken.lock();
        while !*woken {
            self.changed.wait(&mut woken);
        }
        *woken = false;
    }

    fn wake(&self) {
        *self.woken.lock() = true;
        self.changed.notify_one();
    }
}

impl PlainQueue {
    pub(super) fn new(file: Arc<File>) -> Self {
        PlainQueue { file, done: Vec::new(), wake: Arc::default() }
    }
}

impl WriteQueue for PlainQueue {
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        let result = write_chunks(&self.file, offset, &chunks, 0);
        self.done.push(Completion { token, result });
    }

    fn sync(&mut self, token: u64) {
        let result = self.file.sync_data();
        self.done.push(Completion { token, result });
    }

    fn submit(&mut self) {}

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn has_finished(&self) -> bool {
        !self.done.is_empty()
    }

    fn wait(&mut self) {
        if self.done.is_empty() {
            self.wake.wait();
        }
    }

    fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Arc::new(move || wake.wake())
    }

    fn waiter(&self) -> Waiter {
        let wake = Arc::clone(&self.wake);
        Box::new(move || wake.wait())
    }

    fn set_inline(&mut self, _: bool) {}

    fn is_synchronous(&self) -> bool {
        true
    }
}
