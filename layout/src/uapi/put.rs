//! The put request and its reply.
//!
//! ```text
//! vexfs_put_request (64) | rows: row_count x 32 | vectors: row_count x dim x element | file | publish_as
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::raw::{self, vexfs_put_reply, vexfs_put_request, vexfs_put_row};
use super::{
    TRUNCATED, check_message, check_name, check_relative_path, check_total, check_version, element_bytes,
    take,
};
use crate::error::{Error, Result};

const _: () = assert!(size_of::<vexfs_put_request>() == 64);
const _: () = assert!(offset_of!(vexfs_put_request, version) == 8);
const _: () = assert!(offset_of!(vexfs_put_request, flags) == 12);
const _: () = assert!(offset_of!(vexfs_put_request, total_bytes) == 16);
const _: () = assert!(offset_of!(vexfs_put_request, file_bytes) == 24);
const _: () = assert!(offset_of!(vexfs_put_request, publish_as_bytes) == 28);
const _: () = assert!(offset_of!(vexfs_put_request, row_count) == 32);
const _: () = assert!(offset_of!(vexfs_put_request, dim) == 36);
const _: () = assert!(offset_of!(vexfs_put_request, element) == 40);
const _: () = assert!(size_of::<vexfs_put_row>() == 32);
const _: () = assert!(offset_of!(vexfs_put_row, length) == 8);
const _: () = assert!(offset_of!(vexfs_put_row, tag) == 16);
const _: () = assert!(size_of::<vexfs_put_reply>() == 64);
const _: () = assert!(offset_of!(vexfs_put_reply, error) == 12);
const _: () = assert!(offset_of!(vexfs_put_reply, total_bytes) == 16);
const _: () = assert!(offset_of!(vexfs_put_reply, epoch) == 24);
const _: () = assert!(offset_of!(vexfs_put_reply, ino) == 32);
const _: () = assert!(offset_of!(vexfs_put_reply, first_row) == 40);
const _: () = assert!(offset_of!(vexfs_put_reply, count) == 48);
const _: () = assert!(offset_of!(vexfs_put_reply, message_bytes) == 52);

const FLAGS_KNOWN: u32 = raw::VEXFS_PUT_APPEND | raw::VEXFS_PUT_PUBLISH_AS;

/// A put request whose own structure is right; its parts view the caller's bytes.
#[derive(Clone, Copy, Debug)]
pub struct PutRequest<'a> {
    /// Keep the rows that the file has.
    pub append: bool,
    /// Elements of a vector.
    pub dim: u32,
    /// `VEXFS_ELEMENT_*` of the vectors.
    pub element: u8,
    /// What each row stands for.
    pub rows: &'a [vexfs_put_row],
    /// `[rows.len()][dim]` elements, row-major, little-endian.
    pub vectors: &'a [u8],
    /// The file's path, relative to the session file's directory.
    pub file: &'a [u8],
    /// The name in the file's directory to rename it to, in the same commit.
    pub publish_as: Option<&'a [u8]>,
}

impl<'a> PutRequest<'a> {
    /// Checks one whole request.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule that is broken, [`Error::NameTooLong`], [`Error::TooBig`]
    /// over the bounds of the header, [`Error::Unsupported`] for a reserved element type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (header, mut rest) = vexfs_put_request::ref_from_prefix(bytes).map_err(|_| TRUNCATED)?;
        if header.magic[..] != raw::VEXFS_PUT_MAGIC[..8] {
            return Err(Error::Invalid("not a put request: it begins with neither VEXFSPU1 nor {"));
        }
        check_version(header.version.get())?;
        check_total(header.total_bytes.get(), bytes.len())?;
        let flags = header.flags.get();
        if flags & !FLAGS_KNOWN != 0 || header.reserved0 != [0; 7] || header.reserved1 != [0; 16] {
            return Err(Error::Invalid(
                "a put request has an unknown flag or a reserved field that is not 0",
            ));
        }
        let shape = PutShape {
            append: flags & raw::VEXFS_PUT_APPEND != 0,
            row_count: header.row_count.get(),
            dim: header.dim.get(),
            element: header.element,
            file_bytes: header.file_bytes.get() as usize,
            publish_as_bytes: header.publish_as_bytes.get() as usize,
        };
        if (flags & raw::VEXFS_PUT_PUBLISH_AS != 0) != (shape.publish_as_bytes != 0) {
            return Err(Error::Invalid("publish_as must have a name if, and only if, its flag is set"));
        }
        let sizes = shape.sizes()?;
        let mut cut =
            |len| take(&mut rest, len).ok_or(Error::Invalid("a put request is shorter than its counts say"));
        let rows = cut(sizes.rows)?;
        let vectors = cut(sizes.vectors)?;
        let file = cut(shape.file_bytes)?;
        let publish_as = cut(shape.publish_as_bytes)?;
        if !rest.is_empty() {
            return Err(Error::Invalid("a put request is longer than its counts say"));
        }
        let rows = <[vexfs_put_row]>::ref_from_bytes(rows).map_err(|_| TRUNCATED)?;
        rows.iter().try_for_each(check_row)?;
        check_relative_path(file)?;
        let publish_as = match publish_as {
            b"" => None,
            name => {
                check_name(name)?;
                Some(name)
            }
        };
        let PutShape { append, dim, element, .. } = shape;
        Ok(PutRequest { append, dim, element, rows, vectors, file, publish_as })
    }
}

