//! Compaction: the cleaner empties all segments that have dead space now, rather than when space is needed.

use std::time::Duration;

use layout::addr::PAGE;
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::device::IoError;
use crate::store::Shared;
use crate::store::format::segment::Stream;
use crate::store::map::segments::State;
use crate::store::space::is_worth_tidying;

/// Time between two words of progress, at most.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// How far a compaction is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Progress {
    /// Bytes moved or dead meanwhile, of those that were alive in segments with dead space when it began.
    pub done_bytes: u64,
    /// All of them.
    pub total_bytes: u64,
}

/// What a compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Compacted {
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Segments emptied.
    pub cleaned_segments: u64,
    /// Segments that are free now and were not before.
    pub freed_segments: u32,
    /// Their bytes.
    pub freed_bytes: u64,
    /// It was stopped before its end.
    pub stopped: bool,
}

/// Pages alive in data segments that are worth cleaning, of those in use since before `use_seq`.
fn pages_to_move(store: &Shared, use_seq: u64) -> u64 {
    let maps = store.maps.read();
    let closed = maps.segments.all().iter().filter(|s| s.state == State::Closed && s.stream != Stream::Meta);
    let worth =
        closed.filter(|s| s.use_seq < use_seq && !s.damaged && is_worth_tidying(s.live(), store.geometry));
    worth.map(|s| u64::from(s.live())).sum()
}

impl Volume {
    /// Has the cleaner move what is alive in all segments with dead space, at its rate, beside all other work. What becomes dead
    /// meanwhile is left as it is. `progress` tells whether to go on.
    ///
    /// # Errors
    /// `ReadOnly`, `Invalid` if the volume was opened without a cleaner; what keeps a checkpoint from being written.
    pub fn compact(&self, mut progress: impl FnMut(Progress) -> bool) -> Result<Compacted, IoError> {
        let Some(writer) = &self.writer else { return Err(IoError::ReadOnly) };
        let Some(cleaner) = writer.cleaner() else {
            return Err(IoError::Invalid("this volume was opened without its cleaner".into()));
        };
        // Segments written since the last checkpoint could be emptied, but not used again.
        self.checkpoint()?;
        let store = &self.core.store;
        let (free, use_seq) = {
            let maps = store.maps.read();
            let last = maps.segments.all().iter().map(|s| s.use_seq).max().unwrap_or(0);
            (maps.segments.free_count(), last + 1)
        };
        let (moved, cleaned) = (store.counters.moved_pages.get(), store.counters.cleaned_segments.get());
        let total = pages_to_move(store, use_seq);
        let compacting = store.tuning.compact();
        let asked = cleaner.ask();
        let stopped = loop {
            let rests = cleaner.rests(asked, TELL_EVERY);
            let left = pages_to_move(store, use_seq);
            let done = total.saturating_sub(left);
            if !progress(Progress { done_bytes: done * PAGE as u64, total_bytes: total * PAGE as u64 }) {
                break true;
            }
            if rests || left == 0 {
                break false;
            }
        };
        drop(compacting);
        self.checkpoint()?;
        let freed = store.maps.read().segments.free_count().saturating_sub(free);
        Ok(Compacted {
            copied_bytes: (store.counters.moved_pages.get() - moved) * PAGE as u64,
            cleaned_segments: store.counters.cleaned_segments.get() - cleaned,
            freed_segments: freed,
            freed_bytes: u64::from(freed) * store.geometry.segment_bytes(),
            stopped,
        })
    }
}
