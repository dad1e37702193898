//! The inode slot on disk: 512 bytes in the inode table.
//!
//! ```text
//! 0    4    5 6    8     12  16  20   24   32         36    40           48      80
//! +----+----+-+----+-----+---+---+----+----+----------+-----+------------+-------+------
//! |VINO|kind|.|perm|nlink|uid|gid|rdev|size|generation|flags|data version|4 secs |4 nanos
//! +----+----+-+----+-----+---+---+----+----+----------+-----+------------+-------+------
//! 96 windows[3] | 108 inline len | 110 inline kind | . | 112 place dir, key | 128 rows ino
//! 136 first row | 144 rows | . | 152 orphan prev, next | 168 own number | 176 entries | .
//! 192 inline area ... 512
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref};

use super::{INLINE_BYTES, INODES_PER_PAGE, Inline, Ino, Inode, InodeFlags, Kind, WINDOW_LIMITS};
use crate::addr::{INO_LIMIT, PageNo};
use crate::error::{Result, corrupt};
use crate::page_store::{PageBytes, Timespec};

/// First bytes of every slot that was ever used: against zeros and misdirected pages.
pub const INODE_MAGIC: [u8; 4] = *b"VINO";

const KIND_FREE: u8 = 9;

/// An inode slot as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RawInode {
    /// [`INODE_MAGIC`].
    pub magic: [u8; 4],
    /// 1..=8 as [`Kind`], 9 free.
    pub kind: u8,
    /// Zero.
    pub reserved0: u8,
    /// Permission bits.
    pub perm: U16,
    /// Link count.
    pub nlink: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Device number, Linux `new_encode_dev`.
    pub rdev: U32,
    /// Bytes.
    pub size: U64,
    /// Against use of a handle to an earlier life of this number.
    pub generation: U32,
    /// [`InodeFlags`].
    pub flags: U32,
    /// FORMAT.md 6.3.
    pub data_version: U64,
    /// atime, mtime, ctime, btime: seconds.
    pub secs: [I64; 4],
    /// atime, mtime, ctime, btime: nanoseconds.
    pub nanos: [U32; 4],
    /// Window number + 1 of classes 1, 2, 3.
    pub windows: [U32; 3],
    /// Bytes used of the inline area.
    pub inline_len: U16,
    /// [`Inline`].
    pub inline_kind: u8,
    /// Zero.
    pub reserved1: u8,
    /// Directory of the place, 0 = unknown.
    pub place_dir: U64,
    /// Key of the place.
    pub place_key: U64,
    /// Rows inode, 0 = none.
    pub rows_ino: U64,
    /// First row's id + 1, 0 = none.
    pub first_row: U64,
    /// Live rows.
    pub row_count: U32,
    /// Zero.
    pub reserved2: U32,
    /// Previous of the orphan list.
    pub orphan_prev: U64,
    /// Next of the orphan list.
    pub orphan_next: U64,
    /// Own number: against misdirected pages.
    pub ino: U64,
    /// Entries of a directory.
    pub entries: U64,
    /// Zero.
    pub reserved3: U64,
    /// Symlink target or xattr entries.
    pub inline: [u8; INLINE_BYTES],
}

const _: () = {
    assert!(size_of::<RawInode>() == 512);
    assert!(offset_of!(RawInode, magic) == 0);
    assert!(offset_of!(RawInode, kind) == 4);
    assert!(offset_of!(RawInode, reserved0) == 5);
    assert!(offset_of!(RawInode, perm) == 6);
    assert!(offset_of!(RawInode, nlink) == 8);
    assert!(offset_of!(RawInode, uid) == 12);
    assert!(offset_of!(RawInode, gid) == 16);
    assert!(offset_of!(RawInode, rdev) == 20);
    assert!(offset_of!(RawInode, size) == 24);
    assert!(offset_of!(RawInode, generation) == 32);
    assert!(offset_of!(RawInode, flags) == 36);
    assert!(offset_of!(RawInode, data_version) == 40);
    assert!(offset_of!(RawInode, secs) == 48);
    assert!(offset_of!(RawInode, nanos) == 80);
    assert!(offset_of!(RawInode, windows) == 96);
    assert!(offset_of!(RawInode, inline_len) == 108);
    assert!(offset_of!(RawInode, inline_kind) == 110);
    assert!(offset_of!(RawInode, reserved1) == 111);
    assert!(offset_of!(RawInode, place_dir) == 112);
    assert!(offset_of!(RawInode, place_key) == 120);
    assert!(offset_of!(RawInode, rows_ino) == 128);
    assert!(offset_of!(RawInode, first_row) == 136);
    assert!(offset_of!(RawInode, row_count) == 144);
    assert!(offset_of!(RawInode, reserved2) == 148);
    assert!(offset_of!(RawInode, orphan_prev) == 152);
    assert!(offset_of!(RawInode, orphan_next) == 160);
    assert!(offset_of!(RawInode, ino) == 168);
    assert!(offset_of!(RawInode, entries) == 176);
    assert!(offset_of!(RawInode, reserved3) == 184);
    assert!(offset_of!(RawInode, inline) == 192);
};