fn check_row(row: &vexfs_put_row) -> Result<()> {
    if row.reserved.get() != 0 {
        return Err(Error::Invalid("a row of a put has a reserved field that is not 0"));
    }
    match row.offset.get().checked_add(row.length.get()) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Error::Invalid("a row's passage ends beyond 2^63 - 1")),
    }
}

/// The counts of a put request, from which its size follows.
#[derive(Clone, Copy, Debug)]
pub struct PutShape {
    /// Keep the rows that the file has.
    pub append: bool,
    /// Rows.
    pub row_count: u32,
    /// Elements of a vector.
    pub dim: u32,
    /// `VEXFS_ELEMENT_*` of the vectors.
    pub element: u8,
    /// Bytes of the file's path.
    pub file_bytes: usize,
    /// Bytes of the name to publish as; 0: do not publish.
    pub publish_as_bytes: usize,
}

struct PartSizes {
    rows: usize,
    vectors: usize,
}

impl PutShape {
    /// The fixed structure of a request of this shape; the parts follow it as `uapi/vexfs.h` says.
    ///
    /// # Errors
    /// [`Error::TooBig`] over the bounds of the header, and as [`PutRequest::parse`].
    pub fn header(&self) -> Result<vexfs_put_request> {
        let sizes = self.sizes()?;
        let append = if self.append { raw::VEXFS_PUT_APPEND } else { 0 };
        let publish = if self.publish_as_bytes != 0 { raw::VEXFS_PUT_PUBLISH_AS } else { 0 };
        let strings = self.file_bytes + self.publish_as_bytes;
        let total = size_of::<vexfs_put_request>() + sizes.rows + sizes.vectors + strings;
        let mut header = vexfs_put_request::new_zeroed();
        header.magic.copy_from_slice(&raw::VEXFS_PUT_MAGIC[..8]);
        header.version = U32::new(raw::VEXFS_UAPI_VERSION);
        header.flags = U32::new(append | publish);
        header.total_bytes = U64::new(total as u64);
        header.file_bytes = U32::new(self.file_bytes as u32);
        header.publish_as_bytes = U32::new(self.publish_as_bytes as u32);
        header.row_count = U32::new(self.row_count);
        header.dim = U32::new(self.dim);
        header.element = self.element;
        Ok(header)
    }

    fn sizes(&self) -> Result<PartSizes> {
        if self.row_count > raw::VEXFS_PUT_ROWS_MAX {
            return Err(Error::Invalid(
                "too many rows in one put; split it (VEXFS_PUT_ROWS_MAX, with append)",
            ));
        }
        if self.dim > raw::VEXFS_DIM_MAX || (self.dim == 0 && self.row_count > 0) {
            return Err(Error::Invalid("a vector has 1 to 16384 elements"));
        }
        if self.file_bytes > raw::VEXFS_PATH_BYTES_MAX as usize
            || self.publish_as_bytes > raw::VEXFS_NAME_BYTES_MAX as usize
        {
            return Err(Error::NameTooLong);
        }
        let vector =
            if self.row_count == 0 { 0 } else { u64::from(self.dim) * element_bytes(self.element)? as u64 };
        // At most 2^16 rows of 2^16 bytes: no overflow in 64 bits.
        let vectors = u64::from(self.row_count) * vector;
        let rows = self.row_count as usize * size_of::<vexfs_put_row>();
        if vectors + rows as u64 + 64 + 4095 + 255 > u64::from(raw::VEXFS_REQUEST_BYTES_MAX) {
            return Err(Error::Invalid("a put request is larger than 64 MiB; split it (append)"));
        }
        Ok(PartSizes { rows, vectors: vectors as usize })
    }
}

