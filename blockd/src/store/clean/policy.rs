//! Which segment to clean next: a pure function of the segment table.
//!
//! Cost-benefit as in Sprite LFS (Rosenblum and Ousterhout, SOSP'91, section 3.5): the space gained, times the age of
//! the data, over the cost of reading the segment and writing what lives.

use crate::store::format::segment::Stream;
use crate::store::map::segments::{Segment, State};

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Enough is free, or nothing can be gained.
    Nothing,
    /// Move the live pages out of this data segment.
    Data(u32),
    /// Have the next checkpoint write this segment's leaves elsewhere.
    Meta(u32),
    /// Have the next checkpoint write all leaves anew: they are spread thinly over many segments.
    AllMeta,
    /// Segments wait only for a checkpoint.
    Checkpoint,
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// All segments.
    pub segments: &'a [Segment],
    /// Pages of a segment.
    pub segment_pages: u32,
    /// Free segments.
    pub free: u32,
    /// Free segments to aim for.
    pub target: u32,
    /// The next use of a segment: the present, for ages.
    pub now_use_seq: u64,
    /// Writers wait: whatever gains most now.
    pub urgent: bool,
    /// Data pages that the cold stream has room for.
    pub room_pages: u64,
    /// Pages that the next checkpoint writes besides leaves that it is asked to move.
    pub checkpoint_pages: u64,
    /// Segments that a checkpoint of all leaves would need.
    pub full_checkpoint_segments: u32,
    /// Segments that the next checkpoint fills: they are empty after the one that follows it.
    pub checkpoint_segments: u32,
}

/// Chooses.
pub fn choose(state: View<'_>) -> Choice {
    if state.free >= state.target {
        return Choice::Nothing;
    }
    let closed = || (0u32..).zip(state.segments).filter(|(_, s)| s.state == State::Closed);
    // The segments of the last checkpoint but one are empty, and the next takes as many: no gain, and cleaning
    // would never begin.
    let empty = closed().filter(|(_, s)| s.live() == 0).count() as u32;
    let empty = empty.saturating_sub(state.checkpoint_segments);
    if empty > 0 && (state.free + empty >= state.target || empty >= 2) {
        return Choice::Checkpoint;
    }
    let spread = closed().filter(|(_, s)| s.stream == Stream::Meta && s.live() > 0).count() as u32;
    if state.urgent
        && spread >= state.full_checkpoint_segments.saturating_add(3)
        && state.free > state.full_checkpoint_segments
    {
        return Choice::AllMeta;
    }
    let best = closed()
        .filter(|(_, s)| !s.damaged && s.live() > 0 && gain_pages(s, &state) > 0)
        .filter(|(_, s)| s.stream == Stream::Meta || u64::from(s.live()) <= state.room_pages)
        .max_by(|(_, a), (_, b)| score(a, &state).total_cmp(&score(b, &state)));
    match best {
        Some((i, s)) if s.stream == Stream::Meta => Choice::Meta(i),
        Some((i, _)) => Choice::Data(i),
        None if empty > 0 => Choice::Checkpoint,
        None => Choice::Nothing,
    }
}

/// Pages gained: what the segment has, less what its live pages take elsewhere with their headers.
fn gain_pages(s: &Segment, state: &View<'_>) -> i64 {
    let live = i64::from(s.live());
    let overhead = match s.stream {
        // Else checkpoints could go on for ever, each leaving as much behind as it empties.
        Stream::Meta => i64::try_from(state.checkpoint_pages).unwrap_or(i64::MAX),
        Stream::User | Stream::Cold => live.div_euclid(100) + 1,
    };
    (i64::from(state.segment_pages) - 2 - live).saturating_sub(overhead)
}