/// What a slot of the inode table holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// Zeros.
    NeverUsed,
    /// Was used; its last generation.
    Free(u32),
    /// In use (hidden ones too).
    Used(Inode),
}

/// The slot of an inode number in its page of the table.
pub fn slot(page: &PageBytes, ino: Ino) -> &RawInode {
    let slots: &[RawInode; INODES_PER_PAGE] = transmute_ref!(page);
    &slots[ino.0 as usize % INODES_PER_PAGE]
}

/// As [`slot`], for change.
pub fn slot_mut(page: &mut PageBytes, ino: Ino) -> &mut RawInode {
    let slots: &mut [RawInode; INODES_PER_PAGE] = transmute_mut!(page);
    &mut slots[ino.0 as usize % INODES_PER_PAGE]
}

impl RawInode {
    /// A slot of zeros.
    pub const ZERO: RawInode = zerocopy::transmute!([0u8; 512]);

    /// The slot of a freed inode.
    pub fn free(ino: Ino, generation: u32) -> RawInode {
        RawInode {
            magic: INODE_MAGIC,
            kind: KIND_FREE,
            generation: generation.into(),
            ino: ino.0.into(),
            ..RawInode::ZERO
        }
    }

    /// Decodes and checks the slot; `page` and `ino` say where it was read.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] for what FORMAT.md forbids.
    pub fn decode(&self, page: PageNo, ino: Ino) -> Result<Slot> {
        let bad = |what, expected, found| Err(corrupt(page, what, expected, found));
        if self.magic != INODE_MAGIC {
            if self.as_bytes().iter().all(|&b| b == 0) {
                return Ok(Slot::NeverUsed);
            }
            let found = u32::from_le_bytes(self.magic);
            return bad("inode magic", u64::from(u32::from_le_bytes(INODE_MAGIC)), u64::from(found));
        }
        if self.ino.get() != ino.0 {
            return bad("inode's own number", ino.0, self.ino.get());
        }
        if self.kind == KIND_FREE {
            let expected = RawInode::free(ino, self.generation.get());
            if self.as_bytes() != expected.as_bytes() {
                return bad("free inode has fields set", 0, 1);
            }
            return Ok(Slot::Free(self.generation.get()));
        }
        let Some(kind) = Kind::from_code(self.kind) else {
            return bad("inode kind", 9, u64::from(self.kind));
        };
        let reserved = u64::from(self.reserved0)
            | u64::from(self.reserved1)
            | u64::from(self.reserved2.get())
            | self.reserved3.get();
        if reserved != 0 {
            return bad("inode reserved bytes", 0, reserved);
        }
        if self.perm.get() > 0o7777 {
            return bad("inode permission bits", 0o7777, u64::from(self.perm.get()));
        }
        let Some(flags) = InodeFlags::from_bits(self.flags.get()) else {
            return bad("inode flags", u64::from(InodeFlags::all().bits()), u64::from(self.flags.get()));
        };
        for nanos in self.nanos {
            if nanos.get() >= 1_000_000_000 {
                return bad("inode nanoseconds", 1_000_000_000, u64::from(nanos.get()));
            }
        }
        let windows = self.windows.map(U32::get);
        for (window, limit) in windows.iter().zip(WINDOW_LIMITS) {
            if *window > limit {
                return bad("inode window", u64::from(limit), u64::from(*window));
            }
        }
        for number in [&self.place_dir, &self.rows_ino, &self.orphan_prev, &self.orphan_next] {
            if number.get() >= INO_LIMIT {
                return bad("inode number in an inode", INO_LIMIT, number.get());
            }
        }
        let inline = match self.inline_kind {
            0 => Inline::Nothing,
            1 => Inline::Symlink,
            2 => Inline::Xattr,
            other => return bad("inode inline kind", 2, u64::from(other)),
        };
        let inline_len = self.inline_len.get();
        if usize::from(inline_len) > INLINE_BYTES || (inline == Inline::Nothing) != (inline_len == 0) {
            return bad("inode inline length", INLINE_BYTES as u64, u64::from(inline_len));
        }
        let time = |i: usize| Timespec {
            secs: self.secs.get(i).map_or(0, |s| s.get()),
            nanos: self.nanos.get(i).map_or(0, |n| n.get()),
        };
        let inode = Inode {
            ino,
            kind,
            perm: self.perm.get(),
            nlink: self.nlink.get(),
            uid: self.uid.get(),
            gid: self.gid.get(),
            rdev: self.rdev.get(),
            size: self.size.get(),
            generation: self.generation.get(),
            flags,
            data_version: self.data_version.get(),
            atime: time(0),
            mtime: time(1),
            ctime: time(2),
            btime: time(3),
            windows,
            inline_len,
            inline,
            place_dir: Ino(self.place_dir.get()),
            place_key: self.place_key.get(),
            rows_ino: Ino(self.rows_ino.get()),
            first_row: self.first_row.get(),
            row_count: self.row_count.get(),
            orphan_prev: Ino(self.orphan_prev.get()),
            orphan_next: Ino(self.orphan_next.get()),
            entries: self.entries.get(),
        };
        inode.check_kind(page)?;
        Ok(Slot::Used(inode))
    }

