//! A log record: one header page, then the data pages it lists.
//!
//! ```text
//! 0     8   16      32      40      48    56    64          72          80          88
//! magic crc flags uuid seg,off use_seq  seq  epoch incarnation durable_seq written_seq link...
//! 112 session state ... 384 entries ... 4096 | page | page | ...
//! ```
//!
//! Faults defended against: a torn header (`crc`), torn or lost pages (a crc each, in the entries),
//! records of a former use of the segment (`use_seq`), misdirected writes (`uuid`, `segment`,
//! `offset`), lost records in the middle (`seq` has no gaps).

use layout::addr::PAGE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    Cursor, Loc, Malformed, Mapping, block_crc, check, check_counter, check_zero, push_varint, varint_len,
};

/// First bytes of a record.
pub const MAGIC: [u8; 8] = *b"VEXFSREC";
/// Byte of the header page where the entries begin.
pub const ENTRIES_AT: usize = 384;
/// Most bytes of entries.
pub const ENTRY_BYTES_MAX: usize = PAGE - ENTRIES_AT;

/// Before the entries: everything since the last commit is dropped.
pub const FLAG_ROLLBACK: u32 = 1;
/// After the entries: the open epoch is committed.
pub const FLAG_COMMIT: u32 = 2;
/// The stream goes on in `next_segment`; no entries.
pub const FLAG_LINK: u32 = 4;
const FLAGS_KNOWN: u32 = FLAG_ROLLBACK | FLAG_COMMIT | FLAG_LINK;

const KIND_WRITE: u16 = 1;
const KIND_DISCARD: u16 = 2;
const KIND_RELOCATE: u16 = 3;
const KIND_CLONE: u16 = 4;
/// Bytes of an entry before what its kind adds.
const ENTRY_HEAD: usize = 16;

/// The live session and the last command, as every record and checkpoint carry them.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SessionState {
    session: U64,
    /// Boot id of the mounter's machine.
    pub boot_id: [u8; 16],
    command_session: U64,
    command_id: U64,
    command_epoch: U64,
    command_op: U32,
    command_errno: U32,
    /// NUL-padded text of the last command's reply.
    pub message: [u8; 216],
}

const _: () = assert!(size_of::<SessionState>() == 272);

impl Default for SessionState {
    fn default() -> Self {
        SessionState {
            session: 0.into(),
            boot_id: [0; 16],
            command_session: 0.into(),
            command_id: 0.into(),
            command_epoch: 0.into(),
            command_op: 0.into(),
            command_errno: 0.into(),
            message: [0; 216],
        }
    }
}

/// The last command of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastCommand {
    /// Its session.
    pub session: u64,
    /// Its id.
    pub id: u64,
    /// Commits when it was done.
    pub epoch: u64,
    /// Its op, 0 if there was none.
    pub op: u32,
    /// Its outcome.
    pub errno: u32,
}

