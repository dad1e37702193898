//! What each segment holds and how much of it is alive.
//!
//! Life of a segment: *free* -> *open* (a stream's head) -> *closed* -> all its pages die, by
//! overwriting or by cleaning -> what killed them is durable -> *free*.
//!
//! A start replays the log from the last checkpoint on. So a data segment is free without a checkpoint of its own once
//! the records that took its last page are durable, if that replay does not read it: if it was left behind
//! before the last checkpoint. Pages that die otherwise than by a record (a snapshot that is deleted) need a checkpoint.

use std::collections::BTreeSet;

use super::referrers::Referrers;
use crate::store::format::checkpoint::SegmentUsage;
use crate::store::format::segment::Stream;
use crate::store::format::{Geometry, Loc};

/// Where in its life a segment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// May be taken.
    Free,
    /// The head of its stream.
    Open,
    /// Full, or left behind by an earlier start.
    Closed,
}

/// One segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Free, open or closed.
    pub state: State,
    /// What it holds (means nothing while it is free).
    pub stream: Stream,
    /// Pages filled, the header included.
    pub used_pages: u32,
    /// Pages that the committed map refers to; in meta segments: pages of the last checkpoint.
    pub live_base: u32,
    /// Pages that the open epoch refers to.
    pub live_open: u32,
    /// This use; grows, so it also tells the age.
    pub use_seq: u64,
    /// A record in it can't be read: it is never cleaned.
    pub damaged: bool,
    /// The last record that took a page of it.
    pub emptied_seq: u64,
    /// The checkpoint (counted from the start of the store) that some page's death waits for; 0 = none.
    pub needs_checkpoint: u64,
}

impl Segment {
    /// Pages something refers to: each as often as there are device pages, and states of them, that stand there.
    pub fn live(&self) -> u32 {
        self.live_base.saturating_add(self.live_open)
    }

    /// Full or left behind, and nothing refers to it.
    pub fn is_empty(&self) -> bool {
        self.state == State::Closed && self.live() == 0
    }
}

fn stream_index(stream: Stream) -> Option<usize> {
    Stream::LOGGED.iter().position(|&logged| logged == stream)
}

/// What a start would read, from the last durable checkpoint on.
#[derive(Clone, Copy, Default, Debug)]
pub struct Replay {
    /// Use numbers of the heads of [`Stream::LOGGED`] at that checkpoint: it reads these segments and later ones.
    pub from: [u64; Stream::LOGGED.len()],
    /// That checkpoint, counted from the start of the store.
    pub checkpoint: u64,
}

impl Replay {
    /// Whether the segment, once empty, waits for a checkpoint: a start reads it, or some of its pages died by no record. Else
    /// it is free as soon as the records that took its last page are durable.
    pub fn holds(&self, s: &Segment) -> bool {
        stream_index(s.stream).is_none_or(|i| s.use_seq >= self.from[i])
            || s.needs_checkpoint > self.checkpoint
    }
}

/// All segments.
#[derive(Debug)]
pub struct SegmentTable {
    segments: Vec<Segment>,
    free: BTreeSet<u32>,
    /// Free ones that only the checkpoint under way may take.
    reserved: u32,
    /// Closed ones that nothing refers to.
    empty: BTreeSet<u32>,
    /// Segments from here on are never taken: the store is being made smaller.
    limit: u32,
    /// Heads of [`Stream::LOGGED`].
    heads: [Option<u32>; Stream::LOGGED.len()],
    /// Those that they left last, with their use.
    left: [Option<(u32, u64)>; Stream::LOGGED.len()],
    /// Users' data may go into the head of their stream.
    users_may_write: bool,
    data_live: u64,
    meta_live: u64,
    /// Pages of the checkpoint under way.
    meta_new: u64,
    data_uses: u64,
    user_uses: u64,
    /// The record being applied, if one is.
    applying: Option<u64>,
    replay: Replay,
    /// Checkpoints begun since the start of the store.
    checkpoints_begun: u64,
    /// Whose pages may stand where no record says so.
    pub referrers: Referrers,
    /// Cloned pages so far.
    cloned: u64,
}

