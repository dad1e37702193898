//! io_uring: batches of reads, and the log's queue of writes.
//!
//! Every buffer given to the kernel is owned or borrowed by this module until its completion was
//! reaped: reads block until the whole batch is finished, writes keep their chunks in a slot.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use super::plain::{IOVECS_MAX, read_rest, write_chunks};
use super::{Chunk, Completion, PIECE_BYTES, Read, ScatteredRead, Waiter, Waker, WriteQueue};

/// Entries of a ring for reads; larger batches go in parts.
const READ_ENTRIES: u32 = 64;
/// Entries of the log's ring.
const WRITE_ENTRIES: u32 = 64;
/// Reads that go on are waited for until about so many bytes are there: fewer system calls for small ones.
const READ_WAIT_BYTES: usize = 64 << 10;
/// `user_data` of the poll on the wake descriptor.
const WAKE: u64 = u64::MAX;

/// Enters the ring until `want` completions are there.
///
/// # Panics
/// Aborts the process if the kernel refuses the ring itself: requests in flight could then never
/// be told finished, and their buffers neither freed nor used.
fn enter(ring: &IoUring, want: usize) {
    loop {
        match ring.submit_and_wait(want) {
            Ok(_) => return,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                // Completions must be taken first (EBUSY), or memory is short for a moment (EAGAIN).
                std::thread::yield_now();
                return;
            }
            Err(e) => {
                tracing::error!("io_uring_enter failed: {e}; requests in flight are lost track of, stopping");
                std::process::abort();
            }
        }
    }
}

thread_local! {
    /// Each reading thread has a ring of its own.
    static READ_RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// A ring for one thread, which takes completions in only when it waits for them, where the kernel (6.1 on) can do that.
fn lone_ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(entries).or_else(|_| IoUring::new(entries))
}

/// A ring whose completions do not interrupt its thread, where the kernel (5.19 on) can do that.
fn log_ring(entries: u32) -> io::Result<IoUring> {
    IoUring::builder().setup_coop_taskrun().build(entries).or_else(|_| IoUring::new(entries))
}

/// Reads through io_uring are possible.
pub(super) struct ReadRings(());

impl ReadRings {
    /// Makes a ring, so that a kernel that forbids io_uring is noticed here.
    ///
    /// # Errors
    /// What io_uring_setup(2) says.
    pub(super) fn new() -> io::Result<Self> {
        lone_ring(READ_ENTRIES).map(|_| ReadRings(()))
    }

    /// Carries out all reads; falls back to pread when this thread can have no ring.
    pub(super) fn read_batch(&self, file: &File, reads: &mut [Read<'_>]) {
        with_ring(|ring| match ring {
            Some(ring) => {
                for part in reads.chunks_mut(READ_ENTRIES as usize) {
                    read_part(ring, file, part);
                }
            }
            None => {
                for read in reads {
                    read.result = read_rest(file, read.offset, read.buf, 0);
                }
            }
        });
    }

    /// As [`super::Storage::read_each`]; falls back to pread when this thread can have no ring.
    pub(super) fn read_each(
        &self,
        file: &File,
        reads: Vec<ScatteredRead>,
        finished: &mut dyn FnMut(ScatteredRead),
    ) {
        with_ring(|ring| match ring {
            Some(ring) => Scattered::new(ring, file, reads).run(finished),
            None => {
                for mut read in reads {
                    for part in read.split() {
                        // Whoever gets it checks it.
                        let _ = read_rest(file, part.offset, part.buf, 0);
                    }
                    finished(read);
                }
            }
        });
    }
}

/// Lends this thread's ring, if it can have one; idle, and left so.
fn with_ring(f: impl FnOnce(Option<&mut IoUring>)) {
    // A thread that is ending has no ring any more.
    let ring = READ_RING.try_with(|ring| ring.borrow_mut().take()).unwrap_or_default();
    let mut ring = ring.map_or_else(|| lone_ring(READ_ENTRIES), Ok).ok();
    f(ring.as_mut());
    let _ = READ_RING.try_with(|mine| mine.replace(ring));
}

/// Reads that are handed over one by one, as they are finished.
struct Scattered<'a> {
    ring: &'a mut IoUring,
    file: &'a File,
    /// `None` once handed over. The kernel writes to the buffers of the others until `in_flight` is 0.
    reads: Vec<Option<ScatteredRead>>,
    /// Parts of each that are not finished.
    missing: Vec<usize>,
    /// Read and part of each entry of the ring.
    slots: Vec<(usize, usize)>,
    free: Vec<usize>,
    in_flight: usize,
}

