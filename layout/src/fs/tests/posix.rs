//! Rules of POSIX and Linux that random sequences seldom meet, and failures found by them.

use std::vec;
use std::vec::Vec;

use super::{NOW, at, new};
use crate::addr::PAGE;
use crate::error::Error;
use crate::fs::{Fs, MountOptions, RenameFlags, SetAttr, XattrFlags};
use crate::inode::{Ino, InodeFlags, Kind, LINK_MAX, MAX_FILE_BYTES, ROOT_INO};
use crate::page_store::{PageStore, Timespec};
use crate::testing::{MemStore, check, commit, format_params, mount};
use crate::windows::map_page;

/// A change, and the permission bits after it.
type PermAfter<'a> = dyn Fn(&mut Fs<MemStore>) -> u16 + 'a;

fn empty() -> Fs<MemStore> {
    mount(&MemStore::formatted(format_params())).expect("mount")
}

fn file(fs: &mut Fs<MemStore>, name: &[u8]) -> Ino {
    fs.create(ROOT_INO, name, new(Kind::File, 0o644), NOW).expect("create").ino
}

#[test]
fn bad_names_are_refused_by_every_operation() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let long = [b'x'; 256];
    for (name, errno) in [(&b""[..], 22), (b".", 22), (b"a/b", 22), (b"a\0b", 22), (&long, 36)] {
        let flags = RenameFlags::empty();
        let answers = [
            fs.create(ROOT_INO, name, new(Kind::File, 0o644), NOW).err(),
            fs.symlink(ROOT_INO, name, b"target", 0, 0, NOW).err(),
            fs.link(ino, ROOT_INO, name, NOW).err(),
            fs.unlink(ROOT_INO, name, NOW).err(),
            fs.rmdir(ROOT_INO, name, NOW).err(),
            fs.rename(ROOT_INO, b"f", ROOT_INO, name, flags, NOW).err(),
            fs.rename(ROOT_INO, name, ROOT_INO, b"g", flags, NOW).err(),
        ];
        assert_eq!(answers.map(|e| e.map_or(0, Error::errno)), [errno; 7], "{name:?}");
    }
    assert_eq!(fs.lookup(ROOT_INO, b"f").expect("lookup").ino, ino);
}

#[test]
fn the_session_directory_cannot_be_made_removed_or_renamed() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let flags = RenameFlags::empty();
    assert_eq!(fs.create(ROOT_INO, b".vexfs", new(Kind::Dir, 0o755), NOW), Err(Error::Exists));
    assert_eq!(fs.link(ino, ROOT_INO, b".vexfs", NOW), Err(Error::Exists));
    assert_eq!(fs.symlink(ROOT_INO, b".vexfs", b"x", 0, 0, NOW), Err(Error::Exists));
    assert_eq!(fs.rmdir(ROOT_INO, b".vexfs", NOW), Err(Error::NotPermitted));
    assert_eq!(fs.rename(ROOT_INO, b"f", ROOT_INO, b".vexfs", flags, NOW), Err(Error::NotPermitted));
}

#[test]
fn any_inode_is_found_again_by_its_number_alone() {
    // As the kernel does for file handles (open_by_handle_at(2), NFS): a lookup of "." in what may be no directory.
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    assert_eq!(fs.lookup(ino, b".").map(|inode| inode.ino), Ok(ino));
    assert_eq!(fs.lookup(ino, b".."), Err(Error::NotDir));
    assert_eq!(fs.lookup(ROOT_INO, b".").map(|inode| inode.ino), Ok(ROOT_INO));
    let rows = fs.hidden_create(NOW).expect("create").ino;
    assert_eq!(fs.lookup(rows, b"."), Err(Error::NotFound));
}

#[test]
fn setgid_directories_give_their_group_and_directories_below_inherit_the_bit() {
    let mut fs = empty();
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o2775), NOW).expect("mkdir").ino;
    let set = SetAttr { gid: Some(77), ..SetAttr::default() };
    assert_eq!(fs.setattr(dir, set, NOW).expect("chown").0.perm, 0o2775, "a directory keeps its setgid bit");
    let sub = fs.create(dir, b"sub", new(Kind::Dir, 0o755), NOW).expect("mkdir");
    assert_eq!((sub.gid, sub.perm), (77, 0o2755));
    let file = fs.create(dir, b"file", new(Kind::File, 0o644), NOW).expect("create");
    assert_eq!((file.gid, file.perm), (77, 0o644));
    assert_eq!(fs.symlink(dir, b"link", b"t", 1, 2, NOW).expect("symlink").gid, 77);
}

