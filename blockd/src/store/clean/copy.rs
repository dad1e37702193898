//! Reading the live pages of a segment, ready to be given to the log as relocations.
//!
//! They are those that its records name and that a map still has there, and those that were cloned from it
//! ([`super::cloned`]). Each of these gets a copy of its own: what was shared is so no more.

use std::sync::Arc;

use layout::addr::PAGE;
use parking_lot::RwLockReadGuard;

use super::cloned::cloned_from;
use crate::buf::AlignedBuf;
use crate::storage::PIECE_BYTES;
use crate::store::Shared;
use crate::store::format::record::Record;
use crate::store::format::{Loc, page_crc};
use crate::store::log::Op;
use crate::store::map::Maps;
use crate::store::space::COPY_PAGES;

/// Relocations that belong together.
pub(crate) type Copies = Vec<Op>;

/// A page that is alive.
#[derive(PartialEq, Eq)]
struct Live {
    page: u64,
    loc: Loc,
    crc: u32,
}

/// The live pages of a segment. One that cannot be read is not chosen again.
pub(crate) fn copies_of(shared: &Shared, segment: u32) -> Vec<Copies> {
    // What was looked at before may have been cloned from what was looked at after.
    let state =
        |maps: &Maps| maps.segments.get(segment).map(|s| (s.use_seq, s.used_pages, maps.segments.cloned()));
    // Those that it was cloned to are not looked at all at once.
    let shared_by = |maps: &Maps| maps.segments.referrers.has_units(segment);
    let before = state(&shared.maps.read());
    let found = read_live(shared, segment);
    if matches!(&found, Ok(jobs) if !jobs.is_empty()) {
        return found.unwrap_or_default();
    }
    let mut maps = shared.maps.write();
    // Emptied and used again meanwhile, or written on: nothing is wrong with it.
    if state(&maps) == before {
        // No more than the whole store counts too much.
        let lost = maps.segments.get(segment).map_or(0, |s| u64::from(s.live_base));
        match found {
            Ok(_) if lost <= maps.lost_pages() && !shared_by(&maps) => maps.segments.bury(segment),
            Ok(_) => maps.segments.mark_damaged(segment),
            Err(why) => {
                tracing::error!("segment {segment} cannot be cleaned: {why}; it is left as it is");
                maps.segments.mark_damaged(segment);
            }
        }
    }
    Vec::new()
}

/// Reads what is alive in a segment. The error says what is wrong with it: it cannot be read, or its records are not what
/// they should be.
fn read_live(shared: &Shared, segment: u32) -> Result<Vec<Copies>, String> {
    let Some(info) = shared.maps.read().segments.get(segment).copied() else {
        return Err("it does not exist".into());
    };
    let mut buf = AlignedBuf::in_one_piece(info.used_pages as usize * PAGE);
    let bytes = &mut buf[..info.used_pages as usize * PAGE];
    let start = shared.geometry.segment_byte(segment);
    for (piece, at) in bytes.chunks_mut(PIECE_BYTES).zip((start..).step_by(PIECE_BYTES)) {
        shared.storage.read_exact(at, piece).map_err(|e| e.to_string())?;
    }
    let mut live = find_live(shared, segment, info.use_seq, bytes)?;
    let cloned = cloned_from(shared, segment).map_err(|e| e.to_string())?;
    live.extend(cloned.into_iter().map(|(page, m)| Live { page, loc: m.loc, crc: m.crc }));
    // In the order of their addresses, so that what belongs together stands together.
    live.sort_unstable_by_key(|l| (l.page, l.loc));
    live.dedup();
    // Clones can be many times what the segment holds: what is left here is found when it is chosen again.
    live.truncate(2 * shared.geometry.segment_pages as usize);
    for l in &live {
        let at = usize::from(l.loc.offset) * PAGE;
        let found = bytes.get(at..at + PAGE).map_or(0, |bytes| page_crc(l.page, bytes));
        if found != l.crc || at + PAGE > bytes.len() {
            let (page, expected) = (l.page, l.crc);
            return Err(format!(
                "device page {page:#x} at {}: crc32c expected {expected:#010x}, found {found:#010x}",
                l.loc
            ));
        }
    }
    Ok(live.chunks(COPY_PAGES as usize).map(|part| gathered(part, bytes)).collect())
}

/// Relocations of some live pages of a segment, copied together: the disk is given one piece of memory.
fn gathered(live: &[Live], segment: &[u8]) -> Copies {
    let mut buf = AlignedBuf::in_one_piece(live.len() * PAGE);
    for (l, copy) in live.iter().zip(buf.chunks_exact_mut(PAGE)) {
        let at = usize::from(l.loc.offset) * PAGE;
        copy.copy_from_slice(&segment[at..at + PAGE]);
    }
    let buf = Arc::new(buf);
    let op = |(page_in_buf, l): (usize, &Live)| Op::Relocate {
        page: l.page,
        old: l.loc,
        crc: l.crc,
        buf: Arc::clone(&buf),
        page_in_buf,
    };
    live.iter().enumerate().map(op).collect()
}

/// Walks the records of a segment; what the map (any layer) still refers to is alive.
fn find_live(shared: &Shared, segment: u32, use_seq: u64, bytes: &[u8]) -> Result<Vec<Live>, String> {
    let mut live = Vec::new();
    let mut at = 1usize;
    while (at + 1) * PAGE <= bytes.len() {
        let record =
            Record::decode(&bytes[at * PAGE..(at + 1) * PAGE]).map_err(|e| format!("page {at}: {e}"))?;
        if record.use_seq != use_seq || record.at != (Loc { segment, offset: at as u16 }) {
            return Err(format!("page {at}: a record of another place or use"));
        }
        let pages = record.page_count() as usize;
        if at + pages >= bytes.len() / PAGE {
            return Err(format!("page {at}: the record is longer than its segment"));
        }
        let mut maps = shared.maps.read();
        for (offset, (page, crc)) in (at + 1..).zip(record.data_pages()) {
            // The log's thread need not wait for all of them.
            RwLockReadGuard::bump(&mut maps);
            let loc = Loc { segment, offset: offset as u16 };
            let found = loop {
                match maps.mapped_there(page, loc) {
                    Ok(found) => break found,
                    Err(leaf) => RwLockReadGuard::unlocked(&mut maps, || shared.load(leaf))
                        .map_err(|e| e.to_string())?,
                }
            };
            live.extend(found.map(|_| Live { page, loc, crc }));
        }
        at += 1 + pages;
    }
    Ok(live)
}
