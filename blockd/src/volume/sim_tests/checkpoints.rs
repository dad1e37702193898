//! Checkpoints that are under way while pages are written, freed, committed and rolled back, with a crash at every write.

use std::collections::BTreeMap;

use layout::addr::{CLASS0_BASE, COMMAND_PAGE, MAP_UNIT_PAGES};
use layout::command::{CMD_OPEN, COMMAND_MAGIC, Command};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromZeros, IntoBytes};

use super::driver::{Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
use crate::store::map::Lookup;
use crate::store::recover::read_superblock;

const IMAGE_BYTES: usize = 4 << 20;
const CLIENT: ClientId = ClientId(1);

/// Page -> version; absent = zeros.
type Pages = BTreeMap<u64, u64>;

/// Leaves of their own, some of a single page, and a dense stretch with several leaves.
fn places() -> Vec<u64> {
    let base = CLASS0_BASE >> 12;
    let far = (1..30).flat_map(|unit| {
        let first = base + unit * MAP_UNIT_PAGES;
        [first, first + 7, first + 100].into_iter().take(if unit % 3 == 0 { 1 } else { 3 })
    });
    (0..200).map(|i| base + i * 3).chain(far).collect()
}

struct Run {
    rng: StdRng,
    driver: Driver,
    places: Vec<u64>,
    committed: Pages,
    open: Pages,
    /// What the one request that was not acknowledged would have made of the two.
    doubt: Option<(Pages, Pages)>,
    next_tag: u64,
    boot: u8,
    /// Checkpoints that were overtaken by a commit or rollback.
    overtaken: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let image = new_image(VolumeKind::VexFs, IMAGE_BYTES, 0);
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut run = Run {
            rng: StdRng::seed_from_u64(seed ^ 0x6368_6b00),
            driver,
            places: places(),
            committed: Pages::new(),
            open: Pages::new(),
            doubt: None,
            next_tag: 1,
            boot: 1,
            overtaken: 0,
        };
        run.open_session();
        run
    }

    /// Steps until the request has its outcome, and no further: a checkpoint under way stays so.
    fn finish(&mut self, ticket: &Ticket, committed: Pages, open: Pages) {
        for _ in 0..10_000 {
            if let Some(outcome) = &*ticket.lock() {
                match outcome {
                    Ok(()) => (self.committed, self.open) = (committed, open),
                    Err(e) => {
                        assert!(self.driver.disk.crashed(), "{e}");
                        self.doubt.get_or_insert((committed, open));
                    }
                }
                return;
            }
            self.driver.steps(0);
            if ticket.lock().is_none() && self.driver.is_stalled() {
                self.driver.clean();
            } else if ticket.lock().is_none() {
                self.driver.steps(1);
            }
        }
        panic!("a request is never answered");
    }

    /// Rolls back whatever is open.
    fn open_session(&mut self) {
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = CMD_OPEN.into();
        command.id = 1.into();
        command.boot_id = [self.boot; 16];
        let ticket = self.driver.write(CLIENT, COMMAND_PAGE.byte(), command.as_bytes(), false);
        self.finish(&ticket, self.committed.clone(), self.committed.clone());
    }

    fn change(&mut self) {
        let page = self.places[self.rng.random_range(0..self.places.len())];
        let (committed, mut open) = (self.committed.clone(), self.open.clone());
        match self.rng.random_range(0..16) {
            0 => {
                let count = self.rng.random_range(1..=60);
                open.retain(|p, _| !(page..page + count).contains(p));
                let ticket = self.driver.zero(CLIENT, page << 12, count << 12, false);
                self.finish(&ticket, committed, open);
            }
            1 | 2 => {
                self.next_tag += 1;
                let tag = self.next_tag;
                open.insert(0, tag);
                let ticket = self.driver.write(CLIENT, 0, &content(0, tag), true);
                self.finish(&ticket, open.clone(), open);
            }
            3 if once_in(&mut self.rng, 3) => self.open_session(),
            _ => {
                self.next_tag += 1;
                let tag = self.next_tag;
                open.insert(page, tag);
                let ticket = self.driver.write(CLIENT, page << 12, &content(page, tag), false);
                self.finish(&ticket, committed, open);
            }
        }
    }

    /// A checkpoint, and changes at each of its steps.
    fn checkpoint_among_changes(&mut self) {
        let ticket = self.driver.checkpoint();
        let before = self.committed.clone();
        self.driver.steps(0);
        while ticket.lock().is_none() {
            self.change();
            if once_in(&mut self.rng, 3) {
                self.driver.steps(1);
            }
        }
        self.overtaken += u32::from(before != self.committed);
    }

    fn found(&self) -> Pages {
        let pages = [0].into_iter().chain(self.places.iter().copied());
        let read = |page: u64| {
            let bytes = self.driver.read(CLIENT, page << 12, 4096).expect("a page can be read");
            tag_of(page, &bytes).unwrap_or_else(|| panic!("page {page:#x} holds a mixture"))
        };
        pages.map(|page| (page, read(page))).filter(|(_, tag)| *tag != 0).collect()
    }

    fn check(&mut self) {
        self.driver.settle();
        assert_eq!(self.found(), self.open);
        self.driver.check_usage();
    }

    fn crash(&mut self, crash: Crash) {
        let image = self.driver.disk.image_after(crash);
        self.boot += u8::from(crash == Crash::PowerCut);
        let disk = SimStorage::new(image, self.rng.random());
        self.driver = Driver::open(disk, self.boot).expect("the store opens after a crash");
        let found = self.found();
        let doubt = self.doubt.take();
        if crash == Crash::PowerCut {
            let fits = found == self.committed || doubt.is_some_and(|(committed, _)| found == committed);
            assert!(fits, "after a power cut: {found:?}, not {:?}", self.committed);
        } else {
            let fits = found == self.open || doubt.is_some_and(|(_, open)| found == open);
            assert!(fits, "after the death of the process: {found:?}, not {:?}", self.open);
        }
        self.driver.check_usage();
        // A new session takes over what is committed; after a power cut that is all there is.
        self.open_session();
        self.driver.settle();
        self.open = self.found();
        self.committed = self.open.clone();
    }
}

