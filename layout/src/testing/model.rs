//! A model file system: maps in memory, written from POSIX and not from the code under test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec::Vec;

use crate::acl::AclKind;
use crate::addr::PAGE;
use crate::error::Error;
use crate::fs::{NewInode, RenameFlags, SetAttr, XattrFlags};
use crate::inode::{Ino, Kind, MAX_FILE_BYTES, ROOT_INO};
use crate::page_store::Timespec;

/// What an operation gives; errors are compared by errno.
pub type Answer<T> = Result<T, Error>;
/// A name in a directory.
pub type FileName = Vec<u8>;

/// An inode as POSIX has it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Type of file.
    pub kind: Kind,
    /// Bits 07777.
    pub perm: u16,
    /// Links; 0 for an orphan.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a device file.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// atime, mtime, ctime, btime.
    pub times: [Timespec; 4],
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    /// Of a directory.
    pub children: BTreeMap<FileName, Ino>,
    /// Of a directory: `..`.
    pub parent: Ino,
    /// The link that the format's place names, if known.
    pub place: Option<(Ino, FileName)>,
    /// Of a file; what is not there is zeros.
    pub pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

const ATIME: usize = 0;
const MTIME: usize = 1;
const CTIME: usize = 2;
const BTIME: usize = 3;

/// A tree of names; clones share the pages of files.
#[derive(Clone, Debug)]
pub struct Model {
    /// All inodes, orphans too.
    pub nodes: BTreeMap<Ino, Node>,
}

