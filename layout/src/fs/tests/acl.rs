//! POSIX ACLs: what random sequences compare with the model only as a whole, said one by one.

use std::vec;
use std::vec::Vec;

use super::{NOW, at, new};
use crate::access::{Access, Credentials};
use crate::acl::tests::value;
use crate::acl::{ACCESS_XATTR, ACL_ENTRIES_MAX, AclKind, DEFAULT_XATTR};
use crate::addr::{PageNo, XATTR_BASE, XATTR_BYTES};
use crate::error::Error;
use crate::fs::{Fs, NewInode, SetAttr, XattrFlags};
use crate::inode::{Ino, InodeFlags, Kind, ROOT_INO};
use crate::testing::{MemStore, check, commit, format_params, mount};
use crate::xattr::{XATTR_ENTRIES_MAX, XATTR_ENTRY_BYTES};

const NOBODY: u32 = u32::MAX;
/// Owner rwx, user 5 rwx, group r-x, mask rwx, others nothing.
const SHARED: [(u16, u16, u32); 5] =
    [(1, 7, NOBODY), (2, 7, 5), (4, 5, NOBODY), (0x10, 7, NOBODY), (0x20, 0, NOBODY)];

fn empty() -> Fs<MemStore> {
    mount(&MemStore::formatted(format_params())).expect("mount")
}

fn acl(fs: &Fs<MemStore>, ino: Ino, name: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; 2000];
    match fs.getxattr(ino, name, &mut out) {
        Ok(len) => Some(out[..len].to_vec()),
        Err(error) => {
            assert_eq!(error, Error::NoAttr);
            None
        }
    }
}

fn set(fs: &mut Fs<MemStore>, ino: Ino, kind: AclKind, entries: &[(u16, u16, u32)]) -> Result<u16, Error> {
    fs.set_acl(ino, kind, &value(entries), false, at(1)).map(|inode| inode.perm)
}

