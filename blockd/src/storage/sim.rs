//! A simulated backing: everything that can go wrong, by a seed.
//!
//! A write is *queued* -> *complete* (visible) -> *durable* (by a sync that began after it completed). A
//! power cut keeps of every write that is not durable any subset of its 512-byte sectors; the death
//! of the process keeps every complete write, and of the queued ones any subset.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Chunk, Completion, Read, Storage, Waiter, Waker, WriteQueue};

/// Unit of tearing.
const SECTOR: usize = 512;

/// What ends a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Writes that are not durable may be lost, torn, reordered.
    PowerCut,
    /// Only what was still queued may be lost.
    ProcessDeath,
}

struct Pending {
    offset: usize,
    bytes: Vec<u8>,
    /// Order of completion.
    order: u64,
}

/// A request of the log's queue.
enum Queued {
    Write(Pending),
    /// Makes durable what completed up to this order.
    Sync(u64),
}

impl Queued {
    fn write(&self) -> Option<&Pending> {
        match self {
            Queued::Write(write) => Some(write),
            Queued::Sync(_) => None,
        }
    }
}

struct State {
    rng: StdRng,
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Complete, not durable.
    volatile: Vec<Pending>,
    /// By token.
    queued: Vec<(u64, Queued)>,
    writes: u64,
    completed: u64,
    crash_at: Option<u64>,
    error_at: Option<(u64, i32)>,
    off: bool,
}

/// The backing; clones share it.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
    len: u64,
}

impl SimStorage {
    /// A backing with this content, all of it durable.
    pub fn new(image: Vec<u8>, seed: u64) -> Self {
        let len = image.len() as u64;
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            durable: image.clone(),
            visible: image,
            volatile: Vec::new(),
            queued: Vec::new(),
            writes: 0,
            completed: 0,
            crash_at: None,
            error_at: None,
            off: false,
        };
        SimStorage { state: Arc::new(Mutex::new(state)), len }
    }

    /// Power goes in the midst of the `n`th write from now (the first is 1).
    pub fn crash_at(&self, n: u64) {
        let mut s = self.state.lock();
        s.crash_at = Some(s.writes + n);
    }

    /// The `n`th write from now fails with this errno, and nothing of it is written.
    pub fn error_at(&self, n: u64, errno: i32) {
        let mut s = self.state.lock();
        s.error_at = Some((s.writes + n, errno));
    }

    /// Whether the crash came.
    pub fn crashed(&self) -> bool {
        self.state.lock().off
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// What is found after a crash.
    pub fn image_after(&self, crash: Crash) -> Vec<u8> {
        let mut guard = self.state.lock();
        let s = &mut *guard;
        let mut image = if crash == Crash::PowerCut { s.durable.clone() } else { s.visible.clone() };
        let volatile = s.volatile.iter().filter(|_| crash == Crash::PowerCut);
        for write in volatile.chain(s.queued.iter().filter_map(|(_, q)| q.write())) {
            tear(&mut s.rng, &mut image, write);
        }
        image
    }
}

