//! Snapshots: named, read-only states of the volume, kept as *reverse deltas*.
//!
//! A snapshot costs nothing when it is taken. From then on the newest snapshot's delta gets what the committed map
//! replaces or drops: page -> old place, or page -> "was not mapped". A page of snapshot k is what the first of the deltas
//! k, k+1, ... says of it, and else what the committed map says. So every place in the log has exactly one owner (the open
//! epoch, the committed map, or one delta), and moving a place from one owner to another changes no live count.
//!
//! Life of a snapshot: *live* -> *doomed* (its deletion waits for the checkpoint that says so) -> *deleting* (its delta is merged
//! into the next older one, in portions) -> gone.
//!
//! [`capture`]: what the map's changes ask of the deltas. [`lookup`]: pages of a snapshot. [`change`]: taking, deleting, rolling
//! back. [`diff`]: what changed between two. [`portion`]: the long part of the latter two, step by step. [`log`]: all of it in the log's order.

pub mod capture;
pub mod change;
pub mod diff;
pub mod log;
pub mod lookup;
pub mod portion;

use super::format::Mapping;
use super::map::base::BaseMap;

/// Snapshots that a volume may have; each is one more place to look for a page of the oldest.
pub const SNAPSHOTS_MAX: usize = 1024;
/// Bytes of a snapshot's name, at most.
pub const NAME_BYTES_MAX: usize = 255;

/// Number of a snapshot; grows with time and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub u64);

/// A map that a leaf may belong to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Layer {
    /// The committed map.
    Committed,
    /// The delta of a snapshot.
    Delta(SnapshotId),
}

/// A leaf of one of the maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeafId {
    /// Whose.
    pub layer: Layer,
    /// Its lowest device page.
    pub key: u64,
}

impl LeafId {
    /// A leaf of the committed map.
    pub fn committed(key: u64) -> Self {
        LeafId { layer: Layer::Committed, key }
    }
}

/// Which state of the volume is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    /// As the mounter sees it, its open epoch included.
    Live,
    /// As it was when the snapshot was taken.
    Snapshot(SnapshotId),
}

/// Where in its life a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Can be read.
    Live,
    /// Can't be read any more, but goes on keeping what is replaced: the checkpoint that says so may still fail.
    Doomed,
    /// Keeps nothing more; its delta only shrinks.
    Deleting,
}

/// One snapshot.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number.
    pub id: SnapshotId,
    /// Unique among those that can be read.
    pub name: String,
    /// When it was taken: nanoseconds since 1970.
    pub time_ns: u64,
    /// Commits before it.
    pub epoch: u64,
    /// Where in its life it is.
    pub state: State,
    /// What changed until the next newer snapshot was taken, or until now.
    pub delta: BaseMap,
    /// Pages of the log that its delta owns.
    pub held_pages: u64,
    /// Entries of its delta: [`Snapshot::held_pages`] and those that say "was not mapped".
    pub entries: u64,
    /// How many have it open.
    pub open_count: u32,
    /// Where the next portion of its deletion begins.
    cursor: u64,
}

impl Snapshot {
    /// A snapshot whose delta is known from a checkpoint, or empty.
    pub fn new(id: SnapshotId, name: String, time_ns: u64, epoch: u64) -> Self {
        Snapshot {
            id,
            name,
            time_ns,
            epoch,
            state: State::Live,
            delta: BaseMap::default(),
            held_pages: 0,
            entries: 0,
            open_count: 0,
            cursor: 0,
        }
    }

    /// Puts an entry in that the delta does not have.
    fn keep(&mut self, page: u64, mapping: Mapping) {
        let before = self.delta.set(page, mapping);
        debug_assert!(before.is_none(), "a delta's entry is not replaced");
        self.entries += 1;
        self.held_pages += u64::from(!mapping.is_unmapped());
    }

    /// Takes the entries of a range out.
    fn remove(&mut self, first: u64, count: u64) {
        let (entries, held) = (&mut self.entries, &mut self.held_pages);
        self.delta.remove(first, count, |_, mapping| {
            *entries -= 1;
            *held -= u64::from(!mapping.is_unmapped());
        });
    }
}

