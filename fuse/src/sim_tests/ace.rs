//! All short sequences of operations over a small tree, with and without an fsync after each, and a power cut at the end
//! (ACE: Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing", OSDI'18). In a mount
//! fsync of a file, of a directory and sync are one and the same commit, so one kind stands for all.

use std::sync::atomic::{AtomicUsize, Ordering};

use blockd::storage::sim::Crash;
use blockd::storage::sim::timeline::Timeline;
use layout::fs::{Ino, NewInode, RenameFlags, XattrFlags};
use layout::inode::{Kind, ROOT_INO};

use super::clock;
use super::world::World;

const IMAGE_BYTES: usize = 4 << 20;

/// A directory of the tree, and a name in it.
type Place = (&'static str, &'static str);

/// There from the beginning.
const FOO: Place = ("", "foo");
const BAR: Place = ("A", "bar");
/// There from the beginning, empty and not.
const EMPTY: Place = ("", "B");
const FULL: Place = ("", "A");
/// Not there.
const NEW: Place = ("A", "new");
const OTHER: Place = ("B", "other");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Create(Place),
    Mkdir(Place),
    Symlink(Place),
    Link(Place, Place),
    Unlink(Place),
    UnlinkOpen(Place),
    Rmdir(Place),
    Rename(Place, Place),
    Exchange(Place, Place),
    Write(Place, u64, usize),
    Truncate(Place, u64),
    Punch(Place, u64, u64),
    Allocate(Place, u64),
    SetXattr(Place, usize),
    RemoveXattr(Place),
    Close,
}

const OPS: &[Op] = &[
    Op::Create(NEW),
    Op::Create(OTHER),
    Op::Mkdir(NEW),
    Op::Mkdir(OTHER),
    Op::Symlink(NEW),
    Op::Link(FOO, NEW),
    Op::Link(BAR, OTHER),
    Op::Unlink(FOO),
    Op::Unlink(BAR),
    Op::Unlink(NEW),
    Op::UnlinkOpen(FOO),
    Op::Rmdir(EMPTY),
    Op::Rmdir(NEW),
    Op::Rename(FOO, NEW),
    Op::Rename(FOO, BAR),
    Op::Rename(BAR, FOO),
    Op::Rename(BAR, OTHER),
    Op::Rename(NEW, FOO),
    Op::Rename(FULL, EMPTY),
    Op::Rename(EMPTY, NEW),
    Op::Exchange(FOO, BAR),
    Op::Exchange(FOO, EMPTY),
    // Overwritten, grown, with a gap, into the next window class.
    Op::Write(FOO, 0, 5000),
    Op::Write(FOO, 9000, 5000),
    Op::Write(FOO, 40_960, 4096),
    Op::Write(FOO, (1 << 20) - 100, 8192),
    Op::Write(BAR, 0, 100),
    Op::Write(NEW, 0, 4096),
    Op::Truncate(FOO, 0),
    Op::Truncate(FOO, 5000),
    Op::Truncate(FOO, 100_000),
    Op::Punch(FOO, 0, 4096),
    Op::Punch(FOO, 100, 6000),
    Op::Allocate(FOO, 20_000),
    Op::SetXattr(FOO, 20),
    Op::SetXattr(FOO, 5000),
    Op::RemoveXattr(FOO),
    Op::Close,
];

impl World {
    fn at(&self, place: Place) -> Option<(Ino, &'static [u8])> {
        let dir = match place.0 {
            "" => Some(ROOT_INO),
            name => self.tree.names.lookup(ROOT_INO, name.as_bytes()).ok(),
        };
        Some((dir?, place.1.as_bytes()))
    }

    fn node_at(&self, place: Place) -> Option<Ino> {
        let (dir, name) = self.at(place)?;
        self.tree.names.lookup(dir, name).ok()
    }

