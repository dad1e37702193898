//! A page of the map is bad on a volume that is written: requests that need it fail and name it, all others are carried out, and
//! nothing that it maps is given away.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use rand::Rng;

use super::bad_leaves::{check, leaves, open};
use super::driver::{Driver, Ticket};
use super::snapshots::{CLIENT, IMAGE_BYTES, Run, set};
use super::{content, for_seeds};
use crate::device::{IoError, VolumeKind};
use crate::storage::Storage;
use crate::storage::sim::{Crash, SimStorage};
use crate::store::clean::meta::empty_thin_meta;
use crate::store::format::checkpoint::MapId;
use crate::store::snapshot::change::Change;
use crate::store::snapshot::{LeafId, View};
use crate::volume::snapshot::Round;
use crate::volume::{OpenOptions, Volume};

const SEGMENTS: u64 = IMAGE_BYTES as u64 >> 16;

/// What the store logs as errors.
#[derive(Clone, Default)]
struct Errors(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no other thread").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Errors {
    /// Runs `f`, and gives what it logged.
    fn of(f: impl FnOnce()) -> Vec<String> {
        let errors = Errors::default();
        let writer = errors.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::ERROR)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, f);
        let bytes = errors.0.lock().expect("no other thread");
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

/// A bad leaf.
struct Bad {
    leaf: LeafId,
    range: Range<u64>,
    byte: u64,
}

impl Bad {
    fn damage(&self, image: &[u8]) -> Vec<u8> {
        let mut damaged = image.to_vec();
        damaged[self.byte as usize + 100] ^= 4;
        damaged
    }
}

#[derive(Default)]
struct Seen {
    refused: u64,
    done: u64,
    /// Segments that the cleaner left alone.
    left: u64,
}

/// Changes every page some times, with what else goes on in a store.
fn work(run: &mut Run, bad: &Bad, seen: &mut Seen) {
    for round in 0..4u64 {
        for (i, pages) in (0u64..).zip(run.places.clone().chunks(3)) {
            let copies = run.driver.copies_of(((7 * i + 31 * round) % SEGMENTS) as u32);
            // It is deleted while requests are under way that were taken in when it kept what they replace.
            let short_lived = i.is_multiple_of(6).then(|| create_snapshot(run));
            let mut tickets = Vec::new();
            for &page in pages {
                let tag = if (i + round).is_multiple_of(4) { 0 } else { run.new_tag() };
                let ticket = match tag {
                    0 => run.driver.zero(CLIENT, page << 12, 4096, false),
                    tag => run.driver.write(CLIENT, page << 12, &content(page, tag), false),
                };
                tickets.push((page, tag, ticket));
            }
            if let Some(name) = short_lived {
                run.driver.change(Change::Delete { name });
            }
            run.driver.settle();
            for (page, tag, ticket) in tickets {
                match Driver::outcome(&ticket) {
                    Ok(()) => {
                        assert!(
                            bad.leaf.map != MapId::Committed || !bad.range.contains(&page),
                            "page {page:#x} is written, and nobody knows what it replaces"
                        );
                        set(&mut run.now, page, tag);
                        seen.done += 1;
                    }
                    Err(IoError::Io(why)) => {
                        assert!(bad.range.contains(&page), "page {page:#x}: {why}");
                        let named = why.contains("map leaf") && why.contains(&format!("byte {})", bad.byte));
                        assert!(named, "{why}");
                        seen.refused += 1;
                    }
                    Err(e) => panic!("page {page:#x}: {e}"),
                }
            }
            run.driver.relocate(copies);
        }
        if run.kind == VolumeKind::VexFs {
            let tag = run.new_tag();
            let commit = run.driver.write(CLIENT, 0, &content(0, tag), true);
            run.driver.settle();
            Driver::outcome(&commit).expect("what was taken in can be committed");
        }
        let flush = run.driver.flush();
        run.driver.settle();
        Driver::outcome(&flush).expect("the store goes on");
        if round % 2 == 1 {
            let checkpoint = run.driver.checkpoint();
            run.driver.settle();
            Driver::outcome(&checkpoint).expect("a checkpoint needs no leaf that did not change");
        }
        if round == 1 {
            clean_meta(run);
        }
    }
    let maps = run.driver.store().maps.read();
    seen.left += maps.segments.all().iter().filter(|s| s.damaged).count() as u64;
}

fn create_snapshot(run: &mut Run) -> String {
    let time_ns = run.new_tag();
    let name = format!("short{time_ns}");
    let created = run.driver.change(Change::Create { name: name.clone(), time_ns });
    run.driver.settle();
    created.lock().clone().expect("it is finished").expect("a snapshot is taken");
    name
}

