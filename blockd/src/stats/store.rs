//! What the store did: the log, its checkpoints, the cleaner, the map in memory.

use std::sync::OnceLock;

use layout::addr::PAGE;
use serde::{Deserialize, Serialize};

use super::{Counter, Histogram, HistogramStats};
use crate::store::format::segment::Stream;

/// Counters of one store.
#[derive(Default, Debug)]
pub struct StoreCounters {
    /// Records written.
    pub records: Counter,
    /// Data pages that clients wrote, as logged.
    pub user_pages: Counter,
    /// Pages that the cleaner moved, as logged.
    pub moved_pages: Counter,
    /// Pages of headers in front of those.
    pub moved_header_pages: Counter,
    /// All bytes of records and segment headers.
    pub log_bytes: Counter,
    /// Bytes of checkpoints.
    pub checkpoint_bytes: Counter,
    /// Checkpoints made durable, and how long each took.
    pub checkpoints: Histogram,
    /// Checkpoints that found no room.
    pub checkpoints_without_room: Counter,
    /// Syncs of the backing that the log asked for.
    pub syncs: Counter,
    /// Bytes read from the backing for clients.
    pub read_bytes: Counter,
    /// Leaves of the map read from the backing since they were not in memory.
    pub leaf_loads: Counter,
    /// Pages or leaves that could not be read, or whose checksum was wrong.
    pub read_errors: Counter,
    /// Segments that the cleaner emptied.
    pub cleaned_segments: Counter,
    /// Writes refused for want of space.
    pub no_space: Counter,
    failure: OnceLock<String>,
}

impl StoreCounters {
    /// Counts a record of so many data pages, behind its header and perhaps the segment's.
    pub(crate) fn record(&self, stream: Stream, data_pages: u32, header_pages: usize) {
        let data_pages = u64::from(data_pages);
        self.records.inc();
        if stream == Stream::User {
            self.user_pages.add(data_pages);
        } else {
            self.moved_pages.add(data_pages);
            self.moved_header_pages.add(header_pages as u64);
        }
        self.log_bytes.add((data_pages + header_pages as u64) * PAGE as u64);
    }

    /// Notes why the store stopped writing; the first reason stays.
    pub(crate) fn failed(&self, why: &str) {
        // A second one follows from the first.
        let _ = self.failure.set(why.to_owned());
    }

    /// Why the store stopped writing, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// As of now.
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            records: self.records.get(),
            user_bytes: self.user_pages.get() * PAGE as u64,
            moved_bytes: self.moved_pages.get() * PAGE as u64,
            moved_header_bytes: self.moved_header_pages.get() * PAGE as u64,
            log_bytes: self.log_bytes.get(),
            checkpoint_bytes: self.checkpoint_bytes.get(),
            checkpoints: self.checkpoints.stats(),
            checkpoints_without_room: self.checkpoints_without_room.get(),
            syncs: self.syncs.get(),
            read_bytes: self.read_bytes.get(),
            leaf_loads: self.leaf_loads.get(),
            read_errors: self.read_errors.get(),
            cleaned_segments: self.cleaned_segments.get(),
            no_space: self.no_space.get(),
        }
    }
}

/// [`StoreCounters`] at a moment.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "each is the counter of the same name, pages as bytes")]
pub struct StoreStats {
    pub records: u64,
    pub user_bytes: u64,
    pub moved_bytes: u64,
    pub moved_header_bytes: u64,
    pub log_bytes: u64,
    pub checkpoint_bytes: u64,
    pub checkpoints: HistogramStats,
    pub checkpoints_without_room: u64,
    pub syncs: u64,
    pub read_bytes: u64,
    pub leaf_loads: u64,
    pub read_errors: u64,
    pub cleaned_segments: u64,
    pub no_space: u64,
}

impl StoreStats {
    /// All bytes written to the backing for each byte of a client's; `None` before the first.
    pub fn write_amplification(&self) -> Option<f64> {
        let written = self.log_bytes + self.checkpoint_bytes;
        (self.user_bytes > 0).then(|| written as f64 / self.user_bytes as f64)
    }
}
