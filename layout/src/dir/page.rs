//! The header of a directory page.
//!
//! ```text
//! 0    4     5 6     8         16    20            24         28         32
//! +----+-----+-+-----+---------+-----+-------------+----------+----------+----
//! |VDIR|level|.|count|directory|index|right sibling|used pages|first free| ...
//! +----+-----+-+-----+---------+-----+-------------+----------+----------+----
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::{PAGE, PageNo};
use crate::error::{Result, corrupt};
use crate::inode::Ino;
use crate::page_store::PageBytes;

/// First bytes of each page of a directory.
pub const DIR_MAGIC: [u8; 4] = *b"VDIR";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Level of a free page.
pub const LEVEL_FREE: u8 = 255;
/// Most levels of a tree.
pub const MAX_LEVELS: usize = 6;

/// The header as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawDirHeader {
    /// [`DIR_MAGIC`].
    pub magic: [u8; 4],
    /// 0 = leaf, [`LEVEL_FREE`] = free page.
    pub level: u8,
    /// Zero.
    pub reserved: u8,
    /// Entries in this page.
    pub count: U16,
    /// The directory's inode number: against misdirected pages.
    pub dir: U64,
    /// Own page index: against misdirected pages.
    pub index: U32,
    /// Leaves: the right sibling; free pages: the next free one; 0 = none.
    pub next: U32,
    /// Page 0 only: pages used by the tree, free ones included.
    pub used: U32,
    /// Page 0 only: first free page, 0 = none.
    pub free_head: U32,
}

const _: () = {
    assert!(size_of::<RawDirHeader>() == HEADER_BYTES);
    assert!(offset_of!(RawDirHeader, magic) == 0);
    assert!(offset_of!(RawDirHeader, level) == 4);
    assert!(offset_of!(RawDirHeader, reserved) == 5);
    assert!(offset_of!(RawDirHeader, count) == 6);
    assert!(offset_of!(RawDirHeader, dir) == 8);
    assert!(offset_of!(RawDirHeader, index) == 16);
    assert!(offset_of!(RawDirHeader, next) == 20);
    assert!(offset_of!(RawDirHeader, used) == 24);
    assert!(offset_of!(RawDirHeader, free_head) == 28);
};

/// A checked header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirHeader {
    /// 0 = leaf, [`LEVEL_FREE`] = free page.
    pub level: u8,
    /// Entries in this page.
    pub count: usize,
    /// Right sibling of a leaf, next free page of a free one; 0 = none.
    pub next: u32,
    /// Page 0 only: pages used by the tree, free ones included.
    pub used: u32,
    /// Page 0 only: first free page, 0 = none.
    pub free_head: u32,
}

/// Where a directory page stands: what it must say of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirPlace {
    /// The device page, for error messages.
    pub page: PageNo,
    /// The directory.
    pub dir: Ino,
    /// The page's index in it.
    pub index: u32,
}

/// The header's bytes.
pub fn raw(bytes: &PageBytes) -> &RawDirHeader {
    let parts: &[RawDirHeader; PAGE / HEADER_BYTES] = zerocopy::transmute_ref!(bytes);
    &parts[0]
}

/// The header's bytes, for change.
pub fn raw_mut(bytes: &mut PageBytes) -> &mut RawDirHeader {
    let parts: &mut [RawDirHeader; PAGE / HEADER_BYTES] = zerocopy::transmute_mut!(bytes);
    &mut parts[0]
}

