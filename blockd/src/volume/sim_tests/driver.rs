//! Drives a volume without threads: requests are queued, steps are taken one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::once_in;
use crate::buf::AlignedBuf;
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::SimStorage;
use crate::store::clean::policy::Choice;
use crate::store::clean::worker::Work;
use crate::store::clean::{Cleaner, Tuning};
use crate::store::create::{NewStore, create};
use crate::store::log::{Job, Op};
use crate::store::recover::{self, RecoverOptions};
use crate::store::snapshot::change::{Change, SnapshotError};
use crate::store::snapshot::{SnapshotId, View};
use crate::store::{Shared, StoreError};
use crate::volume::Core;
use crate::volume::inbox::{Inbox, Request};
use crate::volume::reads::{self, ReadJob};
use crate::volume::session::Sessions;
use crate::volume::snapshot::{self, Round};
use crate::volume::worker::Worker;

/// The outcome of a request, once it is there.
pub(super) type Ticket = Arc<Mutex<Option<Result<(), IoError>>>>;

/// The outcome of a change of snapshots, once it is there.
pub(super) type ChangeTicket = Arc<Mutex<Option<Result<SnapshotId, SnapshotError>>>>;

/// A volume and its backing.
pub(super) struct Driver {
    pub(super) disk: SimStorage,
    pub(super) core: Arc<Core>,
    worker: Worker,
    inbox: Arc<Inbox>,
    /// Who carries out which request.
    rng: StdRng,
    /// Segments free and taken before the last round of cleaning, if that was a checkpoint.
    before_checkpoint: Option<u64>,
}

/// Rounds of cleaning after which a writer is refused who waits for room.
const CLEANING_ROUNDS_MAX: usize = 500;

/// An image with an empty store.
pub(super) fn new_image(kind: VolumeKind, image_bytes: usize, raw_bytes: u64) -> Vec<u8> {
    let disk = SimStorage::new(vec![0x5a; image_bytes], 0);
    let new = NewStore { kind, uuid: [7; 16], raw_bytes, segment_bytes: 64 << 10 };
    create(Arc::new(disk.clone()), new).expect("a new store");
    disk.image_after(crate::storage::sim::Crash::PowerCut)
}

/// Small enough that every limit is met often.
pub(super) fn options(boot_id: [u8; 16]) -> RecoverOptions {
    let tuning = Tuning { checkpoint_bytes: 200 * 4096, ..Tuning::default() };
    RecoverOptions { read_only: false, boot_id, tuning, map_bytes_max: 16 << 10, discard: true }
}

impl Driver {
    pub(super) fn open(disk: SimStorage, boot: u8) -> Result<Self, StoreError> {
        Self::open_with(disk, &options([boot; 16]))
    }

    pub(super) fn open_with(disk: SimStorage, options: &RecoverOptions) -> Result<Self, StoreError> {
        let opened = recover::open(Arc::new(disk.clone()), options)?;
        let core = Arc::new(Core {
            store: opened.shared,
            sessions: Mutex::new(Sessions::new(opened.incarnation, opened.lost_session)),
            incarnation: opened.incarnation,
            read_only: false,
            pending_pages: AtomicU64::new(0),
            rolling_back: AtomicBool::new(false),
        });
        let log = opened.log.expect("a store open for writing has a log");
        let inbox = Inbox::new(log.waker());
        let mut worker = Worker::new(Arc::clone(&core), log, Arc::clone(&inbox), None);
        worker.begin();
        let rng = StdRng::seed_from_u64(disk.draw());
        Ok(Driver { disk, core, worker, inbox, rng, before_checkpoint: None })
    }

    pub(super) fn store(&self) -> &Arc<Shared> {
        &self.core.store
    }

    fn ticket() -> (Ticket, crate::device::Done) {
        let ticket: Ticket = Arc::default();
        let mine = Arc::clone(&ticket);
        (ticket, Box::new(move |result| *mine.lock() = Some(result.map(|_| ()))))
    }

    /// Now and then a request is carried out by who brings it, if the log is at rest, or a thread that brought one drives
    /// the log.
    fn submit(&mut self, request: Request) {
        if once_in(&mut self.rng, 3) && self.worker.is_at_rest() {
            return self.worker.carry_out(request);
        }
        self.inbox.push(request);
        if once_in(&mut self.rng, 5) {
            self.worker.step_here();
        }
    }

    pub(super) fn write(&mut self, client: ClientId, offset: u64, bytes: &[u8], fua: bool) -> Ticket {
        let (ticket, done) = Self::ticket();
        let buf = Arc::new(AlignedBuf::from_slice(bytes));
        self.submit(Request::Write { client, offset, buf, fua, done });
        ticket
    }

