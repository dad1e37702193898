//! A map from device pages to places: the committed one, the open epoch's, the delta of a snapshot.
//!
//! Leaves, each within one unit of 2^15 device pages (so that the allocation map's summaries are sums over
//! leaves), paged in on demand. A leaf with a single entry has neither a page on disk nor memory of its own: the entry
//! stands in the directory and in the slot.
//!
//! Life of a leaf: *unloaded* (only its place is known) -> *clean* -> *dirty* -> (a checkpoint begins) *frozen*
//! -> (its page is being written) *writing* -> *clean*. Whoever changes a leaf while a checkpoint is under way leaves
//! behind what the checkpoint needs of it (`saved`), so the checkpoint gets the state of its beginning, and beginning
//! it costs the same however much is dirty. A leaf that runs empty is dropped by the next checkpoint.
//!
//! An entry is a place, or *nowhere*: known to be unmapped, which only deltas of snapshots have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use layout::addr::MAP_UNIT_PAGES;

use super::Lookup;
use super::directory::Directory;
use super::leaf::{Entry, Leaf};
use crate::store::format::directory::{Ref, Target};
use crate::store::format::leaf::{LeafEntry, Runs};
use crate::store::format::{Loc, Mapping};

/// Memory of a slot in the tree of slots, about: 24 bytes at a fill of a half to all.
const SLOT_BYTES: usize = 44;
/// Leaves that one call looks at when there are too many.
const EVICT_STEPS: usize = 256;

/// Where in its life a leaf that is in memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Clean,
    /// Changed in this generation, or (*frozen*) in the one that a checkpoint is about to write.
    Dirty(Generation),
    Writing,
}

/// Turns over when a checkpoint begins; two values do, since it is done with one before the next begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Generation {
    #[default]
    Even,
    Odd,
}

/// One leaf.
#[derive(Debug)]
enum Slot {
    /// On disk.
    Unloaded { count: u16, offset: u16, segment: u32, crc: u32 },
    /// Its only entry.
    Inline { state: State, rel: u16, offset: u16, segment: u32, crc: u32 },
    /// No entry.
    Empty { state: State },
    /// Its entries.
    Loaded { state: State, count: u16, leaf: Box<Leaf> },
}

const _: () = assert!(size_of::<Slot>() == 16);

impl Slot {
    fn inline(state: State, e: LeafEntry) -> Self {
        Slot::Inline { state, rel: e.rel, offset: e.offset, segment: e.segment, crc: e.crc }
    }

    fn entry(&self) -> Option<LeafEntry> {
        match *self {
            Slot::Inline { rel, offset, segment, crc, .. } => Some(LeafEntry { rel, offset, segment, crc }),
            _ => None,
        }
    }

    fn state(&self) -> State {
        match self {
            Slot::Unloaded { .. } => State::Clean,
            Slot::Inline { state, .. } | Slot::Empty { state } | Slot::Loaded { state, .. } => *state,
        }
    }

    fn set_state(&mut self, new: State) {
        match self {
            Slot::Unloaded { .. } => panic!("a leaf is loaded before it is changed"),
            Slot::Inline { state, .. } | Slot::Empty { state } | Slot::Loaded { state, .. } => *state = new,
        }
    }

    fn count(&self) -> u16 {
        match self {
            Slot::Unloaded { count, .. } | Slot::Loaded { count, .. } => *count,
            Slot::Inline { .. } => 1,
            Slot::Empty { .. } => 0,
        }
    }

    /// Its page in the last checkpoint.
    fn disk(&self) -> Option<Mapping> {
        match self {
            Slot::Unloaded { offset, segment, crc, .. } => {
                Some(Mapping { loc: Loc { segment: *segment, offset: *offset }, crc: *crc })
            }
            Slot::Loaded { leaf, .. } => leaf.disk,
            Slot::Inline { .. } | Slot::Empty { .. } => None,
        }
    }

    /// What a directory says of it, if it is clean.
    fn target(&self) -> Option<Target> {
        match self {
            Slot::Inline { .. } => self.entry().map(Target::Entry),
            _ => self.disk().map(|page| Target::Page { page, count: self.count() }),
        }
    }
}

/// What a checkpoint under way still needs of a leaf that has been changed since it began.
#[derive(Debug)]
enum Saved {
    /// It is yet to be written, as this.
    Leaf(Body),
    /// What the directory says of it.
    Ref(Target),
}

/// The entries of a leaf, in a copy.
#[derive(Debug)]
enum Body {
    Page(Box<Leaf>),
    Entry(LeafEntry),
    Empty,
}

/// A leaf that a checkpoint is to write.
pub(in crate::store) enum Frozen<'a> {
    /// It needs a page.
    Page(&'a Leaf),
    /// It stands in the directory, or is no more.
    NoPage,
}

/// What a map knows of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Nothing.
    Absent,
    /// An entry.
    Entry(Entry),
    /// The leaf of this key must be loaded first.
    Leaf(u64),
}

/// Pages of the last checkpoint that are needed no more once a further one is durable.
#[derive(Debug, Default)]
struct Dropped {
    /// Once the one under way is.
    now: Vec<Loc>,
    /// Once the one that begins next is.
    next: Vec<Loc>,
}

/// Sums over the leaves.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Pages with an entry.
    pages: u64,
    /// Leaves that have, or will get, a page of their own.
    paged: usize,
    /// Those of them that the next checkpoint writes.
    dirty: usize,
    /// Bytes of leaves in memory.
    bytes: usize,
    /// Those of clean ones, which could be evicted.
    clean_bytes: usize,
    /// Leaves that are not in memory.
    unloaded: usize,
}

