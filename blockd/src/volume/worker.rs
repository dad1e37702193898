//! The log's thread: gives every change its place in the order.
//!
//! Users' requests come in one queue, those of the cleaner and of the volume itself in another, which
//! is always served: a user that waits for space must not keep the cleaner from making some.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use layout::addr::{CLASS0_BASE, COMMAND_PAGE, PAGE, SUPERBLOCK_PAGE};

use super::session::Action;
use super::{Core, OpenOptions, channel};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Done, IoError, VolumeKind};
use crate::storage::Waker;
use crate::store::clean::{Cleaner, CleanerLink};
use crate::store::log::{Job, JobDone, Log, Op};
use crate::store::space::Class;

/// Users' jobs that wait in the log; more wait in the queue.
const BACKLOG_MAX: usize = 256;

/// A change somebody asks for.
pub(super) enum Request {
    /// Any byte range on a raw volume, pages on VexFS.
    Write { client: ClientId, offset: u64, buf: Arc<AlignedBuf>, fua: bool, done: Done },
    /// The range reads as zeros afterwards.
    Zero { client: ClientId, offset: u64, len_bytes: u64, fua: bool, done: Done },
    /// All acknowledged is durable.
    Flush { done: Done },
    /// Nothing more comes from this client.
    Disconnect { client: ClientId },
}

/// From the cleaner or the volume itself.
pub(crate) enum Internal {
    /// Copies of pages.
    Relocate(Box<Job>),
    /// A checkpoint now.
    Checkpoint(JobDone),
    /// There is nothing to clean: who waits for space can't have it.
    NothingToClean,
    /// Something to do with the log, in its thread.
    WithLog(LogTask),
    /// Finish, checkpoint, end.
    Shutdown(JobDone),
}

/// Done with the log in its thread, or told why not.
pub(crate) type LogTask = Box<dyn FnOnce(Result<&mut Log, IoError>) + Send>;

/// The other threads' side of the worker.
pub(super) struct WorkerHandle {
    requests: Sender<Request>,
    internal: InternalSender,
}

/// Sends to the worker and wakes it.
#[derive(Clone)]
pub(crate) struct InternalSender {
    sender: Sender<Internal>,
    wake: Arc<Wake>,
}

struct Wake {
    sleeping: AtomicBool,
    waker: Waker,
}

impl Wake {
    fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            (self.waker)();
        }
    }
}

impl InternalSender {
    pub(crate) fn send(&self, message: Internal) {
        let rejected = self.sender.send(message).err().map(|e| e.0);
        self.wake.wake();
        match rejected {
            Some(Internal::Relocate(job)) => (job.done)(Err(IoError::Shutdown)),
            Some(Internal::Checkpoint(done) | Internal::Shutdown(done)) => done(Err(IoError::Shutdown)),
            Some(Internal::WithLog(task)) => task(Err(IoError::Shutdown)),
            Some(Internal::NothingToClean) | None => {}
        }
    }

    /// Has the log's thread do something with the log.
    pub(crate) fn with_log(&self, task: impl FnOnce(Result<&mut Log, IoError>) + Send + 'static) {
        self.send(Internal::WithLog(Box::new(task)));
    }
}

impl WorkerHandle {
    pub(super) fn submit(&self, request: Request) {
        let rejected = self.requests.send(request).err().map(|e| e.0);
        self.internal.wake.wake();
        if let Some(request) = rejected {
            refuse(request, IoError::Shutdown);
        }
    }

    /// For other threads.
    pub(super) fn sender(&self) -> InternalSender {
        self.internal.clone()
    }

    /// Has it look whether there is something to do now.
    pub(super) fn wake(&self) {
        self.internal.wake.wake();
    }

    pub(super) fn checkpoint(&self, done: JobDone) {
        self.internal.send(Internal::Checkpoint(done));
    }

    pub(super) fn shutdown(&self, done: JobDone) {
        self.internal.send(Internal::Shutdown(done));
    }
}

