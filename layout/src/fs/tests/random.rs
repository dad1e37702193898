//! Random operation sequences against the model, with commits, roll-backs and remounts.

use core::fmt::Debug;
use std::collections::BTreeMap;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::at;
use crate::acl::AclKind;
use crate::acl::tests::value;
use crate::addr::PAGE;
use crate::error::Error;
use crate::fs::{Fs, NewInode, RenameFlags, SetAttr, XattrFlags};
use crate::inode::{Ino, Inode, Kind, ROOT_INO};
use crate::page_store::{PageStore, Timespec};
use crate::testing::model::{Answer, Entry, FileName, Model};
use crate::testing::{MemStore, check, commit, format_params, mount};
use crate::windows::map_page;

/// Numbers choose among what there is at that moment.
#[derive(Clone, Debug)]
enum Op {
    Create { dir: usize, name: usize, kind: Kind, perm: u16 },
    Symlink { dir: usize, name: usize, len: usize },
    TmpFile { dir: usize, perm: u16 },
    Link { node: usize, dir: usize, name: usize },
    Remove { dir: usize, name: usize, rmdir: bool },
    Rename { from: (usize, usize), to: (usize, usize), flags: RenameFlags },
    SetAttr { node: usize, which: u8, value: u32 },
    Truncate { node: usize, size: usize, delta: u64 },
    Write { node: usize, offset: usize, delta: u64, len: usize },
    SetXattr { node: usize, name: usize, len: usize, flags: XattrFlags },
    SetAcl { node: usize, kind: AclKind, acl: usize, kill_sgid: bool },
    RemoveXattr { node: usize, name: usize },
    Reap { node: usize },
    ReapAll,
    Commit,
    Rollback,
    Remount,
}

const OFFSETS: [u64; 9] = [
    0,
    4096,
    60_000,
    (1 << 20) - 5000,
    1 << 20,
    (1 << 30) - 5000,
    1 << 30,
    (1 << 40) - 5000,
    (1 << 48) - 9000,
];
const NAMES: usize = 9;

fn name(i: usize) -> FileName {
    match i {
        0 => vec![b'L'; 255],
        1 => vec![b'T'; 256],
        _ => format!("name {i}").into_bytes(),
    }
}

fn xattr_name(i: usize) -> Vec<u8> {
    format!("user.attribute {i}{}", "y".repeat(i * 9)).into_bytes()
}

/// None, one that is a mode, one of usual size, one that overflows the inline area.
fn acl(i: usize) -> Vec<Entry> {
    const NOBODY: u32 = u32::MAX;
    let users = [0, 0, 2, 90][i];
    let named = (0..users).map(|user| (2, (user % 8) as u16, 100 + user));
    let mut acl = vec![(0x01, 6, NOBODY)];
    acl.extend(named);
    acl.push((0x04, 5, NOBODY));
    if users > 0 {
        acl.push((0x10, 3, NOBODY));
    }
    acl.push((0x20, 1, NOBODY));
    if i == 0 { Vec::new() } else { acl }
}

