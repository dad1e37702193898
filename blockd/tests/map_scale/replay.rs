//! A start after a crash, with the longest log that the default settings let grow: its time and memory are bounded.
//!
//! A checkpoint is due once the log has 128 times as many pages as it would write, at most 4 GiB (8192 pages); with more to
//! write it is due at 256 MiB. So the worst that a start has to replay is 4 GiB of scattered pages.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use blockd::buf::AlignedBuf;
use blockd::device::VolumeKind;
use blockd::storage::file::FileStorage;
use blockd::store::snapshot::View;
use blockd::volume::stepped::Stepped;
use blockd::volume::{CreateOptions, OpenOptions, Volume};
use layout::addr::PAGE;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{memory_mib, reset_peak};

/// Pages given to the store at once.
const BATCH_PAGES: usize = 2048;
/// Pages read after the start.
const READS: usize = 2000;

/// What a start took.
struct Replayed {
    seconds: f64,
    memory_mib: u64,
}

/// The image of a child that writes, and dies.
const IMAGE_VARIABLE: &str = "VEXFS_REPLAY_IMAGE";

/// What is written, the same whoever asks: pages at random of a raw volume, with versions from 1 on.
fn pages(volume_bytes: u64, log_bytes: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut rng = StdRng::seed_from_u64(6);
    (1..=(log_bytes / PAGE as u64) as u32).map(move |version| {
        let page = rng.random_range(0..volume_bytes / PAGE as u64);
        (page, version)
    })
}

fn options() -> OpenOptions {
    OpenOptions { boot_id: [1; 16], checkpoint_bytes: u64::MAX / 2, cleaner: false, ..OpenOptions::default() }
}

fn open(path: &Path) -> Result<Stepped> {
    let storage = Arc::new(FileStorage::open(path, false, options().io)?);
    Ok(Stepped::open(storage, &options())?)
}

/// Has a child overwrite a raw volume until its log has so many bytes of data without a checkpoint, and die by
/// SIGKILL; opens the store.
fn measure(volume_bytes: u64, log_bytes: u64) -> Result<Replayed> {
    let dir = std::env::var_os("VEXFS_SCALE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    let path = dir.path().join("replay.vexfs");
    let create = CreateOptions {
        kind: VolumeKind::Raw,
        uuid: uuid::Uuid::from_bytes([4; 16]),
        size_bytes: volume_bytes + log_bytes * 5 / 4,
        raw_size_bytes: volume_bytes,
        segment_bytes: 0,
        force: false,
    };
    Volume::create(&path, &create)?;
    let begun = Instant::now();
    let child = vexfs_harness::command(std::env::current_exe()?)
        .args(["--exact", "replay::what_a_child_does", "--ignored", "--nocapture"])
        .env(IMAGE_VARIABLE, format!("{volume_bytes} {log_bytes} {}", path.display()))
        .output()?;
    ensure!(child.status.signal() == Some(9), "{child:?}");
    let write_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let before = memory_mib("VmRSS:")?;
    reset_peak()?;
    let mut store = open(&path)?;
    let seconds = begun.elapsed().as_secs_f64();
    let memory_mib = memory_mib("VmHWM:")?.saturating_sub(before);
    println!(
        "{} MiB of log written in {write_s:.1} s, replayed in {seconds:.2} s with {memory_mib} MiB of memory",
        log_bytes >> 20
    );
    let newest: HashMap<u64, u32> = pages(volume_bytes, log_bytes).collect();
    for (page, version) in pages(volume_bytes, log_bytes).step_by((log_bytes / PAGE as u64) as usize / READS)
    {
        let version = newest.get(&page).copied().unwrap_or(version);
        let mut buf = AlignedBuf::zeroed(PAGE);
        store.store().read_run_at(View::Live, page, &mut buf)?;
        ensure!(*buf == *content(page, version), "page {page}");
    }
    store.settle();
    Ok(Replayed { seconds, memory_mib })
}

#[test]
#[ignore = "a part of the other tests: it ends by SIGKILL"]
fn what_a_child_does() -> Result<()> {
    let Ok(wanted) = std::env::var(IMAGE_VARIABLE) else { return Ok(()) };
    let mut words = wanted.splitn(3, ' ');
    let mut word = || words.next().context("a word");
    let (volume_bytes, log_bytes, path) = (word()?.parse()?, word()?.parse()?, PathBuf::from(word()?));
    let mut store = open(&path)?;
    let before = store.store().counters.stats().checkpoints;
    let mut pages = pages(volume_bytes, log_bytes).peekable();
    while pages.peek().is_some() {
        let batch = pages.by_ref().take(BATCH_PAGES);
        store.write_pages(batch.map(|(page, version)| (page, content(page, version)))).context("writing")?;
    }
    ensure!(store.store().counters.stats().checkpoints == before, "a checkpoint was written");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Ok(())
}

fn content(page: u64, version: u32) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(PAGE);
    buf[..8].copy_from_slice(&page.to_le_bytes());
    buf[PAGE - 4..].copy_from_slice(&version.to_le_bytes());
    buf
}

#[test]
fn a_log_is_replayed_to_its_end() -> Result<()> {
    let replayed = measure(64 << 20, 96 << 20)?;
    assert!(replayed.memory_mib < 256, "{} MiB", replayed.memory_mib);
    Ok(())
}

#[test]
#[ignore = "writes 4 GB and takes a minute: make map-scale"]
fn the_longest_log_is_replayed_within_20_seconds_and_a_gibibyte() -> Result<()> {
    let replayed = measure(8 << 30, 4 << 30)?;
    assert!(replayed.seconds <= 20.0, "{} s", replayed.seconds);
    assert!(replayed.memory_mib <= 1024, "{} MiB", replayed.memory_mib);
    Ok(())
}
