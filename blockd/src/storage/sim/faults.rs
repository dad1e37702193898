//! What can go wrong with a simulated backing while it is used, and what can befall it at rest.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::StdRng;

use super::State;

/// Bytes of a block, the unit of damage: a page.
pub const BLOCK: usize = 4096;

/// What befalls a read, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFault {
    /// It fails.
    Eio,
    /// A bit comes wrong over the wire.
    Flip,
}

/// A write that is said to be complete and is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Nothing was written.
    Lost,
    /// It went to another place.
    Misdirected,
}

/// What befalls blocks at rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rot {
    /// One to three bits of one block flip.
    Flip,
    /// A block is zeros.
    Zeros,
    /// A block holds what belongs in another.
    Misdirected,
    /// A block cannot be read.
    Unreadable,
}

/// Faults that wait for their turn; numbers count from the start of this use of the backing.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) crash_at_write: Option<u64>,
    /// First, and how many in a row.
    pub(super) write_error: Option<(u64, u64, i32)>,
    pub(super) sync_error: Option<u64>,
    pub(super) read_fault: Option<(u64, ReadFault)>,
    pub(super) lie: Option<(u64, Lie)>,
}

/// What is wrong with a backing.
#[derive(Default)]
pub(super) struct Wounds {
    /// Blocks that do not hold what was last written to them, and the order of completion in which that came.
    pub(super) damaged: BTreeMap<u64, u64>,
    /// Those of them that give EIO.
    pub(super) unreadable: BTreeSet<u64>,
    /// Blocks that a faulty read was about, since the start of this use.
    pub(super) suspects: BTreeSet<u64>,
    /// A fault came to pass since the start of this use: the store may stop.
    pub(super) fired: bool,
}

pub(super) fn blocks_of(offset: usize, len_bytes: usize) -> std::ops::Range<u64> {
    (offset / BLOCK) as u64..(offset + len_bytes).div_ceil(BLOCK) as u64
}

impl Wounds {
    /// These do not hold what they should from then on.
    pub(super) fn damage(&mut self, offset: usize, len_bytes: usize, order: u64) {
        self.damaged.extend(blocks_of(offset, len_bytes).map(|block| (block, order)));
    }

    /// What is written anew can be read.
    pub(super) fn rewritten(&mut self, offset: usize, len_bytes: usize) {
        if !self.unreadable.is_empty() {
            blocks_of(offset, len_bytes).for_each(|block| {
                self.unreadable.remove(&block);
            });
        }
    }

    /// Once that is durable, it is right for good.
    pub(super) fn heal(&mut self, offset: usize, len_bytes: usize, order: u64) {
        let whole_blocks = (offset | len_bytes).is_multiple_of(BLOCK);
        if whole_blocks && !self.damaged.is_empty() {
            let range = blocks_of(offset, len_bytes);
            self.damaged.retain(|block, damaged| !range.contains(block) || *damaged > order);
        }
    }

    /// What lay beyond is gone.
    pub(super) fn cut(&mut self, len_bytes: usize) {
        let end = (len_bytes / BLOCK) as u64;
        self.damaged.retain(|block, _| *block < end);
        self.unreadable.retain(|block| *block < end);
    }

    /// Whether an error that names this byte has a cause, within a page or within so many bytes.
    pub(super) fn explain(&self, byte: u64, within_bytes: u64) -> bool {
        let unit = within_bytes.max(BLOCK as u64);
        let same = |block: &u64| block * BLOCK as u64 / unit == byte / unit;
        self.damaged.keys().chain(&self.suspects).any(same)
    }
}

impl State {
    /// Damages a block that holds something, everything being durable; says which and how.
    pub(super) fn rot(&mut self, rot: Rot, spare: impl Fn(u64) -> bool) -> String {
        let State { rng, visible, .. } = self;
        let block = some_block(rng, visible, &spare);
        let at = block as usize * BLOCK;
        let before = visible[at..at + BLOCK].to_vec();
        let text = match rot {
            Rot::Flip => {
                let bits: Vec<usize> = (0..rng.random_range(1..=3))
                    .map(|_| {
                        // Every other one near the beginning, where headers are.
                        let bytes = if rng.random() { 128 } else { BLOCK };
                        rng.random_range(0..bytes * 8)
                    })
                    .collect();
                for bit in &bits {
                    visible[at + bit / 8] ^= 1 << (bit % 8);
                }
                format!("bits {bits:?} flip")
            }
            Rot::Zeros => {
                visible[at..at + BLOCK].fill(0);
                "turns to zeros".into()
            }
            Rot::Misdirected => {
                let from = some_block(rng, visible, &|b| b == block) as usize * BLOCK;
                visible.copy_within(from..from + BLOCK, at);
                format!("gets what belongs at {from}")
            }
            Rot::Unreadable => {
                self.wounds.unreadable.insert(block);
                "cannot be read any more".into()
            }
        };
        if rot == Rot::Unreadable || self.visible[at..at + BLOCK] != before {
            self.wounds.damaged.insert(block, self.completed);
            self.wounds.fired = true;
        }
        self.durable[at..at + BLOCK].copy_from_slice(&self.visible[at..at + BLOCK]);
        format!("the block at {at} {text}")
    }
}

/// A block that holds something, and is not to be spared.
fn some_block(rng: &mut StdRng, image: &[u8], spare: &dyn Fn(u64) -> bool) -> u64 {
    // Those with a magic number are few, and everything hangs on them.
    let structure = rng.random_ratio(1, 2);
    for attempt in 0.. {
        let block = rng.random_range(0..image.len() / BLOCK);
        let bytes = &image[block * BLOCK..(block + 1) * BLOCK];
        let filler = bytes.iter().all(|&b| b == bytes[0]);
        let wanted = if structure { bytes.starts_with(b"VEXFS") } else { !filler };
        if (wanted || attempt > 10_000) && !spare(block as u64) {
            return block as u64;
        }
    }
    unreachable!("the attempts have no end")
}
