//! FUSE over io_uring (Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst): requests arrive in rings, one for each processor,
//! and are carried out on the processor where they were made.
//!
//! A ring has [`DEPTH`] entries, each with memory for one request and its reply. Life of an entry: registered with the
//! kernel, which owns it -> a completion brings a request, it is ours -> carried out by the ring's thread, or by a worker if it
//! may take long -> the reply is committed, which registers it again. Notifications and FORGET go by the device as before.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockd::buf::AlignedBuf;
use crossbeam_channel::{Receiver, Sender, unbounded};
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, OutHeader, op};
use super::reply::{Outcome, Reply};
use super::request::Request;
use super::server::{Handler, Shared, WRITE_BYTES_MAX, handle};

/// Entries of a ring: requests that one processor can have at work at once.
const DEPTH: usize = 16;
/// `user_data` of the read of the descriptor by which workers wake a ring's thread.
const WAKE: u64 = u64::MAX;
/// A worker without work ends after so long.
const WORKER_IDLE: Duration = Duration::from_secs(10);

/// enum fuse_uring_cmd.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

// struct fuse_uring_req_header: the request's or reply's header, the operation's first structure, then what concerns the entry.
const HEADER_BYTES: usize = 288;
const FIRST_AT: usize = 128;
const ENTRY_AT: usize = 256;
const COMMIT_ID_AT: usize = ENTRY_AT + 8;
const PAYLOAD_LEN_AT: usize = ENTRY_AT + 16;

type Ring = IoUring<Entry128, cqueue::Entry>;

/// Whether this process may have rings of the kind that is needed.
pub fn is_possible() -> bool {
    build().is_ok()
}

fn build() -> io::Result<Ring> {
    IoUring::builder()
        .setup_coop_taskrun()
        .setup_single_issuer()
        .build((DEPTH + 1).next_power_of_two() as u32)
}

/// Memory of an entry. The kernel writes to it only while it owns the entry.
struct Entry {
    header: AlignedBuf,
    payload: AlignedBuf,
    /// struct iovec of both: address, length, address, length.
    vectors: Box<[u64; 4]>,
}

impl Entry {
    fn new() -> Self {
        let mut header = AlignedBuf::zeroed(HEADER_BYTES);
        let mut payload = AlignedBuf::zeroed(WRITE_BYTES_MAX as usize);
        let vectors = [
            header.as_mut_ptr() as u64,
            header.len() as u64,
            payload.as_mut_ptr() as u64,
            payload.len() as u64,
        ];
        Entry { header, payload, vectors: Box::new(vectors) }
    }

    fn request(&self) -> io::Result<Request<'_>> {
        let broken = || io::Error::other("a ring entry's request is longer than its memory");
        let (header, _) = InHeader::read_from_prefix(&self.header).map_err(|_| broken())?;
        let len = u32::from_ne_bytes(self.header[PAYLOAD_LEN_AT..][..4].try_into().map_err(|_| broken())?);
        let payload = self.payload.get(..len as usize).ok_or_else(broken)?;
        Ok(Request::of_ring(header, &self.header[FIRST_AT..ENTRY_AT], payload))
    }

    fn carry_out(&mut self, handler: &dyn Handler, reply: &mut Reply) {
        reply.clear();
        let (unique, outcome) = match self.request() {
            Ok(request) => (request.header.unique, handle(handler, request, reply)),
            Err(error) => {
                tracing::error!("{error}");
                (0, Outcome::Failed(libc::EIO))
            }
        };
        let mut len = 0;
        let mut error = 0;
        match outcome {
            Outcome::Failed(errno) => error = -errno,
            Outcome::Silent => {}
            Outcome::Done => {
                for part in reply.parts() {
                    if let Some(place) = self.payload.get_mut(len..len + part.len()) {
                        place.copy_from_slice(part);
                        len += part.len();
                    } else {
                        tracing::error!("a reply is longer than a ring entry");
                        error = -libc::EIO;
                    }
                }
            }
        }
        let header = OutHeader { len: (size_of::<OutHeader>() + len) as u32, error, unique };
        self.header[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        self.header[PAYLOAD_LEN_AT..][..4].copy_from_slice(&(len as u32).to_ne_bytes());
    }

    fn commit_id(&self) -> u64 {
        let mut id = [0; 8];
        id.copy_from_slice(&self.header[COMMIT_ID_AT..][..8]);
        u64::from_ne_bytes(id)
    }
}

