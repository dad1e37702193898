//! Making a store larger or smaller, and a raw volume in it.
//!
//! The size stands in the superblock and in the checkpoint's segment table, and changes at a start: its
//! checkpoint has the new size, and takes effect as a whole when the superblock names it. To make a store
//! smaller, first a start that takes no segment past the new end moves what is there to the front, with the
//! cleaner's means; a further start then drops the empty segments. So whatever breaks off a resize leaves a
//! store of the old size or of the new one, with all data. The caller makes a file longer before, and shorter after.

use std::sync::Arc;

use crossbeam_channel::Receiver;
use layout::addr::{MAP_UNIT_PAGES, PAGE};

use super::clean::copy::copies_of;
use super::clean::meta::empty_meta;
use super::create::geometry;
use super::format::Geometry;
use super::format::segment::Stream;
use super::log::{Job, JobDone, Log, Op};
use super::map::segments::{Segment, State};
use super::recover::{RecoverOptions, open_with, read_superblock};
use super::snapshot::LeafId;
use super::space::{Taker, volume_capacity_pages};
use super::{Shared, StoreError};
use crate::device::IoError;
use crate::storage::Storage;

/// How often room is made before it counts as impossible.
const ROUNDS_MAX: usize = 8;
/// Pages moved at a time, about (16 MiB).
const GROUP_PAGES: u64 = 4096;

/// The sizes wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Bytes of the backing; no more than it has.
    pub backing_bytes: u64,
    /// Bytes of a raw volume, a multiple of 4096; 0 for VexFS. What lies beyond is discarded.
    pub raw_bytes: u64,
}

/// How far a resize is, in pages that have to be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Pages moved.
    pub moved_pages: u64,
    /// Pages to move in all, as far as is known.
    pub total_pages: u64,
}

/// Gives a store its new sizes; it is closed before and after.
///
/// # Errors
/// [`StoreError::BadSize`] with figures when the data does not fit; nothing was changed then. Else what a start may
/// say: the store has its old or its new size, and all its data.
pub fn resize(
    storage: &Arc<dyn Storage>,
    options: &RecoverOptions,
    sizes: Sizes,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), StoreError> {
    let now = read_superblock(&**storage)?;
    let new = geometry(sizes.backing_bytes, now.geometry.segment_bytes())?;
    let shrinks = new.segments < now.geometry.segments;
    if sizes.raw_bytes < now.raw_bytes {
        let mut mover = Mover::open(storage, options, u32::MAX)?;
        check_state(&mover.shared)?;
        if shrinks {
            // Refused before anything is lost.
            mover.check_fits(new, mover.mapped_from(sizes.raw_bytes)?)?;
        }
        mover.cut_volume(sizes.raw_bytes, now.raw_bytes)?;
    }
    if shrinks {
        empty_tail(storage, options, new, progress)?;
    }
    let opened = open_with(Arc::clone(storage), options, |shared, superblock| {
        if sizes.raw_bytes != now.raw_bytes {
            check_state(shared)?;
        }
        if !shared.maps.write().segments.resize(new.segments) {
            return Err(StoreError::BadSize(
                "the segments past the new end could not be emptied; nothing was changed".into(),
            ));
        }
        shared.geometry = new;
        shared.maps.write().raw_bytes = sizes.raw_bytes;
        superblock.geometry = new;
        superblock.backing_bytes = sizes.backing_bytes;
        superblock.raw_bytes = sizes.raw_bytes;
        Ok(())
    })?;
    // The start's checkpoint has done it.
    drop(opened);
    Ok(())
}

/// The end of a rollback would give the volume the size of its snapshot again.
fn check_state(shared: &Shared) -> Result<(), StoreError> {
    if shared.maps.read().snapshots.rollback().is_some() {
        return Err(StoreError::BadSize(
            "a rollback to a snapshot, or a receive, was broken off: let it end by opening the volume for writing (vexfs-blockd serve) \
             and closing it again, then resize it"
                .into(),
        ));
    }
    Ok(())
}