impl SessionState {
    /// The live session, 0 if none.
    pub fn session(&self) -> u64 {
        self.session.get()
    }
    /// Starts or ends (0) a session.
    pub fn set_session(&mut self, session: u64, boot_id: [u8; 16]) {
        self.session = session.into();
        self.boot_id = boot_id;
    }
    /// The last command.
    pub fn last_command(&self) -> LastCommand {
        LastCommand {
            session: self.command_session.get(),
            id: self.command_id.get(),
            epoch: self.command_epoch.get(),
            op: self.command_op.get(),
            errno: self.command_errno.get(),
        }
    }
    /// Notes the last command and its reply's text.
    pub fn set_last_command(&mut self, last: LastCommand, message: [u8; 216]) {
        self.command_session = last.session.into();
        self.command_id = last.id.into();
        self.command_epoch = last.epoch.into();
        self.command_op = last.op.into();
        self.command_errno = last.errno.into();
        self.message = message;
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    crc: U32,
    flags: U32,
    uuid: [u8; 16],
    segment: U32,
    offset: U32,
    use_seq: U64,
    seq: U64,
    epoch: U64,
    incarnation: U64,
    durable_seq: U64,
    written_seq: U64,
    next_use_seq: U64,
    next_segment: U32,
    page_count: U32,
    entry_bytes: U32,
    reserved: U32,
    session: SessionState,
}

const _: () = assert!(size_of::<Disk>() == ENTRIES_AT);
const _: () = assert!(std::mem::offset_of!(Disk, crc) == 8);
const _: () = assert!(std::mem::offset_of!(Disk, uuid) == 16);
const _: () = assert!(std::mem::offset_of!(Disk, use_seq) == 40);
const _: () = assert!(std::mem::offset_of!(Disk, seq) == 48);
const _: () = assert!(std::mem::offset_of!(Disk, durable_seq) == 72);
const _: () = assert!(std::mem::offset_of!(Disk, next_segment) == 96);
const _: () = assert!(std::mem::offset_of!(Disk, session) == 112);

/// One change a record makes to the map, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The next `crcs.len()` data pages are these device pages.
    Write {
        /// First device page.
        first: u64,
        /// A crc for each page.
        crcs: Vec<u32>,
    },
    /// These device pages read as zeros from now on.
    Discard {
        /// First device page.
        first: u64,
        /// Number of pages.
        count: u64,
    },
    /// The next data page is a copy of `page`, valid only if it still stands at `old`.
    Relocate {
        /// The device page.
        page: u64,
        /// Where it stood when it was copied.
        old: Loc,
        /// Its crc.
        crc: u32,
    },
    /// These device pages stand at the same places as others from now on. It takes no data page.
    Clone {
        /// First device page.
        first: u64,
        /// Where it stands; the others stand behind it.
        at: Loc,
        /// A crc for each page.
        crcs: Vec<u32>,
    },
}

/// How an entry follows on the one before, zigzag-encoded.
struct Step {
    /// To its page, from that of the copy before, or from the end of the run before.
    page: u32,
    /// To the old place of a relocation.
    place: Option<u32>,
}

impl Entry {
    /// Data pages it takes.
    pub fn pages(&self) -> u32 {
        match self {
            Entry::Write { crcs, .. } => crcs.len() as u32,
            Entry::Discard { .. } | Entry::Clone { .. } => 0,
            Entry::Relocate { .. } => 1,
        }
    }

    /// Device pages that it gives a place, for which room was promised.
    pub fn mapped_pages(&self) -> u64 {
        match self {
            Entry::Clone { crcs, .. } => crcs.len() as u64,
            other => u64::from(other.pages()),
        }
    }

    /// What tells a run of written pages, or a relocation, from the entry before, if one head serves both.
    fn step_from(&self, before: Option<&Entry>) -> Option<Step> {
        match (self, before?) {
            (Entry::Write { first, .. }, Entry::Write { first: first_before, crcs })
            | (Entry::Clone { first, .. }, Entry::Clone { first: first_before, crcs, .. }) => {
                let end_before = first_before.wrapping_add(crcs.len() as u64);
                Some(Step { page: zigzag_step(end_before, *first)?, place: None })
            }
            (
                Entry::Relocate { page, old, .. },
                Entry::Relocate { page: page_before, old: old_before, .. },
            ) => {
                let place = zigzag(i32::from(old.offset) - i32::from(old_before.offset));
                let page = zigzag_step(*page_before, *page)?;
                (old.segment == old_before.segment).then_some(Step { page, place: Some(place) })
            }
            _ => None,
        }
    }

    /// Bytes it takes behind another one.
    fn bytes_after(&self, before: Option<&Entry>) -> usize {
        let step = self.step_from(before);
        let head = match &step {
            Some(step) => varint_len(step.page) + step.place.map_or(0, varint_len),
            None => ENTRY_HEAD,
        };
        let own = match self {
            Entry::Write { crcs, .. } => run_bytes(crcs.len()),
            Entry::Clone { at, crcs, .. } => run_bytes(crcs.len()) + place_bytes(*at),
            Entry::Discard { .. } => 8,
            Entry::Relocate { .. } if step.is_some() => 4,
            Entry::Relocate { old, .. } => 2 + varint_len(old.offset.into()) + 4,
        };
        head + own
    }

