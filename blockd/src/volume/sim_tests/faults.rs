//! Bit rot, failing writes and a full image: an error where something is wrong, never wrong data.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{content, for_seeds, tag_of};
use crate::device::{ClientId, IoError, VolumeKind};
use crate::storage::sim::faults::Rot;
use crate::storage::sim::{Crash, SimStorage, flip_bit};
use crate::store::create;
use crate::store::format::record;

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
fn a_superblock_slot_that_cannot_be_read_is_as_a_bad_one() {
    let (image, tag) = known(1);
    let slots = crate::store::format::superblock::SLOTS;
    for bad in slots {
        let disk = SimStorage::new(image.clone(), 0);
        disk.rot(Rot::Unreadable, |block| block * 4096 != bad);
        let driver = Driver::open(disk, 1).expect("the other slot is good");
        let bytes = driver.read(CLIENT, 0, 4096).expect("a page");
        assert_eq!(tag_of(0, &bytes), Some(tag));
    }
    let disk = SimStorage::new(image, 0);
    for bad in slots {
        disk.rot(Rot::Unreadable, |block| block * 4096 != bad);
    }
    let Err(e) = Driver::open(disk, 1) else { panic!("no superblock is left") };
    assert!(e.to_string().contains("reading the superblock at byte 0"), "{e}");
}

