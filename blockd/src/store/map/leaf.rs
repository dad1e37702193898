//! A leaf in memory: 12 bytes a run and, in runs of several pages, 4 bytes a page.
//!
//! A run of one page keeps its crc in itself, so that pages written one by one cost 12 bytes each. A leaf always fits
//! its page on disk but for the one change after which [`crate::store::map::base::BaseMap`] splits it.

use std::sync::atomic::{AtomicBool, Ordering};

use layout::addr::MAP_UNIT_PAGES;

use crate::store::format::leaf::{LeafEntry, NOWHERE, RUN_BYTES_MAX, Run, Runs};
use crate::store::format::{Loc, Mapping};

/// Set in `Packed::first`: the run has several pages.
const SEVERAL: u16 = 1 << 15;
const _: () = assert!(MAP_UNIT_PAGES == 1 << 15);

/// A run.
#[derive(Clone, Copy, Debug)]
struct Packed {
    /// First page of the unit, with [`SEVERAL`].
    first: u16,
    offset: u16,
    segment: u32,
    /// One page: its crc. Several: `count << 16 | index of its first crc`; the index means nothing for tombstones.
    word: u32,
}

const _: () = assert!(size_of::<Packed>() == 12);

impl Packed {
    fn rel(&self) -> u16 {
        self.first & !SEVERAL
    }

    fn count(&self) -> u16 {
        if self.first & SEVERAL == 0 { 1 } else { (self.word >> 16) as u16 }
    }

    fn end(&self) -> u32 {
        u32::from(self.rel()) + u32::from(self.count())
    }

    fn run(&self) -> Run {
        Run { rel: self.rel(), count: self.count(), offset: self.offset, segment: self.segment }
    }

    /// Where its crcs begin in the leaf's; `None` if it has none there.
    fn crc_index(&self) -> Option<usize> {
        (self.first & SEVERAL != 0 && self.segment != NOWHERE).then_some((self.word & 0xffff) as usize)
    }
}

/// What a map has of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It stands there.
    At(Mapping),
    /// It is known to be unmapped (deltas of snapshots only).
    Nowhere,
}

impl Entry {
    pub(super) fn of(entry: LeafEntry) -> Self {
        match entry.segment {
            NOWHERE => Entry::Nowhere,
            _ => Entry::At(Mapping { loc: entry.loc(), crc: entry.crc }),
        }
    }

    pub(super) fn at(self, rel: u16) -> LeafEntry {
        match self {
            Entry::At(m) => LeafEntry { rel, offset: m.loc.offset, segment: m.loc.segment, crc: m.crc },
            Entry::Nowhere => LeafEntry { rel, offset: 0, segment: NOWHERE, crc: 0 },
        }
    }
}

/// The entries of a leaf and its page in the last checkpoint.
#[derive(Debug, Default)]
pub struct Leaf {
    /// Its page on disk, if that is its own.
    pub(super) disk: Option<Mapping>,
    runs: Vec<Packed>,
    crcs: Vec<u32>,
    encoded: u32,
    /// Looked at since the eviction passed by.
    used: AtomicBool,
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        Leaf {
            disk: self.disk,
            runs: self.runs.clone(),
            crcs: self.crcs.clone(),
            encoded: self.encoded,
            used: AtomicBool::new(false),
        }
    }
}

impl Leaf {
    /// From its page.
    pub fn from_runs(disk: Option<Mapping>, from: &Runs) -> Self {
        let mut leaf = Leaf { disk, ..Leaf::default() };
        leaf.runs.reserve_exact(from.runs.len());
        let shared = from.runs.iter().filter(|r| r.count > 1).map(Run::crc_count).sum();
        leaf.crcs.reserve_exact(shared);
        let mut at = 0;
        let mut end = 0;
        for run in &from.runs {
            let crcs = &from.crcs[at..at + run.crc_count()];
            at += crcs.len();
            leaf.encoded += run.encoded_len(end) as u32;
            end = run.end();
            let packed = pack(run, crcs, &mut leaf.crcs);
            leaf.runs.push(packed);
        }
        leaf
    }