/// The cleaner does not come back to a segment of leaves with a bad one.
fn clean_meta(run: &mut Run) {
    let store = Arc::clone(run.driver.store());
    empty_thin_meta(&store, u32::MAX);
    let errors = store.counters.read_errors.get();
    empty_thin_meta(&store, u32::MAX);
    assert_eq!(store.counters.read_errors.get(), errors, "it is not tried again");
}

/// Everything that can be read is right.
fn compare(run: &Run, disk: SimStorage, bad: &Range<u64>) -> u64 {
    let opened = open(disk, true).expect("it opens");
    let shared = &opened.shared;
    let mut errors = check(shared, View::Live, &run.places, &run.now, bad);
    for (name, pages) in &run.snapshots {
        let id = shared.maps.read().snapshots.find(name).map(|s| s.id).expect("it is there");
        errors += check(shared, View::Snapshot(id), &run.places, pages, bad);
    }
    errors
}

fn serve(run: &mut Run, bad: &Bad, good: &[u8], damaged: &[u8], seen: &mut Seen) {
    let disk = |image: &[u8]| SimStorage::new(image.to_vec(), bad.byte);
    let told = Errors::of(|| {
        run.go_on(disk(damaged));
        work(run, bad, seen);
    });
    let of_leaf = |line: &&String| line.contains("map leaf") && !line.contains("cannot be cleaned");
    assert!(told.iter().filter(of_leaf).count() <= 1, "told once: {told:#?}");
    let image = run.driver.disk.image_after(Crash::PowerCut);
    compare(run, disk(&image), &bad.range);
    run.go_on(disk(&image));
    // Nothing that it maps was given away, and the next start finds that all belongs together.
    let mut mended = image;
    let at = bad.byte as usize;
    mended[at..at + 4096].copy_from_slice(&good[at..at + 4096]);
    assert_eq!(compare(run, disk(&mended), &(0..0)), 0);
    run.go_on(disk(&mended));
    run.driver.check_usage();
}

/// An image with snapshots, its log empty, and the leaves that have a page.
fn image_of(kind: VolumeKind, seed: u64) -> (Run, Vec<u8>, Vec<Bad>) {
    let mut run = Run::new(kind, seed);
    for _ in 0..60 {
        run.round();
    }
    while run.driver.store().maps.read().snapshots.has_work() {
        run.driver.portion();
    }
    // A start writes a checkpoint: the log has no changes then that need a leaf.
    let image = run.driver.disk.image_after(Crash::ProcessDeath);
    run.go_on(SimStorage::new(image, seed));
    let image = run.driver.disk.image_after(Crash::ProcessDeath);
    let found = leaves(&open(SimStorage::new(image.clone(), seed), true).expect("it opens").shared);
    assert!(found.len() > 1, "there are leaves");
    let found = found.into_iter().map(|(leaf, range, byte)| Bad { leaf, range, byte }).collect();
    (run, image, found)
}

fn life(kind: VolumeKind, seed: u64, seen: &mut Seen) {
    let (mut run, image, found) = image_of(kind, seed);
    let now = run.now.clone();
    for bad in found {
        run.now = now.clone();
        serve(&mut run, &bad, &image, &bad.damage(&image), seen);
    }
}

fn lives(kind: VolumeKind) {
    let seen = Mutex::new(Seen::default());
    for_seeds(5, |seed| life(kind, seed, &mut seen.lock().expect("no other thread")));
    let Seen { refused, done, left } = seen.into_inner().expect("no other thread");
    assert!(refused > 500 && done > 5000 && left > 5, "{refused} refused, {done} done, {left} segments left");
}

#[test]
fn a_raw_volume_with_a_bad_leaf_can_be_written_but_for_what_it_maps() {
    lives(VolumeKind::Raw);
}

#[test]
fn a_vexfs_volume_with_a_bad_leaf_can_be_written_but_for_what_it_maps() {
    lives(VolumeKind::VexFs);
}

/// Carries deletions through as far as they go.
fn finish_deletions(run: &mut Run) {
    let idle = (0..10_000).any(|_| run.driver.portion() == Round::Idle);
    let maps = run.driver.store().maps.read();
    assert!(idle && !maps.snapshots.has_work(), "deletions come to an end");
}

fn delete(run: &mut Run, name: &str) {
    let deleted = run.driver.change(Change::Delete { name: name.to_owned() });
    run.driver.settle();
    deleted.lock().clone().expect("it is finished").expect("a snapshot can be deleted");
    run.snapshots.retain(|(n, _)| n != name);
    finish_deletions(run);
}

