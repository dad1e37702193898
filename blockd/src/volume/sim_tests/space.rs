//! Space: nobody is refused room while there is some, however it has to be made, and nobody waits for ever for what there is
//! not.

use std::collections::BTreeMap;

use layout::addr::{CLASS0_BASE, COMMAND_PAGE};
use layout::command::{CMD_OPEN, COMMAND_MAGIC, Command};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromZeros, IntoBytes};

use super::driver::{Driver, Ticket, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
use crate::store::create::{geometry, holds_raw};
use crate::store::space::volume_capacity_pages;

const CLIENT: ClientId = ClientId(1);
const IMAGE_BYTES: usize = 4 << 20;
/// More than the image holds.
const PAGES: u64 = 900;

/// What the volume holds: page -> version.
type Model = BTreeMap<u64, u64>;

struct Run {
    rng: StdRng,
    driver: Driver,
    kind: VolumeKind,
    /// The first page used.
    base: u64,
    boot: u8,
    model: Model,
    next_tag: u64,
    refused: u64,
}

impl Run {
    fn new(kind: VolumeKind, seed: u64) -> Self {
        let raw = kind == VolumeKind::Raw;
        let image = new_image(kind, IMAGE_BYTES, if raw { PAGES * 4096 } else { 0 });
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let rng = StdRng::seed_from_u64(seed ^ 0x7370_6163);
        let base = if raw { 0 } else { CLASS0_BASE >> 12 };
        let mut run = Run { rng, driver, kind, base, boot: 1, model: Model::new(), next_tag: 1, refused: 0 };
        run.open_session();
        run
    }

    fn open_session(&mut self) {
        if self.kind == VolumeKind::VexFs {
            let mut command = Command::new_zeroed();
            command.magic = COMMAND_MAGIC;
            command.op = CMD_OPEN.into();
            command.id = 1.into();
            command.boot_id = [self.boot; 16];
            let ticket = self.driver.write(CLIENT, COMMAND_PAGE.byte(), command.as_bytes(), false);
            self.finish(&ticket).expect("a session is opened");
        }
    }

    fn finish(&mut self, ticket: &Ticket) -> Result<(), IoError> {
        self.driver.settle();
        Driver::outcome(ticket)
    }

    /// Live pages up to which new ones must be taken: all but what the map, commits and records may need.
    fn room(&self) -> u64 {
        let store = self.driver.store();
        volume_capacity_pages(store.kind, store.geometry) * 7 / 8
    }

    /// Everything so far is committed, and what that replaces can go.
    fn commit(&mut self) {
        if self.kind == VolumeKind::VexFs {
            let fua = once_in(&mut self.rng, 2);
            self.next_tag += 1;
            let ticket = self.driver.write(CLIENT, 0, &content(0, self.next_tag), fua);
            self.finish(&ticket).expect("a commit is never refused");
        }
    }

    fn write(&mut self, first: u64, count: u64) {
        // What an open epoch replaces stays until it is committed.
        if once_in(&mut self.rng, 3) {
            self.commit();
        }
        if self.try_write(first, count) {
            return;
        }
        self.commit();
        if self.try_write(first, count) {
            return;
        }
        let (live, room) = (self.model.len() as u64, self.room());
        let new = (first..first + count).filter(|page| !self.model.contains_key(page)).count() as u64;
        assert!(new > 0 || count > 8, "an overwrite of {count} pages is refused, {live} are live");
        assert!(live + new > room, "{count} pages ({new} of them new) refused, {live} live, room {room}");
        self.refused += 1;
    }

    /// Whether it was taken.
    fn try_write(&mut self, first: u64, count: u64) -> bool {
        let tags: Vec<u64> = (self.next_tag..).take(count as usize).collect();
        self.next_tag += count;
        let bytes: Vec<u8> = (first..).zip(&tags).flat_map(|(page, &tag)| content(page, tag)).collect();
        let fua = once_in(&mut self.rng, 8);
        let ticket = self.driver.write(CLIENT, (self.base + first) * 4096, &bytes, fua);
        match self.finish(&ticket) {
            Ok(()) => {
                self.model.extend((first..first + count).zip(tags));
                true
            }
            Err(IoError::NoSpace) => {
                // It may have been carried out in part.
                for page in first..first + count {
                    match self.tag(page) {
                        0 => _ = self.model.remove(&page),
                        tag => _ = self.model.insert(page, tag),
                    }
                }
                false
            }
            Err(e) => panic!("a write: {e}"),
        }
    }

    fn tag(&self, page: u64) -> u64 {
        let bytes = self.driver.read(CLIENT, (self.base + page) * 4096, 4096).expect("a page");
        tag_of(page, &bytes).unwrap_or_else(|| panic!("page {page} is neither old nor new"))
    }

    fn discard(&mut self, first: u64, count: u64) {
        let ticket = self.driver.zero(CLIENT, (self.base + first) * 4096, count * 4096, false);
        self.finish(&ticket).expect("a discard needs no room");
        self.model.retain(|page, _| !(first..first + count).contains(page));
    }

    fn restart(&mut self) {
        self.commit();
        let ticket = self.driver.flush();
        self.finish(&ticket).expect("a flush");
        let image = self.driver.disk.image_after(Crash::ProcessDeath);
        let disk = SimStorage::new(image, self.rng.random());
        self.boot += 1;
        self.driver = Driver::open(disk, self.boot).expect("a full store opens");
        self.open_session();
    }

    fn check(&self) {
        for page in 0..PAGES {
            assert_eq!(self.tag(page), self.model.get(&page).copied().unwrap_or(0), "page {page}");
        }
        self.driver.check_usage();
    }
}

fn fill_and_change(kind: VolumeKind, seed: u64) {
    let mut run = Run::new(kind, seed);
    // Filled to the brim, then changed at random, sometimes emptied by much.
    for round in 0..400 {
        let first = run.rng.random_range(0..PAGES - 16);
        let count = run.rng.random_range(1..=8);
        match run.rng.random_range(0..40) {
            0 => run.discard(first, (count * 16).min(PAGES - first)),
            1..=3 => run.discard(first, count),
            4 => run.restart(),
            _ if round < 80 => run.write(round % 56 * 16, 16),
            _ => run.write(first, count),
        }
    }
    run.check();
    assert!(run.refused > 0, "the image is full at some time");
}

#[test]
fn nobody_is_refused_room_while_dead_space_remains() {
    for_seeds(4, |seed| fill_and_change(VolumeKind::Raw, seed));
}

#[test]
fn a_write_after_a_commit_is_not_refused_while_dead_space_remains() {
    for_seeds(4, |seed| fill_and_change(VolumeKind::VexFs, seed));
}

/// The image has room for all pages of the volume, so no write is refused, however many others are under way.
#[test]
fn a_discarded_page_is_written_again_while_others_are_overwritten() {
    let geometry = geometry(IMAGE_BYTES as u64, 64 << 10).expect("a size that is allowed");
    let pages = (0..PAGES).rev().find(|pages| holds_raw(geometry, pages * 4096)).expect("some fit");
    let image = new_image(VolumeKind::Raw, IMAGE_BYTES, pages * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("a new store opens");
    let write = |driver: &mut Driver, first: u64, count: u64, tag: u64| {
        let bytes: Vec<u8> = (first..first + count).flat_map(|page| content(page, tag)).collect();
        driver.write(CLIENT, first * 4096, &bytes, false)
    };
    for first in (0..pages).step_by(10) {
        let ticket = write(&mut driver, first, 10.min(pages - first), 1);
        driver.settle();
        Driver::outcome(&ticket).expect("a page of a volume that fits whole");
    }
    let discard = driver.zero(CLIENT, 0, 4096, false);
    driver.settle();
    Driver::outcome(&discard).expect("a discard");
    let overwrites: Vec<Ticket> = (1..20).map(|i| write(&mut driver, i * 10, 10, 2)).collect();
    let again = write(&mut driver, 0, 1, 2);
    driver.settle();
    for ticket in overwrites.iter().chain([&again]) {
        Driver::outcome(ticket).expect("a page of a volume that fits whole");
    }
}
