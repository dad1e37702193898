//! All rows of a file as bytes, for tools that copy extended attributes (FORMAT.md section 6.6).
//!
//! A *set* is one stream of records, cut into *parts* that are attributes' values: part 0 is
//! `user.vexfs.rows`, part n `user.vexfs.rows.n`. Equal rows give equal parts, on every volume.
//!
//! ```text
//! part:   0 VXRW | 4 version (2) | 6 element | 7 metric | 8 dim (4) | 12 rows (4) | 16 parts (4) | 20 part (4)
//!         24 bytes of the stream in a part (4) | 28 crc32c of the stream (4) | 32 crc32c of this value (4) | 36 zeros
//!         48 bytes of the stream
//! record: 0 offset (8) | 8 length (8) | 16 tag (8) | 24 flags (4), 1 stale | 28 zero (4) | 32 vector
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Error, Result};
use crate::schema::{Element, Metric, Schema};

/// The attribute that is part 0 of a file's rows.
pub const ROWS_XATTR: &[u8] = b"user.vexfs.rows";
/// Most parts of a set: their names fit one list of attributes.
pub const PARTS_MAX: u32 = 2000;
/// Bytes of a part before its share of the stream.
pub const PART_HEADER_BYTES: usize = 48;
/// Bytes of a record before its vector.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Most bytes of an attribute's name of a part.
pub const PART_NAME_MAX: usize = ROWS_XATTR.len() + 1 + 10;

/// Bytes of the stream in a part: some file systems keep no more than 16 KiB in an attribute.
const SHARE_BYTES: u32 = 15_872;
/// The same for sets that would have too many parts: Linux has 64 KiB at most (XATTR_SIZE_MAX).
const SHARE_BYTES_LARGE: u32 = 65_024;
const MAGIC: [u8; 4] = *b"VXRW";
const VERSION: u16 = 1;
const STALE: u32 = 1;

/// The crc32c of streams and parts.
pub const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// The part that an attribute's name stands for.
pub fn part_of_name(name: &[u8]) -> Option<u32> {
    match name.strip_prefix(ROWS_XATTR)? {
        [] => Some(0),
        [b'.', digits @ ..]
            if digits.len() <= 9 && digits.first().is_some_and(|d| (b'1'..=b'9').contains(d)) =>
        {
            digits.iter().try_fold(0u32, |number, digit| {
                digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0'))
            })
        }
        _ => None,
    }
}

/// The attribute's name of a part, in `out`.
pub fn name_of_part(part: u32, out: &mut [u8; PART_NAME_MAX]) -> &[u8] {
    let (base, digits) = out.split_at_mut(ROWS_XATTR.len());
    base.copy_from_slice(ROWS_XATTR);
    let mut len = 0;
    if part > 0 {
        let count = part.ilog10() as usize + 1;
        let mut rest = part;
        for place in digits.iter_mut().take(count + 1).rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        if let Some(dot) = digits.first_mut() {
            *dot = b'.';
        }
        len = count + 1;
    }
    out.get(..ROWS_XATTR.len() + len).unwrap_or(ROWS_XATTR)
}

/// What all parts of a set have in common, but for the stream's crc.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SetShape {
    /// What the vectors are.
    pub schema: Schema,
    /// Rows, 1 at least.
    pub rows: u32,
    /// Bytes of the stream in each part but the last.
    share_bytes: u32,
}

impl SetShape {
    /// The shape of a set of so many rows; none for no rows, and for more than [`PARTS_MAX`] parts hold.
    pub fn new(schema: Schema, rows: u32) -> Option<SetShape> {
        [SHARE_BYTES, SHARE_BYTES_LARGE]
            .into_iter()
            .map(|share_bytes| SetShape { schema, rows, share_bytes })
            .find(|shape| {
                rows > 0 && shape.stream_bytes() <= u64::from(PARTS_MAX) * u64::from(shape.share_bytes)
            })
    }