#[test]
fn writes_truncates_and_chowns_clear_suid_and_executable_sgid() {
    let mut fs = empty();
    for (before, after) in [(0o6755, 0o755), (0o6644, 0o2644), (0o4711, 0o711), (0o2751, 0o751)] {
        let ino = file(&mut fs, b"f");
        let changes: [&PermAfter<'_>; 4] = [
            &|fs| fs.finish_write(ino, 5, NOW).expect("write").perm,
            &|fs| {
                fs.setattr(ino, SetAttr { size: Some(3), ..SetAttr::default() }, NOW)
                    .expect("truncate")
                    .0
                    .perm
            },
            &|fs| fs.setattr(ino, SetAttr { uid: Some(3), ..SetAttr::default() }, NOW).expect("chown").0.perm,
            &|fs| fs.setattr(ino, SetAttr { gid: Some(3), ..SetAttr::default() }, NOW).expect("chgrp").0.perm,
        ];
        for change in changes {
            fs.setattr(ino, SetAttr { perm: Some(before), ..SetAttr::default() }, NOW).expect("chmod");
            assert_eq!(change(&mut fs), after, "from {before:o}");
        }
        fs.unlink(ROOT_INO, b"f", NOW).expect("unlink");
    }
}

#[test]
fn link_counts_stop_at_the_limit() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    fs.inode_update(ino, |inode| inode.nlink = LINK_MAX).expect("update");
    assert_eq!(fs.link(ino, ROOT_INO, b"g", NOW), Err(Error::TooManyLinks));
    fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir");
    let dir = fs.create(ROOT_INO, b"full", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    fs.inode_update(dir, |inode| inode.nlink = LINK_MAX).expect("update");
    assert_eq!(fs.create(dir, b"x", new(Kind::Dir, 0o755), NOW), Err(Error::TooManyLinks));
    let moved = fs.rename(ROOT_INO, b"d", dir, b"x", RenameFlags::empty(), NOW);
    assert_eq!(moved, Err(Error::TooManyLinks));
    assert_eq!(fs.link(dir, ROOT_INO, b"again", NOW), Err(Error::NotPermitted));
}

#[test]
fn writes_and_truncates_past_the_largest_file_are_too_big() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    assert_eq!(fs.prepare_write(ino, MAX_FILE_BYTES, 1), Err(Error::TooBig));
    assert_eq!(fs.prepare_write(ino, u64::MAX, 1), Err(Error::TooBig));
    assert_eq!(fs.finish_write(ino, MAX_FILE_BYTES + 1, NOW), Err(Error::TooBig));
    let set = SetAttr { size: Some(MAX_FILE_BYTES + 1), ..SetAttr::default() };
    assert_eq!(fs.setattr(ino, set, NOW), Err(Error::TooBig));
    let inode = fs.prepare_write(ino, MAX_FILE_BYTES - 1, 1).expect("the last byte");
    assert_eq!(inode.windows, [0, 0, 1]);
    assert_eq!(fs.map(&inode, MAX_FILE_BYTES - 1).expect("mapped").len_bytes, 1);
    assert_eq!(fs.map(&inode, MAX_FILE_BYTES), None);
    assert_eq!(fs.map(&inode, 1 << 20), None, "a window that was never written is a hole");
}

#[test]
fn one_write_may_need_every_window() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let inode = fs.prepare_write(ino, 0, MAX_FILE_BYTES).expect("prepare");
    assert_eq!(inode.windows, [1, 1, 1]);
    fs.finish_write(ino, MAX_FILE_BYTES, NOW).expect("finish");
    let set = SetAttr { size: Some(1 << 30), ..SetAttr::default() };
    let (inode, tail) = fs.setattr(ino, set, NOW).expect("truncate");
    assert_eq!((inode.windows, tail), ([1, 0, 0], None));
}

#[test]
fn sparse_is_set_by_gaps_only_and_cleared_when_emptied() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let sparse = |fs: &Fs<MemStore>| fs.inode(ino).expect("inode").flags.contains(InodeFlags::SPARSE);
    let write = |fs: &mut Fs<MemStore>, offset: u64, len: u64| {
        fs.prepare_write(ino, offset, len).expect("prepare");
        fs.finish_write(ino, offset + len, NOW).expect("finish");
    };
    let truncate = |fs: &mut Fs<MemStore>, size: u64| {
        fs.setattr(ino, SetAttr { size: Some(size), ..SetAttr::default() }, NOW).expect("truncate")
    };
    write(&mut fs, 100, 5000);
    write(&mut fs, 8000, 10);
    truncate(&mut fs, 8192);
    assert!(!sparse(&fs));
    write(&mut fs, 3 * 4096, 1);
    assert!(sparse(&fs));
    truncate(&mut fs, 0);
    assert!(!sparse(&fs));
    truncate(&mut fs, 1);
    assert!(sparse(&fs));
}

