//! A page of the map is bad on a volume that is written: requests that need it fail and name it, all others are carried out, and
//! nothing that it maps is given away.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::bad_leaves::{check, leaves, open};
use super::driver::Driver;
use super::snapshots::{CLIENT, IMAGE_BYTES, Run, set};
use super::{content, for_seeds};
use crate::device::{IoError, VolumeKind};
use crate::storage::sim::{Crash, SimStorage};
use crate::store::clean::meta::empty_thin_meta;
use crate::store::format::checkpoint::MapId;
use crate::store::snapshot::change::Change;
use crate::store::snapshot::{LeafId, View};

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

fn life(kind: VolumeKind, seed: u64, seen: &mut Seen) {
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
    let now = run.now.clone();
    for (leaf, range, byte) in found {
        let mut damaged = image.clone();
        damaged[byte as usize + 100] ^= 4;
        run.now = now.clone();
        serve(&mut run, &Bad { leaf, range, byte }, &image, &damaged, seen);
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
