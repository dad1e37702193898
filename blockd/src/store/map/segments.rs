//! What each segment holds and how much of it is alive.
//!
//! Life of a segment: *free* -> *open* (a stream's head) -> *closed* -> all its pages die, by
//! overwriting or by cleaning -> a durable checkpoint -> *free*.

use std::collections::BTreeSet;

use crate::store::format::Loc;
use crate::store::format::checkpoint::SegmentUsage;
use crate::store::format::segment::Stream;

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
}

impl Segment {
    /// Pages something refers to.
    pub fn live(&self) -> u32 {
        self.live_base + self.live_open
    }
}

/// All segments.
#[derive(Debug)]
pub struct SegmentTable {
    segments: Vec<Segment>,
    free: BTreeSet<u32>,
    /// Segments from here on are never taken: the store is being made smaller.
    limit: u32,
    data_live: u64,
    meta_live: u64,
    data_uses: u64,
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
            })
            .collect();
        let free = (0u32..).zip(&segments).filter(|(_, s)| s.state == State::Free).map(|(i, _)| i).collect();
        let data_live = segments.iter().map(|s| u64::from(s.live_base)).sum();
        SegmentTable { segments, free, limit: u32::MAX, data_live, meta_live: 0, data_uses: 0 }
    }

    /// All of them, by index.
    pub fn all(&self) -> &[Segment] {
        &self.segments
    }

    /// One of them.
    pub fn get(&self, segment: u32) -> Option<&Segment> {
        self.segments.get(segment as usize)
    }

    /// Free segments.
    pub fn free_count(&self) -> u32 {
        self.free.len() as u32
    }

    /// Segments taken for data so far.
    pub fn data_uses(&self) -> u64 {
        self.data_uses
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
        let segment = self.free.pop_first()?;
        self.data_uses += u64::from(stream != Stream::Meta);
        self.open(segment, stream, use_seq);
        Some(segment)
    }

    /// Replay: a stream went on in this segment.
    pub fn open(&mut self, segment: u32, stream: Stream, use_seq: u64) {
        self.free.remove(&segment);
        if let Some(s) = self.segments.get_mut(segment as usize) {
            *s = Segment {
                state: State::Open,
                stream,
                used_pages: 1,
                live_base: 0,
                live_open: 0,
                use_seq,
                damaged: false,
            };
        }
    }

    /// The segment is no longer a head.
    pub fn close(&mut self, segment: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.state = State::Closed;
        }
    }

    /// The segment is the head of its stream again.
    pub fn reopen(&mut self, segment: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.state = State::Open;
        }
    }

    /// Never to be cleaned.
    pub fn mark_damaged(&mut self, segment: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.damaged = true;
        }
    }

    /// Pages up to `used_pages` are filled.
    pub fn wrote(&mut self, segment: u32, used_pages: u32) {
        if let Some(s) = self.segments.get_mut(segment as usize) {
            s.used_pages = s.used_pages.max(used_pages);
        }
    }

    /// The committed map refers to one page more.
    pub fn add_base(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize) {
            s.live_base += 1;
            self.data_live += 1;
        }
    }

    /// The committed map refers to one page less.
    pub fn drop_base(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize)
            && s.live_base > 0
        {
            s.live_base -= 1;
            self.data_live = self.data_live.saturating_sub(1);
        }
    }

    /// The open epoch refers to one page more.
    pub fn add_open(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize) {
            s.live_open += 1;
            self.data_live += 1;
        }
    }

    /// The open epoch refers to one page less.
    pub fn drop_open(&mut self, loc: Loc) {
        if let Some(s) = self.segments.get_mut(loc.segment as usize)
            && s.live_open > 0
        {
            s.live_open -= 1;
            self.data_live = self.data_live.saturating_sub(1);
        }
    }

    /// The last checkpoint consists of these pages; only meta segments change.
    pub fn set_meta(&mut self, pages: impl Iterator<Item = Loc>) {
        for s in self.segments.iter_mut().filter(|s| s.stream == Stream::Meta) {
            s.live_base = 0;
        }
        self.meta_live = 0;
        for loc in pages {
            if let Some(s) = self.segments.get_mut(loc.segment as usize)
                && s.stream == Stream::Meta
            {
                s.live_base += 1;
                self.meta_live += 1;
            }
        }
    }

    /// Closed segments nothing refers to: free once the next checkpoint is durable.
    pub fn empty(&self) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.segments)
            .filter(|(_, s)| s.state == State::Closed && s.live() == 0)
            .map(|(i, _)| i)
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
                if segment < self.limit {
                    self.free.insert(segment);
                }
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
        };
        self.free.extend(self.segments.len() as u32..segments);
        self.free.split_off(&segments);
        self.segments.resize(new, free);
        true
    }
}
