//! Segments of records: user and cold streams.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;

use layout::addr::PAGE;

use super::{CHUNK_PAGES, Damaged, Finding, Scrub, holds_records, read_again};
use crate::store::Shared;
use crate::store::clean::cloned::cloned_from;
use crate::store::format::checkpoint::MapId;
use crate::store::format::leaf::NOWHERE;
use crate::store::format::record::Record;
use crate::store::format::{Loc, Mapping, page_crc};
use crate::store::map::Lookup;
use crate::store::map::base::BaseMap;
use crate::store::map::segments::State;
use crate::store::snapshot::Snapshot;

/// Most pages looked for in one walk over the map (some 24 bytes each).
const SOUGHT_PAGES_MAX: u64 = 1 << 20;

/// A segment whose records could be followed only up to a page.
struct Broken {
    from: u16,
    live_pages: u32,
}

impl Scrub<'_, '_> {
    /// All segments of records.
    pub(super) fn records(&mut self) -> ControlFlow<()> {
        let mut broken = BTreeMap::new();
        for segment in 0..self.shared.geometry.segments {
            let maps = self.shared.maps.read();
            let Some(info) = maps.segments.get(segment).copied().filter(holds_records) else { continue };
            drop(maps);
            if let Some(from) = self.segment(segment, info.used_pages, info.use_seq)? {
                broken.insert(segment, Broken { from, live_pages: info.live() });
            }
        }
        self.behind_bad_headers(broken)
    }

    /// Walks the records of a segment; gives the page where a header is bad, if one is.
    fn segment(&mut self, segment: u32, used_pages: u32, use_seq: u64) -> ControlFlow<(), Option<u16>> {
        let mut at = 1;
        while at < used_pages {
            let start = Loc { segment, offset: at as u16 };
            let pages = CHUNK_PAGES.min((used_pages - at) as usize);
            let failed: HashMap<usize, io::Error> = self.fill(start, pages).into_iter().collect();
            let mut done = 0;
            while done < pages {
                let header = Loc { offset: start.offset + done as u16, ..start };
                let record = match self.header(header, use_seq, done) {
                    Ok(record) => record,
                    Err(why) => {
                        if !self.is_in_use(segment, use_seq) {
                            return ControlFlow::Continue(None);
                        }
                        let why = failed.get(&done).map_or(why, io::Error::to_string);
                        self.bad(Damaged::RecordHeader, header, Finding::Other(why));
                        self.advance(done)?;
                        return ControlFlow::Continue(Some(header.offset));
                    }
                };
                let end = done + 1 + record.page_count() as usize;
                if end > pages {
                    if done == 0 {
                        let why = format!("the record has {} pages, more than fit there", end - 1);
                        self.bad(Damaged::RecordHeader, header, Finding::Other(why));
                        return ControlFlow::Continue(Some(header.offset));
                    }
                    // The next piece begins with it.
                    break;
                }
                for (i, (page, crc)) in record.data_pages().enumerate() {
                    let at_in_buf = done + 1 + i;
                    let bytes = &self.buf[at_in_buf * PAGE..(at_in_buf + 1) * PAGE];
                    self.report.data_pages += 1;
                    if page_crc(page, bytes) != crc || failed.contains_key(&at_in_buf) {
                        let at = Loc { offset: start.offset + at_in_buf as u16, ..start };
                        self.suspect(page, at);
                    }
                }
                done = end;
            }
            self.advance(done)?;
            at += done as u32;
        }
        ControlFlow::Continue(None)
    }

    /// The header at a page of the buffer.
    fn header(&self, at: Loc, use_seq: u64, page_in_buf: usize) -> Result<Record, String> {
        let page = &self.buf[page_in_buf * PAGE..(page_in_buf + 1) * PAGE];
        let record = Record::decode(page).map_err(|m| m.to_string())?;
        if record.uuid != self.shared.uuid || record.at != at || record.use_seq != use_seq {
            return Err(format!(
                "a record of {}, use {}, stands where one of use {use_seq} should",
                record.at, record.use_seq
            ));
        }
        Ok(record)
    }

    fn is_in_use(&self, segment: u32, use_seq: u64) -> bool {
        let maps = self.shared.maps.read();
        maps.segments.get(segment).is_some_and(|s| s.state != State::Free && s.use_seq == use_seq)
    }

