//! Names: lookup and listing, creation, links and their removal.

use super::Fs;
use super::acl::Inherited;
use super::alloc::InodePick;
use super::tree::{Found, Search};
use super::tree_insert::InsertPlan;
use crate::addr::{PAGE, PageNo};
use crate::dir::leaf::Entry;
use crate::error::{Error, Result};
use crate::inode::{
    INLINE_BYTES, Inline, Ino, Inode, InodeFlags, Kind, LINK_MAX, SYMLINK_MAX, slot, slot_mut,
};
use crate::name::Name;
use crate::page_store::{PageStore, Timespec};
use crate::windows::map_page;

const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;
const S_ISGID: u16 = 0o2000;

/// What [`Fs::readdir`] gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
    /// The name.
    pub name: &'a [u8],
    /// Give this as `after` to go on behind this entry; it stays good under every change.
    pub cookie: u64,
}

/// The inode to create.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewInode {
    /// Anything but a symlink or a rows file.
    pub kind: Kind,
    /// Permission bits that were asked for.
    pub perm: u16,
    /// Bits taken away where the directory has no default ACL; 0 if that was done already.
    pub umask: u16,
    /// The caller's uid.
    pub uid: u32,
    /// The caller's gid; a setgid directory gives its own instead.
    pub gid: u32,
    /// Device number of a device, Linux `new_encode_dev`.
    pub rdev: u32,
}

impl NewInode {
    /// The inode as it begins in a directory, without a name.
    pub(super) fn inode(&self, dir: &Inode, pick: &InodePick, now: Timespec) -> Inode {
        let mut inode = Inode::new(pick.ino, pick.generation, self.kind, self.perm, now);
        inode.uid = self.uid;
        inode.gid = self.gid;
        if dir.perm & S_ISGID != 0 {
            inode.gid = dir.gid;
            if self.kind == Kind::Dir {
                inode.perm |= S_ISGID;
            }
        }
        if matches!(self.kind, Kind::CharDevice | Kind::BlockDevice) {
            inode.rdev = self.rdev;
        }
        inode
    }
}

/// A creation for which everything was read, checked and touched.
struct CreatePlan {
    dir: Inode,
    inode: Inode,
    inherited: Option<Inherited>,
    pick: InodePick,
    insert: InsertPlan,
}

impl<P: PageStore> Fs<P> {
    /// The inode of a name; `.` and `..` too, and `.` of what is no directory.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDir`], [`Error::NameTooLong`].
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Inode> {
        match name {
            b"." => return self.inode(dir),
            b".." => return self.inode(self.parent(dir)?),
            _ => {}
        }
        let dir = self.directory(dir)?;
        let found = self.search(&dir, Name::new(name)?)?.found.ok_or(Error::NotFound)?;
        self.entry_inode(&dir, found)
    }

    /// The inode that an entry names; it must be in use, of that kind, and have a link.
    pub(super) fn entry_inode(&self, dir: &Inode, found: Found) -> Result<Inode> {
        let inode = match self.inode(found.ino) {
            Err(Error::NotFound) => {
                return Err(self.corrupt_inode(dir.ino, "entry's inode is in use", 1, found.ino.0));
            }
            other => other?,
        };
        if inode.kind != found.kind {
            let (entry, here) = (found.kind as u64, inode.kind as u64);
            return Err(self.corrupt_inode(inode.ino, "inode's kind as in its entry", entry, here));
        }
        if inode.nlink == 0 || inode.ino == dir.ino || inode.ino == self.superblock.root {
            return Err(self.corrupt_inode(inode.ino, "entry of an inode that can have it", 1, dir.ino.0));
        }
        Ok(inode)
    }

    /// A directory that may get and lose names: it was not removed.
    pub(super) fn live_directory(&self, ino: Ino) -> Result<Inode> {
        let dir = self.directory(ino)?;
        if dir.nlink == 0 { Err(Error::NotFound) } else { Ok(dir) }
    }

