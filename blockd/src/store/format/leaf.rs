//! A map leaf: the mapped pages of a part of one unit (2^15 device pages), in one page.
//!
//! Entries are runs: pages that follow one another and stand one after another in the log.
//! A run is: gap (varint: first page - end of the run before), count (varint), segment (varint), page of the
//! segment (varint), then `count` crcs of 4 bytes. Worst case 5+5+5+3... bytes a page, 4 at best.

use layout::addr::{MAP_UNIT_PAGES, PAGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Cursor, Loc, Malformed, block_crc, check, check_zero, push_varint};

/// First bytes of a leaf.
pub const MAGIC: [u8; 8] = *b"VEXFSLEF";
/// Bytes before the runs.
const HEAD: usize = 48;

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

/// A mapped page of a unit: 12 bytes, against the budget of 16 for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafEntry {
    /// Page within the unit.
    pub rel: u16,
    /// Page within the segment.
    pub offset: u16,
    /// Segment.
    pub segment: u32,
    /// Crc of the page.
    pub crc: u32,
}

const _: () = assert!(size_of::<LeafEntry>() == 12);

impl LeafEntry {
    /// Its place.
    pub fn loc(&self) -> Loc {
        Loc { segment: self.segment, offset: self.offset }
    }
}

/// Fills a page with the leaf of `key` (its lowest device page); false if it does not fit.
///
/// # Panics
/// If `page` is not 4096 bytes.
pub fn encode_into(uuid: [u8; 16], key: u64, entries: &[LeafEntry], page: &mut [u8]) -> bool {
    let mut runs = Vec::with_capacity(PAGE);
    let mut i = 0;
    let mut end = 0u32;
    while i < entries.len() {
        let first = entries[i];
        let mut count = 1;
        while entries.get(i + count).is_some_and(|e| {
            u32::from(e.rel) == u32::from(first.rel) + count as u32
                && e.segment == first.segment
                && u32::from(e.offset) == u32::from(first.offset) + count as u32
        }) {
            count += 1;
        }
        push_varint(&mut runs, u32::from(first.rel) - end);
        push_varint(&mut runs, count as u32);
        push_varint(&mut runs, first.segment);
        push_varint(&mut runs, u32::from(first.offset));
        entries[i..i + count].iter().for_each(|e| runs.extend_from_slice(&e.crc.to_le_bytes()));
        end = u32::from(first.rel) + count as u32;
        i += count;
        if runs.len() > PAGE - HEAD {
            return false;
        }
    }
    let disk = Disk {
        magic: MAGIC,
        crc: 0.into(),
        entries: (entries.len() as u16).into(),
        run_bytes: (runs.len() as u16).into(),
        uuid,
        key: key.into(),
        reserved: 0.into(),
    };
    page[..HEAD].copy_from_slice(disk.as_bytes());
    page[HEAD..HEAD + runs.len()].copy_from_slice(&runs);
    page[HEAD + runs.len()..].fill(0);
    let crc = block_crc(page, 8);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    true
}

/// Checks and decodes the leaf of `key`.
///
/// # Errors
/// [`Malformed`] names the field.
pub fn decode(uuid: [u8; 16], key: u64, page: &[u8]) -> Result<Vec<LeafEntry>, Malformed> {
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
        return Err(Malformed {
            what: "bytes of runs",
            expected: (PAGE - HEAD) as u64,
            found: run_bytes as u64,
        });
    };
    check_zero("map leaf reserved bytes", tail)?;
    let mut cursor = Cursor::new(runs, "run of a map leaf");
    let mut entries = Vec::with_capacity(usize::from(disk.entries.get()));
    let mut end = 0u64;
    while cursor.left() > 0 {
        let (gap, count) = (cursor.varint()?, cursor.varint()?);
        let (segment, offset) = (cursor.varint()?, cursor.varint()?);
        let first = end + u64::from(gap);
        end = first + u64::from(count);
        if count == 0 || end > MAP_UNIT_PAGES || u64::from(offset) + u64::from(count) > 65536 {
            return Err(Malformed { what: "end of a run", expected: MAP_UNIT_PAGES, found: end });
        }
        for i in 0..count {
            let (rel, offset) = ((first as u32 + i) as u16, (offset + i) as u16);
            entries.push(LeafEntry { rel, offset, segment, crc: cursor.u32()? });
        }
    }
    check("entries of a map leaf", disk.entries.get(), entries.len() as u64)?;
    if entries.first().is_some_and(|e| u64::from(e.rel) < key % MAP_UNIT_PAGES) {
        return Err(Malformed { what: "first page of a map leaf", expected: key, found: 0 });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    const KEY: u64 = (77 << 15) + 3;

    fn entry(rel: u16, segment: u32, offset: u16) -> LeafEntry {
        LeafEntry { rel, offset, segment, crc: u32::from(rel) * 7 }
    }

    fn sample() -> (Vec<LeafEntry>, Vec<u8>) {
        let mut entries: Vec<_> = (3..40).map(|i| entry(i, 5, 100 + i)).collect();
        entries.extend([entry(41, 5, 200), entry(1000, 4_000_000_000, 0), entry(32767, 0, 65535)]);
        let mut page = vec![0xff; PAGE];
        assert!(encode_into([3; 16], KEY, &entries, &mut page));
        (entries, page)
    }

    #[test]
    fn a_leaf_comes_back_as_it_was_written() {
        let (entries, page) = sample();
        assert_eq!(decode([3; 16], KEY, &page), Ok(entries));
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
        common::golden(&sample().1, 0xd7ad_fe1e);
    }

    #[test]
    fn dense_leaves_cost_little_and_250_of_the_worst_entries_fit() {
        let mut page = vec![0; PAGE];
        let dense: Vec<_> = (0..1000).map(|i| entry(i, 5, i)).collect();
        assert!(encode_into([3; 16], 0, &dense, &mut page), "about 4 bytes a page");
        let worst: Vec<_> = (0..250).map(|i| entry(i * 130 + 129, u32::MAX, 65535 - i)).collect();
        assert!(encode_into([3; 16], 0, &worst, &mut page));
        assert_eq!(decode([3; 16], 0, &page), Ok(worst));
        let too_many: Vec<_> = (0..300).map(|i| entry(i * 100, u32::MAX, 65535 - i)).collect();
        assert!(!encode_into([3; 16], 0, &too_many, &mut page));
    }

    #[test]
    fn an_empty_leaf_is_a_leaf() {
        let mut page = vec![1; PAGE];
        assert!(encode_into([3; 16], KEY, &[], &mut page));
        assert_eq!(decode([3; 16], KEY, &page), Ok(Vec::new()));
    }
}
