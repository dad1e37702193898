//! The directory of a map as the last checkpoint has it: which page lists which leaves.
//!
//! Level 0 lists leaves, level n + 1 the pages of level n; the highest level has one page, an empty directory has no
//! level. A page of key k lists what has keys from k up to the key of the next page of its level; the first
//! page of each level has key 0. Only checkpoints change it, page by page (`checkpoint/nodes.rs`).

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::store::format::directory::{REFS_MAX, Ref, Target};
use crate::store::format::{Loc, Mapping};

/// A page that gets fewer references than this takes in those of the next one.
pub const REFS_MIN: usize = REFS_MAX / 4;

/// A page of the directory.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Where it stands.
    pub page: Mapping,
    /// References in it.
    pub count: u16,
}

/// The pages, by level and key.
#[derive(Debug, Default)]
pub struct Directory {
    levels: Vec<BTreeMap<u64, Node>>,
}

impl Directory {
    /// Number of levels; 0: no leaves.
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// The page at the top, which stands for all.
    pub fn top(&self) -> Option<Node> {
        self.levels.last()?.values().next().copied()
    }

    /// Number of pages of a level.
    pub fn page_count(&self, level: usize) -> usize {
        self.levels.get(level).map_or(0, BTreeMap::len)
    }

    /// Number of pages.
    pub fn total_pages(&self) -> usize {
        self.levels.iter().map(BTreeMap::len).sum()
    }

    /// Where all the pages stand.
    pub fn pages(&self) -> impl Iterator<Item = Loc> {
        self.levels.iter().flat_map(|level| level.values().map(|node| node.page.loc))
    }

    /// Key of the page of a level that lists `key`, or has to.
    pub fn key_for(&self, level: usize, key: u64) -> u64 {
        let pages = self.levels.get(level);
        pages.and_then(|pages| pages.range(..=key).next_back()).map_or(0, |(&key, _)| key)
    }

    /// Key of the next page of a level.
    pub fn next_key(&self, level: usize, key: u64) -> Option<u64> {
        let after = key.checked_add(1)?;
        self.levels.get(level)?.range(after..).next().map(|(&key, _)| key)
    }

    /// Adds a page, or a new one in place of the old.
    pub fn insert(&mut self, level: usize, key: u64, node: Node) {
        while self.levels.len() <= level {
            self.levels.push(BTreeMap::new());
        }
        self.levels[level].insert(key, node);
    }

    /// Takes a page out.
    pub fn remove(&mut self, level: usize, key: u64) -> Option<Node> {
        self.levels.get_mut(level)?.remove(&key)
    }

    /// Leaves so many levels; gives the places of the pages above.
    pub fn cut(&mut self, levels: usize) -> Vec<Loc> {
        let above = self.levels.split_off(levels.min(self.levels.len()));
        above.iter().flat_map(|level| level.values().map(|node| node.page.loc)).collect()
    }

    /// References to the pages of a level with keys from `from` up to `to`.
    pub fn refs(&self, level: usize, from: u64, to: Option<u64>) -> impl Iterator<Item = Ref> {
        let to = to.map_or(Bound::Unbounded, |to| Bound::Excluded(to.max(from)));
        let pages = self.levels.get(level).into_iter();
        pages
            .flat_map(move |pages| pages.range((Bound::Included(from), to)))
            .map(|(&key, node)| Ref { key, target: Target::Page { page: node.page, count: node.count } })
    }

    /// For each page that stands in a segment, the keys from and up to which a leaf is listed under it: a change of one
    /// such leaf has the next checkpoint write the page elsewhere.
    pub fn ranges_in(&self, segment: u32) -> Vec<(u64, Option<u64>)> {
        let mut ranges = Vec::new();
        for (level, pages) in self.levels.iter().enumerate() {
            for (&key, _) in pages.iter().filter(|(_, node)| node.page.loc.segment == segment) {
                ranges.push(self.leaves_under(level, key));
            }
        }
        ranges
    }

    /// Range of keys of leaves under a page, those of its first child at least.
    pub fn leaves_under(&self, level: usize, key: u64) -> (u64, Option<u64>) {
        let mut key = key;
        for below in (0..level).rev() {
            // A page may have taken in the first ones of its right neighbour: then its first child's key is higher.
            key = self.levels[below].range(key..).next().map_or(key, |(&key, _)| key);
        }
        (key, self.next_key(0, key))
    }

    /// All pages: level, key, place and crc.
    pub fn all(&self) -> impl Iterator<Item = (u16, u64, Mapping)> {
        let level = |(level, pages): (u16, &'_ BTreeMap<u64, Node>)| {
            pages.iter().map(move |(&key, node)| (level, key, node.page)).collect::<Vec<_>>()
        };
        (0..).zip(&self.levels).flat_map(level)
    }

    /// Whether a level has the page there.
    pub fn has(&self, level: u16, key: u64, loc: Loc) -> bool {
        let node = self.levels.get(usize::from(level)).and_then(|pages| pages.get(&key));
        node.is_some_and(|node| node.page.loc == loc)
    }

    /// Most pages that a checkpoint writes after `changed` leaves of `leaves` changed.
    pub fn pages_written_max(&self, changed: usize, leaves: usize) -> usize {
        let (mut changed, mut below) = (changed, leaves);
        let mut total = 0;
        for level in 0.. {
            if changed == 0 {
                break;
            }
            let pages = self.page_count(level);
            let touched = changed.min(pages.max(1));
            // Each page touched may be cut in two, and further for each that is filled. Pages have REFS_MIN references at
            // least, but for the last one.
            let written = match pages {
                0 | 1 => below.div_ceil(REFS_MAX).max(1),
                _ => (2 * touched + changed / REFS_MAX + 1).min(below / REFS_MIN + 1),
            };
            total += written;
            if written <= 1 && pages <= 1 {
                break;
            }
            // Pages that were taken in by their neighbours count as changes too.
            (changed, below) = (written + 2 * touched, pages + written);
        }
        total
    }
}
