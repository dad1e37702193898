//! The log: the one writer of a store.
//!
//! Jobs enter a lane (users' or the cleaner's) and are cut into records; several records are
//! written at once. A record is *built* -> *in flight* -> *complete* -> (all before it complete)
//! *applied* to the map and its jobs acknowledged -> *durable* by a sync, which all waiters share.
//! Records are numbered over both lanes without gaps, so that recovery knows where the log ends.

mod build;
mod complete;
mod job;
mod submit;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::checkpoint::Checkpointer;
use super::format::Loc;
use super::format::record::{Record, SessionState};
use super::format::segment::Stream;
use super::format::superblock::Superblock;
use super::snapshot::log::Changes;
use crate::device::IoError;
use crate::storage::{Waker, WriteQueue};
pub(super) use complete::apply_record;
pub use job::{Job, JobDone, Op};

/// Records in flight at once: few, so that those that wait share a header page.
const IN_FLIGHT_MAX: usize = 4;
/// Data pages of a record.
const RECORD_PAGES_MAX: u32 = 256;
/// Token of a sync; records have their sequence.
const SYNC_TOKEN: u64 = u64::MAX;

/// Where a stream writes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) at: Loc,
    pub(super) use_seq: u64,
    /// The segment's header is not written yet.
    pub(super) fresh: bool,
}

struct InFlight {
    record: Record,
    /// `None` until its write completed.
    complete: bool,
    acks: Vec<(JobDone, bool)>,
}

/// The writer. One thread owns it; [`Log::pump`] does all that can be done without waiting.
pub struct Log {
    pub(super) shared: Arc<Shared>,
    queue: Box<dyn WriteQueue>,
    pub(super) superblock: Superblock,
    user: VecDeque<Job>,
    cold: VecDeque<Job>,
    /// Of [`Stream::LOGGED`].
    pub(super) heads: [Head; 2],
    pub(super) meta_head: Option<Head>,
    pub(super) next_seq: u64,
    pub(super) next_use_seq: u64,
    pub(super) applied_seq: u64,
    pub(super) durable_seq: u64,
    built_epoch: u64,
    given_epoch: u64,
    session: SessionState,
    in_flight: VecDeque<InFlight>,
    /// Pages of jobs admitted and not yet applied.
    pending_pages: u64,
    syncing: Option<u64>,
    waiters: VecDeque<(u64, JobDone)>,
    failed: Option<String>,
    pages_since_checkpoint: u64,
    /// Give the space of freed segments back.
    pub(super) discard: bool,
    checkpoint_waiters: Vec<JobDone>,
    checkpoint_wanted: bool,
    /// Changes of snapshots.
    pub(super) changes: Changes,
    /// Portions of deletions and rollbacks changed the map since the last checkpoint.
    pub(super) portions_since_checkpoint: bool,
    /// The users' head was begun with enough segments left.
    user_takes_data: bool,
    user_stalled: bool,
    cold_stalled: bool,
    reclaim_tried: u64,
}

impl Log {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: Box<dyn WriteQueue>,
        superblock: Superblock,
        start: super::recover::LogStart,
        options: &super::recover::RecoverOptions,
    ) -> Self {
        let (built_epoch, session) = {
            let maps = shared.maps.read();
            (maps.epoch, maps.session.clone())
        };
        Log {
            shared,
            queue,
            superblock,
            user: VecDeque::new(),
            cold: VecDeque::new(),
            heads: start.heads,
            meta_head: None,
            next_seq: start.next_seq,
            next_use_seq: start.next_use_seq,
            applied_seq: start.next_seq - 1,
            durable_seq: start.next_seq - 1,
            built_epoch,
            given_epoch: built_epoch,
            session,
            in_flight: VecDeque::new(),
            pending_pages: 0,
            syncing: None,
            waiters: VecDeque::new(),
            failed: None,
            pages_since_checkpoint: 0,
            discard: options.discard,
            checkpoint_waiters: Vec::new(),
            checkpoint_wanted: false,
            changes: Changes::default(),
            portions_since_checkpoint: false,
            user_takes_data: false,
            user_stalled: false,
            cold_stalled: false,
            reclaim_tried: 0,
        }
    }

    /// Ends [`Log::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.queue.waker()
    }

    /// Waits until something completed or the waker was called.
    pub fn wait(&mut self) {
        self.queue.wait();
    }

    /// The session state as of the last job given.
    pub fn session(&self) -> &SessionState {
        &self.session
    }

    /// Why the log stopped, if it did. Reads go on.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// No job waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.user.is_empty()
            && self.cold.is_empty()
            && self.in_flight.is_empty()
            && self.syncing.is_none()
            && self.waiters.is_empty()
            && !self.checkpoint_wanted
    }

    /// A user's job waits for the cleaner.
    pub fn is_stalled(&self) -> bool {
        self.user_stalled && self.in_flight.is_empty()
    }

    /// Bytes of users' jobs wait; more should wait with the callers.
    pub fn user_backlog(&self) -> usize {
        self.user.len()
    }

    /// Commits when all jobs given are done.
    pub fn epoch(&self) -> u64 {
        self.given_epoch
    }

    /// Pages of jobs not yet applied.
    pub fn pending_pages(&self) -> u64 {
        self.pending_pages
    }

    /// Does all that can be done without waiting.
    pub fn pump(&mut self) {
        loop {
            let mut progress = self.reap();
            progress |= self.start_sync();
            if self.failed.is_some() {
                self.fail_all();
            } else if self.checkpoint_due() {
                if !self.in_flight.is_empty() || self.syncing.is_some() {
                    // It begins when what is in flight has landed.
                    if !progress {
                        return;
                    }
                    continue;
                }
                self.run_checkpoint();
                progress = true;
            } else {
                progress |= self.build(Stream::Cold);
                progress |= self.build(Stream::User);
                self.queue.submit();
            }
            if progress {
                continue;
            }
            // A lane that just found no room first has what is dead reclaimed.
            if self.failed.is_none() && self.in_flight.is_empty() && self.checkpoint_due() {
                continue;
            }
            if !self.refuse_cold() {
                return;
            }
        }
    }

    /// Whether a checkpoint should come before anything else is written.
    fn checkpoint_due(&self) -> bool {
        if self.checkpoint_wanted || self.pages_since_checkpoint >= self.shared.tuning.checkpoint_pages() {
            return true;
        }
        if !self.user_stalled && !self.cold_stalled {
            return false;
        }
        // A checkpoint frees what died since the last one; once for each state of the log.
        let reclaimable = self.shared.maps.read().segments.empty().next().is_some();
        reclaimable && self.reclaim_tried != self.next_seq
    }

    fn run_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.reclaim_tried = self.next_seq;
        let begun = Instant::now();
        self.begin_changes();
        let result = Checkpointer::new(self).run();
        self.portions_since_checkpoint = false;
        match &result {
            Ok(()) => {
                self.shared.counters.checkpoints.record(begun.elapsed());
                self.pages_since_checkpoint = 0;
                self.now_durable(self.next_seq - 1);
            }
            Err(IoError::NoSpace) => {
                self.shared.counters.checkpoints_without_room.inc();
                // Tried again after as much again was written; the log itself is sound.
                self.pages_since_checkpoint = self.shared.tuning.checkpoint_pages() / 2;
                tracing::warn!("no space for a checkpoint; the cleaner has to make some");
            }
            Err(e) => self.fail(&e.to_string()),
        }
        self.end_changes(&result);
        for done in std::mem::take(&mut self.checkpoint_waiters) {
            done(result.clone());
        }
    }
}