#[test]
fn a_stretch_of_damage_wherever_it_is_loses_nothing_silently() {
    // As long as a segment: it takes records, the link behind them, and the first records of the next segment.
    const STRETCH: usize = 60 << 10;
    let image = new_image(VolumeKind::Raw, 2 << 20, (PAGES + 1) * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("a new store opens");
    // Long records, so that what follows them is in other segments.
    let tag = 7;
    for page in (0..PAGES).step_by(8) {
        let bytes: Vec<u8> = (page..page + 8).flat_map(|page| content(page, tag)).collect();
        driver.write(CLIENT, page * 4096, &bytes, true);
        driver.settle();
    }
    for tag in 1..3 {
        driver.write(CLIENT, PAGES * 4096, &content(PAGES, tag), true);
        driver.settle();
    }
    let image = driver.disk.image_after(Crash::PowerCut);
    let mut garbage = vec![0; STRETCH];
    StdRng::seed_from_u64(1).fill(&mut garbage[..]);
    let mut refused = 0;
    // The superblocks apart; and what ends the log, which nothing knows of.
    let last =
        image.chunks(4096).rposition(|page| page.starts_with(&record::MAGIC)).expect("a record") * 4096;
    for start in (64 << 10..last - STRETCH).step_by(4096) {
        let mut bad = image.clone();
        bad[start..start + STRETCH].copy_from_slice(&garbage);
        let Ok(driver) = Driver::open(SimStorage::new(bad, 0), 2) else {
            refused += 1;
            continue;
        };
        for page in 0..PAGES {
            match driver.read(CLIENT, page * 4096, 4096) {
                Ok(bytes) => assert_eq!(tag_of(page, &bytes), Some(tag), "page {page}, damage at {start}"),
                Err(e) => assert!(matches!(e, IoError::Io(_)), "page {page}: {e}"),
            }
        }
    }
    assert!(refused > 100, "only {refused} starts are refused");
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
    assert!(written > 180, "only {written} pages fit 2 MiB");
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

#[test]
fn a_full_image_starts_again_and_again() {
    // Of all sizes, so that some have just as many segments free as they must.
    for pages in 0..30 {
        let raw_pages = 1000;
        let image = new_image(VolumeKind::Raw, 2 << 20, raw_pages * 4096);
        let mut driver = Driver::open(SimStorage::new(image, pages), 1).expect("a new store opens");
        let mut tags = Vec::new();
        let mut rng = StdRng::seed_from_u64(pages);
        loop {
            let ticket =
                driver.write(CLIENT, tags.len() as u64 * 4096, &content(tags.len() as u64, 1), false);
            driver.settle();
            if Driver::outcome(&ticket).is_err() {
                break;
            }
            tags.push(1);
        }
        for tag in 2..100 + pages {
            let page = rng.random_range(0..tags.len());
            let ticket = driver.write(CLIENT, page as u64 * 4096, &content(page as u64, tag), false);
            driver.settle();
            Driver::outcome(&ticket).expect("an overwrite");
            tags[page] = tag;
        }
        for start in 0..12 {
            // Nothing is written in between.
            let image = driver.disk.image_after(Crash::ProcessDeath);
            let opened = Driver::open(SimStorage::new(image, start), 1);
            driver = opened.unwrap_or_else(|e| panic!("start {start} of {pages}: {e}"));
        }
        for (page, tag) in (0..).zip(&mut tags) {
            let bytes = driver.read(CLIENT, page * 4096, 4096).expect("a page");
            assert_eq!(tag_of(page, &bytes), Some(*tag), "page {page}");
            let ticket = driver.write(CLIENT, page * 4096, &content(page, 200), false);
            driver.settle();
            Driver::outcome(&ticket).unwrap_or_else(|e| panic!("page {page} after starts: {e}"));
        }
        driver.check_usage();
    }
}

#[test]
fn a_full_raw_volume_takes_random_overwrites_in_flight_for_ever() {
    for_seeds(6, |seed| {
        let pages = 800u64;
        let image_bytes = create::backing_for_raw(pages * 4096).expect("a size that fits") as usize;
        let image = new_image(VolumeKind::Raw, image_bytes, pages * 4096);
        let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tags = vec![0; pages as usize];
        for round in 0..250u64 {
            let mut batch = std::collections::BTreeMap::new();
            for i in 0..32 {
                let page = if round < 25 { round * 32 + i } else { rng.random_range(0..pages) };
                let tag = round * 32 + i + 1;
                batch
                    .entry(page)
                    .or_insert_with(|| (driver.write(CLIENT, page * 4096, &content(page, tag), false), tag));
            }
            driver.settle();
            for (page, (ticket, tag)) in batch {
                Driver::outcome(&ticket).unwrap_or_else(|e| panic!("round {round}, page {page}: {e}"));
                tags[page as usize] = tag;
            }
        }
        for (page, tag) in (0..).zip(&tags) {
            let bytes = driver.read(CLIENT, page * 4096, 4096).expect("a page");
            assert_eq!(tag_of(page, &bytes), Some(*tag), "page {page}");
        }
        driver.check_usage();
    });
}

#[test]
fn a_full_vexfs_volume_still_frees_and_commits() {
    use layout::addr::{CLASS0_BASE, COMMAND_PAGE, INODE_BASE};
    use layout::command::{CMD_FREE_RANGES, CMD_OPEN, COMMAND_MAGIC, Command};
    use zerocopy::{FromZeros, IntoBytes};

    let image = new_image(VolumeKind::VexFs, 2 << 20, 0);
    let mut driver = Driver::open(SimStorage::new(image, 3), 1).expect("a new store opens");
    let command = |driver: &mut Driver, op: u32, id: u64, ranges: &[(u64, u64)]| {
        let mut command = Command::new_zeroed();
        command.magic = COMMAND_MAGIC;
        command.op = op.into();
        command.id = id.into();
        command.boot_id = [1; 16];
        if op != CMD_OPEN {
            command.session = driver.store().maps.read().session.session().into();
        }
        command.range_count = (ranges.len() as u32).into();
        for (to, (first, count)) in command.ranges.iter_mut().zip(ranges) {
            to.first_page = (*first).into();
            to.page_count = (*count).into();
        }
        let ticket = driver.write(CLIENT, COMMAND_PAGE.byte(), command.as_bytes(), false);
        driver.settle();
        Driver::outcome(&ticket).expect("the command is answered");
    };
    let put = |driver: &mut Driver, byte: u64, tag: u64| {
        let ticket = driver.write(CLIENT, byte, &content(byte >> 12, tag), byte == 0);
        driver.settle();
        Driver::outcome(&ticket)
    };
    command(&mut driver, CMD_OPEN, 1, &[]);
    let mut id = 1;
    let mut room = Vec::new();
    for round in 1..=4u64 {
        let mut filled = 0;
        while put(&mut driver, CLASS0_BASE + (filled << 12), round).is_ok() {
            filled += 1;
            if filled % 40 == 0 {
                put(&mut driver, 0, round * 1000 + filled).expect("a commit");
            }
        }
        room.push(filled);
        // No data goes in any more; metadata, the commit and frees do.
        put(&mut driver, INODE_BASE, round).expect("metadata goes into the reserve");
        put(&mut driver, 0, round * 1000 + 999).expect("a commit works when all is full");
        id += 1;
        command(&mut driver, CMD_FREE_RANGES, id, &[(CLASS0_BASE >> 12, filled)]);
        put(&mut driver, INODE_BASE, round + 100).expect("metadata of a delete");
        put(&mut driver, 0, round * 1000 + 1000).expect("the commit of a delete");
        driver.check_usage();
    }
    assert!(room[0] > 150, "only {} pages fit", room[0]);
    assert!(room.iter().all(|&r| r + 8 >= room[0]), "what was freed can be filled again: {room:?}");
}