/// The leaves by their key, the lowest device page each may map.
#[derive(Debug, Default)]
pub struct BaseMap {
    slots: BTreeMap<u64, Slot>,
    pub(in crate::store) directory: Directory,
    generation: Generation,
    tally: Tally,
    /// Keys of the leaves changed since the last checkpoint began, each once.
    dirty: VecDeque<u64>,
    /// Keys of those that the checkpoint under way still has to write.
    frozen: VecDeque<u64>,
    /// A checkpoint is under way.
    running: bool,
    saved: BTreeMap<u64, Saved>,
    dropped: Dropped,
    /// Bytes that slots and leaves may take; 0 = no limit.
    bytes_max: usize,
    /// While the log gathers the leaves of a record none may go.
    held: bool,
    /// There are leaves that cannot be read: changes pass leaves over that are not loaded.
    has_damage: bool,
    /// Keys of loaded leaves, the next to be looked at first.
    clock: VecDeque<u64>,
}

fn unit_start(page: u64) -> u64 {
    page & !(MAP_UNIT_PAGES - 1)
}

fn rel(page: u64) -> u16 {
    (page & (MAP_UNIT_PAGES - 1)) as u16
}

impl BaseMap {
    /// Builds the map of a checkpoint from the references of its directory, in order.
    pub(in crate::store) fn from_directory(refs: &[Ref]) -> Self {
        let mut map = BaseMap::default();
        // In one go, so that the tree of slots is packed.
        map.slots = refs
            .iter()
            .map(|r| {
                let slot = match r.target {
                    Target::Entry(e) => Slot::inline(State::Clean, e),
                    Target::Page { page, count } => Slot::Unloaded {
                        count,
                        offset: page.loc.offset,
                        segment: page.loc.segment,
                        crc: page.crc,
                    },
                };
                (r.key, slot)
            })
            .collect();
        let mut tally = Tally::default();
        map.slots.values().for_each(|slot| map.add_to(&mut tally, slot));
        map.tally = tally;
        map
    }

    fn slot_at(&self, page: u64) -> Option<(u64, &Slot)> {
        self.slots.range(unit_start(page)..=page).next_back().map(|(&key, slot)| (key, slot))
    }

    /// Key of the leaf that covers a page, if there is one.
    fn key_of(&self, page: u64) -> Option<u64> {
        self.slot_at(page).map(|(key, _)| key)
    }

    /// What is known of a page.
    pub fn find(&self, page: u64) -> Found {
        let Some((key, slot)) = self.slot_at(page) else { return Found::Absent };
        let entry = match slot {
            Slot::Unloaded { .. } => return Found::Leaf(key),
            Slot::Empty { .. } => None,
            Slot::Inline { .. } => slot.entry().filter(|e| e.rel == rel(page)).map(Entry::of),
            Slot::Loaded { leaf, .. } => leaf.get(rel(page)),
        };
        entry.map_or(Found::Absent, Found::Entry)
    }

    /// Looks a page up.
    pub fn lookup(&self, page: u64) -> Lookup {
        match self.find(page) {
            Found::Absent | Found::Entry(Entry::Nowhere) => Lookup::Unmapped,
            Found::Entry(Entry::At(mapping)) => Lookup::Mapped(mapping),
            Found::Leaf(key) => Lookup::Leaf(key),
        }
    }

    /// Adds the keys of leaves that cover part of a range and are not loaded.
    pub fn missing(&self, first: u64, count: u64, keys: &mut Vec<u64>) {
        if self.is_loaded() {
            return;
        }
        let start = self.key_of(first).unwrap_or(first);
        let end = first.saturating_add(count);
        let unloaded = |slot: &Slot| matches!(slot, Slot::Unloaded { .. });
        keys.extend(self.slots.range(start..end.max(start)).filter(|(_, s)| unloaded(s)).map(|(k, _)| *k));
    }

    /// All leaves are in memory.
    pub fn is_loaded(&self) -> bool {
        self.tally.unloaded == 0
    }

    /// The device pages that the leaf of `key` may map.
    pub fn range_of(&self, key: u64) -> std::ops::Range<u64> {
        let end = unit_start(key) + MAP_UNIT_PAGES;
        key..self.slots.range(key + 1..end.max(key + 1)).next().map_or(end, |(&next, _)| next)
    }

    /// A leaf cannot be read, and the map is changed all the same: what is in leaves that are not loaded stays unknown.
    pub(in crate::store) fn tolerate_damage(&mut self) {
        self.has_damage = true;
    }

    /// A page is in a leaf that cannot be read; see [`BaseMap::tolerate_damage`].
    pub(in crate::store) fn is_unknown(&self, page: u64) -> bool {
        self.has_damage && matches!(self.find(page), Found::Leaf(_))
    }

    /// Where the leaf of `key` stands, if it is not loaded.
    pub fn unloaded(&self, key: u64) -> Option<Mapping> {
        self.slots.get(&key).filter(|s| matches!(s, Slot::Unloaded { .. })).and_then(Slot::disk)
    }

    /// Puts a leaf in that was read from `from`, unless things changed meanwhile.
    pub fn load(&mut self, key: u64, from: Mapping, runs: &Runs) {
        if self.unloaded(key) == Some(from) {
            let leaf = Box::new(Leaf::from_runs(Some(from), runs));
            let count = leaf.page_count() as u16;
            self.exchange(key, Slot::Loaded { state: State::Clean, count, leaf });
            self.wind(key);
            self.evict(Some(key));
        }
    }

