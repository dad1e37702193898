//! A map leaf: the mapped pages of a part of one unit (2^15 device pages), in one page.
//!
//! Entries are runs: pages that follow one another and stand one after another in the log.
//! A run is: gap (varint: first page - end of the run before), count (varint), segment (varint), page of the
//! segment (varint), then `count` crcs of 4 bytes. Worst case 5+5+5+3... bytes a page, 4 at best.
//! A run whose segment is [`NOWHERE`] has no crcs: its pages are known to be unmapped (the delta of a snapshot says so
//! of pages that were not there when it was taken).

use layout::addr::{MAP_UNIT_PAGES, PAGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Cursor, Loc, Malformed, block_crc, check, check_zero, push_varint, varint_len};

/// First bytes of a leaf.
pub const MAGIC: [u8; 8] = *b"VEXFSLEF";
/// Bytes before the runs.
const HEAD: usize = 48;
/// Bytes of runs that a leaf has room for.
pub const RUN_BYTES_MAX: usize = PAGE - HEAD;
/// Segment of pages that are known to be unmapped; no store has so many segments.
pub const NOWHERE: u32 = u32::MAX;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    crc: U32,
    entries: U16,
    run_bytes: U16,
    uuid: [u8; 16],
    key: U64,
    reserved: U64,
}

const _: () = assert!(size_of::<Disk>() == HEAD);
const _: () = assert!(std::mem::offset_of!(Disk, uuid) == 16);
const _: () = assert!(std::mem::offset_of!(Disk, key) == 32);

/// A mapped page of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafEntry {
    /// Page within the unit.
    pub rel: u16,
    /// Page within the segment.
    pub offset: u16,
    /// Segment, or [`NOWHERE`].
    pub segment: u32,
    /// Crc of the page.
    pub crc: u32,
}

impl LeafEntry {
    /// Its place.
    pub fn loc(&self) -> Loc {
        Loc { segment: self.segment, offset: self.offset }
    }
}

/// Pages of a unit that stand one after another in a segment, or are all known to be unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First page within the unit.
    pub rel: u16,
    /// Pages, 1 to 2^15.
    pub count: u16,
    /// First page within the segment; 0 for [`NOWHERE`].
    pub offset: u16,
    /// Segment, or [`NOWHERE`].
    pub segment: u32,
}

impl Run {
    /// First page behind it.
    pub fn end(&self) -> u32 {
        u32::from(self.rel) + u32::from(self.count)
    }

    /// Its pages are known to be unmapped.
    pub fn is_tombstone(&self) -> bool {
        self.segment == NOWHERE
    }

    /// Crcs that belong to it.
    pub fn crc_count(&self) -> usize {
        if self.is_tombstone() { 0 } else { usize::from(self.count) }
    }

    /// Whether `next` can be one run with it.
    pub fn continues_with(&self, next: &Run) -> bool {
        self.end() == u32::from(next.rel)
            && self.segment == next.segment
            && (self.is_tombstone()
                || u32::from(self.offset) + u32::from(self.count) == u32::from(next.offset))
    }

    /// The part from `skip` pages on, `count` pages long.
    pub fn part(&self, skip: u16, count: u16) -> Run {
        let offset = if self.is_tombstone() { 0 } else { self.offset + skip };
        Run { rel: self.rel + skip, count, offset, ..*self }
    }

    /// Bytes it takes in a leaf, behind a run that ends at `before`.
    pub fn encoded_len(&self, before: u32) -> usize {
        varint_len(u32::from(self.rel).saturating_sub(before))
            + varint_len(u32::from(self.count))
            + varint_len(self.segment)
            + varint_len(u32::from(self.offset))
            + 4 * self.crc_count()
    }
}

/// The runs of a leaf, and the crcs of all their pages in the same order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Runs {
    /// By page, apart from one another.
    pub runs: Vec<Run>,
    /// [`Run::crc_count`] of each run.
    pub crcs: Vec<u32>,
}