impl<'a> Scattered<'a> {
    /// On an idle ring.
    fn new(ring: &'a mut IoUring, file: &'a File, reads: Vec<ScatteredRead>) -> Self {
        let missing = reads.iter().map(|read| read.parts.len()).collect();
        let reads = reads.into_iter().map(Some).collect();
        Scattered { ring, file, reads, missing, slots: Vec::new(), free: Vec::new(), in_flight: 0 }
    }

    fn run(mut self, finished: &mut dyn FnMut(ScatteredRead)) {
        let (mut bytes, mut parts) = (0, 0);
        for index in 0..self.reads.len() {
            if self.missing[index] == 0 {
                self.reads[index].take().into_iter().for_each(&mut *finished);
                continue;
            }
            for part in 0..self.missing[index] {
                if self.in_flight == READ_ENTRIES as usize {
                    self.wait(1, finished);
                }
                bytes += self.start(index, part);
                parts += 1;
            }
        }
        // About `READ_WAIT_BYTES`, going by what one has on average.
        let each = bytes.checked_div(parts).unwrap_or(0).max(1);
        while self.in_flight > 0 {
            self.wait((READ_WAIT_BYTES / each).clamp(1, self.in_flight), finished);
        }
    }

    /// Starts a part; gives its bytes.
    fn start(&mut self, index: usize, part: usize) -> usize {
        let Some(read) = &mut self.reads[index] else { unreachable!("it has parts that are not finished") };
        let place = read.parts[part];
        let bytes = &mut read.buf[place.start..place.start + place.len];
        let len = u32::try_from(bytes.len()).unwrap_or(!4095);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, 0));
            self.slots.len() - 1
        });
        self.slots[slot] = (index, part);
        let entry = opcode::Read::new(types::Fd(self.file.as_raw_fd()), bytes.as_mut_ptr(), len)
            .offset(place.offset)
            .build()
            .user_data(slot as u64);
        // SAFETY: the buffer is owned by `self.reads` until all of its parts have completed, and nobody looks at it
        // before; dropping `self` waits for what is in flight.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for {READ_ENTRIES} entries in flight");
        self.in_flight += 1;
        place.len
    }

    /// Waits for `want` parts, and hands over what is whole.
    fn wait(&mut self, want: usize, finished: &mut dyn FnMut(ScatteredRead)) {
        enter(self.ring, want);
        let mut whole = Vec::new();
        for entry in self.ring.completion() {
            self.in_flight -= 1;
            let slot = entry.user_data() as usize;
            let (index, part) = self.slots[slot];
            self.free.push(slot);
            self.missing[index] -= 1;
            let Some(read) = &mut self.reads[index] else { continue };
            let place = read.parts[part];
            let got = usize::try_from(entry.result()).unwrap_or(0);
            if got < place.len && entry.result() != -libc::EIO {
                // Whoever gets it checks it.
                let bytes = &mut read.buf[place.start..place.start + place.len];
                let _ = read_rest(self.file, place.offset, bytes, got);
            }
            if self.missing[index] == 0 {
                whole.extend(self.reads[index].take());
            }
        }
        whole.into_iter().for_each(finished);
    }
}

impl Drop for Scattered<'_> {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            enter(self.ring, self.in_flight);
            self.in_flight -= self.ring.completion().count();
        }
    }
}