    fn add_to(&self, tally: &mut Tally, slot: &Slot) {
        tally.pages += u64::from(slot.count());
        tally.paged += usize::from(matches!(slot, Slot::Unloaded { .. } | Slot::Loaded { .. }));
        tally.unloaded += usize::from(matches!(slot, Slot::Unloaded { .. }));
        if let Slot::Loaded { state, leaf, .. } = slot {
            tally.dirty += usize::from(*state == State::Dirty(self.generation));
            let bytes = leaf.heap_bytes();
            tally.bytes += bytes;
            tally.clean_bytes += if *state == State::Clean { bytes } else { 0 };
        }
    }

    fn count_in(&mut self, slot: &Slot) {
        let mut tally = self.tally;
        self.add_to(&mut tally, slot);
        self.tally = tally;
    }

    fn count_out(&mut self, slot: &Slot) {
        let mut of_slot = Tally::default();
        self.add_to(&mut of_slot, slot);
        self.tally.pages -= of_slot.pages;
        self.tally.paged -= of_slot.paged;
        self.tally.unloaded -= of_slot.unloaded;
        self.tally.dirty -= of_slot.dirty;
        self.tally.bytes -= of_slot.bytes;
        self.tally.clean_bytes -= of_slot.clean_bytes;
    }

    /// A leaf was loaded, or made: it is among those that may be evicted.
    fn wind(&mut self, key: u64) {
        self.clock.push_back(key);
        if self.clock.len() > 4 * self.tally.paged + 1024 {
            // Leaves that came and went left their keys behind.
            let BaseMap { clock, slots, .. } = self;
            let unique: BTreeSet<u64> = clock.drain(..).collect();
            let loaded = |key: &u64| matches!(slots.get(key), Some(Slot::Loaded { .. }));
            clock.extend(unique.into_iter().filter(loaded));
        }
    }

    /// Puts a clean slot in the place of another.
    fn exchange(&mut self, key: u64, slot: Slot) {
        self.count_in(&slot);
        if let Some(old) = self.slots.insert(key, slot) {
            self.count_out(&old);
        }
    }

    /// Changes a leaf that is in memory (an empty one, if there is none): marks it dirty, saves what a
    /// checkpoint under way needs of it, and gives it the form that fits its entries.
    fn edit<R>(&mut self, key: u64, change: impl FnOnce(&mut Body) -> R) -> R {
        let nothing = Slot::Empty { state: State::Clean };
        let slot = self.slots.get_mut(&key).map(|slot| std::mem::replace(slot, nothing));
        let was_loaded = matches!(slot, Some(Slot::Loaded { .. }));
        if let Some(slot) = &slot {
            self.count_out(slot);
        }
        let dirty = State::Dirty(self.generation);
        let state = slot.as_ref().map(Slot::state);
        let target = slot.as_ref().and_then(Slot::target);
        let mut body = match slot {
            None | Some(Slot::Empty { .. }) => Body::Empty,
            Some(Slot::Loaded { leaf, .. }) => Body::Page(leaf),
            Some(inline @ Slot::Inline { .. }) => inline.entry().map_or(Body::Empty, Body::Entry),
            Some(Slot::Unloaded { .. }) => panic!("a leaf is loaded before it is changed"),
        };
        match state {
            Some(state) if state == dirty => {}
            // Frozen: the page on disk goes with the copy that takes its place.
            Some(State::Dirty(_)) => {
                let copy = match &mut body {
                    Body::Page(leaf) => {
                        let copy = Box::new(Leaf::clone(leaf));
                        leaf.disk = None;
                        Body::Page(copy)
                    }
                    Body::Entry(e) => Body::Entry(*e),
                    Body::Empty => Body::Empty,
                };
                self.saved.insert(key, Saved::Leaf(copy));
            }
            Some(State::Clean) if self.running => {
                if let Some(target) = target {
                    self.saved.insert(key, Saved::Ref(target));
                }
            }
            // What is being written is told of when it is.
            Some(State::Clean | State::Writing) | None => {}
        }
        if state != Some(dirty) {
            if self.dirty.len() == self.dirty.capacity() {
                self.dirty.reserve_exact(self.dirty.len() / 8 + 8);
            }
            self.dirty.push_back(key);
        }
        let result = change(&mut body);
        let slot = match body {
            Body::Empty => Slot::Empty { state: dirty },
            Body::Entry(e) => Slot::inline(dirty, e),
            Body::Page(leaf) => {
                let count = leaf.page_count();
                if count > 1 {
                    Slot::Loaded { state: dirty, count: count as u16, leaf }
                } else {
                    self.dropped.next.extend(leaf.disk.map(|page| page.loc));
                    leaf.pages().next().map_or(Slot::Empty { state: dirty }, |e| Slot::inline(dirty, e))
                }
            }
        };
        self.count_in(&slot);
        let is_loaded = matches!(slot, Slot::Loaded { .. });
        self.slots.insert(key, slot);
        if is_loaded && !was_loaded {
            self.wind(key);
        }
        result
    }

