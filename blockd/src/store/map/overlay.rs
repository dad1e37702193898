//! The open epoch: pages written and ranges discarded since the last commit.

use std::collections::BTreeMap;

use layout::addr::MAP_UNIT_PAGES;

use super::Lookup;
use super::base::BaseMap;
use crate::store::format::leaf::LeafEntry;
use crate::store::format::{Loc, Mapping};

/// Changes since the last commit. A written page wins over a discard of it: discards drop the
/// written pages they cover when they arrive.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Written pages. All leaves are loaded: none is ever evicted.
    pub(in crate::store) map: BaseMap,
    /// First page -> end, neither overlapping nor touching.
    discards: BTreeMap<u64, u64>,
}

impl Overlay {
    /// `None`: not touched in this epoch; `Some(None)`: discarded.
    pub fn lookup(&self, page: u64) -> Option<Option<Mapping>> {
        if let Lookup::Mapped(mapping) = self.map.lookup(page) {
            return Some(Some(mapping));
        }
        self.discards.range(..=page).next_back().filter(|&(_, &end)| page < end).map(|_| None)
    }

    /// Maps a page; gives what this epoch had mapped it to.
    pub fn set(&mut self, page: u64, mapping: Mapping) -> Option<Mapping> {
        self.map.set(page, mapping)
    }

    /// Replaces a page's place if it is still `old`, with the same content (the place may have been used
    /// again meanwhile, for this very page); tells whether it did.
    pub fn replace(&mut self, page: u64, old: Loc, new: Mapping) -> bool {
        self.map.replace(page, old, new)
    }

    /// Unmaps a range, telling of each page that this epoch had written.
    pub fn discard(&mut self, first: u64, count: u64, mut dropped: impl FnMut(Loc)) {
        self.map.remove(first, count, |_, mapping| dropped(mapping.loc));
        self.add_discard(first, first.saturating_add(count));
    }

    fn add_discard(&mut self, mut first: u64, mut end: u64) {
        if let Some((&f, &e)) = self.discards.range(..=first).next_back()
            && e >= first
        {
            first = f;
            end = end.max(e);
        }
        while let Some((&f, &e)) = self.discards.range(first..=end).next() {
            self.discards.remove(&f);
            end = end.max(e);
        }
        self.discards.insert(first, end);
    }

    /// Discarded ranges: first page, count; in order, apart from one another.
    pub fn discards(&self) -> impl Iterator<Item = (u64, u64)> {
        self.discards.iter().map(|(&first, &end)| (first, end - first))
    }

    /// Discarded ranges that touch a range: first page, count.
    pub fn discards_in(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let from = self.discards.range(..=start).next_back().map_or(start, |(&first, _)| first);
        self.discards
            .range(from..end.max(from))
            .map(|(&first, &end)| (first, end - first))
            .filter(move |(first, count)| first + count > start)
    }

    /// Number of discarded ranges.
    pub fn discard_count(&self) -> usize {
        self.discards.len()
    }

    /// Written pages and their places, in order.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, Mapping)> {
        self.map.mappings()
    }

    /// Written pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.mappings().map(|(page, _)| page)
    }

    /// Written pages of one unit as leaf entries, in order.
    pub fn unit_entries(&self, unit: u64) -> impl Iterator<Item = LeafEntry> {
        self.map.unit_entries(unit * MAP_UNIT_PAGES)
    }

    /// Units within a range of units that may have written pages.
    pub fn units_in(&self, units: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
        let first = units.start.saturating_mul(MAP_UNIT_PAGES);
        self.map.units_between(first, units.end.saturating_mul(MAP_UNIT_PAGES))
    }

    /// Count of written pages.
    pub fn page_count(&self) -> u64 {
        self.map.page_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u16) -> Mapping {
        Mapping { loc: Loc { segment: 1, offset }, crc: 0 }
    }

    #[test]
    fn discards_merge_and_later_writes_win() {
        let mut overlay = Overlay::default();
        overlay.set(10, at(1));
        let mut dropped = Vec::new();
        overlay.discard(8, 4, |loc| dropped.push(loc.offset));
        overlay.discard(14, 2, |_| {});
        overlay.discard(12, 2, |_| {});
        assert_eq!(dropped, [1]);
        assert_eq!(overlay.discards().collect::<Vec<_>>(), [(8, 8)]);
        overlay.set(9, at(2));
        assert_eq!(overlay.lookup(9), Some(Some(at(2))));
        assert_eq!(overlay.lookup(10), Some(None));
        assert_eq!(overlay.lookup(7), None);
        assert_eq!(overlay.lookup(16), None);
        assert_eq!(overlay.page_count(), 1);
    }

    #[test]
    fn a_discard_over_many_units_drops_just_what_it_covers() {
        let mut overlay = Overlay::default();
        let pages = [5, MAP_UNIT_PAGES - 1, MAP_UNIT_PAGES, 3 * MAP_UNIT_PAGES + 1, 3 * MAP_UNIT_PAGES + 2];
        for (i, &page) in (0..).zip(&pages) {
            overlay.set(page, at(i));
        }
        overlay.discard(MAP_UNIT_PAGES - 1, 2 * MAP_UNIT_PAGES + 3, |_| {});
        assert_eq!(overlay.pages().collect::<Vec<_>>(), [5, 3 * MAP_UNIT_PAGES + 2]);
        let touching = overlay.discards_in(2 * MAP_UNIT_PAGES, 2 * MAP_UNIT_PAGES + 1).count();
        assert_eq!(touching, 1);
        assert_eq!(overlay.discards_in(0, MAP_UNIT_PAGES - 1).count(), 0);
    }

    #[test]
    fn relocation_is_a_compare_and_swap() {
        let mut overlay = Overlay::default();
        overlay.set(10, at(1));
        assert!(!overlay.replace(10, at(2).loc, at(3)));
        assert!(overlay.replace(10, at(1).loc, at(3)));
        assert!(!overlay.replace(11, at(1).loc, at(3)));
        let other = Mapping { crc: 1, ..at(4) };
        assert!(!overlay.replace(10, at(3).loc, other), "same place, other content");
        assert_eq!(overlay.lookup(10), Some(Some(at(3))));
    }
}
