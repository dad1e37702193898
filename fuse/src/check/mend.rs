//! Mending a damaged slot of the inode table: what is certainly wrong is set to what can be right, as long as it is
//! still clear that the slot holds an inode of this number.

use layout::addr::{INO_LIMIT, PAGE, PageNo};
use layout::inode::{
    INLINE_BYTES, INODE_MAGIC, Inline, Ino, InodeFlags, Kind, LINK_MAX, MAX_FILE_BYTES, RawInode,
    SYMLINK_MAX, Slot, WINDOW_LIMITS,
};

/// What the volume holds where the inode's content would be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// Its first page says that it is the first page of this directory.
    pub is_dir: bool,
    /// One past the last byte of class 0 that is mapped.
    pub class0_end: u64,
}

const KIND_FREE: u8 = 9;

/// Mends a slot that does not decode; `None` if it is beyond use.
pub fn mend(raw: &RawInode, ino: Ino, content: Content) -> Option<RawInode> {
    let mut raw = *raw;
    let own_number = raw.ino.get() == ino.0;
    let near = (raw.ino.get() ^ ino.0).to_le_bytes().iter().filter(|b| **b != 0).count() <= 1;
    let magic_bytes = raw.magic.iter().zip(INODE_MAGIC).filter(|(a, b)| **a == *b).count();
    // One of the two may be damaged, and then only a little.
    if !(own_number && magic_bytes >= 2 || near && magic_bytes == 4) {
        return None;
    }
    raw.magic = INODE_MAGIC;
    raw.ino = ino.0.into();
    let was_free = raw.kind == KIND_FREE && raw.nlink.get() == 0;
    if was_free {
        return Some(RawInode::free(ino, raw.generation.get()));
    }
    mend_fields(&mut raw);
    mend_kind(&mut raw, content);
    mend_size(&mut raw, content);
    let page = ino.page().unwrap_or(PageNo(0));
    matches!(raw.decode(page, ino), Ok(Slot::Used(_))).then_some(raw)
}

fn mend_fields(raw: &mut RawInode) {
    (raw.reserved0, raw.reserved1) = (0, 0);
    raw.reserved2 = 0.into();
    raw.reserved3 = 0.into();
    raw.perm = (raw.perm.get() & 0o7777).into();
    raw.flags = InodeFlags::from_bits_truncate(raw.flags.get()).bits().into();
    for nanos in &mut raw.nanos {
        if nanos.get() >= 1_000_000_000 {
            *nanos = 0.into();
        }
    }
    for (window, limit) in raw.windows.iter_mut().zip(WINDOW_LIMITS) {
        if window.get() > limit {
            *window = 0.into();
        }
    }
    for number in [&mut raw.place_dir, &mut raw.rows_ino, &mut raw.orphan_prev, &mut raw.orphan_next] {
        if number.get() >= INO_LIMIT {
            *number = 0.into();
        }
    }
}

/// Settles what the inode is, and what follows from that alone.
fn mend_kind(raw: &mut RawInode, content: Content) {
    let code = Kind::from_code(raw.kind);
    let target =
        raw.inline_kind == Inline::Symlink as u8 && (1..=INLINE_BYTES as u16).contains(&raw.inline_len.get());
    let kind = match code {
        _ if content.is_dir && (code == Some(Kind::Dir) || code.is_none() || raw.entries.get() != 0) => {
            Kind::Dir
        }
        _ if target && raw.size.get() == u64::from(raw.inline_len.get()) => Kind::Symlink,
        Some(kind) => kind,
        None => Kind::File,
    };
    raw.kind = kind as u8;
    let mut flags = InodeFlags::from_bits_truncate(raw.flags.get());
    // Whether it really has no link is told by the names: until then it has one.
    if (raw.nlink.get() == 0) != flags.contains(InodeFlags::ORPHAN) {
        flags.remove(InodeFlags::ORPHAN);
        if raw.nlink.get() == 0 {
            raw.nlink = 1.into();
        }
    }
    raw.nlink = raw.nlink.get().min(LINK_MAX).into();
    if kind == Kind::Dir {
        if raw.nlink.get() == 1 {
            raw.nlink = 2.into();
        }
    } else {
        raw.entries = 0.into();
        flags.remove(InodeFlags::COLLECTION);
    }
    raw.flags = flags.bits().into();
}

