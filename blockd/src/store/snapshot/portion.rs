//! The long part of a deletion and of a rollback, in portions of bounded work.
//!
//! Neither is logged: a portion changes nothing that can be seen in the volume or in a live snapshot (a rollback's volume
//! is not served), so a start that finds an older state of it in its checkpoint simply does it again.

use layout::addr::MAP_UNIT_PAGES;

use super::{LeafId, Phase, SnapshotId, Snapshots, State};
use crate::device::IoError;
use crate::store::Shared;
use crate::store::map::Maps;
use crate::store::map::base::Found;
use crate::store::map::leaf::Entry;

/// Device pages that a portion looks at.
const PORTION_PAGES: u64 = 4096;

/// What a portion came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Portion {
    /// There is nothing to do.
    Idle,
    /// These leaves must be loaded first.
    Load(Vec<LeafId>),
    /// It is done; there may be more.
    Done,
    /// A snapshot is gone, or the rollback has ended: worth a checkpoint.
    Finished,
    /// This snapshot is as good as gone; what is left of it cannot be read, or not be merged with what cannot.
    Stuck(SnapshotId),
}

/// A stretch of a delta.
#[derive(Clone, Copy)]
struct Stretch {
    first: u64,
    count: u64,
}

impl Snapshots {
    /// Whether there is something for [`Maps::portion`] to do.
    pub fn has_work(&self) -> bool {
        match self.rollback {
            Some(rollback) => rollback.phase == Phase::Rolling,
            None => self.next_to_go().is_some(),
        }
    }

    /// The oldest first: then the next older one keeps what it is given.
    fn next_to_go(&self) -> Option<usize> {
        self.list.iter().position(|s| s.state == State::Deleting && s.stuck.is_none())
    }

    /// Entries that deletions and a rollback still have to look at, about.
    pub fn work_left(&self) -> u64 {
        let concerned = |s: &&super::Snapshot| match self.rollback {
            Some(rollback) => Some(s.id) >= rollback.to,
            None => s.state == State::Deleting && s.stuck.is_none(),
        };
        self.list.iter().filter(concerned).map(super::Snapshot::entries).sum()
    }

    /// A leaf that a portion asked for cannot be read; false if it cannot do without.
    pub fn cannot_read(&mut self, leaf: LeafId, why: String) -> bool {
        if self.rollback.is_none() {
            self.unread.insert(leaf, why);
        }
        self.rollback.is_none()
    }

    /// What deletions were stuck at may be gone.
    pub(super) fn try_again(&mut self) {
        self.unread.clear();
        for snapshot in &mut self.list {
            (snapshot.left_out, snapshot.stuck) = (None, None);
        }
    }

    /// A stretch cannot be dealt with.
    fn leave_out(&mut self, i: usize, at: Stretch, why: String) {
        let snapshot = &mut self.list[i];
        snapshot.left_out = Some(why);
        snapshot.cursor = at.first + at.count;
    }

    /// The next stretch of a delta that has leaves; wraps around once.
    fn next_stretch(&mut self, i: usize) -> Option<Stretch> {
        let snapshot = &mut self.list[i];
        for _ in 0..2 {
            let from = snapshot.cursor;
            if let Some(unit) = snapshot.delta.units_between(from, u64::MAX).next() {
                let start = unit * MAP_UNIT_PAGES;
                let first = from.max(start);
                return Some(Stretch { first, count: PORTION_PAGES.min(start + MAP_UNIT_PAGES - first) });
            }
            snapshot.cursor = 0;
            snapshot.stuck = snapshot.left_out.take();
        }
        None
    }

    fn delta_missing(&self, i: usize, at: Stretch, out: &mut Vec<LeafId>) {
        let mut keys = Vec::new();
        self.list[i].delta.missing(at.first, at.count, &mut keys);
        let map = self.list[i].map_id();
        out.extend(keys.into_iter().map(|key| LeafId { map, key }));
    }

    fn entries(&self, i: usize, at: Stretch) -> Vec<(u64, Entry)> {
        let mut entries = Vec::new();
        self.list[i].delta.for_each_in(at.first, at.count, |page, entry| entries.push((page, entry)));
        entries
    }

    /// The stretch is dealt with.
    fn pass(&mut self, i: usize, at: Stretch) {
        let snapshot = &mut self.list[i];
        snapshot.remove(at.first, at.count);
        snapshot.cursor = at.first + at.count;
    }
}

impl Maps {
    /// A snapshot has nothing left: it leaves the list.
    fn drop_snapshot(&mut self, i: usize) {
        let snapshot = self.snapshots.list.remove(i);
        self.snapshots.share_memory();
        self.snapshots.try_again();
        self.retire(snapshot.map_id(), snapshot.delta);
    }

    /// Does a little of what deletions and a rollback still have to do.
    pub fn portion(&mut self) -> Portion {
        match self.snapshots.rollback {
            Some(rollback) if rollback.phase == Phase::Rolling => self.roll_back(rollback.to),
            Some(_) => Portion::Idle,
            None => self.snapshots.next_to_go().map_or(Portion::Idle, |i| self.merge(i)),
        }
    }

