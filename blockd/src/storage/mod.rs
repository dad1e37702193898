//! The seam below the store: all I/O on the backing goes through [`Storage`].
//!
//! Implementations: [`file::FileStorage`] over a file or block device, with io_uring or plain
//! pread/pwrite ([`IoEngine`]), [`memory::MemoryStorage`], and a simulated one in the tests,
//! with crashes and faults.
//!
//! Alignment: every offset and every buffer is a multiple of 4096, so that O_DIRECT is possible.

pub mod file;
pub mod identity;
pub mod memory;
mod plain;
mod ring;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

use std::io;
use std::sync::Arc;

use crate::buf::AlignedBuf;
use identity::Identity;

/// How the backing is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoEngine {
    /// io_uring where the kernel permits it and the backing gains by it, else plain system calls (the reason is
    /// logged).
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// pread, pwritev and fdatasync.
    Sync,
}

/// What stands between a volume and its backing. Every page read is checked against its crc all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cache {
    /// Nothing, where the backing takes O_DIRECT: memory is left to the clients.
    #[default]
    Direct,
    /// The kernel's page cache, for reads and for writes until they are made durable.
    Writeback,
}

/// One read of a batch; `result` is set by [`Storage::read_batch`].
#[derive(Debug)]
pub struct Read<'a> {
    /// Byte offset in the backing.
    pub offset: u64,
    /// Filled whole on success.
    pub buf: &'a mut [u8],
    /// The outcome.
    pub result: io::Result<()>,
}

impl<'a> Read<'a> {
    /// A read of `buf.len()` bytes at `offset`.
    pub fn new(offset: u64, buf: &'a mut [u8]) -> Self {
        Read { offset, buf, result: Ok(()) }
    }
}

/// A read into a buffer of its own, from as many places of the backing as it is scattered over.
#[derive(Debug)]
pub struct ScatteredRead {
    /// Of the caller's.
    pub tag: usize,
    /// What is read into.
    pub buf: AlignedBuf,
    /// Which bytes of it, ascending and apart from each other, and where each comes from.
    pub parts: Vec<ReadPart>,
}

/// A part of a [`ScatteredRead`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPart {
    /// Byte offset in the backing.
    pub offset: u64,
    /// First byte in the buffer.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

impl ScatteredRead {
    /// Its parts as borrowed reads.
    fn split(&mut self) -> Vec<Read<'_>> {
        split(&mut self.buf, &self.parts)
    }
}

/// Parts of a buffer as reads into it; ascending, and apart from each other.
pub fn split<'a>(buf: &'a mut [u8], parts: &[ReadPart]) -> Vec<Read<'a>> {
    let mut rest = buf;
    let mut skipped = 0;
    let mut reads = Vec::with_capacity(parts.len());
    for part in parts {
        let (_, from) = rest.split_at_mut(part.start - skipped);
        let (bytes, behind) = from.split_at_mut(part.len);
        reads.push(Read::new(part.offset, bytes));
        (rest, skipped) = (behind, part.start + part.len);
    }
    reads
}

/// What is large and nobody waits for is read and written in such pieces, one after the other: a disk serves requests in about
/// their order, and a small one that somebody waits for would wait for a large one before it.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// A shared piece of a buffer, kept alive until its write completed.
#[derive(Clone, Debug)]
pub struct Chunk {
    buf: Arc<AlignedBuf>,
    start: usize,
    len: usize,
}

impl Chunk {
    /// Bytes `start..start + len` of `buf`.
    ///
    /// # Panics
    /// If they do not lie in the buffer.
    pub fn new(buf: Arc<AlignedBuf>, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= buf.len()), "a chunk lies in its buffer");
        Chunk { buf, start, len }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }

    /// Takes in what follows it in its buffer; false if `next` is not that.
    pub fn join(&mut self, next: &Chunk) -> bool {
        let joins = Arc::ptr_eq(&self.buf, &next.buf) && self.start + self.len == next.start;
        self.len += if joins { next.len } else { 0 };
        joins
    }
}

/// A finished write or sync of a [`WriteQueue`].
#[derive(Debug)]
pub struct Completion {
    /// As given with the request.
    pub token: u64,
    /// The outcome; a write is whole or an error.
    pub result: io::Result<()>,
}

/// Ends a [`WriteQueue::wait`], or a [`Waiter`]'s, from another thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// As [`WriteQueue::wait`], at the side of the queue's user; for one thread.
pub type Waiter = Box<dyn Fn() + Send>;

/// Asynchronous writes (the log's).
///
/// One thread starts and reaps them. Others may use the queue between its calls, if they exclude each other, while
/// nothing is in flight and the queue is *inline* (see [`WriteQueue::set_inline`]).
pub trait WriteQueue: Send {
    /// Starts writing the chunks one after another at `offset`; may be delayed until
    /// [`WriteQueue::submit`].
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>);
    /// As [`WriteQueue::write`], for a write that may be large and that nobody waits for: others need not wait for all of it.
    fn write_behind(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        self.write(token, offset, chunks);
    }
    /// Starts making everything durable whose write *completed* before.
    fn sync(&mut self, token: u64);
    /// Starts what was given so far.
    fn submit(&mut self);
    /// Moves finished requests to `out`, without waiting.
    fn reap(&mut self, out: &mut Vec<Completion>);
    /// Whether [`WriteQueue::reap`] would give something that is known already; a [`Waiter`] does not see that.
    fn has_finished(&self) -> bool;
    /// Waits until a request is finished or the waker was called since the last wait.
    fn wait(&mut self);
    /// Ends waits; may be called from any thread.
    fn waker(&self) -> Waker;
    /// Waits while others may use the queue.
    fn waiter(&self) -> Waiter;
    /// While it is set, requests are carried out whole by the thread that makes them: it costs least when that
    /// thread has nothing else to do. A queue may start with it set; the thread that will wait for it unsets it first.
    fn set_inline(&mut self, inline: bool);
    /// It is always inline.
    fn is_synchronous(&self) -> bool;
}

/// The backing of a store: fixed length, positioned I/O.
pub trait Storage: Send + Sync {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;
    /// Which file or block device it is, if it is one.
    fn identity(&self) -> Option<Identity> {
        None
    }
    /// Carries out all reads, several at once where it can, and sets their results.
    fn read_batch(&self, reads: &mut [Read<'_>]);
    /// Carries out all reads, several at once where it can, and hands each one over as soon as it is finished. Where a
    /// part failed its bytes are anything: this is for those who check what they read, and ask again.
    fn read_each(&self, reads: Vec<ScatteredRead>, finished: &mut dyn FnMut(ScatteredRead)) {
        for mut read in reads {
            self.read_batch(&mut read.split());
            finished(read);
        }
    }
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Whatever the backing says; the range is then undefined.
    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes every completed write durable.
    ///
    /// # Errors
    /// After an error nothing is known of any write since the last success.
    fn sync(&self) -> io::Result<()>;
    /// Gives the space of a range back; it reads as anything afterwards. May do nothing.
    fn discard(&self, offset: u64, len_bytes: u64);
    /// Lets others have the backing; nothing is written to it any more.
    fn release(&self) {}
    /// A queue of asynchronous writes.
    ///
    /// # Errors
    /// When its resources (a ring) cannot be had.
    fn queue(&self) -> io::Result<Box<dyn WriteQueue>>;

    /// Reads one range whole.
    ///
    /// # Errors
    /// Whatever the backing says, or UnexpectedEof past its end.
    fn read_exact(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut one = [Read::new(offset, buf)];
        self.read_batch(&mut one);
        let [read] = one;
        read.result
    }
}