/// Applies all, nothing or any subset of a write's sectors.
fn tear(rng: &mut StdRng, image: &mut [u8], write: &Pending) {
    let mode = rng.random_range(0..3);
    for (i, sector) in write.bytes.chunks(SECTOR).enumerate() {
        if mode == 0 || (mode == 1 && rng.random_bool(0.5)) {
            let at = write.offset + i * SECTOR;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

impl State {
    fn power(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("simulated: the power is off")) } else { Ok(()) }
    }

    /// Counts a write; false if the power goes off in its midst.
    fn count(&mut self) -> io::Result<bool> {
        self.power()?;
        self.writes += 1;
        if let Some((n, errno)) = self.error_at
            && n == self.writes
        {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if self.crash_at == Some(self.writes) {
            self.off = true;
            return Ok(false);
        }
        Ok(true)
    }

    fn complete(&mut self, mut write: Pending) {
        self.completed += 1;
        write.order = self.completed;
        self.visible[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        self.volatile.push(write);
    }

    fn make_durable(&mut self, upto: u64) {
        let count = self.volatile.partition_point(|w| w.order <= upto);
        for write in self.volatile.drain(..count) {
            self.durable[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        }
    }
}

impl Storage for SimStorage {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) {
        let s = self.state.lock();
        for read in reads {
            let start = read.offset as usize;
            read.result = s.power().and_then(|()| {
                let from = s.visible.get(start..start + read.buf.len());
                let from = from.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
                read.buf.copy_from_slice(from);
                Ok(())
            });
        }
    }

    fn write_all(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert_eq!((offset | bytes.len() as u64) % 4096, 0, "writes are whole pages");
        let mut s = self.state.lock();
        let whole = s.count()?;
        let write = Pending { offset: offset as usize, bytes: bytes.to_vec(), order: 0 };
        assert!(write.offset + bytes.len() <= s.visible.len(), "a write past the end of the backing");
        if whole {
            s.complete(write);
            return Ok(());
        }
        s.queued.push((0, Queued::Write(write)));
        s.power()
    }

    fn sync(&self) -> io::Result<()> {
        let mut s = self.state.lock();
        s.power()?;
        let upto = s.completed;
        s.make_durable(upto);
        Ok(())
    }

    fn discard(&self, offset: u64, len_bytes: u64) {
        let mut s = self.state.lock();
        let range = offset as usize..(offset + len_bytes) as usize;
        s.visible[range.clone()].fill(0xdd);
        s.durable[range].fill(0xdd);
    }

    fn queue(&self) -> io::Result<Box<dyn WriteQueue>> {
        Ok(Box::new(SimQueue { state: Arc::clone(&self.state), done: Vec::new(), inline: false }))
    }
}

struct SimQueue {
    state: Arc<Mutex<State>>,
    done: Vec<Completion>,
    inline: bool,
}

impl SimQueue {
    /// Finishes one queued request, any of them.
    fn finish_one(&mut self) -> bool {
        let mut s = self.state.lock();
        if s.queued.is_empty() {
            return false;
        }
        if let Err(e) = s.power() {
            // What was queued stays so: the image decides what of it arrived.
            let tokens: Vec<u64> = s.queued.iter().map(|(token, _)| *token).collect();
            let failed = tokens.into_iter().filter(|t| !self.done.iter().any(|d| d.token == *t));
            let failed: Vec<_> = failed
                .map(|token| Completion { token, result: Err(io::Error::new(e.kind(), e.to_string())) })
                .collect();
            let any = !failed.is_empty();
            self.done.extend(failed);
            return any;
        }
        let i = (0..s.queued.len()).next_back().map_or(0, |last| s.rng.random_range(0..=last));
        let (token, write) = s.queued.remove(i);
        match write {
            Queued::Write(write) => s.complete(write),
            Queued::Sync(upto) => s.make_durable(upto),
        }
        self.done.push(Completion { token, result: Ok(()) });
        true
    }
}

impl SimQueue {
    /// Inline, a request is finished when it was made; those before it were finished then.
    fn finish_inline(&mut self) {
        while self.inline && self.finish_one() {}
    }
}

impl WriteQueue for SimQueue {
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        let bytes: Vec<u8> = chunks.iter().flat_map(|c| c.bytes().iter().copied()).collect();
        assert_eq!((offset | bytes.len() as u64) % 4096, 0, "writes are whole pages");
        let mut s = self.state.lock();
        assert!(offset as usize + bytes.len() <= s.visible.len(), "a write past the end of the backing");
        match s.count() {
            Ok(_) => {
                s.queued.push((token, Queued::Write(Pending { offset: offset as usize, bytes, order: 0 })))
            }
            Err(e) => self.done.push(Completion { token, result: Err(e) }),
        }
        drop(s);
        self.finish_inline();
    }

    fn sync(&mut self, token: u64) {
        let mut s = self.state.lock();
        let upto = s.completed;
        s.queued.push((token, Queued::Sync(upto)));
        drop(s);
        self.finish_inline();
    }

    fn submit(&mut self) {}

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let some = self.state.lock().rng.random_bool(0.5);
        if some {
            self.finish_one();
        }
        out.append(&mut self.done);
    }

    fn has_finished(&self) -> bool {
        !self.done.is_empty()
    }

    fn wait(&mut self) {
        if self.done.is_empty() {
            self.finish_one();
        }
    }

    fn waker(&self) -> Waker {
        Arc::new(|| {})
    }

    fn waiter(&self) -> Waiter {
        Box::new(|| {})
    }

    fn set_inline(&mut self, inline: bool) {
        self.inline = inline;
    }

    fn is_synchronous(&self) -> bool {
        false
    }
}

/// `image` with one bit flipped.
pub fn flip_bit(image: &mut [u8], bit: u64) {
    image[(bit / 8) as usize] ^= 1 << (bit % 8);
}