/// Fills a page with the leaf of `key` (its lowest device page); false if it does not fit.
///
/// # Panics
/// If `page` is not 4096 bytes.
pub fn encode_into<'a>(
    uuid: [u8; 16],
    key: u64,
    runs: impl Iterator<Item = (Run, &'a [u32])>,
    page: &mut [u8],
) -> bool {
    let mut bytes = Vec::with_capacity(PAGE);
    let mut entries = 0u32;
    let mut end = 0u32;
    for (run, crcs) in runs {
        if bytes.len() + run.encoded_len(end) > RUN_BYTES_MAX {
            return false;
        }
        push_varint(&mut bytes, u32::from(run.rel) - end);
        push_varint(&mut bytes, u32::from(run.count));
        push_varint(&mut bytes, run.segment);
        push_varint(&mut bytes, u32::from(run.offset));
        crcs.iter().for_each(|crc| bytes.extend_from_slice(&crc.to_le_bytes()));
        entries += u32::from(run.count);
        end = run.end();
    }
    let disk = Disk {
        magic: MAGIC,
        crc: 0.into(),
        entries: (entries as u16).into(),
        run_bytes: (bytes.len() as u16).into(),
        uuid,
        key: key.into(),
        reserved: 0.into(),
    };
    page[..HEAD].copy_from_slice(disk.as_bytes());
    page[HEAD..HEAD + bytes.len()].copy_from_slice(&bytes);
    page[HEAD + bytes.len()..].fill(0);
    let crc = block_crc(page, 8);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    true
}

