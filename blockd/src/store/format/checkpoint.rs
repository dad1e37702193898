//! A checkpoint: a root page, named by the superblock, and the payload it lists.
//!
//! The payload is one string of bytes in whole pages, in runs anywhere in meta segments:
//! segment table, the maps (each by the top page of its directory), discards of the open epoch, snapshots, referrers. The open
//! epoch stands apart from the committed map so that a rollback is to ignore it.

use layout::addr::{DEVICE_PAGES, MAP_UNIT_PAGES, PAGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::directory::LEVELS_MAX;
use super::record::SessionState;
use super::segment::Stream;
use super::snapshot::{self, SnapshotEntry};
use super::{Cursor, Loc, Malformed, Mapping, block_crc, check, check_counter, check_zero};

/// First bytes of a root page.
pub const MAGIC: [u8; 8] = *b"VEXFSCPT";
/// Most runs of payload a root page lists.
pub const RUNS_MAX: usize = 200;
/// Most pages that may stand in one segment.
pub const LIVE_PAGES_MAX: u32 = 1 << 31;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
struct DiskPosition {
    use_seq: U64,
    segment: U32,
    offset: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Default)]
#[repr(C)]
struct DiskRun {
    segment: U32,
    offset: U16,
    reserved: U16,
    pages: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    crc: U32,
    run_count: U32,
    uuid: [u8; 16],
    generation: U64,
    next_seq: U64,
    next_use_seq: U64,
    epoch: U64,
    payload_bytes: U64,
    segment_count: U32,
    map_count: U32,
    open_discards: U64,
    reserved0: [u8; 16],
    positions: [DiskPosition; 2],
    session: SessionState,
    last_snapshot: U64,
    rollback_to: U64,
    rollback: U32,
    snapshot_count: U32,
    referrer_count: U32,
    reserved: [u8; PAGE - 436 - 16 * RUNS_MAX],
    runs: [DiskRun; RUNS_MAX],
}

const _: () = assert!(size_of::<Disk>() == PAGE);
const _: () = assert!(std::mem::offset_of!(Disk, generation) == 32);
const _: () = assert!(std::mem::offset_of!(Disk, segment_count) == 72);
const _: () = assert!(std::mem::offset_of!(Disk, positions) == 104);
const _: () = assert!(std::mem::offset_of!(Disk, session) == 136);
const _: () = assert!(std::mem::offset_of!(Disk, last_snapshot) == 408);
const _: () = assert!(std::mem::offset_of!(Disk, snapshot_count) == 428);
const _: () = assert!(std::mem::offset_of!(Disk, referrer_count) == 432);
const _: () = assert!(std::mem::offset_of!(Disk, runs) == PAGE - 16 * RUNS_MAX);

/// Where the next record of a stream stands: replay begins there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Page of the next record.
    pub at: Loc,
    /// Use of the segment.
    pub use_seq: u64,
}

/// A run of payload pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First page.
    pub at: Loc,
    /// Pages, all in one segment.
    pub pages: u32,
    /// crc32c of its bytes.
    pub crc: u32,
}

/// Where a start has to take the committed map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GoingBack {
    /// To the snapshot of this number, or, by 0, to nothing.
    pub to: u64,
    /// A raw volume keeps its size, and does not get the snapshot's: a backup was being received.
    pub keeps_size: bool,
}

impl GoingBack {
    const GETS_SIZE: u32 = 1;
    const KEEPS_SIZE: u32 = 2;

    fn decode(kind: u32, to: u64) -> Result<Option<Self>, Malformed> {
        let what = "rollback of the checkpoint";
        match kind {
            0 => check(what, 0u64, to).map(|()| None),
            Self::GETS_SIZE | Self::KEEPS_SIZE => {
                Ok(Some(GoingBack { to, keeps_size: kind == Self::KEEPS_SIZE }))
            }
            found => Err(Malformed { what, expected: 1, found: found.into() }),
        }
    }

    fn kind(self) -> u32 {
        if self.keeps_size { Self::KEEPS_SIZE } else { Self::GETS_SIZE }
    }
}

