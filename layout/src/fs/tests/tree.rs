//! The B+-tree with chosen keys: deep trees, ordinals of equal hashes, room that runs out.

use std::collections::BTreeSet;
use std::format;
use std::vec::Vec;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{NOW, new};
use crate::dir::leaf::Entry;
use crate::dir::page;
use crate::error::Error;
use crate::fs::{Fs, RenameFlags};
use crate::inode::{Ino, Inode, Kind, ROOT_INO};
use crate::name::Name;
use crate::testing::{MemStore, check, commit, format_params, mount};

const LONG: [u8; 255] = [b'n'; 255];

/// Puts an entry with a chosen key into a directory, past the names.
fn put(fs: &mut Fs<MemStore>, dir: &mut Inode, key: u64, name: &[u8]) {
    let plan = fs.plan_insert(dir, key, name.len()).expect("plan");
    fs.insert_entry(dir, plan, &Entry { key, ino: Ino(3), kind: Kind::File, name }).expect("insert");
    fs.write_inode(dir).expect("write");
}

fn take(fs: &mut Fs<MemStore>, dir: &mut Inode, key: u64) {
    let plan = fs.plan_remove(dir, key).expect("plan");
    fs.remove_entry(dir, &plan).expect("remove");
    fs.write_inode(dir).expect("write");
}

fn keys(fs: &Fs<MemStore>, dir: &Inode) -> Vec<u64> {
    let mut keys = Vec::new();
    let mut each = |entry: &Entry<'_>| {
        keys.push(entry.key);
        Ok(true)
    };
    fs.scan(dir, 0, &mut each).expect("scan");
    keys
}

fn root_level(fs: &Fs<MemStore>, dir: &Inode) -> u8 {
    let at = fs.dir_place(dir, 0).expect("page 0");
    page::raw(&fs.store().get(at.page)).level
}

fn empty_dir() -> (Fs<MemStore>, Inode) {
    let mut fs = mount(&MemStore::formatted(format_params())).expect("mount");
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir");
    (fs, dir)
}

/// Fills a tree in an order, then empties it in another one.
fn fill_and_empty(fill: &[u64], empty: &[u64], least_level: u8) {
    let (mut fs, mut dir) = empty_dir();
    for key in fill {
        put(&mut fs, &mut dir, *key, &LONG);
    }
    let mut left: BTreeSet<u64> = fill.iter().copied().collect();
    assert_eq!(keys(&fs, &dir), left.iter().copied().collect::<Vec<_>>());
    assert!(root_level(&fs, &dir) >= least_level, "level {}", root_level(&fs, &dir));
    for (i, key) in empty.iter().enumerate() {
        take(&mut fs, &mut dir, *key);
        left.remove(key);
        if i % (empty.len() / 16) == 0 || left.len() < 3 {
            assert_eq!(keys(&fs, &dir), left.iter().copied().collect::<Vec<_>>());
        }
    }
    assert_eq!((dir.size, dir.entries, dir.windows), (4096, 0, [0; 3]));
    assert_eq!(fs.unlink(ROOT_INO, b"d", NOW), Err(Error::IsDir));
    fs.rmdir(ROOT_INO, b"d", NOW).expect("rmdir");
    fs.reap_orphans(u64::MAX).expect("reap");
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn trees_of_four_levels_are_filled_and_emptied_in_any_order() {
    let ascending: Vec<u64> = (1..=300_000).map(|i| i << 4).collect();
    let descending: Vec<u64> = ascending.iter().rev().copied().collect();
    fill_and_empty(&ascending, &descending, 3);
    let few: Vec<u64> = (1..=20_000).map(|i| i << 4).collect();
    let mut shuffled = few.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(3));
    fill_and_empty(&shuffled, &few, 2);
    fill_and_empty(&few, &shuffled, 2);
    fill_and_empty(&descending[..20_000], &descending[..20_000], 2);
}

