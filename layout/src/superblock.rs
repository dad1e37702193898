//! The superblock, page 0 (FORMAT.md section 5.1). Writing it is the commit of an epoch.
//!
//! ```text
//! 0        8       12    16     32      64      72         80        88    96      104
//! +--------+-------+-----+------+-------+-------+----------+---------+-----+-------+------
//! |VEXFSSB1|version|crc32c| uuid | label |compat |ro_compat |incompat |epoch|session| flags
//! +--------+-------+-----+------+-------+-------+----------+---------+-----+-------+------
//! 112   root | next_ino | next_window[3] | . | stack depth[8] | orphan head | inodes used
//! 224   key of the name hash | created | mounts | time of this commit | zeros to 4096
//! ```

use core::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

use crate::addr::{INO_LIMIT, SUPERBLOCK_PAGE};
use crate::error::{Error, Result, corrupt};
use crate::inode::{Ino, ROOT_INO, WINDOW_LIMITS};
use crate::page_store::{PageBytes, Timespec};

/// First bytes of a superblock; tells a VexFS volume from anything else.
pub const SUPERBLOCK_MAGIC: [u8; 8] = *b"VEXFSSB1";
/// Version of the format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// `incompat` bit 0: ACLs were set. A mounter that does not know them would admit whom they deny.
pub const INCOMPAT_ACL: u64 = 1;
/// `incompat` bits that this crate knows; a volume with others is refused.
pub const KNOWN_INCOMPAT: u64 = INCOMPAT_ACL;
/// `ro_compat` bits that this crate knows; a volume with others can only be read.
pub const KNOWN_RO_COMPAT: u64 = 0;
/// `flags` bit 0: the last mounter unmounted in order.
pub const FLAG_CLEAN: u64 = 1;
/// Most entries of one free stack (its address space over 8 bytes).
pub const STACK_DEPTH_LIMIT: u64 = 1 << 37;

/// The superblock as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub struct RawSuperblock {
    /// [`SUPERBLOCK_MAGIC`]: against a volume that is something else, or zeros.
    pub magic: [u8; 8],
    /// [`FORMAT_VERSION`]: against a newer format.
    pub version: U32,
    /// crc32c of the page with this field zero: against bit rot and torn writes below the store.
    pub crc: U32,
    /// The volume's uuid: against a superblock of another volume.
    pub uuid: [u8; 16],
    /// UTF-8, NUL-padded.
    pub label: [u8; 32],
    /// Features that an older mounter may ignore.
    pub compat: U64,
    /// Features that an older mounter may only read.
    pub ro_compat: U64,
    /// Features that an older mounter must refuse.
    pub incompat: U64,
    /// Number of this commit.
    pub epoch: U64,
    /// The session that wrote this commit.
    pub session: U64,
    /// Bit 0: clean unmount.
    pub flags: U64,
    /// The root directory's inode number, 2.
    pub root: U64,
    /// Inode numbers at and above this were never used.
    pub next_ino: U64,
    /// Window numbers at and above these were never used (classes 1, 2, 3).
    pub next_window: [U32; 3],
    /// Zero.
    pub reserved0: U32,
    /// Depths of the free stacks, `2 * class + parity`.
    pub stack_depth: [U64; 8],
    /// First inode of the orphan list, 0 = empty.
    pub orphan_head: U64,
    /// Inodes in use, the root included.
    pub inodes_used: U64,
    /// Key of the name hash.
    pub hash_key: [u8; 16],
    /// When the volume was made, seconds.
    pub created_secs: U64,
    /// Writable mounts so far.
    pub mount_count: U64,
    /// Time of this commit, seconds.
    pub commit_secs: U64,
    /// Time of this commit, nanoseconds.
    pub commit_nanos: U32,
    /// Zero.
    pub reserved1: [u8; 3828],
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == 4096);
    assert!(offset_of!(RawSuperblock, magic) == 0);
    assert!(offset_of!(RawSuperblock, version) == 8);
    assert!(offset_of!(RawSuperblock, crc) == 12);
    assert!(offset_of!(RawSuperblock, uuid) == 16);
    assert!(offset_of!(RawSuperblock, label) == 32);
    assert!(offset_of!(RawSuperblock, compat) == 64);
    assert!(offset_of!(RawSuperblock, ro_compat) == 72);
    assert!(offset_of!(RawSuperblock, incompat) == 80);
    assert!(offset_of!(RawSuperblock, epoch) == 88);
    assert!(offset_of!(RawSuperblock, session) == 96);
    assert!(offset_of!(RawSuperblock, flags) == 104);
    assert!(offset_of!(RawSuperblock, root) == 112);
    assert!(offset_of!(RawSuperblock, next_ino) == 120);
    assert!(offset_of!(RawSuperblock, next_window) == 128);
    assert!(offset_of!(RawSuperblock, reserved0) == 140);
    assert!(offset_of!(RawSuperblock, stack_depth) == 144);
    assert!(offset_of!(RawSuperblock, orphan_head) == 208);
    assert!(offset_of!(RawSuperblock, inodes_used) == 216);
    assert!(offset_of!(RawSuperblock, hash_key) == 224);
    assert!(offset_of!(RawSuperblock, created_secs) == 240);
    assert!(offset_of!(RawSuperblock, mount_count) == 248);
    assert!(offset_of!(RawSuperblock, commit_secs) == 256);
    assert!(offset_of!(RawSuperblock, commit_nanos) == 264);
    assert!(offset_of!(RawSuperblock, reserved1) == 268);
};

