//! The sparse device address space and its regions (FORMAT.md section 2).
//!
//! A device has 2^62 bytes, seen as 2^50 pages of 4096 bytes. Every region lies in its own
//! power-of-two slot, so that the owner of an address is known from its highest bits.

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// log2 of [`PAGE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a VexFS device.
pub const DEVICE_BYTES: u64 = 1 << 62;
/// Pages of a VexFS device.
pub const DEVICE_PAGES: u64 = DEVICE_BYTES >> PAGE_SHIFT;

/// Page number of the file system superblock; writing it is the commit.
pub const SUPERBLOCK_PAGE: PageNo = PageNo(0);
/// Page number of the status page (synthesised by the daemon at read).
pub const STATUS_PAGE: PageNo = PageNo(1);
/// Page number of the command page: write a command, read its result.
pub const COMMAND_PAGE: PageNo = PageNo(2);

/// First byte of the free stacks in the control region; stack `i` begins at `STACK_BASE + i * STACK_STRIDE`.
pub const STACK_BASE: u64 = 1 << 43;
/// Bytes of address space for one free stack (u64 entries).
pub const STACK_STRIDE: u64 = 1 << 40;

/// First byte of the inode table (512 bytes an inode).
pub const INODE_BASE: u64 = 1 << 46;
/// Bytes of an inode slot.
pub const INODE_BYTES: u64 = 512;
/// Inode numbers are below this (2^36).
pub const INO_LIMIT: u64 = 1 << 36;
/// First byte of the xattr overflow region (64 KiB an inode).
pub const XATTR_BASE: u64 = 1 << 53;
/// Bytes of an inode's xattr overflow area.
pub const XATTR_BYTES: u64 = 64 << 10;
/// First byte of data class 0: file bytes [0, 1 MiB) at `ino << 20`.
pub const CLASS0_BASE: u64 = 1 << 57;
/// First byte of data class 1: file bytes [1 MiB, 1 GiB) in a 2^30-byte window.
pub const CLASS1_BASE: u64 = 1 << 58;
/// First byte of data class 3: file bytes [1 TiB, 256 TiB) in a 2^48-byte window.
pub const CLASS3_BASE: u64 = 1 << 59;
/// First byte of data class 2: file bytes [1 GiB, 1 TiB) in a 2^40-byte window.
pub const CLASS2_BASE: u64 = 1 << 60;
/// First byte of the index region (daemon-owned).
pub const INDEX_BASE: u64 = 1 << 61;
/// First byte of the allocation map (synthesised by the daemon at read).
pub const MAP_BASE: u64 = (1 << 61) + (1 << 60);

/// Offset in the allocation map of the summary: one u32 (mapped pages) for each unit of 2^15 pages.
pub const MAP_SUMMARY: u64 = 1 << 48;
/// Pages counted by one summary entry (128 MiB of address space).
pub const MAP_UNIT_PAGES: u64 = 1 << 15;
/// Offset in the allocation map of the upper summary: one u64 for each 2^25 pages (128 GiB).
pub const MAP_UPPER: u64 = 1 << 49;
/// Pages counted by one upper summary entry.
pub const MAP_UPPER_PAGES: u64 = 1 << 25;

/// A device page number (byte address / 4096).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageNo(pub u64);

impl PageNo {
    /// The page that holds a device byte address.
    pub const fn containing(byte: u64) -> Self {
        PageNo(byte >> PAGE_SHIFT)
    }
    /// The device byte address of the page's first byte.
    pub const fn byte(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
    /// The page `n` pages further.
    #[must_use]
    pub const fn add(self, n: u64) -> Self {
        PageNo(self.0 + n)
    }
}

/// A run of device pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRange {
    /// First page.
    pub first: PageNo,
    /// Number of pages.
    pub count: u64,
}

/// Who may change a page (design: ownership).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Superblock, inodes, xattrs, directories, data, rows: changed by the mounter only.
    Mounter,
    /// Status and map pages (synthesised) and index pages: mounters only read them.
    Daemon,
    /// The command page: written by the mounter, never stored.
    Command,
    /// Outside every region.
    Nobody,
}

/// The owner of a page of a VexFS volume.
pub const fn owner(page: PageNo) -> Owner {
    let byte = page.byte();
    match page {
        SUPERBLOCK_PAGE => Owner::Mounter,
        STATUS_PAGE => Owner::Daemon,
        COMMAND_PAGE => Owner::Command,
        _ if page.0 >= DEVICE_PAGES => Owner::Nobody,
        _ if byte >= INDEX_BASE => Owner::Daemon,
        _ if byte < STACK_BASE => Owner::Nobody,
        _ => Owner::Mounter,
    }
}
