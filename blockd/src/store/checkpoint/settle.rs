//! After a checkpoint is durable: what only the one before needed is given back, in portions.

use super::frozen::Frozen;
use crate::store::format::Loc;
use crate::store::format::segment::Stream;
use crate::store::log::Log;
use crate::store::map::segments::State;

/// Pages or segments given back in one step.
const PORTION: usize = 4096;

/// What is still to be given back.
pub(super) struct Settling {
    thawed: bool,
    /// The checkpoint's number, and the uses of segments that replay begins in.
    number: u64,
    from: [u64; 2],
    dropped: Vec<Loc>,
    /// Data segments with their use.
    freeable: Vec<(u32, u64)>,
    freed: usize,
}

impl Settling {
    pub(super) fn new(frozen: &mut Frozen) -> Self {
        Settling {
            thawed: false,
            number: frozen.number,
            from: frozen.positions.map(|p| p.use_seq),
            dropped: std::mem::take(&mut frozen.dropped),
            freeable: std::mem::take(&mut frozen.freeable),
            freed: 0,
        }
    }

    /// Gives a portion back; true when all is.
    pub(super) fn step(&mut self, log: &mut Log) -> bool {
        if !self.thawed {
            self.thaw(log);
            return false;
        }
        let mut released = Vec::new();
        let done = {
            let mut maps = log.shared.maps.write();
            let segments = &mut maps.segments;
            let mut done = false;
            if !self.dropped.is_empty() {
                let rest = self.dropped.len().saturating_sub(PORTION);
                self.dropped.drain(rest..).for_each(|loc| segments.drop_meta(loc));
            } else if !self.freeable.is_empty() {
                let rest = self.freeable.len().saturating_sub(PORTION);
                let still_empty = |&(segment, use_seq): &(u32, u64)| {
                    let s = segments.get(segment);
                    s.is_some_and(|s| s.use_seq == use_seq && s.state == State::Closed && s.live() == 0)
                };
                let portion = self.freeable.drain(rest..);
                released.extend(portion.filter(still_empty).map(|(segment, _)| segment));
            } else {
                let meta = |&i: &u32| segments.get(i).is_some_and(|s| s.stream == Stream::Meta);
                released.extend(segments.empty().filter(meta).take(PORTION));
                done = released.is_empty();
            }
            segments.release(&released);
            if done {
                segments.end_reservation();
            }
            done
        };
        self.freed += released.len();
        log.discard_freed(&released);
        if done {
            #[cfg(test)]
            log.shared.maps.read().verify_meta(&log.own_pages);
            tracing::debug!(generation = log.superblock.generation, freed = self.freed, "checkpoint");
        }
        done
    }

    fn thaw(&mut self, log: &mut Log) {
        self.thawed = true;
        let mut unlocked = Vec::new();
        let retired = {
            let mut maps = log.shared.maps.write();
            let retired = std::mem::take(&mut maps.retired);
            for id in maps.ids() {
                if let Some(map) = maps.map_mut(id).filter(|map| map.is_frozen()) {
                    let (dropped, saved) = map.thaw();
                    self.dropped.extend(dropped);
                    unlocked.push(saved);
                }
            }
            maps.segments.meta_is_durable();
            maps.segments.checkpoint_is_durable(self.number, self.from);
            retired
        };
        // Maps that ended meanwhile are in this checkpoint, but not in the next.
        let mut ended = Vec::new();
        for (_, mut map) in retired {
            let (dropped, _) = map.thaw();
            self.dropped.extend(dropped);
            ended.extend(map.into_locs());
        }
        log.shared.maps.write().dropped.extend(ended);
        // What ran empty meanwhile, by records that are durable, was held only by the checkpoint before.
        log.now_durable(log.durable_seq);
    }
}