    /// False if there is nothing to do it with.
    fn carry_out(&mut self, op: Op) -> bool {
        let new = |kind| NewInode { kind, perm: 0o644, uid: 1, gid: 1, rdev: 0, umask: 0 };
        let made: Option<()> = (|| {
            match op {
                Op::Create(place) => {
                    let (dir, name) = self.at(place)?;
                    self.make(dir, name, new(Kind::File), false);
                }
                Op::Mkdir(place) => {
                    let (dir, name) = self.at(place)?;
                    self.make(dir, name, new(Kind::Dir), false);
                }
                Op::Symlink(place) => {
                    let (dir, name) = self.at(place)?;
                    self.make_symlink(dir, name, 400);
                }
                Op::Link(from, to) => {
                    let (ino, (dir, name)) = (self.node_at(from)?, self.at(to)?);
                    self.make_link(ino, dir, name);
                }
                Op::Unlink(place) => {
                    self.node_at(place)?;
                    let (dir, name) = self.at(place)?;
                    self.unlink_at(dir, name);
                }
                Op::UnlinkOpen(place) => {
                    let ino = self.node_at(place)?;
                    let (dir, name) = self.at(place)?;
                    self.open_file(ino);
                    self.unlink_at(dir, name);
                }
                Op::Rmdir(place) => {
                    self.node_at(place)?;
                    let (dir, name) = self.at(place)?;
                    self.rmdir_at(dir, name);
                }
                Op::Rename(from, to) | Op::Exchange(from, to) => {
                    self.node_at(from)?;
                    let flags = match op {
                        Op::Exchange(..) => RenameFlags::EXCHANGE,
                        _ => RenameFlags::empty(),
                    };
                    let (from, to) = (self.at(from)?, self.at(to)?);
                    self.rename_to(from, to, flags);
                }
                Op::Write(place, offset, len) => {
                    let ino = self.node_at(place)?;
                    self.write_at(ino, offset, len);
                }
                Op::Truncate(place, size) => {
                    let ino = self.node_at(place)?;
                    self.truncate_to(ino, size);
                }
                Op::Punch(place, offset, len) => {
                    let ino = self.node_at(place).filter(|ino| self.is_file(*ino))?;
                    self.punch_at(ino, offset, len);
                }
                Op::Allocate(place, len) => {
                    let ino = self.node_at(place).filter(|ino| self.is_file(*ino))?;
                    self.allocate_at(ino, 0, len, false);
                }
                Op::SetXattr(place, len) => {
                    let ino = self.node_at(place)?;
                    self.set_xattr(ino, b"user.a", len, XattrFlags::empty());
                }
                Op::RemoveXattr(place) => {
                    let ino = self.node_at(place)?;
                    self.remove_xattr(ino, b"user.a");
                }
                Op::Close => {
                    self.handles.first()?;
                    self.close();
                }
            }
            Some(())
        })();
        made.is_some()
    }

    fn is_file(&self, ino: Ino) -> bool {
        self.tree.names.get(ino).kind == Kind::File
    }

    fn fsync(&mut self) {
        clock::tick();
        let began = self.epoch_now();
        let result = self.mounted.sync();
        assert!(self.committed(began, result), "an fsync succeeds");
    }
}

/// The tree that every sequence begins with, committed.
fn begin(seed: u64) -> World {
    let mut world = World::new(seed, IMAGE_BYTES, Timeline::default());
    let dir = NewInode { kind: Kind::Dir, perm: 0o755, uid: 1, gid: 1, rdev: 0, umask: 0 };
    let file = NewInode { kind: Kind::File, perm: 0o4755, uid: 1, gid: 1, rdev: 0, umask: 0 };
    for (place, new) in [(FULL, dir), (EMPTY, dir), (FOO, file), (BAR, file)] {
        let (dir, name) = world.at(place).expect("its directory is there");
        world.make(dir, name, new, false);
    }
    let (foo, bar) = (world.node_at(FOO).expect("made"), world.node_at(BAR).expect("made"));
    world.write_at(foo, 0, 9000);
    world.write_at(bar, 0, 300);
    world.set_xattr(foo, b"user.a", 50, XattrFlags::empty());
    world.fsync();
    world
}

/// What comes after an operation.
const AFTER: [&str; 3] = ["", "fsync", "write-out"];

/// Runs the operations; after each comes what the digits of `after` say. False if one has nothing to work on.
fn sequence(ops: &[Op], after: usize) -> bool {
    let mut world = begin(after as u64);
    let mut digits = after;
    for op in ops {
        if !world.carry_out(*op) {
            return false;
        }
        match digits % AFTER.len() {
            1 => world.fsync(),
            2 => drop(world.mounted.engine().write_out_early(100).expect("a write-out succeeds")),
            _ => {}
        }
        digits /= AFTER.len();
    }
    world.compare();
    world.crash(Crash::PowerCut);
    world.compare();
    // The volume is fit for use.
    world.fsync();
    world.check();
    true
}

/// All sequences of `length` operations, each way.
fn all_sequences(length: u32) {
    let ways = AFTER.len().pow(length);
    let count = OPS.len().pow(length);
    let next = AtomicUsize::new(0);
    let ran = AtomicUsize::new(0);
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            let mut number = i;
            let mut ops = Vec::new();
            for _ in 0..length {
                ops.push(OPS[number % OPS.len()]);
                number /= OPS.len();
            }
            for after in 0..ways {
                let run = std::panic::catch_unwind(|| sequence(&ops, after));
                match run {
                    Ok(true) => {
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(false) => break,
                    Err(panic) => {
                        eprintln!("the sequence {ops:?}, way {after} of {AFTER:?}, fails");
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().for_each(|w| w.join().expect("no sequence fails"));
    });
    println!("{} sequences of {length} operations", ran.into_inner());
}

#[test]
fn every_operation_survives_a_power_cut() {
    all_sequences(1);
}

/// `make sim` runs it.
#[test]
#[ignore = "takes a minute; make sim"]
fn every_two_operations_survive_a_power_cut() {
    all_sequences(2);
}

/// `make sim-long` runs it.
#[test]
#[ignore = "takes an hour; make sim-long"]
fn every_three_operations_survive_a_power_cut() {
    all_sequences(3);
}
