//! The committed map: leaves of at most [`LEAF_ENTRIES_MAX`] pages, each within one unit of 2^15
//! device pages (so that the allocation map's summaries are sums over leaves), paged in on demand.
//!
//! Life of a leaf: *on disk* (only its place is known) -> *loaded, clean* -> *dirty* -> written by
//! a checkpoint -> *loaded, clean*. A leaf that runs empty is dropped.

use std::collections::BTreeMap;

use layout::addr::MAP_UNIT_PAGES;

use super::Lookup;
use crate::store::format::checkpoint::LeafRef;
use crate::store::format::leaf::LeafEntry;
use crate::store::format::{Loc, Mapping};

/// A leaf that grows beyond this is split.
pub const LEAF_ENTRIES_MAX: usize = 512;

/// One leaf.
#[derive(Debug)]
struct Slot {
    /// Its page in the last checkpoint.
    disk: Option<Mapping>,
    /// Entries, known even when not loaded.
    count: u16,
    /// Sorted by `rel`.
    entries: Option<Vec<LeafEntry>>,
    dirty: bool,
}

/// The leaves by their key, the lowest device page each may map.
#[derive(Debug, Default)]
pub struct BaseMap {
    leaves: BTreeMap<u64, Slot>,
    dirty: usize,
}

fn unit_start(page: u64) -> u64 {
    page & !(MAP_UNIT_PAGES - 1)
}

fn rel(page: u64) -> u16 {
    (page & (MAP_UNIT_PAGES - 1)) as u16
}

impl BaseMap {
    /// From a checkpoint's directory; nothing is loaded.
    pub fn from_directory(leaves: &[LeafRef]) -> Self {
        let slot = |l: &LeafRef| Slot { disk: Some(l.page), count: l.entries, entries: None, dirty: false };
        BaseMap { leaves: leaves.iter().map(|l| (l.key, slot(l))).collect(), dirty: 0 }
    }

    /// Key of the leaf that covers a page, if there is one.
    fn key_of(&self, page: u64) -> Option<u64> {
        self.leaves.range(unit_start(page)..=page).next_back().map(|(&key, _)| key)
    }

    /// Looks a page up.
    pub fn lookup(&self, page: u64) -> Lookup {
        let Some((&key, slot)) = self.leaves.range(unit_start(page)..=page).next_back() else {
            return Lookup::Unmapped;
        };
        let Some(entries) = &slot.entries else { return Lookup::Leaf(key) };
        match entries.binary_search_by_key(&rel(page), |e| e.rel) {
            Ok(i) => Lookup::Mapped(Mapping { loc: entries[i].loc(), crc: entries[i].crc }),
            Err(_) => Lookup::Unmapped,
        }
    }

    /// Adds the keys of leaves that cover part of a range and are not loaded.
    pub fn missing(&self, first: u64, count: u64, keys: &mut Vec<u64>) {
        let start = self.key_of(first).unwrap_or(first);
        let end = first.saturating_add(count);
        keys.extend(
            self.leaves.range(start..end.max(start)).filter(|(_, s)| s.entries.is_none()).map(|(k, _)| *k),
        );
    }

    /// Where the leaf of `key` stands, if it is not loaded.
    pub fn unloaded(&self, key: u64) -> Option<Mapping> {
        self.leaves.get(&key).filter(|s| s.entries.is_none()).and_then(|s| s.disk)
    }

    /// Puts a leaf in that was read from `from`, unless things changed meanwhile.
    pub fn load(&mut self, key: u64, from: Mapping, entries: Vec<LeafEntry>) {
        if let Some(slot) = self.leaves.get_mut(&key)
            && slot.entries.is_none()
            && slot.disk == Some(from)
        {
            slot.entries = Some(entries);
        }
    }

    fn slot_mut(&mut self, key: u64) -> &mut Slot {
        let slot = self.leaves.entry(key).or_insert_with(|| Slot {
            disk: None,
            count: 0,
            entries: Some(Vec::new()),
            dirty: false,
        });
        if !slot.dirty {
            slot.dirty = true;
            self.dirty += 1;
        }
        slot
    }

    /// Maps a page; gives what it was mapped to.
    ///
    /// # Panics
    /// If its leaf is not loaded: callers load what [`BaseMap::missing`] names first.
    pub fn set(&mut self, page: u64, mapping: Mapping) -> Option<Mapping> {
        let key = self.key_of(page).unwrap_or(unit_start(page));
        let slot = self.slot_mut(key);
        let entries = loaded(&mut slot.entries);
        let new = LeafEntry {
            rel: rel(page),
            offset: mapping.loc.offset,
            segment: mapping.loc.segment,
            crc: mapping.crc,
        };
        let old = match entries.binary_search_by_key(&new.rel, |e| e.rel) {
            Ok(i) => {
                let old = std::mem::replace(&mut entries[i], new);
                Some(Mapping { loc: old.loc(), crc: old.crc })
            }
            Err(i) => {
                entries.insert(i, new);
                None
            }
        };
        slot.count = entries.len() as u16;
        if entries.len() > LEAF_ENTRIES_MAX {
            self.split(key);
        }
        old
    }