/// A superblock that was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// UTF-8, NUL-padded.
    pub label: [u8; 32],
    /// Feature bits that may be ignored.
    pub compat: u64,
    /// Feature bits that forbid writing when unknown.
    pub ro_compat: u64,
    /// Feature bits that forbid mounting when unknown.
    pub incompat: u64,
    /// Number of the last commit; the epoch being built is one more.
    pub epoch: u64,
    /// The session that wrote the last commit.
    pub session: u64,
    /// The last commit was a clean unmount.
    pub clean: bool,
    /// The root directory.
    pub root: Ino,
    /// Inode numbers at and above this were never used.
    pub next_ino: u64,
    /// Window numbers at and above these were never used (classes 1, 2, 3).
    pub next_window: [u32; 3],
    /// Depths of the free stacks, `2 * class + parity`, in entries.
    pub stack_depth: [u64; 8],
    /// First inode of the orphan list, 0 = empty.
    pub orphan_head: u64,
    /// Inodes in use, the root and hidden ones included.
    pub inodes_used: u64,
    /// Key of the name hash.
    pub hash_key: [u8; 16],
    /// When the volume was made, seconds since 1970.
    pub created_secs: u64,
    /// Writable mounts so far.
    pub mount_count: u64,
    /// Time of the last commit.
    pub commit_time: Timespec,
}

/// Sixteen bytes at a step: it is computed in each commit.
static CRC32C: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// crc32c of the page with bytes 12..16 taken as zero.
fn page_crc(page: &PageBytes) -> u32 {
    let raw: &RawSuperblock = transmute_ref!(page);
    let mut copy = raw.clone();
    copy.crc = U32::ZERO;
    CRC32C.checksum(copy.as_bytes())
}

