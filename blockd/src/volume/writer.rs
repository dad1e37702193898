//! Who drives the log: its own thread, or a thread with a request, if it would only wait for it.
//!
//! - A request that comes alone, while the log is idle, is carried out by the thread that brings it.
//! - On an engine that writes synchronously the threads that bring requests carry out theirs and those that came
//!   meanwhile (flat combining).
//! - Otherwise, and for whatever takes long (much data at once, checkpoints, waiting for space), the log's thread does it.
//!   While records are in flight it lets requests gather, so that they share a record.
//!
//! A request is never lost between two drivers: who finds the log taken leaves its request in the [`Inbox`], into
//! which every driver looks after it has let the log go.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::inbox::{Inbox, Internal, InternalSender, Request};
use super::worker::{Rest, Worker};
use super::{Core, OpenOptions};
use crate::completion;
use crate::storage::Waiter;
use crate::store::clean::CleanerLink;
use crate::store::log::{JobDone, Log};

/// How often a thread goes on with requests that others left it, before the log's thread has to.
const TURNS_MAX: usize = 4;

/// So many pages at once are the log's thread's on any engine: meanwhile the one that brings them takes in more.
const APART_PAGES: u64 = 64;

/// The log of a volume that can be written.
pub(super) struct Writer {
    inbox: Arc<Inbox>,
    /// `None` after the end.
    worker: Mutex<Option<Worker>>,
    cleaner: Option<CleanerLink>,
    synchronous: bool,
}

impl Writer {
    /// Starts the log's thread, and the cleaner's.
    pub(super) fn start(
        core: Arc<Core>,
        log: Log,
        options: &OpenOptions,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Arc<Self> {
        let inbox = Inbox::new(log.waker());
        let (waiter, synchronous) = (log.waiter(), log.is_synchronous());
        let cleaner = options.cleaner.then(|| {
            let sender = InternalSender(Arc::clone(&inbox));
            CleanerLink::start(Arc::clone(&core.store), sender, threads)
        });
        let worker = Worker::new(core, log, Arc::clone(&inbox), cleaner.clone());
        let writer = Arc::new(Writer { inbox, worker: Mutex::new(Some(worker)), cleaner, synchronous });
        let mine = Arc::clone(&writer);
        match std::thread::Builder::new().name("vexfs-log".into()).spawn(move || mine.run(&waiter)) {
            Ok(handle) => threads.push(handle),
            Err(e) => tracing::error!("cannot start the log's thread: {e}"),
        }
        writer
    }

    /// Takes requests in, in their order.
    pub(super) fn submit(&self, requests: impl IntoIterator<Item = Request>) {
        let mut pages = 0;
        for request in requests {
            pages += request.weight();
            self.inbox.push(request);
        }
        match self.synchronous {
            true if pages < APART_PAGES => completion::scope(|| self.drive()),
            // Others drive the log too, so how much is worth waking its thread, as it last said, need not hold any more.
            true => self.inbox.call(),
            false => self.inbox.wake_if_due(),
        }
    }

    /// Takes a request in from a thread that would only wait for it.
    pub(super) fn submit_alone(&self, request: Request) {
        let Some(mut guard) = self.worker.try_lock() else { return self.submit([request]) };
        let Some(worker) = guard.as_mut().filter(|worker| worker.is_at_rest()) else {
            drop(guard);
            return self.submit([request]);
        };
        worker.carry_out(request);
        let wants_thread = worker.wants_thread();
        drop(guard);
        self.leave(wants_thread);
    }

    /// Makes durable what is written, in a thread whose client is about to ask for it, if nobody else wants the log.
    pub(super) fn expect_flush(&self) {
        let Some(mut guard) = self.worker.try_lock() else { return };
        let Some(worker) = guard.as_mut().filter(|worker| worker.is_at_rest()) else { return };
        worker.carry_out(Request::Flush { done: Box::new(|_| {}) });
        let wants_thread = worker.wants_thread();
        drop(guard);
        self.leave(wants_thread);
    }

    /// The log is let go by a thread that carried one request out; others may have found it taken.
    fn leave(&self, wants_thread: bool) {
        if wants_thread {
            self.inbox.call();
        }
        self.submit([]);
    }

    /// Has the log do what can be done without waiting, in this thread, unless another one is at it: that one looks
    /// again afterwards.
    fn drive(&self) {
        for _ in 0..TURNS_MAX {
            let again = {
                let Some(mut guard) = self.worker.try_lock() else { return };
                let Some(worker) = guard.as_mut() else { return };
                worker.step_here();
                if worker.wants_thread() {
                    break;
                }
                worker.has_backlog()
            };
            if !again && !self.inbox.has_requests() {
                return;
            }
        }
        self.inbox.call();
    }

    /// The cleaner, if there is one.
    pub(super) fn cleaner(&self) -> Option<&CleanerLink> {
        self.cleaner.as_ref()
    }

    /// For other threads of the volume.
    pub(super) fn sender(&self) -> InternalSender {
        InternalSender(Arc::clone(&self.inbox))
    }

    /// Has the log's thread look whether there is something to do now.
    pub(super) fn call(&self) {
        self.inbox.call();
    }

    pub(super) fn checkpoint(&self, done: JobDone) {
        self.inbox.send_internal(Internal::Checkpoint(done));
    }

    pub(super) fn shutdown(&self, done: JobDone) {
        self.inbox.send_internal(Internal::Shutdown(done));
    }

    /// The thread's work.
    fn run(&self, waiter: &Waiter) {
        if let Some(worker) = self.worker.lock().as_mut() {
            worker.begin();
        }
        loop {
            // Replies leave at the scope's end, when others may have the log again.
            let rest = completion::scope(|| match self.worker.lock().as_mut() {
                Some(worker) => worker.turn(),
                None => Rest::End,
            });
            match rest {
                Rest::Not => {}
                Rest::Sleep { wake_at } => {
                    if self.inbox.fall_asleep(wake_at) {
                        waiter();
                        self.inbox.awake();
                    }
                }
                Rest::End => break,
            }
        }
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            completion::scope(|| worker.finish());
        }
    }
}