fn refuse(request: Request, error: IoError) {
    match request {
        Request::Write { done, .. } | Request::Zero { done, .. } | Request::Flush { done } => {
            done(Err(error))
        }
        Request::Disconnect { .. } => {}
    }
}

fn job_done(done: Done) -> JobDone {
    Box::new(move |result| done(result.map(|()| None)))
}

/// The thread's state.
pub(super) struct Worker {
    core: Arc<Core>,
    log: Log,
    requests: Receiver<Request>,
    internal: Receiver<Internal>,
    backlog: VecDeque<Request>,
    wake: Arc<Wake>,
    cleaner: Option<CleanerLink>,
    shutdown: Option<JobDone>,
}

impl Worker {
    /// Starts the thread, and the cleaner's.
    pub(super) fn start(
        core: Arc<Core>,
        log: Log,
        options: &OpenOptions,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> WorkerHandle {
        let (request_send, requests) = channel();
        let (internal_send, internal) = channel();
        let wake = Arc::new(Wake { sleeping: AtomicBool::new(false), waker: log.waker() });
        let sender = InternalSender { sender: internal_send, wake: Arc::clone(&wake) };
        let cleaner =
            options.cleaner.then(|| Cleaner::start(Arc::clone(&core.store), sender.clone(), threads));
        let worker = Worker { cleaner, ..Worker::new(core, log, requests, internal, Arc::clone(&wake)) };
        match std::thread::Builder::new().name("vexfs-log".into()).spawn(move || worker.run()) {
            Ok(handle) => threads.push(handle),
            Err(e) => tracing::error!("cannot start the log's thread: {e}"),
        }
        WorkerHandle { requests: request_send, internal: sender }
    }

    fn new(
        core: Arc<Core>,
        log: Log,
        requests: Receiver<Request>,
        internal: Receiver<Internal>,
        wake: Arc<Wake>,
    ) -> Self {
        Worker {
            core,
            log,
            requests,
            internal,
            backlog: VecDeque::new(),
            wake,
            cleaner: None,
            shutdown: None,
        }
    }

    /// A worker without thread and cleaner, for the simulator to drive.
    #[cfg(test)]
    pub(super) fn inline(core: Arc<Core>, log: Log) -> (Self, WorkerHandle) {
        let (request_send, requests) = channel();
        let (internal_send, internal) = channel();
        let wake = Arc::new(Wake { sleeping: AtomicBool::new(false), waker: log.waker() });
        let sender = InternalSender { sender: internal_send, wake: Arc::clone(&wake) };
        (
            Worker::new(core, log, requests, internal, wake),
            WorkerHandle { requests: request_send, internal: sender },
        )
    }

    #[cfg(test)]
    pub(super) fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Takes in what waits and does what can be done without waiting; tells whether anything came in.
    pub(super) fn step(&mut self) -> bool {
        let took = self.take_in();
        self.log.pump();
        self.core.pending_pages.store(self.log.pending_pages(), Ordering::Relaxed);
        took
    }

    fn run(mut self) {
        loop {
            let took = self.step();
            if self.log.is_stalled() {
                match &self.cleaner {
                    Some(cleaner) => cleaner.want_space(),
                    None => self.log.refuse_stalled(),
                }
            } else if let Some(cleaner) = &self.cleaner {
                cleaner.look();
            }
            if took {
                continue;
            }
            if self.shutdown.is_some()
                && self.backlog.is_empty()
                && self.requests.is_empty()
                && self.log.is_idle()
            {
                break;
            }
            self.wake.sleeping.store(true, Ordering::SeqCst);
            if self.anything_to_take() {
                self.wake.sleeping.store(false, Ordering::SeqCst);
                continue;
            }
            self.log.wait();
            self.wake.sleeping.store(false, Ordering::SeqCst);
        }
        self.finish();
    }

    fn anything_to_take(&self) -> bool {
        if !self.internal.is_empty() {
            return true;
        }
        match self.backlog.front() {
            Some(request) => !needs_quiet(request) || self.log.is_quiet(),
            None => !self.requests.is_empty() && self.log.user_backlog() < BACKLOG_MAX,
        }
    }

    /// The last checkpoint; whatever comes later is refused.
    fn finish(mut self) {
        if let Some(cleaner) = self.cleaner.take() {
            cleaner.stop();
        }
        let (send, recv) = crossbeam_channel::bounded(1);
        self.log.submit_checkpoint(Box::new(move |result| {
            let _ = send.send(result);
        }));
        while !self.log.is_idle() {
            self.log.pump();
            if !self.log.is_idle() {
                self.log.wait();
            }
        }
        while let Ok(message) = self.internal.try_recv() {
            match message {
                Internal::Relocate(job) => (job.done)(Err(IoError::Shutdown)),
                Internal::Checkpoint(done) | Internal::Shutdown(done) => done(Err(IoError::Shutdown)),
                Internal::WithLog(task) => task(Err(IoError::Shutdown)),
                Internal::NothingToClean => {}
            }
        }
        while let Ok(request) = self.requests.try_recv() {
            refuse(request, IoError::Shutdown);
        }
        let result = recv.try_recv().unwrap_or(Ok(()));
        if let Some(done) = self.shutdown.take() {
            done(result);
        }
    }

    /// Takes messages and requests in; tells whether there were any.
    fn take_in(&mut self) -> bool {
        let mut took = false;
        while let Ok(message) = self.internal.try_recv() {
            took = true;
            match message {
                Internal::Relocate(job) => self.log.submit_cold(*job),
                Internal::Checkpoint(done) => self.log.submit_checkpoint(done),
                Internal::NothingToClean => self.log.refuse_stalled(),
                Internal::WithLog(task) => task(Ok(&mut self.log)),
                Internal::Shutdown(done) => self.shutdown = Some(done),
            }
        }
        while self.log.user_backlog() < BACKLOG_MAX {
            let Some(request) = self.backlog.pop_front().or_else(|| self.requests.try_recv().ok()) else {
                break;
            };
            if needs_quiet(&request) && !self.log.is_quiet() {
                // A part of a page is changed: what is under way must be in the map first.
                self.backlog.push_front(request);
                break;
            }
            took = true;
            self.handle(request);
        }
        took
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Flush { done } => self.log.submit_flush(job_done(done)),
            Request::Disconnect { client } => self.core.sessions.lock().disconnect(client),
            Request::Write { client, offset, buf, fua, done } => self.write(client, offset, buf, fua, done),
            Request::Zero { client, offset, len_bytes, fua, done } => {
                self.zero(client, offset, len_bytes, fua, done);
            }
        }
    }