/// What a ring's thread shares with workers.
struct Queue {
    entries: Box<[Mutex<Entry>]>,
    /// Entries that workers have done.
    done: Mutex<Vec<usize>>,
    wake: OwnedFd,
}

/// Threads for requests that may take long: as many as there are such requests, so that none waits for another one.
struct Workers {
    jobs: Sender<(Arc<Queue>, usize)>,
    waiting: Receiver<(Arc<Queue>, usize)>,
    idle: AtomicUsize,
    handler: Arc<dyn Handler>,
}

impl Workers {
    fn new(handler: Arc<dyn Handler>) -> Arc<Self> {
        let (jobs, waiting) = unbounded();
        Arc::new(Workers { jobs, waiting, idle: AtomicUsize::new(0), handler })
    }

    /// Has an entry carried out; false if no thread can be had for it.
    fn take(self: &Arc<Self>, queue: &Arc<Queue>, index: usize) -> bool {
        let had_idle =
            self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).is_ok();
        if !had_idle {
            let here = Arc::clone(self);
            let started =
                std::thread::Builder::new().name("vexfs-worker".to_owned()).spawn(move || here.work());
            if let Err(error) = started {
                tracing::warn!("cannot start one more thread: {error}");
                return false;
            }
        }
        self.jobs.send((Arc::clone(queue), index)).is_ok()
    }

    /// Each thread was either counted as idle or started for the job that it takes.
    fn work(&self) {
        let mut reply = Reply::default();
        loop {
            let job = match self.waiting.recv_timeout(WORKER_IDLE) {
                Ok(job) => job,
                // Unless somebody counts on this thread.
                Err(_) => {
                    match self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)) {
                        Ok(_) => return,
                        Err(_) => continue,
                    }
                }
            };
            let (queue, index) = job;
            queue.entries[index].lock().carry_out(&*self.handler, &mut reply);
            queue.done.lock().push(index);
            self.idle.fetch_add(1, Ordering::AcqRel);
            if let Err(error) = rustix::io::write(&queue.wake, &1_u64.to_ne_bytes()) {
                tracing::error!("cannot wake a ring's thread: {error}");
            }
        }
    }
}

/// Starts a ring for each processor. Requests wait in the kernel until all are there.
///
/// # Errors
/// What io_uring or the kernel's FUSE say; the connection can't be used then.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let workers = Workers::new(Arc::clone(shared.handler()));
    for number in 0..possible_processors()? {
        let (started, result) = unbounded();
        let workers = Arc::clone(&workers);
        Shared::spawn(shared, format!("vexfs-ring-{number}"), move |shared| {
            stay_on(number);
            match RingThread::new(shared, number, workers) {
                Ok(mut ring) => {
                    let _ = started.send(Ok(()));
                    ring.serve();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        result.recv().map_err(io::Error::other)??;
    }
    Ok(())
}

/// Rings are needed for all processors that there may ever be (cpu_possible_mask).
fn possible_processors() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u16>().ok());
    last.map(|last| last + 1)
        .ok_or_else(|| io::Error::other("/sys/devices/system/cpu/possible can't be read"))
}

/// Runs this thread where the ring's requests are made. A processor that is not there has no requests either.
fn stay_on(processor: u16) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(usize::from(processor));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::debug!("a ring's thread does not stay on processor {processor}: {error}");
    }
}

struct RingThread {
    ring: Ring,
    device: OwnedFd,
    number: u16,
    queue: Arc<Queue>,
    workers: Arc<Workers>,
    handler: Arc<dyn Handler>,
    /// Memory for the read of `queue.wake`.
    woken: Box<[u8; 8]>,
    /// Entries that the kernel has not given back for good.
    live: usize,
    /// Entries at workers.
    at_work: usize,
    /// Token and result of each completion that was not yet looked at.
    completions: Vec<(u64, i32)>,
}