impl SegmentTable {
    /// From a checkpoint: whatever is not free is closed.
    pub fn from_usage(usage: &[SegmentUsage]) -> Self {
        let segments: Vec<Segment> = usage
            .iter()
            .map(|u| Segment {
                state: if u.stream.is_some() { State::Closed } else { State::Free },
                stream: u.stream.unwrap_or(Stream::User),
                used_pages: u.used_pages,
                live_base: u.live_pages,
                live_open: 0,
                use_seq: u.use_seq,
                damaged: false,
                emptied_seq: 0,
                needs_checkpoint: 0,
            })
            .collect();
        let free = (0u32..).zip(&segments).filter(|(_, s)| s.state == State::Free).map(|(i, _)| i).collect();
        let data_live = segments.iter().map(|s| u64::from(s.live_base)).sum();
        let mut table = SegmentTable {
            segments,
            free,
            reserved: 0,
            empty: BTreeSet::new(),
            limit: u32::MAX,
            heads: [None; Stream::LOGGED.len()],
            left: [None; Stream::LOGGED.len()],
            users_may_write: false,
            data_live,
            meta_live: 0,
            meta_new: 0,
            data_uses: 0,
            user_uses: 0,
            applying: None,
            replay: Replay::default(),
            checkpoints_begun: 0,
            referrers: Referrers::default(),
            cloned: 0,
        };
        (0..usage.len() as u32).for_each(|segment| table.look(segment));
        table
    }

    /// Notes whether a segment is empty, after a change of it.
    fn look(&mut self, segment: u32) {
        if self.segments.get(segment as usize).is_some_and(Segment::is_empty) {
            self.empty.insert(segment);
        } else {
            self.empty.remove(&segment);
        }
    }

    /// All of them, by index.
    pub fn all(&self) -> &[Segment] {
        &self.segments
    }

    /// One of them.
    pub fn get(&self, segment: u32) -> Option<&Segment> {
        self.segments.get(segment as usize)
    }

    /// Free segments, but for those kept for the checkpoint under way.
    pub fn free_count(&self) -> u32 {
        (self.free.len() as u32).saturating_sub(self.reserved)
    }

    /// Free segments, the lowest first.
    pub fn free(&self) -> impl Iterator<Item = u32> {
        self.free.iter().copied()
    }

    /// Keeps so many free segments for the checkpoint that begins; false if there are not as many.
    pub fn reserve(&mut self, segments: u32) -> bool {
        let enough = self.free_count() >= segments;
        if enough {
            self.reserved += segments;
        }
        enough
    }

    /// The checkpoint needs no more.
    pub fn end_reservation(&mut self) {
        self.reserved = 0;
    }

    /// Takes the lowest free segment out of the reserve.
    pub fn take_reserved(&mut self, use_seq: u64) -> Option<u32> {
        self.reserved = self.reserved.checked_sub(1)?;
        let segment = self.free.pop_first()?;
        self.open(segment, Stream::Meta, use_seq);
        Some(segment)
    }

    /// Whether users' data may go into the head of their stream: enough was free when it was begun, or later.
    pub fn users_may_write(&self) -> bool {
        self.users_may_write
    }

    /// See [`SegmentTable::users_may_write`].
    pub fn let_users_write(&mut self, may: bool) {
        self.users_may_write = may;
    }

    /// Segments taken for data so far.
    pub fn data_uses(&self) -> u64 {
        self.data_uses
    }

    /// Those of them taken for users' data.
    pub fn user_uses(&self) -> u64 {
        self.user_uses
    }

    /// Data pages that the map refers to, both layers.
    pub fn data_live(&self) -> u64 {
        self.data_live
    }

    /// Pages of the last checkpoint.
    pub fn meta_live(&self) -> u64 {
        self.meta_live
    }

    /// Takes the lowest free segment as the head of a stream.
    pub fn take(&mut self, stream: Stream, use_seq: u64) -> Option<u32> {
        if self.free_count() == 0 {
            return None;
        }
        let segment = self.free.pop_first()?;
        self.data_uses += u64::from(stream != Stream::Meta);
        self.user_uses += u64::from(stream == Stream::User);
        self.open(segment, stream, use_seq);
        Some(segment)
    }

    /// Pages that records which are not applied yet may fill in the head of a stream that has data.
    pub fn head_room(&self, stream: Stream, geometry: Geometry) -> u32 {
        let head = |i: usize| self.get(self.heads[i]?).filter(|s| s.state == State::Open);
        Self::room(stream_index(stream).and_then(head), geometry)
    }

    /// As [`SegmentTable::head_room`], in the segment that the head left last: of records under way, about.
    pub fn room_left_behind(&self, stream: Stream, geometry: Geometry) -> u32 {
        let left = |i: usize| {
            let (segment, use_seq) = self.left[i]?;
            self.get(segment).filter(|s| s.state == State::Closed && s.use_seq == use_seq)
        };
        Self::room(stream_index(stream).and_then(left), geometry)
    }

