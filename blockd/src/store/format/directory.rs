//! A page of a map's directory: a tree over the map's leaves, of which a checkpoint writes only what changed.
//!
//! A page of level 0 lists leaves, one of level n + 1 pages of level n, by key. A leaf with a single entry has
//! no page of its own: the entry stands in the directory.

use layout::addr::{MAP_UNIT_PAGES, PAGE};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::leaf::{LeafEntry, NOWHERE};
use super::{Loc, Malformed, Mapping, block_crc, check, check_zero};

/// First bytes of a directory page.
pub const MAGIC: [u8; 8] = *b"VEXFSDIR";
/// Bytes before the references.
const HEAD: usize = 48;
/// References that a page has room for; few in tests, so that small maps have several levels.
pub const REFS_MAX: usize = if cfg!(test) { 12 } else { (PAGE - HEAD) / 24 };
/// Levels that a directory may have: 168^5 leaves are more than there are pages.
pub const LEVELS_MAX: u32 = 6;

/// `kind` of a reference to a page.
const KIND_PAGE: u16 = 1;
/// `kind` of a leaf's only entry.
const KIND_ENTRY: u16 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    crc: U32,
    level: U16,
    refs: U16,
    uuid: [u8; 16],
    key: U64,
    reserved: U64,
}

const _: () = assert!(size_of::<Disk>() == HEAD);
const _: () = assert!(std::mem::offset_of!(Disk, level) == 12);
const _: () = assert!(std::mem::offset_of!(Disk, uuid) == 16);
const _: () = assert!(std::mem::offset_of!(Disk, key) == 32);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DiskRef {
    key: U64,
    segment: U32,
    offset: U16,
    count: U16,
    crc: U32,
    rel: U16,
    kind: U16,
}

const _: () = assert!(size_of::<DiskRef>() == 24);
const _: () = assert!(std::mem::offset_of!(DiskRef, crc) == 16);
const _: () = assert!(std::mem::offset_of!(DiskRef, kind) == 22);

/// What a directory page says of a leaf, or of a page below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ref {
    /// Lowest device page it may map.
    pub key: u64,
    /// Where it is.
    pub target: Target,
}

/// Where a leaf, or a directory page, is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// In a page of its own; the crc is that of the whole page.
    Page {
        /// The page.
        page: Mapping,
        /// Device pages that the leaf has entries of, or references in the directory page.
        count: u16,
    },
    /// The only entry of a leaf.
    Entry(LeafEntry),
}

impl Target {
    /// Its page, if it has one.
    pub fn loc(&self) -> Option<Loc> {
        match self {
            Target::Page { page, .. } => Some(page.loc),
            Target::Entry(_) => None,
        }
    }
}

