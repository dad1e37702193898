//! How much fits: capacity, reserves, and when a write is refused.
//!
//! The log needs room beyond live data to move in: heads of the streams, the cleaner's output,
//! a checkpoint beside the last one. What is left is the capacity. While live data stays within
//! it, some segment is empty enough to be worth cleaning, so a writer waits for the cleaner but is never refused.

use super::Shared;
use super::format::Geometry;
use super::format::checkpoint::MapId;
use super::format::segment::Stream;
use super::map::Maps;
use super::map::segments::{Segment, State};
use crate::device::VolumeKind;

/// Segments the cleaner may use beyond what users may: after a start took two for its heads there is one to fill.
const CLEANER_SEGMENTS: u32 = 3;
/// Pages that are written for each leaf that overflows once more, at least, after it has become two. It takes dozens of
/// overwrites to fill one anew: only pages chosen with care could do with fewer.
const PAGES_PER_SPLIT: u64 = 4;
/// Segments a start needs besides its checkpoint: the heads of both streams, and one that is left half full.
const START_SEGMENTS: u32 = 3;
/// Data pages that the cleaner gives the log at once: as many relocations as fit one record's header page, about.
pub const COPY_PAGES: u32 = 400;
/// Pages kept for commits when all else is refused.
const COMMIT_RESERVE_PAGES: u64 = 4;

/// Leaves that are counted of those an open epoch discards under a snapshot.
const DISCARDED_LEAVES_MAX: usize = 4096;

/// What a write is for; each class may dig deeper into the reserve than the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// New data.
    Data,
    /// Metadata of the mounter, and whatever replaces pages that exist.
    Metadata,
    /// The commit.
    Commit,
}

/// For what a segment is taken; each may dig deeper than the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taker {
    /// Users' data.
    Users,
    /// The cleaner's copies.
    Cleaner,
    /// Records that give space back: discards, commits, sessions.
    Freeing,
}

/// Pages that the copies of so many live pages take, about: with the headers of their records, of which one is cut in two where
/// a segment ends.
pub fn copied_pages(live: u32) -> u32 {
    live + live.div_ceil(COPY_PAGES) + 1
}

/// Whether emptying a segment of so many pages gives more than its copies take elsewhere, and a little for the work.
pub fn is_worth_moving(live: u32, geometry: Geometry) -> bool {
    copied_pages(live) + live / 100 < geometry.record_pages()
}

/// Whether emptying a segment is worth it while nobody waits for space: a sixteenth of it is gained, or near that.
pub fn is_worth_tidying(live: u32, geometry: Geometry) -> bool {
    is_worth_moving(live, geometry) && live <= geometry.segment_pages / 16 * 15
}

/// Most live pages of a segment that is worth cleaning.
fn worth_moving_max(geometry: Geometry) -> u32 {
    (0..geometry.segment_pages).rev().find(|&live| is_worth_moving(live, geometry)).unwrap_or(0)
}

/// Pages that live data and metadata of the store may fill together: were more alive, the emptiest segment could be too full to
/// be worth cleaning.
pub fn capacity_pages(geometry: Geometry) -> u64 {
    let segments = u64::from(geometry.segments);
    let reserve = (segments / 25).max(12);
    segments.saturating_sub(reserve) * u64::from(worth_moving_max(geometry))
}

/// Pages that a volume of this kind may fill.
///
/// A VexFS volume keeps some segments more: its open epoch stands beside what it replaces and makes checkpoints larger, and
/// segments that are nearly full of live pages give nothing to the cleaner. Without them the commit that would free
/// space can find none.
pub fn volume_capacity_pages(kind: VolumeKind, geometry: Geometry) -> u64 {
    let all = capacity_pages(geometry);
    match kind {
        VolumeKind::Raw => all,
        VolumeKind::VexFs => {
            let more = u64::from((geometry.segments / 32).min(8));
            all.saturating_sub(more * u64::from(geometry.record_pages()))
        }
    }
}

