//! Leaves: slots from byte 32 upward in key order, entries from the page's end downward.
//!
//! ```text
//! 32 u16 slots ->                    free                    <- entries, without gaps 4096
//! entry: 0 key (8) | 8 inode number (8) | 16 kind (1) | 17 name length (1) | 18 name
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{self, DirPlace, HEADER_BYTES, shift};
use crate::addr::{PAGE, PageNo};
use crate::error::{Error, Result, corrupt};
use crate::inode::{Ino, Kind};
use crate::page_store::PageBytes;

const SLOT_BYTES: usize = 2;
/// Bytes of an entry before its name.
pub const ENTRY_BYTES: usize = 18;
/// Most entries of a leaf: names of one byte.
pub const MAX_ENTRIES: usize = (PAGE - HEADER_BYTES) / (ENTRY_BYTES + 1 + SLOT_BYTES);

/// The head of an entry as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawEntry {
    /// Hash of the name and ordinal; never below 16.
    pub key: U64,
    /// The inode.
    pub ino: U64,
    /// 1..=7 as [`Kind`].
    pub kind: u8,
    /// 1..=255.
    pub name_len: u8,
}

const _: () = {
    assert!(size_of::<RawEntry>() == ENTRY_BYTES);
    assert!(offset_of!(RawEntry, key) == 0);
    assert!(offset_of!(RawEntry, ino) == 8);
    assert!(offset_of!(RawEntry, kind) == 16);
    assert!(offset_of!(RawEntry, name_len) == 17);
};

/// A checked entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Hash of the name and ordinal.
    pub key: u64,
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// 1..=255 bytes.
    pub name: &'a [u8],
}

impl Entry<'_> {
    /// Bytes that the entry takes, its slot included.
    pub const fn cost(name_len: usize) -> usize {
        ENTRY_BYTES + SLOT_BYTES + name_len
    }
}

/// A leaf whose header was checked.
#[derive(Clone, Copy)]
pub struct Leaf<'a> {
    bytes: &'a PageBytes,
    page: PageNo,
    count: usize,
}

fn slot_at(bytes: &PageBytes, i: usize) -> Option<usize> {
    let at = HEADER_BYTES + i * SLOT_BYTES;
    let slot = bytes.get(at..)?.first_chunk::<2>()?;
    Some(usize::from(u16::from_le_bytes(*slot)))
}

fn set_slot(bytes: &mut PageBytes, i: usize, value: usize) -> Option<()> {
    let at = HEADER_BYTES + i * SLOT_BYTES;
    *bytes.get_mut(at..)?.first_chunk_mut::<2>()? = u16::try_from(value).ok()?.to_le_bytes();
    Some(())
}

impl<'a> Leaf<'a> {
    /// The leaf in a page whose header says level 0 and `count` entries.
    pub fn new(bytes: &'a PageBytes, page: PageNo, count: usize) -> Leaf<'a> {
        Leaf { bytes, page, count }
    }

    fn bad(&self, what: &'static str, expected: u64, found: u64) -> Error {
        corrupt(self.page, what, expected, found)
    }

    /// The head of entry `i`, and the byte where it stands.
    fn raw(&self, i: usize) -> Result<(usize, &'a RawEntry)> {
        let at = slot_at(self.bytes, i).filter(|_| i < self.count);
        let at = at.ok_or_else(|| self.bad("leaf slot", self.count as u64, i as u64))?;
        let entry = self.bytes.get(at..).and_then(|b| RawEntry::ref_from_prefix(b).ok());
        match entry {
            Some((raw, _)) if at >= HEADER_BYTES + self.count * SLOT_BYTES => Ok((at, raw)),
            _ => Err(self.bad("leaf entry inside its page", PAGE as u64, at as u64)),
        }
    }

    /// Key of entry `i`.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn key(&self, i: usize) -> Result<u64> {
        Ok(self.raw(i)?.1.key.get())
    }

    /// Entry `i`.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn entry(&self, i: usize) -> Result<Entry<'a>> {
        let (at, raw) = self.raw(i)?;
        let key = raw.key.get();
        if !(16..1 << 63).contains(&key) {
            return Err(self.bad("key of an entry", 16, key));
        }
        let kind = Kind::from_code(raw.kind).filter(|kind| *kind != Kind::Rows);
        let kind = kind.ok_or_else(|| self.bad("kind of an entry", 7, u64::from(raw.kind)))?;
        let name = self.name(at, raw)?;
        if name.iter().any(|b| *b == b'/' || *b == 0) {
            return Err(self.bad("name without / and NUL", 0, key));
        }
        Ok(Entry { key, ino: Ino(raw.ino.get()), kind, name })
    }

    fn name(&self, at: usize, raw: &RawEntry) -> Result<&'a [u8]> {
        let start = at + ENTRY_BYTES;
        let name = self.bytes.get(start..start + usize::from(raw.name_len)).filter(|name| !name.is_empty());
        name.ok_or_else(|| self.bad("name length of an entry", 255, u64::from(raw.name_len)))
    }

    /// Byte where entry `i` stands, its bytes, its key.
    fn span(&self, i: usize) -> Result<(usize, usize, u64)> {
        let (at, raw) = self.raw(i)?;
        Ok((at, ENTRY_BYTES + self.name(at, raw)?.len(), raw.key.get()))
    }

    /// The first entry whose key is not less, or the count.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn lower_bound(&self, key: u64) -> Result<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle)? < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Checks every entry's place, that keys grow and that entries fill the page without gaps. Gives the byte
    /// where the entries begin. A page is checked so before each change.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn check_all(&self) -> Result<usize> {
        let (mut low, mut sum, mut last) = (PAGE, 0, 0);
        for i in 0..self.count {
            let (at, len, key) = self.span(i)?;
            if key <= last {
                return Err(self.bad("leaf keys in ascending order", last, key));
            }
            last = key;
            low = low.min(at);
            sum += len;
        }
        if low + sum != PAGE {
            return Err(self.bad("leaf entries without gaps", PAGE as u64 - sum as u64, low as u64));
        }
        Ok(low)
    }

    /// Bytes free for one more entry ([`Entry::cost`]).
    ///
    /// # Errors
    /// As [`Leaf::check_all`].
    pub fn free_bytes(&self) -> Result<usize> {
        Ok(self.check_all()?.saturating_sub(HEADER_BYTES + self.count * SLOT_BYTES))
    }

    /// The number of entries that stay in the left half of a split: about half of the bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn split_point(&self) -> Result<usize> {
        let half = (PAGE - self.check_all()?) / 2;
        let mut sum = 0;
        for i in 0..self.count {
            sum += self.span(i)?.1;
            if sum >= half {
                return Ok((i + 1).min(self.count.saturating_sub(1)).max(1));
            }
        }
        Ok(self.count.saturating_sub(1).max(1))
    }
}

