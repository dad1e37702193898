//! Drives a volume without threads: requests are queued, steps are taken one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use layout::page_store::PageBytes;
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::once_in;
use crate::buf::AlignedBuf;
use crate::device::{ClientId, Commit, IoError, VolumeKind};
use crate::storage::sim::SimStorage;
use crate::store::clean::Tuning;
use crate::store::clean::copy::{Copies, copies_of};
use crate::store::clean::machine::Next;
use crate::store::create::{NewStore, create};
use crate::store::format::Mapping;
use crate::store::format::record::Record;
use crate::store::log::Job;
use crate::store::map::Maps;
use crate::store::map::base::BaseMap;
use crate::store::recover::RecoverOptions;
use crate::store::snapshot::change::{Change, SnapshotError};
use crate::store::snapshot::{SnapshotId, View};
use crate::store::{Shared, StoreError};
use crate::volume::Core;
use crate::volume::inbox::Request;
use crate::volume::reads::{self, ReadJob};
use crate::volume::snapshot::{self, Round};
use crate::volume::stepped::Stepped;

/// The outcome of a request, once it is there.
pub(super) type Ticket = Arc<Mutex<Option<Result<(), IoError>>>>;

/// The outcome of a change of snapshots, once it is there.
pub(super) type ChangeTicket = Arc<Mutex<Option<Result<SnapshotId, SnapshotError>>>>;

/// A volume and its backing.
pub(super) struct Driver {
    pub(super) disk: SimStorage,
    pub(super) core: Arc<Core>,
    volume: Stepped,
    /// Who carries out which request.
    rng: StdRng,
}

/// An image with an empty store, in the smallest segments.
pub(super) fn new_image(kind: VolumeKind, image_bytes: usize, raw_bytes: u64) -> Vec<u8> {
    new_image_of(kind, image_bytes, raw_bytes, 64 << 10)
}

