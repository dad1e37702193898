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
