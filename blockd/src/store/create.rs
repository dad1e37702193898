//! Making a new, empty store.

use std::sync::Arc;

use layout::addr::PAGE;
use parking_lot::RwLock;

use super::format::checkpoint::{Payload, Position, Root, Run, SegmentUsage};
use super::format::record::SessionState;
use super::format::segment::{SegmentHeader, Stream};
use super::format::superblock::{BACKING_BYTES_MIN, Superblock};
use super::format::{Geometry, Loc, Mapping, SEGMENTS_START};
use super::map::Maps;
use super::map::segments::SegmentTable;
use super::{Shared, StoreError, checkpoint, space};
use crate::buf::AlignedBuf;
use crate::device::VolumeKind;
use crate::stats::StoreCounters;
use crate::storage::Storage;

/// Largest size of a segment that is chosen unasked, in bytes: beyond it nothing is gained.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;
/// Least size of a segment that is chosen unasked for images that have room for enough of them, in bytes.
const SEGMENT_BYTES_WANTED: u64 = 1 << 20;
/// Segments a store should have at least: below that, reserves eat too much.
const SEGMENTS_LEAST: u64 = 64;
/// Segments it must have.
const SEGMENTS_MIN: u64 = 16;

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewStore {
    /// Kind of volume.
    pub kind: VolumeKind,
    /// Its uuid.
    pub uuid: [u8; 16],
    /// Size of a raw volume in bytes, a multiple of 4096; 0 for VexFS.
    pub raw_bytes: u64,
    /// Bytes of a segment, a power of two of 64 KiB to 256 MiB; 0 chooses.
    pub segment_bytes: u64,
}

/// How a backing would be divided.
///
/// # Errors
/// [`StoreError::BadSize`] when it is too small or the segment size is not allowed.
pub fn geometry(backing_bytes: u64, segment_bytes: u64) -> Result<Geometry, StoreError> {
    if backing_bytes < BACKING_BYTES_MIN {
        return Err(StoreError::BadSize(format!(
            "the image has {backing_bytes} bytes; a store needs at least {BACKING_BYTES_MIN}: make it larger"
        )));
    }
    let segment_bytes = match segment_bytes {
        0 => {
            let part = |count: u64| 1u64 << ((backing_bytes - SEGMENTS_START) / count).max(1).ilog2();
            segment_bytes_wanted(backing_bytes)
                .clamp(SEGMENT_BYTES_WANTED, SEGMENT_BYTES_DEFAULT)
                .min(part(SEGMENTS_LEAST))
                .max(64 << 10)
        }
        given => given,
    };
    if !segment_bytes.is_power_of_two() || !(64 << 10..=256 << 20).contains(&segment_bytes) {
        return Err(StoreError::BadSize(format!(
            "a segment of {segment_bytes} bytes is not allowed: give a power of two from 64K to 256M"
        )));
    }
    let segments = (backing_bytes - SEGMENTS_START) / segment_bytes;
    if segments < SEGMENTS_MIN {
        return Err(StoreError::BadSize(format!(
            "{backing_bytes} bytes hold {segments} segments of {segment_bytes}; at least {SEGMENTS_MIN} are needed: \
             make the image larger or the segments smaller"
        )));
    }
    let segments = u32::try_from(segments).map_err(|_| {
        StoreError::BadSize("the image would be too large: give a smaller size, or larger segments".into())
    })?;
    Ok(Geometry { segment_pages: (segment_bytes / PAGE as u64) as u32, segments })
}

/// The size of segments that leaves the cleaner most room. About 12 segments are heads, free or in reserve, and of each segment
/// some 4 pages are no data (headers, and records cut short at its end): together that is least when a segment has the
/// root of a third of the image's pages. At 80 % full each percent of the image costs about 4 % more writes.
fn segment_bytes_wanted(backing_bytes: u64) -> u64 {
    let pages = (backing_bytes / PAGE as u64 / 3).isqrt().max(1);
    let below = 1u64 << pages.ilog2();
    // The nearer power of two, by ratio.
    let nearest = if pages * pages > 2 * below * below { 2 * below } else { below };
    nearest * PAGE as u64
}

/// Bytes of a backing that holds a raw volume of `raw_bytes` whole, with a quarter to spare: the fuller a
/// log, the more has to be moved to clean a segment (at 80 % about as much as is gained twice over).
///
/// # Errors
/// [`StoreError::BadSize`] when no image is as large.
pub fn backing_for_raw(raw_bytes: u64) -> Result<u64, StoreError> {
    let mut backing = raw_bytes.saturating_add(raw_bytes / 4).max(BACKING_BYTES_MIN);
    while !holds_raw(geometry(backing, 0)?, raw_bytes) {
        backing = backing.saturating_add(backing / 64);
    }
    Ok(backing.next_multiple_of(1 << 20))
}

