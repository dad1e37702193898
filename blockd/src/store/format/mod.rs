//! The on-disk structures of the store (FORMAT.md section 4), one a file.
//!
//! A structure is read in two steps: bytes, then a value whose checksum, place and reserved bytes
//! were checked. Everything is little-endian; zero is valid neither as magic nor as type.

pub mod checkpoint;
pub mod directory;
pub mod leaf;
pub mod record;
pub mod segment;
pub mod snapshot;
pub mod superblock;

use std::sync::LazyLock;

use layout::addr::{DEVICE_BYTES, PAGE};

/// Version of the format this code reads and writes.
pub const VERSION: u32 = 1;

/// Why bytes are not the structure expected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}: expected {expected:#x}, found {found:#x}")]
pub struct Malformed {
    /// The field or rule that is broken.
    pub what: &'static str,
    /// What the field should be (or its bound).
    pub expected: u64,
    /// What stands there.
    pub found: u64,
}

pub(crate) fn check(
    what: &'static str,
    expected: impl Into<u64>,
    found: impl Into<u64>,
) -> Result<(), Malformed> {
    let (expected, found) = (expected.into(), found.into());
    if expected == found { Ok(()) } else { Err(Malformed { what, expected, found }) }
}

/// Counters grow by ones and thousands from 1: no real one comes near this, and sums below it are safe.
const COUNTER_MAX: u64 = 1 << 62;

/// Whether a raw volume may have so many bytes.
pub(crate) fn is_raw_size(bytes: u64) -> bool {
    bytes > 0 && bytes.is_multiple_of(PAGE as u64) && bytes <= DEVICE_BYTES
}

pub(crate) fn check_counter(what: &'static str, found: u64) -> Result<(), Malformed> {
    if found < COUNTER_MAX { Ok(()) } else { Err(Malformed { what, expected: COUNTER_MAX, found }) }
}

pub(crate) fn check_zero(what: &'static str, bytes: &[u8]) -> Result<(), Malformed> {
    match bytes.iter().find(|&&b| b != 0) {
        None => Ok(()),
        Some(&b) => Err(Malformed { what, expected: 0, found: u64::from(b) }),
    }
}

/// crc32c of a block whose own checksum field, 4 bytes at `field`, counts as zero.
pub(crate) fn block_crc(block: &[u8], field: usize) -> u32 {
    let crc = crc32c::crc32c(&block[..field]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[field + 4..])
}

/// Checksum of a data page: crc32c over its device page number (8 bytes) and its bytes.
pub fn page_crc(page: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes)
}

/// [`page_crc`] of the same bytes as those of another page: crcs are linear, so that both differ by what their numbers give.
pub fn page_crc_as(page: u64, other: u64, crc_of_other: u32) -> u32 {
    // By bits of the number, before a page of zeros.
    static BITS: LazyLock<[u32; 64]> = LazyLock::new(|| {
        let of = |page: u64| page_crc(page, &[0; PAGE]);
        std::array::from_fn(|bit| of(1 << bit) ^ of(0))
    });
    let mut differs = page ^ other;
    let mut crc = crc_of_other;
    while differs != 0 {
        crc ^= BITS[differs.trailing_zeros() as usize];
        differs &= differs - 1;
    }
    crc
}

/// Where a page stands in the backing: a segment and a page of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Loc {
    /// Index of the segment.
    pub segment: u32,
    /// Page within the segment, below 65536.
    pub offset: u16,
}

impl std::fmt::Display for Loc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "segment {} page {}", self.segment, self.offset)
    }
}

/// Where a device page stands and what its bytes add up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Its place in the log.
    pub loc: Loc,
    /// [`page_crc`] of its content.
    pub crc: u32,
}

/// How the backing is divided; fixed at creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Pages of a segment, 16..=65536.
    pub segment_pages: u32,
    /// Number of segments.
    pub segments: u32,
}

/// Byte offset of segment 0: the superblock slots stand before it.
pub const SEGMENTS_START: u64 = 64 << 10;

