//! rename(2) with its flags.

use bitflags::bitflags;

use super::Fs;
use super::tree::Found;
use crate::dir::leaf::Entry;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, InodeFlags, Kind, LINK_MAX};
use crate::name::Name;
use crate::page_store::{PageStore, Timespec};

bitflags! {
    /// As `RENAME_*` of renameat2(2), with the same values.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RenameFlags: u32 {
        /// Fail if the new name exists.
        const NOREPLACE = 1;
        /// Exchange the two names, which must both exist.
        const EXCHANGE = 2;
    }
}

/// One end of a rename: a directory, and an entry in it.
#[derive(Clone, Copy)]
struct End {
    dir: Inode,
    entry: Found,
    inode: Inode,
}

impl<P: PageStore> Fs<P> {
    /// Renames. Gives the inode that was replaced, if any, as it is
    /// afterwards: with link count 0 it is an orphan. Two names of one inode stay as they are.
    ///
    /// # Errors
    /// As rename(2): [`Error::NotFound`], [`Error::Exists`] with NOREPLACE, [`Error::Invalid`] for a directory
    /// into itself, [`Error::IsDir`], [`Error::NotDir`], [`Error::NotEmpty`], [`Error::TooManyLinks`],
    /// [`Error::NotPermitted`] for the session directory, [`Error::CrossDevice`] for a
    /// collection into another one.
    pub fn rename(
        &mut self,
        dir: Ino,
        name: &[u8],
        new_dir: Ino,
        new_name: &[u8],
        flags: RenameFlags,
        now: Timespec,
    ) -> Result<Option<Inode>> {
        self.writable()?;
        if flags.contains(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE) {
            return Err(Error::Invalid("rename can't both exchange and not replace"));
        }
        let (name, new_name) = (Name::new(name)?, Name::new(new_name)?);
        let from_dir = self.live_directory(dir)?;
        let to_dir = self.live_directory(new_dir)?;
        if name.is_session_dir() || new_name.is_session_dir() {
            return Err(Error::NotPermitted);
        }
        let entry = self.search(&from_dir, name)?.found.ok_or(Error::NotFound)?;
        let from = End { dir: from_dir, entry, inode: self.entry_inode(&from_dir, entry)? };
        let search = self.search(&to_dir, new_name)?;
        let to = match search.found {
            None if flags.contains(RenameFlags::EXCHANGE) => return Err(Error::NotFound),
            None => None,
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Error::Exists),
            Some(entry) => Some(End { dir: to_dir, entry, inode: self.entry_inode(&to_dir, entry)? }),
        };
        if to.is_some_and(|to| to.inode.ino == from.inode.ino) {
            return Ok(None);
        }
        self.check_move(&from.inode, dir, new_dir)?;
        match to {
            Some(to) if flags.contains(RenameFlags::EXCHANGE) => {
                self.check_move(&to.inode, new_dir, dir)?;
                self.exchange(from, to, now).map(|()| None)
            }
            Some(to) => self.rename_over(from, to, now).map(Some),
            None => {
                let key = search.free_key.ok_or(Error::NoSpace)?;
                self.rename_to_new(from, to_dir, key, new_name, now).map(|()| None)
            }
        }
    }

    /// A directory must not move below itself, nor a collection below another.
    fn check_move(&self, moved: &Inode, dir: Ino, new_dir: Ino) -> Result<()> {
        if moved.kind != Kind::Dir || dir == new_dir {
            return Ok(());
        }
        let is_collection = moved.flags.contains(InodeFlags::COLLECTION);
        self.ancestors(new_dir, &mut |above| {
            if above.ino == moved.ino {
                return Err(Error::Invalid("a directory can't move below itself"));
            }
            if is_collection && above.flags.contains(InodeFlags::COLLECTION) {
                return Err(Error::CrossDevice);
            }
            Ok(true)
        })
    }

    /// The place follows the name that it is (FORMAT.md section 5.5).
    fn move_place(inode: &mut Inode, from: (Ino, u64), to: (Ino, u64)) {
        let place = (inode.place_dir, inode.place_key);
        if inode.kind == Kind::Dir || place.0.0 == 0 || place == from {
            (inode.place_dir, inode.place_key) = to;
        }
    }

    /// Counts a directory that moves from one parent to another.
    fn move_link(kind: Kind, from: &mut Inode, to: &mut Inode) {
        if kind == Kind::Dir {
            from.nlink = from.nlink.saturating_sub(1).max(2);
            to.nlink = to.nlink.saturating_add(1);
        }
    }

    /// The new parent must have room for one more subdirectory.
    fn check_link_room(moved: &Inode, from: &Inode, to: &Inode) -> Result<()> {
        if moved.kind == Kind::Dir && from.ino != to.ino && to.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        Ok(())
    }

    fn rename_to_new(
        &mut self,
        from: End,
        mut to_dir: Inode,
        key: u64,
        name: Name<'_>,
        now: Timespec,
    ) -> Result<()> {
        let End { dir: mut from_dir, entry, inode: mut moved } = from;
        let same = from_dir.ino == to_dir.ino;
        Self::check_link_room(&moved, &from_dir, &to_dir)?;
        let insert = self.plan_insert(&to_dir, key, name.bytes().len())?;
        let remove = self.plan_remove(&from_dir, entry.key)?;
        for ino in [from_dir.ino, to_dir.ino, moved.ino] {
            self.touch_inode(ino)?;
        }
        moved.ctime = now;
        Self::move_place(&mut moved, (from_dir.ino, entry.key), (to_dir.ino, key));
        (to_dir.mtime, to_dir.ctime) = (now, now);
        (from_dir.mtime, from_dir.ctime) = (now, now);
        self.apply(|fs| {
            let new = Entry { key, ino: moved.ino, kind: moved.kind, name: name.bytes() };
            fs.insert_entry(&mut to_dir, insert, &new)?;
            fs.write_inode(&moved)?;
            if same {
                // The insertion may have split the page of the old name: plan its removal again.
                let remove = fs.plan_remove(&to_dir, entry.key)?;
                fs.remove_entry(&mut to_dir, &remove)?;
            } else {
                fs.remove_entry(&mut from_dir, &remove)?;
                Self::move_link(moved.kind, &mut from_dir, &mut to_dir);
                fs.write_inode(&from_dir)?;
            }
            fs.write_inode(&to_dir)
        })
    }

    fn rename_over(&mut self, from: End, to: End, now: Timespec) -> Result<Inode> {
        let End { dir: mut from_dir, entry, inode: mut moved } = from;
        let End { dir: mut to_dir, entry: target_entry, inode: mut target } = to;
        match (moved.kind == Kind::Dir, target.kind == Kind::Dir) {
            (true, false) => return Err(Error::NotDir),
            (false, true) => return Err(Error::IsDir),
            _ => {}
        }
        if target.ino == from_dir.ino {
            return Err(Error::NotEmpty);
        }
        self.must_be_removable(&target)?;
        let same = from_dir.ino == to_dir.ino;
        let replace = self.plan_replace(&to_dir, target_entry.key)?;
        let remove = self.plan_remove(&from_dir, entry.key)?;
        for ino in [from_dir.ino, to_dir.ino, moved.ino, target.ino] {
            self.touch_inode(ino)?;
        }
        let head = self.touch_orphan_push()?;
        moved.ctime = now;
        Self::move_place(&mut moved, (from_dir.ino, entry.key), (to_dir.ino, target_entry.key));
        (to_dir.mtime, to_dir.ctime) = (now, now);
        (from_dir.mtime, from_dir.ctime) = (now, now);
        self.apply(|fs| {
            fs.replace_entry(replace, moved.ino, moved.kind)?;
            fs.write_inode(&moved)?;
            if same {
                fs.remove_entry(&mut to_dir, &remove)?;
            } else {
                fs.remove_entry(&mut from_dir, &remove)?;
                Self::move_link(moved.kind, &mut from_dir, &mut to_dir);
                fs.write_inode(&from_dir)?;
            }
            fs.drop_link(&mut target, &mut to_dir, target_entry.key, head, now)?;
            fs.write_inode(&to_dir)?;
            Ok(target)
        })
    }

    fn exchange(&mut self, from: End, to: End, now: Timespec) -> Result<()> {
        let End { dir: mut from_dir, entry: from_entry, inode: mut a } = from;
        let End { dir: mut to_dir, entry: to_entry, inode: mut b } = to;
        let same = from_dir.ino == to_dir.ino;
        if a.kind != b.kind {
            Self::check_link_room(&a, &from_dir, &to_dir)?;
            Self::check_link_room(&b, &to_dir, &from_dir)?;
        }
        let replace_from = self.plan_replace(&from_dir, from_entry.key)?;
        let replace_to = self.plan_replace(&to_dir, to_entry.key)?;
        for ino in [from_dir.ino, to_dir.ino, a.ino, b.ino] {
            self.touch_inode(ino)?;
        }
        if !same {
            Self::move_link(a.kind, &mut from_dir, &mut to_dir);
            Self::move_link(b.kind, &mut to_dir, &mut from_dir);
        }
        let (from_place, to_place) = ((from_dir.ino, from_entry.key), (to_dir.ino, to_entry.key));
        (a.ctime, b.ctime) = (now, now);
        Self::move_place(&mut a, from_place, to_place);
        Self::move_place(&mut b, to_place, from_place);
        (to_dir.mtime, to_dir.ctime) = (now, now);
        (from_dir.mtime, from_dir.ctime) = (now, now);
        self.apply(|fs| {
            fs.replace_entry(replace_from, b.ino, b.kind)?;
            fs.replace_entry(replace_to, a.ino, a.kind)?;
            fs.write_inode(&a)?;
            fs.write_inode(&b)?;
            if !same {
                fs.write_inode(&from_dir)?;
            }
            fs.write_inode(&to_dir)
        })
    }
}
