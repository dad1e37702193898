//! What waits to be taken in by the log, and when its thread is woken for it.
//!
//! Requests of users stand in one queue, those of the cleaner and of the volume itself in another, which is always
//! served: a user that waits for space must not keep the cleaner from making some.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_channel::{Receiver, Sender};
use layout::addr::PAGE;

use super::channel;
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Commit, Done, IoError};
use crate::storage::Waker;
use crate::store::log::{Job, JobDone, Log};

/// A change somebody asks for.
pub(super) enum Request {
    /// Any byte range on a raw volume, pages on VexFS. With `keep_zeros` pages of zeros are written as they are, and
    /// not made holes.
    Write { client: ClientId, offset: u64, buf: Arc<AlignedBuf>, fua: bool, keep_zeros: bool, done: Done },
    /// The range reads as zeros afterwards.
    Zero { client: ClientId, offset: u64, len_bytes: u64, fua: bool, done: Done },
    /// The last pages of an epoch, and its commit.
    Commit { client: ClientId, commit: Commit, done: Done },
    /// All acknowledged is durable.
    Flush { done: Done },
    /// Nothing more comes from this client.
    Disconnect { client: ClientId },
}

impl Request {
    /// What it brings along, in pages: the thread is woken by their sum.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Request::Write { buf, .. } => buf.len().div_ceil(PAGE).max(1) as u64,
            Request::Commit { commit, .. } => (commit.buf().len() / PAGE) as u64,
            Request::Zero { .. } | Request::Flush { .. } | Request::Disconnect { .. } => 1,
        }
    }

    fn refuse(self, error: IoError) {
        match self {
            Request::Write { done, .. }
            | Request::Zero { done, .. }
            | Request::Commit { done, .. }
            | Request::Flush { done } => done(Err(error)),
            Request::Disconnect { .. } => {}
        }
    }
}

/// Done by whoever drives the log, or told why not.
pub(crate) type LogTask = Box<dyn FnOnce(Result<&mut Log, IoError>) + Send>;

/// From the cleaner or the volume itself.
pub(crate) enum Internal {
    /// Copies of pages.
    Relocate(Box<Job>),
    /// A checkpoint now.
    Checkpoint(JobDone),
    /// There is enough free space for who waited.
    Cleaned,
    /// There is nothing to clean: who waits for space since this stall can't have it.
    NothingToClean(u64),
    /// Something to do with the log, in its order.
    WithLog(LogTask),
    /// Finish, checkpoint, end.
    Shutdown(JobDone),
}

impl Internal {
    fn refuse(self) {
        match self {
            Internal::Relocate(job) => (job.done)(Err(IoError::Shutdown)),
            Internal::Checkpoint(done) | Internal::Shutdown(done) => done(Err(IoError::Shutdown)),
            Internal::NothingToClean(_) | Internal::Cleaned => {}
            Internal::WithLog(task) => task(Err(IoError::Shutdown)),
        }
    }
}

/// Both queues. The thread *works*, or *sleeps* until enough waits for it.
pub(crate) struct Inbox {
    requests: (Sender<Request>, Receiver<Request>),
    internal: (Sender<Internal>, Receiver<Internal>),
    /// Weight of the users' queue.
    waiting: AtomicU64,
    /// The thread sleeps until so much waits.
    wake_at: AtomicU64,
    sleeping: AtomicBool,
    /// It is wanted, whatever waits.
    called: AtomicBool,
    /// Nobody takes anything in any more.
    ended: AtomicBool,
    waker: Waker,
}

/// The cleaner's way to the log.
#[derive(Clone)]
pub(crate) struct InternalSender(pub(super) Arc<Inbox>);

impl InternalSender {
    pub(crate) fn send(&self, message: Internal) {
        self.0.send_internal(message);
    }

    /// Has whoever drives the log do something with it.
    pub(crate) fn with_log(&self, task: impl FnOnce(Result<&mut Log, IoError>) + Send + 'static) {
        self.send(Internal::WithLog(Box::new(task)));
    }
}

