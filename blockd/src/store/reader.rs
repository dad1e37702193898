//! Verified reads, from any thread, at the side of the writer.
//!
//! A segment can be cleaned and used again while a read of it is under way. The crc in the map
//! (which covers the page's address) tells: on a mismatch the map is asked again, and only if it still
//! names the same place and crc is the page bad.

use layout::addr::PAGE;

use super::Shared;
use super::format::checkpoint::MapId;
use super::format::{Geometry, Loc, Mapping, leaf, page_crc};
use super::map::{Lookup, Maps};
use super::snapshot::{LeafId, SnapshotId, View};
use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::storage::{ReadPart, ScatteredRead, split};

/// Longest single read of the backing, in pages.
const RUN_PAGES_MAX: usize = 256;

/// Leaves looked at under one hold of the map's lock.
const LEAVES_MAX: usize = 4096;

/// A read of whole device pages.
pub struct PageRead {
    /// First device page.
    pub first: u64,
    /// Whole pages, to be filled.
    pub buf: AlignedBuf,
}

impl Shared {
    /// Carries out reads of the live volume, several at once, and tells the outcome of each with its number as soon as it
    /// is there.
    pub fn read_each(
        &self,
        reads: Vec<PageRead>,
        finished: &mut dyn FnMut(usize, Result<AlignedBuf, IoError>),
    ) {
        let (plan, starts) = self.lookup_all(&reads);
        let firsts: Vec<u64> = reads.iter().map(|read| read.first).collect();
        let mut scattered = Vec::with_capacity(reads.len());
        for (tag, (read, start)) in reads.into_iter().zip(&starts).enumerate() {
            match start {
                Ok(start) => {
                    let parts = parts(self.geometry, &plan[*start..*start + read.buf.len() / PAGE]);
                    scattered.push(ScatteredRead { tag, buf: read.buf, parts });
                }
                Err(e) => finished(tag, Err(e.clone())),
            }
        }
        let bytes = scattered.iter().flat_map(|read| &read.parts).map(|part| part.len as u64).sum();
        self.counters.read_bytes.add(bytes);
        self.storage.read_each(scattered, &mut |mut read| {
            let start = *starts[read.tag].as_ref().unwrap_or(&0);
            let plan = &plan[start..start + read.buf.len() / PAGE];
            let result = self.verify(View::Live, firsts[read.tag], &mut read.buf, plan);
            finished(read.tag, result.map(|()| read.buf));
        });
    }

    /// One read.
    ///
    /// # Errors
    /// [`IoError::Io`] with the address when a page is bad.
    pub fn read_run(&self, first: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.read_run_at(View::Live, first, buf)
    }

    /// As [`Shared::read_run`], in any state of the volume.
    ///
    /// # Errors
    /// As [`Shared::read_run`].
    pub fn read_run_at(&self, view: View, first: u64, buf: &mut [u8]) -> Result<(), IoError> {
        let plan = self.lookup_run(view, first, buf.len() / PAGE)?;
        let mut reads = split(buf, &parts(self.geometry, &plan));
        self.counters.read_bytes.add(reads.iter().map(|read| read.buf.len() as u64).sum());
        self.storage.read_batch(&mut reads);
        self.verify(view, first, buf, &plan)
    }

    /// Looks all pages of all reads up, one after another, with where each read's begin, or why its leaf cannot be read.
    fn lookup_all(&self, reads: &[PageRead]) -> (Vec<Lookup>, Vec<Result<usize, IoError>>) {
        let mut plan = Vec::with_capacity(reads.iter().map(|read| read.buf.len() / PAGE).sum());
        let mut starts = Vec::with_capacity(reads.len());
        let mut maps = self.maps.read();
        for read in reads {
            let start = plan.len();
            let mut outcome = Ok(start);
            while let Some(leaf) =
                lookup_onto(&maps, View::Live, read.first, read.buf.len() / PAGE, &mut plan)
            {
                plan.truncate(start);
                drop(maps);
                let loaded = self.load(leaf);
                maps = self.maps.read();
                if let Err(e) = loaded {
                    outcome = Err(e);
                    break;
                }
            }
            starts.push(outcome);
        }
        (plan, starts)
    }

    /// Looks pages up, loading leaves as needed.
    fn lookup_run(&self, view: View, first: u64, count: usize) -> Result<Vec<Lookup>, IoError> {
        loop {
            let mut plan = Vec::with_capacity(count);
            let missing = lookup_onto(&self.maps.read(), view, first, count, &mut plan);
            match missing {
                Some(leaf) => self.load(leaf)?,
                None => return Ok(plan),
            }
        }
    }