impl RingThread {
    fn new(shared: &Arc<Shared>, number: u16, workers: Arc<Workers>) -> io::Result<Self> {
        let queue = Queue {
            entries: (0..DEPTH).map(|_| Mutex::new(Entry::new())).collect(),
            done: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
        };
        let mut this = RingThread {
            ring: build()?,
            device: shared.device().try_clone_to_owned()?,
            number,
            queue: Arc::new(queue),
            workers,
            handler: Arc::clone(shared.handler()),
            woken: Box::new([0; 8]),
            live: DEPTH,
            at_work: 0,
            completions: Vec::new(),
        };
        this.await_wake();
        for index in 0..DEPTH {
            this.push(REGISTER, index, 0);
        }
        this.ring.submit()?;
        this.collect();
        match this.completions.iter().find(|(token, result)| *token != WAKE && *result < 0) {
            Some((_, result)) => Err(io::Error::from_raw_os_error(-result)),
            None => Ok(this),
        }
    }

    fn collect(&mut self) {
        self.completions.extend(self.ring.completion().map(|cqe| (cqe.user_data(), cqe.result())));
    }

    /// Queues a command about an entry, which is the kernel's from the next submission on.
    fn push(&mut self, command: u32, index: usize, commit_id: u64) {
        // struct fuse_uring_cmd_req: flags, commit id, queue.
        let mut args = [0; 80];
        args[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        args[16..18].copy_from_slice(&self.number.to_ne_bytes());
        let vectors = self.queue.entries[index].lock().vectors.as_ptr() as u64;
        let request = opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), command).cmd(args);
        let mut entry = request.addr(Some(vectors)).build().user_data(index as u64);
        const LEN_AT: usize = 24;
        // SAFETY: an Entry128 is a struct io_uring_sqe (linux/io_uring.h) of 128 bytes, whose u32 `len` stands at byte 24; the crate
        // has no way to set it for a command. It is 2: the number of vectors.
        unsafe { (&raw mut entry).cast::<u8>().add(LEN_AT).cast::<u32>().write(2) };
        self.submit_later(&entry);
    }

    fn await_wake(&mut self) {
        let fd = types::Fd(self.queue.wake.as_raw_fd());
        let read = opcode::Read::new(fd, self.woken.as_mut_ptr(), self.woken.len() as u32).build();
        self.submit_later(&read.user_data(WAKE).into());
    }

    fn submit_later(&mut self, entry: &Entry128) {
        // SAFETY: the descriptors and the memory that an entry names (of `queue`, `woken`) live as long as the ring: they are
        // fields of the same struct, and `serve` ends only when the kernel has given everything back. There is room for one
        // submission of each entry and the read.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "a ring has room for all its entries");
    }

    fn serve(&mut self) {
        let mut reply = Reply::default();
        let mut requests = Vec::with_capacity(DEPTH);
        loop {
            for (token, result) in std::mem::take(&mut self.completions) {
                if token == WAKE {
                    self.finish_done();
                    self.await_wake();
                } else if result >= 0 {
                    requests.push(token as usize);
                } else {
                    self.live -= 1;
                    if result != -libc::ENOTCONN && result != -libc::ECONNABORTED {
                        let error = io::Error::from_raw_os_error(-result);
                        tracing::error!("the kernel gave a ring's entry back: {error}");
                    }
                }
            }
            let several = requests.len() > 1 || self.at_work > 0;
            for index in requests.drain(..) {
                if !self.give_away(index, several) {
                    self.carry_out(index, &mut reply);
                }
            }
            if self.live == 0 {
                return;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!("a ring broke: {error}");
                    return;
                }
            }
            self.collect();
        }
    }

    /// Leaves an entry to a worker if its request may take long: what never does is quicker here.
    fn give_away(&mut self, index: usize, several: bool) -> bool {
        let may_wait = match self.queue.entries[index].lock().request() {
            Ok(request) => self.handler.may_wait(&request) || (several && request.header.opcode == op::READ),
            Err(_) => false,
        };
        let given = may_wait && self.workers.take(&self.queue, index);
        self.at_work += usize::from(given);
        given
    }

    fn carry_out(&mut self, index: usize, reply: &mut Reply) {
        let commit_id = {
            let mut entry = self.queue.entries[index].lock();
            entry.carry_out(&*self.handler, reply);
            entry.commit_id()
        };
        self.push(COMMIT_AND_FETCH, index, commit_id);
    }

    fn finish_done(&mut self) {
        let done = std::mem::take(&mut *self.queue.done.lock());
        for index in done {
            self.at_work -= 1;
            let commit_id = self.queue.entries[index].lock().commit_id();
            self.push(COMMIT_AND_FETCH, index, commit_id);
        }
    }
}
