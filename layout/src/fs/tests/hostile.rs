//! Spoiled images and failing I/O: errors, never a panic, an endless loop or a write out of place (which
//! the in-memory store asserts).

use std::format;
use std::vec;
use std::vec::Vec;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{NOW, new};
use crate::access::{Access, Credentials};
use crate::acl::AclKind;
use crate::acl::tests::value;
use crate::addr::{PAGE, PageNo, SUPERBLOCK_PAGE};
use crate::error::{Error, Result};
use crate::fs::{Fs, RenameFlags, SetAttr, XattrFlags};
use crate::inode::{Ino, InodeFlags, Kind, ROOT_INO, slot_mut};
use crate::page_store::PageStore;
use crate::superblock::{RawSuperblock, Superblock};
use crate::testing::{MemStore, check, commit, format_params, mount};

/// A committed image with something of everything; few enough pages that a spoiled one matters.
fn image() -> MemStore {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    let dir = |fs: &mut Fs<MemStore>, parent, name: &[u8]| {
        fs.create(parent, name, new(Kind::Dir, 0o755), NOW).expect("mkdir").ino
    };
    let a = dir(&mut fs, ROOT_INO, b"a");
    let b = dir(&mut fs, a, b"b");
    dir(&mut fs, b, b"c");
    fs.set_acl(b, AclKind::Default, &acl(), false, NOW).expect("set_acl");
    for i in 0..120 {
        let name = format!("{i:0>120}");
        let ino = fs.create(a, name.as_bytes(), new(Kind::File, 0o644), NOW).expect("create").ino;
        let size = 1u64 << (i % 47);
        fs.prepare_write(ino, size - 1, 1).expect("prepare");
        fs.finish_write(ino, size, NOW).expect("finish");
        if i % 3 == 0 {
            fs.setxattr(ino, b"user.a", &vec![7; i * 40], XattrFlags::empty(), NOW).expect("setxattr");
        }
        if i % 10 == 0 {
            fs.link(ino, b, format!("link {i}").as_bytes(), NOW).expect("link");
            fs.symlink(b, format!("sym {i}").as_bytes(), &vec![b't'; 1 + i * 20], 0, 0, NOW)
                .expect("symlink");
        }
        if i % 4 == 1 {
            fs.unlink(a, name.as_bytes(), NOW).expect("unlink");
        }
        if i == 60 {
            commit(&mut fs, NOW);
            fs.reap_orphans(u64::MAX).expect("reap");
            commit(&mut fs, NOW);
        }
    }
    commit(&mut fs, NOW);
    assert_eq!(check(&fs), Ok(()));
    store
}

/// An ACL that does not fit an inode.
fn acl() -> Vec<u8> {
    let mut acl = vec![(1, 7, 0)];
    acl.extend((0..60).map(|user| (2, 5, user)));
    acl.extend([(4, 5, 0), (0x10, 7, 0), (0x20, 5, 0)]);
    value(&acl)
}

/// Reads everything that can be reached; gives what it met.
fn read_all(fs: &Fs<MemStore>) -> (Vec<Ino>, Vec<(Ino, Vec<u8>)>) {
    let (mut inodes, mut names) = (Vec::new(), Vec::new());
    for number in 0..fs.superblock().next_ino.min(300) {
        let ino = Ino(number);
        let Ok(inode) = fs.inode(ino) else { continue };
        inodes.push(ino);
        let mut out = [0; 5000];
        let _ = fs.path(ino, ROOT_INO, &mut out);
        let _ = fs.readlink(ino, &mut out);
        let _ = fs.permits(&Credentials { uid: 1, gid: 1, groups: &[] }, &inode, Access::Read);
        let _ = fs.listxattr(ino, &mut |name| assert!(!name.is_empty()));
        let _ = fs.getxattr(ino, b"user.a", &mut out);
        let _ = (fs.map(&inode, 0), fs.map(&inode, inode.size));
        let _ = fs.readdir(ino, 0, &mut |entry| {
            names.push((ino, entry.name.to_vec()));
            names.len() % 200 != 0
        });
        let _ = fs.parent(ino);
    }
    for (dir, name) in &names {
        let _ = fs.lookup(*dir, name);
    }
    (inodes, names)
}

