//! Inodes: 512 bytes each, in the inode table (FORMAT.md section 5.2).
//!
//! Life of a slot: *never used* (zeros) -> used (kinds 1..8) -> *free* (kind 9, keeps number and
//! generation) -> used again with the next generation -> ...

mod raw;

use bitflags::bitflags;

use crate::addr::{INO_LIMIT, INODE_BASE, INODE_BYTES, PAGE, PageNo};
use crate::error::{Result, corrupt};
use crate::page_store::Timespec;

pub use raw::{INODE_MAGIC, RawInode, Slot, slot, slot_mut};

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

    /// Whether it has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.inline == Inline::Xattr || self.flags.contains(InodeFlags::XATTR_OVERFLOW)
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
}
