//! Raw volumes that are nearly full and overwritten at random, with a cleaner that is slower than the writers, checkpoints
//! begun at any moment, snapshots in a third of the lives, and deaths. Nobody waits for anything to end: requests, checkpoints,
//! copies and compactions go on side by side.
//!
//! What is full of live pages is as large as the capacity of the image says, so: no write is refused (with snapshots: while
//! dead space remains), every start finds room for its checkpoint, and nobody waits for ever.

use std::collections::HashSet;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{ChangeTicket, Ticket, new_image_of, options};
use super::machine::{Machine, boot_id, pick};
use super::script::{self, Life, Op, Step, Weights};
use super::{content, once_in, seeds, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::timeline::Timeline;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::clean::Tuning;
use crate::store::clean::machine::Next;
use crate::store::create::geometry;
use crate::store::recover::RecoverOptions;
use crate::store::snapshot::SnapshotId;
use crate::store::snapshot::change::{Change, SnapshotError};
use crate::store::space::{capacity_pages, volume_capacity_pages};
use crate::volume::snapshot::Round;

const CLIENT: ClientId = ClientId(1);
/// Pages of a request at most.
const REQUEST_PAGES_MAX: u64 = 16;
/// So many pages stand together where they are spread over the volume.
const GROUP_PAGES: u64 = 8;
/// Most snapshots at a time.
const SNAPSHOTS_MAX: usize = 3;
/// Turns of the cleaner in which no request was finished, though some wait: it never will be.
const TURNS_IN_VAIN_MAX: u64 = 20_000;

/// How often each comes.
const WEIGHTS: &Weights = &[
    (Op::Batch, 60),
    (Op::Commit, 6),
    (Op::Checkpoint, 10),
    (Op::Clean, 3),
    (Op::Special, 3),
    (Op::Snapshot, 8),
    (Op::Check, 1),
    (Op::Crash, 3),
    (Op::CrashAtWrite, 4),
    (Op::CrashAtStart, 2),
];

/// What a page may hold.
#[derive(Clone, Debug, Default)]
struct Versions {
    /// Acknowledged: the version, and how many requests were acknowledged before; oldest first, never empty.
    acked: Vec<(u64, u64)>,
    /// Refused or cut off by a death: there or not.
    unknown: Vec<u64>,
}

impl Versions {
    fn only(tag: u64) -> Self {
        Versions { acked: vec![(tag, 0)], unknown: Vec::new() }
    }

    /// Forgets what was replaced before something that is durable.
    fn prune(&mut self, durable: u64) {
        let newest = self.acked.iter().rposition(|&(_, at)| at <= durable).unwrap_or(0);
        self.acked.drain(..newest);
    }

    fn is_discarded(&self) -> bool {
        self.acked.last().is_some_and(|&(tag, _)| tag == 0)
    }

    /// Whether it may hold this version after a death.
    fn allows(&self, found: u64, crash: Crash) -> bool {
        let from = if crash == Crash::PowerCut { 0 } else { self.acked.len() - 1 };
        self.acked[from..].iter().any(|&(tag, _)| tag == found) || self.unknown.contains(&found)
    }
}

/// A request under way.
enum What {
    /// The pages and the version that each gets; pages in use and under way when they came.
    Write {
        pages: Vec<(u64, u64)>,
        fua: bool,
        filled: Filled,
    },
    /// Everything acknowledged up to this number becomes durable.
    Flush {
        acked: u64,
    },
    Checkpoint {
        acked: u64,
    },
}

/// How full the volume is.
#[derive(Clone, Copy, Debug)]
struct Filled {
    used_pages: u64,
    /// That are written.
    under_way: u64,
    snapshots: usize,
    /// Some of those that are written were discarded before.
    new: bool,
}

struct FullLife {
    machine: Machine,
    /// So many are alive; [`FullLife::address`] tells where.
    pages: u64,
    /// Groups of pages are so many times as far from each other as they are long: leaves of the map have fewer entries.
    stride: u64,
    model: Vec<Versions>,
    in_flight: Vec<(Ticket, What)>,
    /// Pages that requests in flight change.
    taken: HashSet<u64>,
    /// Requests acknowledged.
    acked: u64,
    /// Of those, so many at least are durable.
    durable: u64,
    /// A change of the snapshots under way.
    change: Option<(ChangeTicket, Change)>,
    /// The checkpoint that the deletion of a snapshot waits for.
    portion: Option<Ticket>,
    /// In this life snapshots are taken.
    has_snapshots: bool,
    names: Vec<String>,
    /// Turns of the log for each one of the cleaner.
    pace: u64,
    /// The cleaner keeps to its rate until then.
    pause_until_us: u64,
    turns: u64,
    turns_in_vain: u64,
    /// Most requests in flight.
    depth: usize,
}

impl FullLife {
    /// The page of the volume that is number `i` of those used.
    fn address(&self, i: u64) -> u64 {
        i / GROUP_PAGES * GROUP_PAGES * self.stride + i % GROUP_PAGES
    }

    /// How many from number `i` on stand together, `count` at most.
    fn run(&self, i: u64, count: u64) -> u64 {
        let together = if self.stride == 1 { count } else { GROUP_PAGES - i % GROUP_PAGES };
        count.min(together).min(self.pages - i)
    }

    /// Keeps some requests in flight until so many were given.
    fn traffic(&mut self, requests: usize) {
        for _ in 0..requests {
            while self.in_flight.len() >= self.depth {
                self.turn();
            }
            for _ in 0..self.machine.rng.random_range(0..3) {
                self.turn();
            }
            if self.machine.driver.disk.crashed() || self.machine.stopped {
                return;
            }
            let first = self.machine.rng.random_range(0..self.pages);
            let count = match self.machine.rng.random_range(0..8) {
                0 => REQUEST_PAGES_MAX,
                1..3 => self.machine.rng.random_range(2..8),
                _ => 1,
            };
            self.write(first, count);
        }
    }

    /// Writes pages until so many are used, with those of the map.
    fn fill(&mut self, used_pages: u64) {
        let mut first = 0;
        while first < self.pages && self.filled(true).used_pages < used_pages {
            let before = self.in_flight.len();
            self.write(first, GROUP_PAGES);
            assert!(self.in_flight.len() > before, "nothing else is under way");
            self.drain();
            first += GROUP_PAGES;
        }
        self.pages = first.min(self.pages);
        self.model.truncate(self.pages as usize);
    }

    /// Overwrites pages, unless some of them are being written: their order would be open.
    fn write(&mut self, first: u64, count: u64) {
        let count = self.run(first, count);
        if (first..first + count).any(|page| self.taken.contains(&page)) {
            return;
        }
        let at = self.address(first);
        let m = &mut self.machine;
        let fua = m.once_in(20);
        let pages: Vec<(u64, u64)> = (first..first + count).map(|page| (page, m.new_tag())).collect();
        let bytes: Vec<u8> = pages.iter().flat_map(|&(page, tag)| content(page, tag)).collect();
        let ticket = m.driver.write(CLIENT, at * 4096, &bytes, fua);
        self.under_way(ticket, pages, fua);
    }

    fn under_way(&mut self, ticket: Ticket, pages: Vec<(u64, u64)>, fua: bool) {
        self.taken.extend(pages.iter().map(|(page, _)| page));
        let new = pages.iter().any(|&(page, _)| self.model[page as usize].is_discarded());
        let filled = self.filled(new);
        self.in_flight.push((ticket, What::Write { pages, fua, filled }));
    }

    fn filled(&self, new: bool) -> Filled {
        let store = self.machine.driver.store();
        let maps = store.maps.read();
        let snapshots = maps.snapshots.all().len();
        Filled { used_pages: store.used_pages(&maps), under_way: self.taken.len() as u64, snapshots, new }
    }

    fn discard(&mut self) {
        let first = self.machine.rng.random_range(0..self.pages);
        let count = self.machine.rng.random_range(1..=64);
        let count = self.run(first, count);
        if (first..first + count).any(|page| self.taken.contains(&page)) {
            return;
        }
        let ticket = self.machine.driver.zero(CLIENT, self.address(first) * 4096, count * 4096, false);
        self.under_way(ticket, (first..first + count).map(|page| (page, 0)).collect(), false);
    }

    fn flush(&mut self) {
        let ticket = self.machine.driver.flush();
        self.in_flight.push((ticket, What::Flush { acked: self.acked }));
    }

    fn checkpoint(&mut self) {
        let ticket = self.machine.driver.checkpoint();
        self.in_flight.push((ticket, What::Checkpoint { acked: self.acked }));
    }

    /// A turn of the log, now and then one of the cleaner and of who gives back the space of snapshots.
    fn turn(&mut self) {
        self.turns += 1;
        let now_us = self.machine.timeline.now_us();
        // Who waits for space ends the cleaner's pause.
        let may = now_us >= self.pause_until_us || self.machine.driver.is_stalled();
        let cleaner_too = may && self.turns.is_multiple_of(self.pace);
        match self.machine.driver.turn(cleaner_too) {
            Some(Next::Pause(time)) => self.pause_until_us = now_us + time.as_micros() as u64,
            Some(_) => self.pause_until_us = 0,
            None => {}
        }
        if self.has_snapshots {
            self.portion();
        }
        let before = self.in_flight.len();
        self.collect();
        if self.in_flight.len() < before || before == 0 {
            self.turns_in_vain = 0;
        } else if cleaner_too {
            self.turns_in_vain += 1;
            assert!(
                self.turns_in_vain < TURNS_IN_VAIN_MAX,
                "{before} requests wait for ever, at a turn in {} for the cleaner: {}",
                self.pace,
                self.space()
            );
        } else if !may {
            // Nobody waits for the cleaner, which pauses: time goes by.
            self.machine.timeline.pass(100);
        }
    }

    /// What the thread does that gives back the space of deleted snapshots.
    fn portion(&mut self) {
        if self.portion.as_ref().is_some_and(|ticket| ticket.lock().is_none()) {
            return;
        }
        self.portion = None;
        if !self.machine.driver.store().maps.read().snapshots.has_work() || !self.machine.once_in(4) {
            return;
        }
        if matches!(self.machine.driver.round(), Round::Checkpoint | Round::Finished) {
            self.portion = Some(self.machine.driver.checkpoint());
        }
    }

    fn space(&self) -> String {
        let store = self.machine.driver.store();
        store.describe_space(&store.maps.read())
    }

    /// Takes note of what is finished.
    fn collect(&mut self) {
        for (ticket, what) in std::mem::take(&mut self.in_flight) {
            let outcome = ticket.lock().clone();
            match outcome {
                None => self.in_flight.push((ticket, what)),
                Some(outcome) => self.finished(what, outcome),
            }
        }
        if let Some((ticket, _)) = &self.change {
            let outcome = ticket.lock().clone();
            if let Some(outcome) = outcome {
                self.changed(&outcome);
            }
        }
    }

    fn finished(&mut self, what: What, outcome: Result<(), IoError>) {
        match &outcome {
            Ok(()) => self.acked += 1,
            Err(IoError::NoSpace) => {
                // A checkpoint that finds no room tells so in the log, and the store goes on.
                if let What::Write { pages, filled, .. } = &what {
                    self.refused(pages.len() as u64, *filled);
                }
            }
            Err(e) => self.machine.assert_failure_explained("a request", e),
        }
        match what {
            What::Write { pages, fua, .. } => self.written(&pages, fua, outcome.is_ok()),
            What::Flush { acked } | What::Checkpoint { acked } if outcome.is_ok() => {
                self.durable = self.durable.max(acked);
            }
            What::Flush { .. } | What::Checkpoint { .. } => {}
        }
    }

    fn written(&mut self, pages: &[(u64, u64)], fua: bool, good: bool) {
        for &(page, tag) in pages {
            self.taken.remove(&page);
            let versions = &mut self.model[page as usize];
            if !good {
                versions.unknown.push(tag);
                continue;
            }
            versions.acked.push((tag, self.acked));
            versions.prune(if fua { u64::MAX } else { self.durable });
        }
    }

    /// A write may be refused only while snapshots hold what the image has room for, when it came or by now; or if some of
    /// its pages were discarded before: what was overwritten meanwhile may have made the map larger.
    fn refused(&self, pages: u64, then: Filled) {
        let store = self.machine.driver.store();
        let capacity = volume_capacity_pages(store.kind, store.geometry);
        let now = self.filled(then.new);
        let full = |f: Filled| (f.snapshots > 0 || f.new) && (f.used_pages + f.under_way) * 8 >= capacity * 7;
        assert!(
            full(then) || full(now),
            "{pages} pages are refused, of a capacity of {capacity}: {then:?} when they came, {now:?} now; {}",
            self.space()
        );
    }

    /// Asks for a snapshot, or to be rid of one.
    fn snapshot(&mut self) {
        if !self.has_snapshots || self.change.is_some() {
            return;
        }
        let change = match self.names.len() {
            0 => None,
            SNAPSHOTS_MAX.. => Some(()),
            _ => self.machine.once_in(2).then_some(()),
        };
        let change = match change {
            Some(()) => {
                let i = self.machine.rng.random_range(0..self.names.len());
                Change::Delete { name: self.names[i].clone() }
            }
            None => {
                let number = self.machine.new_tag();
                Change::Create { name: format!("s{number}"), time_ns: number }
            }
        };
        self.machine.timeline.note(format!("  {change:?}"));
        self.change = Some((self.machine.driver.change(change.clone()), change));
    }

    fn changed(&mut self, outcome: &Result<SnapshotId, SnapshotError>) {
        let Some((ticket, change)) = self.change.take() else { return };
        match (outcome, change) {
            (Ok(_), Change::Create { name, .. }) => self.names.push(name),
            (Ok(_), Change::Delete { name }) => self.names.retain(|other| *other != name),
            (Err(SnapshotError::NoSpace), Change::Create { .. }) => {}
            (Err(SnapshotError::NoSpace), change) => {
                panic!("{change:?} is refused, which would give space back: {}", self.space())
            }
            (Err(e), change) => {
                let what = format!("{change:?}");
                self.machine.assert_failure_explained(&what, &IoError::Io(e.to_string()));
                // The next start shows whether it happened.
                self.change = Some((ticket, change));
            }
            (Ok(_), change) => unreachable!("{change:?} was not asked for"),
        }
    }

    /// Turns until all requests have their outcome.
    fn drain(&mut self) {
        while !self.in_flight.is_empty() || self.change.is_some() {
            self.turn();
        }
    }

    /// A compaction beside the other work.
    fn compact(&mut self) {
        self.checkpoint();
        let store = Arc::clone(self.machine.driver.store());
        let compacting = store.tuning.compact();
        let requests = self.machine.rng.random_range(1..40);
        self.traffic(requests);
        drop(compacting);
        self.checkpoint();
    }

    /// Dies with what is under way, comes back, and is what it may be.
    fn crash(&mut self, deaths_on_the_way: bool) {
        let crash = self.machine.some_crash();
        for (_, what) in std::mem::take(&mut self.in_flight) {
            if let What::Write { pages, .. } = what {
                self.written(&pages, false, false);
            }
        }
        self.portion = None;
        self.machine.timeline.note(format!("  before: {}", self.space()));
        let crash = self.machine.restart(crash, deaths_on_the_way);
        self.pause_until_us = 0;
        self.turns_in_vain = 0;
        let names = self.machine.driver.snapshot_names();
        match self.change.take() {
            Some((_, Change::Create { name, .. })) if names.contains(&name) => self.names.push(name),
            Some((_, Change::Delete { name })) => self.names.retain(|n| *n != name || names.contains(n)),
            _ => {}
        }
        assert_eq!(names, self.names, "snapshots after {crash:?}");
        for versions in &mut self.model {
            versions.prune(self.durable);
        }
        self.compare(crash);
        // What was found at a restart is in the checkpoint of that restart: durable.
        self.model = (0..self.pages).map(|page| Versions::only(self.found(page))).collect();
    }

    fn found(&self, page: u64) -> u64 {
        let bytes = self.machine.driver.read(CLIENT, self.address(page) * 4096, 4096);
        let bytes = bytes.unwrap_or_else(|e| panic!("page {page}: {e}"));
        tag_of(page, &bytes).unwrap_or_else(|| panic!("page {page} is no version of it"))
    }

    fn compare(&self, crash: Crash) {
        for (page, versions) in (0..).zip(&self.model) {
            let found = self.found(page);
            assert!(versions.allows(found, crash), "page {page}: found {found}, it may be {versions:?}");
        }
    }

    /// Everything is given back that deleted snapshots kept.
    fn forget_snapshots(&mut self) {
        self.drain();
        while let Some(name) = self.names.first().cloned() {
            let change = Change::Delete { name };
            self.change = Some((self.machine.driver.change(change.clone()), change));
            self.drain();
        }
        while self.machine.driver.store().maps.read().snapshots.has_work() || self.portion.is_some() {
            self.turn();
        }
    }
}

impl Life for FullLife {
    type Op = Op;
    const NAME: &'static str = "full";
    const WEIGHTS: &'static Weights = WEIGHTS;

    fn begin(seed: u64, timeline: Timeline) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6675_6c6c);
        let (segment_bytes, segments) = match rng.random_range(0..4) {
            0..2 => (64 << 10, rng.random_range(48..=160)),
            2 => (128 << 10, rng.random_range(48..=80)),
            _ => (256 << 10, rng.random_range(40..=60)),
        };
        let image_bytes = (segments + 1) * segment_bytes;
        let geometry = geometry(image_bytes, segment_bytes).expect("a size that is allowed");
        let capacity = capacity_pages(geometry);
        let stride = *pick(&mut rng, &[1, 1, 2, 16]);
        let image =
            new_image_of(VolumeKind::Raw, image_bytes as usize, capacity * stride * 4096, segment_bytes);
        let disk = SimStorage::with_timeline(image, seed, timeline);
        disk.set_synchronous(once_in(&mut rng, 4));
        let tuning = Tuning {
            checkpoint_bytes: 4096 * pick(&mut rng, &[50, 200, 1000, 1 << 20]),
            cleaner_bytes_per_s: *pick(&mut rng, &[0, 200 << 20, 8 << 20, 1 << 20]),
            ..Tuning::default()
        };
        let options = RecoverOptions {
            boot_id: boot_id(1),
            tuning,
            map_bytes_max: *pick(&mut rng, &[0, 2 << 10, 16 << 10, 1 << 20]),
            discard: rng.random(),
            ..options([0; 16])
        };
        let (pace, depth) = (*pick(&mut rng, &[1, 4, 16, 100]), *pick(&mut rng, &[1, 4, 16]));
        let has_snapshots = once_in(&mut rng, 3);
        let clean = !once_in(&mut rng, 4);
        let mut life = FullLife {
            machine: Machine::open(rng, disk, options, clean),
            pages: capacity,
            stride,
            model: vec![Versions::only(0); capacity as usize],
            in_flight: Vec::new(),
            taken: HashSet::new(),
            acked: 0,
            durable: 0,
            change: None,
            portion: None,
            has_snapshots,
            names: Vec::new(),
            pace,
            pause_until_us: 0,
            turns: 0,
            turns_in_vain: 0,
            depth,
        };
        let percent = life.machine.rng.random_range(75..=90);
        life.fill(capacity * percent / 100);
        life
    }

    fn step(&mut self, step: Step) {
        self.machine.rng = StdRng::seed_from_u64(step.seed);
        match step.op {
            Op::Commit => self.flush(),
            Op::Checkpoint => self.checkpoint(),
            Op::Clean => self.compact(),
            Op::Special => self.discard(),
            Op::Snapshot => self.snapshot(),
            Op::Check => {
                self.drain();
                self.machine.driver.check_usage();
            }
            Op::Crash | Op::CrashAtStart => {
                self.traffic(4);
                self.crash(step.op == Op::CrashAtStart);
            }
            Op::CrashAtWrite => {
                let disk = self.machine.disk();
                disk.crash_at(self.machine.rng.random_range(1..100));
                self.traffic(30);
                self.crash(false);
            }
            _ => {
                let requests = self.machine.rng.random_range(1..40);
                self.traffic(requests);
            }
        }
    }

    fn end(&mut self) {
        self.forget_snapshots();
        self.has_snapshots = false;
        for first in (0..self.pages).step_by(5) {
            while self.in_flight.len() >= self.depth {
                self.turn();
            }
            self.write(first, 5);
        }
        self.drain();
        self.machine.driver.settle();
        self.compare(Crash::ProcessDeath);
        self.machine.driver.check_usage();
        self.crash(false);
    }
}

#[test]
fn full_lives() {
    script::live::<FullLife>(&seeds(40), 80);
}

#[test]
fn a_full_seed_does_the_same_each_time() {
    for seed in seeds(3).into_iter().take(3) {
        assert!(script::is_reproducible::<FullLife>(seed, 60), "seed {seed} differs from run to run");
    }
}