impl Superblock {
    /// Decodes and checks page 0.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for what FORMAT.md forbids; [`Error::Invalid`] for a version or a
    /// feature that this crate can't serve (`read_only` lets unknown `ro_compat` bits pass).
    pub fn decode(page: &PageBytes, read_only: bool) -> Result<Self> {
        let raw: &RawSuperblock = transmute_ref!(page);
        let bad = |what, expected, found| Err(corrupt(SUPERBLOCK_PAGE, what, expected, found));
        if raw.magic != SUPERBLOCK_MAGIC {
            let what = "superblock magic: no VexFS file system here, make one with mkfs.vexfs";
            return bad(what, u64::from_le_bytes(SUPERBLOCK_MAGIC), u64::from_le_bytes(raw.magic));
        }
        let crc = page_crc(page);
        if raw.crc.get() != crc {
            return bad("superblock crc32c", u64::from(crc), u64::from(raw.crc.get()));
        }
        if raw.version.get() == 0 {
            return bad("superblock version", u64::from(FORMAT_VERSION), 0);
        }
        if raw.version.get() > FORMAT_VERSION {
            return Err(Error::Invalid("the volume's format is newer than this VexFS; use a newer one"));
        }
        if raw.incompat.get() & !KNOWN_INCOMPAT != 0 {
            return Err(Error::Invalid("the volume has features unknown to this VexFS; use a newer one"));
        }
        if raw.ro_compat.get() & !KNOWN_RO_COMPAT != 0 && !read_only {
            return Err(Error::Invalid(
                "the volume has features that this VexFS can only read; mount it read-only",
            ));
        }
        if raw.root.get() != ROOT_INO.0 {
            return bad("superblock root", ROOT_INO.0, raw.root.get());
        }
        if raw.flags.get() & !FLAG_CLEAN != 0 {
            return bad("superblock flags", FLAG_CLEAN, raw.flags.get());
        }
        if raw.reserved0.get() != 0 || raw.reserved1.iter().any(|&b| b != 0) {
            return bad("superblock reserved bytes", 0, 1);
        }
        let next_ino = raw.next_ino.get();
        if !(ROOT_INO.0 + 1..=INO_LIMIT).contains(&next_ino) {
            return bad("superblock next_ino", INO_LIMIT, next_ino);
        }
        let next_window = raw.next_window.map(U32::get);
        for (next, limit) in next_window.iter().zip(WINDOW_LIMITS) {
            if *next > limit {
                return bad("superblock next_window", u64::from(limit), u64::from(*next));
            }
        }
        let stack_depth = raw.stack_depth.map(U64::get);
        for depth in stack_depth {
            if depth > STACK_DEPTH_LIMIT {
                return bad("superblock free stack depth", STACK_DEPTH_LIMIT, depth);
            }
        }
        if raw.orphan_head.get() >= next_ino {
            return bad("superblock orphan head", next_ino, raw.orphan_head.get());
        }
        if raw.inodes_used.get() > next_ino {
            return bad("superblock inodes in use", next_ino, raw.inodes_used.get());
        }
        if raw.commit_nanos.get() >= 1_000_000_000 {
            return bad("superblock commit nanoseconds", 1_000_000_000, u64::from(raw.commit_nanos.get()));
        }
        Ok(Superblock {
            uuid: raw.uuid,
            label: raw.label,
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            incompat: raw.incompat.get(),
            epoch: raw.epoch.get(),
            session: raw.session.get(),
            clean: raw.flags.get() & FLAG_CLEAN != 0,
            root: Ino(raw.root.get()),
            next_ino,
            next_window,
            stack_depth,
            orphan_head: raw.orphan_head.get(),
            inodes_used: raw.inodes_used.get(),
            hash_key: raw.hash_key,
            created_secs: raw.created_secs.get(),
            mount_count: raw.mount_count.get(),
            commit_time: Timespec {
                secs: raw.commit_secs.get().cast_signed(),
                nanos: raw.commit_nanos.get(),
            },
        })
    }