    /// Checks every page; pages that moved while they were read are read again.
    fn verify(&self, view: View, first: u64, buf: &mut [u8], plan: &[Lookup]) -> Result<(), IoError> {
        for (i, (bytes, planned)) in buf.chunks_exact_mut(PAGE).zip(plan).enumerate() {
            let page = first + i as u64;
            let mut planned = *planned;
            loop {
                let Lookup::Mapped(mapping) = planned else {
                    bytes.fill(0);
                    break;
                };
                let found = page_crc(page, bytes);
                if found == mapping.crc {
                    break;
                }
                let now = self.lookup_run(view, page, 1)?.first().copied().unwrap_or(Lookup::Unmapped);
                if now == planned {
                    // Not moved: either the read failed, or the page is bad. Reading once more tells.
                    self.read_one(mapping.loc, bytes)
                        .map_err(|e| self.read_error(page, mapping, &e.to_string()))?;
                    let found = page_crc(page, bytes);
                    if found == mapping.crc {
                        break;
                    }
                    if self.lookup_run(view, page, 1)?.first() == Some(&planned) {
                        let expected = mapping.crc;
                        let why = format!("crc32c expected {expected:#010x}, found {found:#010x}");
                        return Err(self.read_error(page, mapping, &why));
                    }
                    continue;
                }
                planned = now;
                if let Lookup::Mapped(mapping) = now {
                    // A failure shows as a wrong crc in the next round.
                    let _ = self.read_one(mapping.loc, bytes);
                }
            }
        }
        Ok(())
    }

    fn read_one(&self, loc: Loc, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut page = AlignedBuf::recycled(PAGE);
        self.storage.read_exact(self.geometry.byte(loc), &mut page)?;
        bytes.copy_from_slice(&page);
        Ok(())
    }

    fn read_error(&self, page: u64, mapping: Mapping, why: &str) -> IoError {
        self.counters.read_errors.inc();
        let byte = self.geometry.byte(mapping.loc);
        let text =
            format!("device page {page:#x} at {} (image byte {byte}) cannot be read: {why}", mapping.loc);
        tracing::error!("{text}");
        IoError::Io(text)
    }

    /// Has the next checkpoint write everything anew that stands in a meta segment.
    ///
    /// # Errors
    /// [`IoError::Io`] when a leaf that stands there cannot be read.
    pub fn empty_meta(&self, segment: u32) -> Result<(), IoError> {
        let ids = self.maps.read().ids();
        for id in ids {
            let above = self.maps.read().map(id).map(|map| map.leaves_above(segment)).unwrap_or_default();
            self.make_dirty(id, above)?;
            let mut from = Some(0);
            while let Some(key) = from {
                let found = self.maps.read().map(id).map(|map| map.clean_in(segment, key, LEAVES_MAX));
                let (keys, next) = found.unwrap_or_default();
                self.make_dirty(id, keys)?;
                from = next;
            }
        }
        Ok(())
    }

    fn make_dirty(&self, id: MapId, keys: Vec<u64>) -> Result<(), IoError> {
        for key in keys {
            while !self.maps.write().map_mut(id).is_none_or(|map| map.make_dirty(key)) {
                self.load_leaf_of(id, key)?;
            }
        }
        Ok(())
    }

    /// Reads a map leaf in, if it still has to be.
    ///
    /// # Errors
    /// [`IoError::Io`] when it is bad: nothing is known of the pages it maps.
    pub fn load_leaf(&self, key: u64) -> Result<(), IoError> {
        self.load_leaf_of(MapId::Committed, key)
    }

    /// As [`Shared::load_leaf_of`].
    ///
    /// # Errors
    /// As [`Shared::load_leaf`].
    pub fn load(&self, leaf: LeafId) -> Result<(), IoError> {
        self.load_leaf_of(leaf.map, leaf.key)
    }