/// Checks a page's header.
///
/// # Errors
/// [`crate::error::Error::Corrupt`].
pub fn check(bytes: &PageBytes, at: DirPlace) -> Result<DirHeader> {
    let raw = raw(bytes);
    let bad = |what, expected, found| Err(corrupt(at.page, what, expected, found));
    if raw.magic != DIR_MAGIC {
        let found = u32::from_le_bytes(raw.magic);
        return bad("directory page magic", u64::from(u32::from_le_bytes(DIR_MAGIC)), u64::from(found));
    }
    if raw.dir.get() != at.dir.0 {
        return bad("directory page's inode number", at.dir.0, raw.dir.get());
    }
    if raw.index.get() != at.index {
        return bad("directory page's own index", u64::from(at.index), u64::from(raw.index.get()));
    }
    if raw.reserved != 0 {
        return bad("directory page's reserved byte", 0, u64::from(raw.reserved));
    }
    if raw.level != LEVEL_FREE && usize::from(raw.level) >= MAX_LEVELS {
        return bad("directory page level", MAX_LEVELS as u64 - 1, u64::from(raw.level));
    }
    if at.index != 0 && (raw.used.get() != 0 || raw.free_head.get() != 0) {
        return bad("tree fields outside of page 0", 0, u64::from(raw.used.get()));
    }
    if raw.level != LEVEL_FREE && raw.level != 0 && raw.next.get() != 0 {
        return bad("right sibling of an internal page", 0, u64::from(raw.next.get()));
    }
    let count = usize::from(raw.count.get());
    let most = match raw.level {
        0 => super::leaf::MAX_ENTRIES,
        LEVEL_FREE => 0,
        _ => super::branch::MAX_CHILDREN,
    };
    let least = usize::from(raw.level != LEVEL_FREE && (raw.level != 0 || at.index != 0));
    if !(least..=most).contains(&count) {
        return bad("entries of a directory page", most as u64, count as u64);
    }
    Ok(DirHeader {
        level: raw.level,
        count,
        next: raw.next.get(),
        used: raw.used.get(),
        free_head: raw.free_head.get(),
    })
}

/// Makes an empty page of a level; `next` is the right sibling or the next free page.
pub fn init(bytes: &mut PageBytes, at: DirPlace, level: u8, next: u32) {
    bytes.fill(0);
    *raw_mut(bytes) = RawDirHeader {
        magic: DIR_MAGIC,
        level,
        reserved: 0,
        count: U16::ZERO,
        dir: at.dir.0.into(),
        index: at.index.into(),
        next: next.into(),
        used: U32::ZERO,
        free_head: U32::ZERO,
    };
}

