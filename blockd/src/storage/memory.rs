//! A backing in memory that counts what is written to it: for measurements, not for data that matters.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::RwLock;

use super::{Chunk, Completion, Read, Storage, Waiter, Waker, WriteQueue};

struct Inner {
    bytes: RwLock<Vec<u8>>,
    len_bytes: u64,
    written_bytes: AtomicU64,
}

/// The backing; clones share it. Its memory is taken as it is written.
#[derive(Clone)]
pub struct MemoryStorage {
    inner: Arc<Inner>,
}

impl MemoryStorage {
    /// A backing of zeros.
    pub fn new(len_bytes: u64) -> Self {
        let bytes = RwLock::new(vec![0; usize::try_from(len_bytes).unwrap_or(usize::MAX)]);
        MemoryStorage { inner: Arc::new(Inner { bytes, len_bytes, written_bytes: AtomicU64::new(0) }) }
    }

    /// Everything written so far, overwrites included.
    pub fn written_bytes(&self) -> u64 {
        self.inner.written_bytes.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn write<'a>(&self, offset: u64, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        for part in parts {
            let to = at.checked_add(part.len()).and_then(|end| bytes.get_mut(at..end));
            to.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?.copy_from_slice(part);
            at += part.len();
            self.written_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Storage for MemoryStorage {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        let bytes = self.inner.bytes.read();
        for read in reads {
            let start = usize::try_from(read.offset).unwrap_or(usize::MAX);
            let from = start.checked_add(read.buf.len()).and_then(|end| bytes.get(start..end));
            read.result = match from {
                Some(from) => {
                    read.buf.copy_from_slice(from);
                    Ok(())
                }
                None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            };
        }
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write(offset, std::iter::once(bytes))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len_bytes: u64) {}

    fn queue(&self) -> io::Result<Box<dyn WriteQueue>> {
        let (ring, rung) = bounded(1);
        Ok(Box::new(MemoryQueue { inner: Arc::clone(&self.inner), done: Vec::new(), ring, rung }))
    }
}

/// Writes are complete at once.
struct MemoryQueue {
    inner: Arc<Inner>,
    done: Vec<Completion>,
    ring: Sender<()>,
    rung: Receiver<()>,
}

impl WriteQueue for MemoryQueue {
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        let result = self.inner.write(offset, chunks.iter().map(Chunk::bytes));
        self.done.push(Completion { token, result });
    }

    fn sync(&mut self, token: u64) {
        self.done.push(Completion { token, result: Ok(()) });
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
            // The sender is ours, so it is never gone.
            let _ = self.rung.recv();
        }
    }

    fn waker(&self) -> Waker {
        let ring = self.ring.clone();
        Arc::new(move || {
            let _ = ring.try_send(());
        })
    }

    fn waiter(&self) -> Waiter {
        let rung = self.rung.clone();
        Box::new(move || {
            let _ = rung.recv();
        })
    }

    fn set_inline(&mut self, _inline: bool) {}

    fn is_synchronous(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_counted() {
        let storage = MemoryStorage::new(1 << 20);
        storage.write_all(4096, &[7; 4096]).expect("within");
        assert!(storage.write_all((1 << 20) - 4096, &[7; 8192]).is_err(), "past the end");
        let mut buf = [1; 8192];
        storage.read_exact(0, &mut buf).expect("within");
        assert_eq!((buf[0], buf[4096]), (0, 7));
        assert!(storage.read_exact(1 << 20, &mut buf).is_err());
        assert_eq!(storage.written_bytes(), 4096);
    }
}
