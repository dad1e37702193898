//! Commits that bring their pages along, as one request: one write where they fit a record, and all or nothing anywhere.

use std::collections::BTreeMap;

use layout::addr::{CLASS0_BASE, CLASS3_BASE, INODE_BASE};
use layout::command::{CMD_FREE_RANGES, CMD_OPEN};

use super::corners::{CLIENT, mounted, send, write};
use super::driver::Driver;
use super::{content, tag_of};
use crate::device::{ClientId, IoError};
use crate::storage::sim::Crash;

const IMAGE_BYTES: usize = 4 << 20;

/// Runs of several lengths in three regions, more than a record of these segments (14 pages) takes.
fn places() -> Vec<u64> {
    let runs =
        [(INODE_BASE, 3), (INODE_BASE + (1 << 20), 1), (CLASS0_BASE, 20), (CLASS3_BASE + (1 << 48), 9)];
    runs.into_iter().flat_map(|(byte, count)| (byte >> 12)..(byte >> 12) + count).collect()
}

fn commit(driver: &mut Driver, pages: &[u64], tag: u64) -> Result<(), IoError> {
    let ticket = driver.commit(CLIENT, &pages.iter().map(|&page| (page, tag)).collect(), tag, content);
    driver.settle();
    Driver::outcome(&ticket)
}

fn tag(driver: &Driver, page: u64) -> u64 {
    let bytes = driver.read(CLIENT, page << 12, 4096).expect("a page can be read");
    tag_of(page, &bytes).expect("a version")
}

/// How often each version stands on these pages and the superblock.
fn tags(driver: &Driver, pages: &[u64]) -> BTreeMap<u64, usize> {
    let mut found = BTreeMap::new();
    pages.iter().chain([&0]).for_each(|&page| *found.entry(tag(driver, page)).or_default() += 1);
    found
}

#[test]
fn a_few_pages_and_their_commit_are_one_write_and_one_sync() {
    let (mut driver, _) = mounted(1, IMAGE_BYTES);
    let pages: Vec<u64> = places().into_iter().take(3).collect();
    commit(&mut driver, &pages, 1).expect("a commit");
    let before = (driver.disk.writes(), driver.store().counters.syncs.get());
    commit(&mut driver, &pages, 2).expect("a commit");
    let after = (driver.disk.writes(), driver.store().counters.syncs.get());
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1));
    assert_eq!(tags(&driver, &pages), BTreeMap::from([(2, 4)]));
}

#[test]
fn a_crash_at_each_write_leaves_all_of_a_commit_or_nothing() {
    let pages = places();
    for crash in [Crash::PowerCut, Crash::ProcessDeath] {
        for n in 1.. {
            let (mut driver, _) = mounted(n, IMAGE_BYTES);
            commit(&mut driver, &pages, 1).expect("a commit");
            write(&mut driver, pages[7], 2).expect("a write of the same epoch");
            driver.disk.crash_at(n);
            let acknowledged = commit(&mut driver, &pages, 3).is_ok();
            if !driver.disk.crashed() {
                assert!(acknowledged && n > 4, "the commit takes some writes");
                break;
            }
            let mut driver = Driver::open(driver.disk.restart(crash), 1).expect("the store opens");
            // Whoever lived through it would find its open epoch; another mounter finds a commit.
            let ticket = send(&mut driver, ClientId(2), CMD_OPEN, 0, 1, &[]);
            driver.settle();
            Driver::outcome(&ticket).expect("OPEN is carried out");
            let found = tags(&driver, &pages);
            let all = pages.len() + 1;
            let whole = [BTreeMap::from([(1, all)]), BTreeMap::from([(3, all)])];
            assert!(whole[usize::from(acknowledged)..].contains(&found), "{crash:?} at write {n}: {found:?}");
            driver.check_usage();
        }
    }
}

#[test]
fn a_commit_that_finds_no_space_commits_nothing_and_can_be_sent_again() {
    let (mut driver, session) = mounted(3, 2 << 20);
    let data = |i: u64| (CLASS0_BASE >> 12) + i;
    commit(&mut driver, &[data(0), data(1)], 1).expect("a commit");
    let filled = (2..).find(|&i| write(&mut driver, data(i), 1).is_err()).expect("it is full at some time");
    let epoch = driver.store().maps.read().epoch;
    let pages: Vec<u64> = (0..40).map(|i| data(filled + i)).collect();
    assert!(matches!(commit(&mut driver, &pages, 2), Err(IoError::NoSpace)));
    assert_eq!(driver.store().maps.read().epoch, epoch, "nothing is committed");
    assert_eq!(tag(&driver, 0), 1, "the superblock is the old one");

    let freed = [(data(0), filled)];
    let ticket = send(&mut driver, CLIENT, CMD_FREE_RANGES, session, 2, &freed);
    driver.settle();
    Driver::outcome(&ticket).expect("a full volume takes frees");
    write(&mut driver, 0, 3).expect("a commit without pages needs no space");
    commit(&mut driver, &pages, 4).expect("the same pages, now that there is space");
    assert_eq!(tags(&driver, &pages), BTreeMap::from([(4, 41)]));
    assert_eq!(driver.store().maps.read().epoch, epoch + 2);
    driver.check_usage();
}

#[test]
fn who_is_not_the_mounter_commits_nothing() {
    let (mut driver, _) = mounted(4, IMAGE_BYTES);
    let pages = places();
    let ticket = driver.commit(ClientId(7), &BTreeMap::from([(pages[0], 9)]), 9, content);
    driver.settle();
    assert!(matches!(Driver::outcome(&ticket), Err(IoError::Fenced(_))));
    assert_eq!(tags(&driver, &pages[..1]), BTreeMap::from([(0, 2)]));
}
