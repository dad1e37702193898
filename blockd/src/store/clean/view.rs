//! The store as the policy sees it.

use super::policy::{Choice, Cost, View, choose};
use crate::store::Shared;
use crate::store::format::segment::Stream;
use crate::store::map::Maps;
use crate::store::space::Taker;

/// What the cleaner knows besides the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Writers wait.
    pub(super) urgent: bool,
    /// Stream of the last segment emptied.
    pub(super) last: Option<Stream>,
    /// Moving pages may gain something.
    pub(super) moving: bool,
    /// A sync may free something.
    pub(super) sync: bool,
    /// A checkpoint may gain something.
    pub(super) checkpoint: bool,
    /// A segment that is being emptied: not chosen, and taken for free.
    pub(super) emptying: Option<u32>,
}

/// Below so many free segments cleaning begins, so that users are not kept waiting.
pub(super) fn low_segments(shared: &Shared, maps: &Maps) -> u32 {
    let wanted = match shared.tuning.get().free_segments {
        0 => shared.geometry.segments / 2048 + 1,
        given => given,
    };
    shared.keep_segments(maps, Taker::Users).saturating_add(wanted)
}

/// Asks the policy.
pub(super) fn choose_now(shared: &Shared, asked: Asked) -> Choice {
    let maps = shared.maps.read();
    // What a waiting writer needs and a little more, or a few beyond the point where cleaning begins.
    let target = match asked.urgent {
        true => shared.keep_segments(&maps, Taker::Users) + 2,
        false => low_segments(shared, &maps) + 1,
    };
    let cost = Cost {
        pages: shared.next_checkpoint_pages(&maps),
        fixed_pages: shared.fixed_pages(&maps),
        fills_segments: shared.segments_checkpoint_fills(&maps),
    };
    choose(View {
        kind: shared.kind,
        segments: maps.segments.all(),
        replay: maps.segments.replay(),
        geometry: shared.geometry,
        free: maps.segments.free_count() + u32::from(asked.emptying.is_some()),
        emptying: asked.emptying,
        target,
        dead_percent_max: shared.tuning.dead_percent_max(),
        now_use_seq: maps.segments.all().iter().map(|s| s.use_seq).max().unwrap_or(0),
        urgent: asked.urgent,
        room_pages: shared.cold_room_pages(&maps),
        last: asked.last,
        moving: asked.moving,
        sync: asked.sync,
        checkpoint: asked.checkpoint.then_some(cost),
    })
}