    /// A page that is not what its record says: bad if the map refers to it, for whichever device page.
    fn suspect(&mut self, page: u64, at: Loc) {
        // Not to be told is not to be accused: the bad leaf is in the report.
        let mut pages = cloned_from(self.shared, at.segment).unwrap_or_default();
        pages.retain(|(_, mapping)| mapping.loc == at);
        let mut pages: Vec<u64> = pages.into_iter().map(|(page, _)| page).chain([page]).collect();
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().for_each(|page| self.suspect_page(page, at));
    }

    fn suspect_page(&mut self, page: u64, at: Loc) {
        loop {
            let Ok(Some(expected)) = mapped_there(self.shared, page, at) else { return };
            let Err(finding) = read_again(self.shared, at, expected, |bytes| page_crc(page, bytes)) else {
                return;
            };
            if matches!(mapped_there(self.shared, page, at), Ok(Some(still)) if still == expected) {
                let snapshot = keeper(self.shared, page, at);
                return self.bad_of(snapshot, Damaged::Page { device_page: page }, at, finding);
            }
        }
    }

    /// Pages behind a bad header are named by nobody but the map.
    fn behind_bad_headers(&mut self, mut broken: BTreeMap<u32, Broken>) -> ControlFlow<()> {
        while !broken.is_empty() {
            let mut batch = BTreeMap::new();
            let mut pages = 0;
            while let Some((segment, b)) = broken.pop_first() {
                pages += u64::from(b.live_pages);
                batch.insert(segment, b.from);
                if pages >= SOUGHT_PAGES_MAX {
                    break;
                }
            }
            let mut found =
                mapped_pages(self.shared, |at| batch.get(&at.segment).is_some_and(|&from| at.offset > from));
            found.sort_unstable_by_key(|(_, mapping)| mapping.loc);
            for (page, Mapping { loc, crc }) in found {
                self.report.data_pages += 1;
                self.report.bytes_read += PAGE as u64;
                if read_again(self.shared, loc, crc, |bytes| page_crc(page, bytes)).is_err() {
                    self.suspect_page(page, loc);
                }
                self.advance(1)?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// The crc that the map has for a page if it stands at `at`, in whichever layer.
///
/// # Errors
/// Its leaf cannot be read.
fn mapped_there(shared: &Shared, page: u64, at: Loc) -> Result<Option<u32>, crate::device::IoError> {
    loop {
        let found = shared.maps.read().mapped_there(page, at);
        match found {
            Ok(mapping) => return Ok(mapping.map(|m| m.crc)),
            Err(leaf) => shared.load(leaf)?,
        }
    }
}

/// The snapshot whose delta has a page at `at`.
fn keeper(shared: &Shared, page: u64, at: Loc) -> Option<String> {
    let maps = shared.maps.read();
    let keeps = |s: &&Snapshot| matches!(s.delta.lookup(page), Lookup::Mapped(m) if m.loc == at);
    maps.snapshots.all().iter().find(keeps).map(|s| s.name.clone())
}

/// All pages, of every layer, that stand at places that `wanted` accepts. Pages of leaves that cannot be read are
/// left out: the leaf is in the report.
fn mapped_pages(shared: &Shared, wanted: impl Fn(Loc) -> bool) -> Vec<(u64, Mapping)> {
    let mut found: Vec<(u64, Mapping)> = Vec::new();
    let keep = |found: &mut Vec<_>, page, mapping: Mapping| {
        if wanted(mapping.loc) {
            found.push((page, mapping));
        }
    };
    let deltas: Vec<MapId> = shared.maps.read().snapshots.all().iter().map(Snapshot::map_id).collect();
    for id in std::iter::once(MapId::Committed).chain(deltas) {
        let mut from = 0;
        loop {
            let maps = shared.maps.read();
            let Some(map) = maps.map(id) else { break };
            let Some((key, _, _)) = map.leaves_from(from).next() else { break };
            if add_leaf(map, key, &mut |page, mapping| keep(&mut found, page, mapping)) {
                from = key + 1;
                continue;
            }
            drop(maps);
            if shared.load_leaf_of(id, key).is_err() {
                from = key + 1;
            }
        }
    }
    shared.maps.read().overlay.mappings().for_each(|(page, mapping)| keep(&mut found, page, mapping));
    found
}

/// The entries of a leaf; false if it is not loaded.
fn add_leaf(map: &BaseMap, key: u64, add: &mut impl FnMut(u64, Mapping)) -> bool {
    let Some(entries) = map.entries(key) else { return false };
    let unit = key & !(layout::addr::MAP_UNIT_PAGES - 1);
    entries
        .filter(|e| e.segment != NOWHERE)
        .for_each(|e| add(unit + u64::from(e.rel), Mapping { loc: e.loc(), crc: e.crc }));
    true
}
