//! A volume over a real file: both engines, both kinds, across restarts.

use std::path::PathBuf;
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::{
    ClientId, Commit, Device, Done, Extent, IoError, IoOp, IoResult, VolumeKind, batch, blocking,
};
use blockd::storage::IoEngine;
use blockd::store::StoreError;
use blockd::volume::{CreateOptions, OpenOptions, Volume};

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn raw(raw_bytes: u64, backing_bytes: u64) -> Self {
        Self::make(VolumeKind::Raw, raw_bytes, backing_bytes)
    }

    fn make(kind: VolumeKind, raw_bytes: u64, backing_bytes: u64) -> Self {
        let image = Image { dir: tempfile::tempdir().expect("a directory for the image") };
        let options = CreateOptions {
            kind,
            uuid: uuid::Uuid::new_v4(),
            size_bytes: backing_bytes,
            raw_size_bytes: raw_bytes,
            segment_bytes: 0,
            force: false,
        };
        Volume::create(&image.path(), &options).expect("a new volume");
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn open(&self, io: IoEngine) -> Arc<Volume> {
        Volume::open(&self.path(), &OpenOptions { io, ..OpenOptions::default() }).expect("the volume opens")
    }
}

fn write(volume: &Volume, client: ClientId, offset: u64, bytes: &[u8], fua: bool) -> Result<(), IoError> {
    blocking(volume, client, IoOp::Write { offset, buf: AlignedBuf::from_slice(bytes), fua }).map(|_| ())
}

fn read(volume: &Volume, client: ClientId, offset: u64, len: usize) -> Vec<u8> {
    let buf = blocking(volume, client, IoOp::Read { offset, buf: AlignedBuf::zeroed(len) });
    buf.expect("the read succeeds").expect("a read gives its buffer").to_vec()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        })
        .collect()
}

fn raw_volume_keeps_what_it_was_given(io: IoEngine) {
    let image = Image::raw(32 << 20, 64 << 20);
    let volume = image.open(io);
    let client = volume.connect();
    let big = pattern(1, 3 << 20);
    write(&volume, client, 1 << 20, &big, false).expect("a large write");
    write(&volume, client, 4096 * 7 + 100, b"unaligned bytes", false).expect("an unaligned write");
    let ops = (0..64u64).map(|i| IoOp::Write {
        offset: (16 << 20) + i * 8192,
        buf: AlignedBuf::from_slice(&pattern(100 + i, 4096)),
        fua: i % 7 == 0,
    });
    assert!(batch(&*volume, client, ops).iter().all(Result::is_ok));
    blocking(&*volume, client, IoOp::Flush).expect("a flush");
    blocking(&*volume, client, IoOp::Trim { offset: (2 << 20) + 10, len_bytes: 100_000, fua: false })
        .expect("a trim");
    let mut expected = big.clone();
    expected[(1 << 20) + 10..(1 << 20) + 10 + 100_000].fill(0);

    let check = |volume: &Volume, client| {
        assert!(read(volume, client, 1 << 20, big.len()) == expected);
        assert_eq!(read(volume, client, 4096 * 7 + 100, 15), b"unaligned bytes");
        assert!(read(volume, client, 4096 * 7, 100).iter().all(|&b| b == 0));
        for i in 0..64u64 {
            assert!(read(volume, client, (16 << 20) + i * 8192, 4096) == pattern(100 + i, 4096));
            assert!(read(volume, client, (16 << 20) + i * 8192 + 4096, 4096).iter().all(|&b| b == 0));
        }
    };
    check(&volume, client);
    volume.shutdown().expect("a clean end");
    drop(volume);
    let volume = image.open(io);
    let client = volume.connect();
    check(&volume, client);
}

#[test]
fn raw_volume_with_the_automatic_engine() {
    raw_volume_keeps_what_it_was_given(IoEngine::Auto);
}

#[test]
fn raw_volume_with_plain_system_calls() {
    raw_volume_keeps_what_it_was_given(IoEngine::Sync);
}