#[test]
fn checkpoints_hold_the_state_of_their_beginning_whatever_is_done_meanwhile() {
    for_seeds(12, |seed| {
        let mut run = Run::new(seed);
        for round in 0..12 {
            run.checkpoint_among_changes();
            run.check();
            if round % 3 == 2 {
                let crash = if once_in(&mut run.rng, 2) { Crash::PowerCut } else { Crash::ProcessDeath };
                run.crash(crash);
            } else {
                run.driver.checkpoint();
                run.driver.settle();
            }
        }
        assert!(run.overtaken > 0, "commits overtake checkpoints");
    });
}

#[test]
fn a_crash_at_every_write_of_a_checkpoint_and_of_the_records_beside_it() {
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        let mut crashes = 0;
        for n in 1..=60 {
            let mut run = Run::new(n * 2 + u64::from(crash == Crash::PowerCut));
            for _ in 0..60 {
                run.change();
            }
            run.checkpoint_among_changes();
            run.driver.disk.crash_at(n);
            run.checkpoint_among_changes();
            if !run.driver.disk.crashed() {
                continue;
            }
            crashes += 1;
            run.crash(crash);
            run.checkpoint_among_changes();
            run.check();
        }
        assert!(crashes > 12, "a checkpoint among changes takes more than {crashes} writes");
    }
}

#[test]
fn who_asks_while_a_checkpoint_is_under_way_gets_the_next_one() {
    let mut run = Run::new(1);
    let first = run.driver.checkpoint();
    run.driver.steps(0);
    run.change();
    let page = run.places[0];
    let ticket = run.driver.write(CLIENT, page << 12, &content(page, 7), false);
    let generation = |run: &Run| read_superblock(&run.driver.disk).expect("a superblock").generation;
    let second = run.driver.checkpoint();
    while first.lock().is_none() {
        run.driver.steps(1);
    }
    let between = generation(&run);
    assert!(second.lock().is_none(), "the second begins only now");
    run.driver.settle();
    Driver::outcome(&ticket).expect("a write");
    Driver::outcome(&second).expect("a checkpoint");
    assert_eq!(generation(&run), between + 1);
    assert!(matches!(run.driver.store().maps.read().lookup(page), Lookup::Mapped(_)));
}

#[test]
fn a_checkpoint_that_writes_little_leaves_the_rest_where_it_is() {
    let mut run = Run::new(3);
    for i in 0..run.places.len() {
        let page = run.places[i];
        let ticket = run.driver.write(CLIENT, page << 12, &content(page, 5), false);
        run.driver.settle();
        Driver::outcome(&ticket).expect("a write");
    }
    let commit = run.driver.write(CLIENT, 0, &content(0, 5), true);
    run.driver.settle();
    Driver::outcome(&commit).expect("a commit");
    run.driver.checkpoint();
    run.driver.settle();
    let places = |run: &Run| -> Vec<_> {
        let store = run.driver.store();
        let maps = store.maps.read();
        maps.base.leaves_from(0).map(|(key, _, disk)| (key, disk)).collect()
    };
    let before = places(&run);
    let page = run.places[run.places.len() - 1];
    let ticket = run.driver.write(CLIENT, page << 12, &content(page, 6), false);
    let commit = run.driver.write(CLIENT, 0, &content(0, 6), true);
    run.driver.settle();
    Driver::outcome(&ticket).expect("a write");
    Driver::outcome(&commit).expect("a commit");
    let writes = run.driver.disk.writes();
    run.driver.checkpoint();
    run.driver.settle();
    let moved = before.iter().zip(places(&run)).filter(|(a, b)| *a != b).count();
    assert_eq!(moved, 1, "one leaf of {} was changed", before.len());
    // A leaf, a directory page, payload, root, two slots, perhaps the header of a segment.
    assert!(run.driver.disk.writes() - writes <= 8);
}
