//! Extended attributes on disk (FORMAT.md section 5.4): entries, and the header of the overflow area.
//!
//! ```text
//! entry:    0 name length (1) | 1 reserved (1) | 2 value length (2) | 4 name | value
//! overflow: 0 VXAT | 4 bytes of entries (4) | 8 inode number (8) | 16 generation (4) | 20 reserved (4)
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::addr::{PageNo, XATTR_BYTES};
use crate::error::{Result, corrupt};
use crate::inode::Inode;

/// First bytes of an overflow area.
pub const XATTR_MAGIC: [u8; 4] = *b"VXAT";
/// Bytes of the overflow area's header.
pub const XATTR_HEADER_BYTES: usize = 24;
/// Most bytes of entries in an overflow area.
pub const XATTR_ENTRIES_MAX: usize = XATTR_BYTES as usize - XATTR_HEADER_BYTES;
/// Most bytes of an attribute's name, namespace prefix included.
pub const XATTR_NAME_MAX: usize = 255;
/// Bytes of an entry before its name.
pub const XATTR_ENTRY_BYTES: usize = 4;
/// The attribute that is a file's row and never stored (FORMAT.md section 6.5).
pub const VECTOR_XATTR: &[u8] = b"user.vexfs.vector";

/// The head of an entry as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawXattr {
    /// 1..=255.
    pub name_len: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of the value.
    pub value_len: U16,
}

/// The header of an overflow area as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawXattrHeader {
    /// [`XATTR_MAGIC`].
    pub magic: [u8; 4],
    /// Bytes of entries behind the header.
    pub len: U32,
    /// Against misdirected pages.
    pub ino: U64,
    /// Against the area of an earlier life of this number.
    pub generation: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<RawXattr>() == XATTR_ENTRY_BYTES);
    assert!(offset_of!(RawXattr, name_len) == 0);
    assert!(offset_of!(RawXattr, reserved) == 1);
    assert!(offset_of!(RawXattr, value_len) == 2);
    assert!(size_of::<RawXattrHeader>() == XATTR_HEADER_BYTES);
    assert!(offset_of!(RawXattrHeader, magic) == 0);
    assert!(offset_of!(RawXattrHeader, len) == 4);
    assert!(offset_of!(RawXattrHeader, ino) == 8);
    assert!(offset_of!(RawXattrHeader, generation) == 16);
    assert!(offset_of!(RawXattrHeader, reserved) == 20);
};

impl RawXattrHeader {
    /// The header for `len` bytes of entries.
    pub fn new(inode: &Inode, len: usize) -> RawXattrHeader {
        RawXattrHeader {
            magic: XATTR_MAGIC,
            len: u32::try_from(len).unwrap_or(0).into(),
            ino: inode.ino.0.into(),
            generation: inode.generation.into(),
            reserved: U32::ZERO,
        }
    }

    /// Checks the header; gives the bytes of entries.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`].
    pub fn check(&self, page: PageNo, inode: &Inode) -> Result<usize> {
        let len = self.len.get() as usize;
        if !(1..=XATTR_ENTRIES_MAX).contains(&len) {
            return Err(corrupt(page, "bytes of overflowed xattrs", XATTR_ENTRIES_MAX as u64, len as u64));
        }
        let expected = RawXattrHeader::new(inode, len);
        if self.as_bytes() != expected.as_bytes() {
            return Err(corrupt(page, "header of overflowed xattrs", inode.ino.0, self.ino.get()));
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::inode::{Ino, Kind};
    use crate::page_store::Timespec;

    #[test]
    fn the_overflow_header_stands_as_the_format_says_and_every_flipped_bit_shows() {
        let inode = Inode::new(Ino(0x0a0b), 3, Kind::File, 0, Timespec::default());
        let header = RawXattrHeader::new(&inode, 0x0102);
        let golden = *b"VXAT\x02\x01\0\0\x0b\x0a\0\0\0\0\0\0\x03\0\0\0\0\0\0\0";
        assert_eq!(header.as_bytes(), golden);
        assert_eq!(header.check(PageNo(7), &inode), Ok(0x0102));
        for at in 0..golden.len() {
            for bit in 0..8 {
                let mut header = header;
                header.as_mut_bytes()[at] ^= 1 << bit;
                match header.check(PageNo(7), &inode) {
                    Ok(len) => assert!((4..6).contains(&at) && len != 0x0102, "byte {at} bit {bit}"),
                    Err(error) => assert!(matches!(error, Error::Corrupt(c) if c.page == PageNo(7))),
                }
            }
        }
        assert!(RawXattrHeader::new(&inode, 0).check(PageNo(7), &inode).is_err());
    }
}