/// A checked root page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// As in the superblock that names it.
    pub generation: u64,
    /// Sequence of the first record after it.
    pub next_seq: u64,
    /// Next use number of a segment.
    pub next_use_seq: u64,
    /// Commits so far.
    pub epoch: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// Entries of the segment table.
    pub segment_count: u32,
    /// Entries of the table of maps.
    pub map_count: u32,
    /// Discards of the open epoch.
    pub open_discards: u64,
    /// Of [`Stream::LOGGED`], in that order.
    pub positions: [Position; 2],
    /// Session and last command.
    pub session: SessionState,
    /// The highest number a snapshot was given.
    pub last_snapshot: u64,
    /// The committed map is between two states.
    pub rollback: Option<GoingBack>,
    /// Entries of the table of snapshots.
    pub snapshot_count: u32,
    /// Entries of the table of referrers.
    pub referrer_count: u32,
    /// The payload's runs, in order.
    pub runs: Vec<Run>,
}

impl Root {
    /// Fills the page.
    ///
    /// # Panics
    /// If there are more than [`RUNS_MAX`] runs, or `page` is not 4096 bytes.
    pub fn encode_into(&self, page: &mut [u8]) {
        let mut runs = [DiskRun::default(); RUNS_MAX];
        for (disk, run) in runs[..self.runs.len()].iter_mut().zip(&self.runs) {
            *disk = DiskRun {
                segment: run.at.segment.into(),
                offset: run.at.offset.into(),
                reserved: 0.into(),
                pages: run.pages.into(),
                crc: run.crc.into(),
            };
        }
        let mut disk = Disk {
            magic: MAGIC,
            crc: 0.into(),
            run_count: (self.runs.len() as u32).into(),
            uuid: self.uuid,
            generation: self.generation.into(),
            next_seq: self.next_seq.into(),
            next_use_seq: self.next_use_seq.into(),
            epoch: self.epoch.into(),
            payload_bytes: self.payload_bytes.into(),
            segment_count: self.segment_count.into(),
            map_count: self.map_count.into(),
            open_discards: self.open_discards.into(),
            reserved0: [0; 16],
            positions: self.positions.map(|p| DiskPosition {
                use_seq: p.use_seq.into(),
                segment: p.at.segment.into(),
                offset: u32::from(p.at.offset).into(),
            }),
            session: self.session.clone(),
            last_snapshot: self.last_snapshot.into(),
            rollback_to: self.rollback.map_or(0, |back| back.to).into(),
            rollback: self.rollback.map_or(0, GoingBack::kind).into(),
            snapshot_count: self.snapshot_count.into(),
            referrer_count: self.referrer_count.into(),
            reserved: [0; PAGE - 436 - 16 * RUNS_MAX],
            runs,
        };
        disk.crc = block_crc(disk.as_bytes(), 8).into();
        page.copy_from_slice(disk.as_bytes());
    }

    /// Checks and decodes a root page.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub fn decode(page: &[u8]) -> Result<Self, Malformed> {
        let short =
            Malformed { what: "checkpoint root length", expected: PAGE as u64, found: page.len() as u64 };
        let Ok(disk) = Disk::read_from_bytes(page) else { return Err(short) };
        check("checkpoint magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
        check("checkpoint crc32c", block_crc(page, 8), disk.crc.get())?;
        check_zero("checkpoint reserved bytes", &disk.reserved)?;
        check_zero("checkpoint reserved bytes", &disk.reserved0)?;
        check_counter("generation of the checkpoint", disk.generation.get())?;
        check_counter("next sequence of the checkpoint", disk.next_seq.get())?;
        check_counter("next use number of the checkpoint", disk.next_use_seq.get())?;
        check_counter("epoch of the checkpoint", disk.epoch.get())?;
        if disk.next_seq.get() == 0 {
            return Err(Malformed { what: "next sequence of the checkpoint", expected: 1, found: 0 });
        }
        let run_count = disk.run_count.get() as usize;
        if run_count > RUNS_MAX {
            return Err(Malformed {
                what: "payload runs",
                expected: RUNS_MAX as u64,
                found: run_count as u64,
            });
        }
        check_zero("checkpoint unused runs", disk.runs[run_count..].as_bytes())?;
        let mut positions = [Position { at: Loc { segment: 0, offset: 0 }, use_seq: 0 }; 2];
        for (position, disk) in positions.iter_mut().zip(&disk.positions) {
            let Ok(offset) = u16::try_from(disk.offset.get()) else {
                let found = u64::from(disk.offset.get());
                return Err(Malformed { what: "page of a stream position", expected: 0xffff, found });
            };
            *position =
                Position { at: Loc { segment: disk.segment.get(), offset }, use_seq: disk.use_seq.get() };
        }
        let runs = disk.runs[..run_count]
            .iter()
            .map(|r| Run {
                at: Loc { segment: r.segment.get(), offset: r.offset.get() },
                pages: r.pages.get(),
                crc: r.crc.get(),
            })
            .collect();
        Ok(Root {
            uuid: disk.uuid,
            generation: disk.generation.get(),
            next_seq: disk.next_seq.get(),
            next_use_seq: disk.next_use_seq.get(),
            epoch: disk.epoch.get(),
            payload_bytes: disk.payload_bytes.get(),
            segment_count: disk.segment_count.get(),
            map_count: disk.map_count.get(),
            open_discards: disk.open_discards.get(),
            positions,
            session: disk.session,
            last_snapshot: disk.last_snapshot.get(),
            rollback: GoingBack::decode(disk.rollback.get(), disk.rollback_to.get())?,
            snapshot_count: disk.snapshot_count.get(),
            referrer_count: disk.referrer_count.get(),
            runs,
        })
    }
}

