//! Writing a checkpoint: dirty leaves, the open epoch, the payload, the root, then the superblock.
//!
//! Nothing of the last checkpoint is overwritten before both superblock slots name the new one.
//! Runs in the log's thread with no record in flight; reads go on.

use std::sync::Arc;

use layout::addr::{MAP_UNIT_PAGES, PAGE};

use super::Shared;
use super::format::checkpoint::{LeafRef, Payload, Position, RUNS_MAX, Root, Run, SegmentUsage};
use super::format::leaf::{self, LeafEntry};
use super::format::segment::Stream;
use super::format::superblock::{SLOTS, Superblock};
use super::format::{Loc, Mapping};
use super::log::{Head, Log};
use super::map::segments::State;
use crate::buf::AlignedBuf;
use crate::device::IoError;

/// Pages written at once.
const WRITE_PAGES: usize = 256;
/// Entries of a leaf of the open epoch: so many always fit a page (16 bytes at worst).
const OPEN_LEAF_ENTRIES: usize = 250;

/// Leaves encoded together, to be written in one go.
struct Pending {
    keys: Vec<u64>,
    buf: AlignedBuf,
}

/// One checkpoint under way.
pub(super) struct Checkpointer<'a> {
    log: &'a mut Log,
    shared: Arc<Shared>,
    /// Pages of this checkpoint other than base leaves.
    own_pages: Vec<Loc>,
    /// Meta segments it took.
    taken: Vec<u32>,
    /// The meta stream's head before it.
    old_head: Option<Head>,
}

impl<'a> Checkpointer<'a> {
    pub(super) fn new(log: &'a mut Log) -> Self {
        let shared = Arc::clone(&log.shared);
        let old_head = log.meta_head;
        Checkpointer { log, shared, own_pages: Vec::new(), taken: Vec::new(), old_head }
    }

    /// Writes it and makes it durable.
    ///
    /// # Errors
    /// `NoSpace` (the store goes on without it), or `Io` (the store must stop writing).
    pub(super) fn run(mut self) -> Result<(), IoError> {
        let result = self.write_all();
        if matches!(result, Err(IoError::NoSpace)) {
            self.give_back();
        }
        result
    }

    /// What was written names nothing that counts. Were it kept until the next checkpoint, attempts that fail
    /// would eat the space that one needs to succeed.
    fn give_back(&mut self) {
        let mut maps = self.shared.maps.write();
        maps.segments.release(&self.taken);
        if let Some(head) = self.old_head {
            maps.segments.reopen(head.at.segment);
        }
        self.log.meta_head = self.old_head;
    }

    fn write_all(&mut self) -> Result<(), IoError> {
        self.ensure_heads()?;
        let leaves = self.write_dirty_leaves()?;
        let open = self.write_open_epoch()?;
        let (root_at, root) = self.write_payload(&leaves, open)?;
        let mut page = AlignedBuf::zeroed(PAGE);
        root.encode_into(&mut page);
        self.write(root_at, &page)?;
        self.own_pages.push(root_at);
        self.sync()?;
        let superblock = Superblock {
            generation: root.generation,
            root: Mapping { loc: root_at, crc: crc32c::crc32c(&page) },
            session: root.session.session(),
            next_seq: root.next_seq,
            ..self.log.superblock.clone()
        };
        write_slots(&self.shared, &superblock)?;
        self.log.superblock = superblock;
        self.settle(&leaves);
        Ok(())
    }

    /// Both streams have a head, so that the root can say where replay begins.
    fn ensure_heads(&mut self) -> Result<(), IoError> {
        for (i, stream) in Stream::LOGGED.into_iter().enumerate() {
            if self.log.heads[i].use_seq == 0 {
                self.log.heads[i] = self.take_segment(stream)?;
            }
        }
        Ok(())
    }