    /// Gives a page an entry; gives what it had.
    ///
    /// # Panics
    /// If its leaf is not loaded: callers load what [`BaseMap::missing`] names first.
    pub fn insert(&mut self, page: u64, entry: Entry) -> Option<Entry> {
        if let Entry::At(new) = entry
            && let Some(old) = self.remap(page, new)
        {
            return Some(Entry::At(old));
        }
        let key = self.key_of(page).unwrap_or(unit_start(page));
        let rel = rel(page);
        let (old, overfull) = self.edit(key, |body| match body {
            Body::Empty => {
                *body = Body::Entry(entry.at(rel));
                (None, false)
            }
            Body::Entry(e) if e.rel == rel => {
                let old = Entry::of(*e);
                *e = entry.at(rel);
                (Some(old), false)
            }
            Body::Entry(e) => {
                let mut both = [*e, entry.at(rel)];
                both.sort_unstable_by_key(|e| e.rel);
                *body = Body::Page(Box::new(Leaf::from_entries(None, &both)));
                (None, false)
            }
            Body::Page(leaf) => {
                let old = leaf.get(rel);
                leaf.set(rel, entry);
                (old, leaf.is_overfull())
            }
        });
        if overfull {
            self.split(key, rel);
        }
        old
    }

    /// The short way of [`BaseMap::insert`], for a leaf that changed already since the last checkpoint began: see [`Leaf::remap`].
    fn remap(&mut self, page: u64, new: Mapping) -> Option<Mapping> {
        let dirty = State::Dirty(self.generation);
        let (&key, slot) = self.slots.range_mut(unit_start(page)..=page).next_back()?;
        let Slot::Loaded { state, leaf, .. } = slot else { return None };
        let old = if *state == dirty { leaf.remap(rel(page), new)? } else { return None };
        // The place's numbers may take more bytes than those of the one before.
        if leaf.is_overfull() {
            self.split(key, rel(page));
        }
        Some(old)
    }

    /// Maps a page; gives what it was mapped to.
    ///
    /// # Panics
    /// As [`BaseMap::insert`].
    pub fn set(&mut self, page: u64, mapping: Mapping) -> Option<Mapping> {
        match self.insert(page, Entry::At(mapping)) {
            Some(Entry::At(old)) => Some(old),
            Some(Entry::Nowhere) | None => None,
        }
    }

    /// Replaces a page's place if it is still `old`, with the same content (the place may have been used
    /// again meanwhile, for this very page); tells whether it did. A leaf that is not loaded does not have the place, or cannot be
    /// read: it was looked for before.
    pub fn replace(&mut self, page: u64, old: Loc, new: Mapping) -> bool {
        match self.lookup(page) {
            Lookup::Mapped(found) if found.loc == old && found.crc == new.crc => {
                self.set(page, new);
                true
            }
            Lookup::Mapped(_) | Lookup::Unmapped | Lookup::Leaf(_) => false,
        }
    }

    /// Takes the entries of a range out, telling of each page that was mapped.
    ///
    /// # Panics
    /// If a leaf of the range is not loaded.
    pub fn remove(&mut self, first: u64, count: u64, mut dropped: impl FnMut(u64, Mapping)) {
        self.take(first, count, |page, entry| {
            if let Entry::At(mapping) = entry {
                dropped(page, mapping);
            }
        });
    }

    /// Takes the entries of a range out, telling of each.
    ///
    /// # Panics
    /// If a leaf of the range is not loaded.
    pub fn take(&mut self, first: u64, count: u64, mut taken: impl FnMut(u64, Entry)) {
        let end = first.saturating_add(count);
        let start = self.key_of(first).unwrap_or(first);
        let keys: Vec<u64> = self.slots.range(start..end.max(start)).map(|(&k, _)| k).collect();
        for key in keys {
            let base = unit_start(key);
            let from = first.saturating_sub(base).min(MAP_UNIT_PAGES) as u32;
            let to = end.saturating_sub(base).min(MAP_UNIT_PAGES) as u32;
            let within = |e: &LeafEntry| (from..to).contains(&u32::from(e.rel));
            let touched = match self.slots.get(&key) {
                Some(slot @ Slot::Inline { .. }) => slot.entry().is_some_and(|e| within(&e)),
                Some(Slot::Loaded { leaf, .. }) => {
                    leaf.runs().any(|(run, _)| u32::from(run.rel) < to && run.end() > from)
                }
                Some(Slot::Unloaded { .. }) if self.has_damage => false,
                Some(Slot::Unloaded { .. }) => panic!("a leaf is loaded before it is changed"),
                Some(Slot::Empty { .. }) | None => false,
            };
            if !touched {
                continue;
            }
            // A leaf that ran empty stays until the next checkpoint: without it its pages would belong to the leaf
            // before, which the record being applied may not have loaded.
            self.edit(key, |body| match body {
                Body::Page(leaf) => {
                    leaf.pages().filter(within).for_each(|e| taken(base + u64::from(e.rel), Entry::of(e)));
                    leaf.remove(from, to);
                }
                Body::Entry(e) => {
                    taken(base + u64::from(e.rel), Entry::of(*e));
                    *body = Body::Empty;
                }
                Body::Empty => {}
            });
        }
    }

    /// Takes all entries of a leaf out that is not loaded, as if there were none; gives how many there are.
    pub(in crate::store) fn forget(&mut self, key: u64) -> u64 {
        let Some(slot @ Slot::Unloaded { count, .. }) = self.slots.get(&key) else { return 0 };
        let (count, leaf) = (*count, Box::new(Leaf::from_entries(slot.disk(), &[])));
        // What a checkpoint under way needs of it is still known.
        self.exchange(key, Slot::Loaded { state: State::Clean, count, leaf });
        self.edit(key, |_| ());
        u64::from(count)
    }

