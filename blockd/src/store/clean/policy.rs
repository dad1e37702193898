//! What to clean next: a pure function of the segment table.
//!
//! Cost-benefit as in Sprite LFS (Rosenblum and Ousterhout, SOSP'91, section 3.5), with the score that minimises what is
//! copied when each segment decays at a rate of its own, see [`score`].

use crate::device::VolumeKind;
use crate::store::format::Geometry;
use crate::store::format::segment::Stream;
use crate::store::map::segments::{Replay, Segment, State};
use crate::store::space::{is_worth_moving, is_worth_tidying};

/// Empty segments that share a sync while nobody waits.
const SYNC_SEGMENTS: u32 = 4;
/// As long as a segment of the stream that was cleaned last is worth so much of the best one, the stream is kept to. What is alive
/// in segments of one stream is of one kind, and so stays together: cleaned by turns, young pages that still change are spread
/// thinly among old ones, and all of them are moved again sooner (zipf 0.99, 80 % full: a tenth more is written).
const SAME_STREAM: f64 = 0.5;
/// Leaves are gathered before data is moved if that gives so many segments.
const GATHER_GAIN: u32 = 3;
/// A checkpoint that nobody waits for should gain so many times the pages it writes.
const CHECKPOINT_GAIN: u64 = 3;

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Enough is free.
    Enough,
    /// Nothing can be gained.
    Nothing,
    /// Make durable what was moved and overwritten: empty segments wait only for that.
    Sync,
    /// Move the live pages out of this data segment.
    Data(u32),
    /// Have the next checkpoint write this segment's leaves elsewhere.
    Meta(u32),
    /// Have the next checkpoint write the leaves of all segments elsewhere that hold at most so many: they are spread thinly.
    ThinMeta(u32),
    /// Segments that are empty, or that had better be cleaned, wait only for a checkpoint.
    Checkpoint,
}

/// What the next checkpoint takes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Pages, besides leaves that it is asked to move.
    pub pages: u64,
    /// Those of them that are written by every checkpoint.
    pub fixed_pages: u64,
    /// Whole segments that it fills: they are empty after the one that follows it.
    pub fills_segments: u32,
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Kind of volume: with epochs, checkpoints may be large for what they free.
    pub kind: VolumeKind,
    /// All segments.
    pub segments: &'a [Segment],
    /// What a start would read.
    pub replay: Replay,
    /// How large segments are.
    pub geometry: Geometry,
    /// Free segments, and the one that is being emptied.
    pub free: u32,
    /// The one that is being emptied.
    pub emptying: Option<u32>,
    /// Free segments to aim for.
    pub target: u32,
    /// Go on, with enough free, while more than this percentage of the filled pages is dead.
    pub dead_percent_max: u8,
    /// The next use of a segment: the present, for ages.
    pub now_use_seq: u64,
    /// Writers wait: whatever gains most now.
    pub urgent: bool,
    /// Data pages that the cleaner's streams have room for.
    pub room_pages: u64,
    /// Stream of the last data segment that was cleaned.
    pub last: Option<Stream>,
    /// Moving pages may gain something (`false`: nothing came of it, though it looked so).
    pub moving: bool,
    /// A sync can free segments (`false`: one was just made, and freed none).
    pub sync: bool,
    /// The next checkpoint; `None`: one was just made, and gained nothing.
    pub checkpoint: Option<Cost>,
}

impl View<'_> {
    fn closed(&self) -> impl Iterator<Item = (u32, &Segment)> {
        (0u32..).zip(self.segments).filter(|(_, s)| s.state == State::Closed)
    }

    fn is_meta(s: &Segment) -> bool {
        s.stream == Stream::Meta
    }

    /// Enough is free, and no more dead space than there may be.
    fn is_content(&self) -> bool {
        if self.free < self.target {
            return false;
        }
        if self.dead_percent_max >= 100 {
            return true;
        }
        let closed = || self.closed().filter(|(_, s)| !Self::is_meta(s));
        let filled: u64 = closed().map(|(_, s)| u64::from(s.used_pages)).sum();
        // Of clones several may stand at one place.
        let live: u64 = closed().map(|(_, s)| u64::from(s.live().min(s.used_pages))).sum();
        (filled.saturating_sub(live)) * 100 <= filled * u64::from(self.dead_percent_max)
    }
}