/// Snapshots that are deleted and not gone.
fn stuck(run: &Run) -> usize {
    let maps = run.driver.store().maps.read();
    maps.snapshots.all().iter().filter(|s| s.stuck().is_some()).count()
}

/// Deletes `victim` on an image with a bad leaf, and then what keeps that from ending. Gives whether there was such, and the pages that
/// are lost in the end.
fn delete_over(run: &mut Run, bad: &Bad, damaged: &[u8], victim: &str) -> (bool, u64) {
    let disk = |image: &[u8]| SimStorage::new(image.to_vec(), bad.byte);
    let MapId::Delta(id) = bad.leaf.map else { panic!("a leaf of a snapshot") };
    run.go_on(disk(damaged));
    delete(run, victim);
    let was_stuck = stuck(run) > 0;
    // Neither a restart nor writes change that.
    for _ in 0..2 {
        let image = run.driver.disk.image_after(Crash::PowerCut);
        compare(run, disk(&image), &bad.range);
        run.go_on(disk(&image));
        finish_deletions(run);
        assert!(stuck(run) > 0 || !was_stuck, "it is stuck before and after a start");
        work(run, bad, &mut Seen::default());
        finish_deletions(run);
    }
    // Without what may need the leaf it goes, and whatever waited for it.
    while let Some((name, _)) = run.snapshots.first().cloned() {
        let of = run.driver.store().maps.read().snapshots.find(&name).map(|s| s.id.0);
        if of > Some(id) {
            break;
        }
        delete(run, &name);
    }
    assert_eq!(stuck(run), 0);
    let lost = run.driver.store().maps.read().lost_pages();
    let image = run.driver.disk.image_after(Crash::ProcessDeath);
    run.go_on(disk(&image));
    work(run, &Bad { leaf: bad.leaf, range: 0..0, byte: bad.byte }, &mut Seen::default());
    let image = run.driver.disk.image_after(Crash::PowerCut);
    assert_eq!(compare(run, disk(&image), &(0..0)), 0);
    run.go_on(disk(&image));
    // The cleaner finds that nothing refers to them, once it has moved out what stands beside them.
    for _ in 0..2 {
        for segment in 0..SEGMENTS as u32 {
            let copies = run.driver.copies_of(segment);
            run.driver.relocate(copies);
        }
        run.driver.checkpoint();
        run.driver.settle();
    }
    run.driver.check_usage();
    let image = run.driver.disk.image_after(Crash::PowerCut);
    assert_eq!(compare(run, disk(&image), &(0..0)), 0);
    run.go_on(disk(&image));
    run.driver.check_usage();
    (was_stuck, lost)
}

fn deletions(kind: VolumeKind) {
    let totals = Mutex::new((0, 0, 0));
    for_seeds(4, |seed| {
        let (mut run, image, found) = image_of(kind, seed);
        let (now, snapshots) = (run.now.clone(), run.snapshots.clone());
        for bad in found {
            let MapId::Delta(id) = bad.leaf.map else { continue };
            let damaged = bad.damage(&image);
            let i = snapshots.partition_point(|(name, _)| {
                run.driver.store().maps.read().snapshots.find(name).is_some_and(|s| s.id.0 < id)
            });
            // The snapshot itself, and the next newer one, whose entries go into its delta.
            for (victim, _) in &snapshots[i..snapshots.len().min(i + 2)] {
                (run.now, run.snapshots) = (now.clone(), snapshots.clone());
                let (was_stuck, lost) = delete_over(&mut run, &bad, &damaged, victim);
                let mut totals = totals.lock().expect("no other thread");
                *totals = (totals.0 + 1, totals.1 + u32::from(was_stuck), totals.2 + lost);
            }
            // Its names again.
            run.go_on(SimStorage::new(image.clone(), seed));
        }
    });
    let (all, stuck, lost) = totals.into_inner().expect("no other thread");
    assert!(stuck > 5 && all > stuck + 5 && lost > 50, "{all} deletions, {stuck} stuck, {lost} pages lost");
}

#[test]
fn deleting_snapshots_of_a_raw_volume_with_a_bad_leaf_comes_to_an_end() {
    deletions(VolumeKind::Raw);
}

#[test]
fn deleting_snapshots_of_a_vexfs_volume_with_a_bad_leaf_comes_to_an_end() {
    deletions(VolumeKind::VexFs);
}

