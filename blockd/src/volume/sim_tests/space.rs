//! Space: nobody is refused room while there is some, however it has to be made.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
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
    model: Model,
    next_tag: u64,
    refused: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let image = new_image(VolumeKind::Raw, IMAGE_BYTES, PAGES * 4096);
        let driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let rng = StdRng::seed_from_u64(seed ^ 0x7370_6163);
        Run { rng, driver, model: Model::new(), next_tag: 1, refused: 0 }
    }

    /// Live pages up to which new ones must be taken: all but what the map, commits and records may need.
    fn room(&self) -> u64 {
        let store = self.driver.store();
        volume_capacity_pages(store.kind, store.geometry) * 7 / 8
    }

    fn write(&mut self, first: u64, count: u64) {
        let tags: Vec<u64> = (self.next_tag..).take(count as usize).collect();
        self.next_tag += count;
        let bytes: Vec<u8> = (first..).zip(&tags).flat_map(|(page, &tag)| content(page, tag)).collect();
        let new = (first..first + count).filter(|page| !self.model.contains_key(page)).count() as u64;
        let fua = once_in(&mut self.rng, 8);
        let ticket = self.driver.write(CLIENT, first * 4096, &bytes, fua);
        self.driver.settle();
        match Driver::outcome(&ticket) {
            Ok(()) => self.model.extend((first..).zip(tags)),
            Err(IoError::NoSpace) => {
                let live = self.model.len() as u64;
                assert!(new > 0, "an overwrite of {count} pages is refused, {live} are live");
                assert!(
                    live + new > self.room(),
                    "{new} new pages refused, {live} live, room {}",
                    self.room()
                );
                self.refused += 1;
                // A write that is refused may have been carried out in part.
                for page in first..first + count {
                    let bytes = self.driver.read(CLIENT, page * 4096, 4096).expect("a page");
                    match tag_of(page, &bytes) {
                        Some(0) => _ = self.model.remove(&page),
                        Some(tag) => _ = self.model.insert(page, tag),
                        None => panic!("page {page} is neither old nor new"),
                    }
                }
            }
            Err(e) => panic!("a write: {e}"),
        }
    }

    fn discard(&mut self, first: u64, count: u64) {
        let ticket = self.driver.zero(CLIENT, first * 4096, count * 4096, false);
        self.driver.settle();
        Driver::outcome(&ticket).expect("a discard needs no room");
        self.model.retain(|page, _| !(first..first + count).contains(page));
    }

    fn restart(&mut self) {
        let image = self.driver.disk.image_after(Crash::ProcessDeath);
        let disk = SimStorage::new(image, self.rng.random());
        self.driver = Driver::open(disk, 1).expect("a full store opens");
    }

    fn check(&self) {
        for page in 0..PAGES {
            let bytes = self.driver.read(CLIENT, page * 4096, 4096).expect("a page");
            let expected = self.model.get(&page).copied().unwrap_or(0);
            assert_eq!(tag_of(page, &bytes), Some(expected), "page {page}");
        }
        self.driver.check_usage();
    }
}

#[test]
fn nobody_is_refused_room_while_dead_space_remains() {
    for_seeds(8, |seed| {
        let mut run = Run::new(seed);
        // Filled to the brim, then changed at random, sometimes emptied by much.
        for round in 0..500 {
            let first = run.rng.random_range(0..PAGES - 16);
            let count = run.rng.random_range(1..=16);
            match run.rng.random_range(0..40) {
                0 => run.discard(first, (count * 8).min(PAGES - first)),
                1..=3 => run.discard(first, count),
                4 => run.restart(),
                _ if round < 80 => run.write(round % 56 * 16, 16),
                _ => run.write(first, count),
            }
        }
        run.check();
        assert!(run.refused > 0, "the image is full at some time");
    });
}