/// Usage of a segment, 24 bytes in the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentUsage {
    /// What it holds; `None` = free.
    pub stream: Option<Stream>,
    /// Pages filled, the header included.
    pub used_pages: u32,
    /// Pages of the committed map and the deltas that stand in it (in meta segments: 0).
    pub live_pages: u32,
    /// This use of the segment.
    pub use_seq: u64,
}

/// Which map an entry of the table of maps is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MapId {
    /// The committed map.
    Committed,
    /// The open epoch.
    Open,
    /// What a snapshot differs in from the next newer one, or from the committed map.
    Delta(u64),
}

impl MapId {
    /// Its role and number on disk.
    fn code(self) -> (u32, u64) {
        match self {
            MapId::Committed => (1, 0),
            MapId::Open => (2, 0),
            MapId::Delta(number) => (3, number),
        }
    }

    fn from_code(role: u32, number: u64) -> Option<Self> {
        match (role, number) {
            (1, 0) => Some(MapId::Committed),
            (2, 0) => Some(MapId::Open),
            (3, number) => Some(MapId::Delta(number)),
            _ => None,
        }
    }
}

/// A map of the checkpoint, 40 bytes in the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRef {
    /// Which.
    pub id: MapId,
    /// Levels of its directory; 0: the map is empty.
    pub levels: u32,
    /// The top page of the directory (all zeros without one), and its references.
    pub top: Mapping,
    /// References in the top page.
    pub count: u16,
    /// Device pages that the map has entries of.
    pub pages: u64,
}

/// The payload, decoded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Payload {
    /// One for each segment.
    pub segments: Vec<SegmentUsage>,
    /// The maps, by id.
    pub maps: Vec<MapRef>,
    /// Discards of the open epoch: first page, count.
    pub discards: Vec<(u64, u64)>,
    /// Snapshots, by number.
    pub snapshots: Vec<SnapshotEntry>,
    /// Units with pages that were cloned from a segment: both in order.
    pub referrers: Vec<Referrer>,
}

/// Pages of this unit may stand in this segment though no record in it names them, 16 bytes in the payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Referrer {
    /// The segment.
    pub segment: u32,
    /// Of 2^15 device pages.
    pub unit: u64,
}

impl Referrer {
    /// Of a device page.
    pub fn new(segment: u32, page: u64) -> Self {
        Referrer { segment, unit: page / MAP_UNIT_PAGES }
    }
}

