//! The search request and its reply.
//!
//! ```text
//! vexfs_search_request (64) | query: dim x element | subdir
//! vexfs_search_reply (64)   | results: count x 64  | strings: paths, message
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::raw::{self, vexfs_search_reply, vexfs_search_request, vexfs_search_result};
use super::{TRUNCATED, check_message, check_relative_path, check_total, check_version, element_bytes, take};
use crate::error::{Error, Result};

const _: () = assert!(size_of::<vexfs_search_request>() == 64);
const _: () = assert!(offset_of!(vexfs_search_request, version) == 8);
const _: () = assert!(offset_of!(vexfs_search_request, flags) == 12);
const _: () = assert!(offset_of!(vexfs_search_request, total_bytes) == 16);
const _: () = assert!(offset_of!(vexfs_search_request, tags_any) == 24);
const _: () = assert!(offset_of!(vexfs_search_request, k) == 32);
const _: () = assert!(offset_of!(vexfs_search_request, dim) == 36);
const _: () = assert!(offset_of!(vexfs_search_request, subdir_bytes) == 40);
const _: () = assert!(offset_of!(vexfs_search_request, effort) == 44);
const _: () = assert!(offset_of!(vexfs_search_request, element) == 48);
const _: () = assert!(size_of::<vexfs_search_reply>() == 64);
const _: () = assert!(offset_of!(vexfs_search_reply, error) == 12);
const _: () = assert!(offset_of!(vexfs_search_reply, total_bytes) == 16);
const _: () = assert!(offset_of!(vexfs_search_reply, epoch) == 24);
const _: () = assert!(offset_of!(vexfs_search_reply, rows_scanned) == 32);
const _: () = assert!(offset_of!(vexfs_search_reply, count) == 40);
const _: () = assert!(offset_of!(vexfs_search_reply, strings_bytes) == 44);
const _: () = assert!(offset_of!(vexfs_search_reply, message_offset) == 48);
const _: () = assert!(offset_of!(vexfs_search_reply, message_bytes) == 52);
const _: () = assert!(size_of::<vexfs_search_result>() == 64);
const _: () = assert!(offset_of!(vexfs_search_result, row) == 8);
const _: () = assert!(offset_of!(vexfs_search_result, ino) == 16);
const _: () = assert!(offset_of!(vexfs_search_result, offset) == 24);
const _: () = assert!(offset_of!(vexfs_search_result, length) == 32);
const _: () = assert!(offset_of!(vexfs_search_result, tag) == 40);
const _: () = assert!(offset_of!(vexfs_search_result, path_offset) == 48);
const _: () = assert!(offset_of!(vexfs_search_result, path_bytes) == 52);
const _: () = assert!(offset_of!(vexfs_search_result, flags) == 56);
const _: () = assert!(offset_of!(vexfs_search_result, generation) == 60);

/// A search request whose own structure is right; its parts view the caller's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SearchRequest<'a> {
    /// Leave out rows whose file changed since their put.
    pub fresh_only: bool,
    /// Only rows with one of these tag bits; 0: all.
    pub tags_any: u64,
    /// Results wanted, 1..=10_000.
    pub k: u32,
    /// Elements of the query.
    pub dim: u32,
    /// `VEXFS_ELEMENT_*` of the query.
    pub element: u8,
    /// `[dim]` elements, little-endian.
    pub query: &'a [u8],
    /// Directory that the files must lie below, relative to the session file's directory; empty: that directory.
    pub subdir: &'a [u8],
}

