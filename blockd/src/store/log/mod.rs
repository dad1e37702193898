//! The log: the one writer of a store.
//!
//! Jobs enter a lane (users' or the cleaner's) and are cut into records; several records are
//! written at once. A record is *built* -> *in flight* -> *complete* -> (all before it complete)
//! *applied* to the map and its jobs acknowledged -> *durable* by a sync, which all waiters share.
//! Records are numbered over both lanes without gaps, so that recovery knows where the log ends.

mod build;
mod clone;
mod complete;
mod distance;
mod job;
mod leaves;
mod submit;
mod touch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::checkpoint::{Checkpoint, Progress};
use super::format::Loc;
use super::format::record::{Record, SessionState};
use super::format::segment::Stream;
use super::format::superblock::Superblock;
use super::snapshot::log::Changes;
use crate::device::IoError;
use crate::storage::{Waiter, Waker, WriteQueue};
use distance::{CHECKPOINT_PAGES_MIN, Distance};
pub use job::{Job, JobDone, Op};
pub(super) use leaves::{Unread, apply_record};

/// Records in flight at once.
const IN_FLIGHT_MAX: usize = 4;
/// While records are in flight, fewer pages than this wait for more: they share a header page and a request.
const GATHER_PAGES: u64 = 16;
/// Data pages of a record of users,
const USER_RECORD_PAGES_MAX: u32 = 256;
/// and of the cleaner: each may be a piece of a write of its own, of which there are 1024 at most.
const COLD_RECORD_PAGES_MAX: u32 = 512;
/// Token of a sync; records have their sequence.
const SYNC_TOKEN: u64 = u64::MAX;