#[test]
fn changed_bytes_make_rows_stale_once() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let fresh = |fs: &mut Fs<MemStore>| {
        fs.inode_update(ino, |inode| inode.flags |= InodeFlags::ROWS_FRESH).expect("update").data_version
    };
    let version = fresh(&mut fs);
    fs.prepare_write(ino, 0, 1).expect("write");
    let inode = fs.prepare_write(ino, 1, 1).expect("write");
    assert_eq!(inode.data_version, version + 1);
    assert!(!inode.flags.contains(InodeFlags::ROWS_FRESH));
    fresh(&mut fs);
    let (inode, _) = fs.setattr(ino, SetAttr { size: Some(0), ..SetAttr::default() }, NOW).expect("truncate");
    assert_eq!(inode.data_version, version + 2);
    fresh(&mut fs);
    let (inode, _) = fs.setattr(ino, SetAttr { perm: Some(0), ..SetAttr::default() }, NOW).expect("chmod");
    assert_eq!(inode.data_version, version + 2);
}

#[test]
fn a_collection_does_not_move_below_another() {
    let mut fs = empty();
    let dir = |fs: &mut Fs<MemStore>, parent, name| {
        fs.create(parent, name, new(Kind::Dir, 0o755), NOW).expect("mkdir").ino
    };
    let outer = dir(&mut fs, ROOT_INO, b"outer");
    let below = dir(&mut fs, outer, b"below");
    let inner = dir(&mut fs, ROOT_INO, b"inner");
    for ino in [outer, inner] {
        fs.inode_update(ino, |inode| inode.flags |= InodeFlags::COLLECTION).expect("update");
    }
    let flags = RenameFlags::empty();
    assert_eq!(fs.rename(ROOT_INO, b"inner", below, b"x", flags, NOW), Err(Error::CrossDevice));
    assert_eq!(fs.rename(outer, b"below", inner, b"x", flags, NOW), Ok(None));
}

#[test]
fn hidden_inodes_do_not_show() {
    let mut fs = empty();
    let rows = fs.hidden_create(NOW).expect("hidden");
    assert_eq!(fs.inode(rows.ino), Err(Error::NotFound));
    assert_eq!(fs.setattr(rows.ino, SetAttr::default(), NOW), Err(Error::NotFound));
    assert_eq!(fs.link(rows.ino, ROOT_INO, b"x", NOW), Err(Error::NotFound));
    assert_eq!(fs.hidden_inode(rows.ino), Ok(rows));
    let rows = fs.ensure_windows(rows.ino, 5 << 30, 1).expect("windows");
    let page = map_page(&rows, (5 << 30) / PAGE as u64).expect("a window");
    fs.store().write(page).expect("write").fill(7);
    assert_eq!(fs.hidden_inode(rows.ino), Ok(rows));
    commit(&mut fs, NOW);
    fs.hidden_free(rows.ino).expect("free");
    assert_eq!(fs.store().get(page), [0; PAGE]);
    assert_eq!(check(&fs), Ok(()));
    assert_eq!(fs.hidden_inode(rows.ino), Err(Error::NotFound));
}

#[test]
fn numbers_come_back_only_after_the_commit_that_freed_them() {
    let mut fs = empty();
    let first = fs.create(ROOT_INO, b"a", new(Kind::File, 0o644), NOW).expect("create");
    let again = |fs: &mut Fs<MemStore>| {
        fs.unlink(ROOT_INO, b"a", NOW).expect("unlink");
        fs.reap_orphans(u64::MAX).expect("reap");
        fs.create(ROOT_INO, b"a", new(Kind::File, 0o644), NOW).expect("create")
    };
    let second = again(&mut fs);
    assert_ne!(second.ino, first.ino);
    commit(&mut fs, NOW);
    let third = again(&mut fs);
    assert_eq!((third.ino, third.generation), (first.ino, first.generation + 1));
}

