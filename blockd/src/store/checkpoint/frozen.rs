//! What a checkpoint is of: the state at one place of the log.

use std::sync::Arc;

use crate::device::IoError;
use crate::store::Shared;
use crate::store::format::Loc;
use crate::store::format::checkpoint::{GoingBack, MapId, Position, Referrer, SegmentUsage};
use crate::store::format::record::SessionState;
use crate::store::format::segment::Stream;
use crate::store::format::snapshot::SnapshotEntry;
use crate::store::log::{Head, Log};
use crate::store::map::Maps;
use crate::store::map::segments::{Segment, State};

/// A map of the checkpoint.
pub(super) struct FrozenMap {
    pub(super) id: MapId,
    /// Pages it has entries of.
    pub(super) pages: u64,
}

/// The state of the store behind the last record applied.
pub(super) struct Frozen {
    /// Its number since the start of the store.
    pub(super) number: u64,
    /// Sequence of the first record behind it.
    pub(super) next_seq: u64,
    /// Size of a raw volume in bytes, 0 for VexFS.
    pub(super) raw_bytes: u64,
    pub(super) epoch: u64,
    pub(super) session: SessionState,
    /// Where replay begins, of [`Stream::LOGGED`].
    pub(super) positions: [Position; 2],
    pub(super) maps: Vec<FrozenMap>,
    /// The table of segments; those of this checkpoint are added when it is written.
    pub(super) usage: Vec<SegmentUsage>,
    /// Discards of the open epoch.
    pub(super) discards: Vec<(u64, u64)>,
    pub(super) snapshots: Vec<SnapshotEntry>,
    pub(super) referrers: Vec<Referrer>,
    pub(super) last_snapshot: u64,
    /// Where the committed map goes back to.
    pub(super) rollback: Option<GoingBack>,
    /// Segments that nothing refers to, with their use: free once the checkpoint is durable.
    pub(super) freeable: Vec<(u32, u64)>,
    /// Pages of the checkpoint before that this one replaces, leaves and directories apart.
    pub(super) dropped: Vec<Loc>,
}

impl Frozen {
    /// Freezes all maps and notes the rest, if there is room for all the checkpoint may have to write.
    ///
    /// # Errors
    /// [`IoError::NoSpace`]; nothing is frozen then.
    pub(super) fn capture(log: &mut Log) -> Result<Self, IoError> {
        ensure_heads(log)?;
        let shared = Arc::clone(&log.shared);
        let maps = freeze(&shared, log.meta_head)?;
        let number = shared.maps.write().segments.begin_checkpoint();
        // Nobody else changes what counts here: the log's thread is this one.
        let guard = shared.maps.read();
        let positions = positions(log, &guard);
        let in_flight: Vec<u32> = log.records_in_flight().map(|r| r.at.segment).collect();
        // A segment that its stream has left may still get pages from a record in flight.
        let is_free = |segment: u32, s: &Segment| {
            s.stream != Stream::Meta
                && s.state == State::Closed
                && s.live() == 0
                && !in_flight.contains(&segment)
        };
        let usage = (0u32..)
            .zip(guard.segments.all())
            // Whether an old meta segment is empty now is found again at start, from the maps.
            .map(|(i, s)| usage_of(s, s.state == State::Free || is_free(i, s)))
            .collect();
        let freeable = guard
            .segments
            .empty()
            .filter_map(|i| guard.segments.get(i).filter(|s| is_free(i, s)).map(|s| (i, s.use_seq)))
            .collect();
        let frozen = Frozen {
            number,
            next_seq: log.applied_seq + 1,
            raw_bytes: guard.raw_bytes,
            epoch: guard.epoch,
            session: guard.session.clone(),
            positions,
            maps,
            usage,
            discards: guard.overlay.discards().collect(),
            snapshots: guard.snapshots.table(),
            referrers: guard.segments.referrers.table().collect(),
            last_snapshot: guard.snapshots.last_id(),
            rollback: guard.snapshots.rollback_at_start(),
            freeable,
            dropped: Vec::new(),
        };
        drop(guard);
        let mut dropped = std::mem::take(&mut shared.maps.write().dropped);
        dropped.append(&mut log.own_pages);
        Ok(Frozen { dropped, ..frozen })
    }
}

/// How the table on disk shows a segment.
pub(super) fn usage_of(s: &Segment, free: bool) -> SegmentUsage {
    let data = s.stream != Stream::Meta;
    SegmentUsage {
        stream: (!free).then_some(s.stream),
        used_pages: if free { 0 } else { s.used_pages },
        live_pages: if data && !free { s.live_base } else { 0 },
        use_seq: s.use_seq,
    }
}

/// Reserves the segments that the checkpoint may need and freezes the maps: together, so that what was counted
/// is what is frozen.
fn freeze(shared: &Shared, meta_head: Option<Head>) -> Result<Vec<FrozenMap>, IoError> {
    let mut guard = shared.maps.write();
    let maps = &mut *guard;
    let segment_pages = u64::from(shared.geometry.segment_pages);
    let room = meta_head.map_or(0, |head| match head.at.offset {
        0 => 0,
        next => segment_pages - u64::from(next),
    });
    let pages = shared.checkpoint_pages_now(maps).saturating_sub(room);
    if !maps.segments.reserve(pages.div_ceil(segment_pages - 1) as u32) {
        return Err(IoError::NoSpace);
    }
    let mut frozen = Vec::new();
    for id in maps.ids() {
        if let Some(map) = maps.map_mut(id) {
            frozen.push(FrozenMap { id, pages: map.page_count() });
            map.freeze();
        }
    }
    Ok(frozen)
}

/// Where the first record of each stream stands that is not applied.
fn positions(log: &Log, maps: &Maps) -> [Position; 2] {
    let stream_of = |segment: u32| maps.segments.get(segment).map(|s| s.stream);
    let mut positions = log.heads.map(|head| Position { at: head.at, use_seq: head.use_seq });
    for (position, stream) in positions.iter_mut().zip(Stream::LOGGED) {
        let first = log.records_in_flight().find(|r| stream_of(r.at.segment) == Some(stream));
        if let Some(record) = first {
            *position = Position { at: record.at, use_seq: record.use_seq };
        }
    }
    positions
}

/// Both streams have a head, so that the root can say where replay begins.
fn ensure_heads(log: &mut Log) -> Result<(), IoError> {
    for (i, stream) in Stream::LOGGED.into_iter().enumerate() {
        if log.heads[i].use_seq == 0 {
            let use_seq = log.next_use_seq;
            let taken = log.shared.maps.write().segments.take(stream, use_seq);
            let segment = taken.ok_or(IoError::NoSpace)?;
            log.next_use_seq += 1;
            log.heads[i] = Head { at: Loc { segment, offset: 1 }, use_seq, fresh: true };
        }
    }
    Ok(())
}
