//! What the map's changes ask of the deltas: whoever loses a page in the committed map gives it to the newest snapshot that
//! needs it, and a place is looked for with all owners it may have.

use super::{LeafId, Snapshot, Snapshots, State};
use crate::device::VolumeKind;
use crate::store::format::checkpoint::MapId;
use crate::store::format::record::{Entry as RecordEntry, FLAG_COMMIT, Record};
use crate::store::format::{Loc, Mapping};
use crate::store::map::base::Found;
use crate::store::map::leaf::Entry;
use crate::store::map::{Lookup, Maps};

impl Snapshots {
    /// The committed map had a page so and has it no longer. Gives the place back that nobody needs.
    pub fn replaced(&mut self, page: u64, old: Option<Mapping>) -> Option<Loc> {
        if !self.any_keeps() {
            return old.map(|m| m.loc);
        }
        // No snapshot older than this one can see the committed map's page if it has an entry.
        for i in (0..self.list.len()).rev() {
            let snapshot = &self.list[i];
            let keeper = match snapshot.delta.find(page) {
                Found::Entry(_) => return old.map(|m| m.loc),
                Found::Absent if snapshot.state == State::Deleting => continue,
                Found::Absent => i,
                // It cannot be read, and nor can what this snapshot and older ones have of the page.
                Found::Leaf(_) if snapshot.delta.is_unknown(page) => return None,
                // Whatever it has: for older ones the page is the same if the next newer one, being deleted, keeps it.
                Found::Leaf(_) if i + 1 < self.list.len() => i + 1,
                Found::Leaf(key) => panic!("leaf {key:#x} of {:?} is loaded before a change", snapshot.id),
            };
            self.list[keeper].keep(page, old.map_or(Entry::Nowhere, Entry::At));
            return None;
        }
        old.map(|m| m.loc)
    }

    /// Whether a page that is mapped so would stay alive if it were replaced; `Err` names a leaf to load first.
    pub fn would_keep(&self, page: u64) -> Result<bool, LeafId> {
        if !self.any_keeps() {
            return Ok(false);
        }
        for snapshot in self.list.iter().rev() {
            match snapshot.delta.find(page) {
                Found::Entry(_) => return Ok(false),
                Found::Absent if snapshot.state == State::Deleting => {}
                Found::Absent => return Ok(true),
                Found::Leaf(key) => return Err(LeafId { map: snapshot.map_id(), key }),
            }
        }
        Ok(false)
    }

    /// Whether what is replaced from now on is kept for anybody.
    pub fn any_keeps(&self) -> bool {
        self.list.iter().any(|s| s.state != State::Deleting)
    }

    /// Adds the leaves that [`Snapshots::replaced`] needs for a range and that are not loaded.
    fn missing(&self, first: u64, count: u64, out: &mut Vec<LeafId>) {
        if !self.any_keeps() {
            return;
        }
        let mut keys = Vec::new();
        for snapshot in self.list.iter().rev() {
            snapshot.delta.missing(first, count, &mut keys);
            let map = snapshot.map_id();
            out.extend(keys.drain(..).map(|key| LeafId { map, key }));
            if snapshot.state != State::Deleting {
                return;
            }
        }
    }

    /// As [`Maps::relocate`], in the deltas; gives how many had the place. A delta whose leaf is not loaded does not have it: it
    /// was looked for before the record was applied.
    fn replace(&mut self, page: u64, old: Loc, new: Mapping) -> usize {
        let replace = |snapshot: &mut Snapshot| {
            !matches!(snapshot.delta.lookup(page), Lookup::Leaf(_)) && snapshot.delta.replace(page, old, new)
        };
        self.list.iter_mut().map(replace).filter(|replaced| *replaced).count()
    }
}

impl Maps {
    /// Leaves that [`Maps::apply`] needs and that are not loaded. Once they are, it may name more.
    pub fn leaves_missing(&self, record: &Record) -> Vec<LeafId> {
        let mut out = Vec::new();
        if self.is_loaded() {
            return out;
        }
        let changes_now = self.kind == VolumeKind::Raw || record.flags & FLAG_COMMIT != 0;
        for entry in &record.entries {
            match entry {
                RecordEntry::Write { first, crcs } | RecordEntry::Clone { first, crcs, .. }
                    if changes_now =>
                {
                    self.missing(*first, crcs.len() as u64, &mut out);
                }
                RecordEntry::Discard { first, count } if changes_now => {
                    self.missing(*first, *count, &mut out)
                }
                RecordEntry::Relocate { page, old, crc } => {
                    let old = Mapping { loc: *old, crc: *crc };
                    if self.segments.referrers.covers(old.loc.segment, *page) {
                        self.missing_anywhere(*page, 1, &mut out);
                    } else if let Err(leaf) = self.find(*page, |m| m == old) {
                        out.push(leaf);
                    }
                }
                RecordEntry::Write { .. } | RecordEntry::Discard { .. } | RecordEntry::Clone { .. } => {}
            }
        }
        if record.flags & FLAG_COMMIT != 0 {
            self.missing_for_commit(&mut out);
        }
        out.retain(|leaf| self.damage(*leaf).is_none());
        out.sort_unstable();
        out.dedup();
        out
    }

    /// No change needs to load a leaf.
    fn is_loaded(&self) -> bool {
        self.base.is_loaded() && self.snapshots.all().iter().all(|s| s.delta.is_loaded())
    }

    /// Whether no change can be made without a leaf: what is replaced of a page can be kept by a newer snapshot than the one
    /// that it is for, even if that is being deleted, but for the newest.
    pub(in crate::store) fn is_indispensable(&self, leaf: LeafId) -> bool {
        leaf.map == MapId::Committed || self.snapshots.all().last().is_some_and(|s| s.map_id() == leaf.map)
    }

