//! Lives of random steps.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use blockd::storage::sim::Crash;
use blockd::storage::sim::faults::ReadFault;
use blockd::storage::sim::script::{Life, Step, Weights, is_reproducible, live, seeds};
use blockd::storage::sim::timeline::Timeline;
use blockd::volume::simulated::Death;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::world::World;
use super::{amid, clock};

/// What a step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// A few operations of a kind.
    Names,
    Bytes,
    Xattrs,
    Rows,
    /// A listing while the directory changes.
    List,
    /// Data goes out within the epoch; operations come meanwhile.
    Early,
    /// fsync; operations come meanwhile.
    Commit,
    Compare,
    Check,
    /// The daemon's cleaner works.
    Clean,
    /// The power goes, or both programs die.
    Crash,
    /// The same in the midst of a write of the log.
    CrashAtWrite,
    /// The daemon alone dies, at rest or in the midst of a write.
    DaemonDies,
    /// The mounter alone dies, at some request.
    MounterDies,
    /// An orderly unmount.
    Remount,
    ReadError,
    WriteError,
    SyncError,
}

const WEIGHTS: &Weights<Op> = &[
    (Op::Names, 40),
    (Op::Bytes, 40),
    (Op::Xattrs, 8),
    (Op::Rows, 12),
    (Op::List, 4),
    (Op::Early, 10),
    (Op::Commit, 20),
    (Op::Compare, 4),
    (Op::Check, 2),
    (Op::Clean, 2),
    (Op::Crash, 5),
    (Op::CrashAtWrite, 8),
    (Op::DaemonDies, 6),
    (Op::MounterDies, 6),
    (Op::Remount, 2),
    (Op::ReadError, 3),
    (Op::WriteError, 2),
    (Op::SyncError, 1),
];

/// A mount with room.
struct MountLife {
    world: Rc<RefCell<World>>,
    free_when_empty: u64,
}

/// A few operations, as other threads do them.
fn work(world: &mut World) {
    for _ in 0..world.rng.random_range(1..5) {
        if world.broken {
            return;
        }
        match world.rng.random_range(0..20) {
            0..=8 => world.change_names(),
            9..=15 => world.change_bytes(),
            16 => world.change_xattrs(),
            _ => world.change_rows(),
        }
    }
}

impl MountLife {
    fn new(world: World) -> Self {
        let (free_when_empty, _) = world.mounted.engine().free_and_usable_pages();
        MountLife { world: Rc::new(RefCell::new(world)), free_when_empty }
    }

    /// Carries `f` out while other threads work, unless they might have to wait for it.
    fn amid<R>(&self, f: impl FnOnce() -> R) -> R {
        let world = Rc::clone(&self.world);
        let others = move || {
            let mut world = world.borrow_mut();
            // The flusher finds that a batch is on its way.
            let engine = Arc::clone(world.mounted.engine());
            assert!(!engine.write_out_early(100).unwrap_or(false), "data is sent beside another batch");
            let roomy = world.mounted.engine().free_and_usable_pages().1 > 600;
            if roomy && world.once_in(3) {
                world.note("  meanwhile:");
                work(&mut world);
            }
            // What is on its way shows as it will be.
            if world.once_in(3) && !world.broken {
                world.compare();
            }
        };
        amid::with(others, f)
    }

    fn commit(&self) -> bool {
        let (mounted, began) = {
            let mut world = self.world.borrow_mut();
            clock::tick();
            world.note("  fsync");
            (Arc::clone(&world.mounted), world.epoch_now())
        };
        let result = self.amid(|| mounted.sync());
        self.world.borrow_mut().committed(began, result)
    }

    fn write_out(&self) {
        let (mounted, pages) = {
            let mut world = self.world.borrow_mut();
            let pages = world.rng.random_range(1..60);
            world.note(format!("  write-out of {pages} pages"));
            world.sent_early = Some(world.open_epoch());
            (Arc::clone(&world.mounted), pages)
        };
        let result = self.amid(|| mounted.engine().write_out_early(pages));
        if let Err(error) = result {
            let mut world = self.world.borrow_mut();
            assert!(world.is_explained(error), "early write-out: {error}");
        }
    }

    /// Something like a life, until something breaks.
    fn work_until_trouble(&self) {
        for _ in 0..40 {
            if self.is_broken() {
                return;
            }
            let choice = self.world.borrow_mut().rng.random_range(0..8);
            match choice {
                0 | 1 => {
                    self.commit();
                }
                2 => self.write_out(),
                _ => work(&mut self.world.borrow_mut()),
            }
        }
    }

    fn is_broken(&self) -> bool {
        let world = self.world.borrow();
        world.broken || world.daemon.disk().crashed() || world.daemon.is_cut()
    }

    fn die(&self) {
        let mut world = self.world.borrow_mut();
        let crash = if world.once_in(2) { Crash::PowerCut } else { Crash::ProcessDeath };
        world.crash(crash);
        world.compare();
    }

    /// A read fails, or comes wrong, once: an operation gives an error, and nothing is wrong afterwards.
    fn read_error(&self) {
        let disk = {
            let mut world = self.world.borrow_mut();
            let fault = if world.once_in(2) { ReadFault::Eio } else { ReadFault::Flip };
            let disk = world.daemon.disk();
            disk.read_fault_at(world.rng.random_range(1..6), fault);
            disk
        };
        for _ in 0..6 {
            if self.is_broken() {
                break;
            }
            work(&mut self.world.borrow_mut());
            if disk.fault_fired() {
                break;
            }
        }
        disk.disarm();
        self.die();
    }
}

impl Life for MountLife {
    type Op = Op;
    const NAME: &'static str = "mount";
    const WEIGHTS: &'static Weights<Op> = WEIGHTS;

