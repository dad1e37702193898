//! Pages of a snapshot: the first of the deltas from its own on that knows the page, else the committed map.

use layout::addr::MAP_UNIT_PAGES;

use super::{LeafId, SnapshotId, View};
use crate::device::IoError;
use crate::store::Shared;
use crate::store::format::Mapping;
use crate::store::format::checkpoint::MapId;
use crate::store::map::base::{BaseMap, Found};
use crate::store::map::leaf::Entry;
use crate::store::map::{Lookup, Maps};

/// One bit for each page of a unit.
pub type UnitBits = [u64; MAP_UNIT_PAGES as usize / 64];

impl Maps {
    /// Looks a page up in a state of the volume; `Err` names a leaf to load first.
    pub fn lookup_at(&self, view: View, page: u64) -> Result<Option<Mapping>, LeafId> {
        let id = match view {
            View::Live => {
                return match self.lookup(page) {
                    Lookup::Unmapped => Ok(None),
                    Lookup::Mapped(mapping) => Ok(Some(mapping)),
                    Lookup::Leaf(key) => Err(LeafId::committed(key)),
                };
            }
            View::Snapshot(id) => id,
        };
        for (id, map) in self.layers_from(id) {
            match map.find(page) {
                Found::Entry(Entry::At(mapping)) => return Ok(Some(mapping)),
                Found::Entry(Entry::Nowhere) => return Ok(None),
                Found::Absent => {}
                Found::Leaf(key) => return Err(LeafId { map: id, key }),
            }
        }
        Ok(None)
    }

    /// The deltas from a snapshot's on, oldest first, then the committed map.
    fn layers_from(&self, id: SnapshotId) -> impl DoubleEndedIterator<Item = (MapId, &BaseMap)> {
        let list = self.snapshots.all();
        let from = list.partition_point(|s| s.id < id);
        list[from..]
            .iter()
            .map(|s| (s.map_id(), &s.delta))
            .chain(std::iter::once((MapId::Committed, &self.base)))
    }

    /// The first unit from `unit` on that may have mapped pages in a view.
    pub fn next_unit_at(&self, view: View, unit: u64) -> Option<u64> {
        let start = unit.saturating_mul(MAP_UNIT_PAGES);
        match view {
            View::Live => {
                let base = self.base.units_between(start, u64::MAX).next();
                base.into_iter().chain(self.overlay.units_in(unit..u64::MAX).next()).min()
            }
            View::Snapshot(id) => {
                self.layers_from(id).filter_map(|(_, map)| map.units_between(start, u64::MAX).next()).min()
            }
        }
    }

    /// Leaves of a unit that a snapshot's state of it depends on and that are not loaded.
    pub fn unit_missing_at(&self, id: SnapshotId, unit: u64) -> Vec<LeafId> {
        let mut keys = Vec::new();
        self.layers_from(id)
            .flat_map(|(id, map)| {
                map.missing(unit * MAP_UNIT_PAGES, MAP_UNIT_PAGES, &mut keys);
                std::mem::take(&mut keys).into_iter().map(move |key| LeafId { map: id, key })
            })
            .collect()
    }

    /// The mapped pages of a unit in a snapshot; its leaves are loaded.
    pub fn unit_bits_at(&self, id: SnapshotId, unit: u64, bits: &mut UnitBits) {
        bits.fill(0);
        let start = unit * MAP_UNIT_PAGES;
        // From the committed map back in time: what an older delta says wins.
        for (_, map) in self.layers_from(id).rev() {
            map.for_each_in(start, MAP_UNIT_PAGES, |page, entry| {
                let rel = (page - start) as usize;
                let bit = 1u64 << (rel % 64);
                if entry == Entry::Nowhere {
                    bits[rel / 64] &= !bit;
                } else {
                    bits[rel / 64] |= bit;
                }
            });
        }
    }

    /// Units within a range of pages of which the deltas say something that concerns a snapshot.
    pub fn units_touched_by_deltas(&self, id: SnapshotId, first_page: u64, end: u64) -> Vec<u64> {
        let mut units: Vec<u64> = self
            .layers_from(id)
            .filter(|(id, _)| *id != MapId::Committed)
            .flat_map(|(_, map)| map.units_between(first_page, end))
            .collect();
        units.sort_unstable();
        units.dedup();
        units
    }
}

impl Shared {
    /// The mapped pages of a unit in a snapshot; gives the number of leaves that were read from the backing.
    ///
    /// # Errors
    /// As [`Shared::load`].
    pub fn unit_bits(&self, id: SnapshotId, unit: u64, bits: &mut UnitBits) -> Result<usize, IoError> {
        let mut loaded = 0;
        loop {
            let missing = {
                let maps = self.maps.read();
                let missing = maps.unit_missing_at(id, unit);
                if missing.is_empty() {
                    maps.unit_bits_at(id, unit, bits);
                    return Ok(loaded);
                }
                missing
            };
            for leaf in missing {
                loaded += 1;
                self.load(leaf)?;
            }
        }
    }

    /// Mapped pages of some units in a snapshot.
    ///
    /// # Errors
    /// As [`Shared::load`].
    pub fn count_units(&self, id: SnapshotId, first_unit: u64, units: u64) -> Result<u64, IoError> {
        let start = first_unit.saturating_mul(MAP_UNIT_PAGES);
        let end = first_unit.saturating_add(units).saturating_mul(MAP_UNIT_PAGES);
        // Where no delta has anything, the sums over the committed map's leaves tell.
        let (mut count, touched) = {
            let maps = self.maps.read();
            let touched = maps.units_touched_by_deltas(id, start, end);
            let known = |unit: &u64| {
                let start = unit * MAP_UNIT_PAGES;
                maps.base.count_units(start, start + MAP_UNIT_PAGES)
            };
            let in_touched: u64 = touched.iter().map(known).sum();
            (maps.base.count_units(start, end).saturating_sub(in_touched), touched)
        };
        let mut bits = [0; MAP_UNIT_PAGES as usize / 64];
        for unit in touched {
            self.unit_bits(id, unit, &mut bits)?;
            count += bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        Ok(count)
    }
}
