//! Snapshots in the order of the log: a change happens at the very moment a checkpoint freezes its state, with no record
//! in between, and is told of when that checkpoint is durable. So the log needs no records of snapshots: a start finds
//! the change in its checkpoint, or it finds the checkpoint before.

use super::change::{Change, SnapshotError};
use super::portion::Portion;
use super::{SnapshotId, State};
use crate::device::IoError;
use crate::store::log::Log;
use crate::store::space::Taker;

/// Told the outcome of a change.
pub type ChangeDone = Box<dyn FnOnce(Result<SnapshotId, SnapshotError>) + Send>;

/// Leaves changed by portions since the last checkpoint beyond which one is due: they stay in memory until then.
const DIRTY_MAX: usize = 4096;

/// Changes that wait for a checkpoint, and those that the one under way makes durable.
#[derive(Default)]
pub(in crate::store) struct Changes {
    waiting: Vec<(Change, ChangeDone)>,
    under_way: Vec<(Change, SnapshotId, ChangeDone)>,
    /// Records up to this one were built while a snapshot that is being deleted still kept what they replace.
    built_upto: u64,
}

impl Changes {
    pub(in crate::store) fn fail(&mut self, why: &str) {
        for (_, done) in self.waiting.drain(..) {
            done(Err(SnapshotError::Io(why.to_owned())));
        }
        for (_, _, done) in self.under_way.drain(..) {
            done(Err(SnapshotError::Io(why.to_owned())));
        }
    }
}

/// How [`Log::portion`] ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// As of the map.
    Map(Portion),
    /// A checkpoint must come first: there is not enough room for what has changed, or too much of it; or records are to be applied.
    Checkpoint,
}

impl Log {
    /// Wants a change of the snapshots; `done` is told when it is durable, or what keeps it from being made.
    pub fn submit_change(&mut self, change: Change, done: ChangeDone) {
        if let Some(why) = self.failure() {
            return done(Err(SnapshotError::Io(why.to_owned())));
        }
        self.changes.waiting.push((change, done));
        self.submit_checkpoint(Box::new(|_| {}));
    }

    /// A checkpoint is about to freeze the map, all records before it applied.
    pub(in crate::store) fn begin_changes(&mut self) {
        let waiting = std::mem::take(&mut self.changes.waiting);
        if waiting.is_empty() {
            return;
        }
        let mut maps = self.shared.maps.write();
        for (change, done) in waiting {
            match maps.begin_change(&change) {
                Ok(id) => self.changes.under_way.push((change, id, done)),
                Err(e) => done(Err(e)),
            }
        }
    }

    /// The checkpoint is durable, or could not be written.
    pub(in crate::store) fn end_changes(&mut self, result: &Result<(), IoError>) {
        let under_way = std::mem::take(&mut self.changes.under_way);
        if under_way.is_empty() {
            return;
        }
        {
            let mut maps = self.shared.maps.write();
            // Backwards: of two that concern each other the later goes first.
            for (change, id, _) in under_way.iter().rev() {
                maps.end_change(change, *id, result.is_ok());
            }
        }
        let deletes = |change: &Change| match change {
            Change::Delete { .. } => result.is_ok(),
            Change::Create { .. } | Change::Received { .. } => result.is_err(),
            Change::Rollback { .. } | Change::Receive { .. } => false,
        };
        if under_way.iter().any(|(change, _, _)| deletes(change)) {
            self.changes.built_upto = self.next_seq - 1;
            self.check_waiting();
        }
        for (_, id, done) in under_way {
            done(result.clone().map(|()| id).map_err(SnapshotError::from));
        }
    }

    /// A backup that was being received is abandoned: portions put the map back.
    pub fn abandon_receive(&mut self) {
        self.shared.maps.write().snapshots.abandon_receive();
    }

    /// Does a portion of what deletions and a rollback still have to do.
    pub fn portion(&mut self) -> Progress {
        let mut maps = self.shared.maps.write();
        if !maps.snapshots.has_work() {
            return Progress::Map(Portion::Idle);
        }
        // Else what records not applied yet replace would have to be kept by an older one, whose leaves nobody asked for.
        let newest_goes = maps.snapshots.all().last().is_some_and(|s| s.state == State::Deleting);
        if newest_goes && self.applied_seq < self.changes.built_upto {
            return Progress::Checkpoint;
        }
        // What portions change is no record's: nobody else asks whether a checkpoint can still be written.
        let keep = self.shared.keep_segments(&maps, Taker::Cleaner);
        let dirty = maps.dirty_count();
        if dirty > 0
            && (dirty > DIRTY_MAX || maps.segments.free_count() < keep)
            && self.portions_since_checkpoint
        {
            return Progress::Checkpoint;
        }
        self.portions_since_checkpoint = true;
        Progress::Map(maps.portion())
    }
}