/// Changes things at random, whatever comes of it.
fn change_at_random(fs: &mut Fs<MemStore>, rng: &mut StdRng, inodes: &[Ino], names: &[(Ino, Vec<u8>)]) {
    if names.is_empty() || inodes.is_empty() {
        return;
    }
    for i in 0..30 {
        let (dir, name) = &names[rng.random_range(0..names.len())];
        let (to, other) = &names[rng.random_range(0..names.len())];
        let ino = inodes[rng.random_range(0..inodes.len())];
        let fresh = format!("{i:0>100}");
        let flags = RenameFlags::from_bits_truncate(rng.random_range(0..3));
        let size = SetAttr { size: Some(1u64 << rng.random_range(0..49)), ..SetAttr::default() };
        let _ = match rng.random_range(0..16) {
            0 => fs.create(*dir, fresh.as_bytes(), new(Kind::File, 0o644), NOW).map(drop),
            1 => fs.create(*dir, fresh.as_bytes(), new(Kind::Dir, 0o755), NOW).map(drop),
            2 => fs.symlink(*dir, fresh.as_bytes(), &[b'x'; 400], 0, 0, NOW).map(drop),
            3 => fs.link(ino, *dir, fresh.as_bytes(), NOW).map(drop),
            4 => fs.unlink(*dir, name, NOW).map(drop),
            5 => fs.rmdir(*dir, name, NOW).map(drop),
            6 => fs.rename(*dir, name, *to, other, flags, NOW).map(drop),
            7 => fs.rename(*dir, name, *to, fresh.as_bytes(), flags, NOW).map(drop),
            8 => fs.setattr(ino, size, NOW).map(drop),
            9 => fs.setxattr(ino, b"user.a", &[1; 3000], XattrFlags::empty(), NOW).map(drop),
            10 => fs.removexattr(ino, b"user.a", NOW).map(drop),
            12 => fs.set_acl(ino, AclKind::Default, &acl(), true, NOW).map(drop),
            13 => fs.set_acl(ino, AclKind::Access, &acl(), false, NOW).map(drop),
            14 => fs.setattr(ino, SetAttr { perm: Some(0o640), ..SetAttr::default() }, NOW).map(drop),
            11 => fs.tmpfile(ino, new(Kind::File, 0o644), NOW).map(drop),
            _ => fs.prepare_write(ino, 1u64 << rng.random_range(0..48), 9000).map(drop),
        };
    }
    let _ = fs.reap_orphans(u64::MAX);
}

/// Spoils a page in one of several ways.
fn spoil(store: &MemStore, rng: &mut StdRng, pages: &[PageNo]) {
    let page_no = pages[rng.random_range(0..pages.len())];
    let mut page = store.get(page_no);
    match rng.random_range(0..6) {
        0 => page.fill(0),
        1 => page = store.get(pages[rng.random_range(0..pages.len())]),
        2 => {
            // A field of a header.
            let at = rng.random_range(0..32);
            page[at] = rng.random();
        }
        3 => {
            let at = rng.random_range(0..PAGE / 4) * 4;
            let value = [0u32, 1, 2, 3, 255, 0xffff, 0xffff_ffff][rng.random_range(0..7)];
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        _ => {
            for _ in 0..rng.random_range(1..8) {
                let at = rng.random_range(0..PAGE);
                page[at] ^= 1 << rng.random_range(0..8);
            }
        }
    }
    store.put(page_no, &page);
    if page_no == SUPERBLOCK_PAGE {
        fix_superblock_crc(store);
    }
}

/// Gives a spoiled superblock a right crc, so that the checks behind it are reached.
fn fix_superblock_crc(store: &MemStore) {
    let mut page = store.get(SUPERBLOCK_PAGE);
    page[12..16].fill(0);
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&page);
    page[12..16].copy_from_slice(&crc.to_le_bytes());
    store.put(SUPERBLOCK_PAGE, &page);
}

#[test]
fn spoiled_images_give_errors_and_end() {
    const CALLS_MAX: u64 = 3_000_000;
    let good = image();
    let (pages, good_calls) = (good.mapped(), good.calls());
    let (mut unmountable, mut poisoned) = (0, 0);
    for seed in 0..1500 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let store = good.fork();
        for _ in 0..rng.random_range(1..6) {
            spoil(&store, rng, &pages);
        }
        // Calls fail at last, so that even an endless loop of reads would show as a failed test.
        store.set_fault(Some((CALLS_MAX, Error::Io(PageNo(0)))));
        let Ok(mut fs) = mount(&store) else {
            unmountable += 1;
            continue;
        };
        let (inodes, names) = read_all(&fs);
        change_at_random(&mut fs, rng, &inodes, &names);
        read_all(&fs);
        poisoned += usize::from(fs.is_poisoned());
        assert!(store.calls() < CALLS_MAX, "seed {seed}: more than {CALLS_MAX} calls");
    }
    assert!(good_calls < CALLS_MAX / 10);
    assert!(unmountable > 0 && unmountable < 1000, "{unmountable} of 1500 could not be mounted");
    assert!(poisoned < 500, "{poisoned} of 1500 were poisoned: prepare steps must find most of it");
}

