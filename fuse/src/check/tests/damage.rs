//! Known damage: what is found, and what a repair leaves.

use std::sync::Arc;

use layout::addr::{CLASS0_BASE, INODE_BASE, PAGE, PageNo, STACK_BASE, STACK_STRIDE};
use layout::fs::XattrFlags;
use layout::inode::{Ino, Kind, ROOT_INO, RawInode, slot_mut};
use layout::testing::mount;

use super::super::Mode;
use super::super::mapped::{MapReader, Walker};
use super::{check, check_with, image};
use crate::engine::ram::RamDevice;

fn good() -> Arc<RamDevice> {
    image::device(image::rich(60).store())
}

fn ino(device: &RamDevice, path: &[&str]) -> u64 {
    let fs = mount(&image::store(device)).unwrap();
    path.iter().fold(ROOT_INO, |dir, name| fs.lookup(dir, name.as_bytes()).unwrap().ino).0
}

fn spoil_inode(device: &RamDevice, ino: u64, change: impl FnOnce(&mut RawInode)) {
    let page = Ino(ino).page().unwrap();
    let mut bytes = device.page(page.0);
    change(slot_mut(&mut bytes, Ino(ino)));
    device.put(page.0, &bytes);
}

/// Finds just this, repairs it, finds nothing any more; gives the repaired volume.
fn repairs(device: &Arc<RamDevice>, codes: &[&str]) -> layout::fs::Fs<layout::testing::MemStore> {
    let (looked, notes) = check(device, Mode::Look);
    assert_eq!(notes.codes(), codes, "{}", notes.text());
    assert_eq!(looked.unwrap().exit_code(), if codes.is_empty() { 0 } else { 4 });
    let (repaired, notes) = check(device, Mode::Repair);
    let repaired = repaired.unwrap();
    assert_eq!(repaired.exit_code(), u8::from(!codes.is_empty()), "{}", notes.text());
    let (again, notes) = check(device, Mode::Look);
    assert_eq!((again.unwrap().exit_code(), notes.found.len()), (0, 0), "{}", notes.text());
    let fs = mount(&image::store(device)).unwrap();
    assert_eq!(layout::testing::check(&fs), Ok(()));
    fs
}

#[test]
fn a_good_volume_is_clean_and_stays_as_it_is() {
    let device = good();
    let before = device.mapped();
    repairs(&device, &[]);
    assert_eq!((device.mapped(), device.commits()), (before, 0));
    let (outcome, notes) = check_with(&device, Mode::Look, Walker::Map(MapReader::default()), true);
    assert_eq!(outcome.unwrap().exit_code(), 0, "{}", notes.text());
}

#[test]
fn the_allocation_map_tells_the_same_as_the_device() {
    let device = good();
    device.put((CLASS0_BASE + (9999 << 20)) / PAGE as u64, &[1; PAGE]);
    device.put((CLASS0_BASE + (2 << 20)) / PAGE as u64 + 200, &[1; PAGE]);
    let (_, native) = check(&device, Mode::Look);
    let (_, map) = check_with(&device, Mode::Look, Walker::Map(MapReader::default()), false);
    assert_eq!((native.codes(), native.text()), (vec!["leak", "past-end"], map.text()));
}

#[test]
fn link_counts_are_set() {
    let device = good();
    let (file, dir) = (ino(&device, &["a", "file 1"]), ino(&device, &["a", "b"]));
    spoil_inode(&device, file, |raw| raw.nlink = 9.into());
    spoil_inode(&device, dir, |raw| raw.nlink = 7.into());
    let fs = repairs(&device, &["inode-links"]);
    assert_eq!((fs.inode(Ino(file)).unwrap().nlink, fs.inode(Ino(dir)).unwrap().nlink), (2, 3));
}

#[test]
fn a_lost_root_page_puts_what_it_named_into_lost_found() {
    let device = good();
    let (a, big) = (ino(&device, &["a"]), ino(&device, &["big"]));
    device.put(CLASS0_BASE / PAGE as u64 + 2 * 256, &[0xee; PAGE]);
    repairs(&device, &["dir-page", "inode-links", "inode-unreachable"]);
    let fs = mount(&image::store(&device)).unwrap();
    let lost = fs.lookup(ROOT_INO, b"lost+found").unwrap();
    assert_eq!((lost.perm, lost.nlink), (0o700, 2 + 4));
    assert_eq!(fs.lookup(lost.ino, format!("#{a}").as_bytes()).unwrap().ino.0, a);
    assert_eq!(fs.lookup(Ino(big), b"..").unwrap().ino, lost.ino);
}

