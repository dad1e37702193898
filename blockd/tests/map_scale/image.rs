//! An image whose map is large: the store's metadata in a sparse file, without the data it speaks of.

use std::io;
use std::path::Path;
use std::sync::Arc;

use blockd::buf::AlignedBuf;
use blockd::device::VolumeKind;
use blockd::storage::file::FileStorage;
use blockd::storage::{IoEngine, Storage};
use blockd::store::format::checkpoint::{MapId, MapRef, Payload, Position, Root, Run, SegmentUsage};
use blockd::store::format::directory::{self, REFS_MAX, Ref, Target};
use blockd::store::format::record::SessionState;
use blockd::store::format::segment::{SegmentHeader, Stream};
use blockd::store::format::superblock::{SLOTS, Superblock};
use blockd::store::format::{Geometry, Loc, Mapping, SEGMENTS_START, leaf};

const PAGE: usize = 4096;
const UUID: [u8; 16] = [9; 16];
/// Pages of a segment: 16 MiB.
const SEGMENT_PAGES: u32 = 4096;
/// Pages of an extent: 16 KiB.
pub const EXTENT_PAGES: u64 = 4;
/// Extents in a segment, beside headers.
const SEGMENT_EXTENTS: u64 = 1000;
/// How full leaves are: as random splits leave them, about.
const LEAF_EXTENTS: u64 = 128;
/// Extents of a unit of the map.
const UNIT_EXTENTS: u64 = (1 << 15) / EXTENT_PAGES;
/// Pages written at once.
const BATCH_PAGES: usize = 256;

/// What was made.
pub struct Image {
    /// Extents that are mapped, from page 0 on.
    pub extents: u64,
    /// Leaves of the map.
    pub leaves: u64,
    /// Bytes written to the file.
    pub bytes_written: u64,
}

/// Where an extent stands: the extents lie in the log as if they had been written in random order.
pub fn place(extents: u64, extent: u64) -> Loc {
    let bits = extents.ilog2();
    let mask = extents - 1;
    let mut x = extent.wrapping_mul(0x9e37_79b1) & mask;
    x ^= x >> (bits / 2);
    x = x.wrapping_mul(0x85eb_ca6b) & mask;
    let offset = 1 + (x % SEGMENT_EXTENTS) * EXTENT_PAGES;
    Loc { segment: 1 + (x / SEGMENT_EXTENTS) as u32, offset: offset as u16 }
}

/// Crc of a page in the map; nothing stands at its place.
pub fn crc(page: u64) -> u32 {
    (page as u32).wrapping_mul(0x2c1b_3c6d)
}

/// Writes pages one after another, from segment to segment.
struct Meta {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    at: Loc,
    buf: Vec<u8>,
    /// Where the buffer goes.
    start: Loc,
    written: u64,
    segments: Vec<u32>,
}

impl Meta {
    fn push(&mut self, page: &[u8]) -> io::Result<Loc> {
        if u32::from(self.at.offset) == SEGMENT_PAGES {
            self.flush()?;
            self.at = Loc { segment: self.at.segment + 1, offset: 0 };
            self.begin()?;
        }
        if self.buf.is_empty() {
            self.start = self.at;
        }
        self.buf.extend_from_slice(page);
        let at = self.at;
        self.at.offset += 1;
        if self.buf.len() == BATCH_PAGES * PAGE {
            self.flush()?;
        }
        Ok(at)
    }

    /// The header of the segment.
    fn begin(&mut self) -> io::Result<()> {
        let segment = self.at.segment;
        self.segments.push(segment);
        let mut page = vec![0; PAGE];
        let header = SegmentHeader {
            uuid: UUID,
            segment,
            stream: Stream::Meta,
            use_seq: u64::from(segment) + 1,
            incarnation: 0,
        };
        header.encode_into(&mut page);
        self.push(&page).map(|_| ())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buf.is_empty() {
            self.storage.write_all(self.geometry.byte(self.start), &AlignedBuf::from_slice(&self.buf))?;
            self.written += self.buf.len() as u64;
            self.buf.clear();
        }
        Ok(())
    }

    /// The leaves of a unit.
    fn unit(&mut self, unit: u64, extents: u64, refs: &mut Vec<Ref>) -> io::Result<()> {
        let mut page = vec![0; PAGE];
        for part in 0..UNIT_EXTENTS / LEAF_EXTENTS {
            let first = unit * UNIT_EXTENTS + part * LEAF_EXTENTS;
            let runs: Vec<(leaf::Run, [u32; EXTENT_PAGES as usize])> = (first..first + LEAF_EXTENTS)
                .map(|extent| {
                    let (loc, page) = (place(extents, extent), extent * EXTENT_PAGES);
                    let rel = (page % (1 << 15)) as u16;
                    let run = leaf::Run {
                        rel,
                        count: EXTENT_PAGES as u16,
                        offset: loc.offset,
                        segment: loc.segment,
                    };
                    (run, std::array::from_fn(|i| crc(page + i as u64)))
                })
                .collect();
            let key = first * EXTENT_PAGES;
            let fits =
                leaf::encode_into(UUID, key, runs.iter().map(|(run, crcs)| (*run, &crcs[..])), &mut page);
            assert!(fits, "{LEAF_EXTENTS} extents fit a leaf");
            let mapping = Mapping { loc: self.push(&page)?, crc: crc32c::crc32c(&page) };
            let count = (LEAF_EXTENTS * EXTENT_PAGES) as u16;
            refs.push(Ref { key, target: Target::Page { page: mapping, count } });
        }
        Ok(())
    }

