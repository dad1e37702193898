//! Snapshots in a life: taken at rest and amid requests, deleted, gone back to, each compared with what the model kept of it.

use std::collections::BTreeMap;

use rand::Rng;

use super::driver::ChangeTicket;
use super::machine::Machine;
use crate::device::IoError;
use crate::store::snapshot::change::{Change, SnapshotError};
use crate::volume::snapshot::Round;

/// Most snapshots at a time.
const SHOTS_MAX: usize = 4;

/// The versions that each page may have; absent = zeros.
pub(super) type State = BTreeMap<u64, Vec<u64>>;

/// A snapshot, and the states one of which it has, as a whole.
#[derive(Clone, Debug)]
struct Shot {
    name: String,
    states: Vec<State>,
}

impl Shot {
    /// What is left when these pages were found in it.
    fn narrow(&mut self, found: &BTreeMap<u64, u64>) {
        let allowed =
            |state: &State, page: u64, tag: u64| state.get(&page).map_or(tag == 0, |v| v.contains(&tag));
        let fits = |state: &&State| found.iter().all(|(&page, &tag)| allowed(state, page, tag));
        let Some(state) = self.states.iter().find(fits) else {
            let differences = self.states.iter().map(|state| {
                let wrong = found.iter().filter(|&(&page, &tag)| !allowed(state, page, tag));
                let wrong =
                    wrong.map(|(page, tag)| format!("page {page:#x}: {tag} not {:?}", state.get(page)));
                wrong.collect::<Vec<_>>().join(", ")
            });
            panic!(
                "snapshot {} is none of its states:\n{}",
                self.name,
                differences.collect::<Vec<_>>().join("\n")
            );
        };
        let mut state = state.clone();
        for (&page, &tag) in found {
            state.insert(page, vec![tag]);
        }
        self.states = vec![state];
    }
}

/// The snapshots of a life.
#[derive(Clone, Default, Debug)]
pub(super) struct Past {
    /// Oldest first.
    shots: Vec<Shot>,
    /// A change whose outcome is not known, and what is in the snapshot that it takes.
    pending: Option<(Change, Vec<State>)>,
}

/// A life that has a past.
pub(super) trait Historic {
    fn machine(&mut self) -> &mut Machine;
    fn past(&mut self) -> &mut Past;
    /// What a snapshot taken now, at rest, has.
    fn states(&self) -> Vec<State>;
    /// The pages that are compared.
    fn places(&self) -> Vec<u64>;
    /// Which version of a page this is.
    fn version(&self, page: u64, bytes: &[u8]) -> Option<u64>;
    /// Nobody has a session any more; false if the store stopped.
    fn leave(&mut self) -> bool;
    /// Somebody has one again.
    fn come_back(&mut self);
    /// The volume was put back to this.
    fn gone_back(&mut self, pages: BTreeMap<u64, u64>);
}

/// A random one of all that can be done.
pub(super) fn something<L: Historic>(life: &mut L) {
    match life.machine().rng.random_range(0..12) {
        0..4 => create(life),
        4..6 => delete(life),
        6 => roll_back(life),
        7 => compare(life, false),
        _ => portions(life),
    }
}

/// As [`something`], but nothing that ends sessions.
pub(super) fn something_small<L: Historic>(life: &mut L) {
    match life.machine().rng.random_range(0..4) {
        0..2 => create(life),
        2 => delete(life),
        _ => portions(life),
    }
}

/// Takes a snapshot at rest.
pub(super) fn create<L: Historic>(life: &mut L) {
    let states = life.states();
    if let Some(ticket) = ask_for(life, states) {
        life.machine().driver.settle();
        conclude(life, &ticket);
    }
}

/// Asks for a snapshot that has one of these states; the outcome goes to [`conclude`]. None if there are enough.
pub(super) fn ask_for<L: Historic>(life: &mut L, states: Vec<State>) -> Option<ChangeTicket> {
    if life.past().shots.len() >= SHOTS_MAX {
        delete(life);
        return None;
    }
    let number = life.machine().new_tag();
    Some(ask(life, Change::Create { name: format!("s{number}"), time_ns: number }, states))
}

fn ask<L: Historic>(life: &mut L, change: Change, states: Vec<State>) -> ChangeTicket {
    life.machine().timeline.note(format!("  {change:?}"));
    life.past().pending = Some((change.clone(), states));
    life.machine().driver.change(change)
}

fn some_name<L: Historic>(life: &mut L) -> Option<String> {
    let count = life.past().shots.len();
    let i = (count > 0).then(|| life.machine().rng.random_range(0..count))?;
    Some(life.past().shots[i].name.clone())
}

fn delete<L: Historic>(life: &mut L) {
    let Some(name) = some_name(life) else { return };
    let ticket = ask(life, Change::Delete { name }, Vec::new());
    life.machine().driver.settle();
    conclude(life, &ticket);
}

/// A change has its outcome.
pub(super) fn conclude<L: Historic>(life: &mut L, ticket: &ChangeTicket) {
    let outcome = ticket.lock().clone().expect("a change has an outcome when the log is at rest");
    match outcome {
        Ok(_) => {
            if let Some((change, states)) = life.past().pending.take() {
                done(life, change, states);
            }
        }
        Err(SnapshotError::NoSpace) => life.past().pending = None,
        Err(e) => {
            life.machine().assert_failure_explained("a change of snapshots", &IoError::Io(e.to_string()))
        }
    }
}