    /// Moves a stretch of a delta into the next older one, where that has no entry of its own; without an older one
    /// all goes.
    fn merge(&mut self, i: usize) -> Portion {
        if self.snapshots.list[i].entries() == 0 {
            self.drop_snapshot(i);
            return Portion::Finished;
        }
        // Without leaves there are no entries, whatever the count said.
        let Some(at) = self.snapshots.next_stretch(i) else {
            self.drop_snapshot(i);
            return Portion::Finished;
        };
        if self.snapshots.list[i].stuck.is_some() {
            return Portion::Stuck(self.snapshots.list[i].id);
        }
        let mut missing = Vec::new();
        self.snapshots.delta_missing(i, at, &mut missing);
        if i > 0 {
            self.snapshots.delta_missing(i - 1, at, &mut missing);
        }
        let unread = |leaf: &LeafId| Some((*leaf, self.snapshots.unread.get(leaf)?.clone()));
        if let Some((leaf, why)) = missing.iter().find_map(unread) {
            if i == 0 {
                self.forget(leaf, &why);
            } else {
                self.snapshots.leave_out(i, at, why);
            }
            return Portion::Done;
        }
        if !missing.is_empty() {
            return Portion::Load(missing);
        }
        for (page, entry) in self.snapshots.entries(i, at) {
            let older = i.checked_sub(1).map(|older| &mut self.snapshots.list[older]);
            match (older, entry) {
                (Some(older), _) if older.delta.find(page) == Found::Absent => older.keep(page, entry),
                (_, Entry::Nowhere) => {}
                (_, Entry::At(mapping)) => self.segments.drop_base(mapping.loc),
            }
        }
        self.snapshots.pass(i, at);
        Portion::Done
    }

    /// Drops a leaf of the oldest snapshot, which nobody needs any more, without knowing what it maps.
    fn forget(&mut self, leaf: LeafId, why: &str) {
        let snapshot = &mut self.snapshots.list[0];
        let entries = snapshot.delta.forget(leaf.key);
        // At most so many of them were pages.
        snapshot.held_pages = snapshot.held_pages.saturating_sub(entries);
        tracing::error!(
            "snapshot {:?} is deleted, and up to {entries} pages of 4 KiB that only it had stay in use: {why}; the cleaner gives them \
             back when it comes to their segments, a copy of the volume in a new image has none of them; vexctl snapshot list tells how many \
             are left",
            snapshot.name
        );
    }

    /// Puts a stretch of the newest delta back into the committed map.
    fn roll_back(&mut self, to: Option<SnapshotId>) -> Portion {
        let newest = self.snapshots.list.last().map(|s| (s.id, s.entries()));
        let Some((id, entries)) = newest.filter(|(id, _)| Some(*id) >= to) else {
            return if to.is_none() { self.empty() } else { self.end_rollback() };
        };
        let i = self.snapshots.list.len() - 1;
        let at = if entries == 0 { None } else { self.snapshots.next_stretch(i) };
        let Some(at) = at else {
            if Some(id) > to {
                self.drop_snapshot(i);
                return Portion::Finished;
            }
            return self.end_rollback();
        };
        let mut missing = Vec::new();
        let mut keys = Vec::new();
        self.base.missing(at.first, at.count, &mut keys);
        missing.extend(keys.into_iter().map(LeafId::committed));
        self.snapshots.delta_missing(i, at, &mut missing);
        if !missing.is_empty() {
            return Portion::Load(missing);
        }
        let segments = &mut self.segments;
        for (page, entry) in self.snapshots.entries(i, at) {
            match entry {
                Entry::Nowhere => self.base.remove(page, 1, |_, old| segments.drop_base(old.loc)),
                Entry::At(mapping) => {
                    if let Some(old) = self.base.set(page, mapping) {
                        segments.drop_base(old.loc);
                    }
                }
            }
        }
        self.snapshots.pass(i, at);
        Portion::Done
    }

    /// The committed map is the snapshot's; so is the size from now on, if it was asked for.
    fn end_rollback(&mut self) -> Portion {
        let rollback = self.snapshots.rollback.take().filter(|rollback| !rollback.keeps_size);
        let to = rollback.and_then(|rollback| rollback.to);
        if let Some(snapshot) = to.and_then(|to| self.snapshots.get(to)) {
            self.raw_bytes = snapshot.raw_bytes;
        }
        Portion::Finished
    }

    /// Unmaps a stretch of the committed map, which no snapshot needs.
    fn empty(&mut self) -> Portion {
        // Leaves that ran empty stay until a checkpoint: they are passed over.
        let mut unit = self.base.units_between(0, u64::MAX).next();
        while let Some(at) = unit {
            let start = at * MAP_UNIT_PAGES;
            if self.base.count_units(start, start + MAP_UNIT_PAGES) > 0 {
                let mut keys = Vec::new();
                self.base.missing(start, MAP_UNIT_PAGES, &mut keys);
                if !keys.is_empty() {
                    return Portion::Load(keys.into_iter().map(LeafId::committed).collect());
                }
                let segments = &mut self.segments;
                self.base.remove(start, MAP_UNIT_PAGES, |_, old| segments.drop_base(old.loc));
                return Portion::Done;
            }
            unit = self.base.units_between(start + MAP_UNIT_PAGES, u64::MAX).next();
        }
        self.end_rollback()
    }
}

impl Shared {
    /// Carries a rollback through without writing anything.
    ///
    /// # Errors
    /// As [`Shared::load`].
    pub fn roll_back_in_memory(&self) -> Result<(), IoError> {
        while self.maps.read().snapshots.rollback().is_some() {
            let portion = self.maps.write().portion();
            if let Portion::Load(leaves) = portion {
                leaves.into_iter().try_for_each(|leaf| self.load(leaf))?;
            }
        }
        Ok(())
    }
}