#[test]
fn orphans_are_freed_by_the_next_mount() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    for name in [b"a", b"b", b"c"] {
        let ino = file(&mut fs, name);
        fs.prepare_write(ino, 1 << 30, 1).expect("write");
        fs.unlink(ROOT_INO, name, NOW).expect("unlink");
    }
    commit(&mut fs, NOW);
    let mut fs = mount(&store).expect("mount");
    assert_eq!(fs.reap_orphans(u64::MAX), Ok(3));
    assert_eq!(fs.superblock().inodes_used, 1);
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn a_file_without_a_name_is_an_orphan_until_it_is_linked() {
    let store = MemStore::formatted(format_params());
    let mut fs = mount(&store).expect("mount");
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o2775), NOW).expect("mkdir");
    let set = SetAttr { gid: Some(77), ..SetAttr::default() };
    fs.setattr(dir.ino, set, NOW).expect("chgrp");
    let made: Vec<Ino> = (0..3)
        .map(|_| {
            let inode = fs.tmpfile(dir.ino, new(Kind::File, 0o640), at(1)).expect("tmpfile");
            assert_eq!((inode.nlink, inode.gid, inode.perm), (0, 77, 0o640));
            assert_eq!(fs.inode(inode.ino), Ok(inode));
            inode.ino
        })
        .collect();
    assert_eq!(fs.inode(dir.ino).expect("dir").mtime, NOW, "no name came, so nothing changed");
    assert_eq!(fs.tmpfile(dir.ino, new(Kind::Fifo, 0o640), NOW).map_err(Error::errno), Err(22));
    assert_eq!(fs.tmpfile(made[0], new(Kind::File, 0o640), NOW), Err(Error::NotDir));
    assert_eq!(check(&fs), Ok(()));

    // From the middle of the list; then a crash, and one committed link.
    let linked = fs.link(made[1], ROOT_INO, b"f", at(2)).expect("link");
    assert_eq!((linked.nlink, linked.place_dir, linked.ctime), (1, ROOT_INO, at(2)));
    assert_eq!(check(&fs), Ok(()));
    commit(&mut fs, NOW);
    fs.link(made[0], ROOT_INO, b"lost", NOW).expect("link");
    store.rollback();
    let mut fs = mount(&store).expect("mount");
    assert_eq!(fs.reap_orphans(u64::MAX), Ok(2));
    assert_eq!(fs.lookup(ROOT_INO, b"f").expect("lookup").ino, made[1]);
    assert_eq!(fs.lookup(ROOT_INO, b"lost"), Err(Error::NotFound));
    assert_eq!(check(&fs), Ok(()));
    fs.unlink(ROOT_INO, b"f", NOW).expect("unlink");
    fs.reap(made[1]).expect("reap");
    assert_eq!(fs.tmpfile(Ino(99), new(Kind::File, 0), NOW), Err(Error::NotFound));
}

#[test]
fn a_removed_directory_takes_no_names_and_has_no_parent() {
    let mut fs = empty();
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    fs.rmdir(ROOT_INO, b"d", NOW).expect("rmdir");
    assert_eq!(fs.create(dir, b"x", new(Kind::File, 0o644), NOW), Err(Error::NotFound));
    assert_eq!(fs.parent(dir), Err(Error::NotFound));
    assert_eq!(fs.parent(ROOT_INO), Ok(ROOT_INO));
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let store = MemStore::formatted(format_params());
    let options = MountOptions { read_only: true, session: 0, now: NOW };
    let mut fs = Fs::mount(store, options).expect("mount");
    assert_eq!(fs.create(ROOT_INO, b"x", new(Kind::File, 0o644), NOW), Err(Error::ReadOnly));
    assert_eq!(fs.setattr(ROOT_INO, SetAttr::default(), NOW), Err(Error::ReadOnly));
    assert_eq!(fs.reap_orphans(u64::MAX), Ok(0));
}