    /// Gives the page-0 image, crc included.
    pub fn encode(&self) -> PageBytes {
        let raw = RawSuperblock {
            magic: SUPERBLOCK_MAGIC,
            version: FORMAT_VERSION.into(),
            crc: U32::ZERO,
            uuid: self.uuid,
            label: self.label,
            compat: self.compat.into(),
            ro_compat: self.ro_compat.into(),
            incompat: self.incompat.into(),
            epoch: self.epoch.into(),
            session: self.session.into(),
            flags: (if self.clean { FLAG_CLEAN } else { 0 }).into(),
            root: self.root.0.into(),
            next_ino: self.next_ino.into(),
            next_window: self.next_window.map(U32::new),
            reserved0: U32::ZERO,
            stack_depth: self.stack_depth.map(U64::new),
            orphan_head: self.orphan_head.into(),
            inodes_used: self.inodes_used.into(),
            hash_key: self.hash_key,
            created_secs: self.created_secs.into(),
            mount_count: self.mount_count.into(),
            commit_secs: self.commit_time.secs.cast_unsigned().into(),
            commit_nanos: self.commit_time.nanos.into(),
            reserved1: [0; 3828],
        };
        let crc = CRC32C.checksum(raw.as_bytes());
        let raw = RawSuperblock { crc: crc.into(), ..raw };
        transmute!(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE;

    fn sample() -> Superblock {
        Superblock {
            uuid: *b"0123456789abcdef",
            label: *b"a label of thirty-two bytes full",
            compat: 0x0102,
            ro_compat: 0,
            incompat: INCOMPAT_ACL,
            epoch: 0x1122_3344_5566,
            session: 7,
            clean: true,
            root: ROOT_INO,
            next_ino: 1000,
            next_window: [10, 20, 30],
            stack_depth: [1, 2, 3, 4, 5, 6, 7, 8],
            orphan_head: 9,
            inodes_used: 500,
            hash_key: *b"sixteen key byte",
            created_secs: 1_700_000_000,
            mount_count: 3,
            commit_time: Timespec { secs: 1_700_000_001, nanos: 999_999_999 },
        }
    }

    /// The same page, put together from the table of FORMAT.md 5.1.
    fn golden() -> PageBytes {
        let mut page = [0; PAGE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"VEXFSSB1");
        put(8, &1u32.to_le_bytes());
        put(16, b"0123456789abcdef");
        put(32, &sample().label);
        put(64, &0x0102u64.to_le_bytes());
        put(80, &1u64.to_le_bytes());
        put(88, &0x1122_3344_5566u64.to_le_bytes());
        put(96, &7u64.to_le_bytes());
        put(104, &1u64.to_le_bytes());
        put(112, &2u64.to_le_bytes());
        put(120, &1000u64.to_le_bytes());
        put(128, &10u32.to_le_bytes());
        put(132, &20u32.to_le_bytes());
        put(136, &30u32.to_le_bytes());
        for i in 0..8 {
            put(144 + i * 8, &(i as u64 + 1).to_le_bytes());
        }
        put(208, &9u64.to_le_bytes());
        put(216, &500u64.to_le_bytes());
        put(224, b"sixteen key byte");
        put(240, &1_700_000_000u64.to_le_bytes());
        put(248, &3u64.to_le_bytes());
        put(256, &1_700_000_001u64.to_le_bytes());
        put(264, &999_999_999u32.to_le_bytes());
        let crc = bitwise_crc32c(&page);
        page[12..16].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// RFC 3720's polynomial, bit by bit.
    fn bitwise_crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        })
    }

    #[test]
    fn encodes_as_the_format_says_and_decodes_again() {
        assert_eq!(bitwise_crc32c(b"123456789"), 0xe306_9283);
        assert!(sample().encode() == golden());
        assert_eq!(Superblock::decode(&golden(), false), Ok(sample()));
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let good = golden();
        for at in 0..PAGE {
            let mut page = good;
            page[at] ^= 0x10;
            let found = Superblock::decode(&page, true);
            assert!(
                matches!(found, Err(Error::Corrupt(c)) if c.page == SUPERBLOCK_PAGE),
                "byte {at}: {found:?}"
            );
        }
        let zeros = Superblock::decode(&[0; PAGE], true);
        assert!(matches!(zeros, Err(Error::Corrupt(c)) if c.what.contains("mkfs.vexfs")));
    }
}
