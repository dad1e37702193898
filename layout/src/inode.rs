//! Inodes: 512 bytes each, in the inode table (FORMAT.md section 5.2).
//!
//! Life of a slot: *never used* (zeros) -> used (kinds 1..8) -> *free* (kind 9, keeps number and
//! generation) -> used again with the next generation -> ...
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

use bitflags::bitflags;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref};

use crate::addr::{INO_LIMIT, INODE_BASE, INODE_BYTES, PAGE, PageNo};
use crate::error::{Result, corrupt};
use crate::page_store::{PageBytes, Timespec};

/// First bytes of every slot that was ever used: against zeros and misdirected pages.
pub const INODE_MAGIC: [u8; 4] = *b"VINO";
/// The root directory.
pub const ROOT_INO: Ino = Ino(2);
/// Bytes of the inline area.
pub const INLINE_BYTES: usize = 320;
/// Bytes a file may have (256 TiB).
pub const MAX_FILE_BYTES: u64 = 1 << 48;
/// Bytes a symlink target may have.
pub const SYMLINK_MAX: usize = 4095;
/// Most links of an inode; a directory's subdirectories count.
pub const LINK_MAX: u32 = i32::MAX.cast_unsigned();
/// Windows of data classes 1, 2, 3.
pub const WINDOW_LIMITS: [u32; 3] = [1 << 28, 1 << 20, 1 << 11];
/// Inode slots in a page.
pub const INODES_PER_PAGE: usize = PAGE / INODE_BYTES as usize;

const KIND_FREE: u8 = 9;

/// An inode number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ino(pub u64);

impl Ino {
    /// The page of the inode table that has this inode's slot; none for a number past the table.
    pub const fn page(self) -> Option<PageNo> {
        if self.0 >= INO_LIMIT {
            return None;
        }
        Some(PageNo::containing(INODE_BASE + self.0 * INODE_BYTES))
    }
}

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Character device.
    CharDevice = 4,
    /// Block device.
    BlockDevice = 5,
    /// Named pipe.
    Fifo = 6,
    /// Socket.
    Socket = 7,
    /// Rows file of a collection: hidden, in no directory.
    Rows = 8,
}

impl Kind {
    /// The kind of a code on disk.
    pub const fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::File,
            2 => Kind::Dir,
            3 => Kind::Symlink,
            4 => Kind::CharDevice,
            5 => Kind::BlockDevice,
            6 => Kind::Fifo,
            7 => Kind::Socket,
            8 => Kind::Rows,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits of `st_mode` (linux/stat.h); regular file for a rows file.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Kind::File | Kind::Rows => 0o100_000,
            Kind::Dir => 0o040_000,
            Kind::Symlink => 0o120_000,
            Kind::CharDevice => 0o020_000,
            Kind::BlockDevice => 0o060_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
        }
    }
}

bitflags! {
    /// Flags of an inode.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct InodeFlags: u32 {
        /// The file may have holes: its blocks must be counted by the allocation map.
        const SPARSE = 1;
        /// A directory that is a collection.
        const COLLECTION = 2;
        /// The file's rows were computed from its present bytes.
        const ROWS_FRESH = 4;
        /// Extended attributes stand in the overflow area.
        const XATTR_OVERFLOW = 8;
        /// Link count 0, on the orphan list.
        const ORPHAN = 16;
    }
}

/// What the inline area holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Inline {
    /// Nothing.
    #[default]
    Nothing = 0,
    /// A symlink's target.
    Symlink = 1,
    /// Extended attribute entries.
    Xattr = 2,
}

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