    /// Cuts a leaf that no longer fits its page in two, after `rel` was put in.
    fn split(&mut self, key: u64, rel: u16) {
        let upper = self.edit(key, |body| {
            let Body::Page(leaf) = body else { panic!("a leaf that is split has two pages") };
            if leaf.last_rel() == Some(rel) {
                // Written in order: the lower one stays full.
                let last = leaf.get(rel).map(|entry| entry.at(rel));
                leaf.remove(u32::from(rel), MAP_UNIT_PAGES as u32);
                return last.map_or(Body::Empty, Body::Entry);
            }
            Body::Page(Box::new(leaf.split()))
        });
        let first = match &upper {
            Body::Page(leaf) => leaf.first_rel(),
            Body::Entry(e) => u32::from(e.rel),
            Body::Empty => return,
        };
        self.edit(unit_start(key) + u64::from(first), |body| *body = upper);
    }

    /// Has the next checkpoint write a leaf anew; false if it must be loaded first.
    pub fn make_dirty(&mut self, key: u64) -> bool {
        match self.slots.get(&key) {
            Some(Slot::Unloaded { .. }) => false,
            Some(_) => {
                self.edit(key, |_| ());
                true
            }
            None => true,
        }
    }

    /// Keys of leaves to make dirty, so that nothing of the next checkpoint stands in a segment: those of `leaves_max`
    /// leaves from a key on, and the key to go on with.
    pub fn clean_in(&self, segment: u32, from: u64, leaves_max: usize) -> (Vec<u64>, Option<u64>) {
        let dirty = State::Dirty(self.generation);
        let stays = |s: &Slot| s.state() != dirty && s.disk().is_some_and(|d| d.loc.segment == segment);
        let mut leaves = self.slots.range(from..);
        let some = leaves.by_ref().take(leaves_max).filter(|(_, s)| stays(s)).map(|(&key, _)| key).collect();
        (some, leaves.next().map(|(&key, _)| key))
    }

    /// As [`BaseMap::clean_in`], for the pages of the directory: one leaf is enough for a page and all above it.
    pub fn leaves_above(&self, segment: u32) -> Vec<u64> {
        let ranges = self.directory.ranges_in(segment);
        let first = |(from, to): (u64, Option<u64>)| {
            self.slots.range(from..to.unwrap_or(u64::MAX).max(from)).next().map(|(&key, _)| key)
        };
        ranges.into_iter().filter_map(first).collect()
    }

    /// Limits the memory of slots and clean leaves; 0 = no limit. A quarter of it is for leaves in any case.
    pub fn set_bytes_max(&mut self, bytes: usize) {
        self.bytes_max = bytes;
    }