    fn room(segment: Option<&Segment>, geometry: Geometry) -> u32 {
        segment.map_or(0, |s| geometry.record_pages().saturating_sub(s.used_pages))
    }

    /// Replay: a stream went on in this segment.
    pub fn open(&mut self, segment: u32, stream: Stream, use_seq: u64) {
        self.free.remove(&segment);
        self.referrers.forget_segment(segment);
        if let Some(i) = stream_index(stream) {
            self.heads[i] = Some(segment);
        }
        if let Some(s) = self.segments.get_mut(segment as usize) {
            *s = Segment {
                state: State::Open,
                stream,
                used_pages: 1,
                live_base: 0,
                live_open: 0,
                use_seq,
                damaged: false,
                emptied_seq: 0,
                needs_checkpoint: 0,
            };
        }
        self.look(segment);
    }

    /// The segment is no longer a head.
    pub fn close(&mut self, segment: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.state = State::Closed;
        }
        self.look(segment);
    }

    /// The head of its stream goes on elsewhere; records may be under way to this segment.
    pub fn leave(&mut self, segment: u32) {
        self.close(segment);
        let left = self.get(segment).and_then(|s| Some((stream_index(s.stream)?, s.use_seq)));
        if let Some((i, use_seq)) = left {
            self.left[i] = Some((segment, use_seq));
        }
    }

    /// From now on changes are those of this record; `None`: of no record, only a checkpoint makes them last.
    pub fn applying(&mut self, seq: Option<u64>) {
        self.applying = seq;
    }

    /// A page of the segment died.
    fn page_died(&mut self, segment: u32) {
        let Some(s) = self.segments.get_mut(segment as usize) else { return };
        match self.applying {
            Some(seq) => s.emptied_seq = seq,
            None => s.needs_checkpoint = self.checkpoints_begun + 1,
        }
        if s.live() == 0 {
            self.look(segment);
        }
    }

    /// What a start would read.
    pub fn replay(&self) -> Replay {
        self.replay
    }

    /// Empty data segments that the next sync frees.
    pub fn waiting_for_sync(&self) -> u32 {
        self.empty.iter().filter(|&&i| !self.replay.holds(&self.segments[i as usize])).count() as u32
    }

    /// A checkpoint of the state as it is now begins; gives its number.
    pub fn begin_checkpoint(&mut self) -> u64 {
        self.checkpoints_begun += 1;
        self.checkpoints_begun
    }

    /// The checkpoint of this number is durable: a start replays from these uses of segments on.
    pub fn checkpoint_is_durable(&mut self, number: u64, from: [u64; Stream::LOGGED.len()]) {
        self.replay = Replay { from, checkpoint: number };
    }

    /// Records up to this one are durable: empty data segments that only waited for that are free. Gives them.
    pub fn release_durable(&mut self, durable_seq: u64) -> Vec<u32> {
        let free = |s: &Segment| !self.replay.holds(s) && s.emptied_seq <= durable_seq;
        let released: Vec<u32> =
            self.empty.iter().copied().filter(|&i| free(&self.segments[i as usize])).collect();
        self.release(&released);
        released
    }

    /// Never to be cleaned.
    pub fn mark_damaged(&mut self, segment: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.damaged = true;
        }
    }

    /// All records applied to the segment were read, and no map refers to any of their pages: nor will one ever, since only a
    /// record that stands in it makes a map do so. Pages that it counts all the same (of a deleted snapshot whose leaf could not be read; or
    /// a hostile image never had them) are given back. Else it is never cleaned.
    pub fn bury(&mut self, segment: u32) {
        let Some(s) = self.segments.get_mut(segment as usize) else { return };
        let lost = std::mem::take(&mut s.live_base);
        s.damaged = s.live_open > 0;
        if lost > 0 {
            self.data_live = self.data_live.saturating_sub(u64::from(lost));
            self.page_died(segment);
        }
    }

    /// Pages up to `used_pages` are filled.
    pub fn wrote(&mut self, segment: u32, used_pages: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.used_pages = s.used_pages.max(used_pages);
        }
    }

    /// A segment that data can be in. A replay begins with a map as old as the checkpoint, and meets the records that took the
    /// last data of a segment in which that very checkpoint stands: it was freed while the checkpoint was under way.
    fn data_segment(&mut self, loc: Loc) -> Option<&mut Segment> {
        self.segments.get_mut(loc.segment as usize).filter(|s| s.stream != Stream::Meta)
    }

    /// A page is about to stand at a place that another one has.
    pub fn add_referrer(&mut self, loc: Loc, page: u64) {
        if self.data_segment(loc).is_some() {
            self.referrers.add(loc.segment, page);
            self.cloned += 1;
        }
    }

    /// Cloned pages since the start: whether one more got a place.
    pub fn cloned(&self) -> u64 {
        self.cloned
    }

    /// The committed map refers to one page more.
    pub fn add_base(&mut self, loc: Loc) {
        if let Some(s) = self.data_segment(loc) {
            s.live_base = s.live_base.saturating_add(1);
            let first = s.live() == 1;
            self.data_live += 1;
            if first {
                self.look(loc.segment);
            }
        }
    }

    /// The committed map refers to one page less.
    pub fn drop_base(&mut self, loc: Loc) {
        if let Some(s) = self.data_segment(loc)
            && s.live_base > 0
        {
            s.live_base -= 1;
            self.data_live = self.data_live.saturating_sub(1);
            self.page_died(loc.segment);
        }
    }

    /// The open epoch refers to one page more.
    pub fn add_open(&mut self, loc: Loc) {
        if let Some(s) = self.data_segment(loc) {
            s.live_open = s.live_open.saturating_add(1);
            let first = s.live() == 1;
            self.data_live += 1;
            if first {
                self.look(loc.segment);
            }
        }
    }

    /// The open epoch refers to one page less.
    pub fn drop_open(&mut self, loc: Loc) {
        if let Some(s) = self.data_segment(loc)
            && s.live_open > 0
        {
            s.live_open -= 1;
            self.data_live = self.data_live.saturating_sub(1);
            self.page_died(loc.segment);
        }
    }

    /// A page of the checkpoint under way (or, at a start, of the last one).
    pub fn add_meta(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize)
            && s.stream == Stream::Meta
        {
            s.live_base += 1;
            self.meta_new += 1;
            if s.live() == 1 {
                self.look(loc.segment);
            }
        }
    }

    /// A page that only the checkpoint before the last one needed.
    pub fn drop_meta(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize)
            && s.stream == Stream::Meta
            && s.live_base > 0
        {
            s.live_base -= 1;
            self.meta_live = self.meta_live.saturating_sub(1);
            if s.live() == 0 {
                self.look(loc.segment);
            }
        }
    }

    /// The checkpoint under way is durable: its pages count as those of the last one.
    pub fn meta_is_durable(&mut self) {
        self.meta_live += std::mem::take(&mut self.meta_new);
    }

    /// Closed segments nothing refers to: free once the next checkpoint is durable.
    pub fn empty(&self) -> impl Iterator<Item = u32> {
        self.empty.iter().copied()
    }

    /// Closed meta segments without a page of the current checkpoint.
    pub fn empty_meta(&self) -> impl Iterator<Item = u32> {
        self.empty().filter(|&i| self.segments[i as usize].stream == Stream::Meta)
    }

    /// A durable checkpoint no longer needs these.
    pub fn release(&mut self, segments: &[u32]) {
        for &segment in segments {
            if let Some(s) = self.segments.get_mut(segment as usize) {
                s.state = State::Free;
                s.used_pages = 0;
                self.referrers.forget_segment(segment);
                if segment < self.limit {
                    self.free.insert(segment);
                }
                self.empty.remove(&segment);
            }
        }
    }

    /// From now on no segment from `limit` on is taken, nor counts as free.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
        self.free.split_off(&limit);
    }

    /// More segments, all free; or fewer, if those past the end are all free, which it tells.
    pub fn resize(&mut self, segments: u32) -> bool {
        let new = segments as usize;
        if self.segments.iter().skip(new).any(|s| s.state != State::Free) {
            return false;
        }
        let free = Segment {
            state: State::Free,
            stream: Stream::User,
            used_pages: 0,
            live_base: 0,
            live_open: 0,
            use_seq: 0,
            damaged: false,
            emptied_seq: 0,
            needs_checkpoint: 0,
        };
        (segments..self.segments.len() as u32).for_each(|gone| self.referrers.forget_segment(gone));
        self.free.extend(self.segments.len() as u32..segments);
        self.free.split_off(&segments);
        self.segments.resize(new, free);
        true
    }
}
