//! Writing the payload and the root, when all they speak of has its place.

use std::sync::Arc;

use layout::addr::PAGE;

use super::Checkpoint;
use super::frozen::usage_of;
use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::store::format::checkpoint::{MapRef, Payload, RUNS_MAX, Root, Run};
use crate::store::format::superblock::Superblock;
use crate::store::format::{Loc, Mapping};
use crate::store::log::Log;
use crate::store::map::Maps;

impl Checkpoint {
    /// Starts writing both; gives the superblock that will name them.
    ///
    /// # Errors
    /// [`IoError::Io`]: the store must stop writing.
    pub(super) fn write_payload(&mut self, log: &mut Log) -> Result<Superblock, IoError> {
        let shared = Arc::clone(&log.shared);
        let mut payload = Payload {
            segments: std::mem::take(&mut self.frozen.usage),
            maps: Vec::new(),
            discards: std::mem::take(&mut self.frozen.discards),
            snapshots: std::mem::take(&mut self.frozen.snapshots),
            referrers: std::mem::take(&mut self.frozen.referrers),
        };
        // The places come first, since the table of segments in the payload has to show them.
        let (places, root_at) = {
            let mut maps = shared.maps.write();
            #[cfg(test)]
            self.frozen
                .maps
                .iter()
                .filter_map(|map| maps.frozen_map_ref(map.id))
                .for_each(|map| map.verify_directory());
            payload.maps = self.frozen.maps.iter().map(|map| map_ref(&mut maps, map)).collect();
            let pages = payload.encoded_bytes().div_ceil(PAGE);
            let places =
                (0..pages).map(|_| self.writer.allocate(log, &mut maps)).collect::<Result<Vec<_>, _>>()?;
            (places, self.writer.allocate(log, &mut maps)?)
        };
        {
            let maps = shared.maps.read();
            for &segment in &self.writer.segments {
                if let Some((to, s)) =
                    payload.segments.get_mut(segment as usize).zip(maps.segments.get(segment))
                {
                    *to = usage_of(s, false);
                }
            }
        }
        let mut bytes = payload.encode();
        let payload_bytes = bytes.len() as u64;
        bytes.resize(places.len() * PAGE, 0);
        let bytes = Arc::new(AlignedBuf::from_slice(&bytes));
        let runs = runs_of(&places, &bytes);
        if runs.len() > RUNS_MAX {
            let text = format!("a checkpoint of {payload_bytes} bytes is beyond the format's limit");
            return Err(IoError::Io(text));
        }
        let root = Root {
            uuid: shared.uuid,
            generation: log.superblock.generation + 1,
            next_seq: self.frozen.next_seq,
            next_use_seq: log.next_use_seq,
            epoch: self.frozen.epoch,
            payload_bytes,
            segment_count: shared.geometry.segments,
            map_count: payload.maps.len() as u32,
            open_discards: payload.discards.len() as u64,
            positions: self.frozen.positions,
            session: self.frozen.session.clone(),
            last_snapshot: self.frozen.last_snapshot,
            rollback: self.frozen.rollback,
            snapshot_count: payload.snapshots.len() as u32,
            referrer_count: payload.referrers.len() as u32,
            runs,
        };
        let mut page = AlignedBuf::zeroed(PAGE);
        root.encode_into(&mut page);
        let superblock = Superblock {
            generation: root.generation,
            root: Mapping { loc: root_at, crc: crc32c::crc32c(&page) },
            session: root.session.session(),
            next_seq: root.next_seq,
            raw_bytes: self.frozen.raw_bytes,
            clones: log.superblock.clones || log.clones_wanted,
            ..log.superblock.clone()
        };
        self.writer.write(log, &bytes, &places, Vec::new());
        self.writer.write(log, &Arc::new(page), &[root_at], Vec::new());
        log.own_pages = places;
        log.own_pages.push(root_at);
        Ok(superblock)
    }
}

fn map_ref(maps: &mut Maps, frozen: &super::frozen::FrozenMap) -> MapRef {
    let directory = maps.frozen_map_ref(frozen.id).map(|map| &map.directory);
    let none = Mapping { loc: Loc { segment: 0, offset: 0 }, crc: 0 };
    let top = directory.and_then(|directory| directory.top());
    MapRef {
        id: frozen.id,
        levels: top.and(directory).map_or(0, |directory| directory.levels() as u32),
        top: top.map_or(none, |top| top.page),
        count: top.map_or(0, |top| top.count),
        pages: frozen.pages,
    }
}

/// Pages that stand one after another.
fn runs_of(places: &[Loc], bytes: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, page) in places.iter().zip(bytes.chunks_exact(PAGE)) {
        match runs.last_mut() {
            Some(run)
                if run.at.segment == at.segment
                    && u32::from(run.at.offset) + run.pages == u32::from(at.offset) =>
            {
                run.pages += 1;
                run.crc = crc32c::crc32c_append(run.crc, page);
            }
            _ => runs.push(Run { at: *at, pages: 1, crc: crc32c::crc32c(page) }),
        }
    }
    runs
}