#[test]
fn an_image_is_locked_while_it_is_open() {
    let image = Image::raw(4 << 20, 16 << 20);
    let volume = image.open(IoEngine::Auto);
    let second = Volume::open(&image.path(), &OpenOptions::default());
    let Err(StoreError::Open(e)) = second else { panic!("a second open fails") };
    let text = e.to_string();
    assert!(text.contains("in use by another process"), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    volume.shutdown().expect("a clean end");
}

#[test]
fn requests_past_the_end_are_refused() {
    let image = Image::raw(4 << 20, 16 << 20);
    let volume = image.open(IoEngine::Auto);
    let client = volume.connect();
    assert!(matches!(write(&volume, client, (4 << 20) - 1, b"ab", false), Err(IoError::Invalid(_))));
    assert!(matches!(write(&volume, client, u64::MAX, b"ab", false), Err(IoError::Invalid(_))));
}

#[test]
fn what_looks_used_is_not_overwritten_without_force() {
    let image = Image::raw(4 << 20, 16 << 20);
    let mut options = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::new_v4(),
        size_bytes: 0,
        raw_size_bytes: 4 << 20,
        segment_bytes: 0,
        force: false,
    };
    assert!(matches!(Volume::create(&image.path(), &options), Err(StoreError::InUse { .. })));
    options.force = true;
    Volume::create(&image.path(), &options).expect("force makes it");
    let other = image.dir.path().join("other");
    std::fs::write(&other, vec![1u8; 8 << 20]).expect("a file");
    options.force = false;
    assert!(matches!(Volume::create(&other, &options), Err(StoreError::InUse { .. })));
    let tiny = image.dir.path().join("tiny");
    options.size_bytes = 4096;
    assert!(matches!(Volume::create(&tiny, &options), Err(StoreError::BadSize(_))));
    assert!(!tiny.exists(), "nothing half-made is left");
}

#[test]
fn a_raw_volume_is_rewritten_many_times_in_a_small_image() {
    let raw = 8u64 << 20;
    let image = Image::raw(raw, blockd::store::create::backing_for_raw(raw).unwrap());
    let volume = image.open(IoEngine::Auto);
    let client = volume.connect();
    for round in 0..12u64 {
        let ops = (0..raw / 65536)
            .map(|i| IoOp::Write {
                offset: (i * 37 % (raw / 65536)) * 65536,
                buf: AlignedBuf::from_slice(&pattern(round * 1000 + i * 37 % (raw / 65536), 65536)),
                fua: false,
            })
            .collect::<Vec<_>>();
        for result in batch(&*volume, client, ops) {
            result.expect("a full raw volume takes overwrites for ever");
        }
    }
    // Page by page at random, then whole again: no request may be refused, however full the image is.
    let mut state = 1u64;
    for _ in 0..40 {
        let ops = (0..256).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (state >> 20) % (raw / 4096) * 4096;
            IoOp::Write { offset, buf: AlignedBuf::from_slice(&pattern(state, 4096)), fua: false }
        });
        for result in batch(&*volume, client, ops.collect::<Vec<_>>()) {
            result.expect("a full raw volume takes random overwrites for ever");
        }
    }
    let ops = (0..raw / 65536).map(|i| IoOp::Write {
        offset: i * 65536,
        buf: AlignedBuf::from_slice(&pattern(11_000 + i, 65536)),
        fua: false,
    });
    for result in batch(&*volume, client, ops.collect::<Vec<_>>()) {
        result.expect("a write");
    }
    let verify = |volume: &Volume, client| {
        for i in 0..raw / 65536 {
            assert!(read(volume, client, i * 65536, 65536) == pattern(11_000 + i, 65536), "block {i}");
        }
    };
    verify(&volume, client);
    volume.shutdown().expect("a clean end");
    drop(volume);
    let volume = image.open(IoEngine::Auto);
    let client = volume.connect();
    verify(&volume, client);
}

/// Pages that are taken until the image is full, each written as a page of its number and `round`.
fn fill(volume: &Volume, client: ClientId, base: u64, pages: std::ops::Range<u64>) -> Vec<u64> {
    let mut live = Vec::new();
    for page in pages.step_by(4) {
        let bytes: Vec<u8> = (page..page + 4).flat_map(|p| pattern(p, 4096)).collect();
        match write(volume, client, (base + page) * 4096, &bytes, false) {
            Ok(()) => live.extend(page..page + 4),
            Err(IoError::NoSpace) => break,
            Err(e) => panic!("page {page}: {e}"),
        }
    }
    live
}

