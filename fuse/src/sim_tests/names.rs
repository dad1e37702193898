//! Random operations on names, attributes and handles.

use layout::fs::{Ino, NewInode, RenameFlags, SetAttr, XattrFlags};
use layout::inode::Kind;
use rand::Rng;

use super::clock;
use super::world::World;

const NAMES: usize = 12;
/// With more inodes than that, more is removed than made.
const NODES_MAX: usize = 45;

fn name(i: usize) -> Vec<u8> {
    match i {
        0 => vec![b'L'; 255],
        1 => vec![b'T'; 256],
        _ => format!("name {i}").into_bytes(),
    }
}

fn xattr_name(i: usize) -> Vec<u8> {
    format!("user.attribute {i}{}", "y".repeat(i * 9)).into_bytes()
}

impl World {
    pub(super) fn some_node(&mut self) -> Ino {
        let all: Vec<Ino> = self.tree.names.nodes.keys().copied().collect();
        all[self.rng.random_range(0..all.len())]
    }

    fn some_of(&mut self, wanted: impl Fn(Kind, u32) -> bool) -> Option<Ino> {
        let nodes = self.tree.names.nodes.iter().filter(|(_, n)| wanted(n.kind, n.nlink));
        let all: Vec<Ino> = nodes.map(|(ino, _)| *ino).collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())])
    }

    /// Mostly a directory that is there.
    pub(super) fn some_dir(&mut self) -> Ino {
        if self.once_in(25) {
            return self.some_node();
        }
        self.some_of(|kind, links| kind == Kind::Dir && links > 0).expect("the root is there")
    }

    pub(super) fn some_file(&mut self) -> Option<Ino> {
        self.some_of(|kind, _| kind == Kind::File)
    }

    fn some_name(&mut self) -> Vec<u8> {
        let i = self.rng.random_range(0..NAMES);
        name(if i < 2 && !self.once_in(4) { i + 2 } else { i })
    }

    /// A name that is there, mostly.
    fn some_entry(&mut self) -> (Ino, Vec<u8>) {
        let dir = self.some_dir();
        let children: Vec<Vec<u8>> = self.tree.names.get(dir).children.keys().cloned().collect();
        if children.is_empty() || self.once_in(8) {
            return (dir, self.some_name());
        }
        let i = self.rng.random_range(0..children.len());
        (dir, children[i].clone())
    }

    pub(super) fn change_names(&mut self) {
        let crowded = self.tree.names.nodes.len() > NODES_MAX;
        match self.rng.random_range(0..if crowded { 12 } else { 18 }) {
            0..=2 => self.unlink(),
            3 => self.rmdir(),
            4..=7 => self.rename(),
            8 => self.close(),
            9 => self.open(),
            10 => self.set_attributes(),
            11 => self.link(),
            12 => self.symlink(),
            13 => self.make_nameless(),
            _ => self.create(),
        }
    }

    fn create(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        let kind = match self.rng.random_range(0..12) {
            0..=5 => Kind::File,
            6..=8 => Kind::Dir,
            9 => Kind::Fifo,
            10 => Kind::CharDevice,
            _ => Kind::Socket,
        };
        let perm = self.rng.random_range(0..0o10000);
        let new = NewInode { kind, perm, uid: 5, gid: 6, rdev: 0x0501, umask: 0 };
        let open = kind == Kind::File && self.once_in(3);
        self.make(dir, &name, new, open);
    }

    pub(super) fn make(&mut self, dir: Ino, name: &[u8], new: NewInode, open: bool) {
        let (kind, now) = (new.kind, clock::tick());
        self.note(format!("  create {kind:?} {:?} in {}", String::from_utf8_lossy(name), dir.0));
        let real = self.mounted.create(dir, name, new, open);
        if let Some((inode, ())) = self.agree("create", real, |m| m.may_create(dir, name)) {
            self.tree.names.create(inode.ino, dir, name, new, b"", now);
            if open {
                self.handles.push(inode.ino);
            }
        }
    }

    /// O_TMPFILE: linked later, or gone with its last handle.
    fn make_nameless(&mut self) {
        let (dir, now) = (self.some_dir(), clock::tick());
        let new = NewInode { kind: Kind::File, perm: 0o640, uid: 5, gid: 6, rdev: 0, umask: 0o22 };
        self.note(format!("  a file without a name in {}", dir.0));
        let real = self.mounted.tmpfile(dir, new);
        if let Some((inode, ())) = self.agree("tmpfile", real, |m| m.may_hold(dir)) {
            self.tree.names.tmpfile(inode.ino, dir, new, now);
            self.handles.push(inode.ino);
        }
    }

    fn symlink(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        let len = [5, 320, 321, 3000][self.rng.random_range(0..4)];
        self.make_symlink(dir, &name, len);
    }

    pub(super) fn make_symlink(&mut self, dir: Ino, name: &[u8], len: usize) {
        let (target, now) = (vec![b'a'; len], clock::tick());
        let new = NewInode { kind: Kind::Symlink, perm: 0o777, uid: 7, gid: 8, rdev: 0, umask: 0 };
        self.note(format!("  symlink {:?} in {}", String::from_utf8_lossy(name), dir.0));
        let real = self.mounted.symlink(dir, name, &target, (7, 8));
        if let Some((inode, ())) = self.agree("symlink", real, |m| m.may_create(dir, name)) {
            self.tree.names.create(inode.ino, dir, name, new, &target, now);
        }
    }

    fn link(&mut self) {
        let (ino, dir, name) = (self.some_node(), self.some_dir(), self.some_name());
        self.make_link(ino, dir, &name);
    }

    pub(super) fn make_link(&mut self, ino: Ino, dir: Ino, name: &[u8]) {
        let now = clock::tick();
        self.note(format!("  link {} as {:?} in {}", ino.0, String::from_utf8_lossy(name), dir.0));
        let real = self.mounted.link(ino, dir, name);
        self.agree("link", real, |m| m.link(ino, dir, name, now));
    }

    fn unlink(&mut self) {
        let (dir, name) = self.some_entry();
        self.unlink_at(dir, &name);
    }

    pub(super) fn unlink_at(&mut self, dir: Ino, name: &[u8]) {
        let now = clock::tick();
        self.note(format!("  unlink {:?} in {}", String::from_utf8_lossy(name), dir.0));
        let real = self.mounted.unlink(dir, name);
        if let Some(((), ino)) = self.agree("unlink", real, |m| m.remove(dir, name, false, now)) {
            self.reap(ino);
        }
    }

    fn rmdir(&mut self) {
        let (dir, name) = self.some_entry();
        self.rmdir_at(dir, &name);
    }

    pub(super) fn rmdir_at(&mut self, dir: Ino, name: &[u8]) {
        let now = clock::tick();
        self.note(format!("  rmdir {:?} in {}", String::from_utf8_lossy(name), dir.0));
        let real = self.mounted.rmdir(dir, name);
        if let Some(((), ino)) = self.agree("rmdir", real, |m| m.remove(dir, name, true, now)) {
            self.reap(ino);
        }
    }

    fn rename(&mut self) {
        let (from, old) = self.some_entry();
        let (to, new) = if self.once_in(3) { self.some_entry() } else { (self.some_dir(), self.some_name()) };
        let flags = match self.rng.random_range(0..8) {
            0..=4 => RenameFlags::empty(),
            5 => RenameFlags::NOREPLACE,
            _ => RenameFlags::EXCHANGE,
        };
        self.rename_to((from, &old), (to, &new), flags);
    }

    pub(super) fn rename_to(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: RenameFlags) {
        let now = clock::tick();
        let text = |name| String::from_utf8_lossy(name).into_owned();
        let (old, new) = (text(from.1), text(to.1));
        self.note(format!("  rename {old:?} in {} to {new:?} in {}, {flags:?}", from.0.0, to.0.0));
        let real = self.mounted.rename(from, to, flags);
        let done = self.agree("rename", real, |m| m.rename(from, to, flags, now));
        if let Some(((), Some(replaced))) = done {
            self.reap(replaced);
        }
    }

    /// What has no link and no handle is freed.
    fn reap(&mut self, ino: Ino) {
        if self.tree.names.get(ino).nlink == 0 && !self.handles.contains(&ino) {
            self.tree.forget(ino);
        }
    }

    fn open(&mut self) {
        if let Some(ino) = self.some_file() {
            self.open_file(ino);
        }
    }

    pub(super) fn open_file(&mut self, ino: Ino) {
        self.note(format!("  open {}", ino.0));
        match self.mounted.open(ino) {
            Ok(_) => self.handles.push(ino),
            Err(error) => assert!(self.is_explained(error), "open: {error}"),
        }
    }

    pub(super) fn close(&mut self) {
        if self.handles.is_empty() {
            return;
        }
        let i = self.rng.random_range(0..self.handles.len());
        let ino = self.handles.swap_remove(i);
        self.note(format!("  close {}", ino.0));
        clock::tick();
        self.mounted.release(ino);
        self.released(ino);
    }

    /// A handle is gone: an orphan goes with its last one. If it can't be freed, the next mount does it.
    pub(super) fn released(&mut self, ino: Ino) {
        self.catch_up();
        let disk = self.daemon.disk();
        if self.tree.names.get(ino).nlink > 0 || self.handles.contains(&ino) {
            return;
        }
        let is_dead = disk.crashed() && !self.daemon.comes_back();
        if is_dead || disk.fault_fired() || self.daemon.is_cut() {
            self.broken = true;
            return;
        }
        self.tree.forget(ino);
    }

    fn set_attributes(&mut self) {
        let (ino, now) = (self.some_node(), clock::tick());
        let mut set = SetAttr::default();
        match self.rng.random_range(0..4) {
            0 => set.perm = Some(self.rng.random_range(0..0o10000)),
            1 => set.uid = Some(self.rng.random_range(0..100)),
            2 => (set.gid, set.perm) = (Some(3), Some(0o6755)),
            _ => set.mtime = Some(now),
        }
        self.note(format!("  setattr {}: {set:?}", ino.0));
        let real = self.mounted.setattr(ino, set, false);
        self.agree("setattr", real, |m| m.setattr(ino, set, now));
    }

    /// Files first, then the directories that are empty.
    pub(super) fn delete_everything(&mut self) {
        while !self.handles.is_empty() {
            self.close();
        }
        loop {
            let entries: Vec<(Ino, Vec<u8>, Ino)> = self
                .tree
                .names
                .nodes
                .iter()
                .flat_map(|(dir, node)| node.children.iter().map(|(name, ino)| (*dir, name.clone(), *ino)))
                .collect();
            if entries.is_empty() {
                return;
            }
            for (dir, name, ino) in entries {
                let Some(node) = self.tree.names.nodes.get(&ino) else { continue };
                match node.kind {
                    Kind::Dir if !node.children.is_empty() => {}
                    Kind::Dir => self.rmdir_at(dir, &name),
                    _ => self.unlink_at(dir, &name),
                }
            }
        }
    }

    pub(super) fn change_xattrs(&mut self) {
        let ino = self.some_node();
        let name = xattr_name(self.rng.random_range(0..6));
        if self.once_in(3) {
            return self.remove_xattr(ino, &name);
        }
        let len = match self.rng.random_range(0..16) {
            0..=8 => self.rng.random_range(0..60),
            9..=12 => self.rng.random_range(60..400),
            13 | 14 => self.rng.random_range(1000..9000),
            _ => self.rng.random_range(60_000..65_536),
        };
        let flags = match self.rng.random_range(0..6) {
            0 => XattrFlags::CREATE,
            1 => XattrFlags::REPLACE,
            _ => XattrFlags::empty(),
        };
        self.set_xattr(ino, &name, len, flags);
    }

    pub(super) fn set_xattr(&mut self, ino: Ino, name: &[u8], len: usize, flags: XattrFlags) {
        let now = clock::tick();
        let value = vec![now.secs as u8; len];
        self.note(format!("  setxattr of {}, {len} bytes, {flags:?}", ino.0));
        let real = self.mounted.setxattr(ino, name, &value, flags, false);
        self.agree("setxattr", real, |m| m.setxattr(ino, name, &value, flags, now));
    }

    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &[u8]) {
        let now = clock::tick();
        self.note(format!("  removexattr of {}", ino.0));
        let real = self.mounted.removexattr(ino, name);
        self.agree("removexattr", real, |m| m.removexattr(ino, name, now));
    }
}