    /// Keeps every leaf in memory until released: the log needs many at once.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        self.evict(None);
    }

    /// Forgets the entries of clean leaves that were not looked at for long, when clean ones take too much memory: those
    /// that are dirty can't go, and must not drive out what a reader has just had loaded.
    fn evict(&mut self, just_loaded: Option<u64>) {
        if self.held || self.bytes_max == 0 {
            return;
        }
        let slots = self.slots.len() * SLOT_BYTES;
        let budget = self.bytes_max.saturating_sub(slots).max(self.bytes_max / 4);
        for _ in 0..EVICT_STEPS.min(self.clock.len()) {
            if self.tally.clean_bytes <= budget {
                return;
            }
            let Some(key) = self.clock.pop_front() else { return };
            let Some(Slot::Loaded { state, count, leaf }) = self.slots.get(&key) else { continue };
            match leaf.disk {
                Some(page) if *state == State::Clean && just_loaded != Some(key) && !leaf.take_used() => {
                    let Loc { segment, offset } = page.loc;
                    let slot = Slot::Unloaded { count: *count, offset, segment, crc: page.crc };
                    self.exchange(key, slot);
                }
                _ => self.clock.push_back(key),
            }
        }
    }

    /// Bytes of memory that slots and leaves take, about.
    pub fn bytes(&self) -> usize {
        self.tally.bytes + self.slots.len() * SLOT_BYTES
    }

    /// Pages with an entry.
    pub fn page_count(&self) -> u64 {
        self.tally.pages
    }

    /// Number of leaves.
    pub fn leaf_count(&self) -> usize {
        self.slots.len()
    }

    /// Leaves that have, or will get, a page of their own.
    pub fn paged_count(&self) -> usize {
        self.tally.paged
    }

    /// Leaves that the next checkpoint gives a page.
    pub fn dirty_count(&self) -> usize {
        self.tally.dirty
    }

    /// Most pages that a checkpoint writes of this map, once so many leaves more have changed or come to be.
    pub fn checkpoint_pages_after(&self, more: usize) -> usize {
        let directory = self.directory.pages_written_max(self.dirty.len() + more, self.slots.len() + more);
        self.tally.dirty + more + directory
    }

    /// Pages that the map takes on disk, about, once it is all written.
    pub fn disk_pages(&self) -> usize {
        let directory = self.directory.total_pages();
        self.tally.paged + directory.max(self.slots.len().div_ceil(crate::store::format::directory::REFS_MAX))
    }

    /// Leaves of this key and above: key, entries, and the page in the last checkpoint if it has one.
    pub fn leaves_from(&self, key: u64) -> impl Iterator<Item = (u64, u16, Option<Mapping>)> {
        self.slots.range(key..).map(|(&key, slot)| (key, slot.count(), slot.disk()))
    }

    /// The entries of a leaf; `None` if it is not loaded.
    pub fn entries(&self, key: u64) -> Option<impl Iterator<Item = LeafEntry>> {
        let slot = self.slots.get(&key).filter(|slot| !matches!(slot, Slot::Unloaded { .. }))?;
        let pages = match slot {
            Slot::Loaded { leaf, .. } => Some(leaf.pages()),
            _ => None,
        };
        Some(slot.entry().into_iter().chain(pages.into_iter().flatten()))
    }

    /// Keys of all leaves.
    pub fn keys(&self) -> impl Iterator<Item = u64> {
        self.slots.keys().copied()
    }

    /// The entries of leaves that lie in a range of keys and are loaded: device page, entry.
    pub fn entries_in(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, LeafEntry)> {
        self.slots.range(range).flat_map(|(&key, slot)| {
            let pages = match slot {
                Slot::Loaded { leaf, .. } => Some(leaf.pages()),
                _ => None,
            };
            let base = unit_start(key);
            let all = slot.entry().into_iter().chain(pages.into_iter().flatten());
            all.map(move |e| (base + u64::from(e.rel), e))
        })
    }

    /// Calls `f` with each entry of a range of pages; leaves that are not loaded are passed over.
    pub fn for_each_in(&self, first: u64, count: u64, mut f: impl FnMut(u64, Entry)) {
        let pages = first..first.saturating_add(count);
        let from = self.key_of(first).unwrap_or(first);
        self.entries_in(from..pages.end.max(from))
            .filter(|(page, _)| pages.contains(page))
            .for_each(|(page, e)| f(page, Entry::of(e)));
    }

    /// The entries of a unit whose leaves are loaded.
    pub fn unit_entries(&self, unit_first_page: u64) -> impl Iterator<Item = LeafEntry> {
        self.entries_in(unit_first_page..unit_first_page.saturating_add(MAP_UNIT_PAGES)).map(|(_, e)| e)
    }

    /// Every page that is mapped, in order, by leaves that are loaded.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, Mapping)> {
        self.entries_in(0..u64::MAX).filter_map(|(page, e)| match Entry::of(e) {
            Entry::At(mapping) => Some((page, mapping)),
            Entry::Nowhere => None,
        })
    }

    /// Entries of whole units: a sum over leaf counts.
    pub fn count_units(&self, first_unit_page: u64, end: u64) -> u64 {
        self.slots.range(first_unit_page..end).map(|(_, s)| u64::from(s.count())).sum()
    }

    /// Units with leaves that lie in a range of pages at least in part.
    pub fn units_between(&self, start: u64, end: u64) -> impl Iterator<Item = u64> {
        self.slots.range(unit_start(start)..end.max(unit_start(start))).map(|(&key, _)| key / MAP_UNIT_PAGES)
    }

    /// Pages of the directory as the last checkpoint has it: level, key, place and crc.
    pub fn directory_pages(&self) -> impl Iterator<Item = (u16, u64, Mapping)> {
        self.directory.all()
    }

    /// Every page of the last checkpoint that this map refers to: leaves and directory.
    pub fn disk_locs(&self) -> impl Iterator<Item = Loc> {
        self.slots.values().filter_map(|s| s.disk().map(|d| d.loc)).chain(self.directory.pages())
    }

    /// Pages of the last checkpoint that the one which begins next drops.
    #[cfg(test)]
    pub(in crate::store) fn dropped_next(&self) -> &[Loc] {
        &self.dropped.next
    }

    /// Every page of a checkpoint that this map has still had, now that it ends.
    pub(in crate::store) fn into_locs(mut self) -> Vec<Loc> {
        let mut locs = std::mem::take(&mut self.dropped.next);
        locs.extend(self.disk_locs());
        locs
    }
}

/// A checkpoint's side; see `checkpoint`.
impl BaseMap {
    /// A checkpoint begins: it gets the leaves as they are now. At most one is under way.
    pub(in crate::store) fn freeze(&mut self) {
        assert!(!self.running && self.frozen.is_empty(), "one checkpoint is under way at a time");
        self.frozen = std::mem::take(&mut self.dirty);
        self.generation = match self.generation {
            Generation::Even => Generation::Odd,
            Generation::Odd => Generation::Even,
        };
        self.tally.dirty = 0;
        self.running = true;
        let next = std::mem::take(&mut self.dropped.next);
        self.dropped.now.extend(next);
    }

    /// Whether a checkpoint under way has yet to be done with this map.
    pub(in crate::store) fn is_frozen(&self) -> bool {
        self.running
    }

    /// The checkpoint is durable: gives the pages that are needed no more, and what was saved for it, to be
    /// let go of without the map's lock.
    pub(in crate::store) fn thaw(&mut self) -> (Vec<Loc>, impl Sized + use<>) {
        self.running = false;
        (std::mem::take(&mut self.dropped.now), std::mem::take(&mut self.saved))
    }

    /// Keys of leaves that the checkpoint has yet to write, in the order in which they are to be marked.
    pub(in crate::store) fn frozen_keys(&self) -> impl Iterator<Item = u64> {
        self.frozen.iter().copied()
    }

