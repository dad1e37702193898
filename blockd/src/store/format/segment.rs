//! The first page of a segment: whose it is, and its use (segments are used again and again).

use layout::addr::PAGE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Malformed, block_crc, check, check_zero};

/// First bytes of a segment in use.
pub const MAGIC: [u8; 8] = *b"VEXFSSEG";

/// What a segment is filled with. Hot and cold pages are kept apart, so that cleaning finds
/// segments that are either nearly all dead or nearly all alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Records of the users' writes.
    User,
    /// Records of the cleaner: pages that lived long.
    Cold,
    /// Map leaves and checkpoints; no records.
    Meta,
}

impl Stream {
    /// The streams that hold records, in the order of the checkpoint's positions.
    pub const LOGGED: [Stream; 2] = [Stream::User, Stream::Cold];

    /// Its number on disk; 0 is none.
    pub fn code(self) -> u8 {
        match self {
            Stream::User => 1,
            Stream::Cold => 2,
            Stream::Meta => 3,
        }
    }

    /// From its number on disk.
    pub fn from_code(code: u8) -> Option<Self> {
        [Stream::User, Stream::Cold, Stream::Meta].into_iter().find(|s| s.code() == code)
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    crc: U32,
    stream: u8,
    reserved0: [u8; 3],
    uuid: [u8; 16],
    segment: U32,
    reserved1: U32,
    use_seq: U64,
    incarnation: U64,
    reserved: [u8; PAGE - 56],
}

const _: () = assert!(size_of::<Disk>() == PAGE);
const _: () = assert!(std::mem::offset_of!(Disk, crc) == 8);
const _: () = assert!(std::mem::offset_of!(Disk, uuid) == 16);
const _: () = assert!(std::mem::offset_of!(Disk, use_seq) == 40);
const _: () = assert!(std::mem::offset_of!(Disk, reserved) == 56);

/// A checked segment header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The volume's uuid: tells segments of an older store in the same backing.
    pub uuid: [u8; 16],
    /// Its own index: tells misdirected writes.
    pub segment: u32,
    /// What it holds.
    pub stream: Stream,
    /// Number of this use, never repeated: tells what a former use left behind.
    pub use_seq: u64,
    /// The start of the store that opened it.
    pub incarnation: u64,
}

impl SegmentHeader {
    /// Fills the page.
    ///
    /// # Panics
    /// If `page` is not 4096 bytes.
    pub fn encode_into(&self, page: &mut [u8]) {
        let mut disk = Disk {
            magic: MAGIC,
            crc: 0.into(),
            stream: self.stream.code(),
            reserved0: [0; 3],
            uuid: self.uuid,
            segment: self.segment.into(),
            reserved1: 0.into(),
            use_seq: self.use_seq.into(),
            incarnation: self.incarnation.into(),
            reserved: [0; PAGE - 56],
        };
        disk.crc = block_crc(disk.as_bytes(), 8).into();
        page.copy_from_slice(disk.as_bytes());
    }

    /// Checks and decodes a segment's first page.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub fn decode(page: &[u8]) -> Result<Self, Malformed> {
        let short =
            Malformed { what: "segment header length", expected: PAGE as u64, found: page.len() as u64 };
        let Ok(disk) = Disk::read_from_bytes(page) else { return Err(short) };
        check("segment magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
        check("segment header crc32c", block_crc(page, 8), disk.crc.get())?;
        check_zero("segment header reserved bytes", &disk.reserved)?;
        check_zero("segment header reserved bytes", &disk.reserved0)?;
        check("segment header reserved bytes", 0u32, disk.reserved1.get())?;
        let Some(stream) = Stream::from_code(disk.stream) else {
            return Err(Malformed { what: "segment stream", expected: 1, found: u64::from(disk.stream) });
        };
        Ok(SegmentHeader {
            uuid: disk.uuid,
            segment: disk.segment.get(),
            stream,
            use_seq: disk.use_seq.get(),
            incarnation: disk.incarnation.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    fn sample() -> (SegmentHeader, Vec<u8>) {
        let header =
            SegmentHeader { uuid: [3; 16], segment: 12, stream: Stream::Cold, use_seq: 99, incarnation: 4 };
        let mut page = vec![0xff; PAGE];
        header.encode_into(&mut page);
        (header, page)
    }

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        let (header, page) = sample();
        assert_eq!(SegmentHeader::decode(&page), Ok(header));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&sample().1, |page| SegmentHeader::decode(page).is_ok());
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&sample().1, 0x8892_355d);
    }
}