    /// The directory above the leaves; its top and levels.
    fn directory(&mut self, mut refs: Vec<Ref>) -> io::Result<(Ref, u32)> {
        let mut page = vec![0; PAGE];
        for level in 0.. {
            let mut above = Vec::new();
            for (i, part) in refs.chunks(REFS_MAX).enumerate() {
                let key = if i == 0 { 0 } else { part[0].key };
                directory::encode_into(UUID, level, key, part, &mut page);
                let mapping = Mapping { loc: self.push(&page)?, crc: crc32c::crc32c(&page) };
                above.push(Ref { key, target: Target::Page { page: mapping, count: part.len() as u16 } });
            }
            if let [top] = above[..] {
                return Ok((top, u32::from(level) + 1));
            }
            refs = above;
        }
        unreachable!("every level is smaller than the one below")
    }
}

/// Makes the image of a raw volume of `bytes` (a power of two, 128 MiB at least), all of it mapped in random order.
pub fn make(path: &Path, bytes: u64) -> anyhow::Result<Image> {
    let extents = bytes / PAGE as u64 / EXTENT_PAGES;
    assert!(extents.is_power_of_two() && extents >= UNIT_EXTENTS, "a power of two, of whole units");
    let data_segments = extents.div_ceil(SEGMENT_EXTENTS) as u32;
    let segments = data_segments + data_segments / 16 + 64;
    let geometry = Geometry { segment_pages: SEGMENT_PAGES, segments };
    let backing_bytes = geometry.segment_byte(segments);
    std::fs::File::create(path)?.set_len(backing_bytes)?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, false, IoEngine::Auto)?);

    let at = Loc { segment: 1 + data_segments, offset: 0 };
    let mut meta =
        Meta { storage, geometry, at, buf: Vec::new(), start: at, written: 0, segments: Vec::new() };
    meta.begin()?;
    let mut refs = Vec::new();
    for unit in 0..extents / UNIT_EXTENTS {
        meta.unit(unit, extents, &mut refs)?;
    }
    let leaves = refs.len() as u64;
    let (top, levels) = meta.directory(refs)?;
    let Target::Page { page: top, count } = top.target else { unreachable!("a directory page") };

    let root_at = finish(
        &mut meta,
        geometry,
        data_segments,
        extents,
        MapRef { id: MapId::Committed, levels, top, count, pages: extents * EXTENT_PAGES },
    )?;
    let superblock = Superblock {
        uuid: UUID,
        generation: 1,
        kind: VolumeKind::Raw,
        geometry,
        root: root_at,
        backing_bytes,
        raw_bytes: bytes,
        compat: 0,
        ro_compat: 0,
        clones: false,
        incarnation: 0,
        session: 0,
        boot_id: [0; 16],
        next_seq: 1,
    };
    for slot in SLOTS {
        meta.storage.write_all(slot, &AlignedBuf::from_slice(&superblock.encode()))?;
    }
    meta.storage.sync()?;
    assert!(SLOTS.iter().all(|slot| *slot < SEGMENTS_START));
    Ok(Image { extents, leaves, bytes_written: meta.written })
}

/// Payload and root; where the root stands.
fn finish(
    meta: &mut Meta,
    geometry: Geometry,
    data_segments: u32,
    extents: u64,
    map: MapRef,
) -> io::Result<Mapping> {
    let free = SegmentUsage { stream: None, used_pages: 0, live_pages: 0, use_seq: 0 };
    let mut payload = Payload {
        segments: vec![free; geometry.segments as usize],
        maps: vec![map],
        discards: Vec::new(),
        snapshots: Vec::new(),
        referrers: Vec::new(),
    };
    let pages = payload.encoded_bytes().div_ceil(PAGE);
    // Payload and root in one segment, a new one if need be.
    if u32::from(meta.at.offset) + pages as u32 + 1 > SEGMENT_PAGES {
        meta.flush()?;
        meta.at = Loc { segment: meta.at.segment + 1, offset: 0 };
        meta.begin()?;
    }
    for i in 0..data_segments {
        let live = (extents - u64::from(i) * SEGMENT_EXTENTS).min(SEGMENT_EXTENTS) * EXTENT_PAGES;
        payload.segments[1 + i as usize] = SegmentUsage {
            stream: Some(Stream::User),
            used_pages: SEGMENT_PAGES,
            live_pages: live as u32,
            use_seq: u64::from(i) + 1,
        };
    }
    for &segment in &meta.segments {
        payload.segments[segment as usize] = SegmentUsage {
            stream: Some(Stream::Meta),
            used_pages: SEGMENT_PAGES,
            live_pages: 0,
            use_seq: u64::from(segment) + 1,
        };
    }
    let mut bytes = payload.encode();
    let payload_bytes = bytes.len() as u64;
    bytes.resize(pages * PAGE, 0);
    let first = meta.at;
    for page in bytes.chunks_exact(PAGE) {
        meta.push(page)?;
    }
    // Use 0 is never written: replay finds nothing there.
    let nowhere = Position { at: Loc { segment: 0, offset: 1 }, use_seq: 0 };
    let root = Root {
        uuid: UUID,
        generation: 1,
        next_seq: 1,
        next_use_seq: u64::from(geometry.segments) + 2,
        epoch: 0,
        payload_bytes,
        segment_count: geometry.segments,
        map_count: 1,
        open_discards: 0,
        positions: [nowhere; 2],
        session: SessionState::default(),
        last_snapshot: 0,
        rollback: None,
        referrer_count: 0,
        snapshot_count: 0,
        runs: vec![Run { at: first, pages: pages as u32, crc: crc32c::crc32c(&bytes) }],
    };
    let mut page = vec![0; PAGE];
    root.encode_into(&mut page);
    let root_at = Mapping { loc: meta.push(&page)?, crc: crc32c::crc32c(&page) };
    meta.flush()?;
    Ok(root_at)
}