/// Chooses.
pub fn choose(view: View<'_>) -> Choice {
    if view.is_content() {
        return Choice::Enough;
    }
    let empty = |held: bool| {
        let counts = |s: &Segment| s.live() == 0 && view.replay.holds(s) == held;
        view.closed().filter(|(_, s)| counts(s)).count() as u32
    };
    let synced = empty(false);
    if view.sync
        && synced > 0
        && (view.urgent || synced >= SYNC_SEGMENTS || view.free + synced >= view.target)
    {
        return Choice::Sync;
    }
    if let Some(cost) = view.checkpoint {
        // The segments of the last checkpoint but one are empty, and the next takes as many: no gain, and cleaning
        // would never begin.
        let fills = if view.kind == VolumeKind::VexFs { cost.fills_segments } else { 0 };
        let held = empty(true).saturating_sub(fills);
        let worth = match view.urgent {
            true => view.free + held >= view.target || held >= 2,
            false => u64::from(held) * u64::from(view.geometry.segment_pages) >= CHECKPOINT_GAIN * cost.pages,
        };
        if held > 0 && worth {
            return Choice::Checkpoint;
        }
    }
    let gather = gather(&view);
    if let Some((live_max, _)) = gather.filter(|(_, gain)| *gain >= GATHER_GAIN) {
        return Choice::ThinMeta(live_max);
    }
    let choice = best(&view);
    match choice {
        // What is empty, even if it is little.
        Choice::Nothing if view.sync && synced > 0 => Choice::Sync,
        Choice::Nothing if gather.is_some() => {
            gather.map_or(choice, |(live_max, _)| Choice::ThinMeta(live_max))
        }
        Choice::Nothing if view.urgent && checkpoint_gives_room(&view) => Choice::Checkpoint,
        Choice::Nothing if view.urgent && view.checkpoint.is_some() && empty(true) > 0 => last_resort(&view),
        other => other,
    }
}

/// With writers waiting on a VexFS volume: which of the thinnest segments of leaves one checkpoint should empty, and how many
/// segments more are free afterwards.
fn gather(view: &View<'_>) -> Option<(u32, u32)> {
    let cost = view.checkpoint.filter(|_| view.urgent && view.kind == VolumeKind::VexFs)?;
    let metas = view.closed().filter(|(_, s)| View::is_meta(s) && !s.damaged && s.live() > 0);
    let mut lives: Vec<u32> = metas.map(|(_, s)| s.live()).collect();
    lives.sort_unstable();
    let mut pages = cost.pages;
    let mut best: Option<(u32, u32)> = None;
    for alike in lives.chunk_by(|a, b| a == b) {
        let (live, before) = (alike[0], best.map_or(0, |(_, gain)| gain));
        pages += alike.iter().map(|&live| u64::from(live)).sum::<u64>();
        let needed = pages.div_ceil(u64::from(view.geometry.segment_pages) - 1);
        let emptied = lives.partition_point(|&other| other <= live) as u64;
        if needed >= u64::from(view.free) {
            break;
        }
        if emptied > needed + u64::from(before) {
            best = Some((live, (emptied - needed) as u32));
        }
    }
    best
}

/// There is no room to move anything in that is worth it, because so much is kept for the leaves that changed: once they are
/// written it is not kept any more.
fn checkpoint_gives_room(view: &View<'_>) -> bool {
    let too_much = |s: &Segment| !View::is_meta(s) && !s.damaged && u64::from(s.live()) > view.room_pages;
    view.checkpoint.is_some_and(|cost| cost.pages > cost.fixed_pages)
        && view.closed().any(|(_, s)| too_much(s) && is_gain(s, view))
}

/// Nothing can be moved; is a checkpoint worth it for what is empty?
fn last_resort(view: &View<'_>) -> Choice {
    let Some(cost) = view.checkpoint else { return Choice::Nothing };
    let fills = if view.kind == VolumeKind::VexFs { cost.fills_segments } else { 0 };
    let held = view.closed().filter(|(_, s)| s.live() == 0 && view.replay.holds(s)).count() as u32;
    if held > fills { Choice::Checkpoint } else { Choice::Nothing }
}