#[test]
fn a_full_raw_volume_refuses_new_pages_and_takes_overwrites_for_ever() {
    let image = Image::raw(16 << 20, 8 << 20);
    let volume = image.open(IoEngine::Auto);
    let full: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|i| {
                let volume = &volume;
                scope.spawn(move || {
                    let client = volume.connect();
                    let live = fill(volume, client, 0, i * 1024..(i + 1) * 1024);
                    for round in 0..400 {
                        let page = live[(round * 379) % live.len()];
                        write(volume, client, page * 4096, &pattern(page + round as u64, 4096), false)
                            .expect("an overwrite");
                    }
                    live
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a writer")).collect()
    });
    let client = volume.connect();
    let live: usize = full.iter().map(Vec::len).sum();
    assert!(live > 1024 && live < 2048, "{live} pages of the image's 2048");
    let refused = (0..4096u64).find_map(|p| write(&volume, client, p * 4096, &pattern(p, 4096), false).err());
    assert!(matches!(refused, Some(IoError::NoSpace)), "{refused:?}");
    blocking(&*volume, client, IoOp::Trim { offset: 0, len_bytes: 16 << 20, fua: false }).expect("a discard");
    assert!(fill(&volume, client, 0, 0..4096).len() + 200 > live, "what was discarded can be used again");
}

#[test]
fn a_compaction_that_is_stopped_leaves_the_rest_as_it_is() {
    let image = Image::raw(16 << 20, 64 << 20);
    let volume = image.open(IoEngine::Auto);
    let client = volume.connect();
    for page in (0..4096u64).chain((0..4096).step_by(2)) {
        write(&volume, client, page * 4096, &pattern(page, 4096), false).expect("a write");
    }
    let tuning = volume.tuning();
    // Seconds for each record.
    volume
        .set_tuning(blockd::store::clean::Tuning { cleaner_bytes_per_s: 1 << 18, ..tuning })
        .expect("a slow cleaner");
    let stopped = volume.compact(|progress| progress.done_bytes == 0).expect("it begins");
    assert!(stopped.stopped && stopped.copied_bytes < 7 << 20, "{stopped:?}");
    volume.set_tuning(tuning).expect("its own speed");
    let done = volume.compact(|_| true).expect("it goes on");
    assert!(!done.stopped && done.cleaned_segments > 2 && done.freed_segments > 0, "{done:?}");
    for page in 0..4096 {
        assert!(read(&volume, client, page * 4096, 4096) == pattern(page, 4096), "page {page}");
    }
}

/// A new client of a VexFS volume, with a session.
fn mounter(volume: &Volume) -> ClientId {
    use layout::command::{CMD_OPEN, COMMAND_MAGIC, Command};
    use zerocopy::{FromZeros, IntoBytes};
    let client = volume.connect();
    let mut command = Command::new_zeroed();
    command.magic = COMMAND_MAGIC;
    command.op = CMD_OPEN.into();
    command.id = 1.into();
    command.boot_id = blockd::volume::boot_id();
    let at = layout::addr::COMMAND_PAGE.byte();
    write(volume, client, at, command.as_bytes(), false).expect("a session");
    client
}

#[test]
fn a_commit_brings_its_pages_along_and_is_there_after_a_restart() {
    let image = Image::make(VolumeKind::VexFs, 0, 16 << 20);
    let base = layout::addr::CLASS0_BASE / 4096;
    let page = |number: u64| -> [u8; 4096] { pattern(number, 4096).try_into().expect("a page") };
    // Two runs, longer than a record.
    let pages: Vec<u64> = (base..base + 300).chain(base + 1000..base + 1003).collect();
    for io in [IoEngine::Auto, IoEngine::Sync] {
        let volume = image.open(io);
        let client = mounter(&volume);
        let bytes: Vec<_> = pages.iter().map(|&number| page(number)).collect();
        let commit = Commit::new(pages.iter().copied().zip(&bytes), &page(7));
        volume.commit(client, commit).expect("a commit");
        assert_eq!(read(&volume, client, (base + 1002) * 4096, 4096), page(base + 1002));
        drop(volume);
        let volume = image.open(io);
        // Rolls back whatever was not committed.
        let client = mounter(&volume);
        for &number in &pages {
            assert_eq!(read(&volume, client, number * 4096, 4096), page(number), "page {number:#x}");
        }
        assert_eq!(read(&volume, client, 0, 4096), page(7));
    }
}

#[test]
fn a_commit_of_pages_that_are_not_the_mounters_is_refused() {
    let image = Image::make(VolumeKind::VexFs, 0, 8 << 20);
    let volume = image.open(IoEngine::Auto);
    let client = mounter(&volume);
    let bytes = [7; 4096];
    let commit = |client, page| volume.commit(client, Commit::new([(page, &bytes)].into_iter(), &bytes));
    let (index, beyond) = (layout::addr::INDEX_BASE / 4096, layout::addr::DEVICE_PAGES);
    for page in [0, 1, 2, 3, index, beyond, u64::MAX / 2] {
        let refused = commit(client, page);
        assert!(matches!(refused, Err(IoError::Invalid(_))), "page {page:#x}: {refused:?}");
    }
    let data = layout::addr::CLASS0_BASE / 4096;
    assert!(matches!(commit(volume.connect(), data), Err(IoError::Fenced(_))), "it has no session");
    assert!(read(&volume, client, 0, 4096).iter().all(|&byte| byte == 0), "nothing was committed");
    commit(client, data).expect("a commit");

    let raw = Image::raw(1 << 20, 8 << 20);
    let volume = raw.open(IoEngine::Auto);
    let refused = volume.commit(volume.connect(), Commit::new([].into_iter(), &bytes));
    assert!(matches!(refused, Err(IoError::Invalid(_))), "{refused:?}");
}

#[test]
fn a_full_vexfs_volume_takes_overwrites_after_each_commit() {
    let image = Image::make(VolumeKind::VexFs, 0, 8 << 20);
    let volume = image.open(IoEngine::Auto);
    let client = mounter(&volume);
    let base = layout::addr::CLASS0_BASE / 4096;
    let commit = |n: u64| write(&volume, client, 0, &pattern(n, 4096), false).expect("a commit");
    let mut live = Vec::new();
    while let more = fill(&volume, client, base, live.len() as u64..4096)
        && !more.is_empty()
    {
        live.extend(more);
        commit(live.len() as u64);
    }
    assert!(live.len() > 1000, "{} pages", live.len());
    let mut commits = 0;
    for round in 0..1000 {
        let page = live[(round * 379) % live.len()];
        let bytes = pattern(page + round as u64, 4096);
        let overwrite = || write(&volume, client, (base + page) * 4096, &bytes, false);
        if matches!(overwrite(), Err(IoError::NoSpace)) {
            commits += 1;
            commit(round as u64);
            overwrite().expect("what the last epoch replaced is free");
        }
    }
    assert!((1..500).contains(&commits), "{commits} commits were needed");
}

#[test]
fn partial_pages_and_whole_ones_in_flight_together_all_come_back() {
    let image = Image::raw(16 << 20, 64 << 20);
    for io in [IoEngine::Auto, IoEngine::Sync] {
        let volume = image.open(io);
        let client = volume.connect();
        // Neighbours share pages, so each request's bytes must survive the other's read-modify-write.
        let len = |i: u64| 512 * (1 + (i * 7) % 40) as usize;
        let mut expected = vec![0u8; 4 << 20];
        for round in 0..20u64 {
            let mut ops = Vec::new();
            let mut at = 0usize;
            while at + len(at as u64) < expected.len() && ops.len() < 64 {
                let n = len(at as u64 + round);
                let bytes = pattern(round * 100_000 + at as u64, n);
                expected[at..at + n].copy_from_slice(&bytes);
                ops.push(IoOp::Write {
                    offset: at as u64,
                    buf: AlignedBuf::from_slice(&bytes),
                    fua: at.is_multiple_of(5),
                });
                at += n;
            }
            for result in batch(&*volume, client, ops) {
                result.expect("a write");
            }
        }
        assert!(read(&volume, client, 0, expected.len()) == expected);
        volume.shutdown().expect("a clean end");
    }
}

#[test]
fn a_read_only_volume_reads_and_is_not_changed() {
    let image = Image::raw(4 << 20, 16 << 20);
    let volume = image.open(IoEngine::Auto);
    let client = volume.connect();
    write(&volume, client, 8192, &pattern(5, 4096), true).expect("a write");
    drop(volume);
    let before = std::fs::read(image.path()).expect("the image");
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let first = Volume::open(&image.path(), &options).expect("it opens read-only");
    let second = Volume::open(&image.path(), &options).expect("and again, beside the first");
    for volume in [&first, &second] {
        let client = volume.connect();
        assert!(volume.info().read_only);
        assert!(read(volume, client, 8192, 4096) == pattern(5, 4096));
        assert!(matches!(write(volume, client, 0, b"x", false), Err(IoError::ReadOnly)));
        blocking(&**volume, client, IoOp::Flush).expect("nothing to flush");
    }
    assert!(Volume::open(&image.path(), &OpenOptions::default()).is_err(), "no writer beside readers");
    drop((first, second));
    assert!(std::fs::read(image.path()).expect("the image") == before);
}

#[test]
fn wrong_images_are_refused_with_a_reason() {
    let image = Image::raw(4 << 20, 16 << 20);
    let open =
        || Volume::open(&image.path(), &OpenOptions::default()).map(|_| ()).expect_err("refused").to_string();
    let file = std::fs::OpenOptions::new().write(true).open(image.path()).expect("the image");
    file.set_len(8 << 20).expect("cut short");
    assert!(open().contains("cut short"), "{}", open());
    file.set_len(16 << 20).expect("long again");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 65536], 0).expect("no superblock");
    assert!(open().contains("mkfs.vexfs"), "{}", open());
    file.set_len(100).expect("tiny");
    assert!(open().contains("mkfs.vexfs"), "{}", open());
    let nothing = Volume::open(&image.dir.path().join("nothing"), &OpenOptions::default()).map(|_| ());
    assert!(nothing.expect_err("no such file").to_string().contains("cannot open"));
    let dir = Volume::open(image.dir.path(), &OpenOptions { read_only: true, ..OpenOptions::default() })
        .map(|_| ());
    assert!(dir.expect_err("a directory").to_string().contains("neither"));
}

