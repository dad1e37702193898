//! The pages that stand in a segment by clones: looked for in the units of which [`Referrers`] says that they may.
//!
//! [`Referrers`]: crate::store::map::referrers::Referrers

use layout::addr::MAP_UNIT_PAGES;

use crate::device::IoError;
use crate::store::Shared;
use crate::store::format::Mapping;
use crate::store::format::checkpoint::{MapId, Referrer};
use crate::store::format::leaf::NOWHERE;
use crate::store::map::Maps;
use crate::store::map::base::BaseMap;
use crate::store::snapshot::{LeafId, Snapshot};

/// Pages of the units that a segment was cloned to, in every layer, that stand in it: its own may be among them, and a page may be
/// there twice. The layers are looked at one after another, leaf by leaf.
///
/// # Errors
/// As [`Shared::load`].
pub(crate) fn cloned_from(shared: &Shared, segment: u32) -> Result<Vec<(u64, Mapping)>, IoError> {
    let units = shared.maps.read().segments.referrers.units(segment);
    let mut found = Vec::new();
    for unit in units {
        look(shared, Referrer { segment, unit }, &mut |page, mapping| found.push((page, mapping)))?;
    }
    Ok(found)
}

/// Whether a page of the unit stands in the segment, in any layer. Nothing may change the map meanwhile.
///
/// # Errors
/// As [`Shared::load`].
pub(crate) fn is_referred(shared: &Shared, at: Referrer) -> Result<bool, IoError> {
    let mut found = false;
    look(shared, at, &mut |_, _| found = true)?;
    Ok(found)
}

fn look(shared: &Shared, at: Referrer, f: &mut impl FnMut(u64, Mapping)) -> Result<(), IoError> {
    let ids = layers(&shared.maps.read());
    for id in ids {
        let mut from = at.unit * MAP_UNIT_PAGES;
        loop {
            let maps = shared.maps.read();
            // Gone meanwhile: an older delta, looked at later, has what it had.
            let Some(map) = maps.map(id) else { break };
            let Some(key) = next_leaf(map, at.unit, from) else { break };
            from = key + 1;
            if maps.damage(LeafId { map: id, key }).is_some() || entries_there(map, key, at, f) {
                continue;
            }
            from = key;
            drop(maps);
            shared.load_leaf_of(id, key)?;
        }
    }
    Ok(())
}

/// The open epoch, the committed map, and the deltas from the newest on: the way that entries go.
fn layers(maps: &Maps) -> Vec<MapId> {
    let deltas = maps.snapshots.all().iter().rev().map(Snapshot::map_id);
    [MapId::Open, MapId::Committed].into_iter().chain(deltas).collect()
}

fn next_leaf(map: &BaseMap, unit: u64, from: u64) -> Option<u64> {
    let end = (unit + 1) * MAP_UNIT_PAGES;
    map.leaves_from(from).next().map(|(key, _, _)| key).filter(|key| *key < end)
}

/// Calls `f` with the entries of a leaf that stand in the segment; false if it is not loaded.
fn entries_there(map: &BaseMap, key: u64, at: Referrer, f: &mut impl FnMut(u64, Mapping)) -> bool {
    let Some(entries) = map.entries(key) else { return false };
    entries
        .filter(|e| e.segment == at.segment && e.segment != NOWHERE)
        .for_each(|e| f(at.unit * MAP_UNIT_PAGES + u64::from(e.rel), Mapping { loc: e.loc(), crc: e.crc }));
    true
}
