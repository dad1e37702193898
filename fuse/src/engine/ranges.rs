//! A set of page numbers kept as disjoint ranges: the discards that the device does not know yet.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent ranges of page numbers.
#[derive(Default, Debug)]
pub struct RangeSet {
    /// First page -> one past the last.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `first..end`, merging with what touches it.
    pub fn insert(&mut self, mut first: u64, mut end: u64) {
        if first >= end {
            return;
        }
        if let Some((&start, &stop)) = self.ranges.range(..first).next_back()
            && stop >= first
        {
            first = start;
            end = end.max(stop);
        }
        while let Some((&start, &stop)) = self.ranges.range(first..=end).next() {
            self.ranges.remove(&start);
            end = end.max(stop);
        }
        self.ranges.insert(first, end);
    }

    /// Whether the page lies in a range.
    pub fn contains(&self, page: u64) -> bool {
        self.ranges.range(..=page).next_back().is_some_and(|(_, &end)| page < end)
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Forgets all ranges.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The ranges in order: first page, one past the last.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&first, &end)| (first, end))
    }

    /// The part of the ranges that lies in `first..end`, in order.
    pub fn overlaps(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let before = self.ranges.range(..first).next_back();
        before
            .into_iter()
            .chain(self.ranges.range(first..end.max(first)))
            .map(move |(&start, &stop)| (start.max(first), stop.min(end)))
            .filter(|(start, stop)| start < stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_merge() {
        let mut set = RangeSet::default();
        set.insert(10, 20);
        set.insert(30, 40);
        set.insert(50, 60);
        set.insert(20, 30);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(10, 40), (50, 60)]);
        set.insert(5, 100);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(5, 100)]);
        set.insert(7, 7);
        assert_eq!(set.iter().count(), 1);
    }

    #[test]
    fn membership_agrees_with_a_plain_set() {
        let mut set = RangeSet::default();
        let mut model = std::collections::BTreeSet::new();
        let mut x = 12345u64;
        for _ in 0..200 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let first = (x >> 33) % 500;
            let end = first + (x >> 50) % 12;
            set.insert(first, end);
            model.extend(first..end);
            for page in 0..520 {
                assert_eq!(set.contains(page), model.contains(&page), "page {page}");
            }
        }
        let inside: Vec<u64> = set.overlaps(100, 200).flat_map(|(a, b)| a..b).collect();
        assert_eq!(inside, model.range(100..200).copied().collect::<Vec<_>>());
    }
}
