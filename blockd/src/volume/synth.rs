//! Pages that are not stored but made up when they are read: status and allocation map
//! (FORMAT.md sections 3.1 and 3.3).

use std::sync::atomic::Ordering;

use layout::addr::{MAP_SUMMARY, MAP_UNIT_PAGES, MAP_UPPER, MAP_UPPER_PAGES, PAGE};
use layout::command::{STATUS_MAGIC, Status};
use zerocopy::IntoBytes;

use super::Core;
use crate::device::IoError;
use crate::store::Shared;
use crate::store::map::Maps;
use crate::store::snapshot::View;
use crate::store::space::{Class, volume_capacity_pages};

/// Status flag: the backing is read-only.
pub(super) const STATUS_READ_ONLY: u32 = 1;
/// Status flag: a session is live.
const STATUS_SESSION: u32 = 2;

/// Fills the status page.
pub(super) fn status(core: &Core, page: &mut [u8]) {
    let maps = core.store.maps.read();
    let session = maps.session.session();
    let flags =
        if core.read_only { STATUS_READ_ONLY } else { 0 } | if session != 0 { STATUS_SESSION } else { 0 };
    let pending = core.pending_pages.load(Ordering::Relaxed);
    let status = Status {
        magic: STATUS_MAGIC,
        version: 1.into(),
        flags: flags.into(),
        uuid: core.store.uuid,
        session: session.into(),
        epoch: maps.epoch.into(),
        incarnation: core.incarnation.into(),
        capacity_pages: volume_capacity_pages(core.store.kind, core.store.geometry).into(),
        used_pages: maps.segments.data_live().into(),
        available_pages: core.store.available_pages(&maps, pending, Class::Data).into(),
        reserved: [0; 4016],
    };
    page.copy_from_slice(status.as_bytes());
}

/// Fills a page of the allocation map, `offset` bytes from its start.
pub(super) fn allocation_map(
    store: &Shared,
    view: View,
    offset: u64,
    page: &mut [u8],
) -> Result<(), IoError> {
    page.fill(0);
    if offset < MAP_SUMMARY {
        // A page of bits is exactly one unit.
        return bits(store, view, offset / PAGE as u64, page).map(|_| ());
    }
    if offset < MAP_UPPER {
        let first_unit = (offset - MAP_SUMMARY) / 4;
        for (unit, slot) in (first_unit..).zip(page.chunks_exact_mut(4)) {
            let count = count_units(store, view, unit, 1)?;
            slot.copy_from_slice(&(count as u32).to_le_bytes());
        }
        return Ok(());
    }
    let first = (offset - MAP_UPPER) / 8;
    let units = MAP_UPPER_PAGES / MAP_UNIT_PAGES;
    for (upper, slot) in (first..).zip(page.chunks_exact_mut(8)) {
        let count = count_units(store, view, upper.saturating_mul(units), units)?;
        slot.copy_from_slice(&count.to_le_bytes());
    }
    Ok(())
}

/// Fills a page with a bit for each page of a unit; gives the number of leaves read from the backing.
pub(super) fn bits(store: &Shared, view: View, unit: u64, page: &mut [u8]) -> Result<usize, IoError> {
    if let View::Snapshot(id) = view {
        let mut bits = [0; MAP_UNIT_PAGES as usize / 64];
        let loaded = store.unit_bits(id, unit, &mut bits)?;
        for (to, word) in page.chunks_exact_mut(8).zip(bits) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        return Ok(loaded);
    }
    with_unit(store, unit, |maps| {
        page.fill(0);
        let start = unit * MAP_UNIT_PAGES;
        maps.for_each_mapped(unit, |p| {
            let rel = (p - start) as usize;
            page[rel / 8] |= 1 << (rel % 8);
        });
    })
}

/// Mapped pages of some units.
fn count_units(store: &Shared, view: View, first_unit: u64, units: u64) -> Result<u64, IoError> {
    match view {
        View::Live => count_live_units(store, first_unit, units),
        View::Snapshot(id) => store.count_units(id, first_unit, units),
    }
}

/// Mapped pages of some units, in the open epoch.
fn count_live_units(store: &Shared, first_unit: u64, units: u64) -> Result<u64, IoError> {
    let (start, end) = (
        first_unit.saturating_mul(MAP_UNIT_PAGES),
        first_unit.saturating_add(units).saturating_mul(MAP_UNIT_PAGES),
    );
    // Only units that the open epoch touched need a closer look; the others are sums over leaves.
    let touched: Vec<u64> = {
        let maps = store.maps.read();
        let mut touched: Vec<u64> =
            maps.overlay.units_in(first_unit..first_unit.saturating_add(units)).collect();
        for (first, count) in maps.overlay.discards_in(start, end) {
            let from = first.max(start);
            let to = (first + count).min(end);
            touched.extend(maps.base.units_between(from, to));
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    };
    let mut count = store.maps.read().base.count_units(start, end);
    for unit in touched {
        let start = unit * MAP_UNIT_PAGES;
        with_unit(store, unit, |maps| {
            let mut mapped = 0;
            maps.for_each_mapped(unit, |_| mapped += 1);
            count = (count + mapped).saturating_sub(maps.base.count_units(start, start + MAP_UNIT_PAGES));
        })?;
    }
    Ok(count)
}

/// Runs `f` with all leaves of a unit loaded; gives the number of those that were not.
fn with_unit(store: &Shared, unit: u64, mut f: impl FnMut(&Maps)) -> Result<usize, IoError> {
    let mut loaded = 0;
    loop {
        let mut missing = Vec::new();
        {
            let maps = store.maps.read();
            maps.base.missing(unit * MAP_UNIT_PAGES, MAP_UNIT_PAGES, &mut missing);
            if missing.is_empty() {
                f(&maps);
                return Ok(loaded);
            }
        }
        for key in missing {
            loaded += 1;
            store.load_leaf(key)?;
        }
    }
}

impl Maps {
    /// Calls `f` with each mapped page of a unit whose leaves are loaded, as the open epoch sees it.
    fn for_each_mapped(&self, unit: u64, mut f: impl FnMut(u64)) {
        let start = unit * MAP_UNIT_PAGES;
        for entry in self.base.unit_entries(start) {
            let page = start + u64::from(entry.rel);
            if self.overlay.lookup(page).is_none() {
                f(page);
            }
        }
        for entry in self.overlay.unit_entries(unit) {
            f(start + u64::from(entry.rel));
        }
    }
}