/// The segment to empty.
fn best(view: &View<'_>) -> Choice {
    let candidates = || {
        view.closed()
            .filter(|(n, s)| !s.damaged && s.live() > 0 && Some(*n) != view.emptying && is_gain(s, view))
            .filter(|(_, s)| View::is_meta(s) || u64::from(s.live()) <= view.room_pages)
    };
    let due = |a: &(u32, &Segment), b: &(u32, &Segment)| score(a.1, view).total_cmp(&score(b.1, view));
    let held = |s: &Segment| view.replay.holds(s) && !View::is_meta(s);
    let now = candidates().filter(|(_, s)| !held(s)).max_by(due);
    let same = candidates().filter(|(_, s)| !held(s) && Some(s.stream) == view.last).max_by(due);
    let now = match (now, same) {
        (Some(a), Some(b)) if score(b.1, view) >= SAME_STREAM * score(a.1, view) && !view.urgent => Some(b),
        (now, _) => now,
    };
    let choice = |found: (u32, &Segment)| match found.1.stream {
        Stream::Meta => Choice::Meta(found.0),
        _ => Choice::Data(found.0),
    };
    if view.urgent {
        // A segment that a sync frees is free sooner; but not at any price.
        let later = candidates().filter(|(_, s)| held(s)).max_by(due);
        return match (now, later) {
            (Some(a), Some(b)) if a.1.live() <= b.1.live() + view.geometry.segment_pages / 4 => choice(a),
            (_, Some(b)) => choice(b),
            (Some(a), None) => choice(a),
            (None, None) => Choice::Nothing,
        };
    }
    // Segments that had better be cleaned, but that a start still reads: a checkpoint lets go of them.
    let bar = now.map_or(0.0, |(_, s)| score(s, view));
    let live = now.map_or(view.geometry.segment_pages, |(_, s)| s.live());
    let better = candidates().filter(|(_, s)| held(s) && score(s, view) > bar);
    let saved: u64 = better.map(|(_, s)| u64::from(live.saturating_sub(s.live()))).sum();
    match (view.checkpoint, now) {
        (Some(cost), _) if saved > CHECKPOINT_GAIN * cost.pages => Choice::Checkpoint,
        (_, Some(found)) => choice(found),
        (_, None) => Choice::Nothing,
    }
}

/// Whether emptying it leaves more free than before: what the segment has, less what its live pages take elsewhere.
fn is_gain(s: &Segment, view: &View<'_>) -> bool {
    let live = u64::from(s.live());
    let room = u64::from(view.geometry.record_pages());
    match s.stream {
        Stream::Meta => {
            // Else checkpoints could go on for ever, each leaving as much behind as it empties. A raw volume has no
            // open epoch: what its checkpoints write takes the place of what the last one wrote.
            let Some(cost) = view.checkpoint else { return false };
            let overhead = if view.kind == VolumeKind::VexFs { cost.pages } else { cost.fixed_pages };
            match view.urgent {
                true => room > live + overhead,
                false => room > CHECKPOINT_GAIN * (live + cost.pages),
            }
        }
        _ if view.urgent => view.moving && is_worth_moving(s.live(), view.geometry),
        _ => view.moving && is_worth_tidying(s.live(), view.geometry),
    }
}

