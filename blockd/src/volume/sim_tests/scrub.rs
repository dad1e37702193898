//! A scrub finds each damaged page that counts, and accuses no other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::content;
use super::driver::{Driver, new_image};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, VolumeKind};
use crate::storage::Storage;
use crate::storage::sim::SimStorage;
use crate::store::format::segment::Stream;
use crate::store::format::superblock::SLOTS;
use crate::store::format::{Loc, record};
use crate::store::map::segments::State;
use crate::store::scrub::{Control, Damaged, Report};
use crate::store::snapshot::change::Change;

const CLIENT: ClientId = ClientId(1);
const IMAGE_BYTES: usize = 4 << 20;
const PAGES: u64 = 300;

fn scrub(driver: &Driver) -> Report {
    let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    driver.store().scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut |_| {} })
}

/// A raw volume with a past: overwritten, cleaned, checkpointed, opened anew, with records after the checkpoint.
fn lived_in(seed: u64) -> Driver {
    let image = new_image(VolumeKind::Raw, IMAGE_BYTES, PAGES * 4096);
    let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
    let mut rng = StdRng::seed_from_u64(seed);
    for tag in 1..120 {
        let first = rng.random_range(0..PAGES - 16);
        let bytes: Vec<u8> = (first..first + 1 + tag % 16).flat_map(|page| content(page, tag)).collect();
        driver.write(CLIENT, first * 4096, &bytes, tag % 7 == 0);
        driver.settle();
        match tag {
            40 => drop(driver.checkpoint()),
            60 => {
                driver.clean();
            }
            80 => {
                let image = driver.disk.image_after(crate::storage::sim::Crash::ProcessDeath);
                driver = Driver::open(SimStorage::new(image, seed), 1).expect("it opens again");
            }
            _ => {}
        }
        driver.settle();
    }
    driver.flush();
    driver.settle();
    driver
}

/// What each page of the image is, by the map and the records.
fn pages_that_count(driver: &Driver) -> BTreeMap<u64, Damaged> {
    let store = driver.store();
    let mut pages = BTreeMap::new();
    let keys: Vec<u64> = store.maps.read().base.leaves_from(0).map(|(key, _, _)| key).collect();
    store.maps.write().base.hold(true);
    for &key in &keys {
        store.load_leaf(key).expect("every leaf can be read");
    }
    let maps = store.maps.read();
    for (key, _, disk) in maps.base.leaves_from(0) {
        let unit = key & !(layout::addr::MAP_UNIT_PAGES - 1);
        for e in maps.base.entries(key).expect("just loaded") {
            pages
                .insert(store.geometry.byte(e.loc()), Damaged::Page { device_page: unit + u64::from(e.rel) });
        }
        if let Some(disk) = disk {
            pages.insert(store.geometry.byte(disk.loc), Damaged::MapLeaf { device_page: key });
        }
    }
    for (i, s) in (0..).zip(maps.segments.all()) {
        if s.state == State::Free || s.stream == Stream::Meta || s.live() == 0 {
            continue;
        }
        let mut at = 1;
        while at < s.used_pages {
            let byte = store.geometry.byte(Loc { segment: i, offset: at as u16 });
            let mut page = AlignedBuf::zeroed(4096);
            driver.disk.read_exact(byte, &mut page).expect("it can be read");
            let record = record::Record::decode(&page).expect("a record");
            pages.insert(byte, Damaged::RecordHeader);
            at += 1 + record.page_count();
        }
    }
    drop(maps);
    store.maps.write().base.hold(false);
    let superblock = crate::store::recover::read_superblock(&driver.disk).expect("a superblock");
    let root_at = store.geometry.byte(superblock.root.loc);
    let mut page = AlignedBuf::zeroed(4096);
    driver.disk.read_exact(root_at, &mut page).expect("it can be read");
    pages.insert(root_at, Damaged::Checkpoint);
    let root = crate::store::format::checkpoint::Root::decode(&page).expect("a root");
    let maps = store.maps.read();
    for (_, _, at) in
        maps.ids().into_iter().filter_map(|id| maps.map(id)).flat_map(|map| map.directory_pages())
    {
        pages.insert(store.geometry.byte(at.loc), Damaged::Checkpoint);
    }
    drop(maps);
    for run in root.runs {
        for i in 0..u64::from(run.pages) {
            pages.insert(store.geometry.byte(run.at) + i * 4096, Damaged::Checkpoint);
        }
    }
    for (byte, slot) in SLOTS.into_iter().zip(['A', 'B']) {
        pages.insert(byte, Damaged::SuperblockSlot { slot });
    }
    pages
}

