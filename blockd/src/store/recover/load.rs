//! The state of the last checkpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use layout::addr::PAGE;
use parking_lot::RwLock;

use super::{corrupt, read};
use crate::device::VolumeKind;
use crate::stats::StoreCounters;
use crate::storage::Storage;
use crate::store::checkpoint::load::{Source, load_map};
use crate::store::clean::LiveTuning;
use crate::store::format::checkpoint::{MapId, Payload, Root};
use crate::store::format::superblock::Superblock;
use crate::store::format::{Loc, Malformed, Mapping, check};
use crate::store::map::Maps;
use crate::store::map::base::BaseMap;
use crate::store::map::overlay::Overlay;
use crate::store::map::referrers::Referrers;
use crate::store::map::segments::SegmentTable;
use crate::store::snapshot::Snapshots;
use crate::store::{Shared, StoreError, reader};

/// The state of the last checkpoint. Of one that is only read the open epoch may be missing, with the reason: it is of use only if
/// it was committed later.
pub(super) fn load_checkpoint(
    storage: Arc<dyn Storage>,
    sb: &Superblock,
    read_only: bool,
) -> Result<(Arc<Shared>, Root, Option<StoreError>), StoreError> {
    let geometry = sb.geometry;
    let at = sb.root.loc;
    let page = read(&*storage, "reading the checkpoint", geometry.byte(at), PAGE)?;
    check("crc32c of the checkpoint root", sb.root.crc, crc32c::crc32c(&page))
        .map_err(corrupt(geometry, at))?;
    let root = Root::decode(&page).map_err(corrupt(geometry, at))?;
    check("generation of the checkpoint", sb.generation, root.generation).map_err(corrupt(geometry, at))?;
    check("segments of the checkpoint", geometry.segments, root.segment_count)
        .map_err(corrupt(geometry, at))?;
    if root.uuid != sb.uuid {
        let malformed = Malformed { what: "uuid of the checkpoint", expected: 0, found: 1 };
        return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
    }
    let pages: u64 = root.runs.iter().map(|run| u64::from(run.pages)).sum();
    check("pages of the checkpoint payload", root.payload_bytes.div_ceil(PAGE as u64), pages)
        .map_err(corrupt(geometry, at))?;
    let mut bytes = Vec::new();
    for run in &root.runs {
        let last =
            Loc { offset: run.at.offset.saturating_add((run.pages.max(1) - 1).min(65535) as u16), ..run.at };
        let end = u64::from(run.at.offset) + u64::from(run.pages);
        if !geometry.contains(last) || end > u64::from(geometry.segment_pages) {
            let found = u64::from(run.pages);
            let malformed = Malformed { what: "run of the checkpoint payload", expected: 1, found };
            return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
        }
        let part =
            read(&*storage, "reading the checkpoint", geometry.byte(run.at), run.pages as usize * PAGE)?;
        check("crc32c of the checkpoint payload", run.crc, crc32c::crc32c(&part))
            .map_err(corrupt(geometry, run.at))?;
        bytes.extend_from_slice(&part);
    }
    bytes.truncate(root.payload_bytes as usize);
    let payload = Payload::decode(&root, &bytes).map_err(corrupt(geometry, at))?;
    if let Some(s) = payload.segments.iter().find(|s| s.used_pages > geometry.segment_pages) {
        let (expected, found) = (u64::from(geometry.segment_pages), u64::from(s.used_pages));
        let malformed = Malformed { what: "used pages of a segment", expected, found };
        return Err(StoreError::Corrupt { offset: geometry.byte(at), malformed });
    }
    let (shared, open_lost) = build_shared(storage, sb, &root, &payload, read_only)?;
    Ok((shared, root, open_lost))
}

/// Pages of a checkpoint's payload, and its root.
pub(super) fn own_pages(root: &Root, root_at: Loc) -> Vec<Loc> {
    let runs = root
        .runs
        .iter()
        .flat_map(|r| (0..r.pages).map(|i| Loc { offset: r.at.offset.wrapping_add(i as u16), ..r.at }));
    runs.chain([root_at]).collect()
}