/// Which thread drives the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The log's own.
    Thread,
    /// One that has other things to do: it leaves checkpoints alone.
    Caller,
}

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
    pub(super) queue: Box<dyn WriteQueue>,
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
    distance: Distance,
    /// Give the space of freed segments back.
    pub(super) discard: bool,
    /// The one under way.
    checkpoint: Option<Box<Checkpoint>>,
    checkpoint_begun: Instant,
    /// Those who wait for the next one.
    checkpoint_waiters: Vec<JobDone>,
    checkpoint_wanted: bool,
    /// Changes of snapshots.
    pub(super) changes: Changes,
    /// Portions of deletions and rollbacks changed the map since the last checkpoint began.
    pub(super) portions_since_checkpoint: bool,
    /// Counts writes of checkpoints.
    pub(super) checkpoint_tokens: u64,
    /// Pages of the last checkpoint's payload, and its root.
    pub(super) own_pages: Vec<Loc>,
    /// The next checkpoint's superblock says that there may be clones.
    pub(super) clones_wanted: bool,
    user_stalled: bool,
    /// Times that users' jobs began to wait.
    stalls: u64,
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
            distance: Distance::default(),
            discard: options.discard,
            checkpoint: None,
            checkpoint_begun: Instant::now(),
            checkpoint_waiters: Vec::new(),
            checkpoint_wanted: false,
            changes: Changes::default(),
            portions_since_checkpoint: false,
            checkpoint_tokens: 0,
            own_pages: start.own_pages,
            clones_wanted: false,
            user_stalled: false,
            stalls: 0,
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
        if !self.can_go_on() {
            self.queue.wait();
        }
    }

    /// As [`Log::wait`], for the log's thread while others may drive the log.
    pub fn waiter(&self) -> Waiter {
        self.queue.waiter()
    }

    /// Whoever drives the log does its writes and syncs.
    pub fn is_synchronous(&self) -> bool {
        self.queue.is_synchronous()
    }

    /// Whether writes and syncs are done by the thread that drives the log; changed only while it is idle.
    pub fn set_inline(&mut self, inline: bool) {
        self.queue.set_inline(inline);
    }

    /// Something waits that only [`Place::Thread`] does.
    pub fn wants_thread(&self) -> bool {
        self.user_stalled || self.cold_stalled || self.checkpoint_due() || self.can_go_on()
    }

    /// A checkpoint is under way and does not wait for anything.
    pub fn can_go_on(&self) -> bool {
        self.failed.is_none() && self.checkpoint.as_ref().is_some_and(|c| c.can_step())
    }

    /// So many pages of users must wait before the log gains by being driven; until then it waits for what is in flight.
    pub fn worth_waking_pages(&self) -> u64 {
        match self.in_flight.len() {
            0 => 1,
            IN_FLIGHT_MAX.. => u64::MAX,
            _ => GATHER_PAGES.saturating_sub(waiting_pages(&self.user)).max(1),
        }
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
        self.is_quiet()
            && self.syncing.is_none()
            && self.waiters.is_empty()
            && !self.checkpoint_wanted
            && self.checkpoint.is_none()
    }

    /// The map has all that was given: no job waits and no record is in flight.
    pub fn is_quiet(&self) -> bool {
        self.user.is_empty() && self.cold.is_empty() && self.in_flight.is_empty()
    }

    /// Users' jobs wait for the cleaner (a sync or a checkpoint under way may give them what they need): the number of
    /// this occasion, which changes once some of them went on.
    pub fn stall(&self) -> Option<u64> {
        let stalled = self.user_stalled
            && self.in_flight.is_empty()
            && self.checkpoint.is_none()
            && !self.sync_gives_room();
        stalled.then_some(self.stalls)
    }

    fn set_user_stalled(&mut self, stalled: bool) {
        self.stalls += u64::from(stalled && !self.user_stalled);
        self.user_stalled = stalled;
    }

    /// A record is being written.
    pub fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Records built and not yet applied, in order.
    pub(super) fn records_in_flight(&self) -> impl Iterator<Item = &Record> {
        self.in_flight.iter().map(|f| &f.record)
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

    /// Does all that can be done without waiting, and a portion of the checkpoint under way.
    pub fn pump(&mut self) {
        self.pump_at(Place::Thread);
    }

    /// As [`Log::pump`], as far as it may be done there.
    pub fn pump_at(&mut self, place: Place) {
        let _whole = complete::Whole;
        if place == Place::Thread {
            self.step_checkpoint();
        }
        loop {
            let mut progress = self.reap();
            progress |= self.start_sync();
            if self.failed.is_some() {
                self.fail_all();
            } else {
                if place == Place::Thread && self.checkpoint_due() {
                    self.begin_checkpoint();
                    progress = true;
                }
                if self.clone_is_next() && self.in_flight.is_empty() {
                    progress |= self.build(Stream::User);
                }
                progress |= self.build(Stream::Cold);
                progress |= self.build(Stream::User);
            }
            // Also when nothing is begun any more: the waker is heard only after it.
            self.queue.submit();
            if progress || self.queue.has_finished() {
                continue;
            }
            if place == Place::Caller {
                return;
            }
            // A lane that just found no room first has what is dead reclaimed.
            if self.failed.is_none() && self.checkpoint_due() {
                continue;
            }
            if self.start_sync() {
                if self.queue.has_finished() {
                    // Nobody would be told of it a second time.
                    continue;
                }
                return;
            }
            if !self.refuse_cold() {
                return;
            }
        }
    }

    /// Whether a checkpoint should begin.
    fn checkpoint_due(&self) -> bool {
        if self.checkpoint.is_some() {
            return false;
        }
        if self.checkpoint_wanted || self.is_time_for_checkpoint() {
            return true;
        }
        let stalled = self.user_stalled || self.cold_stalled;
        if !stalled || !self.in_flight.is_empty() || self.sync_gives_room() {
            return false;
        }
        // A checkpoint frees what died since the last one; once for each state of the log.
        let reclaimable = self.shared.maps.read().segments.empty().next().is_some();
        reclaimable && self.reclaim_tried != self.next_seq
    }

    /// So much was logged since the last checkpoint that the next one should begin.
    fn is_time_for_checkpoint(&self) -> bool {
        let logged = self.pages_since_checkpoint;
        if let Some(set) = self.shared.tuning.checkpoint_pages() {
            return logged >= set;
        }
        self.distance.is_reached(logged, || self.shared.next_checkpoint_pages(&self.shared.maps.read()))
    }

    /// A checkpoint is under way or about to begin: what it frees may be enough for who waits.
    fn checkpoint_may_help(&self) -> bool {
        self.checkpoint.is_some() || self.checkpoint_due()
    }

    fn begin_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.reclaim_tried = self.next_seq;
        let begun = Instant::now();
        let waiters = std::mem::take(&mut self.checkpoint_waiters);
        self.begin_changes();
        match Checkpoint::begin(self) {
            Ok(mut checkpoint) => {
                self.portions_since_checkpoint = false;
                checkpoint.add_waiters(waiters);
                self.checkpoint = Some(Box::new(checkpoint));
                self.checkpoint_begun = begun;
                self.pages_since_checkpoint = 0;
            }
            Err(e) => {
                self.shared.counters.checkpoints_without_room.inc();
                // Tried again after as much again was written; the log itself is sound.
                self.pages_since_checkpoint =
                    self.shared.tuning.checkpoint_pages().unwrap_or(CHECKPOINT_PAGES_MIN) / 2;
                let space = self.shared.describe_space(&self.shared.maps.read());
                tracing::warn!("no space for a checkpoint; the cleaner has to make some ({space})");
                self.end_changes(&Err(e.clone()));
                self.refuse_first_clone(&e);
                waiters.into_iter().for_each(|done| done(Err(e.clone())));
            }
        }
    }

    fn step_checkpoint(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let Some(mut checkpoint) = self.checkpoint.take() else { return };
        match checkpoint.step(self) {
            Ok(Progress::Some | Progress::Blocked) => self.checkpoint = Some(checkpoint),
            Ok(Progress::Done) => {
                self.shared.counters.checkpoints.record(self.checkpoint_begun.elapsed());
                self.end_changes(&Ok(()));
                checkpoint.take_waiters().into_iter().for_each(|done| done(Ok(())));
            }
            Err(e) => self.fail_checkpoint(*checkpoint, &e),
        }
    }

    fn fail_checkpoint(&mut self, mut checkpoint: Checkpoint, e: &IoError) {
        self.fail(&e.to_string());
        self.checkpoint_waiters.append(&mut checkpoint.take_waiters());
    }

    /// Writes a checkpoint and waits for it; nothing else is given meanwhile.
    ///
    /// # Errors
    /// `NoSpace` (the store goes on without it), or `Io` (the store has stopped writing).
    pub(super) fn checkpoint_now(&mut self) -> Result<(), IoError> {
        let (send, recv) = crossbeam_channel::bounded(1);
        self.submit_checkpoint(Box::new(move |result| {
            let _ = send.send(result);
        }));
        while !self.is_idle() {
            self.pump();
            if !self.is_idle() {
                self.wait();
            }
        }
        recv.try_recv().unwrap_or_else(|_| Err(IoError::Io("the checkpoint was given up".into())))
    }
}

/// Pages of waiting jobs; counted only as far as it matters.
fn waiting_pages(lane: &VecDeque<Job>) -> u64 {
    let mut pages = 0;
    for job in lane {
        pages += job.ops.iter().map(Op::pages).sum::<u64>();
        if pages >= GATHER_PAGES {
            break;
        }
    }
    pages
}