/// How much there is to gain from cleaning a segment now rather than later.
///
/// A segment of which the part `v` is left after the time `t` since it was filled decays at the rate `r = -ln(v) / t`. Written
/// again and again, always cleaned at `v`, such data costs `1 / (1 - v)` writes for each of its users' and takes
/// `-ln(v) / (1 - v)` times its own space on the average. Over data of different rates the total is least when one
/// page of space more would save the same everywhere, that is when `((1 - v) / v + ln(v)) / r` is the same for all that is
/// cleaned: the segment where it is greatest is due. For equal rates that is the emptiest one (greedy), for full segments it tends
/// to `t * (1 - v) / 2`, as LFS's `t * (1 - v) / (1 + v)` does.
///
/// With writers waiting the rate does not count: with the last free segments to move in, old but fuller ones would fill
/// them up before a single one is empty.
fn score(s: &Segment, view: &View<'_>) -> f64 {
    let live = f64::from(s.live().max(1));
    let v = (live / f64::from(view.geometry.segment_pages)).min(0.9999);
    if view.urgent {
        return 1.0 - v;
    }
    let age = view.now_use_seq.saturating_sub(s.use_seq) as f64 + 1.0;
    age * ((1.0 - v) / v + v.ln()) / -v.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(state: State, stream: Stream, live: u32, use_seq: u64) -> Segment {
        Segment {
            state,
            stream,
            used_pages: 100,
            live_base: live,
            live_open: 0,
            use_seq,
            damaged: false,
            emptied_seq: 0,
            needs_checkpoint: 0,
        }
    }

    const CHECKPOINT: Cost = Cost { pages: 3, fixed_pages: 2, fills_segments: 0 };

    fn view(segments: &[Segment], free: u32) -> View<'_> {
        View {
            kind: VolumeKind::VexFs,
            segments,
            replay: Replay { from: [1000; Stream::LOGGED.len()], checkpoint: 1 },
            geometry: Geometry { segment_pages: 100, segments: segments.len() as u32 },
            free,
            emptying: None,
            target: 5,
            dead_percent_max: 100,
            now_use_seq: 50,
            urgent: false,
            room_pages: 1000,
            last: None,
            moving: true,
            sync: true,
            checkpoint: Some(CHECKPOINT),
        }
    }

    /// A start reads everything written since use number 30.
    fn since(from: u64) -> Replay {
        Replay { from: [from; Stream::LOGGED.len()], checkpoint: 1 }
    }

    #[test]
    fn nothing_is_done_while_enough_is_free() {
        let segments = [segment(State::Closed, Stream::User, 1, 1)];
        assert_eq!(choose(view(&segments, 5)), Choice::Enough);
        assert_eq!(choose(View { dead_percent_max: 98, ..view(&segments, 5) }), Choice::Data(0));
        assert_eq!(choose(View { dead_percent_max: 99, ..view(&segments, 5) }), Choice::Enough);
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
    fn what_is_being_emptied_is_not_chosen_again() {
        let segments =
            [segment(State::Closed, Stream::User, 10, 40), segment(State::Closed, Stream::User, 50, 40)];
        let emptying = View { emptying: Some(0), ..view(&segments, 1) };
        assert_eq!(choose(emptying), Choice::Data(1));
        assert_eq!(choose(View { segments: &segments[..1], ..emptying }), Choice::Nothing);
    }

    #[test]
    fn with_no_room_to_move_in_changed_leaves_are_written_first() {
        let segments = [segment(State::Closed, Stream::User, 10, 40)];
        let stuck = View { urgent: true, room_pages: 0, ..view(&segments, 1) };
        assert_eq!(choose(stuck), Choice::Checkpoint);
        assert_eq!(choose(View { checkpoint: None, ..stuck }), Choice::Nothing, "that gained nothing");
        let written = Cost { pages: CHECKPOINT.fixed_pages, ..CHECKPOINT };
        assert_eq!(choose(View { checkpoint: Some(written), ..stuck }), Choice::Nothing);
        assert_eq!(choose(View { room_pages: 10, ..stuck }), Choice::Data(0));
    }

    #[test]
    fn slow_data_is_cleaned_at_a_higher_utilisation_than_fast() {
        let segments =
            [segment(State::Closed, Stream::User, 40, 49), segment(State::Closed, Stream::Cold, 75, 1)];
        assert_eq!(choose(view(&segments, 1)), Choice::Data(1));
        assert_eq!(choose(View { urgent: true, ..view(&segments, 1) }), Choice::Data(0));
    }

    #[test]
    fn data_of_one_rate_is_cleaned_emptiest_first_however_old() {
        // exp(-t / 40) is left after t.
        let segments = [1, 15, 30, 49]
            .map(|t: u64| (50 - t, (100.0 * (-(t as f64) / 40.0).exp()).round() as u32))
            .map(|(use_seq, live)| segment(State::Closed, Stream::User, live, use_seq));
        assert_eq!(choose(view(&segments, 1)), Choice::Data(3));
        assert_eq!(choose(view(&segments[..3], 1)), Choice::Data(2));
    }

    #[test]
    fn the_stream_that_was_cleaned_last_is_kept_to_while_it_is_worth_it() {
        let segments = [
            segment(State::Closed, Stream::User, 50, 10),
            segment(State::Closed, Stream::Cold, 50, 5),
            segment(State::Closed, Stream::Cold, 55, 5),
        ];
        assert_eq!(choose(view(&segments, 1)), Choice::Data(1));
        let after_user = View { last: Some(Stream::User), ..view(&segments, 1) };
        assert_eq!(choose(after_user), Choice::Data(0));
        assert_eq!(choose(View { now_use_seq: 12, ..after_user }), Choice::Data(1), "much younger");
        assert_eq!(choose(View { last: Some(Stream::Cold), ..view(&segments, 1) }), Choice::Data(1));
    }

    #[test]
    fn full_and_damaged_segments_gain_nothing() {
        let mut segments =
            [segment(State::Closed, Stream::User, 96, 1), segment(State::Closed, Stream::User, 5, 1)];
        segments[1].damaged = true;
        assert_eq!(choose(view(&segments, 1)), Choice::Nothing);
        segments[0].live_base = 95;
        assert_eq!(choose(view(&segments, 1)), Choice::Nothing, "too little while nobody waits");
        let urgent = View { urgent: true, ..view(&segments, 1) };
        assert_eq!(choose(urgent), Choice::Data(0));
        assert_eq!(choose(View { moving: false, ..urgent }), Choice::Nothing);
    }

    #[test]
    fn empty_segments_that_a_start_does_not_read_wait_for_a_sync_only() {
        let empty = segment(State::Closed, Stream::User, 0, 1);
        let half = segment(State::Closed, Stream::User, 50, 1);
        assert_eq!(choose(view(&[empty], 4)), Choice::Sync, "enough then");
        assert_eq!(choose(view(&[empty, half], 1)), Choice::Data(1), "more may share it");
        assert_eq!(choose(view(&[empty; 4], 0)), Choice::Sync);
        assert_eq!(choose(View { urgent: true, ..view(&[empty, half], 1) }), Choice::Sync);
        assert_eq!(choose(View { sync: false, ..view(&[empty], 1) }), Choice::Nothing);
    }

    #[test]
    fn empty_segments_that_a_start_reads_wait_for_a_checkpoint() {
        let empty = segment(State::Closed, Stream::User, 0, 40);
        let half = segment(State::Closed, Stream::User, 50, 1);
        let segments = [empty, empty, half];
        let held = View { replay: since(30), ..view(&segments, 1) };
        assert_eq!(choose(held), Choice::Checkpoint);
        let dear = Cost { pages: 80, ..CHECKPOINT };
        assert_eq!(choose(View { checkpoint: Some(dear), ..held }), Choice::Data(2), "too dear for now");
        assert_eq!(choose(View { checkpoint: Some(dear), urgent: true, ..held }), Choice::Checkpoint);
        let dead = Segment { needs_checkpoint: 2, ..segment(State::Closed, Stream::User, 0, 1) };
        assert_eq!(choose(view(&[dead, dead], 1)), Choice::Checkpoint, "pages that died by no record");
    }

    #[test]
    fn what_a_checkpoint_frees_and_takes_again_is_no_reason_for_one() {
        let empty = segment(State::Closed, Stream::Meta, 0, 1);
        let segments = [empty, empty, segment(State::Closed, Stream::User, 50, 1)];
        let fills = Cost { fills_segments: 2, ..CHECKPOINT };
        let view = View { urgent: true, ..view(&segments, 1) };
        assert_eq!(choose(view), Choice::Checkpoint);
        assert_eq!(choose(View { checkpoint: Some(fills), ..view }), Choice::Data(2));
        assert_eq!(choose(View { checkpoint: None, ..view }), Choice::Data(2), "the last one gained nothing");
        let none = View { segments: &segments[..2], checkpoint: Some(fills), ..view };
        assert_eq!(choose(none), Choice::Nothing);
        assert_eq!(choose(View { kind: VolumeKind::Raw, ..none }), Choice::Checkpoint);
    }

    #[test]
    fn what_had_better_be_cleaned_but_is_read_by_a_start_is_let_go_of_first() {
        let old = segment(State::Closed, Stream::Cold, 90, 1);
        let young = segment(State::Closed, Stream::User, 10, 40);
        let segments = [old, young, young];
        let view = View { replay: since(30), ..view(&segments, 1) };
        assert_eq!(choose(view), Choice::Checkpoint);
        let dear = Cost { pages: 80, ..CHECKPOINT };
        assert_eq!(choose(View { checkpoint: Some(dear), ..view }), Choice::Data(0));
        let urgent = View { urgent: true, ..view };
        assert!(matches!(choose(urgent), Choice::Data(1 | 2)), "the gain is too small elsewhere");
    }

    #[test]
    fn leaves_spread_over_many_segments_are_gathered_when_writers_wait() {
        let lives = [10, 80, 10, 40, 90, 10, 90];
        let segments = lives.map(|live| segment(State::Closed, Stream::Meta, live, 1));
        let cost = Cost { pages: 50, ..CHECKPOINT };
        let urgent = View { urgent: true, checkpoint: Some(cost), ..view(&segments, 4) };
        // 50 + 30 pages in one segment for three. With the next, 40, it would be two for four: no more is gained.
        assert_eq!(gather(&urgent), Some((10, 2)));
        let full = View { free: 1, ..urgent };
        assert_eq!(gather(&full), None, "no room for that checkpoint");
        assert_eq!(gather(&View { urgent: false, ..urgent }), None);
        assert_eq!(gather(&View { kind: VolumeKind::Raw, ..urgent }), None);
        let thin = [segment(State::Closed, Stream::Meta, 10, 1); 6];
        let thin = View { segments: &thin, ..urgent };
        assert_eq!(choose(thin), Choice::ThinMeta(10), "before anything else");
        // Too dear one by one, and too little together to come first, but better than nothing.
        let few = [segment(State::Closed, Stream::Meta, 40, 1); 4];
        let few = View { segments: &few, checkpoint: Some(Cost { pages: 60, ..CHECKPOINT }), ..urgent };
        assert_eq!(choose(few), Choice::ThinMeta(40));
        assert_eq!(choose(View { checkpoint: None, ..few }), Choice::Nothing);
    }
}
