//! A page of the map is bad, and the log has changes of what it maps: nothing can be written any more, but all the rest can be
//! read, and what cannot be is an error, never older data and never zeros.

use std::sync::Arc;

use super::driver::options;
use super::snapshots::{Pages, Run};
use super::{content, for_seeds, tag_of};
use crate::buf::AlignedBuf;
use crate::device::{ClientId, VolumeKind};
use crate::storage::Storage;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::format::checkpoint::MapId;
use crate::store::recover::{self, RecoverOptions};
use crate::store::snapshot::change::Change;
use crate::store::snapshot::{LeafId, View};
use crate::store::{Shared, StoreError};
use crate::volume::allocation::allocation;
use crate::volume::{OpenOptions, Volume};

/// How a page goes bad.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bad {
    ForGood,
    /// Only while the log is replayed: what was missed then must not be forgotten.
    ForAMoment,
}

pub(super) fn open(disk: SimStorage, read_only: bool) -> Result<recover::Opened, StoreError> {
    let storage: Arc<dyn Storage> = Arc::new(disk);
    recover::open(storage, &RecoverOptions { read_only, ..options([200; 16]) })
}

/// Leaves that have a page, the range each covers, and the page's byte of the image.
pub(super) fn leaves(shared: &Shared) -> Vec<(LeafId, std::ops::Range<u64>, u64)> {
    let maps = shared.maps.read();
    let ids = maps.ids().into_iter().filter(|id| *id != MapId::Open);
    let of_map = |id| {
        let map = maps.map(id).expect("it is named");
        map.leaves_from(0).filter_map(move |(key, _, disk)| {
            Some((LeafId { map: id, key }, map.range_of(key), shared.geometry.byte(disk?.loc)))
        })
    };
    ids.flat_map(of_map).collect()
}

/// Every page is right, or an error that names the leaf; none outside its range. Gives how many are errors.
pub(super) fn check(
    shared: &Shared,
    view: View,
    places: &[u64],
    expected: &Pages,
    bad: &std::ops::Range<u64>,
) -> u64 {
    let mut errors = 0;
    for &page in places {
        let mut buf = AlignedBuf::zeroed(4096);
        let right = expected.get(&page).copied().unwrap_or(0);
        match shared.read_run_at(view, page, &mut buf) {
            Ok(()) => assert_eq!(tag_of(page, &buf), Some(right), "{view:?}, page {page:#x}"),
            Err(e) => {
                assert!(bad.contains(&page), "{view:?}, page {page:#x}: {e}");
                assert!(e.to_string().contains("map leaf"), "{e}");
                errors += 1;
            }
        }
        // Who copies only what is mapped gets no zeros in its place.
        if let Ok(extents) = allocation(shared, view, page << 12, 4096, 1) {
            assert!(extents[0].mapped || right == 0, "{view:?}, page {page:#x} is said to be a hole");
        }
    }
    errors
}

#[derive(Default)]
struct Seen {
    /// Leaves without which the log cannot be replayed.
    needed: u64,
    errors: u64,
}

fn life(kind: VolumeKind, seed: u64, how: Bad) -> Seen {
    let mut run = Run::new(kind, seed);
    for _ in 0..60 {
        run.round();
    }
    while run.driver.store().maps.read().snapshots.has_work() {
        run.driver.portion();
    }
    for _ in 0..6 {
        run.round();
    }
    let image = run.driver.disk.image_after(Crash::ProcessDeath);
    let disk = |image: &[u8]| SimStorage::new(image.to_vec(), seed);
    // As the last checkpoint has them: nothing is written here.
    let good = open(disk(&image), true).expect("it opens");
    let all = leaves(&good.shared);
    assert!(all.len() > 1, "there are leaves");
    let mut seen = Seen::default();
    for (leaf, range, byte) in all {
        let mut damaged = image.clone();
        damaged[byte as usize + 100] ^= 4;
        let needed = match open(disk(&damaged), false) {
            Ok(_) => false,
            Err(e @ StoreError::MapDamaged { .. }) => {
                assert!(e.to_string().contains("--read-only"), "{e}");
                true
            }
            Err(e) => panic!("{leaf:?}: {e}"),
        };
        let opened = open(disk(&damaged), true).unwrap_or_else(|e| panic!("{leaf:?}: {e}"));
        let shared = &opened.shared;
        if how == Bad::ForAMoment {
            let page = AlignedBuf::from_slice(&image[byte as usize..byte as usize + 4096]);
            shared.storage.write_all(byte, &page).expect("it is mended");
        }
        let mut errors = check(shared, View::Live, &run.places, &run.now, &range);
        assert!(errors == 0 || leaf.map == MapId::Committed, "the live volume needs no delta");
        for (name, pages) in &run.snapshots {
            let id = shared.maps.read().snapshots.find(name).map(|s| s.id).expect("it is there");
            errors += check(shared, View::Snapshot(id), &run.places, pages, &range);
        }
        seen.needed += u64::from(needed);
        seen.errors += errors;
    }
    seen
}