    /// Whether a record cannot be applied without a leaf that [`Maps::leaves_missing`] named. It can where that only might
    /// have the place from which the cleaner copied a page.
    pub(in crate::store) fn needs(&self, record: &Record, leaf: LeafId) -> bool {
        let is_change = |entry: &&RecordEntry| !matches!(entry, RecordEntry::Relocate { .. });
        let changes = || record.entries.iter().filter(is_change).cloned().collect();
        self.is_indispensable(leaf)
            && self.leaves_missing(&Record { entries: changes(), ..record.clone() }).contains(&leaf)
    }

    /// Adds the leaves that a commit of the open epoch needs and that are not loaded.
    pub(in crate::store) fn missing_for_commit(&self, out: &mut Vec<LeafId>) {
        if self.is_loaded() {
            return;
        }
        for (first, count) in self.overlay.discards() {
            self.missing(first, count, out);
        }
        for page in self.overlay.pages() {
            self.missing(page, 1, out);
        }
    }

    /// Adds the leaves that a change of the committed map needs and that are not loaded.
    pub(in crate::store) fn missing(&self, first: u64, count: u64, out: &mut Vec<LeafId>) {
        let mut keys = Vec::new();
        self.base.missing(first, count, &mut keys);
        out.extend(keys.into_iter().map(LeafId::committed));
        self.snapshots.missing(first, count, out);
    }

    /// The page of the committed map is `old` no longer; whoever needs it gets it.
    pub(in crate::store) fn replaced(&mut self, page: u64, old: Option<Mapping>) {
        if let Some(dead) = self.snapshots.replaced(page, old) {
            self.segments.drop_base(dead);
        }
    }

    /// Compare-and-swap on the old place and the crc, in all layers. Only one of them can refer to it, but for a page that was
    /// cloned: it may have got back what it, or a state of it that is kept, has.
    pub(in crate::store) fn relocate(&mut self, page: u64, old: Loc, new: Mapping) {
        let shared = self.segments.referrers.covers(old.segment, page);
        let in_overlay = self.overlay.replace(page, old, new);
        if in_overlay {
            self.segments.add_open(new.loc);
            self.segments.drop_open(old);
        }
        let mut kept = 0;
        let mut found = in_overlay;
        if !found || shared {
            found = self.base.replace(page, old, new);
            kept += usize::from(found);
        }
        if !found || shared {
            kept += self.snapshots.replace(page, old, new);
        }
        for _ in 0..kept {
            self.segments.add_base(new.loc);
            self.segments.drop_base(old);
        }
        // The next cleaner is to find both again.
        if kept + usize::from(in_overlay) > 1 {
            self.segments.referrers.add(new.loc.segment, page);
        }
    }

    /// Adds the leaves of all layers that cover a range and are not loaded; the open epoch's always are.
    pub(in crate::store) fn missing_anywhere(&self, first: u64, count: u64, out: &mut Vec<LeafId>) {
        let deltas = self.snapshots.all().iter().map(|s| (s.map_id(), &s.delta));
        let mut keys = Vec::new();
        for (map, layer) in [(MapId::Committed, &self.base)].into_iter().chain(deltas) {
            layer.missing(first, count, &mut keys);
            out.extend(keys.drain(..).map(|key| LeafId { map, key }));
        }
    }

    /// What a page is mapped to, by whichever layer has it at this place; `Err` names a leaf to load first.
    pub fn mapped_there(&self, page: u64, loc: Loc) -> Result<Option<Mapping>, LeafId> {
        self.find(page, |m| m.loc == loc)
    }

    fn find(&self, page: u64, is: impl Fn(Mapping) -> bool) -> Result<Option<Mapping>, LeafId> {
        if let Some(Some(m)) = self.overlay.lookup(page)
            && is(m)
        {
            return Ok(Some(m));
        }
        match self.base.lookup(page) {
            Lookup::Mapped(m) if is(m) => return Ok(Some(m)),
            Lookup::Leaf(key) if self.damage(LeafId::committed(key)).is_none() => {
                return Err(LeafId::committed(key));
            }
            Lookup::Mapped(_) | Lookup::Unmapped | Lookup::Leaf(_) => {}
        }
        for snapshot in self.snapshots.all().iter().rev() {
            match snapshot.delta.lookup(page) {
                Lookup::Mapped(m) if is(m) => return Ok(Some(m)),
                Lookup::Leaf(key) => {
                    let leaf = LeafId { map: snapshot.map_id(), key };
                    if self.damage(leaf).is_none() {
                        return Err(leaf);
                    }
                }
                Lookup::Mapped(_) | Lookup::Unmapped => {}
            }
        }
        Ok(None)
    }

    /// Whether a write of a page takes room for good: nothing stands there, or what does is kept by a snapshot. `Err` names
    /// a leaf to load first.
    pub fn takes_room(&self, page: u64) -> Result<bool, LeafId> {
        match self.overlay.lookup(page) {
            Some(mapping) => return Ok(mapping.is_none()),
            None => match self.base.lookup(page) {
                Lookup::Unmapped => return Ok(true),
                Lookup::Mapped(_) => {}
                Lookup::Leaf(key) => return Err(LeafId::committed(key)),
            },
        }
        self.snapshots.would_keep(page)
    }

    /// Keeps every leaf in memory until released: many are needed at once.
    pub fn hold(&mut self, held: bool) {
        self.base.hold(held);
        self.snapshots.hold(held);
    }
}