fn node(kind: Kind, perm: u16, now: Timespec) -> Node {
    Node {
        kind,
        perm,
        nlink: if kind == Kind::Dir { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        times: [now; 4],
        xattrs: BTreeMap::new(),
        target: Vec::new(),
        children: BTreeMap::new(),
        parent: Ino(0),
        place: None,
        pages: BTreeMap::new(),
    }
}

fn check_name(name: &[u8]) -> Answer<()> {
    if name.len() > 255 {
        return Err(Error::NameTooLong);
    }
    Ok(())
}

/// Ways in which the real one may say no are compared by errno.
impl Model {
    /// An empty tree.
    pub fn new(perm: u16, now: Timespec) -> Model {
        let mut root = node(Kind::Dir, perm, now);
        root.parent = ROOT_INO;
        Model { nodes: BTreeMap::from([(ROOT_INO, root)]) }
    }

    /// A node.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn get(&self, ino: Ino) -> &Node {
        &self.nodes[&ino]
    }

    /// A node to be changed.
    pub fn at(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("the test names nodes that exist")
    }

    /// Those without links.
    pub fn orphans(&self) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, n)| n.nlink == 0).map(|(i, _)| *i).collect()
    }

    fn dir(&self, dir: Ino) -> Answer<&Node> {
        let node = self.get(dir);
        match node.kind {
            Kind::Dir if node.nlink > 0 => Ok(node),
            Kind::Dir => Err(Error::NotFound),
            _ => Err(Error::NotDir),
        }
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Answer<Ino> {
        self.dir(dir)?.children.get(name).copied().ok_or(Error::NotFound)
    }

    /// # Errors
    /// As lookup(2).
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Answer<Ino> {
        check_name(name)?;
        if self.get(dir).kind == Kind::Dir && self.get(dir).nlink == 0 {
            return Err(Error::NotFound);
        }
        self.find(dir, name)
    }

    fn changed(&mut self, dir: Ino, now: Timespec) {
        self.at(dir).times[MTIME] = now;
        self.at(dir).times[CTIME] = now;
    }

    /// Whether a name can be made.
    ///
    /// # Errors
    /// As mknod(2).
    pub fn may_create(&self, dir: Ino, name: &[u8]) -> Answer<()> {
        check_name(name)?;
        if self.dir(dir)?.children.contains_key(name) {
            return Err(Error::Exists);
        }
        Ok(())
    }

    /// Whether a directory takes inodes.
    ///
    /// # Errors
    /// As [`Model::may_create`].
    pub fn may_hold(&self, dir: Ino) -> Answer<()> {
        self.dir(dir).map(|_| ())
    }

    /// A new inode in a directory, without a name.
    fn born(&mut self, ino: Ino, dir: Ino, new: NewInode, now: Timespec) -> &mut Node {
        let parent = self.get(dir);
        let mut node = node(new.kind, new.perm, now);
        (node.uid, node.gid) = (new.uid, new.gid);
        if matches!(new.kind, Kind::CharDevice | Kind::BlockDevice) {
            node.rdev = new.rdev;
        }
        let default = parent.acl(AclKind::Default).filter(|_| new.kind != Kind::Symlink);
        if new.kind != Kind::Symlink && default.is_none() {
            node.perm &= !new.umask;
        }
        if parent.perm & 0o2000 != 0 {
            node.gid = parent.gid;
            if new.kind == Kind::Dir {
                node.perm |= 0o2000;
            }
        }
        if let Some(default) = default {
            if new.kind == Kind::Dir {
                node.xattrs.insert(AclKind::Default.name().to_vec(), value(&default));
            }
            let kept = |entry: &Entry| (entry.0, entry.1 & class_of(&default, entry.0, new.perm), entry.2);
            node.set_access(default.iter().map(kept).collect());
        }
        assert!(self.nodes.insert(ino, node).is_none(), "the new inode's number is in use");
        self.at(ino)
    }

    /// Makes an inode without a name.
    pub fn tmpfile(&mut self, ino: Ino, dir: Ino, new: NewInode, now: Timespec) {
        self.born(ino, dir, new, now).nlink = 0;
    }

    /// Makes a node of this number, which the real one chose.
    ///
    /// # Panics
    /// If the number is in use.
    pub fn create(&mut self, ino: Ino, dir: Ino, name: &[u8], new: NewInode, target: &[u8], now: Timespec) {
        let node = self.born(ino, dir, new, now);
        (node.target, node.size) = (target.to_vec(), target.len() as u64);
        (node.parent, node.place) = (dir, Some((dir, name.to_vec())));
        self.at(dir).children.insert(name.to_vec(), ino);
        self.at(dir).nlink += u32::from(new.kind == Kind::Dir);
        self.changed(dir, now);
    }

    /// # Errors
    /// As link(2).
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8], now: Timespec) -> Answer<()> {
        check_name(name)?;
        let node = self.get(ino);
        if node.kind == Kind::Dir {
            return Err(Error::NotPermitted);
        }
        self.may_create(dir, name)?;
        let node = self.at(ino);
        node.nlink += 1;
        node.times[CTIME] = now;
        if node.place.is_none() {
            node.place = Some((dir, name.to_vec()));
        }
        self.at(dir).children.insert(name.to_vec(), ino);
        self.changed(dir, now);
        Ok(())
    }

    /// Takes the link of a name from its inode.
    fn drop_link(&mut self, ino: Ino, dir: Ino, name: &[u8], now: Timespec) {
        let is_dir = self.get(ino).kind == Kind::Dir;
        if is_dir {
            self.at(dir).nlink -= 1;
        }
        let node = self.at(ino);
        node.nlink = if is_dir { 0 } else { node.nlink - 1 };
        node.times[CTIME] = now;
        if node.nlink == 0 || node.place == Some((dir, name.to_vec())) {
            node.place = None;
        }
    }

    /// Removes a name, gives its inode.
    ///
    /// # Errors
    /// As unlink(2) or rmdir(2).
    pub fn remove(&mut self, dir: Ino, name: &[u8], rmdir: bool, now: Timespec) -> Answer<Ino> {
        check_name(name)?;
        let ino = self.find(dir, name)?;
        let node = self.get(ino);
        match (node.kind == Kind::Dir, rmdir) {
            (true, false) => return Err(Error::IsDir),
            (false, true) => return Err(Error::NotDir),
            (true, true) if !node.children.is_empty() => return Err(Error::NotEmpty),
            _ => {}
        }
        self.at(dir).children.remove(name);
        self.drop_link(ino, dir, name, now);
        self.changed(dir, now);
        Ok(ino)
    }

    fn is_below(&self, dir: Ino, above: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == above {
                return true;
            }
            if at == ROOT_INO {
                return false;
            }
            at = self.get(at).parent;
        }
    }

    /// Gives the inode that was replaced.
    ///
    /// # Errors
    /// As renameat2(2).
    pub fn rename(
        &mut self,
        (dir, name): (Ino, &[u8]),
        (new_dir, new_name): (Ino, &[u8]),
        flags: RenameFlags,
        now: Timespec,
    ) -> Answer<Option<Ino>> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Error::Invalid(""));
        }
        check_name(name)?;
        check_name(new_name)?;
        self.dir(dir)?;
        self.dir(new_dir)?;
        let moved = self.find(dir, name)?;
        let target = self.find(new_dir, new_name).ok();
        match target {
            None if exchange => return Err(Error::NotFound),
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Error::Exists),
            Some(target) if target == moved => return Ok(None),
            _ => {}
        }
        let is_dir = |model: &Model, ino: Ino| model.get(ino).kind == Kind::Dir;
        if is_dir(self, moved) && self.is_below(new_dir, moved) {
            return Err(Error::Invalid(""));
        }
        if exchange {
            let other = target.ok_or(Error::NotFound)?;
            if is_dir(self, other) && self.is_below(dir, other) {
                return Err(Error::Invalid(""));
            }
            for (ino, from, from_name, to, to_name) in
                [(moved, dir, name, new_dir, new_name), (other, new_dir, new_name, dir, name)]
            {
                if is_dir(self, ino) {
                    self.at(from).nlink -= 1;
                    self.at(to).nlink += 1;
                }
                self.put(ino, (from, from_name), to, to_name, now);
            }
            self.changed(dir, now);
            self.changed(new_dir, now);
            return Ok(None);
        }
        if let Some(target) = target {
            match (is_dir(self, moved), is_dir(self, target)) {
                (true, false) => return Err(Error::NotDir),
                (false, true) => return Err(Error::IsDir),
                (true, true) if !self.get(target).children.is_empty() => return Err(Error::NotEmpty),
                _ => {}
            }
            self.drop_link(target, new_dir, new_name, now);
        }
        self.at(dir).children.remove(name);
        if is_dir(self, moved) {
            self.at(dir).nlink -= 1;
            self.at(new_dir).nlink += 1;
        }
        self.put(moved, (dir, name), new_dir, new_name, now);
        self.changed(dir, now);
        self.changed(new_dir, now);
        Ok(target)
    }

    fn put(&mut self, ino: Ino, old: (Ino, &[u8]), dir: Ino, name: &[u8], now: Timespec) {
        self.at(dir).children.insert(name.to_vec(), ino);
        let node = self.at(ino);
        node.parent = dir;
        if node.place.as_ref().is_none_or(|(dir, name)| (*dir, &name[..]) == old) {
            node.place = Some((dir, name.to_vec()));
        }
        node.times[CTIME] = now;
    }

    /// # Errors
    /// As truncate(2), for the size.
    pub fn setattr(&mut self, ino: Ino, set: SetAttr, now: Timespec) -> Answer<()> {
        let node = self.at(ino);
        if let Some(size) = set.size {
            match node.kind {
                Kind::File => {}
                Kind::Dir => return Err(Error::IsDir),
                _ => return Err(Error::Invalid("")),
            }
            if size > MAX_FILE_BYTES {
                return Err(Error::TooBig);
            }
            let page = PAGE as u64;
            node.pages.retain(|index, _| index * page < size);
            if let Some(last) = node.pages.get_mut(&(size / page)) {
                Arc::make_mut(last)[(size % page) as usize..].fill(0);
            }
            node.size = size;
            node.times[MTIME] = now;
        }
        if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
            node.drop_privileges();
        }
        if let (Some(perm), Some(mut acl)) = (set.perm, node.acl(AclKind::Access)) {
            let before = acl.clone();
            // What the mode does not show stays.
            for entry in acl.iter_mut().filter(|entry| class_of(&before, entry.0, 0) == 0) {
                entry.1 = class_of(&before, entry.0, perm);
            }
            node.xattrs.insert(AclKind::Access.name().to_vec(), value(&acl));
        }
        node.perm = set.perm.unwrap_or(node.perm);
        node.uid = set.uid.unwrap_or(node.uid);
        node.gid = set.gid.unwrap_or(node.gid);
        node.times[ATIME] = set.atime.unwrap_or(node.times[ATIME]);
        node.times[MTIME] = set.mtime.unwrap_or(node.times[MTIME]);
        node.times[BTIME] = set.btime.unwrap_or(node.times[BTIME]);
        node.times[CTIME] = set.ctime.unwrap_or(now);
        Ok(())
    }

    /// # Errors
    /// As pwrite(2).
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8], now: Timespec) -> Answer<()> {
        let node = self.at(ino);
        match node.kind {
            Kind::File => {}
            Kind::Dir => return Err(Error::IsDir),
            _ => return Err(Error::Invalid("")),
        }
        let end = offset + bytes.len() as u64;
        if end > MAX_FILE_BYTES {
            return Err(Error::TooBig);
        }
        for (i, byte) in bytes.iter().enumerate() {
            let at = offset + i as u64;
            let page = node.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[(at % PAGE as u64) as usize] = *byte;
        }
        node.size = node.size.max(end);
        node.times[MTIME] = now;
        node.times[CTIME] = now;
        node.drop_privileges();
        Ok(())
    }

    /// # Errors
    /// As setxattr(2).
    pub fn setxattr(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        now: Timespec,
    ) -> Answer<()> {
        let node = self.at(ino);
        match node.xattrs.contains_key(name) {
            true if flags.contains(XattrFlags::CREATE) => return Err(Error::Exists),
            false if flags.contains(XattrFlags::REPLACE) => return Err(Error::NoAttr),
            _ => {}
        }
        let others: usize =
            node.xattrs.iter().filter(|(n, _)| *n != name).map(|(n, v)| 4 + n.len() + v.len()).sum();
        if others + 4 + name.len() + value.len() > 65536 - 24 {
            return Err(Error::NoSpace);
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        node.times[CTIME] = now;
        Ok(())
    }

    /// # Errors
    /// As acl_set_file(3).
    pub fn set_acl(
        &mut self,
        ino: Ino,
        kind: AclKind,
        acl: &[Entry],
        kill_sgid: bool,
        now: Timespec,
    ) -> Answer<()> {
        let node = self.at(ino);
        match (node.kind, kind) {
            (Kind::Symlink, _) => return Err(Error::Unsupported),
            (Kind::Dir, _) | (_, AclKind::Access) => {}
            _ if acl.is_empty() => {}
            _ => return Err(Error::Access),
        }
        let before = node.clone();
        if acl.is_empty() {
            node.xattrs.remove(kind.name());
        } else if kind == AclKind::Access {
            node.set_access(acl.to_vec());
            if kill_sgid {
                node.perm &= !0o2000;
            }
        } else {
            node.xattrs.insert(kind.name().to_vec(), value(acl));
        }
        node.times[CTIME] = now;
        if node.xattrs.iter().map(|(n, v)| 4 + n.len() + v.len()).sum::<usize>() > 65536 - 24 {
            *node = before;
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// # Errors
    /// As removexattr(2).
    pub fn removexattr(&mut self, ino: Ino, name: &[u8], now: Timespec) -> Answer<()> {
        let node = self.at(ino);
        node.xattrs.remove(name).ok_or(Error::NoAttr)?;
        node.times[CTIME] = now;
        Ok(())
    }

    /// The path that climbing places gives, if every place on the way is known.
    pub fn path(&self, ino: Ino) -> Option<Vec<u8>> {
        if ino == ROOT_INO {
            return Some(Vec::new());
        }
        let (dir, name) = self.get(ino).place.as_ref()?;
        let mut path = self.path(*dir)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        Some(path)
    }
}

/// Tag, permissions and id of an ACL's entry.
pub type Entry = (u16, u16, u32);

/// The ACL as an attribute's value (acl(5), version 2).
pub fn value(entries: &[Entry]) -> Vec<u8> {
    let mut value = Vec::from(2u32.to_le_bytes());
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// The permissions that a mode gives the class of a tag in a list; all of them if it gives it none.
fn class_of(acl: &[Entry], tag: u16, mode: u16) -> u16 {
    let masked = acl.iter().any(|entry| entry.0 == 0x10);
    match tag {
        0x01 => mode >> 6 & 7,
        0x04 if !masked => mode >> 3 & 7,
        0x10 => mode >> 3 & 7,
        0x20 => mode & 7,
        _ => 7,
    }
}

impl Node {
    fn acl(&self, kind: AclKind) -> Option<Vec<Entry>> {
        let value = self.xattrs.get(kind.name())?;
        let entry = |e: &[u8]| {
            let short = |at: usize| u16::from_le_bytes([e[at], e[at + 1]]);
            (short(0), short(2), u32::from(short(4)) | u32::from(short(6)) << 16)
        };
        Some(value[4..].chunks(8).map(entry).collect())
    }

    fn set_access(&mut self, acl: Vec<Entry>) {
        let mode = |tag: u16| acl.iter().find(|entry| entry.0 == tag).map(|entry| entry.1);
        let group = mode(0x10).or(mode(0x04));
        let [user, group, other] = [mode(1), group, mode(0x20)].map(Option::unwrap_or_default);
        self.perm = self.perm & !0o777 | user << 6 | group << 3 | other;
        let name = AclKind::Access.name().to_vec();
        if acl.len() == 3 {
            self.xattrs.remove(&name);
        } else {
            self.xattrs.insert(name, value(&acl));
        }
    }

    /// What a change of its bytes or owner does to suid and sgid.
    pub fn drop_privileges(&mut self) {
        if self.kind == Kind::Dir {
            return;
        }
        self.perm &= !0o4000;
        if self.perm & 0o010 != 0 {
            self.perm &= !0o2000;
        }
    }
}