#[test]
fn a_directory_whose_root_page_is_lost_is_built_anew_from_its_leaves() {
    let device = good();
    let big = ino(&device, &["big"]);
    let before = mount(&image::store(&device)).unwrap().inode(Ino(big)).unwrap().entries;
    device.put((CLASS0_BASE + (big << 20)) / PAGE as u64, &[0; PAGE]);
    let fs = repairs(&device, &["dir-page"]);
    assert_eq!(fs.inode(Ino(big)).unwrap().entries, before);
    assert!(fs.lookup(Ino(big), format!("{:0>240}", 59).as_bytes()).is_ok());
}

#[test]
fn a_directory_with_two_names_keeps_one_and_a_loop_of_directories_ends_in_lost_found() {
    let device = good();
    let (a, b, c) = (ino(&device, &["a"]), ino(&device, &["a", "b"]), ino(&device, &["a", "b", "c"]));
    // The entry of `a` in the root names another directory now, so that `a` is lost; `c` says it is above.
    let page = CLASS0_BASE / PAGE as u64 + 2 * 256;
    let mut bytes = device.page(page);
    let at =
        bytes.windows(19).position(|w| w[8..16] == a.to_le_bytes() && w[17] == 1 && w[18] == b'a').unwrap();
    bytes[at + 8..at + 16].copy_from_slice(&b.to_le_bytes());
    device.put(page, &bytes);
    spoil_inode(&device, a, |raw| raw.place_dir = c.into());
    let (_, notes) = check(&device, Mode::Repair);
    assert!(notes.codes().contains(&"inode-place"), "{}", notes.text());
    let fs = mount(&image::store(&device)).unwrap();
    assert_eq!(layout::testing::check(&fs), Ok(()));
    assert_eq!(fs.lookup(ROOT_INO, b"a").unwrap().ino.0, b, "the first name met is kept");
    assert_eq!(check(&device, Mode::Look).0.unwrap().exit_code(), 0);
}

#[test]
fn dangling_entries_are_dropped_and_their_inodes_freed() {
    let device = good();
    let fifo = ino(&device, &["a", "b", "c", "fifo"]);
    spoil_inode(&device, fifo, |raw| *raw = zerocopy::FromBytes::read_from_bytes(&[0x5a; 512]).unwrap());
    let fs = repairs(&device, &["entry-dangling", "inode-lost"]);
    assert!(fs.lookup(Ino(ino(&device, &["a", "b", "c"])), b"fifo").is_err());
}

#[test]
fn an_inode_that_is_lost_is_made_anew_from_its_bytes() {
    let device = good();
    let (file, dir) = (ino(&device, &["a", "file 1"]), ino(&device, &["a", "b"]));
    for lost in [file, dir] {
        spoil_inode(&device, lost, |raw| *raw = zerocopy::FromBytes::read_from_bytes(&[0x5a; 512]).unwrap());
    }
    let (looked, notes) = check(&device, Mode::Look);
    assert_eq!(looked.unwrap().exit_code(), 4);
    assert!(!notes.codes().iter().any(|code| ["leak", "entry-dangling", "inode-unreachable"].contains(code)));
    assert_eq!(check(&device, Mode::Repair).0.unwrap().exit_code(), 1);
    assert_eq!(check(&device, Mode::Look).0.unwrap().exit_code(), 0);
    let fs = mount(&image::store(&device)).unwrap();
    assert_eq!(layout::testing::check(&fs), Ok(()));
    assert_eq!((ino(&device, &["a", "file 1"]), ino(&device, &["a", "b", "link 1"])), (file, file));
    let (file, dir) = (fs.inode(Ino(file)).unwrap(), fs.inode(Ino(dir)).unwrap());
    assert_eq!((file.size, file.perm, file.uid, file.nlink), (6 << 12, 0o600, 0, 2));
    assert_eq!((dir.kind, dir.perm), (Kind::Dir, 0o700));
}

#[test]
fn free_stacks_are_built_anew() {
    let device = good();
    for stack in 0..4 {
        let page = (STACK_BASE + stack * STACK_STRIDE) / PAGE as u64;
        let mut bytes = device.page(page);
        let first = bytes[..8].to_vec();
        bytes[8..16].copy_from_slice(&first);
        device.put(page, &bytes);
    }
    repairs(&device, &["free-stack"]);
}

