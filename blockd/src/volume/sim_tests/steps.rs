//! What a step does, the same for both kinds of volume: each brings the parts that differ.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::damage::{self, Mortal};
use super::past;
use super::script::{Op, Step};
use crate::storage::sim::Crash;
use crate::storage::sim::faults::ReadFault;

/// A life of one kind.
pub(super) trait Kind: Mortal {
    /// Requests in flight.
    type Batch;
    fn send_batch(&mut self) -> Self::Batch;
    /// Whether all are.
    fn are_answered(batch: &Self::Batch) -> bool;
    /// Notes outcomes in the model.
    fn account(&mut self, batch: Self::Batch);
    /// A commit or a flush; true if it worked.
    fn commit(&mut self) -> bool;
    fn checkpoint(&mut self);
    fn slow_read(&mut self);
    fn special(&mut self);
    fn session(&mut self);
    fn snapshot_amid_writes(&mut self);
    /// Between a half more of its first size and that; gives how it ended.
    fn resize(&mut self) -> Crash;
    /// Everything is as the model says.
    fn compare(&mut self);
    /// The same, of the volume as it is now alone.
    fn compare_now(&mut self);
    /// Dies, comes back, and is what it may be.
    fn crash(&mut self, crash: Crash, deaths_on_the_way: bool);
}

/// Requests, all carried out.
pub(super) fn batch<L: Kind>(life: &mut L) {
    let batch = life.send_batch();
    life.machine().driver.settle();
    assert!(L::are_answered(&batch), "a request is never answered");
    life.account(batch);
}

/// The cleaner reads a segment, and pages of it that are overwritten before it writes must not come back.
pub(super) fn late_copies<L: Kind>(life: &mut L) {
    let segments = life.machine().driver.store().geometry.segments;
    let segment = life.machine().rng.random_range(0..segments);
    let copies = life.machine().driver.copies_of(segment);
    for _ in 0..life.machine().rng.random_range(0..4) {
        batch(life);
    }
    if life.machine().once_in(2) {
        life.commit();
    }
    life.machine().driver.relocate(copies);
}

fn some_crash<L: Kind>(life: &mut L, deaths_on_the_way: bool) {
    let crash = life.machine().some_crash();
    life.crash(crash, deaths_on_the_way);
}

fn work_until_trouble<L: Kind>(life: &mut L) {
    for _ in 0..60 {
        if life.machine().stopped || life.machine().driver.disk.crashed() {
            return;
        }
        life.work();
    }
}

fn read_error<L: Kind>(life: &mut L) {
    let disk = life.machine().disk();
    let fault = if life.machine().rng.random() { ReadFault::Eio } else { ReadFault::Flip };
    disk.read_fault_at(life.machine().rng.random_range(1..20), fault);
    for _ in 0..4 {
        life.compare_damaged();
        if !life.machine().stopped {
            life.work();
        }
    }
    disk.disarm();
    if !life.machine().stopped {
        // It was the wire, not the disk: all is there.
        life.compare_now();
    }
}

/// Does a step; panics when the volume is not as the model says.
pub(super) fn step<L: Kind>(life: &mut L, step: Step) {
    life.machine().rng = StdRng::seed_from_u64(step.seed);
    let disk = life.machine().disk();
    match step.op {
        Op::Batch => batch(life),
        Op::Commit => {
            life.commit();
        }
        Op::Checkpoint => life.checkpoint(),
        Op::Clean => {
            life.machine().driver.clean();
        }
        Op::LateCopies => late_copies(life),
        Op::SlowRead => life.slow_read(),
        Op::Check => {
            life.compare();
            life.machine().scrub();
        }
        Op::Special => life.special(),
        Op::Session => life.session(),
        Op::Snapshot if life.machine().once_in(4) => life.snapshot_amid_writes(),
        Op::Snapshot => past::something(life),
        Op::Resize => {
            let crash = life.resize();
            life.crash(crash, false);
        }
        Op::Crash | Op::CrashAtStart => {
            let batch = life.send_batch();
            let steps = life.machine().rng.random_range(0..12);
            life.machine().driver.steps(steps);
            life.account(batch);
            some_crash(life, step.op == Op::CrashAtStart);
        }
        Op::CrashAtWrite => {
            disk.crash_at(life.machine().rng.random_range(1..60));
            work_until_trouble(life);
            some_crash(life, false);
        }
        Op::WriteError => {
            let errno = if life.machine().rng.random() { libc::EIO } else { libc::ENOSPC };
            let n = life.machine().rng.random_range(1..40);
            disk.errors_at(n, life.machine().rng.random_range(1..4), errno);
            work_until_trouble(life);
            life.compare_damaged();
        }
        Op::SyncError => {
            disk.sync_error_at(life.machine().rng.random_range(1..6));
            work_until_trouble(life);
            life.compare_damaged();
        }
        Op::ReadError => read_error(life),
        Op::Damage => damage::episode(life),
    }
    if life.machine().stopped {
        some_crash(life, false);
    }
    life.machine().disk().disarm();
}

/// The last comparison.
pub(super) fn end<L: Kind>(life: &mut L) {
    past::finish_portions(life);
    life.compare();
    damage::witness_in_room(life);
}