/// What a put that worked says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PutAnswer {
    /// The commit that will make the rows durable.
    pub epoch: u64,
    /// The file.
    pub ino: u64,
    /// Row id of the first row (0 if none).
    pub first_row: u64,
    /// Rows put.
    pub count: u32,
}

/// The reply to a put, checked; made by a server, read by a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PutReply<'a> {
    /// The answer, or a positive errno.
    pub answer: core::result::Result<PutAnswer, i32>,
    /// A sentence for people when it failed.
    pub message: &'a str,
}

impl<'a> PutReply<'a> {
    /// Checks one whole reply.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule that is broken.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (header, rest) = vexfs_put_reply::ref_from_prefix(bytes).map_err(|_| TRUNCATED)?;
        if header.magic[..] != raw::VEXFS_PUT_REPLY_MAGIC[..8] {
            return Err(Error::Invalid("not the reply to a put: wrong magic"));
        }
        check_version(header.version.get())?;
        check_total(header.total_bytes.get(), bytes.len())?;
        if rest.len() != header.message_bytes.get() as usize {
            return Err(Error::Invalid("the reply's message has not the length it says"));
        }
        check_message(rest.len())?;
        let message =
            core::str::from_utf8(rest).map_err(|_| Error::Invalid("the reply's message is not UTF-8"))?;
        let answer = match i32::try_from(header.error.get()) {
            Ok(0) => Ok(PutAnswer {
                epoch: header.epoch.get(),
                ino: header.ino.get(),
                first_row: header.first_row.get(),
                count: header.count.get(),
            }),
            Ok(errno) => Err(errno),
            Err(_) => return Err(Error::Invalid("the reply's errno is out of range")),
        };
        Ok(PutReply { answer, message })
    }

    /// The fixed structure of the reply; the message follows it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the message is over `VEXFS_MESSAGE_BYTES_MAX`.
    pub fn header(&self) -> Result<vexfs_put_reply> {
        let message_bytes = check_message(self.message.len())?;
        let (errno, answer) = match self.answer {
            Ok(answer) => (0, answer),
            Err(errno) => (errno.unsigned_abs(), PutAnswer { epoch: 0, ino: 0, first_row: 0, count: 0 }),
        };
        let mut magic = [0; 8];
        magic.copy_from_slice(&raw::VEXFS_PUT_REPLY_MAGIC[..8]);
        Ok(vexfs_put_reply {
            magic,
            version: U32::new(raw::VEXFS_UAPI_VERSION),
            error: U32::new(errno),
            total_bytes: U64::new(64 + u64::from(message_bytes)),
            epoch: U64::new(answer.epoch),
            ino: U64::new(answer.ino),
            first_row: U64::new(answer.first_row),
            count: U32::new(answer.count),
            message_bytes: U32::new(message_bytes),
            reserved: U64::ZERO,
        })
    }
}