/// At most [`READ_ENTRIES`] reads, on an idle ring.
fn read_part(ring: &mut IoUring, file: &File, reads: &mut [Read<'_>]) {
    let fd = types::Fd(file.as_raw_fd());
    for (i, read) in reads.iter_mut().enumerate() {
        let len = u32::try_from(read.buf.len()).unwrap_or(!4095);
        let entry =
            opcode::Read::new(fd, read.buf.as_mut_ptr(), len).offset(read.offset).build().user_data(i as u64);
        // SAFETY: the buffer is borrowed for the whole of this function, which returns only after
        // the completion of every entry pushed (the loop below); the ring has room, being idle.
        let pushed = unsafe { ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "an idle ring has room for {READ_ENTRIES} entries");
    }
    let mut pending = reads.len();
    while pending > 0 {
        enter(ring, pending);
        for entry in ring.completion() {
            pending -= 1;
            let read = &mut reads[entry.user_data() as usize];
            read.result = match entry.result() {
                n if n < 0 && matches!(-n, libc::EAGAIN | libc::EINTR) => Ok(0),
                n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
                n => Ok(n as usize),
            }
            .and_then(|got| {
                if got == read.buf.len() { Ok(()) } else { read_rest(file, read.offset, read.buf, got) }
            });
        }
    }
}

/// A write or sync in flight.
struct Slot {
    token: u64,
    offset: u64,
    chunks: Vec<Chunk>,
    /// Most bytes of a piece.
    piece_bytes: usize,
    /// Bytes that are written; the next piece is with the kernel.
    written: usize,
    /// That piece: points into `chunks`, and is read by the kernel until the completion.
    iovecs: Vec<libc::iovec>,
}

impl Slot {
    fn new(token: u64, offset: u64, chunks: Vec<Chunk>, piece_bytes: usize) -> Self {
        Slot { token, offset, chunks, piece_bytes, written: 0, iovecs: Vec::new() }
    }

    /// The request for the next piece of a write. It points into this slot, which must stay until its completion.
    fn next_piece(&mut self, file: &File) -> io_uring::squeue::Entry {
        self.iovecs.clear();
        let (mut skip, mut room) = (self.written, self.piece_bytes);
        for chunk in &self.chunks {
            let bytes = chunk.bytes();
            let from = skip.min(bytes.len());
            let part = &bytes[from..][..room.min(bytes.len() - from)];
            skip -= from;
            room -= part.len();
            if !part.is_empty() && self.iovecs.len() < IOVECS_MAX {
                let iov_base = part.as_ptr().cast_mut().cast();
                self.iovecs.push(libc::iovec { iov_base, iov_len: part.len() });
            }
        }
        let (fd, count) = (types::Fd(file.as_raw_fd()), self.iovecs.len() as u32);
        opcode::Writev::new(fd, self.iovecs.as_ptr(), count).offset(self.offset + self.written as u64).build()
    }

    /// Takes the result of a request in; `None`: there is more to write.
    fn finished(&mut self, file: &File, result: i32) -> Option<io::Result<()>> {
        let wanted: usize = self.chunks.iter().map(|c| c.bytes().len()).sum();
        let again = matches!(-result, libc::EAGAIN | libc::EINTR);
        match result {
            n if n < 0 && !again => Some(Err(io::Error::from_raw_os_error(-n))),
            n if n < 0 && self.chunks.is_empty() => Some(file.sync_data()),
            n if n <= 0 && wanted > 0 => Some(write_chunks(file, self.offset, &self.chunks, self.written)),
            n => {
                self.written += n as usize;
                (self.written >= wanted).then_some(Ok(()))
            }
        }
    }
}

// SAFETY: the pointers in `iovecs` point into the shared, immutable buffers of `chunks`, which
// the slot keeps alive; nothing in it belongs to a thread.
unsafe impl Send for Slot {}

/// The log's writes over one ring.
///
/// The ring is used by one thread alone: by the methods below, and by its [`Waiter`], which only waits in the kernel.
/// Other threads use the queue inline, and then it leaves the ring alone: the kernel finishes a request, the poll on the
/// wake descriptor too, in the thread that submitted it, and not while that one sleeps uninterruptibly.
/// So a new queue is inline until the thread that will wait for it says otherwise.
pub(super) struct RingQueue {
    ring: Arc<IoUring>,
    file: Arc<File>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    done: Vec<Completion>,
    wake: Arc<OwnedFd>,
    wake_armed: bool,
    inline: bool,
}

impl RingQueue {
    /// # Errors
    /// What io_uring_setup(2) or eventfd(2) says.
    pub(super) fn new(file: Arc<File>) -> io::Result<Self> {
        Ok(RingQueue {
            ring: Arc::new(log_ring(WRITE_ENTRIES)?),
            file,
            slots: Vec::new(),
            free: Vec::new(),
            done: Vec::new(),
            wake: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            wake_armed: false,
            inline: true,
        })
    }

    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        loop {
            // SAFETY: `&mut self` makes this the only use of the submission queue (the waiter only enters the ring, see
            // its comment). Callers pass entries whose memory lives in a slot until the completion is reaped, or
            // entries without memory.
            if unsafe { self.ring.submission_shared().push(entry) }.is_ok() {
                return;
            }
            enter(&self.ring, 0);
            self.harvest();
        }
    }

    fn slot(&mut self, slot: Slot) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(slot);
        index
    }

    fn harvest(&mut self) {
        loop {
            // SAFETY: `&mut self` makes this the only use of the completion queue.
            let Some(entry) = unsafe { self.ring.completion_shared() }.next() else { return };
            if entry.user_data() == WAKE {
                self.wake_armed = false;
                let mut counter = [0; 8];
                // An empty counter (EAGAIN) is as good as a read one.
                let _ = rustix::io::read(&*self.wake, &mut counter);
                continue;
            }
            let index = entry.user_data() as usize;
            let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { continue };
            let Some(result) = slot.finished(&self.file, entry.result()) else {
                let next = slot.next_piece(&self.file).user_data(entry.user_data());
                self.push(&next);
                continue;
            };
            let token = slot.token;
            self.slots[index] = None;
            self.free.push(index);
            self.done.push(Completion { token, result });
        }
    }
}

