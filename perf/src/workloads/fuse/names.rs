//! Loops over names: create, look up, open, rename, list, remove.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;

use super::meter::{Meter, repeat};
use super::tree::{LISTED, STAT_FILES, Tree};
use crate::contender::Work;

/// Bytes of a small file.
const SMALL: [u8; 1024] = [7; 1024];
/// Files that are made, and removed in the part that counts.
const POOL: u64 = 1000;

fn create(path: &Path) -> Result<()> {
    Ok(File::create_new(path)?.write_all(&SMALL)?)
}

/// Files of 1 KiB in one directory.
pub fn create_in_one(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    repeat(time, |count| create(&made.join(format!("file-{count}"))))
}

/// Files of 1 KiB, a new directory for each hundred.
pub fn create_in_many(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    let mut directory = made.clone();
    repeat(time, |count| {
        if count.is_multiple_of(100) {
            directory = made.join(format!("{count}"));
            fs::create_dir(&directory)?;
        }
        create(&directory.join(format!("file-{count}")))
    })
}

/// stat(2), as ls, find and git do it. std::fs::metadata also asks for the time of creation, which FUSE's answer to a look-up has
/// no place for: where a file system has that time, it costs a second request.
fn stat(path: &Path) -> Result<()> {
    Ok(rustix::fs::stat(path).map(drop)?)
}

/// Files that the kernel knows.
pub fn stat_warm(tree: &Tree, time: Duration) -> Result<Work> {
    for index in 0..STAT_FILES {
        stat(&tree.stat_path(index))?;
    }
    let mut rng = rand::rng();
    repeat(time, |_| stat(&tree.stat_path(rng.random_range(0..STAT_FILES))))
}

/// Files that the kernel has forgotten.
pub fn stat_cold(tree: &Tree, time: Duration) -> Result<Work> {
    let mut meter = Meter::default();
    while meter.elapsed() < time {
        fs::write("/proc/sys/vm/drop_caches", "2").context("dropping caches needs root")?;
        // The way to them.
        stat(&tree.listed())?;
        let cold = |index: u64| stat(&tree.stat_path(index as usize));
        meter.batch(|count, _| count < STAT_FILES as u64, cold, || Ok(()))?;
    }
    Ok(meter.work())
}

/// Names that are not there, each another one.
pub fn lookup_absent(tree: &Tree, time: Duration) -> Result<Work> {
    let mut rng = rand::rng();
    repeat(time, |_| {
        let absent = tree.listed().join(format!("absent-{:x}", rng.random::<u64>()));
        anyhow::ensure!(!absent.exists());
        Ok(())
    })
}

/// open(2) and close(2).
pub fn open(tree: &Tree, time: Duration) -> Result<Work> {
    let mut rng = rand::rng();
    repeat(time, |_| Ok(File::open(tree.stat_path(rng.random_range(0..STAT_FILES))).map(drop)?))
}

/// Within a directory.
pub fn rename(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    for index in 0..POOL {
        File::create(made.join(format!("a-{index}")))?;
    }
    repeat(time, |count| {
        let (index, back) = (count % POOL, (count / POOL).is_multiple_of(2));
        let names = [made.join(format!("a-{index}")), made.join(format!("b-{index}"))];
        let [from, to] = if back { [&names[0], &names[1]] } else { [&names[1], &names[0]] };
        Ok(fs::rename(from, to)?)
    })
}

/// Listings of 10,000 names; a listing is the operation.
pub fn readdir(tree: &Tree, time: Duration) -> Result<Work> {
    repeat(time, |_| {
        let names = fs::read_dir(tree.listed())?.count();
        anyhow::ensure!(names == LISTED, "{names} names are listed");
        Ok(())
    })
}

/// Files of 1 KiB.
pub fn unlink(tree: &Tree, time: Duration) -> Result<Work> {
    let made = tree.made()?;
    let mut meter = Meter::default();
    while meter.elapsed() < time {
        let path = |count: u64| made.join(format!("file-{count}"));
        for count in 0..POOL {
            create(&path(count))?;
        }
        meter.batch(|count, _| count < POOL, |count| Ok(fs::remove_file(path(count))?), || Ok(()))?;
    }
    Ok(meter.work())
}

/// A directory is made and removed.
pub fn mkdir_rmdir(tree: &Tree, time: Duration) -> Result<Work> {
    let path = tree.made()?.join("directory");
    repeat(time, |_| {
        fs::create_dir(&path)?;
        Ok(fs::remove_dir(&path)?)
    })
}