fn flip(driver: &Driver, byte: u64, bit: u64) {
    let mut page = AlignedBuf::zeroed(4096);
    driver.disk.read_exact(byte, &mut page).expect("it can be read");
    crate::storage::sim::flip_bit(&mut page, bit);
    driver.disk.write_all(byte, &page).expect("it can be written");
}

#[test]
fn a_sound_store_is_found_sound() {
    let driver = lived_in(3);
    let report = scrub(&driver);
    assert_eq!((report.bad_count, &report.bad[..]), (0, &[][..]));
    let live = driver.store().maps.read().segments.data_live();
    assert!(report.data_pages >= live && live > 200, "{live} live pages, {report:?}");
}

#[test]
fn each_flipped_page_is_found_if_it_counts_and_no_other_is_accused() {
    let driver = lived_in(4);
    let pages = pages_that_count(&driver);
    let mut rng = StdRng::seed_from_u64(4);
    let mut kinds = std::collections::BTreeSet::new();
    for page in 0..IMAGE_BYTES as u64 / 4096 {
        let (byte, bit) = (page * 4096, rng.random_range(0..4096 * 8));
        flip(&driver, byte, bit);
        let report = scrub(&driver);
        flip(&driver, byte, bit);
        match pages.get(&byte) {
            None => assert_eq!(report.bad, [], "image byte {byte} means nothing"),
            Some(Damaged::Checkpoint) => {
                assert!(report.bad.iter().all(|b| b.damaged == Damaged::Checkpoint), "{report:?}");
                assert_eq!(report.bad_count, 1, "image byte {byte} is of the checkpoint");
            }
            Some(damaged) => {
                let [bad] = &report.bad[..] else { panic!("image byte {byte} is {damaged:?}: {report:?}") };
                assert_eq!((&bad.damaged, bad.image_byte), (damaged, byte));
            }
        }
        kinds.extend(pages.get(&byte).map(|d| format!("{d:?}").split(' ').next().unwrap_or("").to_owned()));
        if let Some(Damaged::Page { device_page }) = pages.get(&byte) {
            assert!(report.bad[0].crc_expected.is_some() && report.bad[0].crc_found.is_some());
            flip(&driver, byte, bit);
            let e = driver.read(CLIENT, device_page * 4096, 4096).expect_err("a bad page is EIO");
            assert!(e.to_string().contains(&format!("image byte {byte}")), "{e}");
            flip(&driver, byte, bit);
        }
    }
    assert_eq!(kinds.len(), 5, "every kind was among them: {kinds:?}");
    assert_eq!(scrub(&driver).bad_count, 0, "all is as it was");
}