    fn take_segment(&mut self, stream: Stream) -> Result<Head, IoError> {
        let use_seq = self.log.next_use_seq;
        let segment = self.shared.maps.write().segments.take(stream, use_seq).ok_or(IoError::NoSpace)?;
        self.log.next_use_seq += 1;
        Ok(Head { at: Loc { segment, offset: 1 }, use_seq, fresh: true })
    }

    fn write(&self, at: Loc, bytes: &[u8]) -> Result<(), IoError> {
        let offset = self.shared.geometry.byte(at);
        self.shared.counters.checkpoint_bytes.add(bytes.len() as u64);
        self.shared
            .storage
            .write_all(offset, bytes)
            .map_err(|e| IoError::Io(format!("writing a checkpoint at image byte {offset} failed: {e}")))
    }

    fn sync(&self) -> Result<(), IoError> {
        self.shared
            .storage
            .sync()
            .map_err(|e| IoError::Io(format!("making a checkpoint durable failed: {e}")))
    }

    /// Room for up to `pages` pages in a row; gives where and how many.
    fn allocate(&mut self, pages: usize) -> Result<(Loc, usize), IoError> {
        let limit = self.shared.geometry.segment_pages;
        let head = match self.log.meta_head {
            Some(head) if u32::from(head.at.offset) < limit && head.at.offset != 0 => head,
            old => {
                let new = self.take_segment(Stream::Meta)?;
                self.taken.push(new.at.segment);
                let mut page = AlignedBuf::zeroed(PAGE);
                self.log.segment_header(new.at.segment, Stream::Meta, new.use_seq).encode_into(&mut page);
                self.write(Loc { offset: 0, ..new.at }, &page)?;
                if let Some(old) = old {
                    self.shared.maps.write().segments.close(old.at.segment);
                }
                new
            }
        };
        let got = pages.min((limit - u32::from(head.at.offset)) as usize);
        let next = u32::from(head.at.offset) + got as u32;
        self.shared.maps.write().segments.wrote(head.at.segment, next);
        // Offset 0 (the header's place) stands for a full segment: 65536 does not fit 16 bits.
        let offset = if next == limit { 0 } else { next as u16 };
        self.log.meta_head = Some(Head { at: Loc { offset, ..head.at }, ..head });
        Ok((head.at, got))
    }

    /// Writes whole pages wherever there is room; gives the place of each.
    fn write_pages(&mut self, buf: &[u8]) -> Result<Vec<Loc>, IoError> {
        let mut places = Vec::with_capacity(buf.len() / PAGE);
        let mut rest = buf;
        while !rest.is_empty() {
            let (at, got) = self.allocate(rest.len() / PAGE)?;
            let (now, later) = rest.split_at(got * PAGE);
            self.write(at, now)?;
            places.extend((0..got).map(|i| Loc { offset: at.offset + i as u16, ..at }));
            rest = later;
        }
        Ok(places)
    }

    /// Writes the changed leaves of the committed map; gives where they stand now.
    fn write_dirty_leaves(&mut self) -> Result<Vec<(u64, Mapping)>, IoError> {
        let mut keys = {
            let mut maps = self.shared.maps.write();
            maps.base.drop_empty();
            maps.base.dirty_keys()
        };
        keys.reverse();
        let mut out = Vec::with_capacity(keys.len());
        let mut pending = Pending { keys: Vec::new(), buf: AlignedBuf::zeroed(WRITE_PAGES * PAGE) };
        while let Some(key) = keys.pop() {
            let i = pending.keys.len();
            let page = &mut pending.buf[i * PAGE..(i + 1) * PAGE];
            let fits = {
                let maps = self.shared.maps.read();
                let entries = maps.base.entries(key).unwrap_or_default();
                leaf::encode_into(self.shared.uuid, key, entries, page)
            };
            if !fits {
                let upper = self.shared.maps.write().base.split(key);
                keys.extend([upper, key]);
                continue;
            }
            pending.keys.push(key);
            if pending.keys.len() == WRITE_PAGES {
                self.flush_leaves(&mut pending, &mut out)?;
            }
        }
        self.flush_leaves(&mut pending, &mut out)?;
        Ok(out)
    }

