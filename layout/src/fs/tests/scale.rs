//! Large numbers and deep trees: what few volumes reach, but every volume may.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::{NOW, at, new};
use crate::addr::INO_LIMIT;
use crate::error::Error;
use crate::fs::{Fs, RenameFlags};
use crate::inode::{Ino, Kind, ROOT_INO};
use crate::superblock::Superblock;
use crate::testing::{MemStore, check, commit, format_params, mount};

fn empty() -> Fs<MemStore> {
    mount(&MemStore::formatted(format_params())).expect("mount")
}

/// A volume on which all inode numbers below `next_ino` were given out at some time.
fn with_next_ino(next_ino: u64) -> Fs<MemStore> {
    let store = MemStore::formatted(format_params());
    let page = store.get(crate::addr::SUPERBLOCK_PAGE);
    let mut superblock = Superblock::decode(&page, false).expect("decodes");
    superblock.next_ino = next_ino;
    store.put(crate::addr::SUPERBLOCK_PAGE, &superblock.encode());
    mount(&store).expect("mount")
}

#[test]
fn inode_numbers_of_any_size_work_and_come_back() {
    for next in [100_000_000, 100_000_001, (1 << 32) - 1, INO_LIMIT - 2] {
        let mut fs = with_next_ino(next);
        let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
        let file = fs.create(dir, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
        assert_eq!((dir, file), (Ino(next), Ino(next + 1)));
        fs.setxattr(file, b"user.a", &[1; 1000], crate::fs::XattrFlags::empty(), NOW).expect("setxattr");
        let inode = fs.prepare_write(file, 0, 1 << 31).expect("write");
        assert!(fs.map(&inode, 0).is_some_and(|run| run.byte == (1 << 57) + (file.0 << 20)));
        if next + 2 == INO_LIMIT {
            assert_eq!(fs.create(dir, b"g", new(Kind::File, 0o644), NOW), Err(Error::NoSpace));
        }
        commit(&mut fs, NOW);
        let store = fs.store().clone();
        let mut fs = mount(&store).expect("mount");
        assert_eq!(fs.lookup(dir, b"f").expect("lookup").ino, file);
        fs.unlink(dir, b"f", NOW).expect("unlink");
        fs.reap(file).expect("reap");
        commit(&mut fs, NOW);
        let again = fs.create(dir, b"again", new(Kind::File, 0o644), NOW).expect("create");
        assert_eq!((again.ino, again.generation), (file, 2));
    }
}

#[test]
fn a_tree_of_ten_thousand_levels_is_made_moved_and_removed() {
    const LEVELS: usize = 10_000;
    let mut fs = empty();
    let mut dirs = Vec::from([ROOT_INO]);
    for level in 0..LEVELS {
        let made = fs.create(dirs[level], b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir");
        dirs.push(made.ino);
    }
    assert_eq!(check(&fs), Ok(()));
    let deepest = dirs[LEVELS];
    fs.create(deepest, b"f", new(Kind::File, 0o644), NOW).expect("create");
    let flags = RenameFlags::empty();
    let below = fs.rename(ROOT_INO, b"d", deepest, b"x", flags, NOW);
    assert!(matches!(below, Err(Error::Invalid(_))), "{below:?}");
    let exchanged = fs.rename(deepest, b"f", ROOT_INO, b"d", RenameFlags::EXCHANGE, NOW);
    assert!(matches!(exchanged, Err(Error::Invalid(_))), "{exchanged:?}");
    assert_eq!(fs.rename(deepest, b"f", dirs[1], b"up", flags, NOW), Ok(None));
    assert_eq!(
        fs.find_link(fs.lookup(dirs[1], b"up").expect("there").ino, ROOT_INO).map(|found| found.map(|f| f.0)),
        Ok(Some(dirs[1]))
    );
    assert_eq!(fs.path(deepest, ROOT_INO, &mut [0; 4096]), Err(Error::Range));
    for level in (0..LEVELS).rev().take(LEVELS - 1) {
        let gone = fs.rmdir(dirs[level], b"d", NOW).expect("rmdir");
        fs.reap(gone.ino).expect("reap");
    }
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn exchanged_directories_take_their_links_and_parents_along() {
    let mut fs = empty();
    let mkdir = |fs: &mut Fs<MemStore>, parent, name: &[u8]| {
        fs.create(parent, name, new(Kind::Dir, 0o755), NOW).expect("mkdir").ino
    };
    let (a, b) = (mkdir(&mut fs, ROOT_INO, b"a"), mkdir(&mut fs, ROOT_INO, b"b"));
    let (x, y) = (mkdir(&mut fs, a, b"x"), mkdir(&mut fs, b, b"y"));
    mkdir(&mut fs, x, b"below");
    let f = fs.create(a, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
    fs.rename(a, b"x", b, b"y", RenameFlags::EXCHANGE, at(5)).expect("exchange");
    let nlinks = |fs: &Fs<MemStore>| [ROOT_INO, a, b].map(|ino| fs.inode(ino).expect("inode").nlink);
    assert_eq!((fs.parent(x), fs.parent(y), nlinks(&fs)), (Ok(b), Ok(a), [4, 3, 3]));
    for ino in [a, b] {
        let inode = fs.inode(ino).expect("inode");
        assert_eq!((inode.mtime, inode.ctime), (at(5), at(5)));
    }
    assert_eq!([x, y].map(|ino| fs.inode(ino).expect("inode").ctime), [at(5); 2]);
    // A file for a directory: the links follow.
    fs.rename(a, b"f", b, b"y", RenameFlags::EXCHANGE, at(6)).expect("exchange");
    assert_eq!((fs.parent(x), fs.lookup(b, b"y").expect("lookup").ino, nlinks(&fs)), (Ok(a), f, [4, 4, 2]));
    assert_eq!(check(&fs), Ok(()));
}

/// What happens to the directory between two readings.
#[derive(Clone, Debug)]
enum Change {
    Create(usize),
    Remove(usize),
    Rename(usize, usize),
}

/// Names of all lengths, so that pages hold few or many.
fn name(i: usize) -> String {
    format!("{i}-{}", "n".repeat(i * 37 % 240))
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    // The first 300 names stay.
    let moving = || 300..1500usize;
    let change = prop_oneof![
        3 => moving().prop_map(Change::Create),
        2 => moving().prop_map(Change::Remove),
        2 => (moving(), moving()).prop_map(|(from, to)| Change::Rename(from, to)),
    ];
    prop::collection::vec(change, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_that_stay_are_listed_once_whatever_changes_around_them(
        before in changes(),
        rounds in prop::collection::vec((1..60usize, changes()), 1..20),
    ) {
        let mut fs = empty();
        let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
        let file = fs.create(ROOT_INO, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
        for i in 0..300 {
            fs.link(file, dir, name(i).as_bytes(), NOW).expect("link");
        }
        let apply = |fs: &mut Fs<MemStore>, changes: &[Change]| {
            for change in changes {
                let _ = match change {
                    Change::Create(i) => fs.link(file, dir, name(*i).as_bytes(), NOW).map(drop),
                    Change::Remove(i) => fs.unlink(dir, name(*i).as_bytes(), NOW).map(drop),
                    Change::Rename(from, to) => {
                        // Another inode, so that the names are not two of one.
                        let _ = fs.unlink(dir, name(*to).as_bytes(), NOW);
                        let flags = RenameFlags::empty();
                        fs.rename(dir, name(*from).as_bytes(), dir, name(*to).as_bytes(), flags, NOW).map(drop)
                    }
                };
            }
        };
        apply(&mut fs, &before);
        let (mut after, mut seen) = (0, BTreeMap::<String, u32>::new());
        for (batch, changes) in rounds.iter().chain(core::iter::repeat(&(500, Vec::new()))) {
            let mut given = 0;
            fs.readdir(dir, after, &mut |entry| {
                *seen.entry(String::from_utf8_lossy(entry.name).into_owned()).or_default() += 1;
                after = entry.cookie;
                given += 1;
                given < *batch
            }).expect("readdir");
            if given < *batch {
                break;
            }
            apply(&mut fs, changes);
        }
        for i in 0..300 {
            prop_assert_eq!(seen.get(&name(i)), Some(&1), "{}", i);
        }
        let left: BTreeSet<String> = {
            let mut left = BTreeSet::new();
            fs.readdir(dir, 2, &mut |entry| left.insert(String::from_utf8_lossy(entry.name).into_owned())).expect("readdir");
            left
        };
        prop_assert_eq!(fs.inode(dir).expect("inode").entries, left.len() as u64);
        prop_assert_eq!(check(&fs), Ok(()));
    }
}