/// Moves everything out of the segments past the new end.
fn empty_tail(
    storage: &Arc<dyn Storage>,
    options: &RecoverOptions,
    new: Geometry,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), StoreError> {
    for _ in 0..ROUNDS_MAX {
        match Mover::open(storage, options, new.segments) {
            Ok(mut mover) => {
                mover.check_fits(new, 0)?;
                if mover.empty_from(new.segments, progress)? && mover.leaves_room(new.segments)? {
                    return Ok(());
                }
            }
            Err(StoreError::NoSpace(_)) => {}
            Err(other) => return Err(other),
        }
        // What is free stands past the new end, or is too little to move in: make room in front, with all segments to
        // work in.
        let mut mover = Mover::open(storage, options, u32::MAX)?;
        mover.check_fits(new, 0)?;
        mover.make_room(new.segments)?;
    }
    let mover = Mover::open(storage, options, u32::MAX)?;
    Err(mover.no_room(new.segments))
}

fn io(e: IoError) -> StoreError {
    match e {
        IoError::NoSpace => StoreError::NoSpace("there is no room left to move pages in".into()),
        other => StoreError::Io {
            action: "moving pages of the store",
            offset: 0,
            source: std::io::Error::other(other.to_string()),
        },
    }
}

/// An open store without threads, of which pages are moved.
struct Mover {
    shared: Arc<Shared>,
    log: Log,
}

impl Mover {
    /// Opens the store; from now on no segment from `limit` on is taken.
    fn open(storage: &Arc<dyn Storage>, options: &RecoverOptions, limit: u32) -> Result<Self, StoreError> {
        let opened = open_with(Arc::clone(storage), options, |shared, _| {
            shared.maps.write().segments.set_limit(limit);
            Ok(())
        })?;
        let log = opened
            .log
            .ok_or_else(|| StoreError::BadSize("a store opened for reading is not resized".into()))?;
        Ok(Mover { shared: opened.shared, log })
    }

    /// Discards what a smaller raw volume no longer has.
    fn cut_volume(&mut self, raw_bytes: u64, old_bytes: u64) -> Result<(), StoreError> {
        let (first, end) = (raw_bytes / PAGE as u64, old_bytes.div_ceil(PAGE as u64));
        self.wait(|log, done| log.submit_user(Job::new([Op::Discard { first, count: end - first }], done)))
            .map_err(io)?;
        self.wait(Log::submit_checkpoint).map_err(io)
    }

    /// Pages that are given back when a raw volume is cut there.
    fn mapped_from(&self, raw_bytes: u64) -> Result<u64, StoreError> {
        let first = raw_bytes / PAGE as u64;
        let units = first.next_multiple_of(MAP_UNIT_PAGES);
        loop {
            let mut missing = Vec::new();
            {
                let maps = self.shared.maps.read();
                // What a snapshot keeps stays.
                if !maps.snapshots.is_empty() {
                    return Ok(0);
                }
                maps.base.missing(first, units - first, &mut missing);
                if missing.is_empty() {
                    let mut count = maps.base.count_units(units, u64::MAX);
                    maps.base.for_each_in(first, units - first, |_, _| count += 1);
                    return Ok(count);
                }
            }
            missing.into_iter().try_for_each(|key| self.shared.load(LeafId::committed(key))).map_err(io)?;
        }
    }

    /// Refuses, with figures, what cannot fit, less what is given back before.
    fn check_fits(&self, new: Geometry, given_back: u64) -> Result<(), StoreError> {
        let maps = self.shared.maps.read();
        let used = self.shared.used_pages(&maps).saturating_sub(given_back);
        let room = volume_capacity_pages(self.shared.kind, new);
        if used <= room {
            return Ok(());
        }
        let mib = |pages: u64| pages.div_ceil(256);
        Err(StoreError::BadSize(format!(
            "{} MiB are in use, and {} segments of {} bytes hold {} MiB: delete data, or choose a size some {} MiB larger",
            mib(used),
            new.segments,
            new.segment_bytes(),
            mib(room),
            // The room grows a little slower than the size.
            mib((used - room) * 21 / 20)
        )))
    }

