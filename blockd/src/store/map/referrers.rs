//! Who may stand in a segment besides the pages that its records name: those that were cloned from it.
//!
//! The records of a segment tell the cleaner which pages may be alive there. A clone stands in another segment, so what it
//! maps is noted here: segment -> units of device pages. It is a hint, to be checked against the maps: pages of the unit may have
//! been overwritten since. But each cloned page is covered as long as any map has it at a place of the segment, since pages
//! move between maps and stay in their unit, and since a segment's units are forgotten only when it is used anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::format::checkpoint::Referrer;

/// Entries for each segment of the store, on the average; what is above is not cloned, but copied.
const PER_SEGMENT_MAX: usize = 2;
/// Entries at least, so that they fill a page of a checkpoint,
const ENTRIES_MIN: usize = 256;
/// and at most (1 MiB of each checkpoint).
const ENTRIES_MAX: usize = 1 << 16;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Referrers {
    units: BTreeMap<u32, BTreeSet<u64>>,
    count: usize,
    /// The one that was looked at last, whether it still is one.
    looked: Option<Referrer>,
}

impl Referrers {
    /// As a checkpoint has them.
    pub fn from_table(table: &[Referrer]) -> Self {
        let mut referrers = Referrers::default();
        table.iter().for_each(|referrer| referrers.insert(*referrer));
        referrers
    }

    /// For a checkpoint, in order.
    pub fn table(&self) -> impl Iterator<Item = Referrer> {
        self.units
            .iter()
            .flat_map(|(&segment, units)| units.iter().map(move |&unit| Referrer { segment, unit }))
    }

    fn insert(&mut self, Referrer { segment, unit }: Referrer) {
        self.count += usize::from(self.units.entry(segment).or_default().insert(unit));
    }

    /// A page stands in a segment from now on, though no record there says so.
    pub fn add(&mut self, segment: u32, page: u64) {
        self.insert(Referrer::new(segment, page));
    }

    /// Whether [`Referrers::add`] would change nothing.
    pub fn covers(&self, segment: u32, page: u64) -> bool {
        let referrer = Referrer::new(segment, page);
        self.units.get(&segment).is_some_and(|units| units.contains(&referrer.unit))
    }

    /// Whether a segment has any.
    pub fn has_units(&self, segment: u32) -> bool {
        self.units.contains_key(&segment)
    }

    /// Units with pages that may stand in a segment.
    pub fn units(&self, segment: u32) -> Vec<u64> {
        self.units.get(&segment).into_iter().flatten().copied().collect()
    }

    /// The segment is used anew: nothing that was cloned from it stands there.
    pub fn forget_segment(&mut self, segment: u32) {
        self.count -= self.units.remove(&segment).map_or(0, |units| units.len());
    }

    /// The entry to be looked at next, whether it is needed: round about.
    pub fn next_to_look_at(&self) -> Option<Referrer> {
        let first =
            |(&segment, units): (&u32, &BTreeSet<u64>)| units.first().map(|&unit| Referrer { segment, unit });
        let behind = |last: Referrer| {
            let rest = self.units.get(&last.segment).and_then(|units| units.range(last.unit + 1..).next());
            let here = rest.map(|&unit| Referrer { segment: last.segment, unit });
            here.or_else(|| self.units.range(last.segment.saturating_add(1)..).next().and_then(first))
        };
        self.looked.and_then(behind).or_else(|| self.units.first_key_value().and_then(first))
    }

    /// An entry was looked at: is a page of the unit in the segment? Else it is forgotten.
    pub fn looked_at(&mut self, referrer: Referrer, is_needed: bool) {
        self.looked = Some(referrer);
        if !is_needed && let Some(units) = self.units.get_mut(&referrer.segment) {
            self.count -= usize::from(units.remove(&referrer.unit));
            if units.is_empty() {
                self.units.remove(&referrer.segment);
            }
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Entries that a store of so many segments may have.
    pub fn max(segments: usize) -> usize {
        (segments * PER_SEGMENT_MAX).clamp(ENTRIES_MIN, ENTRIES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use layout::addr::MAP_UNIT_PAGES;

    use super::*;

    #[test]
    fn entries_are_counted_looked_at_in_turn_and_forgotten() {
        let mut referrers = Referrers::default();
        for (segment, page) in [(7, 5), (7, 6), (7, MAP_UNIT_PAGES), (9, 0), (2, 1 << 40)] {
            referrers.add(segment, page);
        }
        assert_eq!(referrers.len(), 4, "two pages of one unit are one");
        assert!(
            referrers.covers(7, 100) && !referrers.covers(7, 2 * MAP_UNIT_PAGES) && !referrers.covers(8, 5)
        );
        assert_eq!(referrers.units(7), [0, 1]);
        let table: Vec<Referrer> = referrers.table().collect();
        assert!(table.is_sorted());
        assert_eq!(Referrers::from_table(&table).table().collect::<Vec<_>>(), table);
        for expected in table.iter().chain(&table) {
            let next = referrers.next_to_look_at().expect("there are some");
            assert_eq!(next, *expected);
            referrers.looked_at(next, true);
        }
        referrers.looked_at(Referrer { segment: 9, unit: 0 }, false);
        referrers.looked_at(Referrer { segment: 9, unit: 0 }, false);
        referrers.forget_segment(7);
        assert_eq!(referrers.table().collect::<Vec<_>>(), table[..1]);
        assert_eq!(referrers.len(), 1);
    }
}