fn ops() -> impl Strategy<Value = Op> {
    let (dir, node, name) = (0..40usize, 0..60usize, 0..NAMES);
    let kind = prop_oneof![
        4 => Just(Kind::File), 5 => Just(Kind::Dir), 1 => Just(Kind::Fifo), 1 => Just(Kind::CharDevice),
        1 => Just(Kind::Socket), 1 => Just(Kind::BlockDevice)
    ];
    let rename_flags = prop_oneof![
        6 => Just(RenameFlags::empty()), 2 => Just(RenameFlags::NOREPLACE),
        3 => Just(RenameFlags::EXCHANGE), 1 => Just(RenameFlags::all())
    ];
    let xattr_flags = prop_oneof![
        4 => Just(XattrFlags::empty()), 1 => Just(XattrFlags::CREATE), 1 => Just(XattrFlags::REPLACE)
    ];
    let xattr_len =
        prop_oneof![4 => 0..40usize, 2 => 40..300usize, 2 => 1000..9000usize, 1 => 60_000..65_536usize];
    let symlink_len = prop_oneof![4 => 1..100usize, 1 => 315..325usize, 1 => 321..4096usize];
    let perm = prop_oneof![0..0o1000u16, 0..0o10000u16];
    prop_oneof![
        14 => (dir.clone(), name.clone(), kind, perm.clone())
            .prop_map(|(dir, name, kind, perm)| Op::Create { dir, name, kind, perm }),
        3 => (dir.clone(), name.clone(), symlink_len).prop_map(|(dir, name, len)| Op::Symlink { dir, name, len }),
        3 => (dir.clone(), perm).prop_map(|(dir, perm)| Op::TmpFile { dir, perm }),
        5 => (node.clone(), dir.clone(), name.clone()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        6 => (dir.clone(), name.clone(), any::<bool>())
            .prop_map(|(dir, name, rmdir)| Op::Remove { dir, name, rmdir }),
        10 => ((dir.clone(), name.clone()), (dir, name.clone()), rename_flags)
            .prop_map(|(from, to, flags)| Op::Rename { from, to, flags }),
        4 => (node.clone(), 0..7u8, any::<u32>())
            .prop_map(|(node, which, value)| Op::SetAttr { node, which, value }),
        4 => (node.clone(), 0..OFFSETS.len(), 0..10_000u64)
            .prop_map(|(node, size, delta)| Op::Truncate { node, size, delta }),
        7 => (node.clone(), 0..OFFSETS.len(), 0..10_000u64, 0..10_000usize)
            .prop_map(|(node, offset, delta, len)| Op::Write { node, offset, delta, len }),
        6 => (node.clone(), 0..NAMES, xattr_len, xattr_flags)
            .prop_map(|(node, name, len, flags)| Op::SetXattr { node, name, len, flags }),
        5 => (0..60usize, any::<bool>(), 0..4usize, any::<bool>()).prop_map(|(node, access, acl, kill_sgid)| {
            let kind = if access { AclKind::Access } else { AclKind::Default };
            Op::SetAcl { node, kind, acl, kill_sgid }
        }),
        3 => (node.clone(), 0..NAMES).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => node.prop_map(|node| Op::Reap { node }),
        1 => Just(Op::ReapAll),
        3 => Just(Op::Commit),
        2 => Just(Op::Rollback),
        1 => Just(Op::Remount),
    ]
}

/// The file system under test, the model, and the model at the last commit.
struct Pair {
    store: MemStore,
    fs: Fs<MemStore>,
    model: Model,
    committed: Model,
    clock: i64,
    room: Room,
}

/// Whether pages that may become dirty are few, so that NoSpace is a right answer that changes nothing,
/// and whether it was given.
#[derive(Default)]
struct Room {
    starving: bool,
    starved: bool,
}

impl Room {
    /// Both must succeed, or fail with the same errno. Gives the real value if there is one.
    fn same<T: Debug>(&mut self, real: Answer<T>, expected: Answer<()>) -> Result<Option<T>, TestCaseError> {
        match (real, expected) {
            (Ok(value), Ok(())) => Ok(Some(value)),
            (Err(Error::NoSpace), _) if self.starving => {
                self.starved = true;
                Ok(None)
            }
            (Err(real), Err(expected)) => {
                prop_assert_eq!(real.errno(), expected.errno(), "{} instead of {}", real, expected);
                Ok(None)
            }
            (real, expected) => {
                prop_assert!(false, "answer {:?}, expected {:?}", real, expected);
                Ok(None)
            }
        }
    }
}

impl Pair {
    fn new() -> Pair {
        let store = MemStore::formatted(format_params());
        let fs = mount(&store).expect("mount");
        let model = Model::new(format_params().root_perm, format_params().now);
        Pair { store, fs, committed: model.clone(), model, clock: 0, room: Room::default() }
    }

    /// Takes a step with room for only a few more dirty pages: it succeeds, or changes nothing.
    fn step_starving(&mut self, op: &Op, credits: u64) -> Result<(), TestCaseError> {
        let before = self.model.clone();
        self.room.starving =
            !matches!(op, Op::Write { .. } | Op::Truncate { .. } | Op::Reap { .. } | Op::ReapAll);
        self.store.set_credits(self.room.starving.then_some(credits));
        let result = self.step(op);
        self.store.set_credits(None);
        result?;
        prop_assert!(!self.fs.is_poisoned());
        if core::mem::take(&mut self.room.starved) {
            self.model = before;
            self.compare()?;
        }
        Ok(())
    }

    fn node(&self, i: usize) -> Ino {
        let all: Vec<Ino> = self.model.nodes.keys().copied().collect();
        all[i % all.len()]
    }

    /// Mostly a directory, sometimes one that was removed, seldom something else.
    fn dir(&self, i: usize) -> Ino {
        if i == 0 {
            return self.node(i + 1);
        }
        let dirs = self.model.nodes.iter().filter(|(_, n)| n.kind == Kind::Dir);
        let dirs: Vec<Ino> = dirs.map(|(ino, _)| *ino).collect();
        dirs[i % dirs.len()]
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        self.clock += 1;
        let now = at(self.clock);
        match op {
            Op::Create { dir, name: n, kind, perm } => {
                let (dir, name) = (self.dir(*dir), name(*n));
                let new = NewInode { kind: *kind, perm: *perm, umask: 0o022, uid: 5, gid: 6, rdev: 0x0501 };
                let expected = self.model.may_create(dir, &name);
                if let Some(inode) = self.room.same(self.fs.create(dir, &name, new, now), expected)? {
                    self.model.create(inode.ino, dir, &name, new, b"", now);
                }
            }
            Op::Symlink { dir, name: n, len } => {
                let (dir, name, target) = (self.dir(*dir), name(*n), vec![b'a' + (*len % 26) as u8; *len]);
                let new =
                    NewInode { kind: Kind::Symlink, perm: 0o777, umask: 0o022, uid: 7, gid: 8, rdev: 0 };
                let expected = self.model.may_create(dir, &name);
                if let Some(inode) =
                    self.room.same(self.fs.symlink(dir, &name, &target, 7, 8, now), expected)?
                {
                    self.model.create(inode.ino, dir, &name, new, &target, now);
                }
            }
            Op::TmpFile { dir, perm } => {
                let dir = self.dir(*dir);
                let new = NewInode { kind: Kind::File, perm: *perm, umask: 0o022, uid: 5, gid: 6, rdev: 0 };
                let expected = self.model.may_hold(dir);
                if let Some(inode) = self.room.same(self.fs.tmpfile(dir, new, now), expected)? {
                    self.model.tmpfile(inode.ino, dir, new, now);
                }
            }
            Op::Link { node, dir, name: n } => {
                let (node, dir, name) = (self.node(*node), self.dir(*dir), name(*n));
                let expected = self.model.link(node, dir, &name, now);
                self.room.same(self.fs.link(node, dir, &name, now), expected)?;
            }
            Op::Remove { dir, name: n, rmdir } => {
                let (dir, name) = (self.dir(*dir), name(*n));
                let expected = self.model.remove(dir, &name, *rmdir, now);
                let real = match rmdir {
                    true => self.fs.rmdir(dir, &name, now),
                    false => self.fs.unlink(dir, &name, now),
                };
                if let Some(inode) = self.room.same(real, expected.map(|_| ()))? {
                    prop_assert_eq!(Ok(inode.ino), expected);
                    prop_assert_eq!(self.fs.inode(inode.ino), Ok(inode));
                }
            }
            Op::Rename { from, to, flags } => {
                let (dir, new_dir) = (self.dir(from.0), self.dir(to.0));
                let (old, new) = (name(from.1), name(to.1));
                let expected = self.model.rename((dir, &old), (new_dir, &new), *flags, now);
                let real = self.fs.rename(dir, &old, new_dir, &new, *flags, now);
                if let Some(replaced) = self.room.same(real, expected.map(|_| ()))? {
                    prop_assert_eq!(Ok(replaced.map(|inode| inode.ino)), expected);
                }
            }
            Op::SetAttr { node, which, value } => {
                let node = self.node(*node);
                let time =
                    Some(Timespec { secs: i64::from(*value) - (1 << 31), nanos: *value % 1_000_000_000 });
                let mut set = SetAttr::default();
                match which {
                    0 => set.perm = Some(*value as u16 & 0o7777),
                    1 => set.uid = Some(*value),
                    2 => (set.gid, set.perm) = (Some(*value), Some(0o6755)),
                    3 => set.gid = Some(*value),
                    4 => set.atime = time,
                    5 => (set.mtime, set.btime) = (time, time),
                    _ => set.ctime = time,
                }
                let expected = self.model.setattr(node, set, now);
                self.room.same(self.fs.setattr(node, set, now), expected)?;
            }
            Op::Truncate { node, size, delta } => {
                let node = self.node(*node);
                let set = SetAttr { size: Some(OFFSETS[*size] + delta), ..SetAttr::default() };
                let expected = self.model.setattr(node, set, now);
                if let Some((_, Some(tail))) = self.room.same(self.fs.setattr(node, set, now), expected)? {
                    self.store.write(tail.page).expect("write")[tail.from..].fill(0);
                }
            }
            Op::Write { node, offset, delta, len } => {
                let (node, offset) = (self.node(*node), OFFSETS[*offset] + delta);
                self.write(node, offset, &vec![self.clock as u8; len + 1], now)?;
            }
            Op::SetXattr { node, name, len, flags } => {
                let (node, name) = (self.node(*node), xattr_name(*name));
                let value = vec![self.clock as u8; *len];
                let expected = self.model.setxattr(node, &name, &value, *flags, now);
                self.room.same(self.fs.setxattr(node, &name, &value, *flags, now), expected)?;
            }
            Op::SetAcl { node, kind, acl: which, kill_sgid } => {
                let (node, acl) = (self.node(*node), acl(*which));
                let expected = self.model.set_acl(node, *kind, &acl, *kill_sgid, now);
                let real = self.fs.set_acl(node, *kind, &value(&acl), *kill_sgid, now);
                self.room.same(real, expected)?;
            }
            Op::RemoveXattr { node, name } => {
                let (node, name) = (self.node(*node), xattr_name(*name));
                let expected = self.model.removexattr(node, &name, now);
                self.room.same(self.fs.removexattr(node, &name, now), expected)?;
            }
            Op::Reap { node } => {
                let orphans = self.model.orphans();
                if let Some(ino) = orphans.get(*node % orphans.len().max(1)) {
                    prop_assert_eq!(self.fs.reap(*ino), Ok(()));
                    self.model.nodes.remove(ino);
                } else {
                    prop_assert_eq!(self.fs.reap(ROOT_INO).map_err(Error::errno), Err(22));
                }
            }
            Op::ReapAll => {
                let orphans = self.model.orphans();
                prop_assert_eq!(self.fs.reap_orphans(u64::MAX), Ok(orphans.len() as u64));
                self.model.nodes.retain(|_, node| node.nlink > 0);
            }
            Op::Commit => {
                commit(&mut self.fs, now);
                self.committed = self.model.clone();
            }
            Op::Rollback => {
                self.store.rollback();
                self.fs = mount(&self.store).expect("mount after a roll-back");
                self.model = self.committed.clone();
            }
            Op::Remount => {
                commit(&mut self.fs, now);
                self.committed = self.model.clone();
                self.fs = mount(&self.store).expect("mount after a commit");
                prop_assert_eq!(self.fs.superblock().commit_time, now);
            }
        }
        Ok(())
    }

    /// Writes as a mounter does.
    fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8], now: Timespec) -> Result<(), TestCaseError> {
        let expected = self.model.write(ino, offset, bytes, now);
        let Some(inode) = self.room.same(self.fs.prepare_write(ino, offset, bytes.len() as u64), expected)?
        else {
            return Ok(());
        };
        let mut done = 0;
        while done < bytes.len() {
            let run = self.fs.map(&inode, offset + done as u64).expect("prepared");
            let (page, from) = (crate::addr::PageNo::containing(run.byte), (run.byte % PAGE as u64) as usize);
            let part = (PAGE - from).min(bytes.len() - done).min(run.len_bytes as usize);
            self.store.write(page).expect("write")[from..from + part]
                .copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
        let end = offset + bytes.len() as u64;
        prop_assert!(self.fs.finish_write(ino, end, now).is_ok());
        Ok(())
    }

    /// Compares everything, and checks the volume's structures.
    fn compare(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(check(&self.fs), Ok(()));
        prop_assert_eq!(self.fs.superblock().inodes_used, self.model.nodes.len() as u64);
        for (ino, node) in &self.model.nodes {
            let inode = self.fs.inode(*ino).map_err(|e| TestCaseError::fail(format!("{ino:?}: {e}")))?;
            let times = [inode.atime, inode.mtime, inode.ctime, inode.btime];
            prop_assert_eq!(
                (inode.kind, inode.perm, inode.nlink, inode.uid, inode.gid, inode.rdev, times),
                (node.kind, node.perm, node.nlink, node.uid, node.gid, node.rdev, node.times),
                "attributes of {:?}",
                ino
            );
            let xattrs = self.xattrs(&inode);
            prop_assert_eq!(&xattrs, &node.xattrs);
            match node.kind {
                Kind::Dir => self.compare_dir(*ino)?,
                Kind::Symlink => {
                    let mut out = [0; 4096];
                    let len = self.fs.readlink(*ino, &mut out).expect("readlink");
                    prop_assert_eq!(&out[..len], &node.target);
                }
                Kind::File => self.compare_data(&inode)?,
                _ => prop_assert_eq!(inode.size, 0),
            }
            let mut out = [0; 4096];
            let path = self.fs.path(*ino, ROOT_INO, &mut out).ok().map(|len| out[..len].to_vec());
            prop_assert_eq!(path, self.model.path(*ino).filter(|p| p.len() <= out.len()));
        }
        Ok(())
    }

    fn xattrs(&self, inode: &Inode) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut names = Vec::new();
        self.fs.listxattr(inode.ino, &mut |name| names.push(name.to_vec())).expect("listxattr");
        let value = |name: &[u8]| {
            let mut out = vec![0; self.fs.getxattr(inode.ino, name, &mut []).expect("getxattr")];
            if !out.is_empty() {
                self.fs.getxattr(inode.ino, name, &mut out).expect("getxattr");
            }
            out
        };
        names.into_iter().map(|name| (name.clone(), value(&name))).collect()
    }

    fn compare_dir(&self, dir: Ino) -> Result<(), TestCaseError> {
        let node = self.model.get(dir);
        let mut listed = BTreeMap::new();
        let mut dots = Vec::new();
        self.fs
            .readdir(dir, 0, &mut |entry| {
                if entry.cookie < 16 {
                    dots.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
                } else {
                    listed.insert(entry.name.to_vec(), entry.ino);
                }
                true
            })
            .expect("readdir");
        prop_assert_eq!(&listed, &node.children);
        if node.nlink > 0 {
            prop_assert_eq!(dots, vec![(String::from("."), dir), (String::from(".."), node.parent)]);
        }
        for i in 0..NAMES {
            let real = self.fs.lookup(dir, &name(i)).map(|inode| inode.ino).map_err(Error::errno);
            prop_assert_eq!(real, self.model.lookup(dir, &name(i)).map_err(Error::errno));
        }
        Ok(())
    }

    fn compare_data(&self, inode: &Inode) -> Result<(), TestCaseError> {
        let node = self.model.get(inode.ino);
        prop_assert_eq!(inode.size, node.size);
        for index in node.pages.keys().flat_map(|i| [i.saturating_sub(1), *i, i + 1]) {
            let real = map_page(inode, index).map_or([0; PAGE], |page| self.store.get(page));
            let expected = node.pages.get(&index).map_or([0; PAGE], |page| **page);
            prop_assert!(real == expected, "page {} of {:?}", index, inode.ino);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model_through_commits_rollbacks_and_remounts(ops in prop::collection::vec(ops(), 1..150)) {
        let mut pair = Pair::new();
        for (i, op) in ops.iter().enumerate() {
            pair.step(op)?;
            if i % 8 == 7 || matches!(op, Op::Commit | Op::Rollback | Op::Remount) {
                pair.compare()?;
            }
        }
        pair.compare()?;
    }

    #[test]
    fn a_change_without_room_changes_nothing(
        ops in prop::collection::vec((ops(), 0..8u64, any::<bool>()), 1..200)
    ) {
        let mut pair = Pair::new();
        for (op, credits, clean) in &ops {
            if *clean {
                pair.step(&Op::Commit)?;
            }
            pair.step_starving(op, *credits)?;
        }
        pair.compare()?;
    }
}