    /// A leaf as the checkpoint has to write it.
    pub(in crate::store) fn frozen_leaf(&self, key: u64) -> Frozen<'_> {
        match self.saved.get(&key) {
            Some(Saved::Leaf(Body::Page(leaf))) => return Frozen::Page(leaf),
            Some(_) => return Frozen::NoPage,
            None => {}
        }
        match self.slots.get(&key) {
            Some(Slot::Loaded { leaf, .. }) => Frozen::Page(leaf),
            _ => Frozen::NoPage,
        }
    }

    /// The page of the first of [`BaseMap::frozen_keys`] is on its way to the disk; or it has none, and the directory takes it.
    pub(in crate::store) fn mark_writing(&mut self, key: u64) {
        assert_eq!(self.frozen.pop_front(), Some(key), "leaves are written in their order");
        match self.saved.remove(&key) {
            Some(Saved::Leaf(Body::Page(leaf))) => self.dropped.now.extend(leaf.disk.map(|page| page.loc)),
            Some(Saved::Leaf(Body::Entry(e))) => {
                self.saved.insert(key, Saved::Ref(Target::Entry(e)));
            }
            Some(Saved::Leaf(Body::Empty)) => {}
            Some(saved @ Saved::Ref(_)) => {
                self.saved.insert(key, saved);
            }
            None => match self.slots.get_mut(&key) {
                Some(Slot::Loaded { state, leaf, .. }) => {
                    *state = State::Writing;
                    self.dropped.now.extend(leaf.disk.take().map(|page| page.loc));
                }
                Some(Slot::Empty { .. }) => {
                    self.slots.remove(&key);
                }
                Some(slot) => slot.set_state(State::Clean),
                None => {}
            },
        }
    }

    /// The page of a leaf that has `count` entries is written.
    pub(in crate::store) fn written(&mut self, key: u64, page: Mapping, count: u16) {
        match self.slots.get_mut(&key) {
            Some(Slot::Loaded { state: state @ State::Writing, leaf, .. }) => {
                leaf.disk = Some(page);
                *state = State::Clean;
                self.tally.clean_bytes += leaf.heap_bytes();
                self.evict(None);
                return;
            }
            // Changed again since.
            Some(Slot::Loaded { leaf, .. }) => leaf.disk = Some(page),
            _ => self.dropped.next.push(page.loc),
        }
        self.saved.insert(key, Saved::Ref(Target::Page { page, count }));
    }

    /// What the checkpoint's directory says of the leaves of a range of keys. All their pages are written.
    pub(in crate::store) fn refs(&self, from: u64, to: Option<u64>) -> impl Iterator<Item = Ref> {
        let dirty = State::Dirty(self.generation);
        let range = self.slots.range(from..to.unwrap_or(u64::MAX).max(from));
        range.filter_map(move |(&key, slot)| {
            let target = match (slot.state(), self.saved.get(&key)) {
                (state, Some(Saved::Ref(target))) if state == dirty => Some(*target),
                // Made since the checkpoint began.
                (state, None) if state == dirty => None,
                (State::Clean, _) => slot.target(),
                (state, _) => panic!("leaf {key:#x} is {state:?} when the directory is written"),
            };
            target.map(|target| Ref { key, target })
        })
    }

    /// A page of the directory is no longer part of it.
    pub(in crate::store) fn drop_now(&mut self, pages: impl IntoIterator<Item = Loc>) {
        self.dropped.now.extend(pages);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::store::format::leaf;

    fn at(i: u32) -> Mapping {
        Mapping { loc: Loc { segment: i, offset: (i % 60_000) as u16 }, crc: i }
    }

    /// What a checkpoint does with a map, a few leaves at a time; `between` is called in between.
    fn checkpoint(map: &mut BaseMap, between: &mut impl FnMut(&mut BaseMap)) -> BTreeMap<u64, Mapping> {
        map.freeze();
        between(map);
        let mut pages = BTreeMap::new();
        let mut place = 1_000_000;
        loop {
            let keys: Vec<u64> = map.frozen_keys().take(3).collect();
            if keys.is_empty() {
                break;
            }
            let mut written = Vec::new();
            for key in keys {
                if let Frozen::Page(leaf) = map.frozen_leaf(key) {
                    let mut page = vec![0; 4096];
                    assert!(leaf::encode_into([3; 16], key, leaf.runs(), &mut page), "a leaf fits its page");
                    place += 1;
                    written.push((key, at(place), leaf.page_count() as u16, page));
                }
                map.mark_writing(key);
            }
            between(map);
            for (key, page, count, bytes) in written {
                map.written(key, page, count);
                pages.insert((key, page.loc), bytes);
            }
            between(map);
        }
        let mut found = BTreeMap::new();
        for r in map.refs(0, None) {
            let unit = unit_start(r.key);
            let (entries, disk) = match r.target {
                Target::Entry(e) => (vec![e], None),
                Target::Page { page, count } => {
                    let runs = leaf::decode([3; 16], r.key, &pages[&(r.key, page.loc)]).expect("as encoded");
                    let leaf = Leaf::from_runs(Some(page), &runs);
                    assert_eq!(leaf.page_count(), u32::from(count));
                    (leaf.pages().collect(), Some(page))
                }
            };
            assert!(!entries.is_empty(), "leaf {:#x} at {disk:?} is empty", r.key);
            for e in entries {
                let Entry::At(mapping) = Entry::of(e) else { panic!("nothing is buried here") };
                assert_eq!(found.insert(unit + u64::from(e.rel), mapping), None);
            }
        }
        between(map);
        map.thaw();
        found
    }

    #[test]
    fn a_map_agrees_with_a_plain_tree_and_a_checkpoint_with_the_state_of_its_beginning() {
        for seed in 0..6 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut map, model) =
                (BaseMap::default(), std::cell::RefCell::new(BTreeMap::<u64, Mapping>::new()));
            let mut i = 0u32;
            let mut change = |map: &mut BaseMap, rng: &mut StdRng, count: u32| {
                let mut model = model.borrow_mut();
                for _ in 0..count {
                    i += 1;
                    // Dense in a unit, so that leaves split; some pages far apart.
                    let page = match rng.random_range(0..10) {
                        0 => rng.random_range(0..20u64) << 15,
                        _ => rng.random_range(0..3000) * 5 + (1 << 40),
                    };
                    if rng.random_ratio(1, 40) {
                        let count = rng.random_range(1..4000);
                        let mut dropped = 0;
                        map.remove(page, count, |_, _| dropped += 1);
                        assert_eq!(dropped, model.range(page..page + count).count());
                        model.retain(|p, _| !(page..page + count).contains(p));
                    } else {
                        assert_eq!(map.set(page, at(i)), model.insert(page, at(i)));
                    }
                }
            };
            for _ in 0..20 {
                change(&mut map, &mut rng, 600);
                // The first checkpoint writes all; what follows must know the older pages too.
                let expected = model.borrow().clone();
                for key in map.keys().collect::<Vec<_>>() {
                    assert!(map.make_dirty(key));
                }
                let found = checkpoint(&mut map, &mut |map| change(map, &mut rng, 7));
                assert_eq!(found, expected, "seed {seed}");
                let model = model.borrow();
                assert_eq!(map.mappings().collect::<BTreeMap<_, _>>(), *model);
                assert_eq!(map.page_count(), model.len() as u64);
                let mut tally = Tally::default();
                map.slots.values().for_each(|slot| map.add_to(&mut tally, slot));
                assert_eq!(format!("{tally:?}"), format!("{:?}", map.tally), "running sums");
                for (&page, &mapping) in model.iter().take(500) {
                    assert_eq!(map.lookup(page), Lookup::Mapped(mapping));
                    if !model.contains_key(&(page + 1)) {
                        assert_eq!(map.lookup(page + 1), Lookup::Unmapped);
                    }
                }
            }
        }
    }

    fn unloaded(key: u64, i: u32) -> Ref {
        Ref { key, target: Target::Page { page: at(i), count: 2 } }
    }

    fn two(rel: u16) -> Runs {
        let run = |rel| leaf::Run { rel, count: 1, offset: 7, segment: u32::from(rel) };
        Runs { runs: vec![run(rel), run(rel + 2)], crcs: vec![4, 5] }
    }

    #[test]
    fn unloaded_leaves_are_named_and_clean_ones_evicted() {
        let mut map = BaseMap::from_directory(
            &(0..20).map(|i| unloaded(i * MAP_UNIT_PAGES, i as u32)).collect::<Vec<_>>(),
        );
        let leaf_bytes = Leaf::from_runs(None, &two(1)).heap_bytes();
        map.set_bytes_max(4 * 8 * leaf_bytes);
        assert_eq!(map.lookup(5), Lookup::Leaf(0));
        let mut missing = Vec::new();
        map.missing(MAP_UNIT_PAGES + 7, MAP_UNIT_PAGES, &mut missing);
        assert_eq!(missing, [MAP_UNIT_PAGES, 2 * MAP_UNIT_PAGES]);
        map.hold(true);
        let loaded = |map: &BaseMap| map.keys().filter(|&key| map.unloaded(key).is_none()).count();
        for key in 0..20 {
            map.load(key * MAP_UNIT_PAGES, at(key as u32), &two(1));
        }
        assert_eq!(loaded(&map), 20, "none goes while they are held");
        map.set(MAP_UNIT_PAGES * 19 + 5, at(1));
        map.set_bytes_max(8 * leaf_bytes);
        assert!(matches!(map.lookup(1), Lookup::Mapped(_)));
        map.hold(false);
        assert_eq!(loaded(&map), 3, "two fit a quarter of the limit, and a dirty one stays");
        map.load(0, at(9), &two(1));
        assert_eq!(map.lookup(MAP_UNIT_PAGES), Lookup::Leaf(MAP_UNIT_PAGES), "one of those that went");
    }

    #[test]
    fn a_leaf_just_loaded_stays_though_dirty_ones_take_more_than_the_limit() {
        let mut map = BaseMap::from_directory(&[unloaded(0, 1)]);
        map.set_bytes_max(64);
        for page in 0..2000 {
            map.set(MAP_UNIT_PAGES + page * 3, at(page as u32));
        }
        map.load(0, at(1), &two(1));
        assert!(matches!(map.lookup(1), Lookup::Mapped(_)));
        assert_eq!(map.lookup(2), Lookup::Unmapped);
    }

    #[test]
    fn a_leaf_emptied_and_filled_by_one_record_needs_no_other_leaf() {
        let mut map = BaseMap::from_directory(&[unloaded(0, 7), unloaded(100, 8)]);
        let mut keys = Vec::new();
        map.missing(100, 1, &mut keys);
        assert_eq!(keys, [100]);
        map.load(100, at(8), &two(100));
        let mut dropped = 0;
        map.remove(100, 3, |_, _| dropped += 1);
        assert_eq!(dropped, 2);
        // The leaf of key 0 is not loaded: this used to panic.
        assert_eq!(map.set(120, at(9)), None);
        assert_eq!(map.lookup(120), Lookup::Mapped(at(9)));
    }

    #[test]
    fn pages_known_to_be_unmapped_are_entries_but_not_mapped() {
        let mut map = BaseMap::default();
        for page in 10..5000 {
            assert_eq!(map.insert(page, Entry::Nowhere), None);
        }
        assert_eq!((map.find(10), map.find(5000)), (Found::Entry(Entry::Nowhere), Found::Absent));
        assert_eq!(map.lookup(10), Lookup::Unmapped);
        assert_eq!((map.page_count(), map.leaf_count()), (4990, 1), "one run");
        assert_eq!(map.insert(20, Entry::At(at(3))), Some(Entry::Nowhere));
        assert_eq!(map.mappings().collect::<Vec<_>>(), [(20, at(3))]);
    }
}
