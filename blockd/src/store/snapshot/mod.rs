//! Snapshots: named, read-only states of the volume, kept as *reverse deltas*.
//!
//! A snapshot costs nothing when it is taken. From then on the newest snapshot's delta gets what the committed map
//! replaces or drops: page -> old place, or page -> "was not mapped". A page of snapshot k is what the first of the deltas
//! k, k+1, ... says of it, and else what the committed map says. So every place in the log has exactly one owner (the open
//! epoch, the committed map, or one delta), and moving a place from one owner to another changes no live count.
//!
//! Life of a snapshot: *live* -> *doomed* (its deletion waits for the checkpoint that says so) -> *deleting* (its delta is merged
//! into the next older one, in portions) -> gone. Where a leaf of these two cannot be read, older snapshots see nothing through it: it
//! stays, and the deletion is *stuck*, until there are none.
//!
//! [`capture`]: what the map's changes ask of the deltas. [`lookup`]: pages of a snapshot. [`change`]: taking, deleting, rolling
//! back. [`diff`]: what changed between two. [`portion`]: the long part of the latter two, step by step. [`log`]: all of it in the log's order.

pub mod capture;
pub mod change;
pub mod diff;
pub mod log;
pub mod lookup;
pub mod portion;

use std::collections::BTreeMap;

use super::format::Malformed;
use super::format::checkpoint::{GoingBack, MapId, Payload, Root};
use super::format::snapshot::SnapshotEntry;
use super::map::base::BaseMap;
use super::map::leaf::Entry;

/// Snapshots that a volume may have; each is one more place to look for a page of the oldest.
pub const SNAPSHOTS_MAX: usize = 1024;
/// Bytes of a snapshot's name, at most.
pub const NAME_BYTES_MAX: usize = 255;

/// Number of a snapshot; grows with time and is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub u64);

/// A leaf of one of the maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeafId {
    /// Whose.
    pub map: MapId,
    /// Its lowest device page.
    pub key: u64,
}

impl LeafId {
    /// A leaf of the committed map.
    pub fn committed(key: u64) -> Self {
        LeafId { map: MapId::Committed, key }
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
    /// Size of a raw volume then, in bytes; 0 for VexFS.
    pub raw_bytes: u64,
    /// Where in its life it is.
    pub state: State,
    /// What changed until the next newer snapshot was taken, or until now.
    pub delta: BaseMap,
    /// Pages of the log that its delta owns.
    pub held_pages: u64,
    /// How many have it open.
    pub open_count: u32,
    /// Where the next portion of its deletion begins.
    cursor: u64,
    /// Why portions left something out since they began at page 0.
    left_out: Option<String>,
    /// Why there is nothing more that portions can do.
    stuck: Option<String>,
}

impl Snapshot {
    /// A snapshot whose delta is known from a checkpoint, or empty.
    pub fn new(id: SnapshotId, name: String, time_ns: u64, epoch: u64) -> Self {
        Snapshot {
            id,
            name,
            time_ns,
            epoch,
            raw_bytes: 0,
            state: State::Live,
            delta: BaseMap::default(),
            held_pages: 0,
            open_count: 0,
            cursor: 0,
            left_out: None,
            stuck: None,
        }
    }

    /// Why its deletion cannot end for now: a leaf cannot be read that older snapshots may need.
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// The id of its delta.
    pub fn map_id(&self) -> MapId {
        MapId::Delta(self.id.0)
    }

    /// Entries of its delta: [`Snapshot::held_pages`] and those that say "was not mapped".
    pub fn entries(&self) -> u64 {
        self.delta.page_count()
    }

    /// Puts an entry in that the delta does not have.
    fn keep(&mut self, page: u64, entry: Entry) {
        let before = self.delta.insert(page, entry);
        debug_assert!(before.is_none(), "a delta's entry is not replaced");
        self.held_pages += u64::from(entry != Entry::Nowhere);
    }