impl<'a> SearchRequest<'a> {
    /// Checks one whole request.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule that is broken, [`Error::NameTooLong`], [`Error::Unsupported`]
    /// for a reserved element type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (header, mut rest) = vexfs_search_request::ref_from_prefix(bytes).map_err(|_| TRUNCATED)?;
        if header.magic[..] != raw::VEXFS_SEARCH_MAGIC[..8] {
            return Err(Error::Invalid("not a search request: it begins with neither VEXFSSE1 nor {"));
        }
        check_version(header.version.get())?;
        check_total(header.total_bytes.get(), bytes.len())?;
        let flags = header.flags.get();
        if flags & !raw::VEXFS_SEARCH_FRESH_ONLY != 0
            || header.effort.get() != 0
            || header.reserved != [0; 15]
        {
            return Err(Error::Invalid(
                "a search request has an unknown flag or a reserved field that is not 0",
            ));
        }
        let (k, dim, element) = (header.k.get(), header.dim.get(), header.element);
        let query_bytes = check_query(k, dim, element)?;
        let query = take(&mut rest, query_bytes)
            .ok_or(Error::Invalid("a search request is shorter than its counts say"))?;
        let subdir = rest;
        if subdir.len() != header.subdir_bytes.get() as usize {
            return Err(Error::Invalid("a search request has not the length that its counts say"));
        }
        if !subdir.is_empty() {
            check_relative_path(subdir)?;
        }
        Ok(SearchRequest {
            fresh_only: flags & raw::VEXFS_SEARCH_FRESH_ONLY != 0,
            tags_any: header.tags_any.get(),
            k,
            dim,
            element,
            query,
            subdir,
        })
    }

    /// Writes the whole request into `out` and gives its length.
    ///
    /// # Errors
    /// [`Error::Range`] if it does not fit, and as [`SearchRequest::parse`].
    pub fn encode(&self, out: &mut [u8]) -> Result<usize> {
        if check_query(self.k, self.dim, self.element)? != self.query.len() {
            return Err(Error::Invalid("the query has not dim elements"));
        }
        if !self.subdir.is_empty() {
            check_relative_path(self.subdir)?;
        }
        let total = size_of::<vexfs_search_request>() + self.query.len() + self.subdir.len();
        let mut header = vexfs_search_request::new_zeroed();
        header.magic.copy_from_slice(&raw::VEXFS_SEARCH_MAGIC[..8]);
        header.version = U32::new(raw::VEXFS_UAPI_VERSION);
        header.flags = U32::new(if self.fresh_only { raw::VEXFS_SEARCH_FRESH_ONLY } else { 0 });
        header.total_bytes = U64::new(total as u64);
        header.tags_any = U64::new(self.tags_any);
        header.k = U32::new(self.k);
        header.dim = U32::new(self.dim);
        header.subdir_bytes = U32::new(self.subdir.len() as u32);
        header.element = self.element;
        super::concat(&[header.as_bytes(), self.query, self.subdir], out)
    }
}

/// The bytes of a query, its bounds checked.
fn check_query(k: u32, dim: u32, element: u8) -> Result<usize> {
    if k == 0 || k > raw::VEXFS_K_MAX {
        return Err(Error::Invalid("k must be 1 to 10000"));
    }
    if dim == 0 || dim > raw::VEXFS_DIM_MAX {
        return Err(Error::Invalid("a vector has 1 to 16384 elements"));
    }
    Ok(dim as usize * element_bytes(element)?)
}

/// The fixed structure of a reply with `count` results and `strings_bytes` bytes of strings.
///
/// The strings are the paths, and at `message_offset` a message of `message_bytes` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SearchReplyShape {
    /// 0, or a positive errno.
    pub errno: i32,
    /// The epoch whose state is shown.
    pub epoch: u64,
    /// Rows whose distance was computed.
    pub rows_scanned: u64,
    /// Results.
    pub count: u32,
    /// Bytes of all strings.
    pub strings_bytes: u32,
    /// Where the message begins in the strings.
    pub message_offset: u32,
    /// Bytes of the message.
    pub message_bytes: u32,
}

impl SearchReplyShape {
    /// The structure's bytes.
    pub fn header(&self) -> vexfs_search_reply {
        let mut magic = [0; 8];
        magic.copy_from_slice(&raw::VEXFS_SEARCH_REPLY_MAGIC[..8]);
        let results = u64::from(self.count) * size_of::<vexfs_search_result>() as u64;
        let total = size_of::<vexfs_search_reply>() as u64 + results + u64::from(self.strings_bytes);
        vexfs_search_reply {
            magic,
            version: U32::new(raw::VEXFS_UAPI_VERSION),
            error: U32::new(self.errno.unsigned_abs()),
            total_bytes: U64::new(total),
            epoch: U64::new(self.epoch),
            rows_scanned: U64::new(self.rows_scanned),
            count: U32::new(self.count),
            strings_bytes: U32::new(self.strings_bytes),
            message_offset: U32::new(self.message_offset),
            message_bytes: U32::new(self.message_bytes),
            reserved: U64::ZERO,
        }
    }
}

