//! Whether the cleaner should look: asked after each step of the log, so it must cost little and not ask in vain.

use std::sync::atomic::{AtomicU64, Ordering};

use super::view::low_segments;
use crate::store::Shared;
use crate::store::map::Maps;

/// Remembers how things stood when the cleaner was last sent to look.
#[derive(Debug)]
pub(crate) struct Watch {
    looked_at: AtomicU64,
}

impl Default for Watch {
    fn default() -> Self {
        Watch { looked_at: AtomicU64::new(u64::MAX) }
    }
}

/// Changes whenever a segment is taken or freed.
fn standing(maps: &Maps) -> u64 {
    (maps.segments.data_uses() << 32) | u64::from(maps.segments.free_count())
}

impl Watch {
    /// Whether free space is low (or dead space unwelcome), and segments were taken or freed since the last time it was: the cleaner
    /// that found nothing to gain is not sent again before.
    pub(crate) fn wants(&self, shared: &Shared) -> bool {
        let maps = shared.maps.read();
        let now = standing(&maps);
        let wanted = shared.tuning.dead_percent_max() < 100
            || maps.segments.free_count() < low_segments(shared, &maps);
        wanted && self.looked_at.swap(now, Ordering::Relaxed) != now
    }
}
