//! The state of the page cache: which pages are here, clean, dirty or in flight. No I/O.
//!
//! Pages are found by a hash; an ordered index, which only changes when a page comes or goes, serves ranges. Dirty pages
//! stand in lists that are put in order when they are sent ([`DirtyList`]).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use layout::addr::{PageNo, PageRange};
use rustc_hash::FxHashMap;

use super::page::{PageArc, PageBuf};
use super::ranges::RangeSet;

/// What a dirty page holds: data pages may be written before the commit, metadata not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Changed through the file system logic.
    Metadata,
    /// File bytes. `whole`: replaced in full, so that it is not kept once it is on the device
    /// (the kernel caches it).
    Data {
        /// The page was replaced as a whole.
        whole: bool,
    },
}

/// What the cache knows about a page.
pub enum Lookup {
    /// It is here.
    Hit(PageArc),
    /// It was discarded, and the device may not know yet: zeros.
    Zeros,
    /// A write guard holds it; wait.
    Busy,
    /// Only the device knows.
    Miss,
}

/// Pages and discards that go to the device together.
#[derive(Default)]
pub struct Batch {
    /// Ranges to unmap first.
    pub frees: Vec<PageRange>,
    /// Pages in ascending order.
    pub pages: Vec<(u64, PageArc)>,
}

/// Which list a dirty page counts on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dirt {
    Metadata,
    Data,
}

struct Slot {
    /// `None` while a write guard holds it.
    bytes: Option<PageArc>,
    dirty: Option<Dirt>,
    in_flight: bool,
    /// Not worth keeping once the device has it.
    transient: bool,
    /// Second chance for the clean queue.
    referenced: bool,
    queued: bool,
}

impl Slot {
    fn new(bytes: Option<PageArc>) -> Self {
        Slot { bytes, dirty: None, in_flight: false, transient: false, referenced: false, queued: false }
    }
}

type Slots = FxHashMap<u64, Slot>;

/// The dirty pages of a kind, in the order in which they became so. A page that was dropped, or counts as another kind by
/// now, stays listed until the list is put in order; so one that comes back is listed twice.
struct DirtyList {
    kind: Dirt,
    listed: Vec<u64>,
    count: usize,
}

/// Entries that a list may have beyond twice its pages.
const LISTED_SPARE: usize = 1024;

impl DirtyList {
    fn new(kind: Dirt) -> Self {
        DirtyList { kind, listed: Vec::new(), count: 0 }
    }

    /// A page became dirty of this kind.
    fn add(&mut self, page: u64, slots: &Slots) {
        self.listed.push(page);
        self.count += 1;
        if self.listed.len() > 2 * self.count + LISTED_SPARE {
            self.put_in_order(slots);
        }
    }

    fn put_in_order(&mut self, slots: &Slots) {
        let kind = Some(self.kind);
        self.listed.retain(|page| slots.get(page).is_some_and(|slot| slot.dirty == kind));
        self.listed.sort_unstable();
        self.listed.dedup();
        debug_assert_eq!(self.listed.len(), self.count, "each dirty page is listed");
    }

    /// What was taken of it, in order, and is still dirty.
    fn put_back(&mut self, pages: Vec<u64>) {
        self.count = pages.len();
        self.listed = pages;
    }

    /// Takes the first so many pages, in order.
    fn take(&mut self, pages_max: usize, slots: &Slots) -> Vec<u64> {
        self.put_in_order(slots);
        let rest = self.listed.split_off(pages_max.min(self.listed.len()));
        self.count = rest.len();
        std::mem::replace(&mut self.listed, rest)
    }
}

/// What [`Cache::take`] finds.
pub enum Taken {
    /// The page, and whether it was not dirty before.
    Page(PageArc, bool),
    /// A write guard holds it; wait.
    Busy,
    /// It is not here.
    Absent,
}

/// See the module's text.
pub struct Cache {
    slots: Slots,
    /// The pages that are here, in order.
    index: BTreeSet<u64>,
    clean_queue: VecDeque<u64>,
    clean_pages_max: usize,
    dirty_metadata: DirtyList,
    dirty_data: DirtyList,
    in_flight_pages: usize,
    discards_pending: RangeSet,
    discards_in_flight: RangeSet,
    touched: bool,
}

impl Cache {
    /// An empty cache that keeps about `clean_pages_max` clean pages.
    pub fn new(clean_pages_max: usize) -> Self {
        Cache {
            slots: Slots::default(),
            index: BTreeSet::new(),
            clean_queue: VecDeque::new(),
            clean_pages_max,
            dirty_metadata: DirtyList::new(Dirt::Metadata),
            dirty_data: DirtyList::new(Dirt::Data),
            in_flight_pages: 0,
            discards_pending: RangeSet::default(),
            discards_in_flight: RangeSet::default(),
            touched: false,
        }
    }