#[test]
fn paths_follow_places_and_end_where_they_are_unknown() {
    let mut fs = empty();
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    let ino = fs.create(dir, b"file", new(Kind::File, 0o644), NOW).expect("create").ino;
    let path = |fs: &Fs<MemStore>, stop, len: usize| -> Result<Vec<u8>, Error> {
        let mut out = vec![0; len];
        fs.path(ino, stop, &mut out).map(|len| out[..len].to_vec())
    };
    assert_eq!(path(&fs, ROOT_INO, 6), Ok(b"d/file".to_vec()));
    assert_eq!(path(&fs, ROOT_INO, 5), Err(Error::Range));
    assert_eq!(path(&fs, dir, 100), Ok(b"file".to_vec()));
    assert_eq!(path(&fs, ino, 0), Ok(Vec::new()));
    fs.link(ino, ROOT_INO, b"other", NOW).expect("link");
    assert_eq!(path(&fs, ROOT_INO, 100), Ok(b"d/file".to_vec()), "the place stays");
    fs.rename(ROOT_INO, b"other", ROOT_INO, b"renamed", RenameFlags::empty(), NOW).expect("rename");
    assert_eq!(path(&fs, dir, 100), Ok(b"file".to_vec()), "another name moves");
    fs.rename(dir, b"file", ROOT_INO, b"up", RenameFlags::empty(), NOW).expect("rename");
    assert_eq!(path(&fs, ROOT_INO, 100), Ok(b"up".to_vec()));
    assert_eq!(path(&fs, dir, 100), Err(Error::NotFound), "the place is no longer below");
    fs.unlink(ROOT_INO, b"up", NOW).expect("unlink");
    assert_eq!(path(&fs, ROOT_INO, 100), Err(Error::NotFound), "the place is unknown now");
    fs.set_place(ino, ROOT_INO, b"renamed").expect("a name of it");
    assert_eq!(path(&fs, ROOT_INO, 100), Ok(b"renamed".to_vec()));
    assert_eq!(fs.set_place(ino, ROOT_INO, b"d"), Err(Error::NotFound), "a name of another");
}

#[test]
fn attribute_times_are_taken_as_given() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let early = Timespec { secs: -5, nanos: 999_999_999 };
    let set = SetAttr { atime: Some(early), mtime: Some(early), ..SetAttr::default() };
    let (inode, _) = fs.setattr(ino, set, at(9)).expect("utimes");
    assert_eq!((inode.atime, inode.mtime, inode.ctime, inode.btime), (early, early, at(9), NOW));
    assert_eq!(fs.inode(ino), Ok(inode));
    let bad = SetAttr { atime: Some(Timespec { secs: 0, nanos: 1_000_000_000 }), ..SetAttr::default() };
    assert_eq!(fs.setattr(ino, bad, NOW).map_err(Error::errno), Err(22));
}

#[test]
fn the_vector_attribute_is_never_stored() {
    let mut fs = empty();
    let ino = file(&mut fs, b"f");
    let set = fs.setxattr(ino, b"user.vexfs.vector", b"1234", XattrFlags::empty(), NOW);
    assert_eq!(set, Err(Error::Unsupported));
    assert_eq!(fs.getxattr(ino, b"user.vexfs.vector", &mut []), Err(Error::NoAttr));
    assert_eq!(fs.setxattr(ino, b"", b"", XattrFlags::empty(), NOW), Err(Error::Range));
    assert_eq!(fs.setxattr(ino, &[b'n'; 256], b"", XattrFlags::empty(), NOW), Err(Error::Range));
    let large = vec![1; 65_536];
    assert_eq!(fs.setxattr(ino, b"user.x", &large, XattrFlags::empty(), NOW), Err(Error::NoSpace));
    fs.setxattr(ino, b"user.x", &large[..65_502], XattrFlags::empty(), NOW).expect("it just fits");
    assert_eq!(fs.setxattr(ino, b"user.y", b"", XattrFlags::empty(), NOW), Err(Error::NoSpace));
    let mut short = [0; 10];
    assert_eq!(fs.getxattr(ino, b"user.x", &mut short), Err(Error::Range));
}

/// Found by random sequences: the area stayed, with no entries in it.
#[test]
fn the_last_xattr_of_a_symlink_takes_its_area_along() {
    let mut fs = empty();
    let ino = fs.symlink(ROOT_INO, b"l", b"target", 0, 0, NOW).expect("symlink").ino;
    fs.setxattr(ino, b"user.a", b"1", XattrFlags::empty(), NOW).expect("set");
    fs.removexattr(ino, b"user.a", NOW).expect("remove");
    fs.listxattr(ino, &mut |_| panic!("there is none")).expect("list");
    assert_eq!(check(&fs), Ok(()));
}

/// Found by random sequences: the target's page stayed mapped.
#[test]
fn a_long_symlink_with_inline_xattrs_is_freed_whole() {
    let mut fs = empty();
    let ino = fs.symlink(ROOT_INO, b"l", &[b't'; 321], 0, 0, NOW).expect("symlink").ino;
    fs.setxattr(ino, b"user.a", b"1", XattrFlags::empty(), NOW).expect("set");
    fs.unlink(ROOT_INO, b"l", NOW).expect("unlink");
    fs.reap(ino).expect("reap");
    assert_eq!(check(&fs), Ok(()));
}