    fn flush_leaves(&mut self, pending: &mut Pending, out: &mut Vec<(u64, Mapping)>) -> Result<(), IoError> {
        let bytes = &pending.buf[..pending.keys.len() * PAGE];
        let places = self.write_pages(bytes)?;
        for ((key, loc), page) in pending.keys.drain(..).zip(places).zip(bytes.chunks_exact(PAGE)) {
            out.push((key, Mapping { loc, crc: crc32c::crc32c(page) }));
        }
        Ok(())
    }

    /// Writes the open epoch's pages as leaves of their own.
    fn write_open_epoch(&mut self) -> Result<Vec<LeafRef>, IoError> {
        let units: Vec<u64> = self.shared.maps.read().overlay.units().collect();
        let mut refs = Vec::new();
        let mut pending = Pending { keys: Vec::new(), buf: AlignedBuf::zeroed(WRITE_PAGES * PAGE) };
        let mut counts = Vec::new();
        for unit in units {
            let entries = self.shared.maps.read().overlay.unit_entries(unit);
            for part in entries.chunks(OPEN_LEAF_ENTRIES) {
                let key = unit * MAP_UNIT_PAGES + part.first().map_or(0, |e: &LeafEntry| u64::from(e.rel));
                let i = pending.keys.len();
                let page = &mut pending.buf[i * PAGE..(i + 1) * PAGE];
                let fits = leaf::encode_into(self.shared.uuid, key, part, page);
                assert!(fits, "{OPEN_LEAF_ENTRIES} entries fit a leaf");
                pending.keys.push(key);
                counts.push(part.len() as u16);
                if pending.keys.len() == WRITE_PAGES {
                    self.flush_open(&mut pending, &mut counts, &mut refs)?;
                }
            }
        }
        self.flush_open(&mut pending, &mut counts, &mut refs)?;
        Ok(refs)
    }

    fn flush_open(
        &mut self,
        pending: &mut Pending,
        counts: &mut Vec<u16>,
        refs: &mut Vec<LeafRef>,
    ) -> Result<(), IoError> {
        let mut written = Vec::new();
        self.flush_leaves(pending, &mut written)?;
        for ((key, page), entries) in written.into_iter().zip(counts.drain(..)) {
            self.own_pages.push(page.loc);
            refs.push(LeafRef { key, page, entries });
        }
        Ok(())
    }