/// Puts an entry at position `pos`. The caller has checked that it fits.
///
/// # Errors
/// [`Error::Corrupt`] when it does not fit after all; the page is spoiled then.
pub fn insert(bytes: &mut PageBytes, page: PageNo, pos: usize, entry: &Entry<'_>) -> Result<()> {
    let count = usize::from(page::raw(bytes).count.get());
    let low = Leaf::new(bytes, page, count).check_all()?;
    let done = (|| {
        let at = low.checked_sub(ENTRY_BYTES + entry.name.len())?;
        if pos > count || at < HEADER_BYTES + (count + 1) * SLOT_BYTES {
            return None;
        }
        let slot = HEADER_BYTES + pos * SLOT_BYTES;
        shift(bytes, slot, slot + SLOT_BYTES, (count - pos) * SLOT_BYTES)?;
        set_slot(bytes, pos, at)?;
        let head = RawEntry {
            key: entry.key.into(),
            ino: entry.ino.0.into(),
            kind: entry.kind as u8,
            name_len: u8::try_from(entry.name.len()).ok()?,
        };
        bytes.get_mut(at..at + ENTRY_BYTES)?.copy_from_slice(head.as_bytes());
        let start = at + ENTRY_BYTES;
        bytes.get_mut(start..start + entry.name.len())?.copy_from_slice(entry.name);
        page::raw_mut(bytes).count = u16::try_from(count + 1).ok()?.into();
        Some(())
    })();
    done.ok_or_else(|| {
        corrupt(page, "room for a leaf entry", Entry::cost(entry.name.len()) as u64, low as u64)
    })
}

/// Removes the entry at position `pos`.
///
/// # Errors
/// [`Error::Corrupt`]; the page is unchanged unless it was corrupt.
pub fn remove(bytes: &mut PageBytes, page: PageNo, pos: usize) -> Result<()> {
    let count = usize::from(page::raw(bytes).count.get());
    let leaf = Leaf::new(bytes, page, count);
    let low = leaf.check_all()?;
    let (at, len, _) = leaf.span(pos)?;
    let done = (|| {
        shift(bytes, low, low + len, at - low)?;
        bytes.get_mut(low..low + len)?.fill(0);
        for i in 0..count {
            let other = slot_at(bytes, i)?;
            if other < at {
                set_slot(bytes, i, other + len)?;
            }
        }
        let slot = HEADER_BYTES + pos * SLOT_BYTES;
        shift(bytes, slot + SLOT_BYTES, slot, (count - pos - 1) * SLOT_BYTES)?;
        set_slot(bytes, count - 1, 0)?;
        page::raw_mut(bytes).count = u16::try_from(count - 1).ok()?.into();
        Some(())
    })();
    done.ok_or_else(|| corrupt(page, "leaf entry to remove", count as u64, pos as u64))
}

/// Makes the entry at position `pos` name another inode.
///
/// # Errors
/// [`Error::Corrupt`].
pub fn replace(bytes: &mut PageBytes, page: PageNo, pos: usize, ino: Ino, kind: Kind) -> Result<()> {
    let count = usize::from(page::raw(bytes).count.get());
    let (at, raw) = Leaf::new(bytes, page, count).raw(pos)?;
    let head = RawEntry { ino: ino.0.into(), kind: kind as u8, ..*raw };
    if let Some(place) = bytes.get_mut(at..at + ENTRY_BYTES) {
        place.copy_from_slice(head.as_bytes());
    }
    Ok(())
}

/// Moves the entries from `middle` on into `right`, which becomes the right sibling. Gives the first key there.
///
/// # Errors
/// [`Error::Corrupt`]; both pages are spoiled then.
pub fn split(
    left: &mut PageBytes,
    left_page: PageNo,
    right: &mut PageBytes,
    at: DirPlace,
    middle: usize,
) -> Result<u64> {
    let header = page::raw(left);
    let count = usize::from(header.count.get());
    page::init(right, at, 0, header.next.get());
    let leaf = Leaf::new(left, left_page, count);
    let first = leaf.key(middle)?;
    for i in middle..count {
        insert(right, at.page, i - middle, &leaf.entry(i)?)?;
    }
    for i in (middle..count).rev() {
        remove(left, left_page, i)?;
    }
    page::raw_mut(left).next = at.index.into();
    Ok(first)
}
