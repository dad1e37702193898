//! How a volume stands: space, sessions, and whether it still takes writes.

use std::sync::atomic::Ordering;

use layout::addr::PAGE;
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::stats::StoreStats;
use crate::storage::identity::Identity;
use crate::store::map::segments::State;
use crate::store::space::{Class, volume_capacity_pages};

/// A volume at a moment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeStatus {
    /// "raw" or "vexfs".
    pub kind: String,
    /// The volume's uuid.
    pub uuid: uuid::Uuid,
    /// Size of the device.
    pub size_bytes: u64,
    /// It takes no writes.
    pub read_only: bool,
    /// Why the store stopped writing, if it did.
    pub failure: Option<String>,
    /// Commits so far; 0 on raw volumes.
    pub epoch: u64,
    /// The live session; 0 if none.
    pub session: u64,
    /// Times the store was opened for writing.
    pub incarnation: u64,
    /// Space.
    pub space: SpaceStatus,
    /// The map in memory.
    pub map: MapStatus,
}

/// Where the bytes of an image are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SpaceStatus {
    /// Of the backing.
    pub image_bytes: u64,
    /// Data that fits at most.
    pub capacity_bytes: u64,
    /// Data that is there: what the map refers to.
    pub used_bytes: u64,
    /// New data that would be taken now.
    pub available_bytes: u64,
    /// Replaced or discarded, and not yet given back by the cleaner.
    pub dead_bytes: u64,
    /// Of one segment.
    pub segment_bytes: u64,
    /// All of them.
    pub segments: u64,
    /// Those that are free.
    pub free_segments: u64,
}

/// The map from pages to places.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct MapStatus {
    /// Leaves of the committed map.
    pub leaves: u64,
    /// Of these, changed since the last checkpoint.
    pub dirty_leaves: u64,
    /// Pages that the open epoch has written.
    pub open_pages: u64,
}

impl Volume {
    /// How it stands now. Takes the map's lock for a look at each segment.
    pub fn status(&self) -> VolumeStatus {
        let store = &self.core.store;
        let page = PAGE as u64;
        let pending = self.core.pending_pages.load(Ordering::Relaxed);
        let maps = store.maps.read();
        let dead_pages: u64 = maps
            .segments
            .all()
            .iter()
            .filter(|s| s.state != State::Free)
            .map(|s| u64::from(s.used_pages.saturating_sub(s.live())))
            .sum();
        VolumeStatus {
            kind: store.kind.name().to_owned(),
            uuid: self.info.uuid,
            size_bytes: self.size_bytes.load(Ordering::Relaxed),
            read_only: self.info.read_only,
            failure: store.counters.failure().map(str::to_owned),
            epoch: maps.epoch,
            session: maps.session.session(),
            incarnation: self.core.incarnation,
            space: SpaceStatus {
                image_bytes: store.storage.len_bytes(),
                capacity_bytes: volume_capacity_pages(store.kind, store.geometry) * page,
                used_bytes: maps.segments.data_live() * page,
                available_bytes: store.available_pages(&maps, pending, Class::Data) * page,
                dead_bytes: dead_pages * page,
                segment_bytes: store.geometry.segment_bytes(),
                segments: store.geometry.segments.into(),
                free_segments: maps.segments.free_count().into(),
            },
            map: MapStatus {
                leaves: maps.base.leaf_count() as u64,
                dirty_leaves: maps.base.dirty_count() as u64,
                open_pages: maps.overlay.page_count(),
            },
        }
    }

    /// Which file or block device the image is.
    pub fn identity(&self) -> Option<Identity> {
        self.core.store.storage.identity()
    }

    /// What the store did since it was opened.
    pub fn store_stats(&self) -> StoreStats {
        self.core.store.counters.stats()
    }
}
