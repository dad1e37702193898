//! The log-structured store (FORMAT.md section 4): pages of a sparse device, kept in a log.
//!
//! [`format`](mod@format): the bytes. [`map`]: where each page stands. [`log`]: the one writer.
//! [`reader`]: lookups and verified reads, any thread. [`checkpoint`] and [`recover`]: the state on
//! disk and back. [`clean`]: space back from segments that are mostly dead. [`create`]: a new store. [`scrub`]: everything read and checked.
//! [`snapshot`]: states of before. [`resize`]: a store made larger or smaller.

pub mod checkpoint;
pub mod clean;
pub mod create;
pub mod error;
pub mod format;
pub mod log;
pub mod map;
pub mod reader;
pub mod recover;
pub mod resize;
pub mod scrub;
pub mod snapshot;
pub mod space;

use std::sync::Arc;

use parking_lot::RwLock;

use crate::device::VolumeKind;
use crate::stats::StoreCounters;
use crate::storage::Storage;
use format::Geometry;
use map::Maps;

pub use error::StoreError;

/// What the log, the readers and the cleaner share.
pub struct Shared {
    /// The backing.
    pub storage: Arc<dyn Storage>,
    /// How it is divided.
    pub geometry: Geometry,
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// Kind of volume.
    pub kind: VolumeKind,
    /// The map; changed by the log only, except that readers put loaded leaves in.
    pub maps: RwLock<Maps>,
    /// What can be changed while the store is open.
    pub tuning: clean::LiveTuning,
    /// What was done since the start.
    pub counters: StoreCounters,
}

impl Shared {
    /// Size of a raw volume in bytes, 0 for VexFS.
    pub fn raw_bytes(&self) -> u64 {
        self.maps.read().raw_bytes
    }
}
