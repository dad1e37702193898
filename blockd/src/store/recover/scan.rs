//! Reading the log: the records of each stream in order, and witnesses of those that are lost.

use std::collections::{BTreeSet, VecDeque};

use layout::addr::{DEVICE_PAGES, PAGE};

use super::read;
use crate::store::format::checkpoint::Position;
use crate::store::format::record::{Entry, FLAG_LINK, MAGIC, Record};
use crate::store::format::segment::Stream;
use crate::store::format::superblock::Superblock;
use crate::store::format::{Loc, page_crc};
use crate::store::{Shared, StoreError};

/// A link stands in one of so many pages at the end of a segment: what does not fit before is a record of a header and at most
/// two pages that must not be parted.
const LINK_PAGES: usize = 3;
/// Segments in which witnesses are looked for when damage may have taken a link.
const WITNESS_SEGMENTS_MAX: usize = 4096;
/// In so many of them behind their first record too, when that is damaged.
const WITNESS_SEGMENTS_DEEP: usize = 4;
/// So many, the newest, are read whole: what they hold last knows most of how far the log was.
const WITNESS_SEGMENTS_WHOLE: usize = 4;
/// And so far: a stretch of damage as long as a record, and the longest record behind it.
const WITNESS_PAGES_DEEP: u32 = 2 * 514;

/// A record found in the log.
pub(super) struct Found {
    pub(super) record: Record,
    pub(super) stream: Stream,
    /// A data page that is not what the record says.
    pub(super) bad_page: Option<(u64, u32, u32)>,
}

/// What the scan of a stream tells.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) records: Vec<Found>,
    /// Records that can't be reached in order, but say how far the log once was.
    pub(super) stray: Vec<Record>,
    pub(super) end: Option<Loc>,
}

/// Reads a stream's records from a position on, following links.
pub(super) fn scan_stream(
    shared: &Shared,
    sb: &Superblock,
    stream: Stream,
    position: Position,
    first_seq: u64,
) -> Result<Scan, StoreError> {
    let mut scan = Scan::default();
    let mut next = VecDeque::from([(position.at, position.use_seq)]);
    let mut seq_min = first_seq;
    let mut in_order = true;
    let mut looked_ahead = false;
    let mut segments_left = shared.geometry.segments;
    while let Some((start, use_seq)) = next.pop_front() {
        // A damaged (or hostile) chain must not lead round in circles.
        if !shared.geometry.contains(start) || segments_left == 0 {
            break;
        }
        segments_left -= 1;
        let pages = shared.geometry.segment_pages - u32::from(start.offset);
        let bytes =
            read(&*shared.storage, "reading the log", shared.geometry.byte(start), pages as usize * PAGE)?;
        let mut i = 0usize;
        let (mut linked, mut link_lost) = (false, false);
        while i < pages as usize && !linked {
            let at = Loc { offset: start.offset + i as u16, ..start };
            let Some(record) = parse(shared, sb, &bytes[i * PAGE..], at, use_seq, seq_min) else {
                // The end of the log, or damage: from here on records are only witnesses.
                if in_order {
                    scan.end = Some(at);
                    link_lost = u32::from(at.offset) + LINK_PAGES as u32 >= shared.geometry.segment_pages;
                }
                in_order = false;
                i += 1;
                continue;
            };
            if in_order {
                seq_min = record.seq + 1;
            }
            let bad_page = bad_data(&record, &bytes[(i + 1) * PAGE..]);
            i += 1 + record.page_count() as usize;
            linked = record.flags & FLAG_LINK != 0;
            if linked {
                next.extend(record.next.map(|(segment, use_seq)| (Loc { segment, offset: 1 }, use_seq)));
            }
            if in_order {
                scan.records.push(Found { record, stream, bad_page });
            } else {
                scan.stray.push(record);
            }
        }
        // If damage took the link, the witnesses are in segments that nothing names any more.
        let tail = &bytes[bytes.len().saturating_sub(LINK_PAGES * PAGE)..];
        link_lost |= !in_order && !linked && !tail_is_intact(shared, start.segment, tail);
        if link_lost && !linked && !looked_ahead {
            looked_ahead = true;
            let mut later = later_segments(shared, sb, use_seq)?;
            later.sort_unstable_by_key(|(_, record)| std::cmp::Reverse(record.use_seq));
            next.extend(
                later.iter().take(WITNESS_SEGMENTS_WHOLE).map(|(start, record)| (*start, record.use_seq)),
            );
            scan.stray.extend(later.into_iter().skip(WITNESS_SEGMENTS_WHOLE).map(|(_, record)| record));
        }
    }
    Ok(scan)
}