    /// From single entries, by page.
    pub(super) fn from_entries(disk: Option<Mapping>, entries: &[LeafEntry]) -> Self {
        let mut leaf = Leaf { disk, ..Leaf::default() };
        for e in entries {
            leaf.set(e.rel, Entry::of(*e));
        }
        leaf
    }

    /// Bytes of memory it takes, itself included.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Leaf>() + self.runs.capacity() * size_of::<Packed>() + self.crcs.capacity() * 4
    }

    /// It no longer fits a page.
    pub fn is_overfull(&self) -> bool {
        self.encoded as usize > RUN_BYTES_MAX
    }

    /// Has it been looked at since this was last asked?
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// What it has of a page.
    pub fn get(&self, rel: u16) -> Option<Entry> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let i = self.runs.partition_point(|r| r.rel() <= rel).checked_sub(1)?;
        let run = &self.runs[i];
        let skip = rel - run.rel();
        (skip < run.count()).then(|| self.entry(run, skip))
    }

    fn entry(&self, run: &Packed, skip: u16) -> Entry {
        if run.segment == NOWHERE {
            return Entry::Nowhere;
        }
        let crc = run.crc_index().map_or(run.word, |index| self.crcs[index + usize::from(skip)]);
        Entry::At(Mapping { loc: Loc { segment: run.segment, offset: run.offset + skip }, crc })
    }

    /// Its runs, with the crcs of each.
    pub fn runs(&self) -> impl Iterator<Item = (Run, &[u32])> {
        self.runs.iter().map(|packed| (packed.run(), self.crcs_of(packed)))
    }

    fn crcs_of<'a>(&'a self, packed: &'a Packed) -> &'a [u32] {
        match (packed.crc_index(), packed.segment) {
            (Some(index), _) => &self.crcs[index..index + usize::from(packed.count())],
            (None, NOWHERE) => &[],
            (None, _) => std::slice::from_ref(&packed.word),
        }
    }

    /// Its pages, one by one.
    pub fn pages(&self) -> impl Iterator<Item = LeafEntry> {
        self.runs
            .iter()
            .flat_map(move |run| (0..run.count()).map(move |skip| self.entry(run, skip).at(run.rel() + skip)))
    }

    /// Count of its pages.
    pub fn page_count(&self) -> u32 {
        self.runs.iter().map(|r| u32::from(r.count())).sum()
    }

    /// The last page, if there is one.
    pub(super) fn last_rel(&self) -> Option<u16> {
        self.runs.last().map(|r| (r.end() - 1) as u16)
    }

    /// Gives a page an entry.
    pub fn set(&mut self, rel: u16, entry: Entry) {
        let e = entry.at(rel);
        let run = Run { rel, count: 1, offset: e.offset, segment: e.segment };
        self.splice(u32::from(rel), u32::from(rel) + 1, Some((run, &[e.crc])));
    }

    /// Maps a page that is mapped to another place, if it is a run of its own before and after: nothing else of the leaf changes.
    /// Gives where it was; `None`: nothing is done. For what [`Leaf::set`] does with most pages that are overwritten one by one.
    pub(super) fn remap(&mut self, rel: u16, new: Mapping) -> Option<Mapping> {
        let i = self.runs.partition_point(|r| r.rel() < rel);
        let packed = *self.runs.get(i).filter(|r| r.first == rel && r.segment != NOWHERE)?;
        let run = Run { rel, count: 1, offset: new.loc.offset, segment: new.loc.segment };
        let before = i.checked_sub(1).map(|b| self.runs[b].run());
        let joins = before.is_some_and(|before| before.continues_with(&run))
            || self.runs.get(i + 1).is_some_and(|after| run.continues_with(&after.run()));
        if joins {
            return None;
        }
        let end = before.map_or(0, |before| before.end());
        self.encoded = self.encoded + run.encoded_len(end) as u32 - packed.run().encoded_len(end) as u32;
        self.runs[i] = Packed { offset: run.offset, segment: run.segment, word: new.crc, ..packed };
        let loc = Loc { segment: packed.segment, offset: packed.offset };
        Some(Mapping { loc, crc: packed.word })
    }

    /// Pages `from` to `to` are known to be unmapped.
    pub fn bury(&mut self, from: u32, to: u32) {
        if to > from {
            let run = Run { rel: from as u16, count: (to - from) as u16, offset: 0, segment: NOWHERE };
            self.splice(from, to, Some((run, &[])));
        }
    }

    /// Takes pages `from` to `to` out.
    pub fn remove(&mut self, from: u32, to: u32) {
        self.splice(from, to, None);
    }

    /// Halves it by bytes; the upper half, without a page on disk.
    ///
    /// # Panics
    /// If it has a single page: nothing that is split has.
    pub fn split(&mut self) -> Leaf {
        let cut = self.middle();
        let mut upper = Runs::default();
        for (run, crcs) in self.runs() {
            if run.end() <= cut {
                continue;
            }
            let skip = cut.saturating_sub(u32::from(run.rel)) as u16;
            upper.runs.push(run.part(skip, run.count - skip));
            upper.crcs.extend_from_slice(crcs.get(usize::from(skip)..).unwrap_or(&[]));
        }
        self.splice(cut, MAP_UNIT_PAGES as u32, None);
        let upper = Leaf::from_runs(None, &upper);
        assert!(!self.runs.is_empty() && !upper.runs.is_empty(), "a leaf that is split has two pages");
        upper
    }

    /// The page at which it is cut in two.
    fn middle(&self) -> u32 {
        let (mut end, mut bytes) = (0, 0);
        let half = self.encoded as usize / 2;
        for (run, crcs) in self.runs() {
            let len = run.encoded_len(end);
            if bytes + len > half {
                // Within a long run, or before one that is short or has no crcs to share out.
                let skip = if crcs.len() > 1 { (half - bytes) / 4 } else { 0 };
                let first = u32::from(run.rel) + skip.min(crcs.len() - usize::from(!crcs.is_empty())) as u32;
                if first > self.first_rel() {
                    return first;
                }
                return if run.count > 1 { first + u32::from(run.count) / 2 } else { run.end() };
            }
            bytes += len;
            end = run.end();
        }
        end
    }

    pub(super) fn first_rel(&self) -> u32 {
        self.runs.first().map_or(0, |r| u32::from(r.rel()))
    }

    /// Puts `new`, which covers just these pages, in the place of whatever pages `from` to `to` have.
    fn splice(&mut self, from: u32, to: u32, new: Option<(Run, &[u32])>) {
        let mut i = self.runs.partition_point(|r| r.end() <= from);
        let mut j = i + self.runs[i..].partition_point(|r| u32::from(r.rel()) < to);
        let mut pieces = Pieces::default();
        if let Some(first) = self.runs[i..j].first().filter(|r| u32::from(r.rel()) < from) {
            let keep = (from - u32::from(first.rel())) as u16;
            pieces.push(first.run().part(0, keep), part(self.crcs_of(first), 0, keep));
        } else if let (Some(before), Some((run, _))) = (i.checked_sub(1).map(|b| &self.runs[b]), &new)
            && before.run().continues_with(run)
        {
            pieces.push(before.run(), self.crcs_of(before));
            i -= 1;
        }
        if let Some((run, crcs)) = new {
            pieces.push(run, &crcs[..run.crc_count()]);
        }
        if let Some(last) = self.runs[i..j].last().filter(|r| r.end() > to) {
            let skip = (to - u32::from(last.rel())) as u16;
            pieces.push(
                last.run().part(skip, last.count() - skip),
                part(self.crcs_of(last), skip, last.count()),
            );
        } else if let (Some(after), Some((run, _))) = (self.runs.get(j), &new)
            && run.continues_with(&after.run())
        {
            pieces.push(after.run(), self.crcs_of(after));
            j += 1;
        }
        self.exchange(i, j, &pieces);
    }

    /// Puts the pieces in the place of runs `i` to `j`.
    fn exchange(&mut self, i: usize, j: usize, pieces: &Pieces) {
        let before = i.checked_sub(1).map_or(0, |b| self.runs[b].end());
        let old = self.encoded_between(before, i, (j + 1).min(self.runs.len()));
        // Crcs of runs of several pages lie in the order of the runs.
        let index_from = |runs: &[Packed]| runs.iter().find_map(Packed::crc_index);
        let crc_from = index_from(&self.runs[i..]).unwrap_or(self.crcs.len());
        let crc_to = index_from(&self.runs[j..]).unwrap_or(self.crcs.len());
        let mut crcs = Vec::new();
        let mut at = 0;
        let mut packed = Vec::with_capacity(pieces.runs.len());
        for run in &pieces.runs {
            let own = &pieces.crcs[at..at + run.crc_count()];
            at += own.len();
            let mut run = pack(run, own, &mut crcs);
            if run.crc_index().is_some() {
                run.word += crc_from as u32;
            }
            packed.push(run);
        }
        let moved = (crcs.len() as u32).wrapping_sub((crc_to - crc_from) as u32);
        if moved != 0 {
            for run in self.runs[j..].iter_mut().filter(|r| r.crc_index().is_some()) {
                run.word = run.word.wrapping_add(moved);
            }
        }
        let end = i + packed.len() + 1;
        replace(&mut self.crcs, crc_from, crc_to, &crcs);
        replace(&mut self.runs, i, j, &packed);
        let new = self.encoded_between(before, i, end.min(self.runs.len()));
        self.encoded = self.encoded + new - old;
    }

    /// Bytes on disk of runs `i` to `j`, behind a run that ends at `before`.
    fn encoded_between(&self, before: u32, i: usize, j: usize) -> u32 {
        let mut end = before;
        let runs = self.runs[i..j].iter().map(Packed::run);
        runs.map(|run| run.encoded_len(std::mem::replace(&mut end, run.end())) as u32).sum()
    }
}