/// A change is there for good.
fn done<L: Historic>(life: &mut L, change: Change, states: Vec<State>) {
    match change {
        Change::Create { name, .. } => life.past().shots.push(Shot { name, states }),
        Change::Delete { name } => life.past().shots.retain(|shot| shot.name != name),
        Change::Rollback { name } => {
            let past = life.past();
            let i = past.shots.iter().position(|shot| shot.name == name).expect("it is there");
            past.shots.truncate(i + 1);
            let pages = pinned(&past.shots[i]);
            life.gone_back(pages);
        }
        Change::Receive { .. } | Change::Received { .. } => unreachable!("a life receives no backups"),
    }
}

/// The content of a snapshot that was compared.
fn pinned(shot: &Shot) -> BTreeMap<u64, u64> {
    let pages = shot.states[0].iter().map(|(&page, versions)| (page, versions[0]));
    pages.filter(|(_, tag)| *tag != 0).collect()
}

/// Some of what deletions have left to do.
pub(super) fn portions<L: Historic>(life: &mut L) {
    for _ in 0..life.machine().rng.random_range(1..20) {
        if life.machine().driver.portion() == Round::Idle {
            return;
        }
    }
}

/// All of it.
pub(super) fn finish_portions<L: Historic>(life: &mut L) {
    while life.machine().driver.portion() != Round::Idle {}
    assert!(!life.machine().driver.store().maps.read().snapshots.has_work(), "deletions come to their end");
}

/// Deletes all.
pub(super) fn forget<L: Historic>(life: &mut L) {
    while let Some(name) = some_name(life) {
        let ticket = ask(life, Change::Delete { name }, Vec::new());
        life.machine().driver.settle();
        conclude(life, &ticket);
        finish_portions(life);
    }
}

/// Goes back to a snapshot; now and then the power goes on the way.
fn roll_back<L: Historic>(life: &mut L) {
    compare(life, false);
    let Some(name) = some_name(life) else { return };
    if !life.leave() {
        return;
    }
    let disk = life.machine().disk();
    if life.machine().once_in(3) {
        disk.crash_at(life.machine().rng.random_range(1..40));
    }
    let ticket = ask(life, Change::Rollback { name }, Vec::new());
    life.machine().driver.settle();
    while life.machine().driver.store().maps.read().snapshots.rollback().is_some() {
        if life.machine().driver.portion() == Round::Idle || disk.crashed() {
            break;
        }
        if life.machine().once_in(4) {
            life.machine().driver.checkpoint();
            life.machine().driver.settle();
        }
    }
    conclude(life, &ticket);
    disk.disarm();
    if disk.crashed() {
        life.machine().stopped = true;
        return;
    }
    let left = life.machine().driver.store().maps.read().snapshots.rollback();
    assert!(left.is_none(), "a rollback goes on to its end: {left:?}");
    life.come_back();
}

/// After a start: whether the change that was under way has happened.
pub(super) fn resolve<L: Historic>(life: &mut L) {
    let Some((change, states)) = life.past().pending.take() else { return };
    let names = life.machine().driver.snapshot_names();
    let happened = match &change {
        Change::Create { name, .. } => names.contains(name),
        Change::Delete { name } => !names.contains(name),
        Change::Rollback { name } => {
            let newest = life.past().shots.last().map(|shot| shot.name.clone());
            if newest.as_ref() == Some(name) {
                // Without newer ones only its content tells.
                let shot = life.past().shots.last().map(pinned);
                shot == Some(live(life))
            } else {
                newest.as_ref() != names.last()
            }
        }
        Change::Receive { .. } | Change::Received { .. } => false,
    };
    life.machine().timeline.note(format!("  {change:?} has {}happened", if happened { "" } else { "not " }));
    if happened {
        done(life, change, states);
    }
}

fn live<L: Historic>(life: &mut L) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for page in life.places() {
        let bytes = life.machine().driver.read(crate::device::ClientId(0), page << 12, 4096);
        let bytes = bytes.unwrap_or_else(|e| panic!("page {page:#x}: {e}"));
        let tag = life.version(page, &bytes).unwrap_or_else(|| panic!("page {page:#x} holds no version"));
        if tag != 0 {
            found.insert(page, tag);
        }
    }
    found
}

/// Each snapshot has what it had when it was taken. On a damaged backing pages may give an error that names the damage.
pub(super) fn compare<L: Historic>(life: &mut L, damaged: bool) {
    let names: Vec<String> = life.past().shots.iter().map(|shot| shot.name.clone()).collect();
    assert_eq!(life.machine().driver.snapshot_names(), names, "snapshots");
    for (i, name) in names.iter().enumerate() {
        let mut found = BTreeMap::new();
        for page in life.places() {
            match life.machine().driver.read_snapshot(name, page) {
                Ok(bytes) => {
                    let tag = life.version(page, &bytes);
                    let tag = tag.unwrap_or_else(|| panic!("page {page:#x} of {name} holds no version"));
                    found.insert(page, tag);
                }
                Err(e) if damaged => {
                    let what = format!("page {page:#x} of {name}");
                    life.machine().assert_read_error_explained(&what, &e);
                }
                Err(e) => panic!("page {page:#x} of {name}: {e}"),
            }
        }
        life.past().shots[i].narrow(&found);
    }
}