impl Payload {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_bytes());
        for s in &self.segments {
            out.extend_from_slice(&s.use_seq.to_le_bytes());
            out.extend_from_slice(&s.used_pages.to_le_bytes());
            out.extend_from_slice(&s.live_pages.to_le_bytes());
            out.extend_from_slice(&u64::from(s.stream.map_or(0, Stream::code)).to_le_bytes());
        }
        for map in &self.maps {
            let (role, number) = map.id.code();
            out.extend_from_slice(&role.to_le_bytes());
            out.extend_from_slice(&map.levels.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&map.top.loc.segment.to_le_bytes());
            out.extend_from_slice(&map.top.loc.offset.to_le_bytes());
            out.extend_from_slice(&map.count.to_le_bytes());
            out.extend_from_slice(&u64::from(map.top.crc).to_le_bytes());
            out.extend_from_slice(&map.pages.to_le_bytes());
        }
        for (first, count) in &self.discards {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        self.snapshots.iter().for_each(|s| s.encode(&mut out));
        for referrer in &self.referrers {
            out.extend_from_slice(&referrer.unit.to_le_bytes());
            out.extend_from_slice(&u64::from(referrer.segment).to_le_bytes());
        }
        out
    }

    /// Bytes that [`Payload::encode`] gives.
    pub fn encoded_bytes(&self) -> usize {
        let snapshots: usize = self.snapshots.iter().map(SnapshotEntry::encoded_bytes).sum();
        let fixed = 24 * self.segments.len() + 40 * self.maps.len() + 16 * self.discards.len();
        fixed + snapshots + 16 * self.referrers.len()
    }

    /// Decodes the payload of `root`.
    ///
    /// # Errors
    /// [`Malformed`] when lengths, order or a value are wrong.
    pub fn decode(root: &Root, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(bytes, "checkpoint payload");
        let mut payload = Payload::default();
        for _ in 0..root.segment_count {
            let (use_seq, used_pages, live_pages) = (cursor.u64()?, cursor.u32()?, cursor.u32()?);
            let code = cursor.u64()?;
            let stream = u8::try_from(code).ok().and_then(Stream::from_code);
            if stream.is_none() && code != 0 {
                return Err(Malformed { what: "stream in the segment table", expected: 0, found: code });
            }
            payload.segments.push(SegmentUsage { stream, used_pages, live_pages, use_seq });
        }
        for _ in 0..root.map_count {
            let map = decode_map(&mut cursor)?;
            if payload.maps.last().is_some_and(|before| before.id >= map.id) {
                let (expected, found) = (0, map.id.code().1);
                return Err(Malformed { what: "order of the maps", expected, found });
            }
            payload.maps.push(map);
        }
        for _ in 0..root.open_discards {
            let (first, count) = (cursor.u64()?, cursor.u64()?);
            if count == 0 || first.checked_add(count).is_none() {
                return Err(Malformed { what: "pages of a discard", expected: 1, found: count });
            }
            payload.discards.push((first, count));
        }
        payload.snapshots = snapshot::decode(&mut cursor, root.snapshot_count, root.last_snapshot)?;
        for _ in 0..root.referrer_count {
            let (unit, found) = (cursor.u64()?, cursor.u64()?);
            let what = "referrer of a segment";
            let expected = u64::from(root.segment_count);
            let segment = u32::try_from(found).ok().filter(|&segment| segment < root.segment_count);
            let Some(segment) = segment else { return Err(Malformed { what, expected, found }) };
            let referrer = Referrer { segment, unit };
            if unit >= DEVICE_PAGES / MAP_UNIT_PAGES
                || payload.referrers.last().is_some_and(|last| *last >= referrer)
            {
                return Err(Malformed { what, expected, found: unit });
            }
            payload.referrers.push(referrer);
        }
        check("bytes after the checkpoint payload", 0u64, cursor.left() as u64)?;
        payload.check_live()?;
        Ok(payload)
    }

    /// More pages may stand in a segment than it has: a page that was cloned can be there for several maps.
    fn check_live(&self) -> Result<(), Malformed> {
        match self.segments.iter().map(|s| s.live_pages).find(|&live| live > LIVE_PAGES_MAX) {
            Some(live) => {
                let (expected, found) = (u64::from(LIVE_PAGES_MAX), u64::from(live));
                Err(Malformed { what: "live pages of a segment", expected, found })
            }
            None => Ok(()),
        }
    }
}

