//! What changed between two snapshots: the keys of the deltas from the older one's up to the newer one's, which only grow
//! apart when a snapshot between them is deleted, and never lose a key.

use layout::addr::MAP_UNIT_PAGES;

use super::lookup::UnitBits;
use super::{LeafId, Snapshot, SnapshotId, View};
use crate::device::IoError;
use crate::store::Shared;
use crate::store::map::Maps;

/// The pages of a unit that differ, or may differ, between two states.
pub struct UnitDiff {
    /// Mapped in the newer state.
    pub data: Box<UnitBits>,
    /// Mapped in the older state, but not in the newer one.
    pub holes: Box<UnitBits>,
}

impl Maps {
    fn deltas_between(&self, from: SnapshotId, to: SnapshotId) -> &[Snapshot] {
        let all = self.snapshots.all();
        let start = all.partition_point(|s| s.id < from);
        let end = all.partition_point(|s| s.id < to);
        &all[start..end.max(start)]
    }

    /// The first unit from `unit` on in which a snapshot may differ from an older one, or, without one, have pages.
    pub fn next_unit_changed(&self, from: Option<SnapshotId>, to: SnapshotId, unit: u64) -> Option<u64> {
        let Some(from) = from else { return self.next_unit_at(View::Snapshot(to), unit) };
        let start = unit.saturating_mul(MAP_UNIT_PAGES);
        self.deltas_between(from, to)
            .iter()
            .filter_map(|s| s.delta.units_between(start, u64::MAX).next())
            .min()
    }

    /// Pages that differ, at most: for a progress bar.
    pub fn changed_pages_max(&self, from: SnapshotId, to: SnapshotId) -> u64 {
        self.deltas_between(from, to).iter().map(Snapshot::entries).sum()
    }
}

impl Shared {
    /// How a unit differs between two snapshots, or, without an older one, what a snapshot has of it.
    ///
    /// # Errors
    /// As [`Shared::load`].
    pub fn unit_diff(
        &self,
        from: Option<SnapshotId>,
        to: SnapshotId,
        unit: u64,
    ) -> Result<UnitDiff, IoError> {
        let empty = || Box::new([0; MAP_UNIT_PAGES as usize / 64]);
        let (mut data, mut holes) = (empty(), empty());
        self.unit_bits(to, unit, &mut data)?;
        let Some(from) = from else { return Ok(UnitDiff { data, holes }) };
        let (mut changed, mut before) = (empty(), empty());
        self.unit_bits(from, unit, &mut before)?;
        self.unit_changes(from, to, unit, &mut changed)?;
        for (((data, holes), changed), before) in
            data.iter_mut().zip(holes.iter_mut()).zip(changed.iter()).zip(before.iter())
        {
            *holes = changed & before & !*data;
            *data &= changed;
        }
        Ok(UnitDiff { data, holes })
    }

    fn unit_changes(
        &self,
        from: SnapshotId,
        to: SnapshotId,
        unit: u64,
        bits: &mut UnitBits,
    ) -> Result<(), IoError> {
        let start = unit * MAP_UNIT_PAGES;
        loop {
            let mut missing = Vec::new();
            {
                let maps = self.maps.read();
                let mut keys = Vec::new();
                for s in maps.deltas_between(from, to) {
                    s.delta.missing(start, MAP_UNIT_PAGES, &mut keys);
                    let map = s.map_id();
                    missing.extend(keys.drain(..).map(|key| LeafId { map, key }));
                }
                if missing.is_empty() {
                    for s in maps.deltas_between(from, to) {
                        s.delta.for_each_in(start, MAP_UNIT_PAGES, |page, _| {
                            let rel = (page - start) as usize;
                            bits[rel / 64] |= 1 << (rel % 64);
                        });
                    }
                    return Ok(());
                }
            }
            missing.into_iter().try_for_each(|leaf| self.load(leaf))?;
        }
    }
}