/// Checks and decodes the leaf of `key`.
///
/// # Errors
/// [`Malformed`] names the field.
pub fn decode(uuid: [u8; 16], key: u64, page: &[u8]) -> Result<Runs, Malformed> {
    check("map leaf length", PAGE as u64, page.len() as u64)?;
    let Ok((disk, rest)) = Disk::read_from_prefix(page) else {
        return Err(Malformed { what: "map leaf length", expected: PAGE as u64, found: page.len() as u64 });
    };
    check("map leaf magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
    check("map leaf crc32c", block_crc(page, 8), disk.crc.get())?;
    if disk.uuid != uuid {
        return Err(Malformed { what: "map leaf uuid (of another volume)", expected: 0, found: 1 });
    }
    check("map leaf key", key, disk.key.get())?;
    check("map leaf reserved bytes", 0u64, disk.reserved.get())?;
    let run_bytes = usize::from(disk.run_bytes.get());
    let Some((runs, tail)) = rest.split_at_checked(run_bytes) else {
        let (expected, found) = (RUN_BYTES_MAX as u64, run_bytes as u64);
        return Err(Malformed { what: "bytes of runs", expected, found });
    };
    check_zero("map leaf reserved bytes", tail)?;
    let out = decode_runs(runs)?;
    let entries: u64 = out.runs.iter().map(|r| u64::from(r.count)).sum();
    check("entries of a map leaf", disk.entries.get(), entries)?;
    if out.runs.first().is_some_and(|r| u64::from(r.rel) < key % MAP_UNIT_PAGES) {
        return Err(Malformed { what: "first page of a map leaf", expected: key, found: 0 });
    }
    Ok(out)
}

fn decode_runs(bytes: &[u8]) -> Result<Runs, Malformed> {
    let mut cursor = Cursor::new(bytes, "run of a map leaf");
    let mut out = Runs::default();
    let mut end = 0u64;
    while cursor.left() > 0 {
        let (gap, count) = (cursor.varint()?, cursor.varint()?);
        let (segment, offset) = (cursor.varint()?, cursor.varint()?);
        let first = end + u64::from(gap);
        end = first + u64::from(count);
        if count == 0 || end > MAP_UNIT_PAGES || u64::from(offset) + u64::from(count) > 65536 {
            return Err(Malformed { what: "end of a run", expected: MAP_UNIT_PAGES, found: end });
        }
        let run = Run { rel: first as u16, count: count as u16, offset: offset as u16, segment };
        if run.is_tombstone() {
            check("page of a run that is nowhere", 0u64, offset)?;
        }
        for _ in 0..run.crc_count() {
            out.crcs.push(cursor.u32()?);
        }
        out.runs.push(run);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    const KEY: u64 = (77 << 15) + 3;

    fn run(rel: u16, count: u16, segment: u32, offset: u16) -> Run {
        Run { rel, count, offset, segment }
    }

    /// Crcs follow from the pages.
    fn leaf(runs: &[Run]) -> Runs {
        let crcs = runs.iter().filter(|r| !r.is_tombstone());
        let crcs = crcs.flat_map(|r| (u32::from(r.rel)..r.end()).map(|rel| rel * 7)).collect();
        Runs { runs: runs.to_vec(), crcs }
    }

    fn encode(key: u64, leaf: &Runs, page: &mut [u8]) -> bool {
        let mut at = 0;
        let with_crcs = leaf.runs.iter().map(|run| {
            let crcs = &leaf.crcs[at..at + run.crc_count()];
            at += run.crc_count();
            (*run, crcs)
        });
        encode_into([3; 16], key, with_crcs, page)
    }

    fn sample() -> (Runs, Vec<u8>) {
        let leaf = leaf(&[
            run(3, 37, 5, 103),
            run(41, 1, 5, 200),
            run(50, 900, NOWHERE, 0),
            run(1000, 1, 4_000_000_000, 0),
            run(32767, 1, 0, 65535),
        ]);
        let mut page = vec![0xff; PAGE];
        assert!(encode(KEY, &leaf, &mut page));
        (leaf, page)
    }

    #[test]
    fn a_leaf_comes_back_as_it_was_written() {
        let (leaf, page) = sample();
        assert_eq!(decode([3; 16], KEY, &page), Ok(leaf));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&sample().1, |page| decode([3; 16], KEY, page).is_ok());
    }

    #[test]
    fn a_leaf_of_another_key_or_volume_is_refused() {
        let (_, page) = sample();
        assert!(decode([3; 16], KEY + 1, &page).is_err());
        assert!(decode([4; 16], KEY, &page).is_err());
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&sample().1, 0xb2eb_fbad);
    }

    #[test]
    fn dense_leaves_cost_little_and_250_of_the_worst_entries_fit() {
        let mut page = vec![0; PAGE];
        assert!(encode(0, &leaf(&[run(0, 1000, 5, 0)]), &mut page), "about 4 bytes a page");
        let worst: Vec<_> = (0..250).map(|i| run(i * 130 + 129, 1, u32::MAX - 1, 65535 - i)).collect();
        assert!(encode(0, &leaf(&worst), &mut page));
        assert_eq!(decode([3; 16], 0, &page), Ok(leaf(&worst)));
        let too_many: Vec<_> = (0..300).map(|i| run(i * 100, 1, u32::MAX - 1, 65535 - i)).collect();
        assert!(!encode(0, &leaf(&too_many), &mut page));
    }

    #[test]
    fn the_length_is_known_before_it_is_encoded() {
        for leaf in [sample().0, leaf(&[]), leaf(&[run(200, 300, 20_000, 4000), run(600, 1, 1, 1)])] {
            let mut page = vec![0; PAGE];
            assert!(encode(0, &leaf, &mut page));
            let mut end = 0;
            let planned: usize =
                leaf.runs.iter().map(|r| r.encoded_len(std::mem::replace(&mut end, r.end()))).sum();
            assert_eq!(usize::from(u16::from_le_bytes([page[14], page[15]])), planned);
        }
    }

    #[test]
    fn a_whole_unit_of_unmapped_pages_is_one_run() {
        let mut page = vec![0; PAGE];
        let all = leaf(&[run(0, 1 << 15, NOWHERE, 0)]);
        assert!(encode(0, &all, &mut page));
        assert_eq!(decode([3; 16], 0, &page), Ok(all));
    }

    #[test]
    fn an_empty_leaf_is_a_leaf() {
        let mut page = vec![1; PAGE];
        assert!(encode(KEY, &Runs::default(), &mut page));
        assert_eq!(decode([3; 16], KEY, &page), Ok(Runs::default()));
    }
}
