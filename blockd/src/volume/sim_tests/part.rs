//! Requests of parts of pages: right whatever else is under way, atomic below a page, and not one by one.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{for_seeds, once_in};
use crate::device::{ClientId, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};

const CLIENT: ClientId = ClientId(1);
const IMAGE_BYTES: usize = 4 << 20;
const PAGES: u64 = 300;

fn volume(seed: u64) -> Driver {
    let image = new_image(VolumeKind::Raw, IMAGE_BYTES, PAGES * 4096);
    Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens")
}

#[test]
fn requests_in_flight_take_effect_in_the_order_they_came() {
    for_seeds(12, |seed| {
        let mut driver = volume(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        // Few pages, so that nearly every request meets another one.
        let mut model = vec![0u8; 6 * 4096];
        for _ in 0..60 {
            let mut tickets = Vec::new();
            for _ in 0..rng.random_range(1..30) {
                let unit = [1, 512, 4096][rng.random_range(0..3)];
                let start = rng.random_range(0..model.len() / unit) * unit;
                let len = (rng.random_range(1..=8192 / unit) * unit).min(model.len() - start);
                let fua = once_in(&mut rng, 8);
                if once_in(&mut rng, 4) {
                    model[start..start + len].fill(0);
                    tickets.push(driver.zero(CLIENT, start as u64, len as u64, fua));
                } else {
                    model[start..start + len].fill_with(|| rng.random());
                    tickets.push(driver.write(CLIENT, start as u64, &model[start..start + len], fua));
                }
                if once_in(&mut rng, 6) {
                    let steps = rng.random_range(0..4);
                    driver.steps(steps);
                }
            }
            if once_in(&mut rng, 10) {
                driver.clean();
            }
            driver.settle();
            tickets.iter().for_each(|t| Driver::outcome(t).expect("a request"));
            assert!(driver.read(CLIENT, 0, model.len()).expect("a read") == model);
        }
        driver.check_usage();
    });
}

#[test]
fn small_requests_in_sequence_share_records() {
    let mut driver = volume(1);
    let before = driver.disk.writes();
    let tickets: Vec<_> =
        (0..64u64).map(|i| driver.write(CLIENT, i * 512, &[i as u8 + 1; 512], false)).collect();
    driver.settle();
    tickets.iter().for_each(|t| Driver::outcome(t).expect("a write"));
    let records = driver.disk.writes() - before;
    assert!(records <= 32, "{records} records for 64 requests of 512 bytes");
    let found = driver.read(CLIENT, 0, 64 * 512).expect("a read");
    assert!(found.chunks(512).zip(1..).all(|(sector, i)| sector.iter().all(|&b| b == i)));
}

/// Bytes across the border of two pages, with all others there are: whole or not at all.
#[test]
fn requests_below_a_page_are_atomic_across_a_crash_at_every_write() {
    const PAIRS: u64 = 40;
    let mut torn_possible = 0;
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in 1.. {
            let mut driver = volume(n);
            let mut rng = StdRng::seed_from_u64(n);
            driver.disk.crash_at(n);
            'run: for version in 1..5u8 {
                for pair in 0..PAIRS {
                    // Single pages between them, so that pairs begin at every place of a record.
                    if once_in(&mut rng, 3) {
                        driver.write(CLIENT, (2 * PAIRS + pair) * 4096, &[version; 4096], false);
                    }
                    let at = pair * 8192 + 4096 - 1024;
                    driver.write(CLIENT, at, &[version; 2048], false);
                    torn_possible += 1;
                }
                driver.settle();
                if driver.disk.crashed() {
                    break 'run;
                }
            }
            if !driver.disk.crashed() {
                assert!(n > 40, "it writes more than {n} times");
                break;
            }
            let boot = if crash == Crash::PowerCut { 2 } else { 1 };
            let driver =
                Driver::open(SimStorage::new(driver.disk.image_after(crash), n), boot).expect("it opens");
            for pair in 0..PAIRS {
                let found = driver.read(CLIENT, pair * 8192 + 4096 - 1024, 2048).expect("a read");
                assert!(found.iter().all(|b| *b == found[0]), "crash at write {n}: pair {pair} is torn");
            }
        }
    }
    assert!(torn_possible > 1000);
}