    /// The head; of writes and relocations with room for how many it serves.
    fn encode_head(&self, out: &mut Vec<u8>) {
        let (kind, number, page) = match self {
            Entry::Write { first, .. } => (KIND_WRITE, 0, *first),
            Entry::Discard { first, .. } => (KIND_DISCARD, 0, *first),
            Entry::Relocate { page, old, .. } => (KIND_RELOCATE, old.segment, *page),
            Entry::Clone { first, .. } => (KIND_CLONE, 0, *first),
        };
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&page.to_le_bytes());
    }

    /// Reads one, or those that share a head.
    fn decode(cursor: &mut Cursor<'_>, entries: &mut Vec<Entry>) -> Result<(), Malformed> {
        let (kind, aux, number, page) = (cursor.u16()?, cursor.u16()?, cursor.u32()?, cursor.u64()?);
        check("aux of an entry", 0u16, aux)?;
        match kind {
            KIND_WRITE | KIND_CLONE => {
                if number == 0 {
                    return Err(Malformed { what: "runs of an entry", expected: 1, found: 0 });
                }
                let mut first = page;
                for i in 0..number {
                    if i > 0 {
                        let step = unzigzag(cursor.varint()?);
                        first = first.wrapping_add(i64::from(step).cast_unsigned());
                    }
                    let count = cursor.varint()?;
                    let at = if kind == KIND_CLONE { Some(decode_place(cursor, count)?) } else { None };
                    let bytes = cursor.take((count as usize).saturating_mul(4))?;
                    let end = first.checked_add(u64::from(count)).filter(|_| count > 0);
                    let Some(end) = end else {
                        let found = u64::from(count);
                        return Err(Malformed { what: "pages of a run", expected: 1, found });
                    };
                    let crc = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    let crcs = bytes.chunks_exact(4).map(crc).collect();
                    entries.push(match at {
                        Some(at) => Entry::Clone { first, at, crcs },
                        None => Entry::Write { first, crcs },
                    });
                    first = end;
                }
            }
            KIND_DISCARD => {
                check("number of a discard entry", 0u32, number)?;
                let count = cursor.u64()?;
                if count == 0 || page.checked_add(count).is_none() {
                    return Err(Malformed { what: "pages of a discard entry", expected: 1, found: count });
                }
                entries.push(Entry::Discard { first: page, count });
            }
            KIND_RELOCATE => {
                let count = cursor.u16()?;
                if count == 0 {
                    return Err(Malformed { what: "pages of a relocation entry", expected: 1, found: 0 });
                }
                let mut page = page;
                let mut place = i64::from(cursor.varint()?);
                for i in 0..count {
                    if i > 0 {
                        let step = unzigzag(cursor.varint()?);
                        page = page.wrapping_add(i64::from(step).cast_unsigned());
                        place += i64::from(unzigzag(cursor.varint()?));
                    }
                    let Ok(offset) = u16::try_from(place) else {
                        let found = place.cast_unsigned();
                        return Err(Malformed { what: "place of a relocated page", expected: 0xffff, found });
                    };
                    let old = Loc { segment: number, offset };
                    entries.push(Entry::Relocate { page, old, crc: cursor.u32()? });
                }
            }
            other => {
                let found = u64::from(other);
                return Err(Malformed { what: "kind of a record entry", expected: 1, found });
            }
        }
        Ok(())
    }
}

/// A signed number as an unsigned one that is small if it is near zero.
fn zigzag(number: i32) -> u32 {
    ((number << 1) ^ (number >> 31)).cast_unsigned()
}

fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

fn zigzag_step(from: u64, to: u64) -> Option<u32> {
    i32::try_from(to.wrapping_sub(from).cast_signed()).ok().map(zigzag)
}

