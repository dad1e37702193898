//! The leaves of the map that a record needs: they are read when its jobs are taken in, and again when a snapshot is deleted while
//! these wait, so that one that cannot be read fails the requests that need it, and nothing else.

use super::Log;
use super::job::{Job, Op};
use crate::device::{IoError, VolumeKind};
use crate::store::Shared;
use crate::store::format::record::Record;
use crate::store::snapshot::LeafId;

impl Log {
    /// Reads the leaves that a user's job changes or clones from, also those that it will change when its epoch is committed. They may be
    /// evicted again until then: what counts is that they can be read.
    ///
    /// # Errors
    /// As [`Shared::load`].
    pub(super) fn load_leaves_of(&self, job: &Job) -> Result<(), IoError> {
        let commits = job.commit && self.shared.kind == VolumeKind::VexFs;
        let (mut own, mut of_epoch, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        {
            let maps = self.shared.maps.read();
            for op in &job.ops {
                match op {
                    Op::Write { first, pages, .. } => maps.missing(*first, *pages as u64, &mut own),
                    Op::Discard { first, count } => maps.missing(*first, *count, &mut own),
                    Op::Clone { from, to, count } => {
                        maps.base.missing(*from, *count, &mut sources);
                        maps.missing(*to, *count, &mut own);
                    }
                    Op::Relocate { .. } => {}
                }
            }
            if commits {
                maps.missing_for_commit(&mut of_epoch);
            }
        }
        let sources = sources.into_iter().map(LeafId::committed);
        own.into_iter().chain(sources).try_for_each(|leaf| self.shared.load(leaf))?;
        // A newer snapshot that kept what is replaced may have been deleted since the epoch was written.
        of_epoch.retain(|leaf| self.shared.maps.read().is_indispensable(*leaf));
        of_epoch.into_iter().try_for_each(|leaf| self.shared.load(leaf))
    }
}

/// What becomes of a record if a leaf cannot be read that it would have changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) enum Unread {
    /// It is not applied.
    Refuse,
    /// Nor is it, unless all can be left as it is in that leaf: a copy of the cleaner is dropped, and what is deleted goes on
    /// keeping what an older snapshot would have got. A replay must not do that: it would not know what was done before.
    PassOver,
}

/// Loads the leaves a record needs and applies it; tells whether some were passed over. Else nothing is changed, and a leaf that
/// cannot be read is given with the reason.
pub(in crate::store) fn apply_record(
    shared: &Shared,
    record: &Record,
    unread: Unread,
) -> Result<bool, (LeafId, IoError)> {
    let mut passed_over = Vec::new();
    loop {
        let mut maps = shared.maps.write();
        // Asked under the lock under which it is applied: readers load leaves too, and that evicts others.
        let mut missing = maps.leaves_missing(record);
        missing.retain(|leaf| !passed_over.contains(leaf));
        if missing.is_empty() {
            maps.apply(record);
            maps.hold(false);
            return Ok(!passed_over.is_empty());
        }
        // Until it is applied none of them goes; what is loaded may name more.
        maps.hold(true);
        drop(maps);
        for leaf in missing {
            let Err(e) = shared.load(leaf) else { continue };
            let mut maps = shared.maps.write();
            if unread == Unread::Refuse || maps.needs(record, leaf) {
                maps.hold(false);
                return Err((leaf, e));
            }
            passed_over.push(leaf);
        }
    }
}
