//! Writing the pages of the directories above the leaves that changed, from below to the top.

use std::collections::BTreeSet;
use std::sync::Arc;

use layout::addr::PAGE;

use super::Checkpoint;
use super::writer::BATCH_PAGES;
use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::store::format::directory::{self, REFS_MAX, Ref};
use crate::store::format::{Loc, Mapping};
use crate::store::log::Log;
use crate::store::map::base::BaseMap;
use crate::store::map::directory::{Node, REFS_MIN};

/// Pages of a directory taken on in one step.
const NODES_MAX: usize = if cfg!(test) { 1 } else { 16 };
/// References taken on at once: many new leaves may belong under one page.
const ONE_GO_MAX: usize = 16 * REFS_MAX;

/// How far the directories are.
#[derive(Default)]
pub(super) struct Place {
    map: usize,
    level: usize,
    /// Pages of the level above that have to be written.
    above: BTreeSet<u64>,
}

/// Pages encoded together, to be written in one go.
struct Pages {
    buf: AlignedBuf,
    places: Vec<Loc>,
}

impl Checkpoint {
    /// Writes some pages; false when none is left.
    ///
    /// # Errors
    /// [`IoError::Io`]: the store must stop writing.
    pub(super) fn write_nodes(&mut self, log: &mut Log, place: &mut Place) -> Result<bool, IoError> {
        if place.map == self.frozen.maps.len() {
            return Ok(false);
        }
        let mut pages = Pages { buf: AlignedBuf::zeroed(BATCH_PAGES * PAGE), places: Vec::new() };
        for _ in 0..NODES_MAX {
            let Some(key) = self.touched[place.map].first().copied() else {
                self.end_level(log, place);
                break;
            };
            if !self.write_node(log, place, key, &mut pages)? {
                break;
            }
        }
        self.writer.write(log, &Arc::new(pages.buf), &pages.places, Vec::new());
        Ok(true)
    }

    /// Up a level, or to the next map.
    fn end_level(&mut self, log: &Log, place: &mut Place) {
        let mut maps = log.shared.maps.write();
        let Some(map) = maps.frozen_map(self.frozen.maps[place.map].id) else {
            *place = Place { map: place.map + 1, ..Place::default() };
            return;
        };
        let pages = map.directory.page_count(place.level);
        if pages > 1 {
            self.touched[place.map] = std::mem::take(&mut place.above);
            place.level += 1;
            return;
        }
        // This is the top, or nothing is left.
        let gone = map.directory.cut(place.level + pages);
        map.drop_now(gone);
        *place = Place { map: place.map + 1, ..Place::default() };
    }

    /// Writes what the page of a key has to list now, in as many pages as that takes; false if there is no room for
    /// them in this step.
    fn write_node(
        &mut self,
        log: &mut Log,
        place: &mut Place,
        key: u64,
        pages: &mut Pages,
    ) -> Result<bool, IoError> {
        let shared = Arc::clone(&log.shared);
        let mut guard = shared.maps.write();
        let maps = &mut *guard;
        let id = self.frozen.maps[place.map].id;
        let level = place.level;
        let touched = &mut self.touched[place.map];
        let Some(map) = maps.frozen_map(id) else { return Ok(false) };
        let mut to = map.directory.next_key(level, key);
        let mut refs = refs_of(map, level, key, to);
        let mut taken_in = Vec::new();
        while refs.len() < REFS_MIN
            && let Some(next) = to
        {
            to = map.directory.next_key(level, next);
            refs.extend(refs_of(map, level, next, to));
            taken_in.push(next);
        }
        let rest = refs.get(ONE_GO_MAX).map(|r| r.key);
        refs.truncate(ONE_GO_MAX);
        let parts = parts_of(&refs, to.is_none() && rest.is_none());
        if pages.places.len() + parts.len() > BATCH_PAGES {
            assert!(!pages.places.is_empty(), "the pages of one key fit a batch");
            return Ok(false);
        }
        for old in taken_in.into_iter().chain([key]) {
            touched.remove(&old);
            place.above.insert(map.directory.key_for(level + 1, old));
            let gone = map.directory.remove(level, old);
            map.drop_now(gone.map(|node| node.page.loc));
        }
        // What is left belongs to a page that is yet to come.
        touched.extend(rest);
        for (i, part) in parts.iter().enumerate() {
            let n = pages.places.len();
            let page = &mut pages.buf[n * PAGE..(n + 1) * PAGE];
            let part_key = if i == 0 { key } else { part[0].key };
            directory::encode_into(shared.uuid, level as u16, part_key, part, page);
            let crc = crc32c::crc32c(page);
            let loc = self.writer.allocate(log, maps)?;
            pages.places.push(loc);
            let node = Node { page: Mapping { loc, crc }, count: part.len() as u16 };
            if let Some(map) = maps.frozen_map(id) {
                // It may belong under another page than the one whose place it takes: that had taken in the first ones of its
                // right neighbour.
                place.above.insert(map.directory.key_for(level + 1, part_key));
                map.directory.insert(level, part_key, node);
            }
        }
        Ok(true)
    }
}

fn refs_of(map: &BaseMap, level: usize, from: u64, to: Option<u64>) -> Vec<Ref> {
    match level.checked_sub(1) {
        None => map.refs(from, to).take(ONE_GO_MAX + 1).collect(),
        Some(below) => map.directory.refs(below, from, to).take(ONE_GO_MAX + 1).collect(),
    }
}

/// Cuts references into pages: evenly, but full ones at the end of the level, where a map grows.
fn parts_of(refs: &[Ref], last: bool) -> Vec<&[Ref]> {
    if refs.is_empty() {
        return Vec::new();
    }
    let count = refs.len().div_ceil(REFS_MAX);
    let size = if last { REFS_MAX } else { refs.len().div_ceil(count) };
    refs.chunks(size).collect()
}