/// Makes size and inline area agree.
fn mend_size(raw: &mut RawInode, content: Content) {
    let kind = Kind::from_code(raw.kind).unwrap_or(Kind::File);
    if raw.size.get() > MAX_FILE_BYTES {
        raw.size = content.class0_end.into();
    }
    if kind == Kind::Dir
        && (!raw.size.get().is_multiple_of(PAGE as u64) || raw.size.get() / PAGE as u64 > u64::from(u32::MAX))
    {
        raw.size = content.class0_end.into();
    }
    let len = raw.inline_len.get();
    if kind == Kind::Symlink {
        let inline_len_ok = (1..=INLINE_BYTES as u16).contains(&len);
        if raw.inline_kind == Inline::Symlink as u8 && inline_len_ok {
            raw.size = u64::from(len).into();
        } else if (1..=INLINE_BYTES as u64).contains(&raw.size.get()) {
            raw.inline_kind = Inline::Symlink as u8;
            raw.inline_len = (raw.size.get() as u16).into();
        } else if raw.size.get() > SYMLINK_MAX as u64 || raw.size.get() == 0 {
            raw.size = (SYMLINK_MAX as u64).into();
        }
    }
    let inline = match raw.inline_kind {
        1 if kind == Kind::Symlink && raw.size.get() <= INLINE_BYTES as u64 => Inline::Symlink,
        2 if kind != Kind::Symlink || raw.size.get() > INLINE_BYTES as u64 => Inline::Xattr,
        _ => Inline::Nothing,
    };
    let len_ok = (1..=INLINE_BYTES as u16).contains(&raw.inline_len.get());
    let overflows = raw.flags.get() & InodeFlags::XATTR_OVERFLOW.bits() != 0;
    if inline == Inline::Nothing || !len_ok || (inline == Inline::Xattr && overflows) {
        raw.inline_kind = 0;
        raw.inline_len = 0.into();
    }
}

#[cfg(test)]
mod tests {
    use layout::inode::Inode;
    use layout::page_store::Timespec;
    use zerocopy::{FromBytes, IntoBytes};

    use super::*;

    const INO: Ino = Ino(77);

    fn slot_of(kind: Kind) -> RawInode {
        let mut inode = Inode::new(INO, 3, kind, 0o644, Timespec::default());
        let mut raw = RawInode::ZERO;
        if kind == Kind::Symlink {
            (inode.size, inode.inline, inode.inline_len) = (5, Inline::Symlink, 5);
            raw.inline[..5].copy_from_slice(b"where");
        }
        inode.encode(&mut raw);
        raw
    }

    #[test]
    fn each_damaged_byte_outside_of_number_and_magic_leaves_a_usable_inode() {
        for kind in [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Rows] {
            let good = slot_of(kind);
            for at in 0..192 {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes: [u8; 512] = good.as_bytes().try_into().unwrap();
                    bytes[at] ^= flip;
                    let raw = RawInode::read_from_bytes(&bytes).unwrap();
                    let page = INO.page().unwrap();
                    if raw.decode(page, INO).is_ok() {
                        continue;
                    }
                    let mended = mend(&raw, INO, Content { is_dir: kind == Kind::Dir, class0_end: 4096 });
                    let mended = mended.unwrap_or_else(|| panic!("{kind:?}: byte {at} flipped by {flip:#x}"));
                    assert!(mended.decode(page, INO).is_ok());
                }
            }
        }
    }

    #[test]
    fn what_is_of_another_inode_is_not_taken_over() {
        let mut raw = slot_of(Kind::File);
        raw.ino = 0x1234_5678.into();
        assert!(mend(&raw, INO, Content::default()).is_none());
        assert!(mend(&RawInode::read_from_bytes(&[0xa5; 512]).unwrap(), INO, Content::default()).is_none());
    }
}
