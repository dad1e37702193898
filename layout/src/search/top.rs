//! The k nearest rows seen so far, in the caller's memory.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::inode::Ino;

/// A row found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Hit {
    /// The distance; smaller is nearer.
    pub distance: f64,
    /// The row's id.
    pub row: u64,
    /// The file.
    pub ino: Ino,
    /// The file's generation.
    pub generation: u32,
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// The user's tag.
    pub tag: u64,
    /// The file changed after the row was put.
    pub stale: bool,
}

impl Hit {
    /// A place for a hit.
    pub const EMPTY: Hit =
        Hit { distance: 0.0, row: 0, ino: Ino(0), generation: 0, offset: 0, length: 0, tag: 0, stale: false };

    /// Hits are ordered by distance, equal ones by row id.
    fn rank(&self) -> (u64, u64) {
        (order(self.distance), self.row)
    }
}

/// A number that is ordered as the distances are: -0 as 0, NaN of either sign outermost.
pub fn order(distance: f64) -> u64 {
    let bits = (distance + 0.0).to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}

/// An upper bound of the k-th distance, shared by the threads of one search.
#[derive(Debug)]
pub struct Limit(AtomicU64);

impl Limit {
    /// No bound yet.
    pub const fn new() -> Self {
        Limit(AtomicU64::new(u64::MAX))
    }

    /// Whether a row at this distance, or further, cannot be among the k nearest.
    pub fn excludes(&self, distance: f64) -> bool {
        order(distance) > self.0.load(Ordering::Relaxed)
    }

    fn lower(&self, distance: f64) {
        self.0.fetch_min(order(distance), Ordering::Relaxed);
    }
}

impl Default for Limit {
    fn default() -> Self {
        Limit::new()
    }
}

/// A bounded max-heap: the furthest of the kept rows is at the top.
#[derive(Debug)]
pub struct TopK<'a> {
    heap: &'a mut [Hit],
    len: usize,
}

impl<'a> TopK<'a> {
    /// Keeps as many rows as `room` holds.
    pub fn new(room: &'a mut [Hit]) -> Self {
        TopK { heap: room, len: 0 }
    }

    /// Whether a row of this distance and id would be kept.
    pub fn wants(&self, distance: f64, row: u64) -> bool {
        if self.len < self.heap.len() {
            return true;
        }
        self.heap.first().is_some_and(|worst| (order(distance), row) < worst.rank())
    }

    /// Keeps the row if it is among the k nearest so far, and lowers the limit once k are kept.
    pub fn push(&mut self, hit: Hit, limit: &Limit) {
        if !self.wants(hit.distance, hit.row) {
            return;
        }
        if self.len < self.heap.len() {
            if let Some(slot) = self.heap.get_mut(self.len) {
                *slot = hit;
                self.len += 1;
                self.sift_up(self.len - 1);
            }
        } else if let Some(worst) = self.heap.first_mut() {
            *worst = hit;
            self.sift_down();
        }
        if let (true, Some(worst)) = (self.len == self.heap.len(), self.heap.first()) {
            limit.lower(worst.distance);
        }
    }

    /// The kept rows, nearest first, equal distances by row id.
    pub fn into_sorted(self) -> &'a mut [Hit] {
        let (kept, _) = self.heap.split_at_mut(self.len);
        kept.sort_unstable_by_key(Hit::rank);
        kept
    }

    fn rank_at(&self, at: usize) -> Option<(u64, u64)> {
        (at < self.len).then(|| self.heap.get(at).map(Hit::rank)).flatten()
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.rank_at(parent) >= self.rank_at(at) {
                return;
            }
            self.heap.swap(parent, at);
            at = parent;
        }
    }

    fn sift_down(&mut self) {
        let mut at = 0;
        loop {
            // None (past the end) is smaller than any rank.
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let child = if self.rank_at(right) > self.rank_at(left) { right } else { left };
            if self.rank_at(child) <= self.rank_at(at) {
                return;
            }
            self.heap.swap(child, at);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    extern crate std;
    use std::vec;
    use std::vec::Vec;

    fn hit(distance: f64, row: u64) -> Hit {
        Hit { distance, row, ..Hit::EMPTY }
    }

    #[test]
    fn order_is_that_of_the_distances() {
        let ascending = [f64::NEG_INFINITY, -1.5, -1e-300, 0.0, 1e-300, 1.0, f64::MAX, f64::INFINITY];
        for pair in ascending.windows(2) {
            assert!(order(pair[0]) < order(pair[1]), "{pair:?}");
        }
        assert_eq!(order(-0.0), order(0.0));
        assert!(!Limit::new().excludes(f64::INFINITY));
    }

    proptest! {
        #[test]
        fn keeps_the_k_nearest_in_order(
            distances in proptest::collection::vec(-3i8..3, 0..200),
            k in 1usize..50,
        ) {
            // Few different distances: ties are the rule here.
            let all: Vec<Hit> =
                distances.iter().enumerate().map(|(row, &d)| hit(f64::from(d), row as u64)).collect();
            let limit = Limit::new();
            let mut room = vec![Hit::EMPTY; k];
            let mut top = TopK::new(&mut room);
            // Any order of arrival gives the same answer.
            for hit in all.iter().rev().step_by(2).chain(all.iter().rev().skip(1).step_by(2)) {
                top.push(*hit, &limit);
            }
            let mut expected = all.clone();
            expected.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.row.cmp(&b.row)));
            expected.truncate(k);
            prop_assert_eq!(&*top.into_sorted(), &expected[..]);
            if let (true, Some(last)) = (all.len() >= k, expected.last()) {
                prop_assert!(!limit.excludes(last.distance));
                prop_assert!(limit.excludes(last.distance + 0.5));
            }
        }
    }
}
