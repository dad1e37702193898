//! What the vectors of a collection are, and the header of its rows file (FORMAT.md section 6.1).

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::{PAGE, PageNo};
use crate::error::{Corruption, Error, Result};
use crate::page_store::PageBytes;
use crate::uapi::raw;

/// Most elements of a vector.
pub const DIM_MAX: u32 = raw::VEXFS_DIM_MAX;
/// Rows in a chunk.
pub const CHUNK_ROWS: u64 = 64;

const MAGIC: [u8; 4] = *b"VCOL";
const VERSION: u16 = 1;

/// Type of a vector's elements; little-endian, without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// Two's complement, 8 bits.
    I8,
}

impl Element {
    /// The element type of a `VEXFS_ELEMENT_*` code.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown code, [`Error::Unsupported`] for the reserved one (bits).
    pub fn from_code(code: u8) -> Result<Self> {
        match u32::from(code) {
            raw::VEXFS_ELEMENT_F32 => Ok(Element::F32),
            raw::VEXFS_ELEMENT_F16 => Ok(Element::F16),
            raw::VEXFS_ELEMENT_I8 => Ok(Element::I8),
            raw::VEXFS_ELEMENT_B1 => Err(Error::Unsupported),
            _ => Err(Error::Invalid("unknown element type; it is f32, f16 or i8")),
        }
    }

    /// Its code on disk and in requests.
    pub const fn code(self) -> u8 {
        match self {
            Element::F32 => raw::VEXFS_ELEMENT_F32 as u8,
            Element::F16 => raw::VEXFS_ELEMENT_F16 as u8,
            Element::I8 => raw::VEXFS_ELEMENT_I8 as u8,
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 => 2,
            Element::I8 => 1,
        }
    }

    /// Its name in JSON and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::I8 => "i8",
        }
    }

    /// The element type of a name.
    ///
    /// # Errors
    /// As [`Element::from_code`].
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Element::F32),
            "f16" => Ok(Element::F16),
            "i8" => Ok(Element::I8),
            "b1" => Err(Error::Unsupported),
            _ => Err(Error::Invalid("unknown element type; it is f32, f16 or i8")),
        }
    }
}

/// How far two vectors are; a smaller distance is nearer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Metric {
    /// Squared Euclidean distance, `sum (a-b)^2`.
    L2,
    /// Inner product, `-(a.b)`.
    Ip,
    /// `1 - a.b / (|a||b|)`; a vector of norm 0 is refused.
    Cosine,
}

impl Metric {
    /// The metric of a `VEXFS_METRIC_*` code.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown code.
    pub fn from_code(code: u8) -> Result<Self> {
        match u32::from(code) {
            raw::VEXFS_METRIC_L2 => Ok(Metric::L2),
            raw::VEXFS_METRIC_IP => Ok(Metric::Ip),
            raw::VEXFS_METRIC_COSINE => Ok(Metric::Cosine),
            _ => Err(Error::Invalid("unknown metric; it is l2, ip or cosine")),
        }
    }

    /// Its code on disk.
    pub const fn code(self) -> u8 {
        match self {
            Metric::L2 => raw::VEXFS_METRIC_L2 as u8,
            Metric::Ip => raw::VEXFS_METRIC_IP as u8,
            Metric::Cosine => raw::VEXFS_METRIC_COSINE as u8,
        }
    }

    /// Its name in JSON and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Ip => "ip",
            Metric::Cosine => "cosine",
        }
    }

    /// The metric of a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "l2" => Ok(Metric::L2),
            "ip" => Ok(Metric::Ip),
            "cosine" => Ok(Metric::Cosine),
            _ => Err(Error::Invalid("unknown metric; it is l2, ip or cosine")),
        }
    }
}

/// What all vectors of a collection have in common; fixed when the collection is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Schema {
    dim: u32,
    element: Element,
    metric: Metric,
}

