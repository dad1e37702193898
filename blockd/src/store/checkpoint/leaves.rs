//! Writing the leaves that changed since the last checkpoint.

use std::sync::Arc;

use layout::addr::PAGE;

use super::Checkpoint;
use super::writer::{BATCH_PAGES, WrittenLeaf};
use crate::buf::AlignedBuf;
use crate::device::IoError;
use crate::store::format::{Mapping, leaf};
use crate::store::log::Log;
use crate::store::map::base::Frozen;

/// Leaves looked at in one step; those with a single entry have no page.
const LEAVES_MAX: usize = if cfg!(test) { 4 } else { 512 };
/// Pages written in one step; few in tests, so that much happens between the steps of a checkpoint.
const PAGES_MAX: usize = if cfg!(test) { 2 } else { BATCH_PAGES };

impl Checkpoint {
    /// Writes some; false when none is left.
    ///
    /// # Errors
    /// [`IoError::Io`]: the store must stop writing.
    pub(super) fn write_leaves(&mut self, log: &mut Log) -> Result<bool, IoError> {
        for i in 0..self.frozen.maps.len() {
            if self.write_leaves_of(log, i)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_leaves_of(&mut self, log: &mut Log, i: usize) -> Result<bool, IoError> {
        let shared = Arc::clone(&log.shared);
        let id = self.frozen.maps[i].id;
        let mut pages = Vec::new();
        let mut keys = Vec::new();
        let mut buf = None;
        {
            // Readers go on while leaves are encoded; nobody else changes them.
            let maps = shared.maps.read();
            let Some(map) = maps.frozen_map_ref(id) else { return Ok(false) };
            for key in map.frozen_keys().take(LEAVES_MAX) {
                if let Frozen::Page(found) = map.frozen_leaf(key) {
                    if pages.len() == PAGES_MAX {
                        break;
                    }
                    let buf = buf.get_or_insert_with(|| AlignedBuf::zeroed(PAGES_MAX * PAGE));
                    let page = &mut buf[pages.len() * PAGE..(pages.len() + 1) * PAGE];
                    let fits = leaf::encode_into(shared.uuid, key, found.runs(), page);
                    assert!(fits, "leaf {key:#x} was split when it outgrew its page");
                    pages.push((key, found.page_count() as u16));
                }
                keys.push(key);
                self.touched[i].insert(map.directory.key_for(0, key));
            }
        }
        if keys.is_empty() {
            return Ok(false);
        }
        let mut places = Vec::with_capacity(pages.len());
        {
            let mut maps = shared.maps.write();
            if let Some(map) = maps.frozen_map(id) {
                keys.iter().for_each(|key| map.mark_writing(*key));
            }
            for _ in &pages {
                places.push(self.writer.allocate(log, &mut maps)?);
            }
        }
        if let Some(buf) = buf {
            let leaves = pages.iter().zip(&places).zip(buf.chunks_exact(PAGE)).map(|((leaf, loc), bytes)| {
                let page = Mapping { loc: *loc, crc: crc32c::crc32c(bytes) };
                WrittenLeaf { map: id, key: leaf.0, page, count: leaf.1 }
            });
            let leaves = leaves.collect();
            self.writer.write(log, &Arc::new(buf), &places, leaves);
        }
        Ok(true)
    }
}