    /// Looks a page up and marks it used.
    pub fn lookup(&mut self, page: u64) -> Lookup {
        if let Some(slot) = self.slots.get_mut(&page) {
            slot.referenced = true;
            return match &slot.bytes {
                Some(bytes) => Lookup::Hit(Arc::clone(bytes)),
                None => Lookup::Busy,
            };
        }
        if self.is_discarded(page) { Lookup::Zeros } else { Lookup::Miss }
    }

    /// As [`Cache::lookup`] for pages `first..end`, calling `each` with the pages that are here;
    /// false if a write guard holds one of them.
    pub fn lookup_range(&self, first: u64, end: u64, mut each: impl FnMut(u64, &PageArc)) -> bool {
        for &page in self.index.range(first..end) {
            match self.slots.get(&page).and_then(|slot| slot.bytes.as_ref()) {
                Some(bytes) => each(page, bytes),
                None => return false,
            }
        }
        true
    }

    /// The unacknowledged discards within `first..end`, as (first, one past the last).
    pub fn discarded_in(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.discards_pending.overlaps(first, end).chain(self.discards_in_flight.overlaps(first, end))
    }

    /// Whether any discard waits for its acknowledgement.
    pub fn has_discards(&self) -> bool {
        !self.discards_pending.is_empty() || !self.discards_in_flight.is_empty()
    }

    /// Whether it was discarded, and the device may not know.
    pub fn is_discarded(&self, page: u64) -> bool {
        self.discards_pending.contains(page) || self.discards_in_flight.contains(page)
    }

    /// Pages in `first..end` that are dirty or in flight: mapped, whatever the device says.
    pub fn unlanded_in(&self, first: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        let unlanded = |page: &u64| self.slots.get(page).is_some_and(|s| s.dirty.is_some() || s.in_flight);
        self.index.range(first..end).copied().filter(unlanded)
    }

    /// Keeps a page that was read from the device. If the page came here meanwhile, that one wins.
    pub fn insert_clean(&mut self, page: u64, bytes: PageArc) -> PageArc {
        if let Some(slot) = self.slots.get(&page) {
            return slot.bytes.as_ref().map_or(bytes, Arc::clone);
        }
        let slot = Slot { queued: true, ..Slot::new(Some(Arc::clone(&bytes))) };
        self.slots.insert(page, slot);
        self.index.insert(page);
        self.clean_queue.push_back(page);
        self.evict();
        bytes
    }

    /// Replaces a page in the open epoch; true if it was not dirty before.
    pub fn put_dirty(&mut self, page: u64, bytes: PageArc, content: Content) -> bool {
        self.mark_dirty(page, content, Some(bytes))
    }

    /// Hands a page that is here over to a write guard, dirty.
    pub fn take(&mut self, page: u64) -> Taken {
        let Some(slot) = self.slots.get_mut(&page) else { return Taken::Absent };
        let Some(bytes) = slot.bytes.take() else { return Taken::Busy };
        slot.referenced = true;
        let newly = slot.dirty != Some(Dirt::Metadata) && self.mark_dirty(page, Content::Metadata, None);
        Taken::Page(bytes, newly)
    }

    /// Hands out a new page to a write guard; true if the page was not dirty before.
    pub fn take_fresh(&mut self, page: u64) -> bool {
        self.mark_dirty(page, Content::Metadata, None)
    }

    /// The end of a write guard.
    pub fn give_back(&mut self, page: u64, bytes: PageArc) {
        match self.slots.get_mut(&page).filter(|slot| slot.dirty == Some(Dirt::Metadata)) {
            Some(slot) => slot.bytes = Some(bytes),
            None => {
                self.put_dirty(page, bytes, Content::Metadata);
            }
        }
    }

    /// A page becomes dirty, with these bytes, or with those of a write guard.
    fn mark_dirty(&mut self, page: u64, content: Content, bytes: Option<PageArc>) -> bool {
        self.touched = true;
        let slot = self.slots.entry(page).or_insert_with(|| {
            self.index.insert(page);
            Slot { referenced: true, ..Slot::new(None) }
        });
        slot.bytes = bytes;
        let before = slot.dirty;
        slot.transient = content == Content::Data { whole: true };
        match (before, content) {
            (Some(Dirt::Metadata), _) | (Some(Dirt::Data), Content::Data { .. }) => {}
            (_, Content::Metadata) => {
                slot.dirty = Some(Dirt::Metadata);
                self.dirty_data.count -= usize::from(before.is_some());
                self.dirty_metadata.add(page, &self.slots);
            }
            (None, Content::Data { .. }) => {
                slot.dirty = Some(Dirt::Data);
                self.dirty_data.add(page, &self.slots);
            }
        }
        before.is_none()
    }