    fn begin(seed: u64, timeline: Timeline) -> Self {
        MountLife::new(World::new(seed, 12 << 20, timeline))
    }

    fn step(&mut self, step: Step<Op>) {
        let disk = {
            let mut world = self.world.borrow_mut();
            world.rng = StdRng::seed_from_u64(step.seed);
            world.daemon.disk()
        };
        let several = |n: u32, f: fn(&mut World)| {
            let mut world = self.world.borrow_mut();
            for _ in 0..world.rng.random_range(1..=n) {
                if !world.broken {
                    f(&mut world);
                }
            }
        };
        match step.op {
            Op::Names => several(6, World::change_names),
            Op::Bytes => several(4, World::change_bytes),
            Op::Xattrs => several(3, World::change_xattrs),
            Op::Rows => several(4, World::change_rows),
            Op::List => self.world.borrow_mut().list_while_it_changes(),
            Op::Early => self.write_out(),
            Op::Commit => {
                self.commit();
            }
            Op::Compare => self.world.borrow_mut().compare(),
            Op::Check => self.world.borrow_mut().check(),
            Op::Clean => self.world.borrow().daemon.clean(),
            Op::Crash => self.die(),
            Op::CrashAtWrite => {
                let n = self.world.borrow_mut().rng.random_range(1..60);
                disk.crash_at(n);
                self.work_until_trouble();
                self.die();
            }
            Op::DaemonDies => {
                let n = self.world.borrow_mut().rng.random_range(1..60);
                self.world.borrow().daemon.set_death(Death::Daemon);
                disk.crash_at(n);
                self.work_until_trouble();
                let mut world = self.world.borrow_mut();
                if world.once_in(3) {
                    world.daemon.kill_daemon();
                }
                world.daemon.disk().disarm();
                world.daemon.set_death(Death::Everything);
                assert!(!world.broken, "the daemon's death is not seen by its mounter");
                world.compare();
            }
            Op::MounterDies => {
                let n = self.world.borrow_mut().rng.random_range(0..30);
                self.world.borrow().daemon.cut_mounter_after(Some(n));
                self.work_until_trouble();
                let mut world = self.world.borrow_mut();
                world.lose_mounter();
                world.compare();
            }
            Op::Remount => {
                let mut world = self.world.borrow_mut();
                world.leave_and_come_back();
                world.compare();
            }
            Op::ReadError => self.read_error(),
            Op::WriteError | Op::SyncError => {
                let mut world = self.world.borrow_mut();
                let n = world.rng.random_range(1..20);
                if step.op == Op::SyncError {
                    disk.sync_error_at(n.min(4));
                } else {
                    disk.errors_at(n, world.rng.random_range(1..4), libc::EIO);
                }
                drop(world);
                self.work_until_trouble();
                disk.disarm();
                self.die();
            }
        }
        disk.disarm();
        if self.is_broken() {
            self.die();
        }
        self.world.borrow().check_credits();
    }

    fn end(&mut self) {
        self.world.borrow_mut().compare();
        if self.commit() {
            let mut world = self.world.borrow_mut();
            world.check();
            world.crash(Crash::PowerCut);
            world.compare();
        }
    }
}

/// A mount that is nearly full: it refuses what there is no space for, before it promises anything, and never a commit.
struct FullLife(MountLife);

const FULL_WEIGHTS: &Weights<Op> = &[
    (Op::Names, 20),
    (Op::Bytes, 60),
    (Op::Xattrs, 6),
    (Op::Rows, 20),
    (Op::Early, 10),
    (Op::Commit, 12),
    (Op::Compare, 3),
    (Op::Check, 2),
    (Op::Clean, 3),
    (Op::Crash, 3),
    (Op::CrashAtWrite, 4),
    (Op::DaemonDies, 3),
    (Op::MounterDies, 3),
    (Op::Remount, 2),
];

impl Life for FullLife {
    type Op = Op;
    const NAME: &'static str = "full mount";
    const WEIGHTS: &'static Weights<Op> = FULL_WEIGHTS;

    fn begin(seed: u64, timeline: Timeline) -> Self {
        FullLife(MountLife::new(World::new(seed ^ 0x6675_6c6c, 4 << 20, timeline)))
    }

    fn step(&mut self, step: Step<Op>) {
        self.0.step(step);
        let mut world = self.0.world.borrow_mut();
        for _ in 0..3 {
            if !world.broken {
                world.grow();
            }
        }
        drop(world);
        if self.0.is_broken() {
            self.0.die();
        }
    }

    /// All is deleted, and the space is there again.
    fn end(&mut self) {
        self.0.end();
        let mut world = self.0.world.borrow_mut();
        world.delete_everything();
        drop(world);
        assert!(self.0.commit(), "there is always room for a commit");
        let mut world = self.0.world.borrow_mut();
        // Twice: what the last commit pinned is free after this one.
        world.check();
        world.daemon.clean();
        world.check();
        // Pages of the inode table and of the free stacks stay.
        let (free, _) = world.mounted.engine().free_and_usable_pages();
        let empty = self.0.free_when_empty;
        assert!(free + 50 >= empty, "{free} pages are free, {empty} were at first");
    }
}

#[test]
fn full_mount_lives() {
    live::<FullLife>(&seeds(8), 100);
}

#[test]
fn mount_lives() {
    live::<MountLife>(&seeds(12), 120);
}

#[test]
fn a_mount_seed_does_the_same_each_time() {
    for seed in seeds(2).into_iter().take(2) {
        assert!(is_reproducible::<MountLife>(seed, 60), "seed {seed} differs from run to run");
    }
}