/// Pages kept for metadata, so that files can be deleted when data is refused.
fn metadata_reserve_pages(capacity: u64) -> u64 {
    (capacity / 50).clamp(16, 4096)
}

/// Leaves that a commit makes dirty, at most: one for each page, and no more than there are or come to be; the same again
/// where a snapshot keeps what is replaced, and those that are discarded.
fn commit_leaves(maps: &Maps) -> u64 {
    let leaves = maps.base.leaf_count() + maps.overlay.map.leaf_count();
    let committed = maps.overlay.page_count().min(leaves as u64);
    if !maps.snapshots.any_keeps() {
        return committed;
    }
    let discarded = maps
        .overlay
        .discards()
        .flat_map(|(first, count)| maps.base.units_between(first, first.saturating_add(count)));
    2 * committed + discarded.take(DISCARDED_LEAVES_MAX).count() as u64
}

impl Shared {
    /// Pages that can still be filled by a class of writes; `pending_pages` are under way.
    pub fn available_pages(&self, maps: &Maps, pending_pages: u64, class: Class) -> u64 {
        let capacity = volume_capacity_pages(self.kind, self.geometry);
        let reserve = match class {
            Class::Data => metadata_reserve_pages(capacity),
            Class::Metadata => COMMIT_RESERVE_PAGES,
            Class::Commit => 0,
        };
        let used = self.used_pages(maps) + pending_pages;
        capacity.saturating_sub(reserve).saturating_sub(used)
    }

    /// Pages in use: data, and the store's own twice, since a checkpoint stands beside the last one. Leaves
    /// that no checkpoint has written yet count like those that one has.
    pub fn used_pages(&self, maps: &Maps) -> u64 {
        let own = self.map_pages(maps) + self.fixed_pages(maps);
        maps.segments.data_live() + 2 * own.max(maps.segments.meta_live())
    }

    /// Pages that the maps take on disk, about, those of the open epoch once for itself and once for its commit.
    fn map_pages(&self, maps: &Maps) -> u64 {
        let open = 2 + usize::from(maps.snapshots.any_keeps());
        (maps.base.disk_pages() + maps.snapshots.disk_pages() + open * maps.overlay.map.disk_pages()) as u64
    }

    /// Segments that must stay free when one is taken. At any moment what is free must do for a checkpoint and for a start after
    /// a crash, whatever pages the heads still take in; the cleaner must be able to work when users no longer may.
    pub fn keep_segments(&self, maps: &Maps, taker: Taker) -> u32 {
        let fresh = self.geometry.record_pages();
        let room = |stream| maps.segments.head_room(stream, self.geometry);
        let user = if maps.segments.users_may_write() { room(Stream::User) } else { 0 };
        let cold = room(Stream::Cold);
        // What has room in the head that is left is under way to it.
        match taker {
            // The same whether the cleaner has just taken one or not: users are not to wait for that alone.
            Taker::Users => self.start_segments(maps, user + fresh, fresh) + CLEANER_SEGMENTS,
            Taker::Cleaner => self.start_segments(maps, user, cold + fresh),
            // Its records take no data.
            Taker::Freeing => self.start_segments(maps, user, cold),
        }
    }

    /// Segments that a start needs after a crash, once the heads took in so many pages: for its own heads, and for a checkpoint,
    /// beside which another has begun.
    fn start_segments(&self, maps: &Maps, user_pages: u32, cold_pages: u32) -> u32 {
        let under_way = |stream| maps.segments.room_left_behind(stream, self.geometry);
        let user_pages = u64::from(user_pages + under_way(Stream::User));
        let cold_pages = u64::from(cold_pages + under_way(Stream::Cold));
        // Each page may be the first to change its leaf, which may be full and become two;
        let changed = user_pages + cold_pages;
        let clean = maps.leaf_count().saturating_sub(maps.dirty_count()) as u64;
        let committed = (2 * changed).min(2 * clean + changed / PAGES_PER_SPLIT);
        // one of users' may be the first of its leaf in the open epoch, and in what a snapshot keeps.
        let others = u64::from(maps.kind == VolumeKind::VexFs) + u64::from(maps.snapshots.any_keeps());
        let pages = self.checkpoint_pages_after(maps, commit_leaves(maps) + committed)
            + others * user_pages
            + self.fixed_pages(maps);
        self.segments_for(pages) + START_SEGMENTS
    }