    fn write(&mut self, client: ClientId, offset: u64, buf: Arc<AlignedBuf>, fua: bool, done: Done) {
        let page = offset / PAGE as u64;
        let vexfs = self.core.store.kind == VolumeKind::VexFs;
        if vexfs && page == COMMAND_PAGE.0 {
            return self.command(client, &buf, done);
        }
        if vexfs && let Err(e) = self.core.sessions.lock().check(client, self.log.session().session()) {
            return done(Err(e));
        }
        if buf.is_empty() {
            // Not a write of page 0 either, which would be a commit.
            return done(Ok(None));
        }
        if !offset.is_multiple_of(PAGE as u64) || !buf.len().is_multiple_of(PAGE) {
            return self.write_part(offset, &buf, fua, done);
        }
        let pages = buf.len() / PAGE;
        let mut job = Job::new([Op::Write { first: page, buf, page_in_buf: 0, pages }], job_done(done));
        job.durable = fua;
        if vexfs {
            job.commit = page == SUPERBLOCK_PAGE.0;
            job.class = if job.commit {
                Class::Commit
            } else if offset < CLASS0_BASE {
                Class::Metadata
            } else {
                Class::Data
            };
        }
        self.log.submit_user(job);
    }

    /// A write that is not whole pages (raw volumes): the pages around it are read first. The log
    /// is idle, so the map is up to date.
    fn write_part(&mut self, offset: u64, bytes: &[u8], fua: bool, done: Done) {
        let first = offset / PAGE as u64;
        let skip = (offset % PAGE as u64) as usize;
        let len = (skip + bytes.len()).next_multiple_of(PAGE);
        let mut pages = AlignedBuf::zeroed(len);
        let last = len - PAGE;
        let (head, tail) = (first, first + (last / PAGE) as u64);
        if let Err(e) = self.core.store.read_run(head, &mut pages[..PAGE]) {
            return done(Err(e));
        }
        if tail != head
            && let Err(e) = self.core.store.read_run(tail, &mut pages[last..])
        {
            return done(Err(e));
        }
        pages[skip..skip + bytes.len()].copy_from_slice(bytes);
        let op = Op::Write { first, buf: Arc::new(pages), page_in_buf: 0, pages: len / PAGE };
        let mut job = Job::new([op], job_done(done));
        job.durable = fua;
        self.log.submit_user(job);
    }

