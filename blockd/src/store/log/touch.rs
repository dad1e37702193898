//! Which pages the log is about to change.

use super::Log;
use super::job::Op;
use crate::store::format::record::Entry;

impl Log {
    /// Whether a change of a page was given to the log and is not in the map yet. (Copies of the cleaner change nothing.)
    pub fn changes(&self, page: u64) -> bool {
        let within = |first: u64, count: u64| first <= page && page - first < count;
        let op = |op: &Op| match op {
            Op::Write { first, pages, .. } => within(*first, *pages as u64),
            Op::Discard { first, count } | Op::Clone { to: first, count, .. } => within(*first, *count),
            Op::Relocate { .. } => false,
        };
        let entry = |entry: &Entry| match entry {
            Entry::Write { first, crcs } | Entry::Clone { first, crcs, .. } => {
                within(*first, crcs.len() as u64)
            }
            Entry::Discard { first, count } => within(*first, *count),
            Entry::Relocate { .. } => false,
        };
        self.in_flight.iter().flat_map(|f| &f.record.entries).any(entry)
            || self.user.iter().flat_map(|job| &job.ops).any(op)
    }
}
