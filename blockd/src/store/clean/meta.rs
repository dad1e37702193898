//! Emptying segments of map leaves: the next checkpoint writes the leaves elsewhere.

use crate::store::Shared;
use crate::store::format::segment::Stream;
use crate::store::map::segments::{Segment, State};

/// Has the leaves of a meta segment written anew by the next checkpoint; false if one cannot be read: then the segment is
/// not chosen again.
pub(crate) fn empty_meta(shared: &Shared, segment: u32) -> bool {
    let emptied = shared.empty_meta(segment).is_ok();
    if !emptied {
        shared.maps.write().segments.mark_damaged(segment);
    }
    emptied
}

/// As [`empty_meta`], all of them that hold at most so many leaves; false if none could be.
pub(crate) fn empty_thin_meta(shared: &Shared, live_max: u32) -> bool {
    let spread = |s: &Segment| {
        let live = (1..=live_max).contains(&s.live());
        s.stream == Stream::Meta && s.state == State::Closed && !s.damaged && live
    };
    let metas: Vec<u32> = {
        let maps = shared.maps.read();
        (0u32..).zip(maps.segments.all()).filter(|(_, s)| spread(s)).map(|(i, _)| i).collect()
    };
    metas.into_iter().filter(|&segment| empty_meta(shared, segment)).count() > 0
}