/// An image with an empty store.
pub(super) fn new_image_of(
    kind: VolumeKind,
    image_bytes: usize,
    raw_bytes: u64,
    segment_bytes: u64,
) -> Vec<u8> {
    let disk = SimStorage::new(vec![0x5a; image_bytes], 0);
    let new = NewStore { kind, uuid: [7; 16], raw_bytes, segment_bytes };
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
        Self::open_with(disk, &options([boot; 16]), false)
    }

    /// With `clean`, the cleaner also works when nobody waits for it.
    pub(super) fn open_with(
        disk: SimStorage,
        options: &RecoverOptions,
        clean: bool,
    ) -> Result<Self, StoreError> {
        let mut volume = Stepped::open_with(Arc::new(disk.clone()), options, clean)?;
        volume.worker.begin();
        let rng = StdRng::seed_from_u64(disk.draw());
        Ok(Driver { disk, core: Arc::clone(&volume.core), volume, rng })
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
        if once_in(&mut self.rng, 3) && self.volume.worker.is_at_rest() {
            return self.volume.worker.carry_out(request);
        }
        self.volume.submit(request);
        if once_in(&mut self.rng, 5) {
            self.volume.worker.step_here();
        }
    }

    pub(super) fn write(&mut self, client: ClientId, offset: u64, bytes: &[u8], fua: bool) -> Ticket {
        let (ticket, done) = Self::ticket();
        let buf = Arc::new(AlignedBuf::from_slice(bytes));
        self.submit(Request::Write { client, offset, buf, fua, keep_zeros: false, done });
        ticket
    }

    pub(super) fn zero(&mut self, client: ClientId, offset: u64, len_bytes: u64, fua: bool) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.submit(Request::Zero { client, offset, len_bytes, fua, done });
        ticket
    }

    /// Commits with these versions of pages, and of the superblock, in one request.
    pub(super) fn commit(
        &mut self,
        client: ClientId,
        pages: &BTreeMap<u64, u64>,
        superblock: u64,
        content: impl Fn(u64, u64) -> Vec<u8>,
    ) -> Ticket {
        let (ticket, done) = Self::ticket();
        let bytes = |page, tag| -> PageBytes { content(page, tag).try_into().expect("a page") };
        let versions: Vec<(u64, PageBytes)> =
            pages.iter().map(|(&page, &tag)| (page, bytes(page, tag))).collect();
        let versions = versions.iter().map(|(page, bytes)| (*page, bytes));
        let commit = Commit::new(versions, &bytes(0, superblock));
        self.submit(Request::Commit { client, commit, done });
        ticket
    }

    pub(super) fn flush(&mut self) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.submit(Request::Flush { done });
        ticket
    }

    pub(super) fn checkpoint(&mut self) -> Ticket {
        let (ticket, done) = Self::ticket();
        self.volume.worker.log().submit_checkpoint(Box::new(move |result| done(result.map(|()| None))));
        ticket
    }

    /// Wants a change of the snapshots.
    pub(super) fn change(&mut self, change: Change) -> ChangeTicket {
        let ticket: ChangeTicket = Arc::default();
        let mine = Arc::clone(&ticket);
        self.volume.worker.log().submit_change(change, Box::new(move |result| *mine.lock() = Some(result)));
        ticket
    }

    /// A portion of what deletions and rollbacks have to do; what is needed next.
    pub(super) fn round(&mut self) -> Round {
        let store = Arc::clone(&self.core.store);
        snapshot::round(&store, |f| Ok(f(self.volume.worker.log()))).unwrap_or(Round::Idle)
    }

    /// The same, and what is needed next.
    pub(super) fn portion(&mut self) -> Round {
        let round = self.round();
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
            if self.portion() == Round::Idle || self.volume.worker.log().failure().is_some() {
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
            self.volume.worker.step();
            self.volume.worker.log().wait();
        }
        self.volume.worker.step();
    }

    /// Steps until everything given has its outcome, cleaning when the log waits for space.
    pub(super) fn settle(&mut self) {
        self.volume.settle();
    }

    /// A turn of the log's thread, and one of the cleaner's if it gets one: what the cleaner wants next.
    pub(super) fn turn(&mut self, cleaner_too: bool) -> Option<Next> {
        self.volume.turn(cleaner_too)
    }

    /// A user's job waits for space.
    pub(super) fn is_stalled(&mut self) -> bool {
        self.volume.worker.log().stall().is_some()
    }

    /// Has the cleaner do what it finds to do, as if writers waited; false if there was nothing.
    pub(super) fn clean(&mut self) -> bool {
        let before = self.disk.writes();
        self.volume.clean();
        self.disk.writes() > before
    }

    /// Reads the live pages of a segment, if it is one that could be cleaned, for [`Driver::relocate`]: things may
    /// happen in between.
    pub(super) fn copies_of(&self, segment: u32) -> Vec<Copies> {
        use crate::store::format::segment::Stream;
        use crate::store::map::segments::State;
        let found = self.store().maps.read().segments.get(segment).copied();
        match found {
            Some(s) if s.state == State::Closed && s.stream != Stream::Meta => {
                copies_of(self.store(), segment)
            }
            _ => Vec::new(),
        }
    }

    /// Gives copies to the log and waits.
    pub(super) fn relocate(&mut self, copies: Vec<Copies>) {
        for ops in copies {
            let (ticket, done) = Self::ticket();
            self.volume.worker.log().submit_cold(Job::new(ops, Box::new(move |r| done(r.map(|()| None)))));
            self.settle();
            match Self::outcome(&ticket) {
                Ok(()) | Err(IoError::NoSpace) => {}
                Err(e) => assert!(self.disk.crashed() || self.disk.fault_fired(), "a relocation: {e}"),
            }
        }
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

    /// Whoever stands in a segment is named by a record there, or known to be a clone: else the cleaner would not find it. All
    /// leaves are loaded.
    fn check_referrers(&self, maps: &Maps) {
        let store = self.store();
        let own = |segment: u32| -> BTreeMap<u16, u64> {
            let used = maps.segments.get(segment).map_or(0, |s| s.used_pages as usize);
            let mut bytes = vec![0; used * 4096];
            let start = store.geometry.segment_byte(segment);
            if store.storage.read_exact(start, &mut bytes).is_err() {
                return BTreeMap::new();
            }
            let mut own = BTreeMap::new();
            let mut at = 1;
            while let Some(Ok(record)) = bytes.get(at * 4096..(at + 1) * 4096).map(Record::decode) {
                own.extend((at as u16 + 1..).zip(record.data_pages().map(|(page, _)| page)));
                at += 1 + record.page_count() as usize;
            }
            own
        };
        let mut segments = BTreeMap::new();
        let ids = maps.ids();
        let all = ids.iter().filter_map(|id| maps.map(*id)).flat_map(BaseMap::mappings);
        for (page, Mapping { loc, .. }) in all {
            let segment = segments.entry(loc.segment).or_insert_with(|| own(loc.segment));
            let named = segment.get(&loc.offset) == Some(&page);
            let noted = maps.segments.referrers.covers(loc.segment, page);
            assert!(named || noted || segment.is_empty(), "nobody knows that page {page:#x} stands at {loc}");
        }
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
        assert_eq!(maps.lost_pages(), 0, "each page that counts as used is referred to");
        self.check_referrers(&maps);
        drop(maps);
        store.maps.write().hold(false);
    }
}