    pub(super) fn zero(&mut self, client: ClientId, offset: u64, len_bytes: u64, fua: bool) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.submit(Request::Zero { client, offset, len_bytes, fua, done });
        ticket
    }

    pub(super) fn flush(&mut self) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.submit(Request::Flush { done });
        ticket
    }

    pub(super) fn checkpoint(&mut self) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.worker.log().submit_checkpoint(Box::new(move |result| done(result.map(|()| None))));
        ticket
    }

    /// Wants a change of the snapshots.
    pub(super) fn change(&mut self, change: Change) -> ChangeTicket {
        let ticket: ChangeTicket = Arc::default();
        let mine = Arc::clone(&ticket);
        self.worker.log().submit_change(change, Box::new(move |result| *mine.lock() = Some(result)));
        ticket
    }

    /// A portion of what deletions and rollbacks have to do, and what that needs.
    pub(super) fn portion(&mut self) -> Round {
        let store = Arc::clone(&self.core.store);
        let round = snapshot::round(&store, |f| Ok(f(self.worker.log())));
        let round = round.unwrap_or(Round::Idle);
        if matches!(round, Round::Checkpoint | Round::Finished) {
            self.checkpoint();
            self.settle();
        }
        round
    }

    /// What a start does when the last run did not end a rollback; false if it can't be ended.
    pub(super) fn end_rollback(&mut self) -> bool {
        if self.store().maps.read().snapshots.rollback().is_none() {
            return true;
        }
        while self.store().maps.read().snapshots.rollback().is_some() {
            if self.portion() == Round::Idle || self.worker.log().failure().is_some() {
                return false;
            }
        }
        let ticket = self.checkpoint();
        self.settle();
        Self::outcome(&ticket).is_ok()
    }

    /// Names of the snapshots that can be read, oldest first.
    pub(super) fn snapshot_names(&self) -> Vec<String> {
        let maps = self.store().maps.read();
        let live = maps.snapshots.all().iter().filter(|s| s.state == crate::store::snapshot::State::Live);
        live.map(|s| s.name.clone()).collect()
    }

    /// A page of a snapshot.
    pub(super) fn read_snapshot(&self, name: &str, page: u64) -> Result<Vec<u8>, IoError> {
        let id = self.store().maps.read().snapshots.find(name).map(|s| s.id).expect("it is there");
        let mut buf = AlignedBuf::zeroed(4096);
        self.store().read_run_at(View::Snapshot(id), page, &mut buf).map(|()| buf.to_vec())
    }

    /// Takes some steps.
    pub(super) fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.worker.step();
            self.worker.log().wait();
        }
        self.worker.step();
    }

    /// Steps until everything given has its outcome, cleaning when the log waits for space.
    pub(super) fn settle(&mut self) {
        let mut rounds = 0;
        for _ in 0..100_000 {
            let took = self.worker.step();
            if self.worker.log().is_stalled() {
                rounds += 1;
                match rounds < CLEANING_ROUNDS_MAX && self.clean() {
                    true => continue,
                    false => self.worker.log().refuse_stalled(),
                }
            }
            // A request that waited for what the step has finished comes in by the next one.
            if !took && self.worker.log().is_idle() && !self.worker.step() {
                return;
            }
            self.worker.log().wait();
        }
        panic!("the log does not come to rest");
    }

    /// A user's job waits for space.
    pub(super) fn is_stalled(&mut self) -> bool {
        self.worker.log().is_stalled()
    }

    /// One round of cleaning, as if writers waited; false if there is nothing to gain.
    pub(super) fn clean(&mut self) -> bool {
        let cleaner = Cleaner::new(Arc::clone(&self.core.store));
        let standing = |driver: &Self| {
            let maps = driver.store().maps.read();
            u64::from(maps.segments.free_count()) + maps.segments.data_uses()
        };
        let mut choice = cleaner.choose(true, true);
        if choice == Choice::Checkpoint && self.before_checkpoint.is_some_and(|b| standing(self) <= b) {
            // As the cleaner's thread: the last one took all that it freed.
            choice = cleaner.choose(true, false);
        }
        self.before_checkpoint = (choice == Choice::Checkpoint).then(|| standing(self));
        self.finish(cleaner.carry_out(choice))
    }

    /// Reads the live pages of a segment, if it is one that could be cleaned, for [`Driver::relocate`]: things may
    /// happen in between.
    pub(super) fn copies_of(&self, segment: u32) -> Vec<Vec<Op>> {
        use crate::store::format::segment::Stream;
        use crate::store::map::segments::State;
        let found = self.store().maps.read().segments.get(segment).copied();
        if !found.is_some_and(|s| s.state == State::Closed && s.stream != Stream::Meta) {
            return Vec::new();
        }
        match Cleaner::new(Arc::clone(&self.core.store)).carry_out(Choice::Data(segment)) {
            Work::Jobs(jobs) => jobs.into_iter().map(|(ops, _)| ops).collect(),
            _ => Vec::new(),
        }
    }

    /// Gives copies to the log and waits; they are put where the old places still stand.
    pub(super) fn relocate(&mut self, copies: Vec<Vec<Op>>) {
        for ops in copies {
            let (ticket, done) = Self::ticket();
            self.worker.log().submit_cold(Job::new(ops, Box::new(move |r| done(r.map(|()| None)))));
            self.settle();
            match Self::outcome(&ticket) {
                Ok(()) | Err(IoError::NoSpace) => {}
                Err(e) => assert!(self.disk.crashed() || self.disk.fault_fired(), "a relocation: {e}"),
            }
        }
    }

    fn finish(&mut self, work: Work) -> bool {
        let mut tickets: Vec<Ticket> = Vec::new();
        match work {
            Work::Nothing => return false,
            Work::Skip => return true,
            Work::Checkpoint => tickets.push(self.checkpoint()),
            Work::Jobs(jobs) => {
                for (ops, _) in jobs {
                    let (ticket, done) = Self::ticket();
                    self.worker.log().submit_cold(Job::new(ops, Box::new(move |r| done(r.map(|()| None)))));
                    tickets.push(ticket);
                }
            }
        }
        for _ in 0..100_000 {
            self.worker.step();
            if tickets.iter().all(|t| t.lock().is_some()) {
                return tickets.iter().all(|t| matches!(&*t.lock(), Some(Ok(()))));
            }
            self.worker.log().wait();
        }
        panic!("cleaning does not end");
    }

    pub(super) fn read(&self, client: ClientId, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        Self::read_of(&self.core, client, offset, len)
    }

    /// A read in whatever thread.
    pub(super) fn read_of(
        core: &Core,
        client: ClientId,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, IoError> {
        let result: Arc<Mutex<Option<crate::device::IoResult>>> = Arc::default();
        let mine = Arc::clone(&result);
        let done = Box::new(move |outcome| *mine.lock() = Some(outcome));
        let view = View::Live;
        reads::run(core, vec![ReadJob { client, view, offset, buf: AlignedBuf::zeroed(len), done }]);
        let outcome = result.lock().take().expect("a read is finished when it returns");
        outcome.map(|buf| buf.expect("a read gives its buffer").to_vec())
    }

    /// A settled outcome.
    pub(super) fn outcome(ticket: &Ticket) -> Result<(), IoError> {
        ticket.lock().clone().expect("the request is finished")
    }

    /// Segment counts of the map, counted anew: they must agree with the running ones.
    pub(super) fn check_usage(&self) {
        let store = self.store();
        store.maps.write().hold(true);
        let ids = store.maps.read().ids();
        for id in ids {
            let keys: Vec<u64> = store.maps.read().map(id).expect("it is named").keys().collect();
            for key in keys {
                store.load_leaf_of(id, key).expect("every leaf can be read");
            }
        }
        let maps = store.maps.read();
        let segments = maps.segments.all();
        let mut base = vec![0u32; segments.len()];
        let mut open = vec![0u32; segments.len()];
        for (_, mapping) in maps.base.mappings() {
            base[mapping.loc.segment as usize] += 1;
        }
        assert_eq!(maps.base.mappings().count() as u64, maps.base.page_count());
        for s in maps.snapshots.all() {
            for (_, mapping) in s.delta.mappings() {
                base[mapping.loc.segment as usize] += 1;
            }
            assert_eq!(s.delta.mappings().count() as u64, s.held_pages, "pages that {} holds", s.name);
        }
        for (_, mapping) in maps.overlay.mappings() {
            open[mapping.loc.segment as usize] += 1;
        }
        for (i, s) in segments.iter().enumerate() {
            use crate::store::format::segment::Stream;
            use crate::store::map::segments::State;
            if s.state == State::Free {
                assert_eq!((base[i], open[i]), (0, 0), "segment {i} is free but used");
            } else if s.stream != Stream::Meta {
                assert_eq!((s.live_base, s.live_open), (base[i], open[i]), "live pages of segment {i}");
            }
        }
        drop(maps);
        store.maps.write().hold(false);
    }
}