fn decode_map(cursor: &mut Cursor<'_>) -> Result<MapRef, Malformed> {
    let (role, levels, number) = (cursor.u32()?, cursor.u32()?, cursor.u64()?);
    let Some(id) = MapId::from_code(role, number) else {
        return Err(Malformed { what: "role of a map", expected: 1, found: u64::from(role) });
    };
    if levels > LEVELS_MAX {
        let (expected, found) = (u64::from(LEVELS_MAX), u64::from(levels));
        return Err(Malformed { what: "levels of a map's directory", expected, found });
    }
    let loc = Loc { segment: cursor.u32()?, offset: cursor.u16()? };
    let (count, crc, pages) = (cursor.u16()?, cursor.u64()?, cursor.u64()?);
    let Ok(crc) = u32::try_from(crc) else {
        let expected = u64::from(u32::MAX);
        return Err(Malformed { what: "crc of a directory page", expected, found: crc });
    };
    Ok(MapRef { id, levels, top: Mapping { loc, crc }, count, pages })
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    fn payload() -> Payload {
        let map = |id, levels| MapRef {
            id,
            levels,
            top: Mapping { loc: Loc { segment: 3, offset: 8 }, crc: 0xffff_0000 },
            count: 9,
            pages: 1 << 40,
        };
        let usage = SegmentUsage { stream: Some(Stream::Cold), used_pages: 30, live_pages: 12, use_seq: 6 };
        Payload {
            segments: vec![usage, SegmentUsage { stream: None, used_pages: 0, live_pages: 0, use_seq: 2 }],
            maps: vec![map(MapId::Committed, 2), map(MapId::Open, 0), map(MapId::Delta(7), 1)],
            discards: vec![(7, 1 << 40)],
            snapshots: vec![SnapshotEntry {
                number: 7,
                time_ns: 1,
                epoch: 2,
                held_pages: 3,
                raw_bytes: 4096,
                deleting: false,
                name: "monday".into(),
            }],
            referrers: vec![Referrer { segment: 0, unit: 5 }, Referrer { segment: 0, unit: (1 << 35) - 1 }],
        }
    }

    fn root() -> (Root, Vec<u8>) {
        let at = Loc { segment: 1, offset: 4 };
        let root = Root {
            uuid: [3; 16],
            generation: 5,
            next_seq: 100,
            next_use_seq: 20,
            epoch: 7,
            payload_bytes: payload().encode().len() as u64,
            segment_count: 2,
            map_count: 3,
            open_discards: 1,
            positions: [
                Position { at, use_seq: 8 },
                Position { at: Loc { segment: 2, offset: 9 }, use_seq: 9 },
            ],
            session: SessionState::default(),
            last_snapshot: 7,
            rollback: Some(GoingBack { to: 7, keeps_size: false }),
            snapshot_count: 1,
            referrer_count: 2,
            runs: vec![Run { at, pages: 1, crc: 5 }, Run { at, pages: 3, crc: 6 }],
        };
        let mut page = vec![0xff; PAGE];
        root.encode_into(&mut page);
        (root, page)
    }

    #[test]
    fn a_root_comes_back_as_it_was_written() {
        let (root, mut page) = root();
        for rollback in [root.rollback, Some(GoingBack { to: 7, keeps_size: true }), None] {
            let root = Root { rollback, ..root.clone() };
            root.encode_into(&mut page);
            assert_eq!(Root::decode(&page), Ok(root));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&root().1, |page| Root::decode(page).is_ok());
    }

    #[test]
    fn a_payload_comes_back_as_it_was_written() {
        assert_eq!(Payload::decode(&root().0, &payload().encode()), Ok(payload()));
    }

    #[test]
    fn a_payload_of_the_wrong_length_or_order_is_refused() {
        let bytes = payload().encode();
        assert!(Payload::decode(&root().0, &bytes[..bytes.len() - 1]).is_err());
        assert!(Payload::decode(&root().0, &[bytes.clone(), vec![0]].concat()).is_err());
        let mut disordered = payload();
        disordered.maps.swap(0, 1);
        assert!(Payload::decode(&root().0, &disordered.encode()).is_err());
    }

    #[test]
    fn more_pages_may_stand_in_a_segment_than_it_has_and_referrers_are_in_order() {
        let root = root().0;
        let mut shared = payload();
        shared.segments[0].live_pages = LIVE_PAGES_MAX;
        assert_eq!(Payload::decode(&root, &shared.encode()), Ok(shared.clone()));
        shared.segments[0].live_pages += 1;
        assert!(Payload::decode(&root, &shared.encode()).is_err(), "so many that sums could overflow");
        for bad in [
            Referrer { segment: 2, unit: 6 },
            Referrer { segment: 0, unit: 5 },
            Referrer { segment: 1, unit: 1 << 35 },
        ] {
            let mut payload = payload();
            payload.referrers[1] = bad;
            assert!(Payload::decode(&root, &payload.encode()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        let old = Payload { referrers: Vec::new(), ..payload() };
        let payload_bytes = old.encode().len() as u64;
        let mut page = vec![0; PAGE];
        Root { referrer_count: 0, payload_bytes, ..root().0 }.encode_into(&mut page);
        common::golden(&page, 0x8b99_d43a);
        common::golden(&old.encode(), 0x1aa2_3830);
        common::golden(&root().1, 0xc15b_b51c);
        common::golden(&payload().encode(), 0x0101_3f2e);
    }
}
