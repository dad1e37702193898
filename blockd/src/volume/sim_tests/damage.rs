//! Damage: blocks rot at rest or under the running store, or the backing says that it wrote and did not.
//!
//! Then the store may give EIO naming a bad place, stop writing, or refuse to open naming the place; it never
//! gives wrong data, and never loses silently what was acknowledged and made durable. What cannot be told from a torn tail
//! (FORMAT.md 4.5: damage to the last records, with nothing after them that knew of them) is kept out: witnesses are
//! written before the store ends. Afterwards the volume goes on from a good copy of its image.

use rand::Rng;

use super::machine::pick;
use super::past::{self, Historic};
use crate::storage::sim::Crash;
use crate::storage::sim::faults::{Lie, Rot};
use crate::store::format::superblock::SLOTS;

/// What an episode of damage needs of a life.
pub(super) trait Mortal: Historic {
    type Model;
    fn model(&self) -> Self::Model;
    fn set_model(&mut self, model: Self::Model);
    /// Makes all durable, and has records written that say so; false if the store stopped before.
    fn witness(&mut self) -> bool;
    /// Some requests, checkpoints, cleaning; errors that a fault explains are taken.
    fn work(&mut self);
    /// Reads everything. Errors must name what is bad, the rest must be as the model says.
    fn compare_damaged(&mut self);
    /// After a start: as [`Mortal::compare_damaged`], and takes what it finds for the model. Unless `witnessed`,
    /// anything since [`Mortal::keep_history`] may be there.
    fn compare_restarted(&mut self, crash: Crash, witnessed: bool);
    /// The model remembers every version from here on.
    fn keep_history(&mut self);
    /// A store opened anew, all being as the model says.
    fn take_up(&mut self);
}

pub(super) fn episode<L: Mortal>(life: &mut L) {
    life.keep_history();
    witness_in_room(life);
    let copy = life.machine().disk().image();
    let model = life.model();
    branch(life);
    life.set_model(model);
    life.machine().open_good(copy);
    life.take_up();
}

/// A sound volume is written; if it is full, its snapshots go first.
pub(super) fn witness_in_room<L: Mortal>(life: &mut L) {
    if !life.witness() {
        past::forget(life);
        assert!(life.witness(), "a sound volume stopped writing");
    }
}

/// What happens with the damage, until the store is given up.
fn branch<L: Mortal>(life: &mut L) {
    let disk = life.machine().disk();
    let rot = *pick(
        &mut life.machine().rng,
        &[Rot::Flip, Rot::Flip, Rot::Zeros, Rot::Misdirected, Rot::Unreadable],
    );
    match life.machine().rng.random_range(0..4) {
        0 => {
            // Found at the next start.
            if !start_damaged(life, Some(rot), true) {
                return;
            }
        }
        1 => {
            disk.rot(rot, spared(life));
        }
        _ => {
            let lie = *pick(&mut life.machine().rng, &[Lie::Lost, Lie::Misdirected]);
            let n = life.machine().rng.random_range(1..40);
            disk.lie_at(n, lie);
        }
    }
    life.compare_damaged();
    for _ in 0..life.machine().rng.random_range(1..8) {
        life.work();
        if life.machine().stopped {
            break;
        }
    }
    life.compare_damaged();
    if life.machine().once_in(2) {
        life.machine().scrub();
    }
    let disk = life.machine().disk();
    let fired = disk.fault_fired();
    disk.disarm();
    let witnessed = life.witness() || !fired;
    life.machine().unwitnessed = !witnessed;
    if start_damaged(life, None, witnessed) {
        life.compare_damaged();
    }
}

fn start_damaged<L: Mortal>(life: &mut L, rot: Option<Rot>, witnessed: bool) -> bool {
    let spared = spared(life);
    let machine = life.machine();
    let crash = machine.some_crash();
    let disk = machine.disk().restart(crash);
    if let Some(rot) = rot {
        disk.rot(rot, spared);
    }
    let open = machine.open_damaged(disk, crash);
    if open {
        life.compare_restarted(crash, witnessed);
    }
    open
}

/// One slot of the superblock is spared: against the loss of both there is no remedy.
fn spared<L: Mortal>(life: &mut L) -> impl Fn(u64) -> bool + use<L> {
    let slot = *pick(&mut life.machine().rng, &SLOTS) / 4096;
    move |block| block == slot
}