/// Where a run of cloned pages stands: segment, and page of it; all within a segment.
fn decode_place(cursor: &mut Cursor<'_>, pages: u32) -> Result<Loc, Malformed> {
    let (segment, first) = (cursor.varint()?, cursor.varint()?);
    let end = u64::from(first) + u64::from(pages);
    match u16::try_from(first) {
        Ok(offset) if end <= 1 << 16 => Ok(Loc { segment, offset }),
        _ => Err(Malformed { what: "place of cloned pages", expected: 1 << 16, found: end }),
    }
}

fn place_bytes(at: Loc) -> usize {
    varint_len(at.segment) + varint_len(at.offset.into())
}

/// Bytes of a run of so many pages, behind what tells its first one; clones have a place besides.
fn run_bytes(pages: usize) -> usize {
    varint_len(pages as u32) + 4 * pages
}

/// All entries, with one head for runs of written or cloned pages that follow one another, and for relocations from one segment.
fn encode_entries(entries: &[Entry], out: &mut Vec<u8>) {
    let mut before = None;
    // Where the head says how many it serves.
    let mut count_at = 0;
    for entry in entries {
        let step = entry.step_from(before);
        if step.is_none() {
            entry.encode_head(out);
            count_at = match entry {
                Entry::Write { .. } | Entry::Clone { .. } => out.len() - 12,
                Entry::Discard { .. } | Entry::Relocate { .. } => out.len(),
            };
        }
        match entry {
            Entry::Write { crcs, .. } | Entry::Clone { crcs, .. } => {
                add_one(&mut out[count_at..]);
                if let Some(step) = step {
                    push_varint(out, step.page);
                }
                push_varint(out, crcs.len() as u32);
                if let Entry::Clone { at, .. } = entry {
                    push_varint(out, at.segment);
                    push_varint(out, at.offset.into());
                }
                crcs.iter().for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
            }
            Entry::Discard { count, .. } => out.extend_from_slice(&count.to_le_bytes()),
            Entry::Relocate { old, crc, .. } => {
                match step {
                    Some(step) => {
                        push_varint(out, step.page);
                        push_varint(out, step.place.unwrap_or(0));
                    }
                    None => {
                        out.extend_from_slice(&[0; 2]);
                        push_varint(out, old.offset.into());
                    }
                }
                add_one(&mut out[count_at..]);
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
        before = Some(entry);
    }
}

/// Adds 1 to a number of two bytes: a header page holds fewer entries than these can count.
fn add_one(bytes: &mut [u8]) {
    let count = u16::from_le_bytes([bytes[0], bytes[1]]) + 1;
    bytes[..2].copy_from_slice(&count.to_le_bytes());
}

/// A checked record header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// Where the header stands.
    pub at: Loc,
    /// Use of the segment.
    pub use_seq: u64,
    /// Place in the log: one more than the record before, over all streams.
    pub seq: u64,
    /// Commits before this record.
    pub epoch: u64,
    /// Start of the store that wrote it.
    pub incarnation: u64,
    /// Every record up to this one was durable when this was written.
    pub durable_seq: u64,
    /// Every record up to this one had been written (and may have been acknowledged).
    pub written_seq: u64,
    /// `FLAG_*`.
    pub flags: u32,
    /// With [`FLAG_LINK`]: the segment in which the stream goes on, and its use.
    pub next: Option<(u32, u64)>,
    /// After this record.
    pub session: SessionState,
    /// The changes, in order.
    pub entries: Vec<Entry>,
}

impl Record {
    /// Data pages after the header.
    pub fn page_count(&self) -> u32 {
        self.entries.iter().map(Entry::pages).sum()
    }

    /// The data pages in the order in which they stand behind the header: device page, crc.
    pub fn data_pages(&self) -> impl Iterator<Item = (u64, u32)> {
        self.entries.iter().flat_map(|entry| {
            let (first, crcs): (u64, &[u32]) = match entry {
                Entry::Write { first, crcs } => (*first, crcs),
                Entry::Relocate { page, crc, .. } => (*page, std::slice::from_ref(crc)),
                Entry::Discard { .. } | Entry::Clone { .. } => (0, &[]),
            };
            (first..).zip(crcs.iter().copied())
        })
    }

    /// Fills the header page.
    ///
    /// # Panics
    /// If the entries do not fit, which [`EntryList`] sees to.
    pub fn encode_into(&self, page: &mut [u8]) {
        let mut entries = Vec::with_capacity(ENTRY_BYTES_MAX);
        encode_entries(&self.entries, &mut entries);
        assert!(entries.len() <= ENTRY_BYTES_MAX, "entries fit the header page");
        let (next_segment, next_use_seq) = self.next.unwrap_or((0, 0));
        let disk = Disk {
            magic: MAGIC,
            crc: 0.into(),
            flags: self.flags.into(),
            uuid: self.uuid,
            segment: self.at.segment.into(),
            offset: u32::from(self.at.offset).into(),
            use_seq: self.use_seq.into(),
            seq: self.seq.into(),
            epoch: self.epoch.into(),
            incarnation: self.incarnation.into(),
            durable_seq: self.durable_seq.into(),
            written_seq: self.written_seq.into(),
            next_use_seq: next_use_seq.into(),
            next_segment: next_segment.into(),
            page_count: self.page_count().into(),
            entry_bytes: (entries.len() as u32).into(),
            reserved: 0.into(),
            session: self.session.clone(),
        };
        page[..ENTRIES_AT].copy_from_slice(disk.as_bytes());
        page[ENTRIES_AT..ENTRIES_AT + entries.len()].copy_from_slice(&entries);
        page[ENTRIES_AT + entries.len()..].fill(0);
        let crc = block_crc(page, 8);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Checks and decodes a header page (not its place, nor its data pages).
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub fn decode(page: &[u8]) -> Result<Self, Malformed> {
        check("record header length", PAGE as u64, page.len() as u64)?;
        let Ok((disk, rest)) = Disk::read_from_prefix(page) else {
            return Err(Malformed {
                what: "record header length",
                expected: PAGE as u64,
                found: page.len() as u64,
            });
        };
        check("record magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
        check("record header crc32c", block_crc(page, 8), disk.crc.get())?;
        check("unknown record flags", 0u32, disk.flags.get() & !FLAGS_KNOWN)?;
        check("record reserved bytes", 0u32, disk.reserved.get())?;
        check_counter("record sequence", disk.seq.get())?;
        check_counter("use number of the segment after a record", disk.next_use_seq.get())?;
        let entry_bytes = disk.entry_bytes.get() as usize;
        let Some((entry_area, tail)) = rest.split_at_checked(entry_bytes) else {
            let (expected, found) = (ENTRY_BYTES_MAX as u64, entry_bytes as u64);
            return Err(Malformed { what: "bytes of record entries", expected, found });
        };
        check_zero("record reserved bytes", tail)?;
        let mut cursor = Cursor::new(entry_area, "record entry");
        let mut entries = Vec::new();
        while cursor.left() > 0 {
            Entry::decode(&mut cursor, &mut entries)?;
        }
        let Ok(offset) = u16::try_from(disk.offset.get()) else {
            let found = u64::from(disk.offset.get());
            return Err(Malformed { what: "page of the record", expected: 0xffff, found });
        };
        let flags = disk.flags.get();
        let next = (flags & FLAG_LINK != 0).then(|| (disk.next_segment.get(), disk.next_use_seq.get()));
        let record = Record {
            uuid: disk.uuid,
            at: Loc { segment: disk.segment.get(), offset },
            use_seq: disk.use_seq.get(),
            seq: disk.seq.get(),
            epoch: disk.epoch.get(),
            incarnation: disk.incarnation.get(),
            durable_seq: disk.durable_seq.get(),
            written_seq: disk.written_seq.get(),
            flags,
            next,
            session: disk.session,
            entries,
        };
        check("data pages of the record", record.page_count(), disk.page_count.get())?;
        Ok(record)
    }
}

/// Entries that grow until the header page is full.
#[derive(Default, Debug)]
pub struct EntryList {
    entries: Vec<Entry>,
    bytes: usize,
    pages: u32,
}

impl EntryList {
    /// Data pages so far.
    pub fn pages(&self) -> u32 {
        self.pages
    }
    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    /// The entries, leaving an empty list.
    pub fn take(&mut self) -> Vec<Entry> {
        self.bytes = 0;
        self.pages = 0;
        std::mem::take(&mut self.entries)
    }

    /// Whether so many entries of one page or discard fit in any case.
    pub fn has_room_for(&self, entries: usize) -> bool {
        self.bytes + entries * (ENTRY_HEAD + 9) <= ENTRY_BYTES_MAX
    }

    /// Adds a written page; false if there is no room.
    pub fn push_write(&mut self, page: u64, crc: u32) -> bool {
        if let Some(Entry::Write { first, crcs }) = self.entries.last_mut()
            && *first + crcs.len() as u64 == page
        {
            let bytes = self.bytes + run_bytes(crcs.len() + 1) - run_bytes(crcs.len());
            if bytes > ENTRY_BYTES_MAX {
                return false;
            }
            crcs.push(crc);
            self.bytes = bytes;
            self.pages += 1;
            return true;
        }
        self.push(Entry::Write { first: page, crcs: vec![crc] })
    }

    /// Adds a page that stands where another one does; false if there is no room.
    pub fn push_clone(&mut self, page: u64, mapping: Mapping) -> bool {
        if let Some(Entry::Clone { first, at, crcs }) = self.entries.last_mut()
            && *first + crcs.len() as u64 == page
            && at.segment == mapping.loc.segment
            && usize::from(at.offset) + crcs.len() == usize::from(mapping.loc.offset)
        {
            let bytes = self.bytes + run_bytes(crcs.len() + 1) - run_bytes(crcs.len());
            if bytes > ENTRY_BYTES_MAX {
                return false;
            }
            crcs.push(mapping.crc);
            self.bytes = bytes;
            return true;
        }
        self.push(Entry::Clone { first: page, at: mapping.loc, crcs: vec![mapping.crc] })
    }

    /// Adds a discard, merged with one just before it; false if there is no room.
    pub fn push_discard(&mut self, page: u64, pages: u64) -> bool {
        if let Some(Entry::Discard { first, count }) = self.entries.last_mut()
            && *first + *count == page
        {
            *count += pages;
            return true;
        }
        self.push(Entry::Discard { first: page, count: pages })
    }

    /// Adds any entry; false if there is no room.
    pub fn push(&mut self, entry: Entry) -> bool {
        let bytes = entry.bytes_after(self.entries.last());
        if self.bytes + bytes > ENTRY_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        self.pages += entry.pages();
        self.entries.push(entry);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;
    use crate::store::space::COPY_PAGES;

    fn sample() -> (Record, Vec<u8>) {
        let mut session = SessionState::default();
        session.set_session(0x4_0000_0002, [9; 16]);
        session.set_last_command(
            LastCommand { session: 0x4_0000_0002, id: 3, epoch: 8, op: 4, errno: 22 },
            [b'x'; 216],
        );
        let record = Record {
            uuid: [3; 16],
            at: Loc { segment: 2, offset: 40 },
            use_seq: 17,
            seq: 1234,
            epoch: 8,
            incarnation: 4,
            durable_seq: 1200,
            written_seq: 1230,
            flags: FLAG_COMMIT,
            next: None,
            session,
            entries: vec![
                Entry::Write { first: 1 << 40, crcs: vec![1, 2, 3] },
                Entry::Discard { first: 5, count: 1 << 36 },
                Entry::Relocate { page: 77, old: Loc { segment: 1, offset: 65535 }, crc: 0xabcd },
                Entry::Write { first: 600, crcs: vec![4] },
                Entry::Write { first: 20, crcs: vec![5, 6] },
            ],
        };
        let mut page = vec![0xff; PAGE];
        record.encode_into(&mut page);
        (record, page)
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let (record, page) = sample();
        assert_eq!(record.page_count(), 7);
        assert_eq!(Record::decode(&page), Ok(record));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&sample().1, |page| Record::decode(page).is_ok());
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&sample().1, 0xafd4_94f4);
    }

    #[test]
    fn a_full_list_of_entries_fits_the_header_page() {
        let mut list = EntryList::default();
        let mut scattered = 0;
        while list.push_write(scattered * 2, 1) {
            scattered += 1;
        }
        assert_eq!(scattered as usize, 1 + (ENTRY_BYTES_MAX - 21) / 6);
        let record = Record { entries: list.take(), ..sample().0 };
        let mut page = vec![0; PAGE];
        record.encode_into(&mut page);
        assert_eq!(Record::decode(&page), Ok(record));

        let mut consecutive = 0;
        while list.push_write(consecutive, 1) {
            consecutive += 1;
        }
        assert_eq!(consecutive as usize, (ENTRY_BYTES_MAX - 18) / 4);
        assert_eq!(list.take().len(), 1, "consecutive pages are one entry");
    }

    /// What the list has is these entries, also when it was written; empties it.
    fn assert_comes_back(list: &mut EntryList, entries: Vec<Entry>) {
        let mut bytes = Vec::new();
        encode_entries(&entries, &mut bytes);
        assert_eq!(bytes.len(), list.bytes, "what is reckoned with is what is written");
        let record = Record { entries: list.take(), ..sample().0 };
        let mut page = vec![0; PAGE];
        record.encode_into(&mut page);
        assert_eq!(Record::decode(&page).map(|r| r.entries), Ok(entries));
    }

    #[test]
    fn written_pages_that_are_scattered_share_a_head() {
        let run = |first: u64, pages: u32| Entry::Write { first, crcs: (0..pages).collect() };
        let entries = vec![
            run(1 << 50, 1),
            run((1 << 50) + (1 << 31), 200), // 2^31 - 1 from the end of the one before
            run(9, 127),                     // too far away
            Entry::Discard { first: 9, count: 1 },
            run(5, 1),
            run(3, 128),
            run(u64::MAX / 2, 2),
        ];
        let mut list = EntryList::default();
        for entry in &entries {
            match entry {
                Entry::Write { first, crcs } => {
                    assert!((*first..).zip(crcs).all(|(page, &crc)| list.push_write(page, crc)));
                }
                other => assert!(list.push(other.clone())),
            }
        }
        assert_comes_back(&mut list, entries);

        let mut far = 0u64;
        while list.push_write(far.wrapping_mul(0x9e37_79b9) % (1 << 21), 1) {
            far += 1;
        }
        assert!(far > 400, "{far} pages of a volume of 8 GiB, written at random, in one record");
    }

    #[test]
    fn cloned_pages_name_their_places_and_share_a_head() {
        let clone = |first: u64, segment, offset, pages: u32| Entry::Clone {
            first,
            at: Loc { segment, offset },
            crcs: (0..pages).collect(),
        };
        let entries = vec![
            clone(1 << 50, 7, 65_535, 1),
            clone((1 << 50) + 1, 8, 0, 200),
            clone((1 << 50) + 201, 7, 1, 127), // the places do not go on
            clone(9, 7, 128, 1),               // too far away
            Entry::Write { first: 10, crcs: vec![1] },
            clone(11, 1 << 31, 5, 3),
        ];
        let mut list = EntryList::default();
        for entry in &entries {
            match entry {
                Entry::Clone { first, at, crcs } => {
                    for (i, &crc) in (0..).zip(crcs) {
                        let loc = Loc { offset: at.offset + i, ..*at };
                        assert!(list.push_clone(first + u64::from(i), Mapping { loc, crc }));
                    }
                }
                other => assert!(list.push(other.clone())),
            }
        }
        assert_eq!(list.pages(), 1, "clones take no data pages");
        assert_comes_back(&mut list, entries);

        let mut run = 0;
        let at = |offset| Mapping { loc: Loc { segment: 3, offset }, crc: 1 };
        while list.push_clone(u64::from(run), at(run)) {
            run += 1;
        }
        assert_eq!(usize::from(run), (ENTRY_BYTES_MAX - 20) / 4);
        let mut scattered = 0;
        list.take();
        while list.push_clone(u64::from(scattered), at(scattered * 7)) {
            scattered += 1;
        }
        assert!(scattered > 370, "{scattered} pages that stand apart in one record");
        let entries = list.entries.clone();
        assert_comes_back(&mut list, entries);
    }

    #[test]
    fn cloned_pages_past_the_end_of_a_segment_are_refused() {
        let entry = Entry::Clone { first: 5, at: Loc { segment: 3, offset: 65_534 }, crcs: vec![1, 2] };
        let mut page = vec![0; PAGE];
        Record { entries: vec![entry], ..sample().0 }.encode_into(&mut page);
        assert!(Record::decode(&page).is_ok());
        // The first page of the place: 65,535, three bytes of LEB128.
        let at = ENTRIES_AT + 16 + 2;
        assert_eq!(page[at..at + 3], [0xfe, 0xff, 3]);
        page[at] = 0xff;
        let crc = block_crc(&page, 8);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::decode(&page).map_err(|e| e.what), Err("place of cloned pages"));
    }

    #[test]
    fn relocations_from_one_segment_share_a_head() {
        let relocate =
            |page, segment, offset| Entry::Relocate { page, old: Loc { segment, offset }, crc: page as u32 };
        let entries = vec![
            relocate(1 << 50, 7, 65535),
            relocate((1 << 50) + (1 << 30), 7, 0),
            relocate((1 << 50) - 5, 7, 9),
            relocate(3, 7, 10), // too far away
            relocate(4, 8, 11),
            Entry::Discard { first: 9, count: 1 },
            relocate(5, 8, 12),
            relocate(6, 8, 12),
        ];
        let mut list = EntryList::default();
        assert!(entries.iter().all(|entry| list.push(entry.clone())));
        assert_comes_back(&mut list, entries);

        let mut near = 0;
        while list.push(relocate(near * 1000, 7, (near * 7 % 4096) as u16)) {
            near += 1;
        }
        assert!(near > u64::from(COPY_PAGES), "{near} relocations of neighbours in one record");
        let record = Record { entries: list.take(), ..sample().0 };
        let mut page = vec![0; PAGE];
        record.encode_into(&mut page);
        assert_eq!(Record::decode(&page), Ok(record));
    }

    #[test]
    fn hostile_entries_are_errors_even_with_a_right_checksum() {
        let refused = |at: usize, bytes: &[u8]| {
            let mut page = sample().1;
            page[at..at + bytes.len()].copy_from_slice(bytes);
            let crc = block_crc(&page, 8);
            page[8..12].copy_from_slice(&crc.to_le_bytes());
            assert!(Record::decode(&page).is_err(), "{bytes:?} at {at}");
        };
        refused(ENTRIES_AT, &[0, 0]); // a kind that is never valid
        refused(ENTRIES_AT, &[9, 0]);
        refused(ENTRIES_AT + 4, &[0; 4]); // no run
        refused(ENTRIES_AT + 4, &[0xff; 4]); // more runs than there are bytes
        refused(ENTRIES_AT + 8, &[0xff; 8]); // pages past the end of all numbers
        refused(ENTRIES_AT + 16, &[0]); // a run of no pages
        refused(ENTRIES_AT + 16, &[0x7f]); // more crcs than there are bytes
        let relocation = ENTRIES_AT + 29 + 24;
        refused(relocation, &[3, 0, 1, 0]); // a number where there is none
        refused(relocation + 16, &[0, 0]); // no page
        refused(relocation + 16, &[2, 0]); // more pages than there are bytes
        refused(relocation + 18, &[0xff, 0xff, 4]); // a place past the end of every segment
        refused(104, &[0xff, 0xff]); // more entries than the page holds
        refused(100, &[200]); // data pages that no entry names
        refused(12, &[0x80]); // an unknown flag
        refused(48, &[0xff; 8]); // a sequence that nothing can follow
        refused(88, &[0xff; 8]); // a use number that nothing can follow
    }
}