    /// Writes the payload; gives the root's place and content.
    fn write_payload(
        &mut self,
        leaves: &[(u64, Mapping)],
        open: Vec<LeafRef>,
    ) -> Result<(Loc, Root), IoError> {
        let (base, discards) = {
            let maps = self.shared.maps.read();
            let mut new = leaves.iter().copied().peekable();
            let mut base = Vec::with_capacity(maps.base.leaf_count());
            for (key, entries, disk) in maps.base.leaves() {
                let written = new.next_if(|(k, _)| *k == key).map(|(_, page)| page);
                let Some(page) = written.or(disk) else {
                    panic!("leaf {key:#x} is neither dirty nor on disk")
                };
                base.push(LeafRef { key, page, entries });
            }
            (base, maps.overlay.discards().collect::<Vec<_>>())
        };
        let segment_count = self.shared.geometry.segments;
        let mut payload = Payload { segments: Vec::new(), base, open, discards };
        let bytes_len = 24 * (segment_count as usize + payload.base.len() + payload.open.len())
            + 16 * payload.discards.len();
        // The places come first, since the segment table in the payload has to show them.
        let mut runs: Vec<Run> = Vec::new();
        let mut left = bytes_len.div_ceil(PAGE);
        while left > 0 {
            let (at, got) = self.allocate(left)?;
            runs.push(Run { at, pages: got as u32, crc: 0 });
            left -= got;
        }
        if runs.len() > RUNS_MAX {
            return Err(IoError::Io(format!(
                "a checkpoint of {bytes_len} bytes is beyond the format's limit"
            )));
        }
        let (root_at, _) = self.allocate(1)?;
        payload.segments = self.usage();
        let mut bytes = payload.encode();
        assert_eq!(bytes.len(), bytes_len, "the payload has the length that was planned");
        bytes.resize(bytes_len.next_multiple_of(PAGE), 0);
        let mut rest = AlignedBuf::from_slice(&bytes);
        let mut start = 0;
        for run in &mut runs {
            let len = run.pages as usize * PAGE;
            let part = &mut rest[start..start + len];
            run.crc = crc32c::crc32c(part);
            self.write(run.at, part)?;
            self.own_pages.extend((0..run.pages).map(|i| Loc { offset: run.at.offset + i as u16, ..run.at }));
            start += len;
        }
        let maps = self.shared.maps.read();
        let root = Root {
            uuid: self.shared.uuid,
            generation: self.log.superblock.generation + 1,
            next_seq: self.log.next_seq,
            next_use_seq: self.log.next_use_seq,
            epoch: maps.epoch,
            payload_bytes: bytes_len as u64,
            segment_count,
            base_leaves: payload.base.len() as u64,
            open_leaves: payload.open.len() as u64,
            open_discards: payload.discards.len() as u64,
            positions: self.log.heads.map(|h| Position { at: h.at, use_seq: h.use_seq }),
            session: maps.session.clone(),
            runs,
        };
        Ok((root_at, root))
    }

    /// The segment table as it will be when this checkpoint is durable.
    fn usage(&self) -> Vec<SegmentUsage> {
        let maps = self.shared.maps.read();
        maps.segments
            .all()
            .iter()
            .map(|s| {
                let data = s.stream != Stream::Meta;
                // Whether an old meta segment is empty now is found again at start, from the leaves.
                let free = s.state == State::Free || (data && s.state == State::Closed && s.live() == 0);
                SegmentUsage {
                    stream: (!free).then_some(s.stream),
                    used_pages: if free { 0 } else { s.used_pages },
                    live_pages: if data && !free { s.live_base } else { 0 },
                    use_seq: s.use_seq,
                }
            })
            .collect()
    }

    /// The checkpoint is durable: leaves are clean, what it no longer needs is free.
    fn settle(&mut self, leaves: &[(u64, Mapping)]) {
        let released: Vec<u32> = {
            let mut maps = self.shared.maps.write();
            for (key, page) in leaves {
                maps.base.written(*key, *page);
            }
            let disk: Vec<Loc> = maps.base.leaves().filter_map(|(_, _, page)| page.map(|p| p.loc)).collect();
            maps.segments.set_meta(disk.into_iter().chain(self.own_pages.iter().copied()));
            let empty: Vec<u32> = maps.segments.empty().collect();
            maps.segments.release(&empty);
            empty
        };
        if self.log.discard {
            let geometry = self.shared.geometry;
            for &segment in &released {
                self.shared.storage.discard(geometry.segment_byte(segment), geometry.segment_bytes());
            }
        }
        let root = &self.log.superblock;
        tracing::debug!(
            generation = root.generation,
            leaves = leaves.len(),
            freed = released.len(),
            "checkpoint"
        );
    }
}

/// Writes both slots, one durable before the other is touched.
pub(super) fn write_slots(shared: &Shared, superblock: &Superblock) -> Result<(), IoError> {
    let page = AlignedBuf::from_slice(&superblock.encode());
    for slot in SLOTS {
        shared
            .storage
            .write_all(slot, &page)
            .and_then(|()| shared.storage.sync())
            .map_err(|e| IoError::Io(format!("writing the superblock at image byte {slot} failed: {e}")))?;
    }
    Ok(())
}