fn extents(volume: &Volume, offset: u64, len_bytes: u64, max: usize) -> Vec<(u64, bool)> {
    let found = volume.allocation(ClientId(0), offset, len_bytes, max).expect("an answer");
    found.into_iter().map(|Extent { len_bytes, mapped }| (len_bytes, mapped)).collect()
}

#[test]
fn allocation_of_a_raw_volume_follows_writes_trims_and_restarts() {
    const SIZE: u64 = (256 << 20) + 4096;
    let image = Image::raw(SIZE, 64 << 20);
    let volume = image.open(IoEngine::default());
    let client = volume.connect();
    assert_eq!(extents(&volume, 0, SIZE, 9), [(SIZE, false)]);
    assert_eq!(extents(&volume, 100, 50, 9), [(50, false)], "bytes within a page");
    write(&volume, client, 8192, &pattern(1, 4096 * 4), false).unwrap();
    // One byte maps its page, the last one; it lies in another unit than the first.
    write(&volume, client, SIZE - 1, b"x", false).unwrap();
    let last = 4096;
    let all = [(8192, false), (16384, true), (SIZE - 24576 - last, false), (last, true)];
    assert_eq!(extents(&volume, 0, SIZE, 9), all);
    assert_eq!(extents(&volume, 0, SIZE, 2), all[..2]);
    assert_eq!(extents(&volume, 9000, 100, 1), [(100, true)]);
    assert_eq!(extents(&volume, 8000, 1000, 9), [(192, false), (808, true)]);
    let trim = IoOp::Trim { offset: 12288, len_bytes: 4096, fua: false };
    blocking(&*volume, client, trim).unwrap();
    let all = [
        (8192, false),
        (4096, true),
        (4096, false),
        (8192, true),
        (SIZE - 24576 - last, false),
        (last, true),
    ];
    assert_eq!(extents(&volume, 0, SIZE, 9), all);
    assert!(volume.allocation(client, SIZE, 1, 9).is_err(), "behind the end");
    volume.shutdown().unwrap();
    assert!(matches!(volume.allocation(client, 0, 1, 9), Err(IoError::Shutdown)));
    drop(volume);
    // The leaves are read from the image now.
    let volume = image.open(IoEngine::default());
    assert_eq!(extents(&volume, 0, SIZE, 9), all);
    volume.shutdown().unwrap();
}

