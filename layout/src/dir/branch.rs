//! Internal pages: first key and page index of each child, in key order. The first entry's key counts
//! as 0, whatever stands there.
//!
//! ```text
//! 32 + 16 * i: 0 first key (8) | 8 child page index (4) | 12 reserved (4)
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{self, DirPlace, HEADER_BYTES, shift};
use crate::addr::{PAGE, PageNo};
use crate::error::{Result, corrupt};
use crate::page_store::PageBytes;

const CHILD_BYTES: usize = 16;
/// Most children of an internal page.
pub const MAX_CHILDREN: usize = (PAGE - HEADER_BYTES) / CHILD_BYTES;

/// A child as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawChild {
    /// First key below the child.
    pub key: U64,
    /// Page index of the child, never 0.
    pub child: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<RawChild>() == CHILD_BYTES);
    assert!(offset_of!(RawChild, key) == 0);
    assert!(offset_of!(RawChild, child) == 8);
    assert!(offset_of!(RawChild, reserved) == 12);
};

/// A checked child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Child {
    /// First key below the child.
    pub key: u64,
    /// Page index.
    pub index: u32,
}

/// An internal page whose header was checked.
#[derive(Clone, Copy)]
pub struct Branch<'a> {
    bytes: &'a PageBytes,
    page: PageNo,
    count: usize,
}

impl<'a> Branch<'a> {
    /// The internal page whose header says `count` entries.
    pub fn new(bytes: &'a PageBytes, page: PageNo, count: usize) -> Branch<'a> {
        Branch { bytes, page, count }
    }

    /// Child `i`.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`].
    pub fn child(&self, i: usize) -> Result<Child> {
        let at = HEADER_BYTES + i * CHILD_BYTES;
        let raw = self.bytes.get(at..).and_then(|b| RawChild::ref_from_prefix(b).ok());
        let Some((raw, _)) = raw.filter(|_| i < self.count) else {
            return Err(corrupt(self.page, "child of an internal page", self.count as u64, i as u64));
        };
        if raw.child.get() == 0 || raw.reserved.get() != 0 {
            return Err(corrupt(self.page, "child's page index", 1, u64::from(raw.child.get())));
        }
        Ok(Child { key: raw.key.get(), index: raw.child.get() })
    }

    /// The position of the child that holds a key.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`].
    pub fn position(&self, key: u64) -> Result<usize> {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.child(middle)?.key <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low - 1)
    }
}

/// Puts a child at position `pos`. The caller has checked that it fits.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] when it does not fit after all.
pub fn insert(bytes: &mut PageBytes, page: PageNo, pos: usize, child: Child) -> Result<()> {
    let count = usize::from(page::raw(bytes).count.get());
    let done = (|| {
        if pos > count || count >= MAX_CHILDREN {
            return None;
        }
        let at = HEADER_BYTES + pos * CHILD_BYTES;
        shift(bytes, at, at + CHILD_BYTES, (count - pos) * CHILD_BYTES)?;
        let raw = RawChild { key: child.key.into(), child: child.index.into(), reserved: U32::ZERO };
        bytes.get_mut(at..at + CHILD_BYTES)?.copy_from_slice(raw.as_bytes());
        page::raw_mut(bytes).count = u16::try_from(count + 1).ok()?.into();
        Some(())
    })();
    done.ok_or_else(|| corrupt(page, "room for a child", MAX_CHILDREN as u64, count as u64))
}

/// Removes the child at position `pos`.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] if there is none.
pub fn remove(bytes: &mut PageBytes, page: PageNo, pos: usize) -> Result<()> {
    let count = usize::from(page::raw(bytes).count.get());
    let done = (|| {
        let after = count.checked_sub(pos + 1)?;
        let at = HEADER_BYTES + pos * CHILD_BYTES;
        shift(bytes, at + CHILD_BYTES, at, after * CHILD_BYTES)?;
        let end = HEADER_BYTES + count * CHILD_BYTES;
        bytes.get_mut(end - CHILD_BYTES..end)?.fill(0);
        page::raw_mut(bytes).count = u16::try_from(count - 1).ok()?.into();
        Some(())
    })();
    done.ok_or_else(|| corrupt(page, "child to remove", count as u64, pos as u64))
}

/// Moves the children from `middle` on into `right`. Gives the first key there.
///
/// # Errors
/// [`crate::error::Error::Corrupt`].
pub fn split(
    left: &mut PageBytes,
    left_page: PageNo,
    right: &mut PageBytes,
    at: DirPlace,
    middle: usize,
) -> Result<u64> {
    let header = page::raw(left);
    let (level, count) = (header.level, usize::from(header.count.get()));
    page::init(right, at, level, 0);
    let first = Branch::new(left, left_page, count).child(middle)?.key;
    let done = (|| {
        let (from, end) = (HEADER_BYTES + middle * CHILD_BYTES, HEADER_BYTES + count * CHILD_BYTES);
        let moved = left.get_mut(from..end)?;
        right.get_mut(HEADER_BYTES..HEADER_BYTES + moved.len())?.copy_from_slice(moved);
        moved.fill(0);
        page::raw_mut(right).count = u16::try_from(count - middle).ok()?.into();
        page::raw_mut(left).count = u16::try_from(middle).ok()?.into();
        Some(())
    })();
    done.ok_or_else(|| corrupt(left_page, "internal page to split", count as u64, middle as u64))?;
    Ok(first)
}
