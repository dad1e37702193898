//! Images made larger and smaller, with a crash at every write: the old size or the new one, and all data.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::driver::{Driver, new_image};
use super::{content, tag_of};
use crate::device::{ClientId, VolumeKind};
use crate::storage::Storage;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::StoreError;
use crate::store::clean::Tuning;
use crate::store::map::segments::State;
use crate::store::recover::{RecoverOptions, read_superblock};
use crate::store::resize::{Progress, Sizes, resize};
use crate::store::snapshot::change::Change;

const CLIENT: ClientId = ClientId(1);
const MIB: u64 = 1 << 20;
const PAGES: u64 = 300;

fn options(boot: u8) -> RecoverOptions {
    RecoverOptions {
        read_only: false,
        boot_id: [boot; 16],
        tuning: Tuning { checkpoint_bytes: 200 * 4096, ..Tuning::default() },
        map_bytes_max: 16 << 10,
        discard: true,
    }
}

fn sizes(mib: u64, pages: u64) -> Sizes {
    Sizes { backing_bytes: mib * MIB, raw_bytes: pages * 4096 }
}

/// What each page holds.
type Model = Vec<u64>;

/// A raw volume of [`PAGES`] pages whose live pages lie all over an image of `mib`, and what they are.
fn spread(mib: u64, seed: u64) -> (Vec<u8>, Model) {
    let image = new_image(VolumeKind::Raw, (mib * MIB) as usize, PAGES * 4096);
    let mut driver = Driver::open(SimStorage::new(image, seed), 1).expect("a new store opens");
    let mut model = vec![0; PAGES as usize];
    let mut rng = StdRng::seed_from_u64(seed);
    for tag in 1..200u64 {
        let count = rng.random_range(1..12);
        let first = rng.random_range(0..PAGES - count);
        let bytes: Vec<u8> = (first..first + count).flat_map(|page| content(page, tag)).collect();
        driver.write(CLIENT, first * 4096, &bytes, false);
        driver.settle();
        model[first as usize..(first + count) as usize].fill(tag);
    }
    driver.flush();
    driver.settle();
    (driver.disk.image_after(Crash::PowerCut), model)
}

/// The last segment that anything stands in.
fn last_used(driver: &Driver) -> usize {
    let maps = driver.store().maps.read();
    maps.segments.all().iter().rposition(|s| s.state != State::Free).unwrap_or(0)
}

fn check(driver: &mut Driver, model: &Model) {
    let pages = driver.store().raw_bytes() / 4096;
    for page in 0..pages {
        let bytes = driver.read(CLIENT, page * 4096, 4096).expect("a page can be read");
        let expected = model.get(page as usize).copied().unwrap_or(0);
        assert_eq!(tag_of(page, &bytes), Some(expected), "page {page}");
    }
    driver.check_usage();
}

/// It takes writes, is cleaned and checkpointed, and stays within its geometry. A full one takes overwrites only.
fn use_it(driver: &mut Driver, model: &mut Model, full: bool) {
    let pages = driver.store().raw_bytes() / 4096;
    model.resize(pages as usize, 0);
    for tag in 1000..1040 {
        let first = tag * 37 % (pages - 8);
        if full && model[first as usize..first as usize + 8].contains(&0) {
            continue;
        }
        let bytes: Vec<u8> = (first..first + 8).flat_map(|page| content(page, tag)).collect();
        let ticket = driver.write(CLIENT, first * 4096, &bytes, false);
        driver.settle();
        Driver::outcome(&ticket).expect("a write after a resize");
        model[first as usize..first as usize + 8].fill(tag);
    }
    driver.checkpoint();
    driver.settle();
    check(driver, model);
}

fn run(image: Vec<u8>, sizes: Sizes, boot: u8) -> (Result<(), StoreError>, SimStorage, Vec<Progress>) {
    let disk = SimStorage::new(image, 7);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let mut seen = Vec::new();
    let result = resize(&storage, &options(boot), sizes, &mut |p| seen.push(p));
    (result, disk, seen)
}

#[test]
fn a_store_grows_and_uses_what_it_got() {
    let (mut image, mut model) = spread(3, 1);
    image.resize(6 << 20, 0xaa);
    let (result, disk, _) = run(image, sizes(6, PAGES + 200), 1);
    result.expect("it grows");
    let mut driver = Driver::open(disk, 1).expect("it opens");
    assert_eq!(driver.store().geometry.segments, 95);
    assert_eq!(driver.store().raw_bytes(), (PAGES + 200) * 4096);
    use_it(&mut driver, &mut model, false);
    assert!(last_used(&driver) > 47, "the new segments are used");
}

