//! The map: device page -> place in the log.
//!
//! Two layers. The *base* is the committed map; it is what checkpoints hold. The *overlay* is the
//! open epoch of a VexFS volume: a commit merges it into the base, a rollback drops it. A raw
//! volume has no epochs and changes its base directly. What the base loses goes to the newest snapshot that needs it.
//! Clones let several pages stand at one place: each of these entries counts as a live page of the segment ([`referrers`]).
//! One thread (the log's) changes the map.
//!
//! Both layers, and the deltas of snapshots, are of one kind, [`BaseMap`], and have an id, [`MapId`]; checkpoints take all that [`Maps::ids`] names.
//! A map that ends (the open epoch at a commit or rollback) is given to [`Maps::retire`].

pub mod base;
pub mod directory;
pub mod leaf;
pub mod overlay;
pub mod referrers;
pub mod segments;
#[cfg(test)]
mod verify;

use std::collections::BTreeMap;

use super::format::checkpoint::MapId;
use super::format::record::{Entry, FLAG_COMMIT, FLAG_ROLLBACK, Record, SessionState};
use super::format::{Loc, Mapping};
use super::snapshot::{LeafId, SnapshotId, Snapshots};
use crate::device::VolumeKind;
use base::BaseMap;
use overlay::Overlay;
use segments::SegmentTable;

/// What stands behind a device page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Nothing: it reads as zeros.
    Unmapped,
    /// A page of the log.
    Mapped(Mapping),
    /// The leaf of this key must be loaded first.
    Leaf(u64),
}

/// The map with all that changes together with it.
#[derive(Debug)]
pub struct Maps {
    /// Kind of volume: decides whether writes open an epoch.
    pub kind: VolumeKind,
    /// Committed state.
    pub base: BaseMap,
    /// Open epoch.
    pub overlay: Overlay,
    /// What snapshots keep of states before.
    pub snapshots: Snapshots,
    /// Use of each segment.
    pub segments: SegmentTable,
    /// Size of a raw volume in bytes, 0 for VexFS. Nothing is mapped beyond.
    pub raw_bytes: u64,
    /// Commits so far.
    pub epoch: u64,
    /// As of the last record applied.
    pub session: SessionState,
    /// Read-only starts: leaves without which records were applied since they cannot be read, and why. They are never
    /// read again, since they are not what the last checkpoint has any more.
    damaged: BTreeMap<LeafId, String>,
    /// Leaves that could not be read, and where: they were told of.
    told_of: BTreeMap<LeafId, Loc>,
    /// Maps that ended while a checkpoint that holds them was under way.
    pub(in crate::store) retired: Vec<(MapId, BaseMap)>,
    /// Pages of maps that ended: needed no more once the checkpoint that begins next is durable.
    pub(in crate::store) dropped: Vec<Loc>,
}