#[test]
fn a_broken_orphan_list_ends_with_the_orphans_freed() {
    let device = good();
    let head = mount(&image::store(&device)).unwrap().superblock().orphan_head;
    spoil_inode(&device, head, |raw| raw.orphan_next = head.into());
    let fs = repairs(&device, &["orphan-list"]);
    assert_eq!(fs.superblock().orphan_head, 0);
}

#[test]
fn a_superblock_is_put_together_from_the_rest() {
    let device = good();
    let used = mount(&image::store(&device)).unwrap().superblock().inodes_used;
    let mut page = device.page(0);
    page[..16].fill(0);
    page[112..224].fill(0xff);
    device.put(0, &page);
    let (_, notes) = check(&device, Mode::Look);
    assert!(notes.codes().contains(&"sb-damaged"), "{}", notes.text());
    let (outcome, _) = check(&device, Mode::Repair);
    assert_eq!(outcome.unwrap().exit_code(), 1);
    let fs = mount(&image::store(&device)).unwrap();
    assert_eq!(layout::testing::check(&fs), Ok(()));
    assert!(used - fs.superblock().inodes_used <= 3, "but for the orphans, all inodes are there");
    assert!(fs.superblock().clean);
}

#[test]
fn rows_without_a_file_die_and_counts_are_set() {
    let device = good();
    let doc = ino(&device, &["col", "doc 1"]);
    spoil_inode(&device, doc, |raw| (raw.first_row, raw.row_count) = (0.into(), 0.into()));
    let fs = repairs(&device, &["row-stray"]);
    assert_eq!(fs.rows_file(Ino(ino(&device, &["col"]))).unwrap().header.live_rows, 30 + 90 + 110 + 130);
}

#[test]
fn a_collection_and_its_rows_file_find_each_other_again() {
    let device = good();
    let col = ino(&device, &["col"]);
    let rows = mount(&image::store(&device)).unwrap().inode(Ino(col)).unwrap().rows_ino.0;
    spoil_inode(&device, col, |raw| raw.rows_ino = 0.into());
    repairs(&device, &["collection-rows"]);
    let fs = mount(&image::store(&device)).unwrap();
    assert_eq!(fs.inode(Ino(col)).unwrap().rows_ino.0, rows);
    spoil_inode(&device, col, |raw| raw.flags = 0.into());
    let (outcome, notes) = check(&device, Mode::Repair);
    assert_eq!(outcome.unwrap().exit_code(), 1, "{}", notes.text());
    assert!(mount(&image::store(&device)).unwrap().rows_file(Ino(col)).is_ok());
}

#[test]
fn preening_repairs_what_is_safe_and_stops_at_the_rest() {
    let device = good();
    let file = ino(&device, &["a", "file 1"]);
    spoil_inode(&device, file, |raw| raw.nlink = 9.into());
    let (outcome, _) = check(&device, Mode::Preen);
    assert_eq!(outcome.unwrap().exit_code(), 1);
    device.put(CLASS0_BASE / PAGE as u64 + 2 * 256, &[0xee; PAGE]);
    let before = device.commits();
    let (outcome, _) = check(&device, Mode::Preen);
    assert!(matches!(outcome, Err(super::super::Stop::Unsafe)));
    assert_eq!(device.commits(), before);
}

#[test]
fn a_lost_acl_lets_nobody_in_whom_it_kept_out() {
    let device = good();
    let b = ino(&device, &["a", "b"]);
    let inode = mount(&image::store(&device)).unwrap().inode(Ino(b)).unwrap();
    assert_eq!((inode.perm & 0o070, inode.inline), (0o070, layout::inode::Inline::Xattr));
    // The first entry's name has no length any more: what follows cannot be read, its ACLs among it.
    spoil_inode(&device, b, |raw| raw.inline[0] = 0);
    let fs = repairs(&device, &["xattr-entry"]);
    assert_eq!(fs.inode(Ino(b)).unwrap().perm & 0o070, 0);
    // The same where the inline area as a whole is given up.
    let device = good();
    spoil_inode(&device, b, |raw| raw.inline_kind = 7);
    let fs = repairs(&device, &["inode-damaged"]);
    assert_eq!(fs.inode(Ino(b)).unwrap().perm & 0o070, 0);
}

