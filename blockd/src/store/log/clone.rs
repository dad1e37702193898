//! Clones: pages that from now on stand where others do, without a byte being copied.
//!
//! A record says which places these are, so what the source's pages are mapped to must be known when it is built, and must not
//! change until it is applied: a clone has records of its own, each built while none is in flight. Changes behind it are applied
//! after it; before it only portions of deletions are, which take no page from a live volume. So each place that it names is
//! alive, by the source's own entry, until it is by the clone's, and its segment is not used again in between.
//!
//! The first clone of a store waits for a checkpoint whose superblock keeps programs away that know of none.

use std::collections::{BTreeSet, VecDeque};

use parking_lot::RwLockReadGuard;

use super::Log;
use super::job::{Job, Op};
use crate::device::IoError;
use crate::store::Shared;
use crate::store::clean::cloned::is_referred;
use crate::store::format::checkpoint::{LIVE_PAGES_MAX, Referrer};
use crate::store::format::record::EntryList;
use crate::store::format::segment::Stream;
use crate::store::format::{Mapping, page_crc_as};
use crate::store::map::referrers::Referrers;
use crate::store::map::{Lookup, Maps};
use crate::store::snapshot::LeafId;
use crate::store::space::Taker;

/// Referrers that are looked at, whether they still are, each time there are too many.
const FORGET_STEPS: usize = 32;

impl Log {
    /// The next job of users is a clone that only records in flight may keep from being built.
    pub(super) fn clone_is_next(&self) -> bool {
        self.superblock.clones && !self.user_stalled && self.user.front().is_some_and(Job::clones)
    }

    /// Whether the clone that is next can be built now. Without the superblock's leave it can't; that is asked for.
    pub(super) fn may_build_clone(&mut self) -> bool {
        if !self.superblock.clones {
            self.clones_wanted = true;
            self.checkpoint_wanted |= self.checkpoint.is_none();
        }
        self.superblock.clones && self.in_flight.is_empty()
    }

    /// Whether the leaves that a clone's next record changes have room. It is asked for each: a record has hundreds of pages, and
    /// what is kept free for a start reckons with a leaf for each page of the log.
    pub(super) fn has_room_for_clone(&self) -> bool {
        let maps = self.shared.maps.read();
        maps.segments.free_count() >= self.shared.keep_segments(&maps, Taker::Users)
    }

    /// Builds the next record of the clone that is next.
    pub(super) fn build_clone(&mut self) {
        let Some(job) = self.user.front_mut() else { return };
        let charged = job.charged_pages();
        let mut list = EntryList::default();
        let holes = match take_places(&self.shared, &mut job.ops, &mut list) {
            Ok(holes) => holes,
            Err(e) => return self.refuse_clone(charged, e),
        };
        self.pending_pages = self.pending_pages.saturating_sub(holes);
        let (mut session, mut acks) = (None, Vec::new());
        if let Some(mut job) = self.user.pop_front_if(|job| job.ops.is_empty()) {
            session = job.session.take();
            acks.push((job.done, job.durable));
        }
        let session = session.unwrap_or_else(|| self.record_session());
        self.write_record(Stream::User, 0, None, list.take(), session, Vec::new(), acks);
    }

    /// There was no room for the checkpoint that the first clone waits for.
    pub(super) fn refuse_first_clone(&mut self, e: &IoError) {
        if !self.superblock.clones && self.user.front().is_some_and(Job::clones) {
            let charged = self.user.front().map_or(0, Job::charged_pages);
            self.refuse_clone(charged, e.clone());
        }
    }

    /// What was cloned before stays: the range is not what was asked for, and whoever asked knows.
    fn refuse_clone(&mut self, charged: u64, e: IoError) {
        if let Some(job) = self.user.pop_front() {
            self.pending_pages = self.pending_pages.saturating_sub(charged);
            (job.done)(Err(e));
            self.forget_refused();
        }
    }
}

/// Takes as many pages of the clones as fit into a record; gives how many of them are holes.
///
/// # Errors
/// A leaf of the map cannot be read, or too many places are shared already.
fn take_places(shared: &Shared, ops: &mut VecDeque<Op>, list: &mut EntryList) -> Result<u64, IoError> {
    let mut holes = 0;
    let mut new = BTreeSet::new();
    let mut maps = shared.maps.read();
    while let Some(Op::Clone { from, to, count }) = ops.front_mut() {
        if *count == 0 {
            ops.pop_front();
            continue;
        }
        let fits = match maps.lookup(*from) {
            Lookup::Leaf(key) => {
                RwLockReadGuard::unlocked(&mut maps, || shared.load(LeafId::committed(key)))?;
                continue;
            }
            Lookup::Unmapped => {
                let fits = list.push_discard(*to, 1);
                holes += u64::from(fits);
                fits
            }
            Lookup::Mapped(mapping) => {
                let crc = page_crc_as(*to, *from, mapping.crc);
                if !may_share(&maps, &mut new, mapping, *to) {
                    drop(maps);
                    forget_some(shared);
                    return Err(IoError::Invalid("too many places of the image are shared already".into()));
                }
                list.push_clone(*to, Mapping { crc, ..mapping })
            }
        };
        if !fits {
            break;
        }
        (*from, *to, *count) = (*from + 1, *to + 1, *count - 1);
    }
    Ok(holes)
}

/// Whether one more page may stand at a place. `new`: who will be noted by the record under construction.
fn may_share(maps: &Maps, new: &mut BTreeSet<Referrer>, at: Mapping, page: u64) -> bool {
    let segments = &maps.segments;
    let segment = at.loc.segment;
    if !segments.referrers.covers(segment, page) {
        new.insert(Referrer::new(segment, page));
    }
    let most = Referrers::max(segments.all().len());
    let live = segments.get(segment).map_or(0, |s| s.live());
    // A record has fewer pages than a unit.
    segments.referrers.len() + new.len() <= most && live < LIVE_PAGES_MAX - (1 << 15)
}

/// Looks at some of those that are noted, and forgets who has no page there any more. No record is in flight, so nobody else
/// changes what counts here.
fn forget_some(shared: &Shared) {
    for _ in 0..FORGET_STEPS {
        let Some(next) = shared.maps.read().segments.referrers.next_to_look_at() else { return };
        let is_needed = !matches!(is_referred(shared, next), Ok(false));
        shared.maps.write().segments.referrers.looked_at(next, is_needed);
    }
}
