//! Marks on numbers of a huge range; memory only where a mark stands.

use std::collections::BTreeMap;

/// Marks in one block (512 bytes).
const BLOCK: u64 = 4096;

/// A set of numbers, 1 bit each in blocks of 4096, blocks made on demand.
#[derive(Default, Debug)]
pub struct SparseBits {
    blocks: BTreeMap<u64, Box<[u64; (BLOCK / 64) as usize]>>,
    count: u64,
}

impl SparseBits {
    /// Marks a number; false if it was marked already.
    pub fn insert(&mut self, number: u64) -> bool {
        let words = self.blocks.entry(number / BLOCK).or_insert_with(|| Box::new([0; 64]));
        let word = &mut words[(number % BLOCK / 64) as usize];
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(new);
        new
    }

    /// Whether a number is marked.
    pub fn contains(&self, number: u64) -> bool {
        self.blocks
            .get(&(number / BLOCK))
            .is_some_and(|words| words[(number % BLOCK / 64) as usize] & (1 << (number % 64)) != 0)
    }

    /// Numbers marked.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_kept_and_counted_once() {
        let mut bits = SparseBits::default();
        for number in [0, 63, 64, 4095, 4096, u64::MAX] {
            assert!(!bits.contains(number));
            assert!(bits.insert(number));
            assert!(!bits.insert(number));
            assert!(bits.contains(number));
        }
        assert_eq!((bits.count(), bits.contains(1)), (6, false));
    }
}
