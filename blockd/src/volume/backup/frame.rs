//! Frames of a backup stream, to bytes and back (FORMAT.md section 4.8).
//!
//! ```text
//! frame: | magic 4 | kind 4 | number 8 | payload bytes 4 | crc32c 4 | payload |
//! ```
//! The crc covers the frame's head, with the crc itself as zero, and the payload. Frames are numbered from 0, so one that is
//! left out, repeated or put elsewhere is noticed. The first is the header, the last the trailer.

use std::io::{self, Read, Write};

use layout::addr::PAGE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::BackupError;
use crate::device::VolumeKind;
use crate::store::format::is_raw_size;
use crate::store::snapshot::check_name;

/// First bytes of a frame.
const MAGIC: [u8; 4] = *b"VXBF";
/// First bytes of the header's payload.
const STREAM_MAGIC: [u8; 8] = *b"VEXFSBAK";
/// Version of streams this code writes and reads.
const VERSION: u32 = 1;
/// Pages of a data frame, at most.
pub const DATA_PAGES_MAX: usize = 256;
/// Ranges of a frame of holes, at most.
pub const HOLES_MAX: usize = 4096;
/// Bytes of a payload, at most.
const PAYLOAD_MAX: usize = DATA_HEAD + DATA_PAGES_MAX * PAGE;
/// Bytes before the pages of a data frame.
const DATA_HEAD: usize = 16;

const KIND_HEADER: u32 = 1;
const KIND_DATA: u32 = 2;
const KIND_HOLES: u32 = 3;
const KIND_TRAILER: u32 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DiskHead {
    magic: [u8; 4],
    kind: U32,
    number: U64,
    payload_bytes: U32,
    crc: U32,
}

const _: () = assert!(size_of::<DiskHead>() == 24);
const _: () = assert!(std::mem::offset_of!(DiskHead, crc) == 20);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DiskHeader {
    magic: [u8; 8],
    version: U32,
    volume_kind: U32,
    uuid: [u8; 16],
    raw_bytes: U64,
    image_bytes: U64,
    pages_max: U64,
    from_time_ns: U64,
    time_ns: U64,
    from_name_bytes: U32,
    name_bytes: U32,
}

const _: () = assert!(size_of::<DiskHeader>() == 80);
const _: () = assert!(std::mem::offset_of!(DiskHeader, raw_bytes) == 32);
const _: () = assert!(std::mem::offset_of!(DiskHeader, name_bytes) == 76);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DiskTrailer {
    data_pages: U64,
    hole_ranges: U64,
}

/// A snapshot as streams name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its name.
    pub name: String,
    /// When it was taken: nanoseconds since 1970. With the name it says which one it is.
    pub time_ns: u64,
}

/// What a stream says of itself first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Kind of volume.
    pub kind: VolumeKind,
    /// The volume's uuid; a volume that receives the stream has the same.
    pub uuid: [u8; 16],
    /// Size of a raw volume, 0 for VexFS.
    pub raw_bytes: u64,
    /// Size of the image the stream was made from: one as large can receive it.
    pub image_bytes: u64,
    /// Pages of data in the stream, at most.
    pub pages_max: u64,
    /// The state that the stream continues; `None`: it has all of the volume.
    pub from: Option<Point>,
    /// The state that it leads to.
    pub to: Point,
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// The first.
    Header(Header),
    /// Whole pages from a device page on.
    Data {
        /// The first of them.
        first: u64,
        /// Their bytes.
        bytes: Vec<u8>,
    },
    /// Ranges that are not mapped any more: first device page, count.
    Holes(Vec<(u64, u64)>),
    /// The last: what came before it.
    Trailer {
        /// Pages of data.
        data_pages: u64,
        /// Ranges of holes.
        hole_ranges: u64,
    },
}

/// Numbers frames and writes them.
pub struct FrameWriter<W> {
    out: W,
    number: u64,
    data_pages: u64,
    hole_ranges: u64,
}

impl<W: Write> FrameWriter<W> {
    /// To `out`, which should be buffered by nobody: frames are large.
    pub fn new(out: W) -> Self {
        FrameWriter { out, number: 0, data_pages: 0, hole_ranges: 0 }
    }

    fn write(&mut self, kind: u32, parts: [&[u8]; 2]) -> io::Result<()> {
        let payload_bytes = parts.iter().map(|p| p.len()).sum::<usize>() as u32;
        let mut head = DiskHead {
            magic: MAGIC,
            kind: kind.into(),
            number: self.number.into(),
            payload_bytes: payload_bytes.into(),
            crc: 0.into(),
        };
        let crc = parts.iter().fold(crc32c::crc32c(head.as_bytes()), |crc, p| crc32c::crc32c_append(crc, p));
        head.crc = crc.into();
        self.number += 1;
        self.out.write_all(head.as_bytes())?;
        parts.iter().try_for_each(|p| self.out.write_all(p))
    }