/// Writes a whole put request into `out` and gives its length.
///
/// # Errors
/// [`Error::Range`] if it does not fit, and as [`PutShape::header`].
pub fn encode_put(request: &PutRequest<'_>, out: &mut [u8]) -> Result<usize> {
    let publish_as = request.publish_as.unwrap_or_default();
    let row_count = u32::try_from(request.rows.len()).unwrap_or(u32::MAX);
    let shape = PutShape {
        append: request.append,
        row_count,
        dim: request.dim,
        element: request.element,
        file_bytes: request.file.len(),
        publish_as_bytes: publish_as.len(),
    };
    let header = shape.header()?;
    if shape.sizes()?.vectors != request.vectors.len() {
        return Err(Error::Invalid("the vectors of a put have not rows x dim elements"));
    }
    let parts = [header.as_bytes(), request.rows.as_bytes(), request.vectors, request.file, publish_as];
    super::concat(&parts, out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(count: u64) -> [vexfs_put_row; 3] {
        core::array::from_fn(|i| vexfs_put_row {
            offset: U64::new(i as u64 * count),
            length: U64::new(count),
            tag: U64::new(1 << i),
            reserved: U64::ZERO,
        })
    }

    fn encoded() -> ([u8; 512], usize) {
        let rows = rows(100);
        let request = PutRequest {
            append: true,
            dim: 2,
            element: 1,
            rows: &rows,
            vectors: &[7; 24],
            file: b"notes/a.txt.part",
            publish_as: Some(b"a.txt"),
        };
        let mut out = [0; 512];
        let len = encode_put(&request, &mut out).expect("encodes");
        (out, len)
    }

    #[test]
    fn request_bytes_are_as_the_header_says() {
        let (out, len) = encoded();
        assert_eq!(len, 64 + 3 * 32 + 24 + 16 + 5);
        assert_eq!(&out[..16], b"VEXFSPU1\x01\0\0\0\x03\0\0\0");
        assert_eq!(out[16..24], (len as u64).to_le_bytes());
        assert_eq!(&out[24..41], b"\x10\0\0\0\x05\0\0\0\x03\0\0\0\x02\0\0\0\x01");
        assert_eq!(out[64 + 32..64 + 40], 100u64.to_le_bytes(), "second row's offset");
        assert_eq!(&out[len - 21..len], b"notes/a.txt.parta.txt");
    }

    #[test]
    fn request_comes_back_from_its_bytes() {
        let (out, len) = encoded();
        let request = PutRequest::parse(&out[..len]).expect("parses");
        assert!(request.append);
        assert_eq!((request.dim, request.element, request.rows.len()), (2, 1, 3));
        assert_eq!(request.rows[2].tag.get(), 4);
        assert_eq!(request.vectors, [7; 24]);
        assert_eq!(request.file, b"notes/a.txt.part");
        assert_eq!(request.publish_as, Some(&b"a.txt"[..]));
    }

    #[test]
    fn any_cut_or_longer_request_is_refused() {
        let (out, len) = encoded();
        for cut in (0..len).chain(len + 1..out.len()) {
            assert!(PutRequest::parse(&out[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn any_flipped_bit_of_the_fixed_part_is_refused_or_changes_a_value_only() {
        // The tail of the passages and the payload are the user's; the structure itself is guarded.
        let (mut out, len) = encoded();
        for bit in 0..64 * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            if let Ok(request) = PutRequest::parse(&out[..len]) {
                assert!(bit / 8 == 12 || bit / 8 == 40, "byte {} is not checked: {request:?}", bit / 8);
            }
            out[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn bounds_are_refused_before_any_allocation() {
        let shape = PutShape {
            append: false,
            row_count: 65536,
            dim: 16384,
            element: 1,
            file_bytes: 1,
            publish_as_bytes: 0,
        };
        assert!(matches!(shape.header(), Err(Error::Invalid(_))), "4 GiB of vectors");
        assert!(PutShape { row_count: 65537, dim: 1, ..shape }.header().is_err());
        assert!(PutShape { dim: 0, ..shape }.header().is_err());
        assert!(PutShape { dim: 16385, row_count: 1, ..shape }.header().is_err());
        assert_eq!(PutShape { element: 4, row_count: 1, ..shape }.header().err(), Some(Error::Unsupported));
        assert!(PutShape { element: 0, row_count: 1, ..shape }.header().is_err());
        assert!(PutShape { file_bytes: 4096, row_count: 1, ..shape }.header().is_err());
        assert!(
            PutShape { row_count: 0, dim: 0, element: 0, ..shape }.header().is_ok(),
            "takes the rows away"
        );
    }

    #[test]
    fn replies_come_back() {
        let answer = PutAnswer { epoch: 9, ino: 77, first_row: 640, count: 3 };
        for reply in [
            PutReply { answer: Ok(answer), message: "" },
            PutReply { answer: Err(22), message: "the vector has 3 elements, the collection 384" },
        ] {
            let mut out = [0; 256];
            let header = reply.header().expect("short message");
            let len =
                crate::uapi::concat(&[header.as_bytes(), reply.message.as_bytes()], &mut out).expect("fits");
            assert_eq!(PutReply::parse(&out[..len]), Ok(reply));
            assert!(PutReply::parse(&out[..len - 1]).is_err());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), shaped: bool) {
            if shaped && bytes.len() >= 64 {
                bytes[..8].copy_from_slice(b"VEXFSPU1");
                bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
                let total = (bytes.len() as u64).to_le_bytes();
                bytes[16..24].copy_from_slice(&total);
                bytes[41..64].fill(0);
                for at in [25, 26, 27, 29, 30, 31, 33, 34, 35, 37, 38, 39] {
                    bytes[at] = 0;
                }
            }
            let _ = PutRequest::parse(&bytes);
            let _ = PutReply::parse(&bytes);
        }
    }
}
