//! Reuse of inode and window numbers (FORMAT.md section 5.6).

use std::format;
use std::vec::Vec;

use super::{NOW, new};
use crate::fs::{Fs, XattrFlags};
use crate::inode::{Ino, Kind, ROOT_INO};
use crate::testing::{self, MemStore, check, format_params, mount};

/// A byte in the second GiB of a file: it takes a window of class 2.
const FAR: u64 = 3 << 30;

fn commit(fs: &mut Fs<MemStore>) {
    testing::commit(fs, NOW);
}

fn make(fs: &mut Fs<MemStore>, names: core::ops::Range<u32>) -> Vec<Ino> {
    let mut made = Vec::new();
    for n in names {
        let ino =
            fs.create(ROOT_INO, format!("{n}").as_bytes(), new(Kind::File, 0o644), NOW).expect("create").ino;
        fs.prepare_write(ino, FAR, 1).expect("a window");
        fs.finish_write(ino, FAR + 1, NOW).expect("a write");
        made.push(ino);
    }
    made
}

fn remove(fs: &mut Fs<MemStore>, names: core::ops::Range<u32>) {
    for n in names {
        let gone = fs.unlink(ROOT_INO, format!("{n}").as_bytes(), NOW).expect("unlink");
        fs.reap(gone.ino).expect("reap");
    }
}

/// Commits until the open epoch is even, or odd.
fn to_parity(fs: &mut Fs<MemStore>, parity: u64) {
    while fs.open_epoch() & 1 != parity {
        commit(fs);
    }
}

#[test]
fn numbers_freed_in_epochs_of_one_parity_are_used_again() {
    for (freed_in, made_in) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let store = MemStore::formatted(format_params());
        let mut fs = mount(&store).expect("mount");
        let mut most = None;
        for round in 0..10 {
            to_parity(&mut fs, made_in);
            make(&mut fs, 0..40);
            commit(&mut fs);
            commit(&mut fs);
            to_parity(&mut fs, freed_in);
            remove(&mut fs, 0..40);
            // Its numbers may be used again from the epoch after the next on, whichever they are.
            commit(&mut fs);
            commit(&mut fs);
            let sb = fs.superblock();
            let used = (sb.next_ino, sb.next_window);
            assert_eq!(
                *most.get_or_insert(used),
                used,
                "freed in {freed_in}, made in {made_in}, round {round}"
            );
        }
        check(&fs).expect("sound");
    }
}

#[test]
fn numbers_of_an_epoch_are_not_used_again_in_it() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    let old = make(&mut fs, 0..600);
    for parity in [0, 1] {
        to_parity(&mut fs, parity);
        remove(&mut fs, 0..300);
        commit(&mut fs);
        make(&mut fs, 0..300);
        commit(&mut fs);
    }
    // Both stacks have older entries now, or none; what is freed from here on must stay free.
    remove(&mut fs, 0..300);
    commit(&mut fs);
    commit(&mut fs);
    let kept: Vec<Ino> =
        (300..600).map(|n| fs.lookup(ROOT_INO, format!("{n}").as_bytes()).expect("lookup").ino).collect();
    remove(&mut fs, 300..600);
    let again = make(&mut fs, 1000..1600);
    assert!(again.iter().all(|ino| !kept.contains(ino)), "a number was used in the epoch that freed it");
    assert!(again.iter().filter(|ino| old.contains(ino)).count() >= 300, "older numbers are used");
    // Each number once, also through a commit and with entries that moved.
    commit(&mut fs);
    let more = make(&mut fs, 2000..2300);
    assert!(more.iter().all(|ino| !again.contains(ino)));
    let mut all: Vec<Ino> = again.iter().chain(&more).copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 900);
    commit(&mut fs);
    check(&fs).expect("sound");
}

#[test]
fn older_numbers_survive_a_remount() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    make(&mut fs, 0..100);
    to_parity(&mut fs, 0);
    remove(&mut fs, 0..100);
    commit(&mut fs);
    commit(&mut fs);
    let next = fs.superblock().next_ino;
    drop(fs);
    let mut fs = mount(&store).expect("mount");
    assert_eq!(fs.open_epoch() & 1, 0, "the stack of the freed numbers is the one that is pushed on");
    let ino = make(&mut fs, 0..100).pop().expect("made");
    assert!(ino.0 < next);
    assert_eq!(fs.superblock().next_ino, next);
    assert_eq!(fs.inode(ino).expect("inode").generation, 2);
    let flags = XattrFlags::empty();
    fs.setxattr(ino, b"user.a", b"b", flags, NOW).expect("it is usable");
    commit(&mut fs);
    check(&fs).expect("sound");
}