/// Whether damage may have taken the end of a segment whose log ends before it: a link stands in one of the last pages, of
/// this use, or still of the last one.
fn tail_is_intact(shared: &Shared, segment: u32, tail: &[u8]) -> bool {
    let first = shared.geometry.segment_pages - (tail.len() / PAGE) as u32;
    let untouched = tail.iter().all(|byte| *byte == tail[0]);
    untouched
        || (first..).zip(tail.chunks_exact(PAGE)).any(|(offset, page)| {
            page.starts_with(&MAGIC)
                && Record::decode(page).is_ok_and(|r| r.at == Loc { segment, offset: offset as u16 })
        })
}

/// Records in segments that this start of the store opened later than `use_seq`, one of each segment.
fn later_segments(shared: &Shared, sb: &Superblock, use_seq: u64) -> Result<Vec<(Loc, Record)>, StoreError> {
    let likely: Vec<u32> = {
        let maps = shared.maps.read();
        let unused: BTreeSet<u32> = maps.segments.free().chain(maps.segments.empty()).collect();
        // The log takes the lowest that is free.
        let used = (0..shared.geometry.segments).filter(|segment| !unused.contains(segment));
        unused.iter().copied().chain(used).take(WITNESS_SEGMENTS_MAX).collect()
    };
    let ours = |page: &[u8], at: Loc| {
        let record = page.starts_with(&MAGIC).then(|| Record::decode(page).ok())??;
        let later = record.incarnation == sb.incarnation && record.use_seq > use_seq;
        (record.uuid == shared.uuid && record.at == at && later).then_some(record)
    };
    let mut found = Vec::new();
    let mut deep_left = WITNESS_SEGMENTS_DEEP;
    for segment in likely {
        let start = Loc { segment, offset: 1 };
        let byte = shared.geometry.byte(start);
        let page = read(&*shared.storage, "reading the log", byte, PAGE)?;
        if let Some(record) = ours(&page, start) {
            found.push((start, record));
        } else if deep_left > 0 && Record::decode(&page).is_err() && page.iter().any(|b| *b != page[0]) {
            // The same damage may have taken the first records there.
            deep_left -= 1;
            let pages = WITNESS_PAGES_DEEP.min(shared.geometry.segment_pages - 1);
            let bytes = read(&*shared.storage, "reading the log", byte, pages as usize * PAGE)?;
            found.extend(bytes.chunks_exact(PAGE).zip(1..).find_map(|(page, offset)| {
                let at = Loc { segment, offset };
                ours(page, at).map(|record| (at, record))
            }));
        }
    }
    Ok(found)
}

/// The record that begins here, if it is one of this use of the segment.
fn parse(
    shared: &Shared,
    sb: &Superblock,
    bytes: &[u8],
    at: Loc,
    use_seq: u64,
    seq_min: u64,
) -> Option<Record> {
    let page = bytes.get(..PAGE)?;
    if !page.starts_with(&MAGIC) {
        return None;
    }
    let record = Record::decode(page).ok()?;
    let fits = (1 + record.page_count() as usize) * PAGE <= bytes.len();
    let ours = record.uuid == shared.uuid
        && record.at == at
        && record.use_seq == use_seq
        && record.incarnation == sb.incarnation
        && record.seq >= seq_min;
    let places = record.entries.iter().all(|entry| match entry {
        Entry::Clone { first, at, crcs } => {
            let end = u32::from(at.offset) + crcs.len() as u32;
            at.segment < shared.geometry.segments
                && end <= shared.geometry.segment_pages
                && first.saturating_add(crcs.len() as u64) <= DEVICE_PAGES
        }
        _ => true,
    });
    (fits && ours && places).then_some(record)
}

/// The first data page whose crc is wrong: its device page, the crc expected and found.
fn bad_data(record: &Record, data: &[u8]) -> Option<(u64, u32, u32)> {
    let mut pages = data.chunks_exact(PAGE);
    record.data_pages().find_map(|(page, expected)| {
        let found = pages.next().map(|bytes| page_crc(page, bytes));
        (found != Some(expected)).then_some((page, expected, found.unwrap_or(0)))
    })
}
