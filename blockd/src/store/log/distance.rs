//! How far checkpoints are apart, unless that is set: one that would write much waits for longer, as long as what it would
//! write can be kept in memory, and its log be replayed.

use std::cell::Cell;

/// Pages of log between checkpoints at least (256 MiB),
pub(super) const CHECKPOINT_PAGES_MIN: u64 = 64 << 10;
/// for each page that the checkpoint writes too,
const CHECKPOINT_LOG_PAGES: u64 = 128;
/// but for checkpoints of more pages: so much changed map is kept in memory, and 128 times as much log replayed at a start (4 GiB).
const CHECKPOINT_PAGES_MAX: u64 = 8 << 10;
/// Pages of log between two looks at what a checkpoint would write (4 MiB): with many snapshots that is a walk over all.
const LOOK_PAGES: u64 = 1 << 10;

/// Says when a checkpoint is due.
#[derive(Debug, Default)]
pub(super) struct Distance {
    /// Pages of log when it was looked last, and too early.
    looked: Cell<u64>,
}

impl Distance {
    /// Whether the next checkpoint should begin, so many pages of log after the last; `cost` gives the pages that it would write.
    pub(super) fn is_reached(&self, logged: u64, cost: impl FnOnce() -> u64) -> bool {
        let looked = self.looked.get();
        if logged < CHECKPOINT_PAGES_MIN || (looked..looked + LOOK_PAGES).contains(&logged) {
            return false;
        }
        let cost = cost();
        let reached = cost > CHECKPOINT_PAGES_MAX || logged >= CHECKPOINT_LOG_PAGES * cost;
        if !reached {
            self.looked.set(logged);
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of log, in steps of 8, after which a checkpoint of this cost is due, and how often the cost was asked for.
    fn reached(distance: &Distance, cost: u64) -> (u64, u64) {
        let mut looks = 0;
        let mut look = || {
            looks += 1;
            cost
        };
        let logged = (0..).step_by(8).find(|&logged| distance.is_reached(logged, &mut look));
        (logged.expect("some time"), looks)
    }

    #[test]
    fn a_checkpoint_is_due_by_its_cost_and_that_is_seldom_looked_at() {
        let distance = Distance::default();
        assert_eq!(reached(&distance, 1), (CHECKPOINT_PAGES_MIN, 1));
        assert_eq!(reached(&distance, CHECKPOINT_PAGES_MAX + 1), (CHECKPOINT_PAGES_MIN, 1));
        for cost in [600, 4000, CHECKPOINT_PAGES_MAX] {
            // Twice: what the last one left behind delays the next one by a look at most.
            for _ in 0..2 {
                let (logged, looks) = reached(&distance, cost);
                let wanted = CHECKPOINT_LOG_PAGES * cost;
                assert!((wanted..=wanted + 2 * LOOK_PAGES).contains(&logged), "{logged} pages for {cost}");
                assert!(looks <= (logged - CHECKPOINT_PAGES_MIN) / LOOK_PAGES + 2, "{looks} looks");
            }
        }
    }
}
