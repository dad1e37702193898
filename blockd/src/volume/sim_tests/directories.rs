//! Maps whose directories have several levels: stretches of leaves go and come back.

use std::collections::BTreeMap;

use layout::addr::MAP_UNIT_PAGES;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{content, for_seeds, once_in, tag_of};
use crate::device::{ClientId, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};

const CLIENT: ClientId = ClientId(1);
/// A leaf each, with a page or two: three levels, as tests have few references in a page.
const UNITS: u64 = 700;

/// Unit -> version of its first page.
type Model = BTreeMap<u64, u64>;

fn write(driver: &mut Driver, units: impl Iterator<Item = u64>, tag: u64, model: &mut Model) {
    for unit in units {
        let page = unit * MAP_UNIT_PAGES;
        let ticket = driver.write(CLIENT, page << 12, &content(page, tag), false);
        driver.settle();
        Driver::outcome(&ticket).expect("there is room");
        model.insert(unit, tag);
    }
}

fn compare(driver: &Driver, model: &Model) {
    for unit in 0..UNITS {
        let page = unit * MAP_UNIT_PAGES;
        let bytes = driver.read(CLIENT, page << 12, 4096).expect("a page can be read");
        let tag = model.get(&unit).copied().unwrap_or(0);
        assert_eq!(tag_of(page, &bytes), Some(tag), "unit {unit}");
    }
}

#[test]
fn leaves_that_go_and_come_back_are_found_at_the_next_start() {
    for_seeds(10, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let raw_bytes = UNITS * MAP_UNIT_PAGES * 4096;
        let image = new_image(VolumeKind::Raw, 8 << 20, raw_bytes);
        let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut model = Model::new();
        write(&mut driver, 0..UNITS, 1, &mut model);
        for tag in 2..30 {
            let first = rng.random_range(0..UNITS);
            let count = rng.random_range(1..150).min(UNITS - first);
            if once_in(&mut rng, 2) {
                let unit_bytes = MAP_UNIT_PAGES * 4096;
                let ticket = driver.zero(CLIENT, first * unit_bytes, count * unit_bytes, false);
                driver.settle();
                Driver::outcome(&ticket).expect("there is room");
                model.retain(|unit, _| !(first..first + count).contains(unit));
            } else {
                write(&mut driver, first..first + count, tag, &mut model);
            }
            let ticket = driver.checkpoint();
            driver.settle();
            Driver::outcome(&ticket).expect("a checkpoint");
        }
        compare(&driver, &model);
        let image = driver.disk.image_after(Crash::PowerCut);
        let driver = Driver::open(SimStorage::new(image, seed), 2).expect("the store opens again");
        compare(&driver, &model);
    });
}
