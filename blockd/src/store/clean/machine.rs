//! The cleaner's loop, one step at a time: the thread and the simulator run the same.
//!
//! *idle* -> somebody asks -> *choosing* -> the copies of a segment under way, or a sync or checkpoint awaited -> *choosing* -> ...
//! until enough is free or nothing can be gained -> *idle*.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use layout::addr::PAGE;
use parking_lot::Mutex;

use super::ahead::Ahead;
use super::copy::{Copies, copies_of};
use super::meta::{empty_meta, empty_thin_meta};
use super::policy::Choice;
use super::rounds::{Ground, Rounds};
use super::view::{Asked, choose_now};
use crate::device::IoError;
use crate::store::Shared;
use crate::store::format::segment::Stream;
use crate::store::log::{Job, JobDone};
use crate::store::map::Maps;
use crate::volume::worker::Internal;

/// Jobs with the log at once: while one is written the next is there to share its record.
const JOBS_IN_FLIGHT: usize = 2;

/// Checkpoints in a row for the sake of segments of map leaves: one may gain little, but where so many gain nothing, each
/// leaves behind as much as it empties.
const META_ROUNDS_MAX: u32 = 4;

/// Where outcomes of jobs arrive, from the log's thread.
pub(crate) struct Inbox {
    outcomes: Mutex<Vec<Result<(), IoError>>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// What the machine's owner does before the next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Waits until somebody asks for cleaning.
    Rest,
    /// Nothing.
    Again,
    /// Waits until an outcome arrives.
    Await,
    /// Waits so long, unless writers ask for space.
    Pause(Duration),
}

/// What tells whether a sync or a checkpoint gained anything, whoever took segments meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Standing {
    free: u32,
    /// Segments that users and the cleaner took since the start.
    data_uses: u64,
}

impl Standing {
    fn of(maps: &Maps) -> Self {
        Standing { free: maps.segments.free_count(), data_uses: maps.segments.data_uses() }
    }

    fn gained_since(self, before: Standing) -> bool {
        u64::from(self.free) + self.data_uses > u64::from(before.free) + before.data_uses
    }
}

enum Phase {
    Idle,
    Choosing,
    /// Copies out of a segment on their way: not given to the log yet, and with it.
    Moving {
        segment: u32,
        jobs: VecDeque<Copies>,
        with_log: usize,
    },
    /// A sync or a checkpoint.
    Waiting,
}

/// Does what the policy chooses.
pub(crate) struct Cleaner {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    phase: Phase,
    /// The stall of writers that wait for space.
    stall: Option<u64>,
    /// The last one there was.
    stall_seen: Option<u64>,
    /// How things stood before the last sync and the last checkpoint, if nothing else was done since.
    before_sync: Option<Standing>,
    before_checkpoint: Option<Standing>,
    /// How things stood before the first of some checkpoints made to empty segments of map leaves, and how many they are.
    meta_rounds: Option<(Standing, u32)>,
    /// Stream of the last segment emptied.
    last: Option<Stream>,
    /// The next one.
    ahead: Option<Ahead>,
    /// Segments emptied in vain. Kept over rests: who asks again for the same stall finds nothing new.
    rounds: Rounds,
}

impl Cleaner {
    /// Idle. `wake` is called when there is an outcome to step on.
    pub(crate) fn new(shared: Arc<Shared>, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        let inbox = Arc::new(Inbox { outcomes: Mutex::new(Vec::new()), wake });
        Cleaner {
            shared,
            inbox,
            phase: Phase::Idle,
            stall: None,
            stall_seen: None,
            before_sync: None,
            before_checkpoint: None,
            meta_rounds: None,
            last: None,
            ahead: None,
            rounds: Rounds::default(),
        }
    }

    /// There may be work; `stall` names writers that wait for space.
    pub(crate) fn ask(&mut self, stall: Option<u64>) {
        if stall.is_some() && stall != self.stall_seen {
            self.rounds = Rounds::default();
            self.stall_seen = stall;
        }
        self.stall = stall.or(self.stall);
        if matches!(self.phase, Phase::Idle) {
            self.before_sync = None;
            self.before_checkpoint = None;
            self.meta_rounds = None;
            self.phase = Phase::Choosing;
        }
    }

    /// Does what can be done without waiting.
    pub(crate) fn step(&mut self, send: &mut dyn FnMut(Internal)) -> Next {
        let outcomes = std::mem::take(&mut *self.inbox.outcomes.lock());
        let failed = outcomes.iter().find_map(|o| o.clone().err());
        match &mut self.phase {
            Phase::Idle => Next::Rest,
            Phase::Choosing => self.choose(send),
            Phase::Moving { jobs, with_log, .. } => {
                *with_log -= outcomes.len().min(*with_log);
                if failed.is_some() {
                    jobs.clear();
                }
                if let (Some(e), 0) = (&failed, *with_log) {
                    return self.give_up(e, send);
                }
                if jobs.is_empty() && *with_log == 0 {
                    self.shared.counters.cleaned_segments.inc();
                    self.phase = Phase::Choosing;
                    return Next::Again;
                }
                let next = self.send_copies(send);
                if next == Next::Await && self.read_ahead() { Next::Again } else { next }
            }
            Phase::Waiting => match (outcomes.is_empty(), failed) {
                (true, _) => Next::Await,
                (false, None) => {
                    self.phase = Phase::Choosing;
                    Next::Again
                }
                (false, Some(e)) => self.give_up(&e, send),
            },
        }
    }

    fn done(&self) -> JobDone {
        let inbox = Arc::clone(&self.inbox);
        Box::new(move |result| {
            inbox.outcomes.lock().push(result);
            (inbox.wake)();
        })
    }