impl Geometry {
    /// Byte offset of a page in the backing.
    pub fn byte(&self, loc: Loc) -> u64 {
        self.segment_byte(loc.segment) + u64::from(loc.offset) * PAGE as u64
    }
    /// Byte offset of a segment in the backing.
    pub fn segment_byte(&self, segment: u32) -> u64 {
        SEGMENTS_START + u64::from(segment) * self.segment_bytes()
    }
    /// Bytes of a segment.
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.segment_pages) * PAGE as u64
    }
    /// Pages of a segment that records of a stream may fill. The first one is the segment's header. The last one is kept for the
    /// record that links to the next segment, which has a header page and no data: without it a stream could not leave a
    /// segment that is full.
    pub fn record_pages(&self) -> u32 {
        self.segment_pages.saturating_sub(2)
    }
    /// Whether the place exists.
    pub fn contains(&self, loc: Loc) -> bool {
        loc.segment < self.segments && u32::from(loc.offset) < self.segment_pages
    }
}

/// Reads fixed-width fields off the front of a slice; running out is an error.
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(rest: &'a [u8], what: &'static str) -> Self {
        Cursor { rest, what }
    }
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(Malformed { what: self.what, expected: len as u64, found: self.rest.len() as u64 });
        };
        self.rest = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// LEB128, at most 5 bytes, the shortest form only.
    pub(crate) fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Malformed { what: "shortest form of a varint", expected: 1, found: 0 });
                }
                return u32::try_from(value).map_err(|_| Malformed {
                    what: "varint",
                    expected: u64::from(u32::MAX),
                    found: value,
                });
            }
        }
        Err(Malformed { what: "bytes of a varint", expected: 5, found: 6 })
    }
}

/// Appends LEB128.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a number as LEB128.
pub(crate) fn varint_len(value: u32) -> usize {
    (32 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No single changed byte may pass.
    pub(super) fn every_flip_is_noticed(page: &[u8], accepts: impl Fn(&[u8]) -> bool) {
        assert!(accepts(page), "the sample itself is good");
        let mut page = page.to_vec();
        for i in 0..page.len() {
            for flip in [1, 0x80, 0xff] {
                page[i] ^= flip;
                assert!(!accepts(&page), "byte {i} flipped by {flip:#x}");
                page[i] ^= flip;
            }
        }
        assert!(!accepts(&vec![0; page.len()]), "zeros are never valid");
        assert!(!accepts(&page[..page.len() - 1]), "nor is a short page");
    }

    /// The bytes are those that version 1 has always had: a change here is a change of the format.
    pub(super) fn golden(bytes: &[u8], crc: u32) {
        assert_eq!(
            crc32c::crc32c(bytes),
            crc,
            "crc32c of the golden image is {:#010x}",
            crc32c::crc32c(bytes)
        );
    }

    #[test]
    fn the_crc_of_a_page_depends_on_its_address() {
        let bytes = [7; PAGE];
        assert_ne!(page_crc(1, &bytes), page_crc(2, &bytes));
        assert_eq!(page_crc(0, &[0; PAGE]), crc32c::crc32c(&[0; PAGE + 8]));
    }

    #[test]
    fn the_crc_of_the_same_bytes_elsewhere_needs_no_bytes() {
        let bytes: Vec<u8> = (0..PAGE).map(|i| (i * i / 7) as u8).collect();
        for (page, other) in [(5, 5), (0, 1 << 63), (u64::MAX, 77), (1 << 45, (1 << 45) + 1), (9, 0)] {
            assert_eq!(page_crc_as(page, other, page_crc(other, &bytes)), page_crc(page, &bytes));
        }
    }

    #[test]
    fn varints_have_one_form_and_32_bits() {
        for value in [0, 1, 127, 128, 16383, 16384, u32::MAX] {
            let mut out = Vec::new();
            push_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value));
            assert_eq!(Cursor::new(&out, "test").varint(), Ok(value));
        }
        for bad in [&[0x80, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x7f], &[0x80; 6], &[0x80]] {
            assert!(Cursor::new(bad, "test").varint().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn places_follow_the_geometry() {
        let geometry = Geometry { segment_pages: 16, segments: 3 };
        assert_eq!(geometry.byte(Loc { segment: 2, offset: 5 }), 65536 + 2 * 65536 + 5 * 4096);
        assert!(geometry.contains(Loc { segment: 2, offset: 15 }));
        assert!(!geometry.contains(Loc { segment: 3, offset: 0 }));
        assert!(!geometry.contains(Loc { segment: 0, offset: 16 }));
    }
}
