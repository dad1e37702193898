//! The thread of a ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::DEPTH;
use super::entry::Entry;
use super::workers::{Job, Queue};
use crate::wire::abi::op;
use crate::wire::channel::Channel;
use crate::wire::reply::Reply;
use crate::wire::server::{Handler, WaitsFor};

/// `user_data` of the poll for workers that are done.
const WAKE: u64 = u64::MAX;
/// /dev/fuse among the files of a ring.
const DEVICE: types::Fixed = types::Fixed(0);
/// Most entries for requests that end only after others ([`WaitsFor::Kernel`]).
const FOR_KERNEL_MAX: usize = DEPTH - 4;
/// Between two tries to enter a ring for which the system has no memory.
const PAUSE: Duration = Duration::from_millis(1);

/// enum fuse_uring_cmd.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

type Ring = IoUring<Entry128, cqueue::Entry>;

/// Whether this process may have rings of the kind that is needed.
pub fn is_possible() -> bool {
    build().is_ok()
}

fn build() -> io::Result<Ring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build((DEPTH + 1).next_power_of_two() as u32)
}

/// A ring, in the hands of its thread.
pub struct RingThread {
    ring: Ring,
    number: u16,
    queue: Arc<Queue>,
    jobs: Sender<Job>,
    handler: Arc<dyn Handler>,
    /// Entries that the kernel has not given back for good.
    live: usize,
    /// Entries at workers.
    at_work: usize,
    /// Those of them that count for [`FOR_KERNEL_MAX`].
    for_kernel: [bool; DEPTH],
    /// Token and result of each completion that was not yet looked at.
    completions: Vec<(u64, i32)>,
}

impl RingThread {
    /// Registers a ring's entries with the kernel.
    ///
    /// # Errors
    /// What io_uring or the kernel's FUSE say.
    pub fn new(
        device: &Channel,
        number: u16,
        jobs: Sender<Job>,
        handler: Arc<dyn Handler>,
    ) -> io::Result<Self> {
        let queue = Queue {
            entries: (0..DEPTH).map(|_| Mutex::new(Entry::new())).collect(),
            done: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        let mut this = RingThread {
            ring: build()?,
            number,
            queue: Arc::new(queue),
            jobs,
            handler,
            live: DEPTH,
            at_work: 0,
            for_kernel: [false; DEPTH],
            completions: Vec::new(),
        };
        this.ring.submitter().register_files(&[device.as_fd().as_raw_fd()])?;
        this.await_wake();
        match this.register() {
            Ok(()) => Ok(this),
            Err(error) => {
                // The kernel may have some of the entries, and their memory, until the process ends.
                std::mem::forget(this);
                Err(error)
            }
        }
    }

    fn register(&mut self) -> io::Result<()> {
        for index in 0..DEPTH {
            self.push(REGISTER, index, 0);
        }
        self.ring.submit()?;
        self.collect();
        match self.completions.iter().find(|(token, result)| *token != WAKE && *result < 0) {
            Some((_, result)) => Err(io::Error::from_raw_os_error(-result)),
            None => Ok(()),
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
        let vectors = self.queue.entries[index].lock().vectors() as u64;
        let request = opcode::UringCmd80::new(DEVICE, command).cmd(args);
        let mut entry = request.addr(Some(vectors)).build().user_data(index as u64);
        const LEN_AT: usize = 24;
        // SAFETY: an Entry128 is a struct io_uring_sqe (linux/io_uring.h) of 128 bytes, whose u32 `len` stands at byte 24; the crate
        // has no way to set it for a command. It is 2: the number of vectors.
        unsafe { (&raw mut entry).cast::<u8>().add(LEN_AT).cast::<u32>().write(2) };
        self.submit_later(&entry);
    }

    /// One completion tells of any number of workers.
    fn await_wake(&mut self) {
        let fd = types::Fd(self.queue.wake.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        self.submit_later(&poll.user_data(WAKE).into());
    }

    fn submit_later(&mut self, entry: &Entry128) {
        // SAFETY: the memory that an entry names, and the eventfd, live as long as the ring: they are in `queue`, a field of the same
        // struct, which is given up only when the kernel has given every entry back (see `serve`; a poll names no memory).
        let pushed = unsafe { self.ring.submission().push(entry) };
        if pushed.is_err() {
            // There is room for one submission of each entry and the poll.
            give_up("a ring has no room");
        }
    }

    /// Carries out requests until the connection ends.
    pub fn serve(&mut self) {
        let mut reply = Reply::default();
        let mut requests = Vec::with_capacity(DEPTH);
        loop {
            let mut completions = std::mem::take(&mut self.completions);
            for (token, result) in completions.drain(..) {
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
            self.completions = completions;
            let several = requests.len() > 1 || self.at_work > 0;
            for index in requests.drain(..) {
                self.take_up(index, several, &mut reply);
            }
            if self.live == 0 {
                return;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => std::thread::sleep(PAUSE),
                    _ => give_up(&error.to_string()),
                },
            }
            self.collect();
        }
    }

    /// Carries out a request, or leaves it to a worker if it may take long: what never does is quicker here.
    fn take_up(&mut self, index: usize, several: bool, reply: &mut Reply) {
        let mut entry = self.queue.entries[index].lock();
        let waits_for = match entry.request() {
            Ok(request) if several && request.header.opcode == op::READ => WaitsFor::Volume,
            Ok(request) => self.handler.waits_for(&request),
            Err(_) => WaitsFor::Nothing,
        };
        let for_kernel = waits_for == WaitsFor::Kernel;
        if for_kernel && self.for_kernel.iter().filter(|is| **is).count() >= FOR_KERNEL_MAX {
            entry.refuse(libc::EOPNOTSUPP);
        } else if waits_for == WaitsFor::Nothing {
            entry.carry_out(&*self.handler, reply);
        } else {
            drop(entry);
            self.at_work += 1;
            self.for_kernel[index] = for_kernel;
            // The workers are there as long as this side of the channel is.
            let _ = self.jobs.send((Arc::clone(&self.queue), index));
            return;
        }
        drop(entry);
        self.commit(index);
    }

    /// Hands an entry back with its reply.
    fn commit(&mut self, index: usize) {
        let commit_id = self.queue.entries[index].lock().commit_id();
        self.push(COMMIT_AND_FETCH, index, commit_id);
    }

    fn finish_done(&mut self) {
        // Reset before the look: a worker that is done between the two wakes this thread once more.
        let _ = rustix::io::read(&self.queue.wake, &mut [0; 8]);
        let done = std::mem::take(&mut *self.queue.done.lock());
        for index in done {
            self.at_work -= 1;
            self.for_kernel[index] = false;
            self.commit(index);
        }
    }
}

/// The ring can't be served on, and its memory, which the kernel may write to, can't be given up either: the end of the process
/// is the end of the mount, as by kill -9, and nobody waits for it in vain.
fn give_up(why: &str) -> ! {
    tracing::error!("a ring broke: {why}");
    std::process::abort()
}
