//! The store's superblock: two slots, both written at every checkpoint.
//!
//! Slot A is page 0 of the backing, slot B page 8. A torn write of one slot (defended by `crc`)
//! leaves the other; `generation` tells the newer.

use layout::addr::PAGE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Geometry, Malformed, VERSION, block_crc, check, check_counter, check_zero, is_raw_size};
use crate::device::VolumeKind;

/// First bytes of a slot.
pub const MAGIC: [u8; 8] = *b"VEXFSTOR";
/// Byte offsets of the slots.
pub const SLOTS: [u64; 2] = [0, 8 * PAGE as u64];
/// Smallest backing, in bytes.
pub const BACKING_BYTES_MIN: u64 = 2 << 20;

/// `kind` of a VexFS volume.
const KIND_VEXFS: u32 = 1;
/// `kind` of a raw volume.
const KIND_RAW: u32 = 2;
/// Incompatible feature: a head of a record's entries serves several runs of written pages, and the table of snapshots has sizes.
const INCOMPAT_RUNS: u64 = 1;
/// Incompatible feature: several pages may stand at one place, and records and checkpoints say so.
const INCOMPAT_CLONES: u64 = 2;
/// Incompatible features this code needs,
const INCOMPAT_NEEDED: u64 = INCOMPAT_RUNS;
/// and all those it knows.
const INCOMPAT_KNOWN: u64 = INCOMPAT_NEEDED | INCOMPAT_CLONES;
/// Features that forbid writing when unknown: none yet.
const RO_COMPAT_KNOWN: u64 = 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    uuid: [u8; 16],
    generation: U64,
    kind: U32,
    segment_pages: U32,
    segments: U32,
    root_segment: U32,
    root_offset: U32,
    root_crc: U32,
    backing_bytes: U64,
    raw_bytes: U64,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    incarnation: U64,
    session: U64,
    boot_id: [u8; 16],
    next_seq: U64,
    reserved: [u8; PAGE - 144],
}

const _: () = assert!(size_of::<Disk>() == PAGE);
const _: () = assert!(std::mem::offset_of!(Disk, crc) == 12);
const _: () = assert!(std::mem::offset_of!(Disk, generation) == 32);
const _: () = assert!(std::mem::offset_of!(Disk, kind) == 40);
const _: () = assert!(std::mem::offset_of!(Disk, root_segment) == 52);
const _: () = assert!(std::mem::offset_of!(Disk, backing_bytes) == 64);
const _: () = assert!(std::mem::offset_of!(Disk, incompat) == 96);
const _: () = assert!(std::mem::offset_of!(Disk, boot_id) == 120);
const _: () = assert!(std::mem::offset_of!(Disk, next_seq) == 136);
const _: () = assert!(std::mem::offset_of!(Disk, reserved) == 144);

/// A checked superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The volume's uuid; also in every other structure.
    pub uuid: [u8; 16],
    /// Grows with every checkpoint.
    pub generation: u64,
    /// Kind of volume.
    pub kind: VolumeKind,
    /// How the backing is divided.
    pub geometry: Geometry,
    /// Segment, page and crc of the checkpoint's root page.
    pub root: super::Mapping,
    /// Length of the backing when the store was made.
    pub backing_bytes: u64,
    /// Size of a raw volume, 0 for VexFS.
    pub raw_bytes: u64,
    /// Features that may be ignored.
    pub compat: u64,
    /// Features that forbid writing when unknown.
    pub ro_compat: u64,
    /// There may be pages that stand at one place: set before the first is made, for good.
    pub clones: bool,
    /// Count of starts.
    pub incarnation: u64,
    /// The live session, 0 if none (a hint for tools: the checkpoint and the log have the truth).
    pub session: u64,
    /// The live session's boot id.
    pub boot_id: [u8; 16],
    /// Sequence of the first record after the checkpoint (also in the root page).
    pub next_seq: u64,
}

