//! Loops over the bytes of one file of 64 MiB.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::Result;
use blockd::buf::AlignedBuf;
use rand::Rng;
use rustix::fs::{Advice, fadvise};

use super::meter::{Meter, repeat};
use super::tree::{DATA_PAGES, PAGE, Tree};
use crate::contender::Work;

/// Bytes of a sequential read or write.
const LARGE: usize = 1 << 20;
/// Sequential passes are so long.
const PASS: u64 = DATA_PAGES * PAGE as u64 / LARGE as u64;

fn random_offset() -> u64 {
    rand::rng().random_range(0..DATA_PAGES) * PAGE as u64
}

/// Pages that the kernel has.
pub fn read_cached(tree: &Tree, time: Duration) -> Result<Work> {
    let mut all = vec![0; DATA_PAGES as usize * PAGE];
    tree.data.read_exact_at(&mut all, 0)?;
    let mut page = [0; PAGE];
    repeat(time, |_| Ok(tree.data.read_exact_at(&mut page, random_offset())?))
}

/// With O_DIRECT.
pub fn read_direct(tree: &Tree, time: Duration) -> Result<Work> {
    let mut page = AlignedBuf::zeroed(PAGE);
    repeat(time, |_| Ok(tree.direct.read_exact_at(&mut page, random_offset())?))
}

/// Into the page cache; the fsync at the end counts.
pub fn write_cached(tree: &Tree, time: Duration) -> Result<Work> {
    let mut meter = Meter::default();
    let page = [rand::rng().random(); PAGE];
    let write = |_| Ok(tree.data.write_all_at(&page, random_offset())?);
    meter.batch(|_, elapsed| elapsed < time, write, || Ok(tree.data.sync_data()?))?;
    Ok(meter.work())
}

/// With O_DIRECT.
pub fn write_direct(tree: &Tree, time: Duration) -> Result<Work> {
    let page = AlignedBuf::from_slice(&[rand::rng().random(); PAGE]);
    repeat(time, |_| Ok(tree.direct.write_all_at(&page, random_offset())?))
}

/// Each write is made durable.
pub fn write_fsync(tree: &Tree, time: Duration) -> Result<Work> {
    let page = [rand::rng().random(); PAGE];
    repeat(time, |_| {
        tree.data.write_all_at(&page, random_offset())?;
        Ok(tree.data.sync_data()?)
    })
}

/// From front to back, with the kernel's read-ahead, without what it has.
pub fn read_sequential(tree: &Tree, time: Duration) -> Result<Work> {
    let mut meter = Meter::default();
    let mut part = vec![0; LARGE];
    while meter.elapsed() < time {
        fadvise(&tree.data, 0, None, Advice::DontNeed)?;
        // Another descriptor: `data` is marked as read at random.
        let mut file = File::open(tree.made()?.join("../data"))?;
        meter.batch(|count, _| count < PASS, |_| Ok(file.read_exact(&mut part)?), || Ok(()))?;
    }
    Ok(meter.work())
}

/// A new file; its fsync counts.
pub fn write_sequential(tree: &Tree, time: Duration) -> Result<Work> {
    let mut meter = Meter::default();
    let part = vec![rand::rng().random(); LARGE];
    let path = tree.made()?.join("sequential");
    while meter.elapsed() < time {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let synced = file.try_clone()?;
        meter.batch(|count, _| count < PASS, |_| Ok(file.write_all(&part)?), || Ok(synced.sync_all()?))?;
    }
    Ok(meter.work())
}
