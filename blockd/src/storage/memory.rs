//! A backing in memory that counts what is written to it: for measurements, not for data that matters.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::RwLock;

use super::{Chunk, Completion, Read, Storage, Waiter, Waker, WriteQueue};

/// Bytes of a page.
const PAGE: usize = 4096;

struct Inner {
    /// Each without the zeros at its end.
    pages: RwLock<Vec<Box<[u8]>>>,
    len_bytes: u64,
    written_bytes: AtomicU64,
}

/// The backing; clones share it. Pages that end in zeros take less memory.
#[derive(Clone)]
pub struct MemoryStorage {
    inner: Arc<Inner>,
}

impl MemoryStorage {
    /// A backing of zeros.
    pub fn new(len_bytes: u64) -> Self {
        let count = usize::try_from(len_bytes.div_ceil(PAGE as u64)).unwrap_or(usize::MAX);
        let pages = RwLock::new(vec![Box::default(); count]);
        MemoryStorage { inner: Arc::new(Inner { pages, len_bytes, written_bytes: AtomicU64::new(0) }) }
    }

    /// Everything written so far, overwrites included.
    pub fn written_bytes(&self) -> u64 {
        self.inner.written_bytes.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Page and byte of it.
    fn place(offset: u64) -> (usize, usize) {
        let page = usize::try_from(offset / PAGE as u64).unwrap_or(usize::MAX);
        (page, (offset % PAGE as u64) as usize)
    }

    fn write<'a>(&self, offset: u64, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut pages = self.pages.write();
        let mut at = offset;
        for part in parts {
            let end = at.checked_add(part.len() as u64).filter(|&end| end <= self.len_bytes);
            let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            let mut rest = part;
            while !rest.is_empty() {
                let (page, byte) = Self::place(at);
                let (now, later) = rest.split_at(rest.len().min(PAGE - byte));
                set(&mut pages[page], byte, now);
                at += now.len() as u64;
                rest = later;
            }
            at = end;
            self.written_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len_bytes);
        end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let pages = self.pages.read();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (page, byte) = Self::place(at);
            let count = rest.len().min(PAGE - byte);
            let (now, later) = rest.split_at_mut(count);
            let found = pages[page].get(byte..).unwrap_or_default();
            let found = &found[..found.len().min(count)];
            now[..found.len()].copy_from_slice(found);
            now[found.len()..].fill(0);
            at += count as u64;
            rest = later;
        }
        Ok(())
    }
}

/// Changes bytes of a page.
fn set(page: &mut Box<[u8]>, byte: usize, bytes: &[u8]) {
    let mut whole;
    let bytes = if bytes.len() == PAGE {
        bytes
    } else {
        whole = [0; PAGE];
        whole[..page.len()].copy_from_slice(page);
        whole[byte..byte + bytes.len()].copy_from_slice(bytes);
        &whole[..]
    };
    // By words: most pages of a measurement are zeros but for their first bytes.
    let zeros = bytes.rchunks_exact(64).take_while(|chunk| **chunk == [0; 64]).count();
    let kept = &bytes[..PAGE - zeros * 64];
    if page.len() == kept.len() { page.copy_from_slice(kept) } else { *page = kept.into() }
}

impl Storage for MemoryStorage {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        for read in reads {
            read.result = self.inner.read(read.offset, read.buf);
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
        storage.write_all(4000, &[9; 200]).expect("within");
        storage.read_exact(0, &mut buf).expect("within");
        assert_eq!((buf[3999], buf[4000], buf[4199], buf[4200], buf[8191]), (0, 9, 9, 7, 7));
    }
}