impl Superblock {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut disk = Disk {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            uuid: self.uuid,
            generation: self.generation.into(),
            kind: match self.kind {
                VolumeKind::VexFs => KIND_VEXFS,
                VolumeKind::Raw => KIND_RAW,
            }
            .into(),
            segment_pages: self.geometry.segment_pages.into(),
            segments: self.geometry.segments.into(),
            root_segment: self.root.loc.segment.into(),
            root_offset: u32::from(self.root.loc.offset).into(),
            root_crc: self.root.crc.into(),
            backing_bytes: self.backing_bytes.into(),
            raw_bytes: self.raw_bytes.into(),
            compat: self.compat.into(),
            ro_compat: self.ro_compat.into(),
            incompat: (INCOMPAT_NEEDED | if self.clones { INCOMPAT_CLONES } else { 0 }).into(),
            incarnation: self.incarnation.into(),
            session: self.session.into(),
            boot_id: self.boot_id,
            next_seq: self.next_seq.into(),
            reserved: [0; PAGE - 144],
        };
        disk.crc = block_crc(disk.as_bytes(), 12).into();
        disk.as_bytes().to_vec()
    }

    /// Checks and decodes a slot.
    ///
    /// # Errors
    /// [`Malformed`] names the field. `magic` is checked first, then `crc`, then the rest, so that a
    /// wrong version or an unknown feature is reported only of an intact slot.
    pub fn decode(page: &[u8]) -> Result<Self, Malformed> {
        let short = Malformed { what: "superblock length", expected: PAGE as u64, found: page.len() as u64 };
        let Ok(disk) = Disk::read_from_bytes(page) else { return Err(short) };
        check("superblock magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
        check("superblock crc32c", block_crc(page, 12), disk.crc.get())?;
        check("store version", VERSION, disk.version.get())?;
        check("unknown incompatible features", 0u64, disk.incompat.get() & !INCOMPAT_KNOWN)?;
        check(
            "incompatible features (the image is of an older VexFS: have that copy the data to a new one)",
            INCOMPAT_NEEDED,
            disk.incompat.get() & INCOMPAT_NEEDED,
        )?;
        check_zero("superblock reserved bytes", &disk.reserved)?;
        let kind = match disk.kind.get() {
            KIND_VEXFS => VolumeKind::VexFs,
            KIND_RAW => VolumeKind::Raw,
            other => return Err(Malformed { what: "volume kind", expected: 1, found: u64::from(other) }),
        };
        let raw_bytes = disk.raw_bytes.get();
        if is_raw_size(raw_bytes) != (kind == VolumeKind::Raw) {
            return Err(Malformed { what: "size of the volume", expected: 0, found: raw_bytes });
        }
        check_counter("superblock generation", disk.generation.get())?;
        if disk.incarnation.get() >= u64::from(u32::MAX) {
            // Session numbers have 32 bits for it.
            let (expected, found) = (u64::from(u32::MAX), disk.incarnation.get());
            return Err(Malformed { what: "count of starts", expected, found });
        }
        let geometry = Geometry { segment_pages: disk.segment_pages.get(), segments: disk.segments.get() };
        if !(16..=65536).contains(&geometry.segment_pages) {
            let found = u64::from(geometry.segment_pages);
            return Err(Malformed { what: "pages of a segment (16 to 65536)", expected: 16, found });
        }
        let end = geometry.segment_byte(geometry.segments);
        if end > disk.backing_bytes.get() || geometry.segments == 0 {
            return Err(Malformed {
                what: "end of the segments",
                expected: disk.backing_bytes.get(),
                found: end,
            });
        }
        let offset = u16::try_from(disk.root_offset.get()).unwrap_or(u16::MAX);
        let loc = super::Loc { segment: disk.root_segment.get(), offset };
        if !geometry.contains(loc) {
            let found = u64::from(loc.segment);
            return Err(Malformed {
                what: "checkpoint segment",
                expected: u64::from(geometry.segments),
                found,
            });
        }
        Ok(Superblock {
            uuid: disk.uuid,
            generation: disk.generation.get(),
            kind,
            geometry,
            root: super::Mapping { loc, crc: disk.root_crc.get() },
            backing_bytes: disk.backing_bytes.get(),
            raw_bytes: disk.raw_bytes.get(),
            compat: disk.compat.get(),
            ro_compat: disk.ro_compat.get(),
            clones: disk.incompat.get() & INCOMPAT_CLONES != 0,
            incarnation: disk.incarnation.get(),
            session: disk.session.get(),
            boot_id: disk.boot_id,
            next_seq: disk.next_seq.get(),
        })
    }

    /// Whether this code may write a store with these features.
    pub fn writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }
}

#[cfg(test)]
mod tests {
    use layout::addr::DEVICE_BYTES;

    use super::super::{Loc, Mapping, tests as common};
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            uuid: [3; 16],
            generation: 9,
            kind: VolumeKind::Raw,
            geometry: Geometry { segment_pages: 4096, segments: 40 },
            root: Mapping { loc: Loc { segment: 7, offset: 11 }, crc: 0xdead_beef },
            backing_bytes: 1 << 30,
            raw_bytes: 1 << 29,
            compat: 1,
            ro_compat: 0,
            clones: false,
            incarnation: 5,
            session: 0x5_0000_0001,
            boot_id: [8; 16],
            next_seq: 77,
        }
    }

    #[test]
    fn a_slot_comes_back_as_it_was_written() {
        for clones in [false, true] {
            let superblock = Superblock { clones, ..sample() };
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&sample().encode(), |page| Superblock::decode(page).is_ok());
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&sample().encode(), 0xbdea_1fb1);
    }

    /// Changes a field and makes the checksum right again.
    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut page = sample().encode();
        page[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = block_crc(&page, 12);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page
    }

    #[test]
    fn unknown_versions_features_and_kinds_are_refused() {
        for (at, what) in [(8, "store version"), (96, "unknown incompatible features"), (40, "volume kind")] {
            let e = Superblock::decode(&patched(at, &[9, 0, 0, 0])).expect_err("a field of the future");
            assert_eq!(e.what, what);
        }
        let ro = Superblock::decode(&patched(88, &[1])).expect("readable");
        assert!(!ro.writable());
        assert!(sample().writable());
    }

    #[test]
    fn an_image_of_an_older_format_is_told_from_a_broken_one() {
        let e = Superblock::decode(&patched(96, &[0])).expect_err("its records are of another form");
        assert!(e.what.contains("older VexFS"), "{e}");
    }

    #[test]
    fn volumes_of_impossible_sizes_are_refused() {
        let whole = |size: u64| Superblock::decode(&patched(72, &size.to_le_bytes()));
        assert!(whole(4096).is_ok() && whole(DEVICE_BYTES).is_ok());
        for size in [0, 4095, DEVICE_BYTES + 4096, u64::MAX - 4095] {
            assert_eq!(whole(size).map_err(|e| e.what), Err("size of the volume"), "{size}");
        }
        let vexfs = Superblock::decode(&patched(40, &[1, 0, 0, 0]));
        assert_eq!(vexfs.map_err(|e| e.what), Err("size of the volume"), "a VexFS volume has none");
    }

    #[test]
    fn segments_past_the_end_and_a_checkpoint_outside_are_refused() {
        assert!(Superblock::decode(&patched(48, &[0, 0, 1, 0])).is_err());
        assert!(Superblock::decode(&patched(52, &[40, 0, 0, 0])).is_err());
        assert!(Superblock::decode(&patched(44, &[1, 0, 0, 0])).is_err());
    }
}