impl Schema {
    /// A schema, its dimension checked.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `dim` is 1..=16384.
    pub const fn new(dim: u32, element: Element, metric: Metric) -> Result<Self> {
        if dim == 0 || dim > DIM_MAX {
            return Err(Error::Invalid("dim must be 1 to 16384"));
        }
        Ok(Schema { dim, element, metric })
    }

    /// Elements of a vector.
    pub const fn dim(&self) -> u32 {
        self.dim
    }

    /// Type of the elements.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// How distances are measured.
    pub const fn metric(&self) -> Metric {
        self.metric
    }

    /// Bytes of a vector.
    pub const fn vector_bytes(&self) -> usize {
        self.dim as usize * self.element.bytes()
    }

    /// Pages of a chunk's vectors.
    pub const fn chunk_vector_pages(&self) -> u64 {
        (CHUNK_ROWS * self.vector_bytes() as u64).div_ceil(PAGE as u64)
    }

    /// Bytes of a chunk: a page of row headers, then the pages of its vectors.
    pub const fn chunk_bytes(&self) -> u64 {
        (1 + self.chunk_vector_pages()) * PAGE as u64
    }

    /// Where a chunk begins in the rows file; `None` beyond 2^63 bytes.
    pub fn chunk_offset(&self, chunk: u64) -> Option<u64> {
        let offset = chunk.checked_mul(self.chunk_bytes())?.checked_add(PAGE as u64)?;
        (offset <= i64::MAX as u64).then_some(offset)
    }
}

/// The decoded first page of a rows file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CollectionHeader {
    /// What its vectors are.
    pub schema: Schema,
    /// Inode number of the collection's directory.
    pub dir: u64,
    /// The next row's id: rows below were given out.
    pub next_row: u64,
    /// Rows that are live.
    pub live_rows: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    element: u8,
    metric: u8,
    dim: U32,
    vector_bytes: U32,
    dir: U64,
    next_row: U64,
    live_rows: U64,
    reserved: [u8; 4056],
}

const _: () = assert!(size_of::<RawHeader>() == PAGE);
const _: () = assert!(offset_of!(RawHeader, version) == 4);
const _: () = assert!(offset_of!(RawHeader, element) == 6);
const _: () = assert!(offset_of!(RawHeader, metric) == 7);
const _: () = assert!(offset_of!(RawHeader, dim) == 8);
const _: () = assert!(offset_of!(RawHeader, vector_bytes) == 12);
const _: () = assert!(offset_of!(RawHeader, dir) == 16);
const _: () = assert!(offset_of!(RawHeader, next_row) == 24);
const _: () = assert!(offset_of!(RawHeader, live_rows) == 32);
const _: () = assert!(offset_of!(RawHeader, reserved) == 40);

impl CollectionHeader {
    /// Decodes the first page of a rows file, which stands at `page`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the field that breaks the format.
    pub fn decode(page: PageNo, bytes: &PageBytes) -> Result<Self> {
        let corrupt = |what, expected, found| Error::Corrupt(Corruption { page, what, expected, found });
        let Ok(raw) = RawHeader::ref_from_bytes(bytes) else {
            return Err(corrupt("collection header: size", PAGE as u64, bytes.len() as u64));
        };
        if raw.magic != MAGIC {
            let found = u32::from_le_bytes(raw.magic);
            return Err(corrupt(
                "collection header: magic VCOL",
                u32::from_le_bytes(MAGIC).into(),
                found.into(),
            ));
        }
        if raw.version.get() != VERSION {
            return Err(corrupt("collection header: version", VERSION.into(), raw.version.get().into()));
        }
        let element = Element::from_code(raw.element)
            .map_err(|_| corrupt("collection header: element", 3, raw.element.into()))?;
        let metric = Metric::from_code(raw.metric)
            .map_err(|_| corrupt("collection header: metric", 3, raw.metric.into()))?;
        let dim = raw.dim.get();
        let schema = Schema::new(dim, element, metric)
            .map_err(|_| corrupt("collection header: dim", DIM_MAX.into(), dim.into()))?;
        let vector_bytes = raw.vector_bytes.get();
        if vector_bytes as usize != schema.vector_bytes() {
            let expected = schema.vector_bytes() as u64;
            return Err(corrupt("collection header: bytes of a vector", expected, vector_bytes.into()));
        }
        let (next_row, live_rows) = (raw.next_row.get(), raw.live_rows.get());
        if schema.chunk_offset(next_row / CHUNK_ROWS + 1).is_none() {
            return Err(corrupt("collection header: next row id beyond the rows file", 0, next_row));
        }
        if live_rows > next_row {
            return Err(corrupt("collection header: more live rows than ids", next_row, live_rows));
        }
        if let Some(byte) = raw.reserved.iter().find(|&&byte| byte != 0) {
            return Err(corrupt("collection header: reserved bytes", 0, (*byte).into()));
        }
        Ok(CollectionHeader { schema, dir: raw.dir.get(), next_row, live_rows })
    }