    /// Reads a leaf of any map in, if it still has to be.
    ///
    /// # Errors
    /// As [`Shared::load_leaf`].
    pub fn load_leaf_of(&self, map: MapId, key: u64) -> Result<(), IoError> {
        let mut buf = AlignedBuf::zeroed(PAGE);
        let unloaded = || self.maps.read().map(map).and_then(|map| map.unloaded(key));
        if let Some(why) = self.maps.read().damage(LeafId { map, key }) {
            self.counters.read_errors.inc();
            return Err(IoError::Io(why.clone()));
        }
        loop {
            let Some(at) = unloaded() else { return Ok(()) };
            let read = self.storage.read_exact(self.geometry.byte(at.loc), &mut buf);
            let checked = read.map_err(|e| e.to_string()).and_then(|()| self.decode_leaf(key, at, &buf));
            match checked {
                Ok(runs) => {
                    self.counters.leaf_loads.inc();
                    if let Some(map) = self.maps.write().map_mut(map) {
                        map.load(key, at, &runs);
                    }
                    return Ok(());
                }
                Err(_) if unloaded() != Some(at) => {}
                Err(why) => {
                    self.counters.read_errors.inc();
                    return Err(IoError::Io(self.leaf_error(LeafId { map, key }, at.loc, &why)));
                }
            }
        }
    }
}

impl Shared {
    /// What is wrong with a leaf; told once, however often it is asked for.
    fn leaf_error(&self, leaf: LeafId, at: Loc, why: &str) -> String {
        let mut maps = self.maps.write();
        let of = match leaf.map {
            MapId::Committed | MapId::Open => String::new(),
            MapId::Delta(number) => match maps.snapshots.get(SnapshotId(number)) {
                Some(snapshot) => format!(" of snapshot {:?}", snapshot.name),
                None => format!(" of snapshot {number}"),
            },
        };
        let (key, byte) = (leaf.key, self.geometry.byte(at));
        let text = format!("map leaf {key:#x}{of} at {at} (image byte {byte}) cannot be read: {why}");
        if maps.tell_of(leaf, at) {
            drop(maps);
            tracing::error!("{text}; nothing can be read or written that it maps");
        }
        text
    }

    /// As the function of this name, with what the store has.
    pub(super) fn decode_leaf(&self, key: u64, at: Mapping, page: &[u8]) -> Result<leaf::Runs, String> {
        decode_leaf(self.geometry, self.uuid, key, at, page)
    }
}

/// Checks a leaf page against its directory entry and decodes it.
pub(super) fn decode_leaf(
    geometry: Geometry,
    uuid: [u8; 16],
    key: u64,
    at: Mapping,
    page: &[u8],
) -> Result<leaf::Runs, String> {
    let found = crc32c::crc32c(page);
    if found != at.crc {
        return Err(format!("crc32c expected {:#010x}, found {found:#010x}", at.crc));
    }
    let runs = leaf::decode(uuid, key, page).map_err(|m| m.to_string())?;
    let last = |run: &leaf::Run| Loc { segment: run.segment, offset: run.offset + (run.count - 1) };
    match runs.runs.iter().find(|run| !run.is_tombstone() && !geometry.contains(last(run))) {
        Some(run) => Err(format!("it names {}, past the end of the image", last(run))),
        None => Ok(runs),
    }
}

/// Adds what stands behind pages, up to one whose leaf has to be loaded first; gives that leaf's key.
fn lookup_onto(maps: &Maps, view: View, first: u64, count: usize, plan: &mut Vec<Lookup>) -> Option<LeafId> {
    (first..first + count as u64).find_map(|page| match maps.lookup_at(view, page) {
        Ok(found) => {
            plan.push(found.map_or(Lookup::Unmapped, Lookup::Mapped));
            None
        }
        Err(leaf) => Some(leaf),
    })
}

/// What has to be read for a request: runs that are contiguous in the log at once.
fn parts(geometry: Geometry, plan: &[Lookup]) -> Vec<ReadPart> {
    let mut parts = Vec::new();
    let mut i = 0;
    while i < plan.len() {
        let mut count = 1;
        if let Lookup::Mapped(mapping) = plan[i] {
            while count < RUN_PAGES_MAX
                && plan.get(i + count).is_some_and(|next| follows(mapping, count, *next))
            {
                count += 1;
            }
            let offset = geometry.byte(mapping.loc);
            parts.push(ReadPart { offset, start: i * PAGE, len: count * PAGE });
        }
        i += count;
    }
    parts
}

fn follows(first: Mapping, count: usize, next: Lookup) -> bool {
    matches!(next, Lookup::Mapped(m) if m.loc.segment == first.loc.segment
        && usize::from(m.loc.offset) == usize::from(first.loc.offset) + count)
}
