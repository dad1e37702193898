//! Opening a volume with a large map, or after a crash with a long log ([`replay`]): time, and memory at its peak, are bounded by
//! settings and not by the volume.
//!
//! The full size (1 TiB mapped in random-order extents of 16 KiB, some 3 GB of metadata in a sparse file) is `make map-scale`;
//! `VEXFS_SCALE_DIR` says where the files go.

mod image;
mod replay;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blockd::storage::IoEngine;
use blockd::storage::file::FileStorage;
use blockd::store::clean::Tuning;
use blockd::store::map::Lookup;
use blockd::store::recover::{self, RecoverOptions};
use image::{EXTENT_PAGES, crc, place};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Memory for the map, as the daemon has it by default.
const MAP_BYTES_MAX: usize = 256 << 20;
/// Pages looked up after the start.
const LOOKUPS: u32 = 20_000;

/// Peak of the memory of this process in MiB since [`reset_peak`].
fn peak_mib() -> Result<u64> {
    memory_mib("VmHWM:")
}

/// A figure of this process's memory in MiB: `VmRSS:`, `VmHWM:`.
fn memory_mib(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).context("a line of /proc/self/status")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a figure")?.parse()?;
    Ok(kib / 1024)
}

fn reset_peak() -> Result<()> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}

/// Makes the image, opens it, looks pages up; time of the start and peak of the memory in MiB.
fn measure(bytes: u64) -> Result<(Duration, u64)> {
    let dir = std::env::var_os("VEXFS_SCALE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    let path = dir.path().join("scale.vexfs");
    let begun = Instant::now();
    let made = image::make(&path, bytes)?;
    println!(
        "{} GiB mapped in {} extents: {} leaves, {} MiB of metadata, made in {:.1} s",
        bytes >> 30,
        made.extents,
        made.leaves,
        made.bytes_written >> 20,
        begun.elapsed().as_secs_f64()
    );
    reset_peak()?;
    let storage = Arc::new(FileStorage::open(&path, false, IoEngine::Auto)?);
    let options = RecoverOptions {
        read_only: false,
        boot_id: [1; 16],
        tuning: Tuning::default(),
        map_bytes_max: MAP_BYTES_MAX,
        discard: false,
    };
    let begun = Instant::now();
    let opened = recover::open(storage, &options)?;
    let time = begun.elapsed();
    let after_start = peak_mib()?;

    let store = opened.shared;
    let mut rng = StdRng::seed_from_u64(1);
    let begun = Instant::now();
    for _ in 0..LOOKUPS {
        let extent = rng.random_range(0..made.extents);
        let page = extent * EXTENT_PAGES + rng.random_range(0..EXTENT_PAGES);
        let found = loop {
            let found = store.maps.read().lookup(page);
            let Lookup::Leaf(key) = found else { break found };
            store.load_leaf(key)?;
        };
        let start = place(made.extents, extent);
        let Lookup::Mapped(mapping) = found else { panic!("page {page:#x} is mapped, but it is {found:?}") };
        assert_eq!(
            (mapping.loc.segment, u64::from(mapping.loc.offset)),
            (start.segment, u64::from(start.offset) + page % EXTENT_PAGES)
        );
        assert_eq!(mapping.crc, crc(page));
    }
    let each = begun.elapsed() / LOOKUPS;
    let peak = peak_mib()?;
    println!(
        "opened in {:.2} s with {after_start} MiB; {LOOKUPS} lookups at random: {each:?} each, {peak} MiB at the peak",
        time.as_secs_f64()
    );
    Ok((time, peak))
}

#[test]
fn a_small_part_of_it_opens_and_reads_right() -> Result<()> {
    let (_, peak) = measure(4 << 30)?;
    assert!(peak < 512, "{peak} MiB");
    Ok(())
}

#[test]
#[ignore = "writes 3 GB and takes a minute: make map-scale"]
fn a_tebibyte_opens_within_10_seconds_and_a_gibibyte() -> Result<()> {
    let (time, peak) = measure(1 << 40)?;
    assert!(time <= Duration::from_secs(10), "{time:?}");
    assert!(peak <= 1024, "{peak} MiB");
    Ok(())
}