    /// Lists a directory from behind a cookie (0 = from the start), `.` and `..` first, until `each` says
    /// false. Pages stay pinned while `each` runs: it may read, but not change, the file system.
    ///
    /// # Errors
    /// [`Error::NotDir`], [`Error::NotFound`].
    pub fn readdir(&self, dir: Ino, after: u64, each: &mut dyn FnMut(&DirEntry<'_>) -> bool) -> Result<()> {
        let dir = self.directory(dir)?;
        if dir.nlink == 0 {
            return Ok(());
        }
        if after < COOKIE_DOT
            && !each(&DirEntry { ino: dir.ino, kind: Kind::Dir, name: b".", cookie: COOKIE_DOT })
        {
            return Ok(());
        }
        if after < COOKIE_DOT_DOT {
            let ino = self.parent(dir.ino)?;
            if !each(&DirEntry { ino, kind: Kind::Dir, name: b"..", cookie: COOKIE_DOT_DOT }) {
                return Ok(());
            }
        }
        let Some(from) = after.max(COOKIE_DOT_DOT).checked_add(1) else {
            return Ok(());
        };
        self.scan(&dir, from, &mut |entry| {
            let Entry { key, ino, kind, name } = *entry;
            Ok(each(&DirEntry { ino, kind, name, cookie: key }))
        })
    }

    /// Prepare: a new name for an inode in a directory. Gives the directory as it will be but for the
    /// tree, and the plan with the key.
    fn plan_name(&self, dir: Ino, name: Name<'_>, now: Timespec) -> Result<(Inode, u64, InsertPlan)> {
        let mut dir = self.live_directory(dir)?;
        let Search { found, free_key } = self.search(&dir, name)?;
        if found.is_some() || name.is_session_dir() {
            return Err(Error::Exists);
        }
        let key = free_key.ok_or(Error::NoSpace)?;
        let plan = self.plan_insert(&dir, key, name.bytes().len())?;
        self.touch_inode(dir.ino)?;
        dir.mtime = now;
        dir.ctime = now;
        Ok((dir, key, plan))
    }

    /// Prepare: a new inode with a name.
    fn plan_create(&self, dir: Ino, name: Name<'_>, new: NewInode, now: Timespec) -> Result<CreatePlan> {
        let (mut dir, key, insert) = self.plan_name(dir, name, now)?;
        let pick = self.pick_inode()?;
        let mut inode = new.inode(&dir, &pick, now);
        let inherited = self.plan_inherit(&dir, &mut inode, new.umask)?;
        inode.place_dir = dir.ino;
        inode.place_key = key;
        if new.kind == Kind::Dir {
            if dir.nlink >= LINK_MAX {
                return Err(Error::TooManyLinks);
            }
            dir.nlink += 1;
        }
        Ok(CreatePlan { dir, inode, inherited, pick, insert })
    }

    /// Apply: makes the planned inode and its name.
    fn create_planned(&mut self, name: Name<'_>, plan: CreatePlan, inline: &[u8]) -> Result<Inode> {
        let CreatePlan { mut dir, inode, inherited, pick, insert } = plan;
        self.take_inode(&pick)?;
        self.change_slot(inode.ino, |raw| {
            inode.encode(raw);
            if let Some(area) = raw.inline.get_mut(..inline.len()) {
                area.copy_from_slice(inline);
            }
        })?;
        if let Some(inherited) = &inherited {
            self.write_inherited(&inode, inherited)?;
        }
        let entry = Entry { key: inode.place_key, ino: inode.ino, kind: inode.kind, name: name.bytes() };
        self.insert_entry(&mut dir, insert, &entry)?;
        self.write_inode(&dir)?;
        Ok(inode)
    }

    /// Creates a file, directory or special file. In a setgid directory it gets the directory's group, and
    /// a directory gets the setgid bit too. A default ACL of the directory is inherited.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NotFound`] in a removed directory, [`Error::NameTooLong`],
    /// [`Error::TooManyLinks`], [`Error::NoSpace`].
    pub fn create(&mut self, dir: Ino, name: &[u8], new: NewInode, now: Timespec) -> Result<Inode> {
        self.writable()?;
        if matches!(new.kind, Kind::Symlink | Kind::Rows) {
            return Err(Error::Invalid("create makes files, directories and special files only"));
        }
        let name = Name::new(name)?;
        let plan = self.plan_create(dir, name, new, now)?;
        self.apply(|fs| fs.create_planned(name, plan, &[]))
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// As [`Fs::create`]; [`Error::NameTooLong`] for a target beyond 4095 bytes, [`Error::NotFound`] for
    /// an empty one.
    pub fn symlink(
        &mut self,
        dir: Ino,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
        now: Timespec,
    ) -> Result<Inode> {
        self.writable()?;
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.len() > SYMLINK_MAX {
            return Err(Error::NameTooLong);
        }
        let name = Name::new(name)?;
        let new = NewInode { kind: Kind::Symlink, perm: 0o777, umask: 0, uid, gid, rdev: 0 };
        let mut plan = self.plan_create(dir, name, new, now)?;
        plan.inode.size = target.len() as u64;
        if target.len() <= INLINE_BYTES {
            plan.inode.inline = Inline::Symlink;
            plan.inode.inline_len = u16::try_from(target.len()).unwrap_or(0);
            return self.apply(|fs| fs.create_planned(name, plan, target));
        }
        let page_no = map_page(&plan.inode, 0).ok_or(Error::TooBig)?;
        drop(self.store.fresh(page_no)?);
        self.apply(|fs| {
            if let Some(area) = fs.store.write(page_no)?.get_mut(..target.len()) {
                area.copy_from_slice(target);
            }
            fs.create_planned(name, plan, &[])
        })
    }

    /// Puts a symlink's target into `out`; gives its length.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no symlink, [`Error::Range`] if `out` is too short.
    pub fn readlink(&self, ino: Ino, out: &mut [u8]) -> Result<usize> {
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(Error::Invalid("not a symbolic link"));
        }
        let len = usize::try_from(inode.size).ok().filter(|len| *len < PAGE).ok_or(Error::Range)?;
        let out = out.get_mut(..len).ok_or(Error::Range)?;
        if inode.inline == Inline::Symlink {
            let page = self.store.read(self.inode_page(ino)?)?;
            out.copy_from_slice(slot(&page, ino).inline_bytes().get(..len).ok_or(Error::Range)?);
        } else {
            let page = self.store.read(map_page(&inode, 0).unwrap_or(PageNo(0)))?;
            out.copy_from_slice(page.get(..len).ok_or(Error::Range)?);
        }
        Ok(len)
    }

    /// Gives an inode one more name; it becomes its place if that is unknown. An orphan ([`Fs::tmpfile`]) stops being one;
    /// whether it may is for the caller to say (linkat(2): not one made with O_EXCL, nor one unlinked).
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for a directory, [`Error::TooManyLinks`], and as [`Fs::create`].
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8], now: Timespec) -> Result<Inode> {
        self.writable()?;
        let name = Name::new(name)?;
        let mut inode = self.inode(ino)?;
        if inode.kind == Kind::Dir {
            return Err(Error::NotPermitted);
        }
        if inode.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        let (mut dir, key, plan) = self.plan_name(dir, name, now)?;
        self.touch_inode(ino)?;
        let orphan = if inode.nlink == 0 { Some(self.touch_orphan_pop(&inode)?) } else { None };
        inode.nlink += 1;
        inode.ctime = now;
        if inode.place_dir.0 == 0 {
            (inode.place_dir, inode.place_key) = (dir.ino, key);
        }
        self.apply(|fs| {
            let entry = Entry { key, ino, kind: inode.kind, name: name.bytes() };
            fs.insert_entry(&mut dir, plan, &entry)?;
            fs.write_inode(&dir)?;
            if let Some(neighbours) = orphan {
                fs.orphan_pop(&mut inode, neighbours)?;
            }
            fs.write_inode(&inode)?;
            Ok(inode)
        })
    }

    /// Removes a name of anything but a directory. Gives the inode as it is afterwards: with link count 0
    /// it is an orphan, to be given to [`Fs::reap`] at its last close.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDir`], [`Error::NotPermitted`] for the session directory.
    pub fn unlink(&mut self, dir: Ino, name: &[u8], now: Timespec) -> Result<Inode> {
        self.remove_name(dir, name, now, false)
    }

    /// Removes an empty directory. Gives the inode as it is afterwards, an orphan.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDir`], [`Error::NotEmpty`], [`Error::Invalid`] for `.`.
    pub fn rmdir(&mut self, dir: Ino, name: &[u8], now: Timespec) -> Result<Inode> {
        if name == b".." {
            return Err(Error::NotEmpty);
        }
        self.remove_name(dir, name, now, true)
    }

    fn remove_name(&mut self, dir: Ino, name: &[u8], now: Timespec, is_dir: bool) -> Result<Inode> {
        self.writable()?;
        let name = Name::new(name)?;
        let mut dir = self.live_directory(dir)?;
        if name.is_session_dir() {
            return Err(Error::NotPermitted);
        }
        let found = self.search(&dir, name)?.found.ok_or(Error::NotFound)?;
        let mut inode = self.entry_inode(&dir, found)?;
        match (inode.kind == Kind::Dir, is_dir) {
            (true, false) => return Err(Error::IsDir),
            (false, true) => return Err(Error::NotDir),
            _ => {}
        }
        self.must_be_removable(&inode)?;
        let plan = self.plan_remove(&dir, found.key)?;
        self.touch_inode(dir.ino)?;
        self.touch_inode(inode.ino)?;
        let head = self.touch_orphan_push()?;
        dir.mtime = now;
        dir.ctime = now;
        self.apply(|fs| {
            fs.remove_entry(&mut dir, &plan)?;
            fs.drop_link(&mut inode, &mut dir, found.key, head, now)?;
            fs.write_inode(&dir)?;
            Ok(inode)
        })
    }

    /// A directory must be empty to be removed or replaced.
    pub(super) fn must_be_removable(&self, inode: &Inode) -> Result<()> {
        if inode.kind != Kind::Dir {
            return Ok(());
        }
        if inode.entries != 0 {
            return Err(Error::NotEmpty);
        }
        if !self.tree_is_empty(inode)? {
            return Err(self.corrupt_inode(inode.ino, "entries of a directory", 1, inode.entries));
        }
        Ok(())
    }

    /// Apply: takes a link (the one of `key` in `dir`) from an inode and writes it; without links it goes
    /// on the orphan list. `dir` is changed but not written.
    pub(super) fn drop_link(
        &mut self,
        inode: &mut Inode,
        dir: &mut Inode,
        key: u64,
        orphan_head: Option<Inode>,
        now: Timespec,
    ) -> Result<()> {
        inode.ctime = now;
        if inode.kind == Kind::Dir {
            inode.nlink = 0;
            dir.nlink = dir.nlink.saturating_sub(1).max(2);
        } else {
            inode.nlink = inode.nlink.saturating_sub(1);
        }
        if inode.nlink == 0 || (inode.place_dir == dir.ino && inode.place_key == key) {
            inode.place_dir = Ino(0);
            inode.place_key = 0;
        }
        if inode.nlink == 0 && !inode.flags.contains(InodeFlags::ORPHAN) {
            self.orphan_push(inode, orphan_head)?;
        }
        self.write_inode(inode)
    }

    /// Apply: writes the inline area of a slot.
    pub(super) fn write_inline(&self, ino: Ino, write: impl FnOnce(&mut [u8; INLINE_BYTES])) -> Result<()> {
        let page = self.inode_page(ino)?;
        write(&mut slot_mut(&mut *self.store.write(page)?, ino).inline);
        Ok(())
    }
}
