//! A checkpoint: the state of the store at one place of the log, written while the log goes on.
//!
//! [`Checkpoint::begin`] freezes the state as of the last record applied: position *P*. Then each
//! [`Checkpoint::step`] does a bounded portion, with the map locked for no longer than that, and writes through the log's
//! own queue: *leaves* that are dirty -> *directory* pages above them, level by level ([`nodes`]) -> *payload* and root ->
//! a sync, which covers the records before *P* too -> superblock slot A, sync, slot B, sync -> *settling* ([`settle`]):
//! what only the checkpoint before needed is free. Records go on being written, applied and acknowledged meanwhile.
//!
//! What is frozen: leaves by copy-on-write ([`BaseMap::freeze`], at no cost that grows with the map), the table of segments in
//! a copy ([`frozen`]), positions, session and epoch. A record in flight at *P* is not part of it: replay begins with it. A segment
//! that is empty at *P* is free once the checkpoint is durable; one that runs empty later is not, since this
//! checkpoint still refers to it. Everything a checkpoint may need is reserved before it begins, so it either does not
//! begin ([`IoError::NoSpace`]) or fails only with the backing, and then the store stops writing.
//!
//! Another map (the delta of a snapshot) becomes part of checkpoints when [`Maps::ids`], [`Maps::map`] and [`Maps::map_mut`] know it
//! by its [`MapId`](super::format::checkpoint::MapId): its dirty leaves and directory are written, its entry stands in the
//! table of maps, and [`load::load_map`] reads it back. A map that ends is given to [`Maps::retire`], and none may change its id.
//!
//! [`BaseMap::freeze`]: super::map::base::BaseMap::freeze
//! [`Maps::ids`]: super::map::Maps::ids
//! [`Maps::map`]: super::map::Maps::map
//! [`Maps::map_mut`]: super::map::Maps::map_mut
//! [`Maps::retire`]: super::map::Maps::retire

mod frozen;
mod leaves;
pub(super) mod load;
mod nodes;
mod payload;
mod settle;
mod writer;

use std::collections::BTreeSet;
use std::io;

use super::Shared;
use super::format::superblock::{SLOTS, Superblock};
use super::log::{JobDone, Log};
use crate::buf::AlignedBuf;
use crate::device::IoError;
use frozen::Frozen;
use settle::Settling;
use writer::Writer;

pub(super) use writer::is_checkpoint_token;

/// How far it is.
enum Phase {
    /// Dirty leaves are written.
    Leaves,
    /// Pages of the directories are.
    Nodes(nodes::Place),
    /// Payload and root are about to be written.
    Payload,
    /// All that is waits to be made durable.
    Pages(Box<Superblock>),
    /// It is being made durable, with the records up to this.
    Syncing(Box<Superblock>, u64),
    /// This slot is being written.
    Slot(Box<Superblock>, usize),
    /// And made durable.
    SlotSyncing(Box<Superblock>, usize),
    /// It is the last checkpoint now; what it does not need is given back.
    Settling(Settling),
}

/// What a step came to.
pub(super) enum Progress {
    /// There is more to do.
    Some,
    /// Something has to be written first.
    Blocked,
    /// It is durable, and all is settled.
    Done,
}

/// A checkpoint under way.
pub(super) struct Checkpoint {
    frozen: Frozen,
    phase: Phase,
    writer: Writer,
    /// Pages of the lowest level of each map's directory that have to be written.
    touched: Vec<BTreeSet<u64>>,
    /// No step gets anywhere before a write is finished.
    blocked: bool,
    /// Told when it is durable.
    waiters: Vec<JobDone>,
}

impl Checkpoint {
    /// Freezes the state as of the last record applied.
    ///
    /// # Errors
    /// [`IoError::NoSpace`] if there is no room for all it may have to write; nothing has happened then.
    pub(super) fn begin(log: &mut Log) -> Result<Self, IoError> {
        let frozen = Frozen::capture(log)?;
        Ok(Checkpoint {
            touched: vec![BTreeSet::new(); frozen.maps.len()],
            frozen,
            phase: Phase::Leaves,
            writer: Writer::default(),
            blocked: false,
            waiters: Vec::new(),
        })
    }

    /// Tells these when it is durable.
    pub(super) fn add_waiters(&mut self, waiters: impl IntoIterator<Item = JobDone>) {
        self.waiters.extend(waiters);
    }