    /// The first frame.
    ///
    /// # Errors
    /// What writing gives.
    pub fn header(&mut self, header: &Header) -> io::Result<()> {
        let from = header.from.as_ref();
        let from_name = from.map_or("", |p| &p.name);
        let disk = DiskHeader {
            magic: STREAM_MAGIC,
            version: VERSION.into(),
            volume_kind: kind_code(header.kind).into(),
            uuid: header.uuid,
            raw_bytes: header.raw_bytes.into(),
            image_bytes: header.image_bytes.into(),
            pages_max: header.pages_max.into(),
            from_time_ns: from.map_or(0, |p| p.time_ns).into(),
            time_ns: header.to.time_ns.into(),
            from_name_bytes: (from_name.len() as u32).into(),
            name_bytes: (header.to.name.len() as u32).into(),
        };
        let names = [from_name.as_bytes(), header.to.name.as_bytes()].concat();
        self.write(KIND_HEADER, [disk.as_bytes(), &names])
    }

    /// Whole pages, at most [`DATA_PAGES_MAX`].
    ///
    /// # Errors
    /// What writing gives.
    pub fn data(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = (bytes.len() / PAGE) as u64;
        let mut head = [0; DATA_HEAD];
        head[..8].copy_from_slice(&first.to_le_bytes());
        head[8..].copy_from_slice(&pages.to_le_bytes());
        self.data_pages += pages;
        self.write(KIND_DATA, [&head, bytes])
    }

    /// Ranges, at most [`HOLES_MAX`].
    ///
    /// # Errors
    /// What writing gives.
    pub fn holes(&mut self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()])
            .flatten()
            .collect();
        self.hole_ranges += ranges.len() as u64;
        self.write(KIND_HOLES, [&bytes, &[]])
    }

    /// The last frame.
    ///
    /// # Errors
    /// What writing gives.
    pub fn trailer(mut self) -> io::Result<()> {
        let trailer =
            DiskTrailer { data_pages: self.data_pages.into(), hole_ranges: self.hole_ranges.into() };
        self.write(KIND_TRAILER, [trailer.as_bytes(), &[]])?;
        self.out.flush()
    }
}

/// Reads frames and checks them.
pub struct FrameReader<R> {
    input: R,
    number: u64,
    data_pages: u64,
    hole_ranges: u64,
    ended: bool,
}

fn bad<T>(why: impl Into<String>) -> Result<T, BackupError> {
    Err(BackupError::Stream(why.into()))
}

impl<R: Read> FrameReader<R> {
    /// From `input`.
    pub fn new(input: R) -> Self {
        FrameReader { input, number: 0, data_pages: 0, hole_ranges: 0, ended: false }
    }

    /// The header; call it first.
    ///
    /// # Errors
    /// [`BackupError::Stream`] with what is wrong; `Pipe`.
    pub fn header(&mut self) -> Result<Header, BackupError> {
        match self.frame()? {
            Some(Frame::Header(header)) => Ok(header),
            _ => bad("it does not begin with a header"),
        }
    }

    /// The next frame; `None` after the trailer.
    ///
    /// # Errors
    /// [`BackupError::Stream`] with what is wrong; `Pipe`.
    pub fn frame(&mut self) -> Result<Option<Frame>, BackupError> {
        if self.ended {
            return self.end();
        }
        let mut head = [0; size_of::<DiskHead>()];
        self.fill(&mut head)?;
        let Ok(head) = DiskHead::read_from_bytes(&head) else { return bad("a frame's head is too short") };
        let number = self.number;
        if head.magic != MAGIC {
            return match number {
                0 => bad("it is not one that vexctl send made"),
                _ => bad(format!("there is no frame where number {number} should begin")),
            };
        }
        let len = head.payload_bytes.get() as usize;
        if len > PAYLOAD_MAX {
            return bad(format!("frame {number} claims {len} bytes; {PAYLOAD_MAX} are allowed"));
        }
        let mut payload = vec![0; len];
        self.fill(&mut payload)?;
        let found = head.crc.get();
        let zeroed = DiskHead { crc: 0.into(), ..head };
        let crc = crc32c::crc32c_append(crc32c::crc32c(zeroed.as_bytes()), &payload);
        if crc != found {
            return bad(format!("crc32c of frame {number}: expected {crc:#010x}, found {found:#010x}"));
        }
        if zeroed.number.get() != number {
            return bad(format!("frame {} stands where number {number} should", zeroed.number.get()));
        }
        let frame = self.decode(zeroed.kind.get(), payload)?;
        self.number += 1;
        Ok(Some(frame))
    }