    /// Has the log do something and waits for it.
    fn wait(&mut self, start: impl FnOnce(&mut Log, JobDone)) -> Result<(), IoError> {
        let (send, recv) = crossbeam_channel::bounded(1);
        start(
            &mut self.log,
            Box::new(move |result| {
                let _ = send.send(result);
            }),
        );
        self.pump_until(&recv)
    }

    /// Drives the log until an outcome is there.
    fn pump_until(&mut self, outcome: &Receiver<Result<(), IoError>>) -> Result<(), IoError> {
        loop {
            self.log.pump();
            if let Ok(result) = outcome.try_recv() {
                return result;
            }
            if self.log.stall().is_some() {
                self.log.refuse_stalled();
            } else {
                self.log.wait();
            }
        }
    }

    /// A checkpoint; false if there is no room for one.
    fn checkpoint(&mut self) -> Result<bool, StoreError> {
        room(self.wait(Log::submit_checkpoint))
    }

    /// Segments that the cleaner's means can empty.
    fn closed(&self, wanted: impl Fn(u32, &Segment) -> bool) -> Vec<(u32, Segment)> {
        let maps = self.shared.maps.read();
        let all = (0u32..).zip(maps.segments.all().iter().copied());
        all.filter(|(i, s)| s.state == State::Closed && s.live() > 0 && wanted(*i, s)).collect()
    }

    /// The first of some segments whose live pages there is room for.
    fn group(&self, segments: Vec<(u32, Segment)>) -> Vec<u32> {
        let room = self.shared.cold_room_pages(&self.shared.maps.read());
        let mut pages = 0;
        let fits = |(i, s): (u32, Segment)| {
            let first = pages == 0;
            pages += u64::from(s.live());
            (pages <= room && (first || pages <= GROUP_PAGES)).then_some(i)
        };
        segments.into_iter().map_while(fits).collect()
    }

    /// Moves the live pages of data segments; false if there is no room for all. Their space is free after the next checkpoint.
    fn empty(&mut self, segments: &[u32]) -> Result<bool, StoreError> {
        let mut outcomes = Vec::new();
        for &segment in segments {
            let copies = copies_of(&self.shared, segment);
            if copies.is_empty() {
                self.check_empty(segment)?;
            }
            for ops in copies {
                let (send, recv) = crossbeam_channel::bounded(1);
                let done = Box::new(move |result| {
                    let _ = send.send(result);
                });
                // All at once, so that pages of several segments share a record.
                self.log.submit_cold(Job::new(ops, done));
                outcomes.push(recv);
            }
        }
        let mut all = true;
        for outcome in outcomes {
            all &= room(self.pump_until(&outcome))?;
        }
        Ok(all)
    }

    /// The cleaner left a segment alone: rightly so, if nothing lives in it.
    fn check_empty(&self, segment: u32) -> Result<(), StoreError> {
        match self.closed(|i, _| i == segment).first() {
            None => Ok(()),
            Some((_, s)) => Err(StoreError::BadSize(format!(
                "segment {segment} has {} pages in use, and something in it is damaged, so that they cannot be moved: vexctl scrub \
                 names what",
                s.live()
            ))),
        }
    }

