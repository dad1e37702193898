//! The segment that is emptied next, read while the copies of the one before are written: reading takes as long as writing, and
//! writers may be waiting for both.

use super::copy::{Copies, copies_of};
use super::policy::Choice;
use super::view::{Asked, choose_now};
use crate::store::Shared;
use crate::store::map::segments::State;

/// What is alive in a segment that has not been chosen yet.
pub(super) struct Ahead {
    segment: u32,
    use_seq: u64,
    urgent: bool,
    jobs: Vec<Copies>,
}

impl Ahead {
    /// Reads the segment that the policy would choose if the one that is being emptied (`asked.emptying`) were free; `None` if
    /// that was enough, or there is nothing to gain without a sync or a checkpoint.
    pub(super) fn read(shared: &Shared, asked: Asked) -> Option<Ahead> {
        let Choice::Data(segment) = choose_now(shared, Asked { sync: false, checkpoint: false, ..asked })
        else {
            return None;
        };
        let use_seq = shared.maps.read().segments.get(segment)?.use_seq;
        let jobs = copies_of(shared, segment);
        (!jobs.is_empty()).then_some(Ahead { segment, use_seq, urgent: asked.urgent, jobs })
    }

    /// Now that a segment is to be emptied: this one with its copies, if it could still be chosen. Pages that died since are copied
    /// in vain, so there are few of them.
    pub(super) fn take(self, shared: &Shared, urgent: bool) -> Option<(u32, Vec<Copies>)> {
        let maps = shared.maps.read();
        let info = maps.segments.get(self.segment)?;
        let same = info.state == State::Closed && info.use_seq == self.use_seq && info.live() > 0;
        let pages = self.jobs.iter().map(Vec::len).sum::<usize>() as u64;
        let fits = pages <= shared.cold_room_pages(&maps) && pages <= u64::from(info.live()) / 8 * 9 + 8;
        (same && fits && urgent == self.urgent).then_some((self.segment, self.jobs))
    }
}