    fn decode(&mut self, kind: u32, mut payload: Vec<u8>) -> Result<Frame, BackupError> {
        let number = self.number;
        let malformed = || bad(format!("frame {number} is malformed"));
        match kind {
            KIND_HEADER if number == 0 => decode_header(&payload).map(Frame::Header),
            KIND_HEADER => bad("it has a second header"),
            KIND_DATA => {
                let Some((head, pages)) = payload.split_at_checked(DATA_HEAD) else { return malformed() };
                let (first, count) = (u64_at(head, 0), u64_at(head, 8));
                if pages.is_empty()
                    || !pages.len().is_multiple_of(PAGE)
                    || count != (pages.len() / PAGE) as u64
                {
                    return malformed();
                }
                self.data_pages += count;
                payload.drain(..DATA_HEAD);
                Ok(Frame::Data { first, bytes: payload })
            }
            KIND_HOLES => {
                if payload.is_empty() || !payload.len().is_multiple_of(16) || payload.len() > 16 * HOLES_MAX {
                    return malformed();
                }
                let ranges: Vec<(u64, u64)> =
                    payload.chunks_exact(16).map(|range| (u64_at(range, 0), u64_at(range, 8))).collect();
                self.hole_ranges += ranges.len() as u64;
                Ok(Frame::Holes(ranges))
            }
            KIND_TRAILER => {
                let Ok(trailer) = DiskTrailer::read_from_bytes(&payload) else { return malformed() };
                let (data_pages, hole_ranges) = (trailer.data_pages.get(), trailer.hole_ranges.get());
                if (data_pages, hole_ranges) != (self.data_pages, self.hole_ranges) {
                    return bad("its trailer does not count what came before it");
                }
                self.ended = true;
                Ok(Frame::Trailer { data_pages, hole_ranges })
            }
            other => bad(format!("frame {number} is of an unknown kind, {other}")),
        }
    }

    /// Nothing may follow the trailer.
    fn end(&mut self) -> Result<Option<Frame>, BackupError> {
        let mut byte = [0];
        match self.input.read(&mut byte) {
            Ok(0) => Ok(None),
            Ok(_) => bad("something follows its trailer"),
            Err(source) => Err(BackupError::Pipe { action: "reading", source }),
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), BackupError> {
        let number = self.number;
        self.input.read_exact(buf).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                BackupError::Stream(format!("it ends within frame {number}, before its trailer"))
            }
            _ => BackupError::Pipe { action: "reading", source },
        })
    }
}

fn decode_header(payload: &[u8]) -> Result<Header, BackupError> {
    let Ok((disk, names)) = DiskHeader::read_from_prefix(payload) else {
        return bad("its header is too short");
    };
    if disk.magic != STREAM_MAGIC {
        return bad("its header has the wrong magic");
    }
    if disk.version.get() != VERSION {
        return bad(format!(
            "it is of version {}, and this program reads version {VERSION}",
            disk.version.get()
        ));
    }
    let kind = match disk.volume_kind.get() {
        1 => VolumeKind::VexFs,
        2 => VolumeKind::Raw,
        other => return bad(format!("its volume is of an unknown kind, {other}")),
    };
    let raw_bytes = disk.raw_bytes.get();
    if (kind == VolumeKind::Raw) != is_raw_size(raw_bytes) {
        return bad(format!("its volume has an impossible size, {raw_bytes} bytes"));
    }
    let from_bytes = disk.from_name_bytes.get() as usize;
    let Some((from, to)) = names.split_at_checked(from_bytes) else { return bad("its header is too short") };
    if to.len() != disk.name_bytes.get() as usize {
        return bad("its header has the wrong length");
    }
    let name = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(name) => check_name(name).map(|()| name.to_owned()).or_else(bad),
        Err(_) => bad("a snapshot's name in it is not UTF-8"),
    };
    let from = match from {
        [] => None,
        from => Some(Point { name: name(from)?, time_ns: disk.from_time_ns.get() }),
    };
    Ok(Header {
        kind,
        uuid: disk.uuid,
        raw_bytes,
        image_bytes: disk.image_bytes.get(),
        pages_max: disk.pages_max.get(),
        from,
        to: Point { name: name(to)?, time_ns: disk.time_ns.get() },
    })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn kind_code(kind: VolumeKind) -> u32 {
    match kind {
        VolumeKind::VexFs => 1,
        VolumeKind::Raw => 2,
    }
}