    fn zero(&mut self, client: ClientId, offset: u64, len_bytes: u64, fua: bool, done: Done) {
        if self.core.store.kind == VolumeKind::VexFs
            && let Err(e) = self.core.sessions.lock().check(client, self.log.session().session())
        {
            return done(Err(e));
        }
        let mut job = Job::new([], Box::new(|_| {}));
        match self.zero_ops(offset, len_bytes) {
            Ok(ops) => job.ops = ops,
            Err(e) => return done(Err(e)),
        }
        if job.ops.is_empty() {
            return done(Ok(None));
        }
        job.durable = fua;
        job.class = Class::Metadata;
        job.done = job_done(done);
        self.log.submit_user(job);
    }

    /// Whole pages are discarded; parts of pages at the edges are overwritten with zeros.
    fn zero_ops(&self, offset: u64, len_bytes: u64) -> Result<VecDeque<Op>, IoError> {
        let size = PAGE as u64;
        let end = offset + len_bytes;
        let (first_whole, end_whole) = (offset.div_ceil(size), end / size);
        let mut ops = VecDeque::new();
        let mut edge = |page: u64, from: u64, to: u64| -> Result<(), IoError> {
            let mut buf = AlignedBuf::zeroed(PAGE);
            self.core.store.read_run(page, &mut buf)?;
            buf[(from - page * size) as usize..(to - page * size) as usize].fill(0);
            ops.push_back(Op::Write { first: page, buf: Arc::new(buf), page_in_buf: 0, pages: 1 });
            Ok(())
        };
        if offset < end && first_whole > end_whole {
            edge(end_whole, offset, end)?;
            return Ok(ops);
        }
        if !offset.is_multiple_of(size) && offset < end {
            edge(offset / size, offset, first_whole * size)?;
        }
        if !end.is_multiple_of(size) && offset < end {
            edge(end_whole, end_whole * size, end)?;
        }
        if end_whole > first_whole {
            ops.push_back(Op::Discard { first: first_whole, count: end_whole - first_whole });
        }
        Ok(ops)
    }

    fn command(&mut self, client: ClientId, page: &[u8], done: Done) {
        let outcome = self.core.sessions.lock().command(client, page, self.log.session(), self.log.epoch());
        match outcome {
            Err(e) => done(Err(e)),
            Ok(Action { session: None, repeated: false, .. }) => done(Ok(None)),
            Ok(action) => {
                let ops: VecDeque<Op> =
                    action.discards.into_iter().map(|(first, count)| Op::Discard { first, count }).collect();
                let mut job = Job::new(ops, job_done(done));
                job.rollback = action.rollback;
                job.session = action.session;
                job.durable = action.durable;
                self.log.submit_user(job);
            }
        }
    }
}

/// Whether a request changes part of a page.
fn needs_quiet(request: &Request) -> bool {
    let size = PAGE as u64;
    match request {
        Request::Write { offset, buf, .. } => !(offset | buf.len() as u64).is_multiple_of(size),
        Request::Zero { offset, len_bytes, .. } => (offset | len_bytes) % size != 0,
        Request::Flush { .. } | Request::Disconnect { .. } => false,
    }
}
