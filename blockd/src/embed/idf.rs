//! How rare each feature is: the table that makes words like "the" weigh nothing.
//!
//! [`Trainer`] counts, for each of 2^20 hashed buckets, the passages in which a feature of the bucket occurs; [`IdfTable`] keeps
//! `log2((passages + 1) / (count + 1))` in steps of 1/16, one byte a bucket. Logarithms are
//! computed in integers, so that the table is the same on every machine. A feature never seen in training has the greatest weight.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Passage;
use super::features::count_features;

const BUCKET_BITS: u32 = 20;
/// Buckets of a table, one byte each.
pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;
/// Steps of a weight in one doubling.
const STEPS_PER_OCTAVE: u32 = 16;

/// Counts passages by feature. Threads may share one.
pub struct Trainer {
    counts: Vec<AtomicU32>,
    passages: AtomicU64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self::new()
    }
}

impl Trainer {
    /// A trainer that has seen nothing.
    pub fn new() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(), passages: AtomicU64::new(0) }
    }

    /// Takes one passage into account.
    pub fn add(&self, passage: Passage<'_>) {
        let mut buckets: Vec<usize> = [passage.title, passage.text]
            .iter()
            .flat_map(|text| count_features(text))
            .map(|counted| bucket(counted.feature.hash()))
            .collect();
        buckets.sort_unstable();
        buckets.dedup();
        for index in buckets {
            self.counts[index].fetch_add(1, Ordering::Relaxed);
        }
        self.passages.fetch_add(1, Ordering::Relaxed);
    }

    /// Passages seen.
    pub fn passages(&self) -> u64 {
        self.passages.load(Ordering::Relaxed)
    }

    /// The table of what was seen.
    pub fn finish(&self) -> IdfTable {
        let passages = self.passages();
        let steps = self
            .counts
            .iter()
            .map(|count| steps(passages, u64::from(count.load(Ordering::Relaxed))))
            .collect();
        IdfTable { passages, steps }
    }
}

/// Weights by hashed feature.
#[derive(Clone, PartialEq, Eq)]
pub struct IdfTable {
    passages: u64,
    steps: Vec<u8>,
}

impl IdfTable {
    /// From the bytes that [`IdfTable::bytes`] gave; `None` if their number is wrong.
    pub fn from_bytes(passages: u64, bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() == BUCKETS).then_some(Self { passages, steps: bytes })
    }

    /// One byte a bucket.
    pub fn bytes(&self) -> &[u8] {
        &self.steps
    }

    /// Passages the table was trained on.
    pub fn passages(&self) -> u64 {
        self.passages
    }

    /// The weight of a feature, in units of `log2`. What is in every passage keeps one step, so that a text of nothing
    /// else has a vector too.
    pub(super) fn weight(&self, hash: u64) -> f32 {
        f32::from(self.steps[bucket(hash)].max(1)) / STEPS_PER_OCTAVE as f32
    }
}

fn bucket(hash: u64) -> usize {
    (hash >> (64 - BUCKET_BITS)) as usize
}

fn steps(passages: u64, count: u64) -> u8 {
    let rare = log2_sixteenths(passages + 1).saturating_sub(log2_sixteenths(count + 1));
    u8::try_from(rare).unwrap_or(u8::MAX)
}

/// `floor(16 * log2(x))` in integers: the mantissa is squared four times, each overflow of 2 being a bit. `x` is at least 1.
fn log2_sixteenths(x: u64) -> u32 {
    let whole = x.max(1).ilog2();
    // The mantissa in [1, 2) as 1.63 fixed point.
    let mut mantissa = x.max(1) << (63 - whole);
    let mut result = whole;
    for _ in 0..STEPS_PER_OCTAVE.ilog2() {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        result <<= 1;
        if square >> 64 != 0 {
            result |= 1;
            mantissa = (square >> 1) as u64;
        } else {
            mantissa = square as u64;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_logarithm_equals_the_real_one() {
        for x in (1..5000).chain([1 << 20, (1 << 20) + 12345, 987_654_321, u64::MAX / 3]) {
            let real = (x as f64).log2() * 16.0;
            assert!(
                (f64::from(log2_sixteenths(x)) - real.floor()).abs()
                    <= f64::from(u8::from(real.fract() < 1e-9)),
                "{x}"
            );
        }
    }

    #[test]
    fn common_is_light_and_unseen_is_heaviest() {
        let trainer = Trainer::new();
        for text in ["the disk", "the tape", "the drum"] {
            trainer.add(Passage { title: "", text });
        }
        let table = trainer.finish();
        let weight = |word: &str| {
            let counted = count_features(word);
            counted
                .iter()
                .find(|c| c.feature.kind() == super::super::features::FeatureKind::Word)
                .map(|c| table.weight(c.feature.hash()))
        };
        assert_eq!(weight("the"), Some(1.0 / 16.0));
        assert_eq!(weight("disk"), Some(1.0));
        assert_eq!(weight("unseen"), Some(2.0));
        assert_eq!(table.passages(), 3);
    }

    #[test]
    fn a_table_of_another_size_is_refused() {
        assert!(IdfTable::from_bytes(1, vec![0; BUCKETS - 1]).is_none());
    }
}