    /// Encodes the whole page.
    pub fn encode(&self, out: &mut PageBytes) {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U16::new(VERSION);
        raw.element = self.schema.element.code();
        raw.metric = self.schema.metric.code();
        raw.dim = U32::new(self.schema.dim);
        raw.vector_bytes = U32::new(self.schema.vector_bytes() as u32);
        raw.dir = U64::new(self.dir);
        raw.next_row = U64::new(self.next_row);
        raw.live_rows = U64::new(self.live_rows);
        out.copy_from_slice(raw.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> CollectionHeader {
        let schema = Schema::new(384, Element::F16, Metric::Cosine).expect("in range");
        CollectionHeader { schema, dir: 77, next_row: 0x1234, live_rows: 0x1000 }
    }

    #[test]
    fn header_bytes_are_as_format_md_says() {
        let mut page = [0xff; PAGE];
        header().encode(&mut page);
        assert_eq!(&page[..16], b"VCOL\x01\0\x02\x03\x80\x01\0\0\0\x03\0\0");
        assert_eq!(&page[16..40], b"\x4d\0\0\0\0\0\0\0\x34\x12\0\0\0\0\0\0\0\x10\0\0\0\0\0\0");
        assert!(page[40..].iter().all(|&byte| byte == 0));
        assert_eq!(CollectionHeader::decode(PageNo(1), &page), Ok(header()));
    }

    #[test]
    fn zeros_and_flips_are_corruption_except_in_counters() {
        assert!(
            matches!(CollectionHeader::decode(PageNo(9), &[0; PAGE]), Err(Error::Corrupt(c)) if c.page == PageNo(9))
        );
        let mut page = [0; PAGE];
        header().encode(&mut page);
        for bit in 0..PAGE * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = CollectionHeader::decode(PageNo(1), &page) {
                // Another metric, or a plausible counter: the store's page checksum guards those.
                assert!(bit / 8 == 7 || (16..40).contains(&(bit / 8)), "byte {} is not checked", bit / 8);
                assert_ne!(changed, header());
            }
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn chunks_stand_where_format_md_says() {
        let schema = Schema::new(384, Element::F32, Metric::L2).expect("in range");
        assert_eq!(schema.chunk_bytes(), 4096 + 64 * 1536);
        assert_eq!(schema.chunk_offset(0), Some(4096));
        assert_eq!(schema.chunk_offset(2), Some(4096 + 2 * (4096 + 64 * 1536)));
        let odd = Schema::new(3, Element::I8, Metric::L2).expect("in range");
        assert_eq!(odd.chunk_bytes(), 8192, "192 bytes of vectors take a page");
        assert_eq!(odd.chunk_offset(u64::MAX), None);
    }

    #[test]
    fn dim_has_bounds() {
        assert!(Schema::new(0, Element::F32, Metric::L2).is_err());
        assert!(Schema::new(16385, Element::F32, Metric::L2).is_err());
        assert!(Schema::new(16384, Element::F32, Metric::L2).is_ok());
    }
}