/// The reply to a search, checked: every path and the message lie inside it.
#[derive(Clone, Copy, Debug)]
pub struct SearchReply<'a> {
    /// 0, or a positive errno.
    pub errno: i32,
    /// A sentence for people when it failed.
    pub message: &'a str,
    /// The epoch whose state is shown.
    pub epoch: u64,
    /// Rows whose distance was computed.
    pub rows_scanned: u64,
    results: &'a [vexfs_search_result],
    strings: &'a [u8],
}

/// One row found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SearchHit<'a> {
    /// The distance; smaller is nearer.
    pub distance: f64,
    /// The row's id in the collection.
    pub row: u64,
    /// The file's inode number.
    pub ino: u64,
    /// The file's inode generation.
    pub generation: u32,
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// The row's tag.
    pub tag: u64,
    /// The file changed after the row was put.
    pub stale: bool,
    /// The file's path, relative to the session file's directory.
    pub path: &'a [u8],
}

impl<'a> SearchReply<'a> {
    /// Checks one whole reply.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the rule that is broken.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        const BAD: Error = Error::Invalid("the reply's counts and its length disagree");
        let (header, mut rest) = vexfs_search_reply::ref_from_prefix(bytes).map_err(|_| TRUNCATED)?;
        if header.magic[..] != raw::VEXFS_SEARCH_REPLY_MAGIC[..8] {
            return Err(Error::Invalid("not the reply to a search: wrong magic"));
        }
        check_version(header.version.get())?;
        check_total(header.total_bytes.get(), bytes.len())?;
        let count = header.count.get() as usize;
        if count > raw::VEXFS_K_MAX as usize {
            return Err(BAD);
        }
        let results = take(&mut rest, count * size_of::<vexfs_search_result>()).ok_or(BAD)?;
        let results = <[vexfs_search_result]>::ref_from_bytes(results).map_err(|_| BAD)?;
        let strings = rest;
        if strings.len() != header.strings_bytes.get() as usize {
            return Err(BAD);
        }
        check_message(header.message_bytes.get() as usize)?;
        let message = part(strings, header.message_offset.get(), header.message_bytes.get()).ok_or(BAD)?;
        let message =
            core::str::from_utf8(message).map_err(|_| Error::Invalid("the reply's message is not UTF-8"))?;
        if results.iter().any(|r| part(strings, r.path_offset.get(), r.path_bytes.get()).is_none()) {
            return Err(Error::Invalid("a path of the reply lies outside its strings"));
        }
        let errno = i32::try_from(header.error.get())
            .map_err(|_| Error::Invalid("the reply's errno is out of range"))?;
        Ok(SearchReply {
            errno,
            message,
            epoch: header.epoch.get(),
            rows_scanned: header.rows_scanned.get(),
            results,
            strings,
        })
    }

    /// The rows found, nearest first.
    pub fn hits(&self) -> impl ExactSizeIterator<Item = SearchHit<'a>> + use<'a> {
        let strings = self.strings;
        self.results.iter().map(move |r| SearchHit {
            distance: f64::from_bits(r.distance_bits.get()),
            row: r.row.get(),
            ino: r.ino.get(),
            generation: r.generation.get(),
            offset: r.offset.get(),
            length: r.length.get(),
            tag: r.tag.get(),
            stale: r.flags.get() & raw::VEXFS_RESULT_STALE != 0,
            path: part(strings, r.path_offset.get(), r.path_bytes.get()).unwrap_or_default(),
        })
    }
}

impl SearchHit<'_> {
    /// The structure of this result in a reply, its path at `path_offset` of the strings.
    pub fn result(&self, path_offset: u32) -> vexfs_search_result {
        vexfs_search_result {
            distance_bits: U64::new(self.distance.to_bits()),
            row: U64::new(self.row),
            ino: U64::new(self.ino),
            offset: U64::new(self.offset),
            length: U64::new(self.length),
            tag: U64::new(self.tag),
            path_offset: U32::new(path_offset),
            path_bytes: U32::new(self.path.len() as u32),
            flags: U32::new(if self.stale { raw::VEXFS_RESULT_STALE } else { 0 }),
            generation: U32::new(self.generation),
        }
    }
}