/// The age counts only while there is time: with the last free segments to move in, old but fuller ones
/// would fill them up before a single one is empty.
fn score(s: &Segment, state: &View<'_>) -> f64 {
    let u = f64::from(s.live()) / f64::from(state.segment_pages);
    if state.urgent {
        return 1.0 - u;
    }
    let age = state.now_use_seq.saturating_sub(s.use_seq) as f64 + 1.0;
    (1.0 - u) * age / (1.0 + u)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(state: State, stream: Stream, live: u32, use_seq: u64) -> Segment {
        Segment { state, stream, used_pages: 100, live_base: live, live_open: 0, use_seq, damaged: false }
    }

    fn view(segments: &[Segment], free: u32) -> View<'_> {
        View {
            segments,
            segment_pages: 100,
            free,
            target: 5,
            now_use_seq: 50,
            urgent: false,
            room_pages: 1000,
            checkpoint_pages: 3,
            checkpoint_segments: 0,
            full_checkpoint_segments: 1,
        }
    }

    #[test]
    fn nothing_is_done_while_enough_is_free() {
        let segments = [segment(State::Closed, Stream::User, 1, 1)];
        assert_eq!(choose(view(&segments, 5)), Choice::Nothing);
    }

    #[test]
    fn the_emptier_goes_first_and_among_equals_the_older() {
        let segments = [
            segment(State::Closed, Stream::User, 50, 40),
            segment(State::Closed, Stream::User, 10, 40),
            segment(State::Open, Stream::User, 1, 40),
        ];
        assert_eq!(choose(view(&segments, 1)), Choice::Data(1));
        let segments =
            [segment(State::Closed, Stream::User, 50, 45), segment(State::Closed, Stream::User, 50, 2)];
        assert_eq!(choose(view(&segments, 1)), Choice::Data(1));
    }

    #[test]
    fn old_data_is_cleaned_at_a_higher_utilisation_than_young() {
        let segments =
            [segment(State::Closed, Stream::User, 40, 49), segment(State::Closed, Stream::Cold, 75, 1)];
        assert_eq!(choose(view(&segments, 1)), Choice::Data(1));
    }

    #[test]
    fn full_and_damaged_segments_gain_nothing() {
        let mut segments =
            [segment(State::Closed, Stream::User, 97, 1), segment(State::Closed, Stream::User, 5, 1)];
        segments[1].damaged = true;
        assert_eq!(choose(view(&segments, 1)), Choice::Nothing);
    }

    #[test]
    fn empty_segments_wait_for_a_checkpoint_only() {
        let empty = segment(State::Closed, Stream::User, 0, 1);
        assert_eq!(choose(view(&[empty, empty], 1)), Choice::Checkpoint);
        assert_eq!(choose(view(&[empty, segment(State::Closed, Stream::Meta, 9, 1)], 1)), Choice::Meta(1));
        assert_eq!(choose(view(&[empty], 4)), Choice::Checkpoint);
    }

    #[test]
    fn what_a_checkpoint_frees_and_takes_again_is_no_reason_for_one() {
        let empty = segment(State::Closed, Stream::Meta, 0, 1);
        let segments = [empty, empty, segment(State::Closed, Stream::User, 50, 1)];
        assert_eq!(choose(view(&segments, 1)), Choice::Checkpoint);
        assert_eq!(choose(View { checkpoint_segments: 2, ..view(&segments, 1) }), Choice::Data(2));
        assert_eq!(choose(View { checkpoint_segments: 2, ..view(&segments[..2], 1) }), Choice::Nothing);
    }

    #[test]
    fn leaves_spread_over_many_segments_are_gathered_when_writers_wait() {
        let segments = [segment(State::Closed, Stream::Meta, 80, 1); 4];
        let urgent = View { urgent: true, checkpoint_pages: 100, ..view(&segments, 2) };
        assert_eq!(choose(urgent), Choice::AllMeta);
        assert_eq!(choose(View { free: 1, ..urgent }), Choice::Nothing, "no room for that checkpoint");
        assert_eq!(choose(View { full_checkpoint_segments: 2, free: 3, ..urgent }), Choice::Nothing);
    }
}
