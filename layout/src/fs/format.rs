//! mkfs: the pages of an empty volume.

use crate::addr::{PAGE, PageNo, SUPERBLOCK_PAGE};
use crate::inode::{Inode, Kind, ROOT_INO, slot_mut};
use crate::page_store::{PageBytes, Timespec};
use crate::superblock::Superblock;

/// What an empty volume is made of.
#[derive(Clone, Copy, Debug)]
pub struct FormatParams {
    /// The volume's uuid, equal to the store's.
    pub uuid: [u8; 16],
    /// UTF-8, NUL-padded.
    pub label: [u8; 32],
    /// Random key of the name hash, so that nobody can choose colliding names.
    pub hash_key: [u8; 16],
    /// Time of creation.
    pub now: Timespec,
    /// Owner of the root directory.
    pub root_uid: u32,
    /// Group of the root directory.
    pub root_gid: u32,
    /// Permission bits of the root directory.
    pub root_perm: u16,
}

/// Emits the pages of an empty volume, the superblock last: write them all, then commit.
pub fn format(params: FormatParams, emit: &mut dyn FnMut(PageNo, &PageBytes)) {
    let mut root = Inode::new(ROOT_INO, 1, Kind::Dir, params.root_perm, params.now);
    root.uid = params.root_uid;
    root.gid = params.root_gid;
    let mut page = [0; PAGE];
    root.encode(slot_mut(&mut page, ROOT_INO));
    if let Some(page_no) = ROOT_INO.page() {
        emit(page_no, &page);
    }
    let superblock = Superblock {
        uuid: params.uuid,
        label: params.label,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        epoch: 0,
        session: 0,
        clean: true,
        root: ROOT_INO,
        next_ino: ROOT_INO.0 + 1,
        next_window: [0; 3],
        stack_depth: [0; 8],
        orphan_head: 0,
        inodes_used: 1,
        hash_key: params.hash_key,
        created_secs: params.now.secs.cast_unsigned(),
        mount_count: 0,
        commit_time: params.now,
    };
    emit(SUPERBLOCK_PAGE, &superblock.encode());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, format_params, mount};
    use std::vec::Vec;

    #[test]
    fn an_empty_volume_is_two_pages_with_the_superblock_last() {
        let mut pages = Vec::new();
        format(format_params(), &mut |number, page| pages.push((number, *page)));
        assert_eq!(pages.len(), 2);
        assert_eq!(pages[0].0, PageNo(1 << 34));
        assert_eq!(pages[0].1[2 * 512..2 * 512 + 12], *b"VINO\x02\0\xed\x01\x02\0\0\0");
        assert_eq!(pages[1].0, SUPERBLOCK_PAGE);
        let fs = mount(&crate::testing::MemStore::formatted(format_params())).expect("mount");
        assert_eq!(check(&fs), Ok(()));
        assert_eq!((fs.superblock().epoch, fs.superblock().clean), (0, true));
    }
}