/// The committed map is between two states, and no longer, or not yet, one that may be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rollback {
    /// Where it goes back to; `None`: to nothing mapped at all, which needs that there is no snapshot.
    pub to: Option<SnapshotId>,
    /// How far it is.
    pub phase: Phase,
}

/// See [`Rollback`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The checkpoint that says so is not durable yet.
    Begins,
    /// A backup is being received: only when it is abandoned, or at the next start, does the map go back.
    Receiving,
    /// The map goes back, portion by portion.
    Rolling,
    /// It is a state again once the next checkpoint, which has no rollback, is durable.
    Ends,
}

/// All snapshots, oldest first.
#[derive(Debug, Default)]
pub struct Snapshots {
    list: Vec<Snapshot>,
    /// Number of the next one, less one.
    last_id: u64,
    rollback: Option<Rollback>,
    /// Leaves of one delta kept in memory; 0 = no limit.
    leaves_max: usize,
    held: bool,
}

impl Snapshots {
    /// As a checkpoint has them, oldest first. A rollback goes on; a backup that was being received is abandoned.
    pub fn from_checkpoint(
        list: Vec<Snapshot>,
        last_id: u64,
        rollback_to: Option<Option<SnapshotId>>,
    ) -> Self {
        let rollback = rollback_to.map(|to| Rollback { to, phase: Phase::Rolling });
        Snapshots { list, last_id, rollback, leaves_max: 0, held: false }
    }

    /// All of them, oldest first, those being deleted included.
    pub fn all(&self) -> &[Snapshot] {
        &self.list
    }

    /// All of them, to note where a checkpoint wrote their leaves.
    pub fn all_mut(&mut self) -> &mut [Snapshot] {
        &mut self.list
    }

    /// None, not even one being deleted.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The highest number given so far.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// The rollback under way.
    pub fn rollback(&self) -> Option<Rollback> {
        self.rollback
    }

    /// Where a start from the next checkpoint has to go back to.
    pub fn rollback_at_start(&self) -> Option<Option<SnapshotId>> {
        self.rollback.filter(|r| r.phase != Phase::Ends).map(|r| r.to)
    }

    /// One of them.
    pub fn get(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.index(id).map(|i| &self.list[i])
    }

    /// One of them.
    pub fn get_mut(&mut self, id: SnapshotId) -> Option<&mut Snapshot> {
        self.index(id).map(|i| &mut self.list[i])
    }

    fn index(&self, id: SnapshotId) -> Option<usize> {
        self.list.binary_search_by_key(&id, |s| s.id).ok()
    }

    /// The live one of a name.
    pub fn find(&self, name: &str) -> Option<&Snapshot> {
        self.list.iter().find(|s| s.state == State::Live && s.name == name)
    }

    /// Leaves of all deltas.
    pub fn leaf_count(&self) -> usize {
        self.list.iter().map(|s| s.delta.leaf_count()).sum()
    }

    /// Leaves of all deltas that changed since the last checkpoint.
    pub fn dirty_count(&self) -> usize {
        self.list.iter().map(|s| s.delta.dirty_count()).sum()
    }

    /// Limits the leaves of deltas kept in memory; 0 = no limit. They share what they may have.
    pub fn set_loaded_max(&mut self, leaves: usize) {
        self.leaves_max = leaves;
        self.share_memory();
    }

    fn share_memory(&mut self) {
        /// So that a unit's leaves and their neighbours are there together.
        const EACH_MIN: usize = 256;
        let each = match self.leaves_max {
            0 => 0,
            all => (all / self.list.len().max(1)).max(EACH_MIN),
        };
        self.list.iter_mut().for_each(|s| s.delta.set_loaded_max(each));
    }

    /// As [`BaseMap::hold`], for all deltas.
    pub fn hold(&mut self, held: bool) {
        if self.held != held {
            self.held = held;
            self.list.iter_mut().for_each(|s| s.delta.hold(held));
        }
    }
}

/// Whether a snapshot may be called so.
///
/// # Errors
/// What is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a snapshot's name is not empty".into());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("the name has {} bytes; {NAME_BYTES_MAX} are allowed", name.len()));
    }
    match name.chars().find(|c| c.is_control() || matches!(c, '/' | '@')) {
        Some(c) => Err(format!("the name {name:?} has the character {c:?}, which is not allowed")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
