//! What must hold of the maps after each checkpoint: every test that makes one checks it.

use std::collections::{BTreeMap, BTreeSet};

use super::Maps;
use super::base::BaseMap;
use super::segments::State;
use crate::store::format::Loc;
use crate::store::format::directory::Target;
use crate::store::format::segment::Stream;

impl BaseMap {
    /// To be called when a checkpoint has written the directory, and before it is settled.
    ///
    /// # Panics
    /// If a page of the directory does not list all that belongs under it: the next start would not find that.
    pub(in crate::store) fn verify_directory(&self) {
        for level in 0..self.directory.levels() {
            for r in self.directory.refs(level, 0, None) {
                let to = self.directory.next_key(level, r.key);
                let below = match level.checked_sub(1) {
                    None => self.refs(r.key, to).count(),
                    Some(below) => self.directory.refs(below, r.key, to).count(),
                };
                let Target::Page { count, .. } = r.target else { panic!("{r:?} is a page of the directory") };
                assert_eq!(usize::from(count), below, "references in page {:#x} of level {level}", r.key);
            }
        }
    }
}

impl Maps {
    /// To be called when a checkpoint is settled and nothing has changed since; `own_pages` are its payload and root.
    ///
    /// # Panics
    /// If two things stand in one place, or a segment's count is not that of the pages in it.
    pub(in crate::store) fn verify_meta(&self, own_pages: &[Loc]) {
        let maps = || self.all();
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
