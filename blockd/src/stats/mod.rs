//! Counters: what happened since the start, cheap enough for the hot path, read by anyone at any time.
//!
//! [`histogram`]: latencies in powers of two. [`requests`]: what clients asked of a volume. [`store`]: what the store
//! did for it. All are relaxed atomics: each number is right, two read together may differ by what is under way.

pub mod histogram;
pub mod requests;
pub mod store;

use std::sync::atomic::{AtomicU64, Ordering};

pub use histogram::{Histogram, HistogramStats};
pub use requests::{Kind, RequestCounters, RequestStats};
pub use store::{StoreCounters, StoreStats};

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// As of now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