fn part(crcs: &[u32], from: u16, to: u16) -> &[u32] {
    crcs.get(usize::from(from)..usize::from(to)).unwrap_or(&[])
}

/// Packs a run, its crcs going to `shared` if it has several pages.
fn pack(run: &Run, crcs: &[u32], shared: &mut Vec<u32>) -> Packed {
    let mut packed = Packed { first: run.rel, offset: run.offset, segment: run.segment, word: 0 };
    if run.count == 1 {
        packed.word = crcs.first().copied().unwrap_or(0);
    } else {
        packed.first |= SEVERAL;
        packed.word = u32::from(run.count) << 16;
        if !run.is_tombstone() {
            packed.word |= shared.len() as u32;
            shared.extend_from_slice(crcs);
        }
    }
    packed
}

/// As `Vec::splice`, but with little spare room: memory is what this module is about.
fn replace<T: Copy>(vec: &mut Vec<T>, from: usize, to: usize, with: &[T]) {
    let len = vec.len() - (to - from) + with.len();
    if len > vec.capacity() {
        vec.reserve_exact(len + (len / 16).max(4) - vec.len());
    }
    vec.splice(from..to, with.iter().copied());
    if vec.capacity() > len + len / 4 + 16 {
        vec.shrink_to(len + len / 16);
    }
}