#[test]
fn an_acl_that_is_a_mode_becomes_it_and_is_not_stored() {
    let mut fs = empty();
    let ino = fs.create(ROOT_INO, b"f", new(Kind::File, 0o6644), NOW).expect("create").ino;
    assert_eq!(set(&mut fs, ino, AclKind::Access, &SHARED), Ok(0o6770));
    assert_eq!(acl(&fs, ino, ACCESS_XATTR), Some(value(&SHARED)));
    let plain = [(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY)];
    assert_eq!(set(&mut fs, ino, AclKind::Access, &plain), Ok(0o6644));
    assert_eq!(acl(&fs, ino, ACCESS_XATTR), None);
    assert_eq!(fs.inode(ino).expect("inode").ctime, at(1));
    // A caller outside of the group takes setgid along; removing leaves the mode.
    let killed = fs.set_acl(ino, AclKind::Access, &value(&SHARED), true, NOW).expect("set");
    assert_eq!(killed.perm, 0o4770);
    assert_eq!(set(&mut fs, ino, AclKind::Access, &[]), Ok(0o4770));
    assert_eq!(acl(&fs, ino, ACCESS_XATTR), None);
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn acls_are_refused_where_they_mean_nothing() {
    let mut fs = empty();
    let ino = fs.create(ROOT_INO, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
    let link = fs.symlink(ROOT_INO, b"l", b"target", 0, 0, NOW).expect("symlink").ino;
    assert_eq!(set(&mut fs, ino, AclKind::Default, &SHARED), Err(Error::Access));
    assert_eq!(set(&mut fs, ino, AclKind::Default, &[]), Ok(0o644));
    assert_eq!(set(&mut fs, link, AclKind::Access, &SHARED), Err(Error::Unsupported));
    assert!(matches!(set(&mut fs, ino, AclKind::Access, &SHARED[1..]), Err(Error::Invalid(_))));
    for name in [ACCESS_XATTR, DEFAULT_XATTR] {
        let set = fs.setxattr(ino, name, &value(&SHARED), XattrFlags::empty(), NOW);
        assert_eq!(set, Err(Error::Unsupported), "unchecked");
    }
    assert_eq!(fs.inode(ino).expect("inode").perm, 0o644);
}

#[test]
fn chmod_changes_the_mask_or_else_the_group() {
    let mut fs = empty();
    let ino = fs.create(ROOT_INO, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
    let chmod = |fs: &mut Fs<MemStore>, perm| {
        fs.setattr(ino, SetAttr { perm: Some(perm), ..SetAttr::default() }, NOW).expect("chmod").0.perm
    };
    set(&mut fs, ino, AclKind::Access, &SHARED).expect("set");
    assert_eq!(chmod(&mut fs, 0o641), 0o641);
    let mut expected = SHARED;
    (expected[0].1, expected[3].1, expected[4].1) = (6, 4, 1);
    assert_eq!(acl(&fs, ino, ACCESS_XATTR), Some(value(&expected)));
    // In the overflow area, across a page border.
    fs.setxattr(ino, b"user.x", &[7; 4030], XattrFlags::empty(), NOW).expect("fill");
    set(&mut fs, ino, AclKind::Access, &SHARED).expect("set");
    assert!(fs.inode(ino).expect("inode").flags.contains(InodeFlags::XATTR_OVERFLOW));
    chmod(&mut fs, 0o641);
    assert_eq!(acl(&fs, ino, ACCESS_XATTR), Some(value(&expected)));
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn a_chmod_touches_no_area_of_another_inode() {
    let mut fs = empty();
    let ino = fs.create(ROOT_INO, b"f", new(Kind::File, 0o644), NOW).expect("create").ino;
    // The ACL's value ends where the area does.
    let entry = |name: &[u8], value: usize| XATTR_ENTRY_BYTES + name.len() + value;
    let acl_bytes = entry(ACCESS_XATTR, value(&SHARED).len());
    let rest = XATTR_ENTRIES_MAX - acl_bytes - entry(b"user.fill", 0);
    fs.setxattr(ino, b"user.fill", &vec![7; rest], XattrFlags::empty(), NOW).expect("fits");
    set(&mut fs, ino, AclKind::Access, &SHARED).expect("fits");
    let chmod = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    fs.setattr(ino, chmod, NOW).expect("chmod");
    let end = XATTR_BASE + (ino.0 + 1) * XATTR_BYTES;
    assert!(!fs.store().mapped().contains(&PageNo::containing(end)));
    assert_eq!(check(&fs), Ok(()));
}

#[test]
fn default_acls_are_inherited_instead_of_the_umask() {
    let mut fs = empty();
    let made = |kind, perm, umask| NewInode { umask, ..new(kind, perm) };
    let plain = fs.create(ROOT_INO, b"plain", made(Kind::File, 0o6666, 0o7027), NOW).expect("create");
    assert_eq!(plain.perm, 0o6640, "the umask takes permission bits only");
    let dir = fs.create(ROOT_INO, b"d", new(Kind::Dir, 0o755), NOW).expect("mkdir").ino;
    assert_eq!(set(&mut fs, dir, AclKind::Default, &SHARED), Ok(0o755), "the mode stays");

    let file = fs.create(dir, b"f", made(Kind::File, 0o666, 0o077), NOW).expect("create");
    assert_eq!(file.perm, 0o660);
    let mut expected = SHARED;
    (expected[0].1, expected[3].1) = (6, 6);
    assert_eq!(acl(&fs, file.ino, ACCESS_XATTR), Some(value(&expected)));
    assert_eq!(acl(&fs, file.ino, DEFAULT_XATTR), None);
    let tmp = fs.tmpfile(dir, made(Kind::File, 0o666, 0o077), NOW).expect("tmpfile");
    assert_eq!((tmp.perm, acl(&fs, tmp.ino, ACCESS_XATTR)), (0o660, Some(value(&expected))));

    let sub = fs.create(dir, b"sub", made(Kind::Dir, 0o777, 0o077), NOW).expect("mkdir");
    assert_eq!(sub.perm, 0o770);
    for name in [ACCESS_XATTR, DEFAULT_XATTR] {
        assert_eq!(acl(&fs, sub.ino, name), Some(value(&SHARED)));
    }
    let link = fs.symlink(dir, b"l", b"target", 0, 0, NOW).expect("symlink");
    assert_eq!((link.perm, acl(&fs, link.ino, ACCESS_XATTR)), (0o777, None));
    // One that is a mode only masks; and one too large for the inode is inherited as well.
    let mode = [(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 0, NOBODY)];
    set(&mut fs, dir, AclKind::Default, &mode).expect("set");
    let file = fs.create(dir, b"g", made(Kind::File, 0o477, 0), NOW).expect("create");
    assert_eq!((file.perm, acl(&fs, file.ino, ACCESS_XATTR)), (0o440, None));
    let mut large = vec![SHARED[0]];
    large.extend((0..ACL_ENTRIES_MAX as u32 - 4).map(|user| (2, 6, user)));
    large.extend_from_slice(&SHARED[2..]);
    set(&mut fs, dir, AclKind::Default, &large).expect("set");
    let sub = fs.create(dir, b"large", made(Kind::Dir, 0o777, 0), NOW).expect("mkdir");
    assert_eq!(acl(&fs, sub.ino, ACCESS_XATTR), Some(value(&large)));
    assert_eq!(acl(&fs, sub.ino, DEFAULT_XATTR), Some(value(&large)));
    assert_eq!(check(&fs), Ok(()));
    commit(&mut fs, NOW);
}

#[test]
fn permission_is_by_acl_or_by_the_first_class_that_fits() {
    let mut fs = empty();
    let who = Credentials { uid: 10, gid: 20, groups: &[30] };
    let cases = [
        (10, 1, 0o400, true),
        (10, 20, 0o044, false),
        (1, 20, 0o040, true),
        (1, 20, 0o404, false),
        (1, 30, 0o040, true),
        (1, 2, 0o004, true),
        (1, 2, 0o440, false),
    ];
    for (i, (uid, gid, perm, read)) in cases.into_iter().enumerate() {
        let new = NewInode { uid, gid, ..new(Kind::File, perm) };
        let inode = fs.create(ROOT_INO, &[b'a' + i as u8], new, NOW).expect("create");
        assert_eq!(fs.permits(&who, &inode, Access::Read), Ok(read), "{perm:o} {uid} {gid}");
    }
    let inode = fs.lookup(ROOT_INO, b"a").expect("lookup");
    let root = Credentials { uid: 0, gid: 0, groups: &[] };
    assert_eq!(fs.permits(&root, &inode, Access::Write), Ok(true));

    set(&mut fs, inode.ino, AclKind::Access, &SHARED).expect("set");
    let inode = fs.inode(inode.ino).expect("inode");
    let may = |uid, access| fs.permits(&Credentials { uid, gid: 99, groups: &[] }, &inode, access);
    assert_eq!([may(5, Access::Write), may(6, Access::Read)], [Ok(true), Ok(false)]);
    assert_eq!(may(10, Access::Write), Ok(true), "the owner");
    let group = Credentials { uid: 6, gid: 7, groups: &[1] };
    assert_eq!(fs.permits(&group, &inode, Access::Read), Ok(true));
    assert_eq!(fs.permits(&group, &inode, Access::Write), Ok(false), "the mode's group bits are the mask");
}