#[test]
fn an_empty_file_with_attributes_is_not_thrown_away() {
    let mut fs = image::rich(60);
    let dir = fs.create(ROOT_INO, b"lost", image::new(Kind::Dir), image::NOW).unwrap().ino;
    let plain = fs.create(dir, b"plain", image::new(Kind::File), image::NOW).unwrap().ino;
    let told = fs.create(dir, b"told", image::new(Kind::File), image::NOW).unwrap().ino;
    fs.setxattr(told, b"user.tag", b"work of an evening", XattrFlags::empty(), image::NOW).unwrap();
    layout::testing::commit(&mut fs, image::NOW);
    let device = image::device(fs.store());
    device.put((CLASS0_BASE + (dir.0 << 20)) / PAGE as u64, &[0xee; PAGE]);
    let fs = repairs(&device, &["dir-page", "inode-nameless", "inode-unreachable"]);
    let lost = fs.lookup(ROOT_INO, b"lost+found").unwrap().ino;
    assert_eq!(fs.lookup(lost, format!("#{}", told.0).as_bytes()).unwrap().ino, told);
    assert!(fs.inode(plain).is_err());
}

#[test]
fn preening_does_not_take_a_lost_page_for_a_tree_out_of_order() {
    let device = good();
    let big = ino(&device, &["big"]);
    let first = (CLASS0_BASE + (big << 20)) / PAGE as u64;
    // The root says that there are more pages, and one of those that are there is not one of a directory.
    let mut bytes = device.page(first);
    bytes[24] += 5;
    device.put(first, &bytes);
    let pages = mount(&image::store(&device)).unwrap().inode(Ino(big)).unwrap().size / PAGE as u64;
    device.put(first + pages - 1, &[0xee; PAGE]);
    let (_, notes) = check(&device, Mode::Look);
    assert!(notes.codes().contains(&"dir-tree") && notes.codes().contains(&"dir-page"), "{}", notes.text());
    assert!(matches!(check(&device, Mode::Preen).0, Err(super::super::Stop::Unsafe)));
}

#[test]
fn data_behind_zeros_is_no_leak_of_zeros_and_nothing_stands_behind_the_stacks() {
    let device = good();
    let window = layout::addr::CLASS1_BASE / PAGE as u64 + (100 << 18);
    for page in 0..5000 {
        device.put(window + page, &[u8::from(page > 4500); PAGE]);
    }
    device.put((STACK_BASE + 8 * STACK_STRIDE) / PAGE as u64 + 3, &[1; PAGE]);
    repairs(&device, &["leak"]);
}

#[test]
fn pages_of_the_table_far_from_each_other_do_not_fill_it() {
    let device = good();
    let apart = super::super::inodes::GAP_MAX;
    for i in 1..200 {
        let number = i * apart;
        let inode = layout::inode::Inode::new(Ino(number), 1, Kind::File, 0o644, image::NOW);
        let mut page = [0; PAGE];
        inode.encode(slot_mut(&mut page, Ino(number)));
        device.put(Ino(number).page().unwrap().0, &page);
    }
    let before = device.mapped().len();
    let (outcome, notes) = check(&device, Mode::Repair);
    assert_eq!(outcome.unwrap().exit_code(), 1, "{:?}", notes.codes());
    assert!(notes.codes().contains(&"number-gap"), "{:?}", notes.codes());
    assert!(device.mapped().len() < before + 2 * apart as usize / 8, "{before} pages before");
    assert_eq!(check(&device, Mode::Look).0.unwrap().exit_code(), 0);
}

#[test]
fn numbers_far_away_do_not_cost_memory_or_time() {
    let device = good();
    // A lone inode near the end of the table, and a superblock that believes in it.
    let far = (1u64 << 36) - 8;
    let mut inode = layout::inode::Inode::new(Ino(far), 1, Kind::File, 0o644, image::NOW);
    inode.windows = [1 << 28, 1 << 20, 1 << 11];
    inode.size = 1 << 48;
    let mut page = [0; PAGE];
    inode.encode(slot_mut(&mut page, Ino(far)));
    device.put(PageNo::containing(INODE_BASE + far * 512).0, &page);
    let (outcome, notes) = check(&device, Mode::Repair);
    assert!(outcome.is_ok(), "{}", notes.text());
    let (outcome, notes) = check(&device, Mode::Look);
    assert_eq!(outcome.unwrap().exit_code(), 0, "{}", notes.text());
}
