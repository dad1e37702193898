//! Row headers: 64 bytes each, 64 of them in the first page of a chunk (FORMAT.md section 6.2).
//!
//! Life of a slot: *unused* (zeros) -> LIVE -> DEAD. When all 64 are dead the pages are unmapped,
//! and read as zeros again: 64 rows that are not live.
//!
//! ```text
//! 0   8          12    16           24     32     40  48   56       64
//! +---+----------+-----+------------+------+------+---+----+--------+
//! |ino|generation|flags|data version|offset|length|tag|next|reserved|
//! +---+----------+-----+------------+------+------+---+----+--------+
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref};

use crate::addr::{PAGE, PageNo};
use crate::error::{Result, corrupt};
use crate::inode::Ino;
use crate::page_store::PageBytes;
use crate::schema::CHUNK_ROWS;

const LIVE: u32 = 1;
const DEAD: u32 = 2;

/// A row header as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawRow {
    ino: U64,
    generation: U32,
    flags: U32,
    data_version: U64,
    offset: U64,
    length: U64,
    tag: U64,
    next: U64,
    reserved: U64,
}

const _: () = assert!(size_of::<RawRow>() == 64);
const _: () = assert!(size_of::<RawRow>() * CHUNK_ROWS as usize == PAGE);
const _: () = assert!(offset_of!(RawRow, generation) == 8);
const _: () = assert!(offset_of!(RawRow, flags) == 12);
const _: () = assert!(offset_of!(RawRow, data_version) == 16);
const _: () = assert!(offset_of!(RawRow, offset) == 24);
const _: () = assert!(offset_of!(RawRow, length) == 32);
const _: () = assert!(offset_of!(RawRow, tag) == 40);
const _: () = assert!(offset_of!(RawRow, next) == 48);
const _: () = assert!(offset_of!(RawRow, reserved) == 56);

/// A live row: what its vector stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The file.
    pub ino: Ino,
    /// The file's generation; another one means that the row is dead.
    pub generation: u32,
    /// The file's data version when the vector was computed; another one means stale.
    pub data_version: u64,
    /// First byte of the passage.
    pub offset: u64,
    /// Bytes of the passage.
    pub length: u64,
    /// 64 bits for the user.
    pub tag: u64,
    /// The next row of the same file.
    pub next: Option<u64>,
}

impl RawRow {
    /// Whether its own flags say that it is live. Wrong flags are found by [`RawRow::decode`].
    pub fn is_live(&self) -> bool {
        self.flags.get() & (LIVE | DEAD) == LIVE
    }

    /// The user's tag.
    pub fn tag(&self) -> u64 {
        self.tag.get()
    }

    /// The row, if it is live; `page` is where the header stands.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] for unknown flags or reserved bytes.
    pub fn decode(&self, page: PageNo) -> Result<Option<Row>> {
        let flags = self.flags.get();
        match flags {
            LIVE => {}
            0 | DEAD => return Ok(None),
            _ => return Err(corrupt(page, "row header: flags", LIVE.into(), flags.into())),
        }
        if self.reserved.get() != 0 {
            return Err(corrupt(page, "row header: reserved bytes", 0, self.reserved.get()));
        }
        Ok(Some(Row {
            ino: Ino(self.ino.get()),
            generation: self.generation.get(),
            data_version: self.data_version.get(),
            offset: self.offset.get(),
            length: self.length.get(),
            tag: self.tag.get(),
            next: self.next.get().checked_sub(1),
        }))
    }

    /// The header of a live row.
    pub fn live(row: &Row) -> Self {
        RawRow {
            ino: U64::new(row.ino.0),
            generation: U32::new(row.generation),
            flags: U32::new(LIVE),
            data_version: U64::new(row.data_version),
            offset: U64::new(row.offset),
            length: U64::new(row.length),
            tag: U64::new(row.tag),
            next: U64::new(row.next.map_or(0, |id| id + 1)),
            reserved: U64::ZERO,
        }
    }

    /// Marks it dead.
    pub fn kill(&mut self) {
        self.flags = U32::new(DEAD);
    }
}

/// The 64 headers of a chunk.
pub fn headers(page: &PageBytes) -> &[RawRow; CHUNK_ROWS as usize] {
    transmute_ref!(page)
}

/// The 64 headers of a chunk, for change.
pub fn headers_mut(page: &mut PageBytes) -> &mut [RawRow; CHUNK_ROWS as usize] {
    transmute_mut!(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row {
        ino: Ino(0x0102),
        generation: 3,
        data_version: 4,
        offset: 5,
        length: 6,
        tag: 0x8000_0000_0000_0001,
        next: Some(8),
    };

    #[test]
    fn header_bytes_are_as_format_md_says() {
        let raw = RawRow::live(&ROW);
        let mut expected = [0; 64];
        expected[..2].copy_from_slice(&[2, 1]);
        for (at, value) in [(8, 3), (12, 1), (16, 4), (24, 5), (32, 6), (40, 1), (47, 0x80), (48, 9)] {
            expected[at] = value;
        }
        assert_eq!(raw.as_bytes(), expected);
        assert_eq!(raw.decode(PageNo(1)), Ok(Some(ROW)));
    }

    #[test]
    fn dead_and_unused_rows_are_not_live() {
        let mut raw = RawRow::live(&ROW);
        assert!(raw.is_live());
        raw.kill();
        assert!(!raw.is_live());
        assert_eq!(raw.decode(PageNo(1)), Ok(None));
        let zeros = [0; PAGE];
        assert!(headers(&zeros).iter().all(|raw| raw.decode(PageNo(1)) == Ok(None)));
    }

    #[test]
    fn flipped_flags_and_reserved_bytes_never_pass_as_the_same_row() {
        let raw = RawRow::live(&ROW);
        for bit in 0..64 * 8 {
            let mut bytes = [0; 64];
            bytes.copy_from_slice(raw.as_bytes());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(flipped) = RawRow::ref_from_bytes(&bytes) else { panic!("64 bytes are a header") };
            assert_ne!(flipped.decode(PageNo(1)), Ok(Some(ROW)), "bit {bit}");
            if (56..64).contains(&(bit / 8)) {
                assert!(flipped.decode(PageNo(1)).is_err(), "bit {bit}");
            }
        }
    }
}