#[test]
fn allocation_of_a_scattered_volume_ends_early_but_covers_everything() {
    const UNITS: u64 = 200;
    const UNIT_BYTES: u64 = 128 << 20;
    let image = Image::raw(UNITS * UNIT_BYTES, 64 << 20);
    let volume = image.open(IoEngine::default());
    let client = volume.connect();
    let ops = (0..UNITS).map(|unit| IoOp::Write {
        offset: unit * UNIT_BYTES + 4096 * (unit + 1),
        buf: AlignedBuf::from_slice(&pattern(unit, 4096)),
        fua: false,
    });
    assert!(batch(&*volume, client, ops).iter().all(Result::is_ok));
    let (mut at, mut mapped, mut calls) = (0, Vec::new(), 0);
    while at < UNITS * UNIT_BYTES {
        calls += 1;
        for (len, is_mapped) in extents(&volume, at, UNITS * UNIT_BYTES - at, 1000) {
            if is_mapped {
                mapped.push((at, len));
            }
            assert!(len > 0);
            at += len;
        }
    }
    assert_eq!(at, UNITS * UNIT_BYTES);
    let expected: Vec<_> = (0..UNITS).map(|unit| (unit * UNIT_BYTES + 4096 * (unit + 1), 4096)).collect();
    assert_eq!(mapped, expected);
    assert!(calls > 1, "one call looks into a bounded number of units");
    volume.shutdown().unwrap();
}