#[test]
fn a_store_shrinks_and_all_that_counts_is_moved() {
    let (image, mut model) = spread(6, 2);
    let before = Driver::open(SimStorage::new(image.clone(), 3), 1).expect("it opens");
    assert!(last_used(&before) > 60, "there is something to move");
    let (result, disk, seen) = run(image, sizes(3, PAGES), 1);
    result.expect("it shrinks");
    let (first, last) = (seen.first().expect("progress"), seen.last().expect("progress"));
    assert!(first.total_pages > 0 && last.moved_pages == last.total_pages, "{seen:?}");
    let mut image = disk.image_after(Crash::PowerCut);
    image.truncate(3 << 20);
    let mut driver = Driver::open(SimStorage::new(image, 4), 1).expect("it opens though the rest is cut off");
    assert_eq!(driver.store().geometry.segments, 47);
    check(&mut driver, &model);
    use_it(&mut driver, &mut model, false);
}

/// Whatever is free where: it succeeds, or is refused because the data does not fit.
#[test]
fn stores_of_all_fillings_shrink_to_all_sizes() {
    let mut done = [0, 0];
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (image, mut model) = spread(6, seed);
        // From just not enough to nearly all.
        let backing_bytes = rng.random_range(2 * MIB..4 * MIB);
        let to = Sizes { backing_bytes, raw_bytes: PAGES * 4096 };
        let (result, disk, _) = run(image, to, 1);
        let mut image = disk.image_after(Crash::ProcessDeath);
        match &result {
            Ok(()) => image.truncate(backing_bytes as usize),
            Err(StoreError::BadSize(text)) => assert!(text.contains("are in use"), "seed {seed}: {text}"),
            Err(e) => panic!("seed {seed}, {backing_bytes} bytes: {e}"),
        }
        let mut driver = Driver::open(SimStorage::new(image, 4), 1).expect("it opens");
        check(&mut driver, &model);
        if result.is_ok() {
            use_it(&mut driver, &mut model, true);
        }
        done[usize::from(result.is_ok())] += 1;
    }
    assert!(done[0] > 2 && done[1] > 10, "{done:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_figures_and_nothing_changes() {
    let (image, model) = spread(6, 5);
    let (result, disk, _) = run(image, sizes(2, PAGES), 1);
    let text = result.expect_err("300 pages do not fit").to_string();
    assert!(text.contains("are in use") && text.contains("MiB larger"), "{text}");
    let mut driver = Driver::open(disk, 1).expect("it opens");
    assert_eq!(driver.store().geometry.segments, 95);
    check(&mut driver, &model);
}

#[test]
fn a_cut_that_is_refused_loses_nothing() {
    let (image, model) = spread(6, 5);
    let (result, disk, _) = run(image, sizes(2, 290), 1);
    result.expect_err("290 pages do not fit");
    let mut driver = Driver::open(disk, 1).expect("it opens");
    assert_eq!(driver.store().raw_bytes(), PAGES * 4096);
    check(&mut driver, &model);
}

#[test]
fn a_volume_is_cut_and_its_space_is_free() {
    let (image, model) = spread(6, 6);
    let (result, disk, _) = run(image, sizes(2, 60), 1);
    result.expect("60 pages fit");
    let mut image = disk.image_after(Crash::PowerCut);
    image.truncate(2 << 20);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("it opens");
    assert_eq!(driver.store().raw_bytes(), 60 * 4096);
    check(&mut driver, &model[..60].to_vec());
    assert!(driver.store().maps.read().segments.data_live() <= 60);
}

/// Crashes at every `stride`th write of a resize; afterwards the store is of one of the sizes, and whole.
fn crash_everywhere(image: &[u8], model: &Model, to: Sizes, stride: u64) {
    let from = read_superblock(&SimStorage::new(image.to_vec(), 0)).expect("a superblock");
    let geometry = crate::store::create::geometry(to.backing_bytes, 64 << 10).expect("a size");
    let mut seen = [0, 0];
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in (1..).step_by(stride as usize) {
            let disk = SimStorage::new(image.to_vec(), n);
            disk.crash_at(n);
            let storage: Arc<dyn Storage> = Arc::new(disk.clone());
            let result = resize(&storage, &options(1), to, &mut |_| {});
            if !disk.crashed() {
                result.expect("without a crash it succeeds");
                assert!(n > 6, "it writes more than {n} times");
                break;
            }
            assert!(result.is_err(), "a crash at write {n} is noticed");
            let boot = if crash == Crash::PowerCut { 2 } else { 1 };
            let disk = SimStorage::new(disk.image_after(crash), n);
            let found = read_superblock(&disk).expect("a slot is intact");
            let old = (from.geometry, from.raw_bytes, from.backing_bytes);
            let new = (geometry, to.raw_bytes, to.backing_bytes);
            let now = (found.geometry, found.raw_bytes, found.backing_bytes);
            assert!(now == old || now == new, "crash at write {n}: {now:?}");
            seen[usize::from(now == new)] += 1;
            let mut driver = Driver::open(disk, boot).unwrap_or_else(|e| panic!("crash at write {n}: {e}"));
            check(&mut driver, model);
            drop(driver);
        }
    }
    assert!(seen[0] > 0 && (seen[1] > 0 || stride > 1), "{seen:?}");
}

