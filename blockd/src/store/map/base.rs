//! The committed map: leaves of at most [`LEAF_ENTRIES_MAX`] pages, each within one unit of 2^15
//! device pages (so that the allocation map's summaries are sums over leaves), paged in on demand.
//!
//! Life of a leaf: *on disk* (only its place is known) -> *loaded, clean* -> *dirty* -> written by
//! a checkpoint -> *loaded, clean*. A leaf that runs empty is dropped by the next checkpoint.

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
    /// Leaves with their entries in memory.
    loaded: usize,
    /// More than this are not kept, dirty ones apart; 0 = no limit.
    loaded_max: usize,
    /// While the log gathers the leaves of a record none may go.
    held: bool,
    /// Where the next eviction begins.
    evict_from: u64,
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
        BaseMap { leaves: leaves.iter().map(|l| (l.key, slot(l))).collect(), ..BaseMap::default() }
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
            self.loaded += 1;
            self.evict(Some(key));
        }
    }

    /// Limits the leaves kept in memory; 0 = no limit.
    pub fn set_loaded_max(&mut self, leaves: usize) {
        self.loaded_max = leaves;
    }

    /// Keeps every leaf in memory until released: the log needs many at once.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        self.evict(None);
    }

    /// Forgets the entries of clean leaves, in turn, when there are too many; never those of the leaf that was just asked
    /// for: where all others are dirty, whoever asked would ask for ever.
    fn evict(&mut self, wanted: Option<u64>) {
        if self.held || self.loaded_max == 0 || self.loaded <= self.loaded_max {
            return;
        }
        let keep = self.loaded_max - self.loaded_max / 8;
        let from = self.evict_from;
        for pass in [from..u64::MAX, 0..from] {
            for (&key, slot) in self.leaves.range_mut(pass) {
                if self.loaded <= keep {
                    self.evict_from = key;
                    return;
                }
                if slot.entries.is_some() && !slot.dirty && slot.disk.is_some() && Some(key) != wanted {
                    slot.entries = None;
                    self.loaded -= 1;
                }
            }
        }
        self.evict_from = 0;
    }

    fn slot_mut(&mut self, key: u64) -> &mut Slot {
        let slot = self.leaves.entry(key).or_insert_with(|| {
            self.loaded += 1;
            Slot { disk: None, count: 0, entries: Some(Vec::new()), dirty: false }
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

    /// Replaces a page's place if it is still `old`, with the same content (the place may have been used
    /// again meanwhile, for this very page); tells whether it did.
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
    pub fn remove(&mut self, first: u64, count: u64, mut dropped: impl FnMut(u64, Mapping)) {
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
            entries
                .drain(from..to)
                .for_each(|e| dropped(base + u64::from(e.rel), Mapping { loc: e.loc(), crc: e.crc }));
            slot.count = entries.len() as u16;
            // A leaf that ran empty stays until the next checkpoint: without it its pages would belong to the leaf
            // before, which the record being applied may not have loaded.
            self.slot_mut(key);
        }
    }

    /// Calls `f` with each page of a range and what it is mapped to; leaves that are not loaded are passed over.
    pub fn for_each_in(&self, first: u64, count: u64, mut f: impl FnMut(u64, Mapping)) {
        let end = first.saturating_add(count);
        let start = self.key_of(first).unwrap_or(first);
        for (&key, slot) in self.leaves.range(start..end.max(start)) {
            let base = unit_start(key);
            let entries = slot.entries.as_deref().unwrap_or_default();
            let from = entries.partition_point(|e| base + u64::from(e.rel) < first);
            for e in entries[from..].iter().take_while(|e| base + u64::from(e.rel) < end) {
                f(base + u64::from(e.rel), Mapping { loc: e.loc(), crc: e.crc });
            }
        }
    }

    /// Drops leaves without entries; a checkpoint begins with it.
    pub fn drop_empty(&mut self) {
        let empty = |s: &Slot| s.dirty && s.entries.as_ref().is_some_and(Vec::is_empty);
        let keys: Vec<u64> = self.leaves.iter().filter(|(_, s)| empty(s)).map(|(&key, _)| key).collect();
        for key in keys {
            self.leaves.remove(&key);
            self.dirty -= 1;
            self.loaded -= 1;
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

    /// As [`BaseMap::leaves`], those of this key and above.
    pub fn leaves_from(&self, key: u64) -> impl Iterator<Item = (u64, u16, Option<Mapping>)> {
        self.leaves.range(key..).map(|(&key, slot)| (key, slot.count, slot.disk))
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

    /// Keys of the leaves that stand in a segment and would stay there at the next checkpoint.
    pub fn clean_in(&self, segment: u32) -> Vec<u64> {
        let stays = |s: &Slot| !s.dirty && s.disk.is_some_and(|d| d.loc.segment == segment);
        self.leaves.iter().filter(|(_, s)| stays(s)).map(|(&key, _)| key).collect()
    }

    /// Has the next checkpoint write a leaf anew; false if it must be loaded first.
    pub fn make_dirty(&mut self, key: u64) -> bool {
        match self.leaves.get(&key) {
            Some(slot) if slot.entries.is_none() => false,
            Some(_) => {
                self.slot_mut(key);
                true
            }
            None => true,
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
}

fn loaded(entries: &mut Option<Vec<LeafEntry>>) -> &mut Vec<LeafEntry> {
    match entries {
        Some(entries) => entries,
        None => panic!("a leaf is loaded before it is changed"),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn at(i: u32) -> Mapping {
        Mapping { loc: Loc { segment: i, offset: (i % 60_000) as u16 }, crc: i }
    }

    #[test]
    fn a_map_agrees_with_a_plain_tree_under_random_changes() {
        let mut rng = StdRng::seed_from_u64(5);
        let (mut map, mut model) = (BaseMap::default(), BTreeMap::<u64, Mapping>::new());
        for i in 0..60_000u32 {
            // Dense in three units, so that leaves split; a few pages far away.
            let page = match rng.random_range(0..10) {
                0 => rng.random_range(0..1u64 << 50),
                _ => rng.random_range(0..3 * MAP_UNIT_PAGES / 16) * 5 + (1 << 40),
            };
            if rng.random_ratio(1, 500) {
                let count = rng.random_range(1..20_000);
                let mut dropped = 0;
                map.remove(page, count, |_, _| dropped += 1);
                assert_eq!(dropped, model.range(page..page + count).count());
                model.retain(|p, _| !(page..page + count).contains(p));
            } else {
                assert_eq!(map.set(page, at(i)), model.insert(page, at(i)));
            }
        }
        for (&page, &mapping) in &model {
            assert_eq!(map.lookup(page), Lookup::Mapped(mapping));
            if !model.contains_key(&(page + 1)) {
                assert_eq!(map.lookup(page + 1), Lookup::Unmapped);
            }
        }
        map.drop_empty();
        let total: u64 = map.leaves().map(|(_, count, _)| u64::from(count)).sum();
        assert_eq!(total, model.len() as u64);
        for (key, count, _) in map.leaves() {
            assert!(usize::from(count) <= LEAF_ENTRIES_MAX && count > 0);
            let entries = map.entries(key).expect("all is in memory");
            assert!(entries.windows(2).all(|w| w[0].rel < w[1].rel));
        }
        let unit = (1u64 << 40) / MAP_UNIT_PAGES * MAP_UNIT_PAGES;
        let counted = map.count_units(unit, unit + MAP_UNIT_PAGES);
        assert_eq!(counted, model.range(unit..unit + MAP_UNIT_PAGES).count() as u64);
    }

    #[test]
    fn unloaded_leaves_are_named_and_clean_ones_evicted() {
        let leaf = |key: u64| LeafRef { key: key * MAP_UNIT_PAGES, page: at(key as u32), entries: 1 };
        let mut map = BaseMap::from_directory(&(0..20).map(leaf).collect::<Vec<_>>());
        map.set_loaded_max(8);
        assert_eq!(map.lookup(5), Lookup::Leaf(0));
        let mut missing = Vec::new();
        map.missing(MAP_UNIT_PAGES + 7, MAP_UNIT_PAGES, &mut missing);
        assert_eq!(missing, [MAP_UNIT_PAGES, 2 * MAP_UNIT_PAGES]);
        let entry = LeafEntry { rel: 1, offset: 2, segment: 3, crc: 4 };
        map.hold(true);
        for key in 0..20 {
            map.load(key * MAP_UNIT_PAGES, at(key as u32), vec![entry]);
        }
        assert!(map.leaves().all(|(key, _, _)| map.entries(key).is_some()), "none goes while they are held");
        map.set(MAP_UNIT_PAGES * 19 + 5, at(1));
        map.hold(false);
        let loaded = map.leaves().filter(|(key, _, _)| map.entries(*key).is_some()).count();
        assert_eq!(loaded, 7);
        assert!(map.entries(MAP_UNIT_PAGES * 19).is_some(), "a dirty leaf stays");
        map.load(0, at(9), vec![entry]);
        assert_eq!(map.lookup(1), Lookup::Leaf(0), "a leaf read from an old place is not taken");
    }

    fn mapping(segment: u32) -> Mapping {
        Mapping { loc: Loc { segment, offset: 1 }, crc: segment }
    }

    #[test]
    fn a_leaf_emptied_and_filled_by_one_record_needs_no_other_leaf() {
        let leaf = |key, entries, segment| LeafRef { key, entries, page: mapping(segment) };
        let mut map = BaseMap::from_directory(&[leaf(0, 1, 7), leaf(100, 1, 8)]);
        let mut keys = Vec::new();
        map.missing(100, 1, &mut keys);
        assert_eq!(keys, [100]);
        map.load(100, mapping(8), vec![LeafEntry { rel: 100, offset: 2, segment: 3, crc: 4 }]);
        let mut dropped = 0;
        map.remove(100, 1, |_, _| dropped += 1);
        assert_eq!(dropped, 1);
        // The leaf of key 0 is not loaded: this used to panic.
        assert_eq!(map.set(120, mapping(9)), None);
        assert_eq!(map.lookup(120), Lookup::Mapped(mapping(9)));
        map.remove(120, 1, |_, _| dropped += 1);
        map.drop_empty();
        assert_eq!((map.leaf_count(), map.dirty_count(), dropped), (1, 0, 2));
    }
}