#[test]
fn allocation_of_a_whole_vexfs_device_is_one_short_answer() {
    let image = Image::make(VolumeKind::VexFs, 0, 64 << 20);
    let volume = image.open(IoEngine::default());
    let (map, end) = (layout::addr::MAP_BASE, layout::addr::DEVICE_BYTES);
    // What the daemon makes up is data: status page, command page, allocation map.
    let all = [(4096, false), (8192, true), (map - 12288, false), (end - map, true)];
    assert_eq!(extents(&volume, 0, end, 9), all);
    assert_eq!(extents(&volume, 4096, 4096, 9), [(4096, true)]);
    assert_eq!(extents(&volume, map - 4096, 8192, 9), [(4096, false), (4096, true)]);
    assert_eq!(extents(&volume, 1 << 57, 1 << 40, 1), [(1 << 40, false)]);
    volume.shutdown().unwrap();
}

/// Threads that bring requests drive the log for each other; whatever way a request takes, it is finished, and what was
/// acknowledged is read back. A request that all of them forget would hang the test.
#[test]
fn requests_of_many_threads_are_all_carried_out_whoever_drives_the_log() {
    const THREADS: u64 = 6;
    const PAGES: u64 = 64;
    for io in [IoEngine::Auto, IoEngine::Sync] {
        let image = Image::raw(32 << 20, 64 << 20);
        let volume = image.open(io);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let volume = &volume;
                scope.spawn(move || {
                    let client = volume.connect();
                    let at = |i: u64| (thread * PAGES + i % PAGES) * 4096;
                    for i in 0..400u64 {
                        let bytes = pattern(thread * 1000 + i, 4096);
                        let buf = AlignedBuf::from_slice(&bytes);
                        let op = IoOp::Write { offset: at(i), buf, fua: i % 50 == 49 };
                        match i % 4 {
                            // The last of a batch is carried out by its thread, if it can be.
                            0 => {
                                let mut ops = vec![op];
                                ops.extend((i % 3 == 0).then_some(IoOp::Flush));
                                batch(&**volume, client, ops).into_iter().for_each(|r| drop(r.unwrap()));
                            }
                            1 => {
                                let (send, recv) = std::sync::mpsc::channel::<IoResult>();
                                let done = |send: std::sync::mpsc::Sender<IoResult>| -> Done {
                                    Box::new(move |result| send.send(result).unwrap())
                                };
                                let read = IoOp::Read { offset: at(i + 1), buf: AlignedBuf::recycled(4096) };
                                let ops = vec![(op, done(send.clone())), (read, done(send))];
                                volume.submit_batch(client, ops);
                                recv.iter().take(2).for_each(|result| drop(result.unwrap()));
                            }
                            2 => {
                                blocking(&**volume, client, op).unwrap();
                                volume.expect_flush();
                            }
                            _ => drop(blocking(&**volume, client, op).unwrap()),
                        }
                        assert!(read(volume, client, at(i), 4096) == bytes, "{io:?}, write {i} of {thread}");
                    }
                });
            }
        });
        volume.shutdown().expect("a clean end");
        drop(volume);
        let volume = image.open(io);
        let client = volume.connect();
        for thread in 0..THREADS {
            for i in 400 - PAGES..400 {
                let offset = (thread * PAGES + i % PAGES) * 4096;
                assert!(read(&volume, client, offset, 4096) == pattern(thread * 1000 + i, 4096));
            }
        }
    }
}