impl Maps {
    /// An empty map over these segments.
    pub fn new(kind: VolumeKind, segments: SegmentTable) -> Self {
        Maps {
            kind,
            base: BaseMap::default(),
            overlay: Overlay::default(),
            snapshots: Snapshots::default(),
            segments,
            raw_bytes: 0,
            epoch: 0,
            session: SessionState::default(),
            damaged: BTreeMap::new(),
            told_of: BTreeMap::new(),
            retired: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// All maps, in the order in which a checkpoint lists them.
    pub fn ids(&self) -> Vec<MapId> {
        let deltas = self.snapshots.all().iter().map(|s| MapId::Delta(s.id.0));
        [MapId::Committed, MapId::Open].into_iter().chain(deltas).collect()
    }

    /// One of them.
    pub fn map(&self, id: MapId) -> Option<&BaseMap> {
        match id {
            MapId::Committed => Some(&self.base),
            MapId::Open => Some(&self.overlay.map),
            MapId::Delta(number) => self.snapshots.get(SnapshotId(number)).map(|s| &s.delta),
        }
    }

    /// One of them, to be changed.
    pub fn map_mut(&mut self, id: MapId) -> Option<&mut BaseMap> {
        match id {
            MapId::Committed => Some(&mut self.base),
            MapId::Open => Some(&mut self.overlay.map),
            MapId::Delta(number) => self.snapshots.get_mut(SnapshotId(number)).map(|s| &mut s.delta),
        }
    }

    /// The map as the checkpoint under way holds it, though it may have ended since.
    pub(in crate::store) fn frozen_map(&mut self, id: MapId) -> Option<&mut BaseMap> {
        match self.retired.iter().position(|(retired, _)| *retired == id) {
            Some(i) => self.retired.get_mut(i).map(|(_, map)| map),
            None => self.map_mut(id),
        }
    }

    /// As [`Maps::frozen_map`].
    pub(in crate::store) fn frozen_map_ref(&self, id: MapId) -> Option<&BaseMap> {
        match self.retired.iter().find(|(retired, _)| *retired == id) {
            Some((_, map)) => Some(map),
            None => self.map(id),
        }
    }

    /// Takes in a map that ended, with its pages on disk: they are dropped when a checkpoint without it is durable.
    /// What it maps must have got another owner, or have been dropped.
    pub(in crate::store) fn retire(&mut self, id: MapId, map: BaseMap) {
        if map.is_frozen() {
            self.retired.push((id, map));
        } else {
            self.dropped.extend(map.into_locs());
        }
    }

    /// Records are applied without a leaf from now on: nothing that it maps is known any more. For starts that only read.
    pub(in crate::store) fn give_up(&mut self, leaf: LeafId, why: String) {
        if let Some(map) = self.map_mut(leaf.map) {
            map.tolerate_damage();
            self.damaged.insert(leaf, why);
        }
    }

    /// Why a leaf was given up, if it was.
    pub fn damage(&self, leaf: LeafId) -> Option<&String> {
        self.damaged.get(&leaf)
    }

    /// A leaf cannot be read there: whether this is news.
    pub(in crate::store) fn tell_of(&mut self, leaf: LeafId, at: Loc) -> bool {
        self.told_of.insert(leaf, at) != Some(at)
    }

    fn all(&self) -> impl Iterator<Item = &BaseMap> {
        self.ids().into_iter().filter_map(|id| self.map(id))
    }

    /// Pages of the log that count as used though nothing refers to them: of leaves that a deletion could not read. What is on
    /// the backing is counted, so it outlasts restarts, until the cleaner finds them.
    pub fn lost_pages(&self) -> u64 {
        let held: u64 = self.snapshots.all().iter().map(|s| s.held_pages).sum();
        let mapped = self.base.page_count() + self.overlay.page_count() + held;
        self.segments.data_live().saturating_sub(mapped)
    }

    /// Leaves that the next checkpoint gives a page.
    pub fn dirty_count(&self) -> usize {
        self.all().map(BaseMap::dirty_count).sum()
    }

    /// Leaves of all maps.
    pub fn leaf_count(&self) -> usize {
        self.all().map(BaseMap::leaf_count).sum()
    }

    /// Looks a page up as the mounter sees it (open epoch first).
    pub fn lookup(&self, page: u64) -> Lookup {
        match self.overlay.lookup(page) {
            Some(Some(mapping)) => Lookup::Mapped(mapping),
            Some(None) => Lookup::Unmapped,
            None => self.base.lookup(page),
        }
    }

    /// Carries out a record, at run time and at replay alike. Its leaves are loaded.
    pub fn apply(&mut self, record: &Record) {
        self.segments.applying(Some(record.seq));
        if record.flags & FLAG_ROLLBACK != 0 {
            self.rollback();
        }
        let mut data = Loc { segment: record.at.segment, offset: record.at.offset };
        for entry in &record.entries {
            match entry {
                Entry::Write { first, crcs } => {
                    for (page, &crc) in (*first..).zip(crcs) {
                        data.offset += 1;
                        self.set(page, Mapping { loc: data, crc });
                    }
                }
                Entry::Discard { first, count } => self.discard(*first, *count),
                Entry::Relocate { page, old, crc } => {
                    data.offset += 1;
                    self.relocate(*page, *old, Mapping { loc: data, crc: *crc });
                }
                Entry::Clone { first, at, crcs } => {
                    for ((page, i), &crc) in (*first..).zip(0..).zip(crcs) {
                        let loc = Loc { offset: at.offset + i, ..*at };
                        self.segments.add_referrer(loc, page);
                        self.set(page, Mapping { loc, crc });
                    }
                }
            }
        }
        self.segments.wrote(record.at.segment, u32::from(record.at.offset) + 1 + record.page_count());
        if record.flags & FLAG_COMMIT != 0 {
            self.commit();
        }
        self.session = record.session.clone();
        self.segments.applying(None);
    }

    fn set(&mut self, page: u64, mapping: Mapping) {
        match self.kind {
            VolumeKind::Raw => self.set_base(page, mapping),
            VolumeKind::VexFs => {
                self.segments.add_open(mapping.loc);
                if let Some(old) = self.overlay.set(page, mapping) {
                    self.segments.drop_open(old.loc);
                }
            }
        }
    }

    fn set_base(&mut self, page: u64, mapping: Mapping) {
        if self.base.is_unknown(page) {
            return;
        }
        self.segments.add_base(mapping.loc);
        let old = self.base.set(page, mapping);
        self.replaced(page, old);
    }

    fn discard(&mut self, first: u64, count: u64) {
        let segments = &mut self.segments;
        match self.kind {
            VolumeKind::Raw => self.discard_base(first, count),
            VolumeKind::VexFs => self.overlay.discard(first, count, |old| segments.drop_open(old)),
        }
    }

    fn discard_base(&mut self, first: u64, count: u64) {
        let (segments, snapshots) = (&mut self.segments, &mut self.snapshots);
        self.base.remove(first, count, |page, old| {
            if let Some(dead) = snapshots.replaced(page, Some(old)) {
                segments.drop_base(dead);
            }
        });
    }

    fn commit(&mut self) {
        let overlay = std::mem::take(&mut self.overlay);
        for (first, count) in overlay.discards() {
            self.discard_base(first, count);
        }
        for (page, mapping) in overlay.mappings() {
            self.segments.drop_open(mapping.loc);
            self.set_base(page, mapping);
        }
        self.epoch += 1;
        self.retire(MapId::Open, overlay.map);
    }

    /// Drops the open epoch.
    pub fn rollback(&mut self) {
        let overlay = std::mem::take(&mut self.overlay);
        for (_, mapping) in overlay.mappings() {
            self.segments.drop_open(mapping.loc);
        }
        self.retire(MapId::Open, overlay.map);
    }
}