impl RingQueue {
    /// Has the ring tell when the waker is called.
    fn arm(&mut self) {
        if !self.wake_armed {
            let entry = opcode::PollAdd::new(types::Fd(self.wake.as_raw_fd()), libc::POLLIN as u32)
                .build()
                .user_data(WAKE);
            self.push(&entry);
            self.wake_armed = true;
        }
    }

    fn write_in_pieces(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>, piece_bytes: usize) {
        if self.inline {
            let result = write_chunks(&self.file, offset, &chunks, 0);
            self.done.push(Completion { token, result });
            return;
        }
        let index = self.slot(Slot::new(token, offset, chunks, piece_bytes));
        let Some(slot) = &mut self.slots[index] else { unreachable!("filled on the line above") };
        let entry = slot.next_piece(&self.file).user_data(index as u64);
        self.push(&entry);
    }

    fn has_unsubmitted(&mut self) -> bool {
        // SAFETY: `&mut self` makes this the only use of the submission queue.
        unsafe { !self.ring.submission_shared().is_empty() }
    }
}

impl WriteQueue for RingQueue {
    fn write(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        self.write_in_pieces(token, offset, chunks, usize::MAX);
    }

    fn write_behind(&mut self, token: u64, offset: u64, chunks: Vec<Chunk>) {
        self.write_in_pieces(token, offset, chunks, PIECE_BYTES);
    }

