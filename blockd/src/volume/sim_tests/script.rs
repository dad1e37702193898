//! What happens in the lives of volumes, and how often; [`crate::storage::sim::script`] runs them.

pub(super) use crate::storage::sim::script::{Life, attempt, draw, is_reproducible, live};

/// One step.
pub(super) type Step = crate::storage::sim::script::Step<Op>;
/// How often each comes, by relative weights.
pub(super) type Weights = crate::storage::sim::script::Weights<Op>;

/// What a step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// Requests in flight at once.
    Batch,
    /// On VexFS a commit, on raw volumes a flush.
    Commit,
    Checkpoint,
    /// A round of the cleaner.
    Clean,
    /// The cleaner reads, and is slow to write: users overtake it.
    LateCopies,
    /// A read that takes so long that what it reads is used again meanwhile.
    SlowRead,
    /// Everything is compared with the model.
    Check,
    /// The power goes, or the daemon dies, with requests under way.
    Crash,
    /// The same in the midst of a certain write.
    CrashAtWrite,
    /// The same in the midst of a start.
    CrashAtStart,
    WriteError,
    SyncError,
    ReadError,
    /// Blocks rot, or the backing lies: [`super::damage`].
    Damage,
    /// Of the kind of volume: parts of pages on raw ones, freed ranges on VexFS.
    Special,
    /// VexFS: another mounter comes, or this one goes.
    Session,
    /// Something with snapshots.
    Snapshot,
    /// The image is made larger or smaller.
    Resize,
}

/// Of most lives.
pub(super) const WEIGHTS: &Weights = &[
    (Op::Batch, 40),
    (Op::Commit, 16),
    (Op::Checkpoint, 4),
    (Op::Clean, 6),
    (Op::LateCopies, 5),
    (Op::SlowRead, 3),
    (Op::Check, 4),
    (Op::Crash, 5),
    (Op::CrashAtWrite, 5),
    (Op::CrashAtStart, 3),
    (Op::WriteError, 2),
    (Op::SyncError, 2),
    (Op::ReadError, 3),
    (Op::Damage, 3),
    (Op::Special, 8),
    (Op::Session, 4),
    (Op::Snapshot, 16),
    (Op::Resize, 1),
];