    /// The used part of the inline area.
    pub fn inline_bytes(&self) -> &[u8] {
        self.inline.get(..usize::from(self.inline_len.get())).unwrap_or(&[])
    }
}

impl Inode {
    /// Writes everything but the inline area into the slot.
    pub fn encode(&self, raw: &mut RawInode) {
        let times = [self.atime, self.mtime, self.ctime, self.btime];
        *raw = RawInode {
            magic: INODE_MAGIC,
            kind: self.kind as u8,
            reserved0: 0,
            perm: self.perm.into(),
            nlink: self.nlink.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            rdev: self.rdev.into(),
            size: self.size.into(),
            generation: self.generation.into(),
            flags: self.flags.bits().into(),
            data_version: self.data_version.into(),
            secs: times.map(|t| t.secs.into()),
            nanos: times.map(|t| t.nanos.into()),
            windows: self.windows.map(U32::new),
            inline_len: self.inline_len.into(),
            inline_kind: self.inline as u8,
            reserved1: 0,
            place_dir: self.place_dir.0.into(),
            place_key: self.place_key.into(),
            rows_ino: self.rows_ino.0.into(),
            first_row: self.first_row.into(),
            row_count: self.row_count.into(),
            reserved2: U32::ZERO,
            orphan_prev: self.orphan_prev.0.into(),
            orphan_next: self.orphan_next.0.into(),
            ino: self.ino.0.into(),
            entries: self.entries.into(),
            reserved3: U64::ZERO,
            inline: raw.inline,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE;
    use crate::error::Error;

    const INO: Ino = Ino(0x12_3456_7895);

    fn sample() -> Inode {
        let time = |secs: i64| Timespec { secs, nanos: 5 };
        Inode {
            uid: 1000,
            gid: 1001,
            rdev: 0x0803,
            nlink: 3,
            size: 0x0203_0405_0607,
            flags: InodeFlags::SPARSE | InodeFlags::ROWS_FRESH,
            data_version: 77,
            atime: time(-1),
            mtime: time(2),
            ctime: time(3),
            btime: time(4),
            windows: [1, 2, 3],
            inline_len: 4,
            inline: Inline::Xattr,
            place_dir: Ino(2),
            place_key: 0x1230,
            rows_ino: Ino(8),
            first_row: 9,
            row_count: 10,
            ..Inode::new(INO, 6, Kind::File, 0o6755, time(0))
        }
    }

    fn encoded(inode: &Inode) -> RawInode {
        let mut raw = RawInode::ZERO;
        raw.inline[..4].copy_from_slice(b"\x01\0\0\0");
        inode.encode(&mut raw);
        raw
    }

    fn decode(raw: &RawInode) -> Result<Slot> {
        raw.decode(PageNo(1), INO)
    }

    #[test]
    fn encodes_as_the_format_says_and_decodes_again() {
        let mut golden = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| golden[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"VINO");
        put(4, &[1]);
        put(6, &0o6755u16.to_le_bytes());
        put(8, &3u32.to_le_bytes());
        put(12, &1000u32.to_le_bytes());
        put(16, &1001u32.to_le_bytes());
        put(20, &0x0803u32.to_le_bytes());
        put(24, &0x0203_0405_0607u64.to_le_bytes());
        put(32, &6u32.to_le_bytes());
        put(36, &5u32.to_le_bytes());
        put(40, &77u64.to_le_bytes());
        for (i, secs) in [-1i64, 2, 3, 4].iter().enumerate() {
            put(48 + i * 8, &secs.to_le_bytes());
            put(80 + i * 4, &5u32.to_le_bytes());
            if i < 3 {
                put(96 + i * 4, &(i as u32 + 1).to_le_bytes());
            }
        }
        put(108, &4u16.to_le_bytes());
        put(110, &[2]);
        put(112, &2u64.to_le_bytes());
        put(120, &0x1230u64.to_le_bytes());
        put(128, &8u64.to_le_bytes());
        put(136, &9u64.to_le_bytes());
        put(144, &10u32.to_le_bytes());
        put(168, &INO.0.to_le_bytes());
        put(192, &[1]);
        let raw = encoded(&sample());
        assert_eq!(raw.as_bytes(), golden);
        assert_eq!(decode(&raw), Ok(Slot::Used(sample())));
        assert_eq!(raw.inline_bytes(), b"\x01\0\0\0");
    }

    #[test]
    fn each_flipped_byte_is_found_or_shows_as_another_value() {
        let good = encoded(&sample());
        // Magic, kind's high bits, reserved bytes, own number: always found.
        let checked = |at: usize| matches!(at, 0..=3 | 5 | 110 | 111 | 148..152 | 168..176 | 184..192);
        for at in 0..192 {
            for bit in 0..8 {
                let mut raw = good;
                raw.as_mut_bytes()[at] ^= 1 << bit;
                match decode(&raw) {
                    Err(Error::Corrupt(c)) => assert_eq!(c.page, PageNo(1)),
                    Ok(Slot::Used(inode)) => {
                        assert!(!checked(at), "byte {at} bit {bit}");
                        assert_ne!(inode, sample(), "byte {at} bit {bit} is read by nobody");
                    }
                    other => panic!("byte {at} bit {bit}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn slots_are_never_used_or_free_or_in_use() {
        assert_eq!(decode(&RawInode::ZERO), Ok(Slot::NeverUsed));
        assert_eq!(decode(&RawInode::free(INO, 9)), Ok(Slot::Free(9)));
        for at in 0..512 {
            let mut raw = RawInode::free(INO, 9);
            raw.as_mut_bytes()[at] ^= 0x40;
            let generation = (32..36).contains(&at);
            assert_eq!(decode(&raw).is_ok(), generation, "byte {at} of a free inode");
            let mut raw = RawInode::ZERO;
            raw.as_mut_bytes()[at] = 1;
            assert!(decode(&raw).is_err(), "byte {at} of a never-used inode");
        }
    }

    #[test]
    fn what_cannot_be_is_corrupt() {
        let symlink = |inode: &mut Inode| {
            *inode = Inode { kind: Kind::Symlink, size: 4, inline: Inline::Symlink, ..*inode };
        };
        let dir = |inode: &mut Inode| *inode = Inode { kind: Kind::Dir, size: 4096, ..*inode };
        type Spoil<'a> = (&'a str, &'a dyn Fn(&mut Inode));
        let cases: [Spoil<'_>; 14] = [
            ("ORPHAN with links", &|i| i.flags |= InodeFlags::ORPHAN),
            ("no link and no ORPHAN", &|i| i.nlink = 0),
            ("too many links", &|i| i.nlink = super::super::LINK_MAX + 1),
            ("too large", &|i| i.size = super::super::MAX_FILE_BYTES + 1),
            ("entries of a file", &|i| i.entries = 1),
            ("a file that is a collection", &|i| i.flags |= InodeFlags::COLLECTION),
            ("inline and overflowed xattrs", &|i| i.flags |= InodeFlags::XATTR_OVERFLOW),
            ("window past its class", &|i| i.windows[2] = 2049),
            ("inline target of a file", &|i| i.inline = Inline::Symlink),
            ("length of an inline target", &|i| {
                symlink(i);
                i.size = 5;
            }),
            ("empty target", &|i| {
                symlink(i);
                (i.size, i.inline_len, i.inline) = (0, 0, Inline::Nothing);
            }),
            ("long target", &|i| {
                symlink(i);
                (i.size, i.inline) = (4096, Inline::Xattr);
            }),
            ("directory with a broken size", &|i| {
                dir(i);
                i.size = 100;
            }),
            ("directory with one link", &|i| {
                dir(i);
                i.nlink = 1;
            }),
        ];
        for (what, change) in cases {
            let mut inode = sample();
            change(&mut inode);
            assert!(matches!(decode(&encoded(&inode)), Err(Error::Corrupt(_))), "{what}");
        }
        for change in [symlink, dir] {
            let mut inode = sample();
            change(&mut inode);
            assert_eq!(decode(&encoded(&inode)), Ok(Slot::Used(inode)));
        }
    }

    #[test]
    fn eight_slots_share_a_page() {
        let mut page = [0; PAGE];
        for n in 16..24 {
            slot_mut(&mut page, Ino(n)).ino = n.into();
        }
        assert_eq!(slot(&page, Ino(18)).ino.get(), 18);
        assert_eq!(page[2 * 512 + 168], 18);
        assert_eq!(Ino(18).page(), Some(PageNo((1 << 34) + 2)));
        assert_eq!(Ino(INO_LIMIT).page(), None);
    }
}