    /// Bytes of a row's record.
    pub const fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.schema.vector_bytes()
    }

    /// Bytes of the stream.
    pub const fn stream_bytes(&self) -> u64 {
        self.rows as u64 * self.record_bytes() as u64
    }

    /// Number of parts.
    pub fn parts(&self) -> u32 {
        u32::try_from(self.stream_bytes().div_ceil(u64::from(self.share_bytes))).unwrap_or(u32::MAX)
    }

    /// The bytes of the stream that a part holds: from, to.
    pub fn share(&self, part: u32) -> (u64, u64) {
        let from = u64::from(part) * u64::from(self.share_bytes);
        (from.min(self.stream_bytes()), (from + u64::from(self.share_bytes)).min(self.stream_bytes()))
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawPart {
    magic: [u8; 4],
    version: U16,
    element: u8,
    metric: u8,
    dim: U32,
    rows: U32,
    parts: U32,
    part: U32,
    share_bytes: U32,
    stream_crc: U32,
    crc: U32,
    reserved: [u8; 12],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRecord {
    offset: U64,
    length: U64,
    tag: U64,
    flags: U32,
    reserved: U32,
}

const _: () = {
    assert!(size_of::<RawPart>() == PART_HEADER_BYTES);
    assert!(offset_of!(RawPart, version) == 4);
    assert!(offset_of!(RawPart, element) == 6);
    assert!(offset_of!(RawPart, metric) == 7);
    assert!(offset_of!(RawPart, dim) == 8);
    assert!(offset_of!(RawPart, rows) == 12);
    assert!(offset_of!(RawPart, parts) == 16);
    assert!(offset_of!(RawPart, part) == 20);
    assert!(offset_of!(RawPart, share_bytes) == 24);
    assert!(offset_of!(RawPart, stream_crc) == 28);
    assert!(offset_of!(RawPart, crc) == 32);
    assert!(size_of::<RawRecord>() == RECORD_HEADER_BYTES);
    assert!(offset_of!(RawRecord, length) == 8);
    assert!(offset_of!(RawRecord, tag) == 16);
    assert!(offset_of!(RawRecord, flags) == 24);
};

/// A part of a set, checked in itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// The set.
    pub shape: SetShape,
    /// crc32c of the whole stream: tells sets of equal shape apart.
    pub stream_crc: u32,
    /// Which part.
    pub part: u32,
    /// Its share of the stream.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// Checks an attribute's value.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another version, [`Error::Invalid`] for what is no part of rows.
    pub fn parse(value: &'a [u8]) -> Result<Part<'a>> {
        const BAD: Error = Error::Invalid("not a part of a file's rows, or damaged");
        let (raw, bytes) = RawPart::ref_from_prefix(value).map_err(|_| BAD)?;
        if raw.magic != MAGIC {
            return Err(BAD);
        }
        if raw.version.get() != VERSION {
            return Err(Error::Unsupported);
        }
        if raw.crc.get() != crc_of(raw, bytes) || raw.reserved != [0; 12] {
            return Err(BAD);
        }
        let element = Element::from_code(raw.element)?;
        let schema = Schema::new(raw.dim.get(), element, Metric::from_code(raw.metric)?)?;
        let shape = SetShape { schema, rows: raw.rows.get(), share_bytes: raw.share_bytes.get() };
        let part = raw.part.get();
        let fits = shape.rows > 0
            && (1..=SHARE_BYTES_LARGE).contains(&shape.share_bytes)
            && shape.parts() <= PARTS_MAX
            && shape.parts() == raw.parts.get()
            && part < shape.parts();
        let (from, to) = shape.share(part);
        if !fits || bytes.len() as u64 != to - from {
            return Err(BAD);
        }
        Ok(Part { shape, stream_crc: raw.stream_crc.get(), part, bytes })
    }

    /// The header of the value that this part is; its bytes follow.
    pub fn header(&self) -> [u8; PART_HEADER_BYTES] {
        let mut raw = RawPart {
            magic: MAGIC,
            version: VERSION.into(),
            element: self.shape.schema.element().code(),
            metric: self.shape.schema.metric().code(),
            dim: self.shape.schema.dim().into(),
            rows: self.shape.rows.into(),
            parts: self.shape.parts().into(),
            part: self.part.into(),
            share_bytes: self.shape.share_bytes.into(),
            stream_crc: self.stream_crc.into(),
            crc: U32::ZERO,
            reserved: [0; 12],
        };
        raw.crc = crc_of(&raw, self.bytes).into();
        zerocopy::transmute!(raw)
    }
}

/// crc32c of a value whose own crc counts as zero.
fn crc_of(raw: &RawPart, bytes: &[u8]) -> u32 {
    let mut raw = *raw;
    raw.crc = U32::new_zeroed();
    let mut digest = CRC32C.digest();
    digest.update(raw.as_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// A row in the stream, without its vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// 64 bits for the user.
    pub tag: u64,
    /// The file changed after the vector was computed.
    pub stale: bool,
}

impl Record {
    /// Splits a record of the stream into the row and its vector.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(record: &[u8]) -> Result<(Record, &[u8])> {
        const BAD: Error = Error::Invalid("not a record of a file's rows");
        let (raw, vector) = RawRecord::ref_from_prefix(record).map_err(|_| BAD)?;
        if raw.flags.get() & !STALE != 0 || raw.reserved.get() != 0 {
            return Err(BAD);
        }
        let (offset, length, tag) = (raw.offset.get(), raw.length.get(), raw.tag.get());
        Ok((Record { offset, length, tag, stale: raw.flags.get() & STALE != 0 }, vector))
    }

    /// The bytes before the vector.
    pub fn bytes(&self) -> [u8; RECORD_HEADER_BYTES] {
        let raw = RawRecord {
            offset: self.offset.into(),
            length: self.length.into(),
            tag: self.tag.into(),
            flags: if self.stale { STALE } else { 0 }.into(),
            reserved: U32::ZERO,
        };
        zerocopy::transmute!(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn schema(dim: u32) -> Schema {
        Schema::new(dim, Element::F16, Metric::Cosine).expect("in range")
    }

    #[test]
    fn names_and_parts_are_the_same_thing() {
        let mut out = [0; PART_NAME_MAX];
        for (part, name) in [
            (0, "user.vexfs.rows"),
            (1, "user.vexfs.rows.1"),
            (10, "user.vexfs.rows.10"),
            (1999, "user.vexfs.rows.1999"),
        ] {
            assert_eq!(name_of_part(part, &mut out), name.as_bytes());
            assert_eq!(part_of_name(name.as_bytes()), Some(part));
        }
        for other in [
            "user.vexfs.rows.",
            "user.vexfs.rows.0",
            "user.vexfs.rows.01",
            "user.vexfs.rows.1x",
            "user.vexfs.rowsx",
            "user.vexfs.vector",
            "user.vexfs.rows.9999999999",
        ] {
            assert_eq!(part_of_name(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_part_stands_as_the_format_says_and_every_flipped_bit_shows() {
        let shape = SetShape::new(schema(2), 1).expect("fits");
        let record = Record { offset: 3, length: 4, tag: 5, stale: true };
        let stream = [&record.bytes()[..], &[1, 2, 3, 4]].concat();
        let part = Part { shape, stream_crc: 0x0102_0304, part: 0, bytes: &stream };
        let value = [&part.header()[..], &stream].concat();
        let mut golden = Vec::from(*b"VXRW\x01\0\x02\x03");
        for number in [2u32, 1, 1, 0, 15_872, 0x0102_0304, 0, 0, 0, 0] {
            golden.extend(number.to_le_bytes());
        }
        for number in [3u64, 4, 5, 1] {
            golden.extend(number.to_le_bytes());
        }
        golden.extend([1, 2, 3, 4]);
        let crc = CRC32C.checksum(&golden);
        golden[32..36].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(value, golden);
        assert_eq!(Part::parse(&value), Ok(part));
        assert_eq!(Record::parse(part.bytes), Ok((record, &[1, 2, 3, 4][..])));
        for bit in 0..value.len() * 8 {
            let mut value = value.clone();
            value[bit / 8] ^= 1 << (bit % 8);
            assert!(Part::parse(&value).is_err(), "bit {bit}");
        }
        for len in 0..value.len() {
            assert!(Part::parse(&value[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn sets_are_cut_into_few_enough_parts() {
        let shape = SetShape::new(schema(16_384), 1).expect("one row of the longest vectors");
        assert_eq!((shape.stream_bytes(), shape.parts()), (32_800, 3));
        assert_eq!(
            [0, 1, 2].map(|part| shape.share(part)),
            [(0, 15_872), (15_872, 31_744), (31_744, 32_800)]
        );
        let most = |share: u64| (share * 2000 / 36) as u32;
        assert_eq!(SetShape::new(schema(2), most(15_872)).expect("fits").share(1).1, 31_744);
        assert_eq!(SetShape::new(schema(2), most(15_872) + 1).expect("fits").share(1).1, 130_048);
        assert!(SetShape::new(schema(2), most(65_024)).is_some_and(|shape| shape.parts() == 2000));
        assert_eq!(SetShape::new(schema(2), most(65_024) + 1), None);
        assert_eq!(SetShape::new(schema(2), 0), None);
    }
}
