//! Snapshots under crashes, cleaning and checkpoints: each has for ever what the volume had when it was taken; the volume
//! itself is as without them; what was acknowledged is there after a crash, and what was not is there as a whole or not at all.

use std::collections::BTreeMap;

use layout::addr::{CLASS0_BASE, COMMAND_PAGE, INODE_BASE, MAP_UNIT_PAGES};
use layout::command::{CMD_CLOSE, CMD_OPEN, COMMAND_MAGIC, Command, CommandReply};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::driver::{ChangeTicket, Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
use crate::store::snapshot::change::Change;
use crate::volume::snapshot::Round;

pub(super) const CLIENT: ClientId = ClientId(1);
pub(super) const IMAGE_BYTES: usize = 8 << 20;
const SNAPSHOTS_MAX: usize = 5;

/// Page -> version; absent = zeros.
pub(super) type Pages = BTreeMap<u64, u64>;

pub(super) struct Run {
    pub(super) rng: StdRng,
    pub(super) driver: Driver,
    pub(super) kind: VolumeKind,
    pub(super) places: Vec<u64>,
    pub(super) now: Pages,
    /// What the volume may have become by a change that was not acknowledged. Raw: page by page.
    maybe: Option<Pages>,
    /// Oldest first.
    pub(super) snapshots: Vec<(String, Pages)>,
    /// A change of snapshots that was not acknowledged.
    pending: Option<Change>,
    next_tag: u64,
    boot: u8,
    session: u64,
    id: u64,
}

fn places(kind: VolumeKind) -> Vec<u64> {
    match kind {
        // Within two units.
        VolumeKind::Raw => (0..100).chain(MAP_UNIT_PAGES..MAP_UNIT_PAGES + 60).collect(),
        VolumeKind::VexFs => {
            let page = |byte: u64| byte >> 12;
            let near = (0..60).map(|i| page(INODE_BASE) + i);
            let far = (0..60).map(|i| page(CLASS0_BASE) + i * 256);
            near.chain(far).chain((0..30).map(|i| page(CLASS0_BASE) + 7 * 256 + i)).collect()
        }
    }
}

impl Run {
    pub(super) fn new(kind: VolumeKind, seed: u64) -> Self {
        let raw_bytes = if kind == VolumeKind::Raw { (MAP_UNIT_PAGES + 60) * 4096 } else { 0 };
        let image = new_image(kind, IMAGE_BYTES, raw_bytes);
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut run = Run {
            rng: StdRng::seed_from_u64(seed ^ 0x736e_6170),
            driver,
            kind,
            places: places(kind),
            now: Pages::new(),
            maybe: None,
            snapshots: Vec::new(),
            pending: None,
            next_tag: 1,
            boot: 1,
            session: 0,
            id: 0,
        };
        run.open_session();
        run
    }

    fn crashed(&self) -> bool {
        self.driver.disk.crashed()
    }

    fn command(&mut self, op: u32, session: u64) -> bool {
        self.id += 1;
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = op.into();
        command.session = session.into();
        command.id = self.id.into();
        command.boot_id = [self.boot; 16];
        let ticket = self.driver.write(CLIENT, COMMAND_PAGE.byte(), command.as_bytes(), false);
        self.driver.settle();
        let done = matches!(&*ticket.lock(), Some(Ok(())));
        done
    }

    fn open_session(&mut self) {
        if self.kind == VolumeKind::Raw {
            return;
        }
        self.id = 0;
        if self.command(CMD_OPEN, 0) {
            let page = self.driver.read(CLIENT, COMMAND_PAGE.byte(), 4096).expect("the reply");
            let reply = CommandReply::read_from_bytes(&page).expect("a reply is a page");
            assert_eq!(reply.errno.get(), 0);
            self.session = reply.session.get();
        }
    }

    fn close_session(&mut self) -> bool {
        self.kind == VolumeKind::Raw || self.command(CMD_CLOSE, self.session)
    }

    /// Starts some writes; gives what the volume is to become.
    fn start_writes(&mut self) -> (Vec<Ticket>, Pages) {
        let mut next = self.now.clone();
        let mut tickets = Vec::new();
        let fua = self.kind == VolumeKind::Raw;
        let mut taken = std::collections::HashSet::new();
        for _ in 0..self.rng.random_range(1..12) {
            let i = self.rng.random_range(0..self.places.len());
            for page in self.places[i..].iter().copied().take(self.rng.random_range(1..8)) {
                if !taken.insert(page) {
                    continue;
                }
                self.next_tag += 1;
                let tag = if once_in(&mut self.rng, 5) { 0 } else { self.next_tag };
                tickets.push(if tag == 0 {
                    self.driver.zero(CLIENT, page << 12, 4096, fua)
                } else {
                    self.driver.write(CLIENT, page << 12, &content(page, tag), fua)
                });
                set(&mut next, page, tag);
            }
        }
        (tickets, next)
    }

    /// Lets writes land; on VexFS commits them.
    fn end_writes(&mut self, tickets: &[Ticket], mut next: Pages) {
        self.maybe = Some(next.clone());
        self.driver.settle();
        let mut all = tickets.iter().all(|t| matches!(&*t.lock(), Some(Ok(()))));
        if self.kind == VolumeKind::VexFs {
            if !all {
                // What is not committed is not there.
                self.maybe = None;
                assert!(self.crashed(), "writes fail only when the power goes");
                return;
            }
            self.next_tag += 1;
            set(&mut next, 0, self.next_tag);
            self.maybe = Some(next.clone());
            let commit = self.driver.write(CLIENT, 0, &content(0, self.next_tag), true);
            self.driver.settle();
            all = matches!(&*commit.lock(), Some(Ok(())));
        }
        assert!(all || self.crashed(), "writes fail only when the power goes");
        if all {
            self.now = next;
            self.maybe = None;
        }
    }

    fn write(&mut self) {
        let (tickets, next) = self.start_writes();
        self.end_writes(&tickets, next);
    }

    fn change(&mut self, change: Change) {
        self.pending = Some(change.clone());
        let outcome = self.driver.change(change);
        self.driver.settle();
        self.account(&outcome);
    }

    fn account(&mut self, outcome: &ChangeTicket) {
        let outcome = outcome.lock().clone();
        let Some(change) = self.pending.clone() else { return };
        match outcome {
            Some(Ok(_)) => {
                self.pending = None;
                self.done(&change);
            }
            Some(Err(e)) => assert!(self.crashed(), "{change:?}: {e}"),
            None => panic!("a change has an outcome when the log is at rest"),
        }
    }

    /// The change is there for good.
    fn done(&mut self, change: &Change) {
        match change {
            Change::Create { name, .. } => self.snapshots.push((name.clone(), self.now.clone())),
            Change::Delete { name } => self.snapshots.retain(|(n, _)| n != name),
            Change::Rollback { name } => {
                let i = self.snapshots.iter().position(|(n, _)| n == name).expect("it is there");
                self.snapshots.truncate(i + 1);
                self.now = self.snapshots[i].1.clone();
            }
            Change::Receive { .. } | Change::Received { .. } => {}
        }
    }

    fn create(&mut self) {
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return self.delete();
        }
        self.next_tag += 1;
        let name = format!("s{}", self.next_tag);
        let change = Change::Create { name, time_ns: self.next_tag };
        if self.kind == VolumeKind::VexFs && once_in(&mut self.rng, 2) {
            // The open epoch is none of the snapshot's.
            let (tickets, next) = self.start_writes();
            self.driver.settle();
            self.change(change);
            self.end_writes(&tickets, next);
        } else {
            self.change(change);
        }
    }

    fn delete(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let i = self.rng.random_range(0..self.snapshots.len());
        let name = self.snapshots[i].0.clone();
        self.change(Change::Delete { name });
    }

    fn roll_back(&mut self) {
        if self.snapshots.is_empty() || !self.close_session() {
            return;
        }
        let i = self.rng.random_range(0..self.snapshots.len());
        let name = self.snapshots[i].0.clone();
        self.pending = Some(Change::Rollback { name: name.clone() });
        let outcome = self.driver.change(Change::Rollback { name });
        self.driver.settle();
        while !self.crashed() && self.driver.store().maps.read().snapshots.rollback().is_some() {
            self.driver.portion();
            if once_in(&mut self.rng, 4) {
                self.driver.checkpoint();
                self.driver.settle();
            }
        }
        self.account(&outcome);
        self.open_session();
    }

    fn portions(&mut self) {
        for _ in 0..self.rng.random_range(1..20) {
            if self.crashed() || self.driver.portion() == Round::Idle {
                break;
            }
        }
    }

    fn content_of(&self, read: impl Fn(u64) -> Vec<u8>) -> Pages {
        let mut found = Pages::new();
        for &page in self.places.iter().chain(&[0]) {
            let bytes = read(page);
            let tag = tag_of(page, &bytes).unwrap_or_else(|| panic!("page {page:#x} holds no version"));
            set(&mut found, page, tag);
        }
        found
    }

    fn live(&self) -> Pages {
        self.content_of(|page| self.driver.read(CLIENT, page << 12, 4096).expect("a page can be read"))
    }

    fn snapshot(&self, name: &str) -> Pages {
        self.content_of(|page| {
            self.driver.read_snapshot(name, page).expect("a page of a snapshot can be read")
        })
    }

    fn check(&mut self) {
        assert_eq!(self.live(), self.now, "the live volume");
        self.check_snapshots();
        self.driver.check_usage();
    }

    fn check_snapshots(&mut self) {
        let names = self.driver.snapshot_names();
        assert_eq!(names, self.snapshots.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
        for (name, pages) in &self.snapshots {
            assert_eq!(self.snapshot(name), *pages, "snapshot {name}");
        }
    }

    /// Ends the run's store and opens what is left of it.
    fn crash(&mut self, crash: Crash) {
        let image = self.driver.disk.image_after(crash);
        // The mounter is gone, too.
        self.boot += 1;
        let disk = SimStorage::new(image, self.rng.random());
        self.driver = Driver::open(disk, self.boot).expect("the store opens after a crash");
        assert!(self.driver.end_rollback(), "a rollback goes on to its end");
        if let Some(change) = self.pending.take() {
            let names = self.driver.snapshot_names();
            let happened = match &change {
                Change::Create { name, .. } => names.contains(name),
                Change::Delete { name } => !names.contains(name),
                Change::Rollback { name } => {
                    let state = self.snapshots.iter().find(|(n, _)| n == name).map(|(_, pages)| pages);
                    let newest = self.snapshots.last().map(|(n, _)| n);
                    // Without newer ones only the content tells, and without a difference nobody can.
                    if newest == Some(name) { state == Some(&self.live()) } else { newest != names.last() }
                }
                Change::Receive { .. } | Change::Received { .. } => false,
            };
            if happened {
                self.done(&change);
            }
        }
        let found = self.live();
        if let Some(maybe) = self.maybe.take() {
            match self.kind {
                VolumeKind::VexFs => assert!(found == self.now || found == maybe, "one commit or the other"),
                VolumeKind::Raw => {
                    for page in &self.places {
                        let f = found.get(page);
                        assert!(f == self.now.get(page) || f == maybe.get(page), "page {page:#x}");
                    }
                }
            }
            self.now = found;
        }
        self.check();
        self.open_session();
    }

    /// Goes on with what is on this disk, after a reboot.
    pub(super) fn go_on(&mut self, disk: SimStorage) {
        self.boot += 1;
        self.driver = Driver::open(disk, self.boot).expect("the store opens");
        self.open_session();
    }

    /// Versions of pages that were never written before.
    pub(super) fn new_tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    pub(super) fn round(&mut self) {
        match self.rng.random_range(0..24) {
            0..3 => self.create(),
            3..5 => self.delete(),
            5 => self.roll_back(),
            6..9 => self.portions(),
            9 => {
                self.driver.checkpoint();
                self.driver.settle();
            }
            10..13 => {
                self.driver.clean();
            }
            13 => self.relocate_late(),
            _ => self.write(),
        }
    }

    /// Copies made before the pages changed hands.
    fn relocate_late(&mut self) {
        let segment = self.rng.random_range(0..(IMAGE_BYTES >> 16) as u32);
        let copies = self.driver.copies_of(segment);
        self.create();
        if !self.crashed() {
            self.write();
        }
        if !self.crashed() {
            self.driver.relocate(copies);
        }
    }
}

pub(super) fn set(pages: &mut Pages, page: u64, tag: u64) {
    if tag == 0 {
        pages.remove(&page);
    } else {
        pages.insert(page, tag);
    }
}

fn random_life(kind: VolumeKind, seed: u64) {
    let mut run = Run::new(kind, seed);
    for round in 0..150 {
        if once_in(&mut run.rng, 12) {
            let n = run.rng.random_range(1..80);
            run.driver.disk.crash_at(n);
        }
        run.round();
        if run.crashed() || once_in(&mut run.rng, 25) {
            let crash = if once_in(&mut run.rng, 2) { Crash::PowerCut } else { Crash::ProcessDeath };
            run.crash(crash);
        } else if round % 8 == 0 {
            run.check();
        }
    }
    // With power that stays on.
    run.crash(Crash::PowerCut);
    while !matches!(run.driver.portion(), Round::Idle) {}
    run.check();
}

#[test]
fn snapshots_of_raw_volumes_survive_random_lives() {
    for_seeds(20, |seed| random_life(VolumeKind::Raw, seed));
}

#[test]
fn snapshots_of_vexfs_volumes_survive_random_lives() {
    for_seeds(20, |seed| random_life(VolumeKind::VexFs, seed));
}

#[test]
fn snapshots_survive_a_crash_at_every_write() {
    for (kind, crash) in [(VolumeKind::Raw, Crash::PowerCut), (VolumeKind::VexFs, Crash::ProcessDeath)] {
        for n in 1.. {
            let mut run = Run::new(kind, n * 5);
            run.driver.disk.crash_at(n);
            let script: [fn(&mut Run); 16] = [
                Run::write,
                Run::create,
                Run::write,
                Run::create,
                |run| {
                    run.driver.clean();
                },
                Run::write,
                Run::delete,
                Run::portions,
                Run::create,
                Run::write,
                Run::roll_back,
                Run::write,
                Run::create,
                |run| {
                    run.driver.checkpoint();
                    run.driver.settle();
                },
                Run::delete,
                Run::portions,
            ];
            for act in script {
                if !run.crashed() {
                    act(&mut run);
                }
            }
            if !run.crashed() {
                assert!(n > 60, "the script writes more than {n} times");
                break;
            }
            run.crash(crash);
            run.write();
            run.check();
        }
    }
}