/// Small requests with pauses between them, left to the volume's threads: these fall asleep and are woken all the time,
/// and one that is not woken would hang the test.
#[test]
fn requests_with_pauses_between_them_wake_whoever_sleeps() {
    const THREADS: u64 = 6;
    for io in [IoEngine::Uring, IoEngine::Sync] {
        let image = Image::raw(32 << 20, 64 << 20);
        let volume = image.open(io);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let volume = &volume;
                scope.spawn(move || {
                    let client = volume.connect();
                    let mut state = thread + 1;
                    for i in 0..300u64 {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        match state >> 61 {
                            0 => std::thread::sleep(std::time::Duration::from_micros(state >> 40 & 0xff)),
                            1..4 => std::thread::yield_now(),
                            _ => {}
                        }
                        let offset = (thread * 64 + i % 64) * 4096;
                        let op = match state >> 33 & 7 {
                            0 => IoOp::Flush,
                            1 => IoOp::Trim { offset, len_bytes: 4096, fua: false },
                            2..5 => IoOp::Read { offset, buf: AlignedBuf::recycled(4096) },
                            _ => IoOp::Write { offset, buf: AlignedBuf::zeroed(4096), fua: i % 16 == 0 },
                        };
                        let (send, finished) = std::sync::mpsc::channel::<IoResult>();
                        let done = Box::new(move |result| drop(send.send(result)));
                        volume.submit(client, op, done);
                        finished.recv().expect("it is carried out").expect("and succeeds");
                    }
                });
            }
        });
        volume.shutdown().expect("a clean end");
    }
}

#[test]
fn reads_through_the_page_cache_see_every_write() {
    let image = Image::raw(8 << 20, 16 << 20);
    let options = OpenOptions { cache: blockd::storage::Cache::Writeback, ..OpenOptions::default() };
    let volume = Volume::open(&image.path(), &options).expect("the volume opens");
    let client = volume.connect();
    // Segments are cleaned and used again, so places that are in the page cache change.
    for round in 0..12u64 {
        for part in 0..32u64 {
            let bytes = pattern(round * 100 + part, 256 << 10);
            write(&volume, client, part * (256 << 10), &bytes, false).expect("a write");
        }
        for part in 0..32u64 {
            let bytes = pattern(round * 100 + part, 256 << 10);
            assert!(
                read(&volume, client, part * (256 << 10), 256 << 10) == bytes,
                "round {round}, part {part}"
            );
        }
    }
}

#[test]
fn a_preallocated_image_has_no_holes_and_the_same_content() {
    use std::os::unix::fs::MetadataExt;
    let image = Image::raw(8 << 20, 16 << 20);
    let before = std::fs::read(image.path()).expect("the image");
    Volume::preallocate(&image.path()).expect("room for it");
    assert!(std::fs::read(image.path()).expect("the image") == before);
    let meta = image.path().metadata().expect("the image");
    assert!(meta.blocks() * 512 >= meta.len(), "{} blocks for {} bytes", meta.blocks(), meta.len());
    let volume = image.open(IoEngine::Auto);
    assert!(matches!(Volume::preallocate(&image.path()), Err(StoreError::Open(_))), "it is in use");
    drop(volume);
}