#[test]
fn names_of_equal_hash_get_the_lowest_free_ordinal() {
    let (mut fs, mut dir) = empty_dir();
    let name = b"wanted";
    let first = Name::new(name).expect("name").first_key(&fs.superblock().hash_key);
    for ordinal in [0, 1, 2, 4, 5] {
        put(&mut fs, &mut dir, first + ordinal, format!("other {ordinal}").as_bytes());
    }
    let inode = fs.create(dir.ino, name, new(Kind::File, 0o644), NOW).expect("create");
    assert_eq!((inode.place_dir, inode.place_key), (dir.ino, first + 3));
    assert_eq!(fs.lookup(dir.ino, name).expect("lookup").ino, inode.ino);
    fs.unlink(dir.ino, name, NOW).expect("unlink");

    let mut dir = fs.inode(dir.ino).expect("inode");
    for ordinal in [3].into_iter().chain(6..16) {
        put(&mut fs, &mut dir, first + ordinal, format!("other {ordinal}").as_bytes());
    }
    assert_eq!(fs.create(dir.ino, name, new(Kind::File, 0o644), NOW), Err(Error::NoSpace));
    take(&mut fs, &mut dir, first + 15);
    let inode = fs.create(dir.ino, name, new(Kind::File, 0o644), NOW).expect("create");
    assert_eq!(inode.place_key, first + 15);
}

#[test]
fn equal_hashes_are_found_across_leaves() {
    let (mut fs, mut dir) = empty_dir();
    let first = Name::new(b"wanted").expect("name").first_key(&fs.superblock().hash_key);
    // 15 names of 255 bytes do not fit into one leaf.
    for ordinal in 0..15 {
        put(&mut fs, &mut dir, first + ordinal, &LONG);
    }
    assert!(root_level(&fs, &dir) > 0);
    let inode = fs.create(dir.ino, b"wanted", new(Kind::File, 0o644), NOW).expect("create");
    assert_eq!(inode.place_key, first + 15);
    assert_eq!(fs.lookup(dir.ino, b"wanted").expect("lookup").ino, inode.ino);
}

/// Tries a change with ever more room until it succeeds; each failure must leave all as it was.
fn with_growing_room<T>(fs: &mut Fs<MemStore>, change: impl Fn(&mut Fs<MemStore>) -> Result<T, Error>) -> T {
    commit(fs, NOW);
    for room in 0..40 {
        fs.store().set_credits(Some(room));
        let result = change(fs);
        fs.store().set_credits(None);
        assert!(!fs.is_poisoned(), "poisoned with room for {room} pages");
        match result {
            Ok(value) => return value,
            Err(error) => assert_eq!(error, Error::NoSpace),
        }
        if room % 4 == 0 {
            // Else pages touched by the failed try are dirty already and need no room.
            commit(fs, NOW);
        }
    }
    panic!("40 pages must be room enough");
}

#[test]
fn splits_and_merges_without_room_change_nothing() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    let mut rng = StdRng::seed_from_u64(4);
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    let name = |i: u32| format!("{i:0>200}");
    let mut live: Vec<u32> = Vec::new();
    for i in 0..6000u32 {
        let grow = if i < 3000 { 70 } else { 30 };
        if live.is_empty() || rng.random_range(0..100) < grow {
            if i % 8 == 0 {
                with_growing_room(&mut fs, |fs| {
                    fs.create(dir, name(i).as_bytes(), new(Kind::File, 0o644), NOW)
                });
            } else {
                fs.create(dir, name(i).as_bytes(), new(Kind::File, 0o644), NOW).expect("create");
            }
            live.push(i);
            continue;
        }
        let at = rng.random_range(0..live.len());
        let old = live.swap_remove(at);
        if i % 3 == 0 {
            with_growing_room(&mut fs, |fs| {
                let flags = RenameFlags::NOREPLACE;
                fs.rename(dir, name(old).as_bytes(), dir, name(i).as_bytes(), flags, NOW)
            });
            live.push(i);
        } else if i % 3 == 1 {
            with_growing_room(&mut fs, |fs| fs.unlink(dir, name(old).as_bytes(), NOW));
        } else {
            fs.unlink(dir, name(old).as_bytes(), NOW).expect("unlink");
        }
        if i % 500 == 0 {
            fs.reap_orphans(u64::MAX).expect("reap");
            assert_eq!(check(&fs), Ok(()));
        }
    }
    assert_eq!(fs.inode(dir).expect("inode").entries, live.len() as u64);
    for i in &live {
        fs.lookup(dir, name(*i).as_bytes()).expect("lookup");
    }
}