    /// Gives those back who wait for it.
    pub(super) fn take_waiters(&mut self) -> Vec<JobDone> {
        std::mem::take(&mut self.waiters)
    }

    /// Whether a step would do anything now.
    pub(super) fn can_step(&self) -> bool {
        !self.blocked
    }

    /// A write or sync of this checkpoint is finished.
    ///
    /// # Errors
    /// [`IoError::Io`]: the store must stop writing.
    pub(super) fn completed(&mut self, log: &Log, token: u64, result: io::Result<()>) -> Result<(), IoError> {
        self.blocked = false;
        result.map_err(|e| IoError::Io(format!("writing a checkpoint failed: {}", log.explain(&e))))?;
        let leaves = self.writer.finish(token);
        if !leaves.is_empty() {
            let mut maps = log.shared.maps.write();
            for leaf in leaves {
                if let Some(map) = maps.frozen_map(leaf.map) {
                    map.written(leaf.key, leaf.page, leaf.count);
                }
            }
        }
        Ok(())
    }

    /// Does a portion of the work.
    ///
    /// # Errors
    /// [`IoError::Io`]: the store must stop writing.
    pub(super) fn step(&mut self, log: &mut Log) -> Result<Progress, IoError> {
        let progress = self.portion(log)?;
        self.blocked = matches!(progress, Progress::Blocked);
        Ok(progress)
    }

    fn portion(&mut self, log: &mut Log) -> Result<Progress, IoError> {
        let room = self.writer.has_room();
        let idle = self.writer.is_idle();
        self.phase = match std::mem::replace(&mut self.phase, Phase::Leaves) {
            Phase::Leaves if !room => return Ok(Progress::Blocked),
            Phase::Leaves => {
                if self.write_leaves(log)? {
                    Phase::Leaves
                } else if idle {
                    Phase::Nodes(nodes::Place::default())
                } else {
                    // The directory says where leaves stand that are written.
                    return Ok(Progress::Blocked);
                }
            }
            Phase::Nodes(place) if !room => {
                self.phase = Phase::Nodes(place);
                return Ok(Progress::Blocked);
            }
            Phase::Nodes(mut place) => {
                if self.write_nodes(log, &mut place)? {
                    Phase::Nodes(place)
                } else {
                    Phase::Payload
                }
            }
            Phase::Payload => Phase::Pages(Box::new(self.write_payload(log)?)),
            Phase::Settling(mut settling) => {
                let done = settling.step(log);
                self.phase = Phase::Settling(settling);
                return Ok(if done { Progress::Done } else { Progress::Some });
            }
            phase if !idle => {
                self.phase = phase;
                return Ok(Progress::Blocked);
            }
            Phase::Pages(superblock) => {
                let upto = log.applied_seq;
                self.writer.sync(log);
                Phase::Syncing(superblock, upto)
            }
            Phase::Syncing(superblock, upto) => {
                log.now_durable(upto);
                self.write_slot(log, superblock, 0)
            }
            Phase::Slot(superblock, slot) => {
                self.writer.sync(log);
                Phase::SlotSyncing(superblock, slot)
            }
            Phase::SlotSyncing(superblock, slot) if slot + 1 < SLOTS.len() => {
                self.write_slot(log, superblock, slot + 1)
            }
            Phase::SlotSyncing(superblock, _) => {
                log.superblock = *superblock;
                Phase::Settling(Settling::new(&mut self.frozen))
            }
        };
        Ok(Progress::Some)
    }

    fn write_slot(&mut self, log: &mut Log, superblock: Box<Superblock>, slot: usize) -> Phase {
        let page = AlignedBuf::from_slice(&superblock.encode());
        self.writer.write_at(log, SLOTS[slot], page);
        Phase::Slot(superblock, slot)
    }
}

/// Writes both slots, one durable before the other is touched, and waits.
pub(super) fn write_slots(shared: &Shared, superblock: &Superblock) -> Result<(), IoError> {
    let page = AlignedBuf::from_slice(&superblock.encode());
    for slot in SLOTS {
        shared
            .storage
            .write_all(slot, &page)
            .and_then(|()| shared.storage.sync())
            .map_err(|e| IoError::Io(format!("writing the superblock at image byte {slot} failed: {e}")))?;
    }
    Ok(())
}