    /// Whether the store can be started, and cleaned, when it ends here: this resize starts it once more itself, and the next
    /// start does before anything is freed.
    fn leaves_room(&mut self, end: u32) -> Result<bool, StoreError> {
        for _ in 0..4 * self.shared.geometry.segments {
            let (free, kept) = {
                let maps = self.shared.maps.read();
                (maps.segments.free_count(), 2 * self.shared.keep_segments(&maps, Taker::Cleaner))
            };
            if free >= kept {
                return Ok(true);
            }
            if !self.checkpoint()? || !self.squeeze(end)? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Frees segments before `end`: enough for a start, and for what stands behind, if so many can be had.
    fn make_room(&mut self, end: u32) -> Result<(), StoreError> {
        let usable = u64::from(self.shared.geometry.segment_pages - 4);
        for _ in 0..4 * self.shared.geometry.segments {
            let behind: u64 = self.closed(|i, _| i >= end).iter().map(|(_, s)| u64::from(s.live())).sum();
            let (free, kept) = {
                let maps = self.shared.maps.read();
                let free = (0..end).zip(maps.segments.all()).filter(|(_, s)| s.state == State::Free).count();
                (free as u32, 2 * self.shared.keep_segments(&maps, Taker::Cleaner))
            };
            if u64::from(free) >= u64::from(kept) + behind.div_ceil(usable) {
                return Ok(());
            }
            if !self.squeeze(end)? {
                return if free >= kept { Ok(()) } else { Err(self.no_room(end)) };
            }
        }
        Err(self.no_room(end))
    }

    /// Empties those segments before `end` that give most; false if nothing is to be had.
    fn squeeze(&mut self, end: u32) -> Result<bool, StoreError> {
        let worth = self.shared.geometry.segment_pages - 4;
        let mut data =
            self.closed(|i, s| i < end && s.stream != Stream::Meta && !s.damaged && s.live() < worth);
        data.sort_by_key(|(_, s)| s.live());
        let group = self.group(data);
        Ok(!group.is_empty() && self.empty(&group)? && self.checkpoint()?)
    }

    fn no_room(&self, end: u32) -> StoreError {
        let maps = self.shared.maps.read();
        StoreError::BadSize(format!(
            "no room is left to move pages to the first {end} segments: {}; delete data, or choose a larger size",
            self.shared.describe_space(&maps)
        ))
    }

    /// Empties all segments from `end` on; false if room ran out.
    fn empty_from(&mut self, end: u32, progress: &mut dyn FnMut(Progress)) -> Result<bool, StoreError> {
        let pages_left = |mover: &Self| -> u64 {
            mover.closed(|i, _| i >= end).iter().map(|(_, s)| u64::from(s.live())).sum()
        };
        let total_pages = pages_left(self);
        // Each pass moves something, or is one of the last.
        for _ in 0..4 * self.shared.geometry.segments {
            let moved_pages = total_pages.saturating_sub(pages_left(self));
            progress(Progress { moved_pages, total_pages });
            let (meta, data): (Vec<_>, Vec<_>) =
                self.closed(|i, _| i >= end).into_iter().partition(|(_, s)| s.stream == Stream::Meta);
            if !data.is_empty() {
                let group = self.group(data);
                // Short of room: what was moved, and what died, becomes free by a checkpoint; what is spread thinly by moving it.
                let moved = !group.is_empty() && self.empty(&group)?;
                let goes_on = moved || (self.checkpoint()? && self.squeeze(end)?);
                if !goes_on {
                    return Ok(false);
                }
                continue;
            }
            for (segment, _) in meta {
                if !empty_meta(&self.shared, segment) {
                    self.check_empty(segment)?;
                }
            }
            if !self.checkpoint()? {
                return Ok(false);
            }
            let maps = self.shared.maps.read();
            if maps.segments.all().iter().skip(end as usize).all(|s| s.state == State::Free) {
                drop(maps);
                progress(Progress { moved_pages: total_pages, total_pages });
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether there was room.
fn room(result: Result<(), IoError>) -> Result<bool, StoreError> {
    match result {
        Ok(()) => Ok(true),
        Err(IoError::NoSpace) => Ok(false),
        Err(e) => Err(io(e)),
    }
}