fn lives(kind: VolumeKind, how: Bad) {
    let seen = std::sync::Mutex::new(Seen::default());
    for_seeds(12, |seed| {
        let of_life = life(kind, seed, how);
        let mut seen = seen.lock().expect("no other thread");
        (seen.needed, seen.errors) = (seen.needed + of_life.needed, seen.errors + of_life.errors);
    });
    let seen = seen.into_inner().expect("no other thread");
    // A leaf that no record needed is read when it is asked for: mended by then, it is as good as ever.
    assert!(seen.needed > 10 && seen.errors > 100, "{} leaves, {} errors", seen.needed, seen.errors);
}

/// Who only reads gets the last commit, for which what was not committed is of no use.
#[test]
fn a_bad_leaf_of_the_open_epoch_is_missed_only_if_the_epoch_was_committed() {
    let mut run = Run::new(VolumeKind::VexFs, 3);
    for _ in 0..20 {
        run.round();
    }
    let committed = run.now.clone();
    let places = run.places.clone();
    for (tag, &page) in (1_000_000..).zip(&places) {
        run.driver.write(ClientId(1), page << 12, &content(page, tag), false);
        run.driver.settle();
    }
    run.driver.checkpoint();
    run.driver.settle();
    let loc = {
        let maps = run.driver.store().maps.read();
        let open = maps.map(MapId::Open).expect("it is there");
        let found = open.leaves_from(0).find_map(|(_, _, disk)| disk);
        run.driver.store().geometry.byte(found.expect("it has a page").loc)
    };
    let damaged = |run: &Run| {
        let mut image = run.driver.disk.image_after(Crash::PowerCut);
        image[loc as usize + 100] ^= 4;
        SimStorage::new(image, 3)
    };
    let opened = open(damaged(&run), true).expect("the epoch is of no use");
    assert_eq!(check(&opened.shared, View::Live, &places, &committed, &(0..0)), 0);
    run.driver.write(ClientId(1), 0, &content(0, 7), true);
    run.driver.settle();
    let refused = open(damaged(&run), true).err().expect("its pages are committed").to_string();
    assert!(refused.contains("damaged at byte") && refused.contains(&loc.to_string()), "{refused}");
}

#[test]
fn a_raw_volume_with_a_bad_leaf_can_be_read_but_for_what_it_maps() {
    lives(VolumeKind::Raw, Bad::ForGood);
}

#[test]
fn a_vexfs_volume_with_a_bad_leaf_can_be_read_but_for_what_it_maps() {
    lives(VolumeKind::VexFs, Bad::ForGood);
}

#[test]
fn a_leaf_that_can_be_read_again_is_not_taken_for_good_after_changes_were_missed() {
    lives(VolumeKind::Raw, Bad::ForAMoment);
}

/// A rollback that was broken off goes on at the next start. Where it cannot, the volume is between two states and is not
/// shown; the image opens for reading, and each snapshot is as good as its leaves.
#[test]
fn a_bad_leaf_in_the_way_of_a_rollback_leaves_the_snapshots_to_be_read() {
    let mut run = Run::new(VolumeKind::Raw, 5);
    while run.snapshots.len() < 3 {
        run.round();
    }
    while run.driver.store().maps.read().snapshots.has_work() {
        run.driver.portion();
    }
    for page in run.places.clone() {
        run.driver.write(ClientId(1), page << 12, &content(page, 1_000_000), false);
    }
    run.driver.checkpoint();
    run.driver.settle();
    // Those taken after it go.
    let (name, pages) =
        run.snapshots.first().map(|(name, pages)| (name.clone(), pages.clone())).expect("taken");
    run.driver.change(Change::Rollback { name: name.clone() });
    run.driver.settle();
    let image = run.driver.disk.image_after(Crash::PowerCut);
    let good = open(SimStorage::new(image.clone(), 5), true).expect("it opens");
    assert!(good.shared.maps.read().snapshots.rollback().is_some(), "its end is yet to come");
    let mut stuck = 0;
    for (leaf, range, byte) in leaves(&good.shared) {
        let mut damaged = image.clone();
        damaged[byte as usize + 100] ^= 4;
        let storage: Arc<dyn Storage> = Arc::new(SimStorage::new(damaged, 5));
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let volume = Volume::open_storage(storage, &options).unwrap_or_else(|e| panic!("{leaf:?}: {e}"));
        let id = volume.core.store.maps.read().snapshots.find(&name).map(|s| s.id).expect("it is there");
        check(&volume.core.store, View::Snapshot(id), &run.places, &pages, &range);
        stuck += u32::from(volume.core.check_not_rolling_back().is_err());
        volume.shutdown().expect("nothing was written");
    }
    assert!(stuck > 0, "some leaf is in the way");
}