#[test]
fn what_only_snapshots_keep_is_checked_and_told_by_their_name() {
    let mut driver = lived_in(7);
    for (name, tags) in [("old", 200..215), ("new", 300..315)] {
        let taken = driver.change(Change::Create { name: name.into(), time_ns: 1 });
        driver.settle();
        assert!(matches!(&*taken.lock(), Some(Ok(_))));
        for tag in tags {
            let first = tag * 53 % (PAGES - 16);
            let bytes: Vec<u8> = (first..first + 8).flat_map(|page| content(page, tag)).collect();
            driver.write(CLIENT, first * 4096, &bytes, false);
            driver.settle();
        }
    }
    driver.checkpoint();
    driver.settle();
    let store = std::sync::Arc::clone(driver.store());
    let mut kept = Vec::new();
    let maps = store.maps.read();
    for s in maps.snapshots.all() {
        let leaves = s.delta.leaves_from(0).filter_map(|(key, _, disk)| Some((key, disk?.loc)));
        kept.extend(leaves.map(|(key, loc)| (loc, Damaged::MapLeaf { device_page: key }, s.name.clone())));
        let pages =
            s.delta.mappings().map(|(page, m)| (m.loc, Damaged::Page { device_page: page }, s.name.clone()));
        kept.extend(pages);
    }
    drop(maps);
    let names: Vec<_> =
        kept.iter().map(|(_, damaged, name)| (matches!(damaged, Damaged::Page { .. }), &name[..])).collect();
    assert!(
        [true, false].iter().all(|page| names.contains(&(*page, "old")) && names.contains(&(*page, "new")))
    );
    for (loc, damaged, name) in kept {
        let byte = store.geometry.byte(loc);
        flip(&driver, byte, 777);
        let report = scrub(&driver);
        flip(&driver, byte, 777);
        let [bad] = &report.bad[..] else { panic!("{damaged:?} of {name}: {report:?}") };
        assert_eq!((&bad.damaged, bad.image_byte, bad.snapshot.as_ref()), (&damaged, byte, Some(&name)));
        assert!(bad.to_string().contains(&format!("of snapshot \"{name}\"")), "{bad}");
    }
    assert_eq!(scrub(&driver).bad_count, 0, "all is as it was");
}

#[test]
fn pages_behind_a_bad_record_header_are_checked_all_the_same() {
    let driver = lived_in(5);
    let pages = pages_that_count(&driver);
    let headers = pages.iter().filter(|(_, d)| **d == Damaged::RecordHeader).map(|(byte, _)| *byte);
    let mut tried = 0;
    for header in headers {
        let end = header + (64 << 10) - (header - (64 << 10)) % (64 << 10);
        // The last page of the segment that counts: perhaps many records behind the bad header.
        let behind = pages.range(header..end).rev().find(|(_, d)| matches!(d, Damaged::Page { .. }));
        let Some((&byte, damaged)) = behind else { continue };
        flip(&driver, header, 9);
        flip(&driver, byte, 99);
        let report = scrub(&driver);
        let found: Vec<&Damaged> = report.bad.iter().map(|b| &b.damaged).collect();
        assert_eq!(found, [&Damaged::RecordHeader, damaged]);
        flip(&driver, header, 9);
        flip(&driver, byte, 99);
        tried += 1;
    }
    assert!(tried > 5, "only {tried} headers with pages behind them");
}

#[test]
fn a_stopped_scrub_says_so() {
    let driver = lived_in(6);
    let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut last = 0;
    let mut progress = |p: crate::store::scrub::Progress| {
        last = p.done_bytes;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let report = driver.store().scrub(Control { bytes_per_s: &rate, stop: &stop, progress: &mut progress });
    assert!(report.stopped && report.data_pages == 0 && last > 0, "{report:?}");
}

#[test]
fn a_page_in_a_window_is_named_by_its_inode_wherever_the_table_has_it() {
    use layout::inode::{Ino, Inode, Kind, slot_mut};
    use layout::page_store::Timespec;
    let image = new_image(VolumeKind::Raw, IMAGE_BYTES, PAGES * 4096);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("a new store opens");
    // Far apart in the table; the first is in front of a page that cannot be decoded.
    for (ino, windows) in [(3, [7, 0, 9]), (8_000_001, [0, 2, 0])] {
        let inode = Inode { windows, ..Inode::new(Ino(ino), 1, Kind::File, 0, Timespec::default()) };
        let mut page = [0xee; 4096];
        inode.encode(slot_mut(&mut page, inode.ino));
        driver.write(CLIENT, inode.ino.page().expect("inside").byte(), &page, false);
    }
    driver.settle();
    let page = |byte: u64| byte / 4096;
    let bytes = [
        (1 << 58) + (6 << 30) + (5 << 20),
        (1 << 60) + (1 << 40) + (3 << 30),
        (1 << 58) + (9 << 30) + (1 << 20),
    ];
    let names = crate::volume::page_name::names(driver.store(), &bytes.map(page));
    assert_eq!(
        names,
        [
            "inode 3, file bytes 5242880 to 5246975",
            "inode 8000001, file bytes 3221225472 to 3221229567",
            "window 9 of data class 1, file bytes 1048576 to 1052671"
        ]
    );
}