#[test]
fn growing_survives_a_crash_at_every_write() {
    let (mut image, model) = spread(3, 7);
    image.resize(4 << 20, 0x33);
    crash_everywhere(&image, &model, sizes(4, PAGES + 10), 1);
}

#[test]
fn shrinking_survives_a_crash_at_every_write() {
    let (image, model) = spread(6, 8);
    crash_everywhere(&image, &model, sizes(3, PAGES), 1);
}

/// The volume is as the snapshot has it, or as it was before.
#[test]
fn a_rollback_that_changes_the_size_survives_a_crash_at_every_write() {
    let (image, model) = spread(6, 11);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("it opens");
    let taken = driver.change(Change::Create { name: "whole".into(), time_ns: 1 });
    driver.settle();
    assert!(matches!(&*taken.lock(), Some(Ok(_))));
    let image = driver.disk.image_after(Crash::PowerCut);
    drop(driver);
    let (result, disk, _) = run(image, sizes(6, 60), 1);
    result.expect("it is cut");
    let image = disk.image_after(Crash::PowerCut);
    let mut seen = [0, 0];
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in 1.. {
            let mut driver = Driver::open(SimStorage::new(image.clone(), n), 1).expect("it opens");
            driver.disk.crash_at(n);
            driver.change(Change::Rollback { name: "whole".into() });
            driver.settle();
            let ended = driver.end_rollback();
            let crashed = driver.disk.crashed();
            assert!(ended || crashed, "without a crash it ends");
            let disk = SimStorage::new(driver.disk.image_after(crash), n);
            drop(driver);
            let mut driver = Driver::open(disk, 2).unwrap_or_else(|e| panic!("crash at write {n}: {e}"));
            assert!(driver.end_rollback(), "crash at write {n}");
            let pages = driver.store().raw_bytes() / 4096;
            assert!(pages == 60 || pages == PAGES, "crash at write {n}: {pages} pages");
            check(&mut driver, &model[..pages as usize].to_vec());
            let beyond = driver.read(CLIENT, pages * 4096, 64 * 4096).expect("nothing is there");
            assert!(beyond.iter().all(|b| *b == 0), "crash at write {n}: something lies beyond");
            seen[usize::from(pages == PAGES)] += 1;
            if !crashed {
                assert!(n > 6 && pages == PAGES, "it writes more than {n} times");
                break;
            }
        }
    }
    assert!(seen[0] > 0 && seen[1] > 2, "{seen:?}");
}

#[test]
fn a_volume_is_not_resized_in_the_midst_of_a_rollback() {
    let (image, _) = spread(6, 12);
    let mut driver = Driver::open(SimStorage::new(image, 1), 1).expect("it opens");
    driver.change(Change::Create { name: "a".into(), time_ns: 1 });
    driver.settle();
    driver.change(Change::Rollback { name: "a".into() });
    driver.settle();
    let image = driver.disk.image_after(Crash::PowerCut);
    drop(driver);
    for pages in [60, PAGES + 10] {
        let (result, disk, _) = run(image.clone(), sizes(6, pages), 1);
        let text = result.expect_err("its end would change the size again").to_string();
        assert!(text.contains("opening the volume for writing"), "{text}");
        let mut driver = Driver::open(disk, 1).expect("it opens");
        assert!(driver.end_rollback());
        assert_eq!(driver.store().raw_bytes(), PAGES * 4096);
    }
}

/// A resize that was broken off is simply asked for again.
#[test]
fn a_resize_goes_on_after_crashes_until_it_is_done() {
    let (mut image, model) = spread(6, 10);
    let mut crashes = 0;
    loop {
        let disk = SimStorage::new(image, crashes);
        disk.crash_at(10 + crashes);
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let result = resize(&storage, &options(crashes as u8 + 1), sizes(3, PAGES), &mut |_| {});
        image = disk.image_after(Crash::PowerCut);
        if result.is_ok() {
            break;
        }
        assert!(disk.crashed(), "{result:?}");
        crashes += 1;
        assert!(crashes < 200, "it never ends");
    }
    assert!(crashes > 0);
    image.truncate(3 << 20);
    let mut driver = Driver::open(SimStorage::new(image, 1), 250).expect("it opens");
    check(&mut driver, &model);
}