/// Directory pages are spoiled in every byte of their header and of the first entries.
#[test]
fn each_byte_of_a_directory_page_may_be_anything() {
    let good = image();
    let fs = mount(&good).expect("mount");
    let dir = fs.lookup(ROOT_INO, b"a").expect("lookup");
    for index in 0..3 {
        let page_no = fs.dir_place(&dir, index).expect("page").page;
        for at in (0..80).chain(PAGE - 160..PAGE) {
            for value in [0x00, 0x01, 0x7f, 0xff] {
                let store = good.fork();
                let mut page = store.get(page_no);
                page[at] ^= value;
                store.put(page_no, &page);
                let mut fs = mount(&store).expect("the superblock is good");
                let mut names = Vec::new();
                let _ = fs.readdir(dir.ino, 0, &mut |entry| {
                    names.push(entry.name.to_vec());
                    true
                });
                for name in &names {
                    let _ = fs.unlink(dir.ino, name, NOW);
                }
                for i in 0..20 {
                    let name = format!("{i:0>200}");
                    let _ = fs.create(dir.ino, name.as_bytes(), new(Kind::File, 0o644), NOW);
                }
            }
        }
    }
}

#[test]
fn loops_of_directories_orphans_and_free_pages_end() {
    let good = image();
    let fs = mount(&good).expect("mount");
    let a = fs.lookup(ROOT_INO, b"a").expect("lookup").ino;
    let b = fs.lookup(a, b"b").expect("lookup").ino;
    let spoil = |ino: Ino, change: &dyn Fn(&mut crate::inode::RawInode)| {
        let store = good.fork();
        let page_no = ino.page().expect("page");
        let mut page = store.get(page_no);
        change(slot_mut(&mut page, ino));
        store.put(page_no, &page);
        mount(&store).expect("mount")
    };
    // a's place says it is below b, which is below a.
    let mut fs = spoil(a, &|raw| raw.place_dir = b.0.into());
    let moved = fs.rename(ROOT_INO, b"a", b, b"x", RenameFlags::empty(), NOW);
    assert!(matches!(moved, Err(Error::Invalid(_))));
    let c = fs.create(ROOT_INO, b"new", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    let moved = fs.rename(ROOT_INO, b"new", b, b"x", RenameFlags::empty(), NOW);
    assert!(matches!(moved, Err(Error::Corrupt(_))), "{moved:?}");
    assert_eq!(fs.path(c, ROOT_INO, &mut [0; 10]), Ok(3));

    let head = Ino(fs.superblock().orphan_head);
    assert_ne!(head.0, 0);
    let mut fs = spoil(head, &|raw| raw.orphan_next = head.0.into());
    assert!(matches!(fs.reap_orphans(u64::MAX), Err(Error::Corrupt(_))));
    assert!(!fs.is_poisoned());
    let mut fs = spoil(head, &|raw| raw.flags = (raw.flags.get() & !InodeFlags::ORPHAN.bits()).into());
    assert!(matches!(fs.reap_orphans(u64::MAX), Err(Error::Corrupt(_))));
}

/// Each call of each change fails in turn: either nothing changed, or the mount is poisoned and the last
/// commit is whole.
#[test]
fn failing_calls_change_nothing_or_poison_the_mount() {
    type Change = dyn Fn(&mut Fs<MemStore>, Ino, &[Vec<u8>]) -> Result<()>;
    let good = image();
    let fs = mount(&good).expect("mount");
    let a = fs.lookup(ROOT_INO, b"a").expect("lookup").ino;
    let mut names = Vec::new();
    fs.readdir(a, 2, &mut |entry| {
        names.push(entry.name.to_vec());
        true
    })
    .expect("readdir");
    names.retain(|name| name.len() == 120);
    let changes: [&Change; 13] = [
        &|fs, a, names| {
            let ino = fs.lookup(a, &names[3])?.ino;
            fs.set_acl(ino, AclKind::Access, &acl(), false, NOW).map(drop)
        },
        &|fs, _, _| fs.create(Ino(4), b"heir", new(Kind::Dir, 0o777), NOW).map(drop),
        &|fs, a, _| fs.tmpfile(a, new(Kind::File, 0o644), NOW).map(drop),
        &|fs, a, _| {
            // Not the head, so that both neighbours on the list change.
            let orphan = fs.inode(Ino(fs.superblock().orphan_head))?.orphan_next;
            fs.link(orphan, a, b"linked", NOW).map(drop)
        },
        &|fs, a, _| fs.create(a, &[b'n'; 250], new(Kind::Dir, 0o755), NOW).map(drop),
        &|fs, a, _| fs.symlink(a, b"s", &[b'n'; 999], 0, 0, NOW).map(drop),
        &|fs, a, names| fs.unlink(a, &names[0], NOW).map(drop),
        &|fs, a, names| fs.rename(a, &names[1], a, &names[2], RenameFlags::empty(), NOW).map(drop),
        &|fs, a, names| fs.rename(a, &names[1], ROOT_INO, b"moved", RenameFlags::empty(), NOW).map(drop),
        &|fs, a, names| fs.rename(a, &names[1], a, &[b'r'; 240], RenameFlags::empty(), NOW).map(drop),
        &|fs, a, names| {
            let ino = fs.lookup(a, &names[3])?.ino;
            fs.setxattr(ino, b"user.b", &[5; 9000], XattrFlags::empty(), NOW).map(drop)
        },
        &|fs, a, names| {
            let ino = names.iter().map(|n| fs.lookup(a, n)).find(|i| i.is_ok_and(|i| i.size > 1 << 30));
            let ino = ino.ok_or(Error::NotFound)??.ino;
            fs.setattr(ino, SetAttr { size: Some(1), ..SetAttr::default() }, NOW).map(drop)
        },
        &|fs, _, _| fs.reap_orphans(u64::MAX).map(drop),
    ];
    let digest = |fs: &Fs<MemStore>| {
        let (inodes, names) = read_all(fs);
        (inodes.iter().map(|ino| fs.inode(*ino)).collect::<Vec<_>>(), names)
    };
    let before = digest(&fs);
    for (i, change) in changes.iter().enumerate() {
        let (mut unchanged, mut poisoned) = (0, 0);
        for calls in 0.. {
            let store = good.fork();
            let mut fs = mount(&store).expect("mount");
            store.set_fault(Some((calls, Error::Io(PageNo(7)))));
            let result = change(&mut fs, a, &names);
            store.set_fault(None);
            if result.is_ok() {
                assert_eq!(check(&fs), Ok(()), "change {i}");
                break;
            }
            if fs.is_poisoned() {
                poisoned += 1;
                let later = fs.create(ROOT_INO, b"later", new(Kind::File, 0o644), NOW);
                assert_eq!(later, Err(Error::Aborted));
                store.rollback();
                let fs = mount(&store).expect("mount");
                assert_eq!(digest(&fs), before, "change {i}, call {calls}");
            } else if i < 12 {
                unchanged += 1;
                assert_eq!(digest(&fs), before, "change {i}, call {calls}");
            }
        }
        assert!(poisoned > 0 && (unchanged > 0 || i == 12), "change {i}: {unchanged} {poisoned}");
    }
}

#[test]
fn superblocks_that_this_code_cannot_serve_are_refused_with_a_reason() {
    let good = image();
    let refused = |change: &dyn Fn(&mut RawSuperblock), read_only: bool| {
        let store = good.fork();
        let mut page = store.get(SUPERBLOCK_PAGE);
        change(zerocopy::transmute_mut!(&mut page));
        store.put(SUPERBLOCK_PAGE, &page);
        fix_superblock_crc(&store);
        Superblock::decode(&store.read(SUPERBLOCK_PAGE).expect("read"), read_only).err()
    };
    assert!(matches!(refused(&|raw| raw.version = 2.into(), true), Some(Error::Invalid(_))));
    assert!(matches!(refused(&|raw| raw.incompat = 4.into(), true), Some(Error::Invalid(_))));
    assert!(matches!(refused(&|raw| raw.ro_compat = 4.into(), false), Some(Error::Invalid(_))));
    assert_eq!(refused(&|raw| raw.ro_compat = 4.into(), true), None);
    assert_eq!(refused(&|raw| raw.compat = 4.into(), false), None);
    for change in [
        &(|raw: &mut RawSuperblock| raw.magic = [0; 8]) as &dyn Fn(&mut RawSuperblock),
        &|raw| raw.version = 0.into(),
        &|raw| raw.root = 3.into(),
        &|raw| raw.next_ino = 2.into(),
        &|raw| raw.next_ino = ((1 << 36) + 1).into(),
        &|raw| raw.next_window[2] = 2049.into(),
        &|raw| raw.stack_depth[7] = (1 << 38).into(),
        &|raw| raw.orphan_head = u64::MAX.into(),
        &|raw| raw.flags = 2.into(),
        &|raw| raw.reserved1[3827] = 1,
        &|raw| raw.commit_nanos = 1_000_000_000.into(),
    ] {
        assert!(matches!(refused(change, true), Some(Error::Corrupt(_))));
    }
}
