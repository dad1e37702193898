//! Raw volumes: each page is a version not older than the last flush; nothing acknowledged is lost
//! when only the process dies.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::damage::{self, Mortal};
use super::driver::{Driver, Ticket};
use super::machine::Machine;
use super::past::{self, Historic, Past, State};
use super::script::{self, Life, Op, Step, Weights};
use super::{content, seeds, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::Crash;
use crate::storage::sim::faults::ReadFault;
use crate::storage::sim::timeline::Timeline;

const CLIENT: ClientId = ClientId(1);
const IMAGE_BYTES: usize = 4 << 20;
const PAGES: u64 = 300;
/// Behind the pages that are compared: for writes that only witness others.
const WITNESS: u64 = PAGES;

/// What a page may hold.
#[derive(Clone, Debug)]
pub(super) struct Versions {
    /// Acknowledged, in order.
    acked: Vec<u64>,
    /// Index of the one that is known to be durable.
    durable: usize,
    /// Written, outcome unknown.
    unknown: Vec<u64>,
}

impl Versions {
    fn only(tag: u64) -> Self {
        Versions { acked: vec![tag], durable: 0, unknown: Vec::new() }
    }

    fn current(&self) -> u64 {
        *self.acked.last().unwrap_or(&0)
    }

    fn allowed(&self, from: usize, found: u64) -> bool {
        self.acked[from..].contains(&found) || self.unknown.contains(&found)
    }

    fn flushed(&mut self, keep: bool) {
        self.durable = self.acked.len() - 1;
        if !keep {
            self.acked.drain(..self.durable);
            self.durable = 0;
        }
    }
}

pub(super) struct RawLife {
    machine: Machine,
    model: Vec<Versions>,
    past: Past,
    /// Of contents that came about by writing parts of pages: page, crc32c -> version.
    mixed: HashMap<(u64, u32), u64>,
    /// All versions are remembered.
    history: bool,
}

/// Requests in flight: ticket, pages, the version each gets; FUA.
type Batch = Vec<(Ticket, Vec<(u64, u64)>, bool)>;

impl RawLife {
    fn send_batch(&mut self) -> Batch {
        let mut batch: Batch = Vec::new();
        let mut taken = std::collections::HashSet::new();
        for _ in 0..self.machine.rng.random_range(1..12) {
            let m = &mut self.machine;
            let first = m.rng.random_range(0..PAGES);
            let count = m.rng.random_range(1..=16u64).min(PAGES - first);
            // Requests in flight at once do not overlap: their order would be open.
            if (first..first + count).any(|p| !taken.insert(p)) {
                continue;
            }
            let fua = m.once_in(6);
            let zero = m.once_in(5);
            if m.once_in(8)
                && let Some((ticket, pages)) = self.send_part(first, count, zero, fua)
            {
                batch.push((ticket, pages, fua));
                continue;
            }
            let m = &mut self.machine;
            let pages: Vec<(u64, u64)> =
                (first..first + count).map(|page| (page, if zero { 0 } else { m.new_tag() })).collect();
            let bytes: Vec<u8> = pages.iter().flat_map(|&(page, tag)| content(page, tag)).collect();
            let ticket = if zero && m.once_in(2) {
                m.driver.zero(CLIENT, first * 4096, count * 4096, fua)
            } else {
                m.driver.write(CLIENT, first * 4096, &bytes, fua)
            };
            m.timeline.note(format!(
                "  {} {first}+{count}{}",
                if zero { "zero" } else { "write" },
                if fua { " fua" } else { "" }
            ));
            batch.push((ticket, pages, fua));
        }
        batch
    }

    /// Sends a request that leaves out some bytes of the first and of the last page. None if these cannot be read.
    fn send_part(
        &mut self,
        first: u64,
        count: u64,
        zero: bool,
        fua: bool,
    ) -> Option<(Ticket, Vec<(u64, u64)>)> {
        let range = (first * 4096, count * 4096);
        let mut bytes = self.machine.driver.read(CLIENT, range.0, range.1 as usize).ok()?;
        for (page, bytes) in (first..).zip(bytes.chunks(4096)) {
            // What a failed request left may still change.
            let versions = &self.model[page as usize];
            if !versions.unknown.is_empty() || self.version(page, bytes) != Some(versions.current()) {
                return None;
            }
        }
        let m = &mut self.machine;
        let from = m.rng.random_range(1..4096usize);
        let to = m.rng.random_range(bytes.len() - 4095..bytes.len()).max(from + 1);
        if zero {
            bytes[from..to].fill(0);
        } else {
            m.rng.fill(&mut bytes[from..to]);
        }
        let mut pages = Vec::new();
        for (page, bytes) in (first..).zip(bytes.chunks(4096)) {
            let tag = self.version(page, bytes).unwrap_or_else(|| {
                let tag = self.machine.new_tag();
                self.mixed.insert((page, crc32c::crc32c(bytes)), tag);
                tag
            });
            pages.push((page, tag));
        }
        let m = &mut self.machine;
        let offset = range.0 + from as u64;
        m.timeline.note(format!("  {} of bytes {offset}+{}", if zero { "zero" } else { "write" }, to - from));
        let ticket = if zero {
            m.driver.zero(CLIENT, offset, (to - from) as u64, fua)
        } else {
            m.driver.write(CLIENT, offset, &bytes[from..to], fua)
        };
        Some((ticket, pages))
    }

    /// Notes outcomes in the model.
    fn account(&mut self, batch: Batch) {
        for (ticket, pages, fua) in batch {
            let outcome = ticket.lock().clone();
            if let Some(Err(e)) = &outcome {
                self.machine.assert_failure_explained(&format!("write of {pages:?}"), e);
            }
            for (page, tag) in pages {
                let versions = &mut self.model[page as usize];
                if !matches!(outcome, Some(Ok(()))) {
                    versions.unknown.push(tag);
                    continue;
                }
                versions.acked.push(tag);
                if fua {
                    versions.flushed(self.history);
                }
            }
        }
    }

    fn batch(&mut self) {
        let batch = self.send_batch();
        self.machine.driver.settle();
        assert!(batch.iter().all(|(ticket, _, _)| ticket.lock().is_some()), "a request is never answered");
        self.account(batch);
    }

    /// True if it worked.
    fn flush(&mut self) -> bool {
        let ticket = self.machine.driver.flush();
        self.machine.driver.settle();
        if let Err(e) = Driver::outcome(&ticket) {
            self.machine.assert_failure_explained("flush", &e);
            return false;
        }
        self.machine.timeline.note("  flushed");
        for versions in &mut self.model {
            versions.flushed(self.history);
        }
        true
    }

    fn checkpoint(&mut self) {
        let ticket = self.machine.driver.checkpoint();
        self.machine.driver.settle();
        match Driver::outcome(&ticket) {
            Ok(()) => self.model.iter_mut().for_each(|v| v.flushed(self.history)),
            // It tells so in the log, and the store goes on.
            Err(IoError::NoSpace) => {}
            Err(e) => self.machine.assert_failure_explained("checkpoint", &e),
        }
    }

    fn page(&self, page: u64) -> Result<Option<u64>, IoError> {
        let bytes = self.machine.driver.read(CLIENT, page * 4096, 4096)?;
        Ok(self.version(page, &bytes))
    }

    /// Each page must be its newest version, or what a request left that was refused for want of room.
    fn compare_pages(&mut self) {
        for page in 0..PAGES {
            let found = self.page(page).unwrap_or_else(|e| panic!("page {page}: {e}"));
            let versions = &mut self.model[page as usize];
            let Some(found) = found.filter(|&f| versions.allowed(versions.acked.len() - 1, f)) else {
                panic!("page {page}: found {found:?}, it should be {versions:?}");
            };
            if found != versions.current() {
                versions.acked.push(found);
            }
            versions.unknown.clear();
        }
    }

    fn compare(&mut self) {
        self.compare_pages();
        past::compare(self, false);
        self.machine.driver.check_usage();
    }

    /// A snapshot taken while requests are under way: each page of these is the old one or the new one.
    fn snapshot_amid_writes(&mut self) {
        let mut states = self.states();
        let batch = self.send_batch();
        for (page, tag) in batch.iter().flat_map(|(_, pages, _)| pages) {
            states[0].entry(*page).or_insert_with(|| vec![0]).push(*tag);
        }
        let steps = self.machine.rng.random_range(0..4);
        self.machine.driver.steps(steps);
        let ticket = past::ask_for(self, states);
        self.machine.driver.settle();
        self.account(batch);
        if let Some(ticket) = ticket {
            past::conclude(self, &ticket);
        }
    }

    /// The image grows by a half, or gets its first size again.
    fn resize(&mut self) {
        let backing_bytes = IMAGE_BYTES as u64 * self.machine.rng.random_range(2..=3) / 2;
        let raw_bytes = self.machine.driver.store().raw_bytes();
        let crash = self.machine.resize(backing_bytes, raw_bytes);
        self.crash(crash, false);
    }

    /// Dies, comes back, and is what it may be.
    fn crash(&mut self, crash: Crash, deaths_on_the_way: bool) {
        let crash = self.machine.restart(crash, deaths_on_the_way);
        past::resolve(self);
        for page in 0..PAGES {
            let found = self.page(page).unwrap_or_else(|e| panic!("page {page} after {crash:?}: {e}"));
            self.found(page, found, crash, true);
        }
        past::compare(self, false);
        self.machine.driver.check_usage();
    }

    fn found(&mut self, page: u64, found: Option<u64>, crash: Crash, witnessed: bool) {
        let versions = &mut self.model[page as usize];
        let from = match crash {
            _ if !witnessed => 0,
            Crash::ProcessDeath => versions.acked.len() - 1,
            Crash::PowerCut => versions.durable,
        };
        let Some(tag) = found.filter(|&f| versions.allowed(from, f)) else {
            panic!("page {page} after {crash:?}: found {found:?}, it may be {versions:?} from {from} on");
        };
        // What was found at a restart is in the checkpoint of that restart: durable.
        *versions = Versions::only(tag);
    }

    /// Work until the store stops or the power is off.
    fn work_until_trouble(&mut self) {
        for _ in 0..60 {
            if self.machine.stopped || self.machine.driver.disk.crashed() {
                return;
            }
            self.work();
        }
    }

    fn late_copies(&mut self) {
        let segment = self.machine.rng.random_range(0..(IMAGE_BYTES >> 16) as u32);
        let copies = self.machine.driver.copies_of(segment);
        // Pages that are overwritten meanwhile must not come back.
        for _ in 0..self.machine.rng.random_range(0..4) {
            self.batch();
        }
        self.machine.driver.relocate(copies);
    }

    /// What a read finds is a version that was the newest at some time while it was under way.
    fn slow_read(&mut self) {
        let first = self.machine.rng.random_range(0..PAGES - 8);
        let from: Vec<usize> = (0..PAGES as usize).map(|p| self.model[p].acked.len() - 1).collect();
        self.history = true;
        let read = self.machine.slow_read(CLIENT, first * 4096, 8 * 4096);
        if read.held {
            for _ in 0..self.machine.rng.random_range(1..12) {
                self.work();
            }
        }
        let bytes = read.finish().unwrap_or_else(|e| panic!("a slow read of page {first}: {e}"));
        self.history = false;
        for (page, bytes) in (first..).zip(bytes.chunks(4096)) {
            let (found, versions) = (self.version(page, bytes), &self.model[page as usize]);
            assert!(
                found.is_some_and(|f| versions.allowed(from[page as usize], f)),
                "a slow read of page {page}: found {found:?}, it may be {versions:?} from {} on",
                from[page as usize]
            );
        }
    }

    /// Many pages are given back at once.
    fn discard_many(&mut self) {
        let first = self.machine.rng.random_range(0..PAGES - 100);
        let count = self.machine.rng.random_range(50..=100);
        self.machine.timeline.note(format!("  discard {first}+{count}"));
        let ticket = self.machine.driver.zero(CLIENT, first * 4096, count * 4096, false);
        self.machine.driver.settle();
        self.account(vec![(ticket, (first..first + count).map(|page| (page, 0)).collect(), false)]);
    }

    fn read_error(&mut self) {
        let disk = self.machine.disk();
        let fault = if self.machine.rng.random() { ReadFault::Eio } else { ReadFault::Flip };
        disk.read_fault_at(self.machine.rng.random_range(1..20), fault);
        for _ in 0..4 {
            self.compare_damaged();
            if !self.machine.stopped {
                self.work();
            }
        }
        disk.disarm();
        if !self.machine.stopped {
            // It was the wire, not the disk: all is there.
            self.compare_pages();
        }
    }
}

impl Historic for RawLife {
    fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn past(&mut self) -> &mut Past {
        &mut self.past
    }

    fn states(&self) -> Vec<State> {
        let versions = |v: &Versions| [&v.acked[v.acked.len() - 1..], &v.unknown[..]].concat();
        vec![(0..).zip(&self.model).map(|(page, v)| (page, versions(v))).collect()]
    }

    fn places(&self) -> Vec<u64> {
        (0..PAGES).collect()
    }

    fn version(&self, page: u64, bytes: &[u8]) -> Option<u64> {
        let mixed = || self.mixed.get(&(page, crc32c::crc32c(bytes))).copied();
        tag_of(page, bytes).or_else(mixed)
    }

    fn leave(&mut self) -> bool {
        true
    }

    fn come_back(&mut self) {}

    fn gone_back(&mut self, pages: BTreeMap<u64, u64>) {
        for (page, versions) in (0..).zip(&mut self.model) {
            *versions = Versions::only(pages.get(&page).copied().unwrap_or(0));
        }
    }
}

impl Mortal for RawLife {
    type Model = (Vec<Versions>, Past);

    fn model(&self) -> Self::Model {
        (self.model.clone(), self.past.clone())
    }

    fn set_model(&mut self, (model, past): Self::Model) {
        (self.model, self.past) = (model, past);
    }

    fn witness(&mut self) -> bool {
        let mut good = self.flush();
        for _ in 0..2 {
            let tag = self.machine.new_tag();
            let bytes = content(WITNESS, tag);
            let ticket = self.machine.driver.write(CLIENT, WITNESS * 4096, &bytes, true);
            self.machine.driver.settle();
            if let Err(e) = Driver::outcome(&ticket) {
                self.machine.assert_failure_explained("a witness", &e);
                good = false;
            }
        }
        good
    }

    fn work(&mut self) {
        match self.machine.rng.random_range(0..10) {
            0 => {
                self.flush();
            }
            1 => self.checkpoint(),
            2 => {
                self.machine.driver.clean();
            }
            3 => self.late_copies(),
            4 => past::something_small(self),
            _ => self.batch(),
        }
    }

    fn compare_damaged(&mut self) {
        for page in 0..PAGES {
            match self.page(page) {
                Ok(found) => {
                    let versions = &self.model[page as usize];
                    let current = versions.acked.len() - 1;
                    assert!(
                        found.is_some_and(|f| versions.allowed(current, f)),
                        "wrong data in page {page}: found {found:?}, it should be {versions:?}"
                    );
                }
                Err(e) => self.machine.assert_read_error_explained(&format!("page {page}"), &e),
            }
        }
        if !self.machine.stopped {
            past::compare(self, true);
        }
    }

    fn compare_restarted(&mut self, crash: Crash, witnessed: bool) {
        // It says so when it had to cut the log above the last flush.
        let cut = self.machine.timeline.says("acknowledged writes that were never flushed are lost");
        let crash = if cut { Crash::PowerCut } else { crash };
        past::resolve(self);
        for page in 0..PAGES {
            match self.page(page) {
                Ok(found) => self.found(page, found, crash, witnessed),
                Err(e) => {
                    self.machine.assert_read_error_explained(&format!("page {page} after {crash:?}"), &e)
                }
            }
        }
    }

    fn keep_history(&mut self) {
        self.history = true;
    }

    fn take_up(&mut self) {
        self.history = false;
        self.compare();
    }
}

impl Life for RawLife {
    type Op = Op;
    const NAME: &'static str = "raw";
    const WEIGHTS: &'static Weights = script::WEIGHTS;

    fn begin(seed: u64, timeline: Timeline) -> Self {
        let machine =
            Machine::new(VolumeKind::Raw, IMAGE_BYTES, (PAGES + 1) * 4096, seed ^ 0x7261_7700, timeline);
        let mut life = RawLife {
            machine,
            model: vec![Versions::only(0); PAGES as usize],
            past: Past::default(),
            mixed: HashMap::new(),
            history: false,
        };
        // Its page is there even when the image is full.
        assert!(life.witness(), "a new volume is written");
        life
    }

    fn step(&mut self, step: Step) {
        self.machine.rng = StdRng::seed_from_u64(step.seed);
        let disk = self.machine.disk();
        match step.op {
            Op::Batch | Op::Session => self.batch(),
            Op::Commit => {
                self.flush();
            }
            Op::Checkpoint => self.checkpoint(),
            Op::Clean => {
                self.machine.driver.clean();
            }
            Op::LateCopies => self.late_copies(),
            Op::SlowRead => self.slow_read(),
            Op::Check => {
                self.compare();
                self.machine.scrub();
            }
            Op::Special => self.discard_many(),
            Op::Snapshot if self.machine.once_in(4) => self.snapshot_amid_writes(),
            Op::Snapshot => past::something(self),
            Op::Resize => self.resize(),
            Op::Crash | Op::CrashAtStart => {
                let batch = self.send_batch();
                let steps = self.machine.rng.random_range(0..12);
                self.machine.driver.steps(steps);
                self.account(batch);
                let crash = self.machine.some_crash();
                self.crash(crash, step.op == Op::CrashAtStart);
            }
            Op::CrashAtWrite => {
                disk.crash_at(self.machine.rng.random_range(1..60));
                self.work_until_trouble();
                let crash = self.machine.some_crash();
                self.crash(crash, false);
            }
            Op::WriteError => {
                let errno = if self.machine.rng.random() { libc::EIO } else { libc::ENOSPC };
                let n = self.machine.rng.random_range(1..40);
                disk.errors_at(n, self.machine.rng.random_range(1..4), errno);
                self.work_until_trouble();
                self.compare_damaged();
            }
            Op::SyncError => {
                disk.sync_error_at(self.machine.rng.random_range(1..6));
                self.work_until_trouble();
                self.compare_damaged();
            }
            Op::ReadError => self.read_error(),
            Op::Damage => damage::episode(self),
        }
        if self.machine.stopped {
            let crash = self.machine.some_crash();
            self.crash(crash, false);
        }
        self.machine.driver.disk.disarm();
    }

    fn end(&mut self) {
        past::finish_portions(self);
        self.compare();
        damage::witness_in_room(self);
    }
}

#[test]
fn raw_lives() {
    script::live::<RawLife>(&seeds(40), 120);
}

#[test]
fn a_raw_seed_does_the_same_each_time() {
    for seed in seeds(3).into_iter().take(3) {
        assert!(script::is_reproducible::<RawLife>(seed, 60), "seed {seed} differs from run to run");
    }
}

#[test]
fn raw_volumes_survive_a_crash_at_every_write() {
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in 1.. {
            let mut life = RawLife::begin(n * 2 + u64::from(crash == Crash::PowerCut), Timeline::default());
            life.machine.driver.disk.crash_at(n);
            for round in 0..25 {
                if life.machine.driver.disk.crashed() {
                    break;
                }
                life.batch();
                if round % 5 == 4 {
                    life.flush();
                }
                if round == 12 {
                    life.checkpoint();
                }
            }
            if !life.machine.driver.disk.crashed() {
                assert!(n > 100, "the script writes more than {n} times");
                break;
            }
            life.crash(crash, false);
        }
    }
}