fn part(strings: &[u8], offset: u32, len: u32) -> Option<&[u8]> {
    let begin = offset as usize;
    strings.get(begin..begin.checked_add(len as usize)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: SearchRequest<'static> = SearchRequest {
        fresh_only: true,
        tags_any: 0x8001,
        k: 10,
        dim: 3,
        element: 1,
        query: b"\0\0\x80\x3f\0\0\0\0\0\0\x80\xbf",
        subdir: b"a/b",
    };

    fn encoded() -> ([u8; 128], usize) {
        let mut out = [0; 128];
        let len = REQUEST.encode(&mut out).expect("encodes");
        (out, len)
    }

    #[test]
    fn request_bytes_are_as_the_header_says() {
        let (out, len) = encoded();
        assert_eq!(len, 64 + 12 + 3);
        assert_eq!(&out[..16], b"VEXFSSE1\x01\0\0\0\x01\0\0\0");
        assert_eq!(&out[16..32], b"\x4f\0\0\0\0\0\0\0\x01\x80\0\0\0\0\0\0");
        assert_eq!(&out[32..50], b"\x0a\0\0\0\x03\0\0\0\x03\0\0\0\0\0\0\0\x01\0");
        assert_eq!(SearchRequest::parse(&out[..len]), Ok(REQUEST));
    }

    #[test]
    fn any_cut_or_longer_request_is_refused() {
        let (out, len) = encoded();
        for cut in (0..len).chain(len + 1..out.len()) {
            assert!(SearchRequest::parse(&out[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn any_flipped_bit_of_the_fixed_part_is_refused_or_changes_a_value_only() {
        let (mut out, len) = encoded();
        for bit in 0..64 * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            if SearchRequest::parse(&out[..len]).is_ok() {
                let byte = bit / 8;
                assert!(byte == 12 || (24..34).contains(&byte), "byte {byte} is not checked");
            }
            out[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn k_dim_and_element_have_bounds() {
        let mut out = [0; 256];
        for bad in [
            SearchRequest { k: 0, ..REQUEST },
            SearchRequest { k: 10_001, ..REQUEST },
            SearchRequest { dim: 0, query: b"", ..REQUEST },
            SearchRequest { dim: 16_385, ..REQUEST },
            SearchRequest { dim: 4, ..REQUEST },
            SearchRequest { element: 0, ..REQUEST },
            SearchRequest { element: 4, ..REQUEST },
            SearchRequest { subdir: b"/a", ..REQUEST },
            SearchRequest { subdir: b"../a", ..REQUEST },
        ] {
            assert!(bad.encode(&mut out).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reply_comes_back_and_its_paths_stay_inside() {
        let hit = SearchHit {
            distance: 0.25,
            row: 65,
            ino: 12,
            generation: 3,
            offset: 100,
            length: 50,
            tag: 9,
            stale: true,
            path: b"x/y.txt",
        };
        let shape = SearchReplyShape {
            errno: 0,
            epoch: 4,
            rows_scanned: 128,
            count: 1,
            strings_bytes: 7,
            message_offset: 7,
            message_bytes: 0,
        };
        let mut out = [0; 256];
        let result = hit.result(0);
        let len = crate::uapi::concat(&[shape.header().as_bytes(), result.as_bytes(), hit.path], &mut out)
            .expect("fits");
        assert_eq!(len, 64 + 64 + 7);
        let reply = SearchReply::parse(&out[..len]).expect("parses");
        assert_eq!((reply.errno, reply.epoch, reply.rows_scanned, reply.message), (0, 4, 128, ""));
        assert_eq!(reply.hits().len(), 1);
        assert_eq!(reply.hits().next(), Some(hit));

        out[64 + 48] = 1;
        assert!(SearchReply::parse(&out[..len]).is_err(), "a path that ends outside the strings");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), shaped: u8) {
            if bytes.len() >= 64 && shaped % 3 != 0 {
                bytes[..8].copy_from_slice(if shaped % 3 == 1 { b"VEXFSSE1" } else { b"VEXFSSR1" });
                bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
                let total = (bytes.len() as u64).to_le_bytes();
                bytes[16..24].copy_from_slice(&total);
                for at in [33, 34, 35, 37, 38, 39, 41, 42, 43, 45, 46, 47] {
                    bytes[at] = 0;
                }
                bytes[49..64].fill(0);
            }
            let _ = SearchRequest::parse(&bytes);
            if let Ok(reply) = SearchReply::parse(&bytes) {
                for hit in reply.hits() {
                    prop_assert!(hit.path.len() <= bytes.len());
                }
            }
        }
    }
}
