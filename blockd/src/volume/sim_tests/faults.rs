//! Bit rot, failing writes and a full image: an error where something is wrong, never wrong data.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{content, for_seeds, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage, flip_bit};

const CLIENT: ClientId = ClientId(1);
const PAGES: u64 = 64;

/// A store with known pages, everything durable, the log going on a little after that.
fn known(seed: u64) -> (Vec<u8>, u64) {
    let image = new_image(VolumeKind::Raw, 2 << 20, (PAGES + 1) * 4096);
    let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 1..=3 {
        for page in 0..PAGES {
            if round == 1 || rng.random_bool(0.4) {
                driver.write(CLIENT, page * 4096, &content(page, round), false);
            }
        }
        for page in 0..PAGES {
            driver.write(CLIENT, page * 4096, &content(page, round), false);
        }
        driver.flush();
        driver.settle();
        if round == 2 && seed.is_multiple_of(2) {
            driver.checkpoint();
            driver.settle();
        }
    }
    // Witnesses: records after the flush say that those before it were durable.
    for _ in 0..2 {
        let ticket = driver.write(CLIENT, PAGES * 4096, &content(PAGES, 9), true);
        driver.settle();
        Driver::outcome(&ticket).expect("a write");
    }
    (driver.disk.image_after(Crash::PowerCut), 3)
}

#[test]
fn a_flipped_bit_gives_an_error_or_the_right_data() {
    for_seeds(4, |seed| {
        let (image, tag) = known(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut noticed = 0;
        for _ in 0..250 {
            let mut bad = image.clone();
            // Only bytes that hold something can matter.
            let byte = loop {
                let byte = rng.random_range(0..bad.len());
                if bad[byte] != 0x5a && bad[byte] != 0 {
                    break byte;
                }
            };
            flip_bit(&mut bad, byte as u64 * 8 + rng.random_range(0..8));
            let boot = rng.random_range(1..=2);
            let Ok(driver) = Driver::open(SimStorage::new(bad, 0), boot) else {
                noticed += 1;
                continue;
            };
            for page in 0..PAGES {
                match driver.read(CLIENT, page * 4096, 4096) {
                    Ok(bytes) => {
                        let found = tag_of(page, &bytes);
                        assert_eq!(found, Some(tag), "page {page} after a flip in byte {byte}");
                    }
                    Err(IoError::Io(text)) => {
                        assert!(text.contains("expected") && text.contains("found"), "{text}");
                        noticed += 1;
                    }
                    Err(e) => panic!("page {page}: {e}"),
                }
            }
        }
        assert!(noticed > 10, "flips are noticed at all ({noticed})");
    });
}

#[test]
fn one_superblock_slot_is_enough_and_none_is_an_error() {
    let (image, tag) = known(1);
    for slot in crate::store::format::superblock::SLOTS {
        let mut bad = image.clone();
        bad[slot as usize + 40] ^= 1;
        let driver = Driver::open(SimStorage::new(bad, 0), 1).expect("the other slot is good");
        let bytes = driver.read(CLIENT, 0, 4096).expect("a page");
        assert_eq!(tag_of(0, &bytes), Some(tag));
    }
    let mut bad = image;
    for slot in crate::store::format::superblock::SLOTS {
        bad[slot as usize + 40] ^= 1;
    }
    let Err(e) = Driver::open(SimStorage::new(bad, 0), 1) else { panic!("no superblock is left") };
    assert!(e.to_string().contains("crc32c"), "{e}");
}

#[test]
fn a_failed_write_stops_the_log_and_loses_nothing_acknowledged() {
    for_seeds(20, |seed| {
        let image = new_image(VolumeKind::Raw, 2 << 20, PAGES * 4096);
        let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let errno = if seed % 2 == 0 { libc::EIO } else { libc::ENOSPC };
        driver.disk.error_at(5 + seed, errno);
        let mut acked = vec![0; PAGES as usize];
        let mut unknown = vec![0; PAGES as usize];
        for tag in 1..20 {
            let page = (seed * 7 + tag * 5) % PAGES;
            let ticket = driver.write(CLIENT, page * 4096, &content(page, tag), tag % 4 == 0);
            driver.settle();
            match Driver::outcome(&ticket) {
                Ok(()) => acked[page as usize] = tag,
                Err(e) => {
                    assert!(e.to_string().contains("restart"), "{e}");
                    unknown[page as usize] = tag;
                }
            }
        }
        let check = |driver: &Driver, unknown: &[u64]| {
            for page in 0..PAGES {
                let bytes = driver.read(CLIENT, page * 4096, 4096).expect("reads go on");
                let found = tag_of(page, &bytes).expect("a version");
                let (a, u) = (acked[page as usize], unknown[page as usize]);
                assert!(found == a || (u != 0 && found == u), "page {page}: found {found}, acknowledged {a}");
            }
        };
        check(&driver, &vec![0; PAGES as usize]);
        let image = driver.disk.image_after(Crash::ProcessDeath);
        drop(driver);
        check(&Driver::open(SimStorage::new(image, 0), 1).expect("the store opens again"), &unknown);
    });
}

#[test]
fn a_full_image_refuses_new_pages_and_goes_on() {
    // Twice as many pages as fit: a thin volume.
    let pages = 1000;
    let image = new_image(VolumeKind::Raw, 2 << 20, pages * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 3), 1).expect("a new store opens");
    let mut written = 0;
    let refused = loop {
        let ticket = driver.write(CLIENT, written * 4096, &content(written, 1), false);
        driver.settle();
        match Driver::outcome(&ticket) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, IoError::NoSpace), "{refused}");
    assert!(written > 200, "only {written} pages fit 2 MiB");
    // Overwrites go on, for ever; so do discards, which make room.
    let mut rng = StdRng::seed_from_u64(1);
    let mut tags = vec![1; written as usize];
    for tag in 2..1500 {
        let page = rng.random_range(0..written);
        let ticket = driver.write(CLIENT, page * 4096, &content(page, tag), tag % 50 == 0);
        driver.settle();
        Driver::outcome(&ticket).unwrap_or_else(|e| panic!("overwrite {tag} of page {page}: {e}"));
        tags[page as usize] = tag;
    }
    let image = driver.disk.image_after(Crash::ProcessDeath);
    let mut driver = Driver::open(SimStorage::new(image, 3), 1).expect("a full store opens");
    for (page, tag) in (0..).zip(&tags) {
        let bytes = driver.read(CLIENT, page * 4096, 4096).expect("a page");
        assert_eq!(tag_of(page, &bytes), Some(*tag), "page {page}");
    }
    driver.check_usage();
    let ticket = driver.zero(CLIENT, 0, 100 * 4096, false);
    driver.settle();
    Driver::outcome(&ticket).expect("a discard works when all is full");
    for page in written..written + 80 {
        let ticket = driver.write(CLIENT, page * 4096, &content(page, 1), false);
        driver.settle();
        Driver::outcome(&ticket).unwrap_or_else(|e| panic!("page {page} after a discard: {e}"));
    }
}