/// A checked inode, without its inline area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Own number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 07777.
    pub perm: u16,
    /// Link count; a directory has 2 + its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, Linux `new_encode_dev`.
    pub rdev: u32,
    /// Bytes; for a directory its pages * 4096.
    pub size: u64,
    /// Grows by 1 each time the number is taken again.
    pub generation: u32,
    /// Flags.
    pub flags: InodeFlags,
    /// FORMAT.md 6.3.
    pub data_version: u64,
    /// Last access, as set by the mounter.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of content or attributes.
    pub ctime: Timespec,
    /// Creation.
    pub btime: Timespec,
    /// Window number + 1 of classes 1, 2, 3; 0 = none.
    pub windows: [u32; 3],
    /// Bytes used of the inline area.
    pub inline_len: u16,
    /// What the inline area holds.
    pub inline: Inline,
    /// Directory of the place, number 0 = unknown (FORMAT.md 5.5).
    pub place_dir: Ino,
    /// Key of the place in that directory.
    pub place_key: u64,
    /// Rows inode, number 0 = none.
    pub rows_ino: Ino,
    /// First row's id + 1, 0 = none.
    pub first_row: u64,
    /// Live rows.
    pub row_count: u32,
    /// Previous of the orphan list, number 0 = none.
    pub orphan_prev: Ino,
    /// Next of the orphan list, number 0 = none.
    pub orphan_next: Ino,
    /// Entries of a directory, `.` and `..` not counted.
    pub entries: u64,
}

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
    /// A new inode with every time `now`, nothing in it and no place.
    pub fn new(ino: Ino, generation: u32, kind: Kind, perm: u16, now: Timespec) -> Inode {
        Inode {
            ino,
            kind,
            perm: perm & 0o7777,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            generation,
            flags: InodeFlags::empty(),
            data_version: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            windows: [0; 3],
            inline_len: 0,
            inline: Inline::Nothing,
            place_dir: Ino(0),
            place_key: 0,
            rows_ino: Ino(0),
            first_row: 0,
            row_count: 0,
            orphan_prev: Ino(0),
            orphan_next: Ino(0),
            entries: 0,
        }
    }

    /// The `st_mode` of the inode.
    pub const fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.perm as u32
    }

    /// Checks what must hold for the inode's kind.
    fn check_kind(&self, page: PageNo) -> Result<()> {
        let bad = |what, expected, found| Err(corrupt(page, what, expected, found));
        if (self.nlink == 0) != self.flags.contains(InodeFlags::ORPHAN) {
            return bad("inode has link count 0 just when ORPHAN", 1, u64::from(self.nlink));
        }
        if self.nlink > LINK_MAX {
            return bad("inode link count", u64::from(LINK_MAX), u64::from(self.nlink));
        }
        if self.size > MAX_FILE_BYTES {
            return bad("inode size", MAX_FILE_BYTES, self.size);
        }
        if self.kind == Kind::Dir {
            if !self.size.is_multiple_of(PAGE as u64) || self.size / PAGE as u64 > u64::from(u32::MAX) {
                return bad("directory size in whole pages", u64::from(u32::MAX), self.size);
            }
            if self.nlink == 1 {
                return bad("directory link count", 2, 1);
            }
        } else {
            if self.entries != 0 {
                return bad("entries of what is no directory", 0, self.entries);
            }
            if self.flags.contains(InodeFlags::COLLECTION) {
                return bad("COLLECTION on what is no directory", Kind::Dir as u64, self.kind as u64);
            }
        }
        let inline_target = self.kind == Kind::Symlink && self.size <= INLINE_BYTES as u64;
        if inline_target != (self.inline == Inline::Symlink)
            || (inline_target && self.size != u64::from(self.inline_len))
        {
            return bad("inline symlink target's length", self.size, u64::from(self.inline_len));
        }
        if self.kind == Kind::Symlink && !(1..=SYMLINK_MAX as u64).contains(&self.size) {
            return bad("symlink target's length", SYMLINK_MAX as u64, self.size);
        }
        if self.inline == Inline::Xattr && self.flags.contains(InodeFlags::XATTR_OVERFLOW) {
            return bad("inline xattrs beside overflowed ones", 0, u64::from(self.inline_len));
        }
        Ok(())
    }

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