    /// Gives the log the next copies. While nobody waits, no faster than the settings allow.
    fn send_copies(&mut self, send: &mut dyn FnMut(Internal)) -> Next {
        let rate = if self.stall.is_some() { 0 } else { self.shared.tuning.get().cleaner_bytes_per_s };
        loop {
            let done = self.done();
            let Phase::Moving { jobs, with_log, .. } = &mut self.phase else { return Next::Again };
            if *with_log >= JOBS_IN_FLIGHT {
                return Next::Await;
            }
            let Some(copies) = jobs.pop_front() else { return Next::Await };
            *with_log += 1;
            let bytes = (copies.len() * PAGE) as u64;
            send(Internal::Relocate(Box::new(Job::new(copies, done))));
            if let Some(us) = (bytes * 1_000_000).checked_div(rate) {
                return Next::Pause(Duration::from_micros(us));
            }
        }
    }

    /// Reads the segment that comes next, once all of this one's copies are with the log; tells whether it did.
    fn read_ahead(&mut self) -> bool {
        let Phase::Moving { segment, jobs, .. } = &self.phase else { return false };
        if self.ahead.is_some() || !jobs.is_empty() {
            return false;
        }
        let moving = {
            let maps = self.shared.maps.read();
            self.rounds.may_gain(Ground::of(&self.shared, &maps))
        };
        let emptying = Some(*segment);
        self.ahead = Ahead::read(&self.shared, Asked { moving, emptying, ..self.asked() });
        self.ahead.is_some()
    }

    fn asked(&self) -> Asked {
        Asked {
            urgent: self.stall.is_some(),
            last: self.last,
            moving: true,
            sync: true,
            checkpoint: true,
            emptying: None,
        }
    }

    fn choose(&mut self, send: &mut dyn FnMut(Internal)) -> Next {
        let (standing, ground) = {
            let maps = self.shared.maps.read();
            (Standing::of(&maps), Ground::of(&self.shared, &maps))
        };
        let gains = |before: Option<Standing>| before.is_none_or(|b| standing.gained_since(b));
        let in_vain =
            |(before, rounds): (Standing, u32)| rounds >= META_ROUNDS_MAX && !standing.gained_since(before);
        let asked = Asked {
            moving: self.rounds.may_gain(ground),
            sync: gains(self.before_sync),
            checkpoint: gains(self.before_checkpoint) && !self.meta_rounds.is_some_and(in_vain),
            ..self.asked()
        };
        let choice = choose_now(&self.shared, asked);
        match choice {
            Choice::Sync => self.before_sync = Some(standing),
            Choice::Checkpoint => self.before_checkpoint = Some(standing),
            Choice::Meta(_) | Choice::ThinMeta(_) => {
                (self.before_sync, self.before_checkpoint) = (None, None);
                let going_on = self.meta_rounds.filter(|(before, _)| !standing.gained_since(*before));
                self.meta_rounds = Some(going_on.map_or((standing, 1), |(before, n)| (before, n + 1)));
            }
            _ => (self.before_sync, self.before_checkpoint) = (None, None),
        }
        match choice {
            Choice::Enough => {
                self.rest();
                if self.stall.take().is_some() {
                    send(Internal::Cleaned);
                }
                Next::Rest
            }
            Choice::Nothing => {
                self.rest();
                if let Some(stall) = self.stall.take() {
                    send(Internal::NothingToClean(stall));
                }
                Next::Rest
            }
            Choice::Sync => {
                let mut job = Job::new([], self.done());
                job.durable = true;
                send(Internal::Relocate(Box::new(job)));
                self.await_outcome()
            }
            Choice::Checkpoint => {
                send(Internal::Checkpoint(self.done()));
                self.await_outcome()
            }
            Choice::Meta(segment) => {
                if empty_meta(&self.shared, segment) {
                    send(Internal::Checkpoint(self.done()));
                    return self.await_outcome();
                }
                Next::Again
            }
            Choice::ThinMeta(live_max) => {
                if empty_thin_meta(&self.shared, live_max) {
                    send(Internal::Checkpoint(self.done()));
                    return self.await_outcome();
                }
                Next::Again
            }
            Choice::Data(segment) => {
                self.rounds.begin(ground);
                let ahead = self.ahead.take().and_then(|ahead| ahead.take(&self.shared, asked.urgent));
                let (segment, jobs) = ahead.unwrap_or_else(|| (segment, copies_of(&self.shared, segment)));
                self.last = self.shared.maps.read().segments.get(segment).map(|s| s.stream);
                if !jobs.is_empty() {
                    self.phase = Phase::Moving { segment, jobs: jobs.into(), with_log: 0 };
                }
                Next::Again
            }
        }
    }

    /// Nothing more to do now; what is alive in a segment would not stay so for long.
    fn rest(&mut self) {
        self.phase = Phase::Idle;
        self.ahead = None;
    }

    fn await_outcome(&mut self) -> Next {
        self.phase = Phase::Waiting;
        Next::Await
    }

    /// The log refused or failed. What it had no room for, something else may have taken in the meantime: there may be less to
    /// move, or something to wait for. That many of these gain nothing is seen by [`Rounds`].
    fn give_up(&mut self, error: &IoError, send: &mut dyn FnMut(Internal)) -> Next {
        if matches!(self.phase, Phase::Moving { .. }) && matches!(error, IoError::NoSpace) {
            self.phase = Phase::Choosing;
            return Next::Again;
        }
        self.rest();
        if let (IoError::NoSpace, Some(stall)) = (error, self.stall.take()) {
            send(Internal::NothingToClean(stall));
        }
        Next::Rest
    }
}