    /// Segments that so many pages of a checkpoint take.
    fn segments_for(&self, pages: u64) -> u32 {
        pages.div_ceil(u64::from(self.geometry.segment_pages) - 1) as u32
    }

    /// Whole segments that a checkpoint would fill now.
    pub fn segments_checkpoint_fills(&self, maps: &Maps) -> u32 {
        (self.next_checkpoint_pages(maps) / (u64::from(self.geometry.segment_pages) - 1)) as u32
    }

    /// Pages that the next checkpoint would write, were what is open committed before.
    pub fn next_checkpoint_pages(&self, maps: &Maps) -> u64 {
        self.checkpoint_pages_after(maps, commit_leaves(maps))
    }

    /// Most pages that a checkpoint writes that begins now.
    pub fn checkpoint_pages_now(&self, maps: &Maps) -> u64 {
        self.checkpoint_pages_after(maps, 0)
    }

    /// Most pages that a checkpoint writes once so many more leaves have changed.
    fn checkpoint_pages_after(&self, maps: &Maps, leaves: u64) -> u64 {
        let more = |id: MapId| if id == MapId::Committed { leaves as usize } else { 0 };
        let pages = |id| maps.map(id).map_or(0, |map| map.checkpoint_pages_after(more(id)));
        maps.ids().into_iter().map(pages).sum::<usize>() as u64 + self.fixed_pages(maps)
    }

    /// Pages that every checkpoint writes.
    pub fn fixed_pages(&self, maps: &Maps) -> u64 {
        self.payload_pages(maps) + 1
    }

    /// Data pages that the cleaner's stream can still take.
    pub fn cold_room_pages(&self, maps: &Maps) -> u64 {
        let more = maps.segments.free_count().saturating_sub(self.keep_segments(maps, Taker::Cleaner));
        let usable = u64::from(self.geometry.record_pages());
        let in_head = maps.segments.head_room(Stream::Cold, self.geometry);
        let pages = u64::from(in_head) + u64::from(more) * usable;
        pages - pages.div_ceil(u64::from(COPY_PAGES) + 1)
    }

    /// How things stand, for the log line of a refusal.
    pub fn describe_space(&self, maps: &Maps) -> String {
        let closed = || maps.segments.all().iter().filter(|s| s.state == State::Closed);
        let least = closed().filter(|s| s.stream != Stream::Meta).map(Segment::live).min().unwrap_or(0);
        format!(
            "{} of {} segments free, {} kept from users and {} from the cleaner; {} live pages, {} of the last checkpoint, {} dirty \
             leaves, {} pages of the open epoch; the emptiest segment has {least} live pages, there is room to move {}",
            maps.segments.free_count(),
            self.geometry.segments,
            self.keep_segments(maps, Taker::Users),
            self.keep_segments(maps, Taker::Cleaner),
            maps.segments.data_live(),
            maps.segments.meta_live(),
            maps.dirty_count(),
            maps.overlay.page_count(),
            self.cold_room_pages(maps)
        )
    }

    /// Pages of a checkpoint's payload.
    pub fn payload_pages(&self, maps: &Maps) -> u64 {
        let bytes = 24 * u64::from(self.geometry.segments)
            + 40 * maps.ids().len() as u64
            + maps.snapshots.table_bytes() as u64
            + 16 * maps.overlay.discard_count() as u64
            + 16 * maps.segments.referrers.len() as u64;
        bytes.div_ceil(4096)
    }
}