fn build_shared(
    storage: Arc<dyn Storage>,
    sb: &Superblock,
    root: &Root,
    payload: &Payload,
    read_only: bool,
) -> Result<(Arc<Shared>, Option<StoreError>), StoreError> {
    let source = Source { storage: &*storage, geometry: sb.geometry, uuid: sb.uuid };
    let mut maps = Maps::new(sb.kind, SegmentTable::from_usage(&payload.segments));
    maps.segments.referrers = Referrers::from_table(&payload.referrers);
    maps.raw_bytes = sb.raw_bytes;
    (maps.epoch, maps.session) = (root.epoch, root.session.clone());
    for &(first, count) in &payload.discards {
        maps.overlay.discard(first, count, |_| {});
    }
    let mut deltas = BTreeMap::new();
    let mut open_lost = None;
    for map in &payload.maps {
        let loaded = load_map(&source, map)?;
        match map.id {
            MapId::Committed => maps.base = loaded,
            MapId::Open => {
                if let Err(e) = load_open_epoch(&source, &mut maps, loaded) {
                    if !read_only {
                        return Err(e);
                    }
                    tracing::error!("what was not committed is lost: {e}");
                    maps.overlay = Overlay::default();
                    open_lost = Some(e);
                }
            }
            MapId::Delta(number) => drop(deltas.insert(number, loaded)),
        }
    }
    maps.segments.checkpoint_is_durable(0, root.positions.map(|p| p.use_seq));
    if let Some(s) = payload.snapshots.iter().find(|s| (s.raw_bytes > 0) != (sb.kind == VolumeKind::Raw)) {
        let malformed = Malformed { what: "size of a snapshot", expected: sb.raw_bytes, found: s.raw_bytes };
        return Err(corrupt(sb.geometry, sb.root.loc)(malformed));
    }
    maps.snapshots = Snapshots::load(root, payload, deltas).map_err(corrupt(sb.geometry, sb.root.loc))?;
    for loc in own_pages(root, sb.root.loc) {
        maps.segments.add_meta(loc);
    }
    let Maps { base, overlay, snapshots, segments, .. } = &mut maps;
    let deltas = snapshots.all().iter().flat_map(|s| s.delta.disk_locs());
    base.disk_locs().chain(overlay.map.disk_locs()).chain(deltas).for_each(|loc| segments.add_meta(loc));
    segments.meta_is_durable();
    let shared = Arc::new(Shared {
        geometry: sb.geometry,
        uuid: sb.uuid,
        kind: sb.kind,
        maps: RwLock::new(maps),
        tuning: LiveTuning::default(),
        counters: StoreCounters::default(),
        storage,
    });
    Ok((shared, open_lost))
}

/// Loads all leaves of the open epoch: they stay in memory.
fn load_open_epoch(source: &Source<'_>, maps: &mut Maps, loaded: BaseMap) -> Result<(), StoreError> {
    let keys: Vec<(u64, Mapping)> =
        loaded.keys().filter_map(|key| loaded.unloaded(key).map(|page| (key, page))).collect();
    let places: Vec<Mapping> = keys.iter().map(|(_, page)| *page).collect();
    maps.overlay.map = loaded;
    source.read_pages("reading the open epoch", &places, |i, bytes| {
        let (key, page) = keys[i];
        let runs = reader::decode_leaf(source.geometry, source.uuid, key, page, bytes).map_err(|why| {
            StoreError::Io {
                action: "reading the open epoch",
                offset: source.geometry.byte(page.loc),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
            }
        })?;
        maps.overlay.map.load(key, page, &runs);
        Ok(())
    })?;
    let Maps { overlay, segments, .. } = maps;
    overlay.mappings().for_each(|(_, mapping)| segments.add_open(mapping.loc));
    Ok(())
}
