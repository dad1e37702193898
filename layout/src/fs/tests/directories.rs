//! Big directories: growth, cookies, shrinking.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{NOW, new};
use crate::addr::PAGE;
use crate::error::Error;
use crate::fs::Fs;
use crate::inode::{Ino, Kind, ROOT_INO};
use crate::testing::{MemStore, commit, format_params, mount};

fn names(fs: &Fs<MemStore>, dir: Ino) -> Vec<(String, Ino, u64)> {
    let mut out = Vec::new();
    fs.readdir(dir, 2, &mut |entry| {
        out.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino, entry.cookie));
        true
    })
    .expect("readdir");
    out
}

/// A name with a length that varies from short to long.
fn name(i: usize) -> String {
    let pad = (i * 7919) % 60;
    format!("{i}-{}", "x".repeat(pad))
}

#[test]
fn a_directory_grows_to_many_entries_and_shrinks_to_nothing() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    let dir = fs.create(ROOT_INO, b"big", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    let count = 30_000;
    let mut expected = BTreeMap::new();
    for i in 0..count {
        let inode = fs.create(dir, name(i).as_bytes(), new(Kind::File, 0o644), NOW).expect("create");
        expected.insert(name(i), inode.ino);
        if i % 5000 == 4999 {
            commit(&mut fs, NOW);
        }
    }
    let inode = fs.inode(dir).expect("inode");
    assert_eq!(inode.entries, count as u64);
    assert!(inode.size > 1 << 20, "the directory must reach into a window of class 1");
    assert_ne!(inode.windows[0], 0);
    let listed: BTreeMap<_, _> = names(&fs, dir).into_iter().map(|(n, ino, _)| (n, ino)).collect();
    assert_eq!(listed, expected);
    for (name, ino) in &expected {
        assert_eq!(fs.lookup(dir, name.as_bytes()).expect("lookup").ino, *ino);
    }
    assert_eq!(fs.lookup(dir, b"no such name"), Err(Error::NotFound));

    commit(&mut fs, NOW);
    let mut fs = mount(&store).expect("mount");
    let mut order: Vec<_> = expected.keys().cloned().collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(1));
    for (i, name) in order.iter().enumerate() {
        let inode = fs.unlink(dir, name.as_bytes(), NOW).expect("unlink");
        assert_eq!(inode.nlink, 0);
        fs.reap(inode.ino).expect("reap");
        if i % 4000 == 3999 {
            commit(&mut fs, NOW);
            let left: BTreeSet<_> = names(&fs, dir).into_iter().map(|(n, _, _)| n).collect();
            assert_eq!(left, order[i + 1..].iter().cloned().collect());
        }
    }
    let inode = fs.inode(dir).expect("inode");
    assert_eq!((inode.entries, inode.size, inode.windows), (0, PAGE as u64, [0; 3]));
    fs.rmdir(ROOT_INO, b"big", NOW).expect("rmdir");
    assert_eq!(fs.reap_orphans(u64::MAX), Ok(1));
    commit(&mut fs, NOW);
    assert_eq!(fs.superblock().inodes_used, 1);
}

#[test]
fn cookies_stay_good_while_the_directory_changes() {
    let mut fs = mount(&MemStore::formatted(format_params())).expect("mount");
    let mut rng = rand::rngs::StdRng::seed_from_u64(2);
    for i in 0..20_000 {
        fs.create(ROOT_INO, name(i).as_bytes(), new(Kind::File, 0o644), NOW).expect("create");
    }
    // Even ones stay, odd ones go, others come, while the directory is read in small pieces.
    let (mut after, mut seen, mut fresh) = (0, Vec::new(), 20_000);
    loop {
        let mut batch = 0;
        fs.readdir(ROOT_INO, after, &mut |entry| {
            seen.push(String::from_utf8_lossy(entry.name).into_owned());
            after = entry.cookie;
            batch += 1;
            batch < 100
        })
        .expect("readdir");
        if batch < 100 {
            break;
        }
        for _ in 0..60 {
            let i = rng.random_range(0..10_000) * 2 + 1;
            if let Ok(inode) = fs.unlink(ROOT_INO, name(i).as_bytes(), NOW) {
                fs.reap(inode.ino).expect("reap");
            }
            fs.create(ROOT_INO, name(fresh).as_bytes(), new(Kind::File, 0o644), NOW).expect("create");
            fresh += 1;
        }
    }
    let distinct: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(distinct.len(), seen.len(), "no name is given twice");
    for i in (0..20_000).step_by(2) {
        assert!(distinct.contains(&name(i)), "{} stayed, so it must be given", name(i));
    }
    assert_eq!(&seen[..2], [".", ".."]);
}
