//! A checkpoint: a root page, named by the superblock, and the payload it lists.
//!
//! The payload is one string of bytes in whole pages, in runs anywhere in meta segments:
//! segment table, leaf directory of the committed map, leaf directory of the open epoch, discards of
//! the open epoch. The open epoch stands apart from the committed map so that a rollback is to ignore it.

use layout::addr::PAGE;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::record::SessionState;
use super::segment::Stream;
use super::{Cursor, Loc, Malformed, Mapping, block_crc, check, check_counter, check_zero};

/// First bytes of a root page.
pub const MAGIC: [u8; 8] = *b"VEXFSCPT";
/// Most runs of payload a root page lists.
pub const RUNS_MAX: usize = 200;

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
    reserved0: U32,
    base_leaves: U64,
    open_leaves: U64,
    open_discards: U64,
    positions: [DiskPosition; 2],
    session: SessionState,
    reserved: [u8; PAGE - 408 - 16 * RUNS_MAX],
    runs: [DiskRun; RUNS_MAX],
}

const _: () = assert!(size_of::<Disk>() == PAGE);
const _: () = assert!(std::mem::offset_of!(Disk, generation) == 32);
const _: () = assert!(std::mem::offset_of!(Disk, segment_count) == 72);
const _: () = assert!(std::mem::offset_of!(Disk, positions) == 104);
const _: () = assert!(std::mem::offset_of!(Disk, session) == 136);
const _: () = assert!(std::mem::offset_of!(Disk, reserved) == 408);
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
    /// Leaves of the committed map.
    pub base_leaves: u64,
    /// Leaves of the open epoch.
    pub open_leaves: u64,
    /// Discards of the open epoch.
    pub open_discards: u64,
    /// Of [`Stream::LOGGED`], in that order.
    pub positions: [Position; 2],
    /// Session and last command.
    pub session: SessionState,
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
            reserved0: 0.into(),
            base_leaves: self.base_leaves.into(),
            open_leaves: self.open_leaves.into(),
            open_discards: self.open_discards.into(),
            positions: self.positions.map(|p| DiskPosition {
                use_seq: p.use_seq.into(),
                segment: p.at.segment.into(),
                offset: u32::from(p.at.offset).into(),
            }),
            session: self.session.clone(),
            reserved: [0; PAGE - 408 - 16 * RUNS_MAX],
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
        check("checkpoint reserved bytes", 0u32, disk.reserved0.get())?;
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
            base_leaves: disk.base_leaves.get(),
            open_leaves: disk.open_leaves.get(),
            open_discards: disk.open_discards.get(),
            positions,
            session: disk.session,
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
    /// Pages that the committed map (or, in meta segments, the checkpoint) refers to.
    pub live_pages: u32,
    /// This use of the segment.
    pub use_seq: u64,
}

/// A leaf in a directory, 24 bytes in the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafRef {
    /// Lowest device page it may map.
    pub key: u64,
    /// Its page and the crc32c of that whole page.
    pub page: Mapping,
    /// Pages mapped.
    pub entries: u16,
}

/// The payload, decoded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Payload {
    /// One for each segment.
    pub segments: Vec<SegmentUsage>,
    /// Committed map, by key.
    pub base: Vec<LeafRef>,
    /// Open epoch, by key.
    pub open: Vec<LeafRef>,
    /// Discards of the open epoch: first page, count.
    pub discards: Vec<(u64, u64)>,
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
        for leaf in self.base.iter().chain(&self.open) {
            out.extend_from_slice(&leaf.key.to_le_bytes());
            out.extend_from_slice(&leaf.page.loc.segment.to_le_bytes());
            out.extend_from_slice(&leaf.page.loc.offset.to_le_bytes());
            out.extend_from_slice(&leaf.entries.to_le_bytes());
            out.extend_from_slice(&u64::from(leaf.page.crc).to_le_bytes());
        }
        for (first, count) in &self.discards {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        out
    }

    fn encoded_bytes(&self) -> usize {
        24 * (self.segments.len() + self.base.len() + self.open.len()) + 16 * self.discards.len()
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
            if live_pages > used_pages {
                let (expected, found) = (u64::from(used_pages), u64::from(live_pages));
                return Err(Malformed { what: "live pages of a segment", expected, found });
            }
            payload.segments.push(SegmentUsage { stream, used_pages, live_pages, use_seq });
        }
        for (leaves, count) in [(&mut payload.base, root.base_leaves), (&mut payload.open, root.open_leaves)]
        {
            let mut key_min = 0;
            for _ in 0..count {
                let key = cursor.u64()?;
                if key < key_min {
                    return Err(Malformed { what: "order of leaf keys", expected: key_min, found: key });
                }
                key_min = key.saturating_add(1);
                let loc = Loc { segment: cursor.u32()?, offset: cursor.u16()? };
                let entries = cursor.u16()?;
                let crc = cursor.u64()?;
                let Ok(crc) = u32::try_from(crc) else {
                    return Err(Malformed {
                        what: "crc of a leaf",
                        expected: u64::from(u32::MAX),
                        found: crc,
                    });
                };
                leaves.push(LeafRef { key, page: Mapping { loc, crc }, entries });
            }
        }
        for _ in 0..root.open_discards {
            let (first, count) = (cursor.u64()?, cursor.u64()?);
            if count == 0 || first.checked_add(count).is_none() {
                return Err(Malformed { what: "pages of a discard", expected: 1, found: count });
            }
            payload.discards.push((first, count));
        }
        check("bytes after the checkpoint payload", 0u64, cursor.left() as u64)?;
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    fn payload() -> Payload {
        let leaf = |key| LeafRef {
            key,
            page: Mapping { loc: Loc { segment: 3, offset: key as u16 }, crc: 0xffff_0000 | key as u32 },
            entries: 9,
        };
        let usage = SegmentUsage { stream: Some(Stream::Cold), used_pages: 30, live_pages: 12, use_seq: 6 };
        Payload {
            segments: vec![usage, SegmentUsage { stream: None, used_pages: 0, live_pages: 0, use_seq: 2 }],
            base: vec![leaf(0), leaf(5), leaf(9)],
            open: vec![leaf(4)],
            discards: vec![(7, 1 << 40)],
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
            base_leaves: 3,
            open_leaves: 1,
            open_discards: 1,
            positions: [
                Position { at, use_seq: 8 },
                Position { at: Loc { segment: 2, offset: 9 }, use_seq: 9 },
            ],
            session: SessionState::default(),
            runs: vec![Run { at, pages: 1, crc: 5 }, Run { at, pages: 3, crc: 6 }],
        };
        let mut page = vec![0xff; PAGE];
        root.encode_into(&mut page);
        (root, page)
    }

    #[test]
    fn a_root_comes_back_as_it_was_written() {
        let (root, page) = root();
        assert_eq!(Root::decode(&page), Ok(root));
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
        disordered.base.swap(0, 1);
        assert!(Payload::decode(&root().0, &disordered.encode()).is_err());
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&root().1, 0x6597_3eb2);
        common::golden(&payload().encode(), 0xfb73_7aeb);
    }
}