/// Runs that take the place of others, those merged that can be.
#[derive(Default)]
struct Pieces {
    runs: Vec<Run>,
    crcs: Vec<u32>,
}

impl Pieces {
    fn push(&mut self, run: Run, crcs: &[u32]) {
        match self.runs.last_mut() {
            Some(last) if last.continues_with(&run) => last.count += run.count,
            _ => self.runs.push(run),
        }
        self.crcs.extend_from_slice(crcs);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::store::format::leaf;

    fn check(leaf: &Leaf, model: &BTreeMap<u16, Entry>) {
        let pages: Vec<_> = leaf.pages().map(|e| (e.rel, Entry::of(e))).collect();
        assert_eq!(pages, model.iter().map(|(&rel, &e)| (rel, e)).collect::<Vec<_>>());
        let mut end = 0;
        let bytes: usize =
            leaf.runs().map(|(r, _)| r.encoded_len(std::mem::replace(&mut end, r.end()))).sum();
        assert_eq!(leaf.encoded as usize, bytes);
        let shared: usize =
            leaf.runs.iter().filter(|r| r.crc_index().is_some()).map(|r| usize::from(r.count())).sum();
        assert_eq!(leaf.crcs.len(), shared, "no crc is left behind");
        let runs: Vec<Run> = leaf.runs().map(|(run, _)| run).collect();
        assert!(runs.windows(2).all(|w| w[0].end() <= u32::from(w[1].rel) && !w[0].continues_with(&w[1])));
    }

    #[test]
    fn a_leaf_agrees_with_a_plain_tree_under_random_changes() {
        let mut remapped = 0;
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut leaf, mut model) = (Leaf::default(), BTreeMap::new());
            for i in 0..600u32 {
                let rel = rng.random_range(0..400u16);
                match rng.random_range(0..10) {
                    0 => {
                        let to = u32::from(rel) + rng.random_range(1..30);
                        leaf.remove(u32::from(rel), to);
                        model.retain(|&r, _| r < rel || u32::from(r) >= to);
                    }
                    1 => {
                        let to = u32::from(rel) + rng.random_range(1..30);
                        leaf.bury(u32::from(rel), to);
                        model.extend((rel..to as u16).map(|r| (r, Entry::Nowhere)));
                    }
                    // Places that follow one another, so that runs come to be.
                    2..=6 => {
                        for rel in rel..rel + rng.random_range(1..10) {
                            let loc = Loc { segment: rng.random_range(1..=2) / 2, offset: rel };
                            let entry = Entry::At(Mapping { loc, crc: i });
                            leaf.set(rel, entry);
                            model.insert(rel, entry);
                        }
                    }
                    _ => {
                        // Some next to what is there already.
                        let loc = Loc { segment: [i, 0, 1][i as usize % 3], offset: rel };
                        let new = Mapping { loc, crc: i };
                        let there = leaf.get(rel);
                        match leaf.remap(rel, new) {
                            Some(old) => {
                                remapped += 1;
                                assert_eq!(there, Some(Entry::At(old)));
                            }
                            None => leaf.set(rel, Entry::At(new)),
                        }
                        model.insert(rel, Entry::At(new));
                    }
                }
                check(&leaf, &model);
                assert_eq!(leaf.get(rel), model.get(&rel).copied());
            }
            let mut page = vec![0; 4096];
            if leaf::encode_into([3; 16], 0, leaf.runs(), &mut page) {
                let runs = leaf::decode([3; 16], 0, &page).expect("just encoded");
                check(&Leaf::from_runs(None, &runs), &model);
            }
            let cut = leaf.middle();
            let upper = leaf.split();
            let upper_model = model.split_off(&(cut as u16));
            check(&leaf, &model);
            check(&upper, &upper_model);
        }
        assert!(remapped > 200, "{remapped} in place");
    }

    #[test]
    fn leaves_of_few_long_runs_can_be_split() {
        let mut leaf = Leaf::default();
        for rel in 0..1100u16 {
            let loc = Loc { segment: 3, offset: rel };
            leaf.set(rel, Entry::At(Mapping { loc, crc: u32::from(rel) }));
        }
        assert!(leaf.is_overfull());
        let upper = leaf.split();
        assert_eq!((leaf.runs.len(), upper.runs.len()), (1, 1));
        assert!((400..700).contains(&upper.first_rel()));
        assert_eq!(leaf.page_count() + upper.page_count(), 1100);
        let mut buried = Leaf::default();
        buried.bury(5, 20_000);
        let upper = buried.split();
        assert_eq!(buried.page_count() + upper.page_count(), 19_995);
    }

    #[test]
    fn memory_follows_what_is_in_it() {
        let mut leaf = Leaf::default();
        for rel in 0..300u16 {
            leaf.set(rel * 3, Entry::At(Mapping { loc: Loc { segment: u32::from(rel), offset: 1 }, crc: 1 }));
        }
        assert!(leaf.heap_bytes() <= size_of::<Leaf>() + 300 * 13, "{}", leaf.heap_bytes());
        leaf.remove(0, 1 << 15);
        assert!(leaf.heap_bytes() <= size_of::<Leaf>() + 16 * 16, "{}", leaf.heap_bytes());
    }
}