    /// Drops `first..end` and remembers to unmap it; gives the number of dirty pages dropped.
    pub fn discard(&mut self, first: u64, end: u64) -> u64 {
        self.touched = true;
        let dropped_dirty = self.drop_pages(first, end, |_| true);
        self.discards_pending.insert(first, end);
        dropped_dirty
    }

    /// Drops those of `first..end` that `goes` names; gives the number of dirty pages among them.
    fn drop_pages(&mut self, first: u64, end: u64, goes: impl Fn(&Slot) -> bool) -> u64 {
        let mut dropped_dirty = 0;
        let mut from = first;
        while let Some(&page) = self.index.range(from..end).next() {
            from = page + 1;
            if !self.slots.get(&page).is_none_or(&goes) {
                continue;
            }
            self.index.remove(&page);
            let Some(slot) = self.slots.remove(&page) else { continue };
            self.in_flight_pages -= usize::from(slot.in_flight);
            match slot.dirty {
                Some(Dirt::Metadata) => self.dirty_metadata.count -= 1,
                Some(Dirt::Data) => self.dirty_data.count -= 1,
                None => continue,
            }
            dropped_dirty += 1;
        }
        dropped_dirty
    }

    /// Whether the open epoch has any change, sent or not.
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// Dirty pages: (metadata, data).
    pub fn dirty_pages(&self) -> (usize, usize) {
        (self.dirty_metadata.count, self.dirty_data.count)
    }

    /// Pages that may not be dropped: dirty or on their way.
    pub fn unlanded_pages(&self) -> usize {
        self.dirty_metadata.count + self.dirty_data.count + self.in_flight_pages
    }

    /// Takes everything dirty and ends the epoch. No write guard may be live.
    pub fn freeze(&mut self) -> Batch {
        let mut dirty = self.dirty_metadata.take(usize::MAX, &self.slots);
        dirty.append(&mut self.dirty_data.take(usize::MAX, &self.slots));
        dirty.sort_unstable();
        let batch = self.launch(dirty);
        self.touched = false;
        batch
    }

    /// Takes up to `pages_max` dirty data pages, and all discards, for writing within the epoch.
    pub fn take_data(&mut self, pages_max: usize) -> Batch {
        let taken = self.dirty_data.take(pages_max, &self.slots);
        self.launch(taken)
    }

    /// Takes those dirty data pages that `wanted` names, and all discards, for writing within the epoch.
    pub fn take_data_of(&mut self, wanted: impl Fn(u64) -> bool) -> Batch {
        let all = self.dirty_data.take(usize::MAX, &self.slots);
        let (taken, rest): (Vec<u64>, Vec<u64>) = all.into_iter().partition(|&page| wanted(page));
        self.dirty_data.put_back(rest);
        self.launch(taken)
    }

    /// The open epoch has a change that is not here.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// The device has something else at `first..end` by now: drops what is here, dirty or not; gives the number of dirty pages.
    /// Nothing of it is in flight.
    pub fn forget(&mut self, first: u64, end: u64) -> u64 {
        self.drop_pages(first, end, |_| true)
    }

    /// As [`Cache::forget`], but for what is dirty.
    pub fn forget_clean(&mut self, first: u64, end: u64) {
        self.drop_pages(first, end, |slot| slot.dirty.is_none());
    }

    /// `dirty` is in order.
    fn launch(&mut self, dirty: Vec<u64>) -> Batch {
        assert!(self.discards_in_flight.is_empty() && self.in_flight_pages == 0, "one batch at a time");
        self.discards_in_flight = std::mem::take(&mut self.discards_pending);
        let frees = self
            .discards_in_flight
            .iter()
            .map(|(first, end)| PageRange { first: PageNo(first), count: end - first })
            .collect();
        let mut pages = Vec::with_capacity(dirty.len());
        for page in dirty {
            let slot = self.slots.get_mut(&page).expect("a dirty page is in the cache");
            let bytes = slot.bytes.as_ref().expect("no write guard lives while its page is sent");
            slot.dirty = None;
            slot.in_flight = true;
            pages.push((page, Arc::clone(bytes)));
        }
        self.in_flight_pages = pages.len();
        Batch { frees, pages }
    }

