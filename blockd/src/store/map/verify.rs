//! Counts what stands in segments of meta pages again, from the maps: every test that makes a checkpoint does.

use std::collections::{BTreeMap, BTreeSet};

use super::Maps;
use super::segments::State;
use crate::store::format::Loc;
use crate::store::format::segment::Stream;

impl Maps {
    /// To be called when a checkpoint is settled and nothing has changed since; `own_pages` are its payload and root.
    ///
    /// # Panics
    /// If two things stand in one place, or a segment's count is not that of the pages in it.
    pub(in crate::store) fn verify_meta(&self, own_pages: &[Loc]) {
        let maps = || self.ids().into_iter().filter_map(|id| self.map(id));
        let kept = maps().flat_map(|map| map.disk_locs().chain(map.dropped_next().iter().copied()));
        let mut pages = BTreeMap::<u32, BTreeSet<u16>>::new();
        for loc in kept.chain(self.dropped.iter().chain(own_pages).copied()) {
            let new = pages.entry(loc.segment).or_default().insert(loc.offset);
            assert!(new, "two pages of the checkpoint stand at {loc}");
        }
        for (segment, s) in (0u32..).zip(self.segments.all()) {
            let is_meta = s.stream == Stream::Meta && s.state != State::Free;
            let counted = if is_meta { s.live() } else { 0 };
            let found = pages.get(&segment).map_or(0, BTreeSet::len);
            assert_eq!(counted as usize, found, "pages of the checkpoint in segment {segment}, {s:?}");
        }
        let all: usize = pages.values().map(BTreeSet::len).sum();
        assert_eq!(self.segments.meta_live(), all as u64, "pages of the checkpoint");
    }
}