    /// Takes the entries of a range out.
    fn remove(&mut self, first: u64, count: u64) {
        let held = &mut self.held_pages;
        // A hostile image may have counted wrongly.
        self.delta.take(first, count, |_, entry| {
            *held = held.saturating_sub(u64::from(entry != Entry::Nowhere));
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
    /// A raw volume keeps its size: it is the end of a backup that was not received whole.
    pub keeps_size: bool,
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
    Ends {
        /// Size of a raw volume until then, in bytes, which it has again if that checkpoint cannot be written.
        raw_bytes_before: u64,
    },
}

/// All snapshots, oldest first.
#[derive(Debug, Default)]
pub struct Snapshots {
    list: Vec<Snapshot>,
    /// Number of the next one, less one.
    last_id: u64,
    rollback: Option<Rollback>,
    /// Bytes that all deltas may take in memory, those that changed apart; 0 = no limit.
    bytes_max: usize,
    held: bool,
    /// Leaves that portions could not read, and why.
    unread: BTreeMap<LeafId, String>,
}

impl Snapshots {
    /// As a checkpoint has them, with their deltas by number. A rollback goes on; a backup that was being received is
    /// abandoned.
    ///
    /// # Errors
    /// [`Malformed`] when they do not belong together.
    pub fn load(
        root: &Root,
        payload: &Payload,
        mut deltas: BTreeMap<u64, BaseMap>,
    ) -> Result<Self, Malformed> {
        let mut list = Vec::with_capacity(payload.snapshots.len());
        for entry in &payload.snapshots {
            let found = entry.number;
            let Some(delta) = deltas.remove(&found) else {
                return Err(Malformed { what: "delta of a snapshot", expected: found, found: 0 });
            };
            if entry.held_pages > delta.page_count() {
                let (expected, found) = (delta.page_count(), entry.held_pages);
                return Err(Malformed { what: "pages that a snapshot holds", expected, found });
            }
            let state = if entry.deleting { State::Deleting } else { State::Live };
            let (held_pages, raw_bytes) = (entry.held_pages, entry.raw_bytes);
            let new = Snapshot::new(SnapshotId(found), entry.name.clone(), entry.time_ns, entry.epoch);
            list.push(Snapshot { state, delta, held_pages, raw_bytes, ..new });
        }
        if let Some(&found) = deltas.keys().next() {
            return Err(Malformed { what: "delta of a snapshot that is not listed", expected: 0, found });
        }
        let rollback = root.rollback.map(|GoingBack { to, keeps_size }| Rollback {
            to: (to != 0).then_some(SnapshotId(to)),
            phase: Phase::Rolling,
            keeps_size,
        });
        let snapshots = Snapshots { list, last_id: root.last_snapshot, rollback, ..Snapshots::default() };
        match root.rollback.map(|back| back.to) {
            Some(0) if !snapshots.is_empty() => {
                let found = snapshots.list.len() as u64;
                Err(Malformed { what: "snapshots before a first backup", expected: 0, found })
            }
            Some(to @ 1..) if snapshots.get(SnapshotId(to)).is_none() => {
                Err(Malformed { what: "snapshot of a rollback", expected: 0, found: to })
            }
            _ => Ok(snapshots),
        }
    }

    /// All of them, oldest first, those being deleted included.
    pub fn all(&self) -> &[Snapshot] {
        &self.list
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
    pub fn rollback_at_start(&self) -> Option<GoingBack> {
        let rollback = self.rollback.filter(|r| !matches!(r.phase, Phase::Ends { .. }))?;
        Some(GoingBack { to: rollback.to.map_or(0, |id| id.0), keeps_size: rollback.keeps_size })
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

    /// Pages that all deltas take on disk, about.
    pub fn disk_pages(&self) -> usize {
        self.list.iter().map(|s| s.delta.disk_pages()).sum()
    }

    /// Bytes of the table in a checkpoint.
    pub fn table_bytes(&self) -> usize {
        self.list.iter().map(|s| SnapshotEntry::HEAD + s.name.len()).sum()
    }

    /// The table in a checkpoint.
    pub fn table(&self) -> Vec<SnapshotEntry> {
        let entry = |s: &Snapshot| SnapshotEntry {
            number: s.id.0,
            time_ns: s.time_ns,
            epoch: s.epoch,
            held_pages: s.held_pages,
            raw_bytes: s.raw_bytes,
            deleting: s.state != State::Live,
            name: s.name.clone(),
        };
        self.list.iter().map(entry).collect()
    }

    /// Limits the memory of deltas; 0 = no limit. They share what they may have.
    pub fn set_bytes_max(&mut self, bytes: usize) {
        self.bytes_max = bytes;
        self.share_memory();
    }

    fn share_memory(&mut self) {
        /// So that a unit's leaves and their neighbours are there together.
        const EACH_MIN: usize = 512 << 10;
        let each = match self.bytes_max {
            0 => 0,
            all => (all / self.list.len().max(1)).max(EACH_MIN.min(all)),
        };
        self.list.iter_mut().for_each(|s| s.delta.set_bytes_max(each));
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