    /// The device has acknowledged the batch.
    pub fn landed(&mut self, batch: &Batch) {
        self.discards_in_flight.clear();
        self.in_flight_pages = 0;
        for (page, _) in &batch.pages {
            let Some(slot) = self.slots.get_mut(page).filter(|s| s.in_flight) else { continue };
            slot.in_flight = false;
            if slot.dirty.is_some() {
                continue;
            }
            if slot.transient {
                self.remove(*page);
            } else if !slot.queued {
                slot.queued = true;
                self.clean_queue.push_back(*page);
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        while self.clean_queue.len() > self.clean_pages_max {
            let Some(page) = self.clean_queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&page) else { continue };
            slot.queued = false;
            if slot.dirty.is_some() || slot.in_flight || slot.bytes.is_none() {
                continue;
            }
            if slot.referenced {
                slot.referenced = false;
                slot.queued = true;
                self.clean_queue.push_back(page);
            } else {
                self.remove(page);
            }
        }
    }

    fn remove(&mut self, page: u64) {
        self.slots.remove(&page);
        self.index.remove(&page);
    }

    /// A page of zeros for a miss inside a discard.
    pub fn zeros() -> PageArc {
        PageBuf::zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(byte: u8) -> PageArc {
        PageBuf::copy_of(&[byte; layout::addr::PAGE])
    }

    #[test]
    fn clean_pages_are_bounded_and_used_ones_stay() {
        let mut cache = Cache::new(10);
        for page in 0..10 {
            cache.insert_clean(page, filled(1));
        }
        assert!(matches!(cache.lookup(3), Lookup::Hit(_)));
        for page in 10..19 {
            cache.insert_clean(page, filled(1));
        }
        assert!(matches!(cache.lookup(3), Lookup::Hit(_)), "a used page got its second chance");
        assert!(matches!(cache.lookup(4), Lookup::Miss));
    }

    #[test]
    fn dirty_pages_are_never_dropped() {
        let mut cache = Cache::new(4);
        for page in 0..100 {
            cache.put_dirty(page, filled(7), Content::Data { whole: false });
        }
        let batch = cache.freeze();
        for page in 200..300 {
            cache.insert_clean(page, filled(1));
        }
        for page in 0..100 {
            assert!(matches!(cache.lookup(page), Lookup::Hit(_)), "page {page} is in flight");
        }
        cache.landed(&batch);
        let kept = (0..100).filter(|&p| matches!(cache.lookup(p), Lookup::Hit(_))).count();
        assert!(kept <= 4, "{kept} clean pages are above the bound");
    }

    #[test]
    fn a_page_changed_in_flight_stays_dirty() {
        let mut cache = Cache::new(4);
        cache.put_dirty(5, filled(1), Content::Metadata);
        let batch = cache.freeze();
        assert!(!cache.is_touched());
        assert!(cache.put_dirty(5, filled(2), Content::Metadata), "dirty in the next epoch");
        assert_eq!(batch.pages[0].1[0], 1, "the frozen bytes do not change");
        cache.landed(&batch);
        assert_eq!(cache.dirty_pages(), (1, 0));
        assert_eq!(cache.freeze().pages[0].1[0], 2);
    }

    #[test]
    fn a_discard_hides_the_device_until_it_has_landed() {
        let mut cache = Cache::new(4);
        cache.put_dirty(5, filled(1), Content::Data { whole: true });
        assert_eq!(cache.discard(0, 10), 1);
        assert!(matches!(cache.lookup(5), Lookup::Zeros));
        cache.put_dirty(6, filled(2), Content::Data { whole: false });
        let batch = cache.freeze();
        assert_eq!(batch.frees, [PageRange { first: PageNo(0), count: 10 }]);
        assert_eq!(batch.pages.len(), 1, "the page dropped by the discard is not written");
        assert!(matches!(cache.lookup(5), Lookup::Zeros), "in flight is not landed");
        cache.landed(&batch);
        assert!(matches!(cache.lookup(5), Lookup::Miss));
        assert!(matches!(cache.lookup(6), Lookup::Hit(_)));
    }

    #[test]
    fn a_discard_of_a_page_in_flight_survives_its_landing() {
        let mut cache = Cache::new(4);
        cache.put_dirty(5, filled(1), Content::Data { whole: false });
        let batch = cache.take_data(10);
        cache.discard(5, 6);
        cache.landed(&batch);
        assert!(matches!(cache.lookup(5), Lookup::Zeros), "the later discard still waits");
        assert_eq!(cache.freeze().frees, [PageRange { first: PageNo(5), count: 1 }]);
    }
}
