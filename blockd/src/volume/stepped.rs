//! A volume without threads: whoever holds it does its work, step by step, so that what happens depends on the requests
//! alone. The simulator and measurements of the store use it; both run the code that the threads run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use layout::addr::PAGE;
use parking_lot::Mutex;

use super::inbox::{Inbox, Request};
use super::session::Sessions;
use super::worker::Worker;
use super::{Core, OpenOptions, recover_options};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Done, IoError, IoResult};
use crate::storage::Storage;
use crate::store::clean::machine::{Cleaner, Next};
use crate::store::clean::watch::Watch;
use crate::store::recover::{self, RecoverOptions};
use crate::store::{Shared, StoreError};

/// Steps after which a volume that does not come to rest never will.
const STEPS_MAX: usize = 1_000_000;

/// A volume that is open for writing, and its cleaner.
pub struct Stepped {
    pub(super) core: Arc<Core>,
    pub(super) worker: Worker,
    pub(super) inbox: Arc<Inbox>,
    cleaner: Cleaner,
    watch: Watch,
    clean: bool,
}

impl Stepped {
    /// Opens the volume in a backing.
    ///
    /// # Errors
    /// [`StoreError`] with cause and remedy.
    pub fn open(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Self, StoreError> {
        Self::open_with(storage, &recover_options(options), options.cleaner)
    }

    pub(super) fn open_with(
        storage: Arc<dyn Storage>,
        options: &RecoverOptions,
        clean: bool,
    ) -> Result<Self, StoreError> {
        let opened = recover::open(storage, options)?;
        let Some(log) = opened.log else {
            return Err(StoreError::BadSize("a volume that is stepped is open for writing".into()));
        };
        let core = Arc::new(Core {
            store: opened.shared,
            sessions: Mutex::new(Sessions::new(opened.incarnation, opened.lost_session)),
            incarnation: opened.incarnation,
            read_only: false,
            pending_pages: AtomicU64::new(0),
            rolling_back: AtomicBool::new(false),
        });
        let inbox = Inbox::new(log.waker());
        let worker = Worker::new(Arc::clone(&core), log, Arc::clone(&inbox), None);
        let cleaner = Cleaner::new(Arc::clone(&core.store), Box::new(|| {}));
        Ok(Stepped { core, worker, inbox, cleaner, watch: Watch::default(), clean })
    }

    /// The store.
    pub fn store(&self) -> &Arc<Shared> {
        &self.core.store
    }

    /// Gives it whole pages to write; `done` is called in some later step.
    pub fn write(&mut self, client: ClientId, offset: u64, buf: AlignedBuf, fua: bool, done: Done) {
        self.submit(Request::Write { client, offset, buf: Arc::new(buf), fua, keep_zeros: false, done });
    }

    pub(super) fn submit(&mut self, request: Request) {
        self.inbox.push(request);
    }

    /// The cleaner's next step; time passes at will.
    fn clean_step(&mut self) -> Next {
        if let Some(stall) = self.worker.log().stall() {
            self.cleaner.ask(Some(stall));
        } else if self.clean && self.watch.wants(&self.core.store) {
            self.cleaner.ask(None);
        }
        let inbox = &self.inbox;
        self.cleaner.step(&mut |message| inbox.send_internal(message))
    }

    /// Steps until everything given has its outcome and the cleaner rests.
    ///
    /// # Panics
    /// If it does not come to rest.
    pub fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let took = self.worker.step();
            match self.clean_step() {
                Next::Again | Next::Pause(_) => {}
                // A thread would be busy, and writes finish meanwhile.
                _ if took || self.inbox.has_internal() || self.inbox.has_requests() => {
                    if self.worker.log().has_in_flight() {
                        self.worker.log().wait();
                    }
                }
                Next::Rest if self.worker.is_at_rest() => return,
                Next::Rest | Next::Await => self.worker.log().wait(),
            }
        }
        panic!("the volume does not come to rest");
    }

    /// What its thread does first.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn begin(&mut self) {
        self.worker.begin();
    }

    /// A turn of the log's thread alone.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn step(&mut self) {
        self.worker.step();
    }

    /// A turn of the log's thread, and one of the cleaner's if it gets one; what the cleaner wants next, if it had one. Then the
    /// log waits for something to complete.
    #[cfg(test)]
    pub(super) fn turn(&mut self, cleaner_too: bool) -> Option<Next> {
        self.worker.step();
        let next = cleaner_too.then(|| self.clean_step());
        self.worker.log().wait();
        next
    }

    /// Has the cleaner do what it finds to do, as if writers waited.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn clean(&mut self) {
        self.cleaner.ask(Some(u64::MAX));
        self.settle();
    }

    /// Writes pages, each with its content, and waits for them.
    ///
    /// # Errors
    /// The first one's.
    pub fn write_pages(&mut self, pages: impl Iterator<Item = (u64, AlignedBuf)>) -> Result<(), IoError> {
        let failed: Arc<Mutex<Option<IoError>>> = Arc::default();
        for (page, buf) in pages {
            let failed = Arc::clone(&failed);
            let done = Box::new(move |result: IoResult| {
                if let Err(e) = result {
                    failed.lock().get_or_insert(e);
                }
            });
            self.write(ClientId(1), page * PAGE as u64, buf, false, done);
        }
        self.settle();
        let failed = failed.lock().take();
        failed.map_or(Ok(()), Err)
    }
}