/// Who deletes is told.
#[test]
fn a_deletion_that_cannot_end_tells_why_and_what_to_do() {
    let (run, image, found) = image_of(VolumeKind::Raw, 0);
    let ids = |run: &Run| -> Vec<(String, u64)> {
        let maps = run.driver.store().maps.read();
        maps.snapshots.all().iter().map(|s| (s.name.clone(), s.id.0)).collect()
    };
    let all = ids(&run);
    let of = |bad: &Bad| all.iter().position(|(_, id)| bad.leaf.map == MapId::Delta(*id)).filter(|i| *i > 0);
    let (i, bad) = found.iter().find_map(|bad| Some((of(bad)?, bad))).expect("there is one");
    let byte = bad.byte;
    let storage: Arc<dyn Storage> = Arc::new(SimStorage::new(bad.damage(&image), 0));
    let volume = Volume::open_storage(storage, &OpenOptions::default()).expect("it opens");
    let refused =
        volume.snapshot_delete_and_settle(&all[i].0, |_| {}).expect_err("a leaf is bad").to_string();
    assert!(refused.contains(&format!("byte {byte})")) && refused.contains("oldest first"), "{refused}");
    let list = volume.snapshots();
    assert_eq!((list.deleting, list.stuck.len(), list.lost_bytes), (1, 1, 0), "{list:?}");
    assert!(list.snapshots.iter().all(|s| s.name != all[i].0));
    volume.snapshot_settle(|_| {}).expect("nothing is left that could be done");
    for (name, _) in &all[..i] {
        volume.snapshot_delete_and_settle(name, |_| {}).expect("nothing older needs it");
    }
    let list = volume.snapshots();
    assert_eq!((list.deleting, list.stuck.len()), (0, 0), "{list:?}");
    assert!(list.lost_bytes > 0, "{list:?}");
    volume.shutdown().expect("it ends");
}

/// Of a raw volume; nothing ever stood there.
const UNUSED_PAGE: u64 = 5000;

/// Deletes a snapshot that has nothing, and so many turns later writes some pages that a bad leaf has.
fn write_during_deletion(run: &mut Run, bad: &Bad, damaged: Vec<u8>, turns: usize) -> Vec<Ticket> {
    run.go_on(SimStorage::new(damaged, bad.byte));
    let concerned: Vec<u64> = run.places.iter().copied().filter(|page| bad.range.contains(page)).collect();
    let name = create_snapshot(run);
    let deleted = run.driver.change(Change::Delete { name });
    for _ in 0..turns {
        // What comes next waits for its record, and it replaces nothing.
        run.driver.zero(CLIENT, UNUSED_PAGE << 12, 4096, false);
        run.driver.turn(false);
    }
    let mut tickets = Vec::new();
    for step in 0..60 {
        if step % 30 == 0 {
            let (page, tag) = (concerned[run.rng.random_range(0..concerned.len())], run.new_tag());
            tickets.push(run.driver.write(CLIENT, page << 12, &content(page, tag), false));
        }
        match run.rng.random_range(0..5) {
            0 | 1 => _ = run.driver.turn(false),
            2 => _ = run.driver.zero(CLIENT, UNUSED_PAGE << 12, 4096, false),
            _ if run.driver.round() == Round::Checkpoint => _ = run.driver.checkpoint(),
            _ => {}
        }
    }
    run.driver.settle();
    deleted.lock().clone().expect("it is finished").expect("a snapshot can be deleted");
    tickets
}

/// Writes wait, or are under way, while the snapshot goes that would have kept what they replace: now an older one has to, and its
/// leaf is bad. They fail; the store goes on.
#[test]
fn a_deletion_that_ends_while_writes_wait_fails_those_that_need_a_bad_leaf() {
    let totals = Mutex::new((0, 0));
    for_seeds(8, |seed| {
        let (mut run, image, found) = image_of(VolumeKind::Raw, seed);
        let newest = run.driver.store().maps.read().snapshots.all().last().map(|s| s.map_id());
        for bad in found.iter().filter(|bad| Some(bad.leaf.map) == newest) {
            for turns in 0..40 {
                let tickets = write_during_deletion(&mut run, bad, bad.damage(&image), turns);
                let mut totals = totals.lock().expect("no other thread");
                for ticket in tickets {
                    match Driver::outcome(&ticket) {
                        Ok(()) => totals.0 += 1,
                        Err(IoError::Io(why)) if why.contains("map leaf") => totals.1 += 1,
                        Err(e) => panic!("{e}"),
                    }
                }
                finish_deletions(&mut run);
                let flush = run.driver.flush();
                run.driver.settle();
                Driver::outcome(&flush).expect("the store goes on");
                run.go_on(SimStorage::new(run.driver.disk.image_after(Crash::PowerCut), seed));
            }
        }
    });
    let (done, refused) = totals.into_inner().expect("no other thread");
    assert!(done > 50 && refused > 20, "{done} done, {refused} refused");
}
