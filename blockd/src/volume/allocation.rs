//! Which parts of a volume hold data, from its map.
//!
//! The work of one call is bounded, however large and full of entries the range is: stretches
//! without leaves are passed over at once, and only so many units are looked at and so many leaves
//! loaded; then the answer ends before the range does.

use layout::addr::{COMMAND_PAGE, DEVICE_PAGES, MAP_BASE, MAP_UNIT_PAGES, PAGE, STATUS_PAGE};

use super::synth::bits;
use crate::device::{Extent, IoError, VolumeKind};
use crate::store::Shared;
use crate::store::snapshot::View;

/// Most units that one call looks into (8 GiB when mapped densely).
const UNITS_MAX: usize = 64;
/// No further unit is looked into once so many leaves were read from the backing.
const LEAVES_LOADED_MAX: usize = 64;

/// A device page, and whether the pages from there to the next such border are made up when read.
const SYNTHESISED: [(u64, bool); 4] =
    [(0, false), (STATUS_PAGE.0, true), (COMMAND_PAGE.0 + 1, false), (MAP_BASE / PAGE as u64, true)];

/// Extents of a range that lies within the volume; see [`crate::device::Device::allocation`].
pub(super) fn allocation(
    store: &Shared,
    view: View,
    offset: u64,
    len_bytes: u64,
    extents_max: usize,
) -> Result<Vec<Extent>, IoError> {
    let end = offset + len_bytes;
    let mut walk = Walk {
        store,
        view,
        offset,
        end,
        extents: Vec::new(),
        extents_max: extents_max.max(1),
        units_left: UNITS_MAX,
        leaves_left: LEAVES_LOADED_MAX,
    };
    let (first, last) = (offset / PAGE as u64, end.div_ceil(PAGE as u64));
    if store.kind == VolumeKind::Raw {
        walk.pages(first, last)?;
        return Ok(walk.extents);
    }
    let borders = SYNTHESISED.iter().skip(1).map(|b| b.0).chain([DEVICE_PAGES]);
    for (&(from, made_up), to) in SYNTHESISED.iter().zip(borders) {
        let (from, to) = (from.max(first), to.min(last));
        if from >= to {
            continue;
        }
        let go_on = if made_up { walk.add(from, to, true) } else { walk.pages(from, to)? };
        if !go_on {
            break;
        }
    }
    Ok(walk.extents)
}

struct Walk<'a> {
    store: &'a Shared,
    view: View,
    offset: u64,
    end: u64,
    extents: Vec<Extent>,
    extents_max: usize,
    units_left: usize,
    leaves_left: usize,
}

impl Walk<'_> {
    /// Adds what pages `from` to `to` are; false when the answer ends before `to`.
    fn pages(&mut self, from: u64, to: u64) -> Result<bool, IoError> {
        let mut at = from;
        while at < to {
            let unit = at / MAP_UNIT_PAGES;
            let used = self.next_used(unit).map_or(to, |used| (used * MAP_UNIT_PAGES).clamp(at, to));
            if used > at {
                if !self.add(at, used, false) {
                    return Ok(false);
                }
                at = used;
                continue;
            }
            if self.units_left == 0 || self.leaves_left == 0 {
                return Ok(false);
            }
            let unit_end = ((unit + 1) * MAP_UNIT_PAGES).min(to);
            if !self.unit(unit, at, unit_end)? {
                return Ok(false);
            }
            at = unit_end;
        }
        Ok(true)
    }

    /// The first unit from here on that may have mapped pages.
    fn next_used(&self, unit: u64) -> Option<u64> {
        self.store.maps.read().next_unit_at(self.view, unit)
    }

    /// As [`Walk::pages`], within one unit.
    fn unit(&mut self, unit: u64, from: u64, to: u64) -> Result<bool, IoError> {
        let mut map = [0; PAGE];
        let loaded = bits(self.store, self.view, unit, &mut map)?;
        self.units_left -= 1;
        self.leaves_left = self.leaves_left.saturating_sub(loaded);
        let is_mapped = |page: u64| {
            let rel = (page % MAP_UNIT_PAGES) as usize;
            map[rel / 8] & (1 << (rel % 8)) != 0
        };
        let mut at = from;
        while at < to {
            let mapped = is_mapped(at);
            let run_end = (at + 1..to).find(|&page| is_mapped(page) != mapped).unwrap_or(to);
            if !self.add(at, run_end, mapped) {
                return Ok(false);
            }
            at = run_end;
        }
        Ok(true)
    }

    /// Adds pages `from` to `to`, cut to the range; false if there is no room for another extent.
    fn add(&mut self, from: u64, to: u64, mapped: bool) -> bool {
        let (from, to) =
            ((from * PAGE as u64).max(self.offset), to.saturating_mul(PAGE as u64).min(self.end));
        let len_bytes = to.saturating_sub(from);
        let full = self.extents.len() == self.extents_max;
        match self.extents.last_mut() {
            Some(last) if last.mapped == mapped => last.len_bytes += len_bytes,
            _ if full => return false,
            _ => self.extents.push(Extent { len_bytes, mapped }),
        }
        true
    }
}