impl Inbox {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Inbox {
            requests: channel(),
            internal: channel(),
            waiting: AtomicU64::new(0),
            wake_at: AtomicU64::new(1),
            sleeping: AtomicBool::new(false),
            called: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            waker,
        })
    }

    /// Queues a request; [`Inbox::wake_if_due`] has to follow, or somebody who looks.
    pub(super) fn push(&self, request: Request) {
        self.waiting.fetch_add(request.weight(), Ordering::SeqCst);
        // Fails only when the receiver, which stands beside it, is gone.
        let _ = self.requests.0.send(request);
        self.refuse_if_ended();
    }

    pub(super) fn send_internal(&self, message: Internal) {
        let _ = self.internal.0.send(message);
        self.refuse_if_ended();
        self.wake();
    }

    /// The next request of a user.
    pub(super) fn next_request(&self) -> Option<Request> {
        let request = self.requests.1.try_recv().ok()?;
        self.waiting.fetch_sub(request.weight(), Ordering::SeqCst);
        Some(request)
    }

    pub(super) fn next_internal(&self) -> Option<Internal> {
        self.internal.1.try_recv().ok()
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.1.is_empty()
    }

    pub(super) fn has_internal(&self) -> bool {
        !self.internal.1.is_empty()
    }

    /// Has the thread take another turn, whatever waits.
    pub(super) fn call(&self) {
        self.called.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Wakes the thread if it sleeps.
    fn wake(&self) {
        // What was queued before is seen by a thread that is just falling asleep, or we see that it sleeps.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            (self.waker)();
        }
    }

    /// Wakes the thread if it sleeps and enough waits for it.
    pub(super) fn wake_if_due(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) >= self.wake_at.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// The thread is about to sleep until `wake_at` waits; false if it should rather look again.
    pub(super) fn fall_asleep(&self, wake_at: u64) -> bool {
        self.wake_at.store(wake_at, Ordering::SeqCst);
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let due = self.called.swap(false, Ordering::SeqCst)
            || self.has_internal()
            || self.waiting.load(Ordering::SeqCst) >= wake_at;
        if due {
            self.awake();
        }
        !due
    }

    /// The thread works again.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// From now on everything is refused, what waits too.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.refuse_if_ended();
    }

    fn refuse_if_ended(&self) {
        fence(Ordering::SeqCst);
        if !self.ended.load(Ordering::SeqCst) {
            return;
        }
        while let Some(request) = self.next_request() {
            request.refuse(IoError::Shutdown);
        }
        while let Some(message) = self.next_internal() {
            message.refuse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(outcomes: &Sender<Result<(), IoError>>) -> Request {
        let outcomes = outcomes.clone();
        Request::Flush { done: Box::new(move |result| outcomes.send(result.map(|_| ())).unwrap()) }
    }

    #[test]
    fn the_thread_is_woken_once_and_only_when_enough_waits() {
        let wakes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&wakes);
        let inbox = Inbox::new(Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        }));
        let woken = || wakes.load(Ordering::SeqCst);
        let (send, _recv) = crossbeam_channel::unbounded();
        let push = |count| {
            for _ in 0..count {
                inbox.push(flush(&send));
                inbox.wake_if_due();
            }
        };
        push(1);
        assert_eq!(woken(), 0, "it works and will look");
        assert!(!inbox.fall_asleep(1), "something waits");
        assert!(inbox.fall_asleep(4));
        push(2);
        assert_eq!(woken(), 0, "three wait");
        push(3);
        assert_eq!(woken(), 1, "once");
        assert!(inbox.fall_asleep(u64::MAX));
        inbox.send_internal(Internal::Cleaned);
        assert_eq!(woken(), 2, "such a message always counts");
        assert!(!inbox.fall_asleep(u64::MAX), "it is not taken yet");
        assert!(inbox.next_internal().is_some());
        inbox.call();
        assert!(!inbox.fall_asleep(u64::MAX), "it was called while it worked");
        assert!(inbox.fall_asleep(u64::MAX), "once");
        inbox.call();
        assert_eq!(woken(), 3);
    }

    #[test]
    fn nothing_is_left_without_an_outcome_at_the_end() {
        let inbox = Inbox::new(Arc::new(|| {}));
        let (send, recv) = crossbeam_channel::unbounded();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| inbox.push(flush(&send))));
            }
            inbox.end();
        });
        let outcomes: Vec<_> = recv.try_iter().collect();
        assert_eq!(outcomes.len(), 2000);
        assert!(outcomes.iter().all(|o| matches!(o, Err(IoError::Shutdown))));
    }
}