/// Whether a raw volume of this size can be filled whole.
pub fn holds_raw(geometry: Geometry, raw_bytes: u64) -> bool {
    let pages = raw_bytes.div_ceil(PAGE as u64);
    // Leaves of the map take at most a page for each 128 pages, twice while a checkpoint is written.
    space::capacity_pages(geometry) >= pages + pages / 32 + 64
}

/// Writes an empty store into the backing, over whatever is there.
///
/// # Errors
/// [`StoreError::BadSize`] or `Io`.
pub fn create(storage: Arc<dyn Storage>, new: NewStore) -> Result<(), StoreError> {
    let backing_bytes = storage.len_bytes();
    let geometry = geometry(backing_bytes, new.segment_bytes)?;
    let io = |offset| move |source| StoreError::Io { action: "writing the new store", offset, source };

    let root_at = Loc { segment: 0, offset: 1 };
    let table_pages = (geometry.segments as usize * 24).div_ceil(PAGE);
    if table_pages + 2 > geometry.segment_pages as usize {
        return Err(StoreError::BadSize(format!(
            "{} segments are too many for their size: use larger segments",
            geometry.segments
        )));
    }
    let free = SegmentUsage { stream: None, used_pages: 0, live_pages: 0, use_seq: 0 };
    let mut segments = vec![free; geometry.segments as usize];
    segments[0] = SegmentUsage {
        stream: Some(Stream::Meta),
        used_pages: 2 + table_pages as u32,
        live_pages: 0,
        use_seq: 1,
    };
    let payload = Payload { segments, ..Payload::default() };
    let bytes = payload.encode();
    let mut padded = bytes.clone();
    padded.resize(table_pages * PAGE, 0);
    let run =
        Run { at: Loc { segment: 0, offset: 2 }, pages: table_pages as u32, crc: crc32c::crc32c(&padded) };
    // Use 0 is never written: replay finds nothing there.
    let nowhere = Position { at: Loc { segment: 0, offset: 1 }, use_seq: 0 };
    let root = Root {
        uuid: new.uuid,
        generation: 1,
        next_seq: 1,
        next_use_seq: 2,
        epoch: 0,
        payload_bytes: bytes.len() as u64,
        segment_count: geometry.segments,
        map_count: 0,
        open_discards: 0,
        positions: [nowhere; 2],
        session: SessionState::default(),
        last_snapshot: 0,
        rollback: None,
        snapshot_count: 0,
        referrer_count: 0,
        runs: vec![run],
    };
    let mut image = AlignedBuf::zeroed((2 + table_pages) * PAGE);
    SegmentHeader { uuid: new.uuid, segment: 0, stream: Stream::Meta, use_seq: 1, incarnation: 0 }
        .encode_into(&mut image[..PAGE]);
    root.encode_into(&mut image[PAGE..2 * PAGE]);
    let root_crc = crc32c::crc32c(&image[PAGE..2 * PAGE]);
    image[2 * PAGE..].copy_from_slice(&padded);
    // An old store's superblock must not survive beside new content.
    let zeros = AlignedBuf::zeroed(SEGMENTS_START as usize);
    storage.write_all(0, &zeros).map_err(io(0))?;
    storage.write_all(SEGMENTS_START, &image).map_err(io(SEGMENTS_START))?;
    storage.sync().map_err(io(0))?;

    let superblock = Superblock {
        uuid: new.uuid,
        generation: 1,
        kind: new.kind,
        geometry,
        root: Mapping { loc: root_at, crc: root_crc },
        backing_bytes,
        raw_bytes: new.raw_bytes,
        compat: 0,
        ro_compat: 0,
        clones: false,
        incarnation: 0,
        session: 0,
        boot_id: [0; 16],
        next_seq: 1,
    };
    let maps = Maps::new(new.kind, SegmentTable::from_usage(&payload.segments));
    let shared = Shared {
        storage,
        geometry,
        uuid: new.uuid,
        kind: new.kind,
        maps: RwLock::new(maps),
        tuning: super::clean::LiveTuning::default(),
        counters: StoreCounters::default(),
    };
    checkpoint::write_slots(&shared, &superblock).map_err(|e| StoreError::Io {
        action: "writing the new store",
        offset: 0,
        source: std::io::Error::other(e.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_for_a_raw_volume_holds_it_or_is_refused() {
        for size in [4096, 1 << 20, 1 << 30, (1 << 40) + 4096] {
            let backing = backing_for_raw(size).expect("an image for it");
            assert!(
                holds_raw(geometry(backing, 0).expect("a geometry"), size) && backing < 2 * size + (4 << 20)
            );
        }
        for size in [1 << 58, 1 << 62, u64::MAX - 4095] {
            assert!(matches!(backing_for_raw(size), Err(StoreError::BadSize(_))), "{size}");
        }
    }
}