/// Fills a page.
///
/// # Panics
/// If there are more than [`REFS_MAX`] references, or `page` is not 4096 bytes.
pub fn encode_into(uuid: [u8; 16], level: u16, key: u64, refs: &[Ref], page: &mut [u8]) {
    assert!(refs.len() <= REFS_MAX, "a directory page has room for its references");
    let disk = Disk {
        magic: MAGIC,
        crc: 0.into(),
        level: level.into(),
        refs: (refs.len() as u16).into(),
        uuid,
        key: key.into(),
        reserved: 0.into(),
    };
    page[..HEAD].copy_from_slice(disk.as_bytes());
    page[HEAD..].fill(0);
    for (to, r) in page[HEAD..].chunks_exact_mut(24).zip(refs) {
        let (segment, offset, count, crc, rel, kind) = match r.target {
            Target::Page { page, count } => {
                (page.loc.segment, page.loc.offset, count, page.crc, 0, KIND_PAGE)
            }
            Target::Entry(e) => (e.segment, e.offset, 1, e.crc, e.rel, KIND_ENTRY),
        };
        let disk = DiskRef {
            key: r.key.into(),
            segment: segment.into(),
            offset: offset.into(),
            count: count.into(),
            crc: crc.into(),
            rel: rel.into(),
            kind: kind.into(),
        };
        to.copy_from_slice(disk.as_bytes());
    }
    let crc = block_crc(page, 8);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Checks and decodes the directory page of this level and key.
///
/// # Errors
/// [`Malformed`] names the field.
pub fn decode(uuid: [u8; 16], level: u16, key: u64, page: &[u8]) -> Result<Vec<Ref>, Malformed> {
    check("directory page length", PAGE as u64, page.len() as u64)?;
    let Ok((disk, rest)) = Disk::read_from_prefix(page) else {
        let (expected, found) = (PAGE as u64, page.len() as u64);
        return Err(Malformed { what: "directory page length", expected, found });
    };
    check("directory page magic", u64::from_le_bytes(MAGIC), u64::from_le_bytes(disk.magic))?;
    check("directory page crc32c", block_crc(page, 8), disk.crc.get())?;
    if disk.uuid != uuid {
        return Err(Malformed { what: "directory page uuid (of another volume)", expected: 0, found: 1 });
    }
    check("level of a directory page", level, disk.level.get())?;
    check("key of a directory page", key, disk.key.get())?;
    check("directory page reserved bytes", 0u64, disk.reserved.get())?;
    let count = usize::from(disk.refs.get());
    let Some((refs, tail)) = rest.split_at_checked(count * 24) else {
        let (expected, found) = (REFS_MAX as u64, count as u64);
        return Err(Malformed { what: "references of a directory page", expected, found });
    };
    check_zero("directory page reserved bytes", tail)?;
    let mut out = Vec::with_capacity(count);
    let mut key_min = key;
    for bytes in refs.chunks_exact(24) {
        let Ok(disk) = DiskRef::read_from_bytes(bytes) else { continue };
        let found = decode_ref(level, &disk)?;
        if found.key < key_min {
            return Err(Malformed { what: "order of directory keys", expected: key_min, found: found.key });
        }
        key_min = found.key.saturating_add(1);
        out.push(found);
    }
    Ok(out)
}

fn decode_ref(level: u16, disk: &DiskRef) -> Result<Ref, Malformed> {
    let (key, rel) = (disk.key.get(), disk.rel.get());
    let loc = Loc { segment: disk.segment.get(), offset: disk.offset.get() };
    let target = match disk.kind.get() {
        KIND_PAGE => {
            check("directory reference reserved bytes", 0u64, rel)?;
            Target::Page { page: Mapping { loc, crc: disk.crc.get() }, count: disk.count.get() }
        }
        KIND_ENTRY if level == 0 => {
            check("entries of a single entry", 1u64, disk.count.get())?;
            if u64::from(rel) < key % MAP_UNIT_PAGES || u64::from(rel) >= MAP_UNIT_PAGES {
                let found = u64::from(rel);
                return Err(Malformed { what: "page of a single entry", expected: key, found });
            }
            if loc.segment == NOWHERE {
                check(
                    "place of an entry that is nowhere",
                    0u64,
                    u64::from(loc.offset) + u64::from(disk.crc.get()),
                )?;
            }
            Target::Entry(LeafEntry { rel, offset: loc.offset, segment: loc.segment, crc: disk.crc.get() })
        }
        kind => {
            let found = u64::from(kind);
            return Err(Malformed { what: "kind of a directory reference", expected: 1, found });
        }
    };
    Ok(Ref { key, target })
}

#[cfg(test)]
mod tests {
    use super::super::tests as common;
    use super::*;

    const KEY: u64 = 40;

    fn page_ref(key: u64) -> Ref {
        let page = Mapping { loc: Loc { segment: 3, offset: key as u16 }, crc: 0xffff_0000 | key as u32 };
        Ref { key, target: Target::Page { page, count: 9 } }
    }

    fn sample() -> (Vec<Ref>, Vec<u8>) {
        let entry = |rel, segment, crc| Target::Entry(LeafEntry { rel, offset: 0, segment, crc });
        let refs = vec![
            page_ref(KEY),
            Ref { key: 1 << 15, target: entry(77, 5, 1234) },
            Ref { key: 2 << 15, target: entry(0, NOWHERE, 0) },
            page_ref(5 << 15),
        ];
        let mut page = vec![0xff; PAGE];
        encode_into([3; 16], 0, KEY, &refs, &mut page);
        (refs, page)
    }

    #[test]
    fn a_page_comes_back_as_it_was_written() {
        let (refs, page) = sample();
        assert_eq!(decode([3; 16], 0, KEY, &page), Ok(refs));
        let full: Vec<Ref> = (0..REFS_MAX as u64).map(page_ref).collect();
        let mut page = vec![0xff; PAGE];
        encode_into([3; 16], 2, 0, &full, &mut page);
        assert_eq!(decode([3; 16], 2, 0, &page), Ok(full));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        common::every_flip_is_noticed(&sample().1, |page| decode([3; 16], 0, KEY, page).is_ok());
    }

    #[test]
    fn a_page_of_another_level_key_or_volume_and_disorder_are_refused() {
        let (refs, page) = sample();
        assert!(decode([3; 16], 1, KEY, &page).is_err());
        assert!(decode([3; 16], 0, KEY + 1, &page).is_err());
        assert!(decode([4; 16], 0, KEY, &page).is_err());
        let mut page = vec![0; PAGE];
        for bad in [vec![refs[1], refs[0]], vec![refs[0], refs[0]], vec![page_ref(KEY - 1)]] {
            encode_into([3; 16], 0, KEY, &bad, &mut page);
            assert!(decode([3; 16], 0, KEY, &page).is_err(), "{bad:?}");
        }
        encode_into([3; 16], 1, KEY, &refs, &mut page);
        assert!(decode([3; 16], 1, KEY, &page).is_err(), "entries stand in level 0 only");
    }

    #[test]
    fn the_bytes_are_those_of_version_1() {
        common::golden(&sample().1, 0x0de6_895d);
    }
}