/// Moves `len` bytes inside a page; none if they do not lie in it.
pub(super) fn shift(bytes: &mut PageBytes, from: usize, to: usize, len: usize) -> Option<()> {
    let end = from.max(to).checked_add(len)?;
    let inside = bytes.get_mut(..end)?;
    inside.copy_within(from..from + len, to);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::branch::{self, Branch, Child, MAX_CHILDREN};
    use crate::dir::leaf::{self, Entry, Leaf, MAX_ENTRIES};
    use crate::error::Error;
    use crate::inode::Kind;
    use std::vec::Vec;

    const AT: DirPlace = DirPlace { page: PageNo(99), dir: Ino(5), index: 0 };
    const CHILD: DirPlace = DirPlace { page: PageNo(100), dir: Ino(5), index: 1 };

    fn entry(key: u64, name: &[u8]) -> Entry<'_> {
        Entry { key, ino: Ino(key + 1), kind: Kind::File, name }
    }

    #[test]
    fn a_leaf_stands_as_the_format_says() {
        let mut page = [0xee; PAGE];
        init(&mut page, CHILD, 0, 0x0102_0304);
        leaf::insert(&mut page, CHILD.page, 0, &entry(0x20, b"two")).expect("insert");
        leaf::insert(&mut page, CHILD.page, 0, &entry(0x10, b"one")).expect("insert");
        let mut golden = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| golden[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"VDIR\0\0\x02\0");
        put(8, &5u64.to_le_bytes());
        put(16, &1u32.to_le_bytes());
        put(20, &[4, 3, 2, 1]);
        put(32, &(4096u16 - 42).to_le_bytes());
        put(34, &(4096u16 - 21).to_le_bytes());
        put(4096 - 21, b"\x20\0\0\0\0\0\0\0\x21\0\0\0\0\0\0\0\x01\x03two");
        put(4096 - 42, b"\x10\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0\x01\x03one");
        assert!(page == golden);
        let header = check(&page, CHILD).expect("good");
        assert_eq!((header.count, header.next), (2, 0x0102_0304));
        leaf::remove(&mut page, CHILD.page, 1).expect("remove");
        leaf::replace(&mut page, CHILD.page, 0, Ino(77), Kind::Dir).expect("replace");
        let left = Leaf::new(&page, CHILD.page, 1).entry(0).expect("entry");
        assert_eq!(left, Entry { key: 0x10, ino: Ino(77), kind: Kind::Dir, name: b"one" });
        assert!(page[4096 - 42..4096 - 21].iter().all(|b| *b == 0), "removed entries leave zeros");
    }

    #[test]
    fn an_internal_page_stands_as_the_format_says() {
        let mut page = [0xee; PAGE];
        init(&mut page, AT, 1, 0);
        branch::insert(&mut page, AT.page, 0, Child { key: 0x50, index: 3 }).expect("insert");
        branch::insert(&mut page, AT.page, 0, Child { key: 0x40, index: 2 }).expect("insert");
        assert_eq!(page[..8], *b"VDIR\x01\0\x02\0");
        assert_eq!(
            page[32..64],
            *b"\x40\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x50\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
        );
        let branch = Branch::new(&page, AT.page, 2);
        let positions = [0, 0x3f, 0x4f, 0x50, u64::MAX].map(|key| branch.position(key).expect("position"));
        assert_eq!(positions, [0, 0, 0, 1, 1], "the first child's key counts as 0");
    }

    #[test]
    fn each_flipped_bit_of_a_header_is_found_or_shows() {
        let mut page = [0; PAGE];
        init(&mut page, CHILD, 0, 9);
        for i in 0..3 {
            leaf::insert(&mut page, CHILD.page, i, &entry(16 + i as u64, b"n")).expect("insert");
        }
        let good = check(&page, CHILD).expect("good");
        for at in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut page = page;
                page[at] ^= 1 << bit;
                match check(&page, CHILD) {
                    Err(Error::Corrupt(c)) => assert_eq!(c.page, CHILD.page),
                    // Level, count and sibling are seen where pages meet; the rest must be found here.
                    other => {
                        assert_ne!(other, Ok(good));
                        assert!(matches!(at, 4 | 6 | 20..24), "byte {at} bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn pages_take_as_many_entries_as_they_hold_and_no_more() {
        let mut page = [0; PAGE];
        init(&mut page, AT, 0, 0);
        for i in 0..MAX_ENTRIES {
            leaf::insert(&mut page, AT.page, i, &entry(16 + i as u64, b"n")).expect("insert");
        }
        let full = leaf::insert(&mut page, AT.page, 0, &entry(1, b"n"));
        assert!(matches!(full, Err(Error::Corrupt(_))));
        assert_eq!(check(&page, AT).map(|h| h.count), Ok(MAX_ENTRIES));

        init(&mut page, AT, 2, 0);
        for i in 0..MAX_CHILDREN {
            let child = Child { key: i as u64, index: i as u32 + 1 };
            branch::insert(&mut page, AT.page, i, child).expect("insert");
        }
        let full = branch::insert(&mut page, AT.page, 0, Child { key: 1, index: 1 });
        assert!(matches!(full, Err(Error::Corrupt(_))));
        assert_eq!(check(&page, AT).map(|h| h.count), Ok(MAX_CHILDREN));
    }

    #[test]
    fn entries_without_order_with_gaps_or_bad_names_are_found() {
        let mut page = [0; PAGE];
        init(&mut page, AT, 0, 0);
        for (i, name) in [&b"aa"[..], b"bb", b"cc"].iter().enumerate() {
            leaf::insert(&mut page, AT.page, i, &entry(16 + i as u64, name)).expect("insert");
        }
        let spoiled = |at: usize, bytes: &[u8]| {
            let mut page = page;
            page[at..at + bytes.len()].copy_from_slice(bytes);
            let leaf = Leaf::new(&page, AT.page, 3);
            let entries: Vec<_> = (0..3).map(|i| leaf.entry(i).map(|e| e.key)).collect();
            (leaf.check_all().is_ok(), entries.iter().all(Result::is_ok))
        };
        let first = PAGE - 20;
        assert_eq!(spoiled(first, &16u64.to_le_bytes()), (true, true));
        assert_eq!(spoiled(first, &18u64.to_le_bytes()), (false, true), "order");
        assert_eq!(spoiled(first, &15u64.to_le_bytes()), (true, false), "keys below 16");
        assert_eq!(spoiled(first + 16, &[8]), (true, false), "hidden kind");
        assert_eq!(spoiled(first + 17, &[0]), (false, false), "empty name");
        assert_eq!(spoiled(first + 17, &[3]), (false, false), "name past the page");
        assert_eq!(spoiled(first + 17, &[1]), (false, true), "gap");
        assert_eq!(spoiled(first + 18, b"/"), (true, false), "slash");
        assert_eq!(spoiled(32, &[31, 0]), (false, false), "slot into the header");
        assert_eq!(spoiled(32, &[255, 255]), (false, false), "slot past the page");
    }
}
