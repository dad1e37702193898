//! How much fits: capacity, reserves, and when a write is refused.
//!
//! The log needs room beyond live data to move in: heads of the streams, the cleaner's output,
//! a checkpoint beside the last one. What is left is the capacity. While live data stays within
//! it, cleaning always gains space, so a writer waits for the cleaner but is never refused.

use super::Shared;
use super::format::Geometry;
use super::map::Maps;

/// Segments the cleaner may use beyond what users may.
pub const CLEANER_SEGMENTS: u32 = 2;
/// Data pages a record of the cleaner holds, about; each costs one header page.
const PAGES_PER_HEADER: u64 = 128;
/// Pages kept for commits when all else is refused.
const COMMIT_RESERVE_PAGES: u64 = 4;

/// What a write is for; each class may dig deeper into the reserve than the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// New data.
    Data,
    /// Metadata of the mounter, and whatever replaces pages that exist.
    Metadata,
    /// The commit.
    Commit,
}

/// Pages that live data and metadata of the store may fill together.
pub fn capacity_pages(geometry: Geometry) -> u64 {
    let segments = u64::from(geometry.segments);
    let reserve = (segments / 25).max(8);
    let usable = u64::from(geometry.segment_pages) - 2;
    segments.saturating_sub(reserve) * (usable - usable.div_ceil(PAGES_PER_HEADER + 1))
}

/// Pages kept for metadata, so that files can be deleted when data is refused.
fn metadata_reserve_pages(capacity: u64) -> u64 {
    (capacity / 50).clamp(16, 4096)
}

impl Shared {
    /// Pages that can still be filled by a class of writes; `pending_pages` are under way.
    pub fn available_pages(&self, maps: &Maps, pending_pages: u64, class: Class) -> u64 {
        let capacity = capacity_pages(self.geometry);
        let reserve = match class {
            Class::Data => metadata_reserve_pages(capacity),
            Class::Metadata => COMMIT_RESERVE_PAGES,
            Class::Commit => 0,
        };
        let used = maps.segments.data_live() + 2 * maps.segments.meta_live() + pending_pages;
        capacity.saturating_sub(reserve).saturating_sub(used)
    }

    /// Segments that a checkpoint would need now.
    pub fn checkpoint_segments(&self, maps: &Maps) -> u32 {
        let overlay = &maps.overlay;
        let open_leaves = overlay.unit_count() as u64 + overlay.page_count() / 200;
        let leaves = maps.base.dirty_count() as u64 + 2 * open_leaves;
        let payload = 24
            * (maps.base.leaf_count() as u64 + 2 * open_leaves + u64::from(self.geometry.segments))
            + 16 * overlay.discard_count() as u64;
        let pages = leaves + payload.div_ceil(4096) + 1;
        pages.div_ceil(u64::from(self.geometry.segment_pages) - 1) as u32 + 1
    }
}
