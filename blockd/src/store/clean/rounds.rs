//! Whether emptying segments gains anything: what keeps the cleaner from moving the same pages for ever.
//!
//! Copies need headers of records and are cut at the ends of segments, so that what is alive in a segment that is nearly full may
//! take as much again elsewhere. The policy reckons with that, about; here it is seen.

use crate::store::Shared;
use crate::store::format::segment::Stream;
use crate::store::map::Maps;
use crate::store::map::segments::{Segment, State};

/// Segments emptied in a row without a page gained, after which it is given up.
const VAIN_MAX: u32 = 8;

/// Where the cleaner stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ground {
    /// Pages of data segments that hold something alive, and those filled by the cleaner.
    taken: u64,
    /// Live pages, and segments taken for users: what users did.
    live: u64,
    user_uses: u64,
}

impl Ground {
    pub(super) fn of(shared: &Shared, maps: &Maps) -> Self {
        let pages = |s: &Segment| match (s.stream, s.state) {
            (Stream::Meta, _) | (Stream::User, State::Open) | (_, State::Free) => 0,
            (_, State::Open) => s.used_pages,
            (_, State::Closed) if s.live() == 0 => 0,
            (_, State::Closed) => shared.geometry.segment_pages,
        };
        let segments = &maps.segments;
        let taken = segments.all().iter().map(|s| u64::from(pages(s))).sum();
        Ground { taken, live: segments.data_live(), user_uses: segments.user_uses() }
    }

    /// Space was gained, or users changed things so that it may be now.
    fn gained_since(self, before: Ground) -> bool {
        self.taken < before.taken || (self.live, self.user_uses) != (before.live, before.user_uses)
    }
}

/// Segments emptied since something was gained.
#[derive(Default)]
pub(super) struct Rounds {
    /// How things stood then, and how many they are.
    since: Option<(Ground, u32)>,
}

impl Rounds {
    /// Whether it is worth going on.
    pub(super) fn may_gain(&self, now: Ground) -> bool {
        self.since.is_none_or(|(before, rounds)| rounds < VAIN_MAX || now.gained_since(before))
    }

    /// A segment is about to be emptied.
    pub(super) fn begin(&mut self, now: Ground) {
        self.since = match self.since {
            Some((before, rounds)) if !now.gained_since(before) => Some((before, rounds + 1)),
            _ => Some((now, 1)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Ground = Ground { taken: 1000, live: 700, user_uses: 5 };

    #[test]
    fn who_gains_nothing_gives_up_until_users_change_something() {
        let mut rounds = Rounds::default();
        // More is taken for a while: the cleaner's head was left half empty.
        for taken in [1000, 1003, 1002, 1000, 1004, 1001, 1000, 1003] {
            let now = Ground { taken, ..START };
            assert!(rounds.may_gain(now));
            rounds.begin(now);
        }
        assert!(!rounds.may_gain(START));
        assert!(rounds.may_gain(Ground { taken: 999, ..START }), "gained by the last one");
        assert!(rounds.may_gain(Ground { live: 690, ..START }), "a discard");
        assert!(rounds.may_gain(Ground { user_uses: 6, ..START }), "overwritten elsewhere");
    }

    #[test]
    fn a_page_now_and_then_is_enough_to_go_on() {
        let mut rounds = Rounds::default();
        for round in 0..1000 {
            let now = Ground { taken: 1000 - round / 6, ..START };
            assert!(rounds.may_gain(now));
            rounds.begin(now);
        }
    }
}