    /// Replaces a page's place if it is still `old`, with the same crc (the segment may have been used
    /// again meanwhile, for other bytes of the same page); tells whether it did.
    ///
    /// # Panics
    /// If its leaf is not loaded.
    pub fn replace(&mut self, page: u64, old: Loc, new: Mapping) -> bool {
        match self.lookup(page) {
            Lookup::Mapped(found) if found.loc == old && found.crc == new.crc => {
                self.set(page, new);
                true
            }
            Lookup::Mapped(_) | Lookup::Unmapped => false,
            Lookup::Leaf(key) => panic!("leaf {key:#x} is loaded before a relocation"),
        }
    }

    /// Unmaps a range, telling of each page that was mapped.
    ///
    /// # Panics
    /// If a leaf of the range is not loaded.
    pub fn remove(&mut self, first: u64, count: u64, mut dropped: impl FnMut(Loc)) {
        let end = first.saturating_add(count);
        let start = self.key_of(first).unwrap_or(first);
        let keys: Vec<u64> = self.leaves.range(start..end.max(start)).map(|(&k, _)| k).collect();
        for key in keys {
            let Some(slot) = self.leaves.get_mut(&key) else { continue };
            let entries = loaded(&mut slot.entries);
            let base = unit_start(key);
            let from = entries.partition_point(|e| base + u64::from(e.rel) < first);
            let to = entries.partition_point(|e| base + u64::from(e.rel) < end);
            if from == to {
                continue;
            }
            entries.drain(from..to).for_each(|e| dropped(e.loc()));
            slot.count = entries.len() as u16;
            if entries.is_empty() {
                if slot.dirty {
                    self.dirty -= 1;
                }
                self.leaves.remove(&key);
            } else {
                self.slot_mut(key);
            }
        }
    }

    /// Halves a leaf; both halves are dirty. Gives the new one's key.
    pub fn split(&mut self, key: u64) -> u64 {
        let slot = self.slot_mut(key);
        let entries = loaded(&mut slot.entries);
        let upper = entries.split_off(entries.len() / 2);
        slot.count = entries.len() as u16;
        let new_key = unit_start(key) + upper.first().map_or(0, |e| u64::from(e.rel));
        assert!(new_key > key, "a leaf that is split has two entries");
        let slot = self.slot_mut(new_key);
        slot.count = upper.len() as u16;
        slot.entries = Some(upper);
        new_key
    }

    /// Leaves changed since the last checkpoint.
    pub fn dirty_count(&self) -> usize {
        self.dirty
    }

    /// Their keys.
    pub fn dirty_keys(&self) -> Vec<u64> {
        self.leaves.iter().filter(|(_, s)| s.dirty).map(|(&k, _)| k).collect()
    }

    /// The entries of a loaded leaf.
    pub fn entries(&self, key: u64) -> Option<&[LeafEntry]> {
        self.leaves.get(&key)?.entries.as_deref()
    }

    /// The entries of a unit whose leaves are loaded.
    pub fn unit_entries(&self, unit_first_page: u64) -> impl Iterator<Item = &LeafEntry> {
        self.leaves
            .range(unit_first_page..unit_first_page.saturating_add(MAP_UNIT_PAGES))
            .flat_map(|(_, slot)| slot.entries.iter().flatten())
    }

    /// Every leaf: key, entries, place on disk.
    pub fn leaves(&self) -> impl Iterator<Item = (u64, u16, Option<Mapping>)> {
        self.leaves.iter().map(|(&key, slot)| (key, slot.count, slot.disk))
    }

    /// Number of leaves.
    pub fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    /// Mapped pages of whole units: a sum over leaf counts.
    pub fn count_units(&self, first_unit_page: u64, end: u64) -> u64 {
        self.leaves.range(first_unit_page..end).map(|(_, s)| u64::from(s.count)).sum()
    }

    /// Units with leaves that lie in a range of pages at least in part.
    pub fn units_between(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        self.leaves.range(unit_start(start)..end.max(unit_start(start))).map(|(&key, _)| key / MAP_UNIT_PAGES)
    }

    /// Marks the leaves that stand in one of the segments as to be written anew (their segment is
    /// to be emptied). Unloaded ones are named in `missing` instead.
    pub fn dirty_where(&mut self, segment: u32, missing: &mut Vec<u64>) {
        for (&key, slot) in &mut self.leaves {
            if slot.disk.is_none_or(|d| d.loc.segment != segment) || slot.dirty {
                continue;
            }
            if slot.entries.is_none() {
                missing.push(key);
                continue;
            }
            slot.dirty = true;
            self.dirty += 1;
        }
    }

    /// A checkpoint wrote the leaf there.
    pub fn written(&mut self, key: u64, page: Mapping) {
        if let Some(slot) = self.leaves.get_mut(&key) {
            slot.disk = Some(page);
            if slot.dirty {
                slot.dirty = false;
                self.dirty -= 1;
            }
        }
    }

    /// Forgets the entries of clean leaves until at most `keep` leaves are loaded.
    pub fn evict(&mut self, keep: usize) {
        let loaded = self.leaves.values().filter(|s| s.entries.is_some()).count();
        let victims =
            self.leaves.values_mut().filter(|s| s.entries.is_some() && !s.dirty && s.disk.is_some());
        for slot in victims.take(loaded.saturating_sub(keep)) {
            slot.entries = None;
        }
    }
}

fn loaded(entries: &mut Option<Vec<LeafEntry>>) -> &mut Vec<LeafEntry> {
    match entries {
        Some(entries) => entries,
        None => panic!("a leaf is loaded before it is changed"),
    }
}