    fn sync(&mut self, token: u64) {
        if self.inline {
            self.done.push(Completion { token, result: self.file.sync_data() });
            return;
        }
        let index = self.slot(Slot::new(token, 0, Vec::new(), 0));
        let entry = opcode::Fsync::new(types::Fd(self.file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(index as u64);
        self.push(&entry);
    }

    fn submit(&mut self) {
        if self.inline {
            return;
        }
        loop {
            self.arm();
            if self.has_unsubmitted() {
                enter(&self.ring, 0);
            }
            self.harvest();
            // A wake that was just taken in leaves the ring deaf to the next one, and a piece may be followed by another.
            if self.wake_armed && !self.has_unsubmitted() {
                return;
            }
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        if !self.inline {
            self.harvest();
        }
        out.append(&mut self.done);
    }

    fn has_finished(&self) -> bool {
        !self.done.is_empty()
    }

    fn wait(&mut self) {
        if self.inline {
            return;
        }
        self.arm();
        self.harvest();
        while self.done.is_empty() && self.wake_armed {
            enter(&self.ring, 1);
            self.harvest();
        }
    }

    fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Arc::new(move || {
            // A full counter means that a wake is pending already.
            let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
        })
    }

    fn waiter(&self) -> Waiter {
        let ring = Arc::clone(&self.ring);
        // `submit` has armed the wake and left nothing unsubmitted, so this touches neither queue. It returns at once
        // if a completion is there already.
        Box::new(move || enter(&ring, 1))
    }

    fn set_inline(&mut self, inline: bool) {
        self.inline = inline;
    }

    fn is_synchronous(&self) -> bool {
        false
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        while self.slots.iter().any(Option::is_some) {
            enter(&self.ring, 1);
            self.harvest();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, Ordering, fence};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::buf::AlignedBuf;

    const PAGE: usize = 4096;
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 500;

    /// What waits for the thread that drives the queue, as the log's inbox does.
    #[derive(Default)]
    struct Inbox {
        requests: Mutex<Vec<(u64, Sender<()>)>>,
        sleeping: AtomicBool,
        ended: AtomicBool,
    }

    impl Inbox {
        fn wake(&self, waker: &Waker) {
            fence(Ordering::SeqCst);
            if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
                waker();
            }
        }
    }

    /// Drives the queue as the log does, until it is told to end; gives how often it slept.
    fn drive(mut queue: RingQueue, inbox: &Inbox) -> u64 {
        queue.set_inline(false);
        let waiter = queue.waiter();
        let page = Arc::new(AlignedBuf::from_slice(&[7; PAGE]));
        let mut waiting: HashMap<u64, Sender<()>> = HashMap::new();
        let (mut token, mut slept) = (0, 0);
        loop {
            let mut finished = Vec::new();
            queue.reap(&mut finished);
            let requests = std::mem::take(&mut *inbox.requests.lock());
            let mut progress = !finished.is_empty() || !requests.is_empty();
            for (number, done) in requests {
                token += 1;
                waiting.insert(token, done);
                if number % 16 == 0 {
                    queue.sync(token);
                } else {
                    let chunk = Chunk::new(Arc::clone(&page), 0, PAGE);
                    queue.write(token, number % 64 * PAGE as u64, vec![chunk]);
                }
            }
            queue.submit();
            progress |= queue.has_finished();
            for completion in finished {
                completion.result.expect("written");
                let done = waiting.remove(&completion.token).expect("completed once");
                done.send(()).expect("its thread waits for it");
            }
            if progress {
                continue;
            }
            let ended = inbox.ended.load(Ordering::SeqCst);
            if ended && waiting.is_empty() {
                return slept;
            }
            inbox.sleeping.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if inbox.requests.lock().is_empty() && ended == inbox.ended.load(Ordering::SeqCst) {
                slept += 1;
                waiter();
            }
            inbox.sleeping.store(false, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_large_write_goes_in_pieces_and_arrives_whole() {
        use std::os::unix::fs::FileExt;

        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let mut queue = RingQueue::new(Arc::clone(&file)).expect("a ring");
        queue.set_inline(false);
        // Pieces end within chunks, and chunks within pieces.
        let bytes: Vec<u8> = (0..PIECE_BYTES * 3).map(|i| (i / 509 % 251) as u8).collect();
        let buf = Arc::new(AlignedBuf::from_slice(&bytes));
        let ends = [0, PAGE, PIECE_BYTES - PAGE, PIECE_BYTES * 2 + PAGE, PIECE_BYTES * 3 - 100];
        let chunks: Vec<Chunk> =
            ends.windows(2).map(|w| Chunk::new(Arc::clone(&buf), w[0], w[1] - w[0])).collect();
        queue.write_behind(1, 8192, chunks);
        queue.write(2, 0, vec![Chunk::new(Arc::clone(&buf), 0, PAGE)]);
        queue.submit();
        let mut finished = Vec::new();
        while finished.len() < 2 {
            queue.wait();
            queue.reap(&mut finished);
            queue.submit();
        }
        assert!(finished.iter().all(|completion| completion.result.is_ok()), "{finished:?}");
        let mut found = vec![0; ends[4]];
        file.read_exact_at(&mut found, 8192).expect("it is there");
        assert!(found == bytes[..ends[4]], "what was written");
        assert_eq!(file.metadata().expect("a file").len(), 8192 + ends[4] as u64, "and nothing more");
    }

    /// Requests come at any moment of the thread's falling asleep and waking; one that it does not hear of would hang
    /// the test.
    #[test]
    fn no_request_is_left_while_the_thread_sleeps() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let inbox = Inbox::default();
        let (send_waker, wakers) = channel();
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                let queue = RingQueue::new(Arc::clone(&file)).expect("a ring");
                send_waker.send(queue.waker()).expect("somebody wants it");
                drive(queue, &inbox)
            });
            let waker = wakers.recv().expect("the queue's waker");
            let users: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (inbox, waker) = (&inbox, Arc::clone(&waker));
                    scope.spawn(move || {
                        let mut state = thread + 1;
                        for _ in 0..ROUNDS {
                            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                            match state >> 61 {
                                0 => std::thread::sleep(Duration::from_micros(state >> 40 & 0xff)),
                                1..4 => std::thread::yield_now(),
                                _ => {}
                            }
                            let (done, finished) = channel();
                            inbox.requests.lock().push((state >> 33, done));
                            inbox.wake(&waker);
                            finished.recv().expect("it is carried out");
                        }
                    })
                })
                .collect();
            users.into_iter().for_each(|user| user.join().expect("no panic"));
            inbox.ended.store(true, Ordering::SeqCst);
            inbox.wake(&waker);
            assert!(driver.join().expect("no panic") > 0, "it never slept, so nothing was tried");
        });
    }
}
